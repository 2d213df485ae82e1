"""One shard: a pure function of (inputs, settings, seed, split, shard number)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert_jax.errors import UserError
from bert_jax.text.corrupt import Rule, corrupt, row_keys, units_of
from bert_jax.text.features import Records, RecordSpec
from bert_jax.text.manifest import ShardInfo
from bert_jax.text.records import write_shard
from bert_jax.text.tokenizer import Tokenizer
from data_prep import layouts, sources

_ROWS = 2048  # rows masked and written at a time; part of what a shard is, since each block has its own generator
_SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Settings:
    """All that decides what shards hold, besides inputs and tokenizer. Defaults stand here only."""

    length: int = 128
    predictions: int = 20
    rate: float = 0.15
    unit: str = "token"
    mask_share: float = 0.8
    random_share: float = 0.1
    duplicates: int = 1
    short: float = 0.1
    heldout: float = 0.02
    language: str = "en"
    on_bad_bytes: str = "fail"
    seed: int = 0


@dataclass(frozen=True)
class Task:
    """Shard `number` of `total` of a split: its documents among those numbered `first` to `last`-1.

    `files` are the input files with the number of their first document; documents whose hash is below
    `border` are held out.
    """

    split: str
    number: int
    total: int
    first: int
    last: int
    files: tuple[tuple[Path, int], ...]
    border: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}-of-{self.total:05d}.tfrecord"


@dataclass(frozen=True)
class Made:
    """A written shard and what was counted on the way."""

    split: str
    number: int
    info: ShardInfo
    counts: dict[str, int]


def document_hash(text: str, seed: int) -> int:
    """64 bits that decide where a document goes. Equal texts go the same way, so none is in both splits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=b"%d" % seed).digest(), "big")


def _shard_key(settings: Settings, task: Task) -> tuple[int, int, int]:
    """What all randomness of a shard begins with."""
    return settings.seed, _SPLITS.index(task.split), task.number


def make(task: Task, settings: Settings, tokenizer: Tokenizer, directory: Path, progress=lambda size: None) -> Made:
    """Writes one shard with its index into `directory`.

    Raises:
        UserError: an input that cannot be read, fewer than two documents with text, or a full disk.
    """
    corpus = layouts.tokenise(_documents(task, settings), tokenizer, settings.language, settings.length, progress)
    if len(corpus.numbers) < 2:
        raise UserError(
            "there are fewer than two documents with text, and random next segments need another",
            task.name,
            "give more documents, or fewer shards with --shards",
        )
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(_shard_key(settings, task))))
    instances, truncated = layouts.arrange("pair", corpus, settings.length, settings.short, settings.duplicates, rng)
    instances = instances.take(rng.permutation(len(instances)))
    counts = {
        "documents": len(corpus.numbers),
        "empty_documents": corpus.empty,
        "sentences": len(corpus.sentences) - 1,
        "cut_sentences": corpus.cut,
        "corpus_tokens": len(corpus.ids),
        "unknown_tokens": int((corpus.ids == tokenizer.special.unk).sum()),
        "truncated_tokens": truncated,
    }
    spec = RecordSpec(settings.length, settings.predictions)
    try:
        summary = write_shard(
            directory / task.name, _blocks(task, settings, tokenizer, corpus, instances, counts), spec
        )
    except OSError as error:
        raise UserError(f"the shard cannot be written ({error.strerror})", str(directory / task.name)) from None
    padding = summary.records * settings.length - summary.tokens
    info = ShardInfo(task.name, summary.records, summary.bytes, summary.sha256, summary.tokens, padding)
    return Made(task.split, task.number, info, counts)


def _documents(task: Task, settings: Settings) -> Iterator[tuple[int, str]]:
    """The shard's documents with their numbers: its range, its split."""
    for path, first in task.files:
        for number, document in enumerate(sources.documents(path, settings.on_bad_bytes), first):
            if number >= task.last:
                return
            held_out = document_hash(document, settings.seed) < task.border
            if number >= task.first and held_out == (task.split == "heldout"):
                yield number, document


def _blocks(
    task: Task,
    settings: Settings,
    tokenizer: Tokenizer,
    corpus: layouts.Corpus,
    instances: layouts.Instances,
    counts: dict[str, int],
) -> Iterator[Records]:
    """Masked rows, a block at a time; adds to `counts`."""
    special = tokenizer.special
    rule = Rule(settings.predictions, settings.rate, settings.unit, settings.mask_share, settings.random_share)
    names = (
        "eligible",
        "wanted",
        "overflowed",
        "unfilled",
        "chosen",
        "masked",
        "kept",
        "random",
        "random_next",
    )
    counts |= dict.fromkeys(names, 0)
    for first in range(0, len(instances), _ROWS):
        records = layouts.rows(corpus, instances.take(slice(first, first + _ROWS)), settings.length, special)
        ids = records["input_ids"]
        units = units_of(ids, records["word_starts"], special, settings.unit)
        keys = row_keys(_shard_key(settings, task), np.arange(first, first + len(ids)))
        done = corrupt(ids, units, special, tokenizer.vocab_size, rule, keys)
        at = np.nonzero(done.weights)
        now = np.take_along_axis(done.ids, done.positions, 1)[at]
        masked, kept = int((now == special.mask).sum()), int((now == done.labels[at]).sum())
        for name, value in {
            "eligible": (units >= 0).sum(),
            "wanted": done.wanted.sum(),
            "overflowed": (done.wanted - done.fitted).sum(),
            "unfilled": done.fitted.sum() - len(now),
            "chosen": len(now),
            "masked": masked,
            "kept": kept,
            "random": len(now) - masked - kept,
            "random_next": records["next_sentence_labels"].sum(),
        }.items():
            counts[name] += int(value)
        yield records | {
            "input_ids": done.ids,
            "masked_lm_positions": done.positions,
            "masked_lm_ids": done.labels,
            "masked_lm_weights": done.weights,
        }
