"""The record: names, dtypes and shapes of the features, and the checks that every room relies on.

The first seven features are exactly those of google-research/bert (create_pretraining_data.py), so that
either side reads the other's shards. The other three are ours; a reader ignores what it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bert_jax.errors import UserError

Records = dict[str, np.ndarray]

SEVEN = (
    "input_ids",
    "input_mask",
    "segment_ids",
    "masked_lm_positions",
    "masked_lm_ids",
    "masked_lm_weights",
    "next_sentence_labels",
)
OURS = ("word_starts", "documents", "relation")
NAMES = SEVEN + OURS
# Which list of tf.train.Feature holds it: 1 bytes, 2 floats, 3 integers.
KINDS = {name: 3 for name in NAMES} | {"masked_lm_weights": 2, "word_starts": 1}


@dataclass(frozen=True)
class RecordSpec:
    """Static sizes of a record: `length` tokens (T) and `predictions` masked slots (P)."""

    length: int
    predictions: int


def restore(records: Records) -> np.ndarray:
    """Undoes the masking: the labels go back to their positions where the weight is 1.

    Args:
        records: at least `input_ids` int32[n,T] and the three `masked_lm_*` arrays [n,P]; `check` has seen them.

    Returns:
        The original ids, int[n,T] of a dtype that holds both; the argument is left as it is.
    """
    labels, places = records["masked_lm_ids"], records["masked_lm_positions"]
    ids = np.array(records["input_ids"], np.promote_types(records["input_ids"].dtype, labels.dtype), order="C")
    n, length = ids.shape
    used = np.flatnonzero(records["masked_lm_weights"] > 0)
    # one index into all rows is several times faster than a pair of indices
    ids.reshape(-1)[(places + length * np.arange(n)[:, None]).ravel()[used]] = labels.ravel()[used]
    return ids


def check(records: Records, spec: RecordSpec, vocab_size: int, where: str, first: int = 0) -> None:
    """Refuses records that the model would misread, where they enter.

    JAX clamps an out-of-range gather silently and would train on the wrong row, so ids, segments and
    positions are compared with their bounds here.

    Args:
        records: a batch as `Shard.read` returns it.
        spec: the sizes the caller expects.
        vocab_size: ids must be below it.
        where: the shard's name, for the message.
        first: record number of row 0, for the message; an int64[n] of record numbers is taken too.

    Raises:
        UserError: naming the shard, the record and the value.
    """
    n = len(records["input_ids"])
    for name, width in _widths(spec).items():
        if records[name].shape != (n, width):
            raise UserError(
                f"{name} holds {records[name].shape[-1]} values a record where {width} are expected",
                where,
                "use the data set's own length and predictions",
            )
    bounds = {
        "input_ids": vocab_size,
        "masked_lm_ids": vocab_size,
        "masked_lm_positions": spec.length,
        "input_mask": 2,
        "segment_ids": 2,
        "next_sentence_labels": 2,
    }
    numbers = np.broadcast_to(np.asarray(first), (n,)) + (np.arange(n) if np.ndim(first) == 0 else 0)
    for name, bound in bounds.items():
        values = records[name].reshape(n, -1)
        if values.min(initial=0) < 0 or values.max(initial=0) >= bound:
            row, column = np.argwhere((values < 0) | (values >= bound))[0]
            raise UserError(
                f"{name} holds {values[row, column]} where values run from 0 to {bound - 1}",
                f"{where}, record {numbers[row]}",
                "the shard was made with another tokenizer or length: use the one named in its manifest",
            )
    padded = records["input_mask"][:, 1:] > records["input_mask"][:, :-1]
    if padded.any():
        raise UserError(
            "padding stands before a token",
            f"{where}, record {numbers[int(np.argwhere(padded)[0][0])]}",
            "tokens must come first in input_mask: write the shard again",
        )


def _widths(spec: RecordSpec) -> dict[str, int]:
    """Values a record of each two-dimensional feature."""
    return dict.fromkeys(SEVEN[:3], spec.length) | dict.fromkeys(SEVEN[3:6], spec.predictions)
