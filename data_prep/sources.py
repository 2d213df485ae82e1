"""Where text comes from: names of inputs, what they hold, the documents in them, how often each is gone through.

An input is named by a string: a file or URL (gs://, s3://) in one of the formats below, `tfds:NAME[:SPLIT]` for a
data set prepared by tensorflow-datasets, or `hf:NAME[@CONFIG][:SPLIT]` for one that Hugging Face's datasets opens; both
names may be a directory, and the split is train if none is given. On a command line come globs, directories and `-`
(standard input, see `capture`), each of them perhaps as `SOURCE=...` to give the text a source's name.

Formats, each also packed as .gz, .zst or .bz2:
  .txt                    a blank line or the end of the file ends a document, a line is a paragraph
  .jsonl .ndjson .json    one object a line, its key "text" is a document
  .md .markdown           one document a file, markup and code blocks taken off
  .parquet                its column "text", a document a row
  WikiExtractor's files   `<doc …>` in the first line, whatever the name
A document is a string whose lines are its paragraphs: stripped, none of them empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bert_jax.errors import UserError
from bert_jax.text.corrupt import uniform
from data_prep import formats, paths

STANDARD_INPUT = "-"
_EXTRACTED = re.compile(r"wiki_\d+")  # WikiExtractor's names, which have no suffix


@dataclass(frozen=True)
class Input:
    """One input as the manifest records it."""

    name: str
    bytes: int
    sha256: str


# -- names -----------------------------------------------------------------------------------------------------------


def expand(patterns: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Inputs named by files, URLs, globs (`**` too), directories, data sets and `-`, each once.

    Directories give the files below them that have a known suffix; how many others they hold is printed. What a
    directory or a glob gives is sorted by name, so that the order hangs on names alone.

    Raises:
        UserError: a pattern without a match, or a directory without a file of text.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        for one in _matches(os.fspath(pattern)):
            found.setdefault(_identity(one), one)
    if not found:
        raise UserError("no input is given", remedy="name files, globs or directories")
    return list(found.values())


def named(patterns: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of source and input: patterns may be written SOURCE=PATTERN; without, the source is "".

    A file whose own name holds a = is taken for what it is.

    Raises:
        UserError: as `expand`; or one input under two sources.
    """
    found: dict[str, tuple[str, str]] = {}
    for pattern in patterns:
        parts = re.fullmatch(r"([\w.-]+)=(.+)", pattern, re.DOTALL)
        if parts and not os.path.exists(pattern) and not paths.glob(pattern):
            source, pattern = parts.groups()
        else:
            source = ""
        for one in expand([pattern]):
            known, _ = found.setdefault(_identity(one), (source, one))
            if known != source:
                raise UserError(f'the input belongs to two sources, "{known}" and "{source}"', one, "name it once")
    if not found:
        raise UserError("no input is given", remedy="name files, globs or directories")
    return list(found.values())


def check_apart(patterns: Iterable[str], directory: str) -> None:
    """Refuses an output in a directory of inputs: the next run would take what stands there for text.

    Raises:
        UserError: `directory` is one of the directories among the patterns, or lies in one.
    """
    for pattern in patterns:
        for name in (pattern, pattern.partition("=")[2]):
            if name and paths.is_directory(name) and f"{_identity(directory)}/".startswith(f"{_identity(name)}/"):
                raise UserError(
                    f"the output would lie in {name}, among the inputs", directory, "give an --out beside it"
                )


def _identity(name: str) -> str:
    """The same for all names of a file of this machine."""
    return name if name == STANDARD_INPUT or _is_data_set(name) or paths.is_remote(name) else os.path.realpath(name)


def _matches(pattern: str) -> list[str]:
    if pattern == STANDARD_INPUT or _is_data_set(pattern):
        return [pattern]
    try:
        if paths.is_directory(pattern):
            return _directory(pattern)
        matches = [pattern] if paths.exists(pattern) else [m for m in paths.glob(pattern) if not paths.is_directory(m)]
    except OSError as error:
        raise UserError(f"this cannot be looked up ({paths.reason(error)})", pattern) from None
    if not matches:
        raise UserError("no file matches", pattern, "check the path; quote a glob to pass it as it is")
    return [match if paths.is_remote(match) else str(Path(match)) for match in matches]


def _directory(directory: str) -> list[str]:
    every = paths.files_below(directory)
    known = [name for name in every if _is_text(name)]
    if not known:
        what = f"none of the {len(every)} files in this directory is text" if every else "this directory is empty"
        raise UserError(
            what, directory, f"known are {', '.join(dict.fromkeys(_SUFFIXES))}, also {', '.join(formats.PACKED)}"
        )
    if skipped := len(every) - len(known):
        print(f"{directory}: {len(known)} files taken, {skipped} with other suffixes left out", file=sys.stderr)
    return [name if paths.is_remote(name) else str(Path(name)) for name in known]


_SUFFIXES = [suffix for suffix, kind in formats.KINDS.items() if kind != "tsv"]


def _is_text(name: str) -> bool:
    plain = name.replace("\\", "/").rsplit("/", 1)[-1]
    for packed in formats.PACKED:
        plain = plain.removesuffix(packed)
    return formats.suffix(name) in _SUFFIXES or _EXTRACTED.fullmatch(plain) is not None


def _is_data_set(name: str) -> bool:
    return name.startswith(("tfds:", "hf:")) and not os.path.exists(name)


# -- what an input is, and its documents -----------------------------------------------------------------------------


def describe(name: str | os.PathLike[str]) -> Input:
    """Name, size and SHA-256 of a file as it lies there, read to its end.

    Of a data set: the bytes that its library tells (of a part of a split, estimated by examples), and the SHA-256 of
    its name, version or fingerprint, split and number of examples.

    Raises:
        UserError: it cannot be read.
    """
    name = _captured(name)
    if _is_data_set(name):
        return (_describe_tfds if name.startswith("tfds:") else _describe_hf)(name)
    digest, size = hashlib.sha256(), 0
    try:
        if not paths.is_remote(name) and stat.S_ISFIFO(os.stat(name).st_mode):
            raise UserError("this is a pipe, and inputs are read twice", name, "pipe into the command, with - as input")
        with paths.open_read(name) as file:
            while block := file.read(formats.BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise UserError(f"the file cannot be read ({paths.reason(error)})", name) from None
    return Input(name if paths.is_remote(name) else os.path.basename(name), size, digest.hexdigest())


def documents(name: str | os.PathLike[str], bad_bytes: str = "fail") -> Iterator[str]:
    """The documents of one input, in order, without empty ones.

    Args:
        name: as `expand` gives it.
        bad_bytes: "fail", or "replace" to put U+FFFD where bytes are not UTF-8 and to let NULs pass.

    Raises:
        UserError: unreadable, empty, binary, damaged or not UTF-8 (line and byte named), not of its format, or
            without the library that it needs.
    """
    name = _captured(name)
    count = 0
    for count, document in enumerate(_found(name, bad_bytes), 1):  # noqa: B007
        yield document
    if not count:
        raise UserError("the input holds no text", name, "leave it out or fill it")


def texts(name: str | os.PathLike[str], bad_bytes: str = "fail") -> Iterator[str]:
    """All texts of an evaluation file: every cell of .tsv, every string inside a line of .jsonl, else its documents.

    Raises:
        UserError: as `documents`.
    """
    name = _captured(name)
    kind = formats.KINDS.get(formats.suffix(name), "")
    if _is_data_set(name) or kind not in ("tsv", "jsonl"):
        yield from documents(name, bad_bytes)
        return
    pieces = formats.whole_lines(formats.blocks(name), name, bad_bytes)
    if kind == "jsonl":
        for _, value in formats.json_values(pieces, name):
            yield from formats.strings(value)
    else:
        for _, piece in pieces:
            yield from (cell for line in piece.split("\n") for cell in line.split("\t") if cell.strip())


def capture(stream: BinaryIO, directory: str | os.PathLike[str]) -> str:
    """Writes standard input to a file, so that it can be read again; its format is told by its first line.

    Args:
        stream: bytes, as `sys.stdin.buffer`.
        directory: where the file `standard-input` is made; it appears whole or not at all.

    Returns:
        The file's name, an input as others.

    Raises:
        UserError: nothing came, or the file cannot be written.
    """
    target = paths.join(directory, "standard-input")
    try:
        with paths.appearing(target) as temporary:
            with open(temporary, "wb") as file:
                shutil.copyfileobj(stream, file, formats.BLOCK)
            if not os.path.getsize(temporary):
                raise UserError("nothing came", "standard input", "pipe text into the command, or name files")
    except OSError as error:
        raise UserError(f"standard input cannot be kept ({paths.reason(error)})", target) from None
    return target


def captured(patterns: Iterable[str], directory: str | os.PathLike[str]) -> list[str]:
    """The patterns, `-` and `SOURCE=-` among them replaced by what `capture` makes of this process's standard input."""
    found, kept = [], ""
    for pattern in patterns:
        source, sign, name = pattern.rpartition("=")
        if name == STANDARD_INPUT and not os.path.exists(pattern):
            kept = kept or capture(sys.stdin.buffer, directory)
            pattern = source + sign + kept
        found.append(pattern)
    return found


@contextlib.contextmanager
def kept(patterns: Iterable[str]) -> Iterator[list[str]]:
    """As `captured`, in a temporary directory."""
    with tempfile.TemporaryDirectory() as folder:
        yield captured(patterns, folder)


def _captured(name: str | os.PathLike[str]) -> str:
    if (name := os.fspath(name)) == STANDARD_INPUT:
        raise ValueError("standard input is read once only: give the file that `capture` makes of it")
    return name


def _found(name: str, bad_bytes: str) -> Iterator[str]:
    if _is_data_set(name):
        return (_tfds_documents if name.startswith("tfds:") else _hf_documents)(name, bad_bytes)
    kind = formats.KINDS.get(formats.suffix(name), "")
    if kind == "parquet":
        packed = name.lower().endswith(formats.PACKED)
        return formats.parquet(formats.blocks(name) if packed else None, name, bad_bytes)
    kind, pieces = formats.detect(formats.whole_lines(formats.blocks(name), name, bad_bytes), kind)
    if kind == "jsonl":
        return formats.json_lines(pieces, name, bad_bytes)
    if kind == "markdown":
        return formats.markdown(pieces, name)
    return formats.wikipedia(pieces, name) if kind == "wikipedia" else formats.text(pieces, name)


# -- data sets of other libraries ------------------------------------------------------------------------------------


def _parsed(name: str) -> tuple[str, str]:
    """The data set's name and its split; a tfds version, as in `c4/en:3.1.0`, belongs to the name."""
    body = name.split(":", 1)[1]
    if os.path.isdir(body):
        return body, "train"
    parts = re.fullmatch(r"([^:]+(?::[\d*]+\.[\d*]+\.[\d*]+)?)(?::(.+))?", body)
    if not parts:
        raise UserError("this is no name of a data set", name, "write tfds:NAME[:SPLIT] or hf:NAME[@CONFIG][:SPLIT]")
    return parts[1], parts[2] or "train"


def _tfds(name: str) -> tuple[Any, Any, str]:
    """Builder, its info of the split, and the split's name."""
    tfds = formats.library("tensorflow_datasets", "tensorflow-datasets", "tfds", name)
    data_set, split = _parsed(name)
    try:
        builder = tfds.builder_from_directory(data_set) if os.path.isdir(data_set) else tfds.builder(data_set)
        if builder.info.splits:
            return builder, builder.info.splits[split], split
    except Exception as error:  # not found, no such split, a version that is not there: the library has many
        raise UserError(f"the data set cannot be opened ({_first_line(error)})", name) from None
    remedy = f"run: tfds build {data_set} --file_format=array_record"
    raise UserError("the data set is not prepared on this machine", name, remedy)


def _describe_tfds(name: str) -> Input:
    builder, info, split = _tfds(name)
    size = getattr(info, "num_bytes", 0)
    if not size:  # part of a split
        whole = builder.info.splits.values()
        size = info.num_examples * sum(one.num_bytes for one in whole) // max(1, sum(one.num_examples for one in whole))
    identity = [builder.info.full_name, split, int(info.num_examples), int(size)]
    return _data_set(f"tfds:{builder.info.full_name}:{split}", size, identity)


def _tfds_documents(name: str, bad_bytes: str) -> Iterator[str]:
    """In the order in which the library wrote them; no TensorFlow is needed for that, but array_record or Parquet."""
    builder, _, split = _tfds(name)
    _check_column(list(builder.info.features), name)
    try:
        examples = builder.as_data_source(split=split)
    except Exception as error:
        what = f"the data set cannot be read without TensorFlow ({_first_line(error)})"
        remedy = f"prepare it anew: tfds build {_parsed(name)[0]} --file_format=array_record"
        raise UserError(what, name, remedy) from None
    for number in range(len(examples)):
        if document := _document(examples[number]["text"], f"{name}, example {number}", bad_bytes):
            yield document


def _hf(name: str) -> Any:
    """A `datasets.Dataset`: saved by save_to_disk, or whatever load_dataset finds under the name."""
    library = formats.library("datasets", "datasets", "sources", name)
    data_set, split = _parsed(name)
    try:
        directory = any(os.path.exists(os.path.join(data_set, one)) for one in ("state.json", "dataset_dict.json"))
        if directory:
            saved = library.load_from_disk(data_set)
        else:
            data_set, _, config = data_set.partition("@")
            saved = library.load_dataset(data_set, config or None, split=split)
    except Exception as error:  # not found, no network, no such configuration: each has its own class
        raise UserError(f"the data set cannot be opened ({_first_line(error)})", name) from None
    if not isinstance(saved, library.DatasetDict):
        if directory and split not in ("train", str(saved.split)):
            raise UserError("the data set was saved without splits", name, f"leave out :{split}")
        return saved
    if split not in saved:
        raise UserError(f"the data set has no split {split}", name, f"name one of its splits: {', '.join(saved)}")
    return saved[split]


def _describe_hf(name: str) -> Input:
    data_set, split = _parsed(name)
    table = _hf(name)
    told = (table.info.splits or {}).get(split)
    size = told.num_bytes if told else table.data.nbytes
    short = f"hf:{os.path.basename(data_set.rstrip('/')) if os.path.isdir(data_set) else data_set}:{split}"
    # The fingerprint of a Dataset is documented and kept with it, but has no public name.
    return _data_set(short, size, [short, table._fingerprint, len(table)])


def _hf_documents(name: str, bad_bytes: str) -> Iterator[str]:
    table = _hf(name)
    _check_column(table.column_names, name)
    number = 0
    for batch in table.select_columns(["text"]).iter(batch_size=256):
        for number, value in enumerate(batch["text"], number):  # noqa: B020
            if value and (document := _document(value, f"{name}, example {number}", bad_bytes)):
                yield document
        number += 1


def _data_set(name: str, size: int, identity: list) -> Input:
    return Input(name, int(size), hashlib.sha256(json.dumps(identity).encode()).hexdigest())


def _check_column(columns: list[str], name: str) -> None:
    if "text" not in columns:
        raise UserError('the data set has no feature "text"', name, f"it has {', '.join(columns[:9])}")


def _document(value: Any, where: str, bad_bytes: str) -> str:
    if not isinstance(value, str | bytes):
        raise UserError(f'the feature "text" is {type(value).__name__}, not a string', where)
    return formats.tidy(formats.from_bytes(value, where, bad_bytes))


def _first_line(error: Exception) -> str:
    text = str(error.args[0]) if error.args else ""
    return text.split("\n")[0].strip().rstrip(".") or type(error).__name__


# -- several sources -------------------------------------------------------------------------------------------------


def copies(
    bytes_by_source: dict[str, int], weights: dict[str, float] | None = None, smoothing: float | None = None
) -> dict[str, float]:
    """How often each source's documents are gone through, on average.

    Args:
        bytes_by_source: the text of each source.
        weights: passes over a source; 1 where none is given, 0 leaves it out.
        smoothing: S: a source's share of the text q becomes proportional to q ** S, the total stays as it is.
            Multilingual BERT took 0.7 (google-research/bert, multilingual.md).

    Raises:
        UserError: both ways at once, an unknown source, a negative weight, nothing left, or S outside of 0 to 1.

    Example:
        >>> copies({"en": 900, "sw": 100}, smoothing=0.5)
        {'en': 0.8333333333333334, 'sw': 2.5}
    """
    if weights and smoothing is not None:
        raise UserError("sources have either weights or smoothing, not both", remedy="leave one of them out")
    if smoothing is not None:
        if not 0 <= smoothing <= 1:
            raise UserError(
                f"smoothing is {smoothing:g}", remedy="give a number from 0 (equal shares) to 1 (as they are)"
            )
        total = sum(bytes_by_source.values())
        raised = {name: (size / total) ** smoothing for name, size in bytes_by_source.items() if size}
        whole = sum(raised.values())
        shares = {name: part / whole for name, part in raised.items()}
        return {name: shares[name] * total / size if size else 1.0 for name, size in bytes_by_source.items()}
    for name, weight in (weights or {}).items():
        if name not in bytes_by_source:
            raise UserError(f'there is no source "{name}" to weigh', remedy=f"sources are {', '.join(bytes_by_source)}")
        if not 0 <= weight < float("inf"):
            raise UserError(f"the weight of {name} is {weight:g}", remedy="give a number of passes, 0 or more")
    made = {name: float((weights or {}).get(name, 1.0)) for name in bytes_by_source}
    if made and not any(made.values()):
        raise UserError("all sources have weight 0", remedy="give one of them more")
    return made


def passes(hashes: np.ndarray, mean: float) -> np.ndarray:
    """How often each document is gone through: `mean` rounded down, and once more for the right share of them.

    Which ones is decided by the document's hash alone, mixed so that it has nothing to do with what else hangs on
    the hash (the held-out documents are those of low hashes).

    Args:
        hashes: uint64[n].
        mean: 0 or more.

    Returns:
        int64[n].
    """
    once = int(mean)
    return once + (uniform(hashes, 0) < mean - once).astype(np.int64)
