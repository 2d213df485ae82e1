"""Counting words: the same as cutting the whole text, and bounded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data_prep import words
from data_prep.sample import read, sample, stretches
from data_prep.sources import describe
from data_prep.words import Rules, WordCounter
from tests.text import tiny


def _count(texts, rules, limit=words.LIMIT):
    counter = WordCounter(rules, limit)
    for text in texts:
        counter.add(text)
    return counter.result()


@pytest.mark.parametrize(
    "rules",
    [Rules(True), Rules(False), Rules(True, strip_accents=False), Rules(False, None, tokenize_chinese_chars=False)],
)
def test_counts_are_those_of_the_library_on_whole_texts(rules):
    from tokenizers import normalizers, pre_tokenizers

    normalise = normalizers.BertNormalizer(
        strip_accents=rules.strip_accents,
        lowercase=rules.do_lower_case,
        handle_chinese_chars=rules.tokenize_chinese_chars,
    )
    split = pre_tokenizers.BertPreTokenizer()
    texts = [*tiny.NASTIES, tiny.text(5), "Straßen, Übung\u3000“Nein”…\nIt's 20.000\xa0km!", "中文ABC，한국어 a`b^c"]
    expected = Counter(word for text in texts for word, _ in split.pre_tokenize_str(normalise.normalize_str(text)))
    found = _count(texts, rules)
    assert found.counts == expected
    assert (found.pruned, found.border) == (0, 0)


def test_blocks_change_no_count(monkeypatch):
    texts = tiny.text(20).split("\n\n")
    whole = _count(texts, Rules(True))
    monkeypatch.setattr(words, "_BLOCK", 100)
    assert _count(texts, Rules(True)) == whole


def test_a_full_table_drops_the_rarest_and_tells(monkeypatch):
    monkeypatch.setattr(words, "_BLOCK", 1)
    rare = [f"rare{number}" for number in range(500)]
    # "often" stands between them again and again, so it is never among the rarest.
    texts = [f"often often often {word}" for word in rare]
    found = _count(texts, Rules(False), limit=50)
    assert found.counts["often"] == 1500
    assert len(found.counts) <= 50
    assert found.pruned == 500 - (len(found.counts) - 1)
    assert found.pruned + sum(found.counts.values()) == 2000
    assert found.border >= 1
    assert found == _count(texts, Rules(False), limit=50)


def test_no_word_loses_more_than_the_border(monkeypatch):
    monkeypatch.setattr(words, "_BLOCK", 1)
    rng = np.random.default_rng(0)
    texts = [f"w{number}" for number in rng.zipf(1.3, 5000) % 1000]
    expected, found = Counter(texts), _count(texts, Rules(False), limit=100)
    assert found.pruned > 0
    assert all(expected[word] - found.counts.get(word, 0) <= found.border for word in expected)
    assert sum(expected.values()) - sum(found.counts.values()) == found.pruned


def test_a_sample_is_the_same_in_any_order_and_within_its_size():
    texts = [f"document {number} " + "x" * (number % 7 * 100) for number in range(300)]
    kept, total = sample(texts, 0.02, seed=1)
    assert total == sum(map(len, texts))
    assert 10_000 < sum(map(len, kept)) <= 20_000
    assert kept == [text for text in texts if text in kept]
    assert sorted(sample(texts[::-1], 0.02, seed=1)[0]) == sorted(kept)
    assert sample(texts, 0.02, seed=2)[0] != kept
    assert sample(texts, 1, seed=1)[0] == texts
    assert len(sample(texts, 1e-6, seed=1)[0]) == 1  # too small for any text: one is better than none


def test_equal_texts_stay_or_go_together():
    texts = [f"document {number % 20} " + "x" * 100 for number in range(200)]
    for size in (0.002, 0.005, 0.01):
        kept = Counter(sample(texts, size, seed=0)[0])
        assert set(kept.values()) == {10}


def test_long_documents_are_cut_between_lines_or_words_and_nothing_is_lost():
    for document in ("word " * 40_000, "a line\n" * 30_000, "x" * 200_000, "short", ""):
        parts = list(stretches(document))
        assert "".join(parts) == document and all(len(part) <= 65_536 for part in parts)
        if "x" not in document:  # which has no place to cut at
            assert [word for part in parts for word in part.split()] == document.split()


def test_reading_gives_all_documents_of_all_inputs(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name} one\n\n{name} two\n")
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    found = list(read(paths, [describe(path) for path in paths], "fail"))
    assert found == ["a one", "a two", "b one", "b two"]
