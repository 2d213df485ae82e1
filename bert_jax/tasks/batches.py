"""Rows of a task as batches of few shapes: several sequences in a row, attention kept inside each.

A batch holds `input_ids segment_ids position_ids sequence_ids` int32[B, T] as everywhere, or in their place `features`
float32[B, R, L, D], what the head reads, computed once. Beside them, R items a row:
    spans int32[B, R, K, 2]              which tokens each item is read from
    {term}_labels, {term}_weights [B, R] what it should be, and how much that counts; of multi_label labels [B, R, K]
and for families that compare items, or tokens, with each other:
    groups int32[N, C], group_weights float32[N, C]    items of the batch that stand together, by their flat number
    choice_labels, choice_weights [N]                  which of a group is right
    start_labels end_labels start_weights end_weights [B, R], by sequence, tokens of the row
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from bert_jax.rows import ROW, packed, row_length
from bert_jax.tasks.encoding import TaskRow

GRID = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)  # of rows: each shape is compiled once
SHORTEST = 8  # a row of T tokens holds T / 8 sequences at most
SHORT_ROWS = (ROW, 144, 160, 176, 192, 224, 256)  # tokens of a row where texts are short
LOOKED_AT = 64  # batches of an epoch that a fit's shapes are chosen by
RARE = 0.05  # a share of batches that is worth no shape of its own, and so is this share of their tokens

Arrays = dict[str, np.ndarray]
# the usual length of rows → their length in this fit, and how many a batch may have, ascending
Shapes = Mapping[int, tuple[int, tuple[int, ...]]]


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


def balanced(rows: Sequence[TaskRow]) -> list[TaskRow]:
    """The same rows, each item counting by the inverse of how frequent its class is: N / (K · n), 1 in the mean.

    As scikit-learn's class_weight="balanced".
    """
    weights: dict[str, np.ndarray] = {}
    for term in rows[0].targets:
        known = np.concatenate([row.targets[term] for row in rows])
        counts = np.bincount(known[known >= 0])
        there = counts > 0
        weights[term] = np.where(there, counts.sum() / np.maximum(there.sum() * counts, 1), 0).astype(np.float32)
    return [
        replace(row, weights={term: weights[term][np.maximum(values, 0)] for term, values in row.targets.items()})
        for row in rows
    ]


def epoch_units(rows: Sequence[TaskRow], family: str, batch: int, seed: int, epoch: int) -> list[list[list[int]]]:
    """The batches of an epoch as units of rows, in an order of its own; the last one may be smaller.

    Each batch has one unit of each class of lengths, drawn at random: so all have nearly as many tokens, and need the
    same few shapes.
    """
    parts = units(rows, family)
    sizes = np.array([_tokens(rows, unit) for unit in parts])
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(parts))
    count = len(parts) // batch
    even, rest = np.split(order, [count * batch])
    classes = even[np.argsort(sizes[even], kind="stable")].reshape(batch, count)
    drawn = rng.permuted(classes, axis=1).T
    return [[parts[place] for place in places] for places in [*drawn, rest] if len(places)]


def train_batches(
    rows: Sequence[TaskRow], family: str, batch: int, seed: int, epoch: int, pad: int, shapes: Shapes | None = None
) -> Iterator[TaskBatch]:
    """An epoch: all rows, `batch` units at a time, in shapes that `shapes` allows."""
    for chosen in epoch_units(rows, family, batch, seed, epoch):
        yield layout(rows, chosen, family, pad, batch, shapes)


def shapes_of(rows: Sequence[TaskRow], family: str, batch: int, width: int) -> Shapes:
    """The shapes of fits with any seed, two for each length of rows at most: one costs seconds to compile.

    A batch of short texts fills few rows, and half of one too many is much: rows are as long as leaves the least to
    compute. Of two heights one is the largest that is needed, the other the one that saves most below it.

    Args:
        width: D of the encoder. Attention costs a token of a row of T about T / 2D of all else.
    """
    seen: dict[int, list[list[int]]] = defaultdict(list)
    for epoch in range(3):
        *full, last = epoch_units(rows, family, batch, 0, epoch)
        for chosen in [*full[:LOOKED_AT], last]:
            sizes = [len(rows[number].ids) for unit in chosen for number in unit]
            seen[_usual(sizes)].append(sizes)
    rare = RARE * sum(map(len, seen.values()))
    for usual, longer in pairwise(sorted(seen)):
        if len(seen[usual]) < rare:
            seen[longer] += seen.pop(usual)
    found = {}
    for usual, batches in seen.items():
        tried = []
        for length in SHORT_ROWS if usual == ROW else (usual,):
            needed = Counter(len(_shared(sizes, length)) for sizes in batches)
            most = max(needed)
            for low in needed:
                count = sum(n * (low if height <= low else most) for height, n in needed.items())
                price = count * length * (1 + length / (2 * width)) * (1 if low == most else 1 + RARE)
                tried.append((price, length, tuple(sorted({low, most}))))
        found[usual] = min(tried)[1:]
    return found


def all_batches(rows: Sequence[TaskRow], family: str, tokens: int, pad: int) -> Iterator[TaskBatch]:
    """All rows, those of similar length beside each other."""
    parts = sorted(units(rows, family), key=lambda unit: max(len(rows[number].ids) for number in unit))
    chosen: list[list[int]] = []
    held = 0
    for unit in parts:
        size = _tokens(rows, unit)
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
    shapes: Shapes | None = None,
) -> TaskBatch:
    """These units in packed rows.

    Args:
        chosen: units, as numbers of rows.
        batch: groups are padded to so many; 0: as the grid has it.
        shapes: to choose from; others are as the grid has them.
    """
    numbers = [number for unit in chosen for number in unit]
    sizes = [len(rows[number].ids) for number in numbers]
    usual, shapes = _usual(sizes), shapes or {}
    length, heights = next((shapes[each] for each in sorted(shapes) if each >= usual), (usual, ()))
    shared = _shared(sizes, length)
    slots = max(length // SHORTEST, 1)
    height = next((size for size in heights if size >= len(shared)), grid(len(shared)))
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


def _tokens(rows: Sequence[TaskRow], unit: Sequence[int]) -> int:
    return sum(len(rows[number].ids) for number in unit)


def _usual(sizes: Sequence[int]) -> int:
    """The length of rows for sequences of these sizes."""
    return max(row_length(max(sizes)), min(ROW, row_length(sum(sizes))))


def _shared(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Which of the sequences of these sizes share a row of `length` tokens."""
    return packed(sizes, length, max(length // SHORTEST, 1))


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
        arrays[f"{term}_labels"] = np.zeros((*shape, *values.shape[1:]), values.dtype)
        arrays[f"{term}_weights"] = np.zeros(shape, np.float32)
    return arrays


def _put_labels(arrays: Arrays, row: TaskRow, family: str, read: tuple[int, slice], start: int) -> None:
    if family == "choice":
        return
    for term, values in row.targets.items():
        known = np.isfinite(values) if values.dtype.kind == "f" else values >= 0
        moved = values + start if family == "qa" else values
        arrays[f"{term}_labels"][read] = np.where(known, moved, 0)
        counts = known.all(-1) if known.ndim > 1 else known
        arrays[f"{term}_weights"][read] = counts * row.weights.get(term, np.float32(1))


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
