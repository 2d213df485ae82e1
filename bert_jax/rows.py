"""Texts as rows of tokens, and rows side by side in batches of few shapes.

A shape costs a second to compile, and padding costs as much as text. So texts stand side by side in rows, attention
kept inside each, as packed training has them: almost no padding, and one shape for any number of texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bert_jax.data.packing import Capacity, pack
from bert_jax.errors import UserError
from bert_jax.text.tokenizer import Tokenizer

MASK = "[MASK]"
ROW = 128  # tokens of a row of several texts: longer ones cost attention, shorter ones padding
LENGTHS = (32, 64, ROW, 256, 512)  # of rows; beyond: multiples of 512

Text = str | tuple[str, str]


@dataclass(frozen=True)
class Row:
    """One text as the model reads it: ids and segments int32[n]; `own` bool[n] is False at [CLS] and [SEP]."""

    ids: np.ndarray
    segments: np.ndarray
    own: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Texts in the slots of rows.

    Attributes:
        arrays: `input_ids`, `segment_ids`, `position_ids`, `sequence_ids`, int32[B, T], where the text of slot s has
            sequence s + 1; `starts` int32[B, S], where each slot's [CLS] stands.
        places: number of a text, its row, its slot.
    """

    arrays: dict[str, np.ndarray]
    places: list[tuple[int, int, int]]


def checked(texts: Iterable[Text], of: str) -> list[Text]:
    """The texts as a list.

    Raises:
        UserError: they are something else than strings and pairs of strings; `of` is the function that was called.
    """
    if isinstance(texts, str):
        raise UserError(f"{of} takes a list of texts, this is one string", "texts", "write [text]")
    if not isinstance(texts, Iterable):
        raise UserError(f"{of} takes a list of texts, this is {kind(texts)}", "texts", "write [text]")
    texts = list(texts)
    for number, item in enumerate(texts):
        pair = isinstance(item, tuple | list)
        if not isinstance(item, str) and not (pair and [isinstance(part, str) for part in item] == [True, True]):
            found = f"{len(item)} parts" if pair and len(item) != 2 else f"{kind(item)}"
            raise UserError(
                f"a text is a string or a pair of strings, this is {found}",
                f"texts[{number}]",
                "leave out what is no text",
            )
    return texts


def kind(value: object) -> str:
    """The type of a value, for messages."""
    return "None" if value is None else f"of type {type(value).__name__}"


# ---------------------------------------------------------------------------------------------- texts to rows


def rows_of(tokenizer: Tokenizer, texts: Sequence[Text], length: int) -> list[Row]:
    """[CLS] text [SEP], or [CLS] text [SEP] text [SEP] in two segments; what is longer than `length` is cut at its
    end, of a pair the longer one."""
    parts = [text for item in texts for text in ((item,) if isinstance(item, str) else item)]
    encoded = tokenizer.encode_batch(parts)
    pieces = iter(encoded.ids[a:b] for a, b in zip(encoded.rows[:-1], encoded.rows[1:], strict=True))
    rows = []
    for item in texts:
        segments = [next(pieces) for _ in range(1 if isinstance(item, str) else 2)]
        segments = _cut(segments, length - 1 - len(segments))
        cls, sep = tokenizer.special.cls, tokenizer.special.sep
        ids, kinds, own = [np.array([cls])], [np.array([0])], [np.array([False])]
        for number, segment in enumerate(segments):
            ids += [segment, np.array([sep])]
            kinds += [np.full(len(segment) + 1, number)]
            own += [np.ones(len(segment), bool), np.array([False])]
        rows.append(
            Row(np.concatenate(ids, dtype=np.int32), np.concatenate(kinds, dtype=np.int32), np.concatenate(own))
        )
    return rows


def _cut(segments: list[np.ndarray], room: int) -> list[np.ndarray]:
    """Shorten the longer segment, token by token from its end, until both fit."""
    if len(segments) == 1:
        return [segments[0][:room]]
    first, second = (len(segment) for segment in segments)
    keep = min(second, max(room - first, room // 2))
    return [segments[0][: room - keep], segments[1][:keep]]


# -------------------------------------------------------------------------------------------- rows to batches


def batches(rows: Sequence[Row], pad: int, positions: int, tokens: int, shortest: int = 4) -> Iterator[Batch]:
    """All rows, several texts in each, long ones first.

    Args:
        rows: none longer than `positions`.
        pad: the id of [PAD].
        positions: of the table, and so the length of the longest row.
        tokens: of a batch, about.
        shortest: a row of T tokens holds T / `shortest` texts at most.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[max(row_length(len(row.ids)), ROW)].append(number)
    for length, numbers in sorted(groups.items(), reverse=True):
        total = sum(len(rows[number].ids) for number in numbers)
        length = min(length, row_length(total), positions)
        shared = packed([len(rows[number].ids) for number in numbers], length, max(length // shortest, 1))
        full = max(tokens // length, 1)
        while shared:
            taken, shared = shared[:full], shared[full:]
            height = next(n for n in (1, full // 3 + 1, full) if n >= len(taken))
            chosen = [[numbers[place] for place in row] for row in taken]
            yield _batch(rows, chosen, (height, length), max(length // shortest, 1), pad)


def row_length(tokens: int) -> int:
    """Of the row that holds so many."""
    return next((length for length in LENGTHS if length >= tokens), -(-tokens // 512) * 512)


def packed(lengths: Sequence[int], length: int, slots: int) -> list[list[int]]:
    """Which of the texts of these lengths share a row of `length` tokens, `slots` at most: their places, row by row."""
    histogram = np.bincount(lengths, minlength=length + 1)
    patterns, counts = pack(histogram, Capacity(length, slots, slots, np.ones(length + 1, np.int64)))
    waiting: dict[int, list[int]] = defaultdict(list)
    for place in reversed(range(len(lengths))):
        waiting[lengths[place]].append(place)
    return [
        [waiting[each].pop() for each in pattern if each]
        for pattern, count in zip(patterns.tolist(), counts.tolist(), strict=True)
        for _ in range(count)
    ]


def _batch(rows: Sequence[Row], chosen: list[list[int]], shape: tuple[int, int], slots: int, pad: int) -> Batch:
    names = ("segment_ids", "position_ids", "sequence_ids")
    arrays = {"input_ids": np.full(shape, pad, np.int32)} | {name: np.zeros(shape, np.int32) for name in names}
    arrays["starts"] = np.zeros((shape[0], slots), np.int32)
    places = []
    for number, texts in enumerate(chosen):
        start = 0
        for slot, text in enumerate(texts):
            row = rows[text]
            here = (number, slice(start, start + len(row.ids)))
            arrays["input_ids"][here] = row.ids
            arrays["segment_ids"][here] = row.segments
            arrays["position_ids"][here] = np.arange(len(row.ids))
            arrays["sequence_ids"][here] = slot + 1
            arrays["starts"][number, slot] = start
            places.append((text, number, slot))
            start += len(row.ids)
    return Batch(arrays, places)


# ------------------------------------------------------------------------------------------ masks and pieces


def masked_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """[CLS], the text with mask ids for each "[MASK]", [SEP]."""
    special = tokenizer.special
    ids = [special.cls]
    for number, part in enumerate(text.split(MASK)):
        if number:
            ids.append(special.mask)
        pieces = tokenizer.encode_batch([part]).ids.tolist()
        if number and pieces and tokenizer.kind != "wordpiece" and not part[0].isspace():
            pieces = _without_space(tokenizer, pieces)
        ids += pieces
    return [*ids, special.sep]


def _without_space(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """SentencePiece puts a space before every text; where a text follows its mask closely there is none."""
    bare = tokenizer.pieces[ids[0]].removeprefix("\u2581")
    if not bare:
        return ids[1:]
    return [tokenizer.pieces.index(bare), *ids[1:]] if bare in tokenizer.pieces else ids


def readable(tokenizer: Tokenizer, number: int) -> str:
    """The piece without its kind's sign for words, which stand before words or before what continues them."""
    piece = tokenizer.pieces[number]
    if tokenizer.kind == "wordpiece":
        begins, text = not piece.startswith("##"), piece.removeprefix("##")
    else:
        begins, text = piece.startswith("\u2581"), piece.removeprefix("\u2581") or piece
    return text if begins or not text[:1].isalnum() else "…" + text


def one_masked_each(row: Row, mask: int) -> tuple[list[Row], np.ndarray, np.ndarray]:
    """A copy of the row for each token of the text's own, with that token masked.

    Returns:
        The copies; int[n], where the mask stands in each; int32[n], what stood there.
    """
    places = np.flatnonzero(row.own)
    copies = []
    for place in places:
        ids = row.ids.copy()
        ids[place] = mask
        copies.append(Row(ids, row.segments, row.own))
    return copies, places, row.ids[places]
