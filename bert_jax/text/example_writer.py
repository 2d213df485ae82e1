"""Arrays to bytes of tf.train.Example, a block of records at a time, without TensorFlow or protobuf.

The bytes are the canonical ones: map entries in the order of their names, packed lists, shortest varints, as
protobuf's deterministic serialisation gives them. example.py names the messages.

A record is cut where its varints vary in size: what lies between is as wide in every row, so it is laid out as one
byte matrix for all rows and copied row by row; varints are then put byte by byte into the gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from bert_jax.text.features import KINDS, Records
from bert_jax.text.wire import write_varint


def encode(
    records: Records, frame: Callable[[int], bytes] = lambda size: b"", after: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The Examples of a block of records.

    Args:
        records: arrays by feature name; all with n rows; `word_starts` bool[n,T], the rest numbers. About a
            thousand rows of 128 tokens at once, fewer of longer ones, stay in the processor's cache.
        frame: what stands before an Example of the given size, always as many bytes.
        after: bytes left free behind each Example.

    Returns:
        The concatenated bytes uint8[m], and the length of each Example (alone) int64[n].
    """
    n = len(records["input_ids"])
    if n == 0:
        return np.zeros(0, np.uint8), np.zeros(0, np.int64)
    segments = _segments(records, n)
    size = np.zeros(n, np.int64)
    for segment in segments:
        size += segment.size
        if segment.varints is not None:
            size += segment.varints.size
    heads, head_size = _rows_by_size(_beginning, frame, size)
    whole = head_size + size + after
    ends = np.cumsum(whole)
    total = int(ends[-1])
    # Rows of bytes may be wider than what they say, by a byte or so for each length in them. What is too much is
    # overwritten by what follows (lengths differ in bytes only before payloads longer than that), or is in the spare.
    spare = max([heads.shape[1], *(segment.rows.shape[1] for segment in segments)])
    out = np.empty(total + spare, np.uint8)
    at = ends - whole
    _put_rows(out, at, heads)
    at += head_size
    gaps = []
    for segment in segments:
        _put_rows(out, at, segment.rows)
        at += segment.size
        if segment.varints is not None:
            gaps.append((at.copy(), segment.varints))
            at += segment.varints.size
    for at, varints in gaps:
        _put_varints(out, at, varints)
    return out[:total], whole - after - len(frame(0))


@dataclass(frozen=True)
class _Varints:
    values: np.ndarray  # unsigned[n,k]
    lengths: np.ndarray  # uint8[n,k], bytes of each
    width: int  # the largest of lengths
    size: np.ndarray  # int64[n], bytes of a row


@dataclass(frozen=True)
class _Segment:
    """Bytes that every row has, and the varints after them. `size` of each row, where some do not fill `rows`."""

    rows: np.ndarray  # uint8[n,w]
    size: int | np.ndarray
    varints: _Varints | None


def _segments(records: Records, n: int) -> list[_Segment]:
    segments: list[_Segment] = []
    pieces: list[np.ndarray] = []  # each [n,w] or, the same for all rows, [w]

    def close(size: np.ndarray | None = None, varints: _Varints | None = None) -> None:
        edges = np.cumsum([0, *(piece.shape[-1] for piece in pieces)])
        rows = np.empty((n, int(edges[-1])), np.uint8)
        for piece, begin, end in zip(pieces, edges[:-1], edges[1:], strict=True):
            np.copyto(rows[:, begin:end], piece, casting="unsafe")
        fixed = rows.shape[1] if size is None else rows.shape[1] - pieces[-1].shape[1] + size
        segments.append(_Segment(rows, fixed, varints))
        pieces.clear()

    for name in sorted(records):
        values = records[name].reshape(n, -1)
        kind = KINDS.get(name, 3)
        if kind == 1:
            values = np.packbits(values, axis=1, bitorder="little")
        elif kind == 2:
            values = np.ascontiguousarray(values, "<f4").view(np.uint8)
        else:
            low, high = int(values.min(initial=0)), int(values.max(initial=0))
            if low < 0 or high > 127:
                varints = _varints(values, low, high)
                head, size = _rows_by_size(_head, name, varints.size)
                pieces.append(head)
                close(size, varints)
                continue
        pieces += [np.frombuffer(_head(name, values.shape[1]), np.uint8), values]
    if pieces:
        close()
    return segments


def _head(name: str, size: int) -> bytes:
    """The map entry of a feature up to its payload of `size` bytes."""
    listed = _length(size)
    feature = bytes([KINDS.get(name, 3) << 3 | 2]) + write_varint(len(listed) + size) + listed
    key = name.encode()
    entry = b"\x0a" + write_varint(len(key)) + key + b"\x12" + write_varint(len(feature) + size) + feature
    return b"\x0a" + write_varint(len(entry) + size) + entry


def _beginning(frame: Callable[[int], bytes], size: int) -> bytes:
    """The frame's head and the Example up to the `size` bytes of its Features."""
    return frame(len(_length(size)) + size) + _length(size)


def _length(size: int) -> bytes:
    """Tag and length of field 1 with `size` bytes."""
    return b"\x0a" + write_varint(size)


def _rows_by_size(make: Callable[[Any, int], bytes], of: Hashable, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes `make(of, size)` for each of int64[n] sizes: uint8[n,w] filled up with zeros, and their lengths."""
    first, last = int(sizes.min()) >> 10, int(sizes.max()) >> 10
    table, lengths = _table_by_size(make, of, first << 10, last + 1 << 10)
    which = sizes - (first << 10)
    chosen = lengths[which]
    return table[:, : chosen.max()][which], chosen


@lru_cache(maxsize=64)
def _table_by_size(
    make: Callable[[Any, int], bytes], of: Hashable, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same for all sizes of a range: sizes are few, so blocks of records share these tables."""
    made = [make(of, size) for size in range(first, last)]
    width = max(map(len, made))
    table = np.frombuffer(b"".join(each.ljust(width, b"\0") for each in made), np.uint8).reshape(-1, width)
    return table, np.array([len(each) for each in made], np.int64)


def _varints(values: np.ndarray, low: int, high: int) -> _Varints:
    """Integers [n,k] in low..high; negative ones take ten bytes, as protobuf's int64 does."""
    if low < 0:
        values, width = values.astype(np.int64).view(np.uint64), 10
    else:
        values = values.astype(np.uint16 if high < 2**16 else np.uint32 if high < 2**32 else np.uint64)
        width = max(1, -(-high.bit_length() // 7))
    lengths = np.ones(values.shape, np.uint8)
    for place in range(1, width):
        lengths += values >= values.dtype.type(1 << 7 * place)
    return _Varints(values, lengths, width, lengths.sum(1, dtype=np.int64))


def _put_rows(out: np.ndarray, at: np.ndarray, rows: np.ndarray) -> None:
    """Row i to the bytes from at[i] on."""
    width = rows.shape[1]
    view = np.lib.stride_tricks.as_strided(out, (len(out) - width + 1, width), (1, 1))
    view[at] = rows


def _put_varints(out: np.ndarray, at: np.ndarray, varints: _Varints) -> None:
    """The varints of row i from at[i] on.

    All third bytes are put, then all second ones, then all first ones, whether a value has them or not: what a
    short value puts too far lies where a later value has an earlier byte, which comes after. At the end of a
    row, where nothing comes after, the place is held within the row.
    """
    n, k = varints.values.shape
    place = np.empty((n, k), np.int64)
    place[:, 0] = at
    place[:, 1:] = varints.lengths[:, :-1]
    np.cumsum(place, axis=1, out=place)
    tail = place[:, -(varints.width - 1) :].copy() if varints.width > 1 else place[:, k:]
    for number in reversed(range(varints.width)):
        byte = (varints.values >> varints.values.dtype.type(7 * number)).astype(np.uint8)
        if number + 1 < varints.width:
            byte &= np.uint8(127)
            byte |= (varints.lengths > number + 1).view(np.uint8) << np.uint8(7)
        place[:, k - tail.shape[1] :] = np.minimum(tail, (at + varints.size - 1 - number)[:, None])
        out[number:][place] = byte
