"""A notice to stop: finish the step, save, exit with 75; the same command continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax.store.rundir import read_json, read_metrics
from tests.world import flags, write_data, write_recipe


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_notice_saves_and_exits_with_75(tmp_path: Path, number: signal.Signals) -> None:
    recipe, data = write_recipe(tmp_path / "recipe.toml"), write_data(tmp_path / "data")
    command = [sys.executable, "-m", "bert_jax.cli", "pretrain", str(recipe), "--data", str(data)]
    command += ["--run", str(tmp_path / "run"), "--set", "stage.0.steps=1000000", "--set", "report.seconds=0.1"]
    command += ["--set", "checkpoint.every=1000000", "--set", "train.evaluate_every=1000000"]
    environment = {**os.environ, "XLA_FLAGS": flags(1), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step"):
                process.send_signal(number)
                break
        rest = process.stdout.read()
    assert process.returncode == 75
    assert "saved; the same command continues" in rest
    stopped = read_json(tmp_path / "run" / "report.json")["step"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()] == [str(stopped)]
    assert [row["step"] for row in read_metrics(tmp_path / "run", "train")] == list(range(1, stopped + 1))
    assert (tmp_path / "run" / "curves.png").stat().st_size > 0
