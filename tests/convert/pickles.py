"""Files of torch.save put together by hand, opcode by opcode: right ones without torch, and ones it never writes."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

MAGIC, PROTOCOL, MACHINE = 0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}
START, STOP, MARK = b"\x80\x02", b".", b"("


def value(thing: object) -> bytes:
    """A constant as protocol 2 writes it; bytes are opcodes already."""
    match thing:
        case bytes():
            return thing
        case None:
            return b"N"
        case bool():
            return b"\x88" if thing else b"\x89"
        case int():
            raw = thing.to_bytes((thing.bit_length() + 8) // 8, "little", signed=True)
            return b"\x8a" + bytes([len(raw)]) + raw
        case str():
            raw = thing.encode()
            return b"X" + struct.pack("<I", len(raw)) + raw
        case tuple():
            return MARK + b"".join(map(value, thing)) + b"t"
        case list():
            return b"]" + MARK + b"".join(map(value, thing)) + b"e"
        case dict():
            return b"}" + MARK + b"".join(value(key) + value(item) for key, item in thing.items()) + b"u"
    raise TypeError(type(thing))


def named(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def called(name: str, *arguments: object) -> bytes:
    return named(name) + value(arguments) + b"R"


def storage(key: object, count: object, kind: str = "torch.FloatStorage", *view: object) -> bytes:
    return value(("storage", named(kind), key, "cpu", count, *view)) + b"Q"


def tensor(of: bytes, offset: object, shape: object, strides: object, *more: object) -> bytes:
    hooks = called("collections.OrderedDict")
    return called("torch._utils._rebuild_tensor_v2", of, offset, shape, strides, False, hooks, *more)


def program(thing: object) -> bytes:
    return START + value(thing) + STOP


def write_zip(path: Path, pickle: bytes, storages: dict[str, bytes], **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        for name, raw in (members or {"byteorder": b"little"}).items():
            archive.writestr(f"archive/{name}", raw)
        for key, raw in storages.items():
            archive.writestr(f"archive/data/{key}", raw)
    return path


def write_legacy(path: Path, pickle: bytes, storages: dict[str, bytes], width: int = 4, view: bool = True) -> Path:
    head = [program(MAGIC), program(PROTOCOL), program(MACHINE)]
    tail = [struct.pack("<q", len(raw) // width) + raw for raw in storages.values()]
    path.write_bytes(b"".join([*head, pickle, program(list(storages)), *tail]))
    return path
