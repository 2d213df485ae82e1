"""Sequences into rows, by their lengths alone."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from bert_jax.text.manifest import Manifest


@dataclass(frozen=True)
class Capacity:
    """What one row holds: `length` tokens (T), `predictions` (P) and `sequences` (S) at most.

    `needs` int64[T + 1] is how many predictions a sequence of each length may have, see `prediction_needs`.
    """

    length: int
    predictions: int
    sequences: int
    needs: np.ndarray


def prediction_needs(manifest: Manifest) -> np.ndarray:
    """The most predictions that a record of each length 0..T can have, int64[T + 1].

    `corrupt` asks for floor(rate · m + u) of m eligible tokens, u below 1; two tokens at least are special. As
    google-research/bert counts, round(rate · length), it is no more at rates up to 0.25.
    """
    eligible = np.maximum(np.arange(manifest.length + 1) - 2, 0)
    return np.clip(np.ceil(manifest.settings["rate"] * eligible), 1, manifest.predictions).astype(np.int64)


def packed_capacity(manifest: Manifest, histogram: np.ndarray, sequences: int) -> Capacity:
    """A row of the shards' length, for at most so many sequences.

    Predictions are a second capacity beside tokens, so none is ever lost. An empty slot costs a product with the whole
    vocabulary, empty tokens cost the encoder. So P is the least, from the shards' own by twos, with which packing takes
    at most 1/200 more rows than with slots without end; usually the shards' own.

    Args:
        histogram: int[T + 1], how many records have each length.
    """
    needs = prediction_needs(manifest)
    rows = Capacity(manifest.length, int(needs.max()) * sequences, sequences, needs)
    least = pack(histogram, rows)[1].sum()
    for predictions in range(manifest.predictions, rows.predictions, 2):
        row = Capacity(manifest.length, predictions, sequences, needs)
        if pack(histogram, row)[1].sum() <= 1.005 * least:
            return row
    return rows


def pack(histogram: np.ndarray, row: Capacity) -> tuple[np.ndarray, np.ndarray]:
    """Best fit, longest first, for all sequences of one length at once.

    Each length goes into the rows with the least room that still takes it; where there is none, into new ones. The
    work grows with the number of lengths, not of sequences (Krell et al. 2021, https://arxiv.org/abs/2107.02027).

    Args:
        histogram: int[T + 1], how many sequences have each length; none has 0.
        row: what a row holds.

    Returns:
        Patterns and how many rows have each: int32[g, S], lengths of a row's sequences and 0 where there is none,
        the longest first; int64[g].
    """
    done: list[tuple[tuple[int, ...], int]] = []
    rooms: list[int] = []  # of the open rows, ascending
    rows: dict[int, list[tuple[int, tuple[int, ...], int]]] = {}  # room → [(free predictions, pattern, rows)]

    def put(room: int, free: int, pattern: tuple[int, ...], count: int) -> None:
        if not room or not free or len(pattern) == row.sequences:
            done.append((pattern, count))
            return
        if room not in rows:
            insort(rooms, room)
            rows[room] = []
        rows[room].append((free, pattern, count))

    def take(length: int, need: int) -> tuple[int, int, tuple[int, ...], int]:
        """The open rows that fit best; closed ones without end if none do."""
        for place in range(bisect_left(rooms, length), len(rooms)):
            room = rooms[place]
            for number, (free, pattern, count) in enumerate(rows[room]):
                if free >= need:
                    del rows[room][number]
                    if not rows[room]:
                        del rows[room], rooms[place]
                    return room, free, pattern, count
        return row.length, row.predictions, (), int(histogram.sum())

    for length in np.flatnonzero(histogram)[::-1].tolist():
        left, need = int(histogram[length]), int(row.needs[length])
        while left:
            room, free, pattern, count = take(length, need)
            # as many as fit into each of these rows, then what is left over into one more
            fit = min(room // length, free // need, row.sequences - len(pattern))
            for each, filled in ((fit, left // fit), (left % fit, 1)):
                filled = min(filled, count)
                if each and filled:
                    put(room - each * length, free - each * need, pattern + (length,) * each, filled)
                    left -= each * filled
                    count -= filled
            if pattern and count:
                put(room, free, pattern, count)
    done += [(pattern, count) for groups in rows.values() for _, pattern, count in groups]
    patterns = np.zeros((len(done), row.sequences), np.int32)
    for place, (pattern, _) in enumerate(done):
        patterns[place, : len(pattern)] = pattern
    return patterns, np.array([count for _, count in done], np.int64)
