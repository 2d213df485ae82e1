"""ALBERT, ELECTRA and DistilBERT as transformers has them: in, the same numbers, out bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity.foreign import torch, transformers  # first: skips where they are missing

from bert_jax.convert import huggingface, native  # isort: skip
from bert_jax.convert.families import FAMILIES, family_of
from bert_jax.convert.names import flatten
from bert_jax.convert.proof import TEXTS, prove
from bert_jax.text.tokenizer import Tokenizer
from tests.readable import readable_tokenizer

V = readable_tokenizer().vocab_size
SIZES = {"vocab_size": V, "max_position_embeddings": 48}
BERT_LIKE = SIZES | {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
CONFIGS = {
    "bert": transformers.BertConfig(**BERT_LIKE),
    "bert, one segment": transformers.BertConfig(**BERT_LIKE, type_vocab_size=1),
    "albert": transformers.AlbertConfig(**BERT_LIKE, embedding_size=12, num_hidden_groups=1),
    "albert, two groups, E as wide as D": transformers.AlbertConfig(
        **(BERT_LIKE | {"num_hidden_layers": 4}), embedding_size=24, num_hidden_groups=2
    ),
    "electra": transformers.ElectraConfig(**BERT_LIKE, embedding_size=12),
    "electra, E as wide as D": transformers.ElectraConfig(**BERT_LIKE, embedding_size=24),
    "distilbert": transformers.DistilBertConfig(**SIZES, dim=24, n_layers=3, n_heads=4, hidden_dim=40),
}
CASES = [
    pytest.param(config, kind.architecture, id=f"{name} {kind.name}")
    for name, config in CONFIGS.items()
    for family in FAMILIES
    if family.model_type == config.model_type
    for kind in family.kinds
]


def foreign(folder: Path, config: object, architecture: str, seed: int = 0) -> Path:
    """A directory of loud random weights that transformers wrote."""
    model = getattr(transformers, architecture)(config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            loud = torch.randn(parameter.shape, generator=draw) * 0.2
            parameter.copy_(loud if parameter.ndim > 1 else loud + (parameter == 1))
    model.save_pretrained(folder)
    readable_tokenizer().save(folder)
    return folder


@pytest.mark.parametrize(("config", "architecture"), CASES)
def test_in_the_same_numbers_and_out_bit_for_bit(config: object, architecture: str, tmp_path: Path) -> None:
    theirs = foreign(tmp_path / "theirs", config, architecture)
    loaded = huggingface.read(theirs)
    assert loaded.architecture == architecture and not loaded.notes
    kind = huggingface.write(tmp_path / "ours", loaded)
    assert kind.architecture == architecture
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.tobytes() == after[name].tobytes(), name
    proof = prove(tmp_path / "ours", loaded, kind, TEXTS[:3])
    assert proof.passed, proof
    assert {*kind.parts} - {"embeddings", "layers"} - {"pooler"} <= proof.worst.keys()


@pytest.mark.parametrize(("config", "architecture"), CASES)
def test_a_directory_of_ours_holds_all_of_it(config: object, architecture: str, tmp_path: Path) -> None:
    loaded = huggingface.read(foreign(tmp_path / "theirs", config, architecture))
    native.write(tmp_path / "ours", loaded, provenance={"source": "a test"})
    again = native.read(tmp_path / "ours")
    assert (again.config, again.architecture) == (loaded.config, architecture)
    leaves = [dict(flatten(tree)) for tree in (loaded.params, again.params)]
    assert leaves[0].keys() == leaves[1].keys()
    for path, leaf in leaves[0].items():
        np.testing.assert_array_equal(leaf, leaves[1][path])
    assert isinstance(again.tokenizer, Tokenizer) and again.tokenizer.fingerprint == loaded.tokenizer.fingerprint


def test_names_of_other_years_are_read_as_todays(tmp_path: Path) -> None:
    """gamma and beta, position numbers, a second copy of the tied weights, no prefix: what is on the hub."""
    theirs = foreign(tmp_path / "theirs", CONFIGS["bert"], "BertForPreTraining")
    tensors = load_file(theirs / "model.safetensors")
    family = family_of("BertForPreTraining")
    expected = huggingface.read(theirs)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    old["bert.embeddings.position_ids"] = np.arange(48)[None]
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    params = huggingface.from_tensors(old, expected.config, family, "here")
    assert dict(flatten(params)).keys() == dict(flatten(expected.params)).keys()
    bare = {name.removeprefix("bert."): tensor for name, tensor in old.items() if name.startswith("bert.")}
    params = huggingface.from_tensors(bare, expected.config, family, "here")
    assert set(params) == {"embeddings", "layers", "pooler"}
    np.testing.assert_array_equal(params["pooler"]["bias"], expected.params["pooler"]["bias"])
