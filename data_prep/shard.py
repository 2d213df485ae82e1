"""One shard: a pure function of (inputs, settings, seed, split, shard number)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from bert_jax.errors import UserError
from bert_jax.text.corrupt import Rule, corrupt, row_keys, units_of
from bert_jax.text.features import Records, RecordSpec
from bert_jax.text.manifest import ShardInfo
from bert_jax.text.records import write_shard
from bert_jax.text.tokenizer import Tokenizer
from data_prep import layouts, levels, paths, plan, sentences, spool

_ROWS = 2048  # rows masked and written at a time
_RUN = 4_000_000  # bytes of neighbouring documents read at a time
_SPLITS = ("train", "heldout")
# What a relation of a row's segments other than 0, the true next one, means by layout.
_RELATIONS = {"pair": ("random_next",), "order": ("swapped",), "three": ("previous", "random_next")}
LABELS = ("random_next", "swapped", "previous")


@dataclass(frozen=True)
class Settings:
    """All that decides what shards hold, besides their documents and the tokenizer. Defaults stand here only.

    Attributes:
        length: tokens a record (T).
        predictions: masked slots a record (P).
        rate, unit, mask_share, random_share: see `corrupt.Rule`.
        layout: what a row is made of, see layouts.py.
        short: share of documents cut into shorter rows.
        language: of the sentence splitter; "none" takes a line as a sentence.
        segmenter: "jieba" or "module:function" for words of several Chinese characters; "" for none.
        seed: of all that is random.
    """

    length: int = 128
    predictions: int = 20
    rate: float = 0.15
    unit: str = "token"
    mask_share: float = 0.8
    random_share: float = 0.1
    layout: str = "pair"
    short: float = 0.1
    language: str = "en"
    segmenter: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """A written shard and what was counted on the way."""

    split: str
    number: int
    info: ShardInfo
    counts: dict[str, int]


def note_of(work: str, task: plan.Task) -> str:
    """The file that says that a shard is whole, and what it holds."""
    return paths.join(work, task.name + ".json")


def pairs_of(work: str, task: plan.Task) -> str:
    """The file of a counted shard's pairs of neighbours, see levels.count."""
    return paths.join(work, task.name + ".pairs")


def finished(task: plan.Task, work: str, out: str) -> Made | None:
    """What an earlier run noted of this shard, if the shard still is what the note says."""
    if not paths.exists(note_of(work, task)):
        return None
    try:
        note = json.loads(paths.read_bytes(note_of(work, task)))
        made = Made(**note | {"info": ShardInfo(**note["info"])})
    except (ValueError, TypeError, KeyError):  # the machine fell before the note was on its disk
        return None
    return made if stands(made.info, out) else None


def stands(info: ShardInfo, out: str) -> bool:
    """Is the shard there with its index, and are its bytes those that were written?"""
    path = paths.join(out, info.name)
    if not paths.exists(path + ".idx") or not paths.exists(path) or paths.size(path) != info.bytes:
        return False
    return paths.sha256(path) == info.sha256


def make(
    task: plan.Task,
    settings: Settings,
    tokenizer: Tokenizer,
    work: str,
    out: str,
    progress: Callable[[int], None] = lambda size: None,
) -> Made:
    """Writes one shard with its index into `out`, then its note into `work`.

    Args:
        task: which shard.
        settings: what it holds.
        tokenizer: gives ids.
        work: the directory of the plan and the spool.
        out: directory, local or remote.
        progress: called with the bytes of text done since the last call.

    Raises:
        UserError: fewer than two documents with text, or a full disk.
    """
    places = plan.read(work, task)
    mine = (places["heldout"] == (task.split == "heldout")) & (places["copies"] > 0)
    corpus = layouts.tokenise(
        _documents(places, np.flatnonzero(mine), task.first, work),
        tokenizer,
        settings.language,
        settings.length,
        progress,
        segmenter=sentences.segmenter(settings.segmenter) if settings.segmenter else None,
    )
    if len(corpus.numbers) < 2:
        raise UserError(
            "there are fewer than two documents with text, and random segments need another",
            task.name,
            "give more documents, or fewer shards with --shards",
        )
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(_shard_key(settings, task))))
    copies = places["copies"][corpus.numbers - task.first].astype(np.int64)
    instances, truncated = layouts.arrange(settings.layout, corpus, settings.length, settings.short, copies, rng)
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
        with paths.staging(out) as folder:
            blocks = _blocks(task, settings, tokenizer, corpus, instances, counts)
            summary = write_shard(folder / task.name, blocks, spec)
        if task.counted:
            begins = corpus.sentences[corpus.documents]
            counted = levels.count(corpus.ids, begins, tokenizer.vocab_size)
            paths.write_bytes(pairs_of(work, task), counted)
        padding = summary.records * settings.length - summary.tokens
        info = ShardInfo(task.name, summary.records, summary.bytes, summary.sha256, summary.tokens, padding)
        made = Made(task.split, task.number, info, counts)
        paths.write_bytes(note_of(work, task), json.dumps(asdict(made)).encode())
    except OSError as error:
        raise UserError(f"the shard cannot be written ({error.strerror})", paths.join(out, task.name)) from None
    return made


def _shard_key(settings: Settings, task: plan.Task) -> tuple[int, int, int]:
    """What all randomness of a shard begins with."""
    return settings.seed, _SPLITS.index(task.split), task.number


def _documents(places: np.ndarray, rows: np.ndarray, first: int, work: str) -> Iterator[tuple[int, str]]:
    """(number, text) of the documents at `rows`, neighbours in the spool read together."""
    ends = places["offset"] + places["size"]
    at = 0
    while at < len(rows):
        begin = last = rows[at]
        after = at + 1
        while (
            after < len(rows)
            and places["group"][rows[after]] == places["group"][begin]
            and places["offset"][rows[after]] == ends[last]
            and ends[rows[after]] - places["offset"][begin] <= _RUN
        ):
            last = rows[after]
            after += 1
        name = spool.Group(int(places["group"][begin]), ()).name + ".text"
        start = int(places["offset"][begin])
        raw = paths.read_range(paths.join(work, name), start, int(ends[last]))
        for row in rows[at:after].tolist():
            offset = int(places["offset"][row]) - start
            yield first + row, raw[offset : offset + int(places["size"][row])].decode()
        at = after


def _blocks(
    task: plan.Task,
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
        *_RELATIONS.get(settings.layout, ()),
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
        }.items():
            counts[name] += int(value)
        relation = records.get("relation", records["next_sentence_labels"])
        for label, name in enumerate(_RELATIONS.get(settings.layout, ()), 1):
            counts[name] += int((relation == label).sum())
        yield records | {
            "input_ids": done.ids,
            "masked_lm_positions": done.positions,
            "masked_lm_ids": done.labels,
            "masked_lm_weights": done.weights,
        }
