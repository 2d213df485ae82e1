"""Preparation from text to shards: CPU seconds of one core beside `tokenizers.encode_batch` and google-research/bert.

    python -m benchmarks.prepare VOCAB FILE [FILE ...] [--length 128] [--duplicates 1] [--reference DIR] [--workers 2]

What is timed is `bert-data shards` as a user calls it, a process of its own from its start to its end: imports, the
tokenizer, both passes over the text, index, checksums, reference levels, manifest, real files. Beside it, in turn with
it, `tokenizers.encode_batch` on one thread over the same text (whose sentences are cut before the clock starts), and
with --reference a checkout of google-research/bert: its `create_pretraining_data.py` on the first megabytes. Then the
stages one by one, and the wall time of one worker and of several.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

from bert_jax.text.corrupt import Rule, corrupt, predictions_for, row_keys, units_of  # noqa: E402
from bert_jax.text.features import RecordSpec  # noqa: E402
from bert_jax.text.records import write_shard  # noqa: E402
from bert_jax.text.tokenizer import Tokenizer  # noqa: E402
from data_prep import layouts, levels, sentences, sources  # noqa: E402

_ROUNDS = 3
_REFERENCE_BYTES = 2_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("vocab", help="a vocab.txt")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--duplicates", type=int, default=1)
    parser.add_argument("--language", default="en")
    parser.add_argument("--reference", help="a checkout of google-research/bert")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    names = sources.expand(args.files)
    documents = [text for name in names for text in sources.documents(name)]
    size = sum(len(text.encode()) for text in documents) / 1e6
    print(f"{size:.1f} MB of text, {len(documents):,} documents, length {args.length}, duplicates {args.duplicates}")
    ours, plain = [], []
    for _ in range(_ROUNDS):
        ours.append(_shards(args, names, 1)[0])
        plain.append(_encode_batch(args.vocab, documents[: max(1, len(documents) // 8)], args.language))
    rate, plain_rate = size / min(ours), max(plain)
    print(f"bert-data shards, one worker: {rate:.2f} MB a CPU second (all rounds: {_list(size / s for s in ours)})")
    print(f"tokenizers.encode_batch:      {plain_rate:.2f} MB a CPU second (all rounds: {_list(plain)})")
    rounds = _list(size / s / p for s, p in zip(ours, plain, strict=True))
    print(f"ratio {rate / plain_rate:.2f} (round by round: {rounds})")
    if args.reference:
        reference = _reference(args, documents)
        print(f"google-research/bert:         {reference:.3f} MB a CPU second; ours: {rate / reference:.1f} times that")
    for line in _stages(args, documents):
        print(line)
    walls = {workers: min(_shards(args, names, workers)[1] for _ in range(_ROUNDS)) for workers in (1, args.workers)}
    print("wall seconds: " + ", ".join(f"{workers} worker(s) {seconds:.2f}" for workers, seconds in walls.items()))
    print(f"{args.workers} workers are {walls[1] / walls[args.workers]:.2f} times as fast as one")
    return 0


def _list(values: Iterator[float] | Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _shards(args: argparse.Namespace, names: list[str], workers: int) -> tuple[float, float]:
    """CPU and wall seconds of a whole run of the command line."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "data_prep.cli", "shards", *names, "--tokenizer", args.vocab]
        command += ["--out", str(Path(folder) / "data"), "--length", str(args.length), "--language", args.language]
        command += ["--duplicates", str(args.duplicates), "--workers", str(workers)]
        return _child(command)


def _child(command: list[str], **more) -> tuple[float, float]:
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, **more)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def _encode_batch(vocab: str, documents: list[str], language: str) -> float:
    """MB a CPU second of the library's own batch call."""
    cut = sentences.splitter(language)
    texts = [sentence for document in documents for sentence in cut(document)]
    engine = Tokenizer.load(vocab)._engine
    begun = time.process_time()
    engine.encode_batch(texts, add_special_tokens=False)
    return sum(len(text.encode()) for text in documents) / 1e6 / (time.process_time() - begun)


def _reference(args: argparse.Namespace, documents: list[str]) -> float:
    """MB a CPU second of google-research/bert's script, in the TensorFlow that is installed, less its start."""
    seconds = []
    for size in (_REFERENCE_BYTES // 10, _REFERENCE_BYTES):
        cut, taken, lines = sentences.splitter(args.language), 0, []
        for document in documents:
            lines += [*cut(document), ""]
            taken += len(document.encode())
            if taken >= size:
                break
        with tempfile.TemporaryDirectory() as folder:
            script = shutil.copytree(args.reference, Path(folder) / "bert", ignore=shutil.ignore_patterns(".git"))
            for path in script.glob("*.py"):  # written for TensorFlow 1
                path.write_text(
                    path.read_text().replace("import tensorflow as tf", "import tensorflow.compat.v1 as tf")
                )
            (Path(folder) / "text.txt").write_text("\n".join(lines))
            command = [sys.executable, str(script / "create_pretraining_data.py")]
            command += [f"--input_file={folder}/text.txt", f"--output_file={folder}/out", f"--vocab_file={args.vocab}"]
            command += [f"--max_seq_length={args.length}", f"--dupe_factor={args.duplicates}"]
            command += [f"--max_predictions_per_seq={predictions_for(args.length)}", "--do_lower_case=True"]
            seconds.append((taken / 1e6, _child(command, env=os.environ | {"PYTHONPATH": str(script)})[0]))
    (small, first), (large, second) = seconds
    return (large - small) / (second - first)


def _stages(args: argparse.Namespace, documents: list[str]) -> Iterator[str]:
    """Where the time is: each stage alone, on arrays of the stage before."""
    clock: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        begun = time.process_time()
        yield
        clock[name] = clock.get(name, 0.0) + time.process_time() - begun

    some = documents[: max(2, len(documents) // 6)]
    size = sum(len(text.encode()) for text in some) / 1e6
    tokenizer, cut = Tokenizer.load(args.vocab), sentences.splitter(args.language)
    tokenizer.encode_batch([""])
    with stage("sentences"):
        texts = [sentence for document in some for sentence in cut(document)]
    with stage("tokens"):
        for first in range(0, len(texts), 10_000):
            tokenizer.encode_batch(texts[first : first + 10_000])
    corpus = layouts.tokenise(enumerate(some), tokenizer, args.language, args.length)
    rng = np.random.default_rng(0)
    with stage("layout of pairs"):
        instances, _ = layouts.arrange("pair", corpus, args.length, 0.1, args.duplicates, rng)
    with stage("neighbours counted"):
        begins = corpus.sentences[corpus.documents]
        levels.count(corpus.ids, begins, tokenizer.vocab_size)
    rule, blocks = Rule(predictions_for(args.length)), []
    for first in range(0, len(instances), 2048):
        with stage("rows of ids"):
            records = layouts.rows(corpus, instances.take(slice(first, first + 2048)), args.length, tokenizer.special)
        with stage("choice and replacement"):
            ids = records["input_ids"]
            units = units_of(ids, None, tokenizer.special, "token")
            keys = row_keys((0,), np.arange(first, first + len(ids)))
            done = corrupt(ids, units, tokenizer.special, tokenizer.vocab_size, rule, keys)
        masked = {
            "masked_lm_positions": done.positions,
            "masked_lm_ids": done.labels,
            "masked_lm_weights": done.weights,
        }
        blocks.append(records | masked | {"input_ids": done.ids})
    with tempfile.TemporaryDirectory() as folder, stage("records, checksums, file"):
        write_shard(Path(folder) / "x.tfrecord", blocks, RecordSpec(args.length, rule.cap))
    yield f"\n| stage ({size:.1f} MB, cold) | MB a CPU second |\n|---|---|"
    for name, seconds in clock.items():
        yield f"| {name} | {size / seconds:.0f} |"
    yield f"| all of these | {size / sum(clock.values()):.1f} |\n"


if __name__ == "__main__":
    sys.exit(main())
