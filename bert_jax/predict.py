"""`bert-jax predict`: what a fine-tuned model says of examples without labels. JSON lines in, JSON lines out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bert_jax.fine_tuned import load_task
from bert_jax.settings import add_settings
from bert_jax.store.rundir import check_output, write_text
from bert_jax.tasks.reading import read_inputs
from bert_jax.tasks.task import judge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="what `bert-jax finetune` wrote (RUN or RUN/model), or import")
    parser.add_argument("inputs", help="JSON lines, with keys as docs/finetuning.md has them; - for standard input")
    add_settings(
        parser, "another [task] or [columns] than the model keeps, such as task.threshold=0.3 or columns.text_a=body"
    )
    parser.add_argument("--out", type=Path, help="the file to write (standard output)")


def run(args: argparse.Namespace) -> int:
    """One line out for each line in."""
    from tqdm import tqdm

    if args.out is not None:
        check_output(args.out, Path(args.inputs))
    model = load_task(args.model, args.settings)
    examples = read_inputs(args.inputs, model.asked.task.family, model.columns)
    rows = model.asked.rows(examples)
    with tqdm(total=len(rows), unit="row", disable=None, leave=False) as bar:
        found = judge(model.asked, model.params, examples, rows, told=bar.update).predictions
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found)
    if args.out is None:
        sys.stdout.write(text)
    else:
        write_text(args.out, text)
    return 0
