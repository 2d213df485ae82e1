"""What stands on the encoder: pooler, masked LM, next sentence."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from bert_jax.config import BertConfig
from bert_jax.model.layers import activation, layer_norm, normal, zeros


class Pooler(nn.Module):
    """tanh of a dense layer over the [CLS] states."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, cls: Array) -> Array:
        """[B, S, D] → [B, S, D]."""
        c = self.config
        kernel = self.param("kernel", normal(c, "embed", None), (c.width, c.width), jnp.float32)
        bias = self.param("bias", zeros("norm"), (c.width,), jnp.float32)
        return jnp.tanh(cls.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype))


class MaskedLM(nn.Module):
    """Dense, GELU, norm, then the word table transposed and a bias per piece (google-research/bert,
    `get_masked_lm_output`). Runs on the chosen positions only: the vocabulary is the widest product of all."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, chosen: Array, word: Array) -> Array:
        """Hidden states [B, P, D] and the table float32[V, D] → logits float32[B, P, V]."""
        c = self.config
        x = nn.Dense(
            c.width,
            dtype=self.dtype,
            kernel_init=normal(c, "embed", None),
            bias_init=zeros("norm"),
            name="transform",
        )(chosen)
        x = layer_norm(c, self.dtype)(activation(c, x))
        bias = self.param("bias", zeros("vocab"), (c.vocab_size,), jnp.float32)
        logits = jnp.einsum("bpd,vd->bpv", x, word.astype(self.dtype), preferred_element_type=jnp.float32)
        return logits + bias


class NextSentence(nn.Module):
    """Two logits over the pooled [CLS]: 0 the true next segment, 1 a random one."""

    config: BertConfig

    @nn.compact
    def __call__(self, pooled: Array) -> Array:
        """[B, S, D] → float32[B, S, 2]."""
        c = self.config
        kernel = self.param("kernel", normal(c, "embed", None), (c.width, 2), jnp.float32)
        bias = self.param("bias", zeros(None), (2,), jnp.float32)
        return pooled.astype(jnp.float32) @ kernel + bias
