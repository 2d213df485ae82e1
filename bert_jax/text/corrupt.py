"""The one place where a token is chosen or replaced.

Preparation, dynamic masking and evaluation all call `corrupt`. Random numbers are a function of one 64-bit
key a row, made by `row_keys` from what the row is (seed, shard, record, epoch) and never from when it was
reached: a row is corrupted alike alone and in any block, on any number of workers or hosts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import lru_cache
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
        int16[n,T] (int32 where T is above 32,767): the place of the unit's first token, and -1 where the token
        may never be chosen.

    Raises:
        ValueError: "word" without word starts.
    """
    barred = _is_special(ids, special)
    places = np.arange(ids.shape[1], dtype=np.int16 if ids.shape[1] <= 32_767 else np.int32)
    if unit == "token":
        return places | np.negative(barred.astype(places.dtype))  # all bits set, -1, where barred
    if word_start is None:
        raise ValueError("whole words need word starts")
    # A segment may begin in the middle of a word: what follows a special token begins a unit.
    begins = word_start | barred
    begins[:, 1:] |= barred[:, :-1]
    begins[:, 0] = True
    units = np.maximum.accumulate(begins * places, axis=1)
    units[barred] = -1
    return units


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
        ids: int32[n,T], original ids; T is at most 65,536.
        units: int[n,T] from `units_of` with the rule's unit.
        special: the mask id, and what is never drawn.
        vocab_size: V.
        rule: see `Rule`.
        keys: uint64[n] from `row_keys`, the only source of randomness.

    Returns:
        Corrupted; the arguments are left as they are.
    """
    n = len(ids)
    done = Corrupted(
        np.array(ids, np.int32, order="C"),
        np.zeros((n, rule.cap), np.int32),
        np.zeros((n, rule.cap), np.int32),
        np.zeros((n, rule.cap), np.float32),
        np.zeros(n, np.int32),
        np.zeros(n, np.int32),
    )
    ordinary = _ordinary(vocab_size, special)
    for first in range(0, n, _BLOCK):
        rows = slice(first, first + _BLOCK)
        eligible = units[rows] >= 0
        counts = eligible.view(np.uint8).sum(1, dtype=units.dtype)  # several times faster than count_nonzero by rows
        wanted = np.maximum(np.floor(rule.rate * counts + uniform(keys[rows], 0)), counts > 0).astype(np.int32)
        fitted = np.minimum(wanted, rule.cap)
        if rule.unit == "token":
            positions = _choose_tokens(units[rows], fitted, rule.cap, keys[rows])
        else:
            positions = _choose_units(units[rows], eligible, fitted, rule.cap, keys[rows])
        done.wanted[rows], done.fitted[rows] = wanted, fitted
        _replace(positions, ordinary, special, rule, keys[rows], _views(done, rows))
    return done


@lru_cache(maxsize=8)
def _ordinary(vocab_size: int, special: Special) -> np.ndarray:
    """All ids that are not special, int32[V - 5]; read only."""
    ids = np.delete(np.arange(vocab_size, dtype=np.int32), special_ids(special))
    ids.flags.writeable = False
    return ids


_BLOCK = 512  # rows whose arrays fit into a core's cache; each row's result is its own, so this changes no byte


def _views(done: Corrupted, rows: slice) -> Corrupted:
    return Corrupted(*(getattr(done, field.name)[rows] for field in fields(done)))


def _choose_tokens(units: np.ndarray, fitted: np.ndarray, cap: int, keys: np.ndarray) -> np.ndarray:
    """Places of `fitted` random eligible tokens a row, ascending, T in unused slots: int32[n,P]."""
    n, length = units.shape
    order = _order(keys, length, units)
    slots = min(cap, length)
    if slots < length:
        order.partition(slots - 1, axis=1)
    drawn = order[:, :slots].copy()
    drawn.sort(axis=1)
    places = (drawn & _place_mask(length)).astype(np.int32)
    np.maximum(places, np.int32(length) * (np.arange(slots) >= fitted[:, None]), out=places)
    places.sort(axis=1)
    return places if slots == cap else np.pad(places, ((0, 0), (0, cap - slots)), constant_values=length)


def _choose_units(
    units: np.ndarray, eligible: np.ndarray, fitted: np.ndarray, cap: int, keys: np.ndarray
) -> np.ndarray:
    """Like `_choose_tokens`, by units: taken in random order, each one passed over that no longer fits."""
    n, length = units.shape
    flat = units + np.arange(n, dtype=np.int64)[:, None] * length
    sizes = np.bincount(flat[eligible], minlength=n * length).reshape(n, length)
    order = _order(keys, length)
    order[sizes == 0] |= ~_place_mask(length)  # last, and harmless when taken: no token has such a unit
    # Nearly every row has what it needs after a few more units than it has slots; the others go on to the end.
    taken = np.zeros((n, length), bool)
    slots = min(2 * cap, length)
    first = order if slots == length else np.partition(order, slots - 1, axis=1)[:, :slots]
    left = _take(np.sort(first, axis=1), sizes, fitted, taken)
    unfilled = np.flatnonzero(left)
    if len(unfilled) and slots < length:
        again = np.zeros((len(unfilled), length), bool)
        _take(np.sort(order[unfilled], axis=1), sizes[unfilled], fitted[unfilled], again)
        taken[unfilled] = again
    rows, columns = np.nonzero(taken.ravel()[np.where(eligible, flat, 0)] & eligible)
    count = np.bincount(rows, minlength=n)
    places = np.full((n, cap), length, np.int32)
    places[rows, np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)] = columns
    return places


def _take(order: np.ndarray, sizes: np.ndarray, fitted: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Marks in `taken` bool[n,T] the units of the sorted `order` that fit; returns what is left to take, int[n]."""
    place = (order & _place_mask(sizes.shape[1])).astype(np.int64)
    # one column of the order after the other, so each is laid out in one piece
    size = np.take_along_axis(sizes, place, axis=1).T.copy()
    fits = np.zeros(size.shape, bool)
    left = fitted.astype(np.int64)
    for column, tokens in enumerate(size):
        np.less_equal(tokens, left, out=fits[column])
        left -= tokens * fits[column]
        if not left.any():
            break
    np.put_along_axis(taken, place, fits.T, axis=1)
    return left


def _order(keys: np.ndarray, length: int, columns: np.ndarray | None = None) -> np.ndarray:
    """Random numbers with their column in the lowest bits, uint32[n,T]: sorted, they are a random order.

    Of given `columns`, int[n,T], those that are -1 come last: all their bits are set.

    Two are equal above the column's bits once in 2^(32 - bits) cases, and then the lower column comes first. It
    matters only where the choice ends between the two: at T = 512 less than once in ten million rows and places.
    """
    words = mix(keys[:, None] + np.arange(2, 2 + (length + 1) // 2, dtype=np.uint64) * _GOLDEN)
    order = words.astype("<u8", copy=False).view("<u4")[:, :length]  # the lower half first on every machine
    order &= ~_place_mask(length)
    order |= np.arange(length, dtype=np.uint32) if columns is None else columns.astype(np.int32).view(np.uint32)
    return order


def _place_mask(length: int) -> np.uint32:
    return np.uint32((1 << (length - 1).bit_length()) - 1)


def _replace(
    positions: np.ndarray,
    ordinary: np.ndarray,
    special: Special,
    rule: Rule,
    keys: np.ndarray,
    done: Corrupted,
) -> None:
    """Writes labels and replacements of int32[n,P] chosen positions (T: none) into `done`, which has the ids."""
    n, length = done.ids.shape
    used = positions < length
    done.weights[:] = used
    np.multiply(positions, used, out=done.positions)
    # chosen tokens by one index each, which is several times faster than by masks or by pairs
    slots = np.flatnonzero(used)
    flat = (positions + length * np.arange(n)[:, None]).ravel()[slots]
    ids = done.ids.reshape(-1)
    labels = ids[flat]
    done.labels.reshape(-1)[slots] = labels
    # one word a token: the die from its upper half, the replacement from its lower one
    words = mix(keys[:, None] + (positions + (length + 3)).astype(np.uint64) * _GOLDEN).ravel()[slots]
    die = words >> _HALF
    drawn = ordinary.take((((words & _LOW) * np.uint64(len(ordinary))) >> _HALF).view(np.int64))
    # a die is below a share of 2^32 if it is below that rounded up, and a double holds the product exactly
    share = rule.mask_share + rule.random_share
    changed, masked = die < np.uint64(ceil(share * 2.0**32)), die < np.uint64(ceil(rule.mask_share * 2.0**32))
    # sums and products, because np.where takes long to follow random conditions
    now = labels + (drawn - labels) * changed
    ids[flat] = now + (np.int32(special.mask) - now) * masked


_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


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
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)  # from here on in place, so that less memory passes through the cache
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def special_ids(special: Special) -> np.ndarray:
    """The five special ids as int32[5], in the order pad, unk, cls, sep, mask."""
    return np.array([special.pad, special.unk, special.cls, special.sep, special.mask], np.int32)


def _is_special(ids: np.ndarray, special: Special) -> np.ndarray:
    barred = np.zeros(ids.shape, bool)
    for number in special_ids(special).tolist():  # numbers of Python leave the ids their dtype
        barred |= ids == number
    return barred
