"""The time of a training step: here, and transformers' BertForPreTraining with AdamW on torch, on one CPU.

    python -m benchmarks.train_step [--data DATA] [--rows mini,128 base,512] [--methods here/float32 eager/bfloat16]

DATA holds shards of `bert-data shards` in folders 128 and 512; without it, lengths are drawn. Each method runs in a
process of its own, one process at a time, in rounds in which methods alternate; compilations are kept for later
rounds. All do the same: the whole step (forward, backward, clipping, AdamW) on the same rows, dropout of 0.1 on hidden
states and attention, float32 parameters and moments; bfloat16 is torch's autocast there, `train.dtype` here. torch
takes its fused AdamW, its fastest on a CPU.

Each side gets what it was found to be fastest with, since the first touch of its memory is a sixth of a step: ours
huge pages, as the commands ask for (`bert_jax.heap`), torch memory that glibc never gives back. "@intel" is torch with
an MKL that is told that the processor is Intel's, by a function of its own that is put before MKL's (`cc` makes it):
on others MKL takes kernels of half the width. No such thing is needed, nor in the list, on a processor of Intel's.

Printed are useful tokens (padding is none) a second by the median step, the most memory that a process held (the least
over rounds, so that compiling is left out where a later round found it done), the step's FLOPs by `bert_jax.cost`
against the largest rate of a matrix product of this machine in the same run, and each method against the best float32
one of torch, as it comes and @intel.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax import cost, heap
from bert_jax.config import BertConfig, DataSettings, Execution, Stage, TrainSettings, preset
from bert_jax.data.batching import HostBatch
from bert_jax.data.loader import open_batches, open_dataset
from bert_jax.text.corrupt import predictions_for

ROWS = {  # rows of a step: seconds of work each, in a memory that a small machine has
    ("mini", 128): 32,
    ("mini", 512): 8,
    ("small", 128): 16,
    ("small", 512): 4,
    ("base", 128): 16,
    ("base", 512): 4,
}
METHODS = (
    "here/float32",
    "packed/float32",
    "here/bfloat16",
    "eager/float32",
    "compile/float32",
    "eager/bfloat16",
    "compile/bfloat16",
    "eager/float32@intel",
    "compile/float32@intel",
)
OURS = ("here", "packed", "product/jax")
INTEL = b"int mkl_serv_intel_cpu_true(void) { return 1; }"
VOCABULARY = 30522
BATCHES = 4  # different ones, taken in turn


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a directory with folders 128 and 512 of shards")
    parser.add_argument("--rows", nargs="+", default=[f"{name},{length}" for name, length in ROWS])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of steps that each method takes a round")
    parser.add_argument("--batch", type=int, default=0, help="rows of a step (0: as the table has it)")
    parser.add_argument("--rate", type=float, default=0.1, help="of both dropouts")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args)

    peak = 0.0
    methods = [m for m in args.methods if args.data or not m.startswith("packed")]
    if "GenuineIntel" in Path("/proc/cpuinfo").read_text():
        methods = [m for m in methods if not m.endswith("@intel")]
    with tempfile.TemporaryDirectory() as caches:
        if any(m.endswith("@intel") for m in methods):
            subprocess.run(["cc", "-shared", "-fPIC", "-o", f"{caches}/intel.so", "-xc", "-"], input=INTEL, check=True)
        for row in args.rows:
            name, length = row.split(",")
            found: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
            for number in range(args.rounds):
                turn = number % len(methods)
                peak = max(peak, *start(["product/jax"], args, caches), *start(["product/numpy"], args, caches))
                for method in methods[turn:] + methods[:turn]:
                    found[method].append(start([method, name, length], args, caches))
            show(name, int(length), found, peak)
    return 0


def start(what: list[str], args: argparse.Namespace, caches: str) -> Any:
    """Run one worker to its end; what it printed last, as JSON."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--worker", " ".join(what)]
    command += ["--seconds", str(args.seconds), "--batch", str(args.batch), "--rate", str(args.rate)]
    command += ["--data", str(args.data)] if args.data else []
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    variables |= {
        "GLIBC_TUNABLES": heap.HUGE if what[0].startswith(OURS) else "",
        "LD_PRELOAD": f"{caches}/intel.so" if what[0].endswith("@intel") else "",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": f"{caches}/jax",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": f"{caches}/torch",
    }
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(what)}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def show(name: str, length: int, found: dict[str, list[dict[str, Any]]], peak: float) -> None:
    """A table of one row of shapes."""
    seconds = {method: np.concatenate([visit["seconds"] for visit in visits]) for method, visits in found.items()}
    medians = {method: float(np.median(each)) for method, each in seconds.items()}
    rates = {method: visits[0]["tokens"] / medians[method] for method, visits in found.items()}
    plain, told = (
        max((rates[name] for name in (f"eager/float32{at}", f"compile/float32{at}") if name in rates), default=0.0)
        for at in ("", "@intel")
    )
    first = next(iter(found.values()))[0]
    print(
        f"\n{name} at {length}, {first['rows']} rows a step, {first['useful']:.0%} of their tokens useful;"
        f" matrix products {peak / 1e9:.0f} GFLOP/s\n\n"
        "| method | s a step | fastest | CPU s | useful tokens/s | of the products | memory, GB | to torch float32"
        " | to it @intel |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for method, visits in found.items():
        busy = np.concatenate([visit["busy"] for visit in visits])
        print(
            f"| {method} | {medians[method]:.3f} | {seconds[method].min():.3f} | {np.median(busy):.2f}"
            f" | {rates[method]:,.0f}"
            f" | {visits[0]['flops'] / medians[method] / peak:.0%}"
            f" | {min(visit['memory'] for visit in visits) / 1e9:.2f}"
            f" | {' | '.join(f'{rates[method] / best:.2f}' if best else '' for best in (plain, told))} |",
            flush=True,
        )


# ------------------------------------------------------------------------------------------------- one process


def work(args: argparse.Namespace) -> int:
    """What a worker does: products, or steps of one method."""
    what, *row = args.worker.split()
    side, kind = what.removesuffix("@intel").split("/")
    if side in ("eager", "compile"):
        keep_freed()
    if side == "product":
        print(json.dumps(products(kind, min(args.seconds, 3.0))))
        return 0
    name, length = row[0], int(row[1])
    packing = side == "packed"
    batches, vocabulary = read_batches(args.data, length, args.batch or ROWS[name, length], packing)
    config = preset(name, vocabulary, hidden_dropout=args.rate, attention_dropout=args.rate)
    if side in ("here", "packed"):
        step = here(config, kind, batches)
    else:
        step = there(config, kind, batches, compiled=side == "compile")
    seconds, busy = timed(step, args.seconds)
    lengths = [count for batch in batches for row in batch["sequence_ids"] for count in np.bincount(row)[1:] if count]
    predictions = sum(float(batch["mlm_weights"].sum()) for batch in batches)
    shape = batches[0]["input_ids"].shape
    print(
        json.dumps(
            {
                "seconds": seconds,
                "busy": busy,
                "rows": shape[0],
                "tokens": sum(map(int, lengths)) / len(batches),
                "useful": sum(map(int, lengths)) / len(batches) / (shape[0] * shape[1]),
                "flops": cost.train_flops(config, cost.work(map(int, lengths), predictions)) / len(batches),
                "memory": most_memory(),
            }
        )
    )
    return 0


def timed(step: Callable[[int], None], budget: float) -> tuple[list[float], list[float]]:
    """Seconds and CPU seconds of each step, for so long but at least three; two before compile and warm up."""
    step(0), step(1)
    seconds, busy = [], []
    while sum(seconds) < budget or len(seconds) < 3:
        begun, used = time.perf_counter(), time.process_time()
        step(len(seconds))
        seconds.append(time.perf_counter() - begun)
        busy.append(time.process_time() - used)
    return seconds, busy


def keep_freed() -> None:
    """Have glibc keep all that this process frees: mallopt(3), with the numbers of malloc.h.

    Not for our own steps: small objects come to stand where the step's largest block was, which then is taken anew
    behind them, until the process holds three times what it needs.
    """
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((trim_threshold, -1), (mmap_max, 0), (arena_max, 1)):
        mallopt(parameter, value)


def most_memory() -> int:
    """Bytes that this process held at its peak (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def products(kind: str, budget: float) -> list[float]:
    """FLOPs a second of large float32 products, of which the best counts."""
    size = 2048
    a = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    if kind == "numpy":
        step = lambda _: a @ a  # noqa: E731
    else:
        import jax

        multiply, b = jax.jit(lambda x: x @ x), jax.device_put(a)
        step = lambda _: jax.block_until_ready(multiply(b))  # noqa: E731
    return [2 * size**3 / seconds for seconds in timed(step, budget)[0]]


def read_batches(data: Path | None, length: int, rows: int, packing: bool) -> tuple[list[HostBatch], int]:
    """Batches and the vocabulary's size. Without data: nine of ten records full, the others of any length."""
    if data is not None:
        dataset = open_dataset(data / str(length), "train")
        settings = DataSettings(batching="packed" if packing else "padded")
        batches = open_batches(settings, Stage(batch=rows), 0, seed=0, train=dataset)
        return [batches.load(t).rows for t in range(BATCHES)], dataset.manifest.vocab_size
    if packing:
        raise SystemExit("packed rows need --data")
    rng = np.random.default_rng(0)
    return [drawn_batch(rng, rows, length) for _ in range(BATCHES)], VOCABULARY


def drawn_batch(rng: np.random.Generator, rows: int, length: int) -> HostBatch:
    """A padded batch of random tokens."""
    lengths = np.where(rng.random((rows, 1)) < 0.9, length, rng.integers(length // 8, length, (rows, 1)))
    place = np.broadcast_to(np.arange(length), (rows, length))
    predictions = predictions_for(length)
    slots = np.arange(predictions)
    chosen = np.sort(rng.permuted(np.broadcast_to(np.arange(1, length), (rows, length - 1)), axis=1)[:, :predictions])
    inside = chosen < lengths
    batch = {
        "input_ids": rng.integers(1000, VOCABULARY, (rows, length)) * (place < lengths),
        "segment_ids": (place > lengths // 2) & (place < lengths),
        "position_ids": place,
        "sequence_ids": place < lengths,
        "mlm_positions": np.where(inside, chosen, 0),
        "mlm_labels": rng.integers(1000, VOCABULARY, (rows, len(slots))),
        "cls_positions": np.zeros((rows, 1)),
        "nsp_labels": rng.integers(0, 2, (rows, 1)),
    }
    weights = {"mlm_weights": inside.astype(np.float32), "nsp_weights": np.ones((rows, 1), np.float32)}
    return {name: array.astype(np.int32) for name, array in batch.items()} | weights


def here(config: BertConfig, dtype: str, batches: list[HostBatch]) -> Callable[[int], None]:
    """Our step."""
    import jax

    from bert_jax.model import bert
    from bert_jax.train.loss import make_pretraining_loss, weigh
    from bert_jax.train.optimizer import make_optimizer, make_schedule
    from bert_jax.train.step import init_state, make_train_step

    tx = make_optimizer(TrainSettings())
    loss = make_pretraining_loss(config, Execution(dtype=dtype))
    schedule = make_schedule([Stage(steps=1000)])
    step = jax.jit(make_train_step(loss, weigh, tx, schedule, seed=0), donate_argnums=0)
    state = jax.jit(lambda key: init_state(bert.init(config, key), tx))(jax.random.key(0))
    rows = [jax.device_put(batch) for batch in batches]

    def run(number: int) -> None:
        nonlocal state
        state, metrics = step(state, rows[number % len(rows)])
        jax.block_until_ready((state, metrics))

    return run


def there(config: BertConfig, dtype: str, batches: list[HostBatch], compiled: bool) -> Callable[[int], None]:
    """The step of transformers on torch."""
    import torch
    import transformers

    from benchmarks.parity_training import torch_batch
    from bert_jax.convert.families import config_to_json

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tree = config_to_json(config, "BertForPreTraining", pad=0)
    model = transformers.BertForPreTraining(transformers.BertConfig(**tree))
    model.train()
    settings = TrainSettings()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=settings.weight_decay, fused=True)
    forward: Any = torch.compile(model) if compiled else model
    rows = [torch_batch(batch) for batch in batches]

    def run(number: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(**rows[number % len(rows)]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        loss.item()

    return run


if __name__ == "__main__":
    sys.exit(main())
