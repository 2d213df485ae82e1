"""Self-attention inside sequences: the paths, and how one is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bert_jax.config import Execution
from bert_jax.model.dropout import dropout

# (query, key, value [B, T, N, H], mask, dropout rate, dropout key) → context [B, T, N, H]
Attend = Callable[[Array, Array, Array, Any, float, Array | None], Array]


class Path(NamedTuple):
    """One way to attend. `prepare` turns sequence ids int32[B, T] into the mask that `attend` takes, whatever that is
    on this path: once a step, not once a layer."""

    prepare: Callable[[Array], Any]
    attend: Attend


def path(execution: Execution) -> Path:
    """The path that `execution.attention` names."""
    return Path(attention_bias, attend_xla)


def attention_bias(sequence_ids: Array) -> Array:
    """What to add to the scores so that a token sees its own sequence only.

    Padding (id 0) sees padding, so that no row of scores is without a target.

    Args:
        sequence_ids: int32[B, T], 0 for padding, 1.. for the sequences packed into a row.

    Returns:
        float32[B, 1, T, T]: 0 where the two tokens belong together, a large negative number elsewhere.
    """
    same = sequence_ids[:, :, None] == sequence_ids[:, None, :]
    return jnp.where(same, 0.0, jnp.finfo(jnp.float32).min / 2)[:, None]


def attend_xla(query: Array, key: Array, value: Array, bias: Array, rate: float, dropout_key: Array | None) -> Array:
    """softmax(QKᵀ / √H + bias) V, with dropout on the probabilities (Devlin et al. 2018, appendix A.2).

    Scores and softmax are float32 whatever the operands are.

    Args:
        query, key, value: [B, T, N, H].
        bias: float32[B, 1, T, T] from `attention_bias`.
        rate, dropout_key: as in `dropout`.

    Returns:
        [B, T, N, H] in the dtype of `value`.
    """
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("btnh,bsnh->bnts", query * scale, key, preferred_element_type=jnp.float32)
    probabilities = jax.nn.softmax(scores + bias, axis=-1).astype(value.dtype)
    return jnp.einsum("bnts,bsnh->btnh", dropout(probabilities, rate, dropout_key), value)
