"""Dropout from cheap bits, a function of the key alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero each element with probability `rate` and scale the others so that the mean stays.

    One threefry word decides four elements (a byte each), which takes a quarter of the hashing that
    `jax.random.bernoulli` does; so the rate is rounded to a 256th, and the scale is exact for the rounded rate.
    The mask depends on the key and the shape only: it is the same on any mesh.

    Args:
        x: any shape, floating.
        rate: in [0, 1).
        key: a JAX key; `None` returns `x` as it is.
    """
    kept = round((1.0 - rate) * 256)
    if key is None or kept >= 256:
        return x
    *lead, last = x.shape
    words = jax.random.bits(key, (*lead, -(-last // 4)), jnp.uint32)
    bits = lax.bitcast_convert_type(words, jnp.uint8).reshape(*lead, -1)[..., :last]
    return jnp.where(bits < kept, x * jnp.asarray(256 / kept, x.dtype), jnp.zeros((), x.dtype))
