"""What a task's head sees of the encoder, and the head: tokens read from layers, layers joined, one product.

Tokens are read from every layer first and layers are joined behind it, so that what a frozen encoder gives to a head
can be kept: a few vectors an item instead of all states.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from bert_jax.config import BertConfig, Execution
from bert_jax.model import bert
from bert_jax.model.heads import pooler
from bert_jax.model.layers import Product, ones, zeros

Params = dict[str, Any]
Batch = dict[str, Array]


class Mix(nn.Module):
    """γ Σ softmax(w)ₗ hₗ (Peters et al. 2018, equation 1)."""

    @nn.compact
    def __call__(self, features: Array, rate: float, key: Array | None) -> Array:
        """[..., L, D] → [..., D]; with a key each layer is left out with probability `rate`, never all of them."""
        count = features.shape[-2]
        weights = self.param("weights", zeros(None), (count,), jnp.float32)
        scale = self.param("scale", ones(), (), jnp.float32)
        if key is not None and rate > 0:
            out = jax.random.bernoulli(key, rate, (count,))
            weights = jnp.where(out & ~out.all(), -1e9, weights)
        return scale * jnp.einsum("...ld,l->...d", features, jax.nn.softmax(weights))


class LayerAttention(nn.Module):
    """Layers weighted by a learned query, for each item by itself."""

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """[..., L, D] → [..., D]."""
        size = features.shape[-1]
        query = self.param("query", zeros(None), (size,), jnp.float32)
        weights = jax.nn.softmax(jnp.einsum("...ld,d->...l", features, query) * size**-0.5, axis=-1)
        return jnp.einsum("...ld,...l->...d", features, weights)


def joined(layers: str) -> bool:
    """Whether the layers are joined by parameters of the head, which then needs all of them."""
    return layers in ("mix", "attention")


def width(config: BertConfig, layers: str, tokens: str, spans: int = 1) -> int:
    """D', the size of what the head's product reads."""
    return config.width * (4 if layers == "cat4" else 1) * (2 if tokens == "first_last" else 1) * spans


def init_head(config: BertConfig, layers: str, outputs: dict[str, int], size: int, key: Array) -> Params:
    """Parameters of a head: what joins layers, and a product for each name in `outputs`, [D', K].

    Args:
        outputs: name → K.
        size: D'.
    """
    tree: Params = {}
    features = jnp.zeros((1, config.layers + 1, size), jnp.float32)
    if layers == "mix":
        tree["mix"] = Mix().init(key, features, 0.0, None)["params"]
    if layers == "attention":
        tree["layer_attention"] = LayerAttention().init(key, features)["params"]
    for number, (name, classes) in enumerate(outputs.items()):
        head = output(config, size, classes)
        tree[name] = head.init(jax.random.fold_in(key, number), features[:, 0])["params"]
    return nn.meta.unbox(tree)


def output(config: BertConfig, size: int, classes: int) -> Product:
    """[..., D'] → float32[..., K]."""
    return Product(config, jnp.float32, (("embed", size), (None, classes)), (None,))


def fresh_pooler(config: BertConfig, key: Array) -> Params:
    """The pooler's dense layer, as pretraining begins it."""
    x = jnp.zeros((1, 1, config.width), jnp.float32)
    return nn.meta.unbox(pooler(config, jnp.float32).init(key, x)["params"])


# ------------------------------------------------------------------------------------------------------- reading


def features(
    config: BertConfig,
    params: Params,
    batch: Batch,
    layers: str,
    tokens: str,
    *,
    key: Array | None = None,
    execution: Execution = Execution(),
    shift: Array | None = None,
) -> Array:
    """What the head reads: float32[B, R, L', D'] of items, or [B, T, L', D] of all tokens where `tokens` is "all".

    L' is L + 1 where the head joins layers, else 1.

    Args:
        batch: tokens, and `spans` int32[B, R, K, 2].
        layers, tokens: as in a recipe's `[readout]`; "all" reads every token.
        key, execution, shift: as in `bert.encode`.
    """
    depth = None
    number = layers.removeprefix("-").isdigit()
    if number:
        depth = int(layers) % (config.layers + 1)
    every = joined(layers) or layers in ("mean", "cat4") or depth == 0
    encoded = bert.encode(
        config,
        params,
        batch,
        key=key,
        execution=execution,
        all_layers=every,
        depth=max(depth, 1) if depth is not None else None,
        shift=shift,
    )
    if encoded.layers is None:
        states = encoded.hidden[None]
    elif layers == "mean":
        states = encoded.layers.mean(0, keepdims=True)
    elif layers == "cat4":
        states = jnp.concatenate(list(encoded.layers[-4:]), axis=-1)[None]
    else:
        states = encoded.layers[:1] if depth == 0 else encoded.layers
    if tokens == "all":
        return jnp.moveaxis(states, 0, 2).astype(jnp.float32)
    spans = batch["spans"]
    begin, end = spans[:, :, 0, 0], spans[:, :, 0, 1]
    match tokens:
        case "pooled":
            read = bert.pool(config, params, states[0], begin, states.dtype)[None]
        case "first":
            read = _at(states, begin)
        case "first_last":
            read = jnp.concatenate([_at(states, begin), _at(states, end - 1)], axis=-1)
        case _:
            read = jnp.concatenate([_mean(states, spans[:, :, k]) for k in range(spans.shape[2])], axis=-1)
    return jnp.moveaxis(read, 0, 2).astype(jnp.float32)


def join(params: Params, read: Array, layer_dropout: float, key: Array | None) -> Array:
    """[B, R, L', D'] → [B, R, D']: layers joined as the head's parameters say."""
    if "mix" in params:
        return Mix().apply({"params": params["mix"]}, read, layer_dropout, key)
    if "layer_attention" in params:
        return LayerAttention().apply({"params": params["layer_attention"]}, read)
    return read[:, :, 0]


def _at(states: Array, positions: Array) -> Array:
    """[L, B, T, D] at int32[B, R] → [L, B, R, D]."""
    return jnp.take_along_axis(states, positions[None, :, :, None], axis=2)


def _mean(states: Array, spans: Array) -> Array:
    """[L, B, T, D] over int32[B, R, 2] → [L, B, R, D]."""
    places = jnp.arange(states.shape[2])[None, None]
    inside = (places >= spans[..., :1]) & (places < spans[..., 1:])
    sums = jnp.einsum("brt,lbtd->lbrd", inside.astype(states.dtype), states, precision="highest")
    return sums / jnp.maximum(inside.sum(-1), 1)[None, ..., None]
