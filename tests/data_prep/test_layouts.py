"""Layouts: what stands beside what, nothing dropped unseen, the shape of a row."""

from __future__ import annotations

from collections import Counter
from math import sqrt

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.text.corrupt import units_of
from bert_jax.text.tokenizer import Special, from_vocab
from data_prep import layouts
from data_prep.layouts import Corpus, Instances
from tests.text import tiny

SPECIAL = Special(0, 1, 2, 3, 4)
PAIRS, SINGLE = ("pair", "order", "three"), ("full", "document")


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


def _arrange(layout: str, corpus: Corpus, length: int = 64, short: float = 0.1, copies=1, seed: int = 1) -> Instances:
    return layouts.arrange(layout, corpus, length, short, copies, np.random.default_rng(seed))[0]


def _document_of(corpus: Corpus, token: np.ndarray) -> np.ndarray:
    borders = corpus.sentences[corpus.documents]
    return corpus.numbers[np.searchsorted(borders, token, side="right") - 1]


# ------------------------------------------------------------------------------------ against one at a time


def _one_at_a_time(layout: str, corpus: Corpus, length: int, short: float, rng: np.random.Generator) -> list[tuple]:
    """The same layouts in the plainest way: a document after the other, a row after the other; before truncation.

    Returns:
        (tokens of A, tokens of B, kind) of each row, kind 0 next, 1 changed places, 2 random.
    """
    starts, documents = corpus.sentences.tolist(), corpus.documents.tolist()
    total, limit, found = len(documents) - 1, length - 3, []
    for document in range(total):
        at, last = documents[document : document + 2]
        target = rng.integers(2, limit + 1) if rng.random() < short else limit
        while at < last:
            chunk = [at]
            while chunk[-1] + 1 < last and starts[chunk[-1] + 1] - starts[at] < target:
                chunk.append(chunk[-1] + 1)
            split = 1 if len(chunk) == 1 else int(rng.integers(1, len(chunk)))
            a = starts[at + split] - starts[at]
            b = starts[chunk[-1] + 1] - starts[at + split]
            if layout == "order":
                if len(chunk) == 1:
                    borders = np.flatnonzero(corpus.word_start[starts[at] + 1 : starts[at + 1]]) + 1
                    if not len(borders):
                        at += 1
                        continue
                    border = int(rng.choice(borders))
                    a, b = border, a - border
                kind = int(rng.random() < 0.5)
            elif layout == "pair":
                kind = 2 if len(chunk) == 1 or rng.random() < 0.5 else 0
            else:
                kind = 2 if len(chunk) == 1 else int(rng.integers(3))
            if kind == 1:
                a, b = b, a
            if kind == 2:
                other = int(rng.choice([n for n in range(total) if n != document]))
                place, end = int(rng.integers(*documents[other : other + 2])), documents[other + 1]
                b = 0
                while place < end and b < max(target - a, 1):
                    b += starts[place + 1] - starts[place]
                    place += 1
                at += split
            else:
                at += len(chunk)
            while a + b > limit:
                a, b = (a - 1, b) if a > b else (a, b - 1)
            found.append((a, b, kind))
    return found


@pytest.mark.parametrize("layout", PAIRS)
def test_rows_are_distributed_as_if_drawn_one_at_a_time(layout):
    corpus, runs = _corpus(30, longest=20), 150
    wanted, found = Counter(), Counter()
    sums = np.zeros((2, runs, 4))
    for run in range(runs):
        plain = _one_at_a_time(layout, corpus, 64, 0.3, np.random.default_rng(run))
        made = _arrange(layout, corpus, 64, 0.3, seed=1000 + run)
        a, b = made.a_end - made.a_begin, made.b_end - made.b_begin
        kind = {"pair": 2 * made.label, "order": made.label}.get(layout, made.relation)
        assert kind is not None
        wanted.update((n // 8, m // 8, k) for n, m, k in plain)
        found.update(zip((a // 8).tolist(), (b // 8).tolist(), kind.tolist(), strict=True))
        sums[0, run] = len(plain), *np.mean(plain, axis=0)
        sums[1, run] = len(made), a.mean(), b.mean(), kind.mean()
    spread = np.sqrt(sums.var(1).sum(0) / runs)
    assert (np.abs(sums[0].mean(0) - sums[1].mean(0)) < 4 * spread).all(), sums.mean(1)
    for cell in wanted | found:  # every combination of lengths and kind as often; rows of a run hang together a little
        assert abs(wanted[cell] - found[cell]) < 6 * sqrt(wanted[cell] + found[cell]) + 6, (cell, wanted[cell])


# ------------------------------------------------------------------------------------------- two segments


@pytest.mark.parametrize("layout", ["pair", "three"])
@pytest.mark.parametrize("documents", [2, 3, 40])
def test_random_text_is_of_another_document_and_the_rest_follows(layout, documents):
    corpus = _corpus(documents)
    found = _arrange(layout, corpus, copies=20)
    random = found.label == 1 if found.relation is None else found.relation == 2
    assert random.any() and (~random).any()
    assert (found.a_document[random] != found.b_document[random]).all()
    np.testing.assert_array_equal(found.a_document[~random], found.b_document[~random])
    for side in ("a", "b"):
        first, last = getattr(found, f"{side}_begin"), getattr(found, f"{side}_end") - 1
        np.testing.assert_array_equal(_document_of(corpus, first), getattr(found, f"{side}_document"))
        np.testing.assert_array_equal(_document_of(corpus, last), getattr(found, f"{side}_document"))
    short = found.take(found.a_end - found.a_begin + found.b_end - found.b_begin < 61)  # nothing was truncated
    follows = short.label == 0
    np.testing.assert_array_equal(short.a_end[follows], short.b_begin[follows])
    if short.relation is not None:
        before = short.relation == 1
        assert before.any()
        np.testing.assert_array_equal(short.b_end[before], short.a_begin[before])
        np.testing.assert_array_equal(short.label, short.relation > 0)


def test_documents_of_one_number_are_no_others():
    corpus = _corpus(6)
    corpus = Corpus(**vars(corpus) | {"numbers": np.array([7, 5, 7, 7, 5, 9])})
    found = _arrange("pair", corpus, copies=np.array([3, 1, 2, 9, 1, 0]))
    random = found.label == 1
    assert (found.a_document[random] != found.b_document[random]).all()
    assert set(found.b_document.tolist()) == {5, 7}, "a document that is not gone through lends no text"
    with pytest.raises(ValueError, match="two documents"):
        _arrange("pair", corpus, copies=np.array([1, 0, 1, 1, 0, 0]))


def test_others_are_drawn_in_proportion_to_their_copies():
    corpus = _corpus(4)
    copies = np.array([0, 100, 200, 400])
    found = _arrange("pair", corpus, copies=copies)
    for own in (101, 102, 103):
        drawn = found.b_document[(found.label == 1) & (found.a_document == own)]
        share = np.bincount(drawn - 100, minlength=4) / len(drawn)
        weight = np.where(corpus.numbers == own, 0, copies)
        assert np.abs(share - weight / weight.sum()).max() < 4 * sqrt(0.25 / len(drawn))


@pytest.mark.parametrize("copies", [1, 3, "some"])
def test_every_token_of_a_document_is_in_a_row_once_a_pass(copies):
    corpus = _corpus()
    if copies == "some":
        copies = np.arange(40) % 4
    for layout in (*PAIRS, *SINGLE):
        found, lost = layouts.arrange(layout, corpus, 600, 0.1, copies, np.random.default_rng(1))
        random = found.b_document != found.a_document if layout in ("pair", "three") else np.zeros(len(found), bool)
        spans = list(zip(found.a_begin, found.a_end, strict=True))
        spans += list(zip(found.b_begin[~random], found.b_end[~random], strict=True))
        seen = np.bincount(np.concatenate([np.arange(a, b) for a, b in spans]), minlength=len(corpus.ids))
        borders = corpus.sentences[corpus.documents]
        wanted = np.repeat(np.broadcast_to(copies, (40,)), np.diff(borders))
        assert (wanted - seen).sum() <= lost and (seen <= wanted).all()
        assert lost == 0 if layout in SINGLE else lost < 0.1 * wanted.sum()


def test_the_share_of_random_next_is_above_one_half_by_the_chunks_of_one_sentence():
    corpus = _corpus(400, longest=8)
    found = _arrange("pair", corpus, short=0.0, copies=5)
    assert 0.5 < found.label.mean() < 0.60
    lonely = Corpus(**vars(corpus) | {"documents": np.arange(len(corpus.sentences))})
    lonely = Corpus(**vars(lonely) | {"numbers": np.arange(len(lonely.documents) - 1)})
    assert _arrange("pair", lonely).label.all(), "documents of one sentence have no next"
    assert set(_arrange("three", lonely).relation.tolist()) == {2}


@pytest.mark.parametrize(("layout", "share"), [("order", 1 / 2), ("three", 1 / 3)])
def test_changed_places_are_as_often_as_they_should_be(layout, share):
    corpus = _corpus(400, longest=8)
    found = _arrange(layout, corpus, short=0.0, copies=20)
    kind = found.label if layout == "order" else found.relation
    assert kind is not None
    several = kind < 2  # one-sentence chunks are random under "three", so next and previous are compared
    wanted = share / (1 - (layout == "three") / 3)
    assert abs(kind[several].mean() - wanted) < 4 * sqrt(0.25 / several.sum())
    assert set(kind.tolist()) == ({0, 1} if layout == "order" else {0, 1, 2})


def test_a_single_sentence_is_ordered_by_its_words():
    one = Corpus(
        np.arange(10, 22, dtype=np.uint16),
        np.array([1, 0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0], bool),
        np.array([0, 8, 12]),
        np.array([0, 1, 2]),
        np.array([4, 5]),
        0,
        0,
    )
    found, lost = layouts.arrange("order", one, 32, 0.0, 500, np.random.default_rng(0))
    assert lost == 500 * 4, "a sentence of one word has no order, and is counted"
    assert set(found.a_document.tolist()) == {4}
    cuts = np.where(found.label == 0, found.a_end, found.b_end)
    assert set(cuts.tolist()) == {3, 5, 6}
    np.testing.assert_array_equal(np.where(found.label == 0, found.b_begin, found.a_begin), cuts)
    np.testing.assert_array_equal(np.where(found.label == 0, found.b_end, found.a_end), 8)
    assert np.bincount(cuts).max() < 500 / 3 + 4 * sqrt(500 * 2 / 9)
    assert abs(found.label.mean() - 0.5) < 4 * sqrt(0.25 / 500)


@pytest.mark.parametrize("layout", [*PAIRS, *SINGLE])
def test_short_targets_make_shorter_rows(layout):
    corpus = _corpus(300, longest=8)
    lengths = []
    for short in (0.0, 1.0):
        found = _arrange(layout, corpus, short=short)
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
    zero = np.zeros(len(sizes), np.int64)
    whole = np.stack([zero, sizes[:, 0], zero + 100, 100 + sizes[:, 1]])
    cut, gone = layouts._truncated(whole, length - 3, np.random.default_rng(0))
    kept = np.stack([cut[1] - cut[0], cut[3] - cut[2]], 1)
    assert kept.tolist() == [list(_truncate_slowly(a, b, length - 3)) for a, b in sizes.tolist()]
    assert gone == (sizes - kept).sum()
    assert (cut[0] >= 0).all() and (cut[1] <= sizes[:, 0]).all()
    taken = sizes[:, 0] - kept[:, 0]
    assert abs(cut[0].sum() / taken.sum() - 0.5) < 0.02, "front and back lose alike"


def test_what_truncation_costs_is_told():
    corpus = _corpus(longest=60)
    whole, none = layouts.arrange("pair", corpus, 2000, 0.0, 1, np.random.default_rng(3))
    cut, lost = layouts.arrange("pair", corpus, 32, 0.0, 1, np.random.default_rng(3))
    assert none == 0 and lost > 0
    assert (cut.a_end - cut.a_begin + cut.b_end - cut.b_begin).max() == 29
    assert (cut.a_end > cut.a_begin).all() and (cut.b_end > cut.b_begin).all()


# -------------------------------------------------------------------------------------------- one segment


@pytest.mark.parametrize("layout", SINGLE)
def test_one_segment_is_filled_with_whole_sentences_until_no_more_fit(layout):
    corpus, length = _corpus(60), 64
    found = _arrange(layout, corpus, length, short=0.0)
    np.testing.assert_array_equal(found.a_begin[1:], found.a_end[:-1])
    assert found.a_begin[0] == 0 and found.a_end[-1] == len(corpus.ids)
    assert np.isin(found.a_end, corpus.sentences).all()
    assert not found.label.any() and (found.b_begin == found.b_end).all() and found.relation is None
    np.testing.assert_array_equal(found.a_document, _document_of(corpus, found.a_begin))
    np.testing.assert_array_equal(found.b_document, _document_of(corpus, found.a_end - 1))
    separators = found.b_document - found.a_document  # documents are numbered in order here
    size = found.a_end - found.a_begin + separators
    assert size.max() <= length - 2
    ends = corpus.sentences[np.searchsorted(corpus.sentences, found.a_end[:-1]) + 1]
    grown = ends - found.a_begin[:-1] + _document_of(corpus, ends - 1) - found.a_document[:-1]
    leaves = _document_of(corpus, found.a_end[:-1]) != found.a_document[:-1]
    if layout == "document":
        assert not separators.any()
        assert ((grown > length - 2) | leaves).all()
    else:
        assert (separators > 0).mean() > 0.1
        assert (grown > length - 2).all()


def test_full_rows_go_over_documents_that_stand_side_by_side_only():
    corpus = _corpus(30)
    copies = np.ones(30, np.int64)
    copies[[7, 8, 20]] = 0
    copies[3] = 2
    found = _arrange("full", corpus, 600, 0.0, copies)
    for gap in (7, 20):
        assert ((found.a_document < 100 + gap) == (found.b_document < 100 + gap)).all()
    assert sorted(set(found.a_document.tolist() + found.b_document.tolist())) != []
    assert not np.isin([107, 108, 120], np.concatenate([found.a_document, found.b_document])).any()
    alone = (found.a_document == 103) & (found.b_document == 103)
    assert alone.any(), "the second pass is over document 3 alone"


def test_a_second_pass_of_full_rows_has_other_borders():
    corpus = _corpus(60)
    found = _arrange("full", corpus, 64, 0.0, 2)
    half = int(np.flatnonzero(found.a_begin == 0)[1])
    assert set(found.a_end[:half].tolist()) != set(found.a_end[half:].tolist())


def test_a_sentence_too_long_for_the_row_is_cut_and_counted():
    corpus = _corpus(5, longest=60)
    found, lost = layouts.arrange("document", corpus, 32, 0.0, 1, np.random.default_rng(0))
    sizes = np.diff(corpus.sentences)
    assert lost == (sizes - 30)[sizes > 30].sum() > 0
    assert (found.a_end - found.a_begin).max() == 30


@pytest.mark.parametrize("layout", [*PAIRS, *SINGLE])
def test_nothing_to_go_through_gives_no_rows(layout):
    found, lost = layouts.arrange(layout, _corpus(3), 64, 0.1, 0, np.random.default_rng(0))
    assert len(found) == lost == 0


# --------------------------------------------------------------------------------------------------- rows


def _plain_row(corpus: Corpus, one: Instances, length: int) -> dict[str, list]:
    """One row by lists."""
    parts = [range(int(one.a_begin[0]), int(one.a_end[0])), range(int(one.b_begin[0]), int(one.b_end[0]))]
    ids, starts, segments = [SPECIAL.cls], [False], [0]
    openings = set(corpus.sentences[corpus.documents].tolist())
    for segment, part in enumerate(parts):
        for token in part:
            if token in openings and token != part[0]:
                ids, starts, segments = [*ids, SPECIAL.sep], [*starts, False], [*segments, segment]
            ids.append(int(corpus.ids[token]))
            starts.append(bool(corpus.word_start[token]))
            segments.append(segment)
        if part:
            ids, starts, segments = [*ids, SPECIAL.sep], [*starts, False], [*segments, segment]
    rest = length - len(ids)
    return {
        "input_ids": ids + [SPECIAL.pad] * rest,
        "input_mask": [1] * len(ids) + [0] * rest,
        "segment_ids": segments + [0] * rest,
        "word_starts": starts + [False] * rest,
        "documents": [int(one.a_document[0]), int(one.b_document[0])],
        "next_sentence_labels": int(one.label[0]),
    } | ({} if one.relation is None else {"relation": int(one.relation[0])})


@pytest.mark.parametrize("documents", [2, 60])
@pytest.mark.parametrize("layout", [*PAIRS, *SINGLE])
def test_rows_are_those_made_by_hand(layout, documents):
    corpus = _corpus(documents, longest=12)
    found = _arrange(layout, corpus, 48, 0.2)
    made = layouts.rows(corpus, found, 48, SPECIAL)
    assert ("relation" in made) == (layout == "three")
    types = {name: str(values.dtype) for name, values in made.items()}
    assert types.pop("documents") == "int64" and types.pop("word_starts") == "bool" and set(types.values()) == {"int32"}
    for row in range(len(found)):
        plain = _plain_row(corpus, found.take(slice(row, row + 1)), 48)
        assert {name: values[row].tolist() for name, values in made.items()} == plain


def test_a_row_is_cls_a_sep_b_sep():
    corpus = _corpus()
    one = np.array([1])
    pair = Instances(one * 3, one * 6, one * 20, one * 22, one.astype(np.int32), one * 100, one * 103)
    row = {name: values[0].tolist() for name, values in layouts.rows(corpus, pair, 10, SPECIAL).items()}
    assert row["input_ids"] == [2, 13, 14, 15, 3, 30, 31, 3, 0, 0]
    assert row["input_mask"] == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert row["segment_ids"] == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    starts = corpus.word_start
    begins = [False, *starts[3:6].tolist(), False, *starts[20:22].tolist(), False, False, False]
    assert row["word_starts"] == begins
    assert row["next_sentence_labels"] == 1 and row["documents"] == [100, 103]


def test_a_corpus_shorter_than_a_row_fits_into_one():
    corpus = Corpus(
        np.array([10, 11, 12], np.uint16),
        np.ones(3, bool),
        np.array([0, 2, 3]),
        np.array([0, 1, 2]),
        np.arange(2),
        0,
        0,
    )
    made = layouts.rows(corpus, _arrange("full", corpus, 16, 0.0), 16, SPECIAL)
    assert made["input_ids"].tolist() == [[2, 10, 11, 3, 12, 3] + 10 * [0]]
    assert not made["segment_ids"].any() and made["documents"].tolist() == [[0, 1]]


# ----------------------------------------------------------------------------------------------- documents


def test_long_sentences_are_cut_never_dropped():
    tokenizer = tiny.tokenizer()
    documents = [(0, "cat " * 500), (1, "the dog.\nthe cat."), (2, "\u200b")]
    corpus = layouts.tokenise(documents, tokenizer, "en", 32)
    assert len(corpus.ids) == 500 + 6 and corpus.cut == 1 and corpus.empty == 1
    assert corpus.ids.dtype == np.uint16
    assert corpus.numbers.tolist() == [0, 1]
    assert np.diff(corpus.sentences).max() <= 15
    whole = tokenizer.encode_batch(["cat " * 500, "the dog.", "the cat."])
    np.testing.assert_array_equal(corpus.ids, whole.ids)
    np.testing.assert_array_equal(corpus.word_start, whole.word_start)


def test_blocks_of_text_change_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    documents = [(n, tiny.document(rng, int(rng.integers(1, 9)))) for n in range(30)] + [(30, ""), (31, "cat " * 99)]
    told: list[int] = []
    whole = layouts.tokenise(documents, tiny.tokenizer(), "en", 32, told.append)
    assert sum(told) == sum(len(text.encode()) for _, text in documents)
    monkeypatch.setattr(layouts, "_BLOCK", 300)
    parts = layouts.tokenise(documents, tiny.tokenizer(), "en", 32)
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(parts, name), value)
    assert np.diff(whole.documents).min() > 0 and whole.empty == 1


CHINESE = from_vocab(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"我们今天去北京大学3。t恤.", "abc", "##def", "x"], lowercase=True
)


def test_words_of_a_segmenter_join_what_the_tokenizer_sets_apart():
    text = "我们今天去北京大学 abcdef 3.3。 T恤x"

    def words(sentence: str) -> list[str]:
        return (
            ["我们", "今天", "去", "北京大学", "abc", "def", "3.3", "。", "T恤", "x"]
            if "去" in sentence
            else [sentence]
        )

    corpus = layouts.tokenise([(0, text), (1, "今\n天")], CHINESE, "none", 64, segmenter=words)
    plain = layouts.tokenise([(0, text), (1, "今\n天")], CHINESE, "none", 64)
    np.testing.assert_array_equal(corpus.ids, plain.ids)
    pieces = [CHINESE.pieces[number] for number in corpus.ids]
    units = [
        "".join(pieces[a:b])
        for a, b in zip(
            np.flatnonzero(corpus.word_start), [*np.flatnonzero(corpus.word_start)[1:], len(pieces)], strict=True
        )
    ]
    # what the tokenizer holds together stays so, punctuation inside a word is a unit, sentences never join
    wanted = ["我们", "今天", "去", "北京大学", "abc##def", "3", ".", "3", "。", "t恤", "x", "今", "天"]
    assert units == wanted
    ids = np.array([[2, *corpus.ids[:9], 3]], np.int32)
    starts = np.array([[False, *corpus.word_start[:9], False]])
    assert units_of(ids, starts, CHINESE.special, "word").tolist() == [[-1, 1, 1, 3, 3, 5, 6, 6, 6, 6, -1]]


def test_a_segmenter_that_changes_the_text_is_refused():
    with pytest.raises(UserError, match="does not come next"):
        layouts.tokenise([(0, "今天 去")], CHINESE, "none", 64, segmenter=lambda text: ["天", "去"])
