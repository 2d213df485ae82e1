"""AdamW, LAMB and learning-rate curves: sentences made of optax parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bert_jax.config import Stage, TrainSettings


def make_optimizer(settings: TrainSettings) -> optax.GradientTransformation:
    """Gradients → directions: the step multiplies them by minus the learning rate.

    AdamW (Loshchilov and Hutter 2017, algorithm 2): clip, Adam with bias correction, decay.
    LAMB (You et al. 2019, algorithm 2): the same, then the trust ratio of each layer.
    Bias and LayerNorm leaves are neither decayed nor rescaled. Moments are float32.
    """
    parts = [
        optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
        optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon, mu_dtype=jnp.float32),
        optax.add_decayed_weights(settings.weight_decay, mask=is_kernel),
    ]
    if settings.optimizer == "lamb":
        parts.append(optax.masked(scale_by_layer_trust_ratio(), is_kernel))
    return optax.chain(*parts)


def is_kernel(params: Any) -> Any:
    """True at the leaves that decay and take a trust ratio: products and tables, not biases nor norms."""

    def kernel(path: tuple[Any, ...], _: Any) -> bool:
        return path[-1].key not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(kernel, params)


def scale_by_layer_trust_ratio() -> optax.GradientTransformation:
    """Multiply each layer's update by ‖w‖ / ‖u‖, or by 1 where either norm is 0 (You et al. 2019, section 3).

    `optax.scale_by_trust_ratio` takes one norm a leaf. Below `layers` a leaf stacks many layers on its first axis:
    there each slice has a ratio of its own, so that stacked and unstacked trees get the same update.
    """

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        def rescale(path: tuple[Any, ...], u: Array, w: Array) -> Array:
            stacked = any(getattr(part, "key", None) == "layers" for part in path)
            over = tuple(range(1 if stacked else 0, w.ndim))
            w_norm = jnp.sqrt(jnp.sum(jnp.square(w), over, keepdims=True))
            u_norm = jnp.sqrt(jnp.sum(jnp.square(u), over, keepdims=True))
            usable = (w_norm > 0) & (u_norm > 0)
            return u * jnp.where(usable, w_norm / jnp.where(usable, u_norm, 1.0), 1.0)

        return jax.tree_util.tree_map_with_path(rescale, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


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
