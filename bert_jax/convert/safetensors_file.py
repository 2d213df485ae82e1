"""Tensors of a safetensors file, or of several with an index.

The library checks the layout: ranges in order, without hole or overlap, to the end of the file, each as long as its
shape says. It takes the later of two equal keys and leaves bfloat16 to others, so the header is read here once more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from bert_jax.convert.names import Tensors
from bert_jax.convert.weights import open_weights, read_sharded, settled, strict_json, told
from bert_jax.errors import UserError

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read_safetensors(path: str | Path) -> Tensors:
    """All tensors by name: floats as float32 (halves and bfloat16 exactly), integers and booleans as they are.

    Args:
        path: a `*.safetensors`, or a `*.safetensors.index.json` whose files lie beside it.

    Raises:
        UserError: a file is missing, damaged, of other types, names a tensor twice, or holds NaN or infinity.
    """
    path = Path(path)
    return read_sharded(path, _read_file) if path.name.endswith(".json") else _read_file(path)


def _read_file(path: Path) -> Tensors:
    with open_weights(path) as file:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"not a whole safetensors file ({error})", str(path), "copy or export it again") from None
        (length,) = struct.unpack("<Q", file.read(8))
        header = strict_json(file.read(length), str(path))

        def tensors() -> Iterator[tuple[str, np.ndarray]]:
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                if (dtype := _DTYPES.get(entry["dtype"])) is None:
                    what = f"{told(name)} is of type {entry['dtype']}, which is not read"
                    raise UserError(what, str(path), "save it as F32")
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                flat = np.fromfile(file, dtype, (end - begin) // dtype.itemsize)
                try:
                    tensor = flat.reshape(entry["shape"])
                except (ValueError, OverflowError):  # the file shrank meanwhile, or sizes like [0, 2⁶²]
                    what = f"{told(name)} does not have the values that its shape asks for"
                    raise UserError(what, str(path), "copy or export it again") from None
                yield name, tensor

        return settled(tensors(), str(path))
