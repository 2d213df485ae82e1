"""Which records are in batch t: a pure function of a few integers and of the records' lengths."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from bert_jax.data.packing import Capacity, pack
from bert_jax.text.corrupt import mix, row_keys

BLOCK = 32_768  # records that are packed, or sorted into buckets, together


class Rows(NamedTuple):
    """Which records stand in each row, int64[n, S] with −1 where there is none, and each row's epoch, int64[n]."""

    numbers: np.ndarray
    epochs: np.ndarray


class RowOrder(Protocol):
    """An endless stream of rows, one epoch after the other; a batch takes the next ones, across an epoch's end too."""

    @property
    def epoch_rows(self) -> int:
        """Rows of an epoch; the same in each."""
        ...

    def rows(self, start: int, stop: int) -> Rows:
        """Rows `start`, …, `stop` − 1 of the stream, whatever was asked for before."""
        ...


# ------------------------------------------------------------------------------------------------- one record a row


@dataclass(frozen=True)
class Order:
    """One record a row, each epoch shuffled anew. Nothing is stored: place p is computed from its number."""

    records: int
    seed: int
    stage: int

    @property
    def epoch_rows(self) -> int:
        return self.records

    def rows(self, start: int, stop: int) -> Rows:
        places = np.arange(start, stop, dtype=np.int64)
        epochs, within = places // self.records, places % self.records
        numbers = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            numbers[chosen] = permute(within[chosen], self.records, (self.seed, self.stage, int(epoch)))
        return Rows(numbers[:, None], epochs)


# ------------------------------------------------------------------------------------- several records a row, buckets


@dataclass(frozen=True, eq=False)
class Blocks:
    """Records dealt out to blocks: block b has b, b + n, b + 2n, …, so each is a sample of all text.

    A block has the same records, so the same lengths and the same number of rows or batches, in each epoch. Place t of
    the stream is then found by division, however many epochs came before. Each epoch takes the blocks in another order.
    """

    tokens: np.ndarray  # int32[records], 1..T
    longest: int  # T
    seed: int
    stage: int
    block: int = BLOCK

    @property
    def number(self) -> int:
        return max(1, round(len(self.tokens) / self.block))

    def records(self, block: int, epoch: int) -> np.ndarray:
        """The numbers of a block's records, int64[n], in an order of this epoch's."""
        numbers = np.arange(block, len(self.tokens), self.number, dtype=np.int64)
        return numbers[shuffle(len(numbers), (self.seed, self.stage, epoch, block))]

    @cached_property
    def histograms(self) -> np.ndarray:
        """int64[blocks, T + 1]: how many records of each block have each length."""
        parts = (self.tokens[block :: self.number] for block in range(self.number))
        return np.stack([np.bincount(tokens, minlength=self.longest + 1) for tokens in parts])

    def spans(self, sizes: np.ndarray, start: int, stop: int) -> Iterator[tuple[int, int, slice]]:
        """Where places start..stop−1 of the stream lie: (epoch, block, places in the block), in order.

        Args:
            sizes: int64[blocks], places in each block.
        """
        total = int(sizes.sum())
        while start < stop:
            epoch, within = divmod(start, total)
            order = permute(np.arange(self.number), self.number, (self.seed, self.stage, epoch))
            ends = np.cumsum(sizes[order])
            until = min(stop - epoch * total, total)
            first = int(np.searchsorted(ends, within, side="right"))
            for place in range(first, int(np.searchsorted(ends, until, side="left")) + 1):
                begin = int(ends[place] - sizes[order[place]])
                low, high = max(within, begin), min(until, int(ends[place]))
                if low < high:
                    yield epoch, int(order[place]), slice(low - begin, high - begin)
            start = epoch * total + until


@dataclass(frozen=True, eq=False)
class PackedOrder:
    """Several records a row, by their lengths alone: each block is packed for itself."""

    blocks: Blocks
    capacity: Capacity

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64[blocks]: rows of each block."""
        return np.array([pack(lengths, self.capacity)[1].sum() for lengths in self.blocks.histograms], np.int64)

    @property
    def epoch_rows(self) -> int:
        return int(self.sizes.sum())

    def rows(self, start: int, stop: int) -> Rows:
        spans = list(self.blocks.spans(self.sizes, start, stop))
        numbers = [self._block(epoch, block)[places] for epoch, block, places in spans]
        epochs = [np.full(places.stop - places.start, epoch) for epoch, _, places in spans]
        if not spans:  # of two sources one may have no row in a small batch
            return Rows(np.empty((0, self.capacity.sequences), np.int64), np.empty(0, np.int64))
        return Rows(np.concatenate(numbers), np.concatenate(epochs))

    @cached_property
    def _block(self) -> Callable[[int, int], np.ndarray]:
        return lru_cache(maxsize=2)(self._pack_block)  # neighbouring batches share one

    def _pack_block(self, epoch: int, block: int) -> np.ndarray:
        """The rows of a block in this epoch, int64[rows, S]: the same lengths together, other records."""
        patterns, counts = pack(self.blocks.histograms[block], self.capacity)
        records = self.blocks.records(block, epoch)
        lengths = np.repeat(patterns, counts, axis=0)
        rows = np.full(lengths.shape, -1, np.int64)
        # the places for sequences of each length get the records of that length
        places = np.flatnonzero(lengths)
        places = places[np.argsort(lengths.ravel()[places].astype(np.int16), kind="stable")]
        rows.ravel()[places] = records[np.argsort(self.blocks.tokens[records].astype(np.int16), kind="stable")]
        return rows[shuffle(len(rows), (self.blocks.seed, self.blocks.stage, epoch, block, 1))]


@dataclass(frozen=True, eq=False)
class BucketedOrder:
    """One record a row, in batches of one length each: T / 4, T / 2 or T, with 4, 2 or 1 times as many rows.

    So all batches have as many tokens, padding counted, and whatever divides the rows of one divides those of all. What
    is left of a block when a shorter length's batches are full goes into the next longer ones. The last batches of a
    block share what is left among them; their empty rows weigh nothing.
    """

    blocks: Blocks
    batch: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """Ascending; the last one is T."""
        return tuple(sorted({-(-self.blocks.longest // parts) for parts in (4, 2, 1)}))

    def batch_rows(self, length: int) -> int:
        """Rows of a batch of this length."""
        return self.batch * (self.blocks.longest // length)

    @cached_property
    def _full(self) -> np.ndarray:
        """int64[blocks, lengths]: batches of each length; the longest's take what is left."""
        bounds = [0, *(length + 1 for length in self.lengths)]
        counts = np.add.reduceat(self.blocks.histograms, bounds[:-1], axis=1)
        batches = np.zeros_like(counts)
        left = np.zeros(len(counts), np.int64)
        for place, length in enumerate(self.lengths):
            have, rows = counts[:, place] + left, self.batch_rows(length)
            batches[:, place] = -(-have // rows) if length == self.blocks.longest else have // rows
            left = have - batches[:, place] * rows
        return batches

    @property
    def epoch_batches(self) -> int:
        """Batches of an epoch; the same in each."""
        return int(self._full.sum())

    def batch_at(self, t: int) -> tuple[Rows, int]:
        """Batch t, and its length."""
        ((epoch, block, places),) = self.blocks.spans(self._full.sum(1), t, t + 1)
        numbers, length = self._block(epoch, block)[places.start]
        rows = np.full((self.batch_rows(length), 1), -1, np.int64)
        rows[: len(numbers), 0] = numbers
        return Rows(rows, np.full(len(rows), epoch)), length

    @cached_property
    def _block(self) -> Callable[[int, int], list[tuple[np.ndarray, int]]]:
        return lru_cache(maxsize=2)(self._cut_block)

    def _cut_block(self, epoch: int, block: int) -> list[tuple[np.ndarray, int]]:
        """The batches of a block in this epoch: numbers int64[n] and length of each."""
        records = self.blocks.records(block, epoch)
        buckets = np.searchsorted(self.lengths, self.blocks.tokens[records])
        batches: list[tuple[np.ndarray, int]] = []
        left = records[:0]
        for place, length in enumerate(self.lengths):
            have, number = np.concatenate([left, records[buckets == place]]), int(self._full[block, place])
            if length == self.blocks.longest:
                batches += [(part, length) for part in np.array_split(have, number)] if number else []
            else:
                whole = number * self.batch_rows(length)
                batches += [(part, length) for part in have[:whole].reshape(number, self.batch_rows(length))]
                left = have[whole:]
        return [batches[i] for i in shuffle(len(batches), (self.blocks.seed, self.blocks.stage, epoch, block, 1))]


# --------------------------------------------------------------------------------------------------- rows of batch t


@dataclass(frozen=True)
class Ramp:
    """How many rows each batch has: `batch`, or for the first `steps` steps fewer.

    It begins with `first` and doubles, each size for as many steps as the others: first, 2 · first, … below `batch`,
    which is `first` times a power of two.
    """

    batch: int
    first: int = 0
    steps: int = 0

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """All sizes, ascending; `batch` is the last."""
        return (
            *(self.first << i for i in range((self.batch // (self.first or self.batch)).bit_length() - 1)),
            self.batch,
        )

    def rows_before(self, t: int) -> int:
        """Rows of batches 0..t−1."""
        levels = len(self.sizes) - 1
        begins = [self.steps * i // levels for i in range(levels)] + [self.steps] if levels else [0]
        ends = [*begins[1:], max(t, begins[-1])]
        return sum(
            size * (min(t, end) - begin) for size, begin, end in zip(self.sizes, begins, ends, strict=True) if t > begin
        )

    def steps_for(self, rows: int) -> int:
        """The least number of batches that have so many rows together."""
        ramp = self.rows_before(self.steps)
        if rows >= ramp:
            return self.steps + -(-(rows - ramp) // self.batch)
        return next(t for t in range(self.steps + 1) if self.rows_before(t) >= rows)


def interleave(start: int, stop: int, share: float) -> tuple[np.ndarray, int]:
    """Which of rows start..stop−1 come from a second stream that has this share of all, evenly spread.

    Returns:
        bool[stop − start], and how many of rows 0..start−1 do.

    Example:
        >>> interleave(4, 8, 0.25)
        (array([False, False, False,  True]), 1)
    """
    before = np.floor(np.arange(start, stop + 1) * share).astype(np.int64)
    return np.diff(before) > 0, int(before[0])


# -------------------------------------------------------------------------------------------------------- its parts


def digest(numbers: np.ndarray) -> str:
    """Twelve hex digits of a batch's record numbers in order: two runs saw the same data if these are equal."""
    return hashlib.sha256(np.ascontiguousarray(numbers, "<i8").tobytes()).hexdigest()[:12]


def shuffle(size: int, key: tuple[int, ...]) -> np.ndarray:
    """A keyed permutation of 0..size-1, int64[size], all of it: faster than `permute` where all is needed."""
    return np.argsort(row_keys(key, np.arange(size)))  # no two keys are equal: each step of row_keys is a bijection


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
