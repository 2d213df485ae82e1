"""Order: a permutation per epoch, reached at any t, the same whatever the host."""

from __future__ import annotations

import numpy as np
import pytest

from bert_jax.data.order import Order, digest, permute


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
    order = Order(records=10, batch=4, seed=0, stage=0)
    numbers, epochs = zip(*(order.batch_records(t) for t in range(5)), strict=True)
    numbers, epochs = np.concatenate(numbers), np.concatenate(epochs)
    assert epochs.tolist() == [0] * 10 + [1] * 10
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))
    assert numbers[:10].tolist() != numbers[10:].tolist()


def test_a_batch_is_reached_without_the_ones_before() -> None:
    straight = [digest(Order(100, 8, 3, 1).batch_records(t)[0]) for t in range(50)]
    assert digest(Order(100, 8, 3, 1).batch_records(37)[0]) == straight[37]
    assert len(set(straight)) == 50


def test_stages_and_seeds_have_orders_of_their_own() -> None:
    batches = {digest(Order(100, 8, seed, stage).batch_records(0)[0]) for seed in (0, 1) for stage in (0, 1)}
    assert len(batches) == 4
