"""What an update costs: bytes a parameter by XLA's own count, and time, ours beside optax's.

    python -m benchmarks.optimizer --preset mini

Every row is one compiled function (gradients, state, parameters) → (parameters, state) with donated buffers; the time
is the least of several rounds, in each of which every row has its turn. "as a step needs it" means with clipping by
the global norm, with the guard that leaves all as it was where a gradient is not finite, and, of ours, with the
figures by layer group. A float32 AdamW cannot do with less than 28 bytes (four arrays read, three written), or 32
with the norm of the gradients before it; LAMB, which has to know the update's norm before it can apply the update,
not with less than 44.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_jax.config import TrainSettings, preset
from bert_jax.model import bert
from bert_jax.train.optimizer import group_norms, make_optimizer

RATE, DECAY = 1e-4, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    config = preset(options.preset, 30522)
    params = jax.jit(partial(bert.init, config))(jax.random.key(0))
    grads = jax.jit(lambda tree: jax.tree.map(lambda w: 0.01 * w + 1e-4, tree))(params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{options.preset}: {size:,} parameters on {jax.devices()[0].device_kind}\n")

    rows = {}
    for name, (init, update) in candidates().items():
        state = jax.jit(init)(params)
        compiled = jax.jit(update, donate_argnums=(1, 2)).lower(grads, state, params).compile()
        costs = compiled.cost_analysis()
        rows[name] = [compiled, state, jax.tree.map(jnp.copy, params), costs["bytes accessed"] / size, []]
    for _ in range(options.rounds):
        for row in rows.values():
            compiled, state, weights, _, seconds = row
            start = time.perf_counter()
            row[2], row[1] = jax.block_until_ready(compiled(grads, state, weights))
            seconds.append(time.perf_counter() - start)
    print(f"{'':<44}{'bytes a parameter':>18}{'ms':>10}{'GB/s':>8}")
    for name, (_, _, _, counted, seconds) in rows.items():
        least = min(seconds)
        print(f"{name:<44}{counted:>18.1f}{1e3 * least:>10.2f}{counted * size / least / 1e9:>8.1f}")


def candidates() -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """Name → (init, update); update takes gradients, state and parameters and gives parameters and state."""
    clip = optax.clip_by_global_norm(1.0)
    adamw, lamb = optax.adamw(RATE, weight_decay=DECAY), optax.lamb(RATE, weight_decay=DECAY)
    return {
        "ours, AdamW, as a step needs it": ours("adamw"),
        "optax.adamw alone": plain(adamw),
        "optax, clip + adamw": plain(optax.chain(clip, adamw)),
        "optax, clip + adamw, as a step needs it": guarded(optax.chain(clip, adamw)),
        "ours, LAMB, as a step needs it": ours("lamb"),
        "optax.lamb alone": plain(lamb),
        "optax, clip + lamb, as a step needs it": guarded(optax.chain(clip, lamb)),
    }


def ours(kind: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    tx = make_optimizer(TrainSettings(optimizer=kind, weight_decay=DECAY))

    def update(grads: Any, state: Any, params: Any) -> Any:
        norm = jnp.sqrt(jnp.sum(jnp.square(group_norms(grads))))
        given = {"rate": jnp.float32(RATE), "norm": norm, "finite": jnp.isfinite(norm)}
        updates, state = tx.update(grads, state, params, **given)
        return optax.apply_updates(params, updates), state

    return tx.init, update


def plain(tx: optax.GradientTransformation) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def update(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return tx.init, update


def guarded(tx: optax.GradientTransformation) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """As the step would do it around a transformation that knows of no guard."""
    init, inner = plain(tx)

    def update(grads: Any, state: Any, params: Any) -> Any:
        finite = jnp.isfinite(optax.tree.norm(grads))
        return jax.tree.map(partial(jnp.where, finite), inner(grads, state, params), (params, state))

    return init, update


if __name__ == "__main__":
    main()
