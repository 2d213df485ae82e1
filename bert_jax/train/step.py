"""One training step, whatever is trained: the loss is an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bert_jax.train.loss import Batch, LossFn, Metrics, Totals


class TrainState(NamedTuple):
    """All that a step changes. `step` counts steps begun, `skipped` the non-finite ones in a row up to now."""

    step: Array
    skipped: Array
    params: Any
    opt_state: Any


def init_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
    """Step 0."""
    return TrainState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), params, tx.init(params))


def make_train_step(
    loss_fn: LossFn,
    weigh: Callable[[Batch], Totals],
    tx: optax.GradientTransformation,
    schedule: Callable[[Array], Array],
    seed: int,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """(state, batch) → (next state, {metric: (sum, weight)}).

    Weights are totalled over the whole batch first, each of the `accumulate` pieces divides by those totals, and
    gradients add: the result is that of the undivided batch. Dropout keys come from the seed and the step's number.
    A step whose loss or gradient is not finite leaves parameters and moments as they were.
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        totals = weigh(batch)
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def piece(number: Array | int, part: Batch) -> Any:
            return gradient(state.params, part, jax.random.fold_in(key, number), totals)

        if accumulate == 1:
            (loss, metrics), grads = piece(0, batch)
        else:
            # piece i takes rows i, i + A, i + 2A, …: every device keeps the rows it has
            parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
            zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(piece, 0, jax.tree.map(lambda x: x[0], parts)))

            def add(carry: Any, place: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, piece(*place)), None

            ((loss, metrics), grads), _ = jax.lax.scan(add, zero, (jnp.arange(accumulate), parts))

        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        rate = schedule(state.step)
        directions, opt_state = tx.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda w, u: w - rate * u, state.params, directions)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        one = jnp.ones((), jnp.float32)
        metrics |= {"loss": (loss, one), "gradient_norm": (norm, one), "learning_rate": (rate, one)}
        skipped = jnp.where(finite, 0, state.skipped + 1)
        metrics["skipped"] = (skipped.astype(jnp.float32), one)
        return TrainState(state.step + 1, skipped, params, opt_state), metrics

    return step


def make_eval_step(loss_fn: LossFn, weigh: Callable[[Batch], Totals]) -> Callable[[Any, Batch], Metrics]:
    """(params, batch) → {metric: (sum, weight)}, without dropout; add them over batches, then divide."""

    def step(params: Any, batch: Batch) -> Metrics:
        return loss_fn(params, batch, None, weigh(batch))[1]

    return step


def measure(eval_step: Callable[[Any, Batch], Metrics], params: Any, batches: Iterable[Batch]) -> dict[str, float]:
    """Exact means over all batches: sums and weights add, and division comes once. What weighs nothing is left out.

    Args:
        eval_step: from `make_eval_step`, compiled.
    """
    totals: dict[str, list[float]] = {}
    for batch in batches:
        for name, (value, weight) in jax.device_get(eval_step(params, batch)).items():
            total = totals.setdefault(name, [0.0, 0.0])
            total[0] += float(value)
            total[1] += float(weight)
    return {name: value / max(weight, 1.0) for name, (value, weight) in totals.items() if weight}
