"""Shards of a data directory as batches: which records, read, perhaps masked anew, laid out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np

from bert_jax.config import DataSettings, Stage
from bert_jax.data.batching import HostBatch, Overfull, fill_rows, mix_rows, packed, padded
from bert_jax.data.order import Blocks, BucketedOrder, Order, PackedOrder, Ramp, Rows, digest, interleave
from bert_jax.data.packing import packed_capacity, prediction_needs
from bert_jax.errors import UserError
from bert_jax.text.corrupt import Rule, corrupt, row_keys, units_of
from bert_jax.text.features import NAMES, SEVEN, Records, RecordSpec, check, restore
from bert_jax.text.manifest import Manifest, load_manifest
from bert_jax.text.records import Shard, open_shard, read_together


@dataclass(frozen=True)
class Dataset:
    """One split of a data directory. Records are numbered through its shards in the manifest's order."""

    manifest: Manifest
    shards: tuple[Shard, ...]
    starts: np.ndarray  # int64[shards + 1]: the number of each shard's first record
    tokens: np.ndarray  # int32[records]: tokens that are not padding

    @property
    def records(self) -> int:
        return int(self.starts[-1])

    def read(self, numbers: np.ndarray, names: Sequence[str] = NAMES, narrow: bool = False) -> Records:
        """The records of these numbers, in this order, ids checked; of our own features those that all of them have.

        Args:
            names: only these features; all of the seven among them.
            narrow: integers as they were decoded, in dtypes as small as uint8, see `text.example.decode`.

        Raises:
            UserError: a shard is damaged, or holds ids that its tokenizer does not have; names shard and record.
        """
        places = np.searchsorted(self.starts, numbers, side="right") - 1
        inside = numbers - self.starts[places]
        records = read_together(self.shards, places, inside, shared=True, names=names, narrow=narrow)
        if not len(numbers):
            return records
        try:
            self._check(records, inside, "")
        except UserError:
            for place in np.unique(places).tolist():  # once more, to name the shard
                chosen = inside[places == place]
                self._check(self.shards[place].read(chosen), chosen, str(self.shards[place].path))
            raise
        return records

    def _check(self, records: Records, inside: np.ndarray, where: str) -> None:
        spec = RecordSpec(self.manifest.length, self.manifest.predictions)
        check(records, spec, self.manifest.vocab_size, where, inside)
        _check_relation(records, self.manifest.relations, where)


def _check_relation(records: Records, relations: int, where: str) -> None:
    if relations > 2:
        found = records.get("relation")
        if found is None or ((found < 0) | (found >= relations)).any():
            raise UserError(
                f"records lack a relation from 0 to {relations - 1}, which their manifest's layout has",
                where,
                "copy the shards and manifest.json from one place, or make them anew",
            )


def open_dataset(directory: str | Path, split: str) -> Dataset:
    """Open a split ("train" or "heldout") of what `bert-data shards` made.

    Raises:
        UserError: no manifest, a shard missing or of another size than the manifest says, an empty split.
    """
    directory = Path(directory)
    manifest = load_manifest(directory)
    shards = []
    for info in manifest.splits[split].shards:
        path = directory / info.name
        if not path.exists():
            raise UserError("this shard is missing", str(path), "copy it again or make the shards anew")
        if path.stat().st_size != info.bytes:
            raise UserError(
                f"this shard has {path.stat().st_size:,} bytes where the manifest says {info.bytes:,}",
                str(path),
                "copy it again or make the shards anew",
            )
        shards.append(open_shard(path))
    counts = np.array([0, *(shard.num_records for shard in shards)], np.int64)
    if not counts.sum():
        raise UserError(f"the {split} split has no records", str(directory), "prepare more text")
    return Dataset(manifest, tuple(shards), np.cumsum(counts), np.concatenate([shard.tokens for shard in shards]))


@dataclass(frozen=True)
class TrainBatch:
    """Batch t of a stage: this process's rows, and what all of it is."""

    t: int
    rows: HostBatch
    tokens: int  # useful tokens of the whole batch, on all processes
    digest: str
    records: np.ndarray  # int64: the numbers of the whole batch's records, −1 where a row has room left


@dataclass(frozen=True, eq=False)
class Source:
    """Records in an order, and how they become rows."""

    dataset: Dataset
    order: Order | PackedOrder
    seed: int
    stage: int
    masking: str

    @property
    def row_tokens(self) -> float:
        """Useful tokens of a row, on average over an epoch."""
        return float(self.dataset.tokens.sum(dtype=np.int64)) / self.order.epoch_rows

    def layout(self, rows: Rows, length: int | None = None) -> HostBatch:
        """These rows, read and perhaps masked anew; a pure function of its arguments.

        Args:
            length: of the rows, if shorter than the shards'.
        """
        here = rows.numbers >= 0
        numbers = rows.numbers[here]
        manifest = self.dataset.manifest
        relations, dynamic = manifest.relations, self.masking == "dynamic"
        names = SEVEN + ("relation",) * (relations > 2)
        names += ("word_starts",) * (dynamic and manifest.settings["unit"] == "word")
        records = self.dataset.read(numbers, names, narrow=True)
        if dynamic:
            epochs = np.broadcast_to(rows.epochs[:, None], here.shape)[here]
            records = remask(records, manifest, row_keys((self.seed, self.stage), epochs, numbers))
        try:
            if isinstance(self.order, PackedOrder):
                return packed(records, here, self.order.capacity.predictions, relations)
            predictions = None if length is None else int(prediction_needs(manifest)[length])
            return fill_rows(padded(records, relations, length, predictions), len(here))
        except Overfull as error:
            place = int(np.searchsorted(self.dataset.starts, numbers[error.record], side="right")) - 1
            raise UserError(
                error.what,
                f"{self.dataset.shards[place].path}, record {numbers[error.record] - self.dataset.starts[place]}",
                'another program than `bert-data` wrote these shards or their index: set data.batching="padded"',
            ) from None


@dataclass(frozen=True, eq=False)
class Batches:
    """All batches of a stage: batch t is a pure function of (manifests, settings, seed, stage, t).

    Rows come from `sources[0]`, and a share of them from `sources[1]`, if there are two.
    """

    sources: tuple[Source, ...]
    ramp: Ramp
    share: float = 0.0
    buckets: BucketedOrder | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of rows that a batch may have, of which all others are multiples."""
        return self.ramp.sizes

    def steps_for(self, tokens: int) -> int:
        """How many batches hold so many useful tokens, as rows hold on average."""
        if self.buckets is not None:
            total = int(self.sources[0].dataset.tokens.sum(dtype=np.int64))
            return -(-tokens * self.buckets.epoch_batches // total)
        new, *old = [source.row_tokens for source in self.sources]
        return self.ramp.steps_for(ceil(tokens / (new + self.share * (old[0] - new) if old else new)))

    def load(self, t: int, rows_of: Callable[[int], slice] = lambda rows: slice(0, rows)) -> TrainBatch:
        """Batch t.

        Args:
            rows_of: which rows of a batch of so many this process reads; all if not given.
        """
        if self.buckets is not None:
            rows, length = self.buckets.batch_at(t)
            part = rows_of(len(rows.epochs))
            return _batch(t, [(self.sources[0], rows, part)], length)
        start, stop = self.ramp.rows_before(t), self.ramp.rows_before(t + 1)
        part = rows_of(stop - start)
        if len(self.sources) == 1:
            return _batch(t, [(self.sources[0], self.sources[0].order.rows(start, stop), part)])
        old, before = interleave(start, stop, self.share)
        parts = []
        for source, chosen, begin in zip(self.sources, (~old, old), (start - before, before), strict=True):
            rows = source.order.rows(begin, begin + int(chosen.sum()))
            # this process's rows of the batch are consecutive, so are those of each source among them
            first = int(chosen[: part.start].sum())
            parts.append((source, rows, slice(first, first + int(chosen[part].sum()))))
        return _batch(t, parts, replayed=old[part])


def _batch(
    t: int,
    parts: list[tuple[Source, Rows, slice]],
    length: int | None = None,
    replayed: np.ndarray | None = None,
) -> TrainBatch:
    """Of each source the rows of the batch, and which this process reads; `replayed`: which of the latter are the
    second source's."""
    batches = [source.layout(Rows(rows.numbers[part], rows.epochs[part]), length) for source, rows, part in parts]
    batch = batches[0]
    if replayed is not None:
        batch = mix_rows(batches[0], batches[1], replayed)
    tokens = sum(int(source.dataset.tokens[rows.numbers[rows.numbers >= 0]].sum()) for source, rows, _ in parts)
    records = np.concatenate([rows.numbers.ravel() for _, rows, _ in parts])
    return TrainBatch(t, batch, tokens, digest(records), records)


def check_alike(new: Manifest, old: Manifest, where: str) -> None:
    """Raise `UserError` unless rows of two data sets can stand in one batch."""
    for name, ours, theirs in (
        ("tokenizer", new.tokenizer[:12], old.tokenizer[:12]),
        ("length", new.length, old.length),
        ("number of relations", new.relations, old.relations),
    ):
        if ours != theirs:
            raise UserError(
                f"these records have another {name} ({theirs}) than those they are mixed with ({ours})",
                where,
                "make both with the same settings",
            )


def open_batches(
    data: DataSettings, stage: Stage, number: int, seed: int, train: Dataset, old: Dataset | None = None
) -> Batches:
    """The batches of stage `number` as the recipe asks for them.

    Args:
        train: what the stage trains on.
        old: what it replays; records of the same length as those of `train`.
    """

    def blocks(dataset: Dataset) -> Blocks:
        if dataset.tokens.max() > dataset.manifest.length:
            raise UserError(
                f"a record has {dataset.tokens.max()} tokens where the manifest says {dataset.manifest.length} at most",
                str(dataset.shards[0].path.parent),
                "copy the shards, their indexes and manifest.json from one place, or make them anew",
            )
        return Blocks(np.maximum(dataset.tokens, 1), dataset.manifest.length, seed, number)

    def source(dataset: Dataset) -> Source:
        order: Order | PackedOrder = Order(dataset.records, seed, number)
        if data.batching == "packed":
            parts = blocks(dataset)
            order = PackedOrder(parts, packed_capacity(dataset.manifest, parts.histograms.sum(0), data.sequences))
        return Source(dataset, order, seed, number, data.masking)

    ramp = Ramp(stage.batch, stage.ramp_from, stage.ramp_steps)
    buckets = BucketedOrder(blocks(train), stage.batch) if data.batching == "bucketed" else None
    sources = (source(train),) if old is None or not stage.replay else (source(train), source(old))
    return Batches(sources, ramp, stage.replay, buckets)


def remask(records: Records, manifest: Manifest, keys: np.ndarray) -> Records:
    """The same text with other tokens chosen: one key uint64[n] a record."""
    rule = Rule(
        cap=manifest.predictions,
        rate=manifest.settings["rate"],
        unit=manifest.settings["unit"],
        mask_share=manifest.settings["mask_share"],
        random_share=manifest.settings["random_share"],
    )
    if rule.unit == "word" and "word_starts" not in records:
        raise UserError("these shards have no word starts", "data.masking", "use static masks, or make them anew")
    ids = restore(records)
    units = units_of(ids, records.get("word_starts"), manifest.special, rule.unit)
    new = corrupt(ids, units, manifest.special, manifest.vocab_size, rule, keys)
    return records | {
        "input_ids": new.ids,
        "masked_lm_positions": new.positions,
        "masked_lm_ids": new.labels,
        "masked_lm_weights": new.weights,
    }


def heldout_batches(dataset: Dataset, batch: int, rows: slice) -> Iterator[HostBatch]:
    """All records once, in order, masks as written; the last batch is filled up with rows that weigh nothing."""
    for start in range(0, dataset.records, batch):
        stop = min(start + batch, dataset.records)
        mine = np.arange(min(start + rows.start, stop), min(start + rows.stop, stop))
        part = padded(dataset.read(mine), dataset.manifest.relations)
        yield fill_rows(part, rows.stop - rows.start)
