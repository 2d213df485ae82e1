"""Native transformers files, as files: whole or not there, and read back strictly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_jax.config import BertConfig
from bert_jax.convert import huggingface
from bert_jax.convert.families import BERT, FAMILIES, Kind
from bert_jax.convert.loaded import Loaded
from bert_jax.errors import UserError
from bert_jax.text.tokenizer import Tokenizer, from_vocab


@pytest.mark.parametrize("kind", BERT.kinds, ids=lambda kind: kind.name)
def test_what_is_written_is_read_back_equal(
    kind: Kind, tmp_path: Path, config: BertConfig, params: dict, tokenizer: Tokenizer
) -> None:
    config = dataclasses.replace(config, activation="gelu_tanh", hidden_dropout=0.05, norm_epsilon=1e-7)
    assert huggingface.write(tmp_path / "out", Loaded(config, params, tokenizer), kind=kind.name) == kind
    read = huggingface.read(tmp_path / "out")
    assert (read.config, read.architecture) == (config, kind.architecture)
    assert tuple(read.params) == kind.parts
    jax.tree.map(np.testing.assert_array_equal, read.params, {part: params[part] for part in kind.parts})
    assert read.tokenizer.fingerprint == tokenizer.fingerprint
    limits = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert limits["model_max_length"] == config.positions


def test_every_field_of_the_config_is_written_but_what_only_begins_a_training() -> None:
    for family in FAMILIES:
        written = {field for field, _, _ in family.fields} | family.constants.keys()
        left = {field.name for field in dataclasses.fields(BertConfig)} - written
        # how many classes there are follows from their names in config.json
        assert left == {"position_init", "relations", "vocab_multiple", "classes"}, family.model_type


def test_an_earlier_export_is_replaced_only_with_force_and_anything_else_never(
    exported: Path, config: BertConfig, params: dict, tokenizer: Tokenizer
) -> None:
    before = (exported / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists already.*--force"):
        huggingface.write(exported, Loaded(config, params, tokenizer))
    assert (exported / "model.safetensors").read_bytes() == before
    (exported / "proof.json").write_text("of the earlier weights")
    huggingface.write(exported, Loaded(config, params, tokenizer), kind="encoder", force=True)
    assert (exported / "model.safetensors").read_bytes() != before
    assert not (exported / "proof.json").exists()
    precious = exported.parent / "thesis"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no earlier export"):
        huggingface.write(precious, Loaded(config, params, tokenizer), force=True)
    assert (precious / "thesis.tex").read_text() == "years of work"
    assert sorted(p.name for p in exported.parent.iterdir()) == ["export", "thesis"]


def test_a_failure_in_the_middle_leaves_the_earlier_export_and_no_rubbish(
    exported: Path, config: BertConfig, params: dict, tokenizer: Tokenizer
) -> None:
    before = {p.name: p.read_bytes() for p in exported.iterdir()}
    with pytest.raises(UserError, match="cannot be written"):
        extra = {"no/such/folder/note.txt": "text"}  # fails after weights and tokenizer are written
        huggingface.write(exported, Loaded(config, params, tokenizer), force=True, extra=extra)
    assert {p.name: p.read_bytes() for p in exported.iterdir()} == before
    assert [p.name for p in exported.parent.iterdir()] == ["export"]


def test_others_may_read_what_the_umask_lets_them(exported: Path) -> None:
    plain = exported.parent / "plain"
    plain.touch()
    modes = {path.name: path.stat().st_mode for path in exported.iterdir()}
    assert set(modes.values()) == {plain.stat().st_mode}
    plain.unlink()
    plain.mkdir()
    assert exported.stat().st_mode == plain.stat().st_mode


def test_a_head_of_three_relations_stays_behind(
    tmp_path: Path, config: BertConfig, params: dict, tokenizer: Tokenizer
) -> None:
    """transformers' BertForPreTraining knows two; the parts that it shares with other classes can go."""
    three = dataclasses.replace(config, relations=3)
    head = {"kernel": np.zeros((config.width, 3), np.float32), "bias": np.zeros(3, np.float32)}
    wider = {**params, "next_sentence": head}
    with pytest.raises(UserError, match="two relations of segments apart, this model 3; export it as masked-lm or enc"):
        huggingface.write(tmp_path / "out", Loaded(three, wider, tokenizer))
    assert not list(tmp_path.iterdir())
    for kind in ("masked-lm", "encoder"):
        written = huggingface.write(tmp_path / kind, Loaded(three, wider, tokenizer), kind=kind)
        read = huggingface.read(tmp_path / kind).params
        jax.tree.map(np.testing.assert_array_equal, read, {part: params[part] for part in written.parts})


def test_a_tokenizer_larger_than_the_word_table_is_refused(
    tmp_path: Path, config: BertConfig, params: dict, tokenizer: Tokenizer
) -> None:
    larger = from_vocab([*tokenizer.pieces, "word"])
    with pytest.raises(UserError, match=f"{larger.vocab_size} pieces, the word table {config.vocab_size} rows"):
        huggingface.write(tmp_path / "out", Loaded(config, params, larger))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type = 'roberta' is not read"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"hidden_act": "relu"}, "activation 'relu' is not read"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "24"}, "hidden_size = '24' is no int"),
        ({"num_attention_heads": 5}, "does not divide into 5 heads"),
        ({"num_hidden_layers": 2}, "layer.2.* are not in the table|not in the table of this architecture"),
        ({"vocab_size": 10}, "word_embeddings.weight has shape|predictions.bias has shape"),
    ],
)
def test_a_config_that_is_not_ours_or_not_the_weights_is_refused(change: dict, message: str, exported: Path) -> None:
    path = exported / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        huggingface.read(exported)


def test_missing_and_truncated_files_are_named(exported: Path) -> None:
    weights = exported / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="model.safetensors: not a whole safetensors file"):
        huggingface.read(exported)
    weights.unlink()
    with pytest.raises(UserError, match="there is no model.safetensors"):
        huggingface.read(exported)
    (exported / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: not JSON"):
        huggingface.read(exported)
    (exported / "config.json").unlink()
    with pytest.raises(UserError, match="there is no config.json"):
        huggingface.read(exported)


def test_half_precision_weights_are_widened_exactly(exported: Path) -> None:
    path = exported / "model.safetensors"
    halves = {name: tensor.astype(np.float16) for name, tensor in load_file(path).items()}
    save_file(halves, path)
    params = huggingface.read(exported).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["pooler"]["bias"], halves["bert.pooler.dense.bias"].astype(np.float32))
