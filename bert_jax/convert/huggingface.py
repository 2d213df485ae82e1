"""Native transformers files: written, and read back.

A directory holds `model.safetensors`, `config.json` and the tokenizer's files. It is of one class, whose
names and weights it holds exactly: transformers reports every tensor that the class asked for does not know,
so a file with pretraining heads cannot load into the bare encoder in silence. Export the class that will be
loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bert_jax.config import BertConfig
from bert_jax.convert.names import HUGGING_FACE, Params, Row, from_foreign, to_foreign
from bert_jax.errors import UserError
from bert_jax.text.tokenizer import Tokenizer

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Kind:
    """A transformers class: which parts of our tree it has, and whether its encoder's names begin with
    `bert.`."""

    architecture: str
    parts: tuple[str, ...]
    prefixed: bool = True

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the table that this class has, under its names."""
        rows = [row for row in HUGGING_FACE if row.path.split("/")[0] in self.parts]
        return tuple(row if self.prefixed else replace(row, foreign=row.foreign.removeprefix("bert.")) for row in rows)


KINDS: dict[str, Kind] = {
    "pretraining": Kind("BertForPreTraining", ("embeddings", "layers", "pooler", "masked_lm", "next_sentence")),
    "masked-lm": Kind("BertForMaskedLM", ("embeddings", "layers", "masked_lm")),
    "encoder": Kind("BertModel", ("embeddings", "layers", "pooler"), prefixed=False),
}

# transformers' activation names. "gelu_new" and "gelu_pytorch_tanh" are one formula, written twice there.
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}

# Our field, transformers' key, and its default for keys that a config.json leaves out (None: it must be
# there).
FIELDS: tuple[tuple[str, str, Any], ...] = (
    ("vocab_size", "vocab_size", None),
    ("width", "hidden_size", None),
    ("layers", "num_hidden_layers", None),
    ("heads", "num_attention_heads", None),
    ("feed_forward", "intermediate_size", None),
    ("positions", "max_position_embeddings", 512),
    ("segments", "type_vocab_size", 2),
    ("activation", "hidden_act", "gelu"),
    ("norm_epsilon", "layer_norm_eps", 1e-12),
    ("hidden_dropout", "hidden_dropout_prob", 0.1),
    ("attention_dropout", "attention_probs_dropout_prob", 0.1),
    ("init_std", "initializer_range", 0.02),
)

# What a config.json may say that our network is not.
UNLIKE: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("model_type", ("bert",)),
    ("position_embedding_type", ("absolute",)),
    ("is_decoder", (False,)),
    ("add_cross_attention", (False,)),
    ("tie_word_embeddings", (True,)),
)


# --------------------------------------------------------------------------------------------------- writing


def write(
    out: str | Path,
    config: BertConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    kind: str = "pretraining",
    force: bool = False,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a transformers directory, whole or not at all.

    Args:
        params: the tree of `bert_jax.model.bert.init`, NumPy or JAX arrays; parts that `kind` lacks are left
            out.
        kind: "pretraining", "masked-lm" or "encoder".
        force: replace an earlier export at `out`; anything else there is never touched.
        extra: texts of further files by name, such as where the weights come from.

    Raises:
        UserError: `out` exists, cannot be written, the tokenizer has more pieces than the word table has rows,
            or the class knows two relations of segments and the model has more.
    """
    if config.relations != 2 and "next_sentence" in KINDS[kind].parts:
        raise UserError(
            f"{KINDS[kind].architecture} tells two relations of segments apart, this model {config.relations}",
            str(out),
            f"export it as {' or '.join(name for name in KINDS if 'next_sentence' not in KINDS[name].parts)}",
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the word table {config.vocab_size} rows",
            str(out),
            "give the tokenizer that the model was trained with",
        )
    rows = KINDS[kind].rows
    parts = {name: tree for name, tree in params.items() if name in KINDS[kind].parts}
    tensors = to_foreign(rows, config, parts)
    with _whole_directory(Path(out), force) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})  # transformers refuses files without it
        (folder / WEIGHTS).chmod(0o666 & ~_umask())  # safetensors lets nobody else read its files
        tree = config_to_json(config, kind, tokenizer.special.pad)
        _write_json(folder / CONFIG, tree)
        tokenizer.save(folder)
        _limit_length(folder / "tokenizer_config.json", config.positions)
        for name, text in (extra or {}).items():
            (folder / name).write_text(text, encoding="utf-8")


def config_to_json(config: BertConfig, kind: str, pad: int) -> dict[str, Any]:
    """`config.json` as transformers writes it."""
    theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
    tree = {key: getattr(config, field) for field, key, _ in FIELDS}
    return {
        **tree,
        "hidden_act": theirs[config.activation],
        "architectures": [KINDS[kind].architecture],
        "model_type": "bert",
        "pad_token_id": pad,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


@contextmanager
def _whole_directory(out: Path, force: bool) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end; on any error nothing has changed."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not force:
            raise UserError("this exists already", str(out), "give --force to replace it, or another name")
        if not (out / CONFIG).is_file() or not (out / WEIGHTS).is_file():
            raise UserError("this is no earlier export, so it is not replaced", str(out), "give another name")
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        folder.chmod(0o777 & ~_umask())
        yield folder
        old = folder.with_name(folder.name + ".old")
        if out.exists():
            os.replace(out, old)
        try:
            os.replace(folder, out)
        except OSError:
            if old.exists():
                os.replace(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})", str(out), "make room or choose another place"
        ) from None
    except SafetensorError as error:
        raise UserError(f"cannot be written ({error})", str(out), "make room or choose another place") from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _limit_length(path: Path, positions: int) -> None:
    """Let transformers cut texts where the position table ends."""
    _write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "model_max_length": positions})


def _write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------------- reading


def is_directory(path: str | Path) -> bool:
    """Whether `path` looks like a transformers directory."""
    return (Path(path) / CONFIG).is_file()


def read(directory: str | Path) -> tuple[BertConfig, Params, str]:
    """Config, parameters (float32 NumPy) and kind of a directory; the tokenizer is `Tokenizer.load`'s.

    Raises:
        UserError: files are missing or broken, of another architecture, or do not fit each other.
    """
    directory = Path(directory)
    where = str(directory / CONFIG)
    try:
        tree = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("there is no config.json", str(directory), "give a transformers directory") from None
    except ValueError as error:
        raise UserError(f"not JSON ({error})", where, "restore it from a copy") from None
    config, kind = config_from_json(tree, where)
    weights = directory / WEIGHTS
    if not weights.is_file():
        raise UserError(f"there is no {WEIGHTS}", str(directory), "save the model in safetensors format")
    return config, from_foreign(KINDS[kind].rows, config, _load_tensors(weights), str(weights)), kind


def config_from_json(tree: Any, where: str) -> tuple[BertConfig, str]:
    """Our config and kind from transformers' `config.json`.

    Raises:
        UserError: it is not a BERT, or one with parts that ours does not have.
    """
    if not isinstance(tree, dict):
        raise UserError("an object is needed", where, "give transformers' config.json")
    for key, allowed in UNLIKE:
        if tree.get(key, allowed[0]) not in allowed:
            raise UserError(f"{key} = {tree[key]!r} is not read", where, f"{key} must be {allowed[0]!r}")
    architectures = tree.get("architectures") or [None]
    kind = next((name for name, kind in KINDS.items() if kind.architecture == architectures[0]), None)
    if kind is None:
        known = ", ".join(kind.architecture for kind in KINDS.values())
        raise UserError(f"the architecture {architectures[0]} is not read", where, f"give one of {known}")
    values = {}
    for field, key, default in FIELDS:
        value = tree.get(key, default)
        if value is None:
            raise UserError(f"{key} is missing", where, "give a complete config.json")
        kind_of_value = BertConfig.__annotations__[field]
        if not isinstance(value, {"int": int, "float": int | float, "str": str}[kind_of_value]):
            raise UserError(f"{key} = {value!r} is no {kind_of_value}", where, "give a complete config.json")
        values[field] = value
    if values["activation"] not in ACTIVATIONS:
        raise UserError(
            f"hidden_act = {values['activation']!r} is not read",
            where,
            f"it must be one of {', '.join(ACTIVATIONS)}",
        )
    return BertConfig(**{**values, "activation": ACTIVATIONS[values["activation"]]}), kind


def _load_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"not a whole safetensors file ({error})", str(path), "copy or export it again") from None
