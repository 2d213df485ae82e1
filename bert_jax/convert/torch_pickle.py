"""Tensors of `pytorch_model.bin` without torch, and without ever running what a pickle asks for.

torch.save (torch/serialization.py) writes either of two forms. In both a pickle tells of tensors as views of storages,
and of storages as persistent ids.

- Zip, the default since 1.6: NAME/data.pkl, NAME/byteorder, NAME/data/KEY a storage; members are stored as they are.
- Legacy: five pickles in a row (magic, protocol, the machine, the object, the keys), then for each key the number of
  values (int64) and the values.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from bert_jax.convert import pickled
from bert_jax.convert.names import Tensors
from bert_jax.convert.pickled import Broken, Refused
from bert_jax.convert.weights import open_weights, read_sharded, settled, told
from bert_jax.errors import UserError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DICT = "collections.OrderedDict"
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_DTYPES = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_ALLOWED = frozenset({_DICT, _TENSOR, _PARAMETER, *_DTYPES})
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_SHARED = 8  # times the values of all storages that tensors may ask for together: tied weights, but no bomb
_DIMENSIONS = 8
# What zipfile says of a damaged or unusual archive.
_BAD_ZIP = (zipfile.BadZipFile, RuntimeError, EOFError, OSError, OverflowError, struct.error)
_REMEDY = "save the weights alone, by torch.save(model.state_dict(), …) or as safetensors"


@dataclass(frozen=True)
class _Storage:
    """`count` values from value `first` of the storage `key`."""

    key: str
    dtype: np.dtype
    first: int
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, values: np.ndarray) -> np.ndarray:
        """The tensor as a view of its storage's values. `_tensor` has seen to it that it stays inside."""
        start = values[self.storage.first + self.offset :]
        steps = tuple(step * values.itemsize for step in self.strides)
        return np.lib.stride_tricks.as_strided(start, self.shape, steps, writeable=False)


def read_torch(path: str | Path) -> Tensors:
    """All tensors of a state dict by name: floats as float32 (halves and bfloat16 exactly), integers as they are.

    Tensors that shared a storage may share memory; do not write into them.

    Args:
        path: a file of torch.save, of either form, or a `*.bin.index.json` whose files lie beside it.

    Raises:
        UserError: a file is missing, damaged, holds more than a dict of tensors, or NaN or infinity. A pickle that
            asks for anything else is refused by the name of it, before any call.
    """
    path = Path(path)
    return read_sharded(path, _read_file) if path.name.endswith(".json") else _read_file(path)


def _read_file(path: Path) -> Tensors:
    with open_weights(path) as file:
        head = file.read(512)
        file.seek(0)
        try:
            if head[:4] == b"PK\x03\x04":
                state, contents = _read_zip(file)
            elif head[257:262] == b"ustar":
                raise Refused("this is the tar form of torch before 0.2, which is not read")
            else:
                state, contents = _read_legacy(file)
            return settled(((name, view.of(contents[view.storage.key])) for name, view in state.items()), str(path))
        except Refused as error:
            raise UserError(str(error), str(path), _REMEDY) from None
        except Broken as error:
            raise UserError(f"not a whole file of torch.save ({error})", str(path), "copy or save it again") from None


# ------------------------------------------------------------------------------------------------------ the two forms


def _read_zip(file: BinaryIO) -> tuple[dict[str, _Tensor], dict[str, np.ndarray]]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = _members(archive, os.fstat(file.fileno()).st_size)
            if "data.pkl" not in members:
                raise Broken("there is no data.pkl in the archive")
            if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                raise Refused("its numbers are big endian, which is not read")
            program = archive.read(members["data.pkl"])
            storages: dict[str, _Storage] = {}
            state = _state(_load(io.BytesIO(program), len(program), storages), storages)
            contents = {}
            for key, storage in storages.items():
                member = members.get(f"data/{key}")
                if member is None or member.file_size != storage.count * storage.dtype.itemsize:
                    raise Broken(f"the storage {told(key)} is not there or of another size")
                contents[key] = np.frombuffer(archive.read(member), storage.dtype)
            return state, contents
    except _BAD_ZIP as error:
        raise Broken(str(error) or type(error).__name__) from None
    except ValueError as error:
        if isinstance(error, Refused | Broken):
            raise
        raise Broken(str(error)) from None


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """What is in the one folder of the archive, by names without it; nothing compressed, nothing there twice."""
    members: dict[str, zipfile.ZipInfo] = {}
    total = 0
    if any(name.endswith("/constants.pkl") for name in archive.namelist()):
        raise Refused("this is TorchScript, a program and not a state dict")
    for member in archive.infolist():
        name = member.filename.partition("/")[2] or member.filename
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise Refused(f"{told(member.filename)} is compressed, which torch.save never does")
        if name in members:
            raise Refused(f"{told(name)} is there twice")
        total += member.file_size
        members[name] = member
    if total > size:
        raise Refused("its members are together larger than the file")
    return members


def _read_legacy(file: BinaryIO) -> tuple[dict[str, _Tensor], dict[str, np.ndarray]]:
    size = os.fstat(file.fileno()).st_size
    storages: dict[str, _Storage] = {}
    magic, protocol = (_load(file, size, storages) for _ in range(2))
    if type(magic) is not int or magic != _MAGIC or type(protocol) is not int or protocol != _PROTOCOL:
        raise Broken("it does not begin as one")
    machine = _load(file, size, storages)
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise Refused("its numbers are big endian, which is not read")
    state = _state(_load(file, size, storages), storages)
    keys = _load(file, size, {})
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise Broken("its storages are not those that its tensors lie in")
    contents = {}
    for key in keys:
        storage = storages[key]
        count = file.read(8)
        if len(count) != 8 or struct.unpack("<q", count)[0] != storage.count:
            raise Broken(f"the storage {told(key)} is not there or of another size")
        if storage.count * storage.dtype.itemsize > size - file.tell():
            raise Broken(f"it ends in the middle of the storage {told(key)}")
        contents[key] = np.fromfile(file, storage.dtype, storage.count)
    if file.tell() != size:
        raise Broken("more bytes follow than its storages have")
    return state, contents


# ------------------------------------------------------------------------------------------------- what a pickle tells


def _load(file: BinaryIO, size: int, storages: dict[str, _Storage]) -> Any:
    """One pickle; the storages that it names are added to `storages`, whole."""

    def persistent(saved: Any) -> _Storage:
        if type(saved) is not tuple or len(saved) not in (5, 6) or saved[0] != "storage":
            raise Refused("a persistent id is of something other than a storage")
        _, kind, key, _, count, *view = saved
        if type(kind) is not pickled.Global or kind.name not in _DTYPES or type(key) is not str or not _size(count):
            raise Broken("a storage without type, key or length")
        whole = _Storage(key, _DTYPES[kind.name], 0, count)
        if storages.setdefault(key, whole) != whole:
            raise Broken(f"the storage {told(key)} has two types or lengths")
        if view and view[0] is not None:  # as torch wrote before 0.4: this id is of a part of the storage
            return _part(whole, view[0])
        return whole

    return pickled.load(file, size, _ALLOWED, _call, persistent)


def _part(whole: _Storage, view: Any) -> _Storage:
    if type(view) is not tuple or len(view) != 3 or not _size(view[1]) or not _size(view[2]):
        raise Broken("a view of a storage without place and length")
    if view[1] + view[2] > whole.count:
        raise Broken("a view of a storage reaches beyond it")
    return _Storage(whole.key, whole.dtype, view[1], view[2])


def _call(name: str, arguments: tuple) -> Any:
    if name == _DICT:
        return _ordered(arguments)
    if name == _TENSOR and len(arguments) in (6, 7):
        if len(arguments) == 7 and arguments[6]:
            raise Refused("a tensor is marked as conjugate or negative, which is not read")
        return _tensor(*arguments[:4])
    if name == _PARAMETER and len(arguments) == 3 and type(arguments[0]) is _Tensor:
        return arguments[0]
    raise Refused(f"it calls {name} as torch.save never does")


def _ordered(arguments: tuple) -> dict[str, Any]:
    """An OrderedDict: empty, or as Python 2 wrote it, with a list of pairs."""
    if not arguments:
        return {}
    if len(arguments) != 1 or type(arguments[0]) is not list:
        raise Broken("an OrderedDict of something other than pairs")
    found: dict[str, Any] = {}
    for pair in arguments[0]:
        if type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) is not str or pair[0] in found:
            raise Broken("an OrderedDict of something other than pairs with names")
        found[pair[0]] = pair[1]
    return found


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    if type(storage) is not _Storage or not _size(offset) or type(shape) is not tuple or type(strides) is not tuple:
        raise Broken("a tensor without storage, offset, shape or strides")
    if len(shape) != len(strides) or len(shape) > _DIMENSIONS or not all(map(_size, shape + strides)):
        raise Broken("a tensor whose shape and strides are no numbers from 0")
    if 0 in shape:
        raise Broken("a tensor without values")
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if last >= storage.count:
        raise Broken("a tensor reaches beyond its storage")
    if math.prod(shape) > storage.count:
        raise Broken("a tensor has more values than its storage")
    return _Tensor(storage, offset, shape, strides)


def _size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _state(tree: Any, storages: dict[str, _Storage]) -> dict[str, _Tensor]:
    """A dict of tensors by name, or the sentence that says what else it is."""
    if type(tree) is not dict or not tree:
        raise Refused("it holds no state dict")
    for name, value in tree.items():
        if type(name) is not str or type(value) is not _Tensor:
            inside = [key for key in _WRAPPERS if type(tree.get(key)) is dict]
            if inside:
                raise Refused(f"it is a training checkpoint, with the weights under {inside[0]!r}")
            raise Refused(f"{told(str(name)) if type(name) in (str, int) else 'a key'} is no tensor")
    held = sum(storage.count for storage in storages.values())
    if sum(math.prod(view.shape) for view in tree.values()) > _SHARED * held:
        raise Broken(f"its tensors have together more than {_SHARED} times the values of its storages")
    return tree
