"""Records → the one batch layout that the model takes (docs/formats.md, "batch")."""

from __future__ import annotations

import numpy as np

HostBatch = dict[str, np.ndarray]


class Overfull(ValueError):
    """Record `record` of those given has more than its row holds."""

    def __init__(self, record: int, what: str) -> None:
        self.record, self.what = record, what
        super().__init__(f"record {record}: {what}")


def padded(
    records: dict[str, np.ndarray],
    relations: int = 2,
    length: int | None = None,
    predictions: int | None = None,
) -> HostBatch:
    """One record a row, padded to the shards' length.

    Args:
        records: as `text.records` reads them, n records of T tokens and P predictions; integers of any dtype.
        relations: labels of the segments' relation. Of more than two they come from the feature `relation`; of
            none (rows of one segment) all `nsp_weights` are 0.
        length, predictions: T and P of the rows, if less than the records'.

    Returns:
        `input_ids segment_ids position_ids sequence_ids` int32[n, T]; `mlm_positions mlm_labels` int32[n, P],
        `mlm_weights` float32[n, P]; `cls_positions nsp_labels` int32[n, 1], `nsp_weights` float32[n, 1].

    Raises:
        Overfull: a record has tokens or predictions beyond these.
    """
    t, p = slice(length), slice(predictions)
    for name, kept, what in (("input_mask", length, "tokens"), ("masked_lm_weights", predictions, "predictions")):
        if kept is not None and records[name][:, kept:].any():
            row = int(np.flatnonzero(records[name][:, kept:].any(1))[0])
            raise Overfull(row, f"more than the {kept} {what} that its row has")
    n, width = records["input_ids"][:, t].shape

    def part(name: str, columns: slice) -> np.ndarray:
        return records[name][:, columns].astype(np.int32, copy=False)

    return {
        "input_ids": part("input_ids", t),
        "segment_ids": part("segment_ids", t),
        "position_ids": np.broadcast_to(np.arange(width, dtype=np.int32), (n, width)),
        "sequence_ids": part("input_mask", t),
        "mlm_positions": part("masked_lm_positions", p),
        "mlm_labels": part("masked_lm_ids", p),
        "mlm_weights": records["masked_lm_weights"][:, p],
        "cls_positions": np.zeros((n, 1), np.int32),
        "nsp_labels": _labels(records, relations).reshape(n, 1),
        "nsp_weights": np.full((n, 1), float(relations > 0), np.float32),
    }


def packed(records: dict[str, np.ndarray], sequences: np.ndarray, predictions: int, relations: int = 2) -> HostBatch:
    """Several records a row, one after the other, and padding after the last.

    Positions restart with each record; predictions follow each other in the order of the records.

    Args:
        records: as in `padded`, in the order of the rows and of their places in them.
        sequences: bool[n, S], which places of each row have a record; a row's first ones, and the first in each.
        predictions: P of the rows.
        relations: as in `padded`.

    Returns:
        As `padded`, with S sequences a row; `sequence_ids` count from 1 in each row.

    Raises:
        Overfull: a row's records have more tokens or predictions than it holds.
    """
    length, (b, s) = records["input_ids"].shape[1], sequences.shape
    row, place = np.nonzero(sequences)
    first, later = np.flatnonzero(place == 0), np.flatnonzero(place)
    tokens = records["input_mask"].sum(1, dtype=np.int32)
    # up to the last used slot: one of weight 0 between others keeps its place
    own = records["masked_lm_weights"].shape[1]
    slots = (np.arange(1, own + 1, dtype=np.int32) * (records["masked_lm_weights"] > 0)).max(1)
    offset, slot = _before(tokens, first), _before(slots, first)
    for ends, most, what in ((offset + tokens, length, "tokens"), (slot + slots, predictions, "predictions")):
        if (ends > most).any():
            raise Overfull(int(np.flatnonzero(ends > most)[0]), f"its row has more than the {most} {what} it holds")

    # most rows have one record: it is copied whole, only the others' tokens are moved one by one
    count = tokens[later]
    source, target = _runs(length * later, count), _runs((length * row + offset)[later], count)
    batch = {}
    for name, values, following in (
        ("input_ids", records["input_ids"][first], records["input_ids"].reshape(-1)[source]),
        ("segment_ids", records["segment_ids"][first], records["segment_ids"].reshape(-1)[source]),
        ("position_ids", np.tile(np.arange(length, dtype=np.int32), (b, 1)), source % length),
        ("sequence_ids", records["input_mask"][first].astype(np.int32), np.repeat(place[later] + 1, count)),
    ):
        values.reshape(-1)[target] = following
        batch[name] = values.astype(np.int32, copy=False)
    width, count = min(predictions, own), slots[later]
    source, target = _runs(own * later, count), _runs((predictions * row + slot)[later], count)
    for name, values, shift in (
        ("mlm_positions", records["masked_lm_positions"], np.repeat(offset[later], count)),
        ("mlm_labels", records["masked_lm_ids"], 0),
        ("mlm_weights", records["masked_lm_weights"], 0),
    ):
        batch[name] = np.zeros((b, predictions), np.float32 if name == "mlm_weights" else np.int32)
        batch[name][:, :width] = values[first, :width]
        batch[name].reshape(-1)[target] = values.reshape(-1)[source] + shift
    for name, values, dtype in (
        ("cls_positions", offset, np.int32),
        ("nsp_labels", _labels(records, relations), np.int32),
        ("nsp_weights", float(relations > 0), np.float32),
    ):
        batch[name] = np.zeros((b, s), dtype)
        batch[name][sequences] = values
    return batch


def _labels(records: dict[str, np.ndarray], relations: int) -> np.ndarray:
    return records["relation" if relations > 2 else "next_sentence_labels"].astype(np.int32, copy=False)


def _runs(begin: np.ndarray, size: np.ndarray) -> np.ndarray:
    """begin[0], begin[0] + 1, …, as many as size[0], then begin[1], …: int64[sum of size]."""
    ends = np.cumsum(size)
    return np.arange(size.sum()) + np.repeat(begin - (ends - size), size)


def _before(sizes: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The sum of what stands before each record in its row: int64[n]; `first` are the rows' first records."""
    before = np.cumsum(sizes) - sizes
    return before - np.repeat(before[first], np.diff(first, append=len(sizes)))


def fill_rows(batch: HostBatch, rows: int) -> HostBatch:
    """A batch of `rows` rows, the missing ones all padding and weighing nothing."""
    missing = rows - len(batch["input_ids"])
    if not missing:
        return batch
    return {name: np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)]) for name, x in batch.items()}


def mix_rows(one: HostBatch, other: HostBatch, chosen: np.ndarray) -> HostBatch:
    """The rows of two batches as one: where `chosen`, bool[n], is true, the next one of `other`.

    Rows of fewer predictions or sequences get more that weigh nothing.
    """
    batch = {}
    for name, rows in one.items():
        width = max(rows.shape[1], other[name].shape[1])
        batch[name] = np.zeros((len(chosen), width), rows.dtype)
        for places, values in ((~chosen, rows), (chosen, other[name])):
            batch[name][places, : values.shape[1]] = values
    return batch
