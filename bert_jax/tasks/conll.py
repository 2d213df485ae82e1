"""Sentences as words with tags: CoNLL columns, CoNLL-U, word##TAG, and utterances with an intent and slots."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from bert_jax.errors import UserError, counted
from bert_jax.tasks.examples import Example
from bert_jax.tasks.fields import check_tags, cut, rewritten
from bert_jax.tasks.files import find, lines, read_text, told
from bert_jax.tasks.settings import ColumnSettings

FIELDS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
BETWEEN = "##"
PREFIXES = {"IOB1": "BI", "BIO": "BI", "IOBES": "BIES", "BMES": "BMES"}


def read_conll(path: Path, columns: ColumnSettings, labelled: bool = True) -> list[Example]:
    """Sentences of a file with a word a line, columns between tabs or blanks, and a blank line after each sentence.

    Words are in the column `columns.word` (else the first), tags in `columns.tag` (else the last); numbers count from
    0 on, negative ones from the end. `-DOCSTART-` lines are passed over.

    Raises:
        UserError: a line has another number of columns than the first, or no such column; says the line.
    """
    text = read_text(path)
    tabs = "\t" in next(line for line in lines(text) if line.strip())
    word, tag, width, first = 0, -1, 0, 0
    examples = []
    for number, block in _blocks(text):
        rows = []
        for line, content in enumerate(block, number):
            where = f"{told(path)}, line {line}"
            fields = content.split("\t") if tabs else re.split("[ \t]+", content.strip(" \t"))
            if not width:
                width, first = len(fields), line
                word = _place(columns.word, 0, width, "word", where)
                tag = _place(columns.tag, -1, width, "tag", where)
                if labelled and word == tag:
                    raise UserError("words and tags are in the same column", where, "set word and tag in [columns]")
            if len(fields) != width:
                remedy = "give each word all columns, and write an empty line between sentences"
                raise UserError(f"{counted(len(fields), 'column')}, but line {first} has {width}", where, remedy)
            if not fields[word] or (labelled and not fields[tag]):
                raise UserError("the word or its tag is empty", where, "give each word a tag, or drop the line")
            rows.append(fields)
        rows = [row for row in rows if row[word] != "-DOCSTART-"]
        if not rows:
            continue
        tags = tuple(row[tag] for row in rows) if word != tag else None
        words = tuple(row[word] for row in rows)
        examples.append(_tagged(words, tags, columns, str(len(examples)), f"{told(path)}, line {number}"))
    return examples


def read_conllu(path: Path, columns: ColumnSettings, labelled: bool = True) -> list[Example]:
    """Sentences of a CoNLL-U file: its forms, and the field `columns.tag` (else upos); a `# sent_id` is the id.

    Lines of several words (1-2) and of words that are not said (1.1) are passed over.

    Raises:
        UserError: a line has not ten fields; says which.
    """
    tag = columns.tag or "upos"
    if tag not in FIELDS[2:8]:
        raise UserError(f"tag = {tag!r} is no field", "columns", f"choose one of {', '.join(FIELDS[2:8])}")
    examples = []
    for number, block in _blocks(read_text(path)):
        name, words, tags = str(len(examples)), [], []
        for line, content in enumerate(block, number):
            if content.startswith("#"):
                key, _, value = content[1:].partition("=")
                name = value.strip() if key.strip() == "sent_id" else name
                continue
            where = f"{told(path)}, line {line}"
            fields = content.split("\t")
            if len(fields) != len(FIELDS):
                raise UserError(f"{counted(len(fields), 'field')} instead of 10", where, "write them with tabs between")
            if re.fullmatch(r"\d+[-.]\d+", fields[0]):
                continue
            if not fields[0].isdecimal():
                raise UserError(f"{fields[0]!r} is no number of a word", where, "write 1, 2, … as CoNLL-U has them")
            words.append(fields[1])
            tags.append(fields[FIELDS.index(tag)])
        if words:
            # a file to predict may have "_" in place of tags
            known = tuple(tags) if labelled or set(tags) != {"_"} else None
            examples.append(_tagged(tuple(words), known, columns, name, f"{told(path)}, line {number}"))
    return examples


def read_word_tag(path: Path, columns: ColumnSettings, labelled: bool = True) -> list[Example]:
    """Sentences of a file with one a line, word##TAG with blanks between; without `labelled` words may stand alone.

    Raises:
        UserError: a word has no tag; says the line.
    """
    examples = []
    for number, line in enumerate(lines(read_text(path)), 1):
        where = f"{told(path)}, line {number}"
        items = [item for item in line.split(" ") if item]
        if not items:
            continue
        words, tags = tuple(items), None
        if labelled or any(BETWEEN in item for item in items):
            pairs = [item.rpartition(BETWEEN) for item in items]
            wrong = next((item for item, pair in zip(items, pairs, strict=True) if not all(pair)), None)
            if wrong is not None:
                raise UserError(f"{wrong!r} is no word with a tag", where, f"write word{BETWEEN}TAG")
            words, tags = tuple(word for word, _, _ in pairs), tuple(tag for _, _, tag in pairs)
        examples.append(_tagged(words, tags, columns, str(len(examples)), where))
    return examples


def read_utterances(path: Path, family: str, columns: ColumnSettings, labelled: bool = True) -> list[Example]:
    """Lines of a directory: seq.in (words), seq.out (a slot a word) and label (the intent), each perhaps with .gz.

    The tagging family needs no intents. Without `labelled`, seq.in is enough.

    Raises:
        UserError: a file is missing, they have different numbers of lines, or a line of seq.out has another
            number of words than that of seq.in.
    """
    if not path.is_dir():
        raise UserError("this is no directory", str(path), "name one that holds seq.in, seq.out and label")
    content: dict[str, list[str]] = {}
    for name in ("seq.in", "seq.out", "label") if family == "intent_slots" else ("seq.in", "seq.out"):
        there = (path / name).exists() or (path / f"{name}.gz").exists()
        if labelled or there or name == "seq.in":
            content[name] = lines(read_text(find(path / name)))
    said = content["seq.in"]
    for name, others in content.items():
        if len(others) != len(said):
            what = f"{counted(len(others), 'line')}, but seq.in has {len(said):,}"
            raise UserError(what, str(path / name), "give each utterance a line in each file")
    examples = []
    for i, line in enumerate(said):
        words = tuple(word for word in line.split(" ") if word)
        tags = tuple(tag for tag in content["seq.out"][i].split(" ") if tag) if "seq.out" in content else None
        label = rewritten(content["label"][i].strip(), columns) if "label" in content else None
        if labelled and "label" in content and label is None:
            raise UserError("the intent is empty", f"{path / 'label'}, line {i + 1}", "give each utterance one")
        check_tags(words, tags, f"{path / 'seq.out'}, line {i + 1}")
        examples.append(_tagged(words, tags, columns, str(i), f"{path / 'seq.in'}, line {i + 1}", label))
    return examples


def check_scheme(examples: list[Example], scheme: str) -> None:
    """Raise `UserError` where a tag is not written as a scheme of spans has it; none is asked of scheme ""."""
    for example in examples if scheme else ():
        for i, tag in enumerate(example.tags or ()):
            if tag != "O" and not (tag[:1] in PREFIXES[scheme] and tag[1:2] == "-" and tag[2:]):
                what = f"the tag {tag!r} of word {i + 1} is none of {scheme}"
                remedy = f"write O or {' or '.join(PREFIXES[scheme])}, a hyphen and a name, or set scheme in [task]"
                raise UserError(what, example.where, remedy)


def _tagged(
    words: tuple[str, ...],
    tags: tuple[str, ...] | None,
    columns: ColumnSettings,
    name: str,
    where: str,
    label: str | None = None,
) -> Example:
    tags = tuple(rewritten(tag, columns) or "" for tag in tags) if tags is not None else None
    check_tags(words, tags, where)
    return Example(name, where, words=cut(words, columns, where), label=label, tags=tags)


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Runs of lines that are not blank, each with the number of its first line."""
    block: list[str] = []
    for number, line in enumerate([*lines(text), ""], 1):
        if line.strip():
            block.append(line)
        elif block:
            yield number - len(block), block
            block = []


def _place(name: str, usual: int, width: int, setting: str, where: str) -> int:
    """A column by its number, counted from the front."""
    if name and not name.removeprefix("-").isdecimal():
        raise UserError(f"{setting} = {name!r} is no number", "columns", "columns of conll are numbers from 0 on")
    place = int(name) if name else usual
    if not -width <= place < width:
        what = f"there is no column {place}: the line has {counted(width, 'column')}"
        raise UserError(what, where, f"set {setting} in [columns] to a number from 0 to {width - 1}")
    return place % width
