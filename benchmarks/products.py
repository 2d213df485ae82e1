"""The rate of float32 products of base's shapes: NumPy, XLA on the CPU, and torch, in turn in one process.

    pip install torch
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 JAX_PLATFORMS=cpu python -m benchmarks.products [--rounds 20]

Printed are GFLOP/s, the best and the median of the rounds. XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= takes the
kernels that XLA has besides YNNPACK's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

import jax
import numpy as np
import torch

from bert_jax.tasks.sweep import aligned

SHAPES = ((2048, 2048, 2048), (2048, 768, 768), (2048, 768, 3072), (2048, 3072, 768))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    columns = [rates(*shape, args.rounds) for shape in SHAPES]
    rows = [["best, median", *(" × ".join(map(str, shape)) for shape in SHAPES)], ["---"] * (len(SHAPES) + 1)]
    rows += [[name, *(column[name] for column in columns)] for name in columns[0]]
    print(aligned(rows))
    return 0


def rates(m: int, k: int, n: int, rounds: int) -> dict[str, str]:
    """GFLOP/s of [m, k] × [k, n] by library."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((m, k), (k, n)))
    out, multiply = np.empty((m, n), np.float32), jax.jit(lambda x, y: x @ y)
    on_device, tensors, there = jax.device_put((a, b)), (torch.from_numpy(a), torch.from_numpy(b)), torch.empty(m, n)
    ways = {
        "NumPy": lambda: np.matmul(a, b, out=out),
        "XLA": lambda: multiply(*on_device).block_until_ready(),
        "torch": lambda: torch.mm(*tensors, out=there),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if number:  # the first one compiles
                seconds[name].append(time.perf_counter() - begun)
    work = 2 * m * k * n / 1e9
    return {name: f"{work / min(s):,.0f}, {work / statistics.median(s):,.0f}" for name, s in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
