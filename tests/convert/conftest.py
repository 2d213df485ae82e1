"""A model small enough to read, with weights loud enough to tell a transpose."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax.config import BertConfig
from bert_jax.convert import huggingface
from bert_jax.text.tokenizer import Tokenizer, from_vocab

WORDS = "the capital of france germany is paris berlin . , [ ] ! a number object return new 今 天 자연".split()
LETTERS = [c for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for c in (letter, f"##{letter}")]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS + LETTERS)]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return from_vocab(PIECES, lowercase=True)


@pytest.fixture(scope="session")
def config(tokenizer: Tokenizer) -> BertConfig:
    # every size another, so that no two axes can be taken for each other
    return BertConfig(vocab_size=len(PIECES), width=24, layers=3, heads=4, feed_forward=40, positions=48)


@pytest.fixture(scope="session")
def params(config: BertConfig) -> dict:
    from bert_jax.model import bert
    from tests.conftest import louder

    return jax.tree.map(np.asarray, louder(bert.init(config, jax.random.key(3))))


@pytest.fixture
def exported(tmp_path: Path, config: BertConfig, params: dict, tokenizer: Tokenizer) -> Path:
    huggingface.write(tmp_path / "export", config, params, tokenizer)
    return tmp_path / "export"
