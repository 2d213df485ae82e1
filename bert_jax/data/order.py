"""Which records are in batch t: a pure function of a few integers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from bert_jax.text.corrupt import mix


@dataclass(frozen=True)
class Order:
    """The endless stream of a stage's records, cut into batches.

    The stream is one shuffle of all records after the other; a batch may begin in one and end in the next, so no
    record is dropped at an epoch's end. Nothing is stored: place p of the stream is computed from its number.
    """

    records: int
    batch: int
    seed: int
    stage: int

    def batch_records(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch t as (record numbers, epochs), each int64[batch]."""
        places = np.arange(t * self.batch, (t + 1) * self.batch, dtype=np.int64)
        epochs, within = places // self.records, places % self.records
        numbers = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            numbers[chosen] = permute(within[chosen], self.records, (self.seed, self.stage, int(epoch)))
        return numbers, epochs


def digest(numbers: np.ndarray) -> str:
    """Twelve hex digits of a batch's record numbers in order: two runs saw the same data if these are equal."""
    return hashlib.sha256(np.ascontiguousarray(numbers, "<i8").tobytes()).hexdigest()[:12]


def permute(places: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Where a keyed shuffle of 0..size-1 puts what was asked for, without holding the shuffle.

    A four-round Feistel network over the next even number of bits is a permutation of a range at most four times
    as large; numbers that fall outside are sent through again until they fall inside ("cycle walking", Black and
    Rogaway 2002, section 3), which keeps it a permutation.

    Args:
        places: int64[n], each in 0..size-1.
        size: how many there are, at least 1.
        key: any integers.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    digest = hashlib.sha256(repr(key).encode()).digest()
    round_keys = np.frombuffer(digest, "<u8")

    def network(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & low
        for round_key in round_keys:
            left, right = right, left ^ (mix(right ^ round_key) & low)
        return (left << np.uint64(half)) | right

    out = network(places.astype(np.uint64))
    outside = np.flatnonzero(out >= size)
    while outside.size:
        out[outside] = network(out[outside])
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)
