"""A task ready to be trained or asked: examples as rows, the network for its labels, and how good parameters are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array

from bert_jax.config import BertConfig, Execution
from bert_jax.errors import UserError
from bert_jax.model import bert, readout
from bert_jax.tasks import metrics, network, predictions
from bert_jax.tasks.encoding import TaskRow, encode
from bert_jax.tasks.examples import Example
from bert_jax.tasks.loop import outputs_of
from bert_jax.tasks.network import Network, Params
from bert_jax.tasks.predictions import Prediction
from bert_jax.tasks.settings import ReadoutSettings, TaskRecipe, TaskSettings
from bert_jax.text.tokenizer import Tokenizer

Labels = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Asked:
    """A network and all it takes to ask it: what a fine-tuned model is, without its weights.

    Attributes:
        labels: term → names in the order of the head's outputs.
        no_answer: of qa, see `predictions`.
    """

    net: Network
    task: TaskSettings
    tokenizer: Tokenizer
    labels: Labels
    no_answer: float | None = None

    @property
    def pad(self) -> int:
        return self.tokenizer.special.pad

    def rows(self, examples: Sequence[Example]) -> list[TaskRow]:
        """The examples as the network reads them; raises `UserError` as `encode` does."""
        return encode(
            examples, self.tokenizer, self.task, self.labels, self.net.config.segments, self.net.tokens == "span"
        )


@dataclass(frozen=True)
class Judged:
    """What a model says of examples, and how good that is; without labels there are no scores."""

    predictions: list[Prediction]
    scores: dict[str, float]
    no_answer: float | None = None


def make_asked(
    config: BertConfig, tokenizer: Tokenizer, recipe: TaskRecipe, labels: Labels, train: Sequence[Example]
) -> Asked:
    """What a recipe says of this encoder.

    Args:
        train: the training split; regression takes the mean and the spread of its numbers, marked spans their number.

    Raises:
        UserError: the recipe asks for what the encoder cannot do.
    """
    task, settings = recipe.task, recipe.train
    _check_length(task, config)
    _check_reset(config, settings.reset_layers)
    top = settings.top or 0
    network.check_layers(config, top, f"top:{top} cannot be", "train.what", 'choose "all" or "head"')
    if task.family == "embedding" and settings.what == "head":
        raise UserError("vectors have no head to train", "train.what", 'choose "all" or "top:K"')
    if task.family == "embedding" and settings.adversarial:
        raise UserError("vectors have no smoothness term", "train.adversarial", "leave it out")
    if settings.adversarial and settings.what == "head":
        raise UserError("a frozen encoder's features do not move", "train.adversarial", "leave it out")
    if settings.adversarial and settings.dtype == "bfloat16":
        what = f"steps of {settings.adversarial_step:g} are lost in bfloat16's eight bits"
        raise UserError(what, "train.adversarial", 'set train.dtype="float32", or leave it out')
    if settings.class_weights and task.family not in ("single", "pair", "tagging", "intent_slots"):
        raise UserError(f"{task.family} has no classes of which one holds", "train.class_weights", "leave it out")
    rates = {"hidden_dropout": settings.hidden_dropout, "attention_dropout": settings.attention_dropout}
    config = replace(config, **{name: rate for name, rate in rates.items() if rate >= 0})
    mean, spread = 0.0, 1.0
    if task.family == "regression":
        numbers = np.array([float(example.label) for example in train if example.label is not None])
        mean, spread = float(numbers.mean()), float(numbers.std()) or 1.0
    net = network.make_network(
        config,
        task,
        recipe.readout,
        labels,
        spans=max((len(example.spans) for example in train), default=1) or 1,
        mean=mean,
        spread=spread,
        temperature=settings.temperature,
        # a loop over layers of which some are trained would go backwards through all of them
        execution=Execution(dtype=settings.dtype, scan="off" if settings.top else "auto"),
    )
    return Asked(net, task, tokenizer, labels)


def _check_length(task: TaskSettings, config: BertConfig) -> None:
    if task.length > config.positions:
        raise UserError(
            f"length = {task.length}, where the position table has {config.positions}",
            "task.length",
            f"give --set task.length={config.positions}",
        )


def _check_reset(config: BertConfig, count: int) -> None:
    network.check_layers(config, count, f"{count} layers cannot be reset", "train.reset_layers", "give a number less")


def first_params(net: Network, encoder: Params, seed: int, reset_layers: int = 0) -> Params:
    """Encoder and a fresh head, as a fit begins; a pooler where one is read and the encoder has none.

    Args:
        encoder: the parts that there are; others than those of an encoder are left out.
        seed: of all that is fresh.
        reset_layers: the last so many layers, and the pooler, get fresh weights too.
    """
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2**31 - 1), 3)
    wanted = network.ENCODER if net.tokens == "pooled" else ("embeddings", "layers")
    params = {name: encoder[name] for name in wanted if name in encoder}
    if net.tokens == "pooled" and ("pooler" not in params or reset_layers):
        params["pooler"] = readout.fresh_pooler(net.config, keys[1])
    if reset_layers:
        _check_reset(net.config, reset_layers)
        fresh = _init(keys[2], config=net.config)["layers"]
        kept = net.config.layers - reset_layers
        params["layers"] = jax.tree.map(
            lambda old, new: np.concatenate([old[:kept], new[kept:]]), params["layers"], fresh
        )
    return {**params, **network.fresh_head(net, keys[0])}


def random_encoder(config: BertConfig, seed: int) -> Params:
    """An encoder that has learned nothing."""
    return _init(jax.random.fold_in(jax.random.key(seed), 2**31 - 2), config=config)


@partial(jax.jit, static_argnames=("config",))
def _init(key: Array, config: BertConfig) -> Params:
    return bert.init(config, key)


def judge(
    asked: Asked,
    params: Params,
    examples: Sequence[Example],
    rows: Sequence[TaskRow] | None = None,
    features: Sequence[np.ndarray] | None = None,
    told: Callable[[int], object] = lambda rows: None,
    tune: bool = False,
) -> Judged:
    """Predictions for all examples, and their scores where all of them have labels.

    Args:
        rows: of the examples, where they are made already.
        features: of each row, in place of a frozen encoder.
        told: is told how many rows more are done.
        tune: of qa: first choose by these examples when there is no answer.
    """
    rows = asked.rows(examples) if rows is None else rows
    outs = outputs_of(asked.net, params, rows, asked.pad, features, told)
    if tune and asked.task.family == "qa":
        metric = asked.task.metric or metrics.HEADLINE["qa"]
        open_ended = predictions.predictions(asked.task, asked.labels, examples, rows, outs)
        asked = replace(asked, no_answer=predictions.no_answer_threshold(examples, open_ended, metric))
    found = predictions.predictions(asked.task, asked.labels, examples, rows, outs, asked.no_answer)
    known = labelled(examples, asked.task.family)
    return Judged(found, scores(asked, examples, found) if known else {}, asked.no_answer)


def labelled(examples: Sequence[Example], family: str) -> bool:
    """Whether it is known of every example what is right."""
    if family == "qa":
        return bool(examples) and all(example.answers is not None for example in examples)
    if family == "embedding":
        return bool(examples) and all(len(example.texts) == 2 for example in examples)
    if family == "multi_label":
        return bool(examples) and all(example.labels is not None for example in examples)
    tags = family in ("tagging", "intent_slots")
    known = [(not tags or e.tags is not None) and (family == "tagging" or e.label is not None) for e in examples]
    return bool(known) and all(known)


def scores(asked: Asked, examples: Sequence[Example], found: Sequence[Prediction]) -> dict[str, float]:
    """The family's metrics."""
    family = asked.task.family
    names = asked.labels.get("label", ())
    return metrics.measure(examples, predictions.plain(family, found), family, asked.task.scheme, names)


# ------------------------------------------------------------------------------------------- as a model keeps it


def to_json(asked: Asked) -> dict[str, Any]:
    """What `from_json` makes the same of again, beside weights and tokenizer; docs/formats.md, `task.json`."""
    net = asked.net
    return {
        "family": asked.task.family,
        "labels": {term: list(names) for term, names in asked.labels.items()},
        "readout": {"layers": net.layers, "tokens": net.tokens, "spans": net.spans},
        "task": asdict(asked.task),
        "no_answer": asked.no_answer,
    }


def from_json(tree: Mapping[str, Any], config: BertConfig, tokenizer: Tokenizer) -> Asked:
    """Raises UserError if it is of a later version, of another encoder, or longer than that one's rows."""
    try:
        task = TaskSettings(**tree["task"]) if tree["task"] else TaskSettings(family=tree["family"])
        labels = {term: tuple(names) for term, names in tree["labels"].items()}
        layers, tokens = tree["readout"]["layers"], tree["readout"]["tokens"]
        read = ReadoutSettings(layers=layers, tokens="" if task.family == "qa" else tokens, dropout=0.0)
        net = network.make_network(config, task, read, labels, spans=tree["readout"].get("spans", 1))
    except (KeyError, TypeError) as error:
        raise UserError(f"not a task of ours ({json.dumps(str(error))})", "task.json", "fine-tune it anew") from None
    _check_length(task, config)
    return Asked(net, task, tokenizer, labels, tree["no_answer"])
