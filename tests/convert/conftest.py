from __future__ import annotations

from pathlib import Path

import pytest

from bert_jax.config import BertConfig
from bert_jax.convert import huggingface
from bert_jax.convert.loaded import Loaded
from bert_jax.text.tokenizer import Tokenizer
from tests.readable import readable_config, readable_params, readable_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return readable_tokenizer()


@pytest.fixture(scope="session")
def config() -> BertConfig:
    return readable_config()


@pytest.fixture(scope="session")
def params(config: BertConfig) -> dict:
    return readable_params(config)


@pytest.fixture
def exported(tmp_path: Path, config: BertConfig, params: dict, tokenizer: Tokenizer) -> Path:
    huggingface.write(tmp_path / "export", Loaded(config, params, tokenizer))
    return tmp_path / "export"
