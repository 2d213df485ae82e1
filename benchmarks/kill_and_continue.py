"""Preparation killed at random moments and continued: are the bytes those of a run that was left alone?

    python -m benchmarks.kill_and_continue VOCAB FILE [FILE ...] [--seed 0] [--kills 10] [--beam-python PYTHON]

One run of `bert-data shards` with one worker is left alone. Then, with 1, 2 and 4 workers in turn, runs of the same
command are killed with SIGKILL, all their processes at once, at a moment drawn uniformly from the time that a run with
so many workers takes; the same command then goes on until it ends, and every file of the data set (shards, indexes,
manifest, tokenizer, and nothing else) is compared byte by byte. A few more runs lose only their first process: its
workers must end by themselves, and what they may still do while the next run goes on must not matter. With Beam
installed, in this Python or in the one named, the data set is also made through its local runner, left alone and
killed. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.processes import processes

_WORKERS = (1, 2, 4)
_PARENT_KILLS = 3
_BEAM_KILLS = 2
_PATIENCE = 10.0  # seconds in which workers without a parent must have ended


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("vocab", help="a vocab.txt or a tokenizer directory")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--kills", type=int, default=10, help="of whole process groups, over 1, 2 and 4 workers")
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--options", default="", help="more options of bert-data shards")
    parser.add_argument("--beam-python", default=sys.executable, help="a Python with apache_beam")
    args = parser.parse_args()

    command = ["-m", "data_prep.cli", "shards", *args.files, "--tokenizer", args.vocab, "--shards", str(args.shards)]
    command += shlex.split(args.options)
    rng, failed = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        expected = Path(folder) / "alone"
        walls = {}
        for workers in _WORKERS:
            alone = expected if workers == _WORKERS[0] else Path(folder) / f"alone-{workers}"
            begun = time.perf_counter()
            subprocess.run(_with(command, alone, workers), check=True, capture_output=True)
            walls[workers] = time.perf_counter() - begun
            different = differences(expected, alone)
            failed += bool(different)
            print(f"left alone, {workers} worker(s): {walls[workers]:.1f} s; {_verdict(different)}", flush=True)
        files = [path for path in expected.rglob("*") if path.is_file()]
        print(f"{len(files)} files, {sum(path.stat().st_size for path in files):,} bytes\n")

        print("| killed | workers | after s | what stood then | processes left | files identical |")
        print("|---|---|---|---|---|---|", flush=True)
        plan = [("all", _WORKERS[number % len(_WORKERS)]) for number in range(args.kills)]
        plan += [("first process only", _WORKERS[-1 - number % 2]) for number in range(_PARENT_KILLS)]
        plan = [(what, _with(command, Path(folder) / "data", n), str(n), walls[n]) for what, n in sorted(plan)]
        if _has_beam(args.beam_python):
            beam = [args.beam_python, *command, "--out", str(Path(folder) / "data"), "--beam=--runner=DirectRunner"]
            begun = time.perf_counter()
            failed += not _row("nothing", beam, "Beam", rng, 0, expected)
            wall = time.perf_counter() - begun
            plan += [("all", beam, "Beam", wall)] * _BEAM_KILLS
        else:
            print("no apache_beam in this Python: its runner was left out", file=sys.stderr)
        for what, line, workers, wall in plan:
            failed += not _row(what, line, workers, rng, wall, expected)
    print(f"\n{failed} differ" if failed else "\nall identical")
    return int(failed > 0)


def _with(command: list[str], out: Path, workers: int) -> list[str]:
    return [sys.executable, *command, "--out", str(out), "--workers", str(workers)]


def _has_beam(python: str) -> bool:
    if python == sys.executable:
        return importlib.util.find_spec("apache_beam") is not None
    return subprocess.run([python, "-c", "import apache_beam"], capture_output=True).returncode == 0


def _row(what: str, line: list[str], workers: str, rng: random.Random, wall: float, expected: Path) -> bool:
    """Kills a run within `wall` seconds, goes on at once, prints a row of the table; did all end as it should?

    Where the run had ended before its moment, another one is drawn. No seconds: it is left alone.
    """
    out = Path(line[line.index("--out") + 1])
    killed, moment, stood, left = None, 0.0, "", ""
    while wall and killed is None:
        shutil.rmtree(out, ignore_errors=True)
        moment = rng.uniform(0, wall)
        killed = _killed(line, moment, what == "all")
        stood = standing(out)
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=errors)
        while killed is not None and not left and time.perf_counter() - begun < _PATIENCE:
            if not _alive(killed):
                left = f"none after {time.perf_counter() - begun:.2f} s"
            time.sleep(0.01)
        if killed is not None and not left:
            left = f"SOME after {_PATIENCE} s"
            os.killpg(killed, signal.SIGKILL)
        process.wait()
        errors.seek(0)
        message = errors.read().decode().strip()
    different = differences(expected, out) if not process.returncode else [message[-300:]]
    when = f"{moment:.2f}" if wall else ""
    print(f"| {what} | {workers} | {when} | {stood} | {left} | {_verdict(different)} |", flush=True)
    shutil.rmtree(out)
    return not different and not left.startswith("SOME")


def _killed(line: list[str], moment: float, all_of_it: bool) -> int | None:
    """Starts a run and kills it at `moment`; its process group, or None if it had ended before."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment)
        return None
    if all_of_it:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    return process.pid


def _alive(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    return [pid for pid, state, its, _ in processes() if its == group and state not in "ZX"]


def standing(out: Path) -> str:
    """What a killed run left that the next one need not make again, and files half written."""
    work = out / ".work"
    groups, shards = len(list(work.glob("group-*.json"))), len(list(work.glob("*.tfrecord.json")))
    if (out / "manifest.json").exists():
        return "everything" + (", work not cleared away" if work.exists() else "")
    halves = len(list(out.rglob(".*.tmp")))
    begun = "nothing" if not work.exists() else f"{groups} groups read, {shards} shards"
    return begun + (f", {halves} half files" if halves else "")


def differences(expected: Path, found: Path) -> list[str]:
    """Files of one directory that are not in the other one with the same bytes."""
    sides = [
        {str(path.relative_to(side)): path for path in sorted(side.rglob("*")) if path.is_file()}
        for side in (expected, found)
    ]
    lone = sorted(sides[0].keys() ^ sides[1].keys())
    shared = sorted(sides[0].keys() & sides[1].keys())
    return lone + [name for name in shared if sides[0][name].read_bytes() != sides[1][name].read_bytes()]


def _verdict(different: list[str]) -> str:
    return f"NO: {'; '.join(different)[:300]}" if different else "yes"


if __name__ == "__main__":
    sys.exit(main())
