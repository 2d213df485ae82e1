"""Readable views of a data set: the manifest's counts as tables, and single records as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bert_jax.errors import UserError
from bert_jax.text.features import check, restore
from bert_jax.text.manifest import Manifest, load_manifest
from bert_jax.text.records import Shard, open_shard
from bert_jax.text.tokenizer import Tokenizer

_COUNTS = (
    ("records", ""),
    ("tokens", ""),
    ("padding", ""),
    ("documents", ""),
    ("empty_documents", ""),
    ("sentences", ""),
    ("cut_sentences", ""),
    ("corpus_tokens", ""),
    ("unknown_tokens", "unknown_rate"),
    ("truncated_tokens", "truncated_rate"),
    ("random_next", "random_next_rate"),
    ("eligible", ""),
    ("wanted", ""),
    ("overflowed", "overflowed_rate"),
    ("unfilled", ""),
    ("chosen", "chosen_rate"),
    ("masked", "masked_rate"),
    ("kept", "kept_rate"),
    ("random", "random_rate"),
)


def table(manifest: Manifest) -> str:
    """Counts and rates of both splits, and the reference levels, as aligned text."""
    names = list(manifest.splits)
    lines = [
        f"{manifest.length} tokens and {manifest.predictions} predictions a record, vocabulary of "
        f"{manifest.vocab_size}, tokenizer {manifest.tokenizer[:12]}, seed {manifest.seed}",
        f"{len(manifest.inputs)} input files, {sum(one['bytes'] for one in manifest.inputs):,} bytes",
        "",
        f"{'':18}" + "".join(f"{name:>24}" for name in names),
        f"{'shards':18}" + "".join(f"{len(manifest.splits[name].shards):>24,}" for name in names),
    ]
    for key, rate in _COUNTS:
        cells = []
        for name in names:
            split = manifest.splits[name]
            value = split.rates.get(key, getattr(split, key, 0))
            share = split.tokens and key == "padding" and value / (value + split.tokens)
            share = split.rates[rate] if rate else share
            cells.append(f"{value:,.0f}" + (f" {100 * share:7.3f} %" if rate or share else ""))
        lines.append(f"{key.replace('_', ' '):18}" + "".join(f"{cell:>24}" for cell in cells))
    lines += ["", f"{'held-out level':18}{'loss':>12}{'accuracy':>12}"]
    for name, level in manifest.levels.items():
        accuracy = f"{level['accuracy']:>12.4f}" if "accuracy" in level else ""
        lines.append(f"{name.replace('_', ' '):18}{level['loss']:>12.4f}{accuracy}")
    return "\n".join(lines)


def inspect(
    path: str,
    tokenizer_path: str | None = None,
    split: str = "train",
    record: int | None = None,
    seed: int | None = None,
) -> str:
    """One record as readable text, its masked words and its label shown.

    Args:
        path: a data set, or one shard (then with a tokenizer).
        tokenizer_path: only for a shard; a data set has its own.
        split: "train" or "heldout", of a data set.
        record: number in the split; None draws one.
        seed: of the drawing; None draws another each time.

    Raises:
        UserError: no such data set, split or record, or a tokenizer that is not the shards'.
    """
    place = Path(path)
    if not place.exists():
        raise UserError("there is no such data set or shard", path, "check the path")
    if place.is_dir():
        manifest = load_manifest(place)
        if split not in manifest.splits:
            raise UserError(f"there is no split {split}", path, f"choose from {', '.join(manifest.splits)}")
        tokenizer = Tokenizer.load(tokenizer_path or place / "tokenizer")
        if tokenizer.fingerprint != manifest.tokenizer:
            raise UserError("the shards were made with another tokenizer", path, "leave --tokenizer away")
        shards = [open_shard(place / info.name) for info in manifest.splits[split].shards]
    elif tokenizer_path is None:
        raise UserError("a single shard does not say its tokenizer", path, "pass --tokenizer")
    else:
        tokenizer, shards = Tokenizer.load(tokenizer_path), [open_shard(place)]
    total = sum(one.num_records for one in shards)
    if total == 0:
        raise UserError("there are no records", path)
    if record is None:
        record = int(np.random.default_rng(seed).integers(total))
    if not 0 <= record < total:
        raise UserError(f"there is no record {record}", path, f"records run from 0 to {total - 1}")
    number = record
    for one in shards:
        if number < one.num_records:
            return _describe(one, number, record, tokenizer)
        number -= one.num_records
    raise AssertionError("unreachable")


def _describe(shard: Shard, number: int, record: int, tokenizer: Tokenizer) -> str:
    records = shard.read(np.array([number]))
    check(records, shard.spec, tokenizer.vocab_size, str(shard.path), number)
    original, now = restore(records)[0], records["input_ids"][0]
    length = int(records["input_mask"][0].sum())
    chosen = set(records["masked_lm_positions"][0][records["masked_lm_weights"][0] > 0].tolist())
    segments: list[list[str]] = [[], []]
    for at in range(length):
        piece = tokenizer.pieces[original[at]]
        word = piece.replace("\u2581", " ") if tokenizer.kind != "wordpiece" else piece.removeprefix("##")
        blank = tokenizer.kind == "wordpiece" and not piece.startswith("##") and at > 0
        if at in chosen:
            shown = tokenizer.pieces[now[at]]
            word = f"{word[: len(word) - len(word.lstrip())]}{{{word.strip()} → {shown}}}"
        segments[int(records["segment_ids"][0][at])].append((" " if blank else "") + word)
    label = "random next" if records["next_sentence_labels"][0] else "next"
    lines = [
        f"record {record} ({shard.path.name}, {number}): {label}, {length} of {shard.spec.length} tokens, "
        f"{len(chosen)} predictions, unit starts {'known' if 'word_starts' in records else 'unknown'}",
    ]
    if "documents" in records:
        a, b = records["documents"][0].tolist()
        lines.append(f"documents {a} and {b}")
    return "\n".join(lines + ["A: " + "".join(segments[0]).strip(), "B: " + "".join(segments[1]).strip()])
