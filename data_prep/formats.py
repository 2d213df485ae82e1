"""Bytes of a file to documents: one function a format, all streaming.

A document is a string whose lines are its paragraphs, stripped and none of them empty. Only \\n ends a line: U+0085
and U+2028 are characters like others.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import json
import re
import tempfile
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO

from bert_jax.errors import UserError
from data_prep import paths

BLOCK = 1 << 18  # fits the processor's cache through all steps
PACKED = (".gz", ".zst", ".bz2")
KINDS = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".md": "markdown",
    ".markdown": "markdown",
    ".parquet": "parquet",
    ".tsv": "tsv",
}
_LONGEST = 1 << 30  # bytes of a line or a document; a few times that is what memory must hold
_LONGEST_PAGE = 1 << 24  # bytes of a markdown file: its parser is slow and takes fifty times that
_MEND = "mend it, or pass --on-bad-bytes replace"
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


def suffix(name: str) -> str:
    """The suffix that tells the format, below that of a compression: ".jsonl" of "a.jsonl.gz"."""
    name = name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    return name[name.rindex(".") :] if "." in name else ""


def library(module: str, package: str, extra: str, where: str) -> Any:
    """An optional library.

    Raises:
        UserError: it is not installed; the remedy names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"reading this needs {package}", where, f"pip install 'bert-jax[{extra}]'") from None


def blocks(name: str) -> Iterator[bytes]:
    """The unpacked bytes of a file. A damaged or cut stream is an error, never a short read."""
    kind = next((packed.removeprefix(".") for packed in PACKED if name.lower().endswith(packed)), "")
    stream = {"gz": "gzip", "zst": "zstd", "bz2": "bzip2"}.get(kind, "")
    again = "copy or make it again"
    try:
        with paths.open_read(name) as file:
            if kind == "zst":
                yield from _unzstd(file, name)
            else:
                unpacked = gzip.GzipFile(fileobj=file) if kind == "gz" else bz2.BZ2File(file) if kind else file
                while block := unpacked.read(BLOCK):
                    yield block
    except EOFError:
        raise UserError(f"the {stream} stream is cut", name, again) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"the {stream} stream is damaged ({error})", name, again) from None
    except OSError as error:
        if kind == "bz2" and error.errno is None:
            raise UserError(f"the {stream} stream is damaged ({error})", name, again) from None
        raise UserError(f"the file cannot be read ({paths.reason(error)})", name) from None


def _unzstd(file: BinaryIO, name: str) -> Iterator[bytes]:
    zstandard = library("zstandard", "zstandard", "prep", name)
    made = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # as `zstd --long=31` writes
    frame, begun = made.decompressobj(), False
    try:
        while block := file.read(BLOCK):
            while block:
                begun = True
                if unpacked := frame.decompress(block):
                    yield unpacked
                block = b""
                if frame.eof:  # files may hold several frames, one after the other
                    block, begun = frame.unused_data, False
                    frame = made.decompressobj()
    except zstandard.ZstdError as error:
        raise UserError(f"the zstd stream is damaged ({error})", name, "copy or make it again") from None
    if begun:
        raise UserError("the zstd stream is cut", name, "copy or make it again")


# -- lines -----------------------------------------------------------------------------------------------------------


def whole_lines(data: Iterator[bytes], name: str, bad_bytes: str, longest: int = _LONGEST) -> Iterator[tuple[int, str]]:
    """Text in pieces that end where a line ends, without the last \\n, each with the number of its first line.

    Args:
        data: the bytes in blocks of any size.
        name: for messages.
        bad_bytes: "fail", or "replace" to put U+FFFD where bytes are not UTF-8.
        longest: bytes of a line, above which it is an error rather than a full memory.

    Raises:
        UserError: a NUL, bytes that are not UTF-8 (line and byte named, both counted in the unpacked file), UTF-16,
            or a line above `longest`.
    """
    offset, line, rest, held = 0, 1, [], 0

    def decode(raw: bytes) -> str:
        begin = 3 if offset == 0 and raw.startswith(b"\xef\xbb\xbf") else 0
        try:
            return str(raw[begin:] if begin else raw, "utf-8", "strict" if bad_bytes == "fail" else "replace")
        except UnicodeDecodeError as error:
            at = begin + error.start
            what = f"line {line + raw.count(10, 0, at)} is not UTF-8 at byte {offset + at} ({error.reason})"
            raise UserError(what, name, "convert the file, or pass --on-bad-bytes replace") from None

    for block in data:
        if not offset and not rest and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError("the file is UTF-16, not UTF-8", name, "convert it, as by 'iconv -f UTF-16 -t UTF-8'")
        if bad_bytes == "fail" and (at := block.find(0)) >= 0:
            before = b"".join(rest) + block[: at + 1]
            decode(before)  # what is wrong first is told first
            what = f"the file is binary: line {line + before.count(10)} holds a NUL at byte {offset + held + at}"
            raise UserError(what, name, "leave it out, or pass --on-bad-bytes replace")
        end = block.rfind(10)
        if end >= 0:
            raw, rest = b"".join([*rest, block[:end]]), []
            piece, first, block = decode(raw), line, block[end + 1 :]
            line, offset, held = line + raw.count(10) + 1, offset + len(raw) + 1, 0
            del raw
            yield first, piece
        rest.append(block)
        held += len(block)
        if held > longest:
            raise UserError(f"line {line} is longer than {longest:,} bytes", name, "cut it into lines and documents")
    raw, rest = b"".join(rest), []
    if raw:
        yield line, decode(raw)


def text(pieces: Iterator[tuple[int, str]], name: str, longest: int = _LONGEST) -> Iterator[str]:
    """Documents of plain text: a blank line or the end of the file ends one.

    Raises:
        UserError: a document of more than `longest` characters.
    """
    open_parts: list[str] = []  # of the document that may go on in the next piece
    held = 0
    for line, piece in pieces:
        # All in C: strip every line, join again, and documents stand where two line ends meet.
        stripped = "\n".join(map(str.strip, piece.split("\n")))
        parts = stripped.split("\n\n")
        if open_parts and (not parts[0] or parts[0].startswith("\n")):
            yield "\n".join(open_parts)
            open_parts = []
        for part in parts[:-1]:
            if part := part.strip("\n"):
                yield "\n".join([*open_parts, part])
            elif open_parts:
                yield "\n".join(open_parts)
            open_parts = []
        last = parts[-1].strip("\n")
        held = len(last) + (held if open_parts else 0)
        if last:
            open_parts.append(last)
        if open_parts and (not stripped or stripped.endswith("\n")):
            yield "\n".join(open_parts)
            open_parts = []
        if held > longest:
            what = f"the document that goes on at line {line} is longer than {longest:,} characters"
            raise UserError(what, name, "end documents with a blank line")
    if open_parts:
        yield "\n".join(open_parts)


def tidy(text: str) -> str:
    """Lines stripped, empty ones left out."""
    return "\n".join(filter(None, map(str.strip, text.split("\n"))))


def wikipedia(pieces: Iterator[tuple[int, str]], name: str) -> Iterator[str]:
    """Documents of WikiExtractor: `<doc id=… title=…>`, the title, the text, `</doc>`. The title is left out.

    Source: write_output in attardi/wikiextractor, which also escapes <, > and & of the text.

    Raises:
        UserError: text outside of documents, or one that is not closed: a cut file.
    """
    begun, title, lines = 0, "", []
    for number, line in _lines(pieces):
        if line.startswith("<doc ") and line.endswith(">"):
            if begun:
                break
            named = re.search(r'\btitle="(.*?)"(?: \w+="[^"]*")*>$', line)
            begun, title, lines = number, named.group(1) if named else "", []
        elif line == "</doc>" and begun:
            if lines and unescape(lines[0]) == unescape(title.strip()):
                lines = lines[1:]
            if lines:
                yield unescape("\n".join(lines))
            begun = 0
        elif line and not begun:
            raise UserError(f"line {number} stands outside of <doc …> and </doc>", name, "extract it again")
        elif line:
            lines.append(line)
    if begun:
        raise UserError(f"the <doc …> of line {begun} has no </doc>", name, "the file is cut: extract it again")


def unescape(text: str) -> str:
    """Undoes html.escape."""
    if "&" not in text:
        return text
    for escape, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#x27;", "'"), ("&amp;", "&")):
        text = text.replace(escape, character)
    return text


def _lines(pieces: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for first, piece in pieces:
        yield from enumerate(map(str.strip, piece.split("\n")), first)


# -- records ---------------------------------------------------------------------------------------------------------


def json_values(pieces: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[str, Any]]:
    """Values of JSON lines, each with its place for messages.

    Raises:
        UserError: a line that is not JSON.
    """
    for number, line in _lines(pieces):
        if not line:
            continue
        where = f"{name}, line {number}"
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"this is not JSON ({error.msg} at column {error.colno})", where) from None
        except (RecursionError, ValueError) as error:  # the latter of a number of thousands of digits
            raise UserError(f"this JSON cannot be read ({error})", where) from None


def json_lines(pieces: Iterator[tuple[int, str]], name: str, bad_bytes: str) -> Iterator[str]:
    """Documents of JSON lines: one object a line, its key "text" is the document.

    Raises:
        UserError: not JSON, no such key, no string, or half of a surrogate pair in it.
    """
    for where, value in json_values(pieces, name):
        if not isinstance(value, dict) or "text" not in value:
            raise UserError('this is not an object with a key "text"', where)
        if not isinstance(value["text"], str):
            raise UserError('the value of "text" is not a string', where)
        if document := tidy(_whole_characters(value["text"], where, bad_bytes)):
            yield document


def _whole_characters(text: str, where: str, bad_bytes: str) -> str:
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        if bad_bytes == "fail":
            raise UserError("the text holds half of a surrogate pair", where, _MEND) from None
        return text.translate(_SURROGATES)


def parquet(data: Iterator[bytes] | None, name: str, bad_bytes: str) -> Iterator[str]:
    """Documents of the column "text" of a Parquet file, some rows at a time; null is no document.

    Args:
        data: the unpacked bytes of a compressed file, else None: the file is then opened where it lies.
        name: its name.
        bad_bytes: as in `whole_lines`.

    Raises:
        UserError: damaged, without such a column, or one of another type.
    """
    arrow, reader = (
        library("pyarrow", "pyarrow", "sources", name),
        library("pyarrow.parquet", "pyarrow", "sources", name),
    )
    try:
        with tempfile.TemporaryFile() if data is not None else paths.open_read(name) as file:
            for block in data or ():  # a packed one cannot be read from its end, where Parquet begins
                file.write(block)
            table = reader.ParquetFile(file)
            if "text" not in table.schema_arrow.names:
                columns = ", ".join(table.schema_arrow.names[:9])
                raise UserError('there is no column "text"', name, f"rename one of its columns: {columns}")
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=["text"], use_threads=False):
                column = batch.column(0)
                try:
                    column = column.cast(arrow.large_utf8() if arrow.types.is_dictionary(column.type) else column.type)
                    column = column.cast(arrow.large_binary())
                except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError):
                    raise UserError(f'the column "text" holds {column.type}, not strings', name) from None
                for row, value in enumerate(column.to_pylist(), row + 1):  # noqa: B020
                    if value and (document := tidy(from_bytes(value, f"{name}, row {row}", bad_bytes))):
                        yield document
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"the file cannot be read ({paths.reason(error)})", name) from None
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"the Parquet file is damaged ({reason})", name, "copy or make it again") from None


def from_bytes(value: bytes | str, where: str, bad_bytes: str) -> str:
    """A text that a library gives as bytes or as a string.

    Raises:
        UserError: it is not UTF-8, and `bad_bytes` is "fail".
    """
    if isinstance(value, str):
        return _whole_characters(value, where, bad_bytes)
    try:
        return str(value, "utf-8", "strict" if bad_bytes == "fail" else "replace")
    except UnicodeDecodeError as error:
        raise UserError(f"the text is not UTF-8 at byte {error.start} ({error.reason})", where, _MEND) from None


def markdown(pieces: Iterator[tuple[int, str]], name: str, longest: int = _LONGEST_PAGE) -> Iterator[str]:
    """The one document of a markdown file: a paragraph, heading, list item or table row a line.

    Code blocks, HTML, images, link targets and a YAML head between two lines of --- are left out; code inside of
    a sentence stays, being part of it.

    Raises:
        UserError: more than `longest` characters.
    """
    parser = library("markdown_it", "markdown-it-py", "sources", name).MarkdownIt("commonmark", {"maxNesting": 100})
    parts, held = [], 0
    for _, piece in pieces:
        parts.append(piece)
        held += len(piece)
        if held > longest:
            raise UserError(
                f"a markdown file is one document, this has more than {longest:,} characters", name, "cut it"
            )
    page = re.sub(r"\A---\n.*?\n---(?=\n|\Z)", "", "\n".join(parts).replace("\r\n", "\n"), flags=re.DOTALL)
    lines: list[str] = []
    row: list[str] | None = None
    for token in parser.enable(["table", "strikethrough"]).parse(page):
        if token.type == "tr_open":
            row = []
        elif token.type == "tr_close" and row is not None:
            lines.append(" ".join(filter(None, row)))
            row = None
        elif token.type == "inline":
            said = "".join(_said(child) for child in token.children or ())
            (lines if row is None else row).append(" ".join(said.split()))
    if document := tidy("\n".join(lines)):
        yield document


def _said(token: Any) -> str:
    if token.type in ("text", "code_inline", "text_special"):
        return token.content
    return " " if token.type in ("softbreak", "hardbreak") else ""


def strings(value: Any) -> Iterator[str]:
    """All strings inside a JSON value, in order, without the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def detect(pieces: Iterator[tuple[int, str]], known: str) -> tuple[str, Iterator[tuple[int, str]]]:
    """The format by the first line that is not blank: WikiExtractor's whatever the suffix, else `known`.

    A file without a suffix that means something holds JSON lines if it begins as an object does, else text.
    """
    seen = []
    for number, piece in pieces:
        seen.append((number, piece))
        if begin := piece.lstrip():
            if begin.startswith("<doc ") and begin.split("\n", 1)[0].rstrip().endswith(">"):
                known = "wikipedia"
            elif not known and begin.startswith(('{"', "{ ")):
                known = "jsonl"
            break
    return known or "text", chain(seen, pieces)
