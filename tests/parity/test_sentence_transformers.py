"""sentence-transformers itself: it reads what is written here, and what it writes is read here, to the same vectors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.parity.foreign import torch  # first: skips where they are missing

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
except ImportError as error:
    if os.environ.get("BERT_JAX_REQUIRE_PARITY") == "1":
        raise
    pytest.skip(f"{error.name} is not installed", allow_module_level=True)

from bert_jax.api import Model, load, open_model  # isort: skip
from bert_jax.convert import sentence_transformers  # isort: skip
from bert_jax.convert.loaded import Dense, Loaded, Pooling
from bert_jax.convert.proof import TEXTS as SENTENCES
from tests.parity.test_families import CONFIGS, foreign
from tests.readable import readable_config, readable_params, readable_tokenizer

TEXTS = [*SENTENCES, "", "a " * 60, "the capital of france is paris ."]


def theirs(folder: Path) -> np.ndarray:
    model = SentenceTransformer(str(folder), device="cpu")
    return np.asarray(model.encode(list(TEXTS), convert_to_numpy=True, show_progress_bar=False))


@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
def test_they_read_what_is_written_here(mode: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dense = Dense(rng.normal(0, 0.3, (24, 10)).astype(np.float32), np.ones(10, np.float32), "tanh")
    pooling = Pooling(mode, normalize=mode != "max", length=20, dense=(dense,) * (mode != "cls"))  # pyright: ignore
    parts = Loaded(readable_config(), readable_params(readable_config()), readable_tokenizer())
    sentence_transformers.write(tmp_path / "ours", parts, pooling)
    np.testing.assert_allclose(load(tmp_path / "ours").encode(TEXTS), theirs(tmp_path / "ours"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "albert", "electra", "distilbert"])
def test_what_they_write_is_read_here_and_goes_out_again(family: str, tmp_path: Path) -> None:
    architecture = {"bert": "Bert", "albert": "Albert", "electra": "Electra", "distilbert": "DistilBert"}[family]
    root = foreign(tmp_path / "root", CONFIGS[family], f"{architecture}Model")
    layers = [
        modules.Transformer(str(root), max_seq_length=20),
        modules.Pooling(24, pooling_mode="mean"),
        modules.Dense(24, 10, activation_function=torch.nn.Tanh()),
        modules.Normalize(),
    ]
    SentenceTransformer(modules=layers, device="cpu").save(str(tmp_path / "theirs"), create_model_card=False)
    read = open_model(tmp_path / "theirs")
    assert read.pooling is not None and (read.pooling.length, read.pooling.normalize) == (20, True)
    vectors = theirs(tmp_path / "theirs")
    np.testing.assert_allclose(Model.of(read).encode(TEXTS), vectors, rtol=0, atol=1e-5)
    sentence_transformers.write(tmp_path / "again", read)
    np.testing.assert_allclose(theirs(tmp_path / "again"), vectors, rtol=0, atol=1e-6)


def test_a_dense_layer_in_torch_s_own_file_is_read(tmp_path: Path) -> None:
    parts = Loaded(readable_config(), readable_params(readable_config()), readable_tokenizer())
    dense = Dense(np.eye(24, 10, dtype=np.float32), np.arange(10, dtype=np.float32))
    sentence_transformers.write(tmp_path / "out", parts, Pooling(dense=(dense,)))
    folder = tmp_path / "out" / "2_Dense"
    (folder / "model.safetensors").unlink()
    weights = {"linear.weight": torch.tensor(dense.kernel.T.copy()), "linear.bias": torch.tensor(dense.bias)}
    torch.save(weights, folder / "pytorch_model.bin")
    np.testing.assert_allclose(load(tmp_path / "out").encode(TEXTS), theirs(tmp_path / "out"), rtol=0, atol=1e-5)
