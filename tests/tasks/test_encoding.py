"""Examples as rows: each word has one window, answers are found where they stand, long texts are cut or divided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.errors import UserError
from bert_jax.tasks.encoding import TaskRow, encode, windows_of
from bert_jax.tasks.examples import Answer, Example
from bert_jax.tasks.predictions import predictions
from bert_jax.tasks.settings import TaskSettings
from bert_jax.text.tokenizer import Tokenizer, from_vocab

LETTERS = "abcdefghij"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "."]
CLS, SEP, UNK = 2, 3, 1


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A token a letter."""
    return from_vocab(PIECES)


def one(text: str = "", **given) -> Example:
    return Example(id="0", where="here:1", texts=(text,) if text else (), **given)


def spelled(row: TaskRow) -> str:
    """a row as text: "[CLS]abc[SEP]"."""
    return "".join(PIECES[number].removeprefix("##") for number in row.ids)


def pieces_at(row: TaskRow, item: int, beside: int = 0) -> str:
    begin, end = row.spans[item, beside]
    return "".join(PIECES[number].removeprefix("##") for number in row.ids[begin:end])


# --------------------------------------------------------------------------------------------------------- windows


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 12), st.integers(0, 14))
def test_windows_label_each_word_once_where_it_has_most_text_beside_it(sizes: list[int], room: int, stride: int):
    windows = windows_of(sizes, room, stride)
    cut = [min(size, room) for size in sizes]

    def beside(word: int, begin: int, end: int) -> int:
        return min(sum(cut[begin:word]), sum(cut[word + 1 : end]))

    labelled = [word for _, _, own in windows for word in own]
    assert sorted(labelled) == list(range(len(sizes)))
    for begin, end, own in windows:
        assert sum(cut[begin:end]) <= room
        for word in own:
            assert begin <= word < end
            others = [beside(word, *other[:2]) for other in windows if other[0] <= word < other[1]]
            assert beside(word, begin, end) == max(others)
    for (first, last, _), (begin, end, _) in zip(windows, windows[1:], strict=False):
        assert first < begin <= last < end  # goes on, leaves nothing out
        assert sum(cut[begin:last]) <= stride


def test_windows_overlap_by_the_stride_where_words_are_single_tokens():
    windows = windows_of([1] * 100, 20, 8)
    assert [begin for begin, _, _ in windows] == list(range(0, 85, 12))
    assert windows[-1][1] == 100


def test_no_words_are_one_window_without_any():
    assert windows_of([], 10, 2) == [(0, 0, [])]


def test_windows_of_a_hundred_thousand_words_are_made_in_little_memory():
    import tracemalloc

    tracemalloc.start()
    windows = windows_of([1] * 100_000, 126, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(own) for _, _, own in windows) == 100_000
    assert peak < 64e6


# ----------------------------------------------------------------------------------------------------------- words


def tagged(words: list[str], labels: tuple[str, ...] = ("O", "X")) -> Example:
    return one(words=tuple(words), tags=tuple(labels[n % len(labels)] for n in range(len(words))))


def test_windows_of_a_long_sentence_bring_each_tag_back_to_its_word(tokenizer: Tokenizer):
    rng = np.random.default_rng(0)
    names = ("O", "X", "Y")
    words = ["".join(rng.choice(list(LETTERS), rng.integers(1, 5))) for _ in range(60)]
    example = one(words=tuple(words), tags=tuple(rng.choice(names, 60).tolist()))
    task = TaskSettings(family="tagging", length=16, stride=6)
    rows = encode([tagged(["a"]), example], tokenizer, task, {"tags": names})
    assert len(rows) > 5 and [row.example for row in rows] == [0] + [1] * (len(rows) - 1)
    for row in rows[1:]:
        assert len(row.ids) <= 16 and row.ids[0] == CLS and row.ids[-1] == SEP and not row.segments.any()
        for item, word in enumerate(row.items):
            assert pieces_at(row, item) == words[word]
            assert names[row.targets["tags"][item]] == example.tags[word]
    outs = [{"classifier": np.eye(3, dtype=np.float32)[row.targets["tags"]] * 9} for row in rows]
    found = predictions(task, {"tags": names}, [tagged(["a"]), example], rows, outs)
    assert found[1]["tags"] == list(example.tags) and found[0]["tags"] == ["O"]


def test_words_without_pieces_and_words_longer_than_a_row_have_a_label(tokenizer: Tokenizer):
    words = ["ab", "\u0001", "c" * 50, "d"]
    task = TaskSettings(family="tagging", length=12, stride=2)
    rows = encode([tagged(words)], tokenizer, task, {"tags": ("O", "X")})
    read = {int(word): pieces_at(row, item) for row in rows for item, word in enumerate(row.items)}
    assert read == {0: "ab", 1: "[UNK]", 2: "c" * 10, 3: "d"}
    assert all(len(row.ids) <= 12 for row in rows)


def test_unknown_tags_and_no_tags_do_not_count(tokenizer: Tokenizer):
    task = TaskSettings(family="tagging", length=12, stride=2)
    rows = encode([tagged(["a", "b"], ("O", "new")), one(words=("a",))], tokenizer, task, {"tags": ("X", "O")})
    assert [row.targets["tags"].tolist() for row in rows] == [[1, -1], [-1]]


def test_a_sentence_without_words_is_a_row_without_items(tokenizer: Tokenizer):
    task = TaskSettings(family="tagging", length=12, stride=2)
    (row,) = encode([one(words=(), tags=())], tokenizer, task, {"tags": ("O",)})
    assert spelled(row) == "[CLS][SEP]" and row.spans.shape == (0, 1, 2) and len(row.items) == 0


def test_a_hundred_thousand_tagged_words_are_windows(tokenizer: Tokenizer):
    words = list(LETTERS) * 10_000
    rows = encode([tagged(words)], tokenizer, TaskSettings(family="tagging", length=512), {"tags": ("O", "X")})
    assert np.concatenate([row.items for row in rows]).tolist() == list(range(100_000))
    assert np.concatenate([row.targets["tags"] for row in rows]).tolist() == [0, 1] * 50_000


def test_the_first_item_of_intent_slots_is_the_text_and_has_the_intent(tokenizer: Tokenizer):
    labels = {"intent": ("go", "stay"), "slots": ("O", "X")}
    task = TaskSettings(family="intent_slots", length=8)
    example = one(words=("ab", "c", "def", "g"), label="stay", tags=("O", "X", "O", "X"))
    (row,) = encode([example], tokenizer, task, labels)
    assert spelled(row) == "[CLS]abcdef[SEP]"  # the last word is behind the cut
    assert row.items.tolist() == [-1, 0, 1, 2]
    assert [pieces_at(row, item) for item in range(4)] == [spelled(row), "ab", "c", "def"]
    assert row.targets["intent"].tolist() == [1, -1, -1, -1]
    assert row.targets["slots"].tolist() == [-1, 0, 1, 0]
    logits = {"intent": np.eye(2)[[1, 0, 0, 0]], "slots": np.eye(2)[[1, 0, 1, 0]]}
    (found,) = predictions(task, labels, [example], [row], [logits])
    assert found["intent"] == "stay" and found["slots"] == ["O", "X", "O", "O"]


# ----------------------------------------------------------------------------------------------------------- texts


def test_a_text_of_a_hundred_thousand_tokens_is_cut_at_its_end(tokenizer: Tokenizer):
    for length in (5_000, 100_000):
        text = " ".join(LETTERS) + " " + "j " * length
        (row,) = encode(
            [one(text, label="no")], tokenizer, TaskSettings(family="single", length=32), {"label": ("yes", "no")}
        )
        assert spelled(row) == "[CLS]" + LETTERS + "j" * 20 + "[SEP]"
        assert row.spans.tolist() == [[[0, 32]]] and row.targets["label"].tolist() == [1]


def test_labels_that_are_not_known_do_not_count(tokenizer: Tokenizer):
    examples = [one("a"), one("b", label="other"), one("c", label="yes")]
    rows = encode(examples, tokenizer, TaskSettings(family="single"), {"label": ("yes", "no")})
    assert [int(row.targets["label"][0]) for row in rows] == [-1, -1, 0]
    rows = encode([one("a"), one("a", label="2.5")], tokenizer, TaskSettings(family="regression"), {})
    assert np.isnan(rows[0].targets["score"][0]) and rows[1].targets["score"][0] == 2.5


def test_choices_stand_behind_the_text_or_alone_where_there_is_none(tokenizer: Tokenizer):
    task = TaskSettings(family="choice")
    examples = [
        Example("0", "here:1", texts=("ab", "c", "d"), label="1"),
        Example("1", "here:2", texts=("", "e", "f", "g")),
    ]
    rows = encode(examples, tokenizer, task, {})
    assert [row.example for row in rows] == [0, 0, 1, 1, 1]
    told = [spelled(row) for row in rows]
    assert told == ["[CLS]ab[SEP]c[SEP]", "[CLS]ab[SEP]d[SEP]", "[CLS]e[SEP]", "[CLS]f[SEP]", "[CLS]g[SEP]"]
    assert rows[0].segments.tolist() == [0, 0, 0, 0, 1, 1] and not rows[2].segments.any()
    assert [int(row.targets["choice"][0]) for row in rows] == [1, 1, -1, -1, -1]


@pytest.mark.parametrize("family", ["pair", "choice", "qa"])
def test_a_network_without_segments_reads_segment_0(family: str, tokenizer: Tokenizer):
    example = Example("0", "here:1", texts=("ab", "cd"), label="0", answers=())
    told = [encode([example], tokenizer, TaskSettings(family=family), {"label": ("0",)}, segments=n) for n in (2, 1)]
    assert told[0][0].segments.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert not told[1][0].segments.any()
    assert told[0][0].ids.tolist() == told[1][0].ids.tolist()
    assert told[1][0].segments.dtype == np.int32


# ----------------------------------------------------------------------------------------------------- marked spans


def test_marked_spans_are_the_tokens_that_cover_their_characters(tokenizer: Tokenizer):
    task = TaskSettings(family="pair", length=32)
    text_a, text_b = "abc de", "f ghi j"
    example = Example("0", "here:1", texts=(text_a, text_b), spans=((0, 4, 6), (1, 3, 5)))
    (row,) = encode([example], tokenizer, task, {}, marked=True)
    assert row.spans.shape == (1, 2, 2)
    assert (pieces_at(row, 0, 0), pieces_at(row, 0, 1)) == ("de", "hi")
    both = Example("0", "here:1", texts=(text_a,), spans=((0, 5, 6), (0, 0, 2)))
    (row,) = encode([both], tokenizer, TaskSettings(family="single"), {}, marked=True)
    assert (pieces_at(row, 0, 0), pieces_at(row, 0, 1)) == ("e", "ab")


def test_a_marked_span_behind_the_cut_or_of_nothing_is_told_with_its_place(tokenizer: Tokenizer):
    task = TaskSettings(family="single", length=8)
    for span in ((0, 10, 12), (0, 3, 4)):
        example = Example("0", "here:7", texts=("abc defghi",), spans=(span,))
        with pytest.raises(UserError, match="cut off, or has no token") as caught:
            encode([example], tokenizer, task, {}, marked=True)
        assert "here:7" in str(caught.value)
    with pytest.raises(UserError, match="no span is marked"):
        encode([one("abc")], tokenizer, task, {}, marked=True)


# ------------------------------------------------------------------------------------------------------- questions


def asked(context: str, answer: str | None = None, question: str = "abc", start: int | None = None) -> Example:
    answers = None
    if answer is not None:
        answers = (Answer(answer, context.index(answer) if start is None else start),) if answer else ()
    return Example("0", "here:1", texts=(question, context), answers=answers)


def words(count: int, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    return " ".join("".join(rng.choice(list(LETTERS), rng.integers(1, 5))) for _ in range(count))


def test_windows_of_a_context_cover_it_and_say_which_characters_each_token_is(tokenizer: Tokenizer):
    context = words(80)
    rows = encode([asked(context, "")], tokenizer, TaskSettings(family="qa", length=24, stride=6), {})
    whole = tokenizer.encode_batch([context], offsets=True)
    assert whole.offsets is not None
    seen = []
    for row in rows:
        assert row.offsets is not None and len(row.ids) <= 24
        assert spelled(row).startswith("[CLS]abc[SEP]") and row.ids[-1] == SEP
        assert row.segments.tolist() == [0] * 5 + [1] * (len(row.ids) - 5)
        of_context = row.offsets[:, 0] >= 0
        assert np.flatnonzero(of_context).tolist() == list(range(5, len(row.ids) - 1))
        for token, (begin, end) in zip(row.ids[of_context], row.offsets[of_context], strict=True):
            assert context[begin:end] == PIECES[token].removeprefix("##")
        seen.append([tuple(pair) for pair in row.offsets[of_context].tolist()])
    every = [tuple(pair) for pair in whole.offsets.tolist()]
    assert sorted(set().union(*seen)) == every
    for before, after in zip(seen, seen[1:], strict=False):
        assert before[-6:] == after[:6]  # the stride
    assert sum(map(len, seen)) == len(every) + 6 * (len(rows) - 1)


def test_an_answer_is_labelled_where_a_window_holds_it_whole_and_cls_elsewhere(tokenizer: Tokenizer):
    context = words(40, seed=1)
    answer = " ".join(context.split()[20:22])
    example = asked(context, answer)
    rows = encode([example], tokenizer, TaskSettings(family="qa", length=24, stride=10), {})
    held = 0
    for row in rows:
        start, end = int(row.targets["start"][0]), int(row.targets["end"][0])
        assert row.offsets is not None
        inside = context[row.offsets[5, 0] : row.offsets[-2, 1]]
        whole = row.offsets[5, 0] <= example.answers[0].start
        whole = whole and example.answers[0].start + len(answer) <= row.offsets[-2, 1]
        if whole:
            held += 1
            assert context[row.offsets[start, 0] : row.offsets[end, 1]] == answer and answer in inside
        else:
            assert (start, end) == (0, 0)
    assert 0 < held < len(rows)


def test_an_answer_within_a_word_is_labelled_by_the_tokens_that_touch_it(tokenizer: Tokenizer):
    (row,) = encode([asked("ab cdef gh", "de")], tokenizer, TaskSettings(family="qa"), {})
    assert (int(row.targets["start"][0]), int(row.targets["end"][0])) == (5 + 3, 5 + 4)
    (row,) = encode([asked("ab ab", "ab", start=3)], tokenizer, TaskSettings(family="qa"), {})
    assert int(row.targets["start"][0]) == 5 + 2  # the second, not the first that reads the same
    none, unknown = encode([asked("ab", ""), asked("ab")], tokenizer, TaskSettings(family="qa"), {})
    assert none.targets["start"].tolist() == [0] and unknown.targets["start"].tolist() == [-1]


def test_contexts_of_five_and_a_hundred_thousand_tokens_are_windows(tokenizer: Tokenizer):
    for length in (5_000, 100_000):
        context = "a" + " b" * (length - 2) + " c"
        rows = encode([asked(context, "c")], tokenizer, TaskSettings(family="qa", length=384, stride=128), {})
        room = 384 - 6
        assert len(rows) == 1 + -(-(length - room) // (room - 128))
        assert [int(row.targets["end"][0]) > 0 for row in rows] == [False] * (len(rows) - 1) + [True]
        assert rows[-1].ids[-2] == PIECES.index("c") and rows[0].ids[5] == PIECES.index("a")


def test_a_question_that_nearly_fills_the_row_does_not_make_a_window_a_token(tokenizer: Tokenizer):
    long = "a " * 60
    rows = encode([asked("b " * 5_000, "", long)], tokenizer, TaskSettings(family="qa", length=128, stride=64), {})
    assert len(rows) < 5_000 / 10
    assert sum(int((row.offsets[:, 0] >= 0).sum()) for row in rows) >= 5_000


def test_a_question_is_cut_and_one_that_leaves_no_room_is_told(tokenizer: Tokenizer):
    task = TaskSettings(family="qa", length=12, stride=2, question=4)
    rows = encode([asked("j", "", "abcdefgh")], tokenizer, task, {})
    assert spelled(rows[0]) == "[CLS]abcd[SEP]j[SEP]"
    with pytest.raises(UserError, match="leaves no room"):
        encode([asked("j", "", "abcdefghij")], tokenizer, TaskSettings(family="qa", length=12, stride=2), {})


def test_an_empty_context_is_one_row(tokenizer: Tokenizer):
    (row,) = encode([asked("", "")], tokenizer, TaskSettings(family="qa"), {})
    assert spelled(row) == "[CLS]abc[SEP][SEP]" and row.targets["start"].tolist() == [0]
