"""What every reader of foreign weights asks of a file, of an index of shards and of the numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bert_jax.convert.names import Tensors
from bert_jax.errors import UserError, counted

_POINTER = b"version https://git-lfs"
_NAMED = 80  # characters of a name out of a file that a sentence shows


def open_weights(path: str | Path) -> BinaryIO:
    """A file of weights, open for reading.

    Raises:
        UserError: it is not there, not a file, not readable, or what Git LFS leaves in its place.
    """
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        raise UserError("there is no such file", str(path), "copy it here too, or give another path") from None
    except IsADirectoryError:
        raise UserError("this is a directory, not a file of weights", str(path), "name the file in it") from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", str(path), "copy it again") from None
    if file.read(len(_POINTER)) == _POINTER:
        file.close()
        raise UserError("this is a pointer of Git LFS, not the file itself", str(path), "fetch it with git lfs pull")
    file.seek(0)
    return file


def settled(tensors: Iterable[tuple[str, np.ndarray]], where: str) -> Tensors:
    """The tensors as conversion takes them, whatever file they came from.

    Args:
        tensors: names and arrays; halves, bfloat16 and doubles among them.
        where: the file, for messages.

    Returns:
        Floats as float32 (halves and bfloat16 exactly, doubles rounded); integers and booleans as they came.

    Raises:
        UserError: a value is NaN or infinite, or as a double too large for float32; names the first tensor.
    """
    out: Tensors = {}
    wrong: dict[str, int] = {}
    for name, tensor in tensors:
        if tensor.dtype.kind not in "biu":
            with np.errstate(over="ignore"):
                tensor = tensor.astype(np.float32, copy=False)
            if not (finite := np.isfinite(tensor)).all():
                wrong[name] = tensor.size - int(np.count_nonzero(finite))
        out[name] = tensor
    if wrong:
        name, count = next(iter(wrong.items()))
        values = f"{counted(count, 'value')} of {out[name].size:,}"
        more = f" (and so it is in {counted(len(wrong) - 1, 'more tensor')})" if len(wrong) > 1 else ""
        raise UserError(
            f"{values} in {told(name)} {'is' if count == 1 else 'are'} NaN or infinite{more}",
            where,
            "these weights compute nothing: take an earlier checkpoint",
        )
    return out


def told(name: str) -> str:
    """A name out of a file as a sentence can show it: printable, and not long."""
    plain = name if name.isprintable() else ascii(name)[1:-1]
    return plain if len(plain) <= _NAMED else plain[: _NAMED - 1] + "…"


def read_sharded(
    index: Path, read: Callable[[Path], Tensors], rename: Callable[[str], str] = lambda name: name
) -> Tensors:
    """The tensors of all files that a transformers index (`*.index.json`, "weight_map": tensor → file) names.

    Args:
        read: reads one of the files.
        rename: from a name in the index to the one that `read` returns.

    Raises:
        UserError: the index is broken or names a file outside its folder; a file lacks a tensor that the index
            puts there; two files hold the same one.
    """
    where = str(index)
    with open_weights(index) as file:
        tree = strict_json(file.read(), where)
    places = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise UserError('there is no "weight_map" from tensors to files', where, "restore it from a copy")
    for place in places.values():
        if place in ("", ".", "..") or "/" in place or "\\" in place or not place.isprintable():
            raise UserError(f"{told(place)!r} is no name of a file beside it", where, "restore it from a copy")
    tensors: Tensors = {}
    for place in sorted(set(places.values())):
        shard = read(index.parent / place)
        if missing := sorted({rename(name) for name, here in places.items() if here == place} - shard.keys()):
            raise UserError(
                f"it lacks {counted(len(missing), 'tensor')} of the index, first {told(missing[0])}",
                str(index.parent / place),
                "the files must be of one save",
            )
        if twice := sorted(shard.keys() & tensors.keys()):
            raise UserError(
                f"{told(twice[0])} is in two files, {place} and one before it", where, "the files must be of one save"
            )
        tensors.update(shard)
    return tensors


def strict_json(raw: bytes, where: str) -> Any:
    """JSON in which no object names a key twice: readers differ in which one they take.

    Raises:
        UserError: it is not JSON, or one that does.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f"{told(key)!r} is there twice", where, "save it again: which one holds is not told")
            found[key] = value
        return found

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})", where, "restore it from a copy") from None
