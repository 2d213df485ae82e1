"""safetensors: read equal, widened exactly, and what the library lets through is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from bert_jax.convert.safetensors_file import read_safetensors
from bert_jax.errors import UserError
from tests.convert.damage import every_answer_is_an_error_or_weights, little_memory

KINDS = (
    "float32",
    "float64",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
)


def raw_file(path: Path, header: str | bytes, data: bytes = b"") -> Path:
    header = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_every_type_is_read_floats_as_float32_the_rest_as_it_is(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {f"of.{kind}": (rng.normal(0, 3, (3, 4)) ** 2).astype(kind) for kind in KINDS}
    tensors |= {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float32)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    found = read_safetensors(tmp_path / "m.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.astype(np.float32) if tensor.dtype.kind == "f" else tensor
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected, strict=True)


def test_bfloat16_is_widened_exactly(tmp_path):
    bits = np.arange(1 << 16, dtype=np.uint16)
    brain = bits.view(ml_dtypes.bfloat16)
    brain = brain[np.isfinite(brain.astype(np.float32))]
    header = json.dumps({"a": entry("BF16", [len(brain)], 0, 2 * len(brain))})
    found = read_safetensors(raw_file(tmp_path / "m.safetensors", header, brain.tobytes()))["a"]
    expected = brain.view(np.uint16).astype(np.uint32) << 16
    np.testing.assert_array_equal(found.view(np.uint32), expected)


FOUR = np.arange(4, dtype=np.float32).tobytes()
WEIGHT = json.dumps(entry("F32", [4], 0, 16))


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ("", b"", "not a whole safetensors file"),
        ("{", FOUR, "not a whole safetensors file"),
        (b'{"\xff": 1}', FOUR, "not a whole safetensors file"),
        ("[" * 100_000, FOUR, "not a whole safetensors file"),
        ('{"a": ' + WEIGHT + "}", FOUR[:-1], "not a whole safetensors file"),
        ('{"a": ' + WEIGHT + "}", FOUR + b"\0", "not a whole safetensors file"),
        (json.dumps({"a": entry("F32", [5], 0, 16)}), FOUR, "not a whole safetensors file"),
        (json.dumps({"a": entry("F32", [1 << 62, 4], 0, 16)}), FOUR, "not a whole safetensors file"),
        (json.dumps({"a": entry("F32", [-4], 0, 16)}), FOUR, "not a whole safetensors file"),
        (json.dumps({"a": entry("F99", [4], 0, 16)}), FOUR, "not a whole safetensors file"),
        (json.dumps({"a": entry("F32", [2], 8, 16)}), FOUR, "not a whole safetensors file"),
        (json.dumps({"a": entry("F32", [4], 0, 16), "b": entry("F32", [2], 8, 16)}), FOUR, "not a whole safetensors"),
        ('{"a": ' + WEIGHT + ', "a": ' + WEIGHT + "}", FOUR, "'a' is there twice"),
        ('{"a": {"dtype": "F32", "shape": [4], "shape": [2, 2], "data_offsets": [0, 16]}}', FOUR, "twice|not a whole"),
        ('{"__metadata__": {"x": "1", "x": "2"}, "a": ' + WEIGHT + "}", FOUR, "'x' is there twice"),
        (json.dumps({"a": entry("F8_E5M2", [16], 0, 16)}), FOUR, "a is of type F8_E5M2, which is not read"),
        (
            json.dumps({"a": entry("F32", [4], 0, 16)}),
            np.float32([1, np.nan, 2, np.inf]).tobytes(),
            "2 values of 4 in a",
        ),
        (json.dumps({"a": entry("F32", [0, 1 << 63], 0, 0)}), b"", "a does not have the values|not a whole"),
    ],
)
def test_a_file_that_is_damaged_or_means_two_things_is_refused(header, data, message, tmp_path):
    path = raw_file(tmp_path / "m.safetensors", header, data)
    with pytest.raises(UserError, match=message) as error:
        read_safetensors(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_length_beyond_the_file_takes_no_memory(tmp_path):
    path = tmp_path / "m.safetensors"
    for raw in (b"", b"1234567", struct.pack("<Q", 1 << 63), struct.pack("<Q", 1 << 40) + b"{}"):
        path.write_bytes(raw)
        with little_memory(), pytest.raises(UserError, match="not a whole safetensors file"):
            read_safetensors(path)


def test_names_with_paths_in_them_are_only_names(tmp_path):
    save_file({"../../x": np.ones(2, np.float32)}, tmp_path / "m.safetensors")
    assert list(read_safetensors(tmp_path / "m.safetensors")) == ["../../x"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_shards_are_read_as_one_and_stay_in_their_folder(tmp_path):
    (tmp_path / "model").mkdir()
    for number, name in enumerate("ab", 1):
        save_file({name: np.full(2, number, np.float32)}, tmp_path / f"model/m-{number}.safetensors")
    save_file({"b": np.zeros(2, np.float32)}, tmp_path / "outside.safetensors")
    index = tmp_path / "model/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}))
    found = read_safetensors(index)
    assert {name: array.tolist() for name, array in found.items()} == {"a": [1, 1], "b": [2, 2]}
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "../outside.safetensors"}}))
    with pytest.raises(UserError, match="'../outside.safetensors' is no name of a file beside it"):
        read_safetensors(index)


def test_flipped_bytes_and_cut_files_are_told_or_read(tmp_path):
    save_file({"a.weight": np.ones((3, 4), np.float32), "b": np.arange(5)}, tmp_path / "m.safetensors")
    every_answer_is_an_error_or_weights(tmp_path / "m.safetensors", read_safetensors)
