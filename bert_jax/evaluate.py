"""`bert-jax evaluate`: exact held-out metrics of a run's checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax

from bert_jax.config import Execution, load_recipe
from bert_jax.data.feed import to_devices
from bert_jax.data.loader import heldout_batches, open_dataset
from bert_jax.errors import UserError
from bert_jax.store.checkpoint import load_params
from bert_jax.store.rundir import load_config, read_json
from bert_jax.train.loss import make_pretraining_loss, weigh
from bert_jax.train.sharding import make_mesh, on, process_rows, rows
from bert_jax.train.step import make_eval_step, measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--data", type=Path, help="a data directory made with the run's tokenizer (default: the run's)")
    parser.add_argument("--split", default="heldout", choices=("train", "heldout"))
    parser.add_argument("--step", type=int, help="a saved step (default: the newest)")
    parser.add_argument("--batch", type=int, default=64, help="rows at a time (default: 64)")


def run(args: argparse.Namespace) -> int:
    """Print the metrics as one JSON object."""
    config = load_config(args.run)
    data = args.data or own_data(args.run)
    dataset = open_dataset(data, args.split)
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
    if args.batch < 1:
        raise UserError(f"{args.batch} rows at a time are none", "--batch", "give 1 or more")
    batch = -(-args.batch // mesh.size) * mesh.size
    loss = make_pretraining_loss(config, Execution())
    with on(mesh):
        eval_step = jax.jit(make_eval_step(loss, weigh))
        parts = heldout_batches(dataset, batch, process_rows(mesh, batch))
        metrics = measure(eval_step, params, (to_devices(part, rows(mesh)) for part in parts))
    print(json.dumps({"step": step, "split": args.split, "records": dataset.records, **metrics}, indent=1))
    return 0


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
