"""Rows of the vocabulary that stand for no piece: nothing but the shapes may tell that they are there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from bert_jax.config import BertConfig, Execution, Stage, TrainSettings
from bert_jax.model import bert
from bert_jax.train.loss import make_pretraining_loss, weigh
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.step import init_state, make_train_step
from tests.conftest import louder, random_batch

PLAIN = BertConfig(vocab_size=48, width=32, layers=1, heads=4, feed_forward=64, positions=16)
PADDED = replace(PLAIN, vocab_multiple=40)  # 80 rows
INIT = jax.jit(bert.init, static_argnums=0)
LOOP = Execution(scan="on")  # compiles sooner


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return louder(INIT(PLAIN, jax.random.key(0)))


def padded(params: dict[str, Any], fill: float = 0.0) -> dict[str, Any]:
    """The parameters of `PLAIN` with 32 rows more."""
    word, bias = params["embeddings"]["word"], params["masked_lm"]["bias"]
    return params | {
        "embeddings": params["embeddings"] | {"word": np.pad(word, ((0, 32), (0, 0)), constant_values=fill)},
        "masked_lm": params["masked_lm"] | {"bias": np.pad(bias, (0, 32), constant_values=fill)},
    }


def test_rows_go_up_to_the_next_multiple() -> None:
    assert (PLAIN.vocab_rows, PADDED.vocab_rows, replace(PADDED, vocab_size=80).vocab_rows) == (48, 80, 80)
    assert replace(PADDED, vocab_size=30522, vocab_multiple=128).vocab_rows == 30592


def test_pieces_begin_as_without_padding() -> None:
    plain, more = INIT(PLAIN, jax.random.key(3)), INIT(PADDED, jax.random.key(3))
    assert np.all(np.asarray(more["embeddings"]["word"])[48:] == 0)
    config, cut = bert.unpadded(PADDED, more)
    assert config == PLAIN
    jax.tree.map(np.testing.assert_array_equal, cut, plain)


def test_unpadded_takes_the_parts_that_there_are() -> None:
    params = INIT(PADDED, jax.random.key(0))
    _, cut = bert.unpadded(PADDED, {"embeddings": params["embeddings"], "pooler": params["pooler"]})
    assert set(cut) == {"embeddings", "pooler"} and cut["embeddings"]["word"].shape == (48, 32)
    assert params["embeddings"]["word"].shape == (80, 32)  # what was given is as it was


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_and_gradients_are_those_without_padding(params: dict[str, Any], dtype: str) -> None:
    """Loud rows: were they not masked, they would win."""
    batch = random_batch(PLAIN, 4)

    def look(config: BertConfig, params: dict[str, Any]) -> Any:
        loss = make_pretraining_loss(config, replace(LOOP, dtype=dtype))
        return jax.jit(jax.value_and_grad(partial(loss, batch=batch, key=None, totals=weigh(batch)), has_aux=True))(
            params
        )

    (loss, metrics), grads = look(PLAIN, params)
    (more_loss, more_metrics), more_grads = look(PADDED, padded(params, 30.0))
    np.testing.assert_allclose(more_loss, loss, rtol=1e-6)
    assert float(more_metrics["masked_lm_accuracy"][0]) == float(metrics["masked_lm_accuracy"][0])
    assert np.all(np.asarray(more_grads["embeddings"]["word"])[48:] == 0)
    assert np.all(np.asarray(more_grads["masked_lm"]["bias"])[48:] == 0)
    _, cut = bert.unpadded(PADDED, more_grads)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6 if dtype == "float32" else 1e-2)
    jax.tree.map(close, cut, grads)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_training_leaves_the_other_rows_at_nought(params: dict[str, Any], optimizer: str) -> None:
    """Decay and trust ratios of the pieces too are those without padding; dropout on."""
    settings = TrainSettings(optimizer=optimizer, weight_decay=0.1)

    def train(config: BertConfig, params: dict[str, Any]) -> Any:
        tx, schedule = make_optimizer(settings), make_schedule([Stage(learning_rate=1e-2)])
        step = jax.jit(make_train_step(make_pretraining_loss(config, LOOP), weigh, tx, schedule, seed=0))
        state = init_state(params, tx)
        for seed in range(3):
            state, metrics = step(state, random_batch(PLAIN, 4, seed))
        return jax.device_get((state.params, metrics))

    (plain, metrics), (more, more_metrics) = train(PLAIN, params), train(PADDED, padded(params))
    assert np.all(more["embeddings"]["word"][48:] == 0) and np.all(more["masked_lm"]["bias"][48:] == 0)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, bert.unpadded(PADDED, more)[1], plain)
    jax.tree.map(close, more_metrics, metrics)
