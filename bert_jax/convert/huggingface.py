"""Native transformers directories of BERT and its relatives: written, and read back.

A directory holds weights, `config.json` and the tokenizer's files. What is written is of one class, whose names and
weights it holds exactly: transformers reports every tensor that the class asked for does not know, so a file with
pretraining heads cannot load into the bare encoder in silence. Export the class that will be loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config import BertConfig
from bert_jax.convert.directory import read_json, whole_directory, write_json, write_tensors
from bert_jax.convert.families import MULTI_LABEL, Family, Kind, config_from_json, config_to_json, family_of, kind_in
from bert_jax.convert.flax_msgpack import read_flax
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import FINE_TUNED, Params, Tensors, from_foreign, parts_in, to_foreign, without
from bert_jax.convert.safetensors_file import read_safetensors
from bert_jax.convert.torch_pickle import read_torch
from bert_jax.errors import UserError, counted
from bert_jax.text.tokenizer import Tokenizer

WEIGHTS, CONFIG = "model.safetensors", "config.json"
READERS = {WEIGHTS: read_safetensors, "pytorch_model.bin": read_torch, "flax_model.msgpack": read_flax}
ENDS = ("", ".index.json")  # of one file, or of the list of several

# What stands on the encoder in transformers' classes for tasks, those that are not read among them.
_TASKS = ("ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification", "ForQuestionAnswering")
_HEADS = ("classifier.", "pre_classifier.", "sequence_summary.", "qa_outputs.")
OTHERS = {
    "ElectraForSequenceClassification": "a layer with a GELU of its own before the last product",
    "ElectraForMultipleChoice": "a layer with a GELU of its own before the last product",
    "DistilBertForSequenceClassification": "a layer with a ReLU before the last product",
    "DistilBertForMultipleChoice": "a layer with a ReLU before the last product",
}

# --------------------------------------------------------------------------------------------------- writing


def kind_for(loaded: Loaded, name: str | None, where: str) -> Kind:
    """The class of the model's family that is called `name` ("pretraining", "masked-lm", "encoder"), or the one whose
    files it came from.

    Raises:
        UserError: the family has no such class, or the model lacks a part of it.
    """
    family = family_of(loaded.architecture)
    if name is None:
        own = next((kind for kind in family.tasks if kind.architecture == loaded.architecture), None)
        return own if own and own.fits(loaded.params) else family.richest(loaded.params)
    fitting = [kind.name for kind in family.kinds if kind.fits(loaded.params)]
    kind = next((kind for kind in family.kinds if kind.name == name), None)
    if kind is None or name not in fitting:
        what = f"{family.model_type} has no class for {name}"
        if kind is not None:
            lacking = [part for part in kind.parts if part not in loaded.params and part not in kind.optional]
            what = f"this model has no {' and no '.join(lacking)}, which {kind.architecture} has"
        raise UserError(what, where, f"give --model {' or '.join(fitting)}")
    return kind


def write(
    out: str | Path,
    loaded: Loaded,
    *,
    kind: str | None = None,
    force: bool = False,
    provenance: Mapping[str, Any] | None = None,
    extra: Mapping[str, str | bytes] | None = None,
) -> Kind:
    """Write a transformers directory, whole or not at all.

    Args:
        loaded: parts that the class lacks are left out.
        kind: "pretraining", "masked-lm" or "encoder"; the class with all of the model's parts if not given.
        force: replace an earlier export at `out`; anything else there is never touched.
        provenance: where the weights come from.
        extra: further files by name, in folders where the name says so.

    Returns:
        The class that was written.

    Raises:
        UserError: `out` exists, cannot be written, the tokenizer has more pieces than the word table has rows, the
            class has a part that the model lacks, or knows two relations of segments and the model has more.
    """
    chosen = kind_for(loaded, kind, str(out))
    config, tokenizer = loaded.config, loaded.tokenizer
    if config.relations != 2 and "next_sentence" in chosen.parts:
        others = [one.name for one in family_of(loaded.architecture).kinds if "next_sentence" not in one.parts]
        raise UserError(
            f"{chosen.architecture} tells two relations of segments apart, this model {config.relations}",
            str(out),
            f"export it as {' or '.join(others)}",
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the word table {config.vocab_size} rows",
            str(out),
            "give the tokenizer that the model was trained with",
        )
    parts = {name: tree for name, tree in loaded.params.items() if name in chosen.parts}
    rows = family_of(loaded.architecture).rows_of(config, parts, chosen.prefixed)
    tensors = to_foreign(rows, config, parts)
    with whole_directory(Path(out), force, provenance or {}, extra) as folder:
        write_tensors(folder / WEIGHTS, tensors)
        write_settings(folder, replace(loaded, architecture=chosen.architecture))
    return chosen


def write_settings(folder: Path, loaded: Loaded) -> None:
    """`config.json` of the model's class and the tokenizer's files, into a folder that is there."""
    config, tokenizer = loaded.config, loaded.tokenizer
    pad, labels = tokenizer.special.pad, loaded.labels
    write_json(folder / CONFIG, config_to_json(config, loaded.architecture, pad, labels, loaded.multi_label))
    tokenizer.save(folder)
    _limit_length(folder / "tokenizer_config.json", config)


def _limit_length(path: Path, config: BertConfig) -> None:
    """Let transformers cut texts where the position table ends, and give only what the class takes."""
    tree = json.loads(path.read_text(encoding="utf-8")) | {"model_max_length": config.positions}
    if not config.segments:
        tree["model_input_names"] = ["input_ids", "attention_mask"]
    write_json(path, tree)


# --------------------------------------------------------------------------------------------------- reading


def is_directory(path: str | Path) -> bool:
    """Whether `path` looks like a transformers directory."""
    return (Path(path) / CONFIG).is_file()


def in_todays_files(path: str | Path) -> bool:
    """Whether transformers itself reads the weights there."""
    names = [f"{name}{end}" for name, reader in READERS.items() if reader is not read_flax for end in ENDS]
    return is_directory(path) and any((Path(path) / name).is_file() for name in names)


def read(directory: str | Path, drop: Sequence[str] = (), fine_tuned: bool = False) -> Loaded:
    """A directory of one of the families, with whatever heads of its table the weights have.

    Args:
        drop: beginnings of names of tensors to leave out, as of a head that is not in the table.
        fine_tuned: read the head of a class for a task too; otherwise a note says that it is left out.

    Raises:
        UserError: files are missing or broken, of another architecture, or do not fit each other.
    """
    directory = Path(directory)
    where = str(directory / CONFIG)
    tree = read_json(directory / CONFIG, "give a transformers directory")
    config, family = config_from_json(tree, where)
    path, tensors = _load_weights(directory)
    tensors, notes = without(tensors, drop, str(path))
    architecture, head = _head(tree, tensors)
    labels: tuple[str, ...] = ()
    if head and fine_tuned:
        config, labels = _classes(tree, family, architecture, head, config, where)
    elif head:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
        notes += (f"the head of {architecture} ({counted(len(head), 'tensor')}) is left out: this is the encoder",)
    params = from_tensors(tensors, config, family, str(path))
    kind = kind_in(family, architecture) if head and fine_tuned else family.richest(params)
    assert kind is not None
    if lacking := [part for part in kind.parts if part not in params and part not in kind.optional]:
        raise UserError(f"the weights have no {' and no '.join(lacking)}, which {kind.architecture} has", where)
    several = bool(labels) and kind.name == "sequence-classification" and tree.get("problem_type") == MULTI_LABEL
    tokenizer = Tokenizer.load(directory)
    return Loaded(config, params, tokenizer, kind.architecture, notes=notes, labels=labels, multi_label=several)


def _head(tree: Mapping[str, Any], tensors: Tensors) -> tuple[str, list[str]]:
    """The class that config.json names, and the tensors of its head if it is one for a task."""
    named = tree.get("architectures")
    architecture = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    if not architecture.endswith(_TASKS):
        return architecture, []
    return architecture, sorted(name for name in tensors if name.removeprefix("module.").startswith(_HEADS))


def _classes(
    tree: Mapping[str, Any], family: Family, architecture: str, head: Sequence[str], config: BertConfig, where: str
) -> tuple[BertConfig, tuple[str, ...]]:
    """The config with the number of the head's outputs, and their names where they have some.

    Raises:
        UserError: the class has no counterpart here, or config.json says what no task of ours is.
    """
    kind = kind_in(family, architecture)
    drops = " ".join(f"--drop {prefix}" for prefix in _HEADS if any(name.startswith(prefix) for name in head))
    without_it = f"`bert-jax import {drops}` leaves it out"
    if kind is None:
        reason = OTHERS.get(architecture, "a head that is not read")
        raise UserError(f"{architecture} has {reason}, which no task here has", where, without_it)
    if kind.name in ("multiple-choice", "question-answering"):
        return replace(config, classes=1 if kind.name == "multiple-choice" else 2), ()
    labels = _labels(tree, where)
    if kind.name == "sequence-classification":
        problem = tree.get("problem_type")
        if problem == "regression" and len(labels) > 1:
            raise UserError(
                f"problem_type = {problem!r}: several numbers of one text are no task here", where, without_it
            )
        if len(labels) == 1 and problem != MULTI_LABEL:
            return replace(config, classes=1), ()
    return replace(config, classes=len(labels)), labels


def _labels(tree: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Names by their numbers; transformers leaves them out where there are two that have none."""
    count = tree.get("num_labels", 2)
    found = tree.get("id2label")
    if found is None and isinstance(count, int) and 0 < count < 1_000_000:
        found = {str(number): f"LABEL_{number}" for number in range(count)}
    names = [found.get(str(number)) for number in range(len(found))] if isinstance(found, dict) else []
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise UserError("id2label does not give each output a name of its own", where, "mend it there")
    return tuple(map(str, names))


def _load_weights(directory: Path) -> tuple[Path, Tensors]:
    """The tensors of the first of the formats that is there, in transformers' order; and their file."""
    for name, reader in READERS.items():
        for path in (directory / f"{name}{end}" for end in ENDS):
            if path.is_file():
                return path, reader(path)
    what = f"there is no {WEIGHTS}, {' or '.join(list(READERS)[1:])}"
    if (directory / "tf_model.h5").is_file():
        what = "TensorFlow 2 weights (tf_model.h5) are not read"
    raise UserError(what, str(directory), "save the model in safetensors format")


def from_tensors(tensors: Tensors, config: BertConfig, family: Family, where: str) -> Params:
    """Our tree, with the parts that these tensors have.

    Every tensor is accounted for: it is in the family's table, repeats one that is, or is a constant (position
    numbers). Old names (gamma and beta of norms, encoders without prefix) are read as today's.

    Raises:
        UserError: tensors are missing, unknown, or of shapes that the config does not say.
    """
    tensors = _modern(tensors, family, where)
    present = parts_in((*family.rows, *(FINE_TUNED if config.classes else ())), config, tensors)
    if "next_sentence" in present and "pooler" not in present:
        raise UserError(
            "there is a next-sentence head, and no pooler for it to read",
            where,
            "see `bert-jax import --drop` to leave the head out",
        )
    return from_foreign(family.rows_of(config, present), config, tensors, where)


def _modern(tensors: Tensors, family: Family, where: str) -> Tensors:
    """The same tensors under the names of today, as in a class with heads; none that repeats another or is constant."""
    tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
    if not any(name.startswith(family.prefix) for name in tensors):
        tops = {row.foreign.split(".")[1] for row in family.rows if row.foreign.startswith(family.prefix)}
        bare = lambda name: name.split(".")[0] in tops  # noqa: E731
        tensors = {family.prefix + name if bare(name) else name: tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("embeddings.position_ids")}
    for copy, original in family.copies.items():
        if copy in tensors and original in tensors:
            if not np.array_equal(tensors[copy], tensors[original]):
                raise UserError(
                    f"{copy} differs from {original}, which stands for both here",
                    where,
                    "give a model with tied embeddings",
                )
            del tensors[copy]
    return tensors


def _renamed(name: str) -> str:
    """Names of the years before `LayerNorm.weight`, and of models saved inside DataParallel."""
    return re.sub(r"LayerNorm\.(gamma|beta)$", _norm_name, name.removeprefix("module."))


def _norm_name(match: re.Match[str]) -> str:
    return "LayerNorm." + {"gamma": "weight", "beta": "bias"}[match[1]]
