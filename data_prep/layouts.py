"""Sentences to rows: which spans of text a record holds.

An instance is two spans of a flat array of tokens, so a layout moves numbers, not tokens. Rows are made of
instances a block at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from bert_jax.text.features import Records
from bert_jax.text.tokenizer import Special, Tokenizer
from data_prep import sentences


@dataclass(frozen=True)
class Corpus:
    """Tokenised documents of a shard.

    ids int32[n], word_start bool[n]: all tokens; sentences int64[s+1]: where each begins in them; documents
    int64[d+1]: the first sentence of each; numbers int64[d]: each document's number in the whole input.
    `empty` documents had no token and are not here; `cut` sentences were longer than a row and became
    several.
    """

    ids: np.ndarray
    word_start: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    numbers: np.ndarray
    empty: int
    cut: int


@dataclass(frozen=True)
class Instances:
    """Rows to be: spans A and B of the corpus (int64[n] each), label int32[n], document numbers."""

    a_begin: np.ndarray
    a_end: np.ndarray
    b_begin: np.ndarray
    b_end: np.ndarray
    label: np.ndarray
    a_document: np.ndarray
    b_document: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: np.ndarray | slice) -> Instances:
        """Some of them, in this order."""
        return Instances(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def tokenise(
    numbered: Iterable[tuple[int, str]],
    tokenizer: Tokenizer,
    language: str,
    length: int,
    progress=lambda size: None,
    segmenter=None,
) -> Corpus:
    """Sentences and tokens of documents, a few hundred kilobytes of text at a time.

    Args:
        numbered: (number, document).
        tokenizer: gives ids and word starts.
        language: see sentences.py.
        length: T; a sentence of more than T - 3 tokens is cut into pieces of half that, so that no layout
            has to drop its end.
        progress: called with the bytes of each block done.
    """
    ids, starts, sizes, counts, numbers = [], [], [], [], []
    empty = cut = 0

    def flush(block: list[tuple[int, list[str]]], size: int) -> None:
        nonlocal empty, cut
        encoded = tokenizer.encode_batch([sentence for _, found in block for sentence in found])
        ids.append(encoded.ids)
        starts.append(encoded.word_start)
        lengths = np.diff(encoded.rows).tolist()
        at = 0
        for number, found in block:
            kept = [n for n in lengths[at : at + len(found)] if n]
            at += len(found)
            long = sum(n > length - 3 for n in kept)
            if long:
                cut += long
                kept = [piece for n in kept for piece in (_pieces(n, (length - 2) // 2) if n > length - 3 else [n])]
            if kept:
                sizes.extend(kept)
                counts.append(len(kept))
                numbers.append(number)
            else:
                empty += 1
        progress(size)

    block: list[tuple[int, list[str]]] = []
    size = 0
    for number, document in numbered:
        found = [s for paragraph in document.split("\n") for s in sentences.split(paragraph, language)]
        block.append((number, found))
        size += len(document.encode())
        if size > 300_000:
            flush(block, size)
            block, size = [], 0
    if block:
        flush(block, size)
    return Corpus(
        np.concatenate([np.zeros(0, np.int32), *ids]),
        np.concatenate([np.zeros(0, bool), *starts]),
        np.cumsum([0, *sizes], dtype=np.int64),
        np.cumsum([0, *counts], dtype=np.int64),
        np.array(numbers, np.int64),
        empty,
        cut,
    )


def _pieces(size: int, limit: int) -> list[int]:
    """`size` tokens in pieces of nearly equal length, none above `limit`."""
    count = -(-size // limit)
    return [size // count + (place < size % count) for place in range(count)]


def pair(corpus: Corpus, length: int, short: float, duplicates: int, rng: np.random.Generator) -> Instances:
    """Two segments, the second the true next one or from another document, as google-research/bert does.

    Per document: sentences are gathered until they fill a row (or, with probability `short`, a random shorter
    target); A is a random number of the first of them; B is the rest, or in half of the cases text from a
    random place of another document, and then the rest goes back. A chunk of one sentence has no rest, so its
    B is always random: hence somewhat more than half are. Source: create_instances_from_document there.

    Args:
        corpus: at least two documents.
        length: T.
        short: probability of a shorter target, drawn once a document.
        duplicates: passes over the documents, each with other random choices.
        rng: the only source of randomness.

    Raises:
        ValueError: fewer than two documents: there is no other document to draw from.
    """
    total = len(corpus.documents) - 1
    if total < 2:
        raise ValueError("random next segments need two documents")
    limit = length - 3
    starts, documents = corpus.sentences.tolist(), corpus.documents.tolist()
    draw = rng.random
    spans: list[tuple[int, int, int, int, int, int, int]] = []
    for document in list(range(total)) * duplicates:
        last = documents[document + 1]
        target = limit
        if draw() < short:
            target = 2 + int(draw() * (limit - 1))
        begin = at = documents[document]
        while at < last:
            if at < last - 1 and starts[at + 1] - starts[begin] < target:
                at += 1
                continue
            size = at - begin + 1
            split = begin + (1 if size == 1 else 1 + int(draw() * (size - 1)))
            if size == 1 or draw() < 0.5:
                wanted = target - (starts[split] - starts[begin])
                other = int(draw() * (total - 1))
                other += other >= document
                first, end = documents[other], documents[other + 1]
                b_begin = b_end = first + int(draw() * (end - first))
                while b_end < end and (b_end == b_begin or starts[b_end] - starts[b_begin] < wanted):
                    b_end += 1
                spans.append((starts[begin], starts[split], starts[b_begin], starts[b_end], 1, document, other))
                begin = at = split
            else:
                spans.append((starts[begin], starts[split], starts[split], starts[at + 1], 0, document, document))
                begin = at = at + 1
    columns = np.array(spans, np.int64).reshape(-1, 7).T
    return Instances(*columns[:4], columns[4].astype(np.int32), corpus.numbers[columns[5]], corpus.numbers[columns[6]])


def truncate(instances: Instances, length: int, rng: np.random.Generator) -> tuple[Instances, int]:
    """Shortens pairs to T - 3 tokens: the longer segment loses, at its front or back at random.

    The closed form of truncate_seq_pair in google-research/bert, where on equal lengths B loses.

    Returns:
        The shortened instances, and how many tokens went.
    """
    limit = length - 3
    a, b = instances.a_end - instances.a_begin, instances.b_end - instances.b_begin
    a_kept = np.where(b <= limit // 2, np.minimum(a, limit - b), np.minimum(a, (limit + 1) // 2))
    b_kept = np.minimum(b, limit - a_kept)
    a_front = rng.binomial(a - a_kept, 0.5)
    b_front = rng.binomial(b - b_kept, 0.5)
    a_begin, b_begin = instances.a_begin + a_front, instances.b_begin + b_front
    kept = Instances(
        a_begin,
        a_begin + a_kept,
        b_begin,
        b_begin + b_kept,
        instances.label,
        instances.a_document,
        instances.b_document,
    )
    return kept, int((a + b - a_kept - b_kept).sum())


LAYOUTS = ("pair",)


def arrange(layout: str, corpus: Corpus, length: int, short: float, copies: np.ndarray, rng: np.random.Generator):
    """Stand-in."""
    return truncate(pair(corpus, length, short, int(copies.max()), rng), length, rng)


def rows(corpus: Corpus, instances: Instances, length: int, special: Special) -> Records:
    """[CLS] A [SEP] B [SEP] and padding, with segments, word starts, labels and document numbers.

    Returns:
        Records without the masked_lm features: those are `corrupt`'s.
    """
    column = np.arange(length)
    a = (instances.a_end - instances.a_begin)[:, None]
    b = (instances.b_end - instances.b_begin)[:, None]
    in_a = (column >= 1) & (column <= a)
    in_b = (column >= a + 2) & (column <= a + b + 1)
    source = np.where(in_a, instances.a_begin[:, None] + column - 1, instances.b_begin[:, None] + column - a - 2)
    inside = in_a | in_b
    source = np.where(inside, source, 0)
    ids = np.where(inside, corpus.ids[source], np.int32(special.pad))
    ids[:, 0] = special.cls
    ids[(column == a + 1) | (column == a + b + 2)] = special.sep
    return {
        "input_ids": ids.astype(np.int32),
        "input_mask": (column <= a + b + 2).astype(np.int32),
        "segment_ids": ((column >= a + 2) & (column <= a + b + 2)).astype(np.int32),
        "next_sentence_labels": instances.label,
        "word_starts": inside & corpus.word_start[source],
        "documents": np.stack([instances.a_document, instances.b_document], 1),
    }
