"""Examples as rows of tokens: what the network reads, which of it the head sees, and what it should say.

Long texts are cut as everywhere (`rows.rows_of`); those of `tagging` and `qa` become several rows, windows that
overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bert_jax.errors import UserError
from bert_jax.rows import Row, Text, rows_of
from bert_jax.tasks.examples import Example
from bert_jax.tasks.settings import TaskSettings
from bert_jax.text.tokenizer import Tokenizer

Labels = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class TaskRow:
    """One sequence of an example.

    Attributes:
        example: its number.
        ids, segments: int32[n].
        spans: int32[r, K, 2]: from and behind which token each of r items is read; K of them beside each other.
        items: int32[r]: which word of the example an item is; −1 the text as a whole.
        targets: term → [r] what each item should be (int32 class or float32 number), −1 where that is not known or not
            asked; of qa `start` and `end`, int32[1], a token of the row; of multi_label float32[1, K], 1 where a
            label holds, nan where they are not known.
        offsets: of qa, int32[n, 2]: the characters of the context that each token covers, −1 elsewhere.
        weights: term → float32[r] how much each item counts; 1 where there are none.
    """

    example: int
    ids: np.ndarray
    segments: np.ndarray
    spans: np.ndarray
    items: np.ndarray
    targets: dict[str, np.ndarray] = field(default_factory=dict)
    offsets: np.ndarray | None = None
    weights: dict[str, np.ndarray] = field(default_factory=dict)


def encode(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    task: TaskSettings,
    labels: Labels,
    segments: int = 2,
    marked: bool = False,
) -> list[TaskRow]:
    """Rows of all examples, those of one beside each other and in order.

    Args:
        labels: term → names, as found in training; a label is its place there.
        segments: how many the network tells apart; with fewer than 2, all tokens are of segment 0.
        marked: read the spans that the examples mark.

    Raises:
        UserError: a marked span lies behind the cut, or a question leaves no room for its text.
    """
    match task.family:
        case "tagging" | "intent_slots":
            rows = _of_words(examples, tokenizer, task, labels)
        case "qa":
            rows = _of_questions(examples, tokenizer, task)
        case _:
            rows = _of_texts(examples, tokenizer, task, labels, marked)
    if segments < 2:
        rows = [TaskRow(**{**vars(row), "segments": np.zeros_like(row.segments)}) for row in rows]
    return rows


# ----------------------------------------------------------------------------------------------------- whole texts


def _of_texts(
    examples: Sequence[Example], tokenizer: Tokenizer, task: TaskSettings, labels: Labels, marked: bool
) -> list[TaskRow]:
    """Of labels and numbers of texts one row an example; of choice one a text to choose; of embedding one a text."""
    texts: list[Text] = []
    owners: list[int] = []
    for number, example in enumerate(examples):
        for text in _texts(example, task.family):
            texts.append(text)
            owners.append(number)
    places = _index(labels.get("label", ()))
    several = labels.get("labels", ())
    rows = []
    for number, row in zip(owners, rows_of(tokenizer, texts, task.length), strict=True):
        example = examples[number]
        spans = [(0, len(row.ids))]
        if marked:
            spans = _marked(example, row, tokenizer)
        targets = {}
        if task.family in ("single", "pair"):
            targets["label"] = np.array([_place(example.label, places)], np.int32)
        elif task.family == "multi_label":
            holds = [np.nan if example.labels is None else name in example.labels for name in several]
            targets["labels"] = np.array([holds], np.float32)
        elif task.family == "regression":
            targets["score"] = np.array([np.nan if example.label is None else float(example.label)], np.float32)
        elif task.family == "choice":
            targets["choice"] = np.array([-1 if example.label is None else int(example.label)], np.int32)
        items = np.array([-1], np.int32)
        rows.append(TaskRow(number, row.ids, row.segments, np.array([spans], np.int32), items, targets))
    return rows


def _texts(example: Example, family: str) -> list[Text]:
    if family == "choice":
        first, *others = example.texts
        return [(first, other) if first else other for other in others]
    if family == "embedding":
        return list(example.texts)
    return [example.texts[0] if len(example.texts) == 1 else (example.texts[0], example.texts[1])]


def _marked(example: Example, row: Row, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """The tokens of the row that cover each marked span."""
    if not example.spans:
        raise UserError("no span is marked", example.where, "name columns.span_a, or read other tokens")
    # where each text's own tokens stand in the row, behind [CLS] and behind the first [SEP]
    begins = [1, 1 + int(np.count_nonzero(row.own & (row.segments == 0))) + 1]
    found = []
    for text, start, end in example.spans:
        offsets = tokenizer.encode_batch([example.texts[text]], offsets=True).offsets
        assert offsets is not None
        kept = int(np.count_nonzero(row.own & (row.segments == text)))
        inside = np.flatnonzero((offsets[:kept, 1] > start) & (offsets[:kept, 0] < end))
        if not len(inside):
            raise UserError("the marked span is cut off, or has no token", example.where, "give a larger task.length")
        found.append((begins[text] + int(inside[0]), begins[text] + int(inside[-1]) + 1))
    return found


# ----------------------------------------------------------------------------------------------------------- words


def _of_words(examples: Sequence[Example], tokenizer: Tokenizer, task: TaskSettings, labels: Labels) -> list[TaskRow]:
    """Each word cut by itself; of intent_slots one row, the text as a whole its first item; of tagging windows."""
    encoded = tokenizer.encode_batch([word for example in examples for word in example.words])
    pieces = [encoded.ids[a:b] for a, b in zip(encoded.rows[:-1], encoded.rows[1:], strict=True)]
    whole = task.family == "intent_slots"
    term = "slots" if whole else "tags"
    tags, intents = _index(labels.get(term, ())), _index(labels.get("intent", ()))
    unknown = np.array([tokenizer.special.unk], np.int32)
    rows, first = [], 0
    for number, example in enumerate(examples):
        # a word of nothing but control characters has no piece, and needs a place to be labelled at all
        words = [piece if len(piece) else unknown for piece in pieces[first : first + len(example.words)]]
        first += len(example.words)
        gold = [-1] * len(words)
        if example.tags is not None:
            gold = [_place(tag, tags) for tag in example.tags]
        room = task.length - 2
        windows = windows_of([len(word) for word in words], room, 0 if whole else task.stride)
        for begin, end, own in windows[:1] if whole else windows:
            row = _row([word[:room] for word in words[begin:end]], tokenizer)
            ends = np.cumsum([1, *(min(len(word), room) for word in words[begin:end])])
            spans = [(ends[i - begin], ends[i - begin + 1]) for i in own]
            items, targets = list(own), {term: [gold[i] for i in own]}
            if whole:
                spans, items = [(0, len(row)), *spans], [-1, *items]
                targets = {term: [-1, *targets[term]], "intent": [-1] * len(items)}
                targets["intent"][0] = _place(example.label, intents)
            arrays = {name: np.array(values, np.int32) for name, values in targets.items()}
            read = np.array(spans, np.int32).reshape(-1, 1, 2)
            rows.append(TaskRow(number, row, np.zeros_like(row), read, np.array(items, np.int32), arrays))
    return rows


def windows_of(lengths: Sequence[int], room: int, stride: int) -> list[tuple[int, int, list[int]]]:
    """Windows over words: (first, behind the last, which of them are labelled here).

    Every word is labelled in exactly one window, the one in which it has most text on its nearer side; windows overlap
    by `stride` tokens, about.

    Args:
        lengths: tokens of each word; one longer than `room` counts as `room`.
        room: tokens of a window.

    Example:
        >>> windows_of([1, 1, 1, 1, 1, 1], 4, 2)
        [(0, 4, [0, 1, 2]), (2, 6, [3, 4, 5])]
    """
    sizes = np.minimum(lengths, room)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    borders = []
    begin = 0
    while True:
        end = int(np.searchsorted(ends, ends[begin] + room, side="right")) - 1
        borders.append((begin, end))
        if end >= len(sizes):
            break
        # with at least the word behind the end in it: a window within the one before would say nothing new
        least = max(ends[end] - stride, ends[end + 1] - room)
        begin = int(np.searchsorted(ends, least, side="left"))
    most, owner = np.full(len(sizes), -1), np.zeros(len(sizes), int)
    for number, (begin, end) in enumerate(borders):
        places = np.arange(begin, end)
        beside = np.minimum(ends[places] - ends[begin], ends[end] - ends[places + 1])
        better = places[beside > most[begin:end]]
        most[better], owner[better] = beside[better - begin], number
    order = np.argsort(owner, kind="stable")
    parts = np.split(order, np.searchsorted(owner[order], np.arange(1, len(borders))))
    return [(begin, end, own.tolist()) for (begin, end), own in zip(borders, parts, strict=True)]


def _row(words: Sequence[np.ndarray], tokenizer: Tokenizer) -> np.ndarray:
    special = tokenizer.special
    return np.concatenate([[special.cls], *words, [special.sep]], dtype=np.int32)


# ------------------------------------------------------------------------------------------------------- questions


def _of_questions(examples: Sequence[Example], tokenizer: Tokenizer, task: TaskSettings) -> list[TaskRow]:
    """[CLS] question [SEP] context [SEP], a row a window of the context (Devlin et al. 2018, section 4.2).

    The label is the first answer's span, or [CLS] where the window does not hold it whole.
    """
    questions = tokenizer.encode_batch([example.texts[0] for example in examples])
    number_of = {text: n for n, text in enumerate(dict.fromkeys(example.texts[1] for example in examples))}
    contexts = tokenizer.encode_batch(list(number_of), offsets=True)
    assert contexts.offsets is not None
    cls, sep = ([token] for token in (tokenizer.special.cls, tokenizer.special.sep))
    rows = []
    for number, example in enumerate(examples):
        asked = questions.ids[questions.rows[number] : questions.rows[number + 1]][: task.question]
        place = number_of[example.texts[1]]
        here = slice(contexts.rows[place], contexts.rows[place + 1])
        ids, offsets = contexts.ids[here], contexts.offsets[here]
        head = len(asked) + 2
        room = task.length - head - 1
        if room < 1:
            raise UserError(
                f"a question of {len(asked)} tokens leaves no room for its text in {task.length}",
                example.where,
                "give a larger task.length or a smaller task.question",
            )
        answer = _answer_tokens(example, offsets)
        step = max(room - task.stride, room // 4, 1)  # a long question leaves little room, and windows are to go on
        for begin in range(0, max(len(ids) - room, 0) + step, step) if len(ids) > room else (0,):
            end = min(begin + room, len(ids))
            row = np.concatenate([cls, asked, sep, ids[begin:end], sep], dtype=np.int32)
            segments = (np.arange(len(row)) >= head).astype(np.int32)
            covered = np.full((len(row), 2), -1, np.int32)
            covered[head : head + end - begin] = offsets[begin:end]
            span = (0, 0)
            if answer and begin <= answer[0] and answer[1] < end:
                span = (head + answer[0] - begin, head + answer[1] - begin)
            known = example.answers is not None
            targets = {
                name: np.array([value if known else -1], np.int32)
                for name, value in zip(("start", "end"), span, strict=True)
            }
            read = np.array([[(0, len(row))]], np.int32)
            rows.append(TaskRow(number, row, segments, read, np.array([-1], np.int32), targets, covered))
            if end == len(ids):
                break
    return rows


def _answer_tokens(example: Example, offsets: np.ndarray) -> tuple[int, int] | None:
    """First and last token of the first answer."""
    if not example.answers:
        return None
    answer = example.answers[0]
    inside = np.flatnonzero((offsets[:, 1] > answer.start) & (offsets[:, 0] < answer.start + len(answer.text)))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


# ---------------------------------------------------------------------------------------------------------- labels


def _index(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _place(name: str | None, places: Mapping[str, int]) -> int:
    """The place of a label; −1 where none is known, or one that training did not have (`audit.unseen` tells)."""
    return -1 if name is None else places.get(name, -1)
