"""Answers from windows: against a slow reference, and cases made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bert_jax.tasks.answers import Candidate, Window, choose, decode

OUTSIDE = (-1, -1)


def words(context: str) -> list[tuple[int, int]]:
    places, at = [], 0
    for word in context.split(" "):
        places.append((at, at + len(word)))
        at += len(word) + 1
    return places


def window(example: int, offsets: list[tuple[int, int]], question: int = 2) -> Window:
    rows = [OUTSIDE] * (question + 2) + offsets + [OUTSIDE]
    return Window(example, np.array(rows, np.int32))


def logits(n: int, **at: float) -> np.ndarray:
    """Zeros, but for t5=2.0: 2 at token 5."""
    values = np.zeros(n, np.float32)
    for token, value in at.items():
        values[int(token[1:])] = value
    return values


def slow(windows: list[Window], starts: list, ends: list, longest: int, best: int) -> dict[int, list]:
    """(-score, from, to) of each example, as one would write it without NumPy."""
    spans: dict[int, dict] = {}
    for one, start, end in zip(windows, starts, ends, strict=True):
        table = spans.setdefault(one.example, {})
        for i in range(len(start)):
            for j in range(i, min(i + longest, len(start))):
                if all(one.offsets[k][0] >= 0 for k in range(i, j + 1)):
                    key = (int(one.offsets[i][0]), int(one.offsets[j][1]))
                    table[key] = max(table.get(key, -math.inf), float(start[i]) + float(end[j]))
    return {n: sorted((-score, *key) for key, score in table.items())[:best] for n, table in spans.items()}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rounded", [False, True], ids=["reals", "ties"])
@pytest.mark.parametrize("shared", [False, True], ids=["words", "pieces_share_characters"])
def test_decoding_equals_the_slow_reference(seed: int, rounded: bool, shared: bool) -> None:
    random = np.random.default_rng(seed)
    contexts = [" ".join("w" * int(size) for size in random.integers(1, 5, 30)) for _ in range(3)]
    windows, starts, ends = [], [], []
    for example, context in enumerate(contexts):
        places = words(context)
        if shared:
            places = sorted(places + places[::3])
        for begin in range(0, len(places) - 10, 7):
            windows.append(window(example, places[begin : begin + 14]))
    order = random.permutation(len(windows))
    windows = [windows[i] for i in order]
    for one in windows:
        for into in (starts, ends):
            values = random.normal(size=len(one.offsets)).astype(np.float32)
            into.append(np.round(values) if rounded else values)
    longest, best = int(random.integers(1, 20)), int(random.integers(1, 40))
    wanted = slow(windows, starts, ends, longest, best)
    for example, one in enumerate(decode(windows, starts, ends, contexts, longest, best)):
        assert [(-c.score, c.start_char, c.end_char) for c in one.candidates] == wanted[example]
        assert all(c.text == contexts[example][c.start_char : c.end_char] for c in one.candidates)
        own = [i for i, other in enumerate(windows) if other.example == example]
        assert one.null_score == min(float(starts[i][0]) + float(ends[i][0]) for i in own)


def test_an_answer_in_the_overlap_of_two_windows_is_found_once_with_the_higher_score() -> None:
    context = " ".join(f"word{i}" for i in range(5_000))
    places = words(context)
    begins = range(0, 5_000 - 256, 128)  # each word is in two windows or more
    windows = [window(0, places[begin : begin + 384]) for begin in begins]
    starts = [np.full(len(one.offsets), -5, np.float32) for one in windows]
    ends = [np.full(len(one.offsets), -5, np.float32) for one in windows]
    for number, score in ((9, 3.0), (10, 4.0)):
        token = 1_300 - begins[number] + 4
        starts[number][token] = ends[number][token + 2] = score
    (decoded,) = decode(windows, starts, ends, [context], longest=30)
    assert decoded.candidates[0].text == "word1300 word1301 word1302"
    assert decoded.candidates[0].score == 8.0
    assert len({(c.start_char, c.end_char) for c in decoded.candidates}) == len(decoded.candidates) == 20


def test_no_span_begins_in_the_question_ends_before_it_begins_or_is_too_long() -> None:
    context = "red green blue black white"
    one = window(0, words(context))
    start = logits(10, t0=9.0, t2=8.0, t8=5.0, t4=4.0)
    end = logits(10, t0=9.0, t9=8.0, t4=5.0, t7=4.0)
    (decoded,) = decode([one], [start], [end], [context], longest=3)
    assert decoded.candidates[0].text == "red"  # 4 + 5; white..red would have 10, red..black is 4 words long
    assert {c.text.count(" ") for c in decoded.candidates} == {0, 1, 2}
    assert len(decoded.candidates) == 5 + 4 + 3


def test_equal_scores_are_ordered_from_the_left_and_the_short() -> None:
    context = "a b c"
    (decoded,) = decode([window(0, words(context))], [logits(8)], [logits(8)], [context], longest=2, best=4)
    assert [c.text for c in decoded.candidates] == ["a", "a b", "b", "b c"]


def test_null_is_the_least_of_the_windows_and_probabilities_count_it() -> None:
    context = "a b"
    one, two = window(0, words(context)[:1]), window(0, words(context)[1:])
    starts = [logits(6, t0=3.0, t4=1.0), logits(6, t0=1.0)]
    ends = [logits(6, t0=3.0, t4=1.0), logits(6, t0=1.5)]
    (decoded,) = decode([one, two], starts, ends, [context], longest=2)
    assert decoded.null_score == 2.5
    weights = np.exp([2.0, 0.0, 2.5])
    assert [c.probability for c in decoded.candidates] == pytest.approx(list(weights[:2] / weights.sum()))
    assert decoded.null_probability == pytest.approx(weights[2] / weights.sum())


def test_the_answer_is_none_only_above_the_threshold() -> None:
    candidates = [Candidate(0, 1, "a", 2.0, 0.5), Candidate(1, 2, "b", 1.0, 0.2)]
    assert choose(candidates, 9.0, None) == candidates[0]
    assert choose(candidates, 2.5, 0.5) == candidates[0]
    assert choose(candidates, 2.6, 0.5) is None
    assert choose([], -9.0, None) is None


def test_a_window_without_context_and_a_question_without_windows_have_no_spans() -> None:
    empty, missing = decode([window(0, [])], [logits(5)], [logits(5)], ["", "x"], longest=30)
    assert empty.candidates == missing.candidates == []
    assert empty.null_probability == missing.null_probability == 1.0
