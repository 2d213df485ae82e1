"""What the bits of dropout cost: ours, `jax.random.bernoulli` over threefry and over rbg, and rbg's bytes.

    python -m benchmarks.dropout [--rounds 20]

Each is compiled with what stands around it, where(bits < kept, x · scale, 0) and a sum, and runs once a round, in
turn. Printed are the least milliseconds of the wall and of the CPU, less those of the sum alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from bert_jax.model.dropout import dropout

RATE = 0.1
SHAPES = {"hidden, 2,048 × 768": (2048, 768), "attention, 4 × 12 × 512 × 512": (4, 12, 512, 512)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    ways: dict[str, tuple[str, Callable[[Array, Array], Array]]] = {
        "nothing": ("threefry2x32", lambda x, key: x),
        "ours": ("threefry2x32", lambda x, key: dropout(x, RATE, key)),
        "threefry, bernoulli": ("threefry2x32", by_bernoulli),
        "rbg, bernoulli": ("rbg", by_bernoulli),
        "rbg, bytes": ("rbg", by_bytes),
    }
    print("| bits | " + " | ".join(f"{name}: ms | CPU ms" for name in SHAPES) + " |")
    print("|---|" + "---|---|" * len(SHAPES))
    cells: dict[str, list[float]] = {name: [] for name in ways}
    for shape in SHAPES.values():
        x = jnp.ones(shape)
        steps = {
            name: partial(jax.jit(lambda x, key, way=way: jnp.sum(way(x, key))), x, jax.random.key(0, impl=kind))
            for name, (kind, way) in ways.items()
        }
        best = {name: [float("inf")] * 2 for name in ways}
        for _ in range(args.rounds + 1):
            for name, step in steps.items():
                begun, used = time.perf_counter(), time.process_time()
                jax.block_until_ready(step())
                spent = (time.perf_counter() - begun, time.process_time() - used)
                best[name] = [min(pair) for pair in zip(best[name], spent, strict=True)]
        for name in ways:
            cells[name] += [1e3 * (a - b) for a, b in zip(best[name], best["nothing"], strict=True)]
    for name in list(ways)[1:]:
        print(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells[name]) + " |")
    return 0


def by_bernoulli(x: Array, key: Array) -> Array:
    """What Flax's Dropout does."""
    return jnp.where(jax.random.bernoulli(key, 1 - RATE, x.shape), x / (1 - RATE), 0.0)


def by_bytes(x: Array, key: Array) -> Array:
    """A byte an element, as `jax.random` gives them."""
    kept = round((1 - RATE) * 256)
    return jnp.where(jax.random.bits(key, x.shape, jnp.uint8) < kept, x * (256 / kept), 0.0)


if __name__ == "__main__":
    sys.exit(main())
