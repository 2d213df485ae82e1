"""Every family learns thirty-two examples by heart; frozen bits stay; cached features are the live ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax.tasks import loop
from bert_jax.tasks.predictions import no_answer_threshold
from bert_jax.tasks.settings import FAMILIES, FineTuneSettings, ReadoutSettings, TaskRecipe, TaskSettings
from bert_jax.tasks.task import Asked, first_params, judge, make_asked, random_encoder
from tests.tasks import toy

LABELS = {
    "single": {"label": toy.NAMES},
    "pair": {"label": toy.NAMES},
    "tagging": {"tags": toy.TAGS},
    "intent_slots": {"intent": toy.NAMES, "slots": toy.TAGS},
}
TRAIN = FineTuneSettings(epochs=60, batch=16, learning_rates=(2e-3,), warmup=0.1)


def recipe(family: str, **train) -> TaskRecipe:
    scheme = "BIO" if family == "tagging" else ""
    task = TaskSettings(family=family, length=64, stride=8, scheme=scheme)
    return TaskRecipe(task=task, readout=ReadoutSettings(dropout=0.0), train=replace(TRAIN, **train))


def asked(folder: Path, made: TaskRecipe, examples) -> Asked:
    config = toy.tiny(hidden_dropout=0.0, attention_dropout=0.0, position_init="sinusoid")
    return make_asked(config, toy.tokenizer(folder), made, LABELS.get(made.task.family, {}), examples)


def fit(one: Asked, made: TaskRecipe, examples, **given) -> loop.Fitted:
    params = first_params(one.net, random_encoder(one.net.config, 0), 0, made.train.reset_layers)
    return loop.fit(one.net, params, one.rows(examples), made.train, made.train.learning_rates[0], 0, one.pad, **given)


PERFECT = {
    "single": ("accuracy", 1.0),
    "pair": ("accuracy", 1.0),
    "regression": ("pearson", 0.99),
    "choice": ("accuracy", 1.0),
    "tagging": ("f1", 1.0),
    "qa": ("exact", 1.0),
    "intent_slots": ("whole_accuracy", 1.0),
    "embedding": ("accuracy_at_1", 1.0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_thirty_two_examples_by_heart(family: str, tmp_path: Path) -> None:
    examples, made = toy.examples(family), recipe(family)
    one = asked(tmp_path, made, examples)
    params = fit(one, made, examples).params
    if family == "qa":
        one = replace(one, no_answer=no_answer_threshold(examples, judge(one, params, examples).predictions))
    metric, least = PERFECT[family]
    assert judge(one, params, examples).scores[metric] >= least


def test_rows_of_the_word_table_that_no_example_has_only_decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, made = toy.examples("single", 12), recipe("single", epochs=2, weight_decay=0.5)
    one = asked(tmp_path, made, examples)
    some = fit(one, made, examples).params
    monkeypatch.setattr(loop.Table, "__init__", _whole_table)
    whole = fit(one, made, examples).params
    used = np.unique(np.concatenate([row.ids for row in one.rows(examples)]))
    first = random_encoder(one.net.config, 0)["embeddings"]["word"]
    rest = np.setdiff1d(np.arange(len(toy.VOCABULARY)), used)
    assert len(rest) and not np.allclose(some["embeddings"]["word"][rest], np.asarray(first)[rest], rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(some), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


def _whole_table(self: loop.Table, word, rows, pad: int) -> None:
    self.word, self.used, self.count = np.asarray(word), np.arange(len(word)), len(word)
    self.places = np.arange(len(word), dtype=np.int32)
