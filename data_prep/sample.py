"""Text for tokenizers: all of it in stretches, with progress, or a sample of as many megabytes as wanted."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from data_prep import sources
from data_prep.shard import document_hash

_STRETCH = 1 << 16  # characters; longer documents are taken in stretches, so that one huge document is sampled too
_PACKED = (".gz", ".zst", ".bz2", ".xz", ".parquet")


def read(paths: Sequence[Any], inputs: Sequence[sources.Input], on_bad_bytes: str) -> Iterator[str]:
    """The documents of all inputs in stretches of at most 65,536 characters, cut between lines, else words.

    Shows bytes of text, rate and time left; where inputs are packed, the time left is known only after the
    first of them, from its ratio.

    Args:
        paths: from `sources.expand`.
        inputs: `sources.describe` of each.
        on_bad_bytes: as `sources.documents` takes it.

    Raises:
        UserError: from `sources.documents`.
    """
    total = sum(each.bytes for each in inputs)
    known = total and not any(each.name.lower().endswith(_PACKED) for each in inputs)
    stored = 0
    with tqdm(
        desc="reading", unit="B", unit_scale=True, leave=False, disable=None, total=total if known else None
    ) as bar:
        for path, each in zip(paths, inputs, strict=True):
            for document in sources.documents(path, on_bad_bytes):
                for stretch in stretches(document):
                    yield stretch
                    bar.update(len(stretch.encode()))
            stored += each.bytes
            if stored:
                bar.total = round(bar.n * total / stored)
                bar.refresh()


def stretches(document: str) -> Iterator[str]:
    """A document, cut where it is long."""
    begin = 0
    while len(document) - begin > _STRETCH:
        last = begin + _STRETCH
        end = max(document.rfind("\n", begin + 1, last), 0) or max(document.rfind(" ", begin + 1, last), 0) or last
        yield document[begin:end]
        begin = end
    yield document[begin:]


def sample(texts: Iterable[str], megabytes: float, seed: int) -> tuple[list[str], int]:
    """As many texts as fit, those of the lowest hashes: the same ones in any order and after one reading.

    Args:
        texts: read once; what is kept is held in memory.
        megabytes: at most this much UTF-8, but at least one text.
        seed: another one gives another sample.

    Returns:
        the texts kept, in the order given, and the bytes of all.
    """
    kept: list[tuple[int, int, str]] = []  # a heap, highest hash first
    size = total = 0
    border = 2**64
    for number, text in enumerate(texts):
        length = len(text.encode())
        total += length
        hashed = document_hash(text, seed)
        if hashed >= border:
            continue
        heapq.heappush(kept, (-hashed, -number, text))
        size += length
        # Equal texts stay or go together.
        while len(kept) > 1 and (size > megabytes * 1e6 or -kept[0][0] >= border):
            hashed, _, text = heapq.heappop(kept)
            border = min(border, -hashed)
            size -= len(text.encode())
    return [text for _, _, text in sorted(kept, key=lambda entry: -entry[1])], total
