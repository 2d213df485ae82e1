"""What may befall a run: what is told, what is lost, and is the run that goes on the one that was left alone?

    python -m benchmarks.faults [--seed 0] [--kills 20] [--only WORD …]

A tiny network on the tests' tiny world, dropout on, two stages in one command. One run is left alone. Then the same
run is killed with SIGKILL at seeded moments (anywhere, inside saves, exactly on borders of epochs and stages), told to
stop by SIGTERM (training, evaluation, first compilation), robbed of a host (two processes on this machine), of a
checkpoint's bytes, of room on the disk, of a shard's bytes, of its data; and the same command goes on. A row of the
table says what was printed, the status, the steps that had to be computed again (those since the last complete save:
one under way when all is killed counts for nothing), and whether parameters, optimizer state and every line of
metrics.jsonl equal those of the run that was left alone, bit for bit. The exit status is 1 if any row is not as it
should be.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bert_jax.store.rundir import read_metrics
from bert_jax.text.records import open_shard
from tests.runs import differences, steps
from tests.test_distributed import processes
from tests.world import flags, write_data, write_recipe

EPOCH = 12  # steps: 96 records in batches of 8
FIRST, LAST = 10 * EPOCH, 15 * EPOCH  # steps that end the first stage and the run
EVERY = 20  # steps between saves
SETTINGS = {
    "model.layers": 1,
    "stage.0.steps": FIRST,
    "stage.1.steps": LAST - FIRST,
    "checkpoint.every": EVERY,
    "train.evaluate_every": 50,
    "report.seconds": 0,  # every step's line is on disk before the next one: what was begun can be counted
}
OPTIONS = [f"--set={key}={value}" for key, value in SETTINGS.items()]


@dataclass
class World:
    """Where everything lies; `straight` is the run that was left alone."""

    folder: Path
    recipe: Path
    data: Path
    straight: Path

    def command(self, run: Path, *more: str, data: Path | None = None) -> list[str]:
        command = [sys.executable, "-m", "bert_jax.cli", "pretrain", str(self.recipe), "--run", str(run)]
        return [*command, "--data", str(data or self.data), *OPTIONS, *more]

    def start(self, run: Path, *more: str, data: Path | None = None, cache: str = "compiled") -> subprocess.Popen[str]:
        environment = {"XLA_FLAGS": flags(1), "JAX_PLATFORMS": "cpu"}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(self.folder / cache)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = self.command(run, *more, data=data)
        return subprocess.Popen(command, env={**os.environ, **environment}, text=True, **pipes)

    def complete(self, run: Path, *more: str, data: Path | None = None) -> tuple[int, str, str]:
        with self.start(run, *more, data=data) as process:
            out, err = process.communicate()
        return process.returncode, out, err


@dataclass(frozen=True)
class Outcome:
    """What a fault did: the telling line, the exit status, and what it should have been."""

    said: str
    status: int
    expected: int
    most_lost: int = EVERY + 1  # the steps since the last complete save, and the one that was under way
    told: str = ""  # of the run that goes on: words in the telling line


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--kills",
        type=int,
        default=20,
        help="by SIGKILL: a fifth each on borders of stages, of epochs and inside saves",
    )
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name holds one of these words")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    failed = 0
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax, where checkpoints are compared
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = World(
            folder, write_recipe(folder / "recipe.toml"), write_data(folder / "data", heldout=1200), folder / "a"
        )
        status, _, err = world.complete(world.straight)
        if status:
            sys.exit(err)
        print(f"left alone: {LAST} steps, stages end at {FIRST} and {LAST}, an epoch is {EPOCH}, saved every {EVERY}")
        print("\n| fault | status | what it said | steps lost | equal bit for bit |")
        print("|---|---|---|---|---|", flush=True)
        for what, fault in [*kills(world, args.kills, rng), *others(world)]:
            if any(word in what for word in args.only):
                failed += not row(world, what, fault)
        for what, fault in (("a host that never comes", never_comes), ("a host that dies", dies)):
            if any(word in what for word in args.only):
                failed += not fault(world, what)
    print(f"\n{failed} not as they should be" if failed else "\nall as they should be")
    return int(failed > 0)


def row(world: World, what: str, fault: Callable[[Path], Outcome]) -> bool:
    """Let one fault happen, go on with the same command, print the row; is all as it should be?"""
    run = world.folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    outcome = fault(run)
    reached = last_step(run)
    if half := under_way(run):
        said = f"the save of step {half} was under way"
        outcome = replace(outcome, said=outcome.said or said, most_lost=outcome.most_lost + EVERY)
    status, out, err = world.complete(run)
    if outcome.told:
        lines = [line for line in out.splitlines() if outcome.told in line] or ["it did not say"]
        outcome = replace(outcome, said=f"`{lines[0].replace(str(run), 'RUN')}`")
    begun = [line for line in out.splitlines() if "continuing after step" in line]
    restored = int(begun[0].split()[-1]) if begun else LAST if f"finished after {LAST} steps" in out else 0
    different = differences(world.straight, run) if status == 0 else [f"went on with {status}: {err.strip()[-200:]}"]
    return told(what, outcome, max(reached - restored, 0), different)


def told(what: str, outcome: Outcome, lost: int, different: list[str]) -> bool:
    good = not different and outcome.status == outcome.expected and lost <= outcome.most_lost
    verdict = "yes" if not different else f"NO: {', '.join(different)[:200]}"
    mark = "" if good or different else f" (EXPECTED status {outcome.expected}, at most {outcome.most_lost} lost)"
    print(f"| {what} | {outcome.status} | {outcome.said} | {lost} | {verdict}{mark} |", flush=True)
    return good


def under_way(run: Path) -> int | None:
    """The step whose save had begun and was not complete."""
    found = [path.name.partition(".") for path in (run / "checkpoints").glob("*.orbax-checkpoint-tmp*")]
    return max((int(step) for step, _, _ in found if step.isdigit()), default=None)


def last_step(run: Path) -> int:
    return max((line["step"] for line in read_metrics(run, "train")), default=0)


def telling(out: str, err: str) -> str:
    """The line that says why a run ended: that of the error, or that it stopped, or the last one."""
    stopped = [line for line in out.splitlines() if line.startswith("stopped")]
    lines = [line for line in (err.splitlines() or stopped or out.splitlines()) if line.strip()]
    return f"`{lines[-1]}`".replace("|", "/") if lines else ""


# ------------------------------------------------------------------------------------------------------- SIGKILL


def kills(world: World, number: int, rng: random.Random) -> Iterator[tuple[str, Callable[[Path], Outcome]]]:
    """A fifth on borders of stages, a fifth on those of epochs, a fifth inside saves, the others anywhere."""
    for n in range(number):
        if n % 5 == 0:
            step = (FIRST, LAST)[n // 5 % 2]
            yield f"kill -9 on a stage's border, step {step}", at_step(world, f"kill@{step}")
        elif n % 5 == 1:
            step = EPOCH * rng.randrange(1, LAST // EPOCH)
            yield f"kill -9 on an epoch's border, step {step}", at_step(world, f"kill@{step}")
        elif n % 5 == 2:
            step = FIRST if n == 2 else EVERY * rng.randrange(1, LAST // EVERY)
            border = ", a stage's border" if step == FIRST else ""
            yield f"kill -9 inside the save of step {step}{border}", inside_save(world, step)
        else:
            step, wait = (rng.randrange(LAST - 1), rng.random()) if n > 3 else (0, 2 * rng.random())
            yield f"kill -9, {wait:.2f} s after step {step}", at_moment(world, step, wait)


def killed(process: subprocess.Popen[str]) -> Outcome:
    process.communicate()
    return Outcome("", process.returncode, -signal.SIGKILL)


def at_step(world: World, fault: str) -> Callable[[Path], Outcome]:
    return lambda run: killed(world.start(run, "--fault", fault))


def at_moment(world: World, step: int, wait: float) -> Callable[[Path], Outcome]:
    """So many seconds after a step's line was written, whatever is done then; after its start for step 0."""

    def fault(run: Path) -> Outcome:
        process = world.start(run)
        while process.poll() is None and last_step(run) < step:
            time.sleep(0.01)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()
            return killed(process)
        process.communicate()  # this time it was faster: nothing was killed, and the row says so
        return Outcome("it had ended", process.returncode, 0)

    return fault


def inside_save(world: World, step: int) -> Callable[[Path], Outcome]:
    """Watch the directory from outside and kill as soon as there is something of this step's."""

    def fault(run: Path) -> Outcome:
        process = world.start(run)
        while process.poll() is None and not list((run / "checkpoints").glob(f"{step}*")):
            time.sleep(0.0005)
        process.kill()
        outcome = killed(process)
        half = steps(run)[-1:] != [step]
        return replace(outcome, said="half a checkpoint lay there" if half else "it was complete")

    return fault


# --------------------------------------------------------------------------------------------------- the others


def others(world: World) -> Iterator[tuple[str, Callable[[Path], Outcome]]]:
    yield "SIGTERM in training", lambda run: listening(world, run, "step 30", "compiled")
    yield "SIGTERM in an evaluation", lambda run: listening(world, run, "compiling the evaluation", "compiled")
    yield "SIGTERM in the first compilation", lambda run: listening(world, run, "compiling", "empty")
    yield "a checkpoint truncated by hand", lambda run: truncated(world, run)
    yield "a full disk", lambda run: full(world, run)
    yield "a corrupt shard in mid-epoch", lambda run: corrupt(world, run)
    yield "data that never come", lambda run: stalled(world, run)


def listening(world: World, run: Path, line: str, cache: str) -> Outcome:
    """SIGTERM as soon as a line begins so."""
    with world.start(run, cache=cache) as process:
        assert process.stdout is not None
        for said in process.stdout:
            if said.startswith(line):
                process.terminate()
                begun = time.perf_counter()
                break
        out, err = process.communicate()
    return Outcome(f"{telling(out, err)} after {time.perf_counter() - begun:.1f} s", process.returncode, 75, 0)


def truncated(world: World, run: Path) -> Outcome:
    status, _, _ = world.complete(run, "--fault", f"kill@{FIRST + 5}")
    newest = run / "checkpoints" / str(steps(run)[-1])
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    # it is told by the run that goes on, from the save before
    return Outcome("", status, -signal.SIGKILL, 2 * EVERY + 1, told="cannot be read")


def full(world: World, run: Path) -> Outcome:
    status, out, err = world.complete(run, "--fault", f"disk@{EVERY + 5}", "--set=checkpoint.failures=3")
    said = [line for line in out.splitlines() if "could not be saved" in line]
    # what was trained while nothing could be saved is lost, up to the limit
    text = f"{len(said)} × `{said[0]}`; {telling('', err)}" if said else telling(out, err)
    return Outcome(text.replace(str(run), "RUN"), status, 1, 4 * EVERY)


def corrupt(world: World, run: Path) -> Outcome:
    """Flip a bit in a record, mend it before going on."""
    shard = sorted(world.data.glob("train-*.tfrecord"))[0]
    whole = shard.read_bytes()
    # run whole epochs on sound data, so that the bad record is met in the middle of a later one
    world.complete(run, "--fault", f"term@{2 * EPOCH}")
    record = open_shard(shard).examples(np.array([25]))[0]
    shard.write_bytes(whole.replace(record, record[:50] + bytes([record[50] ^ 1]) + record[51:]))
    status, out, err = world.complete(run)
    shard.write_bytes(whole)
    return Outcome(telling(out, err).replace(str(world.folder), ""), status, 1, 0)


def stalled(world: World, run: Path) -> Outcome:
    status, out, err = world.complete(run, "--fault", f"stall@{EVERY + 9}", "--set=train.step_timeout=3")
    return Outcome(telling(out, err), status, 75)


# ----------------------------------------------------------------------------------------------- several processes


@contextmanager
def two(world: World, run: Path, *more: str) -> Iterator[list[subprocess.Popen[str]]]:
    options = [*OPTIONS, "--set=train.silence=3", *more]
    with processes(2, world.recipe, "--data", world.data, "--run", run, *options) as both:
        yield both


def never_comes(world: World, what: str) -> bool:
    """The second process is killed as it starts; nothing was begun, so there is nothing to compare."""
    run = world.folder / "alone"
    with two(world, run, "--join-timeout", "8") as both:
        both[1].kill()
        out, err = both[0].communicate()
    return told(
        what, Outcome(telling(out, err), both[0].returncode, 1), 0, ["something was begun"] if run.exists() else []
    )


def dies(world: World, what: str) -> bool:
    """The second process is killed in training; both go on, and end as two that were left alone."""
    straight, run = world.folder / "two", world.folder / "robbed"
    with two(world, straight) as both:
        for process in both:
            process.communicate()
    with two(world, run) as both:
        assert both[0].stdout is not None
        for line in both[0].stdout:
            if line.startswith("step 30"):
                both[1].kill()
                break
        out, err = both[0].communicate()
    outcome = Outcome(telling(out, err), both[0].returncode, 75)
    reached, kept = last_step(run), steps(run)[-1]
    with two(world, run) as both:
        for process in both:
            process.communicate()
    different = differences(straight, run) if both[0].returncode == 0 else [f"went on with {both[0].returncode}"]
    return told(what, outcome, reached - kept, different)


if __name__ == "__main__":
    sys.exit(main())
