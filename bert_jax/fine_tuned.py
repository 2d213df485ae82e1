"""A fine-tuned model opened: what it takes to ask it, its weights, and how its examples are written in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bert_jax.convert import task_model
from bert_jax.errors import UserError
from bert_jax.settings import assign, build
from bert_jax.tasks.settings import ColumnSettings, TaskSettings
from bert_jax.tasks.task import Asked, from_json


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A fine-tuned model. `columns` are those of the files that it was trained on, empty of one from elsewhere."""

    asked: Asked
    params: dict[str, Any]
    columns: ColumnSettings


@dataclass(frozen=True)
class Kept:
    """The sections of a recipe that a model keeps."""

    task: TaskSettings = field(default_factory=TaskSettings)
    columns: ColumnSettings = field(default_factory=ColumnSettings)


def directory(path: Path) -> Path | None:
    """Where a fine-tuned model lies: at `path`, or where the fine-tuning in `path` wrote it; None: at neither."""
    return next((folder for folder in (path, path / "model") if task_model.is_directory(folder)), None)


def open_task(path: Path, settings: Sequence[str] = ()) -> FineTuned:
    """A fine-tuned model, ready to be asked.

    Args:
        path: its directory, or that of the fine-tuning that made it.
        settings: texts as of `--set`, for `[task]` and `[columns]`.

    Raises:
        UserError: there is none, its files do not fit each other, or a setting cannot be.
    """
    folder = directory(path)
    if folder is None:
        if (path / "inputs.json").is_file():
            raise UserError("this fine-tuning is not finished", str(path), "run the same `bert-jax finetune` again")
        what = "this is no fine-tuned model" if path.exists() else "there is no such directory"
        raise UserError(what, str(path), "give one that `bert-jax finetune` wrote, or import one")
    model = task_model.read(folder)
    tree = {"task": {"family": model.family, **model.task["task"]}, "columns": dict(model.task["columns"])}
    for setting in settings:
        assign(tree, setting)
    kept = build(Kept, tree, "")
    if kept.task.family != model.family:
        raise UserError(f"the model's family is {model.family}", "--set task.family", "leave it out")
    asked = from_json({**model.task, "task": asdict(kept.task)}, model.loaded.config, model.loaded.tokenizer)
    return FineTuned(asked, {**model.loaded.params, **model.head}, kept.columns)
