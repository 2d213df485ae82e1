"""The pretraining loss, and every metric as a sum with its weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bert_jax.config import BertConfig, Execution
from bert_jax.model import bert

Batch = dict[str, Array]
Totals = dict[str, Array]
Metrics = dict[str, tuple[Array, Array]]
LossFn = Callable[[Any, Batch, Array | None, Totals], tuple[Array, Metrics]]


def weigh(batch: Batch) -> Totals:
    """What each term of the loss is divided by, from labels alone: predictions and labelled pairs."""
    return {
        "masked_lm": jnp.sum(batch["mlm_weights"]),
        "next_sentence": jnp.sum(batch["nsp_weights"]),
    }


def make_pretraining_loss(config: BertConfig, execution: Execution) -> LossFn:
    """Masked LM + next sentence (Devlin et al. 2018, section 3.1), each a mean over its own weights.

    The returned function takes (params, batch, key, totals) and divides by `totals`, which the caller has summed
    over the whole global batch. So the losses and gradients of pieces add up to those of the batch, however uneven
    the pieces are.
    """

    def loss(params: Any, batch: Batch, key: Array | None, totals: Totals) -> tuple[Array, Metrics]:
        out = bert.apply(config, params, batch, key=key, execution=execution)
        metrics: Metrics = {}
        scalar = jnp.zeros((), jnp.float32)
        for term, logits, labels, weights in (
            ("masked_lm", out.mlm_logits, batch["mlm_labels"], batch["mlm_weights"]),
            ("next_sentence", out.nsp_logits, batch["nsp_labels"], batch["nsp_weights"]),
        ):
            entropy, correct = cross_entropy(logits, labels)
            total, weight = jnp.sum(entropy * weights), jnp.sum(weights)
            scalar += total / jnp.maximum(totals[term], 1.0)
            metrics[f"{term}_loss"] = (total, weight)
            metrics[f"{term}_accuracy"] = (jnp.sum(correct * weights), weight)
        return scalar, metrics

    return loss


def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """float32[..., K] and int32[...] → −log softmax at the label in nats, and 1.0 where the label is the argmax."""
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    normalizer = jnp.log(jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1)) + highest
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return normalizer - chosen, (chosen >= highest).astype(jnp.float32)
