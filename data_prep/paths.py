"""Files by name: on this machine, or behind a URL (gs://, s3://, memory://) through fsspec.

A name without a scheme never touches fsspec. Everything here raises OSError as `open` does, with a reason a
person can read, and UserError where a library for the scheme is not installed.
"""

from __future__ import annotations

import contextlib
import errno
import glob as local_glob
import hashlib
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from bert_jax.errors import UserError

Name = str | os.PathLike[str]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "az": "adlfs", "abfs": "adlfs"}


def is_remote(path: Name) -> bool:
    """Whether a name is a URL, which fsspec opens."""
    return _SCHEME.match(os.fspath(path)) is not None


def join(path: Name, *parts: str) -> str:
    """A name below a directory; URLs always join by a slash."""
    path = os.fspath(path)
    return (posixpath if is_remote(path) else os.path).join(path, *parts)


def open_read(path: Name) -> BinaryIO:
    """A file to read bytes from, which can seek."""
    if not is_remote(path):
        return open(path, "rb")
    with _remote(path) as (system, inside):
        return system.open(inside, "rb")


def read_range(path: Name, start: int, end: int) -> bytes:
    """The bytes from `start` up to `end`, fewer where the file ends before."""
    if is_remote(path):
        with _remote(path) as (system, inside):
            return system.cat_file(inside, start=start, end=end)
    with open(path, "rb", buffering=0) as file:
        blocks, left = [], end - start
        while left > 0 and (block := os.pread(file.fileno(), left, end - left)):
            blocks.append(block)
            left -= len(block)
        return b"".join(blocks)


def write_bytes(path: Name, data: bytes) -> None:
    """Makes or replaces a file; it appears whole or not at all. Directories on the way are made."""
    if is_remote(path):
        with _remote(path) as (system, inside):
            _make_parent(system, inside)
            return system.pipe_file(inside, data)
    with appearing(os.fspath(path)) as temporary, open(temporary, "wb") as file:
        file.write(data)


def upload(local: Name, path: Name) -> None:
    """Copies a file of this machine to `path`; it appears there whole or not at all."""
    if is_remote(path):
        with _remote(path) as (system, inside):
            _make_parent(system, inside)
            return system.put_file(os.fspath(local), inside)
    with appearing(os.fspath(path)) as temporary:
        shutil.copyfile(local, temporary)


@contextlib.contextmanager
def appearing(path: str) -> Iterator[str]:
    """A temporary name beside a file of this machine; it takes the file's place at the end, or is removed."""
    directory, name = os.path.split(path)
    os.makedirs(directory or ".", exist_ok=True)
    temporary = os.path.join(directory, f".{name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def exists(path: Name) -> bool:
    """Whether there is a file or directory of this name."""
    if not is_remote(path):
        return os.path.exists(path)
    with _remote(path) as (system, inside):
        return system.exists(inside)


def is_directory(path: Name) -> bool:
    """Whether there is a directory of this name; object stores have one wherever a file lies below."""
    if not is_remote(path):
        return os.path.isdir(path)
    with _remote(path) as (system, inside):
        return system.isdir(inside)


def size(path: Name) -> int:
    """Bytes of a file."""
    if not is_remote(path):
        return os.path.getsize(path)
    with _remote(path) as (system, inside):
        found = system.size(inside)
    if found is None:
        raise OSError(errno.EINVAL, "its size is not known", os.fspath(path))
    return found


def glob(pattern: Name) -> list[str]:
    """Files and directories that match, sorted by name; `**` goes through directories."""
    pattern = os.fspath(pattern)
    if not is_remote(pattern):
        return sorted(local_glob.glob(pattern, recursive=True))
    with _remote(pattern) as (system, inside):
        return sorted(system.unstrip_protocol(found) for found in system.glob(inside))


def files_below(directory: Name) -> list[str]:
    """All files of a directory and of those inside, sorted by name; hidden ones (.git, .cache) are left out."""
    directory = os.fspath(directory)
    if is_remote(directory):
        with _remote(directory) as (system, inside):
            below = [(name, name[len(inside) :]) for name in system.find(inside)]
            return sorted(system.unstrip_protocol(name) for name, rest in below if "/." not in f"/{rest}")
    found = []
    for folder, folders, names in os.walk(directory, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


def remove(path: Name) -> None:
    """Removes a file; one that is not there is no error."""
    with contextlib.suppress(FileNotFoundError):
        if not is_remote(path):
            return os.remove(path)
        with _remote(path) as (system, inside):
            system.rm_file(inside)


def read_bytes(path: Name) -> bytes:
    """A whole file."""
    with open_read(path) as file:
        return file.read()


def sha256(path: Name) -> str:
    """SHA-256 of a file in hex."""
    with open_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_tree(directory: Name) -> None:
    """Removes a directory with all that is in it; one that is not there is no error."""
    with contextlib.suppress(FileNotFoundError):
        if not is_remote(directory):
            return shutil.rmtree(directory)
        with _remote(directory) as (system, inside):
            system.rm(inside, recursive=True)


@contextlib.contextmanager
def staging(directory: Name) -> Iterator[Path]:
    """A local directory to write files into that shall stand in `directory`.

    That is `directory` itself, made if need be; of a remote one a temporary stand-in, whose files are uploaded at
    the end.
    """
    if not is_remote(directory):
        os.makedirs(directory, exist_ok=True)
        yield Path(directory)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        for name in sorted(os.listdir(folder)):
            upload(os.path.join(folder, name), join(directory, name))


@contextlib.contextmanager
def fetched(directory: Name, names: Sequence[str] | None = None) -> Iterator[Path]:
    """A local directory that holds these files of `directory`, all of them without `names`.

    That is `directory` itself; of a remote one a temporary copy.
    """
    if not is_remote(directory):
        yield Path(directory)
        return
    with tempfile.TemporaryDirectory() as folder:
        wanted = [os.path.basename(path) for path in glob(join(directory, "*"))] if names is None else names
        for name in wanted:
            with open_read(join(directory, name)) as source, open(os.path.join(folder, name), "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        yield Path(folder)


def reason(error: Exception) -> str:
    """Why something could not be used, in a few words: what the system says, else the error's first line."""
    return getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__


def _raise(error: OSError) -> None:
    raise error


def _make_parent(system: Any, inside: str) -> None:
    """Object stores need no directories, and may forbid to make buckets; memory:// and others do need them."""
    parent = system._parent(inside)
    if "/" in parent.strip("/"):
        system.makedirs(parent, exist_ok=True)


@contextlib.contextmanager
def _remote(path: Name) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the name inside it; what its library raises becomes an OSError."""
    path = os.fspath(path)
    scheme = path.split("://", 1)[0].lower()
    try:
        import fsspec
    except ImportError:
        raise UserError(f"{scheme}:// needs fsspec", path, "pip install 'bert-jax[sources]'") from None
    try:
        system, inside = fsspec.core.url_to_fs(path)
    except ImportError:
        package = _PACKAGES.get(scheme, f"the fsspec package for {scheme}")
        raise UserError(f"{scheme}:// needs {package}", path, f"pip install {package}") from None
    except ValueError as error:
        raise UserError(f"this kind of URL cannot be opened ({error})", path, "use gs://, s3:// or a path") from None
    except Exception as error:  # credentials looked for and not found, say: each library has its own errors
        raise OSError(errno.EIO, reason(error), path) from error
    try:
        yield system, inside
    except UserError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    except Exception as error:
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        raise OSError(number, reason(error), path) from error
