"""`bert-jax evaluate`: exact held-out metrics of a run's checkpoint, or those of a fine-tuned model on a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax

from bert_jax.config import Execution, load_recipe
from bert_jax.convert import task_model
from bert_jax.data.feed import to_devices
from bert_jax.data.loader import heldout_batches, open_dataset
from bert_jax.errors import UserError
from bert_jax.fine_tuned import load_task
from bert_jax.settings import add_settings
from bert_jax.store.checkpoint import load_params
from bert_jax.store.rundir import check_output, load_config, read_json, write_text
from bert_jax.tasks.audit import check_labels
from bert_jax.tasks.reading import read_examples
from bert_jax.tasks.task import judge
from bert_jax.train.loss import make_pretraining_loss, weigh
from bert_jax.train.sharding import make_mesh, on, process_rows, rows
from bert_jax.train.step import make_eval_step, measure

PRETRAINED, FINE_TUNED = ("split", "step", "batch"), ("settings", "predictions")  # options of one kind of model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run directory, of `pretrain` or `finetune`, or a fine-tuned model")
    parser.add_argument(
        "--data",
        type=Path,
        help="a data directory made with the run's tokenizer (default: the run's); of a fine-tuned model a file of "
        "labelled examples, in the format and with the columns that it was trained with",
    )
    parser.add_argument("--split", choices=("train", "heldout"), help="of a data directory (heldout)")
    parser.add_argument("--step", type=int, help="a saved step of a run (the newest)")
    parser.add_argument("--batch", type=int, help="rows at a time, of a run (64)")
    add_settings(
        parser,
        "of a fine-tuned model: how this file is written, where not as the training file, such as columns.label=gold "
        "or task.format=csv",
    )
    parser.add_argument("--predictions", type=Path, help="of a fine-tuned model: also write them to this file")


def run(args: argparse.Namespace) -> int:
    """Print the metrics as one JSON object."""
    task = task_model.within(args.run) is not None or (args.run / "task.toml").is_file()
    for name in PRETRAINED if task else FINE_TUNED:
        if getattr(args, name) not in (None, []):
            option = "--set" if name == "settings" else f"--{name}"
            kind, other = ("fine-tuned", "run of pretraining") if task else ("pretrained", "fine-tuned one")
            raise UserError(f"this is a {kind} model, and the option is of a {other}", option, "leave it out")
    found = of_task(args) if task else of_run(args)
    print(json.dumps(found, indent=1))
    return 0


def of_task(args: argparse.Namespace) -> dict[str, Any]:
    """The number of examples in a file, and what a fine-tuned model scores on them."""
    from tqdm import tqdm

    if args.data is None:
        raise UserError("a fine-tuned model is measured on a file", "--data", "give one of labelled examples")
    if args.predictions:
        check_output(args.predictions, args.data)
    model = load_task(args.run, args.settings)
    examples = read_examples(args.data, model.asked.task, model.columns)
    if model.asked.task.unseen == "error":
        remedy = "rewrite them with --set columns.labels, or count them as wrong with --set task.unseen=wrong"
        check_labels(dict(model.asked.labels), examples, str(args.data), remedy)
    rows = model.asked.rows(examples)
    with tqdm(total=len(rows), unit="row", disable=None, leave=False) as bar:
        judged = judge(model.asked, model.params, examples, rows, told=bar.update)
    if args.predictions:
        told = [{**one, **example.gold()} for one, example in zip(judged.predictions, examples, strict=True)]
        write_text(args.predictions, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in told))
    return {"examples": len(examples), **judged.scores}


def of_run(args: argparse.Namespace) -> dict[str, Any]:
    """Step, split and number of records, and the exact metrics of a checkpoint on them."""
    config = load_config(args.run)
    data, split = args.data or own_data(args.run), args.split or "heldout"
    dataset = open_dataset(data, split)
    if dataset.manifest.tokenizer != read_json(args.run / "manifest.json")["tokenizer"]:
        raise UserError("these shards were made with another tokenizer", str(data), "make them with the run's")
    if dataset.manifest.length > config.positions:
        raise UserError(
            f"records of {dataset.manifest.length} tokens are longer than the model's {config.positions} positions",
            str(data),
            "make shorter ones",
        )
    if dataset.manifest.relations not in (0, config.relations):
        raise UserError(
            f"these records tell {dataset.manifest.relations} relations of segments apart, the model"
            f" {config.relations}",
            str(data),
            "give some of the layout that it was trained on",
        )
    params, step = load_params(args.run, args.step)
    mesh = make_mesh()
    batch = 64 if args.batch is None else args.batch
    if batch < 1:
        raise UserError(f"{batch} rows at a time are none", "--batch", "give 1 or more")
    batch = -(-batch // mesh.size) * mesh.size
    loss = make_pretraining_loss(config, Execution())
    with on(mesh):
        eval_step = jax.jit(make_eval_step(loss, weigh))
        parts = heldout_batches(dataset, batch, process_rows(mesh, batch))
        metrics = measure(eval_step, params, (to_devices(part, rows(mesh)) for part in parts))
    return {"step": step, "split": split, "records": dataset.records, **metrics}


def own_data(run: Path) -> Path:
    """The data directory of a run's last stage.

    Raises:
        UserError: it is not there any more.
    """
    recipe = load_recipe(run / "recipe.toml")
    path = Path(recipe.data.path) / recipe.stage[-1].data
    if not path.is_dir():
        raise UserError("the data that this run was trained on are gone", str(path), "give others with --data DIR")
    return path
