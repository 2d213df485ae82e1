"""Pairs: true next or another document's, nothing dropped, the shape of a row."""

from __future__ import annotations

import numpy as np
import pytest

from bert_jax.text.tokenizer import Special
from data_prep import layouts
from data_prep.layouts import Corpus
from tests.text import tiny

SPECIAL = Special(0, 1, 2, 3, 4)


def _corpus(documents: int = 40, seed: int = 0, longest: int = 30) -> Corpus:
    """Tokens that say where they stand: each is its own position plus 10; documents numbered from 100."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 15, documents)
    sizes = rng.integers(1, longest, counts.sum())
    total = int(sizes.sum())
    return Corpus(
        np.arange(10, 10 + total, dtype=np.int32),
        rng.random(total) < 0.6,
        np.cumsum([0, *sizes]),
        np.cumsum([0, *counts]),
        np.arange(100, 100 + documents),
        0,
        0,
    )


def _document_of(corpus: Corpus, token: np.ndarray) -> np.ndarray:
    borders = corpus.sentences[corpus.documents]
    return corpus.numbers[np.searchsorted(borders, token, side="right") - 1]


def test_random_next_is_never_from_the_same_document_and_true_next_follows():
    for documents in (2, 3, 40):
        corpus = _corpus(documents)
        found = layouts.pair(corpus, 64, 0.1, 20, np.random.default_rng(1))
        random = found.label == 1
        assert random.any() and (~random).any()
        assert (found.a_document[random] != found.b_document[random]).all()
        np.testing.assert_array_equal(found.a_document[~random], found.b_document[~random])
        np.testing.assert_array_equal(found.a_end[~random], found.b_begin[~random])
        for side in ("a", "b"):
            first, last = getattr(found, f"{side}_begin"), getattr(found, f"{side}_end") - 1
            np.testing.assert_array_equal(_document_of(corpus, first), getattr(found, f"{side}_document"))
            np.testing.assert_array_equal(_document_of(corpus, last), getattr(found, f"{side}_document"))


def test_every_other_document_is_drawn():
    corpus = _corpus(6)
    found = layouts.pair(corpus, 64, 0.1, 200, np.random.default_rng(1))
    random = found.label == 1
    pairs = set(zip(found.a_document[random].tolist(), found.b_document[random].tolist(), strict=True))
    assert len(pairs) == 6 * 5


def test_every_token_of_a_document_is_in_a_row_once_a_pass():
    corpus = _corpus()
    found = layouts.pair(corpus, 64, 0.1, 1, np.random.default_rng(1))
    own = [np.arange(a, b) for a, b in zip(found.a_begin, found.a_end, strict=True)]
    follows = found.label == 0
    own += [np.arange(a, b) for a, b in zip(found.b_begin[follows], found.b_end[follows], strict=True)]
    np.testing.assert_array_equal(np.sort(np.concatenate(own)), np.arange(len(corpus.ids)))


def test_half_of_the_chunks_that_could_continue_do():
    corpus = _corpus(400, longest=8)
    found = layouts.pair(corpus, 64, 0.0, 5, np.random.default_rng(1))
    assert 0.48 < found.label.mean() < 0.60, "somewhat above one half: one-sentence chunks have no next"


def test_short_targets_make_shorter_rows():
    corpus = _corpus(300, longest=8)
    lengths = []
    for short in (0.0, 1.0):
        found = layouts.pair(corpus, 64, short, 1, np.random.default_rng(1))
        lengths.append((found.a_end - found.a_begin).mean())
    assert lengths[1] < 0.75 * lengths[0]


def _truncate_slowly(a: int, b: int, limit: int) -> tuple[int, int]:
    while a + b > limit:
        if a > b:
            a -= 1
        else:
            b -= 1
    return a, b


@pytest.mark.parametrize("length", [16, 17])
def test_truncation_takes_from_the_longer_one_token_at_a_time(length):
    sizes = np.array([(a, b) for a in range(1, 40) for b in range(1, 40)])
    zero, n = np.zeros(len(sizes), np.int64), len(sizes)
    whole = layouts.Instances(zero, sizes[:, 0], zero + 100, 100 + sizes[:, 1], zero.astype(np.int32), zero, zero)
    cut, gone = layouts.truncate(whole, length, np.random.default_rng(0))
    kept = np.stack([cut.a_end - cut.a_begin, cut.b_end - cut.b_begin], 1)
    assert kept.tolist() == [list(_truncate_slowly(a, b, length - 3)) for a, b in sizes.tolist()]
    assert gone == (sizes - kept).sum()
    assert (cut.a_begin >= 0).all() and (cut.a_end <= sizes[:, 0]).all()
    taken = sizes[:, 0] - kept[:, 0]
    assert abs(cut.a_begin.sum() / taken.sum() - 0.5) < 0.02, "front and back lose alike"
    assert n == len(cut)


def test_a_row_is_cls_a_sep_b_sep():
    corpus = _corpus()
    one = np.array([1])
    pair = layouts.Instances(one * 3, one * 6, one * 20, one * 22, one.astype(np.int32), one * 100, one * 103)
    row = {name: values[0].tolist() for name, values in layouts.rows(corpus, pair, 10, SPECIAL).items()}
    assert row["input_ids"] == [2, 13, 14, 15, 3, 30, 31, 3, 0, 0]
    assert row["input_mask"] == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert row["segment_ids"] == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    starts = corpus.word_start
    assert row["word_starts"] == [
        False,
        *starts[3:6].tolist(),
        False,
        *starts[20:22].tolist(),
        False,
        False,
        False,
    ]
    assert row["next_sentence_labels"] == 1 and row["documents"] == [100, 103]


def test_long_sentences_are_cut_never_dropped():
    tokenizer = tiny.tokenizer()
    documents = [(0, "cat " * 500), (1, "the dog.\nthe cat."), (2, "\u200b")]
    corpus = layouts.tokenise(documents, tokenizer, "en", 32)
    assert len(corpus.ids) == 500 + 6 and corpus.cut == 1 and corpus.empty == 1
    assert corpus.numbers.tolist() == [0, 1]
    assert np.diff(corpus.sentences).max() <= 15
    whole = tokenizer.encode_batch(["cat " * 500, "the dog.", "the cat."])
    np.testing.assert_array_equal(corpus.ids, whole.ids)
    np.testing.assert_array_equal(corpus.word_start, whole.word_start)
