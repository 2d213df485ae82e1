"""Reference levels: how well the masked tokens of the held-out split are guessed without a network.

Training draws them into its curves: a loss that stays at the unigram level knows word frequencies and no
more. Fitted on the original tokens of the train split, scored on the held-out split's masked tokens, whose
neighbours are taken as they originally were.

* uniform: 1 / V.
* unigram: (count + 1/2) / (total + V'/2) over the V' ids that are not special tokens.
* left bigram: p(w|l) = max(c(l,w) - d, 0) / c(l) + d n(l) / c(l) p(w), interpolated absolute discounting,
  n(l) the number of different followers of l, d = n1 / (n1 + 2 n2) (Ney, Essen, Kneser 1994).
* two-sided bigram: p(w|l,r) proportional to p(w|l) p(r|w), normalised over all w exactly: both factors are
  sparse tables plus a product of vectors, so that the sum over the vocabulary has four cheap parts.
"""

from __future__ import annotations

from functools import lru_cache
from math import log
from pathlib import Path

import numpy as np

from bert_jax.text.corrupt import special_ids
from bert_jax.text.features import restore
from bert_jax.text.records import open_shard
from bert_jax.text.tokenizer import Special

_MAX_SCORED = 40_000  # masked tokens scored, evenly taken
_MAX_TWO_SIDED = 2_000  # of them by both neighbours, which takes 60 microseconds each
_BLOCK = 4096

Pairs = tuple[np.ndarray, np.ndarray]  # keys left * V + right, ascending; counts int64


def measure(
    counted: list[bytes], heldout: list[Path], vocab_size: int, special: Special
) -> dict[str, dict[str, float]]:
    """The four levels as {"loss": nats, "accuracy": share}; "uniform" has a loss only.

    Args:
        counted: from `count`, of shards of the train split.
        heldout: shard files of the held-out split.
        vocab_size: V.
        special: these ids are never masked, so they get no probability.
    """
    found: dict[str, dict[str, float]] = {"uniform": {"loss": log(vocab_size)}}
    pairs = _merged(counted, vocab_size)
    left, word, right = _masked(heldout)
    if not len(word) or not len(pairs[0]):
        return found
    ordinary = np.ones(vocab_size, bool)
    ordinary[special_ids(special)] = False
    discount = _discount(pairs[1])
    forward = Bigram(pairs, ordinary, np.ones(vocab_size, bool), discount)

    base = forward.base
    found["unigram"] = _score(base[word], base.argmax() == word)
    best, best_at = forward.best_followers()
    found["left_bigram"] = _score(forward.probability(left, word), best_at[left] == word)
    backward = Bigram(pairs, np.ones(vocab_size, bool), ordinary, discount)
    few = slice(None, None, max(1, -(-len(word) // _MAX_TWO_SIDED)))
    found["two_sided_bigram"] = _score(*TwoSided(forward, backward).score(left[few], word[few], right[few]))
    return found


def _score(probability: np.ndarray, right: np.ndarray) -> dict[str, float]:
    return {"loss": float(-np.log(probability).mean()), "accuracy": float(right.mean())}


class Bigram:
    """p(right | left) by interpolated absolute discounting.

    Args:
        pairs: counts of neighbours.
        rights: bool[V], ids that the right side may be; others get probability 0.
        lefts: bool[V], ids whose followers are counted.
        discount: d, in (0, 1).

    Attributes:
        base: float64[V], smoothed p(right) over all counted pairs.
        reserve: float64[V], d n(l) / c(l): the weight of `base` after each left id (1 where it was never
            seen).
        keys, shares: the counted pairs, ascending, and their (c - d) / c(l).
    """

    def __init__(self, pairs: Pairs, rights: np.ndarray, lefts: np.ndarray, discount: float) -> None:
        size = self.size = len(rights)
        left = (pairs[0] // size).astype(np.int32)
        right = (pairs[0] - left.astype(pairs[0].dtype) * pairs[0].dtype.type(size)).astype(np.int32)
        kept = rights[right] & lefts[left]
        self.keys, counts = pairs[0][kept].astype(np.int64), pairs[1][kept]
        self.left, self.right = left[kept], right[kept]
        singles = np.bincount(self.right, counts, size)
        self.base = np.where(rights, singles + 0.5, 0) / (singles.sum() + 0.5 * rights.sum())
        self.rows = np.searchsorted(self.keys, np.arange(size + 1) * size)
        totals = np.bincount(self.left, counts, size)
        seen = np.maximum(totals, 1)
        self.reserve = np.where(totals > 0, discount * np.diff(self.rows) / seen, 1.0)
        self.shares = (counts - discount) / seen[self.left]

    def probability(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """p(right | left), element by element."""
        smooth = self.reserve[left] * self.base[right]
        if not len(self.keys):
            return smooth
        wanted = left.astype(np.int64) * self.size + right
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return smooth + np.where(self.keys[at] == wanted, self.shares[at], 0.0)

    def best_followers(self) -> tuple[np.ndarray, np.ndarray]:
        """max and argmax over the right side of p(right | left), for every left id."""
        best_at = np.full(self.size, self.base.argmax())
        best = self.reserve * self.base[best_at]
        value = self.shares + self.reserve[self.left] * self.base[self.right]
        top, top_at = np.zeros(self.size), np.zeros(self.size, np.int64)
        seen = np.flatnonzero(np.diff(self.rows))
        if len(seen):
            top[seen] = np.maximum.reduceat(value, self.rows[seen])
            at = np.flatnonzero(value == top[self.left])
            top_at[self.left[at]] = self.right[at]
        # The most frequent id may follow without having been seen to; then its plain share counts, as above.
        return np.maximum(top, best), np.where(top >= best, top_at, best_at)


class TwoSided:
    """p(w | l, r) proportional to p(w | l) p(r | w).

    With p(w|l) = s_l(w) + a_l u(w) and p(r|w) = t_r(w) + m(w) v(r), s and t sparse, the sum over w is
    sum s_l t_r + v(r) sum s_l m + a_l sum u t_r + a_l v(r) sum u m, and the largest product is the largest of
    the largest of four similar groups, since each group underestimates those w that belong to a fuller one.
    """

    def __init__(self, forward: Bigram, backward: Bigram) -> None:
        self.forward, self.backward = forward, backward
        narrow = np.uint16 if backward.size <= 2**16 else np.int32  # 16 bits sort by their digits, in no time
        order = np.argsort(backward.right.astype(narrow), kind="stable")
        self.by_right = backward.left[order], backward.shares[order]
        self.columns = np.searchsorted(backward.right[order], np.arange(backward.size + 1))
        smooth = forward.base * backward.reserve
        self.smooth_sum, self.smooth_best = smooth.sum(), int(smooth.argmax())
        self.smooth_top = smooth[self.smooth_best]
        self.after = lru_cache(20_000)(self._after)
        self.before = lru_cache(20_000)(self._before)

    def _after(self, left: int) -> tuple[float, float, int]:
        """Over the words seen after `left`: sum of s m, and the largest p(w|l) m with its word."""
        f, m = self.forward, self.backward.reserve
        here = slice(f.rows[left], f.rows[left + 1])
        words, shares = f.right[here], f.shares[here]
        if not len(words):
            return 0.0, 0.0, 0
        value = (shares + f.reserve[left] * f.base[words]) * m[words]
        return float((shares * m[words]).sum()), float(value.max()), int(words[value.argmax()])

    def _before(self, right: int) -> tuple[float, float, int]:
        """Over the words seen before `right`: sum of u t, and the largest u p(r|w) with its word."""
        u, b = self.forward.base, self.backward
        here = slice(self.columns[right], self.columns[right + 1])
        words, shares = self.by_right[0][here], self.by_right[1][here]
        if not len(words):
            return 0.0, 0.0, 0
        value = u[words] * (shares + b.reserve[words] * b.base[right])
        return float((u[words] * shares).sum()), float(value.max()), int(words[value.argmax()])

    def score(self, left: np.ndarray, word: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probability of each word between its neighbours, and whether it was the likeliest."""
        f, b = self.forward, self.backward
        joint = f.probability(left, word) * b.probability(word, right)
        total, best = np.zeros(len(word)), np.zeros(len(word), np.int64)
        for row, (one, other) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
            share_sum, top_after, at_after = self.after(one)
            base_sum, top_before, at_before = self.before(other)
            reserve, v = f.reserve[one], b.base[other]
            total[row] = v * share_sum + reserve * base_sum + reserve * v * self.smooth_sum
            tops = [
                (v * top_after, at_after),
                (reserve * top_before, at_before),
                (reserve * v * self.smooth_top, self.smooth_best),
            ]
            words, s, t = self._both(one, other)
            if len(words):
                total[row] += (s * t).sum()
                value = (s + reserve * f.base[words]) * (t + b.reserve[words] * v)
                tops.append((value.max(), int(words[value.argmax()])))
            best[row] = max(tops)[1]
        return joint / total, best == word

    def _both(self, left: int, right: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Words seen both after `left` and before `right`, with their two shares."""
        f = self.forward
        here, there = (
            slice(f.rows[left], f.rows[left + 1]),
            slice(self.columns[right], self.columns[right + 1]),
        )
        a, b = f.right[here], self.by_right[0][there]
        if not len(a) or not len(b):
            return a[:0], a[:0], a[:0]
        if len(a) <= len(b):
            at = np.minimum(np.searchsorted(b, a), len(b) - 1)
            hit = b[at] == a
            return a[hit], f.shares[here][hit], self.by_right[1][there][at[hit]]
        at = np.minimum(np.searchsorted(a, b), len(a) - 1)
        hit = a[at] == b
        return b[hit], f.shares[here][at[hit]], self.by_right[1][there][hit]


def _discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2), where n1 and n2 pairs were seen once and twice: the leaving-one-out estimate of Ney et al."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return min(max(once / (once + 2 * twice), 0.1), 0.95) if once else 0.75


def count(ids: np.ndarray, documents: np.ndarray, vocab_size: int) -> bytes:
    """Neighbours in the documents of a shard, for `measure`: left * V + right of each, in ascending order.

    Args:
        ids: [n], original tokens of all documents, one after the other.
        documents: int64[d+1], where each begins in them.
        vocab_size: V.
    """
    dtype = _key_type(vocab_size)
    keys = ids[:-1].astype(dtype) * dtype.type(vocab_size) + ids[1:].astype(dtype)
    return np.sort(np.delete(keys, documents[1:-1] - 1)).tobytes()


def _key_type(vocab_size: int) -> np.dtype:
    return np.dtype("<u4" if vocab_size**2 <= 2**32 else "<u8")  # half the bytes sort in half the time


def _merged(counted: list[bytes], vocab_size: int) -> Pairs:
    """The neighbours of several shards."""
    dtype = _key_type(vocab_size)
    return _counts(np.concatenate([np.zeros(0, dtype), *(np.frombuffer(part, dtype) for part in counted)]))


def _counts(keys: np.ndarray) -> Pairs:
    """Distinct keys in ascending order, and how often each is there. Sorted runs are merged, not sorted anew."""
    keys = np.sort(keys, kind="stable")
    last = np.flatnonzero(np.append(keys[1:] != keys[:-1], True)[: len(keys)])
    return keys[last], np.diff(last, prepend=-1)


def _masked(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left neighbour, original token and right neighbour of the masked tokens: int64[m] each."""
    found = [np.zeros((3, 0), np.int64)]
    for path in paths:
        shard = open_shard(path)
        for first in range(0, shard.num_records, _BLOCK):
            records = shard.read(np.arange(first, min(first + _BLOCK, shard.num_records)))
            ids = restore(records).astype(np.int64)
            rows, slots = np.nonzero(records["masked_lm_weights"])
            at = records["masked_lm_positions"][rows, slots]
            found.append(np.stack([ids[rows, at - 1], ids[rows, at], ids[rows, at + 1]]))
    every = np.concatenate(found, axis=1)
    step = max(1, -(-every.shape[1] // _MAX_SCORED))
    return every[0, ::step], every[1, ::step], every[2, ::step]
