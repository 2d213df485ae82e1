"""The sentence on a loss that stands on a level: said where it stands, not where it falls, and seldom."""

from __future__ import annotations

import numpy as np

from bert_jax.store.plateau import Plateau
from tests.store.synthetic import LEVELS

NATS = {name: level["loss"] for name, level in LEVELS.items()}


def said(losses: np.ndarray, plateau: Plateau | None = None) -> list[tuple[int, str]]:
    plateau = plateau or Plateau(NATS)
    told = [(step, plateau.see(loss)) for step, loss in enumerate(losses.tolist(), 1)]
    return [(step, sentence) for step, sentence in told if sentence]


def noise(steps: int, size: float = 0.3) -> np.ndarray:
    return np.random.default_rng(0).normal(0, size, steps)


def test_a_loss_on_the_unigram_level_is_told_with_its_meaning() -> None:
    fall = np.linspace(9, 7, 500)
    told = said(np.concatenate([fall, np.full(3000, 7.0)]) + noise(3500))
    assert 1000 < told[0][0] <= 1700
    assert told[0][1].startswith("masked LM has stood at 7.0")
    assert "for 1,000 steps, within 2% of the level 7.00 of 'unigram' (word frequencies)" in told[0][1]
    assert "little more than how frequent words are" in told[0][1]


def test_it_is_repeated_at_twice_the_time_only() -> None:
    told = said(np.full(20_000, 7.0) + noise(20_000))
    assert [step for step, _ in told] == [1000, 2000, 4000, 8000, 16_000]


def test_some_per_cent_below_the_unigram_level_is_still_that_plateau() -> None:
    (_, sentence), *_ = said(np.full(1500, 6.58) + noise(1500))
    assert "6% below the level 7.00 of 'unigram'" in sentence


def test_a_loss_that_falls_through_every_level_is_left_alone() -> None:
    assert said(np.linspace(9.2, 3.5, 15_000) + noise(15_000)) == []


def test_a_loss_between_levels_is_left_alone() -> None:
    assert said(np.full(5000, 6.0) + noise(5000)) == [] and said(np.full(5000, 2.0)) == []


def test_each_level_has_its_own_sentence() -> None:
    for name, words in (
        ("uniform", "learned nothing yet"),
        ("left_bigram", "counts of the word before"),
        ("two_sided_bigram", "counts of both neighbours"),
    ):
        (_, sentence), *_ = said(np.full(1000, NATS[name]))
        assert words in sentence


def test_steps_that_are_not_finite_do_not_hide_it() -> None:
    losses = np.full(1500, 7.0)
    losses[::7] = np.nan
    assert len(said(losses)) == 1


def test_a_resumed_run_says_what_the_uninterrupted_one_says() -> None:
    losses = np.full(5000, 7.0) + noise(5000)
    resumed = Plateau(NATS)
    said(losses[:2345], resumed)
    assert [(step + 2345, s) for step, s in said(losses[2345:], resumed)] == [x for x in said(losses) if x[0] > 2345]
