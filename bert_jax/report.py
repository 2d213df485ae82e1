"""`bert-jax report`: draw a run's curves anew and print its closing table."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_jax.store.closing import closing_table
from bert_jax.store.curves import draw_curves
from bert_jax.store.rundir import check_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run directory, finished or in progress")
    parser.add_argument("--log", action="store_true", help="draw the steps on a logarithmic axis")


def run(args: argparse.Namespace) -> int:
    check_run(args.run)
    table = closing_table(args.run)
    draw_curves(args.run, args.log)
    print(table)
    return 0
