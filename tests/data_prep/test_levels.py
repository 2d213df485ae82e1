"""Reference levels against the definition written out over the whole vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.levels import Bigram, TwoSided, _discount, _merged, count

V, SPECIAL = 12, 3


def _tables(seed: int):
    """Counts of neighbours in random text with structure; ids below SPECIAL are special."""
    rng = np.random.default_rng(seed)
    text = rng.integers(0, V, 400)
    follows = rng.random(400) < 0.5
    text[1:][follows[1:]] = (text[:-1][follows[1:]] * 5 + 3) % V
    keys, counts = np.unique(text[:-1] * V + text[1:], return_counts=True)
    ordinary = np.arange(V) >= SPECIAL
    everything = np.ones(V, bool)
    forward = Bigram((keys, counts), ordinary, everything, 0.7)
    return forward, Bigram((keys, counts), everything, ordinary, 0.7), (keys, counts)


def _matrix(model: Bigram) -> np.ndarray:
    left, right = np.divmod(np.arange(V * V), V)
    return model.probability(left, right).reshape(V, V)


def test_probabilities_sum_to_one_and_special_tokens_have_none():
    forward, backward, _ = _tables(0)
    np.testing.assert_allclose(_matrix(forward).sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(_matrix(backward).sum(1), 1, atol=1e-12)
    assert not _matrix(forward)[:, :SPECIAL].any()


def test_discounting_is_as_defined():
    forward, _, (keys, counts) = _tables(0)
    table = np.zeros((V, V))
    table.flat[keys] = counts
    table[:, :SPECIAL] = 0
    base = np.where(np.arange(V) >= SPECIAL, table.sum(0) + 0.5, 0)
    base /= base.sum()
    total = table.sum(1, keepdims=True)
    expected = np.maximum(table - 0.7, 0) / total + 0.7 * (table > 0).sum(1, keepdims=True) / total * base
    np.testing.assert_allclose(_matrix(forward), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_best_followers_are_the_argmax(seed):
    forward, _, _ = _tables(seed)
    best, at = forward.best_followers()
    np.testing.assert_allclose(best, _matrix(forward).max(1))
    np.testing.assert_allclose(_matrix(forward)[np.arange(V), at], best)


@pytest.mark.parametrize("seed", range(5))
def test_two_sided_equals_the_sum_over_the_vocabulary(seed):
    forward, backward, _ = _tables(seed)
    left, word, right = (grid.ravel() for grid in np.meshgrid(np.arange(V), np.arange(SPECIAL, V), np.arange(V)))
    product = _matrix(forward)[left] * _matrix(backward).T[right]
    expected = product[np.arange(len(word)), word] / product.sum(1)
    found, hit = TwoSided(forward, backward).score(left, word, right)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    top = product[np.arange(len(word)), word] >= product.max(1) * (1 - 1e-12)
    np.testing.assert_array_equal(hit, top)


def test_neighbours_are_counted_inside_documents_and_add_up_over_shards():
    ids = np.array([3, 4, 5, 3, 4, 4, 6, 7], np.uint16)
    one = count(ids, np.array([0, 3, 6, 8]), V)
    other = count(np.array([3, 4, 3, 4], np.uint16), np.array([0, 4]), V)
    keys, counts = _merged([one, other], V)
    found = dict(zip(keys.tolist(), counts.tolist(), strict=True))
    assert found == {3 * V + 4: 4, 4 * V + 4: 1, 4 * V + 5: 1, 6 * V + 7: 1, 4 * V + 3: 1}
    assert keys.tolist() == sorted(found)
    assert [len(part) for part in _merged([], V)] == [0, 0]


def test_large_vocabularies_keep_their_keys_apart():
    size = 120_000
    keys, counts = _merged([count(np.array([size - 1, size - 1, 0], np.int32), np.array([0, 3]), size)], size)
    assert keys.tolist() == [(size - 1) * size, size**2 - 1] and counts.tolist() == [1, 1]


def test_the_discount_is_near_the_best_on_text_not_counted():
    rng = np.random.default_rng(0)
    text = np.minimum(rng.zipf(1.5, 60_000), 300) - 1
    parts = [np.unique(part[:-1] * 300 + part[1:], return_counts=True) for part in (text[:30_000], text[30_000:])]
    everything = np.ones(300, bool)
    left, right = np.divmod(parts[1][0], 300)

    def loss(discount: float) -> float:
        model = Bigram(parts[0], everything, everything, discount)
        return -(parts[1][1] * np.log(model.probability(left, right))).sum() / 30_000

    assert loss(_discount(parts[0][1])) < min(loss(d) for d in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)) + 0.01
