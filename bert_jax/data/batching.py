"""Records → the one batch layout that the model takes (docs/formats.md, "batch")."""

from __future__ import annotations

import numpy as np

HostBatch = dict[str, np.ndarray]


def padded(records: dict[str, np.ndarray], relations: int = 2) -> HostBatch:
    """One record a row, padded to the shards' length.

    Args:
        records: as `text.records` reads them, n records of T tokens and P predictions.
        relations: labels of the segments' relation. Of more than two they come from the feature `relation`; of
            none (rows of one segment) all `nsp_weights` are 0.

    Returns:
        `input_ids segment_ids position_ids sequence_ids` int32[n, T]; `mlm_positions mlm_labels` int32[n, P],
        `mlm_weights` float32[n, P]; `cls_positions nsp_labels` int32[n, 1], `nsp_weights` float32[n, 1].
    """
    n, length = records["input_ids"].shape
    return {
        "input_ids": records["input_ids"],
        "segment_ids": records["segment_ids"],
        "position_ids": np.broadcast_to(np.arange(length, dtype=np.int32), (n, length)),
        "sequence_ids": records["input_mask"],
        "mlm_positions": records["masked_lm_positions"],
        "mlm_labels": records["masked_lm_ids"],
        "mlm_weights": records["masked_lm_weights"],
        "cls_positions": np.zeros((n, 1), np.int32),
        "nsp_labels": records["relation" if relations > 2 else "next_sentence_labels"].reshape(n, 1),
        "nsp_weights": np.full((n, 1), float(relations > 0), np.float32),
    }


def fill_rows(batch: HostBatch, rows: int) -> HostBatch:
    """A batch of `rows` rows, the missing ones all padding and weighing nothing."""
    missing = rows - len(batch["input_ids"])
    if not missing:
        return batch
    return {name: np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)]) for name, x in batch.items()}
