"""`bert-jax import` and `bert-jax export` from end to end, each format with its proof."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.parity.foreign import torch, transformers  # first: skips where they are missing

from bert_jax.cli import main  # isort: skip
from bert_jax.convert.families import config_to_json
from bert_jax.export import FORMATS
from tests.readable import readable_config, readable_tokenizer


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT that transformers wrote, with the GELU that every format knows."""
    folder = tmp_path_factory.mktemp("theirs")
    tree = config_to_json(readable_config(), "BertForPreTraining", pad=0) | {"hidden_act": "gelu_new"}
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(transformers.BertConfig(**tree))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    readable_tokenizer().save(folder)
    return folder


def test_what_is_imported_goes_out_as_it_came(theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ours, again = tmp_path / "ours", tmp_path / "again"
    assert main(["import", str(theirs), "--output", str(ours), "--prove"]) == 0
    assert "proved with transformers" in capsys.readouterr().out
    assert json.loads((ours / "proof.json").read_text())["passed"]
    assert main(["export", str(ours), str(again), "--prove", "--license", "apache-2.0"]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (theirs, again))
    assert before.keys() == after.keys() and all(before[n].tobytes() == after[n].tobytes() for n in before)
    assert 'license: "apache-2.0"' in (again / "README.md").read_text()
    files = json.loads((again / "provenance.json").read_text())["before"]["files"]
    assert set(files) >= {"model.safetensors", "config.json", "tokenizer.json"}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_proved(name: str, theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert main(["export", str(theirs), str(out), "--format", name, "--prove"]) == 0
    said = capsys.readouterr().out
    assert ("read back: all" if name == "tf1" else "proved with") in said
    assert (out / "README.md").is_file() and (out / "provenance.json").is_file()
    assert name == "tf1" or json.loads((out / "proof.json").read_text())["passed"]


def test_a_pickle_is_imported_and_proved_against_what_torch_reads(theirs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(theirs, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model = transformers.BertForPreTraining.from_pretrained(theirs)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert main(["import", str(folder), "--output", str(tmp_path / "ours"), "--prove"]) == 0


def test_sentence_vectors_can_be_whitened(theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"the number {n} of a return is {n * n} ." for n in range(40)))
    command = ["export", str(theirs), str(tmp_path / "out"), "--format", "sentence-transformers", "--no-prove"]
    assert main([*command, "--whiten", str(texts), "8", "--normalize"]) == 0
    kinds = [module["type"].rpartition(".")[2] for module in json.loads((tmp_path / "out/modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert main([*command[:2], str(tmp_path / "other"), "--no-prove", "--normalize"]) == 1
    assert "add --format sentence-transformers" in capsys.readouterr().err
