"""What transformers says of the files that we write, and we of those that it writes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity.foreign import torch, transformers  # first: skips where they are missing

from bert_jax.convert import huggingface  # isort: skip
from bert_jax.convert.families import BERT, Kind, config_from_json, config_to_json
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.proof import demand, prove
from bert_jax.errors import UserError
from tests.readable import readable_config, readable_params, readable_tokenizer


@pytest.fixture(scope="module")
def model() -> Loaded:
    return Loaded(readable_config(), readable_params(readable_config()), readable_tokenizer())


@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        ("pretraining", "AutoModelForPreTraining"),
        ("masked-lm", "AutoModelForMaskedLM"),
        ("encoder", "AutoModel"),
    ],
)
def test_each_class_loads_with_no_key_missing_unexpected_or_new(
    kind: str, auto: str, tmp_path: Path, model: Loaded
) -> None:
    written = huggingface.write(tmp_path / "out", model, kind=kind)
    loaded, report = getattr(transformers, auto).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(loaded).__name__ == written.architecture
    assert not any(report.values()), report


def test_a_narrower_class_leaves_out_exactly_the_heads_it_lacks(tmp_path: Path, model: Loaded) -> None:
    huggingface.write(tmp_path / "out", model)
    lm_only = {"bert.pooler.dense", "cls.seq_relationship"}
    heads = {"cls.predictions", "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"}
    for auto, left_out in [
        ("AutoModelForMaskedLM", lm_only),
        ("AutoModel", heads | {"cls.seq_relationship"}),
    ]:
        _, report = getattr(transformers, auto).from_pretrained(tmp_path / "out", output_loading_info=True)
        assert {key.rpartition(".")[0] for key in report.pop("unexpected_keys")} == left_out
        assert not any(report.values()), report


def test_their_files_come_in_and_go_out_bit_identical(tmp_path: Path, model: Loaded) -> None:
    tree = config_to_json(model.config, "BertForPreTraining", pad=0)
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**tree))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    model.tokenizer.save(tmp_path / "theirs")
    read = huggingface.read(tmp_path / "theirs")
    assert (read.config, read.architecture) == (model.config, "BertForPreTraining")
    huggingface.write(tmp_path / "ours", read)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.tobytes() == after[name].tobytes(), name


def test_config_json_says_what_theirs_says(tmp_path: Path, model: Loaded) -> None:
    config = dataclasses.replace(model.config, activation="gelu_tanh", norm_epsilon=1e-7, attention_dropout=0.2)
    huggingface.write(tmp_path / "out", dataclasses.replace(model, config=config))
    loaded = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again/config.json").read_text())
    assert config_from_json(again, "again") == (config, BERT)
    for key, value in json.loads((tmp_path / "out/config.json").read_text()).items():
        assert again[key] == value


@pytest.mark.parametrize("kind", BERT.kinds, ids=lambda kind: kind.name)
def test_an_export_is_proved_with_every_layer_and_head(kind: Kind, tmp_path: Path, model: Loaded) -> None:
    huggingface.write(tmp_path / "out", model, kind=kind.name)
    proof = prove(tmp_path / "out", model, kind)
    assert proof.passed and not proof.other_ids and not proof.load_report
    layers = {f"layer {n}" for n in range(model.config.layers + 1)}
    heads = {"pretraining": {"masked_lm", "next_sentence"}, "masked-lm": {"masked_lm"}, "encoder": {"pooler"}}
    assert set(proof.worst) == layers | heads[kind.name]
    assert max(proof.worst.values()) < 1e-5
    assert json.loads((tmp_path / "out/proof.json").read_text())["passed"] is True


def test_a_failed_proof_names_the_first_layer_that_differs_and_deletes_nothing(tmp_path: Path, model: Loaded) -> None:
    wrong = jax.tree.map(np.copy, model.params)
    wrong["layers"]["mlp"]["up"]["kernel"][1] *= 1.01  # the second layer of three
    kind = huggingface.write(tmp_path / "out", dataclasses.replace(model, params=wrong))
    proof = prove(tmp_path / "out", model, kind)
    assert not proof.passed and proof.first_difference == "layer 2"
    assert proof.worst["layer 1"] < 1e-5
    assert json.loads((tmp_path / "out/proof.json").read_text())["first_difference"] == "layer 2"
    assert (tmp_path / "out/model.safetensors").exists()


def test_a_tokenizer_that_gives_other_ids_is_no_proof(
    tmp_path: Path, model: Loaded, capsys: pytest.CaptureFixture[str]
) -> None:
    huggingface.write(tmp_path / "out", model)
    path = tmp_path / "out/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"split_special_tokens": False}))
    with pytest.raises(UserError, match="not proved .*: 1 text with other ids; see proof.json"):
        demand(prove(tmp_path / "out", model, BERT.kinds[0]), str(tmp_path / "out"))
