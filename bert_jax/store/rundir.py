"""The run directory: what a run is, written so that the same command continues it.

`recipe.toml`, `provenance.json`, `model.json`, `tokenizer/`, `manifest.json` (copies), `checkpoints/`,
`metrics.jsonl` (a line a step), `timings.jsonl` (a line a progress report), `report.json`. Standard library only.
"""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from bert_jax.config import BertConfig, Recipe, load_recipe
from bert_jax.errors import UserError, counted
from bert_jax.settings import changes, flat, to_toml

# What may change between two starts of one run, because it changes no number of it.
FREE = {
    "path",
    "mesh_data",
    "mesh_fsdp",
    "mesh_tensor",
    "shard_optimizer",
    "every",
    "minutes",
    "keep",
    "failures",
    "notice",
    "seconds",
    "tensorboard",
    "profile_step",
    "profile_steps",
    "evaluate_every",
    "skip_limit",
    "step_timeout",
    "silence",
    "vocab_multiple",  # model.json holds it, which a run that was begun before there was such a setting has too
}

_LOCK = "lock"
_OPENING = ".opening"  # a kill may leave a run half opened: this says whose files these are
_MARK = ".whole"  # in the compilation cache: all that is older was written to its end

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")


def write_text(path: Path, text: str) -> None:
    """Replace a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(error.strerror, path) from None


def _unwritable(reason: str, path: Path) -> UserError:
    return UserError(f"cannot be written ({reason})", str(path), "make room, or choose another place")


def check_run(run: Path) -> None:
    """Raise `UserError` unless this is a run of pretraining."""
    if (run / "task.toml").exists():
        raise UserError("this is a fine-tuning", str(run), "its table, report and pictures are files in it")
    if not (run / "recipe.toml").exists():
        raise UserError("this is no run directory", str(run), "give one that `bert-jax pretrain` made")


def check_output(path: Path, *inputs: Path) -> None:
    """See, before what takes time, that a file can be written and is none of those that are read.

    Raises:
        UserError: it cannot, or is.
    """
    if path.is_dir():
        raise UserError("this is a directory", str(path), "name a file")
    if not path.parent.is_dir():
        raise UserError("there is no such directory", str(path.parent), "make it first")
    if not os.access(path.parent, os.W_OK):
        raise UserError("nothing can be written here", str(path.parent), "choose another place")
    if path.exists() and any(other.exists() and path.samefile(other) for other in inputs):
        raise UserError("this is what is read", str(path), "choose another file")


def write_json(path: Path, tree: Any) -> None:
    write_text(path, json.dumps(tree, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Raises UserError: missing, or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("there is no such file", str(path), "is this a run directory?") from None
    except ValueError as error:
        raise UserError(f"not JSON ({error})", str(path), "restore it from a copy") from None


# ------------------------------------------------------------------------------------- opening and continuing


def open_run(run: Path, recipe: Recipe, config: BertConfig, sources: list[Path], provenance: dict[str, Any]) -> None:
    """Make a run directory, or check that the one there is this run's.

    `sources` are the data directories; the first one's tokenizer and manifest are copied.

    Raises:
        UserError: it holds another run (the first differing setting is named), or something else.
    """
    if holds(run, recipe, config, provenance["manifests"]):
        return
    opening = run / _OPENING
    try:
        run.mkdir(parents=True, exist_ok=True)
        opening.touch()
        shutil.copytree(sources[0] / "tokenizer", run / "tokenizer", dirs_exist_ok=True)
        shutil.copyfile(sources[0] / "manifest.json", run / "manifest.json")
    except (OSError, shutil.Error) as error:  # copytree gathers what went wrong into one of its own
        reason = error.strerror or str(error.args[0][0][2] if isinstance(error, shutil.Error) else error)
        raise _unwritable(reason, run) from None
    write_json(run / "model.json", dataclasses.asdict(config))
    write_json(run / "provenance.json", provenance)
    write_text(run / "recipe.toml", to_toml(recipe))  # last: a directory with a recipe is a run
    opening.unlink(missing_ok=True)


def holds(run: Path, recipe: Recipe, config: BertConfig, manifests: list[str]) -> bool:
    """Whether a directory is this run's already; False where one can begin.

    Args:
        manifests: digests of the manifests of its data.

    Raises:
        UserError: it is another run's (all settings that differ are named), or holds something else.
    """
    if run.exists() and not run.is_dir():
        raise UserError("this is a file", str(run), "name a directory for the run")
    if (run / "recipe.toml").exists():
        _check_recipe(run, recipe)
        if (rows := load_config(run).vocab_rows) != config.vocab_rows:
            raise UserError(
                f"this run's word table has {rows:,} rows, not {config.vocab_rows:,}",
                str(run),
                f"give --set model.vocab_multiple={load_config(run).vocab_multiple}",
            )
        if read_json(run / "provenance.json")["manifests"] != manifests:
            raise UserError("this run began on other shards", str(run), "give those, or another run directory")
        return True
    if run.exists() and any(path.name != _LOCK for path in run.iterdir()) and not (run / _OPENING).exists():
        raise UserError("this directory is not empty and holds no run", str(run), "choose another")
    return False


def hold(run: Path) -> TextIO:
    """Take the run for this process, as long as the file that is returned stays open; a kill lets it go.

    Raises:
        UserError: another process has it, or it cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / _LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise _unwritable(error.strerror, run) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(f"{holder} trains in this directory", str(run), "wait for it, or choose another one") from None
    except OSError:
        return file  # a file system without locks
    with suppress(OSError):  # only who holds it is lost on a full disk
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
    return file


def _check_recipe(run: Path, recipe: Recipe) -> None:
    """What the run's recipe does not name, because it is older than the setting, has its default."""
    kept = load_recipe(run / "recipe.toml")
    then, now = _bound(kept), _bound(recipe)
    if len(kept.stage) != len(recipe.stage):
        told = f"{counted(len(kept.stage), 'stage')}, not {len(recipe.stage)}"
    else:
        told = changes(then, now)
    if told:
        remedy = "give the recipe it began with, or another run directory"
        raise UserError(f"this run was begun with {told}", str(run), remedy)


def _bound(recipe: Recipe) -> dict[str, str]:
    """The settings that decide a run's numbers."""
    return {name: value for name, value in flat(recipe).items() if name.rpartition(".")[2] not in FREE}


def load_config(run: str | Path) -> BertConfig:
    """The network of a run."""
    return BertConfig(**read_json(Path(run) / "model.json"))


def describe(recipe_digest: str, manifests: list[str], mesh: dict[str, int]) -> dict[str, Any]:
    """Where a run comes from: code, packages, machine, data."""
    return {
        "arguments": sys.argv,
        "recipe": recipe_digest,
        "manifests": manifests,
        "git": _git(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "mesh": mesh,
    }


def _git() -> str | None:
    """The commit of the code; None where it is no working tree, or git is not installed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return told.stdout.strip() or None


# ------------------------------------------------------------------------------------------- compiled functions


def clear_torn(run: Path) -> None:
    """Clear the run's compilation cache of what a kill may have torn.

    JAX writes an entry in place: half of one is neither read nor ever written again. So whatever is younger than the
    last `mark_compiled` goes.
    """
    folder = run.absolute() / "compiled"
    mark = folder / _MARK
    if folder.is_dir():
        whole = mark.stat().st_mtime_ns if mark.exists() else 0
        for path in folder.iterdir():  # XLA's own folders hold what it renamed into place whole
            if path.is_file() and path.stat().st_mtime_ns > whole:
                path.unlink()


def mark_compiled(run: Path) -> None:
    """What was compiled up to now is on disk."""
    folder = run / "compiled"
    if folder.is_dir():
        (folder / _MARK).touch()


# ------------------------------------------------------------------------------------------------- metrics


def read_metrics(run: str | Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """The lines of `metrics.jsonl` in order: kind "train" (one a step) or "heldout". A torn last line is left out."""
    return (row for row in read_lines(Path(run) / "metrics.jsonl") if kind is None or row["kind"] == kind)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a `.jsonl` file in order, none if there is no file. A torn last line is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


class Lines:
    """Lines for the end of a `.jsonl` file: each is kept until it stands there whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[str] = []
        if path.exists() and (whole := path.read_bytes().rfind(b"\n") + 1) < path.stat().st_size:
            os.truncate(path, whole)  # torn by a kill: the next line must not be glued to it

    def add(self, row: dict[str, Any]) -> None:
        self._waiting.append(json.dumps(row) + "\n")

    def write(self) -> None:
        """Every line added so far stands in the file when this returns.

        Raises:
            OSError: it cannot be written. Nothing is lost: the file is as before, and the next call tries again.
        """
        if not self._waiting:
            return
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write("".join(self._waiting).encode())
        except OSError:
            with suppress(OSError):
                os.truncate(self.path, size)  # what had found room is written again with the rest
            raise
        self._waiting.clear()


def measured(run: Path, step: int) -> bool:
    """Whether the held-out texts were measured at this step, the run's own, which is the last, included."""
    return any(row["step"] == step and "set" not in row for row in read_metrics(run, "heldout"))


def finished(run: Path, steps: int) -> bool:
    """Whether nothing is left to do for a run of so many steps."""
    path = run / "report.json"
    return path.exists() and read_json(path)["step"] >= steps and measured(run, steps)


def cut_metrics(run: Path, step: int) -> None:
    """Keep the lines up to `step`: a resumed run writes the later ones again, and a measurement that was broken off."""
    path = run / "metrics.jsonl"
    if path.exists():
        whole = measured(run, step)
        kept = [
            row
            for row in read_metrics(run)
            if row["step"] < step or (row["step"] == step and (whole or row["kind"] != "heldout"))
        ]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
