"""Where things lie: the mesh, its rules, and the same numbers wherever a step runs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax.config import BertConfig, Execution, Stage, TrainSettings
from bert_jax.errors import UserError
from bert_jax.model import bert
from bert_jax.model.dropout import dropout
from bert_jax.train import sharding
from bert_jax.train.loss import make_pretraining_loss, weigh
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.step import TrainState, init_state, make_train_step
from tests.conftest import random_batch

TX = make_optimizer(TrainSettings(optimizer="lamb"))
STEPS, ROWS = 30, 16


def make_step(config: BertConfig):
    loss = make_pretraining_loss(config, Execution(scan="on"))
    return make_train_step(loss, weigh, TX, make_schedule([Stage(steps=STEPS, learning_rate=1e-3)]), 3)


def shapes_of(config: BertConfig) -> TrainState:
    return jax.eval_shape(lambda key: init_state(bert.init(config, key), TX), jax.random.key(0))


def train(
    config: BertConfig, params: dict, mesh: Mesh, shard_optimizer: bool = False, steps: int = STEPS
) -> tuple[list[float], TrainState, int]:
    """The losses of some steps on this mesh, the state after them, and the bytes of arguments a device holds."""
    places = sharding.state_shardings(mesh, bert.axes(config), shapes_of(config), shard_optimizer)
    losses = []
    with sharding.on(mesh):
        # a copy: the step gives its state's memory to the next one
        state = jax.device_put(init_state(jax.tree.map(jnp.copy, params), TX), places)
        batch = [jax.device_put(random_batch(config, ROWS, seed), sharding.rows(mesh)) for seed in range(3)]
        step = jax.jit(make_step(config), donate_argnums=0, out_shardings=(places, sharding.replicated(mesh)))
        compiled = step.lower(state, batch[0]).compile()
        for number in range(steps):
            state, metrics = compiled(state, batch[number % 3])
            losses.append(float(metrics["loss"][0]))
    return losses, state, compiled.memory_analysis().argument_size_in_bytes


@pytest.fixture(scope="module")
def still(small_world: BertConfig) -> BertConfig:
    return replace(small_world, hidden_dropout=0.0, attention_dropout=0.0)


@pytest.fixture(scope="module")
def alone(still: BertConfig, loud_params: dict) -> tuple[list[float], TrainState, int]:
    """What one device makes of it."""
    losses, state, size = train(still, loud_params, sharding.make_mesh(devices=jax.devices()[:1]))
    assert losses[-1] < losses[0] - 0.1  # something was learned
    return losses, state, size


@pytest.mark.parametrize(
    ("shape", "shard_optimizer"),
    [((8, 1, 1), False), ((2, 4, 1), False), ((2, 2, 2), False), ((8, 1, 1), True), ((2, 2, 2), True)],
)
def test_thirty_steps_are_the_same_on_every_mesh(
    still: BertConfig,
    loud_params: dict,
    alone: tuple[list[float], TrainState, int],
    shape: tuple[int, int, int],
    shard_optimizer: bool,
) -> None:
    losses, state, size = train(still, loud_params, sharding.make_mesh(*shape), shard_optimizer)
    np.testing.assert_allclose(losses, alone[0], rtol=0, atol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-4)
    jax.tree.map(close, jax.device_get(state.params), jax.device_get(alone[1].params))

    # a device holds what the rules leave it: parameters over fsdp and tensor, moments over data too if asked
    def held(tree: object) -> int:
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    moments = (state.opt_state.mu, state.opt_state.nu)
    whole = held(alone[1].params)
    pieces = shape[1] * shape[2]
    assert whole / pieces <= held(state.params) < 1.25 * whole / pieces
    spread = pieces * (shape[0] if shard_optimizer else 1)
    assert 2 * whole / spread <= held(moments) < 1.4 * 2 * whole / spread
    assert held(moments) + held(state.params) < size < alone[2]


@pytest.fixture(scope="module")
def one_noisy_step(small_world: BertConfig, loud_params: dict) -> list[float]:
    return train(small_world, loud_params, sharding.make_mesh(devices=jax.devices()[:1]), steps=2)[0]


def test_dropout_is_the_same_on_one_device_and_on_eight(
    small_world: BertConfig, loud_params: dict, one_noisy_step: list[float]
) -> None:
    """A loss sees every mask of the step before and of its own."""
    eight, _, _ = train(small_world, loud_params, sharding.make_mesh(2, 2, 2), steps=2)
    np.testing.assert_allclose(eight, one_noisy_step, rtol=0, atol=1e-6)


@pytest.mark.parametrize("spec", [(("data", "fsdp"), None, "tensor"), (None, "tensor", ("data", "fsdp"))])
def test_masks_are_functions_of_key_and_shape_not_of_the_place(spec: tuple) -> None:
    x, key = jnp.ones((8, 6, 24)), jax.random.key(5)
    place = NamedSharding(sharding.make_mesh(2, 2, 2), PartitionSpec(*spec))
    spread = jax.jit(lambda x, key: dropout(x, 0.1, key), in_shardings=(place, None), out_shardings=place)(x, key)
    here = dropout(x, 0.1, key)
    assert 0.02 < float(jnp.mean(here == 0)) < 0.2
    np.testing.assert_array_equal(spread, here)


# ------------------------------------------------------------------------------------------- rules and refusals


def test_a_batch_that_the_mesh_cannot_divide_is_refused_with_numbers() -> None:
    with pytest.raises(UserError, match="a batch of 12 does not divide over 8 devices; choose a batch .* of 8"):
        sharding.check_batch(sharding.make_mesh(), 12, 1, "stage.0")


def test_a_width_that_fsdp_cannot_divide_is_refused_with_numbers(small_world: BertConfig) -> None:
    odd = replace(small_world, width=36)
    shapes = jax.eval_shape(partial(bert.init, odd), jax.random.key(0))
    with pytest.raises(
        UserError, match="embeddings/position: an axis of 36 \\(embed\\) does not divide over 8 devices"
    ):
        sharding.shard_tree(sharding.make_mesh(1, 8), bert.axes(odd), shapes)


def test_every_axis_name_of_the_model_has_a_rule_and_every_rule_a_name(small_world: BertConfig) -> None:
    names = {name for spec in jax.tree.leaves(bert.axes(small_world)) for name in spec if name is not None}
    assert names | {"batch"} == set(sharding.RULES)


def test_the_batch_constraint_is_in_the_lowered_step(small_world: BertConfig) -> None:
    mesh = sharding.make_mesh(4, 2)
    shapes = jax.eval_shape(partial(bert.init, small_world), jax.random.key(0))
    state = jax.eval_shape(lambda p: init_state(p, TX), shapes)
    with sharding.on(mesh):
        text = jax.jit(make_step(small_world)).lower(state, random_batch(small_world, 8)).as_text()
    assert "sharding_constraint" in text and '"data", "fsdp"' in text


def test_rows_are_repeated_along_tensor_and_a_batch_need_not_divide_over_it() -> None:
    mesh = sharding.make_mesh(2, 1, 4)
    sharding.check_batch(mesh, 6, 3, "stage.0")
    with pytest.raises(UserError, match="a batch of 5 does not divide over 8 devices in groups of 4; .* multiple of 2"):
        sharding.check_batch(mesh, 5, 1, "stage.0")
    places = sharding.rows(mesh).devices_indices_map((6,))
    assert sorted(place[0].indices(6)[:2] for place in places.values()) == [(0, 3)] * 4 + [(3, 6)] * 4


def test_heads_that_tensor_cannot_divide_are_refused_with_numbers(small_world: BertConfig) -> None:
    with pytest.raises(UserError, match=r"an axis of 4 \(heads\) does not divide over 8 devices of mesh axis 'tensor'"):
        sharding.shard_tree(sharding.make_mesh(1, 1, 8), bert.axes(small_world), shapes_of(small_world).params)


@pytest.mark.parametrize(("pieces", "axis"), [(48, "tensor"), (45, None)])
def test_a_vocabulary_is_spread_over_tensor_where_it_divides(
    small_world: BertConfig, pieces: int, axis: str | None
) -> None:
    config = replace(small_world, vocab_size=pieces)
    places = sharding.shard_tree(sharding.make_mesh(4, 1, 2), bert.axes(config), shapes_of(config).params)
    assert places["embeddings"]["word"].spec == PartitionSpec(axis, "fsdp")
    assert places["masked_lm"]["bias"].spec == PartitionSpec(axis)


def test_a_mesh_of_devices_that_are_not_there_is_placed_and_lowered_like_a_real_one(still: BertConfig) -> None:
    axes, shapes = bert.axes(still), shapes_of(still)
    abstract, real = sharding.abstract_mesh(8, 2, 2, 2), sharding.make_mesh(2, 2, 2)
    places = sharding.state_shardings(abstract, axes, shapes, shard_optimizer=True)
    theirs = sharding.state_shardings(real, axes, shapes, shard_optimizer=True)
    assert [place.spec for place in jax.tree.leaves(places)] == [place.spec for place in jax.tree.leaves(theirs)]

    state = jax.tree.map(lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p), shapes, places)
    with sharding.on(abstract):
        step = jax.jit(make_step(still), out_shardings=(places, sharding.replicated(abstract)))
        lowered = step.trace(state, random_batch(still, ROWS)).lower(lowering_platforms=("tpu",))
    text = lowered.as_text()
    assert 'mesh = <["data"=2, "fsdp"=2, "tensor"=2]>' in text
    assert '[{"data", "fsdp"}, {}, {"tensor"}, {}]' in text  # heads of queries, keys and values
    assert '[{"data", "fsdp"}, {}, {"tensor"}]' in text  # the wide layer


@pytest.mark.parametrize(
    ("wanted", "devices"), [((0, 3, 1), 8), ((0, 1, 16), 8), ((3, 1, 1), 8), ((2, 2, 1), 8), ((1, 1, 1), 8)]
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(wanted: tuple[int, int, int], devices: int) -> None:
    with pytest.raises(UserError, match="does not fit 8 devices; choose mesh_data, mesh_fsdp and mesh_tensor"):
        sharding.mesh_shape(devices, *wanted)
    assert sharding.mesh_shape(devices, 0, 2, 2) == (2, 2, 2)
