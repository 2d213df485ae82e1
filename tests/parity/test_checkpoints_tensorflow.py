"""Checkpoints against TensorFlow: it writes google-research/bert's, we read and compute; we write, it reads."""

from __future__ import annotations

import math
import struct
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import BertConfig
from bert_jax.convert.names import TF1, from_foreign, to_foreign
from bert_jax.convert.table import read_table
from bert_jax.convert.tf1 import read_tf1, write_tf1
from bert_jax.errors import UserError
from bert_jax.model import bert
from tests.conftest import random_batch
from tests.convert.tables import table_of

pytestmark = pytest.mark.filterwarnings("default")
CONFIG = BertConfig(vocab_size=61, width=32, layers=2, heads=4, feed_forward=48, positions=20, activation="gelu_tanh")

FORWARD = jax.jit(partial(bert.apply, CONFIG))


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


def google_weights(config: BertConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Variables as modeling.py and run_pretraining.py of google-research/bert create them, with loud values."""
    rng = np.random.default_rng(seed)
    width, inner = config.width, config.feed_forward

    def normal(*shape: int, fan_in: int) -> np.ndarray:
        return (rng.normal(0, 1, shape) / math.sqrt(fan_in)).astype(np.float32)

    def dense(name: str, into: int, out: int) -> dict[str, np.ndarray]:
        return {f"{name}/kernel": normal(into, out, fan_in=into), f"{name}/bias": normal(out, fan_in=16)}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {f"{name}/gamma": 1 + normal(width, fan_in=16), f"{name}/beta": normal(width, fan_in=16)}

    weights = {
        "bert/embeddings/word_embeddings": normal(config.vocab_size, width, fan_in=width),
        "bert/embeddings/token_type_embeddings": normal(config.segments, width, fan_in=width),
        "bert/embeddings/position_embeddings": normal(config.positions, width, fan_in=width),
    } | norm("bert/embeddings/LayerNorm")
    for i in range(config.layers):
        layer = f"bert/encoder/layer_{i}"
        for part in ("query", "key", "value"):
            weights |= dense(f"{layer}/attention/self/{part}", width, width)
        weights |= dense(f"{layer}/attention/output/dense", width, width) | norm(f"{layer}/attention/output/LayerNorm")
        weights |= dense(f"{layer}/intermediate/dense", width, inner)
        weights |= dense(f"{layer}/output/dense", inner, width) | norm(f"{layer}/output/LayerNorm")
    weights |= dense("bert/pooler/dense", width, width)
    weights |= dense("cls/predictions/transform/dense", width, width) | norm("cls/predictions/transform/LayerNorm")
    return weights | {
        "cls/predictions/output_bias": normal(config.vocab_size, fan_in=4),
        "cls/seq_relationship/output_weights": normal(2, width, fan_in=width),
        "cls/seq_relationship/output_bias": normal(2, fan_in=4),
    }


def save(tf, prefix: Path, weights: dict[str, np.ndarray], version: int, devices: int = 1, slots: bool = True) -> int:
    """Has TensorFlow save the variables, each with Adam's two slots, and the step; returns how many are no weights."""
    v1 = tf.compat.v1
    forms = {1: v1.train.SaverDef.V1, 2: v1.train.SaverDef.V2}
    with v1.Graph().as_default():
        for number, (name, value) in enumerate(weights.items()):
            with v1.device(f"/cpu:{number % devices}"):
                v1.get_variable(name, initializer=value, use_resource=False)
                for slot in ("adam_m", "adam_v") if slots else ():
                    v1.get_variable(f"{name}/{slot}", initializer=value * 0 + 7, use_resource=False)
        if slots:
            v1.get_variable("global_step", initializer=np.int64(12345), use_resource=False)
        saver = v1.train.Saver(write_version=forms[version], sharded=devices > 1)
        with v1.Session(config=v1.ConfigProto(device_count={"CPU": devices})) as session:
            session.run(v1.global_variables_initializer())
            saver.save(session, str(prefix))
    return 2 * len(weights) + 1 if slots else 0


# ------------------------------------------------------------------------------------------------------------ forward


def layer_norm(x: np.ndarray, w: dict, name: str) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-12) * w[f"{name}/gamma"] + w[f"{name}/beta"]


def dense(x: np.ndarray, w: dict, name: str) -> np.ndarray:
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_by_erf(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def google_forward(config: BertConfig, weights: dict, ids, mask, segments, positions, gelu=gelu) -> tuple:
    """modeling.py and the heads of run_pretraining.py in float64: states, masked LM and next sentence logits.

    Args:
        ids, mask, segments: int[B, T], mask 1 for tokens and 0 for padding.
        positions: int[B, P].
    """
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    rows, length = ids.shape
    heads, size = config.heads, config.width // config.heads
    x = w["bert/embeddings/word_embeddings"][ids] + w["bert/embeddings/token_type_embeddings"][segments]
    x = layer_norm(x + w["bert/embeddings/position_embeddings"][:length], w, "bert/embeddings/LayerNorm")
    adder = (1.0 - mask[:, None, None, :]) * -10000.0
    for i in range(config.layers):
        layer = f"bert/encoder/layer_{i}"

        def parted(part: str, x: np.ndarray = x, layer: str = layer) -> np.ndarray:
            y = dense(x, w, f"{layer}/attention/self/{part}")
            return y.reshape(rows, length, heads, size).transpose(0, 2, 1, 3)

        scores = parted("query") @ parted("key").transpose(0, 1, 3, 2) / math.sqrt(size) + adder
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        context = scores / scores.sum(-1, keepdims=True) @ parted("value")
        context = context.transpose(0, 2, 1, 3).reshape(rows, length, config.width)
        attended = dense(context, w, f"{layer}/attention/output/dense")
        x = layer_norm(attended + x, w, f"{layer}/attention/output/LayerNorm")
        inner = gelu(dense(x, w, f"{layer}/intermediate/dense"))
        x = layer_norm(dense(inner, w, f"{layer}/output/dense") + x, w, f"{layer}/output/LayerNorm")
    pooled = np.tanh(dense(x[:, 0], w, "bert/pooler/dense"))
    chosen = gelu(dense(np.take_along_axis(x, positions[:, :, None], 1), w, "cls/predictions/transform/dense"))
    chosen = layer_norm(chosen, w, "cls/predictions/transform/LayerNorm")
    logits = chosen @ w["bert/embeddings/word_embeddings"].T + w["cls/predictions/output_bias"]
    next_sentence = pooled @ w["cls/seq_relationship/output_weights"].T + w["cls/seq_relationship/output_bias"]
    return x, logits, next_sentence


@pytest.mark.parametrize("version", [1, 2])
def test_a_checkpoint_of_tensorflow_computes_what_googles_formulas_do_within_1e5(tf, tmp_path, version):
    weights = google_weights(CONFIG)
    left = save(tf, tmp_path / "bert_model.ckpt", weights, version)
    tensors, dropped = read_tf1(tmp_path / "bert_model.ckpt")
    assert dropped == left
    equal(tensors, weights)
    params = from_foreign(TF1, CONFIG, tensors, "here")
    batch = random_batch(CONFIG, rows=5, seed=3, length=18, predictions=4)
    mask = np.asarray(batch["sequence_ids"])
    assert 0 < (1 - mask).sum() and np.asarray(batch["segment_ids"]).any()
    out = FORWARD(params, batch)
    ids, segments, places = (np.asarray(batch[name]) for name in ("input_ids", "segment_ids", "mlm_positions"))
    states, logits, next_sentence = google_forward(CONFIG, weights, ids, mask, segments, places)
    real = mask > 0
    np.testing.assert_allclose(np.asarray(out.hidden)[real], states[real], rtol=0, atol=1e-5)
    np.testing.assert_allclose(out.mlm_logits, logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(out.nsp_logits[:, 0], next_sentence, rtol=0, atol=1e-5)
    # Not blind: a head turned the wrong way or the other GELU would be seen.
    assert np.abs(logits).max() > 1 and np.abs(next_sentence).max() > 0.5
    other = google_forward(CONFIG, weights, ids, mask, segments, places, gelu_by_erf)[1]
    assert np.abs(other - logits).max() > 1e-4


# -------------------------------------------------------------------------------------------------------------- files


def equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_what_we_write_tensorflow_reads_and_restores_by_name(tf, tmp_path):
    weights = google_weights(CONFIG)
    params = from_foreign(TF1, CONFIG, weights, "here")
    tensors = to_foreign(TF1, CONFIG, params)
    equal(tensors, weights)
    write_tf1(tmp_path / "ours.ckpt", {**tensors, "global_step": np.int64(-5), "half": np.float16([1, 2])})
    reader = tf.train.load_checkpoint(str(tmp_path / "ours.ckpt"))
    shapes = reader.get_variable_to_shape_map()
    assert shapes.keys() == tensors.keys() | {"global_step", "half"}
    for name, value in tensors.items():
        np.testing.assert_array_equal(reader.get_tensor(name), value, err_msg=name)
    assert reader.get_tensor("global_step") == -5 and reader.get_tensor("global_step").shape == ()
    assert reader.get_tensor("half").dtype == np.float16
    v1 = tf.compat.v1
    with v1.Graph().as_default():
        variable = v1.get_variable("cls/seq_relationship/output_weights", shape=[2, CONFIG.width], use_resource=False)
        with v1.Session() as session:
            v1.train.Saver([variable]).restore(session, str(tmp_path / "ours.ckpt"))
            np.testing.assert_array_equal(session.run(variable), params["next_sentence"]["kernel"].T)


@pytest.mark.parametrize("version", [1, 2])
def test_every_way_to_name_a_checkpoint(tf, tmp_path, version):
    weights = google_weights(CONFIG)
    save(tf, tmp_path / "model.ckpt-10", weights, version)
    names = ["", "model.ckpt-10", "model.ckpt-10.meta"]
    names += ["model.ckpt-10.index", "model.ckpt-10.data-00000-of-00001"] if version == 2 else []
    for name in names:
        equal(read_tf1(tmp_path / name)[0], weights)
    (tmp_path / "checkpoint").unlink()
    equal(read_tf1(tmp_path)[0], weights)  # the only one
    later = google_weights(CONFIG, seed=1)
    save(tf, tmp_path / "model.ckpt-20", later, version, slots=False)
    equal(read_tf1(tmp_path)[0], later)  # the one that `checkpoint` names
    text = (tmp_path / "checkpoint").read_text()
    moved = text.replace('path: "', 'path: "/gone/with/the/machine/')
    (tmp_path / "checkpoint").write_text(moved)
    equal(read_tf1(tmp_path)[0], later)
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(UserError, match="there are 2 checkpoints .model.ckpt-10, model.ckpt-20.; give the prefix"):
        read_tf1(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_several_data_files_are_read_as_one(tf, tmp_path, version):
    weights = google_weights(CONFIG)
    left = save(tf, tmp_path / "model.ckpt", weights, version, devices=3)
    pattern = "model.ckpt-*" if version == 1 else "model.ckpt.data-*"
    files = sorted(tmp_path.glob(pattern))
    assert len(files) == 4 and files[0].name.endswith("00000-of-00004")  # three, and the step's
    tensors, dropped = read_tf1(tmp_path / "model.ckpt")
    equal(tensors, weights)
    assert dropped == left
    files[1].unlink()
    with pytest.raises(UserError, match="there is no such"):
        read_tf1(tmp_path / "model.ckpt")


@pytest.mark.parametrize("version", [1, 2])
def test_every_type_comes_back(tf, tmp_path, version):
    v1 = tf.compat.v1
    kinds = [np.float32, np.float64, np.float16, np.int32, np.int64, np.uint8, np.int16, np.int8, np.bool_]
    values = {f"of_{np.dtype(kind).name}": np.array([[0, 1, 2], [3, 100, 7]]).astype(kind) for kind in kinds}
    values["of_int32"] *= -1
    values["of_int64"] *= -(1 << 40)
    half = values["of_float64"] / 3
    values["of_float64"] = half
    with v1.Graph().as_default(), v1.Session() as session:
        made = [v1.get_variable(name, initializer=value, use_resource=False) for name, value in values.items()]
        if version == 2:
            brain = tf.constant(half, tf.bfloat16)
            made.append(v1.get_variable("of_bfloat16", initializer=brain, use_resource=False))
            values["of_bfloat16"] = np.asarray(jnp.asarray(half, jnp.bfloat16)).astype(np.float32)
        session.run(v1.global_variables_initializer())
        form = v1.train.SaverDef.V1 if version == 1 else v1.train.SaverDef.V2
        v1.train.Saver(made, write_version=form).save(session, str(tmp_path / "m"))
    tensors, _ = read_tf1(tmp_path / "m")
    floats = {name: value.astype(np.float32) for name, value in values.items() if "float" in name}
    equal(tensors, values | floats)


@pytest.mark.parametrize("version", [1, 2])
def test_a_partitioned_variable_is_refused(tf, tmp_path, version):
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        split = v1.fixed_size_partitioner(2)
        v1.get_variable("bert/embeddings/word_embeddings", shape=[6, 4], partitioner=split, use_resource=False)
        session.run(v1.global_variables_initializer())
        form = v1.train.SaverDef.V1 if version == 1 else v1.train.SaverDef.V2
        v1.train.Saver(write_version=form).save(session, str(tmp_path / "m"))
    with pytest.raises(UserError, match="bert/embeddings/word_embeddings is partitioned, which is not read"):
        read_tf1(tmp_path / "m")


def test_objects_of_tensorflow_2_and_text_are_refused(tf, tmp_path):
    tf.train.Checkpoint(x=tf.Variable([1.0])).write(str(tmp_path / "objects"))
    with pytest.raises(UserError, match="it holds objects of TensorFlow 2"):
        read_tf1(tmp_path / "objects")
    tf.raw_ops.SaveV2(prefix=str(tmp_path / "t"), tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant("x")])
    with pytest.raises(UserError, match="a holds text"):
        read_tf1(tmp_path / "t")


def test_snappy_blocks_and_shared_prefixes_are_read_as_tensorflow_reads_them(tf, tmp_path):
    """TensorFlow reads snappy tables and writes none, so this one is made here and it is the judge."""
    weights = google_weights(CONFIG)
    save(tf, tmp_path / "m.ckpt", weights, 2)
    index = tmp_path / "m.ckpt.index"
    with open(index, "rb") as file:
        entries = list(read_table(file, index.stat().st_size))
    index.write_bytes(table_of(entries, snappy=True, per_block=20, per_restart=4))
    assert tf.train.load_checkpoint(str(tmp_path / "m.ckpt")).has_tensor("bert/pooler/dense/kernel")
    equal(read_tf1(tmp_path / "m.ckpt")[0], weights)


@pytest.mark.parametrize("version", [1, 2])
def test_a_flipped_byte_anywhere_is_told_or_changes_nothing(tf, tmp_path, version):
    weights = {"a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, np.float32)}
    save(tf, tmp_path / "m", weights, version)
    files = [tmp_path / "m"] if version == 1 else [tmp_path / "m.index", tmp_path / "m.data-00000-of-00001"]
    rng = np.random.default_rng(0)
    told = 0
    for path in files:
        whole = path.read_bytes()
        for _ in range(300):
            raw = bytearray(whole)
            for place in rng.integers(0, len(raw), rng.integers(1, 4)):
                raw[place] ^= int(rng.integers(1, 256))
            path.write_bytes(raw)
            try:
                equal(read_tf1(tmp_path / "m")[0], weights)
            except UserError:
                told += 1
        for end in (0, 1, 7, 47, 48, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:end])
            if "data" in path.name and end == len(whole) - 1:  # of the step, which is not read
                equal(read_tf1(tmp_path / "m")[0], weights)
                continue
            with pytest.raises(UserError):
                read_tf1(tmp_path / "m")
        path.write_bytes(whole)
    assert told > 200


def test_big_endian_numbers_are_refused(tf, tmp_path):
    save(tf, tmp_path / "m", {"a": np.ones(3, np.float32)}, 2)
    index = tmp_path / "m.index"
    with open(index, "rb") as file:
        entries = dict(read_table(file, index.stat().st_size))
    entries[b""] += struct.pack("BB", 2 << 3, 1)
    index.write_bytes(table_of(list(entries.items())))
    with pytest.raises(UserError, match="big endian"):
        read_tf1(tmp_path / "m")
