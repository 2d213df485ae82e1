"""Which documents are gone through, how often, in which split, and which shard holds them.

Works on arrays of the spool alone: some 30 bytes a document in memory, no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.errors import UserError
from data_prep import clean, paths, sources, spool

_SHARD_BYTES = 10_000_000  # of text; decides the number of shards, so that it does not hang on the machine
_COUNTED = 30_000_000  # bytes of training text whose neighbours are counted for the reference levels
_FILE = "documents"

# One entry a document, in the order of the inputs: where its text lies, how often it is gone through, its split.
PLACE = np.dtype([("group", "<i4"), ("offset", "<i8"), ("size", "<i8"), ("copies", "<i4"), ("heldout", "?")])


@dataclass(frozen=True)
class Selection:
    """Which documents are taken. Defaults stand here only.

    Attributes:
        heldout: share of the text held out, by documents.
        weights: (source, passes) for named sources; others take one pass.
        smoothing: exponent S of the multilingual recipe: sources take part by bytes ** S; 0 leaves it.
        duplicates: passes over everything.
        shards: training shards; 0 takes one for every 10 MB of text.
    """

    heldout: float = 0.02
    weights: tuple[tuple[str, float], ...] = ()
    smoothing: float = 0.0
    duplicates: int = 1
    shards: int = 0


@dataclass(frozen=True)
class Task:
    """Shard `number` of `total` of a split: its documents among those numbered `first` to `last`-1, `bytes` of text.

    Of `counted` ones the pairs of neighbours are counted, for the reference levels.
    """

    split: str
    number: int
    total: int
    first: int
    last: int
    bytes: int
    counted: bool

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}-of-{self.total:05d}.tfrecord"


@dataclass(frozen=True)
class Plan:
    """Shards to make, and what was counted: documents read, dropped, of each source."""

    tasks: tuple[Task, ...]
    counts: dict


def make(
    groups: Sequence[spool.Group],
    summaries: Sequence[spool.Summary],
    names: Sequence[str],
    cleaning: clean.Cleaning,
    selection: Selection,
    work: str,
) -> Plan:
    """Decides over all documents of the spool, and writes the decisions into `work` for the shards.

    Args:
        groups, summaries: what the first pass read and found.
        names: of the sources, by their numbers.
        cleaning: whether copies are left out.
        selection: which documents to take.
        work: the directory that holds the spool.

    Raises:
        UserError: too few documents, or too many shards.
    """
    parts = [spool.documents(work, group) for group in groups]
    found = np.concatenate(parts) if parts else np.zeros(0, spool.DOCUMENT)
    dropped: dict[str, int] = {}
    for summary in summaries:
        for reason, count in summary.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    kept = np.ones(len(found), bool)
    if cleaning.exact:
        copies = clean.exact_copies(found["hash"])
        dropped["exact copy"] = int(copies.sum())
        kept &= ~copies
    if cleaning.near:
        # Exact copies are near ones too: counted once, as what they are.
        copies = np.zeros(len(found), bool)
        bands = [spool.bands(work, group) for group, part in zip(groups, parts, strict=True) if len(part)]
        copies[kept] = clean.near_copies(np.concatenate(bands)[kept])
        dropped["near copy"] = int(copies.sum())
        kept &= ~copies
    sizes = np.bincount(found["source"][kept], found["size"][kept], len(names)).astype(np.int64)
    present = {name: int(size) for name, size in zip(names, sizes, strict=True)}
    means = sources.copies(present, dict(selection.weights) or None, selection.smoothing or None)
    passes = np.zeros(len(found), np.int64)
    for number, name in enumerate(names):
        mine = kept & (found["source"] == number)
        passes[mine] = sources.passes(found["hash"][mine], means[name])
    heldout = _held_out(found, passes > 0, selection.heldout, dropped)
    # What is held out is gone through once: weights shape what is learned, not what it is measured on.
    passes = np.where(heldout, np.minimum(passes, 1), passes)

    places = np.zeros(len(found), PLACE)
    places["group"] = np.repeat([group.number for group in groups], [len(part) for part in parts])
    for name in ("offset", "size"):
        places[name] = found[name]
    places["copies"] = passes * selection.duplicates
    places["heldout"] = heldout
    paths.write_bytes(paths.join(work, _FILE), places.tobytes())

    tasks = []
    for split, inside, shards in (
        ("train", ~heldout & (passes > 0), selection.shards),
        ("heldout", heldout & (passes > 0), 0),
    ):
        text = found["size"] * inside
        ranges = _cut(text * passes, inside, shards)
        counted = _spread(len(ranges), _COUNTED / int(text.sum())) if split == "train" else set()
        for number, (first, last) in enumerate(ranges):
            size = int(text[first:last].sum())
            tasks.append(Task(split, number, len(ranges), first, last, size, number in counted))
    by_source = {
        name: {
            "documents": int((found["source"] == number).sum()),
            "bytes": int(found["size"][found["source"] == number].sum()),
            "passes": round(float(means[name]), 4),
        }
        for number, name in enumerate(names)
    }
    counts = {
        "documents": len(found) + sum(sum(summary.dropped.values()) for summary in summaries),
        "dropped": dict(sorted(dropped.items())),
    }
    if any(names):
        counts["sources"] = by_source
    return Plan(tuple(tasks), counts)


def read(work: str, task: Task) -> np.ndarray:
    """The entries `PLACE` of the documents numbered task.first to task.last-1."""
    size = PLACE.itemsize
    return np.frombuffer(paths.read_range(paths.join(work, _FILE), task.first * size, task.last * size), PLACE)


def _spread(shards: int, share: float) -> set[int]:
    """Numbers of this share of the shards, one at least, evenly apart: inputs often come sorted by language."""
    taken = max(1, min(shards, int(shards * share)))
    return {place * shards // taken for place in range(taken)}


def _held_out(found: np.ndarray, kept: np.ndarray, share: float, dropped: dict[str, int]) -> np.ndarray:
    """bool[d]: documents of the lowest hashes, until they hold their share of the text, two texts at least."""
    distinct = np.unique(found["hash"][kept])
    if len(distinct) < 4:
        texts = f"{len(distinct)} different document" + "s" * (len(distinct) != 1)
        lost = ", ".join(f"{count:,} as {reason}" for reason, count in dropped.items() if count)
        raise UserError(
            f"the input holds {texts}{f' when others are dropped ({lost})' if lost else ''}, at least 4 are needed "
            "(2 of them held out)",
            remedy="drop fewer, or give more text" if lost else "give more text, or end documents with a blank line",
        )
    weights, keys = found["size"] * kept, found["hash"]
    order = np.argsort(keys, kind="stable")
    reached = int(np.searchsorted(np.cumsum(weights[order]), share * weights.sum()))
    border = min(max(keys[order[min(reached, len(order) - 1)]], distinct[2]), distinct[-2])
    return kept & (keys < border)


def _cut(weights: np.ndarray, chosen: np.ndarray, shards: int) -> list[tuple[int, int]]:
    """Ranges of documents of about equal bytes, with at least two chosen documents each."""
    places = np.flatnonzero(chosen)
    wanted = shards or max(1, min(round(int(weights.sum()) / _SHARD_BYTES), len(places) // 2))
    if wanted > len(places) // 2:
        raise UserError(
            f"{len(places)} documents do not fill {wanted} shards with two each", "--shards", "ask for fewer"
        )
    total, ends = np.cumsum(weights[places]), []
    for number in range(1, wanted):
        end = int(np.searchsorted(total, total[-1] * number / wanted)) + 1
        low = (ends[-1] if ends else 0) + 2
        ends.append(min(max(end, low), len(places) - 2 * (wanted - number)))
    borders = [0, *(int(places[end]) for end in ends), len(weights)]
    return list(zip(borders[:-1], borders[1:], strict=True))
