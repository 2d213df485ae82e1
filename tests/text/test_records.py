"""Shards: what is written is read, in any order; what is damaged is named."""

from __future__ import annotations

import gzip
import os
import struct

import google_crc32c
import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.text import example
from bert_jax.text.features import RecordSpec, check, restore
from bert_jax.text.records import open_shard, write_shard
from tests.text import tiny

SPEC = RecordSpec(32, 4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_JAX_CACHE", str(tmp_path / "cache"))


def _written(path, n=50, block=16):
    records = tiny.records(n)
    blocks = [{k: v[at : at + block] for k, v in records.items()} for at in range(0, n, block)]
    return records, write_shard(path, blocks, SPEC)


def _assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype, name
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_what_is_written_is_read_in_any_order(tmp_path):
    records, summary = _written(tmp_path / "a.tfrecord")
    shard = open_shard(tmp_path / "a.tfrecord")
    numbers = np.random.default_rng(0).permutation(np.arange(50).repeat(2))
    _assert_same(shard.read(numbers), {name: values[numbers] for name, values in records.items()})
    assert shard.spec == SPEC and shard.num_records == summary.records == 50
    np.testing.assert_array_equal(shard.tokens, records["input_mask"].sum(1))
    assert summary.tokens == records["input_mask"].sum()
    assert summary.bytes == os.path.getsize(tmp_path / "a.tfrecord")


def test_a_lost_or_foreign_index_is_made_again(tmp_path):
    records, _ = _written(tmp_path / "a.tfrecord")
    expected = (tmp_path / "a.tfrecord.idx").read_bytes()
    for spoiled in (None, b"nonsense", expected[:-1], expected[:30] + b"\1" + expected[31:]):
        (tmp_path / "a.tfrecord.idx").unlink()
        if spoiled is not None:
            (tmp_path / "a.tfrecord.idx").write_bytes(spoiled)
        shard = open_shard(tmp_path / "a.tfrecord")
        np.testing.assert_array_equal(shard.tokens, records["input_mask"].sum(1))
        assert (tmp_path / "a.tfrecord.idx").read_bytes() == expected


def test_gzip_shards_are_read_at_random_too(tmp_path):
    records, _ = _written(tmp_path / "a.tfrecord")
    (tmp_path / "b.tfrecord.gz").write_bytes(gzip.compress((tmp_path / "a.tfrecord").read_bytes()))
    numbers = np.array([41, 3, 3, 0])
    found = open_shard(tmp_path / "b.tfrecord.gz").read(numbers)
    _assert_same(found, {name: values[numbers] for name, values in records.items()})


def test_half_a_gzip_is_named(tmp_path):
    _written(tmp_path / "a.tfrecord")
    packed = gzip.compress((tmp_path / "a.tfrecord").read_bytes())
    (tmp_path / "b.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"b\.gz: the gzip stream is damaged"):
        open_shard(tmp_path / "b.gz")
    assert not list((tmp_path / "cache").iterdir())


def test_every_flipped_byte_is_found_and_named(tmp_path):
    _written(tmp_path / "a.tfrecord", n=3)
    whole = (tmp_path / "a.tfrecord").read_bytes()
    first = struct.unpack("<Q", whole[:8])[0] + 16
    for at in (12, 100, first - 1, first + 20):
        (tmp_path / "a.tfrecord").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        record, offset = (0, 0) if at < first else (1, first)
        with pytest.raises(UserError, match=rf"a\.tfrecord, record {record} at byte {offset}: the checksum"):
            open_shard(tmp_path / "a.tfrecord").read(np.arange(3))


def test_a_cut_shard_names_the_record_and_the_offset(tmp_path):
    _written(tmp_path / "a.tfrecord", n=3)
    whole = (tmp_path / "a.tfrecord").read_bytes()
    second = struct.unpack("<Q", whole[:8])[0] + 16
    for size in (second + 5, second + 60):
        (tmp_path / "a.tfrecord").write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf"record 1 at byte {second}: the file ends in the middle"):
            open_shard(tmp_path / "a.tfrecord")


@pytest.mark.parametrize("content", [b"this is some text, not a TFRecord file at all", b"short"])
def test_other_files_are_not_taken_for_shards(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match="a.txt, record 0 at byte 0"):
        open_shard(tmp_path / "a.txt")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="none.tfrecord"):
        open_shard(tmp_path / "none.tfrecord")


def test_a_record_that_is_no_example_is_named_with_its_place(tmp_path):
    for body in (b"\x0a\xff\xff", b"hello, world", b"\x0a\x03\x0a\x01\x07"):
        (tmp_path / "a.tfrecord").write_bytes(_frame(body))
        with pytest.raises(UserError, match=r"a\.tfrecord, record 0 at byte \d+"):
            open_shard(tmp_path / "a.tfrecord")


def test_records_of_another_length_among_others_are_named(tmp_path):
    one, _ = example.encode(tiny.records(2))
    other, sizes = example.encode(tiny.records(1, length=31))
    ends = np.cumsum(example.encode(tiny.records(2))[1])
    bodies = [one[: ends[0]], one[ends[0] :], other]
    (tmp_path / "a.tfrecord").write_bytes(b"".join(_frame(body.tobytes()) for body in bodies))
    with pytest.raises(UserError, match="record 2 at byte .* 32"):
        open_shard(tmp_path / "a.tfrecord")


def test_a_failed_write_leaves_nothing(tmp_path):
    def blocks():
        yield tiny.records(4)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        write_shard(tmp_path / "a.tfrecord", blocks(), SPEC)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_for_the_index_is_no_obstacle(tmp_path, monkeypatch):
    records, _ = _written(tmp_path / "a.tfrecord")
    (tmp_path / "a.tfrecord.idx").unlink()
    (tmp_path / "a.tfrecord.idx").mkdir()  # where the index should stand, nothing can be put
    shard = open_shard(tmp_path / "a.tfrecord")
    np.testing.assert_array_equal(shard.tokens, records["input_mask"].sum(1))
    assert len(list((tmp_path / "cache").glob("*.idx"))) == 1
    monkeypatch.setenv("BERT_JAX_CACHE", "/dev/null/nowhere")
    np.testing.assert_array_equal(open_shard(tmp_path / "a.tfrecord").tokens, shard.tokens)


# ------------------------------------------------------------------------------------------------------------
# Whatever protobuf allows


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = b""
    while value >= 128:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _frame(body: bytes) -> bytes:
    def crc(data: bytes) -> bytes:
        value = google_crc32c.value(data)
        return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    size = struct.pack("<Q", len(body))
    return size + crc(size) + body + crc(body)


ODDITIES = ("unpacked", "split", "reversed", "shuffled", "unknown")


def _unusual(records: dict, row: int, rng: np.random.Generator, odd: tuple[str, ...]) -> bytes:
    """An Example with some of the oddities that protobuf allows."""
    entries = []
    for name, values in records.items():
        values = np.atleast_1d(values[row])
        if name == "word_starts":
            listed = _field(1, _field(1, np.packbits(values, bitorder="little").tobytes()))
        elif name == "masked_lm_weights":
            floats = [struct.pack("<f", value) for value in values]
            one_by_one = b"".join(b"\x0d" + value for value in floats)
            listed = _field(2, one_by_one if "unpacked" in odd else _field(1, b"".join(floats)))
        elif "unpacked" in odd and rng.random() < 0.5:
            listed = _field(3, b"".join(b"\x08" + _varint(int(value)) for value in values))
        else:
            half = len(values) // 2 if "split" in odd else 0
            parts = (values[:half], values[half:]) if half else (values,)
            listed = _field(3, b"".join(_field(1, b"".join(_varint(int(v)) for v in part)) for part in parts))
        fields = [_field(1, name.encode()), _field(2, listed)]
        entries.append(_field(1, b"".join(fields[::-1] if "reversed" in odd else fields)))
    if "unknown" in odd:
        entries.append(_field(1, _field(1, b"unknown_thing") + _field(2, _field(1, _field(1, b"x" * 300)))))
    if "shuffled" in odd:
        rng.shuffle(entries)
    return _field(1, b"".join(entries)) + (bytes([15 << 3]) + _varint(77) if "unknown" in odd else b"")


@pytest.mark.parametrize("odd", [*((one,) for one in ODDITIES), ODDITIES], ids="+".join)
def test_unusual_examples_among_usual_ones_are_read(tmp_path, odd):
    records, rng = tiny.records(12), np.random.default_rng(1)
    usual, sizes = example.encode(records)
    ends = np.cumsum(sizes)
    bodies = [
        _unusual(records, row, rng, odd) if row % 3 else usual[ends[row] - sizes[row] : ends[row]].tobytes()
        for row in range(12)
    ]
    (tmp_path / "a.tfrecord").write_bytes(b"".join(map(_frame, bodies)))
    _assert_same(open_shard(tmp_path / "a.tfrecord").read(np.arange(12)), records)


def test_the_seven_features_alone_are_enough(tmp_path):
    records = {k: v for k, v in tiny.records(5).items() if k not in ("word_starts", "documents", "relation")}
    write_shard(tmp_path / "a.tfrecord", [records], SPEC)
    _assert_same(open_shard(tmp_path / "a.tfrecord").read(np.arange(5)), records)


def test_restore_gives_the_original_ids_back_and_changes_nothing():
    records = tiny.records(1)
    records["input_ids"][0] = np.arange(100, 132)
    records["masked_lm_positions"][0] = [3, 7, 0, 0]
    records["masked_lm_ids"][0] = [555, 777, 0, 0]
    records["masked_lm_weights"][0] = [1, 1, 0, 0]
    expected = np.arange(100, 132)
    expected[[3, 7]] = 555, 777
    np.testing.assert_array_equal(restore(records)[0], expected)
    assert records["input_ids"][0, 3] == 103 and records["input_ids"][0, 0] == 100


@pytest.mark.parametrize(
    ("name", "value"),
    [("input_ids", 30_000), ("input_ids", -1), ("masked_lm_ids", 2**31 - 1), ("masked_lm_positions", 32)],
)
def test_values_out_of_range_are_refused_by_shard_and_record(name, value):
    records = tiny.records(9)
    check(records, SPEC, 30_000, "some-shard")
    records[name][6, 1] = value
    with pytest.raises(UserError, match=f"some-shard, record 46: {name} holds {value}"):
        check(records, SPEC, 30_000, "some-shard", first=40)


def test_ids_beyond_int32_stay_out_of_range(tmp_path):
    records = tiny.records(3)
    records["input_ids"] = records["input_ids"].astype(np.int64)
    records["input_ids"][1, 2] = 2**32 + 5
    write_shard(tmp_path / "a.tfrecord", [records], SPEC)
    with pytest.raises(UserError, match="record 1: input_ids holds 2147483647"):
        check(open_shard(tmp_path / "a.tfrecord").read(np.arange(3)), SPEC, 30_000, "x")
