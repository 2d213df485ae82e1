"""A run that is killed and started again is the run that was not: real SIGKILL, real processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax.store.rundir import read_metrics
from tests.runs import differences, saved
from tests.world import bert_jax, write_data, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:orbax")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("world")
    return write_recipe(folder / "recipe.toml"), write_data(folder / "data")


def finish(recipe: Path, data: Path, run: Path, devices: int = 1, *more: str) -> None:
    done = bert_jax("pretrain", recipe, "--data", data, "--run", run, *more, devices=devices)
    assert done.returncode == 0, done.stderr


def kill(recipe: Path, data: Path, run: Path, step: int, devices: int = 1) -> None:
    done = bert_jax("pretrain", recipe, "--data", data, "--run", run, "--fault", f"kill@{step}", devices=devices)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_resume_is_bitwise(world: tuple[Path, Path], tmp_path: Path) -> None:
    """40 steps straight against 15 + kill -9 + resume + kill -9 in the second stage + resume."""
    finish(*world, tmp_path / "straight")
    kill(*world, tmp_path / "killed", 17)
    kill(*world, tmp_path / "killed", 33)
    finish(*world, tmp_path / "killed")

    assert (tmp_path / "killed" / "log.txt").read_text().count("continuing after step") == 2
    assert differences(tmp_path / "straight", tmp_path / "killed") == []
    assert [row["step"] for row in read_metrics(tmp_path / "killed", "train")] == list(range(1, 41))
    assert [row["step"] for row in read_metrics(tmp_path / "killed", "heldout")] == [20, 25, 40]


def test_resume_on_half_the_devices(world: tuple[Path, Path], tmp_path: Path) -> None:
    finish(*world, tmp_path / "four", 4, "--set", "train.mesh_fsdp=2")
    kill(*world, tmp_path / "moved", 17, devices=4)
    finish(*world, tmp_path / "moved", 2)
    assert "continuing after step" in (tmp_path / "moved" / "log.txt").read_text()
    one, other = saved(tmp_path / "four", 40)["params"], saved(tmp_path / "moved", 40)["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one, other)
    four, moved = (list(read_metrics(tmp_path / name)) for name in ("four", "moved"))
    assert [row.get("batch") for row in four] == [row.get("batch") for row in moved]


def test_a_finished_run_says_so_and_changes_nothing(world: tuple[Path, Path], tmp_path: Path) -> None:
    finish(*world, tmp_path / "run", 1, "--set", "stage.0.steps=5", "--set", "stage.1.steps=5")
    before = (tmp_path / "run" / "report.json").read_bytes()
    again = bert_jax(
        *("pretrain", world[0], "--data", world[1], "--run", tmp_path / "run"),
        *("--set", "stage.0.steps=5", "--set", "stage.1.steps=5"),
    )
    assert again.returncode == 0 and "finished after 10 steps" in again.stdout
    assert (tmp_path / "run" / "report.json").read_bytes() == before
    assert json.loads(before)["step"] == 10

    other = bert_jax("pretrain", world[0], "--data", world[1], "--run", tmp_path / "run")
    assert other.returncode == 1 and "this run was begun with stage.0.steps = 5, not 25;" in other.stderr
    assert "Traceback" not in other.stderr
