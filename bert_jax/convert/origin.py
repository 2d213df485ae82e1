"""Where a model that was no run of ours comes from: what `provenance.json` says of an import or an export."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

from bert_jax.convert import task_model
from bert_jax.convert.directory import PROVENANCE, read_json
from bert_jax.convert.loaded import Loaded

LIBRARIES = ("bert-jax", "jax", "numpy", "safetensors", "tokenizers")


def origin(path: str | Path, loaded: Loaded) -> dict[str, Any]:
    """The files of a model with their sizes and digests, what they said of their own origin, and what read them.

    Args:
        path: a directory, of a fine-tuning the one around its model too, or the beginning of a TensorFlow checkpoint's
            file names.
    """
    path = task_model.within(path) or Path(path)
    folder = path if path.is_dir() else path.parent
    names = [p for p in folder.iterdir() if p.is_file() and (path.is_dir() or p.name.startswith(path.name))]
    files = {p.name: {"bytes": p.stat().st_size, "sha256": _digest(p)} for p in sorted(names)}
    before = folder / PROVENANCE
    return {
        "source": path.name,
        "architecture": loaded.architecture,
        "notes": list(loaded.notes),
        "files": files,
        "before": read_json(before) if before.is_file() else None,
        "packages": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
