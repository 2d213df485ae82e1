"""Shards: what is written is read, in any order; what is damaged is named."""

from __future__ import annotations

import gzip
import os
import resource
import struct
import time

import google_crc32c
import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.text.example_writer import encode
from bert_jax.text.features import RecordSpec, check, restore
from bert_jax.text.records import open_shard, read_together, write_shard
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


def test_shards_may_be_more_than_files_that_may_be_open(tmp_path):
    records, _ = _written(tmp_path / "a.tfrecord", 5)
    shards = [open_shard(tmp_path / "a.tfrecord") for _ in range(20)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    try:
        for shard in shards:
            _assert_same(shard.read(np.array([3])), {name: values[[3]] for name, values in records.items()})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_gzip_shards_are_read_at_random_too(tmp_path):
    records, _ = _written(tmp_path / "a.tfrecord")
    (tmp_path / "b.tfrecord.gz").write_bytes(gzip.compress((tmp_path / "a.tfrecord").read_bytes()))
    numbers = np.array([41, 3, 3, 0])
    found = open_shard(tmp_path / "b.tfrecord.gz").read(numbers)
    _assert_same(found, {name: values[numbers] for name, values in records.items()})


def test_unpacked_shards_are_forgotten_when_nobody_opens_them(tmp_path):
    records, _ = _written(tmp_path / "a.tfrecord")
    for name in ("old", "used", "open", "new"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / "a.tfrecord").read_bytes()))
    month = time.time() - 31 * 86_400
    for name in ("old", "used", "open"):
        opened = open_shard(tmp_path / f"{name}.gz")
        opened.read(np.array([0]))
    for path in (tmp_path / "cache").iterdir():
        os.utime(path, (month, month))
    open_shard(tmp_path / "used.gz")
    open_shard(tmp_path / "new.gz")  # unpacks, and so looks around
    assert {path.name.split(".")[0] for path in (tmp_path / "cache").iterdir()} == {"used", "new"}
    assert len(list((tmp_path / "cache").iterdir())) == 4  # each with its index
    _assert_same(opened.read(np.arange(50)), records)
    _assert_same(open_shard(tmp_path / "old.gz").read(np.arange(50)), records)


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
    one, _ = encode(tiny.records(2))
    other, sizes = encode(tiny.records(1, length=31))
    ends = np.cumsum(encode(tiny.records(2))[1])
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


def _canonical(records: dict) -> list[bytes]:
    """The Examples one by one, by the rules of the wire format."""
    rng = np.random.default_rng(0)
    ordered = {name: records[name] for name in sorted(records)}
    return [_unusual(ordered, row, rng, ()) for row in range(len(records["input_ids"]))]


def _assert_canonical(records: dict) -> None:
    out, sizes = encode(records)
    ends = np.cumsum(sizes)
    found = [out[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True)]
    assert found == _canonical(records) and ends[-1] == len(out)


def test_values_of_all_sizes_side_by_side_are_written_as_one_by_one(tmp_path):
    edges = np.array([0, 1, 127, 128, 16_383, 16_384, 2**21 - 1])
    rng, records = np.random.default_rng(3), tiny.records(300)
    records["input_ids"] = rng.choice(edges, (300, 32)).astype(np.int32)
    records["input_ids"][:9] = np.repeat(edges[[0, 2, 3, 4, 5, 6, 1, 3, 0]], 32).reshape(9, 32)
    records["masked_lm_ids"] = rng.choice(edges, (300, 4))
    _assert_canonical(records)
    write_shard(tmp_path / "a.tfrecord", [records], SPEC)
    found = open_shard(tmp_path / "a.tfrecord").read(np.arange(300)[::-1])
    np.testing.assert_array_equal(found["input_ids"], records["input_ids"][::-1])
    np.testing.assert_array_equal(found["masked_lm_ids"], records["masked_lm_ids"][::-1])


@pytest.mark.parametrize("highest", [2**21, 2**28, 2**35, 2**62])
def test_values_of_more_than_three_bytes_and_negative_ones(tmp_path, highest):
    rng, records = np.random.default_rng(4), tiny.records(40)
    records["documents"] = np.where(rng.random((40, 2)) < 0.3, rng.integers(0, 300, (40, 2)), highest - 1)
    records["documents"][20:] = rng.integers(-highest, highest, (20, 2))
    for part in (slice(0, 20), slice(0, 40)):
        _assert_canonical({name: values[part] for name, values in records.items()})
    write_shard(tmp_path / "a.tfrecord", [records], SPEC)
    _assert_same(open_shard(tmp_path / "a.tfrecord").read(np.arange(40)), records)


def test_varints_at_the_end_of_a_record_spare_the_next_one():
    records = {name: tiny.records(200)[name] for name in ("input_ids", "segment_ids")}
    records["segment_ids"] = np.random.default_rng(5).choice([0, 1, 200, 40_000], (200, 32))
    records["segment_ids"][::2, -3:] = 0  # short values last, where long ones stand in other rows
    _assert_canonical(records)


def test_lengths_that_need_a_byte_more_in_some_rows_only(tmp_path):
    records, spec = tiny.records(200, length=64, predictions=60), RecordSpec(64, 60)
    for row in range(200):  # 60 to 180 bytes of ids: each of the four lengths before them passes 127 somewhere
        records["masked_lm_ids"][row] = np.where(np.arange(60) < row * 60 // 200, 20_000, 5)
    _assert_canonical(records)
    write_shard(tmp_path / "a.tfrecord", [records], spec)
    numbers = np.random.default_rng(6).permutation(200)
    _assert_same(
        open_shard(tmp_path / "a.tfrecord").read(numbers), {name: values[numbers] for name, values in records.items()}
    )


def test_records_of_padding_alone(tmp_path):
    records = {name: np.zeros_like(values) for name, values in tiny.records(7).items()}
    _assert_canonical(records)
    summary = write_shard(tmp_path / "a.tfrecord", [records], SPEC)
    assert summary.tokens == 0
    _assert_same(open_shard(tmp_path / "a.tfrecord").read(np.arange(7)), records)


def test_the_size_of_blocks_leaves_no_trace(tmp_path, monkeypatch):
    expected = None
    for block, values in ((50, 1 << 18), (1, 1 << 18), (7, 1 << 18), (50, 96), (50, 1)):
        monkeypatch.setattr("bert_jax.text.records._VALUES", values)
        monkeypatch.setattr("bert_jax.text.example._VALUES", values)
        records, summary = _written(tmp_path / "a.tfrecord", block=block)
        found = (tmp_path / "a.tfrecord").read_bytes(), (tmp_path / "a.tfrecord.idx").read_bytes(), summary
        expected = expected or found
        assert found == expected
        _assert_same(open_shard(tmp_path / "a.tfrecord").read(np.arange(50)), records)


@pytest.mark.parametrize("blocks", [0, 1])
def test_no_records(tmp_path, blocks):
    summary = write_shard(tmp_path / "a.tfrecord", [tiny.records(0)] * blocks, SPEC)
    shard = open_shard(tmp_path / "a.tfrecord")
    assert summary.records == summary.bytes == shard.num_records == 0
    assert shard.read(np.zeros(0, np.int64))["input_ids"].shape == (0, 0)
    _written(tmp_path / "b.tfrecord")
    assert open_shard(tmp_path / "b.tfrecord").read(np.zeros(0, np.int64))["input_ids"].shape == (0, 32)


def test_a_second_read_leaves_the_first_one_alone(tmp_path):
    records, _ = _written(tmp_path / "a.tfrecord")
    shard = open_shard(tmp_path / "a.tfrecord")
    first = shard.read(np.arange(20))
    second = shard.read(np.arange(20, 40))
    for values in second.values():
        assert not any(np.shares_memory(values, other) for other in first.values())
        values[:] = 0
    _assert_same(first, {name: values[:20] for name, values in records.items()})


def test_records_of_several_shards_are_read_together(tmp_path):
    made = [_written(tmp_path / f"{name}.tfrecord", n)[0] for name, n in (("a", 50), ("b", 20))]
    shards = [open_shard(tmp_path / f"{name}.tfrecord") for name in "ab"]
    places, numbers = np.array([1, 0, 1, 1, 0]), np.array([19, 49, 0, 19, 3])
    expected = {
        name: np.stack([made[place][name][number] for place, number in zip(places, numbers, strict=True)])
        for name in made[0]
    }
    _assert_same(read_together(shards, places, numbers), expected)
    with pytest.raises(IndexError, match="b.tfrecord has 20 records"):
        read_together(shards, np.array([0, 1]), np.array([20, 20]))
    write_shard(tmp_path / "c.tfrecord", [tiny.records(3, length=31)], RecordSpec(31, 4))
    with pytest.raises(UserError, match=r"c\.tfrecord, record 2 at byte .* 32"):
        read_together([*shards, open_shard(tmp_path / "c.tfrecord")], np.array([0, 2]), np.array([5, 2]))


@pytest.mark.parametrize("odd", [*((one,) for one in ODDITIES), ODDITIES], ids="+".join)
def test_unusual_examples_among_usual_ones_are_read(tmp_path, odd):
    records, rng = tiny.records(12), np.random.default_rng(1)
    usual, sizes = encode(records)
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


def test_numbers_of_every_size_are_read(tmp_path):
    """Where a varint gets another byte, and where a narrower dtype no longer holds it; between ones of few bytes."""
    edges = [0, *(2**bits + step for bits in (7, 8, 14, 15, 16, 21, 28) for step in (-1, 0)), 2**31 - 1, -1]
    rng, records = np.random.default_rng(0), tiny.records(60)
    for most in range(2, len(edges) + 1):
        for name in ("input_ids", "masked_lm_ids", "masked_lm_positions"):
            records[name] = rng.choice(edges[:most], records[name].shape).astype(np.int32)
        write_shard(tmp_path / "a.tfrecord", [records], SPEC)
        shard = open_shard(tmp_path / "a.tfrecord")
        _assert_same(shard.read(np.arange(60)), records)
        narrow = read_together([shard], np.zeros(60, np.int64), np.arange(60), narrow=True)
        for name, values in records.items():
            np.testing.assert_array_equal(narrow[name], values, err_msg=name)


def test_what_was_asked_for_is_read_and_nothing_else(tmp_path):
    records, _ = _written(tmp_path / "a.tfrecord")
    names = ("masked_lm_ids", "input_mask", "word_starts")
    found = read_together([open_shard(tmp_path / "a.tfrecord")], np.zeros(50, np.int64), np.arange(50), names=names)
    _assert_same(found, {name: records[name] for name in names})


@pytest.mark.parametrize("block", [1, 5, 8192])
def test_records_with_other_features_are_read_together(tmp_path, monkeypatch, block):
    """With and without our own features, and with sizes of one and of two bytes, in each block and between blocks."""
    monkeypatch.setattr("bert_jax.text.example._BLOCK", block)
    records, shards = tiny.records(24), []
    records["masked_lm_ids"][::3] = 20_000
    records["input_ids"][::4] = 2**28  # 160 bytes, so that their size and those of what is around them have two
    for number, left_out in enumerate(((), ("documents",), ("word_starts", "relation"))):
        kept = {name: values for name, values in records.items() if name not in left_out}
        write_shard(tmp_path / f"{number}.tfrecord", [kept], SPEC)
        shards.append(open_shard(tmp_path / f"{number}.tfrecord"))
    places, numbers = np.random.default_rng(0).permutation(np.arange(72) % 3), np.arange(72) % 24
    expected = {name: values[numbers] for name, values in records.items()}
    shared = read_together(shards, places, numbers, shared=True)
    ours = ("documents", "word_starts", "relation")
    _assert_same(shared, {name: values for name, values in expected.items() if name not in ours})
    expected["documents"][places == 1] = -1
    expected["word_starts"][places == 2] = False
    if "relation" in expected:
        expected["relation"][places == 2] = 0
    _assert_same(read_together(shards, places, numbers), expected)


def test_small_dtypes_are_checked_like_others():
    records = tiny.records(9)
    narrow = records | {name: records[name].astype(np.uint8) for name in ("input_mask", "segment_ids")}
    check(narrow, SPEC, 30_000, "some-shard")
    narrow["segment_ids"][7, 3] = 2
    with pytest.raises(UserError, match="some-shard, record 7: segment_ids holds 2"):
        check(narrow, SPEC, 30_000, "some-shard")
    narrow["segment_ids"][7, 3] = 1
    narrow["input_mask"][4, :2] = 0, 1
    with pytest.raises(UserError, match="some-shard, record 4: padding stands before a token"):
        check(narrow, SPEC, 30_000, "some-shard")


def test_ids_beyond_int32_stay_out_of_range(tmp_path):
    records = tiny.records(3)
    records["input_ids"] = records["input_ids"].astype(np.int64)
    records["input_ids"][1, 2] = 2**32 + 5
    write_shard(tmp_path / "a.tfrecord", [records], SPEC)
    with pytest.raises(UserError, match="record 1: input_ids holds 2147483647"):
        check(open_shard(tmp_path / "a.tfrecord").read(np.arange(3)), SPEC, 30_000, "x")
