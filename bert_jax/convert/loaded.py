"""A model between two formats: what every reader returns and every writer takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bert_jax.config import BertConfig
from bert_jax.convert.names import Params
from bert_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Dense:
    """A product after pooling: `kernel` float32[D, E], `bias` float32[E] or none, `activation` "identity" or "tanh"."""

    kernel: np.ndarray
    bias: np.ndarray | None = None
    activation: Literal["identity", "tanh"] = "identity"

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """float32[n, D] → float32[n, E]."""
        out = vectors @ self.kernel
        out = out if self.bias is None else out + self.bias
        return np.tanh(out) if self.activation == "tanh" else out


@dataclass(frozen=True)
class Pooling:
    """How a sentence-transformers directory makes one vector of a text.

    Attributes:
        mode: over the last layer's tokens, with [CLS] and [SEP].
        dense: products after it, in their order.
        normalize: scale the result to length 1.
        length: the most tokens that it reads, with [CLS] and [SEP] (None: the position table's).
    """

    mode: Literal["cls", "mean", "max"] = "mean"
    normalize: bool = False
    length: int | None = None
    dense: tuple[Dense, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """A network with its weights and its tokenizer.

    Attributes:
        config: its shape.
        params: float32 arrays in the tree of `bert_jax.model.bert.init`, of the parts alone that it has.
        tokenizer: what turns text into ids.
        architecture: the transformers class whose files it came from, or goes out as where nothing else is asked for.
        pooling: of a sentence-transformers directory.
        step: of a run's checkpoint.
        notes: what was left out or changed on reading, a sentence each.
        labels: names of the outputs of a fine-tuned head, where one is among the params (`config.classes` then says how
            many it has).
        multi_label: whether each of these is given or not by itself.
    """

    config: BertConfig
    params: Params
    tokenizer: Tokenizer
    architecture: str = "BertForPreTraining"
    pooling: Pooling | None = None
    step: int | None = None
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    multi_label: bool = False
