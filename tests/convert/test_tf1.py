"""TensorFlow 1 checkpoints without TensorFlow: our writer and a writer of V1 made here; what is broken is told.

tests/parity/test_checkpoints_tensorflow.py has TensorFlow itself on the other side.
"""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from bert_jax.config import PRESETS, BertConfig, preset
from bert_jax.convert.names import HUGGING_FACE, TF1, foreign_shapes, from_foreign, our_shape, to_foreign
from bert_jax.convert.table import BadTable, masked_crc, read_table, unsnappy, write_table
from bert_jax.convert.tf1 import read_tf1, write_tf1
from bert_jax.errors import UserError
from bert_jax.text.wire import BadMessage, write_field, write_fixed32, write_varint
from tests.convert.damage import every_answer_is_an_error_or_weights
from tests.convert.tables import table_of

WEIGHTS = {"a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.float32([1, -2.5]), "n": np.array(-7)}


def equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", PRESETS)
def test_rows_cover_what_google_writes(name: str) -> None:
    config = preset(name, 30522)
    shapes = {row.path: our_shape(row, config) for row in HUGGING_FACE}
    assert {row.path: our_shape(row, config) for row in TF1} == {row.path: shapes[row.path] for row in TF1}
    theirs = foreign_shapes(TF1, config)
    assert len(theirs) == 14 + 16 * config.layers  # 206 of BERT-base, as in transformers' BertForPreTraining
    assert theirs["cls/seq_relationship/output_weights"] == (2, config.width)
    assert theirs["bert/encoder/layer_1/intermediate/dense/kernel"] == (config.width, config.feed_forward)


def test_there_and_back_through_a_file_is_bit_identical(tmp_path, config: BertConfig, params: dict) -> None:
    tensors = to_foreign(TF1, config, params)
    head = params["layers"]["attention"]["query"]["kernel"]  # L D N H
    flat = tensors["bert/encoder/layer_1/attention/self/query/kernel"]
    assert flat[5, 2 * head.shape[3] + 1] == head[1, 5, 2, 1]
    write_tf1(tmp_path / "bert_model.ckpt", tensors)
    found, dropped = read_tf1(tmp_path)
    assert dropped == 0
    equal(found, tensors)
    back = from_foreign(TF1, config, found, "here")
    np.testing.assert_array_equal(back["next_sentence"]["kernel"], params["next_sentence"]["kernel"])
    names = {"bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"}
    assert {path.name for path in tmp_path.iterdir()} == names


# ----------------------------------------------------------------------------------------------------------------- V2


def test_every_type_comes_back_floats_as_float32(tmp_path: Path) -> None:
    kinds = ["f4", "f8", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", ml_dtypes.bfloat16, ">f4"]
    tensors = {str(np.dtype(kind)): (np.arange(6).reshape(2, 3) / 3 * 2).astype(kind) for kind in kinds}
    write_tf1(tmp_path / "m", tensors)
    wide = {name: x if x.dtype.kind in "biu" else x.astype(np.float32) for name, x in tensors.items()}
    equal(read_tf1(tmp_path / "m")[0], wide)


def test_optimizer_slots_and_the_step_are_left_out_and_counted(tmp_path: Path) -> None:
    slots = {f"{name}/{slot}": np.full(2, np.nan, np.float32) for name in WEIGHTS for slot in ("adam_m", "adam_v")}
    write_tf1(tmp_path / "m", {**WEIGHTS, **slots, "global_step": np.array(1000)})
    found, dropped = read_tf1(tmp_path / "m")
    equal(found, WEIGHTS)
    assert dropped == len(slots) + 1
    write_tf1(tmp_path / "m", slots)
    with pytest.raises(UserError, match="it holds no weights"):
        read_tf1(tmp_path / "m")


def test_what_is_written_over_an_earlier_one_replaces_it_and_a_failure_leaves_it(tmp_path: Path) -> None:
    write_tf1(tmp_path / "m", WEIGHTS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="b is of dtype complex64"):
        write_tf1(tmp_path / "m", {**WEIGHTS, "b": np.complex64([1])})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(UserError, match="cannot be written"):
        write_tf1(tmp_path / "m.index" / "m", WEIGHTS)
    write_tf1(tmp_path / "m", {"other": WEIGHTS["b"]})
    equal(read_tf1(tmp_path / "m")[0], {"other": WEIGHTS["b"]})


def test_missing_cut_and_changed_data_files_are_named(tmp_path: Path) -> None:
    write_tf1(tmp_path / "m", WEIGHTS)
    data = tmp_path / "m.data-00000-of-00001"
    whole = data.read_bytes()
    changed = bytearray(whole)
    changed[3] ^= 1
    for raw, message in [
        (whole[:-1], "is shorter than the 3 tensors that the index puts there"),
        (bytes(changed), "holds another a/kernel than was written: its checksum does not hold"),
    ]:
        data.write_bytes(raw)
        with pytest.raises(UserError, match=f"m.data-00000-of-00001: the file {message}"):
            read_tf1(tmp_path / "m")
    data.unlink()
    with pytest.raises(UserError, match="m.data-00000-of-00001: there is no such file"):
        read_tf1(tmp_path / "m")


@pytest.mark.parametrize("what", ["nothing", "prefix", "empty folder"])
def test_where_there_is_no_checkpoint_it_is_told(what: str, tmp_path: Path) -> None:
    path = {"nothing": tmp_path / "no" / "m.ckpt", "prefix": tmp_path / "m.ckpt", "empty folder": tmp_path}[what]
    with pytest.raises(UserError, match="there is no (such checkpoint|checkpoint of TensorFlow); give (a|the) prefix"):
        read_tf1(path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "../../etc/model.ckpt-3"\n')
    with pytest.raises(UserError, match=f"{tmp_path}/model.ckpt-3: there is no such checkpoint"):
        read_tf1(tmp_path)
    (tmp_path / "checkpoint").write_text("nothing")
    with pytest.raises(UserError, match="checkpoint: it names no model_checkpoint_path"):
        read_tf1(tmp_path)


def an_entry(
    kind: int = 1, shape: tuple[int, ...] = (2,), shard: int = 0, offset: int = 0, size: int = 8, crc: int | None = None
) -> bytes:
    sizes = b"".join(write_field(2, write_field(1, n)) for n in shape)
    crc = masked_crc(np.float32([1, 2]).tobytes()) if crc is None else crc
    message = write_field(1, kind) + write_field(2, sizes) + write_field(3, shard) + write_field(4, offset)
    return message + write_field(5, size) + write_fixed32(6, crc)


HEADER = write_field(1, 1)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([(b"", HEADER), (b"a", an_entry(crc=1))], "its checksum does not hold"),
        ([(b"", HEADER), (b"a", an_entry(shape=(3,)))], "a has 8 bytes, which is not what its shape asks for"),
        ([(b"", HEADER), (b"a", an_entry(shape=(1 << 40, 1 << 40)))], "is not what its shape asks for"),
        ([(b"", HEADER), (b"a", an_entry(shape=(0, 2), size=0))], "a tensor without values"),
        ([(b"", HEADER), (b"a", an_entry(shape=(-1,)))], "is no number from 0"),
        ([(b"", HEADER), (b"a", an_entry(shape=(1,) * 9))], "a shape of 9 sizes"),
        ([(b"", HEADER), (b"a", an_entry(kind=7))], "a holds text"),
        ([(b"", HEADER), (b"a", an_entry(kind=8))], "a is of type 8 of TensorFlow, which is not read"),
        ([(b"", HEADER), (b"a", an_entry(shard=1))], "a lies in data file 1 of 1"),
        ([(b"", HEADER), (b"a", an_entry(offset=1))], "ends in the middle of a"),
        ([(b"", HEADER), (b"a", an_entry(offset=-1))], "is no number from 0"),
        ([(b"", HEADER), (b"a", an_entry(shape=(1 << 40,), size=1 << 42))], "is shorter than the 1 tensor"),
        ([(b"", HEADER), (b"a", an_entry()), (b"b", an_entry())], "is shorter than the 2 tensors"),
        ([(b"", HEADER), (b"a", an_entry() + write_field(7, b""))], "a is partitioned, which is not read"),
        ([(b"", HEADER), (b"\0\1a\0\1\2", an_entry())], "is partitioned, which is not read"),
        ([(b"", HEADER), (b"\xff", an_entry())], "a name that is no UTF-8"),
        ([(b"", HEADER), (b"a", b"\x0b")], "a field of kind 3"),
        ([(b"", HEADER), (b"a", b"\x08" + b"\xff" * 12)], "a number without an end"),
        ([(b"", HEADER), (b"a", b"\x12\x7f")], "a field beyond the end"),
        ([(b"", HEADER), (b"_CHECKPOINTABLE_OBJECT_GRAPH", b"")], "it holds objects of TensorFlow 2"),
        ([(b"", HEADER)], "it holds no weights"),
        ([(b"a", an_entry())], "its header names no data files"),
        ([(b"", write_field(1, 1 << 40)), (b"a", an_entry())], "its header names no data files"),
        ([(b"", HEADER + write_field(2, 1)), (b"a", an_entry())], "its numbers are big endian"),
        ([(b"", HEADER), (b"b", an_entry()), (b"a", an_entry())], "its keys are not in order"),
        ([(b"", HEADER), (b"a", an_entry()), (b"a", an_entry())], "its keys are not in order"),
    ],
)
def test_an_index_that_does_not_fit_is_told(entries: list, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.data-00000-of-00001").write_bytes(np.float32([1, 2]).tobytes())
    (tmp_path / "m.index").write_bytes(table_of([(b"", HEADER), (b"a", an_entry())]))
    equal(read_tf1(tmp_path / "m")[0], {"a": np.float32([1, 2])})
    (tmp_path / "m.index").write_bytes(table_of(entries))
    with pytest.raises(UserError, match=message) as error:
        read_tf1(tmp_path / "m")
    assert "\n" not in str(error.value)


def test_flipped_bytes_and_cut_files_are_told_or_read(tmp_path: Path) -> None:
    write_tf1(tmp_path / "m", WEIGHTS)
    for end in (".index", ".data-00000-of-00001"):
        every_answer_is_an_error_or_weights(tmp_path / f"m{end}", read_and_compare)


def read_and_compare(path: Path) -> dict:
    """Checksums stand over everything here: what is read is what was written."""
    found, _ = read_tf1(path)
    equal(found, WEIGHTS)
    return found


# ----------------------------------------------------------------------------------------------------------------- V1


def v1_file(
    path: Path, tensors: dict[str, tuple[int, tuple[int, ...], bytes]], part: bytes = b"", **more: bytes
) -> Path:
    """A V1 checkpoint: per name the number of the type, the shape, the TensorProto's fields."""
    metas, entries = b"", []
    for name, (kind, shape, values) in sorted(tensors.items()):
        sizes = b"".join(write_field(2, write_field(1, n)) for n in shape)
        whole = b"".join(write_field(1, part) for _ in shape)
        meta = write_field(1, name.encode()) + write_field(2, sizes) + write_field(3, kind) + write_field(4, whole)
        metas += write_field(1, meta)
        data = write_field(1, name.encode()) + write_field(2, whole) + write_field(3, values)
        entries.append((b"\0" + name.encode(), write_field(2, data)))
    path.write_bytes(table_of([(b"", write_field(1, metas)), *entries], **more))
    return path


def packed(field: int, *numbers: int) -> bytes:
    return write_field(field, b"".join(map(write_varint, numbers)))


def test_v1_files_are_read_and_what_does_not_fit_is_told(tmp_path: Path) -> None:
    floats = write_field(5, np.float32([1, 2, 3, 4]).tobytes())
    good = {"a": (1, (2, 2), floats), "i": (3, (3,), packed(7, 5, -6, 7)), "l": (9, (), packed(10, -(1 << 40)))}
    half = {"h": (19, (2,), packed(13, *np.float16([0.5, -3]).view(np.uint16).tolist()))}
    slots = {"a/adam_m": (1, (2, 2), floats), "global_step": (9, (), packed(10, 3))}
    found, dropped = read_tf1(v1_file(tmp_path / "m.ckpt", good | half | slots))
    assert dropped == 2
    expected = {"a": np.float32([[1, 2], [3, 4]]), "i": np.int32([5, -6, 7]), "l": np.array(-(1 << 40))}
    equal(found, expected | {"h": np.float32([0.5, -3])})
    for tensor, message in [
        ((1, (2, 3), floats), "a has 16 bytes, which is not what its shape asks for"),
        ((1, (1 << 40,), floats), "a has 16 bytes, which is not what its shape asks for"),
        ((3, (4,), packed(7, 1, 2, 3)), "a has 3 values, which is not what its shape asks for"),
        ((1, (1,), write_fixed32(5, 0)), "a has its values one by one"),
        ((7, (1,), write_field(8, b"x")), "a holds text"),
        ((22, (1,), packed(16, 1)), "a is of type uint32, which this form does not have"),
        ((1, (1,), b"\x2a\x7f"), "a field beyond the end"),
    ]:
        with pytest.raises(UserError, match=message):
            read_tf1(v1_file(tmp_path / "m.ckpt", {"a": tensor}))
    with pytest.raises(UserError, match="a is partitioned, which is not read"):
        read_tf1(v1_file(tmp_path / "m.ckpt", {"a": (1, (2, 2), floats)}, part=write_field(2, 2)))
    (tmp_path / "m.ckpt").write_bytes(table_of([(b"", b"")]))
    with pytest.raises(UserError, match="it holds no weights"):
        read_tf1(tmp_path / "m.ckpt")
    (tmp_path / "m.ckpt").write_bytes(b"no table" * 20)
    with pytest.raises(UserError, match="its end is not that of a table"):
        read_tf1(tmp_path / "m.ckpt")


def test_v1_files_with_a_tensor_twice_or_missing_are_told(tmp_path: Path) -> None:
    path = v1_file(tmp_path / "m", {name: (1, (1,), write_field(5, bytes(4))) for name in "ab"})
    with open(path, "rb") as file:
        (_, head), a, b = read_table(file, path.stat().st_size)
    for entries, message in [
        ([a], "b is announced and not there"),
        ([a, (b"\0b", a[1]), (b"\0c", b[1])], "a is there twice or without a shape"),
    ]:
        path.write_bytes(table_of([(b"", head), *entries]))
        with pytest.raises(UserError, match=message):
            read_tf1(path)


def test_flipped_bytes_in_v1_are_told_or_read(tmp_path: Path) -> None:
    path = v1_file(tmp_path / "m", {"a": (1, (3,), write_field(5, bytes(12))), "i": (3, (2,), packed(7, 1, 2))})
    every_answer_is_an_error_or_weights(path, lambda path: read_tf1(path)[0])


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("snappy", [False, True])
def test_tables_of_many_blocks_and_shared_prefixes_are_read(snappy: bool, tmp_path: Path) -> None:
    entries = [(f"layer_{i:04d}/kernel".encode(), os.urandom(20) + b"same" * i) for i in range(300)]
    path = tmp_path / "t"
    for per_block, per_restart in [(1, 1), (7, 3), (100, 16)]:
        path.write_bytes(table_of(entries, snappy, per_block, per_restart))
        with open(path, "rb") as file:
            assert list(read_table(file, path.stat().st_size)) == entries


def test_our_table_is_read_back(tmp_path: Path) -> None:
    for entries in ([], [(b"", b"x")], [(b"", b""), (b"a", bytes(1000)), (b"\xff\xff", b"z")]):
        (tmp_path / "t").write_bytes(raw := write_table(entries))
        with open(tmp_path / "t", "rb") as file:
            assert list(read_table(file, len(raw))) == entries


def test_snappy_is_what_a_real_compressor_made() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    texts = [b"", b"a", b"ab" * 40, bytes(100_000), rng.bytes(70_000), b"".join(b"%d, " % i for i in range(20_000))]
    texts += [rng.integers(0, 3, size, np.uint8).tobytes() for size in (10, 63, 64, 65, 255, 256, 257, 65_537, 300_000)]
    for text in texts:
        assert unsnappy(pyarrow.compress(text, codec="snappy", asbytes=True)) == text


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\xff\xff\xff\xff\x0f", "promises more than it can hold"),
        (b"\x05\x00a", "holds less than it promises"),
        (b"\x01\x04ab", "holds more than it promises"),
        (b"\x05\x10abcd", "ends in the middle"),
        (b"\x05\xf0", "ends in the middle"),
        (b"\x05\x05\x01", "copies from before its begin"),
        (b"\x05\x00a\x05\x02", "copies from before its begin"),
        (b"\x05\x00a\x05\x00", "copies from before its begin"),
        (b"\x05\x00a\x0e\x01", "copies from before its begin"),
    ],
)
def test_damaged_snappy_is_told(raw: bytes, message: str) -> None:
    with pytest.raises(BadTable, match=message):
        unsnappy(raw)
    with pytest.raises(BadMessage):
        unsnappy(b"\xff" * 11)
