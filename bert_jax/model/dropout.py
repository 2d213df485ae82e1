"""Dropout from cheap bits, a function of the key alone."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)  # Salmon et al. 2011, table 2: Threefry-2x32
_ROUNDS = 13  # the fewest that pass BigCrush, same table; jax.random does 20


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero each element with probability `rate` and scale the others so that the mean stays.

    One hash decides eight elements (a byte each), where `jax.random.bernoulli` takes a longer one for every element;
    so the rate is rounded to a 256th, and the scale is exact for the rounded rate. The mask depends on the key and
    the shape only: it is the same on any mesh, where each device makes its own part of it.

    Args:
        x: any shape, floating.
        rate: in [0, 1).
        key: a JAX key; `None` returns `x` as it is.
    """
    kept = round((1.0 - rate) * 256)
    if key is None or kept >= 256:
        return x
    return jnp.where(random_bytes(key, x.shape) < kept, x * jnp.asarray(256 / kept, x.dtype), jnp.zeros((), x.dtype))


def random_bytes(key: Array, shape: tuple[int, ...]) -> Array:
    """uint8[shape], uniform and independent: Threefry-2x32 (Salmon et al. 2011) of the place of each eight."""
    *lead, last = shape
    blocks = (*lead, -(-last // 8))
    if math.prod(blocks) >= 2**32:
        raise ValueError(f"{shape} is more than one counter of 32 bits can number")
    places = _places(blocks)
    words = jnp.stack(threefry(jax.random.bits(key, (2,), jnp.uint32), places, jnp.zeros_like(places)), axis=-1)
    return lax.bitcast_convert_type(words, jnp.uint8).reshape(*lead, -1)[..., :last]


def _places(shape: tuple[int, ...]) -> Array:
    """uint32[shape]: 0, 1, 2, … in row-major order, written so that a mesh divides it as it divides the shape."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        place += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(math.prod(shape[axis + 1 :]))
    return place


def threefry(key: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Two words uint32 for each counter (x, y), under a key uint32[2].

    Written out, it is one pass over memory; jax.random's loops over rounds on a CPU, and keeps one word of two.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = x + schedule[0], y + schedule[1]
    for number in range(_ROUNDS):
        x = x + y
        rotation = _ROTATIONS[number % 8]
        y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        if number % 4 == 3:
            turn = number // 4 + 1
            x = x + schedule[turn % 3]
            y = y + schedule[(turn + 1) % 3] + jnp.uint32(turn)
    return x, y
