"""The rate of float32 products of base's shapes: NumPy, XLA on the CPU, and torch.

    pip install torch
    JAX_PLATFORMS=cpu python -m benchmarks.products [--rounds 20]

Each library has a process of its own, one at a time: threads of the others, which wait in a loop for more to do, would
take a third of the processor from it. Printed are GFLOP/s, the best and the median of the rounds; for XLA also those
of a kernel's gradient, whose first factor is transposed. XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= takes the
kernels that XLA has besides YNNPACK's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bert_jax.heap import HUGE
from bert_jax.tasks.sweep import aligned

SHAPES = ((2048, 2048, 2048), (2048, 768, 768), (2048, 768, 3072), (2048, 3072, 768))
LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_CORETYPE")  # of NumPy's OpenBLAS, where the environment sets them
WAYS = ("NumPy", "XLA", "XLA, transposed", "torch")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps([rates(make(args.worker, *shape), shape, args.rounds) for shape in SHAPES]))
        return 0
    variables = {name: value for name, value in os.environ.items() if name not in LIMITS}
    rows = [["best, median", *(" × ".join(map(str, shape)) for shape in SHAPES)], ["---"] * (len(SHAPES) + 1)]
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.products", "--rounds", str(args.rounds), "--worker", way]
        done = subprocess.run(command, env=variables | {"GLIBC_TUNABLES": HUGE}, stdout=subprocess.PIPE, check=True)
        rows.append([way, *json.loads(done.stdout)])
    print(aligned(rows))
    return 0


def make(way: str, m: int, k: int, n: int) -> Callable[[], Any]:
    """The product [m, k] × [k, n], done whole by each call."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((m, k), (k, n)))
    out = np.empty((m, n), np.float32)
    if way == "NumPy":
        return lambda: np.matmul(a, b, out=out)
    if way == "torch":
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        tensors = torch.from_numpy(a), torch.from_numpy(b)
        return lambda: torch.mm(*tensors, out=torch.from_numpy(out))
    import jax

    if way == "XLA":
        multiply, on_device = jax.jit(lambda x, y: x @ y), jax.device_put((a, b))
    else:
        multiply, on_device = jax.jit(lambda x, y: x.T @ y), jax.device_put((np.ascontiguousarray(a.T), b))
    return lambda: multiply(*on_device).block_until_ready()


def rates(product: Callable[[], Any], shape: tuple[int, int, int], rounds: int) -> str:
    """Its GFLOP/s, the best and the median of so many rounds."""
    seconds = []
    for number in range(rounds + 1):
        begun = time.perf_counter()
        product()
        if number:  # the first one compiles
            seconds.append(time.perf_counter() - begun)
    m, k, n = shape
    work = 2 * m * k * n / 1e9
    return f"{work / min(seconds):,.0f}, {work / statistics.median(seconds):,.0f}"


if __name__ == "__main__":
    sys.exit(main())
