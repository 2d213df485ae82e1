"""Files of tasks as text: plain or gzipped, UTF-8, and a sentence for whatever is wrong with them."""

from __future__ import annotations

import gzip
import sys
import zlib
from pathlib import Path

from bert_jax.errors import UserError

STANDARD_INPUT = Path("-")


def find(path: Path) -> Path:
    """The file or directory as it is named, or else the one with `.gz` behind its name.

    Raises:
        UserError: neither is there; says what the directory holds.
    """
    packed = path.with_name(path.name + ".gz")
    if path == STANDARD_INPUT or path.exists():
        return path
    if packed.exists():
        return packed
    if not path.parent.is_dir():
        raise UserError("there is no such file", str(path), f"there is no directory {path.parent} either")
    names = sorted(other.name for other in path.parent.iterdir())
    listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    remedy = f"its directory holds {listed}" if names else "its directory is empty"
    raise UserError("there is no such file, nor one with .gz behind it", str(path), remedy)


def read_text(path: Path) -> str:
    """The text of a file that `find` found, or of standard input, without a byte order mark.

    Raises:
        UserError: it cannot be read, is cut, is not UTF-8 (with the line), is binary or holds nothing.
    """
    try:
        raw = sys.stdin.buffer.read() if path == STANDARD_INPUT else path.read_bytes()
    except IsADirectoryError:
        raise UserError("this is a directory", str(path), "name a file, or set format in [task]") from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path), "check the path") from None
    where = told(path)
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except EOFError:
            raise UserError("the gzip stream is cut", where, "copy or make it again") from None
        except (gzip.BadGzipFile, zlib.error):
            raise UserError("this is not gzip, or damaged", where, "make it again, or rename it") from None
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError("the file is UTF-16, not UTF-8", where, "save it as UTF-8 text") from None
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError("not UTF-8", f"{where}, line {line}", "save the file as UTF-8 text") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError("a NUL byte: the file is no text", f"{where}, line {line}", "save it as UTF-8 text")
    if not text.strip():
        raise UserError("the file holds nothing", where, "give one with examples")
    return text


def lines(text: str) -> list[str]:
    """Lines of a text, ended by a line feed and nothing else that Unicode counts as the end of a line."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def told(path: Path) -> str:
    """A path as messages name it."""
    return "standard input" if path == STANDARD_INPUT else str(path)
