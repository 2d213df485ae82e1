"""The StableHLO directory computes what our network computes, without bert_jax, and refuses what it cannot look up."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_jax.convert import artefacts, run_stablehlo
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.stablehlo import PLATFORMS, exported_network, prove, write_stablehlo
from bert_jax.errors import UserError
from tests.artefacts import a_model

KINDS = ("BertForPreTraining", "AlbertForPreTraining", "ElectraForPreTraining", "DistilBertModel")
FILES = {"network.jax_export", "run.py", "signature.json", "network.safetensors"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Loaded]:
    folder = tmp_path_factory.mktemp("stablehlo")
    loaded = a_model("BertForPreTraining")
    write_stablehlo(folder, loaded)
    return folder, loaded


def ones(rows: int, tokens: int) -> dict[str, np.ndarray]:
    ids = np.ones((rows, tokens), np.int32)
    return {"input_ids": ids, "attention_mask": ids.copy(), "token_type_ids": np.zeros_like(ids)}


@pytest.mark.parametrize(
    "architecture", ["BertForPreTraining", "AlbertForPreTraining", "ElectraForPreTraining", "DistilBertModel"]
)
def test_what_is_read_back_computes_what_we_compute(architecture: str, tmp_path: Path) -> None:
    loaded = a_model(architecture)
    write_stablehlo(tmp_path / "out", loaded)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    inputs = artefacts.batches(loaded, [(3, 17)])
    outputs = run_stablehlo.load(tmp_path / "out")(**inputs[0])
    names = artefacts.output_names(loaded)
    assert outputs.keys() == set(names.values())
    found = {quantity: np.asarray(outputs[name]) for quantity, name in names.items()}
    worst = artefacts.differences(loaded, inputs, [found])
    assert worst.keys() == names.keys() and max(worst.values()) < 1e-5
    told = json.loads((tmp_path / "out/signature.json").read_text())
    sizes = {"rows": 3, "tokens": 17}
    for name, array in outputs.items():
        assert array.shape == tuple(sizes.get(axis, axis) for axis in told["outputs"][name]["shape"])
    assert told["inputs"].keys() == inputs[0].keys() and told["architecture"] == architecture


def test_a_fresh_process_without_bert_jax_computes_the_same(written: tuple) -> None:
    proof = prove(*written, shapes=((3, 17),))
    assert proof.passed and proof.first_difference is None and proof.rows == 3
    assert proof.worst.keys() == {"masked_lm", "next_sentence"} and max(proof.worst.values()) < 1e-5
    assert {path.name for path in written[0].iterdir()} == FILES


def test_a_failed_proof_names_the_layer_where_the_weights_are_wrong(written: tuple, tmp_path: Path) -> None:
    write_stablehlo(tmp_path / "out", written[1])
    weights = load_file(tmp_path / "out/network.safetensors")
    weights["layers/mlp/up/kernel"][1] *= 1.01  # the second layer of three
    save_file(weights, tmp_path / "out/network.safetensors")
    proof = prove(tmp_path / "out", written[1], shapes=((3, 17),))
    assert not proof.passed and proof.first_difference == "layer 2"  # layer 0: the embeddings
    assert proof.worst["layer 1"] < 1e-5 < proof.worst["layer 2"]


def test_weights_are_an_argument_under_our_paths_and_of_the_class_alone(written: tuple, tmp_path: Path) -> None:
    folder, loaded = written
    weights = load_file(folder / "network.safetensors")
    assert sum(array.size for array in weights.values()) == sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
    np.testing.assert_array_equal(weights["layers/mlp/up/kernel"], loaded.params["layers"]["mlp"]["up"]["kernel"])
    assert len(exported_network(a_model("BertModel")).serialize()) < 60_000  # as much whatever the widths are
    wider = a_model("BertModel", vocab_size=5000, feed_forward=400)
    assert len(exported_network(wider).serialize()) < 60_000


def test_the_network_is_for_every_platform_and_any_rows_up_to_the_table(written: tuple) -> None:
    exported = jax.export.deserialize(bytearray((written[0] / "network.jax_export").read_bytes()))
    assert exported.platforms == PLATFORMS == ("cpu", "cuda", "rocm", "tpu")
    told = json.loads((written[0] / "signature.json").read_text())
    assert told["calling_convention"] == exported.calling_convention_version and told["positions"] == 48
    weights = load_file(written[0] / "network.safetensors")
    with pytest.raises(ValueError):  # by the network itself, whoever calls it
        exported.call(weights, ones(1, 49))


@pytest.mark.parametrize("inputs, told", [
    (ones(1, 49), "rows of 49 tokens, where the position table ends at 48"),
    ({**ones(1, 4), "input_ids": np.full((1, 4), 96)}, "input_ids holds 96 to 96, where 0 to 95 can be"),
    ({**ones(1, 4), "input_ids": np.full((1, 4), -1)}, "input_ids holds -1 to -1, where 0 to 95"),
    ({**ones(1, 4), "token_type_ids": np.full((1, 4), 2)}, "token_type_ids holds 2 to 2, where 0 to 1"),
    ({**ones(1, 4), "attention_mask": np.ones((1, 5), int)}, r"attention_mask is int64\[1, 5\]"),
    ({**ones(1, 4), "attention_mask": np.ones((1, 4))}, r"attention_mask is float64\[1, 4\]"),
    (ones(0, 4), r"input_ids is int32\[0, 4\]"),
    ({"input_ids": np.ones((1, 4), int)}, "the inputs are input_ids, attention_mask, token_type_ids, and not"),
])  # fmt: skip
def test_inputs_that_cannot_be_are_refused_by_name(written: tuple, inputs: dict, told: str) -> None:
    signature = json.loads((written[0] / "signature.json").read_text())
    with pytest.raises(ValueError, match=told):
        run_stablehlo.checked(signature, inputs)


def test_run_py_needs_jax_numpy_and_safetensors_alone(written: tuple) -> None:
    text = (written[0] / "run.py").read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    standard = {"__future__", "collections", "json", "pathlib", "sys", "typing"}
    assert {name.split(".")[0] for name in names} - standard == {"jax", "numpy", "safetensors"}


def test_what_is_there_is_not_replaced_and_broken_files_are_told(written: tuple, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="network.jax_export: this exists already"):
        write_stablehlo(*written)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        write_stablehlo(tmp_path / "file", written[1])
    assert (tmp_path / "file").read_text() == "mine"
    for name in FILES:
        (tmp_path / name).write_bytes((written[0] / name).read_bytes())
    (tmp_path / "network.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="run.py failed .*; export it again"):
        prove(tmp_path, written[1], shapes=((1, 5),))
