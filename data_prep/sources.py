"""Documents out of files: plain text and JSON lines, each also .gz and .zst.

Plain text: a blank line or the end of a file ends a document, a line is a paragraph. JSON lines: one object a
line, its key "text" is the document. A document is a string whose lines are its paragraphs.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bert_jax.errors import UserError

_BLOCK = 1 << 20
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


@dataclass(frozen=True)
class Input:
    """One input file as the manifest records it."""

    name: str
    bytes: int
    sha256: str


def expand(patterns: Iterable[str]) -> list[Path]:
    """Files named by paths and globs (`**` too), the matches of each sorted by name, each once.

    Raises:
        UserError: a pattern without a match, or a directory.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise UserError("no file matches", pattern, "check the path; quote a glob to pass it as it is")
        for match in matches:
            if os.path.isdir(match):
                if len(matches) > 1:
                    continue
                raise UserError("this is a directory", match, f"name its files, as in '{match.rstrip('/')}/*.txt'")
            found.setdefault(Path(match))
    if not found:
        raise UserError("no file matches", " ".join(patterns), "check the path")
    return list(found)


def describe(path: Path) -> Input:
    """Name, size and SHA-256 of a file as it lies there."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
            return Input(path.name, file.tell(), digest.hexdigest())
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror})", str(path)) from None


def documents(path: Path, bad_bytes: str = "fail") -> Iterator[str]:
    """The documents of one file, in order.

    Args:
        path: the suffix (before .gz or .zst) decides: .jsonl, .ndjson and .json are JSON lines, the rest
            text.
        bad_bytes: "fail", or "replace" to put U+FFFD where bytes are not UTF-8.

    Raises:
        UserError: unreadable, empty, binary, damaged or not UTF-8 (line and byte named), or bad JSON.
    """
    name = path.name.lower()
    for suffix in (".gz", ".zst"):
        name = name.removesuffix(suffix)
    lines = _decoded(path, bad_bytes)
    found = _json_lines(lines, path, bad_bytes) if name.endswith((".jsonl", ".ndjson", ".json")) else _paragraphs(lines)
    count = 0
    for count, document in enumerate(found, 1):  # noqa: B007
        yield document
    if not count:
        raise UserError("the file holds no text", str(path), "leave it out or fill it")


def _paragraphs(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    document: list[str] = []
    for _, line in lines:
        if line := line.strip():
            document.append(line)
        elif document:
            yield "\n".join(document)
            document = []
    if document:
        yield "\n".join(document)


def _json_lines(lines: Iterator[tuple[int, str]], path: Path, bad_bytes: str) -> Iterator[str]:
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            text = json.loads(line)["text"]
        except json.JSONDecodeError as error:
            raise UserError(f"this is not JSON ({error.msg} at column {error.colno})", where) from None
        except (KeyError, TypeError, IndexError, RecursionError):
            raise UserError('this is not an object with a key "text"', where) from None
        if not isinstance(text, str):
            raise UserError('the value of "text" is not a string', where)
        try:
            text.encode()
        except UnicodeEncodeError:
            if bad_bytes == "fail":
                raise UserError(
                    "the text holds half of a surrogate pair",
                    where,
                    "mend it, or pass --on-bad-bytes replace",
                ) from None
            text = text.translate(_SURROGATES)
        paragraphs = [stripped for part in text.split("\n") if (stripped := part.strip())]
        if paragraphs:
            yield "\n".join(paragraphs)


def _decoded(path: Path, bad_bytes: str) -> Iterator[tuple[int, str]]:
    """Numbered lines as text. Only \\n ends a line: U+0085 and U+2028 are characters like others."""
    offset = 0
    for number, raw in enumerate(_lines(path), 1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if b"\0" in raw and bad_bytes == "fail":
            raise UserError(
                f"the file is binary: line {number} holds a NUL at byte {offset + raw.index(0)}",
                str(path),
                "leave it out, or pass --on-bad-bytes replace",
            )
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            if bad_bytes == "fail":
                raise UserError(
                    f"line {number} is not UTF-8 at byte {offset + error.start} ({error.reason})",
                    str(path),
                    "convert the file, or pass --on-bad-bytes replace",
                ) from None
            yield number, raw.decode("utf-8", "replace")
        offset += len(raw) + 1


def _lines(path: Path) -> Iterator[bytes]:
    rest: list[bytes] = []
    for block in _blocks(path):
        first, *others = block.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    if last := b"".join(rest):
        yield last


def _blocks(path: Path) -> Iterator[bytes]:
    """The unpacked bytes of a file. A damaged or cut stream is an error, never a short read."""
    try:
        with open(path, "rb") as file:
            if path.suffix == ".gz":
                with gzip.open(file) as unpacked:
                    while block := unpacked.read(_BLOCK):
                        yield block
            elif path.suffix == ".zst":
                yield from _unzstd(file, path)
            else:
                while block := file.read(_BLOCK):
                    yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"the gzip stream is damaged ({error})", str(path), "copy or make it again") from None
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror})", str(path)) from None


def _unzstd(file, path: Path) -> Iterator[bytes]:
    import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()
    begun = False
    try:
        while block := file.read(_BLOCK):
            while block:
                begun = True
                if unpacked := frame.decompress(block):
                    yield unpacked
                block = b""
                if frame.eof:  # files may hold several frames, one after the other
                    block, begun = frame.unused_data, False
                    frame = zstandard.ZstdDecompressor().decompressobj()
    except zstandard.ZstdError as error:
        raise UserError(f"the zstd stream is damaged ({error})", str(path), "copy or make it again") from None
    if begun:
        raise UserError("the zstd stream is cut", str(path), "copy or make it again")
