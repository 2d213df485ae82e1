"""Tensors of `flax_model.msgpack`, as transformers wrote it for Flax until its version 4, under PyTorch's names.

The file is a msgpack map of maps, whose leaves are arrays as extension type 1: shape, name of the dtype, bytes
(flax/serialization.py). Nothing else is taken. The path to a leaf is PyTorch's name split at its dots, but for the
last part (transformers 4, modeling_flax_pytorch_utils.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from bert_jax.convert.names import Tensors
from bert_jax.convert.weights import open_weights, read_sharded, settled, told
from bert_jax.errors import UserError

_ARRAY = 1  # the extension type
_CHUNKED = "__msgpack_chunked_array__"
_DEPTH = 32  # of maps in maps; BERT's has 9
_DIMENSIONS = 8
_LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16")
} | {"uint8": np.dtype("u1"), "bool": np.dtype("?"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def read_flax(path: str | Path) -> Tensors:
    """All tensors under PyTorch's names: floats as float32 (halves and bfloat16 exactly), integers as they are.

    Dense kernels come transposed, as [out, in]; a tied decoder is not there.

    Args:
        path: a `*.msgpack`, or a `*.msgpack.index.json` whose files lie beside it.

    Raises:
        UserError: a file is missing, damaged, holds anything but maps of arrays, a name twice, NaN or infinity.
    """
    path = Path(path)
    if path.name.endswith(".json"):
        return read_sharded(path, _read_file, rename=lambda name: _torch_name(tuple(name.split("/"))))
    return _read_file(path)


def _read_file(path: Path) -> Tensors:
    with open_weights(path) as file:
        raw = file.read()
    try:
        tree = msgpack.unpackb(
            raw, ext_hook=_array, object_pairs_hook=_unique, raw=False, strict_map_key=True, max_array_len=0
        )
        return settled(_unique(list(_tensors(tree, ()))).items(), str(path))
    except (ValueError, TypeError, OverflowError) as error:
        # msgpack gives up on a file with its own kinds of ValueError, some without a word.
        told_so = str(error) or type(error).__name__
        raise UserError(f"not a whole Flax file of weights ({told_so})", str(path), "copy or save it again") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _array(code: int, data: bytes) -> np.ndarray:
    """An array out of an extension of type 1."""
    if code != _ARRAY:
        raise ValueError(f"an object of extension type {code}, where only arrays are read")
    parts = msgpack.unpackb(data, raw=True, max_array_len=_DIMENSIONS, max_map_len=0, max_ext_len=0)
    if type(parts) is not list or [type(part) for part in parts] != [list, bytes, bytes]:
        raise ValueError("an array without shape, dtype and bytes")
    shape, dtype, values = parts
    if (kind := _DTYPES.get(dtype.decode("latin-1"))) is None:
        raise ValueError(f"an array of dtype {told(dtype.decode('latin-1'))}, which is not read")
    return np.frombuffer(values, kind).reshape(_shape(shape))


def _shape(sizes: list[Any]) -> tuple[int, ...]:
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("an array with a size that is no number from 0")
    return tuple(sizes)


def _tensors(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Leaves under PyTorch's names."""
    if isinstance(tree, dict) and _CHUNKED in tree:
        tree = _joined(tree)
    if isinstance(tree, dict) and len(path) < _DEPTH:
        for key, value in tree.items():
            if type(key) is not str:
                raise ValueError("a name that is no text")
            yield from _tensors(value, (*path, key))
    elif isinstance(tree, np.ndarray) and path:
        if path[-1] == "kernel":
            if tree.ndim != 2:
                raise ValueError(f"{told('.'.join(path))} has {tree.ndim} axes, where a dense layer has 2")
            tree = np.ascontiguousarray(tree.T)
        yield _torch_name(path), tree
    else:
        raise ValueError(f"{told('.'.join(path)) or 'its root'} is neither a map nor an array")


def _torch_name(path: tuple[str, ...]) -> str:
    return ".".join((*path[:-1], _LAST.get(path[-1], path[-1])))


def _joined(tree: dict[str, Any]) -> np.ndarray:
    """An array of more than 1 GiB: flax writes its values in pieces."""
    shape, pieces = tree.get("shape"), tree.get("chunks")
    if tree.keys() != {_CHUNKED, "shape", "chunks"} or not isinstance(shape, dict) or not isinstance(pieces, dict):
        raise ValueError("an array in pieces without shape and pieces")
    if list(shape) != [str(i) for i in range(len(shape))] or list(pieces) != [str(i) for i in range(len(pieces))]:
        raise ValueError("an array in pieces that are not numbered from 0")
    flat = list(pieces.values())
    if not flat or not all(isinstance(piece, np.ndarray) and piece.dtype == flat[0].dtype for piece in flat):
        raise ValueError("an array in pieces that are no arrays of one type")
    sizes = _shape(list(shape.values()))
    if len(sizes) > _DIMENSIONS or math.prod(sizes) != sum(piece.size for piece in flat):
        raise ValueError("an array in pieces that do not fill its shape")
    return np.concatenate([piece.ravel() for piece in flat]).reshape(sizes)
