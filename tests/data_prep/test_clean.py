"""Cleaning: each step alone, copies and overlaps against what they mean, whatever the order of work."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.errors import UserError
from data_prep import clean
from data_prep.clean import Cleaner, Cleaning, exact_copies, grams, near_copies, overlaps, signature
from tests.text import tiny

RNG = np.random.default_rng(3)
ARTICLE = tiny.document(RNG, 60)
OTHER = tiny.document(RNG, 60)


def is_english(text: str) -> bool:
    """A filter as a user writes one."""
    return "the" in text.split()


def fails(text: str) -> bool:
    raise KeyError(text[:3])


HERE = __name__


# -- one document ----------------------------------------------------------------------------------------------------


def test_nothing_is_done_unless_asked_for():
    text = "a\x00 \u00a0b\u0301\nX\ufb01"
    assert Cleaner(Cleaning()).apply(text) == (text, "")


@pytest.mark.parametrize(
    ("cleaning", "text", "result"),
    [
        (Cleaning(normalise="NFC"), "e\u0301 \ufb01", ("\u00e9 \ufb01", "")),
        (Cleaning(normalise="NFKC"), "\ufb01 \uff21\u3000b", ("fi A b", "")),
        (Cleaning(normalise="NFKC"), "x\n\u00a8", ("x\n\u0308", "")),  # it begins with a blank, which goes
        (Cleaning(controls=True), "a\tb\x85c\x00d\x07\ufeffe\x7f", ("a b cde", "")),
        (Cleaning(controls=True), "\x01\x02\nb", ("b", "")),
        (Cleaning(controls=True), "a\u200db\u200c\u202e", ("a\u200db\u200c\u202e", "")),  # part of spelling
        (Cleaning(controls=True), "\x01\n\x02", ("", "empty")),
        (Cleaning(minimum=3), "ab", ("", "short")),
        (Cleaning(minimum=3), "abc", ("abc", "")),
        (Cleaning(controls=True, minimum=3), "ab\x01", ("", "short")),  # lengths are those of the cleaned text
        (Cleaning(maximum=3), "abcd", ("", "long")),
        (Cleaning(maximum=3), "abc", ("abc", "")),
        (Cleaning(filter=f"{HERE}:is_english"), "der Hund", ("", "filter")),
        (Cleaning(filter=f"{HERE}:is_english"), "the dog", ("the dog", "")),
    ],
)
def test_each_step(cleaning, text, result):
    assert Cleaner(cleaning).apply(text) == result


@given(st.text(max_size=40))
def test_a_cleaned_document_stays_as_it_is(text):
    for form in clean.FORMS:
        cleaner = Cleaner(Cleaning(normalise=form, controls=True))
        made, why = cleaner.apply(text)
        assert (made == "") == (why != "") and why in ("", "empty")
        if made:
            assert cleaner.apply(made) == (made, "")
            if made != text:  # a document is lines of text, none empty
                assert all(line and line == line.strip() for line in made.split("\n"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cleaning(normalise="NFX"), "no Unicode form NFX; take NFC or NFKC"),
        (lambda: Cleaning(minimum=9, maximum=8), "of 9 to 8 characters"),
        (lambda: Cleaning(minimum=-1), "of -1 to 0"),
        (lambda: Cleaning(grams=0), "0 words in a row"),
        (lambda: Cleaner(Cleaning(filter="nosuchmodule:f")), "nosuchmodule:f: there is no module nosuchmodule"),
        (lambda: Cleaner(Cleaning(filter=f"{HERE}:nothing")), "has no function nothing"),
        (lambda: Cleaner(Cleaning(filter=f"{HERE}:HERE")), "HERE is no function"),
        (lambda: Cleaner(Cleaning(filter="json")), "write module:function"),
        (lambda: Cleaner(Cleaning(filter=f"{HERE}:fails")).apply("the dog"), r'filter failed on "the dog…" \(KeyError'),
    ],
)
def test_wrong_settings_are_told(make, message):
    with pytest.raises(UserError, match=message):
        make()


# -- copies ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5)))
def test_the_first_of_exact_copies_stays(numbers):
    expected = [number in numbers[:at] for at, number in enumerate(numbers)]
    assert exact_copies(np.array(numbers, np.uint64)).tolist() == expected


def _clusters(rows: list[list[int]]) -> list[bool]:
    """What near_copies means, by following every chain of shared keys."""
    kept: list[set[int]] = []
    for at, row in enumerate(rows):
        joined = {at}
        for cluster in [c for c in kept if any(a == b for o in c for a, b in zip(row, rows[o], strict=True))]:
            joined |= cluster
            kept.remove(cluster)
        kept.append(joined)
    first = {min(cluster) for cluster in kept}
    return [at not in first for at in range(len(rows))]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), max_size=25))
def test_one_of_each_cluster_of_near_copies_stays(rows):
    assert near_copies(np.array(rows, np.uint64).reshape(-1, 3)).tolist() == _clusters(rows)


def test_a_long_chain_is_one_cluster():
    n = 1000
    rows = np.stack([np.arange(n) // 2, (np.arange(n) + 1) // 2 + n], axis=1).astype(np.uint64)
    order = np.random.default_rng(0).permutation(n)
    assert near_copies(rows[order]).sum() == n - 1 and not near_copies(rows[order])[0]


def test_an_edited_document_is_a_near_copy_and_another_is_not():
    edited = ARTICLE.replace("house", "tree", 1)
    rows = np.stack([signature(text) for text in (ARTICLE, OTHER, edited, ARTICLE.upper().replace(" ", "  "))])
    assert rows.dtype == np.uint64 and rows.shape == (4, 14)
    assert near_copies(rows).tolist() == [False, False, True, True]
    assert (rows[0] == rows[3]).all()  # case and blanks play no part


def test_how_often_similar_documents_are_found_is_what_the_bands_say():
    rng = np.random.default_rng(5)
    found = {0.5: 0, 0.9: 0}
    for similarity in found:
        for _ in range(40):
            words = rng.integers(0, 10**9, 1200)
            shared = round(1000 * 2 * similarity / (1 + similarity))  # of 1000 shingles each
            one = " ".join(map(str, words[:1000]))
            two = " ".join(map(str, [*words[:shared], *(rng.integers(0, 10**9, 1000 - shared))]))
            found[similarity] += (signature(one) == signature(two)).any()
    assert found[0.9] >= 38 and found[0.5] <= 8  # expected 40.0 and 2.1 of 40


def test_short_documents_and_signs_are_copies_of_their_like_only():
    texts = ["a cat", "a dog", "A cat!", "!!!", "???", "!!!", "一只猫", "一只狗"]
    assert near_copies(np.stack([signature(text) for text in texts])).tolist() == [
        *(False, False, True, False, False, True, False, False)
    ]


def test_signatures_hang_on_no_hash_seed():
    code = "from data_prep.clean import signature, grams; print(signature('a b c d e f').tolist(), grams(['a b'], 2))"
    made = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(made) == 1


# -- overlap with evaluation texts -----------------------------------------------------------------------------------

QUESTION = "which of the old birds flew over the river when a red fish swam under it"  # 16 words


def test_documents_that_quote_an_evaluation_text_are_left_out():
    cleaner = Cleaner(Cleaning(), [QUESTION, "too short"])
    quoted = "Which of the OLD birds -- flew over the river,\nwhen a red fish?"
    assert cleaner.apply(f"{ARTICLE} {quoted} and more") == ("", "evaluation")
    assert cleaner.apply(f"{ARTICLE} too short") == (f"{ARTICLE} too short", "")
    broken = QUESTION.replace("river", "sea")  # 8 words on one side, 7 on the other
    assert cleaner.apply(broken) == (broken, "")
    assert Cleaner(Cleaning(grams=8), [QUESTION]).apply(broken) == ("", "evaluation")


words = st.lists(st.sampled_from("a b c é \u3042 中 İ".split()), max_size=12)


@settings(deadline=None)
@given(words, st.lists(words, max_size=3), st.integers(1, 4))
def test_overlap_is_a_shared_stretch_of_words(document, evaluation, n):
    def stretches(text: list[str]) -> set[tuple[str, ...]]:
        return {tuple(text[at : at + n]) for at in range(len(text) - n + 1)}

    expected = bool(stretches(document) & set().union(*map(stretches, evaluation)))
    made = grams([" ".join(text) for text in evaluation], n)
    assert (np.diff(made.astype(object)) > 0).all()
    assert overlaps(", ".join(document), made, n) is expected
    assert overlaps(" ".join(document), made, n, clean.sieve(made)) is expected


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("caf\u00e9 Σ", "CAFE\u0301 σ", True),  # composition and case
        ("\ud55c\uad6d", "\u1112\u1161\u11ab\u1100\u116e\u11a8", True),  # Hangul, composed and not
        ("中文字", "中 文，字", True),  # characters that are words
        ("\U00020000\U00020001", "\U00020001\U00020000", False),
        ("ab c", "a bc", False),
        ("x1", "x2", False),
    ],
)
def test_what_counts_as_the_same_words(one, two, same):
    n = len(clean._words(one))
    assert overlaps(two, grams([one], n), n) is same


def test_long_texts_are_hashed_in_pieces_as_in_one(monkeypatch):
    text = " ".join(str(number) for number in range(29_999)) + " " + "é" * 50 + "\n" + "字" * 30_001
    whole = clean._grams(clean._words(text), 13)
    assert len(whole) == 30_000 + 30_000 + 1 - 12
    monkeypatch.setattr(clean, "_PIECE", 1 << 15)
    assert (clean._grams(clean._words(text), 13) == whole).all()
    assert not len(clean._words("")) and not len(grams([], 3)) and not overlaps("a b c", grams([], 3), 3)
