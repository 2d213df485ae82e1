"""Rows of a task as batches of few shapes: several sequences in a row, attention kept inside each.

A batch holds `input_ids segment_ids position_ids sequence_ids` int32[B, T] as everywhere, or in their place `features`
float32[B, R, L, D], what the head reads, computed once. Beside them, R items a row:
    spans int32[B, R, K, 2]              which tokens each item is read from
    {term}_labels, {term}_weights [B, R] what it should be, and 1 where that counts
and for families that compare items, or tokens, with each other:
    groups int32[N, C], group_weights float32[N, C]    items of the batch that stand together, by their flat number
    choice_labels, choice_weights [N]                  which of a group is right
    start_labels end_labels start_weights end_weights [B, R], by sequence, tokens of the row
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.rows import ROW, packed, row_length
from bert_jax.tasks.encoding import TaskRow

GRID = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)  # of rows: each shape is compiled once
SHORTEST = 8  # a row of T tokens holds T / 8 sequences at most

Arrays = dict[str, np.ndarray]
Heights = Mapping[int, tuple[int, ...]]  # tokens of a row → how many rows a batch may have, ascending


@dataclass(frozen=True)
class TaskBatch:
    """Arrays for the network, and where each row's items are: (number of the task row, row, first item)."""

    arrays: Arrays
    places: list[tuple[int, int, int]]
    examples: int


def grid(count: int) -> int:
    """The next size of the grid; beyond it multiples of 16."""
    return next((size for size in GRID if size >= count), -(-count // 16) * 16)


def units(rows: Sequence[TaskRow], family: str) -> list[list[int]]:
    """What stands in a batch together: all texts of an example where they are compared, else each row by itself."""
    if family not in ("choice", "embedding"):
        return [[number] for number in range(len(rows))]
    found: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        found.setdefault(row.example, []).append(number)
    return list(found.values())


def epoch_units(rows: Sequence[TaskRow], family: str, batch: int, seed: int, epoch: int) -> list[list[list[int]]]:
    """The batches of an epoch as units of rows, in an order of its own; the last one may be smaller."""
    parts = units(rows, family)
    order = np.random.default_rng((seed, epoch)).permutation(len(parts))
    return [[parts[place] for place in order[first : first + batch]] for first in range(0, len(parts), batch)]


def train_batches(
    rows: Sequence[TaskRow], family: str, batch: int, seed: int, epoch: int, pad: int, heights: Heights | None = None
) -> Iterator[TaskBatch]:
    """An epoch: all rows, `batch` units at a time, in shapes that `heights` allows."""
    for chosen in epoch_units(rows, family, batch, seed, epoch):
        yield layout(rows, chosen, family, pad, batch, heights)


def heights_of(rows: Sequence[TaskRow], family: str, batch: int, seed: int, epochs: int) -> Heights:
    """For each length of rows in these epochs two numbers of rows at most: a shape costs seconds to compile.

    They are the largest that is needed, and the one below it that leaves the least padding in all.
    """
    needed: dict[int, Counter[int]] = {}
    for epoch in range(epochs):
        for chosen in epoch_units(rows, family, batch, seed, epoch):
            length, shared = _shared([len(rows[number].ids) for unit in chosen for number in unit])
            needed.setdefault(length, Counter())[grid(len(shared))] += 1
    found = {}
    for length, counts in needed.items():
        most = max(counts)
        cost = {low: sum(n * (low if size <= low else most) for size, n in counts.items()) for low in counts}
        found[length] = tuple(sorted({min(cost, key=lambda low: (cost[low], low)), most}))
    return found


def all_batches(rows: Sequence[TaskRow], family: str, tokens: int, pad: int) -> Iterator[TaskBatch]:
    """All rows, those of similar length beside each other."""
    parts = sorted(units(rows, family), key=lambda unit: max(len(rows[number].ids) for number in unit))
    chosen: list[list[int]] = []
    held = 0
    for unit in parts:
        size = sum(len(rows[number].ids) for number in unit)
        if chosen and held + size > tokens:
            yield layout(rows, chosen, family, pad, 0)
            chosen, held = [], 0
        chosen.append(unit)
        held += size
    if chosen:
        yield layout(rows, chosen, family, pad, 0)


# ---------------------------------------------------------------------------------------------------------- layout


def layout(
    rows: Sequence[TaskRow],
    chosen: Sequence[Sequence[int]],
    family: str,
    pad: int,
    batch: int,
    heights: Heights | None = None,
) -> TaskBatch:
    """These units in packed rows.

    Args:
        chosen: units, as numbers of rows.
        batch: groups are padded to so many; 0: as the grid has it.
        heights: numbers of rows to choose from; others are as the grid has them.
    """
    numbers = [number for unit in chosen for number in unit]
    length, shared = _shared([len(rows[number].ids) for number in numbers])
    slots = max(length // SHORTEST, 1)
    allowed = (heights or {}).get(length, ())
    height = next((size for size in allowed if size >= len(shared)), grid(len(shared)))
    most = length if family in ("tagging", "intent_slots") else slots
    width = rows[numbers[0]].spans.shape[1]
    arrays = _empty(rows[numbers[0]], family, (height, length), most, width, pad)
    places: list[tuple[int, int, int]] = []
    flat: dict[int, int] = {}
    for row, members in enumerate(shared):
        start = item = 0
        for slot, member in enumerate(members):
            one = rows[numbers[member]]
            here = (row, slice(start, start + len(one.ids)))
            arrays["input_ids"][here] = one.ids
            arrays["segment_ids"][here] = one.segments
            arrays["position_ids"][here] = np.arange(len(one.ids))
            arrays["sequence_ids"][here] = slot + 1
            read = (row, slice(item, item + len(one.items)))
            arrays["spans"][read] = one.spans + start
            _put_labels(arrays, one, family, read, start)
            places.append((numbers[member], row, item))
            flat[numbers[member]] = row * most + item
            start += len(one.ids)
            item += len(one.items)
    _group(arrays, rows, chosen, family, flat, batch)
    return TaskBatch(arrays, places, len(chosen))


def _shared(lengths: Sequence[int]) -> tuple[int, list[list[int]]]:
    """The length of rows, and which of the sequences of these lengths share one."""
    length = max(row_length(max(lengths)), min(ROW, row_length(sum(lengths))))
    return length, packed(lengths, length, max(length // SHORTEST, 1))


def features_batch(
    rows: Sequence[TaskRow], features: Sequence[np.ndarray], chosen: Sequence[Sequence[int]], family: str, batch: int
) -> TaskBatch:
    """As `layout`, but with what the head reads in place of tokens: all items in one row.

    Args:
        features: of each task row float32[r, L, D]; of qa float32[n, L, D], a row of the batch each.
    """
    numbers = [number for unit in chosen for number in unit]
    tokens = family == "qa"
    sizes = [len(features[number]) for number in numbers]
    shape = (grid(len(numbers)), row_length(max(sizes))) if tokens else (1, grid(sum(sizes)))
    arrays = _labels(rows[numbers[0]], family, (shape[0], 1) if tokens else shape)
    arrays["features"] = np.zeros((*shape, *features[numbers[0]].shape[1:]), np.float32)
    if tokens:
        arrays["sequence_ids"] = np.zeros(shape, np.int32)
    places: list[tuple[int, int, int]] = []
    flat: dict[int, int] = {}
    item = 0
    for count, number in enumerate(numbers):
        row, first = (count, 0) if tokens else (0, item)
        arrays["features"][row, first : first + len(features[number])] = features[number]
        if tokens:
            arrays["sequence_ids"][row, : len(features[number])] = 1
        read = (row, slice(first, first + len(rows[number].items)))
        _put_labels(arrays, rows[number], family, read, 0)
        places.append((number, row, first))
        flat[number] = row * shape[1] + first
        item += len(rows[number].items)
    _group(arrays, rows, chosen, family, flat, batch)
    return TaskBatch(arrays, places, len(chosen))


def _empty(example: TaskRow, family: str, shape: tuple[int, int], most: int, width: int, pad: int) -> Arrays:
    names = ("segment_ids", "position_ids", "sequence_ids")
    arrays = {"input_ids": np.full(shape, pad, np.int32)} | {name: np.zeros(shape, np.int32) for name in names}
    arrays["spans"] = np.zeros((shape[0], most, width, 2), np.int32)
    arrays["spans"][..., 1] = 1  # a span of nothing has no mean
    return arrays | _labels(example, family, (shape[0], most))


def _labels(example: TaskRow, family: str, shape: tuple[int, int]) -> Arrays:
    arrays: Arrays = {}
    for term, values in example.targets.items() if family != "choice" else ():
        arrays[f"{term}_labels"] = np.zeros(shape, values.dtype)
        arrays[f"{term}_weights"] = np.zeros(shape, np.float32)
    return arrays


def _put_labels(arrays: Arrays, row: TaskRow, family: str, read: tuple[int, slice], start: int) -> None:
    if family == "choice":
        return
    for term, values in row.targets.items():
        known = np.isfinite(values) if values.dtype.kind == "f" else values >= 0
        moved = values + start if family == "qa" else values
        arrays[f"{term}_labels"][read] = np.where(known, moved, 0)
        arrays[f"{term}_weights"][read] = known


def _group(
    arrays: Arrays,
    rows: Sequence[TaskRow],
    chosen: Sequence[Sequence[int]],
    family: str,
    flat: dict[int, int],
    batch: int,
) -> None:
    if family not in ("choice", "embedding"):
        return
    count = batch or grid(len(chosen))
    widest = max(2, *(len(unit) for unit in chosen))
    arrays["groups"] = np.zeros((count, widest), np.int32)
    arrays["group_weights"] = np.zeros((count, widest), np.float32)
    for number, unit in enumerate(chosen):
        arrays["groups"][number, : len(unit)] = [flat[row] for row in unit]
        arrays["group_weights"][number, : len(unit)] = 1
    if family == "choice":
        gold = np.array([rows[unit[0]].targets["choice"][0] for unit in chosen] + [-1] * (count - len(chosen)))
        arrays["choice_labels"] = np.maximum(gold, 0).astype(np.int32)
        arrays["choice_weights"] = (gold >= 0).astype(np.float32)
