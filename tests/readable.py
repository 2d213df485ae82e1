"""A model small enough to read, for what goes out and comes in: weights loud enough to tell a transpose."""

from __future__ import annotations

import jax
import numpy as np

from bert_jax.config import BertConfig
from bert_jax.model import bert
from bert_jax.text.tokenizer import Tokenizer, from_vocab

WORDS = "the capital of france germany is paris berlin . , [ ] ! a number object return 今 天 자연".split()
LETTERS = [c for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for c in (letter, f"##{letter}")]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS + LETTERS)]


def readable_tokenizer() -> Tokenizer:
    return from_vocab(PIECES, lowercase=True)


def readable_config() -> BertConfig:
    """Every size another, so that no two axes can be taken for each other."""
    return BertConfig(vocab_size=len(PIECES), width=24, layers=3, heads=4, feed_forward=40, positions=48)


def readable_params(config: BertConfig) -> dict:
    """Normals of std 0.2, scales around 1; NumPy, so that nothing is compiled."""
    rng = np.random.default_rng(3)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return (rng.normal(0, 0.2, leaf.shape) + (path[-1].key == "scale")).astype(np.float32)

    shapes = jax.eval_shape(lambda: bert.init(config, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(draw, shapes)
