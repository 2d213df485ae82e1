"""Which column of a table is which part of an example.

Where a recipe names no column, exactly one of the usual names below must be among those of the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from bert_jax.errors import UserError
from bert_jax.tasks.settings import ColumnSettings
from bert_jax.tasks.tables import Table

TEXT = ("sentence", "text", "text_a")
PAIRS = (("sentence1", "sentence2"), ("text_a", "text_b"), ("premise", "hypothesis"), ("question1", "question2"))
TEXT_PAIRS = {  # family → the usual names of its two texts
    "pair": PAIRS,
    "multi_label": PAIRS,
    "regression": PAIRS,
    "embedding": (("anchor", "positive"), *PAIRS),
    "qa": (("question", "context"),),
}
ASKED = ("question", "premise", "context", "text")  # of a choice
WORDS = ("words", "tokens", "text")
PLAIN_WORDS = ("words", "text")  # the keys that `predict` knows
TAGS = ("tags", "slots")
ONE_OR_TWO = ("multi_label", "regression")  # texts
TARGETS = {  # family → the usual names of what is learned
    "single": ("label",),
    "pair": ("label",),
    "multi_label": ("labels", "label"),
    "regression": ("score", "label"),
    "choice": ("label", "answerKey"),
    "intent_slots": ("label", "intent"),
    "qa": ("answers",),
    "embedding": ("score",),
}
# families that learn nothing without it
NEEDED = {"single", "pair", "multi_label", "regression", "choice", "intent_slots"}


@dataclass(frozen=True)
class Chosen:
    """The columns of one file, as keys of its rows; None and () where there is none."""

    id: str | None = None
    texts: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    words: str | None = None
    target: str | None = None
    flags: tuple[str, ...] = ()
    tags: str | None = None
    spans: tuple[str, ...] = ()


def choose(table: Table, family: str, columns: ColumnSettings, labelled: bool, plain: bool = False) -> Chosen:
    """Find the columns of an example of a family; with `plain` the names that `predict` knows go before the recipe's.

    Raises:
        UserError: a column is not there, or more than one may be meant; lists those there are.
    """
    texts: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    words = tags = target = None

    def first(*names: str) -> tuple[str, ...]:
        return names if plain else ()

    if family in ("tagging", "intent_slots"):
        words = _needed(table, "word", columns.word or columns.text_a, WORDS, first(*PLAIN_WORDS))
        tags = _one(table, "tag", columns.tag, TAGS, first("tags"), labelled)
    elif family == "choice":
        asked = _one(table, "text_a", columns.text_a, ASKED, first("text"), bool(columns.text_a))
        more = None
        if asked != "text" or not plain:
            more = _one(table, "text_b", columns.text_b, (), (), bool(columns.text_b))
        texts = tuple(key for key in (asked, more) if key is not None)
        names = ("",) if not columns.choices or (plain and "choices" in table.names) else columns.choices
        choices = tuple(_needed(table, "choices", name, ("choices",), first("choices")) for name in names)
    else:
        texts = _texts(table, family, columns, plain)
    if family == "multi_label" and columns.flags and not (plain and "labels" in table.names):
        if labelled or all(table.key(name) is not None for name in columns.flags):
            flags = tuple(_needed(table, "flags", name, (), ()) for name in columns.flags)
    elif family in TARGETS:
        plainly = first({"qa": "answers", "multi_label": "labels"}.get(family, "label"))
        needed = labelled and (family in NEEDED or family == "qa")
        target = _one(table, "label", columns.label, TARGETS[family], plainly, needed)
    spans = tuple(
        _needed(table, name, getattr(columns, name), (), ()) for name in ("span_a", "span_b") if getattr(columns, name)
    )
    name = _one(table, "id", columns.id, (), first("id"), labelled and bool(columns.id))
    return Chosen(name, texts, choices, words, target, flags, tags, spans)


def _texts(table: Table, family: str, columns: ColumnSettings, plain: bool) -> tuple[str, ...]:
    """One column, or the two of a pair."""
    a, b = columns.text_a, columns.text_b
    usual = TEXT_PAIRS.get(family, ())
    pairs = [pair for pair in usual if all(key in table.names for key in pair)]
    plainly = ("question", "context") if family == "qa" else ("text_a", "text_b")
    if plain and plainly in pairs:
        return plainly
    if len(pairs) == 1 and not (a or b):
        return pairs[0]
    if family == "single" or (family in ONE_OR_TWO and not b and (a or not pairs)):
        return (_needed(table, "text_a", a, TEXT, ("text",) if plain else ()),)
    if a and b:
        return tuple(
            _needed(table, setting, name, (), (key,) if plain else ())
            for setting, name, key in zip(("text_a", "text_b"), (a, b), plainly, strict=True)
        )
    told = " or ".join(f"{one} and {other}" for one, other in pairs or usual)
    what = f"which columns are the two texts: {told}?" if pairs else f"no two columns are named {told}"
    raise _no_column(table, what, "text_a and text_b", plainly if plain else ())


def _needed(table: Table, setting: str, name: str, usual: tuple[str, ...], first: tuple[str, ...]) -> str:
    key = _one(table, setting, name, usual, first, needed=True)
    assert key is not None
    return key


def _one(
    table: Table, setting: str, name: str, usual: tuple[str, ...], first: tuple[str, ...], needed: bool
) -> str | None:
    """The first of some names that is there, else the column that a setting names, else the one usual name there."""
    for key in first:
        if key in table.names:
            return key
    if name:
        key = table.key(name)
        if key is None and needed:
            what = f"there is neither {first[0]!r} nor the training file's {name!r}" if first else ""
            raise _no_column(table, what or f"there is no column {name!r}", setting, first)
        return key
    there = [key for key in usual if key in table.names]
    if len(there) > 1:
        raise _no_column(table, f"which column is {setting}: {' or '.join(there)}?", setting, first)
    if not there and needed:
        raise _no_column(table, f"no column is named {' or '.join(usual)}", setting, first)
    return there[0] if there else None


def _no_column(table: Table, what: str, setting: str, first: tuple[str, ...]) -> UserError:
    names = ", ".join(repr(name if len(name) <= 40 else name[:39] + "…") for name in table.names[:30])
    numbers = ", or their numbers from 0 on" if table.numbered else ""
    if table.numbered and len(table.names) == 1 and (mark := next((m for m in ";\t|," if m in table.names[0]), "")):
        kind = 'format = "tsv"' if mark == "\t" else f'format = "csv" and delimiter = {json.dumps(mark)}'
        numbers += f"; or is it {kind} in [task]?"
    remedy = f"name the keys {' and '.join(first)}" if len(first) > 1 else f"name the key {first[0]}" if first else ""
    return UserError(what, table.where, f"{remedy or f'set {setting} in [columns]'}; there are {names}{numbers}")
