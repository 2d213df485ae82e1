"""Protocol buffers as bytes, one message at a time (https://protobuf.dev/programming-guides/encoding).

For SentencePiece models and checkpoints. Blocks of records have readers and writers of their own (`example*.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class BadMessage(ValueError):
    """Bytes that are no such message."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, from 0 below 2⁶⁴, and where it ends."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise BadMessage("a number without an end")


def signed(value: int) -> int:
    """An int64 that came as a varint."""
    return value - (1 << 64) if value >= 1 << 63 else value


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values in order: numbers for varints and fixed ones, bytes for the rest."""
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        kind, size = key & 7, 0
        if kind == VARINT:
            value, at = varint(message, at)
            yield key >> 3, value
            continue
        if kind == BYTES:
            size, at = varint(message, at)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise BadMessage(f"a field of kind {kind}")
        if size > len(message) - at:
            raise BadMessage("a field beyond the end")
        value = message[at : at + size]
        yield key >> 3, value if kind == BYTES else int.from_bytes(value, "little")
        at += size


def last_of(message: bytes) -> dict[int, int | bytes]:
    """A message whose fields are not repeated: of equal ones the last holds, as everywhere."""
    return dict(fields(message))


def write_varint(value: int) -> bytes:
    out = bytearray()
    value &= 0xFFFF_FFFF_FFFF_FFFF
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def write_field(number: int, value: int | bytes) -> bytes:
    """A varint or bytes as a field; a zero too, which readers take like a field that is not there."""
    if isinstance(value, int):
        return write_varint(number << 3 | VARINT) + write_varint(value)
    return write_varint(number << 3 | BYTES) + write_varint(len(value)) + value


def write_fixed32(number: int, value: int) -> bytes:
    return write_varint(number << 3 | FIXED32) + value.to_bytes(4, "little")
