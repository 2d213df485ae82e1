"""`bert-jax predict`: what a fine-tuned model says of examples without labels. JSON lines in, JSON lines out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from bert_jax.convert import task_model
from bert_jax.errors import UserError
from bert_jax.tasks.reading import read_inputs
from bert_jax.tasks.task import Asked, from_json, judge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="what `bert-jax finetune` wrote (RUN or RUN/model), or import")
    parser.add_argument("inputs", help="JSON lines, with keys as docs/finetuning.md has them; - for standard input")
    parser.add_argument("--out", type=Path, help="the file to write (standard output)")


def run(args: argparse.Namespace) -> int:
    """One line out for each line in."""
    from tqdm import tqdm

    asked, params = open_task(args.model)
    examples = read_inputs(args.inputs, asked.task.family)
    rows = asked.rows(examples)
    with tqdm(total=len(rows), unit="row", disable=None, leave=False) as bar:
        found = judge(asked, params, examples, rows, told=bar.update).predictions
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found)
    if args.out is None:
        sys.stdout.write(text)
        return 0
    temporary = args.out.with_name(f".{args.out.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, args.out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot be written ({error.strerror})", str(args.out), "choose another --out") from None
    return 0


def open_task(path: Path) -> tuple[Asked, dict[str, Any]]:
    """A fine-tuned model, ready to be asked, and its weights.

    Args:
        path: its directory, or that of the fine-tuning that made it.

    Raises:
        UserError: there is none, or its files do not fit each other.
    """
    if not task_model.is_directory(path) and task_model.is_directory(path / "model"):
        path = path / "model"
    if not task_model.is_directory(path):
        what = "this is no fine-tuned model" if path.exists() else "there is no such directory"
        raise UserError(what, str(path), "give one that `bert-jax finetune` wrote, or import one")
    model = task_model.read(path)
    asked = from_json(model.task, model.loaded.config, model.loaded.tokenizer)
    return asked, {**model.loaded.params, **model.head}
