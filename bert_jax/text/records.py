"""Shards: TFRecord framing, checksums, the index beside each file, random access by record number.

A record is `length uint64, masked CRC32C of it uint32, the Example, masked CRC32C of it uint32`, little
endian (tensorflow/core/lib/io/record_writer.h). A gzip shard, as TensorFlow writes them, is unpacked once
into the cache and forgotten there when it was not opened for 30 days.

The index `NAME.idx`: the magic, bytes of the shard and number of records (uint64 each), then per record the
offset of its frame (uint64), the length of its Example and its number of tokens (uint32 each), then a CRC32C
of all that.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import mmap
import os
import resource
import struct
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import google_crc32c
import numpy as np

from bert_jax.errors import UserError
from bert_jax.text import example, example_writer
from bert_jax.text.features import NAMES, Records, RecordSpec

_MAGIC = b"BERTIDX1"
_FRAME = 12  # bytes before an Example; 4 follow it
_BLOCK = 2048  # records decoded at a time when a shard is indexed
_KEPT_DAYS = 30  # of unpacked shards in the cache, from when they were last opened
_FEW = 8  # records of a shard for which calls of NumPy cost more than a loop, as in a batch out of hundreds of shards
_VALUES = 1 << 18  # tokens encoded at a time: what belongs to them stays in the processor's cache


@dataclass(frozen=True)
class ShardSummary:
    """What was written: records, bytes of the file, its SHA-256, tokens that are not padding."""

    records: int
    bytes: int
    sha256: str
    tokens: int


def write_shard(path: str | os.PathLike, batches: Iterable[Records], spec: RecordSpec) -> ShardSummary:
    """Writes a shard and its index; both appear whole or not at all, the shard last.

    Args:
        path: of the shard; the index is `path`.idx.
        batches: blocks of records (one to four thousand rows are fast); features as in features.py.
        spec: the sizes that every block must have.

    Raises:
        ValueError: a block of other sizes.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    _keep_freed_memory()
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest, offset, tokens = hashlib.sha256(), 0, [np.zeros(0, np.uint32)]
    lengths = [np.zeros(0, np.int64)]
    try:
        with open(temporary, "wb") as file:
            for batch in batches:
                sizes = (batch["input_ids"].shape[1], batch["masked_lm_ids"].shape[1])
                if sizes != (spec.length, spec.predictions):
                    raise ValueError(f"a block of sizes {sizes} for a shard of {spec}")
                rows = max(1, _VALUES // spec.length)
                for first in range(0, len(batch["input_ids"]), rows):
                    block, size = _frames({name: values[first : first + rows] for name, values in batch.items()})
                    file.write(block)
                    digest.update(block)
                    offset += len(block)
                    lengths.append(size)
                tokens.append(batch["input_mask"].sum(1).astype(np.uint32))
        index = _Index(offset, np.concatenate(lengths), np.concatenate(tokens))
        index.write(_beside(path))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return ShardSummary(len(index.lengths), offset, digest.hexdigest(), int(index.tokens.sum()))


def _frames(batch: Records) -> tuple[np.ndarray, np.ndarray]:
    """A block of records as bytes uint8[m], and the length of each Example."""
    block, lengths = example_writer.encode(batch, _head, after=4)
    ends = np.cumsum(lengths + _FRAME + 4)
    starts = ends - lengths - 4
    raw, crc = block.tobytes(), google_crc32c.value  # which takes bytes only
    sums = [crc(raw[start:end]) for start, end in zip(starts.tolist(), (ends - 4).tolist(), strict=True)]
    stored = _masked(np.array(sums, np.uint64)).astype("<u4").view(np.uint8).reshape(-1, 4)
    block[(ends - 4)[:, None] + np.arange(4)] = stored
    return block, lengths


def _head(size: int) -> bytes:
    """What stands before an Example of this size."""
    length = struct.pack("<Q", size)
    return length + struct.pack("<I", mask_crc(google_crc32c.value(length)))


def mask_crc(crc: int) -> int:
    """TFRecord stores CRCs rotated and shifted, so that a CRC of data that holds CRCs stays strong."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _masked(crcs: np.ndarray) -> np.ndarray:
    crcs = crcs.astype(np.uint64)
    return ((crcs >> np.uint64(15) | crcs << np.uint64(17)) + np.uint64(0xA282EAD8)) & np.uint64(0xFFFFFFFF)


def _keep_freed_memory() -> None:
    """Lets glibc keep the memory of one block of records for the next one.

    Otherwise it hands freed arrays of more than 128 KiB back to the system, and their pages fault in anew for each
    block: that is half of the time of reading. Freeing a large block, which nobody has touched, raises that bound to
    its size and the bound for trimming the heap to twice that (mallopt(3), M_MMAP_THRESHOLD); other allocators take
    no notice.
    """
    np.empty(31 << 20, np.uint8)


def _more_open_files() -> bool:
    """Lets this process open as many files as it may ever: shards stay open, and a usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return False
    return soft != hard


# ------------------------------------------------------------------------------------------------------------
# The index


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".idx")


@dataclass(frozen=True)
class _Index:
    bytes: int
    lengths: np.ndarray  # int64[n], of the Examples
    tokens: np.ndarray  # uint32[n]

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64[n], where each frame begins: records follow each other without gaps."""
        frames = self.lengths + _FRAME + 4
        return np.cumsum(frames) - frames

    def write(self, path: Path) -> None:
        body = _MAGIC + struct.pack("<QQ", self.bytes, len(self.lengths)) + self.offsets.astype("<u8").tobytes()
        body += self.lengths.astype("<u4").tobytes() + self.tokens.astype("<u4").tobytes()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(body + struct.pack("<I", google_crc32c.value(body)))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path, size: int) -> _Index | None:
        """The index, or None where there is none, or a damaged one, or one of another file."""
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        if len(raw) < 28 or raw[:8] != _MAGIC or struct.unpack("<I", raw[-4:])[0] != google_crc32c.value(raw[:-4]):
            return None
        size_then, n = struct.unpack("<QQ", raw[8:24])
        if size_then != size or len(raw) != 28 + 16 * n:
            return None
        lengths = np.frombuffer(raw, "<u4", n, 24 + 8 * n).astype(np.int64)
        return cls(size, lengths, np.frombuffer(raw, "<u4", n, 24 + 12 * n).copy())


def cache_directory() -> Path:
    """Where indexes and unpacked shards go that cannot lie beside a shard: $BERT_JAX_CACHE or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("BERT_JAX_CACHE") or os.path.join(home, "bert_jax"))


def _cached(path: Path, suffix: str) -> Path:
    """A name in the cache that changes when the file does."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    return cache_directory() / f"{path.name}.{key}{suffix}"


def open_shard(path: str | os.PathLike) -> Shard:
    """Opens a shard for random access, indexing it first where it has no index.

    Raises:
        UserError: no such file, not TFRecord, not gzip to its end; names the record and the offset.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(_FRAME)
        # A first record of 35,615 bytes would begin with the magic of gzip too, but then its checksum holds.
        framed = len(head) == _FRAME and mask_crc(google_crc32c.value(head[:8])) == struct.unpack("<I", head[8:])[0]
        packed = head[:2] == b"\x1f\x8b" and not framed
        if path.suffix == ".gz" and not packed:
            raise UserError("this is not gzip, whatever its name says", str(path), "make it again, or rename it")
        source = _unpacked(path) if packed else path
        size = source.stat().st_size
    except OSError as error:
        raise UserError(f"the shard cannot be read ({error.strerror})", str(path)) from None
    spare = _cached(path, ".idx")
    index = _Index.read(_beside(path), size) if source == path else None
    if index is None and (index := _Index.read(spare, size)) is not None:
        _mark_as_used(spare)
    if index is None:
        index = _index(source, path)
        places = [_beside(path), spare] if source == path else [spare]
        for place in places:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                index.write(place)
                break
            except OSError:
                continue  # an index is only a saving: without a place for it, it is made anew next time
    return Shard(path, source, index)


def _unpacked(path: Path) -> Path:
    """The content of a gzip shard as a file in the cache."""
    target = _cached(path, ".tfrecord")
    if target.exists():
        _mark_as_used(target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    _forget_unused(target.parent)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    done = 0
    try:
        with gzip.open(path, "rb") as packed, open(temporary, "wb") as file:
            while block := packed.read(1 << 20):
                file.write(block)
                done += len(block)
        os.replace(temporary, target)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"the gzip stream is damaged after {done} unpacked bytes ({error})",
            str(path),
            "copy or make it again",
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _mark_as_used(path: Path) -> None:
    with suppress(OSError):  # another user's cache: its owner decides
        os.utime(path)


def _forget_unused(cache: Path) -> None:
    """Removes what nobody has opened for _KEPT_DAYS. Who has it open reads on: the file lasts as long as its map."""
    for path in (*cache.glob("*.tfrecord"), *cache.glob("*.idx"), *cache.glob(".*.tmp")):
        with suppress(OSError):  # another process was faster
            if path.stat().st_mtime < time.time() - _KEPT_DAYS * 86_400:
                path.unlink()


def _index(source: Path, name: Path) -> _Index:
    """Scans a shard: every frame is checked, every record parsed for its tokens."""
    size = source.stat().st_size
    if size == 0:
        return _Index(0, np.zeros(0, np.int64), np.zeros(0, np.uint32))
    lengths, at = [], 0
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while at < size:
            head, length = data[at : at + _FRAME], 0
            if len(head) == _FRAME:
                length, crc = struct.unpack("<QI", head)
                if mask_crc(google_crc32c.value(head[:8])) != crc:
                    what = "the checksum of a record's length does not hold"
                    if not lengths:
                        what += " (is this a TFRecord file?)"
                    raise _damage(name, len(lengths), at, what)
            if len(head) < _FRAME or at + _FRAME + length + 4 > size:
                raise _damage(name, len(lengths), at, f"the file ends in the middle of a record (at byte {size})")
            lengths.append(length)
            at += _FRAME + length + 4
    index = _Index(size, np.array(lengths, np.int64), np.zeros(len(lengths), np.uint32))
    shard = Shard(name, source, index)
    blocks = [
        shard.read(np.arange(first, min(first + _BLOCK, len(lengths))))["input_mask"].sum(1)
        for first in range(0, len(lengths), _BLOCK)
    ]
    return _Index(size, index.lengths, np.concatenate(blocks).astype(np.uint32))


def _damage(name: Path, record: int, offset: int, what: str) -> UserError:
    return UserError(what, f"{name}, record {record} at byte {offset}", "copy or make the shard again")


# ------------------------------------------------------------------------------------------------------------
# Reading


class Shard:
    """A shard with random access.

    Attributes:
        path: as given to `open_shard`.
        num_records: how many.
        tokens: int32[num_records], tokens of each record that are not padding.
        spec: T and P, from the first record ((0, 0) for an empty shard).
    """

    def __init__(self, path: Path, source: Path, index: _Index) -> None:
        self.path, self._source, self._index = path, source, index
        self.num_records = len(index.lengths)
        self.tokens = index.tokens.astype(np.int32)

    def __repr__(self) -> str:
        return f"Shard({str(self.path)!r}, {self.num_records} records)"

    def __getstate__(self) -> dict:
        # The map of the file is opened anew in another process.
        return {key: value for key, value in self.__dict__.items() if key not in ("_data", "spec")}

    @cached_property
    def _data(self) -> mmap.mmap:
        _keep_freed_memory()
        try:
            return self._mapped()
        except OSError as error:
            many = error.errno == errno.EMFILE
            if not many or not _more_open_files():
                remedy = "allow more open files (ulimit -n)" if many else "see that it is there and can be read"
                raise UserError(f"cannot be opened ({error.strerror})", str(self.path), remedy) from None
        return self._mapped()

    def _mapped(self) -> mmap.mmap:
        with open(self._source, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def spec(self) -> RecordSpec:
        if self.num_records == 0:
            return RecordSpec(0, 0)
        try:
            return example.sizes_of(self.examples(np.array([0]))[0])
        except example.BadRecord as error:
            raise self.damage(0, error) from None

    def read(self, numbers: np.ndarray) -> Records:
        """The records with these numbers, in this order, checksums compared. A thousand at a time is fast.

        Args:
            numbers: int[n], each in 0..num_records-1; may repeat.

        Returns:
            Records as in features.py; those of our own features that the shard has.

        Raises:
            IndexError: no such record.
            UserError: a damaged record; names shard, record and offset.
        """
        return read_together([self], np.zeros(len(numbers), np.int64), numbers)

    def examples(self, numbers: np.ndarray) -> list[bytes]:
        """The bytes of the Examples with these numbers, checksums compared.

        Raises:
            IndexError: no such record.
            UserError: a checksum does not hold; names shard, record and offset.
        """
        numbers = np.asarray(numbers, np.int64)
        if len(numbers) <= _FEW:
            return [self._example(number) for number in numbers.tolist()]
        if numbers.min() < 0 or numbers.max() >= self.num_records:
            raise IndexError(f"{self.path} has {self.num_records} records; asked for {numbers.min()}..{numbers.max()}")
        data, crc = self._data, google_crc32c.value
        starts = self._index.offsets[numbers]
        ends = starts + _FRAME + self._index.lengths[numbers]
        pieces = [data[s:e] for s, e in zip((starts + _FRAME).tolist(), ends.tolist(), strict=True)]
        sums = _masked(np.fromiter(map(crc, pieces), np.uint64, len(pieces)))
        stored = example.windows(np.frombuffer(data, np.uint8), ends, 4).view("<u4")[:, 0]
        wrong = np.flatnonzero(sums != stored)
        if len(wrong):
            record = int(numbers[wrong[0]])
            raise _damage(self.path, record, int(starts[wrong[0]]), "the checksum of the record does not hold")
        return pieces

    def _example(self, number: int) -> bytes:
        if not 0 <= number < self.num_records:
            raise IndexError(f"{self.path} has {self.num_records} records; asked for {number}..{number}")
        start = int(self._index.offsets[number])
        end = start + _FRAME + int(self._index.lengths[number])
        piece = self._data[start + _FRAME : end]
        if mask_crc(google_crc32c.value(piece)) != int.from_bytes(self._data[end : end + 4], "little"):
            raise _damage(self.path, number, start, "the checksum of the record does not hold")
        return piece

    def damage(self, record: int, error: example.BadRecord) -> UserError:
        """What to tell of a record that cannot be decoded."""
        return _damage(self.path, record, int(self._index.offsets[record]) + _FRAME + error.offset, error.what)


def read_together(
    shards: Sequence[Shard],
    places: np.ndarray,
    numbers: np.ndarray,
    shared: bool = False,
    names: Sequence[str] = NAMES,
    narrow: bool = False,
) -> Records:
    """Records of several shards, decoded as one block: a few of each are as fast as many of one.

    Args:
        shards: all of the same T and P.
        places: int[n], which of the shards.
        numbers: int[n], which of its records; may repeat.
        shared: of our own features only those that all of them have.
        names: only these features.
        narrow: integers as `example.decode` finds them, in smaller dtypes.

    Returns:
        Records as in features.py, in this order, in new arrays; those of our own features that any of them has.

    Raises:
        IndexError: no such record.
        UserError: a damaged record; names shard, record and offset.
    """
    places, numbers = np.asarray(places, np.int64), np.asarray(numbers, np.int64)
    examples = np.empty(len(numbers), object)
    order = np.argsort(places * (numbers.max(initial=0) + 1) + numbers)  # by shard, and as they lie in it
    for rows in np.split(order, np.flatnonzero(np.diff(places[order])) + 1) if len(order) else []:
        examples[rows] = shards[places[rows[0]]].examples(numbers[rows])
    spec = shards[places[0] if len(places) else 0].spec
    try:
        return example.decode(examples.tolist(), spec, shared, names, narrow)
    except example.BadRecord as error:
        raise shards[places[error.row]].damage(int(numbers[error.row]), error) from None
