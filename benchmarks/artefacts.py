"""ONNX and StableHLO beside our own forward pass and torch: bytes, milliseconds, and how far apart the numbers are.

    python -m benchmarks.artefacts --presets mini base --shapes 1x32 8x128 --rounds 20

Each way runs in a process of its own, on the same few processors: `onnx` on onnxruntime, `stablehlo` by the exported
run.py and without bert_jax, `ours` as `bert_jax.load` computes, `torch` as transformers does. They take turns, one
forward pass each a round, so that a slow minute of the machine falls on all of them; "of ours" is the median of the
ratios of each round. The model is BertModel with random weights of std 0.05 and a vocabulary of 30,522; rows are full
to half full. Differences are to `ours`, at tokens.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

# Nothing of ours is imported above: the process that runs StableHLO begins here too.
WAYS = ("ours", "onnx", "stablehlo", "torch")
VOCABULARY = 30_522
PAUSE = 0.02  # threads of the one before spin a little before they sleep

Batch = dict[str, np.ndarray]
Forward = Callable[[Batch], list[np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["mini", "base"])
    parser.add_argument("--shapes", nargs="+", default=["1x32", "8x128"], help="rows x tokens")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ours is always among them")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # JAX takes as many threads as it sees processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    if options.worker:
        work(options.worker[0], Path(options.worker[1]), options.threads)
        return
    ways = ["ours", *(way for way in options.ways if way != "ours")]
    for preset in options.presets:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), preset)
            shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes]
            measure(Path(folder), preset, ways, shapes, options)


# --------------------------------------------------------------------------------------------------- the parent


def write(folder: Path, preset_name: str) -> None:
    """The same weights in all three forms."""
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415

    from bert_jax.config import preset  # noqa: PLC0415
    from bert_jax.convert import huggingface  # noqa: PLC0415
    from bert_jax.convert.loaded import Loaded  # noqa: PLC0415
    from bert_jax.convert.onnx import write_onnx  # noqa: PLC0415
    from bert_jax.convert.stablehlo import write_stablehlo  # noqa: PLC0415
    from bert_jax.model import bert  # noqa: PLC0415
    from bert_jax.text.tokenizer import from_vocab  # noqa: PLC0415

    config = preset(preset_name, VOCABULARY)
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape, dtype=np.float32) * np.float32(0.05)
        return noise + np.float32(path[-1].key == "scale")

    shapes = jax.eval_shape(lambda: bert.init(config, jnp.zeros(2, jnp.uint32)))
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    tokenizer = from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"], lowercase=True)
    parts = {name: tree for name, tree in params.items() if name in ("embeddings", "layers", "pooler")}
    loaded = Loaded(config, parts, tokenizer, "BertModel")
    huggingface.write(folder / "transformers", loaded, kind="encoder")
    write_onnx(folder / "model.onnx", loaded)
    write_stablehlo(folder / "stablehlo", loaded)


def measure(
    folder: Path, preset: str, ways: list[str], shapes: list[tuple[int, ...]], options: argparse.Namespace
) -> None:
    """One table a shape."""
    bytes_of = {
        "ours": size(folder / "transformers/model.safetensors"),
        "torch": size(folder / "transformers/model.safetensors"),
        "onnx": size(folder / "model.onnx"),
        "stablehlo": sum(size(path) for path in (folder / "stablehlo").iterdir()),
    }
    with ExitStack() as stack:
        workers = {}
        for way in ways:
            command = [sys.executable, "-m", "benchmarks.artefacts", "--threads", str(options.threads)]
            environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
            worker = subprocess.Popen(
                [*command, "--worker", way, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            stack.callback(worker.wait)
            stack.callback(worker.communicate, "")
            workers[way] = worker
        for rows, tokens in shapes:
            batch = a_batch(rows, tokens)
            np.savez(folder / "batch.npz", **batch)
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(options.rounds + 1):
                for way in ways:
                    time.sleep(PAUSE)
                    spent = ask(workers[way], "save" if number == 0 else "run")
                    if number:  # the first one compiles
                        seconds[way].append(spent)
            report(f"{preset}, {rows}×{tokens}", folder, batch, bytes_of, seconds)


def size(path: Path) -> int:
    return path.stat().st_size


def ask(worker: subprocess.Popen, what: str) -> float:
    """One forward pass over there, in seconds."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(what + "\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        sys.exit(f"{worker.args} ended")
    return float(line)


def a_batch(rows: int, tokens: int) -> Batch:
    """Random ids, two segments, and padding at the ends of all rows but the first."""
    rng = np.random.default_rng(1)
    ends = np.linspace(tokens, tokens // 2, rows).astype(int)[:, None]
    places = np.arange(tokens)[None]
    ids = rng.integers(5, VOCABULARY, (rows, tokens))
    real = places < ends
    return {
        "input_ids": np.where(real, ids, 0).astype(np.int32),
        "attention_mask": real.astype(np.int32),
        "token_type_ids": (real & (places > ends // 2)).astype(np.int32),
    }


def report(title: str, folder: Path, batch: Batch, bytes_of: dict[str, int], seconds: dict[str, list[float]]) -> None:
    real = batch["attention_mask"] > 0
    reference = np.load(folder / "ours.npz")
    print(f"\n{title}, {len(seconds['ours'])} rounds")
    print(f"{'way':<12}{'MB':>8}{'least ms':>10}{'median ms':>11}{'of ours':>9}{'apart':>10}")
    for way, spent in seconds.items():
        found = np.load(folder / f"{way}.npz")
        apart = max(
            np.abs(found["states"] - reference["states"])[real].max(),
            np.abs(found["pooled"] - reference["pooled"]).max(),
        )
        ratio = float(np.median(np.divide(spent, seconds["ours"])))  # round by round
        print(
            f"{way:<12}{bytes_of[way] / 1e6:>8.1f}{min(spent) * 1e3:>10.2f}{np.median(spent) * 1e3:>11.2f}"
            f"{ratio:>9.2f}{apart:>10.1e}",
            flush=True,
        )


# -------------------------------------------------------------------------------------------------- the workers


def work(way: str, folder: Path, threads: int) -> None:
    """Answer each line with the seconds of one forward pass over `batch.npz`; on "save", read that anew."""
    forward = {"ours": ours, "onnx": onnx, "stablehlo": stablehlo, "torch": torch_forward}[way](folder, threads)
    batch: Batch = {}
    for line in sys.stdin:
        if line.strip() == "save":
            with np.load(folder / "batch.npz") as arrays:
                batch = dict(arrays)
            forward(batch)
        begun = time.perf_counter()
        states, pooled = forward(batch)
        spent = time.perf_counter() - begun
        if line.strip() == "save":
            np.savez(folder / f"{way}.npz", states=states, pooled=pooled)
        print(spent, flush=True)
    if way != "ours":
        assert "bert_jax" not in sys.modules


def ours(folder: Path, threads: int) -> Forward:
    del threads  # as many as it sees processors
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415

    import bert_jax  # noqa: PLC0415
    from bert_jax.api import LOOP  # noqa: PLC0415
    from bert_jax.model import bert  # noqa: PLC0415

    model = bert_jax.load(folder / "transformers")

    @jax.jit
    def forward(params: Any, batch: Any) -> Any:
        hidden = bert.encode(model.config, params, batch, execution=LOOP).hidden
        return hidden, bert.pool(model.config, params, hidden, jnp.zeros((hidden.shape[0], 1), jnp.int32))[:, 0]

    def run(batch: Batch) -> list[np.ndarray]:
        ids = batch["input_ids"]
        places = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
        theirs = {"segment_ids": batch["token_type_ids"], "sequence_ids": batch["attention_mask"]}
        return [np.asarray(x) for x in forward(model.params, {"input_ids": ids, "position_ids": places, **theirs})]

    return run


def onnx(folder: Path, threads: int) -> Forward:
    import onnxruntime  # noqa: PLC0415

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), settings, providers=["CPUExecutionProvider"])
    names = ["last_hidden_state", "pooler_output"]
    return lambda batch: session.run(names, {name: array.astype(np.int64) for name, array in batch.items()})


def stablehlo(folder: Path, threads: int) -> Forward:
    del threads
    sys.path.insert(0, str(folder / "stablehlo"))
    run_py = importlib.import_module("run")
    network = run_py.load(folder / "stablehlo")

    def run(batch: Batch) -> list[np.ndarray]:
        outputs = network(**batch)
        return [np.asarray(outputs[name]) for name in ("last_hidden_state", "pooler_output")]

    return run


def torch_forward(folder: Path, threads: int) -> Forward:
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.BertModel.from_pretrained(folder / "transformers").eval()

    def run(batch: Batch) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = model(**{name: torch.from_numpy(array).long() for name, array in batch.items()})
        return [outputs.last_hidden_state.numpy(), outputs.pooler_output.numpy()]

    return run


if __name__ == "__main__":
    main()
