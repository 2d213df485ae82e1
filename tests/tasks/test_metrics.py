"""Metrics against definitions worked out by hand and against other implementations."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from bert_jax.errors import UserError
from bert_jax.tasks import metrics
from bert_jax.tasks.answer_scores import best_threshold, normal
from bert_jax.tasks.entities import entities
from bert_jax.tasks.examples import Answer, Example

# ------------------------------------------------------------------------------------------------ labels, numbers


def test_f1_of_two_labels_is_that_of_the_second() -> None:
    gold, predicted = list("nnnpp"), list("nnppn")
    scores = metrics.classification(gold, predicted, ["n", "p"])
    assert scores["f1"] == pytest.approx(2 * 1 / (2 + 2))
    assert metrics.classification(gold, predicted, ["p", "n"])["f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert scores["macro_f1"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert scores["accuracy"] == 0.6
    assert scores["matthews"] == pytest.approx((1 * 2 - 1 * 1) / np.sqrt(2 * 2 * 3 * 3))


def test_f1_of_more_labels_is_the_mean_of_those_that_occur() -> None:
    scores = metrics.classification(list("aab"), list("aba"), ["a", "b", "never"])
    assert scores["f1"] == scores["macro_f1"] == pytest.approx((0.5 + 0) / 2)


def test_predicting_one_label_always_is_no_warning() -> None:
    assert metrics.classification(list("nn"), list("nn"), ["n", "p"]) == {
        "accuracy": 1.0,
        "f1": 0.0,
        "macro_f1": 1.0,
        "matthews": 0.0,
    }
    assert metrics.classification(list("np"), list("nn"), ["n", "p"])["matthews"] == 0


def test_correlations_are_those_of_scipy() -> None:
    random = np.random.default_rng(0)
    gold = random.integers(0, 6, 50).astype(float)  # with ties
    predicted = gold + random.normal(size=50)
    scores = metrics.regression(gold, predicted)
    assert scores["pearson"] == pytest.approx(np.corrcoef(gold, predicted)[0, 1])
    ranks = scipy.stats.rankdata(gold), scipy.stats.rankdata(predicted)
    assert scores["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert scores["mse"] == pytest.approx(np.square(gold - predicted).mean())


@pytest.mark.parametrize("predicted", [[3.3, 3.3, 3.3], [3.3, 3.3, 3.3 + 1e-12], [0, 0, 0], [1, np.nan, 2]])
def test_predictions_without_variation_correlate_with_nothing(predicted: list[float]) -> None:
    scores = metrics.regression(np.array([1.0, 2.0, 4.0]), np.array(predicted))
    assert scores["pearson"] == scores["spearman"] == 0


# --------------------------------------------------------------------------------------------------------- spans


@pytest.mark.parametrize(
    ("scheme", "tags", "wanted"),
    [
        ("IOB1", "I-A I-A O I-A I-B", [(0, 2, "A"), (3, 4, "A"), (4, 5, "B")]),
        ("IOB1", "I-A B-A I-A", [(0, 1, "A"), (1, 3, "A")]),
        ("BIO", "B-A I-A I-A B-A O", [(0, 3, "A"), (3, 4, "A")]),
        ("BIO", "O I-A I-A", [(1, 3, "A")]),  # begins without B
        ("BIO", "B-A I-B", [(0, 1, "A"), (1, 2, "B")]),  # the kind changes
        ("IOBES", "B-A I-A E-A S-A S-A", [(0, 3, "A"), (3, 4, "A"), (4, 5, "A")]),
        ("IOBES", "B-A E-A E-A", [(0, 2, "A"), (2, 3, "A")]),
        ("IOBES", "B-A I-A O S-B I-B", [(0, 2, "A"), (3, 4, "B"), (4, 5, "B")]),  # no end; goes on behind an end
        ("IOBES", "B-A S-A", [(0, 1, "A"), (1, 2, "A")]),
        ("BMES", "B-A M-A E-A S-B O", [(0, 3, "A"), (3, 4, "B")]),
        ("BMES", "B M E S B E", [(0, 3, ""), (3, 4, ""), (4, 6, "")]),  # cut into words, without kinds
        ("BIO", "B-from-city I-from-city", [(0, 2, "from-city")]),
        ("BIO", "", []),
    ],
)
def test_spans_follow_the_rules_of_conlleval(scheme: str, tags: str, wanted: list) -> None:
    assert entities(tags.split(), scheme) == wanted


@pytest.mark.parametrize(("scheme", "tag"), [("BIO", "S-A"), ("IOB1", "PER"), ("IOBES", "M-A"), ("BMES", "I-A")])
def test_a_tag_of_another_scheme_is_told(scheme: str, tag: str) -> None:
    with pytest.raises(UserError, match=f"'{tag}' is none of {scheme}"):
        entities(["O", tag], scheme)


def test_a_span_is_right_only_with_both_ends_and_the_kind() -> None:
    gold = ["B-A I-A O B-B".split(), "B-A O".split(), "O O".split()]
    predicted = ["B-A I-A O B-A".split(), "B-A I-A".split(), "O B-C".split()]
    scores = metrics.tagging(gold, predicted, "BIO")
    assert scores["accuracy"] == 5 / 8
    assert (scores["precision"], scores["recall"]) == (1 / 4, 1 / 3)
    assert scores["f1"] == pytest.approx(2 / 7)


def test_spans_do_not_go_on_from_one_sentence_into_the_next() -> None:
    scores = metrics.tagging([["I-A"], ["I-A"]], [["I-A"], ["O"]], "IOB1")
    assert (scores["precision"], scores["recall"]) == (1, 0.5)


def test_labels_of_words_without_a_scheme_have_accuracy_alone() -> None:
    assert metrics.tagging([["NN", "VB"], ["NN"]], [["NN", "NN"], ["NN"]], "") == {"accuracy": 2 / 3}


def test_a_whole_is_right_with_intent_and_all_slots() -> None:
    slots = [["B-x", "O"], ["O", "O"], ["O", "B-y"]]
    scores = metrics.intent_slots(list("aab"), list("aaa"), slots, [["B-x", "O"], ["B-x", "O"], ["O", "B-y"]])
    assert scores == {"intent_accuracy": 2 / 3, "slot_f1": pytest.approx(4 / 5), "whole_accuracy": 1 / 3}


def test_slots_are_read_as_their_scheme_writes_them() -> None:
    slots = [["B-x", "E-x", "S-y"]]
    scores = metrics.intent_slots(["a"], ["a"], slots, [["B-x", "E-x", "O"]], "IOBES")
    assert scores["slot_f1"] == pytest.approx(2 / 3)


# ----------------------------------------------------------------------------------------------------- embedding


def test_finding_counts_each_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CELLS", 7)  # blocks of two rows and of one
    a = np.eye(3)
    b = np.array([[3.0, 0, 0], [0, 1, 2], [0, 2, 1]])  # the first is found; the others are second
    scores = metrics.embedding(a, b)
    assert scores == {"accuracy_at_1": pytest.approx(1 / 3), "mrr": pytest.approx((1 + 0.5 + 0.5) / 3)}
    assert metrics.embedding(scipy.sparse.csr_matrix(a), scipy.sparse.csr_matrix(b)) == scores


def test_vectors_that_are_all_the_same_find_nothing() -> None:
    scores = metrics.embedding(np.ones((4, 3)), np.ones((4, 3)))
    assert scores["accuracy_at_1"] == pytest.approx(1 / 4)
    assert scores["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_scores_are_compared_with_cosines_not_with_products() -> None:
    a = np.array([[1.0, 0], [1, 0], [1, 0]])
    b = np.array([[1.0, 0], [30, 40], [0, 9]])
    assert metrics.embedding(a, b, [3, 2, 1]) == {"spearman": pytest.approx(1)}
    assert metrics.embedding(a, b, [1, 2, 3]) == {"spearman": pytest.approx(-1)}


# ------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Beatles!", "beatles"),
        ("an apple a day", "apple day"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("well-known", "wellknown"),
        ("«quoted» – 5%", "«quoted» – 5"),  # only ASCII punctuation goes
        ("The", ""),
    ],
)
def test_texts_are_made_normal(text: str, wanted: str) -> None:
    assert normal(text) == wanted


@pytest.mark.parametrize(
    ("gold", "predicted", "exact", "f1"),
    [
        (["Denver Broncos"], "the Denver Broncos.", 1, 1),
        (["Denver Broncos"], "Broncos", 0, 2 / 3),
        (["in the city of New York"], "New York City", 0, 2 * 3 / (5 + 3)),
        (["ha ha ha"], "ha ha", 0, 2 * 2 / 5),  # words count as often as they are there
        (["1999", "in 1999"], "in 1999", 1, 1),
        (["cat", "a black cat"], "black dog", 0, 0.5),  # the best of both
        (["cat"], "", 0, 0),
        ([], "", 1, 1),
        ([], "cat", 0, 0),
        ([], "the", 1, 1),
        (["the", "cat"], "", 0, 0),  # an answer that is nothing once normal is none of the right ones
    ],
)
def test_answers_score_as_squad_defines(gold: list[str], predicted: str, exact: float, f1: float) -> None:
    scores = metrics.question_answering([gold], [predicted])
    assert scores == {"exact": exact, "f1": pytest.approx(f1), "character_f1": pytest.approx(f1)}


@pytest.mark.parametrize(
    ("gold", "predicted", "exact", "f1", "character_f1"),
    [
        ("北京大学", "北京", 0, 0, 2 * 2 / (4 + 2)),
        ("「北京」", "北京", 0, 0, 1),  # punctuation that SQuAD does not know
        ("1998年9月", "1998年", 0, 0, 2 * 2 / (4 + 2)),  # 1998, 年, 9, 月
        ("서울 시장", "서울의 시장", 0, 0.5, 2 * 4 / (4 + 5)),
        ("well-known", "well known", 0, 0, 0),  # wellknown, as SQuAD has it
    ],
)
def test_answers_without_blanks_score_by_characters(
    gold: str, predicted: str, exact: float, f1: float, character_f1: float
) -> None:
    scores = metrics.question_answering([[gold]], [predicted])
    assert scores == pytest.approx({"exact": exact, "f1": f1, "character_f1": character_f1})


def test_questions_with_and_without_answers_are_told_apart() -> None:
    scores = metrics.question_answering([["a cat"], ["dog"], [], [], []], ["cat", "big dog", "", "x", "y"])
    assert scores["has_answer_exact"] == 0.5
    assert scores["has_answer_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["no_answer_exact"] == pytest.approx(1 / 3)
    assert scores["exact"] == pytest.approx(2 / 5)


def test_the_best_threshold_is_better_than_every_other() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        n = 12
        gold = [["x y"] if answer else [] for answer in random.integers(0, 2, n)]
        texts = [("x y", "x", "z")[i] for i in random.integers(0, 3, n)]
        scores = np.round(random.normal(size=n), 1)  # with ties

        def f1(threshold: float, scores=scores, gold=gold, texts=texts) -> float:
            given = ["" if score > threshold else text for score, text in zip(scores, texts, strict=True)]
            return metrics.question_answering(gold, given)["f1"]

        best = f1(best_threshold(scores, texts, gold))
        assert best == pytest.approx(max(map(f1, [*scores, scores.min() - 1])))


def test_the_threshold_is_best_for_what_is_asked() -> None:
    """By words nothing of three answers is right, by characters most is."""
    gold = [["北京大学"], ["上海市"], ["广州塔"], []]
    texts, scores = ["北京大学校", "上海", "广州塔上", "x"], [-3.0, -2.0, -1.0, 0.5]
    assert best_threshold(scores, texts, gold) == -4.0
    assert best_threshold(scores, texts, gold, "character_f1") == -0.25


# --------------------------------------------------------------------------------------------------- calibration


def test_calibration_error_by_hand() -> None:
    # Two bins: 0.5 is in the lower one, right; 0.9 and 0.7, right and wrong, in the upper one.
    probabilities = np.array([[0.5, 0.5], [0.9, 0.1], [0.3, 0.7]])
    gold = np.array([0, 0, 0])
    wanted = (abs(0.5 - 1) * 1 + abs(0.8 - 0.5) * 2) / 3
    assert metrics.expected_calibration_error(probabilities, gold, bins=2) == pytest.approx(wanted)
    assert metrics.expected_calibration_error(np.eye(3), np.arange(3)) == 0
    assert metrics.expected_calibration_error(np.eye(3), (np.arange(3) + 1) % 3) == 1


# ------------------------------------------------------------------------------------------------- what is asked


def test_several_labels_by_hand() -> None:
    """Of five that are right three are found, beside one that is not: micro F1 is 2·3 / (5 + 4)."""
    gold = [("a", "b"), ("a",), (), ("b", "c")]
    given = [["a"], ["a", "c"], [], ["b"]]
    found = metrics.multi_label(gold, given)
    assert found["micro_f1"] == pytest.approx(2 * 3 / 9)
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)  # of a, b and c
    assert found["accuracy"] == 0.25
    assert metrics.multi_label([(), ()], [[], []]) == {"micro_f1": 0, "macro_f1": 0, "accuracy": 1}
    assert metrics.multi_label([("a",)], [["new"]]) == {"micro_f1": 0, "macro_f1": 0, "accuracy": 0}


def test_the_headline_is_the_familys_own_or_the_one_asked_for() -> None:
    assert metrics.headline("pair", "") == "accuracy"
    assert metrics.headline("pair", "", "matthews") == "matthews"
    assert metrics.headline("tagging", "BIO") == "f1"
    assert metrics.headline("tagging", "") == "accuracy"
    assert metrics.headline("embedding", "") == "accuracy_at_1"
    assert metrics.headline("embedding", "", scored=True) == "spearman"
    with pytest.raises(UserError, match="choose one of pearson, spearman, mse"):
        metrics.headline("regression", "", "f1")
    with pytest.raises(UserError, match="needs scheme"):
        metrics.headline("tagging", "", "f1")
    assert not metrics.higher_is_better("mse")
    assert metrics.higher_is_better("f1")


@pytest.mark.parametrize(
    ("family", "scheme", "example", "predictions"),
    [
        ("single", "", Example("0", "", label="a"), ["a"]),
        ("multi_label", "", Example("0", "", labels=("a", "c")), [["c", "a"]]),
        ("regression", "", Example("0", "", label="2.5"), np.array([2.5])),
        ("choice", "", Example("0", "", label="1"), ["1"]),
        ("tagging", "BIO", Example("0", "", words=("x",), tags=("B-A",)), [["B-A"]]),
        ("tagging", "", Example("0", "", words=("x",), tags=("NN",)), [["NN"]]),
        ("qa", "", Example("0", "", answers=(Answer("x", 0),)), ["x"]),
        ("intent_slots", "", Example("0", "", words=("x",), label="i", tags=("O",)), (["i"], [["O"]])),
        ("embedding", "", Example("0", ""), (np.ones((1, 2)), np.ones((1, 2)))),
        ("embedding", "", Example("0", "", label="1"), (np.ones((1, 2)), np.ones((1, 2)))),
    ],
)
def test_a_headline_is_always_among_what_is_measured(
    family: str, scheme: str, example: Example, predictions: Any
) -> None:
    scores = metrics.measure([example], predictions, family, scheme, ["a", "b"])
    headline = metrics.headline(family, scheme, scored=example.label is not None)
    assert headline in scores
    assert set(scores) <= set(metrics.METRICS[family])
    if family not in ("regression", "embedding"):
        assert scores[headline] == 1


def test_no_examples_are_no_measure() -> None:
    with pytest.raises(UserError, match="no examples"):
        metrics.choice([], [])


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.importlib, "import_module", lambda name: builtins.__import__("no_such_module"))
    with pytest.raises(UserError, match=r"sklearn.*bert-jax\[tasks\]"):
        metrics.classification(["a"], ["a"], ["a", "b"])
