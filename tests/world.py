"""A tiny world one can read: 40 words, sentences in which each word has a favourite successor, shards of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from bert_jax.text.corrupt import Rule, corrupt, row_keys, units_of
from bert_jax.text.features import RecordSpec
from bert_jax.text.manifest import Manifest, ShardInfo, Split, write_manifest
from bert_jax.text.records import write_shard
from bert_jax.text.tokenizer import Tokenizer

WORDS = [
    f"{start}{end}" for start in ("ba", "ke", "li", "mo", "nu") for end in ("n", "r", "s", "t", "d", "g", "k", "l")
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
LENGTH, PREDICTIONS = 16, 4


def write_vocabulary(path: Path) -> Path:
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


def write_data(
    directory: Path,
    records: int = 96,
    heldout: int = 24,
    shards: int = 2,
    seed: int = 0,
    layout: str = "pair",
    shortest: int = LENGTH - 4,
) -> Path:
    """A data directory as `bert-data shards` leaves it; of layout "three", relation 1 is told from 2 by a coin.

    Records have `shortest` (5 at least) to LENGTH tokens.
    """
    directory.mkdir(parents=True)
    tokenizer = Tokenizer.load(write_vocabulary(directory / "vocab.txt"))
    tokenizer.save(directory / "tokenizer")
    rng = np.random.default_rng(seed)
    splits = {
        "train": _write_split(directory, "train", records, shards, tokenizer, rng, layout, shortest),
        "heldout": _write_split(directory, "heldout", heldout, 1, tokenizer, rng, layout, shortest),
    }
    settings = {"rate": 0.15, "unit": "token", "mask_share": 0.8, "random_share": 0.1, "layout": layout}
    levels = {"uniform": {"loss": 3.8}} | {
        name: {"loss": loss, "accuracy": accuracy}
        for name, loss, accuracy in (("unigram", 3.6, 0.05), ("left_bigram", 2.0, 0.5), ("two_sided_bigram", 1.6, 0.6))
    }
    manifest = Manifest(
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        special=tokenizer.special,
        length=LENGTH,
        predictions=PREDICTIONS,
        settings=settings,
        inputs=[],
        seed=seed,
        splits=splits,
        levels=levels,
    )
    write_manifest(directory, manifest)
    return directory


def _write_split(
    directory: Path,
    name: str,
    records: int,
    shards: int,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    layout: str,
    shortest: int,
) -> Split:
    infos = []
    for number, part in enumerate(np.array_split(np.arange(records), shards)):
        file = f"{name}-{number:05d}-of-{shards:05d}.tfrecord"
        batch = _records(len(part), tokenizer, rng, shortest)
        if layout == "three":
            batch["relation"] = batch["next_sentence_labels"] * rng.integers(1, 3, len(part), dtype=np.int32)
        written = write_shard(directory / file, [batch], RecordSpec(LENGTH, PREDICTIONS))
        padding = len(part) * LENGTH - written.tokens
        infos.append(ShardInfo(file, written.records, written.bytes, written.sha256, written.tokens, padding))
    return Split(tuple(infos), records, sum(i.tokens for i in infos), sum(i.padding for i in infos), {})


def _records(n: int, tokenizer: Tokenizer, rng: np.random.Generator, shortest: int) -> dict[str, np.ndarray]:
    special, words = tokenizer.special, len(WORDS)
    ids = np.full((n, LENGTH), special.pad, np.int32)
    segments = np.zeros((n, LENGTH), np.int32)
    lengths = rng.integers(shortest, LENGTH + 1, n)
    random_next = rng.integers(0, 2, n)
    for row, length in enumerate(lengths):
        middle = length // 2
        # word i is followed by word i + 1, nine times in ten
        steps = np.where(rng.random(length) < 0.9, 1, rng.integers(0, words, length))
        text = (rng.integers(words) + np.cumsum(steps)) % words
        if random_next[row]:
            text[middle:] = (text[middle:] + rng.integers(2, words - 1)) % words
        ids[row, :length] = text + 5
        ids[row, 0], ids[row, middle], ids[row, length - 1] = special.cls, special.sep, special.sep
        segments[row, middle + 1 : length] = 1
    units = units_of(ids, None, special, "token")
    keys = row_keys((int(rng.integers(2**31)),), np.arange(n))
    masked = corrupt(ids, units, special, tokenizer.vocab_size, Rule(cap=PREDICTIONS), keys)
    return {
        "input_ids": masked.ids,
        "input_mask": (np.arange(LENGTH)[None] < lengths[:, None]).astype(np.int32),
        "segment_ids": segments,
        "masked_lm_positions": masked.positions,
        "masked_lm_ids": masked.labels,
        "masked_lm_weights": masked.weights,
        "next_sentence_labels": random_next.astype(np.int32),
    }


RECIPE = """
[model]
preset = "tiny"
width = 32
heads = 2
positions = 16

[train]
evaluate_every = 20

[checkpoint]
every = 5

[report]
tensorboard = false

[[stage]]
batch = 8
steps = 25
learning_rate = 3e-3
warmup = 5

[[stage]]
batch = 16
accumulate = 2
steps = 15
learning_rate = 1e-3
"""


def write_recipe(path: Path, text: str = RECIPE) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# Run what follows where no file may grow beyond a number of bytes.
_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
os.execv(sys.argv[2], sys.argv[2:])
"""


def flags(devices: int) -> str:
    """What XLA is told: so many devices, and no time spent on code that runs once."""
    return f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=1"


def bert_jax(
    *arguments: object, devices: int = 1, largest_file: int = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, perhaps where files cannot grow beyond so many bytes.

    `more` are variables of its environment.
    """
    environment = {**os.environ, "XLA_FLAGS": flags(devices), "JAX_PLATFORMS": "cpu", **more}
    command = [sys.executable, "-m", "bert_jax.cli", *map(str, arguments)]
    if largest_file:
        command = [sys.executable, "-c", _LIMITED, str(largest_file), *command]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
