"""Every family learns thirty-two examples by heart; frozen bits stay; cached features are the live ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax.config import BertConfig
from bert_jax.errors import UserError
from bert_jax.model import bert
from bert_jax.tasks import cells, loop, network
from bert_jax.tasks.predictions import no_answer_threshold
from bert_jax.tasks.reading import Splits
from bert_jax.tasks.settings import FAMILIES, FineTuneSettings, ReadoutSettings, TaskRecipe, TaskSettings
from bert_jax.tasks.sweep import Cell
from bert_jax.tasks.task import Asked, first_params, judge, make_asked, random_encoder
from tests.conftest import louder
from tests.tasks import toy
from tests.world import VOCABULARY

LABELS = {
    "single": {"label": toy.NAMES},
    "pair": {"label": toy.NAMES},
    "multi_label": {"labels": toy.NAMES},
    "tagging": {"tags": toy.TAGS},
    "intent_slots": {"intent": toy.NAMES, "slots": toy.TAGS},
}
TRAIN = FineTuneSettings(epochs=60, batch=16, learning_rates=(2e-3,), warmup=0.1)


def recipe(family: str, **train) -> TaskRecipe:
    scheme = "BIO" if family == "tagging" else ""
    task = TaskSettings(family=family, length=64, stride=8, scheme=scheme)
    return TaskRecipe(task=task, readout=ReadoutSettings(dropout=0.0), train=replace(TRAIN, **train))


def asked(folder: Path, made: TaskRecipe, examples, config: BertConfig | None = None) -> Asked:
    config = config or toy.tiny(hidden_dropout=0.0, attention_dropout=0.0, position_init="sinusoid")
    return make_asked(config, toy.tokenizer(folder), made, LABELS.get(made.task.family, {}), examples)


def fit(one: Asked, made: TaskRecipe, examples, encoder: dict | None = None, seed: int = 0, **given) -> loop.Fitted:
    encoder = encoder or random_encoder(one.net.config, 0)
    params = first_params(one.net, encoder, seed, made.train.reset_layers)
    rows, rate = one.rows(examples), made.train.learning_rates[0]
    return loop.fit(one.net, params, rows, made.train, rate, seed, one.pad, **given)


PERFECT = {
    "single": ("accuracy", 1.0),
    "pair": ("accuracy", 1.0),
    "multi_label": ("accuracy", 1.0),
    "regression": ("pearson", 0.99),
    "choice": ("accuracy", 1.0),
    "tagging": ("f1", 1.0),
    "qa": ("exact", 1.0),
    "intent_slots": ("whole_accuracy", 1.0),
    "embedding": ("accuracy_at_1", 1.0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_thirty_two_examples_by_heart(family: str, tmp_path: Path) -> None:
    # slowly and long, so that it holds for the rounding of any processor's products
    examples, made = toy.examples(family), recipe(family, epochs=100, learning_rates=(1e-3,))
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


# ------------------------------------------------------------------------------------------- what stays, what is kept

SMALL = BertConfig(len(VOCABULARY), width=32, layers=2, heads=2, feed_forward=64, positions=64)
STILL = replace(SMALL, hidden_dropout=0.0, attention_dropout=0.0)


@pytest.fixture(scope="module")
def encoder() -> dict:
    tree = louder(jax.eval_shape(partial(bert.init, SMALL), jax.random.key(0)))
    return {name: tree[name] for name in network.ENCODER}


def same(one: dict, other: dict) -> bool:
    """Bit for bit."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


def differ(one: dict, other: dict) -> bool:
    """Every leaf of them does."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all((np.asarray(a) != np.asarray(b)).any() for a, b in leaves)


@pytest.mark.parametrize("family", ["single", "pair", "tagging"])
def test_a_head_alone_is_trained_on_an_encoder_of_unchanged_bits_cached_or_not(
    family: str, encoder: dict, tmp_path: Path
) -> None:
    examples, made = toy.examples(family, 20), recipe(family, what="head", epochs=2, batch=8)
    one = asked(tmp_path, made, examples, STILL)
    params, rows = first_params(one.net, encoder, 0), one.rows(examples)
    kept = loop.Features().of("train", one.net, params, rows, one.pad)
    live, cached = (fit(one, made, examples, encoder, features=features) for features in (None, kept))
    for fitted in (live, cached):
        parts = [name for name in network.ENCODER if name in fitted.params]
        assert len(parts) == (2 if family == "tagging" else 3)
        assert all(same(fitted.params[name], encoder[name]) for name in parts)
        heads = ({name: tree[name] for name in tree if name not in network.ENCODER} for tree in (fitted.params, params))
        assert differ(*heads)
        assert fitted.steps == 6 and len(fitted.curve) == 2
    for name in live.params:
        for a, b in zip(jax.tree.leaves(live.params[name]), jax.tree.leaves(cached.params[name]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)
    assert [line["loss"] for line in live.curve] == pytest.approx([line["loss"] for line in cached.curve], rel=1e-5)


def test_one_seed_gives_one_model_bit_for_bit_and_lower_layers_stay(encoder: dict, tmp_path: Path) -> None:
    examples, made = toy.examples("single", 20), recipe("single", what="top:1", epochs=1, batch=8, layer_decay=0.5)
    one = asked(tmp_path, made, examples, SMALL)  # with dropout
    first, again, other = (fit(one, made, examples, encoder, seed).params for seed in (0, 0, 1))
    assert same(first, again)
    top = {"layers": jax.tree.map(lambda leaf: leaf[1:], first["layers"]), "pooler": first["pooler"]}
    also = {"layers": jax.tree.map(lambda leaf: leaf[1:], other["layers"]), "pooler": other["pooler"]}
    assert differ(top, also) and differ(top["pooler"], encoder["pooler"])
    for params in (first, other):
        assert same(params["embeddings"], encoder["embeddings"])
        assert same(*(jax.tree.map(lambda leaf: leaf[:1], tree["layers"]) for tree in (params, encoder)))


def scored(encoder: dict, folder: Path, scores: list[float], **train) -> tuple[loop.Fitted, list[dict]]:
    """A fit whose epochs have these dev scores, and the parameters after each of them."""
    made = recipe("single", what="head", epochs=len(scores), batch=8, **train)
    examples = toy.examples("single", 8)
    one = asked(folder, made, examples, STILL)
    told: list[dict] = []

    def measure(params: dict) -> float:
        told.append(jax.device_get(params))
        return scores[len(told) - 1]

    rng = np.random.default_rng(0)
    features = [rng.normal(size=(1, 1, 32)).astype(np.float32) for _ in examples]
    return fit(one, made, examples, encoder, measure=measure, features=features), told


def test_patience_ends_a_fit_and_the_best_epoch_is_kept(encoder: dict, tmp_path: Path) -> None:
    fitted, told = scored(encoder, tmp_path, [0.1, 0.5, 0.4, 0.5, 0.9], patience=2)
    assert [line["score"] for line in fitted.curve] == [0.1, 0.5, 0.4, 0.5] and fitted.best == 1
    assert same(fitted.params, told[1]) and not same(fitted.params, told[3])
    fitted, told = scored(encoder, tmp_path, [0.1, 0.5, 0.4, 0.5, 0.9])
    assert fitted.best == 4 and len(told) == 5


def test_without_a_dev_split_the_last_epoch_is_kept(encoder: dict, tmp_path: Path) -> None:
    made, examples = recipe("single", what="head", epochs=3, batch=8, patience=1), toy.examples("single", 8)
    features = [np.ones((1, 1, 32), np.float32) for _ in examples]
    assert fit(asked(tmp_path, made, examples, STILL), made, examples, encoder, features=features).best == 2


def test_bfloat16_computes_float32_is_kept_and_what_was_given_stays(encoder: dict, tmp_path: Path) -> None:
    made, examples = recipe("single", epochs=6, batch=8, dtype="bfloat16", mixout=0.1), toy.examples("single", 16)
    one = asked(tmp_path, made, examples, STILL)
    assert one.net.execution.dtype == "bfloat16"
    before = jax.device_get(encoder)
    fitted = fit(one, made, examples, encoder)
    assert {leaf.dtype for leaf in jax.tree.leaves(fitted.params)} == {np.dtype("float32")}
    losses = [line["loss"] for line in fitted.curve]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert same(encoder, before) and differ(fitted.params["layers"], encoder["layers"])


def test_a_task_before_leaves_its_encoder_and_not_its_head(encoder: dict, tmp_path: Path) -> None:
    """The second task trains its head alone, so its encoder is that of the first to the bit."""
    first, second = recipe("tagging", epochs=1, batch=8), recipe("single", epochs=1, batch=8, what="head")
    stages = [
        cells.prepared(made, Splits(toy.examples(made.task.family, 16), [], [], {}), STILL, toy.tokenizer(tmp_path))
        for made in (first, second)
    ]
    fitted = cells.fit_before(stages[0], encoder, 0).params
    before = {name: fitted.get(name, encoder[name]) for name in network.ENCODER}
    job = cells.Job(stages[1], "accuracy", lambda seed: before, same=False)
    _, params = cells.fit(job, Cell("model", 2e-3, 0))
    alone = fit(stages[0].asked, first, stages[0].splits.train, encoder).params
    assert same(params["embeddings"], alone["embeddings"]) and same(params["layers"], alone["layers"])
    assert differ(params["layers"], encoder["layers"])
    assert same(params["pooler"], encoder["pooler"])  # tagging reads none
    assert set(params) == {*network.ENCODER, "classifier"} and params["classifier"]["kernel"].shape == (32, 3)


def test_a_fit_that_diverges_says_so_and_keeps_nothing_that_is_not_finite(tmp_path: Path) -> None:
    examples, made = toy.examples("single", 16), recipe("single", epochs=3, batch=4, learning_rates=(1e30,))
    one = asked(tmp_path, made, examples)
    with pytest.raises(UserError, match="not finite after the first epoch at a rate of 1e"):
        fit(one, made, examples)
