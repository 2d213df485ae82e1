"""What preparation makes of several languages and in several layouts: realised rates, and labels as predicted.

    python -m benchmarks.prepare_languages CORPORA VOCABULARIES [--megabytes 5] [--length 128]

CORPORA holds en_wiki2015, zh_wiki, zh_lctt, ko_wiki and de_wiki, VOCABULARIES the vocab.txt of Google's models. The
first megabytes of each corpus become a data set, as `bert-data shards` makes it. For English, every layout is made too.
Checked over all records of both splits, by document numbers: a random segment is never of the same document, a next,
previous or swapped one always; and by text: each segment stands, token for token, in the document that its record
names. The exit status is 1 if a check fails or a label is more than four standard errors from its prediction.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.layouts import reference
from bert_jax.text.corrupt import predictions_for, units_of
from bert_jax.text.features import Records, restore
from bert_jax.text.manifest import Manifest
from bert_jax.text.records import open_shard
from bert_jax.text.tokenizer import Tokenizer
from data_prep import layouts, run, shard, sources

_SEEDS = 20  # of the reference's loop
_SIGMA = 4


@dataclass(frozen=True)
class Case:
    """A row of the table of languages."""

    name: str
    corpora: tuple[str, ...]
    vocab: str
    language: str
    unit: str = "token"
    segmenter: str = ""


_CHINESE = ("zh_lctt", "zh_wiki")
_CASES = (
    Case("English", ("en_wiki2015",), "bert-base-uncased", "en"),
    Case("English, whole words", ("en_wiki2015",), "bert-base-uncased", "en", "word"),
    Case("Chinese", _CHINESE, "bert-base-chinese", "zh"),
    Case("Chinese, whole words", _CHINESE, "bert-base-chinese", "zh", "word"),
    Case("Chinese, whole words by jieba", _CHINESE, "bert-base-chinese", "zh", "word", "jieba"),
    Case("Korean", ("ko_wiki",), "bert-base-multilingual-cased", "ko"),
    Case("Korean, whole words", ("ko_wiki",), "bert-base-multilingual-cased", "ko", "word"),
    Case("German", ("de_wiki",), "bert-base-multilingual-cased", "de"),
    Case("German, whole words", ("de_wiki",), "bert-base-multilingual-cased", "de", "word"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("vocabularies", type=Path)
    parser.add_argument("--megabytes", type=float, default=5.0)
    parser.add_argument("--length", type=int, default=128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for line in languages(args, Path(folder)):
            print(line, flush=True)
        failed = 0
        for line, fine in labels(args, Path(folder)):
            print(line, flush=True)
            failed += not fine
    print(f"\n{failed} lines are not as predicted" if failed else "\nall as predicted")
    return int(failed > 0)


# ------------------------------------------------------------------------------------------------------ languages


def languages(args: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The lines of the table of languages. Shares as in the manifest, of the train split."""
    names = "records, tokens a record, tokens a sentence, sentences cut, tokens a word, unknown, chosen, masked, kept"
    names += ", random, overflowed, unfilled, truncated, random next"
    yield f"| | {names.replace(', ', ' | ')} |\n{'|---' * (names.count(',') + 2)}|"
    for number, case in enumerate(_CASES):
        job = _job(args, case.language, unit=case.unit, segmenter=case.segmenter)
        text, vocab = _text(args, case.corpora, folder), _vocab(args, case.vocab)
        out = folder / str(number)
        manifest = run.prepare([str(text)], str(vocab), str(out), job, 1)
        split, rates = manifest.splits["train"], manifest.splits["train"].rates
        cells = [
            f"{split.records:,}",
            f"{split.tokens / split.records:.1f}",
            f"{rates['corpus_tokens'] / rates['sentences']:.1f}",
            f"{rates['cut_sentences'] / rates['sentences']:.3%}",
            f"{_tokens_a_word(manifest, out):.2f}",
            f"{rates['unknown_rate']:.3%}",
            *(f"{rates[name]:.4f}" for name in ("chosen_rate", "masked_rate", "kept_rate", "random_rate")),
            f"{rates['overflowed_rate']:.3%}",
            f"{rates['unfilled'] / rates['wanted']:.3%}",
            f"{rates['truncated_rate']:.2%}",
            f"{rates['random_next_rate']:.4f}",
        ]
        yield f"| {case.name} | {' | '.join(cells)} |"


def _tokens_a_word(manifest: Manifest, out: Path) -> float:
    """Tokens that may be chosen, by units of whole words that hold them."""
    tokens = words = 0
    for records in _records(manifest, out, ("heldout",)):
        units = units_of(restore(records), records["word_starts"], manifest.special, "word")
        tokens += int((units >= 0).sum())
        words += int((units == np.arange(units.shape[1])).sum())
    return tokens / words


# --------------------------------------------------------------------------------------------------------- labels


def labels(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, bool]]:
    """The lines on layouts, each with whether it is as predicted."""
    text, vocab = _text(args, ("en_wiki2015",), folder), _vocab(args, "bert-base-uncased")
    tokenizer = Tokenizer.load(vocab)
    corpus = layouts.tokenise(enumerate(sources.documents(text)), tokenizer, "en", args.length)
    tokens = _documents(corpus)
    yield "\n| layout | records | label | share | predicted | apart by |\n|---|---|---|---|---|---|", True
    checked: list[tuple[str, bool]] = []
    for layout in layouts.LAYOUTS:
        out = folder / layout
        manifest = run.prepare([str(text)], str(vocab), str(out), _job(args, "en", layout=layout), 1)
        split, expected = manifest.splits["train"], _predicted(layout, corpus, args.length)
        for name, predicted in expected.items():
            share = split.rates[f"{name}_rate"]
            error = np.sqrt(predicted * (1 - predicted) / split.records)
            sigma = (share - predicted) / error
            line = f"| {layout} | {split.records:,} | {name} | {share:.4f} | {predicted:.4f} | {sigma:.1f} sigma |"
            yield line, abs(sigma) < _SIGMA
        if not expected:
            yield f"| {layout} | {split.records:,} | none | | | |", True
        checked.append(_check(layout, manifest, out, tokens))
    yield "", True
    yield from checked


def _predicted(layout: str, corpus: layouts.Corpus, length: int) -> dict[str, float]:
    """Shares of the labels, see `layouts.arrange`.

    What is left to find out is the share of chunks of one sentence, by the loop of google-research/bert.
    """
    if layout == "order":
        return {"swapped": 0.5}
    if layout not in ("pair", "three"):
        return {}
    chance = 1 / 2 if layout == "pair" else 1 / 3
    sizes = np.diff(corpus.sentences).tolist()
    borders = corpus.documents.tolist()
    lengths = [sizes[begin:end] for begin, end in zip(borders[:-1], borders[1:], strict=True)]
    alone = [
        np.mean([row[4] for row in reference(lengths, length, shard.Settings.short, random.Random(seed), chance)])
        for seed in range(_SEEDS)
    ]
    share = float(np.mean(alone))
    if layout == "pair":
        return {"random_next": share + (1 - share) / 2}
    return {"random_next": share + (1 - share) / 3, "previous": (1 - share) / 3}


def _check(layout: str, manifest: Manifest, out: Path, documents: dict[int, bytes]) -> tuple[str, bool]:
    """Goes through all records of both splits: a line on what it met, and whether all was as it should."""
    count = wrong = crossing = foreign = 0
    for records in _records(manifest, out, ("train", "heldout")):
        a, b = records["documents"].T
        apart = a != b
        if layout in ("pair", "three"):
            expected = records["relation"] == 2 if layout == "three" else records["next_sentence_labels"] == 1
            wrong += int((apart != expected).sum())
        elif layout != "full":
            wrong += int(apart.sum())
        count, crossing = count + len(a), crossing + int(apart.sum())
        foreign += _foreign(records, documents) if layout != "full" else 0
    if layout == "full":
        return f"- {layout}: {count:,} records, {crossing / count:.1%} go over the end of a document", crossing > 0
    line = f"- {layout}: {count:,} records, {crossing:,} of two documents; {wrong} whose label says otherwise,"
    return f"{line} {foreign} segments that are not in their document", wrong == 0 and foreign == 0


def _foreign(records: Records, documents: dict[int, bytes]) -> int:
    """How many segments do not stand in the document that the record names."""
    ids, count = restore(records).astype(np.uint16), 0
    segments, mask = records["segment_ids"], records["input_mask"]
    for row, numbers in enumerate(records["documents"].tolist()):
        real = int(mask[row].sum())
        second = int((segments[row] * mask[row]).sum())
        spans = [(1, real - second - 1), (real - second, real - 1)] if second else [(1, real - 1)]
        for number, (begin, end) in zip(numbers, spans, strict=False):
            count += not _inside(ids[row, begin:end].tobytes(), documents[number])
    return count


def _inside(part: bytes, whole: bytes) -> bool:
    """Is one array of two-byte numbers in the other?"""
    at = whole.find(part)
    while at % 2 == 1 and at > 0:
        at = whole.find(part, at + 1)
    return at >= 0


def _documents(corpus: layouts.Corpus) -> dict[int, bytes]:
    """The ids of each document."""
    ids, borders = corpus.ids.astype(np.uint16), corpus.sentences[corpus.documents].tolist()
    spans = zip(borders[:-1], borders[1:], strict=True)
    return {int(n): ids[begin:end].tobytes() for n, (begin, end) in zip(corpus.numbers, spans, strict=True)}


# ---------------------------------------------------------------------------------------------------- data sets


def _job(args: argparse.Namespace, language: str, **more) -> run.Job:
    settings = shard.Settings(args.length, predictions_for(args.length), language=language, **more)
    return replace(run.Job(), settings=settings)


def _vocab(args: argparse.Namespace, name: str) -> Path:
    return args.vocabularies / f"{name}-vocab.txt"


def _text(args: argparse.Namespace, corpora: tuple[str, ...], folder: Path) -> Path:
    """A file of the first megabytes, in equal parts from each of the corpora."""
    path = folder / f"{'-'.join(corpora)}.txt"
    if not path.exists():
        with open(path, "wb") as file:
            for number, corpus in enumerate(corpora, 1):
                most = args.megabytes * 1e6 * number / len(corpora)
                for name in sources.expand([args.corpora / corpus]):
                    for text in sources.documents(name):
                        if file.tell() < most:
                            file.write(text.encode() + b"\n\n")
    return path


def _records(manifest: Manifest, out: Path, splits: tuple[str, ...]) -> Iterator[Records]:
    """All records of some splits, in blocks."""
    for name in splits:
        for info in manifest.splits[name].shards:
            opened = open_shard(out / info.name)
            for first in range(0, opened.num_records, 2048):
                yield opened.read(np.arange(first, min(first + 2048, opened.num_records)))


if __name__ == "__main__":
    sys.exit(main())
