"""How many useful tokens a second one core delivers as batches, beside what accelerators take; and the padding.

    python -m benchmarks.input --data DIR128 DIR512

Each way (padded or packed rows, masks as written or drawn anew) takes its turn in each round and makes as many batches
as a block of records fills, so that the packing of one block is part of it. Told are useful tokens a CPU second of the
one thread that does it, the median of the rounds, with shards in the page cache; that as a multiple of what one and
eight H100 take that train BERT-base at half of their bfloat16 peak (`bert_jax.cost`); and the share of padding.

Then what a stage costs before its first batch: packing every block for the number of its rows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from bert_jax.config import DataSettings, Stage, preset
from bert_jax.cost import accelerator, flops_a_token
from bert_jax.data.loader import Dataset, open_batches, open_dataset
from bert_jax.data.order import BLOCK, PackedOrder

BOUND = 3.0  # times what eight accelerators take, from one core
PADDING = 0.05  # of packed rows, at most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="directories from `bert-data shards`")
    parser.add_argument(
        "--batch",
        type=int,
        default=4096,
        help="rows of 128 tokens, fewer longer ones: a host of eight has 512 each (default: 4096)",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="h100", help="an accelerator of bert_jax.cost (default: h100)")
    args = parser.parse_args()
    # a list, so that all are measured before one fails
    return 0 if all([compare(directory, args) for directory in args.data]) else 1


def compare(directory: Path, args: argparse.Namespace) -> bool:
    """Print the table of a data directory; whether the bounds hold."""
    dataset = open_dataset(directory, "train")
    manifest = dataset.manifest
    rows = max(1, args.batch * 128 // manifest.length)
    flops = flops_a_token(preset("base", manifest.vocab_size), manifest.length, manifest.predictions)
    one = 0.5 * accelerator(args.device).tflops * 1e12 / flops
    print(
        f"{dataset.records:,} records of at most {manifest.length} tokens, {rows} rows a batch;"
        f" one {args.device} at half of its peak takes {one / 1e6:.2f} M tokens/s, eight {8 * one / 1e6:.2f} M"
    )
    ways = {
        (batching, masking): open_batches(
            DataSettings(batching=batching, masking=masking), Stage(batch=rows), 0, 0, dataset
        )
        for batching in ("padded", "packed")
        for masking in ("static", "dynamic")
    }
    rates: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    turns = {
        way: max(1, round(BLOCK / dataset.records * b.sources[0].order.epoch_rows / rows)) for way, b in ways.items()
    }
    for turn in range(args.rounds + 1):
        for way, batches in ways.items():
            start, tokens = time.process_time(), 0
            for t in range(turn * turns[way], (turn + 1) * turns[way]):
                tokens += batches.load(t).tokens
            if turn:  # the first round brings the shards into memory
                rates[way].append(tokens / (time.process_time() - start))
    fine = True
    for (batching, masking), batches in ways.items():
        rate = statistics.median(rates[batching, masking])
        padding = 1 - int(dataset.tokens.sum()) / (batches.sources[0].order.epoch_rows * manifest.length)
        held = rate >= BOUND * 8 * one and (batching != "packed" or padding < PADDING)
        fine &= held
        times = f"{rate / one:6.1f} x one {rate / one / 8:5.1f} x eight"
        print(f"  {batching:7s} {masking:8s}{rate / 1e6:7.1f} M tokens/s {times} {padding:6.2%} padding", end="  ")
        print("held" if held else "NOT HELD", flush=True)
    beforehand(dataset)
    return fine


def beforehand(dataset: Dataset) -> None:
    start = time.process_time()
    order = open_batches(DataSettings(batching="packed"), Stage(), 0, 0, dataset).sources[0].order
    assert isinstance(order, PackedOrder)
    rows, seconds = order.epoch_rows, time.process_time() - start
    print(
        f"  {dataset.records:,} records into {rows:,} rows of {order.capacity.predictions} predictions: {seconds:.3f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
