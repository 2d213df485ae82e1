"""The one place where a token is chosen or replaced.

Preparation, dynamic masking and evaluation all call `corrupt`. Random numbers are a function of one 64-bit
key a row, made by `row_keys` from what the row is (seed, shard, record, epoch) and never from when it was
reached: a row is corrupted alike alone and in any block, on any number of workers or hosts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bert_jax.text.tokenizer import Special


@dataclass(frozen=True)
class Rule:
    """How rows are corrupted.

    Attributes:
        rate: expected share of the eligible tokens that are chosen.
        unit: "token", or "word" to choose all tokens of a word or none.
        mask_share: share of the chosen tokens that become the mask token.
        random_share: share of the chosen tokens that become a random ordinary token; the rest are kept.
        cap: predictions a row at most (P).
    """

    cap: int
    rate: float = 0.15
    unit: str = "token"
    mask_share: float = 0.8
    random_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1 or self.cap < 1 or self.unit not in ("token", "word"):
            raise ValueError(f"a rule needs 0 < rate < 1, cap >= 1 and unit token or word: {self}")
        if self.mask_share < 0 or self.random_share < 0 or self.mask_share + self.random_share > 1:
            raise ValueError(f"mask_share and random_share must be shares of one whole: {self}")


@dataclass(frozen=True)
class Corrupted:
    """ids int32[n,T]; positions, labels int32[n,P] (ascending, 0 if unused); weights float32[n,P] (1 or 0).

    `wanted` int32[n] is what the rate asked for before the cap; `fitted` int32[n] what the cap left of it. A
    row holds fewer than `fitted` choices only where no remaining word was short enough.
    """

    ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    wanted: np.ndarray
    fitted: np.ndarray


def predictions_for(length: int, rate: float = 0.15) -> int:
    """Predictions a row: least even number to hold 99 % of what full rows ask for (20 at 128, 76 at 512).

    Three tokens of a full row are special, so `rate * (length - 3)` are asked for on average. Word-wise
    choice asks for the same number. What does not fit is counted, see `Corrupted.wanted`.
    """
    return 2 * max(1, ceil(0.99 * rate * (length - 3) / 2))


def units_of(ids: np.ndarray, word_start: np.ndarray | None, special: Special, unit: str) -> np.ndarray:
    """Numbers the unit of every token: tokens with one number are chosen together.

    Args:
        ids: int32[n,T], original ids.
        word_start: bool[n,T], needed for "word" only.
        special: its five ids, [UNK] among them, are never eligible.
        unit: "token" or "word".

    Returns:
        int32[n,T] in 0..T-1, and -1 where the token may never be chosen.

    Raises:
        ValueError: "word" without word starts.
    """
    barred = _is_special(ids, special)
    if unit == "token":
        units = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    else:
        if word_start is None:
            raise ValueError("whole words need word starts")
        # A segment may begin in the middle of a word: what follows a special token begins a unit.
        begins = word_start | barred
        begins[:, 1:] |= barred[:, :-1]
        begins[:, 0] = True
        units = np.cumsum(begins, axis=1, dtype=np.int32) - 1
    return np.where(barred, np.int32(-1), units).astype(np.int32)


def corrupt(
    ids: np.ndarray,
    units: np.ndarray,
    special: Special,
    vocab_size: int,
    rule: Rule,
    keys: np.ndarray,
) -> Corrupted:
    """Chooses units of each row and replaces their tokens, as in the BERT paper (Devlin et al. 2019, 3.1).

    A row of m eligible tokens asks for `floor(rate * m + u)` of them, u uniform in [0, 1): exactly `rate` on
    average, where rounding to the nearest would be off by up to 3 % at common lengths. At least one is asked
    for. Units are taken in random order; one that would go beyond the number asked for is passed over, as
    google-research/bert does for whole words. A random replacement is drawn uniformly from all ids that are
    not special tokens (it may be the original).

    Args:
        ids: int32[n,T], original ids.
        units: int32[n,T] from `units_of`.
        special: the mask id, and what is never drawn.
        vocab_size: V.
        rule: see `Rule`.
        keys: uint64[n] from `row_keys`, the only source of randomness.

    Returns:
        Corrupted; the arguments are left as they are.
    """
    n, length = ids.shape
    eligible = units >= 0
    sizes = np.bincount(
        (units + np.arange(n, dtype=np.int64)[:, None] * length)[eligible], minlength=n * length
    ).reshape(n, length)
    counts = eligible.sum(1)
    wanted = np.floor(rule.rate * counts + uniform(keys, 0)).astype(np.int32)
    wanted = np.where(counts > 0, np.maximum(wanted, 1), 0).astype(np.int32)
    fitted = np.minimum(wanted, rule.cap).astype(np.int32)

    # counters of a row's stream: 0 above, then T for the order of units, T for the dice, T for the
    # replacements
    places = uniform(keys[:, None], 1 + np.arange(length))
    places[sizes == 0] = 2.0
    chosen = np.take_along_axis(_choose(places, sizes, fitted), np.maximum(units, 0), axis=1) & eligible

    rows, columns = np.nonzero(chosen)
    taken = chosen.sum(1)
    slots = np.arange(len(rows)) - np.repeat(np.cumsum(taken) - taken, taken)
    positions = np.zeros((n, rule.cap), np.int32)
    labels = np.zeros((n, rule.cap), np.int32)
    weights = np.zeros((n, rule.cap), np.float32)
    positions[rows, slots] = columns
    labels[rows, slots] = ids[rows, columns]
    weights[rows, slots] = 1.0

    dice = uniform(keys[rows], 1 + length + columns)
    ordinary = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), special_ids(special))
    drawn = ordinary[(uniform(keys[rows], 1 + 2 * length + columns) * len(ordinary)).astype(np.int64)]
    replaced = np.where(dice < rule.mask_share + rule.random_share, drawn, ids[rows, columns])
    out = ids.copy()
    out[rows, columns] = np.where(dice < rule.mask_share, np.int32(special.mask), replaced)
    return Corrupted(out, positions, labels, weights, wanted, fitted)


def row_keys(key: tuple[int, ...], *rows: np.ndarray) -> np.ndarray:
    """One 64-bit key a row, uint64[n]: from integers that all rows share and int64[n] arrays that differ.

    Example:
        >>> row_keys((1, 2), np.arange(3)).shape
        (3,)
    """
    keys = np.frombuffer(hashlib.sha256(repr(key).encode()).digest()[:8], "<u8")[0]
    for row in rows:
        keys = mix(keys + (row.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return keys


def uniform(keys: np.ndarray, counters: np.ndarray | int) -> np.ndarray:
    """float64 in [0, 1): number `counters` of each key's splitmix64 stream (Steele, Lea and Flood 2014)."""
    step = (np.asarray(counters, np.uint64) + np.uint64(1)) * _GOLDEN
    return (mix(keys + step) >> np.uint64(11)) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, uint64 → uint64: every bit of the input moves half of the output's."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def special_ids(special: Special) -> np.ndarray:
    """The five special ids as int32[5], in the order pad, unk, cls, sep, mask."""
    return np.array([special.pad, special.unk, special.cls, special.sep, special.mask], np.int32)


def _is_special(ids: np.ndarray, special: Special) -> np.ndarray:
    barred = np.zeros(ids.shape, bool)
    for number in special_ids(special):
        barred |= ids == number
    return barred


def _choose(keys: np.ndarray, sizes: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Units taken greedily in the order of their keys, never beyond `target` tokens of a row: bool[n,T]."""
    n, length = keys.shape
    order = np.argsort(keys, axis=1)
    ordered = np.asfortranarray(np.take_along_axis(sizes, order, axis=1))
    taken = np.zeros((n, length), bool, order="F")
    left = target.astype(np.int64)
    for column in range(length):
        size = ordered[:, column]
        fits = (size > 0) & (size <= left)
        taken[:, column] = fits
        left = left - size * fits
        if not left.any():
            break
    chosen = np.zeros((n, length), bool)
    np.put_along_axis(chosen, order, taken, axis=1)
    return chosen
