"""The bytes of a training step on each device, and the step itself lowered for devices that are not there.

Everything is worked out from the functions that train: shapes of the state by `eval_shape`, its places by
`train/sharding.py`, what the backward pass keeps by differentiating the real loss. No array is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.stages import Lowered

from bert_jax.config import BertConfig, Execution, Recipe
from bert_jax.data.batching import HostBatch
from bert_jax.errors import UserError
from bert_jax.model import bert
from bert_jax.train import sharding
from bert_jax.train.loss import Batch, make_pretraining_loss, weigh
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.step import TrainState, init_state, make_train_step


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


def batch_shapes(rows: int, row: HostBatch) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of so many rows like the first of `row`, which comes from the loader."""
    return {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in row.items()}


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


def kept(config: BertConfig, execution: Execution, row: HostBatch) -> int:
    """Bytes a row that the backward pass keeps of the forward one: the residuals of the real loss, by remat policy.

    Residuals that do not grow with the batch (parameters, and their copies in the dtype of the products) count
    nothing here. Every layer keeps the same, so two small networks tell of deep ones.
    """

    def residuals(layers: int, rows: int) -> int:
        small = replace(config, layers=layers)
        loss = make_pretraining_loss(small, execution)

        def forward(params: Any, batch: Batch, key: jax.Array) -> Any:
            totals = weigh(batch)
            return jax.vjp(lambda p: loss(p, batch, key, totals)[0], params)[1]

        params = jax.eval_shape(partial(bert.init, small), jax.random.key(0))
        shapes = jax.eval_shape(forward, params, batch_shapes(rows, row), jax.random.key(0))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    one, two = (residuals(layers, 2) - residuals(layers, 1) for layers in (1, 2))
    return one + (two - one) * (config.layers - 1)


def footprint(
    config: BertConfig, recipe: Recipe, mesh: Mesh | AbstractMesh, rows: int, accumulate: int, row: HostBatch
) -> Footprint:
    """What one device of the mesh holds while it trains on batches of `rows` rows in `accumulate` pieces.

    Args:
        row: one row of a batch, as the loader lays it out.

    Raises:
        UserError: as `place`.
    """
    state = place(mesh, config, recipe)
    groups = mesh.shape["data"] * mesh.shape["fsdp"]
    mine = -(-rows // groups)
    params = local_bytes(state.params)
    row_bytes = sum(x[:1].nbytes for x in row.values())
    gradients = params if accumulate == 1 else 2 * params  # the sum so far and the piece's
    activations = -(-mine // accumulate) * kept(config, recipe.train.execution, row)
    # fsdp gathers a layer at a time, but the word table and its gradient stand whole while the head is at work
    width = jnp.dtype(recipe.train.dtype).itemsize
    layer = 4 * config.width**2 + 2 * config.width * config.feed_forward
    gathered = (config.vocab_rows * config.width * (width + 4) + layer * width) if mesh.shape["fsdp"] > 1 else 0
    # the update begins when activations are gone: the larger of the two phases counts
    backward = activations + gathered
    update = int(UPDATE[recipe.train.optimizer] * params)
    return Footprint(
        parameters=params,
        optimizer=local_bytes(state) - params,
        batch=mine * row_bytes,
        gradients=gradients,
        activations=activations,
        workspace=max(backward, update) - activations,
    )


# Beside gradients, the update holds about so many times the parameters: what XLA writes down between a leaf's passes.
# It matters only where it is more than the activations, so with `remat` or few rows. Not yet compared with XLA's count.
UPDATE = {"adamw": 1.0, "lamb": 1.0}


# ---------------------------------------------------------------------------------------------- the step, lowered


def train_step(config: BertConfig, recipe: Recipe, accumulate: int) -> Callable[..., Any]:
    """The step that `bert-jax pretrain` runs, not yet compiled."""
    loss = make_pretraining_loss(config, recipe.train.execution)
    schedule = make_schedule(recipe.stage)
    return make_train_step(loss, weigh, make_optimizer(recipe.train), schedule, recipe.train.seed, accumulate)


def lower(
    config: BertConfig,
    recipe: Recipe,
    mesh: Mesh | AbstractMesh,
    rows: int,
    accumulate: int,
    row: HostBatch,
    platform: str,
) -> Lowered:
    """Lower the real step for a mesh whose devices need not exist: a sharding error shows here, at no cost.

    Args:
        platform: "cpu", "cuda" or "tpu".

    Raises:
        UserError: an axis does not divide, or JAX refuses the step on this mesh.
    """
    state = place(mesh, config, recipe)
    spread = sharding.rows(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread) for name, x in batch_shapes(rows, row).items()
    }
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(
        train_step(config, recipe, accumulate), out_shardings=(places, sharding.replicated(mesh)), donate_argnums=0
    )
    with sharding.on(mesh):
        try:
            return step.trace(state, batch).lower(lowering_platforms=(platform,))
        except (ValueError, TypeError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"the step does not lower for {mesh.size} devices ({reason})", "--lower") from error


@dataclass(frozen=True)
class Place:
    """Where an array lies: its whole shape, the mesh axes of each of its axes, the bytes of one device's part."""

    name: str
    shape: tuple[int, ...]
    spec: tuple[Any, ...]
    bytes: int


def largest(state: TrainState, number: int = 8) -> list[Place]:
    """The largest arrays on one device, the largest first."""
    places = [
        Place(jax.tree_util.keystr(path, simple=True, separator="/"), x.shape, tuple(x.sharding.spec), local_bytes(x))
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    ]
    return sorted(places, key=lambda place: (-place.bytes, place.name))[:number]


def collectives(compiled_text: str) -> dict[str, int]:
    """How many calls of each collective stand in a compiled program; one in a loop counts once."""
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    found = {kind: len(re.findall(rf" {kind}(?:-start)?\(", compiled_text)) for kind in kinds}
    return {kind: number for kind, number in found.items() if number}
