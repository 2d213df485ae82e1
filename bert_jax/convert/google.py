"""Directories of google-research/bert: `bert_config.json`, `vocab.txt` and a TensorFlow 1 checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.convert.directory import read_json, whole_directory, write_json
from bert_jax.convert.families import BERT, config_from_json
from bert_jax.convert.huggingface import kind_for
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import TF1, from_foreign, of_parts, parts_in, to_foreign, without
from bert_jax.convert.tf1 import read_tf1, write_tf1
from bert_jax.errors import UserError, counted
from bert_jax.text.tokenizer import Tokenizer

CONFIG, VOCABULARY, CHECKPOINT = "bert_config.json", "vocab.txt", "bert_model.ckpt"

# What modeling.py has a key for; the rest it does in one way only (`layer_norm`, `gelu`).
_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
)


def holds(path: str | Path) -> bool:
    """Whether `path` is such a directory, or the beginning of the names of a checkpoint inside one."""
    path = Path(path)
    return (path / CONFIG).is_file() or (not path.is_dir() and (path.parent / CONFIG).is_file())


def read(path: str | Path, drop: Sequence[str] = ()) -> Loaded:
    """The model of a directory, or of one checkpoint in it.

    Its "gelu" is the approximation by tanh (modeling.py, `gelu`), where transformers' word "gelu" is the exact one.

    Args:
        path: the directory, or the beginning of a checkpoint's file names (`DIR/bert_model.ckpt`).
        drop: beginnings of names of tensors to leave out, as of a head that is not in the table.

    Raises:
        UserError: files are missing or broken, or do not fit each other.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    tree = read_json(folder / CONFIG, "give google-research/bert's directory, whole")
    where = str(folder / CONFIG)
    if not isinstance(tree, dict) or tree.get("hidden_act", "gelu") != "gelu":
        raise UserError("this is no BERT of google-research/bert with hidden_act = gelu", where, "give that file")
    config, _ = config_from_json({**tree, "model_type": "bert", "hidden_act": "gelu_new"}, where)
    tensors, slots = read_tf1(path)
    tensors, notes = without(tensors, drop, str(path))
    params = from_foreign(of_parts(TF1, parts_in(TF1, config, tensors)), config, tensors, str(path))
    if slots:
        notes += (f"{counted(slots, 'tensor')} left out that only training needs",)
    tokenizer = Tokenizer.load(folder / VOCABULARY)
    return Loaded(config, params, tokenizer, BERT.richest(params).architecture, notes=notes)


def write(
    out: str | Path,
    loaded: Loaded,
    *,
    kind: str | None = None,
    force: bool = False,
    provenance: Mapping[str, Any],
    extra: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write a directory that google-research/bert's scripts take, whole or not at all.

    Raises:
        UserError: `out` exists or cannot be written, the model is no BERT, has another GELU or norm than theirs, or its
            tokenizer is no WordPiece.
    """
    config = loaded.config
    chosen = kind_for(loaded, kind, str(out))
    wrong = {
        f"{chosen.architecture} is not among its models": chosen not in BERT.kinds,
        "its GELU is the approximation by tanh, this model's is exact": config.activation != "gelu_tanh",
        f"its norms have an epsilon of 1e-12, this model's {config.norm_epsilon}": config.norm_epsilon != 1e-12,
        "it reads vocab.txt, and this tokenizer is no WordPiece": loaded.tokenizer.kind != "wordpiece",
    }
    for what, holds_true in wrong.items():
        if holds_true:
            raise UserError(what, str(out), "export it in another format")
    values = {key: getattr(config, field) for field, key, _ in BERT.fields} | {"hidden_act": "gelu"}
    parts = {name: tree for name, tree in loaded.params.items() if name in chosen.parts}
    tensors = to_foreign(of_parts(TF1, parts), config, parts)
    with whole_directory(Path(out), force, provenance, extra) as folder:
        write_tf1(folder / CHECKPOINT, tensors)
        write_json(folder / CONFIG, {key: values[key] for key in _KEYS})
        vocabulary = "".join(f"{piece}\n" for piece in loaded.tokenizer.pieces)
        (folder / VOCABULARY).write_text(vocabulary, encoding="utf-8")
