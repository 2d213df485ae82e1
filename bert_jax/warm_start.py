"""Pretraining that begins with a model there is (`model.init_checkpoint`): whether it fits, its weights in place."""

from __future__ import annotations

import hashlib
from pathlib import Path

import jax
import numpy as np

from bert_jax.api import open_model
from bert_jax.config import BertConfig
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import flatten
from bert_jax.errors import UserError
from bert_jax.model import bert
from bert_jax.store.rundir import read_json
from bert_jax.train.step import TrainState

# What a recipe says of a network in words of `[model]`; of the rest a model may differ without becoming another.
TOLD = ("layers", "width", "heads", "feed_forward", "positions", "activation", "norm_epsilon")
_WHERE = "model.init_checkpoint"


def digest(loaded: Loaded) -> str:
    """SHA-256 in hex over the weights and their names."""
    found = hashlib.sha256()
    for name, array in sorted(flatten(loaded.params)):
        found.update(name.encode())
        found.update(np.ascontiguousarray(array, np.float32).data)
    return found.hexdigest()


def open_same(path: str | Path, config: BertConfig, fingerprint: str, run: Path) -> tuple[Loaded, str]:
    """As `open_fitting`, with the digest of the weights: those that the run began with, where it has begun.

    Raises:
        UserError: as there; or the model is not what it was.
    """
    loaded = open_fitting(path, config, fingerprint)
    found, kept = digest(loaded), run / "provenance.json"
    begun = read_json(kept).get("init_checkpoint") if kept.exists() else None
    if begun and begun["sha256"] != found:
        what = f"{path} has other weights than when this run began"
        raise UserError(what, str(run), "give it back those, or choose another run directory")
    return loaded, found


def open_fitting(path: str | Path, config: BertConfig, fingerprint: str) -> Loaded:
    """The model that a run of this network begins with.

    Args:
        path: whatever `bert_jax.load` takes.
        fingerprint: of the tokenizer that the shards were made with.

    Raises:
        UserError: it cannot be read, or is another network than the recipe's, or of another tokenizer.
    """
    loaded = open_model(path)
    found = loaded.config
    if found.embedding_width != found.width or found.groups or found.segments != config.segments:
        raise UserError(
            f"{path} is a model of another family than BERT ({loaded.architecture})",
            _WHERE,
            "give a BERT, or leave it out and begin at random",
        )
    if apart := [name for name in TOLD if getattr(found, name) != getattr(config, name)]:
        had, wanted = (", ".join(f"{name} {getattr(of, name)}" for name in apart) for of in (found, config))
        settings = " ".join(f"--set model.{name}={getattr(found, name)}" for name in apart)
        raise UserError(f"{path} has {had}, the recipe {wanted}", _WHERE, f"add {settings}")
    if loaded.tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"the shards were not made with the tokenizer of {path}",
            _WHERE,
            f"make them with it: bert-data shards … --tokenizer {path}",
        )
    return loaded


def put_in(state: TrainState, loaded: Loaded, config: BertConfig) -> tuple[TrainState, list[str]]:
    """Step 0 with the weights of a model, each where the fresh one lies that it stands for.

    Rows of the vocabulary that stand for no piece are zeros, as `bert.init` makes them.

    Returns:
        The state, and the parts that are fresh still: the model lacks them, or tells other relations of segments apart.
    """
    lacked = [part for part in state.params if part not in loaded.params]
    if loaded.config.relations != config.relations and "next_sentence" not in lacked:
        lacked.append("next_sentence")
    _, given = bert.unpadded(config, loaded.params)
    params: bert.Params = {
        part: tree if part in lacked else jax.tree.map(_placed, tree, given[part])
        for part, tree in state.params.items()
    }
    return state._replace(params=params), lacked


def _placed(fresh: jax.Array, given: np.ndarray) -> jax.Array:
    """What was given, where the fresh array lies; a table of the vocabulary gets its rows of padding."""
    whole = np.pad(given, [(0, more - less) for more, less in zip(fresh.shape, given.shape, strict=True)])
    return jax.make_array_from_callback(fresh.shape, fresh.sharding, lambda index: np.asarray(whole[index], np.float32))
