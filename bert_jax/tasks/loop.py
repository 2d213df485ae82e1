"""The one loop of all tasks: an encoder and rows in, the best epoch's weights out; and what a network says of rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bert_jax.config import Stage, TrainSettings
from bert_jax.data.feed import ahead
from bert_jax.errors import UserError
from bert_jax.tasks import network
from bert_jax.tasks.batches import (
    Shapes,
    TaskBatch,
    all_batches,
    balanced,
    epoch_units,
    features_batch,
    shapes_of,
    train_batches,
    units,
)
from bert_jax.tasks.encoding import TaskRow
from bert_jax.tasks.network import Network, Params
from bert_jax.tasks.settings import HEAD_RATE, FineTuneSettings
from bert_jax.train.loss import Batch, Metrics
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.step import TrainState, init_state, make_train_step

Outs = list[dict[str, np.ndarray]]
TOKENS = 4096  # of a batch that is only looked at


@dataclass(frozen=True)
class Fitted:
    """What a fit came to.

    Attributes:
        params: the best epoch's, encoder and head, NumPy arrays.
        curve: an epoch each: its number, mean `loss`, and `score`, on dev, where there is a dev split.
        best: which of them was kept, from 0 on.
        steps: done in all. examples, seconds: of those steps that compiled nothing.
    """

    params: Params
    curve: tuple[dict[str, float], ...]
    best: int
    steps: int
    examples: int
    seconds: float


@dataclass
class Features:
    """What a frozen encoder gives to the head, by split, so that a sweep computes it once."""

    kept: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def of(self, name: str, net: Network, params: Params, rows: Sequence[TaskRow], pad: int) -> list[np.ndarray]:
        """float32[r, L', D'] of each row, of qa [n, L', D']."""
        if name not in self.kept:
            self.kept[name] = compute_features(net, params, rows, pad)
        return self.kept[name]


def fit(
    net: Network,
    params: Params,
    rows: Sequence[TaskRow],
    settings: FineTuneSettings,
    rate: float,
    seed: int,
    pad: int,
    measure: Callable[[Params], float] | None = None,
    features: Sequence[np.ndarray] | None = None,
    told: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Fitted:
    """Train for `settings.epochs`, or until `settings.patience` runs out; order and dropout are functions of `seed`.

    Args:
        params: encoder and a fresh head; not changed.
        rows: of the training split.
        measure: parameters → the dev score, the higher the better; where there is none, the last epoch is kept.
        features: of each row, in place of a frozen encoder.
        told: is told after each step which one of how many it was, and its loss.

    Raises:
        UserError: loss or weights are not finite after the first epoch; later, the fit ends there.
    """
    still, trained = network.divide(net, params, settings.what, settings.top)
    table = None
    if "embeddings" in trained and features is None:
        table = Table(trained["embeddings"]["word"], rows, pad)
        net, rows, pad = table.net(net), table.rows(rows), int(table.places[pad])
        trained = table.narrowed(trained)

    def now(trained: Params, decayed: float) -> Params:
        return network.whole(still, trained if table is None else table.widened(trained, decayed))

    if settings.class_weights:
        rows = balanced(rows)
    count = math.ceil(len(units(rows, net.family)) / settings.batch)
    total = count * settings.epochs
    still = jax.tree.map(jnp.asarray, still)
    tx = optimizer(net, settings, trained, rate)
    state = init_state(jax.tree.map(jnp.array, trained), tx)
    first = trained if settings.mixout else None
    best: tuple[float, int, Params] | None = None
    curve: list[dict[str, float]] = []
    known: set[Any] = set()
    steps = examples = 0
    spent, decayed = 0.0, 1.0
    decay = settings.weight_decay * settings.layer_decay ** (net.config.layers + 1)
    shapes = shapes_of(rows, net.family, settings.batch, net.config.width) if features is None else None
    for epoch in range(settings.epochs):
        losses = []
        begun = time.perf_counter()
        # laid out in a thread, so that a fast device does not wait for the host
        for batch in ahead(_epoch(net, rows, features, settings, seed, epoch, pad, shapes)):
            shape = tuple((name, array.shape) for name, array in batch.arrays.items())
            given = (jnp.asarray(rate, jnp.float32), jnp.asarray(seed, jnp.int32))
            state, metrics = _step(state, still, first, batch.arrays, *given, net=net, settings=settings, total=total)
            losses.append(float(metrics["loss"][0]))
            decayed *= 1.0 - decay * float(metrics["learning_rate"][0])
            if shape in known:  # what is compiled first would be no rate
                spent += time.perf_counter() - begun
                examples += batch.examples
            known.add(shape)
            steps += 1
            told(steps, total, losses[-1])
            begun = time.perf_counter()
        line = {"epoch": epoch + 1, "loss": float(np.mean(losses))}
        if not math.isfinite(line["loss"]) or not all(
            bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params)
        ):
            break  # it does not come back
        if measure is not None:
            line["score"] = measure(now(state.params, decayed))
        curve.append(line)
        score = line.get("score", float(epoch))
        if best is None or score > best[0]:
            best = (score, epoch, jax.device_get(now(state.params, decayed)))
        if settings.patience and epoch - best[1] >= settings.patience:
            break
    if best is None:
        raise UserError(
            f"loss or weights are not finite after the first epoch at a rate of {rate:g}",
            "train.learning_rates",
            "give lower ones, or more warm-up",
        )
    return Fitted(best[2], tuple(curve), best[1], steps, examples, spent)


class Table:
    """The rows of a word table that a fit can move, and the way back.

    AdamW leaves a row without gradients where it is, but for the decay, and most pieces are in no example: of a small
    encoder's parameters half are such rows. So only the others are trained, and the decay of the rest comes at once:
    the same numbers without passing 100 MB through memory at each step.
    """

    def __init__(self, word: Array, rows: Sequence[TaskRow], pad: int) -> None:
        used = np.unique(np.concatenate([[pad], *(row.ids for row in rows)]))
        self.word = np.asarray(word)
        self.used = np.concatenate([used, np.full(-len(used) % 128, pad)]).astype(np.int32)  # the last are never read
        self.count = len(used)
        self.places = np.zeros(len(self.word), np.int32)
        self.places[used] = np.arange(len(used))

    def net(self, net: Network) -> Network:
        config = replace(net.config, vocab_size=len(self.used), vocab_multiple=1)
        return replace(net, config=config)

    def rows(self, rows: Sequence[TaskRow]) -> list[TaskRow]:
        return [replace(row, ids=self.places[row.ids]) for row in rows]

    def narrowed(self, params: Params) -> Params:
        return {**params, "embeddings": {**params["embeddings"], "word": self.word[self.used]}}

    def widened(self, params: Params, decayed: float) -> Params:
        """The whole table again; rows that were not trained are `decayed` times what they were."""
        word = self.word * np.float32(decayed)
        word[self.used[: self.count]] = params["embeddings"]["word"][: self.count]
        return {**params, "embeddings": {**params["embeddings"], "word": word}}


def optimizer(
    net: Network, settings: FineTuneSettings, trained: Params, rate: float | Array
) -> optax.GradientTransformationExtraArgs:
    """AdamW with bias correction (Mosbach et al. 2021), each leaf's rate scaled as the settings say."""
    tx = make_optimizer(TrainSettings(weight_decay=settings.weight_decay, clip_norm=settings.clip_norm))
    head: float | Array = 1.0
    if settings.head_rate:
        head = settings.head_rate / rate
    elif settings.what != "head" and net.family in HEAD_RATE:
        head = jnp.maximum(HEAD_RATE[net.family] / rate, 1.0)
    elif settings.layer_decay == 1.0:
        return tx
    scales = network.rate_scales(net, trained, settings.layer_decay, head)

    def update(grads: Any, state: Any, params: Any = None, **given: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params, **given)
        return jax.tree.map(jnp.multiply, updates, scales), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


@partial(jax.jit, static_argnames=("net", "settings", "total"), donate_argnames=("state",))
def _step(
    state: TrainState,
    still: Params,
    first: Params | None,
    batch: Batch,
    rate: Array,
    seed: Array,
    net: Network,
    settings: FineTuneSettings,
    total: int,
) -> tuple[TrainState, Metrics]:
    """One step; rate and seed are arguments, so that a sweep compiles once."""
    plain = network.make_loss(net, settings.adversarial, settings.adversarial_step)

    def loss(trained: Params, batch: Batch, key: Array | None, totals: Any) -> Any:
        if first is not None and key is not None:
            trained = network.mixed_out(trained, first, settings.mixout, jax.random.fold_in(key, 2**31 - 1))
        return plain(network.whole(still, trained), batch, key, totals)

    # one step longer than the fit, whose last step would have a rate of 0
    stage = Stage(total + 1, learning_rate=1.0, warmup=int(total * settings.warmup), decay=settings.decay)
    curve = make_schedule([stage])
    tx = optimizer(net, settings, state.params, rate)
    step = make_train_step(loss, network.make_weigh(net), tx, lambda number: rate * curve(number), seed)
    return step(state, batch)


def _epoch(
    net: Network,
    rows: Sequence[TaskRow],
    features: Sequence[np.ndarray] | None,
    settings: FineTuneSettings,
    seed: int,
    epoch: int,
    pad: int,
    shapes: Shapes | None,
) -> Iterator[TaskBatch]:
    if features is None:
        return train_batches(rows, net.family, settings.batch, seed, epoch, pad, shapes)
    chosen = epoch_units(rows, net.family, settings.batch, seed, epoch)
    return (features_batch(rows, features, part, net.family, settings.batch) for part in chosen)


# ------------------------------------------------------------------------------------------- what a network says


def outputs_of(
    net: Network,
    params: Params,
    rows: Sequence[TaskRow],
    pad: int,
    features: Sequence[np.ndarray] | None = None,
    told: Callable[[int], None] = lambda rows: None,
) -> Outs:
    """What the head gives for each row: name → float32[r, K], of qa `qa_outputs` [n, 2], of embedding `vectors`
    [r, D'].

    Regression's numbers are in the units of the labels.
    """
    found: Outs = [{} for _ in rows]
    for batch in ahead(_all(net, rows, features, pad)):
        out = jax.device_get(_outputs(params, batch.arrays, net=net))
        for number, line, own in _own(batch, rows, net):
            found[number] = {name: values[line, own] for name, values in out.items()}
        told(len(batch.places))
    return found


def _own(batch: TaskBatch, rows: Sequence[TaskRow], net: Network) -> Iterator[tuple[int, int, slice]]:
    """Of each row in a batch its number, the line of the batch that holds it, and which outputs of that are its own: of
    its items, of qa of its tokens."""
    for number, line, item in batch.places:
        begin, size = item, len(rows[number].items)
        if net.family == "qa":
            begin = 0 if "features" in batch.arrays else int(batch.arrays["spans"][line, item, 0, 0])
            size = len(rows[number].ids)
        yield number, line, slice(begin, begin + size)


def compute_features(net: Network, params: Params, rows: Sequence[TaskRow], pad: int) -> list[np.ndarray]:
    """What the head would read of each row: float32[r, L', D'], of qa [n, L', D']."""
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    for batch in ahead(all_batches(rows, net.family, TOKENS, pad)):
        values = jax.device_get(_features(params, batch.arrays, net=net))
        for number, line, own in _own(batch, rows, net):
            found[number] = values[line, own].copy()
    return found


def _all(net: Network, rows: Sequence[TaskRow], features: Sequence[np.ndarray] | None, pad: int) -> Iterator[TaskBatch]:
    if features is None:
        return all_batches(rows, net.family, TOKENS, pad)
    parts = units(rows, net.family)
    size = 64
    return (
        features_batch(rows, features, parts[begin : begin + size], net.family, 0)
        for begin in range(0, len(parts), size)
    )


@partial(jax.jit, static_argnames=("net",))
def _outputs(params: Mapping[str, Any], batch: Batch, net: Network) -> dict[str, Array]:
    out = network.outputs(net, dict(params), batch)
    if net.family == "regression":
        out = {"classifier": out["classifier"] * net.spread + net.mean}
    return out


@partial(jax.jit, static_argnames=("net",))
def _features(params: Mapping[str, Any], batch: Batch, net: Network) -> Array:
    return network.features(net, dict(params), batch)
