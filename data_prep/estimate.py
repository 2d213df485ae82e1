"""What a preparation will take, from a sample: records, bytes, time."""

from __future__ import annotations

import bz2
import os
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep import paths, run, sources

_FILES = 8  # inputs looked into, evenly over their list
_TEXT = 8_000_000  # bytes of text of the sample
_HEAD = 1 << 20  # bytes of a compressed file that tell how far it unpacks


@dataclass(frozen=True)
class Estimate:
    """Of the whole job: bytes of text, documents, records, bytes of shards, seconds; `sampled` bytes were looked at."""

    sampled: int
    text: int
    documents: int
    records: int
    bytes: int
    seconds: float


def estimate(patterns: Sequence[str], tokenizer_path: str, job: run.Job, workers: int | None = None) -> Estimate:
    """Prepares a sample of the inputs in a temporary directory, with one worker, and scales up what came out.

    The start of the workers, the first loading of libraries and a slower disk are not in the time.

    Raises:
        UserError: as run.prepare, for the sample.
    """
    run.check_settings(job)
    named = sources.named(patterns)
    sizes = [sources.describe(name).bytes for _, name in named]
    chosen = sorted({round(at * (len(named) - 1) / max(_FILES - 1, 1)) for at in range(min(_FILES, len(named)))})
    sampled = documents = 0
    unpacked: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        with open(Path(folder) / "sample.txt", "w", encoding="utf-8", newline="\n") as file:
            for at in chosen:
                name, mine = named[at][1], 0
                unpacked.append(_unpacking(name))
                for document in sources.documents(name, job.reading.on_bad_bytes):
                    file.write(document + "\n\n")
                    mine += len(document.encode())
                    documents += 1
                    if mine > _TEXT // len(chosen):
                        break
                sampled += mine
        total = sum(sizes) * sum(unpacked) / len(unpacked)
        # Shards, weights and names of sources belong to the whole, not to a sample in one file.
        selection = replace(job.selection, shards=0, weights=(), smoothing=0.0)
        begun = time.perf_counter()
        manifest = run.prepare(
            [str(Path(folder) / "sample.txt")],
            tokenizer_path,
            str(Path(folder) / "out"),
            replace(job, selection=selection),
            1,
        )
        seconds = time.perf_counter() - begun
    factor = max(total / sampled, 1.0)
    return Estimate(
        sampled,
        round(sampled * factor),
        round(documents * factor),
        round(sum(split.records for split in manifest.splits.values()) * factor),
        round(sum(info.bytes for split in manifest.splits.values() for info in split.shards) * factor),
        seconds * factor / (workers or os.cpu_count() or 1),
    )


def _unpacking(name: str) -> float:
    """Bytes of text for each byte of a file as it lies there, from its head."""
    packed = name.lower()
    if not packed.endswith((".gz", ".bz2", ".zst")):
        return 1.0
    head = paths.read_range(name, 0, _HEAD)
    try:
        if packed.endswith(".gz"):
            unpacked = zlib.decompressobj(wbits=31).decompress(head)
        elif packed.endswith(".bz2"):
            unpacked = bz2.BZ2Decompressor().decompress(head)
        else:
            import zstandard

            unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(head)
    except Exception:  # damaged, or without its library: reading the documents says so, and where
        return 1.0
    return len(unpacked) / max(len(head), 1)
