"""Several processes train as one: real processes on this machine, joined as Slurm would tell them to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bert_jax.store.rundir import read_json, read_metrics
from tests.world import bert_jax, write_data, write_recipe

SHORT = ["--set", "stage.0.steps=6", "--set", "stage.1.steps=4", "--set", "train.evaluate_every=4"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("world")
    return write_recipe(folder / "recipe.toml"), write_data(folder / "data", heldout=21)


@pytest.fixture(scope="module")
def one(world: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a single process with a single device."""
    run = tmp_path_factory.mktemp("one") / "run"
    done = bert_jax("pretrain", world[0], "--data", world[1], "--run", run, *SHORT)
    assert done.returncode == 0, done.stderr
    return run


@contextmanager
def processes(count: int, *arguments: object) -> Iterator[list[subprocess.Popen[str]]]:
    """`bert-jax pretrain ... --distributed` so many times, with the variables that `srun` gives its tasks."""
    with told_by_slurm(count, "-m", "bert_jax.cli", "pretrain", *arguments, "--distributed") as started:
        yield started


@contextmanager
def told_by_slurm(count: int, *arguments: object) -> Iterator[list[subprocess.Popen[str]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *map(str, arguments)]
    started = []
    for number in range(count):
        told = {
            "SLURM_JOB_ID": "1",
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": str(count),
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number),
            "JAX_COORDINATOR_PORT": str(port),
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=1",
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env={**os.environ, **told}, text=True, **pipes))
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def lines(run: Path, kind: str = "train") -> list[dict]:
    return list(read_metrics(run, kind))


def assert_alike(ours: list[dict], theirs: list[dict]) -> None:
    """The same steps of the same records, and every figure within float32's sums in another order, or the last of the
    six digits with which it is written."""
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for name, value in one.items():
            assert other[name] == (pytest.approx(value, abs=1e-5, rel=1e-5) if isinstance(value, float) else value), (
                one,
                other,
            )


@pytest.mark.parametrize("fsdp", [1, 2])
def test_two_processes_train_as_one(world: tuple[Path, Path], one: Path, tmp_path: Path, fsdp: int) -> None:
    """Each with one device and half of every batch; with fsdp each holds half of the parameters too."""
    recipe, data = world
    run = tmp_path / "two"
    with processes(2, recipe, "--data", data, "--run", run, *SHORT, "--set", f"train.mesh_fsdp={fsdp}") as both:
        said = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    told = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in said]
    assert "parameters on 2 cpu devices" in told[0][0] and "done" in told[0]
    assert told[1] == []  # the first process speaks for all

    assert [row["step"] for row in lines(run)] == list(range(1, 11))
    assert_alike(lines(run), lines(one))
    assert [row["step"] for row in lines(run, "heldout")] == [4, 6, 8, 10]
    assert_alike(lines(run, "heldout"), lines(one, "heldout"))
    assert read_json(run / "report.json")["step"] == 10
    assert read_json(run / "provenance.json")["mesh"] == {"data": 2 // fsdp, "fsdp": fsdp, "tensor": 1}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"5", "10"}


# Thirty steps without dropout, the last ten of them in accumulation pieces.
STILL = ["--set", "model.hidden_dropout=0.0", "--set", "model.attention_dropout=0.0", "--set", "report.seconds=1000"]
STILL += ["--set", "stage.0.steps=20", "--set", "stage.1.steps=10", "--set", "train.evaluate_every=100"]
STILL += ["--set", "stage.0.learning_rate=1e-3"]


@pytest.fixture(scope="module")
def thirty(world: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """One process, one device."""
    run = tmp_path_factory.mktemp("thirty") / "run"
    done = bert_jax("pretrain", world[0], "--data", world[1], "--run", run, *STILL)
    assert done.returncode == 0, done.stderr
    rows = lines(run)
    assert len(rows) == 30 and len({row["batch"] for row in rows}) == 30
    return rows


@pytest.mark.parametrize(("count", "fsdp", "tensor"), [(2, 1, 1), (4, 1, 1), (4, 2, 2)])
def test_thirty_steps_are_the_same_on_several_processes(
    world: tuple[Path, Path], thirty: list[dict], tmp_path: Path, count: int, fsdp: int, tensor: int
) -> None:
    """Data alone; and pieces of parameters where two processes each read the same rows."""
    run = tmp_path / "run"
    mesh = ["--set", f"train.mesh_fsdp={fsdp}", "--set", f"train.mesh_tensor={tensor}"]
    mesh += ["--set", "train.shard_optimizer=true"] if count == 2 else []
    with processes(count, world[0], "--data", world[1], "--run", run, *STILL, *mesh) as all_of_them:
        said = [process.communicate(timeout=900) for process in all_of_them]
    assert [process.returncode for process in all_of_them] == [0] * count, said
    assert read_json(run / "provenance.json")["mesh"] == {
        "data": count // (fsdp * tensor),
        "fsdp": fsdp,
        "tensor": tensor,
    }
    rows = lines(run)
    assert [row["batch"] for row in rows] == [row["batch"] for row in thirty]
    for name in ("loss", "masked_lm_loss", "next_sentence_loss"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in thirty], abs=1e-5, rel=0)


def test_each_process_reads_its_slice_of_a_batch_and_no_more() -> None:
    code = """
import jax
from bert_jax.train import processes, sharding
processes.join_processes()
for shape in ((4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)):
    mine = sharding.process_rows(sharding.make_mesh(*shape), 16)
    print(mine.start, mine.stop)
"""
    with told_by_slurm(4, "-c", code) as four:
        said = [process.communicate(timeout=600) for process in four]
    told = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in said]
    quarters, halves, whole = ["0 4", "4 8", "8 12", "12 16"], ["0 8", "0 8", "8 16", "8 16"], ["0 16"] * 4
    expected = zip(quarters, quarters, halves, halves, whole, strict=True)
    assert told == [list(ranges) for ranges in expected], said


def test_a_notice_to_one_process_stops_all_at_the_same_step_and_one_process_goes_on(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    """SIGTERM to the second of two, which train the same rows; what both saved, in halves, continues on one device."""
    recipe, data = world
    settings = ["--set", "stage.0.steps=2000", "--set", "stage.0.learning_rate=1e-4", "--set", "report.seconds=0"]
    settings += ["--set", "checkpoint.every=100000", "--set", "train.evaluate_every=100000"]
    run = tmp_path / "run"
    with processes(2, recipe, "--data", data, "--run", run, *settings, "--set", "train.mesh_tensor=2") as both:
        assert both[0].stdout is not None
        for line in both[0].stdout:
            if line.startswith("step"):
                both[1].send_signal(signal.SIGTERM)
                break
        said = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [75, 75], said
    stopped = read_json(run / "report.json")["step"]
    assert f"stopped after step {stopped:,}, saved" in said[0][0]
    assert [path.name for path in (run / "checkpoints").iterdir()] == [str(stopped)]
    assert [row["step"] for row in lines(run)] == list(range(1, stopped + 1))

    died = bert_jax("pretrain", recipe, "--data", data, "--run", run, *settings, "--fault", f"kill@{stopped + 3}")
    assert died.returncode == -signal.SIGKILL and f"continuing after step {stopped:,}" in died.stdout
    straight = ("pretrain", recipe, "--data", data, "--run", tmp_path / "one", *settings)
    assert bert_jax(*straight, "--fault", f"kill@{stopped + 3}").returncode == -signal.SIGKILL
    ours, theirs = lines(run), lines(tmp_path / "one")
    assert [row["batch"] for row in ours] == [row["batch"] for row in theirs]
    assert_alike(ours[:10], theirs[:10])
    for one, other in zip(ours[-3:], theirs[-3:], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)


def test_what_the_first_process_finds_wrong_ends_both(world: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, data = world
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with processes(2, recipe, "--data", data, "--run", tmp_path, *SHORT) as both:
        said = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [1, 1], said
    assert "this directory is not empty and holds no run" in said[0]
    assert "process 1: the first process could not begin" in said[1]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_is_told_and_training_goes_on_for_all(world: tuple[Path, Path], tmp_path: Path) -> None:
    """Lines of metrics are the first process's alone: where these cannot be written, nobody waits in a save."""
    recipe, data = world
    settings = [*SHORT, "--set", "checkpoint.every=2", "--fault", "disk@3"]
    with processes(2, recipe, "--data", data, "--run", tmp_path / "run", *settings) as both:
        said = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [1, 1], said
    assert said[0][0].count("training goes on, and ends after 3 failures in a row") == 2, said
    assert "a checkpoint cannot be written (" in said[0][1] and "3 times in a row" in said[0][1]
    assert not any("Traceback" in err for _, err in said)

    done = bert_jax("pretrain", recipe, "--data", data, "--run", tmp_path / "run", *settings[:-2])
    assert done.returncode == 0 and "continuing after step 2" in done.stdout, done.stderr


def test_a_process_that_nobody_tells_of_others_says_so(world: tuple[Path, Path], tmp_path: Path) -> None:
    done = bert_jax("pretrain", world[0], "--data", world[1], "--run", tmp_path / "run", "--distributed")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "--distributed: nobody tells this process of the others; start it with srun" in done.stderr
