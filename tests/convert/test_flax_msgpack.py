"""transformers' old Flax files: read as flax writes them, and nothing in them but arrays."""

from __future__ import annotations

import json
import struct

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization

from bert_jax.config import BertConfig
from bert_jax.convert.flax_msgpack import read_flax
from bert_jax.convert.names import HUGGING_FACE, to_foreign
from bert_jax.errors import UserError
from tests.convert.damage import every_answer_is_an_error_or_weights, little_memory

ONE = np.arange(6, dtype=np.float32).reshape(2, 3)


def flax_tree(config: BertConfig, params: dict) -> dict:
    """FlaxBertForPreTraining's parameters, by its modules (transformers 4, modeling_flax_bert.py)."""

    def layer(i: int) -> dict:
        part = {name: tree for name, tree in params["layers"].items()}
        attention, mlp = part["attention"], part["mlp"]
        width = config.width
        self_attention = {
            name: {
                "kernel": attention[name]["kernel"][i].reshape(width, width),
                "bias": attention[name]["bias"][i].reshape(width),
            }
            for name in ("query", "key", "value")
        }
        output = {
            "kernel": attention["output"]["kernel"][i].reshape(width, width),
            "bias": attention["output"]["bias"][i],
        }
        return {
            "attention": {
                "self": self_attention,
                "output": {"dense": output, "LayerNorm": {name: x[i] for name, x in attention["norm"].items()}},
            },
            "intermediate": {"dense": {name: x[i] for name, x in mlp["up"].items()}},
            "output": {
                "dense": {name: x[i] for name, x in mlp["down"].items()},
                "LayerNorm": {name: x[i] for name, x in mlp["norm"].items()},
            },
        }

    embeddings, head = params["embeddings"], params["masked_lm"]
    return {
        "bert": {
            "embeddings": {
                "word_embeddings": {"embedding": embeddings["word"]},
                "position_embeddings": {"embedding": embeddings["position"]},
                "token_type_embeddings": {"embedding": embeddings["segment"]},
                "LayerNorm": dict(embeddings["norm"]),
            },
            "encoder": {"layer": {str(i): layer(i) for i in range(config.layers)}},
            "pooler": {"dense": dict(params["pooler"])},
        },
        "cls": {
            "predictions": {
                "bias": head["bias"],
                "transform": {"dense": dict(head["transform"]), "LayerNorm": dict(head["norm"])},
            },
            "seq_relationship": dict(params["next_sentence"]),
        },
    }


def test_a_tree_as_transformers_kept_it_has_pytorchs_names_and_axes(tmp_path, config, params):
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.to_bytes(flax_tree(config, params)))
    found = read_flax(tmp_path / "flax_model.msgpack")
    expected = to_foreign(HUGGING_FACE, config, params)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


def test_an_untied_decoder_is_a_kernel_like_others(tmp_path):
    (tmp_path / "m.msgpack").write_bytes(
        serialization.to_bytes({"cls": {"predictions": {"decoder": {"kernel": ONE}, "bias": np.zeros(3, np.float32)}}})
    )
    found = read_flax(tmp_path / "m.msgpack")
    np.testing.assert_array_equal(found["cls.predictions.decoder.weight"], ONE.T)
    assert set(found) == {"cls.predictions.decoder.weight", "cls.predictions.bias"}


def test_every_type_and_arrays_in_pieces_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)  # 1 GiB otherwise
    kinds = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "uint32", "bool")
    tree = {kind: (np.arange(24).reshape(4, 6) % 5).astype(kind) for kind in kinds}
    tree |= {"brain": jnp.asarray(np.linspace(-3, 3, 24), jnp.bfloat16), "scalar": np.asarray(3, np.float32)}
    raw = serialization.to_bytes(tree)
    assert b"__msgpack_chunked_array__" in raw
    (tmp_path / "m.msgpack").write_bytes(raw)
    found = read_flax(tmp_path / "m.msgpack")
    assert found.keys() == tree.keys()
    for name, array in tree.items():
        expected = np.asarray(array)
        expected = expected if expected.dtype.kind in "biu" else expected.astype(np.float32)
        np.testing.assert_array_equal(found[name], expected, err_msg=name, strict=True)


def array(shape: object, dtype: object, raw: object, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, raw), use_bin_type=True))


SIX = ONE.tobytes()
GOOD = array((2, 3), "float32", SIX)


def pieces(shape: object, chunks: object, **more: object) -> dict:
    return {"a": {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks, **more}}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": msgpack.ExtType(2, b"\x92\x01\x02")}, "an object of extension type 2, where only arrays are read"),
        ({"a": array((2, 3), "float32", SIX, code=3)}, "an object of extension type 3"),
        ({"a": msgpack.ExtType(99, b"cos\nsystem\n")}, "an object of extension type 99"),
        ({"a": msgpack.Timestamp(1)}, "a is neither a map nor an array"),
        ({"a": 1}, "a is neither a map nor an array"),
        ({"a": "text"}, "a is neither a map nor an array"),
        ({"a": None}, "a is neither a map nor an array"),
        ({"a": [GOOD]}, "not a whole Flax file"),
        ({1: GOOD}, "not a whole Flax file"),
        (GOOD, "its root is neither a map nor an array"),
        ({"a": array((2, 4), "float32", SIX)}, "not a whole Flax file"),
        ({"a": array((-2, -3), "float32", SIX)}, "a size that is no number from 0"),
        ({"a": array((-1, 3), "float32", SIX)}, "a size that is no number from 0"),
        ({"a": array((1 << 62, 1 << 62), "float32", SIX)}, "not a whole Flax file"),
        ({"a": array((2, 3), "float32", SIX[:-1])}, "not a whole Flax file"),
        ({"a": array((2, 3), "object", SIX)}, "an array of dtype object, which is not read"),
        ({"a": array((2, 3), "f4,(2,)O", SIX)}, "which is not read"),
        ({"a": array((2, 3), "complex64", SIX)}, "an array of dtype complex64, which is not read"),
        ({"a": array((2, 3), 5, SIX)}, "an array without shape, dtype and bytes"),
        ({"a": array(6, "float32", SIX)}, "an array without shape, dtype and bytes"),
        ({"a": msgpack.ExtType(1, b"\xc1")}, "not a whole Flax file"),
        ({"a": msgpack.ExtType(1, b"")}, "not a whole Flax file"),
        ({"kernel": array((6,), "float32", SIX)}, "kernel has 1 axes, where a dense layer has 2"),
        ({"a": {"kernel": GOOD, "scale": GOOD}}, "a name is there twice"),
        ({"a": {"b": GOOD}, "a.b": GOOD}, "a name is there twice"),
        ({"a": array((2, 3), "float32", np.float32([1, 2, np.nan, 4, 5, 6]).tobytes())}, "1 value of 6 in a is NaN"),
        (pieces({"0": 2, "1": 3}, {"0": GOOD}, x=1), "an array in pieces without shape and pieces"),
        (pieces([2, 3], {"0": GOOD}), "not a whole Flax file"),
        (pieces({"0": 2, "1": 4}, {"0": GOOD}), "pieces that do not fill its shape"),
        (pieces({"0": -2, "1": -3}, {"0": GOOD}), "a size that is no number from 0"),
        (pieces({"0": 1 << 40, "1": 1 << 40}, {"0": GOOD}), "pieces that do not fill its shape"),
        (pieces({"0": 2, "1": 3}, {"1": GOOD}), "not numbered from 0"),
        (pieces({"0": 2, "1": 3}, {}), "no arrays of one type"),
        (pieces({"0": 2, "1": 3}, {"0": "text"}), "no arrays of one type"),
    ],
)
def test_whatever_is_no_tree_of_arrays_is_refused(tree, message, tmp_path):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(msgpack.packb(tree, use_bin_type=True))
    with pytest.raises(UserError, match=message) as error:
        read_flax(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_lengths_and_depths_that_only_promise_take_no_memory(tmp_path):
    path = tmp_path / "flax_model.msgpack"
    deep: dict = {"kernel": 1}
    for _ in range(500):
        deep = {"a": deep}
    huge = struct.pack(">I", 0xFFFFFFFF)
    for raw in (
        b"",
        b"\xdf" + huge,  # a map
        b"\xdd" + huge,  # a list
        b"\xdb" + huge,  # text
        b"\xc9" + huge + b"\x01",  # an extension
        b"\x81\xa1a" * 5000,  # maps in maps
        b"\x91" * 5000,
        (b"\xdd" + struct.pack(">I", 100_000)) * 600 + bytes(100_000),  # lists in lists, each with room for all
        b"\x80\x80",  # more than one tree
        b"\x82\xa1a\x80\xa1a\x80",  # the same name twice
        b"\x81\xa1\xff\x80",  # no UTF-8
        msgpack.packb(deep),
    ):
        path.write_bytes(raw)
        with little_memory(), pytest.raises(UserError, match="not a whole Flax file"):
            read_flax(path)


def test_shards_are_read_as_one(tmp_path):
    """The names in the index are Flax's own, joined by slashes."""
    (tmp_path / "flax_model-00001-of-00002.msgpack").write_bytes(serialization.to_bytes({"a": {"kernel": ONE}}))
    (tmp_path / "flax_model-00002-of-00002.msgpack").write_bytes(serialization.to_bytes({"b": {"scale": ONE[0]}}))
    places = {"a/kernel": "flax_model-00001-of-00002.msgpack", "b/scale": "flax_model-00002-of-00002.msgpack"}
    index = tmp_path / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    found = read_flax(index)
    assert {name: array.shape for name, array in found.items()} == {"a.weight": (3, 2), "b.weight": (3,)}
    index.write_text(json.dumps({"weight_map": {**places, "b/scale": "../x.msgpack"}}))
    with pytest.raises(UserError, match="is no name of a file beside it"):
        read_flax(index)


def test_flipped_bytes_and_cut_files_are_told_or_read(tmp_path):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(
        serialization.to_bytes({"a": {"kernel": ONE, "bias": ONE[0]}, "b": {"embedding": jnp.bfloat16(ONE)}})
    )
    every_answer_is_an_error_or_weights(path, read_flax)
