"""LAMB against the paper in float64, schedules against arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import Stage, TrainSettings
from bert_jax.train.optimizer import make_optimizer, make_schedule

SETTINGS = TrainSettings(optimizer="lamb", clip_norm=0.0, weight_decay=0.01, epsilon=1e-6)
LAYERS = 3


def world(seed: int = 0) -> tuple[dict, list[dict]]:
    """A stacked tree with every kind of leaf (a layer of zeros among them), and gradients for 20 steps."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embeddings": {"word": (11, 6)},
        "layers": {
            "up": {"kernel": (LAYERS, 6, 8), "bias": (LAYERS, 8)},
            "norm": {"scale": (LAYERS, 6)},
        },
    }

    def is_shape(node: object) -> bool:
        return isinstance(node, tuple)

    params = jax.tree.map(lambda shape: rng.normal(0, 0.5, shape), shapes, is_leaf=is_shape)
    params["layers"]["up"]["kernel"][1] = 0.0  # ‖w‖ = 0: the ratio is 1
    params["layers"]["up"]["kernel"][2] *= 40  # layers of unlike size: one norm for all would be wrong
    grads = [jax.tree.map(lambda shape: rng.normal(0, 1, shape), shapes, is_leaf=is_shape) for _ in range(20)]
    return params, grads


def lamb_float64(params: dict[str, np.ndarray], grads: list[dict[str, np.ndarray]], rate: float) -> dict:
    """You et al. 2019, algorithm 2, for a flat dict of single layers."""
    s = SETTINGS
    m = {k: np.zeros_like(w) for k, w in params.items()}
    v = {k: np.zeros_like(w) for k, w in params.items()}
    for t, grad in enumerate(grads, 1):
        for k, w in params.items():
            m[k] = s.beta1 * m[k] + (1 - s.beta1) * grad[k]
            v[k] = s.beta2 * v[k] + (1 - s.beta2) * grad[k] ** 2
            u = m[k] / (1 - s.beta1**t) / (np.sqrt(v[k] / (1 - s.beta2**t)) + s.epsilon)
            ratio = 1.0
            if not k.endswith(("bias", "scale")):
                u = u + s.weight_decay * w
                w_norm, u_norm = np.sqrt((w**2).sum()), np.sqrt((u**2).sum())
                ratio = w_norm / u_norm if w_norm > 0 and u_norm > 0 else 1.0
            params = params | {k: w - rate * ratio * u}
    return params


def flat_layers(tree: dict) -> dict[str, np.ndarray]:
    """Stacked leaves as one entry a layer."""
    out = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = "/".join(part.key for part in path)
        if name.startswith("layers"):
            out |= {f"{i}/{name}": np.asarray(part, np.float64) for i, part in enumerate(leaf)}
        else:
            out[name] = np.asarray(leaf, np.float64)
    return out


def run_ours(params: dict, grads: list[dict], rate: float) -> dict:
    tx = make_optimizer(SETTINGS)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = tx.init(params)
    for grad in grads:
        updates, state = tx.update(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grad), state, params)
        params = jax.tree.map(lambda w, u: w - rate * u, params, updates)
    return params


def test_lamb_equals_the_paper_in_float64_over_20_steps() -> None:
    params, grads = world()
    # a rate that keeps the 40 times larger layer's float32 rounding below the tolerance
    ours = flat_layers(run_ours(params, grads, rate=1e-3))
    paper = lamb_float64(flat_layers(params), [flat_layers(g) for g in grads], rate=1e-3)
    for name, expected in paper.items():
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(ours[name] / scale, expected / scale, atol=1e-6, err_msg=name)


def test_lamb_gives_stacked_and_unstacked_trees_the_same_update() -> None:
    params, grads = world()

    def unstack(tree: dict) -> dict:
        layers = {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], tree["layers"]) for i in range(LAYERS)}
        return {"embeddings": tree["embeddings"], **layers}

    stacked = unstack(run_ours(params, grads, rate=1e-3))
    alone = run_ours(unstack(params), [unstack(g) for g in grads], rate=1e-3)
    for one, other in zip(jax.tree.leaves(stacked), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_biases_and_norms_do_not_decay() -> None:
    tx = make_optimizer(TrainSettings(weight_decay=0.5, clip_norm=0.0))
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert np.all(updates["dense"]["kernel"] == 0.5)
    assert np.all(updates["dense"]["bias"] == 0) and np.all(updates["norm"]["scale"] == 0)


def test_schedule_climbs_falls_and_begins_anew_in_each_stage() -> None:
    first = Stage(steps=10, warmup=4, learning_rate=1.0, end_fraction=0.25)
    second = Stage(steps=4, warmup=0, learning_rate=0.5, decay="cosine")
    rate = make_schedule([first, second])
    rates = [float(rate(jnp.asarray(t))) for t in range(14)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:10] == pytest.approx([1 - 0.75 * k / 6 for k in range(1, 7)])
    assert rates[10:] == pytest.approx([0.25 * (1 + np.cos(np.pi * k / 4)) for k in range(1, 5)])


def test_polynomial_power() -> None:
    rate = make_schedule([Stage(steps=4, learning_rate=1.0, power=0.5)])
    assert [float(rate(jnp.asarray(t))) for t in range(4)] == pytest.approx([0.75**0.5, 0.5**0.5, 0.5, 0.0])
