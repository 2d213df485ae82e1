"""Checkpoints of TensorFlow 1, as google-research/bert reads and writes them, without TensorFlow.

- V2, the default since TensorFlow 1.0: PREFIX.index, a table from names to where a tensor lies in
  PREFIX.data-SSSSS-of-NNNNN (core/protobuf/tensor_bundle.proto). Read and written.
- V1: PREFIX alone, or PREFIX-SSSSS-of-NNNNN, a table from names to tensors (core/util/saved_tensor_slice.proto). Read.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bert_jax.convert.names import Tensors
from bert_jax.convert.table import MAGIC, BadTable, masked_crc, read_table, write_table
from bert_jax.convert.weights import open_weights, settled, told
from bert_jax.errors import UserError, counted
from bert_jax.text import wire

# core/framework/types.proto
_DTYPES = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    4: np.dtype("u1"),
    5: np.dtype("<i2"),
    6: np.dtype("i1"),
    9: np.dtype("<i8"),
    10: np.dtype("?"),
    14: np.dtype(ml_dtypes.bfloat16),
    17: np.dtype("<u2"),
    19: np.dtype("<f2"),
    22: np.dtype("<u4"),
    23: np.dtype("<u8"),
}
_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}
# core/framework/tensor.proto: the field of a TensorProto that holds values of a type, and its layout there; None is
# a varint each, halves by their bits
_VALUES: dict[int, tuple[int, str | None]] = {1: (5, "<f4"), 2: (6, "<f8"), 9: (10, None), 10: (11, None)}
_VALUES |= {number: (7, None) for number in (3, 4, 5, 6, 17)} | {14: (13, None), 19: (13, None)}
_SLOTS = ("/adam_m", "/adam_v")  # google-research/bert, optimization.py
_STEP = "global_step"
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_DIMENSIONS = 8
_REMEDY = "copy it again from where it came"


def read_tf1(path: str | Path) -> tuple[Tensors, int]:
    """All weights of a checkpoint by name, and how many tensors were left out that only training needs.

    Args:
        path: the prefix (`bert_model.ckpt`), its `.index`, `.meta` or `.data-…`, or a directory that holds one
            checkpoint or a file `checkpoint` that names one.

    Returns:
        Floats as float32 (halves and bfloat16 exactly, doubles rounded), integers as they are; and the number of
        optimizer slots (`…/adam_m`, `…/adam_v`) and `global_step` that were left out.

    Raises:
        UserError: no or several checkpoints, a missing or damaged file, partitioned variables, big-endian numbers,
            objects of TensorFlow 2, NaN or infinity.
    """
    prefix = _prefix(Path(path))
    index = prefix.with_name(prefix.name + ".index")
    where = str(index if index.is_file() else prefix)
    try:
        dropped: list[str] = []
        found = _read_v2(prefix, index, dropped) if index.is_file() else _read_v1(prefix, dropped)
        tensors = settled(found, where)
    except (BadTable, wire.BadMessage) as error:
        raise UserError(f"not a whole checkpoint of TensorFlow ({error})", where, _REMEDY) from None
    if not tensors:
        raise UserError("it holds no weights", where, "name a checkpoint of a model")
    return tensors, len(dropped)


def write_tf1(prefix: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a V2 checkpoint of one data file, which `tf.train.load_checkpoint` and `Saver.restore` read.

    Files of the same name are replaced once both new ones stand whole beside them.

    Args:
        prefix: of `PREFIX.data-00000-of-00001` and `PREFIX.index`.
        tensors: by name, of any dtype that the table above has.

    Raises:
        UserError: it cannot be written there.
        ValueError: a dtype that has no number in TensorFlow: a bug, no user's.
    """
    prefix = Path(prefix)
    names = {".data-00000-of-00001": b"", ".index": b""}
    temporary = {end: prefix.with_name(f".{prefix.name}{end}.{os.getpid()}.tmp") for end in names}
    version = wire.write_field(1, 1)  # producer of tensor_bundle.h
    entries = {b"": wire.write_field(1, 1) + wire.write_field(3, version)}
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary[".data-00000-of-00001"], "wb") as data:
            for name in sorted(tensors, key=str.encode):
                tensor = np.asarray(tensors[name], order="C")
                little = tensor.dtype.newbyteorder("<")
                if little not in _NUMBERS:
                    raise ValueError(f"{name} is of dtype {tensor.dtype}, which a checkpoint does not hold")
                raw = tensor.astype(little, copy=False).tobytes()
                sizes = b"".join(wire.write_field(2, wire.write_field(1, size)) for size in tensor.shape)
                entries[name.encode()] = (
                    wire.write_field(1, _NUMBERS[little])
                    + wire.write_field(2, sizes)
                    + wire.write_field(4, data.tell())
                    + wire.write_field(5, len(raw))
                    + wire.write_fixed32(6, masked_crc(raw))
                )
                data.write(raw)
        temporary[".index"].write_bytes(write_table(entries.items()))
        for end, path in temporary.items():
            os.replace(path, prefix.with_name(prefix.name + end))
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise UserError(what, str(prefix), "make room or choose another place") from None
    finally:
        for path in temporary.values():
            with suppress(OSError):  # it was told above why nothing can be written there
                path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------- which checkpoint


def _prefix(path: Path) -> Path:
    """The prefix that a path means."""
    if path.is_dir():
        return _prefix_in(path)
    name = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name)
    return path.with_name(name)


def _prefix_in(folder: Path) -> Path:
    where, listing = str(folder), folder / "checkpoint"
    if listing.is_file():
        with open_weights(listing) as file:
            text = file.read(1 << 20).decode("utf-8", "replace")
        if not (told_of := re.search(r'^model_checkpoint_path: "([^"\n]+)"', text, re.MULTILINE)):
            raise UserError("it names no model_checkpoint_path", str(listing), "give the prefix of a checkpoint")
        # Only the last part: directories move, and a path out of a file leads nowhere else.
        return folder / re.split(r"[/\\]", told_of[1])[-1]
    found = {path.name.removesuffix(end) for end in (".index", ".meta") for path in folder.glob(f"*{end}")}
    found = {name for name in found if (folder / f"{name}.index").is_file() or _v1_files(folder / name)}
    if len(found) != 1:
        first = ", ".join(sorted(found)[:3]) + (", …" if len(found) > 3 else "")
        what = f"there are {len(found)} checkpoints ({first})" if found else "there is no checkpoint of TensorFlow"
        raise UserError(what, where, "give the prefix of one, such as bert_model.ckpt")
    return folder / found.pop()


def _v1_files(prefix: Path) -> list[Path]:
    """The file of a V1 checkpoint, or its shards in order; nothing where one is missing."""
    if prefix.is_file():
        return [prefix]
    shards = re.compile(re.escape(prefix.name) + r"-\d{5}-of-(\d{5})")
    paths = sorted(prefix.parent.glob("*-of-*")) if prefix.parent.is_dir() else []
    found = {path: match[1] for path in paths if (match := shards.fullmatch(path.name))}
    return list(found) if {int(count) for count in found.values()} == {len(found)} else []


def _needed(name: str, dropped: list[str]) -> bool:
    """Whether a tensor is a weight; one that is not is noted in `dropped`."""
    if name == _OBJECTS:
        raise BadTable("it holds objects of TensorFlow 2, not variables under google-research/bert's names")
    if name.endswith(_SLOTS) or name == _STEP:
        dropped.append(name)
        return False
    return True


# --------------------------------------------------------------------------------------------------------------- V2


def _read_v2(prefix: Path, index: Path, dropped: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    with open_weights(index) as file:
        table = dict(read_table(file, index.stat().st_size))
    header = wire.last_of(table.pop(b"", b""))
    shards = header.get(1, 0)
    if header.get(2, 0) != 0:
        raise UserError("its numbers are big endian, which is not read", str(index), "save it on another machine")
    if not isinstance(shards, int) or not 0 < shards < 100_000:
        raise BadTable("its header names no data files")
    entries: dict[int, list[tuple[str, dict[int, Any]]]] = {}
    for key, value in table.items():
        if key.startswith(b"\0") or any(number == 7 for number, _ in wire.fields(value)):
            raise _partitioned(key, str(index))
        if _needed(name := _text(key), dropped):
            entry = wire.last_of(value)
            entries.setdefault(_number(entry, 3), []).append((name, entry))
    for shard, inside in sorted(entries.items()):
        if shard >= shards:
            raise BadTable(f"{told(inside[0][0])} lies in data file {shard} of {shards}")
        path = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
        with open_weights(path) as file:
            size = path.stat().st_size
            if sum(_number(entry, 5) for _, entry in inside) > size:
                raise _damage(path, f"is shorter than the {counted(len(inside), 'tensor')} that the index puts there")
            for name, entry in inside:
                dtype, shape = _dtype(name, _number(entry, 1)), _shape(entry.get(2, b""))
                offset, length = _number(entry, 4), _number(entry, 5)
                if length != math.prod(shape) * dtype.itemsize:
                    raise BadTable(f"{told(name)} has {length:,} bytes, which is not what its shape asks for")
                if offset + length > size:
                    raise _damage(path, f"ends in the middle of {told(name)}")
                file.seek(offset)
                raw = file.read(length)
                if len(raw) != length or masked_crc(raw) != entry.get(6):
                    raise _damage(path, f"holds another {told(name)} than was written: its checksum does not hold")
                yield name, np.frombuffer(raw, dtype).reshape(shape)


def _damage(path: Path, what: str) -> UserError:
    return UserError(f"the file {what}", str(path), _REMEDY)


# --------------------------------------------------------------------------------------------------------------- V1


def _read_v1(prefix: Path, dropped: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    paths = _v1_files(prefix)
    if not paths:
        remedy = "give a prefix such as bert_model.ckpt, beside which bert_model.ckpt.index lies"
        raise UserError("there is no such checkpoint", str(prefix), remedy)
    seen: set[str] = set()
    for path in paths:
        with open_weights(path) as file:
            size = path.stat().st_size
            file.seek(max(0, size - len(MAGIC)))
            if file.read() != MAGIC:
                raise BadTable("its end is not that of a table")
            kinds: dict[str, tuple[int, tuple[int, ...]]] = {}
            for key, value in read_table(file, size):
                if key == b"":
                    kinds = dict(_kinds(value, str(path)))
                    continue
                slice_ = wire.last_of(_bytes(wire.last_of(value), 2))
                name = _text(_bytes(slice_, 1))
                if name in seen or name not in kinds:
                    raise BadTable(f"{told(name)} is there twice or without a shape")
                seen.add(name)
                if _needed(name, dropped):
                    yield name, _values(name, *kinds.pop(name), _bytes(slice_, 3))
            if lost := [name for name in kinds if name not in seen]:
                raise BadTable(f"{told(lost[0])} is announced and not there")


def _kinds(header: bytes, where: str) -> Iterator[tuple[str, tuple[int, tuple[int, ...]]]]:
    """Name, number of the type and shape of each tensor, out of the entry without a key."""
    for number, value in wire.fields(_bytes(wire.last_of(header), 1)):
        if number != 1:
            continue
        if not isinstance(value, bytes):
            raise BadTable("its first entry tells of no tensors")
        parts = list(wire.fields(value))
        tensor = dict(parts)
        slices = [part for number, part in parts if number == 4]
        if len(slices) != 1 or _is_part(slices[0]):
            raise _partitioned(_bytes(tensor, 1), where)
        yield _text(_bytes(tensor, 1)), (_number(tensor, 3), _shape(tensor.get(2, b"")))


def _is_part(slice_: int | bytes) -> bool:
    """Whether a slice has a begin or a length in any direction; the whole has neither."""
    if not isinstance(slice_, bytes):
        raise BadTable("a slice that is none")
    return any(extent for _, extent in wire.fields(slice_))


def _values(name: str, kind: int, shape: tuple[int, ...], tensor: bytes) -> np.ndarray:
    """The values of a TensorProto, which lie packed in the field that its type has."""
    dtype = _dtype(name, kind)
    if kind not in _VALUES:
        raise BadTable(f"{told(name)} is of type {dtype.name}, which this form does not have")
    field, layout = _VALUES[kind]
    parts = [part for number, part in wire.fields(tensor) if number == field]
    if not all(isinstance(part, bytes) for part in parts):
        raise BadTable(f"{told(name)} has its values one by one")
    raw = b"".join(part for part in parts if isinstance(part, bytes))
    if layout is not None:
        if len(raw) != math.prod(shape) * dtype.itemsize:
            raise BadTable(f"{told(name)} has {len(raw):,} bytes, which is not what its shape asks for")
        return np.frombuffer(raw, layout).reshape(shape)
    numbers, at = [], 0
    while at < len(raw):
        value, at = wire.varint(raw, at)
        numbers.append(wire.signed(value))
    if len(numbers) != math.prod(shape):
        raise BadTable(f"{told(name)} has {len(numbers):,} values, which is not what its shape asks for")
    bits = np.array(numbers, np.int64)
    return (bits.astype(np.uint16).view(dtype) if field == 13 else bits.astype(dtype)).reshape(shape)


# ------------------------------------------------------------------------------------------------------------ messages


def _partitioned(key: bytes, where: str) -> UserError:
    name = told(key.strip(b"\0").partition(b"\0")[0].decode("utf-8", "replace"))
    return UserError(f"{name} is partitioned, which is not read", where, "save it without a partitioner")


def _text(key: bytes) -> str:
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:
        raise BadTable("a name that is no UTF-8") from None


def _number(message: Mapping[int, int | bytes], field: int) -> int:
    value = message.get(field, 0)
    if not isinstance(value, int) or value >= 1 << 62:
        raise BadTable(f"field {field} of an entry is no number from 0")
    return value


def _bytes(message: Mapping[int, int | bytes], field: int) -> bytes:
    value = message.get(field, b"")
    if not isinstance(value, bytes):
        raise BadTable(f"field {field} of an entry is no message")
    return value


def _dtype(name: str, number: int) -> np.dtype:
    if number == 7:
        raise BadTable(f"{told(name)} holds text, so this is no checkpoint of weights alone")
    if number not in _DTYPES:
        raise BadTable(f"{told(name)} is of type {number} of TensorFlow, which is not read")
    return _DTYPES[number]


def _shape(message: int | bytes) -> tuple[int, ...]:
    """A TensorShapeProto."""
    if not isinstance(message, bytes):
        raise BadTable("a shape that is none")
    sizes = [_number(wire.last_of(value), 1) for number, value in wire.fields(message) if isinstance(value, bytes)]
    if len(sizes) > _DIMENSIONS:
        raise BadTable(f"a shape of {len(sizes)} sizes")
    if 0 in sizes:
        raise BadTable("a tensor without values")
    return tuple(sizes)
