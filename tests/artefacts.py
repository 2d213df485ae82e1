"""A small model of every class that an artefact can be of, every size another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bert_jax.convert.loaded import Loaded
from tests.readable import readable_config, readable_params, readable_tokenizer

ENCODER = ("embeddings", "layers")
# Class → its parts, and how its network differs from the readable one.
CLASSES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "BertForPreTraining": ((*ENCODER, "pooler", "masked_lm", "next_sentence"), {"relations": 3}),
    "BertForMaskedLM": ((*ENCODER, "masked_lm"), {"activation": "gelu_tanh", "norm_epsilon": 1e-3}),
    "BertModel": ((*ENCODER, "pooler"), {}),
    "AlbertForPreTraining": (
        (*ENCODER, "pooler", "masked_lm", "next_sentence"),
        {"embedding": 12, "layers": 4, "groups": 2, "activation": "gelu_tanh"},
    ),
    "ElectraForPreTraining": ((*ENCODER, "replaced_token"), {"embedding": 12}),
    "ElectraForMaskedLM": ((*ENCODER, "masked_lm"), {"embedding": 12}),
    "DistilBertForMaskedLM": ((*ENCODER, "masked_lm"), {"segments": 0}),
    "DistilBertModel": (ENCODER, {"segments": 0}),
}


def a_model(architecture: str, **changes: Any) -> Loaded:
    """A model of this class with loud weights."""
    parts, differs = CLASSES[architecture]
    config = replace(readable_config(), **{**differs, **changes})
    rng = np.random.default_rng(4)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.2, shape).astype(np.float32)

    width = config.width
    head = {"transform": {"kernel": draw(width, width), "bias": draw(width)}}
    head["output"] = {"kernel": draw(width, 1), "bias": draw(1)}
    params = {**readable_params(config), "replaced_token": head}
    return Loaded(config, {part: params[part] for part in parts}, readable_tokenizer(), architecture)
