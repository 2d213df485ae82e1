"""`bert-jax import`: a BERT from elsewhere as a model directory of ours, with its head if it is a fine-tuned one."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bert_jax.api import open_model
from bert_jax.convert import heads, huggingface, native, task_model
from bert_jax.convert.directory import keep_apart
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import flatten
from bert_jax.convert.origin import origin
from bert_jax.convert.proof import demand, not_proved, prove, wanted
from bert_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="a transformers directory, or another that holds a BERT"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="the directory to write")
    parser.add_argument(
        "--drop",
        metavar="PREFIX",
        action="append",
        default=[],
        help="leave out the tensors whose names begin so, as of a head that is not read",
    )
    parser.add_argument(
        "--task",
        choices=("single", "pair"),
        help="what a classifier of texts takes, one text or two, which its files do not say (single)",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier import or export")
    parser.add_argument(
        "--prove",
        action=argparse.BooleanOptionalAction,
        help="compare with transformers on torch, every layer and head, and write proof.json (done where both are "
        "installed; --prove insists on it, --no-prove leaves it out)",
    )


def run(args: argparse.Namespace) -> int:
    """Read, write and compare; a failed comparison leaves the files and ends with status 1."""
    proving = wanted(args.prove)
    keep_apart(args.source, args.output)
    task = heads.open_class(args.source, args.drop, args.task)
    if task is None and args.task:
        raise UserError("there is no classifier of texts", str(args.source), "leave --task out")
    loaded = open_model(args.source, drop=args.drop) if task is None else task.loaded
    provenance = origin(args.source, loaded)
    if task is None:
        native.write(args.output, loaded, force=args.force, provenance=provenance)
    else:
        task_model.write(args.output, task, force=args.force, provenance=provenance)
    written = _written(args.output, fine_tuned=task is not None)
    kind = huggingface.kind_for(written, None, str(args.output))
    parameters = sum(leaf.size for _, leaf in flatten(written.params))
    print(f"{args.output}: {kind.architecture}, {parameters:,} parameters, {loaded.tokenizer}")
    for note in loaded.notes:
        print(f"  {note}")
    if loaded.tokenizer.vocab_size < loaded.config.vocab_size:
        print(f"  the word table has {loaded.config.vocab_size} rows, more than the tokenizer has pieces")
    if not proving:
        print(not_proved(args.prove))
        return 0
    if huggingface.in_todays_files(args.source):
        proof = prove(args.source, written, kind, report_to=args.output, dropped=args.drop, split_special_tokens=True)
    else:  # transformers does not read that format: it is given the same tensors in its own
        with tempfile.TemporaryDirectory() as box:
            huggingface.write(Path(box) / "again", written)
            proof = prove(Path(box) / "again", written, kind, report_to=args.output)
    print(demand(proof, str(args.output)))
    return 0


def _written(folder: Path, fine_tuned: bool) -> Loaded:
    """What is proved is what stands in the files."""
    return heads.to_class(task_model.read(folder), str(folder)) if fine_tuned else native.read(folder)
