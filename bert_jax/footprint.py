"""The bytes of a training step on each device, and the step itself lowered for devices that are not there.

Everything is worked out from the functions that train: shapes of the state by `eval_shape`, its places by
`train/sharding.py`, what the backward pass keeps by differentiating the real loss. No array is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from bert_jax.config import BertConfig, Recipe
from bert_jax.data.batching import padded
from bert_jax.model import bert
from bert_jax.train import sharding
from bert_jax.train.loss import Batch, make_pretraining_loss, weigh
from bert_jax.train.optimizer import make_optimizer
from bert_jax.train.step import TrainState, init_state


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device while it trains. The first three are what the step is given, exactly; the rest an estimate.

    `activations` is what the backward pass needs of the forward one; `workspace` the parameters gathered for use, the
    head's logits and what the optimizer holds beside its state.
    """

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    activations: int
    workspace: int

    @property
    def arguments(self) -> int:
        return self.parameters + self.optimizer + self.batch

    @property
    def temporaries(self) -> int:
        return self.gradients + self.activations + self.workspace

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries


def batch_shapes(rows: int, length: int, predictions: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch, as the loader lays it out."""
    names = {"input_ids": length, "segment_ids": length, "input_mask": length, "next_sentence_labels": 1}
    names |= {f"masked_lm_{name}": predictions for name in ("positions", "ids", "weights")}
    one = padded({name: np.zeros((1, size), np.int32) for name, size in names.items()})
    one |= {name: x.astype(np.float32) for name, x in one.items() if name.endswith("_weights")}
    return {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in one.items()}


def state_shapes(config: BertConfig, recipe: Recipe) -> TrainState:
    """The state as shapes."""
    tx = make_optimizer(recipe.train)
    return jax.eval_shape(lambda key: init_state(bert.init(config, key), tx), jax.random.key(0))


def place(mesh: Any, config: BertConfig, recipe: Recipe) -> TrainState:
    """The state as shapes with their places on a mesh, which may be abstract.

    Raises:
        UserError: an axis does not divide over the devices it is spread over.
    """
    shapes = state_shapes(config, recipe)
    places = sharding.state_shardings(mesh, bert.axes(config), shapes, recipe.train.shard_optimizer)
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)


def local_bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree of shapes with places."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def kept(config: BertConfig, recipe: Recipe, length: int, predictions: int) -> int:
    """Bytes a row that the backward pass keeps of the forward one: the residuals of the real loss, by remat policy.

    Residuals that do not grow with the batch (parameters, and their copies in the dtype of the products) count
    nothing here.
    """
    loss = make_pretraining_loss(config, recipe.train.execution)
    params = jax.eval_shape(partial(bert.init, config), jax.random.key(0))

    def residuals(rows: int) -> int:
        def forward(params: Any, batch: Batch, key: jax.Array) -> Any:
            totals = weigh(batch)
            return jax.vjp(lambda p: loss(p, batch, key, totals)[0], params)[1]

        shapes = jax.eval_shape(forward, params, batch_shapes(rows, length, predictions), jax.random.key(0))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    return residuals(2) - residuals(1)
