"""A model directory of ours: `model.json`, `weights.safetensors` under our own names, `tokenizer/`.

What `bert-jax import` writes. Runs keep their checkpoints in another form (`bert_jax/store`), as they hold moments too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config import BertConfig
from bert_jax.convert.directory import read_json, whole_directory, write_json, write_tensors
from bert_jax.convert.families import FAMILIES, family_of
from bert_jax.convert.loaded import Dense, Loaded, Pooling
from bert_jax.convert.names import flatten, nested, our_shape
from bert_jax.convert.safetensors_file import read_safetensors
from bert_jax.errors import UserError
from bert_jax.text.tokenizer import Tokenizer

DENSE = "pooling/dense/"  # the products after pooling stand under this in the weights
MODEL, WEIGHTS, TOKENIZER = "model.json", "weights.safetensors", "tokenizer"
SCHEMA = 1


def is_directory(path: str | Path) -> bool:
    """Whether `path` looks like a model directory of ours."""
    return (Path(path) / WEIGHTS).is_file()


def write(
    out: str | Path,
    loaded: Loaded,
    *,
    force: bool = False,
    provenance: Mapping[str, Any],
    extra: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write a model directory, whole or not at all, `extra` being further files by name.

    Raises:
        UserError: `out` exists or cannot be written.
    """
    pooling, dense = None, ()
    if loaded.pooling is not None:
        pooling, dense = _pooling_to_json(loaded.pooling), loaded.pooling.dense
    tree = {
        "schema": SCHEMA,
        "architecture": loaded.architecture,
        "config": dataclasses.asdict(loaded.config),
        "tokenizer": loaded.tokenizer.fingerprint,
        "pooling": pooling,
        "notes": list(loaded.notes),
    }
    tensors = {path: np.ascontiguousarray(leaf) for path, leaf in flatten(loaded.params)}
    for number, product in enumerate(dense):
        tensors[f"{DENSE}{number}/kernel"] = np.ascontiguousarray(product.kernel)
        if product.bias is not None:
            tensors[f"{DENSE}{number}/bias"] = product.bias
    with whole_directory(Path(out), force, provenance, extra) as folder:
        write_tensors(folder / WEIGHTS, tensors)
        write_json(folder / MODEL, tree)
        loaded.tokenizer.save(folder / TOKENIZER)


def read(directory: str | Path) -> Loaded:
    """What `write` wrote.

    Raises:
        UserError: files are missing, broken, of a later version, or do not fit each other.
    """
    directory = Path(directory)
    where = str(directory / MODEL)
    tree = read_json(directory / MODEL, "give a directory that `bert-jax import` wrote")
    known = {kind.architecture for family in FAMILIES for kind in family.kinds}
    try:
        if tree["schema"] > SCHEMA:
            raise UserError(f"schema {tree['schema']} is of a later bert_jax", where, "install that, or import anew")
        config, architecture = BertConfig(**tree["config"]), tree["architecture"]
        tensors = read_safetensors(directory / WEIGHTS)
        pooling = None if tree["pooling"] is None else _pooling_of(tree["pooling"], tensors)
        notes = tuple(tree["notes"])
        if architecture not in known:
            raise KeyError(architecture)
    except (KeyError, TypeError) as error:
        raise UserError(f"not a model of ours ({error})", where, "import it anew") from None
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(DENSE)}
    parts = {name.split("/")[0] for name in tensors}
    rows = family_of(architecture).rows_of(config, parts)
    for name in sorted(tensors.keys() ^ {row.path for row in rows}):
        what = "is no part of the model" if name in tensors else "is missing"
        raise UserError(f"{name} {what}", where, "import it anew")
    for row in rows:
        if tensors[row.path].shape != our_shape(row, config):
            raise UserError(f"{row.path} has another shape than the config says", where, "import it anew")
    params = nested({row.path: tensors[row.path] for row in rows})
    tokenizer = Tokenizer.load(directory / TOKENIZER)
    if tokenizer.fingerprint != tree.get("tokenizer"):
        raise UserError(
            "this is not the tokenizer that came with the weights", str(directory / TOKENIZER), "import the model anew"
        )
    return Loaded(config, params, tokenizer, architecture, pooling, notes=notes)


def _pooling_to_json(pooling: Pooling) -> dict[str, Any]:
    return {
        "mode": pooling.mode,
        "normalize": pooling.normalize,
        "length": pooling.length,
        "dense": [dense.activation for dense in pooling.dense],
    }


def _pooling_of(tree: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> Pooling:
    """Raises KeyError or TypeError if something is missing or unknown."""
    if unknown := [name for name in tree.get("dense", ()) if name not in ("identity", "tanh")]:
        raise KeyError(unknown[0])
    dense = tuple(
        Dense(tensors[f"{DENSE}{number}/kernel"], tensors.get(f"{DENSE}{number}/bias"), activation)
        for number, activation in enumerate(tree.get("dense", ()))
    )
    return Pooling(**{**tree, "dense": dense})
