"""The modules of a BERT encoder: embeddings, one post-norm layer, and the norm they share.

Every parameter is declared here (and in `heads.py`) once, with its name, shape, initial value and the logical
names of its axes; `train/sharding.py` maps those names to mesh axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from bert_jax.config import BertConfig
from bert_jax.model.attention import Attend
from bert_jax.model.dropout import dropout

# What a layer keeps for the backward pass with `Execution.remat = "names"`: whatever a product made. Norms, GELU,
# softmax and dropout masks are made again from these, which costs less than to write and read them.
SAVED = ("qkv", "context", "sum", "pre-activation")


def normal(config: BertConfig, *axes: str | None) -> Callable[..., Any]:
    """A truncated normal of the configured width (google-research/bert, `create_initializer`), with named axes."""
    return nn.with_logical_partitioning(nn.initializers.truncated_normal(config.init_std), axes)


def words(config: BertConfig, *axes: str | None) -> Callable[..., Any]:
    """The word table's initial values: `normal` for each piece, the same with and without rows that stand for none.

    Those are 0 and stay so: without gradient, decay adds nothing either, and they are in no norm.
    """

    def pieces(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
        drawn = nn.initializers.truncated_normal(config.init_std)(key, (config.vocab_size, shape[1]), dtype)
        return jnp.pad(drawn, ((0, shape[0] - config.vocab_size), (0, 0)))

    return nn.with_logical_partitioning(pieces, axes)


def positions(config: BertConfig, *axes: str | None) -> Callable[..., Any]:
    """The position table's initial values, as `config.position_init` says.

    "sinusoid" begins with sines and cosines (Vaswani et al. 2017, section 3.5) of wavelengths from 2π to 2π times
    the table's length, as large as `init_std` makes the other tables: there, "the token before" is one and the same
    rotation at every place, which attention finds much sooner than one offset for each pair of random vectors.
    """
    if config.position_init == "normal":
        return normal(config, *axes)

    def sinusoid(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
        length, width = shape
        rates = length ** -(jnp.arange(0, width, 2, dtype=dtype) / width)
        angles = jnp.outer(jnp.arange(length, dtype=dtype), rates)
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :width]
        return config.init_std * 2**0.5 * waves

    return nn.with_logical_partitioning(sinusoid, axes)


def zeros(*axes: str | None) -> Callable[..., Any]:
    return nn.with_logical_partitioning(nn.initializers.zeros_init(), axes)


def ones(*axes: str | None) -> Callable[..., Any]:
    return nn.with_logical_partitioning(nn.initializers.ones_init(), axes)


def layer_norm(config: BertConfig, dtype: Any) -> nn.LayerNorm:
    """LayerNorm with the variance taken around the mean: E[x²]−E[x]² loses it where a row hardly varies."""
    return nn.LayerNorm(
        epsilon=config.norm_epsilon,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=ones("norm"),
        bias_init=zeros("norm"),
        name="norm",
    )


def activation(config: BertConfig, x: Array) -> Array:
    """GELU (Hendrycks and Gimpel 2016): with erf, or google-research/bert's approximation by tanh."""
    return jax.nn.gelu(x, approximate=True) if config.activation == "gelu_tanh" else gelu(x)


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """x Φ(x), computed in float32.

    `jax.nn.gelu` takes erfc, three passes over memory on a CPU; its gradient as JAX derives it keeps two arrays more.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    wide = x.astype(jnp.float32)
    slope = _normal_cdf(wide) + wide * jnp.exp(-0.5 * jnp.square(wide)) * (2.0 * math.pi) ** -0.5
    return gelu(x), dx * slope.astype(x.dtype)


def _normal_cdf(x: Array) -> Array:
    return 0.5 + 0.5 * lax.erf(x * 0.5**0.5)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def multiply(x: Array, kernel: Array, dtype: Any, out: Any) -> Array:
    """x [R, K] · kernel [K, M] → [R, M] of dtype `out`; operands are taken in `dtype`, forward and backward.

    The gradient of the kernel stays float32, as the product summed it: a cast's own gradient would round it to `dtype`
    on the way to the parameter. On a CPU all results are float32 before they are rounded, since XLA there has a fast
    bfloat16 product in that form only (two of float32's rate, where bfloat16 results run at one).
    """
    return _dot(x, kernel.astype(dtype), (1, 0), out)


def _multiply_forward(x: Array, kernel: Array, dtype: Any, out: Any) -> tuple[Array, tuple[Array, Array]]:
    return multiply(x, kernel, dtype, out), (x, kernel)


def _multiply_backward(dtype: Any, out: Any, kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    del out
    x, kernel = kept
    dy = dy.astype(dtype)
    return _dot(dy, kernel.astype(dtype), (1, 1), x.dtype), _dot(x, dy, (0, 0), kernel.dtype)


multiply.defvjp(_multiply_forward, _multiply_backward)


def _dot(a: Array, b: Array, over: tuple[int, int], out: Any) -> Array:
    """Two matrices multiplied over one axis of each."""
    sums = jnp.float32 if jax.default_backend() == "cpu" else out
    return lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=sums).astype(out)


class Product(nn.Module):
    """One dense product and its bias: the kernel's first axes meet the last ones of x.

    `kernel` names the kernel's axes and their sizes, `bias` names the bias's, which are the kernel's last ones.
    Every axis keeps its own place in the parameter (heads are not flattened), so that each can be sharded by name.
    """

    config: BertConfig
    dtype: Any
    kernel: tuple[tuple[str | None, int], ...]
    bias: tuple[str | None, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[*rows, *inner] → [*rows, *outer], computed as one product of two matrices.

        With its axes apart, a product's gradient contracts several of them at once, for which XLA on a CPU transposes
        the kernel first. To merge neighbouring axes is free, and keeps the sharding of the first of them.
        """
        names, shape = zip(*self.kernel, strict=True)
        inner = len(shape) - len(self.bias)
        kernel = self.param("kernel", normal(self.config, *names), shape, jnp.float32)
        bias = self.param("bias", zeros(*self.bias), shape[inner:], jnp.float32)
        size = math.prod(shape[:inner])
        y = multiply(x.astype(self.dtype).reshape(-1, size), kernel.reshape(size, -1), self.dtype, self.dtype)
        y = y + bias.astype(self.dtype).reshape(1, -1)
        return y.reshape(*x.shape[: x.ndim - inner], *shape[inner:])


class Embeddings(nn.Module):
    """Token + position + segment, normalised, dropped out; where the tables are narrower than D, a product up to it."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, input_ids: Array, position_ids: Array, segment_ids: Array, key: Array | None) -> Array:
        """int32[B, T] three times → [B, T, D]."""
        c = self.config
        size = c.embedding_width
        word = self.param("word", words(c, "vocab", "embed"), (c.vocab_rows, size), jnp.float32)
        position = self.param("position", positions(c, None, "embed"), (c.positions, size), jnp.float32)
        x = jnp.take(word, input_ids, axis=0) + jnp.take(position, position_ids, axis=0)
        if c.segments:
            segment = self.param("segment", normal(c, None, "embed"), (c.segments, size), jnp.float32)
            x = x + jnp.take(segment, segment_ids, axis=0)
        x = dropout(layer_norm(c, self.dtype)(x), c.hidden_dropout, key)
        if c.embedding:
            x = Product(c, self.dtype, (("embed", size), (None, c.width)), ("norm",), name="project")(x)
        return x


class Attention(nn.Module):
    """Multi-head self-attention, its output projection, the residual and the norm."""

    config: BertConfig
    dtype: Any
    attend: Attend

    @nn.compact
    def __call__(self, x: Array, mask: Any, key: Array | None) -> Array:
        """[B, T, D] and the mask of the attention path → [B, T, D]."""
        c = self.config
        size = c.width // c.heads

        # three products: joined into one they took the same time on a CPU, and slicing it costs fused attention a copy
        def project(name: str) -> Array:
            kernel = (("embed", c.width), ("heads", c.heads), ("head_size", size))
            y = Product(c, self.dtype, kernel, ("heads", "head_size"), name=name)(x)
            return checkpoint_name(nn.with_logical_constraint(y, ("batch", None, "heads", None)), "qkv")

        score_key, output_key = (None, None) if key is None else jax.random.split(key)
        context = self.attend(project("query"), project("key"), project("value"), mask, c.attention_dropout, score_key)
        kernel = (("heads", c.heads), ("head_size", size), ("embed", c.width))
        y = Product(c, self.dtype, kernel, ("norm",), name="output")(checkpoint_name(context, "context"))
        return layer_norm(c, self.dtype)(checkpoint_name(x + dropout(y, c.hidden_dropout, output_key), "sum"))


class FeedForward(nn.Module):
    """Up, GELU, down, the residual and the norm."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, key: Array | None) -> Array:
        """[B, T, D] → [B, T, D]."""
        c = self.config
        wide, narrow = ("feed_forward", c.feed_forward), ("embed", c.width)
        up = Product(c, self.dtype, (narrow, wide), ("feed_forward",), name="up")
        down = Product(c, self.dtype, (wide, narrow), ("norm",), name="down")
        before = checkpoint_name(nn.with_logical_constraint(up(x), ("batch", None, "feed_forward")), "pre-activation")
        y = down(activation(c, before))
        return layer_norm(c, self.dtype)(checkpoint_name(x + dropout(y, c.hidden_dropout, key), "sum"))


class Layer(nn.Module):
    """One encoder layer, norms after the residuals as in the paper."""

    config: BertConfig
    dtype: Any
    attend: Attend

    @nn.compact
    def __call__(self, x: Array, mask: Any, key: Array | None) -> Array:
        """[B, T, D] and the mask of the attention path → [B, T, D]."""
        attention_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        x = Attention(self.config, self.dtype, self.attend, name="attention")(x, mask, attention_key)
        x = FeedForward(self.config, self.dtype, name="mlp")(x, mlp_key)
        return nn.with_logical_constraint(x, ("batch", None, None))
