"""Peak memory of preparation, over all its processes, and whether it grows with the text.

    python -m benchmarks.prepare_memory VOCAB FILE [FILE ...] [--workers 2] [--parts 3] [-- OPTION ...]

`bert-data shards` runs on every third document of the inputs and then on all of them, so that both texts hold the same
languages in the same shares. Meanwhile the resident memory of all its processes is added up: Rss, which counts a page
of a library once a process, and Pss, which divides it among them (/proc/PID/smaps_rollup, Linux). The exit status is
1 if the peak Rss of all documents is above 1.15 times that of a third, or above 1.5 GB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import processes
from data_prep import sources

_INTERVAL = 0.02  # seconds
_MOST_GROWTH, _MOST_BYTES = 1.15, 1.5e9


@dataclass
class Peak:
    """The largest sums met; `at` holds each process's own Rss when their sum was largest, the first one's first."""

    rss: int = 0
    pss: int = 0
    at: tuple[int, ...] = ()
    seconds: float = 0.0  # since the start
    wall: float = 0.0  # of the whole run
    polls: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("vocab", help="a vocab.txt or a tokenizer directory")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parts", type=int, default=3, help="the smaller text is every so many-th document")
    own, options = sys.argv[1:], []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    args = parser.parse_args(own)

    names = sources.expand(args.files)
    heads = "MB of text", "peak Rss, MB", "peak Pss, MB", "Rss by process at the peak", "after s", "of s", "polls"
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    peaks = []
    for step in (args.parts, 1):
        with tempfile.TemporaryDirectory() as folder:
            texts, size = _write(names, step, Path(folder))
            command = [sys.executable, "-m", "data_prep.cli", "shards", *texts, "--tokenizer", args.vocab, *options]
            peak = watch([*command, "--out", str(Path(folder) / "data"), "--workers", str(args.workers)])
        each = " + ".join(f"{one / 1e6:.0f}" for one in peak.at)
        cells = f"{size / 1e6:.1f}", f"{peak.rss / 1e6:.0f}", f"{peak.pss / 1e6:.0f}", each
        print(f"| {' | '.join(cells)} | {peak.seconds:.1f} | {peak.wall:.1f} | {peak.polls} |", flush=True)
        peaks.append(peak)
    growth = peaks[1].rss / peaks[0].rss
    print(f"the larger text takes {growth:.3f} times the memory of the smaller ({_MOST_GROWTH} is the bound)")
    return int(growth > _MOST_GROWTH or peaks[1].rss > _MOST_BYTES)


def _write(names: list[str], step: int, folder: Path) -> tuple[list[str], int]:
    """Every `step`-th document of each input as a text file: their names, and bytes of them all."""
    written, size = [], 0
    for number, name in enumerate(names):
        path = folder / f"{number:03d}.txt"
        with open(path, "w", encoding="utf-8") as file:
            for place, text in enumerate(sources.documents(name)):
                if place % step == 0:
                    file.write(text + "\n\n")
        written.append(str(path))
        size += path.stat().st_size
    return written, size


def watch(command: list[str]) -> Peak:
    """Runs a command to its end and adds up the memory of it and all processes below it."""
    peak = Peak()
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
        while process.poll() is None:
            found = [_memory(pid) for pid in _session(process.pid)]
            rss, pss = sum(one for one, _ in found), sum(one for _, one in found)
            peak.pss = max(peak.pss, pss)
            if rss > peak.rss:
                peak.rss, peak.seconds = rss, time.perf_counter() - begun
                peak.at = tuple(one for one, _ in found)
            peak.polls += 1
            time.sleep(_INTERVAL)
        peak.wall = time.perf_counter() - begun
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)}\n{errors.read().decode()}")
    return peak


def _session(leader: int) -> list[int]:
    """All processes of a session, the leader first: what it started, and what those did."""
    return sorted(pid for pid, _, _, session in processes() if session == leader)


def _memory(pid: int) -> tuple[int, int]:
    """Rss and Pss in bytes; none of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return fields["Rss"], fields["Pss"]


if __name__ == "__main__":
    sys.exit(main())
