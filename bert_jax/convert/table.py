"""Tables of sorted keys, as LevelDB and TensorFlow's checkpoints write them (leveldb/doc/table_format.md).

Blocks, then a block of handles (offset, size) of these, then a footer of 48 bytes: handles of two blocks, padding, the
magic. Behind each block stand one byte for its kind (0 plain, 1 snappy) and a masked CRC32C over block and kind. In a
block every entry says how many bytes of the key before it shares; at its end are the places where that begins anew.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import google_crc32c

from bert_jax.text.records import mask_crc
from bert_jax.text.wire import BadMessage, varint, write_varint

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER = 48
_TRAILER = 5
_SNAPPY_RATIO = 32  # a copy makes 64 bytes out of three: more than 22 to 1 cannot be


class BadTable(ValueError):
    """Not a table, or a damaged one; the message is for a person."""


def masked_crc(data: bytes) -> int:
    return mask_crc(google_crc32c.value(data))


def read_table(file: BinaryIO, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values in order, checksums compared, a block at a time.

    Args:
        size: of the file in bytes.

    Raises:
        BadTable: no table, a checksum that does not hold, keys out of order or twice.
    """
    try:
        file.seek(max(0, size - _FOOTER))
        footer = file.read(_FOOTER)
        if len(footer) < _FOOTER or footer[-8:] != MAGIC:
            raise BadTable("its end is not that of a table")
        _, at = _handle(footer, 0)
        index, _ = _handle(footer, at)
        last = None
        for _, handle in _entries(_block(file, size, *index)):
            for key, value in _entries(_block(file, size, *_handle(handle, 0)[0])):
                if last is not None and key <= last:
                    raise BadTable("its keys are not in order")
                last = key
                yield key, value
    except (BadMessage, IndexError, struct.error) as error:
        raise BadTable(f"a block of it is damaged ({error})") from None


def write_table(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A table of one plain block. `entries` must be in order of their keys."""
    body = b"".join(_entry(key, value) for key, value in entries)
    first = _sealed(body + struct.pack("<II", 0, 1))
    nothing = _sealed(struct.pack("<II", 0, 1))
    handles = [write_varint(0) + write_varint(len(first) - _TRAILER)]
    # The key of a handle is one that no key of its block is above.
    index = _sealed(_entry(b"\xff" * 8, handles[0]) + struct.pack("<II", 0, 1))
    at = len(first)
    for block in (nothing, index):
        handles.append(write_varint(at) + write_varint(len(block) - _TRAILER))
        at += len(block)
    footer = b"".join(handles[1:])
    return first + nothing + index + footer.ljust(_FOOTER - len(MAGIC), b"\0") + MAGIC


# ------------------------------------------------------------------------------------------------------------- blocks


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(file: BinaryIO, file_size: int, offset: int, size: int) -> bytes:
    if offset + size + _TRAILER > file_size:
        raise BadTable("a block lies beyond its end")
    file.seek(offset)
    raw = file.read(size + _TRAILER)
    if len(raw) != size + _TRAILER or struct.unpack("<I", raw[-4:])[0] != masked_crc(raw[:-4]):
        raise BadTable(f"the checksum of a block does not hold (at byte {offset:,})")
    if raw[size] > 1:
        raise BadTable(f"a block is of kind {raw[size]}, which is not known")
    return unsnappy(raw[:size]) if raw[size] else raw[:size]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    (restarts,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 - 4 * restarts
    key, at = b"", 0
    while at < end:
        shared, at = varint(block, at)
        own, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or own + length > end - at:
            raise BadTable("an entry reaches beyond its block")
        key = key[:shared] + block[at : at + own]
        at += own
        yield key, block[at : at + length]
        at += length


def _entry(key: bytes, value: bytes) -> bytes:
    return b"".join([b"\0", write_varint(len(key)), write_varint(len(value)), key, value])


def _sealed(block: bytes) -> bytes:
    block += b"\0"
    return block + struct.pack("<I", masked_crc(block))


def unsnappy(data: bytes) -> bytes:
    """What snappy made `data` of (google/snappy, format_description.txt).

    Raises:
        BadTable, BadMessage: it is damaged.
    """
    size, at = varint(data, 0)
    if size > _SNAPPY_RATIO * len(data):
        raise BadTable("a snappy block promises more than it can hold")
    out = bytearray()
    while at < len(data):
        tag, at = data[at], at + 1
        if tag & 3 == 0:
            length = tag >> 2
            if length >= 60:
                width = length - 59
                length, at = int.from_bytes(data[at : at + width], "little"), at + width
            length += 1
            if length > len(data) - at:
                raise BadTable("a snappy block ends in the middle")
            out += data[at : at + length]
            at += length
        else:
            width = (0, 1, 2, 4)[tag & 3]
            back, at = int.from_bytes(data[at : at + width], "little"), at + width
            length = (tag >> 2) + 1
            if width == 1:
                length, back = (tag >> 2 & 7) + 4, back | (tag >> 5) << 8
            if not 0 < back <= len(out) or at > len(data):
                raise BadTable("a snappy block copies from before its begin")
            # A copy may overlap with what it writes: then the last `back` bytes repeat.
            start = len(out) - back
            out += (out[start : start + length] * (length // back + 1))[:length]
        if len(out) > size:
            raise BadTable("a snappy block holds more than it promises")
    if len(out) != size:
        raise BadTable("a snappy block holds less than it promises")
    return bytes(out)
