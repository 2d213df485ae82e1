"""Layout "pair" against the reference's loop over many seeds, and how fast rows are laid out and masked.

The reference is `create_instances_from_document` of google-research/bert (create_pretraining_data.py), written
anew on sentence lengths alone: a document after the other, a row after the other. It draws one short target a
document, so counts differ between seeds by several per cent: means of many seeds are compared, each with the
standard error of its mean, and once more without short targets, where the errors are several times smaller.

    python benchmarks/layouts.py corpus.txt.zst --tokenizer vocab.txt --language en --length 128
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from bert_jax.text.corrupt import Rule, corrupt, predictions_for, row_keys, units_of
from bert_jax.text.tokenizer import Tokenizer
from data_prep import layouts, sources

NAMES = ("rows", "tokens of A", "tokens of B", "shorter than 3/4", "truncated tokens", "random next")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("text", type=Path, help="a file that bert-data reads")
    parser.add_argument("--tokenizer", required=True, help="a tokenizer directory or vocab.txt")
    parser.add_argument("--language", default="en")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--documents", type=int, default=250, help="of the comparison")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--speed-documents", type=int, default=3000)
    args = parser.parse_args()

    tokenizer = Tokenizer.load(args.tokenizer)
    texts = list(islice(sources.documents(args.text, "replace"), args.speed_documents))
    corpus = layouts.tokenise(enumerate(texts), tokenizer, args.language, args.length)
    some = layouts.tokenise(enumerate(texts[: args.documents]), tokenizer, args.language, args.length)
    for short in (0.1, 0.0):
        compare(some, args.length, args.seeds, short)
    speed(corpus, tokenizer, args.length)


# ------------------------------------------------------------------------------------------ against the reference


def reference(
    lengths: list[list[int]], length: int, short: float, rng: random.Random, chance: float = 0.5
) -> list[tuple[int, ...]]:
    """(tokens of A, tokens of B, truncated tokens, is random, chunk is one sentence) of every row.

    Args:
        lengths: tokens of each sentence, by document.
        chance: that B is random where the chunk has several sentences; a half in the reference.
    """
    most, found = length - 3, []
    for number, document in enumerate(lengths):
        wanted = rng.randint(2, most) if rng.random() < short else most
        chunk: list[int] = []
        place = 0
        while place < len(document):
            chunk.append(document[place])
            if place == len(document) - 1 or sum(chunk) >= wanted:
                split = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
                a, b = sum(chunk[:split]), sum(chunk[split:])
                is_random = len(chunk) == 1 or rng.random() < chance
                if is_random:
                    other = number
                    for _ in range(10):
                        other = rng.randrange(len(lengths))
                        if other != number:
                            break
                    b = 0
                    for size in lengths[other][rng.randrange(len(lengths[other])) :]:
                        b += size
                        if b >= wanted - a:
                            break
                    place -= len(chunk) - split  # what was not used comes again
                before = a + b
                while a + b > most:
                    a, b = (a - 1, b) if a > b else (a, b - 1)
                found.append((a, b, before - a - b, is_random, len(chunk) == 1))
                chunk = []
            place += 1
    return found


def compare(corpus: layouts.Corpus, length: int, seeds: int, short: float) -> None:
    """Prints both sides' means over the seeds."""
    sizes = np.diff(corpus.sentences).tolist()
    borders = corpus.documents.tolist()
    lengths = [sizes[begin:end] for begin, end in zip(borders[:-1], borders[1:], strict=True)]
    theirs, ours, alone = [], [], []
    for seed in range(seeds):
        a, b, lost, label, single = np.array(reference(lengths, length, short, random.Random(seed))).T
        theirs.append(_summary(a, b, lost.sum(), label, length))
        alone.append(single.mean())
        made, gone = layouts.arrange("pair", corpus, length, short, 1, np.random.default_rng((length, seed)))
        ours.append(_summary(made.a_end - made.a_begin, made.b_end - made.b_begin, gone, made.label, length))
    print(
        f"{len(lengths)} documents, {len(sizes)} sentences, {len(corpus.ids)} tokens, rows of {length}, {seeds} seeds"
    )
    print(f"{'':20}{'reference':>22}{'here':>22}{'apart by':>16}")
    for name, one, two in zip(NAMES, np.array(theirs).T, np.array(ours).T, strict=True):
        errors = [side.std(ddof=1) / np.sqrt(seeds) for side in (one, two)]
        apart = (two.mean() - one.mean()) / np.hypot(*errors)
        cells = [f"{side.mean():,.4g} ± {error:.2g}" for side, error in zip((one, two), errors, strict=True)]
        print(f"{name:20}{cells[0]:>22}{cells[1]:>22}{apart:>9.1f} sigma")
    share = float(np.mean(alone))
    print(
        f"{share:.2%} of the chunks are one sentence and have no next, so {share:.4f} + (1 - {share:.4f}) / 2 ="
        f" {share + (1 - share) / 2:.4f} of the rows are random\n"
    )


def _summary(a: np.ndarray, b: np.ndarray, lost: float, label: np.ndarray, length: int) -> tuple[float, ...]:
    return len(a), a.mean(), b.mean(), (a + b < 0.75 * length).mean(), float(lost), label.mean()


# --------------------------------------------------------------------------------------------------------- speed


def speed(corpus: layouts.Corpus, tokenizer: Tokenizer, length: int, block: int = 2048) -> None:
    """Prints rows a CPU second of each stage, the best of five rounds in which the stages take turns."""
    made = {
        (name, copies): layouts.arrange(name, corpus, length, 0.1, copies, np.random.default_rng(0))[0]
        for name in layouts.LAYOUTS
        for copies in (1, 5)
    }
    instances = made["pair", 1].take(np.random.default_rng(0).permutation(len(made["pair", 1])))
    blocks = [instances.take(slice(first, first + block)) for first in range(0, len(instances), block)]
    records = [layouts.rows(corpus, part, length, tokenizer.special) for part in blocks]
    rules = {unit: Rule(predictions_for(length), unit=unit) for unit in ("token", "word")}

    def lay_out() -> None:
        for part in blocks:  # none is kept, as in preparation: new pages would cost more than the rows
            layouts.rows(corpus, part, length, tokenizer.special)

    def mask(unit: str) -> None:
        for number, part in enumerate(records):
            units = units_of(part["input_ids"], part["word_starts"], tokenizer.special, unit)
            keys = row_keys((0, number), np.arange(len(units)))
            corrupt(part["input_ids"], units, tokenizer.special, tokenizer.vocab_size, rules[unit], keys)

    stages: dict[str, tuple[Callable[[], object], int]] = {
        f"arrange {name}, {copies} passes": (
            lambda name=name, copies=copies: layouts.arrange(
                name, corpus, length, 0.1, copies, np.random.default_rng(0)
            ),
            len(found),
        )
        for (name, copies), found in made.items()
    }
    stages["rows"] = lay_out, len(instances)
    stages |= {f"choose and replace, {unit}": (lambda unit=unit: mask(unit), len(instances)) for unit in rules}
    best = dict.fromkeys(stages, float("inf"))
    for _ in range(5):
        for name, (work, _) in stages.items():
            begin = time.process_time()
            work()
            best[name] = min(best[name], time.process_time() - begin)
    print(f"{len(corpus.ids):,} tokens of {len(corpus.numbers):,} documents, rows of {length}")
    for name, (_, count) in stages.items():
        print(f"{name:30}{count:>10,} rows{count / best[name] / 1e3:>10,.0f} k rows/s")


if __name__ == "__main__":
    main()
