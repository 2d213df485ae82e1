"""What a step's memory costs on a CPU: as glibc gives it out, in huge pages, and kept from step to step.

    python -m benchmarks.heap [--row small,128] [--rounds 3] [--seconds 15]

The step is that of `benchmarks.train_step`, float32, on drawn rows. "huge pages" is what the commands run with
(`bert_jax.heap`), "kept" never gives back what was freed (mallopt(3)). Each has a process of its own, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks.train_step import ROWS, VOCABULARY, drawn_batch, here, keep_freed, most_memory, timed
from bert_jax.config import preset
from bert_jax.heap import HUGE

WAYS = {
    "as it comes": ("leave", ""),
    "huge pages": ("leave", HUGE),
    "kept": ("keep", ""),
    "kept, huge pages": ("keep", HUGE),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    rows = [f"{name},{length}" for name, length in ROWS]
    parser.add_argument("--row", default="small,128", choices=rows, help="size and length (small,128)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of steps a round")
    parser.add_argument("--worker", choices=("leave", "keep"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args)))
        return 0
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(args.rounds):
            for way, (what, tunables) in WAYS.items():
                found[way].append(started(args, what, tunables, cache))
    print(
        f"{args.row}\n\n| memory | s a step | fastest | CPU s | of them system | pages touched a step | most, GB |\n"
        "|---|---|---|---|---|---|---|"
    )
    for way, visits in found.items():
        seconds, busy = (np.concatenate([visit[name] for visit in visits]) for name in ("seconds", "busy"))
        system, pages = (np.median([visit[name] for visit in visits]) for name in ("system", "pages"))
        memory = min(visit["memory"] for visit in visits) / 1e9
        print(
            f"| {way} | {np.median(seconds):.3f} | {seconds.min():.3f} | {np.median(busy):.2f} | {system:.2f}"
            f" | {pages:,.0f} | {memory:.2f} |"
        )
    return 0


def started(args: argparse.Namespace, what: str, tunables: str, cache: str) -> dict[str, Any]:
    """One worker, to its end."""
    command = [sys.executable, "-m", "benchmarks.heap", "--row", args.row, "--seconds", str(args.seconds)]
    variables = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache, "GLIBC_TUNABLES": tunables}
    done = subprocess.run([*command, "--worker", what], env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Steps in this process."""
    if args.worker == "keep":
        keep_freed()
    name, length = args.row.split(",")
    rng = np.random.default_rng(0)
    batches = [drawn_batch(rng, ROWS[name, int(length)], int(length)) for _ in range(4)]
    config = preset(name, VOCABULARY, hidden_dropout=0.1, attention_dropout=0.1)
    step = here(config, "float32", batches)
    for number in range(3):
        step(number)
    begun = resource.getrusage(resource.RUSAGE_SELF)
    seconds, busy = timed(step, args.seconds)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    steps = len(seconds) + 2  # two warm up
    return {
        "seconds": seconds,
        "busy": busy,
        "system": (ended.ru_stime - begun.ru_stime) / steps,
        "pages": (ended.ru_minflt - begun.ru_minflt) / steps,
        "memory": most_memory(),
    }


if __name__ == "__main__":
    sys.exit(main())
