"""The ONNX file computes what our network computes, holds every weight once, and refuses what it cannot look up."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from bert_jax.config import BertConfig  # noqa: E402
from bert_jax.convert import artefacts  # noqa: E402
from bert_jax.convert.loaded import Loaded  # noqa: E402
from bert_jax.convert.onnx import prove, write_onnx  # noqa: E402
from bert_jax.convert.proof import states_and_heads  # noqa: E402
from bert_jax.errors import UserError  # noqa: E402
from tests.artefacts import CLASSES, a_model  # noqa: E402

SHAPES = ((3, 17),)  # one shape, so that little is compiled
OUTPUTS = {
    "BertForPreTraining": {"prediction_logits", "seq_relationship_logits"},
    "BertForMaskedLM": {"logits"},
    "BertModel": {"last_hidden_state", "pooler_output"},
    "AlbertForPreTraining": {"prediction_logits", "sop_logits"},
    "ElectraForPreTraining": {"logits"},
    "ElectraForMaskedLM": {"logits"},
    "DistilBertForMaskedLM": {"logits"},
    "DistilBertModel": {"last_hidden_state"},
}


def ones(rows: int, tokens: int) -> dict[str, np.ndarray]:
    ids = np.ones((rows, tokens), np.int64)
    return {"input_ids": ids, "attention_mask": ids.copy(), "token_type_ids": np.zeros_like(ids)}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a refused input is also raised
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Loaded]:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    loaded = a_model("BertModel")
    write_onnx(path, loaded)
    return path, loaded


@pytest.mark.parametrize("architecture", CLASSES)
def test_onnxruntime_computes_what_we_compute(architecture: str, tmp_path: Path) -> None:
    loaded = a_model(architecture)
    write_onnx(tmp_path / "model.onnx", loaded)
    proof = prove(tmp_path / "model.onnx", loaded, SHAPES)
    assert proof.passed and proof.first_difference is None and proof.architecture == architecture
    assert len(proof.worst) == len(OUTPUTS[architecture]) and max(proof.worst.values()) < 1e-5
    run = session(tmp_path / "model.onnx")
    assert {value.name for value in run.get_outputs()} == OUTPUTS[architecture]
    segments = {"token_type_ids"} if loaded.config.segments else set()
    assert {value.name for value in run.get_inputs()} == {"input_ids", "attention_mask"} | segments
    assert all(value.shape == ["batch", "sequence"] and value.type == "tensor(int64)" for value in run.get_inputs())


@pytest.mark.parametrize("architecture", ["BertForPreTraining", "AlbertForPreTraining", "BertModel"])
def test_every_weight_is_stored_once_and_used(architecture: str, tmp_path: Path) -> None:
    loaded = a_model(architecture)
    write_onnx(tmp_path / "model.onnx", loaded)
    graph = onnx.load(tmp_path / "model.onnx").graph
    sizes = {t.name: int(np.prod(t.dims)) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    constants = sum(size for name, size in sizes.items() if name in ("scale", "masked", "nothing"))
    assert sum(sizes.values()) - constants == sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
    used = {name for node in graph.node for name in node.input}
    assert {t.name for t in graph.initializer} <= used


def test_parts_that_no_output_needs_are_left_out(tmp_path: Path) -> None:
    loaded = a_model("BertForPreTraining")
    masked = replace(loaded, params={k: v for k, v in loaded.params.items() if k != "next_sentence"})
    write_onnx(tmp_path / "model.onnx", masked)
    names = {tensor.name for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert "masked_lm/bias" in names and not any(name.startswith("pooler") for name in names)


def test_all_layers_come_out_in_order(tmp_path: Path) -> None:
    loaded = a_model("BertModel")
    write_onnx(tmp_path / "model.onnx", loaded, all_layers=True)
    (batch,) = artefacts.batches(loaded, [(3, 17)])
    names = [*(f"hidden_states.{n}" for n in range(3)), "last_hidden_state"]
    states = session(tmp_path / "model.onnx").run(names, {k: v.astype(np.int64) for k, v in batch.items()})
    theirs = {"input_ids": "input_ids", "segment_ids": "token_type_ids", "sequence_ids": "attention_mask"}
    ours = states_and_heads(
        loaded.config,
        loaded.params,
        {**{k: batch[v] for k, v in theirs.items()}, "position_ids": np.tile(np.arange(17, dtype=np.int32), (3, 1))},
        (),
    )
    real = batch["attention_mask"] > 0
    assert real.sum() < real.size and batch["token_type_ids"].any()
    for number, layer in enumerate(states):
        np.testing.assert_allclose(layer[real], ours[f"layer {number}"][real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("change, told", [
    ({"input_ids": -1}, "word of ids.*idx=96"),
    ({"input_ids": 96}, "word of ids.*idx=96"),
    ({"token_type_ids": -1}, "segment of ids.*idx=2"),
    ({"token_type_ids": 2}, "segment of ids.*idx=2"),
])  # fmt: skip
def test_an_id_outside_its_table_is_refused_by_name(encoder: tuple, change: dict, told: str) -> None:
    batch = ones(1, 4)
    for name, value in change.items():
        batch[name][0, 2] = value
    with pytest.raises(Exception, match=told):
        session(encoder[0]).run(None, batch)


def test_too_long_a_row_is_refused_with_the_length_of_the_table(encoder: tuple) -> None:
    run = session(encoder[0])
    assert run.run(None, ones(1, 48))[0].shape == (1, 48, 24)
    with pytest.raises(Exception, match=r"position of ids.*idx=48 .*\[-48,47\]"):
        run.run(None, ones(1, 49))


def test_no_rows_and_rows_of_padding_alone_are_finite(encoder: tuple) -> None:
    run = session(encoder[0])
    assert run.run(None, ones(0, 4))[0].shape == (0, 4, 24)
    states, pooled = run.run(None, {**ones(1, 4), "attention_mask": np.zeros((1, 4), np.int64)})
    assert np.isfinite(states).all() and np.isfinite(pooled).all()


def test_a_failed_proof_names_the_layer_where_the_file_is_wrong(encoder: tuple, tmp_path: Path) -> None:
    model = onnx.load(encoder[0])
    (kernel,) = [tensor for tensor in model.graph.initializer if tensor.name == "layers/1/mlp/up/kernel"]
    wrong = onnx.numpy_helper.to_array(kernel) * np.float32(1.01)
    kernel.CopyFrom(onnx.numpy_helper.from_array(wrong, kernel.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    proof = prove(tmp_path / "wrong.onnx", encoder[1], SHAPES)
    assert not proof.passed and proof.first_difference == "layer 2"  # layer 0: the embeddings
    assert proof.worst["layer 1"] < 1e-5 < proof.worst["layer 2"]
    wrong[:] = np.nan
    kernel.CopyFrom(onnx.numpy_helper.from_array(wrong, kernel.name))
    onnx.save(model, tmp_path / "nan.onnx")
    assert prove(tmp_path / "nan.onnx", encoder[1], SHAPES).first_difference == "layer 2"


def test_what_is_no_model_is_told_in_one_sentence(encoder: tuple, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(encoder[0].read_bytes()[:1000])
    with pytest.raises(UserError, match="model.onnx: onnxruntime cannot run it"):
        prove(tmp_path / "model.onnx", encoder[1], SHAPES)


def test_what_is_there_is_not_replaced_and_what_fails_leaves_nothing(tmp_path: Path) -> None:
    loaded = a_model("BertModel")
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_onnx(tmp_path / "model.onnx", loaded)
    with pytest.raises(UserError, match="cannot be written"):
        write_onnx(tmp_path / "model.onnx" / "below a file", loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "mine"


def test_more_than_one_file_can_hold_is_told_before_anything_is_written(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=2**23, width=64, layers=1, heads=1, feed_forward=1, positions=8)
    loaded = a_model("BertModel")
    table = np.broadcast_to(np.float32(0), (config.vocab_size, config.width))  # 2 GiB of one number
    big = replace(loaded, config=config, params={**loaded.params, "embeddings": {"word": table}})
    with pytest.raises(UserError, match="2.0 GiB do not go into one ONNX file"):
        write_onnx(tmp_path / "model.onnx", big)
    assert not list(tmp_path.iterdir())


def test_without_onnx_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)  # what an import of it then meets
    with pytest.raises(UserError, match=r"onnx cannot be imported .*; pip install 'bert-jax\[onnx\]'"):
        write_onnx(tmp_path / "model.onnx", a_model("BertModel"))
