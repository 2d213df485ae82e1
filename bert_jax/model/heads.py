"""What stands on the encoder: pooler, masked LM, next sentence, replaced tokens."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from bert_jax.config import BertConfig
from bert_jax.model.layers import Product, activation, layer_norm, multiply, zeros

# A logit that is never chosen: exp(NEVER − any other) is 0 in float32, and nothing on the way overflows.
NEVER = -1e9


def pooler(config: BertConfig, dtype: Any) -> Product:
    """The dense layer over the [CLS] states, whose tanh is the pooled output: [B, S, D] → [B, S, D]."""
    kernel = (("embed", config.width), (None, config.width))
    return Product(config, dtype, kernel, ("norm",))


def next_sentence(config: BertConfig) -> Product:
    """R logits over the pooled [CLS], one a relation: [B, S, D] → float32[B, S, R].

    Of two, 0 is the true next segment and 1 is not; of three, they are next, previous and random.
    """
    return Product(config, jnp.float32, (("embed", config.width), (None, config.relations)), (None,))


class MaskedLM(nn.Module):
    """Dense, GELU, norm, then the word table transposed and a bias per piece (google-research/bert,
    `get_masked_lm_output`). Runs on the chosen positions only: the vocabulary is the widest product of all.
    With factorised embeddings the dense layer goes down to the table's width E (ALBERT)."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, chosen: Array, word: Array) -> Array:
        """Hidden states [B, P, D] and the table float32[V, E] → logits float32[B, P, V].

        V is `vocab_rows` here. The logits of rows that stand for no piece are so low that softmax gives them exactly 0,
        and so their gradients are.
        """
        c = self.config
        kernel = (("embed", c.width), (None, c.embedding_width))
        x = Product(c, self.dtype, kernel, ("norm",), name="transform")(chosen)
        x = layer_norm(c, self.dtype)(activation(c, x))
        bias = self.param("bias", zeros("vocab"), (c.vocab_rows,), jnp.float32)
        if c.vocab_rows > c.vocab_size:  # here, where a bias is added anyway, it costs no pass over the logits
            bias = jnp.where(jnp.arange(c.vocab_rows) < c.vocab_size, bias, NEVER)
        logits: Array = multiply(x.reshape(-1, c.embedding_width), word.T, self.dtype, jnp.float32)
        logits = logits + bias[None]
        return logits.reshape(*chosen.shape[:2], -1)


class ReplacedToken(nn.Module):
    """Was this token put here by a generator? Dense, GELU, one logit a token (Clark et al. 2020, ELECTRA)."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        """[B, T, D] → logits float32[B, T], above 0 for "replaced"."""
        c = self.config
        transform = Product(c, self.dtype, (("embed", c.width), (None, c.width)), ("norm",), name="transform")
        output = Product(c, jnp.float32, (("embed", c.width), (None, 1)), (None,), name="output")
        return output(activation(c, transform(hidden)))[..., 0]
