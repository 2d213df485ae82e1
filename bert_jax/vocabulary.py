"""`bert-jax vocabulary`: a model with words added, trimmed to a domain's texts, or with another number of rows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bert_jax.api import open_model
from bert_jax.convert import huggingface, sentence_transformers
from bert_jax.convert.directory import keep_apart
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.vocabulary import Edit, add, apply, between, resize, trim
from bert_jax.errors import UserError, counted
from bert_jax.text.tokenizer import Tokenizer

MOST_ROWS = 10_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="the model to change; it stays as it is")
    parser.add_argument("out", type=Path, help="the directory to write")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--add", type=Path, metavar="WORDS", help="a file with a word a line, each to become one piece")
    how.add_argument("--trim", type=Path, nargs="+", metavar="TEXT", help="keep what these UTF-8 texts need, no more")
    how.add_argument("--tokenizer", type=Path, metavar="DIRECTORY", help="follow what `bert-data extend` wrote")
    how.add_argument("--resize", type=int, metavar="ROWS", help="so many rows; those beyond the pieces stay silent")
    how.add_argument("--multiple", type=int, metavar="N", help="rows up to a multiple of N, such as 128")
    parser.add_argument("--use-unused", action="store_true", help="add in the place of [unused0], [unused1], …")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")


def run(args: argparse.Namespace) -> int:
    """Edit, write, print sizes before and after."""
    if args.use_unused and not args.add:
        raise UserError("--use-unused says where added words go", remedy="give --add too, or leave it out")
    keep_apart(args.model, args.out)
    before = open_model(args.model)
    after = apply(_edit(args, before), before)
    sizes = size_of(before), size_of(after)
    provenance = {"edited": str(args.model), "before": asdict(sizes[0]), "after": asdict(sizes[1])}
    write = huggingface.write if after.pooling is None else sentence_transformers.write
    write(args.out, after, force=args.force, provenance=provenance)
    print(table(*sizes))
    for note in before.notes:
        print(note)
    return 0


def _edit(args: argparse.Namespace, model: Loaded) -> Edit:
    if args.add:
        words = [word for line in _lines(args.add) if (word := line.strip())]
        if not words:
            raise UserError("there are no words in the file", str(args.add), "write a word a line")
        return add(model.tokenizer, words, args.use_unused)
    if args.trim:
        return trim(model.tokenizer, (line for path in args.trim for line in _lines(path)))
    if args.tokenizer:
        return between(model.tokenizer, _extension(model.tokenizer, args.tokenizer))
    if max(args.resize or 0, args.multiple or 0) > MOST_ROWS:
        raise UserError(f"more than {MOST_ROWS:,} rows are no vocabulary", remedy="give a smaller number")
    return resize(model.tokenizer, model.config, args.resize, 1 if args.multiple is None else args.multiple)


def _extension(old: Tokenizer, path: Path) -> Tokenizer:
    """The tokenizer there, if it has all pieces of the old one (but for [unused…], in whose place others may stand).

    Raises:
        UserError: it is another vocabulary, whose rows would be guesses.
    """
    new = Tokenizer.load(path)
    kept = set(new.pieces)
    lost = [piece for piece in old.pieces if piece not in kept and not piece.startswith("[unused")]
    if lost:
        raise UserError(
            f"it lacks {counted(len(lost), 'piece')} of the model's, such as {lost[0]!r}",
            str(path),
            "give what `bert-data extend` made of the model's tokenizer",
        )
    return new


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path), "give a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 ({error.reason} at byte {error.start})", str(path), "convert it") from None


# ------------------------------------------------------------------------------------------------------- sizes


@dataclass(frozen=True)
class Size:
    """Of a model: pieces of its tokenizer, rows of its word table, parameters; float32 bytes are four a parameter."""

    pieces: int
    rows: int
    parameters: int


def size_of(model: Loaded) -> Size:
    return Size(model.tokenizer.vocab_size, model.config.vocab_size, _count(model.params))


def _count(tree: Any) -> int:
    return sum(map(_count, tree.values())) if isinstance(tree, dict) else int(tree.size)


def table(before: Size, after: Size) -> str:
    """Both, and what is left in percent, for the terminal."""
    rows = [
        ("pieces", before.pieces, after.pieces, ",.0f"),
        ("rows", before.rows, after.rows, ",.0f"),
        ("parameters", before.parameters, after.parameters, ",.0f"),
        ("MB (float32)", 4e-6 * before.parameters, 4e-6 * after.parameters, ",.1f"),
    ]
    lines = [f"{'':<13}{'before':>14}{'after':>14}{'after/before':>15}"]
    lines += [f"{name:<13}{a:>14{form}}{b:>14{form}}{b / a:>15.1%}" for name, a, b, form in rows]
    return "\n".join(lines)
