"""How fast token ids come, as a ratio to `tokenizers.encode_batch` on one thread: the same blocks, methods in turn.

    python -m benchmarks.tokenize_speed VOCAB FILE [FILE ...] --language en

Files are .txt, also .zst or .gz. The text is cut into sentences (not timed) and into blocks of 2 MB. Each block goes to
every method, the order turning from block to block, so that a slow moment of the machine meets all alike; what counts
is the CPU time of the process. "cold" are the first 10 MB from an empty memo, "warm" the next 10 MB, "seen" these
again. Our ids are compared with the library's. BlingFire (pip install blingfire) takes part where it is installed and
brings a model of the vocabulary; its ids are not quite the same, and it takes a sentence a call.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# One thread, said before the library is loaded.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

from bert_jax.text.tokenizer import Tokenizer  # noqa: E402
from data_prep import sentences, sources  # noqa: E402

MEGABYTE = 1_000_000
PHASES = ("cold", "warm", "seen")
BLINGFIRE = {30_522: "bert_base_tok.bin", 28_996: "bert_base_cased_tok.bin", 21_128: "bert_chinese.bin"}
BLINGFIRE[119_547] = "bert_multi_cased.bin"  # by size of the vocabulary

Method = Callable[[list[str]], Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("vocab", type=Path, help="a vocab.txt or a tokenizer directory")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--language", default="en", help="of the text, for its sentences (en)")
    parser.add_argument("--megabytes", type=float, default=10, help="of each phase (10)")
    parser.add_argument("--block", type=float, default=2, help="megabytes of a block (2)")
    args = parser.parse_args()

    tokenizer = Tokenizer.load(args.vocab)
    cut = list(blocks(args.files, args.language, int(args.block * MEGABYTE), int(2 * args.megabytes * MEGABYTE)))
    seconds, sizes = race(tokenizer, cut)
    for line in table(seconds, sizes):
        print(line)
    print(f"memo and tables: {memo_bytes(tokenizer) / MEGABYTE:.1f} MB")
    return 0


def blocks(files: Iterable[Path], language: str, size: int, total: int) -> Iterator[list[str]]:
    """Sentences of files, about `size` bytes of UTF-8 at a time, about `total` bytes in all."""
    found, held, done = [], 0, 0
    cut = sentences.splitter(language)
    for document in itertools.chain.from_iterable(sources.documents(path, "fail") for path in files):
        found += cut(document)
        held += len(document.encode())
        if held >= size:
            yield found
            done += held
            found, held = [], 0
            if done >= total:
                return
    if found:
        yield found


def methods(tokenizer: Tokenizer) -> dict[str, Method]:
    """What is compared, by name; `encode_batch` is the library's, its ids not yet made into arrays."""
    engine = tokenizer._engine
    found: dict[str, Method] = {
        "encode_batch": lambda texts: engine.encode_batch(texts, add_special_tokens=False),
        "ours": lambda texts: tokenizer.encode_batch(texts),
    }
    blingfire = blingfire_method(tokenizer)
    return found | ({"BlingFire": blingfire} if blingfire else {})


def blingfire_method(tokenizer: Tokenizer) -> Method | None:
    """BlingFire with its model of the same vocabulary, a sentence a call; None where it is not to be had."""
    try:
        import blingfire  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    model = Path(blingfire.__file__).parent / BLINGFIRE.get(tokenizer.vocab_size, "none")
    if not model.exists():
        return None
    handle, unk = blingfire.load_model(str(model)), tokenizer.special.unk
    return lambda texts: [blingfire.text_to_ids(handle, text, len(text) + 2, unk, no_padding=True) for text in texts]


def race(tokenizer: Tokenizer, cut: list[list[str]]) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """CPU seconds by phase and method, and megabytes by phase; the first half of the blocks is cold, the second warm.

    Raises:
        AssertionError: our ids differ from the library's.
    """
    tried = methods(tokenizer)
    tokenizer.encode_batch([""])  # tables of the vocabulary: part of loading
    half = len(cut) // 2
    laps = [*(("cold", block) for block in cut[:half]), *(("warm", block) for block in cut[half:])]
    laps += [("seen", block) for block in cut[half:]]
    seconds = {phase: dict.fromkeys(tried, 0.0) for phase in PHASES}
    sizes = dict.fromkeys(PHASES, 0.0)
    for number, (phase, block) in enumerate(laps):
        sizes[phase] += sum(len(text.encode()) for text in block) / MEGABYTE
        names = list(tried)
        made = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            spent, made[name] = timed(tried[name], block)
            seconds[phase][name] += spent
        flat = [number for encoding in made["encode_batch"] for number in encoding.ids]
        assert np.array_equal(flat, made["ours"].ids), "ids differ"
    return seconds, sizes


def timed(method: Method, texts: list[str]) -> tuple[float, Any]:
    """CPU seconds, user and system, of one call, and what it gives."""
    begun = time.process_time()
    result = method(texts)
    return time.process_time() - begun, result


def memo_bytes(tokenizer: Tokenizer) -> int:
    """Bytes of the arrays that the fast path keeps."""
    return tokenizer._fast.nbytes if tokenizer._fast is not None else 0


def table(seconds: dict[str, dict[str, float]], sizes: dict[str, float]) -> list[str]:
    """Lines of a Markdown table: ratio to `encode_batch`, in brackets MB a CPU second."""
    names = list(next(iter(seconds.values())))
    lines = ["| phase | MB | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for phase, row in seconds.items():
        cells = [f"{row['encode_batch'] / row[name]:.1f} ({sizes[phase] / row[name]:.1f})" for name in names]
        lines.append(f"| {phase} | {sizes[phase]:.1f} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
