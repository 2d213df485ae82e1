"""How fast records are read, shuffled and with checksums compared, beside three other readers.

    pip install tensorflow-cpu tfrecord grain
    python -m benchmarks.read                    # shards of random records, at 128 and 512 tokens
    python -m benchmarks.read --data DIR         # the training shards in a directory

Each reader has a process of its own (two of the libraries cannot share one) and they take turns. Told are records a
CPU second, of all threads of the process, the median of the rounds; and page faults a record (`ru_minflt`): a reader
that hands its memory back after each batch pays for it here. Files are in the page cache. Favours to the others: they
parse the reference's seven features and not our own, tf.data hands over its tensors as they are, and the tfrecord
package compares no checksums.

Then what the imports of the training data path cost beyond NumPy's own, in fresh processes.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from bert_jax.text.features import SEVEN, Records, RecordSpec
from bert_jax.text.records import open_shard, read_together, write_shard

# What ours must be at least, as a multiple of each: of tf.data at any length, of the others at 128 tokens.
BOUNDS = {"tf.data": 0.8, "tfrecord": 7.0, "grain": 7.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a directory of shards (default: random records)")
    parser.add_argument("--records", type=int, default=32_768, help="random records to write")
    parser.add_argument("--batch", type=int, default=1024, help="records read at a time")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    fine = True
    if arguments.data:
        paths = sorted(arguments.data.glob("train-*.tfrecord"))
        if not paths:
            parser.error(f"{arguments.data} holds no train-*.tfrecord")
        fine &= compare(paths, arguments.batch, arguments.rounds)
    else:
        for spec in (RecordSpec(128, 20), RecordSpec(512, 76)):
            with tempfile.TemporaryDirectory() as directory:
                paths = random_shards(Path(directory), spec, arguments.records * 128 // spec.length)
                fine &= compare(paths, arguments.batch, arguments.rounds)
    return 0 if imports() and fine else 1


# ------------------------------------------------------------------------------------------------------------
# The data


def random_shards(directory: Path, spec: RecordSpec, records: int) -> list[Path]:
    """Four shards of random records: ids as frequent as words, one record in ten short."""
    paths = [directory / f"train-{number:05d}-of-00004.tfrecord" for number in range(4)]
    for number, path in enumerate(paths):
        blocks = (random_records(spec, 1024, (number, block)) for block in range(-(-records // 4096)))
        write_shard(path, blocks, spec)
    return paths


def random_records(spec: RecordSpec, n: int, seed: tuple[int, int]) -> Records:
    """Records with the features and about the sizes that preparation gives them."""
    rng, length, predictions = np.random.default_rng(seed), spec.length, spec.predictions
    lengths = np.where(rng.random(n) < 0.1, rng.integers(5, length, n), length)
    inside = np.arange(length) < lengths[:, None]
    used = np.arange(predictions) < np.rint(0.15 * lengths)[:, None]
    ids = (1000 + 29_000 * rng.random((n, length)) ** 3).astype(np.int32)
    positions = np.sort(
        np.argpartition(rng.random((n, length)) + ~inside, predictions, axis=1)[:, :predictions], axis=1
    )
    return {
        "input_ids": ids * inside,
        "input_mask": inside.astype(np.int32),
        "segment_ids": (inside & (np.arange(length) > lengths[:, None] // 2)).astype(np.int32),
        "masked_lm_positions": (positions * used).astype(np.int32),
        "masked_lm_ids": np.take_along_axis(ids, positions, 1) * used,
        "masked_lm_weights": used.astype(np.float32),
        "next_sentence_labels": rng.integers(0, 2, n).astype(np.int32),
        "word_starts": rng.random((n, length)) < 0.8,
        "documents": rng.integers(0, 100_000, (n, 2)),
    }


# ------------------------------------------------------------------------------------------------------------
# The readers: each yields how many records it has just read, for ever


def ours(paths: list[Path], batch: int) -> Iterator[int]:
    shards = [open_shard(path) for path in paths]
    counts = [shard.num_records for shard in shards]
    places = np.repeat(np.arange(len(shards)), counts)
    numbers = np.concatenate([np.arange(count) for count in counts])
    for epoch in itertools.count():
        order = np.random.default_rng(epoch).permutation(len(numbers))
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            yield len(read_together(shards, places[chosen], numbers[chosen])["input_ids"])


def tf_data(paths: list[Path], batch: int) -> Iterator[int]:
    """A shuffle buffer of eight batches, parsed a batch at a time, on one thread."""
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    spec = open_shard(paths[0]).spec
    # As run_pretraining.py of google-research/bert declares them.
    sizes = dict.fromkeys(SEVEN[:3], spec.length) | dict.fromkeys(SEVEN[3:6], spec.predictions) | {SEVEN[6]: 1}
    features = {
        name: tf.io.FixedLenFeature([size], tf.float32 if name == "masked_lm_weights" else tf.int64)
        for name, size in sizes.items()
    }
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    data = tf.data.TFRecordDataset([str(path) for path in paths]).repeat().shuffle(8 * batch, seed=0).batch(batch)
    for parsed in data.map(lambda raw: tf.io.parse_example(raw, features)).with_options(options):
        yield int(parsed["input_ids"].shape[0])


def tfrecord_package(paths: list[Path], batch: int) -> Iterator[int]:
    """A record at a time, through its shuffle queue, stacked to batches."""
    from tfrecord.iterator_utils import shuffle_iterator
    from tfrecord.reader import tfrecord_loader

    kinds = dict.fromkeys(SEVEN, "int") | {"masked_lm_weights": "float"}
    loaders = (tfrecord_loader(str(path), None, kinds) for path in itertools.cycle(paths))
    shuffled = shuffle_iterator(itertools.chain.from_iterable(loaders), 1024)
    while True:
        records = list(itertools.islice(shuffled, batch))
        yield len({name: np.stack([record[name] for record in records]) for name in SEVEN}["input_ids"])


def grain_loader(paths: list[Path], batch: int) -> Iterator[int]:
    """A data source that reads a record by our index, parsed with protobuf, shuffled and batched by grain."""
    import google_crc32c
    import grain.python as grain
    from tfrecord.example_pb2 import Example

    class Source(grain.RandomAccessDataSource):
        def __init__(self) -> None:
            self.places: list[tuple[int, int, int]] = []
            for path in paths:
                file, index = os.open(path, os.O_RDONLY), path.with_name(path.name + ".idx").read_bytes()
                count = int.from_bytes(index[16:24], "little")
                offsets = np.frombuffer(index, "<u8", count, 24).tolist()
                lengths = np.frombuffer(index, "<u4", count, 24 + 8 * count).tolist()
                self.places += [(file, offset + 12, length) for offset, length in zip(offsets, lengths, strict=True)]

        def __len__(self) -> int:
            return len(self.places)

        def __getitem__(self, record_key: int) -> bytes:
            file, offset, length = self.places[record_key]
            raw = os.pread(file, length + 4, offset)
            crc = google_crc32c.value(raw[:-4])
            if ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF != int.from_bytes(raw[-4:], "little"):
                raise ValueError(f"the checksum of record {record_key} does not hold")
            return raw[:-4]

    class Parse(grain.MapTransform):
        def map(self, element: bytes) -> Records:  # pyright: ignore[reportIncompatibleMethodOverride]
            features = Example.FromString(element).features.feature
            return {
                name: np.array(features[name].float_list.value, np.float32)
                if name == "masked_lm_weights"
                else np.array(features[name].int64_list.value, np.int32)
                for name in SEVEN
            }

    source = Source()
    loader = grain.DataLoader(
        data_source=source,
        sampler=grain.IndexSampler(len(source), shard_options=grain.NoSharding(), shuffle=True, seed=0),
        operations=[Parse(), grain.Batch(batch)],
        read_options=grain.ReadOptions(num_threads=0, prefetch_buffer_size=0),
    )
    for parsed in loader:
        yield len(parsed["input_ids"])


READERS = {"ours": ours, "tf.data": tf_data, "tfrecord": tfrecord_package, "grain": grain_loader}


def serve(name: str, paths: list[Path], batch: int, parent: Connection) -> None:
    """For each number that comes: reads so many records at least, and tells (done, CPU seconds, page faults)."""
    reader = READERS[name](paths, batch)
    while least := parent.recv():
        faults, start, done = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time(), 0
        while done < least:
            done += next(reader)
        seconds = time.process_time() - start
        parent.send((done, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults))


# ------------------------------------------------------------------------------------------------------------
# The comparison


def compare(paths: list[Path], batch: int, rounds: int) -> bool:
    """Prints the table of some shards; whether every bound holds."""
    shards = [open_shard(path) for path in paths]
    spec, records = shards[0].spec, sum(shard.num_records for shard in shards)
    size = sum(path.stat().st_size for path in paths) / records
    print(f"{records:,} records of {spec.length} tokens and {spec.predictions} predictions, {size:,.0f} bytes each")
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    for name in READERS:
        ends[name], theirs = context.Pipe()
        context.Process(target=serve, args=(name, paths, batch, theirs), daemon=True).start()
        theirs.close()  # so that a reader that dies ends the run here instead of being waited for
    rates: dict[str, list[float]] = {name: [] for name in READERS}
    faults: dict[str, list[float]] = {name: [] for name in READERS}
    for turn in range(rounds + 1):
        for name, end in ends.items():
            end.send((1 << 21 if name in ("ours", "tf.data") else 1 << 18) // spec.length)
            done, seconds, faulted = end.recv()
            if turn:  # the first round fills buffers and memos
                rates[name].append(done / seconds)
                faults[name].append(faulted / done)
    for end in ends.values():
        end.send(0)
    fine = True
    for name in READERS:
        ratio = statistics.median(our / their for our, their in zip(rates["ours"], rates[name], strict=True))
        told = "" if name == "ours" else f"ours is {ratio:5.2f} x"
        if name == "tf.data" or (name in BOUNDS and spec.length == 128):
            held = ratio >= BOUNDS[name]
            fine &= held
            told += f" (at least {BOUNDS[name]:g}: {'held' if held else 'NOT HELD'})"
        rate, fault = statistics.median(rates[name]), statistics.median(faults[name])
        print(f"  {name:9s} {rate:8,.0f} records/s {fault:6.2f} page faults a record  {told}", flush=True)
    return fine


def imports(processes: int = 5) -> bool:
    """Prints what importing the data path costs; whether it is light and free of TensorFlow and protobuf."""
    code = (
        "import sys, time, numpy; start = time.process_time(); import bert_jax.data.loader, bert_jax.text.records; "
        "print(time.process_time() - start, *{'tensorflow', 'google.protobuf', 'jax'} & set(sys.modules))"
    )
    told = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(processes)
    ]
    seconds, heavy = statistics.median(float(each[0]) for each in told), told[0][1:]
    print(f"import of bert_jax.data.loader and bert_jax.text.records: {seconds:.3f} CPU s beyond NumPy (below 0.3)")
    print(f"  of TensorFlow, protobuf and JAX it loads: {', '.join(heavy) or 'nothing'}")
    return seconds < 0.3 and not heavy


if __name__ == "__main__":
    sys.exit(main())
