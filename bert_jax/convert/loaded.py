"""A model between two formats: what every reader returns and every writer takes."""

from __future__ import annotations

from dataclasses import dataclass

from bert_jax.config import BertConfig
from bert_jax.convert.names import Params
from bert_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pooling:
    """How a sentence-transformers directory makes one vector of a text: `mode` over the last layer's tokens, then
    perhaps length 1. `length` is the most tokens that it reads (None: the position table's)."""

    mode: str = "mean"
    normalize: bool = False
    length: int | None = None


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
    """

    config: BertConfig
    params: Params
    tokenizer: Tokenizer
    architecture: str = "BertForPreTraining"
    pooling: Pooling | None = None
    step: int | None = None
    notes: tuple[str, ...] = ()
