"""Sentences to rows: which spans of text a record holds.

An instance is one or two spans of a flat array of tokens, so a layout moves numbers, not tokens, and a whole
shard is arranged at once: for every sentence it is worked out where a row that begins there would end, be split
and be followed by the next; then one walk from row to row finds which of them are rows. Choices drawn for
sentences that begin no row are never looked at, so the rows are distributed as if each had been drawn in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np

from bert_jax.text.features import Records
from bert_jax.text.manifest import RELATIONS
from bert_jax.text.tokenizer import Encoded, Special, Tokenizer
from data_prep import sentences

LAYOUTS = tuple(RELATIONS)
_BLOCK = 1_500_000  # bytes of text tokenised in one call


@dataclass(frozen=True)
class Corpus:
    """Tokenised documents of a shard.

    ids uint16[n] (int32[n] where the vocabulary is too large), word_start bool[n]: all tokens; sentences
    int64[s+1]: where each begins in them, none is empty; documents int64[d+1]: the first sentence of each;
    numbers int64[d]: each document's number in the whole input. `empty` documents had no token and are not here;
    `cut` sentences were longer than a row and became several.
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
    """Rows to be: spans A and B of the corpus (int64[n] each), label int32[n], document numbers int64[n].

    A row of one segment has an empty B, label 0, and as document numbers those of its first and of its last
    sentence: they are equal unless it goes over a document's end. `relation` int32[n] is there for layouts of
    more than two labels only.
    """

    a_begin: np.ndarray
    a_end: np.ndarray
    b_begin: np.ndarray
    b_end: np.ndarray
    label: np.ndarray
    a_document: np.ndarray
    b_document: np.ndarray
    relation: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: np.ndarray | slice) -> Instances:
        """Some of them, in this order."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return Instances(**{name: None if column is None else column[rows] for name, column in columns.items()})


# ------------------------------------------------------------------------------------------------- documents


def tokenise(
    numbered: Iterable[tuple[int, str]],
    tokenizer: Tokenizer,
    language: str,
    length: int,
    progress: Callable[[int], None] = lambda size: None,
    segmenter: Callable[[str], list[str]] | None = None,
) -> Corpus:
    """Sentences and tokens of documents, a block of text at a time.

    Args:
        numbered: (number, document).
        tokenizer: gives ids and word starts.
        language: see sentences.py.
        length: T; a sentence of more than T - 3 tokens is cut into pieces of half that, so that no layout
            has to drop its end.
        progress: called with the bytes of each block done.
        segmenter: cuts a sentence into words, for languages that write none apart (`sentences.segmenter`). It
            joins what the tokenizer sets apart, so that a Chinese word is one unit; it never parts anything.

    Raises:
        UserError: a language that is not known, or a segmenter that gives words which are not in its sentence.
    """
    ids, starts, sizes, counts, numbers = [], [], [], [], []
    empty = cut = 0
    dtype = np.uint16 if tokenizer.vocab_size < 65_535 else np.int32
    split = sentences.splitter(language)

    def flush(block: list[tuple[int, list[str]]], size: int) -> None:
        nonlocal empty, cut
        texts = [sentence for _, found in block for sentence in found]
        encoded = tokenizer.encode_batch(texts, offsets=segmenter is not None)
        ids.append(encoded.ids.astype(dtype))
        starts.append(encoded.word_start if segmenter is None else _joined(texts, encoded, segmenter))
        lengths, owner = np.diff(encoded.rows), np.repeat(np.arange(len(block)), [len(found) for _, found in block])
        lengths, owner = lengths[lengths > 0], owner[lengths > 0]
        pieces = np.where(lengths > length - 3, -(-lengths // ((length - 2) // 2)), 1)
        sizes.append(_pieces(lengths, pieces))
        count = np.bincount(np.repeat(owner, pieces), minlength=len(block))
        counts.append(count[count > 0])
        numbers.append(np.array([number for number, _ in block], np.int64)[count > 0])
        cut += int((pieces > 1).sum())
        empty += int((count == 0).sum())
        progress(size)

    block: list[tuple[int, list[str]]] = []
    size = 0
    for number, document in numbered:
        block.append((number, split(document)))
        size += len(document.encode())
        if size > _BLOCK:
            flush(block, size)
            block, size = [], 0
    if block:
        flush(block, size)
    zero = np.zeros(1, np.int64)
    return Corpus(
        np.concatenate([np.zeros(0, dtype), *ids]),
        np.concatenate([np.zeros(0, bool), *starts]),
        np.cumsum(np.concatenate([zero, *sizes])),
        np.cumsum(np.concatenate([zero, *counts])),
        np.concatenate([zero[:0], *numbers]),
        empty,
        cut,
    )


def _pieces(lengths: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """Each of the lengths in so many pieces of nearly equal length, the longer ones first."""
    return np.repeat(lengths // pieces, pieces) + (_ranges(0 * pieces, pieces) < np.repeat(lengths % pieces, pieces))


def _ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """first, first + 1, … of each, one after the other: int64[sum of counts]."""
    return np.arange(int(counts.sum())) + np.repeat(first - (np.cumsum(counts) - counts), counts)


def _joined(texts: list[str], encoded: Encoded, segmenter: Callable[[str], list[str]]) -> np.ndarray:
    """Word starts bool[n] without those inside a segmenter's word; punctuation stays a unit of its own."""
    assert encoded.offsets is not None
    whole = "".join(texts)
    bases = np.cumsum([0, *map(len, texts)])
    borders = np.zeros(len(whole) + 1, bool)
    for base, text in zip(bases.tolist(), texts, strict=False):
        borders[base + np.array(sentences.word_borders(text, segmenter(text)), np.int64)] = True
    word = np.cumsum(borders)
    letter = np.fromiter(map(str.isalnum, whole), bool, len(whole))
    base = np.repeat(bases[:-1], np.diff(encoded.rows))
    begin = base + encoded.offsets[:, 0]
    last = base + np.maximum(encoded.offsets[:, 1] - 1, 0)
    inside = np.zeros(len(begin), bool)
    inside[1:] = (word[begin[1:]] == word[last[:-1]]) & letter[begin[1:]] & letter[last[:-1]] & (base[1:] == base[:-1])
    return encoded.word_start & ~inside


# --------------------------------------------------------------------------------------------------- layouts


def arrange(
    layout: str,
    corpus: Corpus,
    length: int,
    short: float,
    copies: np.ndarray | int,
    rng: np.random.Generator,
) -> tuple[Instances, int]:
    """The rows of a corpus, shortened to T, in the order of its text.

    Two segments. Sentences of a document are gathered until they fill a row (or, with probability `short`, drawn
    once a document, a random shorter target); A is a random number of the first of them, B the rest.

    * "pair": in half of the cases B is text from a random place of another document instead, and the rest goes
      back (label 1). A chunk of one sentence has no rest, so its B is always random: hence somewhat more than
      half are. As google-research/bert does (create_instances_from_document).
    * "order": in half of the cases A and B change places (label 1). A chunk of one sentence is parted between two
      of its words; if it is one word, it makes no row and counts as truncated. As ALBERT (Lan et al. 2019, 3.1),
      which takes random text in that case.
    * "three": one third each next, previous (the two change places) and random: relation 0, 1, 2, label 1 where
      not next. A chunk of one sentence is always random. As StructBERT (Wang et al. 2019, 2.2.2).

    One segment, as RoBERTa (Liu et al. 2019, 4.2): whole sentences for as long as they fit, `short` drawn for each
    row.

    * "full": over the ends of documents, a separator between them. A second copy begins with a row of random
      length, so that its borders fall elsewhere.
    * "document": never over the end of one.

    Args:
        layout: one of `LAYOUTS`.
        corpus: of at least two documents where text is drawn from another one.
        length: T, at least 8.
        short: probability of a shorter target.
        copies: int64[d], how often each document is gone through, with other random choices; or one number for
            all. Random text is drawn in proportion to it.
        rng: the only source of randomness.

    Returns:
        The instances, and how many tokens were left out of them.

    Raises:
        ValueError: "pair" or "three" without a document of another number to draw from.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"{layout!r} is none of {', '.join(LAYOUTS)}")
    copies = np.broadcast_to(np.asarray(copies, np.int64), corpus.numbers.shape)
    others = _Others(corpus, copies) if layout in ("pair", "three") else None
    parts, lost = [], 0
    for turn in range(int(copies.max(initial=0))):
        documents = np.flatnonzero(copies > turn)
        if RELATIONS[layout]:
            part, gone = _pairs(layout, corpus, documents, others, length - 3, short, rng)
        else:
            part, gone = _single(layout, corpus, documents, turn, length - 2, short, rng)
        parts.append(part)
        lost += gone
    if not parts:
        parts = [Instances(*np.zeros((4, 0), np.int64), np.zeros(0, np.int32), *np.zeros((2, 0), np.int64))]
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Instances))
    return Instances(*(None if column[0] is None else np.concatenate(column) for column in columns)), lost


class _Others:
    """Documents of another number, drawn in proportion to their copies."""

    def __init__(self, corpus: Corpus, copies: np.ndarray) -> None:
        passes = np.repeat(np.arange(len(copies)), copies)
        self.passes = passes[np.argsort(corpus.numbers[passes], kind="stable")]
        numbers = corpus.numbers[self.passes]
        self.first = np.searchsorted(numbers, corpus.numbers)
        self.own = np.searchsorted(numbers, corpus.numbers, side="right") - self.first
        if (self.own[copies > 0] == len(passes)).any():
            raise ValueError("random segments need two documents")

    def draw(self, documents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each of these, another one."""
        place = (rng.random(len(documents)) * (len(self.passes) - self.own[documents])).astype(np.int64)
        return self.passes[place + self.own[documents] * (place >= self.first[documents])]


def _pairs(
    layout: str,
    corpus: Corpus,
    documents: np.ndarray,
    others: _Others | None,
    limit: int,
    short: float,
    rng: np.random.Generator,
) -> tuple[Instances, int]:
    """One pass over `documents` in two segments of `limit` tokens together."""
    at = corpus.sentences
    counts = np.diff(corpus.documents)[documents]
    begin, owner = _ranges(corpus.documents[documents], counts), np.repeat(documents, counts)
    last = corpus.documents[owner + 1]
    target = np.repeat(_targets(len(documents), limit, short, rng), counts)

    # Were a row to begin with this sentence: the sentence after its last, the first of B, what B is.
    stop = np.minimum(np.searchsorted(at, at[begin] + target), last)
    split = begin + 1 + (rng.random(len(begin)) * (stop - begin - 1)).astype(np.int64)
    die, alone = rng.random(len(begin)), stop - begin == 1
    if layout == "order":
        random, swapped = np.zeros(len(begin), bool), die < 0.5
    else:
        random = alone | (die < (0.5 if layout == "pair" else 1 / 3))
        swapped = ~random & (die >= 2 / 3) if layout == "three" else np.zeros(len(begin), bool)
    rows = _walk(np.where(random, split, stop) - begin)
    begin, split, stop, owner, target, random, swapped, alone = (
        column[rows] for column in (begin, split, stop, owner, target, random, swapped, alone)
    )

    first, middle, end, other = at[begin], at[split], at[stop], owner.copy()
    lost = 0
    if layout == "order" and alone.any():
        middle = np.where(alone, _word_border(corpus, first, end, rng), middle)
        whole = middle < end
        lost = int((end - first)[~whole].sum())
        first, middle, end, owner, other, swapped = (x[whole] for x in (first, middle, end, owner, other, swapped))
        random = random[whole]
    spans = np.stack([first, middle, middle, end])
    spans[:, swapped] = spans[:, swapped][[2, 3, 0, 1]]
    if others is not None:
        other[random] = others.draw(owner[random], rng)
        begin_b, end_b = corpus.documents[other[random]], corpus.documents[other[random] + 1]
        begin_b = begin_b + (rng.random(len(begin_b)) * (end_b - begin_b)).astype(np.int64)
        wanted = np.maximum((target[random] - (middle - first)[random]), 1)
        spans[2:, random] = at[begin_b], at[np.minimum(np.searchsorted(at, at[begin_b] + wanted), end_b)]
    spans, truncated = _truncated(spans, limit, rng)
    relation = np.where(random, 2, swapped).astype(np.int32)
    return Instances(
        *spans,
        (relation > 0).astype(np.int32),
        corpus.numbers[owner],
        corpus.numbers[other],
        relation if layout == "three" else None,
    ), lost + truncated


def _single(
    layout: str, corpus: Corpus, documents: np.ndarray, turn: int, limit: int, short: float, rng: np.random.Generator
) -> tuple[Instances, int]:
    """Pass number `turn` over `documents` in one segment of `limit` tokens, separators between documents included."""
    at = corpus.sentences
    counts = np.diff(corpus.documents)
    begin, owner = _ranges(corpus.documents[documents], counts[documents]), np.repeat(documents, counts[documents])
    target = _targets(len(begin), limit, short, rng)
    if layout == "full":
        # What is gone through in one go are documents that stand side by side.
        breaks = np.flatnonzero(np.diff(documents) != 1)
        ends = np.append(documents[breaks], documents[-1:])
        final = ends[np.searchsorted(ends, owner)]
        if turn:
            opens = np.isin(begin, corpus.documents[np.append(documents[:1], documents[breaks + 1])])
            target[opens] = _targets(int(opens.sum()), limit, 1.0, rng)
    else:
        final = owner
    closing = at[1:] + np.repeat(np.arange(len(counts)), counts)
    stop = np.searchsorted(closing, at[begin] + owner + target, side="right")
    stop = np.clip(stop, begin + 1, corpus.documents[final + 1])
    rows = _walk(stop - begin)
    first, end = at[begin[rows]], at[stop[rows]]
    kept = np.minimum(end, first + limit)  # only a sentence of a corpus made for longer rows can be too long
    document = np.searchsorted(corpus.documents, stop[rows] - 1, side="right") - 1
    zero = np.zeros(len(rows), np.int32)
    numbers = corpus.numbers[owner[rows]], corpus.numbers[document]
    return Instances(first, kept, kept, kept, zero, *numbers), int((end - kept).sum())


def _targets(count: int, limit: int, short: float, rng: np.random.Generator) -> np.ndarray:
    """`limit`, or with probability `short` a number from 2 to it: int64[count]."""
    drawn = 2 + (rng.random(count) * (limit - 1)).astype(np.int64)
    return np.where(rng.random(count) < short, drawn, limit)


def _walk(steps: np.ndarray) -> np.ndarray:
    """The places met from 0 on, going on by each one's step: int64[n]."""
    met, at, ahead = [], 0, steps.tolist()
    while at < len(ahead):
        met.append(at)
        at += ahead[at]
    return np.array(met, np.int64)


def _word_border(corpus: Corpus, begin: np.ndarray, end: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random word start within each span but not at its beginning; the span's end where there is none."""
    starts = np.flatnonzero(corpus.word_start)
    low, high = np.searchsorted(starts, begin + 1), np.searchsorted(starts, end)
    place = low + (rng.random(len(begin)) * (high - low)).astype(np.int64)
    return np.where(high > low, np.append(starts, 0)[place], end)


def _truncated(spans: np.ndarray, limit: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Spans int64[4,n] shortened to `limit` tokens: the longer segment loses, at its front or back at random.

    The closed form of truncate_seq_pair in google-research/bert, where on equal lengths B loses.

    Returns:
        The shortened spans, and how many tokens went.
    """
    a_begin, a_end, b_begin, b_end = spans
    a, b = a_end - a_begin, b_end - b_begin
    a_kept = np.where(b <= limit // 2, np.minimum(a, limit - b), np.minimum(a, (limit + 1) // 2))
    b_kept = np.minimum(b, limit - a_kept)
    a_front = rng.binomial(a - a_kept, 0.5)
    b_front = rng.binomial(b - b_kept, 0.5)
    a_begin, b_begin = a_begin + a_front, b_begin + b_front
    kept = np.stack([a_begin, a_begin + a_kept, b_begin, b_begin + b_kept])
    return kept, int((a + b - a_kept - b_kept).sum())


# ------------------------------------------------------------------------------------------------------ rows


def rows(corpus: Corpus, instances: Instances, length: int, special: Special) -> Records:
    """[CLS] A [SEP] B [SEP] and padding, with segments, word starts, labels and document numbers.

    Without B it is [CLS] A [SEP], all of it segment 0; where A goes over the end of a document, a [SEP] stands
    there too.

    Returns:
        Records without the masked_lm features: those are `corrupt`'s. `relation` for layouts of three labels.
    """
    a, b = instances.a_end - instances.a_begin, instances.b_end - instances.b_begin
    ids = _windows(corpus.ids, instances.a_begin - 1, length)
    starts = _windows(corpus.word_start, instances.a_begin - 1, length)
    front = np.tri(length + 1, length, -1, bool)  # row k: k times True

    def go_on(which: np.ndarray, column: np.ndarray, begin: np.ndarray) -> None:
        """In these rows: [SEP] at `column`, and after it the tokens from `begin` on."""
        here = slice(None) if len(which) == len(ids) else which
        behind = front[column]
        np.logical_not(behind, out=behind)
        for out, values, mark in ((ids, corpus.ids, special.sep), (starts, corpus.word_start, False)):
            changed = out[here]
            np.copyto(changed, _windows(values, begin - column - 1, length), where=behind)
            np.put_along_axis(changed, column[:, None], mark, axis=1)
            out[here] = changed

    two, one = np.flatnonzero(b), np.flatnonzero(b == 0)
    if len(two):
        go_on(two, a[two] + 1, instances.b_begin[two])
    inside = np.zeros(len(instances), np.int64)  # ends of documents within A
    if len(one):
        borders = corpus.sentences[corpus.documents]
        passed = np.searchsorted(borders, instances.a_begin, side="right")
        inside[one] = (np.searchsorted(borders, instances.a_end) - passed)[one]
        for number in range(int(inside.max())):
            which = np.flatnonzero(inside > number)
            border = borders[passed[which] + number]
            go_on(which, border - instances.a_begin[which] + 1 + number, border)

    sizes = np.where(b > 0, a + b + 3, a + 2 + inside)
    real = front[sizes]
    np.copyto(ids, special.pad, where=~real)
    starts &= real
    for column, mark in ((np.zeros_like(sizes), special.cls), (sizes - 1, special.sep)):
        np.put_along_axis(ids, column[:, None], mark, axis=1)
        np.put_along_axis(starts, column[:, None], False, axis=1)
    records = {
        "input_ids": ids.astype(np.int32),
        "input_mask": real.astype(np.int32),
        "segment_ids": (real ^ front[np.where(b > 0, a + 2, sizes)]).astype(np.int32),
        "next_sentence_labels": instances.label,
        "word_starts": starts,
        "documents": np.stack([instances.a_document, instances.b_document], 1),
    }
    return records if instances.relation is None else records | {"relation": instances.relation}


def _windows(values: np.ndarray, first: np.ndarray, length: int) -> np.ndarray:
    """`values[first : first + length]` of each row, [n, length]; anything where that is outside of them."""
    if len(values) < length:
        values = np.pad(values, (0, length - len(values)))
    inside = np.clip(first, 0, len(values) - length)
    out = np.lib.stride_tricks.sliding_window_view(values, length)[inside]  # copies whole rows: no index per token
    for row in np.flatnonzero(inside != first):
        out[row] = values[np.clip(np.arange(first[row], first[row] + length), 0, len(values) - 1)]
    return out
