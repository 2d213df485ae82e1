"""`bert-jax report`: draw a run's curves anew and print its closing table."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_jax.errors import UserError
from bert_jax.store.report import closing_table, draw_curves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run directory")


def run(args: argparse.Namespace) -> int:
    if not (args.run / "recipe.toml").exists():
        raise UserError("this is no run directory", str(args.run), "give one that `bert-jax pretrain` made")
    draw_curves(args.run)
    print(closing_table(args.run))
    return 0
