"""What guessing and counting words reach where answers are looked for in a text. NumPy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from bert_jax.tasks.answer_scores import LONE, best_threshold
from bert_jax.tasks.examples import Example

_SAMPLE = 2_000  # training questions on which the threshold is chosen
_AROUND = 12  # words on either side of a span that may be those of the question

_WORD = re.compile(rf"[{LONE}]|[^\W_{LONE}]+|[^\w\s]")


def words(text: str) -> list[str]:
    """The words of a text in lower case, with each sign of punctuation as one.

    Each character is a word in scripts without blanks, and in Korean, whose words have many endings.
    """
    return _WORD.findall(text.lower())


def majority_answers(train: list[Example], test: list[Example]) -> list[str]:
    """No answer, where training has questions without one; else the first words of the context, as many as usual.

    The second is hardly ever right: where each answer differs there is no most frequent one.
    """
    if any(not example.answers for example in train):
        return [""] * len(test)
    length = _usual_length(train)
    return [_cut(example.texts[1], _places(example.texts[1])[:length]) for example in test]


def bag_of_words_answers(train: list[Example], test: list[Example]) -> list[str]:
    """The span of the usual length with the most words of the question near it, and with rare words.

    Words count by their inverse document frequency, those of the question by their distance as well, and against the
    span if they are in it. Where training has questions without an answer, there is none where too small a share of the
    question is near; how small is chosen on up to 2,000 training questions.
    """
    contexts = {example.texts[1] for example in train + test}
    counts = Counter(word for context in contexts for word in set(words(context)))
    idf = {word: float(np.log((1 + len(contexts)) / (1 + count))) for word, count in counts.items()}
    length = _usual_length(train)
    guesses = [_span(example, length, idf) for example in test]
    if all(example.answers for example in train):
        return [text for text, _ in guesses]
    sample = train[:: -(-len(train) // _SAMPLE)]
    texts, shares = zip(*(_span(example, length, idf) for example in sample), strict=True)
    gold = [[answer.text for answer in example.answers or ()] for example in sample]
    threshold = best_threshold([-share for share in shares], texts, gold)
    return ["" if -share > threshold else text for text, share in guesses]


def _span(example: Example, length: int, idf: dict[str, float]) -> tuple[str, float]:
    """The likeliest span of a context, and which share of the question's words, by weight, is near."""
    question, context = example.texts
    asked = {word: idf[word] for word in words(question) if word in idf}
    places = _places(context)
    if not places:
        return "", 0.0
    length = min(length, len(places))
    found = [context[a:b].lower() for a, b in places]
    weights = np.array([asked.get(word, 0.0) for word in found])
    new = np.cumsum([0.0] + [-asked[word] if word in asked else idf.get(word, 0.0) for word in found])
    kernel = np.concatenate([[0.0], 1 - np.arange(_AROUND) / _AROUND])  # by the distance of a word: 1 beside the span
    starts = len(places) - length + 1
    near = np.convolve(weights, kernel)[:starts] + np.convolve(weights[::-1], kernel)[:starts][::-1]
    best = int((near + (new[length:] - new[:starts]) / length).argmax())
    share = float(near[best]) / max(sum(asked.values()), 1e-9)
    return _cut(context, places[best : best + length]), share


def _usual_length(train: list[Example]) -> int:
    """Words of the median answer, signs of punctuation left out."""
    lengths = [len(_places(answer.text)) for example in train for answer in example.answers or ()]
    return max(1, int(np.median(lengths))) if lengths else 1


def _places(text: str) -> list[tuple[int, int]]:
    """From and to of each word that is no sign of punctuation."""
    return [match.span() for match in _WORD.finditer(text) if match[0][0].isalnum()]


def _cut(text: str, places: Sequence[tuple[int, int]]) -> str:
    return text[places[0][0] : places[-1][1]] if places else ""
