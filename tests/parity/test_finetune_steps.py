"""Fine-tuning here and in transformers, dropout off: the same head, the same steps, the same losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.parity.foreign import torch  # first: skips where it is missing

from benchmarks import finetune_torch  # isort: skip
from bert_jax.convert import heads, huggingface
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.task_model import TaskModel
from bert_jax.tasks import loop, network
from bert_jax.tasks.encoding import TaskRow
from bert_jax.tasks.examples import Example
from bert_jax.tasks.settings import FAMILIES, FineTuneSettings, ReadoutSettings, TaskRecipe, TaskSettings
from bert_jax.tasks.task import Asked, first_params, make_asked, random_encoder, to_json
from tests.tasks import toy

LABELS = {
    "single": {"label": toy.NAMES},
    "pair": {"label": toy.NAMES},
    "multi_label": {"labels": toy.NAMES},
    "tagging": {"tags": toy.TAGS},
    "intent_slots": {"intent": toy.NAMES, "slots": toy.TAGS},
}
RATE = 2e-4
TRAIN = FineTuneSettings(
    epochs=3, batch=8, learning_rates=(RATE,), head_rate=RATE, warmup=0.4, weight_decay=10.0
)  # two steps an epoch


@pytest.mark.parametrize("family", FAMILIES)
def test_the_losses_of_six_steps_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """They fall, and what decays does so fast that it is seen; what both say of the examples afterwards is the same."""
    recipe = TaskRecipe(
        task=TaskSettings(family=family, length=48, stride=8, scheme="BIO" if family == "tagging" else ""),
        readout=ReadoutSettings(layers="last", dropout=0.0),
        train=TRAIN,
    )
    examples = toy.examples(family, 64)
    if family == "choice":  # there, every example has as many to choose from
        examples = [example for example in examples if len(example.texts) == 4]
    config = toy.tiny(hidden_dropout=0.0, attention_dropout=0.0)
    asked = make_asked(config, toy.tokenizer(tmp_path), recipe, LABELS.get(family, {}), examples)
    rows = sixteen(family, examples, asked.rows(examples))
    params = loud(first_params(asked.net, random_encoder(config, 0), 0))

    model = theirs_of(asked, params, tmp_path / "theirs")
    ours: list[float] = []
    theirs: list[float] = []
    given = (rows, TRAIN, TRAIN.learning_rates[0], 3, asked.pad)
    fitted = loop.fit(asked.net, params, *given, told=lambda step, steps, loss: ours.append(loss))
    finetune_torch.fit(model, asked.net, *given, theirs.append)
    assert len(ours) == 6 and np.mean(ours[-2:]) < np.mean(ours[:2]) - 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-5)
    here = loop.outputs_of(asked.net, fitted.params, rows, asked.pad)
    there = finetune_torch.outputs_of(model, asked.net, rows, asked.pad)
    for one, other in zip(here, there, strict=True):
        for name, values in one.items():
            said = values[:1] if name == "intent" else values  # of a text, not of its words
            np.testing.assert_allclose(said, other[name], rtol=0, atol=1e-3)


def theirs_of(asked: Asked, params: network.Params, folder: Path) -> torch.nn.Module:
    """What the benchmark trains there, with these weights."""
    encoder = {name: tree for name, tree in params.items() if name in network.ENCODER}
    head = {name: tree for name, tree in params.items() if name not in network.ENCODER}
    loaded = Loaded(asked.net.config, encoder, asked.tokenizer, "BertModel")
    if asked.net.family not in ("intent_slots", "embedding"):
        loaded = heads.to_class(TaskModel(loaded, head, {**to_json(asked), "readout": {}}), "here")
    huggingface.write(folder, loaded)
    model = finetune_torch.make_model(folder, asked.net)
    if isinstance(model, finetune_torch.Joint):
        for product in ("intent", "slots"):
            weights = {"weight": head[product]["kernel"].T, "bias": head[product]["bias"]}
            getattr(model, product).load_state_dict({name: torch.tensor(leaf) for name, leaf in weights.items()})
    return model


def loud(params: network.Params) -> network.Params:
    """Products that about keep the size of what they are given, and biases and norms that are not as they begin.

    At twice this size a step makes rounding errors a hundred times larger, and losses part without any fault.
    """
    rng = np.random.default_rng(1)

    def leaf(path: tuple[Any, ...], x: Any) -> np.ndarray:
        found = np.asarray(x)
        if path[-1].key == "kernel":
            return found * (found.shape[-2] ** -0.5 / 0.04)
        if path[-1].key in ("bias", "scale"):
            return (found + rng.normal(0, 0.1, found.shape)).astype(np.float32)
        return found

    return jax.tree_util.tree_map_with_path(leaf, params)


def sixteen(family: str, examples: Sequence[Example], rows: Sequence[TaskRow]) -> list[TaskRow]:
    """Two batches. Of questions rows of one length: there, the softmax over places takes padding in."""
    if family in ("choice", "embedding"):
        return list(rows[: (3 if family == "choice" else 2) * 16])
    if family == "qa":
        (length, _), *_ = Counter(len(row.ids) for row in rows).most_common(1)
        rows = [row for row in rows if len(row.ids) == length]
    return list(rows[:16])
