"""Rows of a table as examples: texts, words, labels, answers and spans out of what stands in the columns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from bert_jax.errors import UserError, counted
from bert_jax.tasks.columns import NEEDED, PLAIN_WORDS, Chosen, choose
from bert_jax.tasks.examples import Answer, Example
from bert_jax.tasks.settings import ColumnSettings
from bert_jax.tasks.squad import answers_of
from bert_jax.tasks.tables import Row, Table, lookup, table_of


def table_examples(
    table: Table, family: str, columns: ColumnSettings, labelled: bool = True, plain: bool = False
) -> list[Example]:
    """The rows of a table as examples of a family.

    An empty text is an error where the example is to be learned from, of a pair only where both are empty. Without
    labels it may be, so that there is a prediction for each line. A context to find answers in, a text to choose and a
    sentence to tag are never empty; a question may be, and so may the text that choices go with.

    Raises:
        UserError: a column is not there, or a row has no text, no label or none that can be; says the line.
    """
    if plain:  # each row may have keys of its own
        each = [choose(table_of(row.where, [row]), family, columns, labelled, plain) for row in table.rows]
        return [
            _example(row, str(i), chosen, family, _uncut(columns) if chosen.words in PLAIN_WORDS else columns, labelled)
            for i, (row, chosen) in enumerate(zip(table.rows, each, strict=True))
        ]
    chosen = choose(table, family, columns, labelled)
    if table.headed and chosen.target is not None and family != "qa":
        _check_header(table, chosen.target, family)
    return [_example(row, str(i), chosen, family, columns, labelled) for i, row in enumerate(table.rows)]


def _uncut(columns: ColumnSettings) -> ColumnSettings:
    """`word_cut` is how the files of a task are written; who gives plain words means them."""
    return replace(columns, word_cut=0)


def _check_header(table: Table, target: str, family: str) -> None:
    """Raises UserError where the line of names is an example, by what stands in its place for the label."""
    numbers = family in ("regression", "embedding")
    if _is_number(target) if numbers else target in {row.values[target].strip() for row in table.rows}:
        raise UserError(
            f"the first line is taken for names of columns, and {target!r} in it is a label",
            table.where,
            "set header = false in [task], and name columns by their numbers from 0 on",
        )


def _example(row: Row, number: str, chosen: Chosen, family: str, columns: ColumnSettings, labelled: bool) -> Example:
    where = row.where
    name = _scalar(row, chosen.id) if chosen.id is not None else number
    if name is None:
        if labelled:
            raise UserError("the id is empty", where, "give each row one, or set no id in [columns]")
        name = number
    answers = label = labels = None
    if family == "multi_label":
        labels = _flagged(row, chosen.flags, columns) if chosen.flags else _several(row, chosen.target, columns)
    elif chosen.target is not None and family != "qa":
        label = rewritten(_scalar(row, chosen.target), columns)
    if label is None and labels is None and labelled and family in NEEDED:
        raise UserError("the label is empty", where, "give each row one, or drop it")
    if family in ("tagging", "intent_slots"):
        words = cut(_words(row, chosen.words), columns, where)
        tags = None
        if chosen.tags is not None and (labelled or lookup(row.values, chosen.tags) is not None):
            tags = tuple(rewritten(tag, columns) or "" for tag in _words(row, chosen.tags))
        check_tags(words, tags, where)
        text = lookup(row.values, chosen.words or "")
        # beside the words, so that what is said of them has its place in the text
        texts = (text,) if isinstance(text, str) and not labelled else ()
        return Example(name, where, texts=texts, words=words, label=label, tags=tags)
    texts = tuple(_text(row, key) for key in chosen.texts)
    spans = _spans(row, chosen.spans, texts)
    if family == "choice":
        choices, beside = _choices(row, chosen.choices)
        asked = " ".join(texts)
        texts = (asked, *choices)
        label = _choice(label, beside, len(choices), where)
    empty = [not text.strip() for text in texts]
    if any(empty[1:]) if family in ("choice", "qa") else labelled and all(empty):
        raise UserError("the text is empty", where, "drop the row, or name another column in [columns]")
    if family in ("regression", "embedding") and label is not None:
        _number(label, where)
    if family == "qa" and chosen.target is not None:
        answers = _answers(row, chosen.target, texts[1], labelled)
    return Example(name, where, texts=texts, label=label, labels=labels, answers=answers, spans=spans)


def rewritten(label: str | None, columns: ColumnSettings) -> str | None:
    """A label or tag as the recipe writes it; None stays."""
    if label is None:
        return None
    if columns.label_until:
        label = label.partition(columns.label_until)[0]
    return columns.labels.get(label, label) or None


def cut(words: tuple[str, ...], columns: ColumnSettings, where: str) -> tuple[str, ...]:
    """Words without the characters that `word_cut` takes off their ends.

    Raises:
        UserError: nothing is left of one, or there are none.
    """
    if not words:
        raise UserError("there are no words", where, "drop the sentence")
    if columns.word_cut:
        words = tuple(word[: -columns.word_cut] for word in words)
    for i, word in enumerate(words):
        if not word:
            raise UserError(f"word {i + 1} is empty", where, "give each word a character, or set word_cut in [columns]")
    return words


def check_tags(words: tuple[str, ...], tags: tuple[str, ...] | None, where: str) -> None:
    """Raise `UserError` unless there is a tag, and not an empty one, for each word, or none are known."""
    if tags is None:
        return
    if len(tags) != len(words):
        raise UserError(f"{counted(len(words), 'word')} but {counted(len(tags), 'tag')}", where, "give each word a tag")
    if "" in tags:
        raise UserError(f"word {tags.index('') + 1} has an empty tag", where, "give each word a tag")


def _scalar(row: Row, key: str | None) -> str | None:
    """A label or an id as text; None where it is empty."""
    value = lookup(row.values, key or "")
    if isinstance(value, dict | list):
        raise UserError(f"{key!r} holds no label but {_kind(value)}", row.where, "name a key of a text or a number")
    if value is None or isinstance(value, str):
        return (value or "").strip() or None
    return json.dumps(value)


def _several(row: Row, key: str | None, columns: ColumnSettings) -> tuple[str, ...] | None:
    """Labels of a list or of a text that is split; none of an empty one; None where nothing stands there."""
    value = lookup(row.values, key or "")
    if value is None:
        return None
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict | list) for one in value)):
        kind = "a list of others" if isinstance(value, list) else _kind(value)
        raise UserError(f"{key!r} holds no labels but {kind}", row.where, 'write ["labels", "like", "these"]')
    names = (
        value.split(columns.label_split) if isinstance(value, str) else value if isinstance(value, list) else [value]
    )
    told = (name.strip() if isinstance(name, str) else json.dumps(name) for name in names)
    found = (rewritten(name, columns) for name in told)
    return tuple(dict.fromkeys(name for name in found if name))


def _flagged(row: Row, keys: tuple[str, ...], columns: ColumnSettings) -> tuple[str, ...]:
    """The labels whose columns hold a 1."""
    found = []
    for key in keys:
        value = lookup(row.values, key)
        flag = str(value).strip().lower().removesuffix(".0")
        if flag not in ("0", "1", "false", "true"):
            told = json.dumps(value, ensure_ascii=False)
            raise UserError(f"{key!r} holds neither 0 nor 1 but {told}", row.where, "mend it, or drop the row")
        if flag in ("1", "true") and (name := rewritten(key, columns)):
            found.append(name)
    return tuple(dict.fromkeys(found))


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a number")


def _text(row: Row, key: str) -> str:
    value = lookup(row.values, key)
    if not isinstance(value, str):
        raise UserError(f"{key!r} holds no text but {_kind(value)}", row.where, "give each row a text")
    return value


def _words(row: Row, key: str | None) -> tuple[str, ...]:
    """Words or tags: a list, or a text that is split at blanks."""
    value = lookup(row.values, key or "")
    if isinstance(value, str):
        return tuple(value.split())
    if value is None:
        return ()
    if not isinstance(value, list) or any(isinstance(item, dict | list) or item is None for item in value):
        raise UserError(f"{key!r} is no list of words", row.where, 'write ["words", "like", "these"]')
    return tuple(item if isinstance(item, str) else json.dumps(item) for item in value)


def _choices(row: Row, keys: tuple[str, ...]) -> tuple[list[str], list[Any]]:
    """The texts to choose from, and the labels that stand beside them, if any do."""
    key, *others = keys
    if others:
        return [_text(row, key) for key in keys], []
    value = lookup(row.values, key)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        remedy = f'set choices = ["{key}.text"] in [columns], or whatever key their texts have'
        raise UserError(f"{key!r} is a list of objects", row.where, remedy)
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(item, str) for item in value):
        raise UserError(f"{key!r} is no list of two texts or more", row.where, "set choices in [columns]")
    beside = lookup(row.values, key.rpartition(".")[0] + ".label") if "." in key else None
    return value, beside if isinstance(beside, list) and len(beside) == len(value) else []


def _choice(label: str | None, beside: list[Any], number: int, where: str) -> str | None:
    """Which choice a label means, as its number from 0 on: by the label beside it, a number or a letter."""
    if label is None:
        return None
    if label in beside:
        return str(beside.index(label))
    if label.isdecimal() and int(label) < number:
        return str(int(label))
    if len(label) == 1 and "A" <= label.upper() <= "Z" and ord(label.upper()) - ord("A") < number:
        return str(ord(label.upper()) - ord("A"))
    what = f"the label {label!r} is none of {number} choices"
    raise UserError(what, where, 'numbers count from 0; where they do not, set labels = {"1" = "0", …} in [columns]')


def _number(label: str, where: str) -> None:
    if not _is_number(label):
        raise UserError(f"the label {label!r} is no finite number", where, "give a number, as 3.5, or drop the row")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _answers(row: Row, key: str, context: str, labelled: bool) -> tuple[Answer, ...] | None:
    """Of a list in the manner of SQuAD; an empty one says that there is none."""
    value = lookup(row.values, key)
    if value is None and not labelled:
        return None
    return answers_of({"answers": value, "is_impossible": value == []}, context, row.where)


def _spans(row: Row, keys: tuple[str, ...], texts: tuple[str, ...]) -> tuple[tuple[int, int, int], ...]:
    """FROM:TO of each column: both of the one text, or one of each of two."""
    spans = []
    for i, key in enumerate(keys):
        value = lookup(row.values, key)
        number = min(i, len(texts) - 1)
        try:
            begin, end = (int(part) for part in (value.split(":") if isinstance(value, str) else value))
        except (TypeError, ValueError):
            what = f"{value!r} in {key!r} is no span"
            raise UserError(what, row.where, "write FROM:TO in characters, as 4:11") from None
        if not 0 <= begin < end <= len(texts[number]):
            what = f"the span {begin}:{end} is not within the {len(texts[number])} characters of its text"
            raise UserError(what, row.where, "count characters from 0 on, the end not included")
        spans.append((number, begin, end))
    return tuple(spans)
