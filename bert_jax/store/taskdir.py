"""The directory of a fine-tuning: whose it is, held by one process, and what is compiled in it."""

from __future__ import annotations

import hashlib
import os
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from bert_jax.errors import UserError
from bert_jax.settings import build, changes, flat, to_toml
from bert_jax.store import rundir

FREE = ("train.learning_rates", "train.seeds")  # a sweep may grow


@contextmanager
def opened(
    run: Path, recipes: Sequence[Any], data: Sequence[tuple[str, Path]], encoder: Mapping[str, str]
) -> Iterator[None]:
    """Hold the directory: a new one, or one that was begun with the same recipe, encoder and data.

    Rates and seeds alone may be others: what is fitted already is kept.

    Args:
        recipes: the task's own, and those of tasks that come before it.
        data: split and file of all that is read.
        encoder: the digests of its files by name.

    Raises:
        UserError: it is another one's, holds something else, or another process is at work in it.
    """
    told = {
        "recipes": [to_toml(one) for one in recipes],
        "data": [f"{name} {_sha256(path)}" for name, path in data],
        "encoder": dict(encoder),
    }
    here = run / "inputs.json"
    begun = run.is_dir() and here.is_file()
    if not begun and run.exists() and (not run.is_dir() or any(not _unfinished(path) for path in run.iterdir())):
        raise UserError("this is there already, and no fine-tuning of ours", str(run), "choose another --run")
    try:
        (run / "cells").mkdir(parents=True, exist_ok=True)
        holding = rundir.hold(run)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", str(run), "choose another --run") from None
    with holding:
        kept = rundir.read_json(here) if here.is_file() else told
        differs = _changed(kept["recipes"], recipes)
        for name, what in (("data", "other data"), ("encoder", "another encoder")):
            differs = differs or (what if kept[name] != told[name] else "")
        if differs:
            raise UserError(f"this was begun with {differs}", str(run), "give what it began with, or another --run")
        if not here.is_file() or kept != told:
            rundir.write_text(run / "task.toml", to_toml(recipes[0]))
            rundir.write_json(here, told)
        yield


def _changed(kept: Sequence[str], given: Sequence[Any]) -> str:
    """What differs between recipes as TOML and those given, the task's own the first.

    What a kept one does not name, because it is older than the setting, has its default.
    """
    for number, (text, now) in enumerate(zip(kept, given, strict=False)):
        then = build(type(now), tomllib.loads(text), "")
        bound = [{name: one for name, one in flat(recipe).items() if name not in FREE} for recipe in (then, now)]
        if number:  # of what comes before, the first rate is used
            for names, recipe in zip(bound, (then, now), strict=True):
                names["train.learning_rates.0"] = str(recipe.train.learning_rates[0])
        if differs := changes(*bound):
            return f"{given[0].before[number - 1].recipe}: {differs}" if number else differs
    return ""


def _unfinished(path: Path) -> bool:
    """Whether this is what a kill can leave before it is on record whose directory it is."""
    return path.name in ("cells", "lock", "task.toml") or path.name.startswith((".task.toml.", ".inputs.json."))


def _sha256(path: Path) -> str:
    """Of a file, or of those of a directory."""
    digest = hashlib.sha256()
    for part in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(part.read_bytes())
    return digest.hexdigest()


def compile_once(run: Path) -> None:
    """What is compiled here goes into the run directory, so that a second start runs the very same kernels."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        rundir.clear_torn(run)
        jax.config.update("jax_compilation_cache_dir", str(run.absolute() / "compiled"))
    # a sweep goes on without it, and tells of a full disk itself
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "xla_gpu_per_fusion_autotune_cache_dir")
