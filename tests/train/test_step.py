"""The step: accumulation, the non-finite guard, and which weights learn."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.config import BertConfig, Execution, Stage, TrainSettings
from bert_jax.model import bert
from bert_jax.train.loss import make_pretraining_loss, weigh
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.step import TrainState, init_state, make_eval_step, make_train_step, measure
from tests.conftest import random_batch

TX = make_optimizer(TrainSettings())
SCHEDULE = make_schedule([Stage(steps=100, learning_rate=1e-3)])


def make_step(config: BertConfig, accumulate: int = 1, execution: Execution = Execution()):  # noqa: B008
    return make_train_step(make_pretraining_loss(config, execution), weigh, TX, SCHEDULE, 3, accumulate)


def without_dropout(config: BertConfig) -> BertConfig:
    from dataclasses import replace

    return replace(config, hidden_dropout=0.0, attention_dropout=0.0)


def assert_trees_close(one: object, other: object, atol: float) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=atol), jax.device_get(one), jax.device_get(other))


def test_accumulation_equals_full_batch(small_world: BertConfig, loud_params: dict) -> None:
    # predictions a row differ: the mean of the pieces' means would be another number
    config, batch = without_dropout(small_world), random_batch(small_world, 8)
    assert len(set(np.asarray(batch["mlm_weights"]).sum(1))) > 1

    def step(accumulate: int) -> tuple:
        # no optimizer: parameters move by the gradient itself
        loss = make_pretraining_loss(config, Execution())
        tx = optax.with_extra_args_support(optax.scale(-1.0))
        return jax.jit(make_train_step(loss, weigh, tx, lambda _: 1.0, 3, accumulate))(
            init_state(loud_params, tx), batch
        )

    plain, plain_metrics = step(1)
    pieces, pieces_metrics = step(4)
    assert_trees_close(plain.params, pieces.params, 1e-6)
    for name in plain_metrics:
        for ours, theirs in zip(plain_metrics[name], pieces_metrics[name], strict=True):
            # a norm of few numbers rounds away from another order's by more than a norm of all
            np.testing.assert_allclose(ours, theirs, rtol=1e-5 if name.endswith("/") else 2e-6, err_msg=name)


def test_dropout_changes_with_the_step_and_only_with_it(small_world: BertConfig, loud_params: dict) -> None:
    batch = random_batch(small_world, 4)
    step = jax.jit(make_step(small_world))
    state = init_state(loud_params, TX)
    loss = {t: float(step(state._replace(step=jnp.asarray(t)), batch)[1]["loss"][0]) for t in (0, 1, 0)}
    again = float(step(state, batch)[1]["loss"][0])
    assert loss[0] == again and loss[0] != loss[1]


def test_scan_and_remat_change_no_number_beyond_rounding(small_world: BertConfig, loud_params: dict) -> None:
    batch = random_batch(small_world, 4)
    plain, _ = jax.jit(make_step(small_world))(init_state(loud_params, TX), batch)
    for scan, remat in (("on", "none"), ("off", "all"), ("on", "all"), ("off", "names"), ("on", "names")):
        execution = Execution(scan=scan, remat=remat)
        other, _ = jax.jit(make_step(small_world, execution=execution))(init_state(loud_params, TX), batch)
        assert_trees_close(plain.params, other.params, 1e-5)


def test_a_step_that_is_not_finite_leaves_everything_but_the_count(small_world: BertConfig, loud_params: dict) -> None:
    step = jax.jit(make_step(small_world))
    batch = random_batch(small_world, 4)
    before = init_state(loud_params, TX)
    bad = batch | {"mlm_weights": batch["mlm_weights"].at[0, 0].set(jnp.nan)}
    after, metrics = step(before, bad)
    assert int(after.step) == 1 and int(after.skipped) == 1 and float(metrics["skipped"][0]) == 1
    assert_trees_close((after.params, after.opt_state), (before.params, before.opt_state), 0)
    good, _ = step(after, batch)
    assert int(good.skipped) == 0


def test_positions_not_chosen_give_exactly_no_gradient(small_world: BertConfig, loud_params: dict) -> None:
    """The loss looks at the chosen positions only; a label with weight 0 moves nothing."""
    loss = make_pretraining_loss(small_world, Execution())
    batch = random_batch(small_world, 4)
    other_labels = jnp.where(batch["mlm_weights"] > 0, batch["mlm_labels"], 5)
    gradient = jax.jit(lambda b: jax.grad(lambda p: loss(p, b, None, weigh(batch))[0])(loud_params))
    assert_trees_close(gradient(batch), gradient(batch | {"mlm_labels": other_labels}), 0)

    def by_hidden(hidden: jax.Array) -> jax.Array:
        logits = bert.predict(small_world, loud_params, hidden, batch["mlm_positions"])
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["mlm_labels"][..., None], -1)[..., 0]
        return -(picked * batch["mlm_weights"]).sum()

    slope = jax.jit(jax.grad(by_hidden))(bert.encode(small_world, loud_params, batch).hidden)
    chosen = np.zeros(slope.shape[:2], bool)
    for row, (positions, weights) in enumerate(zip(batch["mlm_positions"], batch["mlm_weights"], strict=True)):
        chosen[row, np.asarray(positions)[np.asarray(weights) > 0]] = True
    assert np.all(np.asarray(slope)[~chosen] == 0) and np.all(np.abs(slope).sum(-1)[chosen] > 0)


def test_measure_divides_once(small_world: BertConfig, loud_params: dict) -> None:
    """Batches of uneven weight: the mean of means would differ."""
    eval_step = jax.jit(make_eval_step(make_pretraining_loss(small_world, Execution()), weigh))
    batch = random_batch(small_world, 8)
    parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(0, 2), slice(2, 8))]
    whole, split = measure(eval_step, loud_params, [batch]), measure(eval_step, loud_params, parts)
    assert whole == pytest.approx(split, rel=1e-5)


def test_a_head_of_three_relations_learns_from_three_labels(small_world: BertConfig) -> None:
    from dataclasses import replace

    config = replace(small_world, relations=3)
    params = bert.init(config, jax.random.key(0))
    assert params["next_sentence"]["kernel"].shape == (32, 3)
    batch = random_batch(config, 6) | {"nsp_labels": jnp.asarray([[0], [1], [2], [2], [1], [2]], jnp.int32)}
    loss = make_pretraining_loss(config, Execution())
    gradients, metrics = jax.jit(jax.grad(loss, has_aux=True))(params, batch, None, weigh(batch))
    assert float(metrics["next_sentence_loss"][0]) / 6 == pytest.approx(np.log(3), abs=0.05)
    # at the start every label has a third, so a logit's bias moves by a third less its label's share
    np.testing.assert_allclose(gradients["next_sentence"]["bias"], [1 / 3 - 1 / 6, 0, 1 / 3 - 1 / 2], atol=0.03)


def test_rows_of_one_segment_teach_no_relation(small_world: BertConfig, loud_params: dict) -> None:
    batch = random_batch(small_world, 4)
    batch |= {"nsp_weights": jnp.zeros_like(batch["nsp_weights"])}
    loss = make_pretraining_loss(small_world, Execution())
    (total, metrics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        loud_params, batch, None, weigh(batch)
    )
    assert total == pytest.approx(metrics["masked_lm_loss"][0] / metrics["masked_lm_loss"][1])
    for part in ("next_sentence", "pooler"):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients[part]))
    eval_step = jax.jit(make_eval_step(loss, weigh))
    assert set(measure(eval_step, loud_params, [batch])) == {"masked_lm_loss", "masked_lm_accuracy"}


def test_state_step_is_not_a_python_number(small_world: BertConfig, loud_params: dict) -> None:
    assert isinstance(init_state(loud_params, TX), TrainState)
    assert init_state(loud_params, TX).step.dtype == jnp.int32
