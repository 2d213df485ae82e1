"""`bert-jax export`: a model as other libraries' files."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.api import Model, open_model
from bert_jax.convert import google, heads, huggingface, onnx, sentence_transformers, stablehlo
from bert_jax.convert.card import Facts, card
from bert_jax.convert.directory import keep_apart, whole_directory
from bert_jax.convert.loaded import Loaded, Pooling
from bert_jax.convert.names import flatten
from bert_jax.convert.opening import open_foreign
from bert_jax.convert.origin import origin
from bert_jax.convert.proof import LIBRARIES, demand, not_proved, prove, wanted, write_proof
from bert_jax.errors import UserError
from bert_jax.store.rundir import read_json, read_metrics

Extra = dict[str, str | bytes]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a run directory, or what `bert-jax import` reads or wrote")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="huggingface",
        help="; ".join(f"{name}: {one.what}" for name, one in FORMATS.items()) + " (huggingface)",
    )
    parser.add_argument(
        "--model",
        choices=("pretraining", "masked-lm", "encoder"),
        help="the class that will be loaded: pretraining (as BertForPreTraining), masked-lm (BertForMaskedLM) or "
        "encoder (BertModel); the one with all of the model's parts if not given, of a fine-tuned model its task's",
    )
    parser.add_argument("--pooling", choices=("mean", "cls", "max"), help="for sentence-transformers (mean)")
    parser.add_argument("--normalize", action="store_true", help="for sentence-transformers: vectors of length 1")
    parser.add_argument(
        "--whiten",
        nargs=2,
        metavar=("TEXTS", "SIZE"),
        help="for sentence-transformers: a dense layer that makes SIZE numbers without correlation, fitted on "
        "a file with a text a line",
    )
    parser.add_argument("--license", help="of the weights, for the model card, as the hub names it (apache-2.0, …)")
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
    chosen = FORMATS[args.format]
    if args.format != "sentence-transformers" and (args.pooling or args.normalize or args.whiten):
        raise UserError(
            "--pooling, --normalize and --whiten make sentence vectors",
            f"--format {args.format}",
            "add --format sentence-transformers, or leave them out",
        )
    proving = wanted(args.prove, chosen.libraries)  # first: what was not proved would be in a second try's way
    keep_apart(args.source, args.out)
    task = None if args.model or args.step is not None else heads.open_task(args.source)
    if task is not None and args.format != "huggingface":
        raise UserError(
            "only the encoder of a fine-tuned model can go there", f"--format {args.format}", "add --model encoder"
        )
    loaded = open_model(args.source, args.step) if task is None else heads.to_class(task, str(args.source))
    if args.step is not None and loaded.step is None:
        raise UserError("only a run has steps to choose from", str(args.source), "leave --step out")
    sentences = args.format == "sentence-transformers"
    if sentences and args.model not in (None, "encoder"):
        raise UserError(f"these files hold an encoder, not --model {args.model}", str(args.out), "leave --model out")
    wanted_kind = "encoder" if sentences else args.model
    kind = huggingface.kind_for(loaded, wanted_kind, str(args.out))
    parts = {part: tree for part, tree in loaded.params.items() if part in kind.parts}
    loaded = replace(loaded, params=parts, architecture=kind.architecture)
    pooled, loaded = loaded.pooling, replace(loaded, pooling=_pooling(args, loaded) if sentences else None)
    facts = Facts(args.out.name, loaded, use=chosen.use, license=args.license, task=task.task if task else {})
    provenance, extra = _record(args.source, facts)
    chosen.write(args.out, loaded, force=args.force, provenance=provenance, extra=extra)
    after = f" after step {loaded.step:,}" if loaded.step is not None else ""
    print(f"{args.out}: {kind.architecture}{after}, {chosen.what}, {_megabytes(args.out)}")
    if pooled and not sentences:
        print("  its pooling is left out: that takes --format sentence-transformers")
    print(chosen.prove(args.out, loaded) if proving else not_proved(args.prove, chosen.libraries))
    return 0


def _pooling(args: argparse.Namespace, loaded: Loaded) -> Pooling:
    """What was asked for, over what the model came with."""
    pooling = loaded.pooling or Pooling()
    pooling = replace(pooling, mode=args.pooling or pooling.mode, normalize=args.normalize or pooling.normalize)
    if args.whiten is None:
        return pooling
    path, size = args.whiten
    if not size.isdigit():
        raise UserError(f"{size!r} is no number of directions", "--whiten", "give TEXTS and a number")
    try:
        texts = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", path, "give a UTF-8 file with a text a line") from None
    if not texts:
        raise UserError("there are no texts in it", path, "give a UTF-8 file with a text a line")
    before = replace(loaded, pooling=replace(pooling, normalize=False))
    dense = sentence_transformers.fit_whitening(Model.of(before).encode(texts), int(size))
    return replace(pooling, dense=(*pooling.dense, dense))


def _record(source: Path, facts: Facts) -> tuple[dict[str, Any], Extra]:
    """What an export says of where it comes from: its provenance, and the files that go with it, a card among them."""
    step, extra = facts.loaded.step, {}
    if step is None:
        facts = replace(facts, provenance=origin(source, facts.loaded))
    else:
        recipe = (source / "recipe.toml").read_text(encoding="utf-8")
        extra["recipe.toml"] = recipe
        if (source / "curves.png").is_file():
            extra["curves.png"] = (source / "curves.png").read_bytes()
        facts = replace(
            facts,
            provenance={**read_json(source / "provenance.json"), "step": step},
            manifests=[read_json(source / "manifest.json")],
            recipe=tomllib.loads(recipe),
            tokens=sum(line["tokens"] for line in read_metrics(source, "train") if line["step"] <= step),
            report=read_json(source / "report.json") if (source / "report.json").is_file() else {},
            curves="curves.png" in extra,
        )
    return dict(facts.provenance), {**extra, "README.md": card(facts)}


def _megabytes(folder: Path) -> str:
    return f"{sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()) / 1e6:,.1f} MB"


# --------------------------------------------------------------------------------------------------- the formats


@dataclass(frozen=True)
class Format:
    """What is written, by what, and how it is compared.

    `use` tells the model card how the files are used, where transformers does not. `write` takes the directory, the
    model, `force`, `provenance` and `extra`. `prove` gives one sentence, and raises `UserError` where the comparison
    fails; `libraries` is what it takes, and what pip is to install for each.
    """

    what: str
    use: str
    write: Callable[..., object]
    prove: Callable[[Path, Loaded], str]
    libraries: dict[str, str]


def _prove_huggingface(out: Path, loaded: Loaded) -> str:
    kind = huggingface.kind_for(loaded, None, str(out))
    # what is proved is what stands in the files, so it is read from there
    written = huggingface.read(out, fine_tuned=True) if loaded.config.classes else open_foreign(out)
    return demand(prove(out, written, kind), str(out))


def _prove_tf1(out: Path, loaded: Loaded) -> str:
    """Nothing but TensorFlow 1 runs these; what can be said here is that every tensor stands in the files."""
    ours, theirs = (dict(flatten(one.params)) for one in (loaded, open_foreign(out)))
    other = [path for path in ours if path not in theirs or not np.array_equal(ours[path], theirs[path])]
    if other or ours.keys() != theirs.keys():
        first = (other or sorted(theirs.keys() - ours.keys()))[0]
        raise UserError(f"{first} was not read back as it was written", str(out), "export it again")
    return f"read back: all {len(ours)} parameters equal bit for bit"


def _write_onnx(out: Path, loaded: Loaded, *, force: bool, provenance: dict[str, Any], extra: Extra) -> None:
    with whole_directory(out, force, provenance, extra) as folder:
        onnx.write_onnx(folder / "model.onnx", loaded)
        huggingface.write_settings(folder, loaded)


def _prove_onnx(out: Path, loaded: Loaded) -> str:
    proof = onnx.prove(out / "model.onnx", loaded)
    write_proof(out, proof)
    return demand(proof, str(out))


def _write_stablehlo(out: Path, loaded: Loaded, *, force: bool, provenance: dict[str, Any], extra: Extra) -> None:
    with whole_directory(out, force, provenance, extra) as folder:
        stablehlo.write_stablehlo(folder, loaded)
        loaded.tokenizer.save(folder / "tokenizer")


def _prove_stablehlo(out: Path, loaded: Loaded) -> str:
    proof = stablehlo.prove(out, loaded)
    write_proof(out, proof)
    return demand(proof, str(out))


FORMATS = {
    "huggingface": Format("a transformers directory", "", huggingface.write, _prove_huggingface, LIBRARIES),
    "sentence-transformers": Format(
        "a sentence-transformers directory", "", sentence_transformers.write, _prove_huggingface, LIBRARIES
    ),
    "tf1": Format(
        "a checkpoint for google-research/bert",
        "`--bert_config_file bert_config.json --vocab_file vocab.txt --init_checkpoint bert_model.ckpt`",
        google.write,
        _prove_tf1,
        {},
    ),
    "onnx": Format(
        "an ONNX file",
        '`onnxruntime.InferenceSession("model.onnx")`; inputs are int64 [batch, sequence], as the tokenizer beside it '
        "gives them.",
        _write_onnx,
        _prove_onnx,
        onnx.LIBRARIES,
    ),
    "stablehlo": Format(
        "StableHLO for jax.export",
        "`python run.py inputs.npz outputs.npz`, or `from run import load` in Python; see run.py.",
        _write_stablehlo,
        _prove_stablehlo,
        {},
    ),
}
