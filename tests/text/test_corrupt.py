"""Choosing and replacing: the rate, the mix, the units, and what is never touched."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from bert_jax.text import corrupt as choosing
from bert_jax.text.corrupt import Rule, corrupt, predictions_for, row_keys, special_ids, units_of
from bert_jax.text.tokenizer import Special

SPECIAL = Special(0, 100, 101, 102, 103)
V = 1000


def _rows(n=9_000, length=128, seed=0):
    """Rows as preparation makes them: [CLS] A [SEP] B [SEP], some short, some [UNK] within; word starts."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(np.setdiff1d(np.arange(V), special_ids(SPECIAL)), (n, length)).astype(np.int32)
    ids[rng.random((n, length)) < 0.01] = SPECIAL.unk
    sizes = np.where(rng.random(n) < 0.8, length, rng.integers(8, length, n))
    column = np.arange(length)
    ids[:, 0] = SPECIAL.cls
    ids[np.arange(n), sizes // 2] = SPECIAL.sep
    ids[np.arange(n), sizes - 1] = SPECIAL.sep
    ids[column >= sizes[:, None]] = SPECIAL.pad
    return ids, rng.random((n, length)) < 0.7


def _corrupt(ids, starts, rule, seed=1):
    units = units_of(ids, starts, SPECIAL, rule.unit)
    return units, corrupt(ids, units, SPECIAL, V, rule, row_keys((seed,), np.arange(len(ids))))


@pytest.mark.parametrize("unit", ["token", "word"])
def test_shares_over_a_million_tokens_are_within_three_sigma(unit):
    ids, starts = _rows()
    units, done = _corrupt(ids, starts, Rule(cap=20, unit=unit))
    eligible = int((units >= 0).sum())
    assert eligible > 1_000_000
    rows, slots = np.nonzero(done.weights)
    at = done.positions[rows, slots]
    now, before = done.ids[rows, at], ids[rows, at]
    chosen = len(now)

    def assert_share(count, total, share):
        assert abs(count - total * share) < 3 * sqrt(total * share * (1 - share)), (count / total, share)

    assert_share(chosen, eligible, 0.15)
    assert_share((now == SPECIAL.mask).sum(), chosen, 0.8)
    drawn_same = 0.1 / (V - 5)
    assert_share((now == before).sum(), chosen, 0.1 + drawn_same)
    assert_share(((now != before) & (now != SPECIAL.mask)).sum(), chosen, 0.1 - drawn_same)
    untouched = np.ones(ids.shape, bool)
    untouched[rows, at] = False
    np.testing.assert_array_equal(done.ids[untouched], ids[untouched])


@pytest.mark.parametrize("unit", ["token", "word"])
def test_special_tokens_are_never_chosen_and_never_drawn(unit):
    ids, starts = _rows()
    _, done = _corrupt(ids, starts, Rule(cap=20, unit=unit, mask_share=0.0, random_share=1.0))
    rows, slots = np.nonzero(done.weights)
    at = done.positions[rows, slots]
    assert not np.isin(ids[rows, at], special_ids(SPECIAL)).any()
    assert not np.isin(done.ids[rows, at], special_ids(SPECIAL)).any()
    drawn = np.delete(np.bincount(done.ids[rows, at], minlength=V), special_ids(SPECIAL))
    mean = len(at) / len(drawn)
    assert np.abs(drawn - mean).max() < 5 * sqrt(mean), "every ordinary id is drawn as often as another"
    assert drawn.var() < 1.2 * mean


@pytest.mark.parametrize("unit", ["token", "word"])
def test_positions_ascend_and_labels_restore_the_row(unit):
    ids, starts = _rows(300)
    _, done = _corrupt(ids, starts, Rule(cap=20, unit=unit))
    for row in range(300):
        used = done.weights[row] == 1
        count = int(used.sum())
        assert used[:count].all() and not done.positions[row, count:].any() and not done.labels[row, count:].any()
        assert (np.diff(done.positions[row, :count]) > 0).all()
        restored = done.ids[row].copy()
        restored[done.positions[row, :count]] = done.labels[row, :count]
        np.testing.assert_array_equal(restored, ids[row])


def test_a_word_is_chosen_whole_or_not_at_all():
    ids, starts = _rows(2_000)
    units, done = _corrupt(ids, starts, Rule(cap=20, unit="word"))
    chosen = np.zeros(ids.shape, bool)
    rows, slots = np.nonzero(done.weights)
    chosen[rows, done.positions[rows, slots]] = True
    flat = (units + np.arange(len(ids))[:, None] * ids.shape[1])[units >= 0]
    size = np.bincount(flat)
    hit = np.bincount(flat, chosen[units >= 0])
    assert set(np.unique(hit[size > 0] / size[size > 0])) == {0.0, 1.0}
    assert size.max() > 3
    assert abs(chosen.sum() / (units >= 0).sum() - 0.15) < 0.002


def test_a_segment_that_begins_within_a_word_does_not_join_what_is_before():
    ids = np.array([[101, 5, 6, 102, 7, 8, 102, 0]], np.int32)
    starts = np.array([[0, 0, 0, 0, 0, 1, 0, 0]], bool)
    np.testing.assert_array_equal(units_of(ids, starts, SPECIAL, "word"), [[-1, 1, 1, -1, 4, 5, -1, -1]])
    np.testing.assert_array_equal(units_of(ids, None, SPECIAL, "token"), [[-1, 1, 2, -1, 4, 5, -1, -1]])


def test_the_cap_holds_and_what_it_costs_is_told():
    ids, starts = _rows(500)
    _, done = _corrupt(ids, starts, Rule(cap=7))
    assert done.positions.shape == (500, 7) and done.weights.sum(1).max() == 7
    np.testing.assert_array_equal(done.weights.sum(1), done.fitted)
    assert (done.fitted == np.minimum(done.wanted, 7)).all() and (done.wanted > 7).mean() > 0.5


def test_the_rate_holds_where_rounding_would_miss_it():
    # 125 eligible tokens: 18.75 are due, and the nearest number is 1.3 % more.
    ids = np.tile(np.arange(200, 325, dtype=np.int32), (8_000, 1))
    keys = row_keys((4,), np.arange(8_000))
    done = corrupt(ids, units_of(ids, None, SPECIAL, "token"), SPECIAL, V, Rule(cap=20), keys)
    assert set(np.unique(done.weights.sum(1))) == {18, 19}
    assert abs(done.weights.sum() / ids.size - 0.15) < 3 * sqrt(0.15 * 0.85 / ids.size)


def test_every_position_and_every_unit_is_as_likely_as_another():
    ids = np.tile(np.arange(200, 240, dtype=np.int32), (20_000, 1))
    done = corrupt(
        ids, units_of(ids, None, SPECIAL, "token"), SPECIAL, V, Rule(cap=8), row_keys((3,), np.arange(20_000))
    )
    counts = np.bincount(done.positions[done.weights == 1], minlength=40)
    assert abs(counts / 20_000 - 0.15).max() < 4.5 * sqrt(0.15 * 0.85 / 20_000)
    chosen = np.zeros(ids.shape, bool)
    rows, slots = np.nonzero(done.weights)
    chosen[rows, done.positions[rows, slots]] = True
    together = chosen.T.astype(np.int64) @ chosen
    pairs = together[np.triu_indices(40, 1)] / 20_000  # six of forty: every two as often together as any other two
    share = 6 * 5 / (40 * 39)
    assert abs(pairs - share).max() < 5 * sqrt(share / 20_000)
    masked = chosen & (done.ids == SPECIAL.mask)
    dice = masked.sum(0) / chosen.sum(0)
    assert abs(dice - 0.8).max() < 4.5 * sqrt(0.8 * 0.2 / 3_000), "the die does not know the place"


@pytest.mark.parametrize("length", [1, 7, 100, 129, 513])
def test_any_length_and_every_token_if_asked_for(length):
    ids = np.tile(np.arange(200, 200 + length, dtype=np.int32), (600, 1))
    for unit, cap in (("token", length), ("token", length + 3), ("word", length), ("token", 5)):
        starts = np.ones(ids.shape, bool)
        units = units_of(ids, starts, SPECIAL, unit)
        rule = Rule(cap=cap, rate=0.999, unit=unit, mask_share=1.0, random_share=0.0)
        done = corrupt(ids, units, SPECIAL, V, rule, row_keys((8,), np.arange(600)))
        assert (done.weights.sum(1) == done.fitted).all() and done.positions.max() == length - 1
        assert done.fitted.max() == min(cap, length) and (done.fitted <= done.wanted).all()
        assert ((done.ids == SPECIAL.mask).sum(1) == done.fitted).all()


def test_words_are_taken_greedily_in_their_random_order():
    """Against a plain loop a row, where the number asked for is often hard to meet."""
    rng = np.random.default_rng(4)
    ids = np.tile(np.arange(200, 290, dtype=np.int32), (700, 1))
    starts = rng.random(ids.shape) < rng.choice([0.05, 0.3, 0.9], (700, 1))
    rule, keys = Rule(cap=4, unit="word"), row_keys((2,), np.arange(700))
    units = units_of(ids, starts, SPECIAL, "word")
    done = corrupt(ids, units, SPECIAL, V, rule, keys)
    order = choosing._order(keys, 90)
    for row in range(700):
        left, taken = int(done.fitted[row]), []
        for unit in sorted(set(units[row].tolist()), key=lambda unit: order[row, unit]):
            tokens = np.flatnonzero(units[row] == unit)
            if len(tokens) <= left:
                left -= len(tokens)
                taken += tokens.tolist()
        assert done.positions[row][done.weights[row] == 1].tolist() == sorted(taken)
    assert (done.weights.sum(1) < done.fitted).any(), "some rows have no word that is short enough"


def test_same_generator_same_rows_and_arguments_stay():
    ids, starts = _rows(50)
    copy = ids.copy()
    first, again = (_corrupt(ids, starts, Rule(cap=20, unit="word"), seed=5)[1] for _ in range(2))
    other = _corrupt(ids, starts, Rule(cap=20, unit="word"), seed=6)[1]
    np.testing.assert_array_equal(first.ids, again.ids)
    assert (first.positions != other.positions).any()
    by_column = _corrupt(np.asfortranarray(ids), np.asfortranarray(starts), Rule(cap=20, unit="word"), seed=5)[1]
    np.testing.assert_array_equal(first.ids, by_column.ids)
    np.testing.assert_array_equal(ids, copy)


@pytest.mark.parametrize("unit", ["token", "word"])
def test_a_row_is_corrupted_alike_alone_and_in_any_block(unit):
    ids, starts = _rows(1_300)
    units, keys = units_of(ids, starts, SPECIAL, unit), row_keys((9, 9), np.arange(1_300))
    rule = Rule(cap=20, unit=unit)
    whole = corrupt(ids, units, SPECIAL, V, rule, keys)
    some = np.array([1_299, 30, 2, 512, 511, 17])
    part = corrupt(ids[some], units[some], SPECIAL, V, rule, keys[some])
    np.testing.assert_array_equal(part.ids, whole.ids[some])
    np.testing.assert_array_equal(part.positions, whole.positions[some])
    for name in ("labels", "weights", "wanted", "fitted"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[some])
    one = corrupt(ids[:1], units[:1], SPECIAL, V, rule, keys[:1])
    np.testing.assert_array_equal(one.ids, whole.ids[:1])
    others = row_keys((9, 9), np.arange(1_300), np.arange(1_300) % 3)
    assert len(set(others.tolist()) | set(keys.tolist())) == 2_600


def test_predictions_follow_the_length():
    assert [predictions_for(length) for length in (32, 64, 128, 512)] == [6, 10, 20, 76]


def test_rows_without_anything_to_choose_stay():
    ids = np.array([[101, 102, 102, 0]], np.int32)
    done = corrupt(ids, units_of(ids, None, SPECIAL, "token"), SPECIAL, V, Rule(cap=2), row_keys((0,), np.arange(1)))
    np.testing.assert_array_equal(done.ids, ids)
    assert not done.weights.any()
