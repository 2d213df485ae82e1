"""Tables: tsv, csv and JSON lines as rows that map the name of a column to what stands in it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError, counted
from bert_jax.tasks.files import lines, read_text, told


@dataclass(frozen=True)
class Row:
    """A row: file and line, and values by column; those of JSON may be objects and lists."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of one file, and every name that one of them has.

    `numbered` is whether columns have numbers as well, `headed` whether their names are the file's first line.
    """

    where: str
    names: tuple[str, ...]
    rows: list[Row]
    numbered: bool
    headed: bool = False

    def key(self, name: str) -> str | None:
        """The column that a name or a number from 0 on (negative: from the end) stands for; None: there is none."""
        if name in self.names:
            return name
        if self.numbered and name.removeprefix("-").isdecimal() and -len(self.names) <= int(name) < len(self.names):
            return self.names[int(name)]
        return None


def read_tsv(path: Path, header: bool, quotes: bool) -> Table:
    """A table of fields with tabs between; without `quotes` a double quote is a character like any other.

    Raises:
        UserError: a row has another number of fields than the first; says its line.
    """
    if quotes:
        return _table(path, _quoted(path, "\t"), header, "put a field that holds a tab into double quotes")
    # Not csv's QUOTE_NONE: it takes a lone carriage return for the end of a row, and refuses long fields.
    rows = ((number, line.split("\t")) for number, line in enumerate(lines(read_text(path)), 1) if line)
    return _table(path, rows, header, "write one tab between fields, or set quotes = true where quotes are around them")


def read_csv(path: Path, header: bool, delimiter: str) -> Table:
    """A table of fields with commas between, or another delimiter; those in double quotes are free to hold it, line
    breaks, and quotes, twice.

    Raises:
        UserError: a row has another number of fields than the first, a quote does not end; says the line.
    """
    remedy = f"put a field that holds {'a comma' if delimiter == ',' else repr(delimiter)} into double quotes"
    return _table(path, _quoted(path, delimiter), header, remedy)


def _quoted(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The line where a row begins, and its fields."""
    csv.field_size_limit(2**31 - 1)  # else fields of more than 131,072 characters are refused
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    while True:
        begin = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = "end each quote, and write one inside of a quoted field twice"
            raise UserError(f"the quotes do not fit ({error})", f"{told(path)}, line {begin}", remedy) from None
        if fields:
            yield begin, fields


def _table(path: Path, rows: Iterator[tuple[int, list[str]]], header: bool, remedy: str) -> Table:
    names: list[str] = []
    found: list[Row] = []
    first = 0
    for line, fields in rows:
        where = f"{told(path)}, line {line}"
        if not names:
            first = line
            names = [name.strip() for name in fields] if header else [str(i) for i in range(len(fields))]
            if len(set(names)) < len(names):
                twice = next(name for i, name in enumerate(names) if name in names[:i])
                raise UserError(f"two columns are named {twice!r}", where, "rename one, or set header = false")
            if header:
                continue
        if len(fields) != len(names):
            raise UserError(f"{counted(len(fields), 'field')}, but line {first} has {len(names)}", where, remedy)
        found.append(Row(where, dict(zip(names, fields, strict=True))))
    if not found:
        raise UserError("the table has a header and no rows", told(path), "give a file with examples")
    return Table(told(path), tuple(names), found, numbered=True, headed=header)


def read_jsonl(path: Path) -> Table:
    """A table of JSON objects, one a line; keys of objects inside others are named with dots.

    Raises:
        UserError: a line is no JSON object; says which.
    """
    rows = []
    for number, line in enumerate(lines(read_text(path)), 1):
        if not line.strip():
            continue
        where = f"{told(path)}, line {number}"
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise UserError("this is not JSON", where, "write one whole JSON object a line") from None
        if not isinstance(value, dict):
            raise UserError("this is not a JSON object", where, 'write {"key": value} on each line') from None
        rows.append(Row(where, value))
    return table_of(told(path), rows)


def table_of(where: str, rows: list[Row]) -> Table:
    """A table of objects; keys of those inside others are named with dots."""
    names = dict.fromkeys(name for row in rows for name in _names(row.values, ""))
    return Table(where, tuple(names), rows, numbered=False)


def _names(value: Any, prefix: str) -> Iterator[str]:
    """The keys of an object, of objects in it, and of the first object of a list."""
    if prefix:
        yield prefix
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _names(inner, f"{prefix}.{key}" if prefix else key)


def lookup(values: Any, key: str) -> Any:
    """What stands under a key, with dots for keys of objects inside others; None: nothing does.

    Of a list, what stands under the key in each of its objects.

    Example:
        >>> lookup({"question": {"choices": [{"text": "bank"}, {"text": "mall"}]}}, "question.choices.text")
        ['bank', 'mall']
    """
    if isinstance(values, list):
        return [lookup(item, key) for item in values]
    if not isinstance(values, dict):
        return None
    if key in values:
        return values[key]
    # A key may hold dots itself, so each place where one stands is tried.
    for i, character in enumerate(key):
        if character == "." and key[:i] in values:
            return lookup(values[key[:i]], key[i + 1 :])
    return None
