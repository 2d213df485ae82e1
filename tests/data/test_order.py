"""Order: a permutation per epoch, reached at any t, the same whatever the host."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.order import (
    Blocks,
    BucketedOrder,
    Order,
    PackedOrder,
    Ramp,
    digest,
    interleave,
    permute,
)
from bert_jax.data.packing import Capacity, pack

LENGTH = 16
many = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_permute_is_a_permutation(size: int) -> None:
    assert sorted(permute(np.arange(size), size, (1, 2))) == list(range(size))


def test_permute_differs_by_key_and_looks_shuffled() -> None:
    one, other = (permute(np.arange(5000), 5000, (seed,)) for seed in (0, 1))
    assert (one == other).mean() < 0.01
    assert abs(np.corrcoef(one, np.arange(5000))[0, 1]) < 0.05
    # neighbours part: a shuffle that moves blocks would keep them together
    assert (np.abs(np.diff(one)) == 1).mean() < 0.01


def test_each_epoch_has_every_record_once_and_batches_cross_its_end() -> None:
    rows = [Order(records=10, seed=0, stage=0).rows(4 * t, 4 * t + 4) for t in range(5)]
    numbers, epochs = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    assert epochs.tolist() == [0] * 10 + [1] * 10
    assert sorted(numbers[:10, 0]) == sorted(numbers[10:, 0]) == list(range(10))
    assert numbers[:10].tolist() != numbers[10:].tolist()


def test_stages_and_seeds_have_orders_of_their_own() -> None:
    batches = {digest(Order(100, seed, stage).rows(0, 8).numbers) for seed in (0, 1) for stage in (0, 1)}
    assert len(batches) == 4


# ------------------------------------------------------------------------------------------------- packed, bucketed

lengths_of_records = st.lists(st.integers(1, LENGTH), min_size=1, max_size=80).map(np.array)


def blocks_of(tokens: np.ndarray, block: int, seed: int = 0) -> Blocks:
    return Blocks(tokens.astype(np.int32), LENGTH, seed, 0, block)


@many
@given(lengths_of_records, st.integers(1, 5), st.integers(3, 9), st.sampled_from([5, 1000]))
def test_packed_epochs_have_every_record_once_and_rows_hold_what_they_can(
    tokens: np.ndarray, sequences: int, predictions: int, block: int
) -> None:
    needs = np.maximum(1, np.arange(LENGTH + 1) // 5)
    order = PackedOrder(blocks_of(tokens, block), Capacity(LENGTH, predictions, sequences, needs))
    for epoch in range(3):
        rows, epochs = order.rows(epoch * order.epoch_rows, (epoch + 1) * order.epoch_rows)
        assert (epochs == epoch).all() and rows.shape == (order.epoch_rows, sequences)
        here = rows >= 0
        assert sorted(rows[here]) == list(range(len(tokens)))
        assert (here[:, 0]).all() and (np.diff(here.astype(int), axis=1) <= 0).all()
        for capacity, sizes in ((LENGTH, tokens), (predictions, needs[tokens])):
            assert (np.where(here, sizes[rows], 0).sum(1) <= capacity).all()


@many
@given(lengths_of_records, st.integers(1, 7), st.integers(0, 200), st.sampled_from([5, 1000]))
def test_packed_rows_are_reached_without_the_ones_before(tokens: np.ndarray, batch: int, t: int, block: int) -> None:
    row = Capacity(LENGTH, 9, 4, np.ones(LENGTH + 1, np.int64))

    def fresh() -> PackedOrder:
        return PackedOrder(blocks_of(tokens, block), row)

    alone, straight = fresh().rows(t * batch, (t + 1) * batch), fresh().rows(0, (t + 1) * batch)
    for one, other in zip(alone, straight, strict=True):
        np.testing.assert_array_equal(one, other[t * batch :])


def test_packing_wastes_little_and_draws_new_partners_each_epoch() -> None:
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random(12_000) < 0.4, rng.integers(5, 129, 12_000), 128).astype(np.int32)
    needs = np.maximum(1, -(-np.arange(129) * 15 // 100))
    order = PackedOrder(Blocks(tokens, 128, 0, 0), Capacity(128, 20, 8, needs))
    assert order.epoch_rows * 128 * 0.97 < tokens.sum()
    one, other = (order.rows(e * order.epoch_rows, (e + 1) * order.epoch_rows).numbers for e in (0, 1))
    pairs = [{frozenset(row[row >= 0]) for row in rows if (row >= 0).sum() > 1} for rows in (one, other)]
    assert len(pairs[0]) > 1200 and len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])


@many
@given(st.lists(st.integers(0, 9), min_size=LENGTH, max_size=LENGTH), st.integers(1, 6), st.integers(2, 30))
def test_patterns_hold_the_histogram_and_no_two_rows_fit_into_one(
    counts: list[int], sequences: int, predictions: int
) -> None:
    row = Capacity(LENGTH, predictions, sequences, np.maximum(1, np.arange(LENGTH + 1) // 8))
    patterns, rows = pack(np.array([0, *counts]), row)
    found = np.bincount(patterns.ravel(), np.repeat(rows, sequences), LENGTH + 1)
    assert found[1:].tolist() == counts and (rows > 0).all()
    used = [
        (pattern.sum(), row.needs[pattern[pattern > 0]].sum(), (pattern > 0).sum())
        for pattern in np.repeat(patterns, rows, axis=0)
    ]
    limits = (LENGTH, predictions, sequences)
    assert all(size <= limit for each in used for size, limit in zip(each, limits, strict=True))
    if used:  # the two least filled by tokens: best fit would have put the second into the first
        least = sorted(used)[:2]
        if len(least) == 2:
            assert any(a + b > limit for a, b, limit in zip(*least, limits, strict=True))


@many
@given(lengths_of_records, st.integers(1, 6), st.integers(0, 60), st.sampled_from([7, 1000]))
def test_bucketed_epochs_have_every_record_once_in_batches_of_equal_tokens(
    tokens: np.ndarray, batch: int, t: int, block: int
) -> None:
    order = BucketedOrder(blocks_of(tokens, block), batch)
    for epoch in range(2):
        batches = [order.batch_at(epoch * order.epoch_batches + i) for i in range(order.epoch_batches)]
        numbers = np.concatenate([rows.numbers.ravel() for rows, _ in batches])
        assert sorted(numbers[numbers >= 0]) == list(range(len(tokens)))
        for rows, length in batches:
            assert len(rows.epochs) * length == batch * LENGTH and (rows.epochs == epoch).all()
            here = rows.numbers[rows.numbers >= 0]
            assert here.size and (tokens[here] <= length).all()
            assert length == LENGTH or here.size == len(rows.numbers)
    again = BucketedOrder(blocks_of(tokens, block), batch)
    for one, other in zip(order.batch_at(t)[0], again.batch_at(t)[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_rows_are_rows_too() -> None:
    """Of two sources one may have none in a small batch."""
    order = PackedOrder(Blocks(np.full(9, 4, np.int32), 8, 0, 0), Capacity(8, 4, 3, np.ones(9, np.int64)))
    assert order.rows(3, 3).numbers.shape == (0, 3) and order.rows(3, 3).epochs.shape == (0,)


# ------------------------------------------------------------------------------------------- ramp, tokens, replay


@many
@given(st.integers(0, 4), st.integers(1, 40), st.integers(1, 5))
def test_a_ramp_doubles_and_rows_before_add_up(doublings: int, steps: int, first: int) -> None:
    batch = first << doublings
    ramp = Ramp(batch, first, steps) if doublings else Ramp(batch)
    sizes = [ramp.rows_before(t + 1) - ramp.rows_before(t) for t in range(steps + 5)]
    assert sizes == sorted(sizes) and set(sizes) <= set(ramp.sizes) and ramp.rows_before(0) == 0
    assert set(sizes[steps:]) == {batch}
    if steps >= doublings > 0:
        assert set(sizes) == set(ramp.sizes)
        spent = [sizes[:steps].count(size) for size in ramp.sizes[:-1]]
        assert max(spent) - min(spent) <= 1
    for rows in (1, batch, ramp.rows_before(steps) - 1, ramp.rows_before(steps) + 1):
        if rows > 0:
            t = ramp.steps_for(rows)
            assert ramp.rows_before(t) >= rows > ramp.rows_before(t - 1)


@many
@given(st.integers(0, 10_000), st.integers(1, 50), st.floats(0, 0.999))
def test_replayed_rows_are_spread_evenly_and_counted(start: int, size: int, share: float) -> None:
    chosen, before = interleave(start, start + size, share)
    whole, none = interleave(0, start + size, share)
    assert none == 0 and before == whole[:start].sum()
    assert chosen.tolist() == whole[start:].tolist()
    assert abs(chosen.sum() - share * size) < 1 + 1e-6
