"""Files of a task → its examples: which format, which splits, how many.

Formats are in tables.py (tsv, csv, jsonl), conll.py (conll, conllu, word_tag, utterances) and squad.py; which column is
what, in columns.py, and what stands in it, in fields.py.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.tasks import conll
from bert_jax.tasks.entities import SLOTS
from bert_jax.tasks.examples import Example
from bert_jax.tasks.fields import table_examples
from bert_jax.tasks.files import STANDARD_INPUT, find, lines, read_text, told
from bert_jax.tasks.settings import ColumnSettings, TaskRecipe, TaskSettings
from bert_jax.tasks.squad import read_squad
from bert_jax.tasks.tables import Row, Table, read_csv, read_jsonl, read_tsv, table_of

ENDINGS = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".json": "squad",
    ".conll": "conll",
    ".bio": "conll",
    ".bmes": "conll",
    ".conllu": "conllu",
}
WORD_FORMATS = ("conll", "conllu", "word_tag", "utterances")


@dataclass(frozen=True)
class Splits:
    """The examples of a task, none where a recipe names no file, and the files they are from, by split."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    files: dict[str, Path] = field(default_factory=dict)


def read_splits(data: Path, recipe: TaskRecipe) -> Splits:
    """Read the files that a recipe names, from a data directory on.

    Where there is no dev file, `dev_share` of the training examples are held out, drawn with `sample_seed`; limits are
    drawn after that. A larger limit keeps all that a smaller one kept. Examples stay in the order of their file.

    Raises:
        UserError: a file is missing or `read_examples` refuses it; too little is left to train on.
    """
    task = recipe.task
    if not data.is_dir():
        raise UserError("there is no such directory", str(data), "name the one that holds the files of the task")
    found: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
    files = {}
    for split in found:
        name = getattr(task, split)
        if name:
            files[split] = find(data / name)
            found[split] = read_examples(files[split], task, recipe.columns)
    train = found["train"]
    if task.dev_share and train and "dev" not in files:
        held = max(1, round(task.dev_share * len(train)))
        if held == len(train):
            raise UserError(f"dev_share = {task.dev_share:g} leaves nothing to train on", "task", "give more examples")
        chosen = set(_drawn(len(train), held, task.sample_seed))
        found["dev"] = [example for i, example in enumerate(train) if i in chosen]
        found["train"] = [example for i, example in enumerate(train) if i not in chosen]
    for split, limit in (("train", task.train_limit), ("dev", task.dev_limit), ("test", task.test_limit)):
        examples = found[split]
        if 0 < limit < len(examples):
            found[split] = [examples[i] for i in _drawn(len(examples), limit, task.sample_seed)]
    return Splits(found["train"], found["dev"], found["test"], files)


def _drawn(number: int, wanted: int, seed: int) -> list[int]:
    """So many of the numbers below another, in their order."""
    order = list(range(number))
    random.Random(seed).shuffle(order)
    return sorted(order[:wanted])


def read_examples(path: Path, task: TaskSettings, columns: ColumnSettings, labelled: bool = True) -> list[Example]:
    """The examples of one file, or of the file with `.gz` behind its name.

    With `labelled`, each must have its label, tags or answers, and some text; without, as to predict, those that are
    missing are None.

    Raises:
        UserError: the file cannot be read as the format of the task, a column is not there, an example is wrong; says
            the line.
    """
    path = find(path)
    kind = task.format if task.format != "auto" else _format(path, task.family)
    if kind == "squad":
        if task.family != "qa":
            raise UserError(f"the family {task.family} is not read from squad", told(path), 'set family = "qa"')
        return read_squad(path, labelled)
    if kind in WORD_FORMATS:
        if task.family not in ("tagging", "intent_slots"):
            remedy = 'set family = "tagging" or another format in [task]'
            raise UserError(f"the family {task.family} is not read from {kind}", told(path), remedy)
        examples = _words(path, kind, task, columns, labelled)
    else:
        examples = table_examples(_table(path, kind, task), task.family, _fitting(kind, columns), labelled)
    conll.check_scheme(examples, task.scheme or (SLOTS if task.family == "intent_slots" else ""))
    return examples


def read_inputs(path: Path | str, family: str, columns: ColumnSettings | None = None) -> list[Example]:
    """Examples to predict: JSON lines with plain keys, from a file or, with "-", from standard input.

    Keys are `text` (single), `text_a` and `text_b` (pair, regression, embedding; regression also `text`), `text` and
    `choices` (choice), `question` and `context` (qa), `words` or a `text` that is split at blanks (tagging,
    intent_slots); where these are missing, those of `columns` or the usual ones of columns.py. There may be an `id`, a
    `label`, `tags` and `answers`.

    Raises:
        UserError: a line is no JSON object, or has no such key; lists the keys there are.
    """
    source = find(Path(path))
    return table_examples(read_jsonl(source), family, columns or ColumnSettings(), labelled=False, plain=True)


def read_objects(objects: Sequence[Any], family: str, columns: ColumnSettings | None = None) -> list[Example]:
    """Examples to predict, as `read_inputs` takes them from lines; `where` counts them from 0 on.

    Raises:
        UserError: one is no object, or has no such key; lists the keys there are.
    """
    rows = []
    for number, one in enumerate(objects):
        if not isinstance(one, Mapping):
            remedy = "give a text, or a dict of its parts"
            raise UserError(f"this is {type(one).__name__}", f"examples[{number}]", remedy)
        rows.append(Row(f"examples[{number}]", dict(one)))
    return table_examples(table_of("examples", rows), family, columns or ColumnSettings(), labelled=False, plain=True)


def _format(path: Path, family: str) -> str:
    if path.is_dir():
        if family not in ("tagging", "intent_slots"):
            raise UserError("this is a directory", str(path), "name a file in it")
        return "utterances"
    name = path.name.removesuffix(".gz")
    if path == STANDARD_INPUT:
        return "jsonl"
    for ending, kind in ENDINGS.items():
        if name.endswith(ending):
            return kind
    known = ", ".join(ENDINGS)
    raise UserError("the name does not tell the format", str(path), f"set format in [task], or end it in {known}")


def _table(path: Path, kind: str, task: TaskSettings) -> Table:
    if kind == "tsv":
        return read_tsv(path, task.header, task.quotes)
    if kind == "csv":
        return read_csv(path, task.header, task.delimiter)
    if kind == "jsonl":
        return read_jsonl(path)
    rows = []
    for number, line in enumerate(lines(read_text(path)), 1):
        label, _, text = line.partition(" ")
        if line:
            rows.append(Row(f"{told(path)}, line {number}", {"label": label, "text": text}))
    return Table(told(path), ("label", "text"), rows, numbered=False)


def _fitting(kind: str, columns: ColumnSettings) -> ColumnSettings:
    """label_text has two columns whose names are given."""
    return replace(columns, text_a="text", label="label") if kind == "label_text" else columns


def _words(path: Path, kind: str, task: TaskSettings, columns: ColumnSettings, labelled: bool) -> list[Example]:
    if kind == "utterances":
        return conll.read_utterances(path, task.family, columns, labelled)
    if task.family == "intent_slots":
        remedy = 'set format = "utterances" or "jsonl" in [task]'
        raise UserError(f"{kind} holds no intents", told(path), remedy)
    if kind == "conll":
        return conll.read_conll(path, columns, labelled)
    return (conll.read_conllu if kind == "conllu" else conll.read_word_tag)(path, columns, labelled)
