"""A folder of files that is there whole or not at all, and that replaces only what was written here before."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import save_file

from bert_jax.convert.names import Tensors
from bert_jax.errors import UserError

# What every folder written here holds, and by which it is known as replaceable.
PROVENANCE = "provenance.json"
WRITTEN = "written"  # in it: the names in the folder


@contextmanager
def whole_directory(
    out: Path, force: bool, provenance: Mapping[str, Any], extra: Mapping[str, str | bytes] | None = None
) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end; on any error nothing has changed.

    Args:
        force: replace what an earlier export left at `out`; anything else there is never touched.
        provenance: where the weights come from, written into the folder.
        extra: what is in further files, by name; a name may have a folder.

    Raises:
        UserError: `out` exists and may not be replaced, or nothing can be written there.
    """
    _may_write(out, force)
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        folder.chmod(0o777 & ~_umask())
        yield folder
        for name, text in (extra or {}).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
        written = sorted({PROVENANCE, *(path.name for path in folder.iterdir())})
        write_json(folder / PROVENANCE, {**provenance, WRITTEN: written})
        _may_write(out, force)  # another process may have been faster
        old = folder.with_name(folder.name + ".old")
        if out.exists():
            os.replace(out, old)
        try:
            os.replace(folder, out)
        except OSError:
            if old.exists():
                os.replace(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})", str(out), "make room or choose another place"
        ) from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _may_write(out: Path, force: bool) -> None:
    """Raises UserError unless there is nothing at `out`, or only what an earlier export wrote and may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UserError("this exists already", str(out), "give --force to replace it, or another name")
    if not (out / PROVENANCE).is_file() or (out / "checkpoints").exists():
        raise UserError("this is no earlier export, so it is not replaced", str(out), "give another name")
    tree = read_json(out / PROVENANCE)
    ours = {*tree.get(WRITTEN, ()), "proof.json"} if isinstance(tree, dict) else set()
    if others := sorted(path.name for path in out.iterdir() if path.name not in ours):
        what = f"this holds files that no export wrote, so it is not replaced: {', '.join(others[:3])}"
        raise UserError(what, str(out), "move them, or give another name")


def keep_apart(source: Path, out: Path) -> None:
    """Raises UserError if writing `out` would replace `source`."""
    read, written = source.resolve(), out.resolve()
    if written == read or written in read.parents:
        raise UserError("this would replace what is read", str(out), "give another name")


def write_tensors(path: Path, tensors: Tensors) -> None:
    """A safetensors file that others may read as the umask says; errors of the disk come as `OSError`."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})  # transformers refuses files without it
    except SafetensorError as error:
        raise OSError(str(error)) from None
    path.chmod(0o666 & ~_umask())  # safetensors lets nobody else read its files


def write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, remedy: str = "restore it from a copy") -> Any:
    """The value in a JSON file.

    Raises:
        UserError: there is no such file, or it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {path.name}", str(path.parent), remedy) from None
    except (ValueError, OSError) as error:
        raise UserError(f"not JSON ({error})", str(path), remedy) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
