"""LAMB against the paper in float64, AdamW and LAMB against optax, schedules against arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config import Stage, TrainSettings
from bert_jax.train.optimizer import AdamState, group_norms, layer_groups, make_optimizer, make_schedule

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


def one_update(
    settings: TrainSettings, grads: dict, state: AdamState, params: dict, rate: float, finite: bool = True
) -> tuple[dict, AdamState]:
    """As the step does it."""
    norm = jnp.linalg.norm(group_norms(grads))
    given = {"rate": jnp.float32(rate), "norm": norm, "finite": jnp.asarray(finite)}
    updates, state = make_optimizer(settings).update(grads, state, params, **given)
    return optax.apply_updates(params, updates), state


def run(settings: TrainSettings, params: dict, grads: list[dict], rate: float) -> tuple[dict, AdamState]:
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = make_optimizer(settings).init(params)
    step = jax.jit(lambda g, s, p: one_update(settings, g, s, p, rate))
    for grad in grads:
        params, state = step(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grad), state, params)
    return params, state


def run_ours(params: dict, grads: list[dict], rate: float) -> dict:
    return run(SETTINGS, params, grads, rate)[0]


def unstack(tree: dict) -> dict:
    layers = {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], tree["layers"]) for i in range(LAYERS)}
    return {"embeddings": tree["embeddings"], **layers}


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
    stacked = unstack(run_ours(params, grads, rate=1e-3))
    alone = run_ours(unstack(params), [unstack(g) for g in grads], rate=1e-3)
    for one, other in zip(jax.tree.leaves(stacked), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("clip", [0.0, 5.0])
@pytest.mark.parametrize("kind", ["adamw", "lamb"])
def test_the_numbers_are_those_of_optax(kind: str, clip: float) -> None:
    """Unstacked, since optax takes one norm a leaf; gradients of norm 10 or so, so that a clip of 5 bites."""
    settings = TrainSettings(optimizer=kind, clip_norm=clip, weight_decay=0.1)
    params, grads = world()
    params, grads = unstack(params), [unstack(grad) for grad in grads]
    assert all(optax.tree.norm(grad) > 5 for grad in grads)

    def kernels(tree: dict) -> dict:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), tree)

    trust = optax.masked(optax.scale_by_trust_ratio(), kernels) if kind == "lamb" else optax.identity()
    theirs = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon),
        optax.add_decayed_weights(0.1, mask=kernels),
        trust,
        optax.scale(-1e-2),
    )
    ours, state = run(settings, params, grads, rate=1e-2)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    their_state = theirs.init(params)
    for grad in grads:
        grad = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grad)
        updates, their_state = theirs.update(grad, their_state, params)
        params = optax.apply_updates(params, updates)
    for name in ("mu", "nu"):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
            getattr(state, name),
            optax.tree.get(their_state, name),
        )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6), ours, params)


@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("kind", ["adamw", "lamb"])
def test_a_gradient_that_is_not_finite_changes_no_bit(kind: str, steps_before: int) -> None:
    """Nor does it at the very first step, where the bias correction has nothing to divide by yet."""
    settings = TrainSettings(optimizer=kind)
    params, grads = world()
    params, state = run(settings, params, grads[:steps_before], rate=1e-2)
    bad = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grads[5])
    bad["layers"]["up"]["bias"] = bad["layers"]["up"]["bias"].at[1, 2].set(jnp.nan)
    bad["embeddings"]["word"] = bad["embeddings"]["word"].at[0, 0].set(jnp.inf)
    after, after_state = one_update(settings, bad, state, params, 1e-2, finite=False)
    before = (params, state.done, state.mu, state.nu)
    jax.tree.map(np.testing.assert_array_equal, (after, after_state.done, after_state.mu, after_state.nu), before)
    assert not np.any(after_state.figures["update_ratio"])
    norms = dict(zip(layer_groups(bad), np.asarray(group_norms(bad)), strict=True))
    # who looks for the cause sees the layers that it is in
    assert [name for name, norm in norms.items() if not np.isfinite(norm)] == ["embeddings", "layer_01"]


def test_figures_by_layer_group_are_norms_of_what_happened() -> None:
    params, grads = world()
    params["pooler"] = {"kernel": np.full((6, 6), 0.5), "bias": np.zeros(6)}
    grads = [{**grad, "pooler": {"kernel": np.eye(6), "bias": np.ones(6)}} for grad in grads]
    before, state = run(SETTINGS, params, grads[:3], rate=1e-2)
    grad = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grads[3])
    after, state = one_update(SETTINGS, grad, state, before, 1e-2)
    assert layer_groups(before) == ["embeddings", "layer_00", "layer_01", "layer_02", "heads"]

    def norms(tree: dict) -> list[float]:
        parts = [tree["embeddings"], *(jax.tree.map(lambda x, i=i: x[i], tree["layers"]) for i in range(LAYERS))]
        return [float(optax.tree.norm(part)) for part in (*parts, tree["pooler"])]

    moved = jax.tree.map(lambda x, y: x - y, after, before)
    np.testing.assert_allclose(group_norms(grad), norms(grad), rtol=1e-6)
    ratios = np.array(norms(moved)) / np.array(norms(before))
    np.testing.assert_allclose(state.figures["update_ratio"], ratios, rtol=1e-4)
    # of one leaf that is a kernel, it is the ratio itself: its update is as long as rate × weights
    adam, _ = one_update(TrainSettings(clip_norm=0.0), grad, run(SETTINGS, params, grads[:3], 1e-2)[1], before, 1e-2)
    untrusted = optax.tree.norm(adam["embeddings"]["word"] - before["embeddings"]["word"])
    trusted = optax.tree.norm(moved["embeddings"]["word"])
    np.testing.assert_allclose(state.figures["trust_ratio"][0], trusted / untrusted, rtol=1e-4)


def test_biases_and_norms_do_not_decay() -> None:
    params = {"dense": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}, "norm": {"scale": np.ones(2)}}
    zero = jax.tree.map(np.zeros_like, params)
    after, _ = run(TrainSettings(weight_decay=0.5, clip_norm=0.0), params, [zero], rate=1.0)
    assert np.all(after["dense"]["kernel"] == 0.5)
    assert np.all(after["dense"]["bias"] == 1) and np.all(after["norm"]["scale"] == 1)


@pytest.mark.parametrize(("kind", "bytes_a_parameter"), [("adamw", 72), ("lamb", 64)])
def test_the_update_reads_and_writes_little_memory(kind: str, bytes_a_parameter: int) -> None:
    """By XLA's own count on this backend, clipping, guard and figures included. A link that makes a pass of its own
    costs at least 8 bytes a parameter, as does a buffer that is given away and cannot be used: of AdamW the CPU
    backend still copies the parameters once, since it takes their norm after the update."""
    params = {"embeddings": {"word": jnp.ones((512, 512))}}
    tx = make_optimizer(TrainSettings(optimizer=kind))
    step = jax.jit(lambda g, p, s: one_update(TrainSettings(optimizer=kind), g, s, p, 1e-3), donate_argnums=(1, 2))
    compiled = step.lower(params, params, tx.init(params)).compile()
    assert compiled.cost_analysis()["bytes accessed"] / 512**2 < bytes_a_parameter + 2


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
