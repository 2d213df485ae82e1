"""The merges of WordPiece training, on word counts: the most frequent pair of pieces becomes a piece, again and again.

Equal counts go to the pair of lower ids, so that the result is a function of the counts alone. All words lie
end to end in NumPy arrays, a linked list of pieces; a merge touches the places of its pair only.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np

PREFIX = "##"
_SHIFT = 32  # a pair of ids is one number: the left id above, the right id below


def learn(
    words: Sequence[str],
    counts: Sequence[int],
    pieces: Sequence[str],
    size: int,
    least: int = 2,
    progress: Callable[[int], object] = lambda pieces: None,
) -> list[str]:
    """Pieces for `words`, beginning with those given.

    The same pieces as `tokenizers`' WordPieceTrainer finds where it numbers characters alike, but for one
    case: a pair that was merged and later arises anew has here its true count, there the old one added.

    Args:
        words: distinct words, none empty, of at most 2**31 characters together.
        counts: how often each stands in the text.
        pieces: distinct, among them the first character of each word, and each other character behind "##".
            Their order decides between equal counts.
        size: number of pieces to stop at.
        least: pairs seen fewer times are not merged.
        progress: called with 1 for each new piece.

    Returns:
        `pieces` and the new ones in the order of their merges; fewer than `size` where no pair is left.
    """
    found, ids = list(pieces), {piece: number for number, piece in enumerate(pieces)}
    symbols, before, after, weights = _lay_out(words, counts, ids)
    marked = np.zeros(len(symbols), bool)
    totals: dict[int, int] = {}
    places: dict[int, bytes] = {}  # int32 positions of a pair's left piece; some may be out of date
    heap: list[tuple[int, int]] = []

    def add(left: np.ndarray) -> None:
        for pair, total, where in _by_pair(left, symbols, after, weights):
            totals[pair] = total = totals.get(pair, 0) + total
            places[pair] = places.get(pair, b"") + where
            if total >= least:
                heapq.heappush(heap, (-total, pair))

    add(np.flatnonzero(after >= 0).astype(np.int32))
    while heap and len(found) < size:
        total, pair = heapq.heappop(heap)
        known = totals.get(pair, 0)
        if known != -total:  # it has changed since; where it grew, another entry stands higher
            if least <= known < -total:
                heapq.heappush(heap, (-known, pair))
            continue
        del totals[pair]
        a, b = pair >> _SHIFT, pair & (1 << _SHIFT) - 1
        first = np.frombuffer(places.pop(pair), np.int32)
        first = first[(symbols[first] == a) & (after[first] >= 0)]
        first = first[symbols[after[first]] == b]
        if a == b:
            first = _apart(first, after)
        second = after[first]
        follower = after[second]

        # The pairs around a place go; one between two places counts once.
        previous = before[first]
        marked[second] = True
        previous = previous[(previous >= 0) & ~marked[previous]]
        marked[second] = False
        for other, lost, _ in _by_pair(np.concatenate([previous, second[follower >= 0]]), symbols, after, weights):
            if other != pair:
                totals[other] -= lost
                if not totals[other]:
                    del totals[other], places[other]

        piece = found[a] + found[b].removeprefix(PREFIX)
        if (number := ids.setdefault(piece, len(found))) == len(found):
            found.append(piece)
            progress(1)
        symbols[first], symbols[second] = number, -1
        after[first] = follower
        before[follower[follower >= 0]] = first[follower >= 0]

        # New ones come, with the same care.
        previous = before[first]
        marked[first] = True
        previous = previous[(previous >= 0) & ~marked[previous]]
        marked[first] = False
        add(np.concatenate([previous, first[follower >= 0]]))
    return found


def _lay_out(words: Sequence[str], counts: Sequence[int], ids: dict[str, int]) -> tuple[np.ndarray, ...]:
    """All characters end to end: piece ids int32[n], position before and after int32[n] (-1: none), counts int64[n]."""
    lengths = np.fromiter((len(word) for word in words), np.int64, len(words))
    codes = np.frombuffer("".join(words).encode("utf-32-le"), "<u4")
    ends = np.cumsum(lengths)
    tables = np.full((2, 0x110000), -1, np.int32)
    for piece, number in ids.items():
        bare = piece.removeprefix(PREFIX)
        if len(bare) == 1:
            tables[int(piece != bare), ord(bare)] = number
    places = np.arange(len(codes), dtype=np.int32)
    before, after = places - 1, places + 1
    before[ends - lengths], after[ends - 1] = -1, -1
    symbols = tables[(before >= 0).astype(np.int8), codes]
    assert (symbols >= 0).all(), "a character without its piece"
    return symbols, before, after, np.repeat(np.asarray(counts, np.int64), lengths)


def _by_pair(left: np.ndarray, symbols: np.ndarray, after: np.ndarray, weights: np.ndarray):
    """The pairs whose left pieces stand at `left`: (pair, sum of the words' counts, the positions as bytes)."""
    if not len(left):
        return
    pairs = symbols[left].astype(np.int64) << _SHIFT | symbols[after[left]]
    order = np.argsort(pairs, kind="stable")
    pairs, left = pairs[order], left[order]
    starts = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
    sums = np.add.reduceat(weights[left], starts)
    data, at = left.tobytes(), (4 * starts).tolist()
    for pair, total, begin, end in zip(pairs[starts].tolist(), sums.tolist(), at, [*at[1:], len(data)], strict=True):
        yield pair, total, data[begin:end]


def _apart(first: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Of a piece repeated, the places to merge: from the left, none that begins within the one before."""
    kept, taken = [], -1
    for place, following in sorted(zip(first.tolist(), after[first].tolist(), strict=True)):
        if place != taken:
            kept.append(place)
            taken = following
    return np.array(kept, np.int32)
