"""`bert-jax report`: draw a run's curves anew and print its closing table."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_jax.errors import UserError
from bert_jax.store.closing import closing_table
from bert_jax.store.curves import draw_curves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run directory, finished or in progress")
    parser.add_argument("--log", action="store_true", help="draw the steps on a logarithmic axis")


def run(args: argparse.Namespace) -> int:
    if not (args.run / "recipe.toml").exists():
        raise UserError("this is no run directory", str(args.run), "give one that `bert-jax pretrain` made")
    table = closing_table(args.run)
    draw_curves(args.run, args.log)
    print(table)
    return 0
