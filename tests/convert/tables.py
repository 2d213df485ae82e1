"""A writer of tables with what TensorFlow's writer and ours leave out: snappy, several blocks, shared prefixes."""

from __future__ import annotations

import os
import struct

from bert_jax.convert.table import MAGIC, masked_crc
from bert_jax.text.wire import write_varint


def table_of(
    entries: list[tuple[bytes, bytes]], snappy: bool = False, per_block: int = 1000, per_restart: int = 1
) -> bytes:
    """Entries in the order given, right or wrong."""
    out, handles = bytearray(), []
    for first in range(0, len(entries), per_block):
        chunk = entries[first : first + per_block]
        handles.append((chunk[-1][0], _add(out, _block(chunk, per_restart), snappy)))
    nothing = _add(out, _block([], 1), False)
    index = _add(out, _block(handles, 1), snappy)
    return bytes(out) + (nothing + index).ljust(40, b"\0") + MAGIC


def _block(entries: list[tuple[bytes, bytes]], per_restart: int) -> bytes:
    body, restarts, last = bytearray(), [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % per_restart:
            shared = len(os.path.commonprefix([key, last]))
        else:
            restarts.append(len(body))
        body += write_varint(shared) + write_varint(len(key) - shared) + write_varint(len(value))
        body += key[shared:] + value
        last = key
    restarts = restarts or [0]
    return bytes(body) + struct.pack(f"<{len(restarts)}I", *restarts) + struct.pack("<I", len(restarts))


def _add(out: bytearray, block: bytes, snappy: bool) -> bytes:
    if snappy:
        import pyarrow

        block = pyarrow.compress(block, codec="snappy", asbytes=True)
    handle = write_varint(len(out)) + write_varint(len(block))
    kind = b"\1" if snappy else b"\0"
    out += block + kind + struct.pack("<I", masked_crc(block + kind))
    return handle
