"""Settings: frozen dataclasses ← TOML ← `--set a.b=c`, whatever the settings are of.

A key that does not exist names its nearest neighbour, a value that cannot be names the cure. Standard library only, so
that every room may import it.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import json
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError


def read_toml(path: Path) -> dict[str, Any]:
    """The tree in a TOML file.

    Raises:
        UserError: the file is missing or no TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("there is no such recipe", str(path), "the shipped ones are in configs/") from None
    except IsADirectoryError:
        raise UserError("this is a directory", str(path), "name a TOML file") from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path), "name a TOML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start:,}", str(path), "save it as UTF-8 text") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(error, text, path) from None


def _not_toml(error: tomllib.TOMLDecodeError, text: str, path: Path) -> UserError:
    """Where TOML ends, and the line as it stands there: the reader tells its place at the end of its message."""
    lines = text.rstrip().split("\n")
    place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
    line, column = (int(place[1]), int(place[2])) if place else (len(lines), len(lines[-1]) + 1)
    said = lines[min(line, len(lines)) - 1].strip()
    said = said if len(said) <= 60 else said[:59] + "…"
    reason = str(error).partition(" (at ")[0]
    remedy = 'write NAME = VALUE, text in "quotes", true and false in small letters, a section as [name] or [[stage]]'
    if reason.startswith("Cannot"):  # "overwrite a value", "declare … twice"
        remedy = "keep one of the two"
    return UserError(
        f"{said!r} is no TOML ({reason[:1].lower()}{reason[1:]})",
        f"{path}, line {line}, column {column}",
        remedy,
    )


def add_settings(parser: argparse.ArgumentParser, help: str) -> None:
    """`--set KEY=VALUE`, any number of times, as texts for `assign`."""
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help=help)


def assign(tree: dict[str, Any], text: str) -> None:
    """Set `a.b.0.c=value` in a tree as TOML reads it; list places must exist."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!r} is not KEY=VALUE", "--set", "write for example --set train.seed=1")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word, as shells like it: --set model.preset=tiny
    node: Any = tree
    *path, last = key.strip().split(".")
    for place in path:
        if isinstance(node, list):
            node = node[_place(node, place, key)]
        else:
            node = node.setdefault(place, {})
        if not isinstance(node, dict | list):
            raise UserError(f"{place!r} holds a value, not a section", f"--set {key}", "shorten the key")
    if isinstance(node, list):
        node[_place(node, last, key)] = parsed
    else:
        node[last] = parsed


def _place(items: list[Any], text: str, key: str) -> int:
    if not text.isdigit() or int(text) >= len(items):
        raise UserError(f"{text!r} is none of the places 0 to {len(items) - 1}", f"--set {key}", "count stages from 0")
    return int(text)


def build(kind: type, tree: Any, where: str) -> Any:
    """A dataclass from a TOML table, checked key by key."""
    if not isinstance(tree, dict):
        raise UserError(f"a section is needed, not {tree!r}", where, f"write [{where}]")
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in tree.items():
        place = f"{where}.{key}" if where else key
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
            raise UserError("there is no such setting", place, f"did you mean {near[0]!r}?")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            values[key] = build(typing.cast(type, hint), value, place)
        elif typing.get_origin(hint) is tuple and dataclasses.is_dataclass(typing.get_args(hint)[0]):
            if not isinstance(value, list):
                raise UserError("a list of sections is needed", place, f"write [[{place}]]")
            inner = typing.get_args(hint)[0]
            values[key] = tuple(build(inner, item, f"{place}.{i}") for i, item in enumerate(value))
        elif typing.get_origin(hint) is tuple:
            if not isinstance(value, list):
                raise UserError("a list is needed", place, f"write {key} = [ … ]")
            values[key] = tuple(_typed(typing.get_args(hint)[0], item, f"{place}.{i}") for i, item in enumerate(value))
        elif typing.get_origin(hint) is dict:
            if not isinstance(value, dict):
                raise UserError("a table is needed", place, f"write [{place}]")
            values[key] = {
                name: _typed(typing.get_args(hint)[1], item, f"{place}.{name}") for name, item in value.items()
            }
        else:
            values[key] = _typed(hint, value, place)
    try:
        return kind(**values)
    except UserError as error:
        # a section in a list knows its kind but not its number
        raise UserError(
            error.what, error.where.replace("stage", where) if where else error.where, error.remedy
        ) from None


def _typed(hint: type | types.UnionType, value: Any, place: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and type(value) is int:
        return str(value)  # the number of a layer or a column, which shells give without quotes
    if type(value) is not hint:
        name = getattr(hint, "__name__", str(hint))
        quoted = hint is str and type(value) is float
        remedy = f'write "{value}", in quotes' if quoted else f"give a value of type {name}"
        raise UserError(f"{value!r} is no {name}", place, remedy)
    return value


def to_toml(recipe: Any) -> str:
    """A recipe with every default written out: a dataclass whose fields are sections, or tuples of them. What reads
    recipes reads it back equal."""
    lines: list[str] = []
    for section in dataclasses.fields(recipe):
        value = getattr(recipe, section.name)
        single = dataclasses.is_dataclass(value)
        for part in [value] if single else value:
            lines.append(f"[{section.name}]" if single else f"[[{section.name}]]")
            lines += [f"{f.name} = {_toml(getattr(part, f.name))}" for f in dataclasses.fields(part)] + [""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def digest(recipe: Any) -> str:
    """Sixteen hex digits that two recipes share if and only if all their settings are equal."""
    return hashlib.sha256(to_toml(recipe).encode()).hexdigest()[:16]


def flat(recipe: Any) -> dict[str, str]:
    """Every setting as `--set` writes it: names such as `stage.0.steps`, values as JSON."""
    found = {}
    for section in dataclasses.fields(recipe):
        value = getattr(recipe, section.name)
        single = dataclasses.is_dataclass(value)
        for place, part in [("", value)] if single else [(f".{number}", part) for number, part in enumerate(value)]:
            for key, one in dataclasses.asdict(part).items():
                found[f"{section.name}{place}.{key}"] = json.dumps(one, ensure_ascii=False)
    return found


def changes(then: dict[str, str], now: dict[str, str]) -> str:
    """What differs between settings of one kind as `flat` gives them; empty: nothing."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return "; ".join(f"{name} = {then.get(name, 'nothing')}, not {now.get(name, 'nothing')}" for name in names)


def positive(settings: Any, where: str, *names: str) -> None:
    for name in names:
        if getattr(settings, name) <= 0:
            raise UserError(f"{name} = {getattr(settings, name)} is too small", where, "give a number above 0")


def in_range(settings: Any, where: str, **bounds: tuple[float, float]) -> None:
    """Raise `UserError` unless each setting is a number within its bounds, which NaN never is."""
    for name, (low, high) in bounds.items():
        if not low <= getattr(settings, name) <= high:
            raise UserError(
                f"{name} = {getattr(settings, name)} is out of range", where, f"give a number from {low:g} to {high:g}"
            )


def one_of(settings: Any, where: str, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(settings, name)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
        raise UserError(
            f"{name} = {value!r} is unknown",
            where,
            f"choose one of {', '.join(filter(None, choices))} (did you mean {near!r}?)",
        )
