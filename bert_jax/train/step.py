"""One training step, whatever is trained: the loss is an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bert_jax.train.loss import Batch, LossFn, Metrics, Totals
from bert_jax.train.optimizer import group_norms


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
    tx: optax.GradientTransformationExtraArgs,
    schedule: Callable[[Array], Array],
    seed: int,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """(state, batch) → (next state, {metric: (sum, weight)}). Names that end in / hold float32[G], one a layer group.

    Weights are totalled over the whole batch first, each of the `accumulate` pieces divides by those totals, and
    gradients add: the result is that of the undivided batch. Dropout keys come from the seed and the step's number.
    A step whose loss or gradient is not finite leaves parameters and moments as they were: `tx` is told, so that it
    costs no pass over memory; its `update` takes rate, norm and finite as that of `make_optimizer`.
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

        norms = group_norms(grads)
        norm = jnp.sqrt(jnp.sum(jnp.square(norms)))
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        rate = schedule(state.step)
        given = {"rate": rate, "norm": norm, "finite": finite}
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **given)
        params = optax.apply_updates(state.params, updates)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        figures = {"loss": loss, "gradient_norm": norm, "learning_rate": rate, "skipped": skipped.astype(jnp.float32)}
        by_layer = {"gradient_norm": norms, **optax.tree.get(opt_state, "figures", {})}
        figures |= {f"{name}/": value for name, value in by_layer.items()}
        metrics |= {name: (value, jnp.ones((), jnp.float32)) for name, value in figures.items()}
        return TrainState(state.step + 1, skipped, params, opt_state), metrics

    return step


def means(metrics: Metrics, groups: Sequence[str]) -> dict[str, float]:
    """One number a metric: sums divided by weights, those by layer group as `name/group`. What weighs nothing is 0.

    Args:
        metrics: of a step, on the host or not.
        groups: from `layer_groups`.
    """
    figures: dict[str, float] = {}
    for name, (total, weight) in jax.device_get(metrics).items():
        if name.endswith("/"):  # six digits: there are many of them, a line a step
            figures |= {f"{name}{group}": float(f"{x:.6g}") for group, x in zip(groups, total, strict=True)}
        else:
            figures[name] = float(total) / max(float(weight), 1.0)
    return figures


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
