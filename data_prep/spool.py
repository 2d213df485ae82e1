"""The first pass: every input is read once, cleaned, and laid down where shards find their documents.

Inputs are read in groups of consecutive ones, one task each. A group leaves in the spool directory

    group-00000.text        its documents in UTF-8, one after the other
    group-00000.documents   an array of `DOCUMENT`, one entry a document
    group-00000.bands       uint64[d, b], where near copies are looked for
    group-00000.json        what was counted; written last, so where it stands the group is whole

What decides over several groups (copies of a document, the held-out share, the borders of shards) is left to
plan.py, which needs the arrays only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from bert_jax.errors import UserError
from data_prep import clean, paths, sources

_GROUP_BYTES = 32_000_000  # of files as they lie there: decides the groups, so that they do not hang on the machine
_COUNT = 256 * 1024  # bytes between two reports of progress

DOCUMENT = np.dtype([("offset", "<i8"), ("size", "<i8"), ("hash", "<u8"), ("source", "<i4")])


@dataclass(frozen=True)
class Reading:
    """How inputs become documents. Defaults stand here only.

    Attributes:
        on_bad_bytes: "fail" or "replace", for bytes that are not UTF-8.
        cleaning: what is done to each document, see clean.py.
        evaluation: files of evaluation texts; documents that overlap them are left out.
        seed: of the hashes of documents.
    """

    on_bad_bytes: str = "fail"
    cleaning: clean.Cleaning = field(default_factory=clean.Cleaning)
    evaluation: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Group:
    """Consecutive inputs that one task reads: (number of the source, name of the input) each."""

    number: int
    inputs: tuple[tuple[int, str], ...]
    bytes: int = 0  # of the inputs as they lie there

    @property
    def name(self) -> str:
        return f"group-{self.number:05d}"


@dataclass(frozen=True)
class Summary:
    """What a group held: documents kept, bytes of their text, and documents dropped by reason."""

    documents: int
    bytes: int
    dropped: dict[str, int]


def groups(inputs: Sequence[tuple[int, str]], sizes: Sequence[int]) -> list[Group]:
    """Inputs in runs of about 32 MB as they lie there; a larger one is a group of its own.

    Args:
        inputs: (number of the source, name) in their order.
        sizes: bytes of each.
    """
    cut: list[Group] = []
    for one, size in zip(inputs, sizes, strict=True):
        if cut and cut[-1].bytes + size <= _GROUP_BYTES:
            cut[-1] = Group(cut[-1].number, (*cut[-1].inputs, one), cut[-1].bytes + size)
        else:
            cut.append(Group(len(cut), (one,), size))
    return cut


def document_hash(text: bytes, seed: int) -> int:
    """64 bits that decide where a document goes. Equal texts go the same way, so none is in both splits."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=b"%d" % seed).digest(), "little")


def read(group: Group, reading: Reading, spool: str, progress: Callable[[int], None] = lambda size: None) -> Summary:
    """Reads a group into the spool directory, unless it is there already.

    Args:
        group: which inputs.
        reading: how.
        spool: directory, local or remote.
        progress: called with the bytes of text read since the last call.

    Raises:
        UserError: an input that cannot be read, or evaluation texts that are all too short.
        OSError: a full disk.
    """
    done = paths.join(spool, group.name + ".json")
    if paths.exists(done):
        with contextlib.suppress(ValueError, TypeError):  # the machine fell before it was on its disk: read again
            summary = Summary(**json.loads(paths.read_bytes(done)))
            progress(summary.bytes)
            return summary
    cleaner = clean.Cleaner(reading.cleaning, _evaluation_texts(reading))
    if reading.evaluation and not len(cleaner.grams):
        what = f"no text has {reading.cleaning.grams} words in a row, so no overlap could be found"
        raise UserError(what, " ".join(reading.evaluation), "lower --decontaminate-words")
    found: list[tuple[int, int, int, int]] = []
    bands: list[np.ndarray] = []
    dropped: Counter[str] = Counter()
    offset = reported = 0
    with paths.staging(spool) as folder, open(folder / f"{group.name}.text", "wb", buffering=1 << 20) as file:
        for source, name in group.inputs:
            for document in sources.documents(name, reading.on_bad_bytes):
                text, reason = cleaner.apply(document)
                if reason:
                    dropped[reason] += 1
                    continue
                raw = text.encode()
                file.write(raw)
                found.append((offset, len(raw), document_hash(raw, reading.seed), source))
                if reading.cleaning.near:
                    bands.append(clean.signature(text))
                offset += len(raw)
                if offset - reported > _COUNT:
                    progress(offset - reported)
                    reported = offset
    progress(offset - reported)
    paths.write_bytes(paths.join(spool, group.name + ".documents"), np.array(found, DOCUMENT).tobytes())
    if reading.cleaning.near:
        paths.write_bytes(paths.join(spool, group.name + ".bands"), np.array(bands, "<u8").tobytes())
    summary = Summary(len(found), offset, dict(sorted(dropped.items())))
    paths.write_bytes(done, json.dumps(asdict(summary)).encode())
    return summary


def _evaluation_texts(reading: Reading) -> Iterator[str]:
    for name in sources.expand(reading.evaluation) if reading.evaluation else []:
        yield from sources.texts(name, "replace")


def documents(spool: str, group: Group) -> np.ndarray:
    """The entries of a group's documents, an array of `DOCUMENT`."""
    return np.frombuffer(paths.read_bytes(paths.join(spool, group.name + ".documents")), DOCUMENT)


def bands(spool: str, group: Group) -> np.ndarray:
    """MinHash bands of a group's documents, uint64[d, b]; of none, uint64[0, b] of any b."""
    keys = np.frombuffer(paths.read_bytes(paths.join(spool, group.name + ".bands")), "<u8")
    return keys.reshape(len(documents(spool, group)), -1) if len(keys) else keys.reshape(0, 1)


def working_directory(out: str) -> str:
    """Where an unfinished run keeps its spool and its notes; removed when the manifest stands."""
    return paths.join(out, ".work")
