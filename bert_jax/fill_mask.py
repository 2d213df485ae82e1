"""`bert-jax fill-mask`: the likeliest pieces for each [MASK] of a text."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a run directory or an exported one")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="a text with one or more [MASK]")
    parser.add_argument("-k", type=int, default=5, help="how many guesses (5)")


def run(args: argparse.Namespace) -> int:
    """Print each text and, for each of its masks, the guesses with their probabilities."""
    from bert_jax.api import check_masked, load

    if args.k < 1:
        raise UserError(f"{args.k} guesses cannot be given", "-k", "ask for 1 or more")
    for text in args.texts:
        check_masked(text)  # before the model is opened
    model = load(args.model)
    for text in args.texts:
        print(text)
        for guesses in model.fill_mask(text, args.k):
            print("  " + "   ".join(f"{guess.text} {guess.probability:.1%}" for guess in guesses))
    return 0
