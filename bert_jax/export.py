"""`bert-jax export`: a model as other libraries' files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bert_jax.api import open_model
from bert_jax.convert import huggingface
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.opening import open_foreign
from bert_jax.convert.origin import origin
from bert_jax.store.rundir import read_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a run directory, or what `bert-jax import` reads or wrote")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument(
        "--model",
        choices=("pretraining", "masked-lm", "encoder"),
        help="the class that will be loaded: pretraining (as BertForPreTraining), masked-lm (BertForMaskedLM) or "
        "encoder (BertModel); the one with all of the model's parts if not given",
    )
    parser.add_argument("--step", type=int, help="the checkpoint of a run to export (the newest)")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--prove",
        action=argparse.BooleanOptionalAction,
        help="load it with the foreign library, compare every layer and head, and write proof.json (done where the "
        "library is installed; --prove insists on it, --no-prove leaves it out)",
    )


def run(args: argparse.Namespace) -> int:
    """Write and compare; a failed comparison leaves the files and ends with status 1."""
    from bert_jax.convert.proof import NOT_PROVED, demand, prove, wanted

    proving = wanted(args.prove)  # before anything is written: what was not proved would be in a second try's way
    loaded = open_model(args.source, args.step)
    provenance, extra = _record(args.source, loaded)
    kind = huggingface.write(args.out, loaded, kind=args.model, force=args.force, provenance=provenance, extra=extra)
    after = f" after step {loaded.step:,}" if loaded.step is not None else ""
    print(f"{args.out}: {kind.architecture}{after}, {_megabytes(args.out)}")
    if not proving:
        print(NOT_PROVED if args.prove is None else "not proved, as asked")
        return 0
    # what is proved is what stands in the files, so it is read from there
    print(demand(prove(args.out, open_foreign(args.out), kind), str(args.out)))
    return 0


def _record(source: Path, loaded: Loaded) -> tuple[dict[str, Any], dict[str, str]]:
    """What an export says of where it comes from, and the files of a run that go with it."""
    if loaded.step is None:
        return origin(source, loaded), {}
    recipe = (source / "recipe.toml").read_text(encoding="utf-8")
    return {**read_json(source / "provenance.json"), "step": loaded.step}, {"recipe.toml": recipe}


def _megabytes(folder: Path) -> str:
    return f"{sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()) / 1e6:,.1f} MB"
