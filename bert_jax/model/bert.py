"""BERT as three functions of its parameters: `init`, `axes`, `apply`.

The modules of `layers.py` and `heads.py` are the parts; how they are joined stands here in plain functions, so that
layers can be looped over or unrolled on one and the same parameter tree, stacked on a leading layer axis.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from bert_jax.config import BertConfig, Execution
from bert_jax.model import attention
from bert_jax.model.heads import MaskedLM, ReplacedToken, next_sentence, pooler
from bert_jax.model.layers import SAVED, Embeddings, Layer

Params = dict[str, Any]
Batch = dict[str, Array]


class Encoded(NamedTuple):
    """`hidden` [B, T, D] after the last layer; `layers` [L+1, B, T, D] from the embeddings on, if asked for."""

    hidden: Array
    layers: Array | None


class Outputs(NamedTuple):
    """`hidden` [B, T, D]; `pooled` [B, S, D]; `mlm_logits` float32[B, P, V]; `nsp_logits` float32[B, S, R]."""

    hidden: Array
    pooled: Array
    mlm_logits: Array
    nsp_logits: Array


# ---------------------------------------------------------------------------------------------- parameters


def _boxed_init(config: BertConfig, key: Array) -> Params:
    """Parameters in boxes that carry the logical names of their axes."""
    dtype = jnp.float32
    keys = jax.random.split(key, 5)
    ids = jnp.zeros((1, 1), jnp.int32)
    x = jnp.zeros((1, 1, config.width), dtype)
    word = jnp.zeros((config.vocab_rows, config.embedding_width), dtype)
    layer = Layer(config, dtype, attention.attend_xla)
    mask = attention.attention_bias(ids)
    stack = jax.vmap(lambda k: layer.init(k, x, mask, None))(jax.random.split(keys[1], config.distinct_layers))
    trees = {
        "embeddings": Embeddings(config, dtype).init(keys[0], ids, ids, ids, None),
        "layers": nn.meta.add_axis(stack, 0, {nn.PARTITION_NAME: "layers"}),
        "pooler": pooler(config, dtype).init(keys[2], x),
        "masked_lm": MaskedLM(config, dtype).init(keys[3], x, word),
        "next_sentence": next_sentence(config).init(keys[4], x),
    }
    return {name: tree["params"] for name, tree in trees.items()}


def init(config: BertConfig, key: Array) -> Params:
    """Fresh parameters, float32: truncated normals of std `init_std`, norms at 1 and 0, biases at 0.

    Layers are stacked: every leaf below `layers` leads with L, or with the number of groups that share weights. Call
    it under `jax.jit` with `out_shardings` to create each shard where it belongs, or under `jax.eval_shape` for shapes
    alone.
    """
    return nn.meta.unbox(_boxed_init(config, key))


def axes(config: BertConfig) -> Params:
    """The logical axis names of every leaf, as `jax.sharding.PartitionSpec`s of names, in the tree of `init`."""
    boxed = jax.eval_shape(partial(_boxed_init, config), jax.random.key(0))
    return nn.get_partition_spec(boxed)


def unpadded(config: BertConfig, params: Params) -> tuple[BertConfig, Params]:
    """The same network without rows of the vocabulary that stand for no piece: what leaves training.

    Args:
        params: arrays of any kind in the tree of `init`, or the parts of it that there are.
    """
    size, cut = config.vocab_size, dict(params)
    for part, name in (("embeddings", "word"), ("masked_lm", "bias")):
        if name in cut.get(part, {}):
            cut[part] = {**cut[part], name: cut[part][name][:size]}
    return replace(config, vocab_multiple=1), cut


# -------------------------------------------------------------------------------------------------- forward


def encode(
    config: BertConfig,
    params: Params,
    batch: Batch,
    *,
    key: Array | None = None,
    execution: Execution = Execution(),
    all_layers: bool = False,
    depth: int | None = None,
    shift: Array | None = None,
) -> Encoded:
    """The encoder alone.

    Args:
        batch: `input_ids`, `segment_ids`, `position_ids`, `sequence_ids`, each int32[B, T]; a token attends where
            sequence ids are equal, 0 is padding. Ids must be below the tables' sizes: JAX clamps without a word.
        key: for dropout; `None` switches it off.
        execution: how to compute, see `bert_jax.config.Execution`.
        all_layers: return every layer's states, the embeddings first.
        depth: compute the first so many layers only; all if not given.
        shift: [B, T, D], added to the embeddings, as adversarial training does.
    """
    depth = config.layers if depth is None else depth
    dtype = jnp.dtype(execution.dtype)
    embedding_key, layers_key = (None, None) if key is None else jax.random.split(key)
    x = Embeddings(config, dtype).apply(
        {"params": params["embeddings"]},
        batch["input_ids"],
        batch["position_ids"],
        batch["segment_ids"],
        embedding_key,
    )
    if shift is not None:
        x = jnp.add(x, shift.astype(dtype))
    x = nn.with_logical_constraint(x, ("batch", None, None))
    path = attention.path(execution)
    mask = path.prepare(batch["sequence_ids"])
    module = Layer(config, dtype, path.attend)

    def layer(x: Array, weights: Params, number: Array | int) -> Array:
        layer_key = None if layers_key is None else jax.random.fold_in(layers_key, number)
        return module.apply({"params": weights}, x, mask, layer_key)

    loops = scanned(config, execution)
    if execution.remat != "none":
        kept = SAVED if execution.remat == "names" else ()
        policy = jax.checkpoint_policies.save_only_these_names(*kept)
        layer = jax.checkpoint(layer, prevent_cse=not loops, policy=policy)

    if loops:

        def body(x: Array, place: tuple[Params | None, Array]) -> tuple[Array, Array | None]:
            weights, number = place
            if weights is None:
                weights = jax.tree.map(lambda leaf: jnp.asarray(leaf)[_group(config, number)], params["layers"])
            y = layer(x, weights, number)
            return y, y if all_layers else None

        own = params["layers"]
        if config.groups:
            own = None
        elif depth < config.layers:
            own = jax.tree.map(lambda leaf: leaf[:depth], own)
        first = x
        x, states = lax.scan(body, x, (own, jnp.arange(depth)))
        return Encoded(x, jnp.concatenate([first[None], states]) if all_layers else None)

    states = [x]
    stack = _unstack(params["layers"], config.distinct_layers)
    for number in range(depth):
        states.append(layer(states[-1], stack[_group(config, number)], number))
    return Encoded(states[-1], jnp.stack(states) if all_layers else None)


def _group(config: BertConfig, number: Any) -> Any:
    """Which of the distinct layers stands at place `number`."""
    return number // (config.layers // config.distinct_layers)


def scanned(config: BertConfig, execution: Execution) -> bool:
    """Whether layers are looped over rather than unrolled.

    Unrolled is faster on a CPU and on a GPU, where a loop copies each layer's weights and stacks what the backward pass
    needs. On a TPU a loop costs nothing, and compiling many layers does.
    """
    if execution.scan == "auto":
        return jax.default_backend() == "tpu" or config.layers > 24
    return execution.scan == "on"


def apply(
    config: BertConfig,
    params: Params,
    batch: Batch,
    *,
    key: Array | None = None,
    execution: Execution = Execution(),
) -> Outputs:
    """Encoder and pretraining heads.

    Args:
        batch: what `encode` takes, and `mlm_positions` int32[B, P], `cls_positions` int32[B, S].
        key, execution: as in `encode`.
    """
    dtype = jnp.dtype(execution.dtype)
    hidden = encode(config, params, batch, key=key, execution=execution).hidden
    pooled = pool(config, params, hidden, batch["cls_positions"], dtype)
    logits = predict(config, params, hidden, batch["mlm_positions"], dtype)
    return Outputs(hidden, pooled, logits, relate(config, params, pooled))


def pool(config: BertConfig, params: Params, hidden: Array, positions: Array, dtype: Any = jnp.float32) -> Array:
    """The pooler's output [B, S, D] for the states at int32[B, S]."""
    return jnp.tanh(pooler(config, dtype).apply({"params": params["pooler"]}, _at(hidden, positions)))


def relate(config: BertConfig, params: Params, pooled: Array) -> Array:
    """Next-sentence logits float32[B, S, R] for pooled states [B, S, D]."""
    return next_sentence(config).apply({"params": params["next_sentence"]}, pooled)


def predict(config: BertConfig, params: Params, hidden: Array, positions: Array, dtype: Any = jnp.float32) -> Array:
    """Masked-LM logits float32[B, P, V] for the states at int32[B, P]."""
    chosen = _at(hidden, positions)
    return MaskedLM(config, dtype).apply({"params": params["masked_lm"]}, chosen, params["embeddings"]["word"])


def replaced(config: BertConfig, params: Params, hidden: Array, dtype: Any = jnp.float32) -> Array:
    """Logits float32[B, T] that a token was replaced, above 0 for yes, for the states [B, T, D]."""
    return ReplacedToken(config, dtype).apply({"params": params["replaced_token"]}, hidden)


def _at(hidden: Array, positions: Array) -> Array:
    """[B, T, D] at int32[B, P] → [B, P, D]."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)


def _unstack(tree: Params, length: int) -> list[Params]:
    """A tree with leading axis L as L trees. A split's gradient is one concatenation, where indexing layer by layer
    would add L arrays of the whole stack."""
    leaves, structure = jax.tree.flatten(tree)
    parts = [[part[0] for part in jnp.split(leaf, length)] for leaf in leaves]
    return [jax.tree.unflatten(structure, column) for column in zip(*parts, strict=True)]
