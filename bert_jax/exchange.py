"""`bert-jax export` and `bert-jax import`: a model out to other libraries' files, and in from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bert_jax.api import open_model
from bert_jax.convert import huggingface
from bert_jax.convert.families import Kind
from bert_jax.convert.loaded import Loaded
from bert_jax.errors import UserError, counted
from bert_jax.store.checkpoint import load_params
from bert_jax.store.rundir import load_config, read_json
from bert_jax.text.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument(
        "--model",
        choices=("pretraining", "masked-lm", "encoder"),
        help="the class that will be loaded: pretraining (as BertForPreTraining), masked-lm (BertForMaskedLM) or "
        "encoder (BertModel); the one with all of the model's parts if not given",
    )
    parser.add_argument("--step", type=int, help="the checkpoint to export (the newest)")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--prove",
        action="store_true",
        help="load it with transformers, compare every layer and head, write proof.json",
    )


def run(args: argparse.Namespace) -> int:
    """Write, and with `--prove` compare; a failed comparison leaves the files and ends with status 1."""
    if not (args.run / "recipe.toml").is_file():
        raise UserError("this is no run directory", str(args.run), "give one that `bert-jax pretrain` made")
    if args.prove:
        from bert_jax.convert.proof import check_libraries

        check_libraries()  # before anything is written: what was not proved would stand in the way of a second try
    config = load_config(args.run)
    params, step = load_params(args.run, args.step)
    tokenizer = Tokenizer.load(args.run / "tokenizer")
    provenance: dict[str, Any] = {**read_json(args.run / "provenance.json"), "step": step}
    extra = {"recipe.toml": (args.run / "recipe.toml").read_text(encoding="utf-8")}
    loaded = Loaded(config, params, tokenizer)
    kind = huggingface.write(args.out, loaded, kind=args.model, force=args.force, provenance=provenance, extra=extra)
    print(f"{args.out}: {kind.architecture} after step {step:,}, {_megabytes(args.out)}")
    if args.prove:
        return _prove(args.out, kind)
    return 0


def _prove(out: Path, kind: Kind) -> int:
    # what is proved is what stands in the files, so it is read from there
    from bert_jax.convert.proof import prove

    proof = prove(out, open_model(out), kind)
    worst = max(proof.worst, key=lambda name: proof.worst[name])
    said = f"transformers {proof.versions['transformers']}, {proof.rows} pairs of texts"
    if proof.passed:
        print(f"proved with {said}: no difference above {proof.worst[worst]:.1e} ({worst}), equal ids")
        return 0
    reasons = [f"the first difference above {proof.tolerance:g} is in {proof.first_difference}"] * bool(
        proof.first_difference
    )
    reasons += [f"{counted(len(proof.other_ids), 'text')} with other ids"] * bool(proof.other_ids)
    reasons += [f"{key}: {', '.join(names[:3])}" for key, names in proof.load_report.items()]
    raise UserError(f"not proved with {said}: {'; '.join(reasons)}", str(out), "see proof.json there")


def _megabytes(folder: Path) -> str:
    return f"{sum(p.stat().st_size for p in folder.iterdir()) / 1e6:,.1f} MB"
