"""Shards of a data directory as batches: which records, read, perhaps masked anew, laid out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert_jax.data.batching import HostBatch, fill_rows, padded
from bert_jax.data.order import Order, digest
from bert_jax.errors import UserError
from bert_jax.text.corrupt import Rule, corrupt, row_keys, units_of
from bert_jax.text.features import Records, RecordSpec, check, restore
from bert_jax.text.manifest import Manifest, load_manifest
from bert_jax.text.records import Shard, open_shard


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

    def read(self, numbers: np.ndarray) -> Records:
        """The records of these numbers, in this order, ids checked.

        Raises:
            UserError: a shard is damaged, or holds ids that its tokenizer does not have.
        """
        places = np.searchsorted(self.starts, numbers, side="right") - 1
        parts: list[Records] = []
        order: list[np.ndarray] = []
        spec = RecordSpec(self.manifest.length, self.manifest.predictions)
        for place in np.unique(places):
            chosen = np.flatnonzero(places == place)
            shard = self.shards[place]
            inside = numbers[chosen] - self.starts[place]
            part = shard.read(inside)
            check(part, spec, self.manifest.vocab_size, str(shard.path), inside)
            _check_relation(part, self.manifest.relations, str(shard.path))
            parts.append(part)
            order.append(chosen)
        back = np.argsort(np.concatenate(order), kind="stable")
        shared = set.intersection(*(set(part) for part in parts))
        return {name: np.concatenate([part[name] for part in parts])[back] for name in shared}


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
    records: np.ndarray  # int64: the numbers of the whole batch's records


def train_batch(dataset: Dataset, order: Order, t: int, rows: slice, masking: str) -> TrainBatch:
    """The rows `rows` of batch t: a pure function of its arguments.

    Args:
        masking: "static" takes the masks as written; "dynamic" restores the text and masks it anew by the
            manifest's rule, with random numbers keyed by (seed, stage, epoch, record).
    """
    numbers, epochs = order.batch_records(t)
    records = dataset.read(numbers[rows])
    if masking == "dynamic":
        keys = row_keys((order.seed, order.stage), epochs[rows], numbers[rows])
        records = remask(records, dataset.manifest, keys)
    return TrainBatch(
        t, padded(records, dataset.manifest.relations), int(dataset.tokens[numbers].sum()), digest(numbers), numbers
    )


def remask(records: Records, manifest: Manifest, keys: np.ndarray) -> Records:
    """The same text with other tokens chosen: one key uint64[n] a record."""
    rule = Rule(
        cap=manifest.predictions,
        rate=manifest.settings["rate"],
        unit=manifest.settings["unit"],
        mask_share=manifest.settings["mask_share"],
        random_share=manifest.settings["random_share"],
    )
    ids = restore(records)
    if rule.unit == "word" and "word_starts" not in records:
        raise UserError("these shards have no word starts", "data.masking", "use static masks, or make them anew")
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
        template = dataset.read(np.array([start])) if not mine.size else dataset.read(mine)
        part = {name: x[: mine.size] for name, x in padded(template, dataset.manifest.relations).items()}
        yield fill_rows(part, rows.stop - rows.start)
