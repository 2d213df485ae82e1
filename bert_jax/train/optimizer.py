"""AdamW, LAMB and learning-rate curves, behind optax's interface; what a step did to each group of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bert_jax.config import Stage, TrainSettings


class AdamState(NamedTuple):
    """Updates done, both moments in float32, and what the last update was like, by layer group: float32[G] each."""

    done: Array
    mu: Any
    nu: Any
    figures: dict[str, Array]


def make_optimizer(settings: TrainSettings) -> optax.GradientTransformationExtraArgs:
    """Gradients → what to add to the parameters.

    AdamW (Loshchilov and Hutter 2017, algorithm 2): clip, Adam with bias correction, decay.
    LAMB (You et al. 2019, algorithm 2): the same, then the trust ratio of each layer, ‖w‖ / ‖u‖, or 1 where either
    norm is 0. Bias and LayerNorm leaves are neither decayed nor rescaled.

    The numbers are those of `optax.chain(clip_by_global_norm, scale_by_adam, add_decayed_weights, …)`, but a chain
    sends every parameter through memory once a link. Here one expression a leaf says it all, and whatever holds for
    the whole step (clipping, bias correction, rate, the guard) is a scalar in it.

    `update` takes, beside optax's arguments,
        rate: the learning rate, float32[].
        norm: the global norm of the gradients, float32[].
        finite: bool[]; where it is false, moments and count stay bit for bit, and the updates are zeros.
    The state's figures are `update_ratio`, ‖Δw‖ / ‖w‖ of each layer group, and with LAMB `trust_ratio`, how many
    times longer trust has made the group's update.
    """
    beta1, beta2, lamb = settings.beta1, settings.beta2, settings.optimizer == "lamb"

    def init(params: Any) -> AdamState:
        moments = (jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), params) for _ in range(2))
        names = ("update_ratio", "trust_ratio") if lamb else ("update_ratio",)
        groups = len(layer_groups(params))
        return AdamState(jnp.zeros((), jnp.int32), *moments, {name: jnp.zeros(groups) for name in names})

    def update(
        grads: Any, state: AdamState, params: Any = None, *, rate: Array, norm: Array, finite: Array, **_: Any
    ) -> tuple[Any, AdamState]:
        count = state.done + 1
        scale = jnp.where(norm > settings.clip_norm, settings.clip_norm / norm, 1.0) if settings.clip_norm else 1.0
        keep1, keep2, rate = (jnp.where(finite, x, still) for x, still in ((beta1, 1.0), (beta2, 1.0), (rate, 0.0)))
        whole1, whole2 = 1.0 / (1.0 - beta1**count), 1.0 / (1.0 - beta2**count)

        def leaf(path: Any, g: Array, m: Array, v: Array, w: Array) -> Any:
            g = jnp.where(finite, g * scale, 0.0)
            m = keep1 * m + (1.0 - beta1) * g
            v = keep2 * v + (1.0 - beta2) * jnp.square(g)
            u = m * whole1 / (jnp.sqrt(v * whole2) + settings.epsilon)
            if _is_kernel(path):
                u += settings.weight_decay * w
            w_square, u_square = _square(path, w), _square(path, u)
            ratio = jnp.ones_like(w_square)
            if lamb and _is_kernel(path):
                usable = (w_square > 0) & (u_square > 0)
                ratio = jnp.where(usable, jnp.sqrt(w_square / jnp.where(usable, u_square, 1.0)), 1.0)
            ratio = jnp.where(finite, ratio, 1.0)  # times a rate of 0 it has to be 0
            stretch = (-rate * ratio).reshape(ratio.shape + (1,) * (w.ndim - ratio.ndim))
            return stretch * u, m, v, (w_square, u_square, jnp.square(ratio) * u_square)

        leaves = jax.tree_util.tree_map_with_path(leaf, grads, state.mu, state.nu, params)
        updates, mu, nu, squares = jax.tree.transpose(jax.tree.structure(params), None, leaves)
        w_square, u_square, scaled_square = (_by_group(tree) for tree in squares)
        figures = {"update_ratio": rate * jnp.sqrt(scaled_square / jnp.where(w_square > 0, w_square, 1.0))}
        if lamb:
            figures["trust_ratio"] = jnp.sqrt(scaled_square / jnp.where(u_square > 0, u_square, 1.0))
        return updates, AdamState(jnp.where(finite, count, state.done), mu, nu, figures)

    return optax.GradientTransformationExtraArgs(init, update)


def layer_groups(params: Any) -> list[str]:
    """The groups that figures by layer are of: "embeddings", "layer_00", "layer_01", …, "heads", as far as present.

    Below a key `layers` a leaf stacks one slice a layer on its first axis; a leaf that is neither there nor below
    `embeddings` belongs to the heads.
    """
    sizes = {_group(path): len(leaf) if leaf.ndim else 1 for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    names = {"embeddings": ["embeddings"], "heads": ["heads"]}
    names["layers"] = [f"layer_{number:02d}" for number in range(sizes.get("layers", 0))]
    return [name for group in GROUPS if group in sizes for name in names[group]]


def group_norms(tree: Any) -> Array:
    """float32[G]: the norm of each layer group of a tree, in the order of `layer_groups`."""
    return jnp.sqrt(_by_group(jax.tree_util.tree_map_with_path(_square, tree)))


GROUPS = ("embeddings", "layers", "heads")


def _group(path: tuple[Any, ...]) -> str:
    keys = {getattr(part, "key", None) for part in path}
    return next((group for group in GROUPS if group in keys), "heads")


def _is_kernel(path: tuple[Any, ...]) -> bool:
    """Whether a leaf decays and takes a trust ratio: products and tables, not biases nor norms."""
    return path[-1].key not in ("bias", "scale")


def _square(path: tuple[Any, ...], x: Array) -> Array:
    """‖x‖², float32[]; of a leaf that stacks layers float32[L], so that each slice has a norm of its own."""
    first = 1 if _group(path) == "layers" else 0
    return jnp.sum(jnp.square(x.astype(jnp.float32)), range(first, x.ndim))


def _by_group(squares: Any) -> Array:
    """A tree of what `_square` gives, added up within each layer group: float32[G]."""
    sums: dict[str, Array] = {}
    for path, square in jax.tree_util.tree_leaves_with_path(squares):
        group = _group(path)
        sums[group] = sums[group] + square if group in sums else square
    return jnp.concatenate([jnp.atleast_1d(sums[group]) for group in GROUPS if group in sums])


def make_schedule(stages: Sequence[Stage]) -> Callable[[Array], Array]:
    """The learning rate at each step of a run, one curve a stage.

    Step 0 of a stage already trains: the rate after `warmup` such steps is the peak, the first one is peak / warmup.
    """
    curves, borders, end = [], [], 0
    for stage in stages:
        curves.append(_curve(stage))
        borders.append(end := end + stage.steps)
    return optax.join_schedules(curves, borders[:-1])


def _curve(stage: Stage) -> Callable[[Array], Array]:
    peak, falling = stage.learning_rate, stage.steps - stage.warmup

    def rate(step: Array) -> Array:
        done = jnp.clip((step + 1 - stage.warmup) / max(falling, 1), 0.0, 1.0)
        if stage.decay == "cosine":
            fall = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        else:
            fall = (1.0 - done) ** stage.power
        fall = stage.end_fraction + (1.0 - stage.end_fraction) * fall
        climb = (step + 1) / max(stage.warmup, 1)
        return peak * jnp.where(step < stage.warmup, climb, fall)

    return rate
