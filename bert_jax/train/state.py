"""The state of a run: how it begins, and what of it a checkpoint holds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_jax.config import BertConfig
from bert_jax.model import bert
from bert_jax.train.step import TrainState, init_state


def fresh_state(config: BertConfig, seed: int, tx: optax.GradientTransformation) -> TrainState:
    """Step 0 of the run with this seed."""
    # the step folds small numbers into this seed's key for dropout: initial values come from another
    return init_state(bert.init(config, jax.random.fold_in(jax.random.key(seed), 2**31 - 1)), tx)


def to_items(state: TrainState) -> tuple[Any, Any]:
    """What is saved of a state: parameters, and all else but the step, which names the checkpoint."""
    return state.params, {"opt_state": state.opt_state, "skipped": state.skipped}


def from_items(step: int, params: Any, optimizer: Any, like: TrainState) -> TrainState:
    """The state after `step` steps from what was saved of it; the step lies where that of `like` does."""
    number = jax.device_put(jnp.asarray(step, jnp.int32), like.step.sharding)
    return TrainState(number, optimizer["skipped"], params, optimizer["opt_state"])
