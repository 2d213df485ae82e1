"""The demo corpus: text that is on every machine with Python.

The language reference in `pydoc_data.topics`, then the docstrings of the standard library, then those of the
installed packages: read from source files by `ast`, nothing is imported or run. One document a topic or
    object.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from bert_jax.errors import UserError

_SHORTEST = 200  # characters; shorter documents teach little and are mostly signatures


def write(path: str, max_megabytes: float = 12.0) -> tuple[int, int]:
    """Writes the corpus in the plain text form of sources.py.

    Args:
        path: the file to make; it appears whole or not at all.
        max_megabytes: documents beyond that are left out.

    Returns:
        Documents and bytes written.

    Raises:
        UserError: the file cannot be written.
    """
    target, limit = Path(path), int(max_megabytes * 1e6)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    seen: set[str] = set()
    count = size = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(temporary, "wb") as file,
            tqdm(desc="pydoc", total=limit, unit="B", unit_scale=True, leave=False, disable=None) as bar,
        ):
            for text in documents():
                if text in seen:
                    continue
                seen.add(text)
                block = (text + "\n\n").encode()
                if size + len(block) > limit:
                    break
                file.write(block)
                bar.update(len(block))
                count, size = count + 1, size + len(block)
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"the corpus cannot be written ({error.strerror})", path) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return count, size


def documents() -> Iterator[str]:
    """Cleaned documents in a fixed order; the same one may come twice."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        if len(text := tidy(topics[name])) >= _SHORTEST:
            yield text
    for root in dict.fromkeys(
        sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
    ):
        for path in _sources(Path(root)):
            for docstring in _docstrings(path):
                if len(text := tidy(docstring)) >= _SHORTEST:
                    yield text


def tidy(text: str) -> str:
    """Prose of a docstring: paragraphs as lines, without markup lines, code samples and underlinings."""
    paragraphs = []
    for part in re.split(r"\n\s*\n", text.expandtabs()):
        lines = [line.strip() for line in part.splitlines()]
        lines = [line for line in lines if line and not re.fullmatch(r"[^\w\s]+", line)]
        if any(line.startswith((">>>", "...", "$ ")) for line in lines):
            continue
        joined = " ".join(lines)
        joined = re.sub(r":\w+:`([^`<]+)(?:<[^>]*>)?`", r"\1", joined)  # :func:`name` is the name
        joined = joined.replace("``", "").replace("`", "")
        joined = re.sub(r"(?<!\w)\*{1,2}(\S(?:[^*]*\S)?)\*{1,2}(?!\w)", r"\1", joined)
        joined = re.sub(r"\s+", " ", joined).strip()
        if joined.isprintable() and _letters(joined) > 0.7 * len(joined):
            paragraphs.append(joined)
    return "\n".join(paragraph for paragraph in paragraphs if paragraph)


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text)) + text.count(" ")


def _sources(root: Path) -> Iterator[Path]:
    """Python files below a directory by name; of the standard library without its tests and the packages."""
    for directory, folders, files in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if name not in ("site-packages", "dist-packages", "test", "tests", "__pycache__")
        )
        for name in sorted(files):
            if name.endswith(".py"):
                yield Path(directory) / name


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of others' sources, about escapes such as "\\d"
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return  # templates and files of other versions lie among sources
    # Statements only, in the order of the source: most of a tree is expressions, and no docstring is in one.
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                yield docstring
        blocks = (getattr(node, name, ()) for name in ("finalbody", "orelse", "handlers", "body"))
        left += [statement for block in blocks if isinstance(block, list) for statement in reversed(block)]
