"""Answers compared as SQuAD compares them, written from its definition, and by characters. NumPy."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from bert_jax.errors import UserError

# Scripts of which each character is a word here: Thai to Lao, Burmese, Khmer, kana, Han, Hangul.
LONE = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"

_MEASURES = ("exact", "f1", "character_f1")
_PUNCTUATION = frozenset(string.punctuation)
_CHARACTERS = re.compile(rf"[{LONE}]|[^\W_{LONE}]+")


def question_answering(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """exact and f1 as SQuAD defines them (Rajpurkar et al. 2016; 2018 for questions without an answer), character_f1.

    Texts are compared as `normal` makes them; f1 is of their words as a bag; the best of several right answers counts.
    character_f1 is the same where each character of Chinese and other scripts without blanks, and of Korean, is a word,
    and no punctuation counts: f1 says hardly more of such answers than exact. Where there is no right answer only ""
    is right. With both kinds of questions there are also has_answer_exact, has_answer_f1 and no_answer_exact, of those
    alone.

    Args:
        gold: all right texts of each question; none: it has no answer.
        predicted: a text each; "": no answer.
    """
    if not gold:
        raise UserError("there are no questions to measure", "task", "give a file with questions")
    scores = np.array([_answer_scores(right, text) for right, text in zip(gold, predicted, strict=True)])
    has = np.array([bool(right) for right in gold])
    found = dict(zip(_MEASURES, scores.mean(0).tolist(), strict=True))
    if has.any() and not has.all():
        exact, f1, _ = scores[has].mean(0)
        found |= {"has_answer_exact": float(exact), "has_answer_f1": float(f1)}
        found["no_answer_exact"] = float(scores[~has, 0].mean())
    return found


def best_threshold(
    no_answer_scores: Sequence[float] | np.ndarray,
    texts: Sequence[str],
    gold: Sequence[Sequence[str]],
    metric: str = "f1",
) -> float:
    """The threshold with the best score over all questions: one has no answer where its score is above it.

    Args:
        no_answer_scores: float[n], the null score less that of the best span.
        texts: the best span of each question.
        gold: as in `question_answering`.
        metric: one of those that it returns.

    Returns:
        Halfway between two scores; 1 below the least where nothing should be answered, 1 above the greatest where all.
    """
    scores = np.asarray(no_answer_scores, np.float64)
    order = np.argsort(scores, kind="stable")
    values = scores[order]
    place = _MEASURES.index(metric.removeprefix("has_answer_").removeprefix("no_answer_"))
    gains = np.array([_answer_scores(gold[i], texts[i])[place] - _answer_scores(gold[i], "")[place] for i in order])
    totals = np.concatenate([[0.0], np.cumsum(gains)])  # after k: with the k lowest scores answered
    thresholds = np.concatenate([[values[0] - 1], (values[:-1] + values[1:]) / 2, [values[-1] + 1]])
    possible = np.concatenate([[True], values[:-1] < values[1:], [True]])  # equal scores are answered alike
    return float(thresholds[np.argmax(np.where(possible, totals, -np.inf))])


def normal(text: str) -> str:
    """Lower case, without ASCII punctuation and the articles a, an, the; words joined by one blank."""
    text = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _answer_scores(gold: Sequence[str], predicted: str) -> tuple[float, float, float]:
    """exact, f1 and character_f1 of one question. What is nothing once normal counts as no answer, on both sides."""
    given = normal(predicted)
    rights = [right for right in map(normal, gold) if right] or [""]
    f1 = max(_overlap(right.split(), given.split()) for right in rights)
    by_character = max(_overlap(_CHARACTERS.findall(right), _CHARACTERS.findall(given)) for right in rights)
    return float(given in rights), f1, by_character


def _overlap(right: list[str], given: list[str]) -> float:
    if not right or not given:
        return float(right == given)
    common = sum((Counter(right) & Counter(given)).values())
    return 2 * common / (len(right) + len(given))
