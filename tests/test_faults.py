"""What may befall a run, each the real thing: what is told, what is lost, and that it ends as if nothing had been."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.store.checkpoint import Checkpoints, Damaged, load_params
from bert_jax.store.faults import Faults, parse_faults
from bert_jax.store.interrupt import Notice, Stopped, unless_told, until_told
from bert_jax.store.rundir import read_json, read_metrics
from bert_jax.store.watch import LossWatch
from bert_jax.text.records import open_shard
from tests.runs import differences, steps
from tests.world import bert_jax, flags, write_data, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:orbax")

# 12 steps are an epoch of 96 records and the first stage; dropout is on.
SETTINGS = [
    f"--set={setting}"
    for setting in (
        "model.layers=1",
        "stage.0.steps=12",
        "stage.1.steps=8",
        "checkpoint.every=4",
        "train.evaluate_every=9",
    )
]

RECORD = 25  # of the first shard: met in the middle of the epoch


class World:
    """Recipe, data, and how a run is begun or gone on with."""

    def __init__(self, folder: Path) -> None:
        self.recipe, self.data = write_recipe(folder / "recipe.toml"), write_data(folder / "data", heldout=1200)
        self.straight = folder / "straight"
        self.finish(self.straight)

    def command(self, run: Path, *more: str, data: Path | None = None) -> list[object]:
        return ["pretrain", self.recipe, "--data", data or self.data, "--run", run, *SETTINGS, *more]

    def start(self, run: Path, *more: str, data: Path | None = None) -> subprocess.CompletedProcess[str]:
        return bert_jax(*self.command(run, *more, data=data))

    def finish(self, run: Path, *more: str) -> str:
        done = self.start(run, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def listen(self, run: Path, line: str, number: signal.Signals, **environment: str) -> tuple[int, str]:
        """Send a signal as soon as a line begins so; the exit status and all that was printed."""
        command = [sys.executable, "-m", "bert_jax.cli", *map(str, self.command(run))]
        environment = {**os.environ, "XLA_FLAGS": flags(1), "JAX_PLATFORMS": "cpu", **environment}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = []
            for said_line in process.stdout:
                said.append(said_line)
                if said_line.startswith(line):
                    process.send_signal(number)
                    break
            said += process.stdout
        return process.returncode, "".join(said)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def assert_one_sentence(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    for part in parts:
        assert part in done.stderr


def test_killed_at_the_border_of_stages_and_inside_its_save(world: World, tmp_path: Path) -> None:
    """Step 12 ends an epoch and the first stage, is saved, and owes an evaluation."""
    run = tmp_path / "run"
    killed = world.start(run, "--fault=save@12")
    assert killed.returncode == -signal.SIGKILL and steps(run)[-1] in (8, 12)
    assert any(path.name.startswith("12") for path in (run / "checkpoints").iterdir())
    killed = world.start(run, "--fault=kill@12")
    assert killed.returncode == -signal.SIGKILL
    said = world.finish(run)
    assert "continuing after step" in said
    assert differences(world.straight, run) == []
    assert [row["step"] for row in read_metrics(run, "heldout")] == [9, 12, 18, 20]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"12", "16", "20"}  # halves were cleared away


def test_a_notice_in_training_loses_no_step(world: World, tmp_path: Path) -> None:
    told = world.start(tmp_path / "run", "--fault=term@6")
    assert told.returncode == 75
    stopped = read_json(tmp_path / "run" / "report.json")["step"]
    assert steps(tmp_path / "run")[-1] == stopped and f"stopped after step {stopped}, saved" in told.stdout
    assert f"continuing after step {stopped};" in world.finish(tmp_path / "run").replace("\n", ";")
    assert differences(world.straight, tmp_path / "run") == []


def test_a_notice_in_the_first_compilation_is_heard_at_once(world: World, tmp_path: Path) -> None:
    status, said = world.listen(
        tmp_path / "run", "compiling", signal.SIGTERM, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "empty")
    )
    assert status == 75 and "stopped after step 0; the same command continues" in said
    assert steps(tmp_path / "run") == []


def test_an_evaluation_that_a_notice_stopped_is_made_up_for(world: World, tmp_path: Path) -> None:
    status, said = world.listen(tmp_path / "run", "compiling the evaluation", signal.SIGUSR1)
    assert status == 75 and "stopped after step 9, saved" in said
    assert list(read_metrics(tmp_path / "run", "heldout")) == []
    world.finish(tmp_path / "run")
    assert differences(world.straight, tmp_path / "run") == []


def test_an_evaluation_owed_at_the_very_end_is_made_up_for(world: World, tmp_path: Path) -> None:
    """Killed between the last save and the last evaluation, with a report from an earlier session lying there."""
    run = tmp_path / "run"
    shutil.copytree(world.straight, run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["kind"] == "heldout"
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert "step 20  held out" in world.finish(run)
    assert differences(world.straight, run) == []
    assert "finished after 20 steps" in world.finish(run)


def test_a_truncated_checkpoint_is_told_and_the_one_before_taken(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(world.straight, run)
    largest = max((run / "checkpoints" / "20").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    (run / "report.json").unlink()
    said = world.finish(run)
    assert f"{run}/checkpoints/20: this checkpoint cannot be read (" in said and "moved to 20.damaged" in said
    assert "continuing after step 16" in said
    assert (run / "checkpoints" / "20.damaged").is_dir()
    assert differences(world.straight, run) == []


def test_a_full_disk_is_told_until_a_limit(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = world.command(run, "--fault=disk@5", "--set=checkpoint.failures=2", "--set=report.seconds=0")
    full = bert_jax(*command, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"))  # which has no room either
    assert "step 8 could not be saved (File too large): training goes on, and ends after 2 failures" in full.stdout
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    assert full.stderr.count("metrics.jsonl: cannot be written (File too large)") == 1
    assert "Warning" not in full.stderr, full.stderr
    assert "a checkpoint cannot be written (File too large), 2 times in a row" in full.stderr.splitlines()[-1]
    assert steps(run) == [4]
    world.finish(run)
    assert differences(world.straight, run) == []


def test_a_corrupt_shard_in_the_middle_of_an_epoch_keeps_what_was_trained(world: World, tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(world.data, data)
    shard = sorted(data.glob("train-*.tfrecord"))[0]
    whole = shard.read_bytes()
    record = open_shard(shard).examples(np.array([RECORD]))[0]
    shard.write_bytes(whole.replace(record, record[:50] + bytes([record[50] ^ 1]) + record[51:]))
    done = world.start(run, data=data)
    assert_one_sentence(done, str(shard), f"record {RECORD}", "checksum")
    reached = steps(run)[-1]
    assert 2 <= reached <= 10
    assert f"stopped after step {reached}, saved" in done.stdout
    assert [row["step"] for row in read_metrics(run, "train")] == list(range(1, reached + 1))
    shard.write_bytes(whole)
    assert world.start(run, data=data).returncode == 0
    assert differences(world.straight, run) == []


def test_data_that_cannot_be_read_from_the_first_step_on_are_one_sentence(world: World, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(world.data, data)
    for shard in data.glob("train-*.tfrecord"):
        whole = bytearray(shard.read_bytes())
        whole[60::100] = bytes(byte ^ 1 for byte in whole[60::100])
        shard.write_bytes(whole)
    done = world.start(tmp_path / "run", data=data)
    assert_one_sentence(done, "checksum")
    assert "stopped" not in done.stdout and steps(tmp_path / "run") == []


def test_a_step_that_is_not_finite_leaves_what_replays_it(world: World, tmp_path: Path) -> None:
    """And saves by time: so short a time that every step is saved."""
    run = tmp_path / "run"
    said = world.finish(run, "--fault=nan@6", "--set=checkpoint.every=1000", "--set=checkpoint.minutes=1e-9")
    assert said.count("is not finite, and the step changes nothing") == 1
    assert steps(run) == [18, 19, 20]
    straight = list(read_metrics(world.straight, "train"))
    bundle = json.loads((run / "debug" / "6.json").read_text())
    assert bundle["batch"] == straight[5]["batch"] and bundle["seed"] == 0 and len(bundle["records"]) == 8
    assert np.isnan(bundle["loss"]) and bundle["learning_rate"] == straight[5]["learning_rate"]

    shutil.rmtree(run / "checkpoints")  # none from before step 6 was kept: from the beginning, then
    done = bert_jax("replay", run, 6)
    assert done.returncode == 0, done.stderr
    assert f"step 6, stage 0, batch {bundle['batch']} from {run / 'debug' / '6.npz'}: loss nan" in done.stdout
    (run / "debug" / "6.npz").unlink()
    done = bert_jax("replay", world.straight, 6, "--data", world.data)
    assert float(done.stdout.partition("from the shards: loss ")[2].split()[0]) == pytest.approx(
        straight[5]["loss"], rel=1e-4
    )
    norms = {line.split()[0]: float(line.split()[2]) for line in done.stdout.splitlines()[5:]}
    assert norms.keys() >= {"embeddings", "layers/0", "masked_lm", "pooler", "next_sentence"}
    assert np.sqrt(sum(np.square(list(norms.values())))) == pytest.approx(straight[5]["gradient_norm"], rel=1e-3)


# ------------------------------------------------------------------------------------------- its parts, in this process


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Inside, no file grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_saves_go_on_once_there_is_room_again(tmp_path: Path) -> None:
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, keep=2, failures=3, say=said.append)
    tree = {"w": jnp.arange(100_000, dtype=jnp.float32)}

    def save(step: int) -> None:
        checkpoints.save(step, tree, tree, {})
        checkpoints.wait()

    save(1)
    with small_files(10_000):
        save(2)
        save(3)
    save(4)  # two failures are forgotten
    with small_files(10_000):
        save(5)
        save(6)
        with pytest.raises(UserError, match="a checkpoint cannot be written .*, 3 times in a row; make room"):
            save(7)
    assert [line.split(" could")[0] for line in said] == ["step 2", "step 3", "step 5", "step 6"]
    assert steps(tmp_path) == [1, 4]


def test_a_truncated_file_is_damage_whichever_it_is(tmp_path: Path) -> None:
    tree = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(300, 100)), jnp.float32)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree, tree, {})
    checkpoints.finish(1)
    damaged = set()
    for path in (tmp_path / "checkpoints" / "1").rglob("d/*"):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        try:  # some are never read: what each process wrote is merged into one
            restored, _ = Checkpoints(tmp_path, read_only=True).restore(1, tree, tree)
            assert np.array_equal(restored["w"], tree["w"])
        except Damaged:
            damaged.add(path.relative_to(tmp_path / "checkpoints" / "1").parts[0])
        path.write_bytes(whole)
    assert damaged == {"params", "optimizer"}


def test_what_cannot_be_read_is_told_where_it_is_opened_and_moved_aside_twice(tmp_path: Path) -> None:
    tree = {"w": jnp.ones((300, 100))}
    checkpoints = Checkpoints(tmp_path, keep=2)
    for _ in range(2):
        checkpoints.save(1, tree, tree, {})
        checkpoints.wait()
        for path in (tmp_path / "checkpoints" / "1" / "params").rglob("d/*"):
            path.write_bytes(path.read_bytes()[:10])
        with pytest.raises(UserError, match=r"checkpoints/1: this checkpoint cannot be read .*; restore it"):
            load_params(tmp_path)
        checkpoints.set_aside(1)
        checkpoints.reload()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1.damaged", "1.damaged.2"]
    checkpoints.close()


def test_a_trial_before_the_first_step(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.rehearse({"w": np.zeros(1000, np.float32)})
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoints"]
    with pytest.raises(UserError, match=r"are free, where 4 checkpoints of [\d,.]+ GB must fit; make room, or keep"):
        checkpoints.rehearse({"w": np.broadcast_to(np.float32(0), (10**9, 10**6))})
    with small_files(100), pytest.raises(UserError, match="a checkpoint cannot be written"):
        checkpoints.rehearse({"w": np.zeros(1000, np.float32)})
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoints"]
    checkpoints.close()


@contextmanager
def metadata_server(answer: Callable[[str], str]) -> Iterator[str]:
    """A server that answers as Google's machines are answered; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer(self.path.rpartition("/")[2]).encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_platform_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"preempted": "FALSE", "maintenance-event": "NONE"}
    with metadata_server(answers.__getitem__) as address:
        monkeypatch.setenv("GCE_METADATA_HOST", address)
        with Notice("gce") as notice:
            assert not notice.given
            answers["preempted"] = "TRUE"
            with pytest.raises(Stopped):
                unless_told(threading.Event().wait, lambda: notice.given)
        answers |= {"preempted": "FALSE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}
        with Notice("gce") as notice:
            assert notice.given
    with pytest.raises(UserError, match="the metadata server does not answer .* checkpoint.notice"), Notice("gce"):
        pass


def test_what_is_computed_aside_comes_back_or_raises() -> None:
    assert unless_told(lambda: 3, lambda: False) == 3
    with pytest.raises(ZeroDivisionError):
        unless_told(lambda: 1 // 0, lambda: False)
    told = iter([False, False, True])
    seen = []
    with pytest.raises(Stopped):
        for item in until_told(range(10), lambda: next(told)):
            seen.append(item)
    assert seen == [0, 1]


def test_a_jump_of_the_loss_is_said_once_in_a_while() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"step": step, "loss": 3 - step / 1000 + rng.normal(0, 0.02), "batch": f"b{step}", "gradient_norm": 1.0}
        for step in range(1, 401)
    ]
    for step in (5, 200, 210, 390):
        rows[step - 1]["loss"] += 2.0
    rows[299]["loss"] = float("nan")
    watch = LossWatch()
    said = [line for row in rows if (line := watch.note(row))]
    assert [line.split(":")[0] for line in said] == ["step 200", "step 390"]
    assert "the loss jumped to 4.8" in said[0] and "(batch b200, gradient norm 1.00)" in said[0]


def test_faults_are_read() -> None:
    assert parse_faults(["kill@3", "nan@4"]) == Faults(frozenset({("kill", 3), ("nan", 4)}))
    with pytest.raises(UserError, match="'burn@3' is no fault; write KIND@STEP with a kind of kill, save, term"):
        parse_faults(["burn@3"])
