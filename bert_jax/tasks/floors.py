"""What guessing and counting words reach, so that a score can be judged. scikit-learn.

Predictions are of the kind that a model gives, as `metrics.measure` takes them.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bert_jax.tasks.answer_floors import bag_of_words_answers, majority_answers
from bert_jax.tasks.answer_floors import words as words_of
from bert_jax.tasks.answer_scores import LONE
from bert_jax.tasks.columns import ONE_OR_TWO
from bert_jax.tasks.examples import Example
from bert_jax.tasks.metrics import library

_MOST = 50_000  # training rows: more move a floor by less than anybody asks, and take minutes
_FEATURES = 1 << 17  # of words and pairs of words, the most frequent
_LONE = re.compile(f"[{LONE}]")


def floors(train: list[Example], test: list[Example], family: str, audit: bool = False) -> dict[str, Any]:
    """Floors by their names, with the predictions of each for `test`.

    `audit` adds what one side of two texts says alone (Poliak et al. 2018; Gururangan et al. 2018): a score there that
    is far above the majority means that labels can be told without reading both.
    """
    found = {"majority": majority(train, test, family), "bag of words": bag_of_words(train, test, family)}
    if audit:
        if family == "pair" or (family in ONE_OR_TWO and len(train[0].texts) == 2):
            found["first text alone"] = partial(train, test, family, 0)
            found["second text alone"] = partial(train, test, family, 1)
        elif family == "choice":
            found["choices alone"] = partial(train, test, family, 1)
    return found


def majority(train: list[Example], test: list[Example], family: str) -> Any:
    """The same for each example: the most frequent label, tag and intent; the mean number; vectors that are all alike.

    multi_label: the labels that half of the examples have, and the most frequent one in any case.
    qa: as `majority_answers` says.
    """
    if family == "regression":
        return np.full(len(test), _numbers(train).mean())
    if family == "qa":
        return majority_answers(train, test)
    if family == "multi_label":
        counts = Counter(label for example in train for label in example.labels or ())
        usual = {name for name in counts if 2 * counts[name] >= len(train)} | ({_first(counts)} if counts else set())
        return [sorted(usual)] * len(test)
    if family == "embedding":
        return np.ones((len(test), 1), np.float32), np.ones((len(test), 1), np.float32)
    tags = Counter(tag for example in train for tag in example.tags or ())
    same_tags = [[_first(tags)] * len(example.words) for example in test] if tags else []
    if family == "tagging":
        return same_tags
    label = _first(Counter(str(example.label) for example in train))
    return ([label] * len(test), same_tags) if family == "intent_slots" else [label] * len(test)


def bag_of_words(train: list[Example], test: list[Example], family: str, sides: Sequence[int] = (0, 1)) -> Any:
    """What words tell that do not know of each other.

    single, pair: logistic regression on tf-idf of words and pairs of neighbours; of two texts those of each side and of
        the words that both have;
    multi_label: the same for each label by itself;
    regression: ridge regression on the same;
    choice: logistic regression on rows of (text, choice), the choice that is likeliest to be right;
    tagging: the most frequent tag of a word; of unknown ones that of words with its last three letters; else of all;
    intent_slots: both;
    qa: as `bag_of_words_answers` says;
    embedding: tf-idf, as sparse matrices.
    In scripts without blanks and in Korean, one to three characters stand for words. Of more than 50,000 examples, no
    more than as many are taken, evenly.

    Args:
        train, test: examples.
        family: of the task.
        sides: which of two texts are looked at.
    """
    if family == "qa":
        return bag_of_words_answers(train, test)
    if family == "tagging":
        return _tags_of_words(train, test)
    train = train[:: -(-len(train) // _MOST)]
    if family == "embedding":
        texts = [text for example in train + test for text in example.texts[:2]]  # tf-idf has no labels to learn
        to_vectors = _vectors(texts)
        return to_vectors([e.texts[0] for e in test]), to_vectors([e.texts[1] for e in test])
    if family == "intent_slots":
        said = [" ".join(example.words) for example in train], [" ".join(example.words) for example in test]
        to_vectors = _vectors(said[0])
        intents = _classified(to_vectors(said[0]), [str(e.label) for e in train], to_vectors(said[1]))
        return intents, _tags_of_words(train, test)
    if family == "choice":
        return _chosen(train, test, sides)
    sides = [side for side in sides if side < len(train[0].texts)]
    learn, apply = _rows([example.texts for example in train], [example.texts for example in test], sides)
    if family == "regression":
        ridge = library("sklearn.linear_model").Ridge(alpha=1.0, solver="sparse_cg")
        return np.asarray(ridge.fit(learn, _numbers(train)).predict(apply), np.float64)
    if family == "multi_label":
        return _several(learn, [example.labels or () for example in train], apply)
    return _classified(learn, [str(example.label) for example in train], apply)


def partial(train: list[Example], test: list[Example], family: str, side: int) -> Any:
    """The bag of words of one side alone, of two texts or of text and choices."""
    return bag_of_words(train, test, family, (side,))


# --------------------------------------------------------------------------------------------------- the parts


def _vectors(texts: Sequence[str]) -> Callable[[Sequence[str]], Any]:
    """From texts to tf-idf with the vocabulary of these."""
    from_text = library("sklearn.feature_extraction.text")
    vectoriser = from_text.TfidfVectorizer(analyzer=_terms, max_features=_FEATURES, sublinear_tf=True, dtype=np.float32)
    return vectoriser.fit([*texts, "?"]).transform  # one word at least: scikit-learn has no empty vocabulary


def _terms(text: str) -> list[str]:
    """The words of a text and each two that are neighbours; each three of those that are single characters."""
    found = words_of(text)
    terms = found + [f"{a} {b}" for a, b in zip(found, found[1:], strict=False)]
    if _LONE.search(text):
        threes = zip(found, found[1:], found[2:], strict=False)
        terms += ["".join(three) for three in threes if all(map(_LONE.match, three))]
    return terms


def _rows(learn: Sequence[tuple[str, ...]], apply: Sequence[tuple[str, ...]], sides: Sequence[int]) -> tuple[Any, Any]:
    """Features of tuples of texts: each of the sides; of two also the words that both have, and which share that is."""
    to_vectors = _vectors([texts[side] for texts in learn for side in sides])
    stack = library("scipy.sparse").hstack

    def features(rows: Sequence[tuple[str, ...]]) -> Any:
        blocks = [to_vectors([texts[side] for texts in rows]) for side in sides]
        if len(sides) == 2:
            bags = [(set(words_of(texts[sides[0]])), set(words_of(texts[sides[1]]))) for texts in rows]
            blocks.append(to_vectors([" ".join(sorted(a & b)) for a, b in bags]))
            blocks.append(np.array([[len(a & b) / max(len(a | b), 1), len(a & b)] for a, b in bags], np.float32))
            blocks[-1][:, 1] = np.log1p(blocks[-1][:, 1])
        return stack(blocks, format="csr")

    return features(learn), features(apply)


def _classified(learn: Any, labels: Sequence[str], apply: Any) -> list[str]:
    if len(set(labels)) == 1:
        return [labels[0]] * apply.shape[0]
    return [str(label) for label in _logistic(learn, labels).predict(apply)]


def _several(learn: Any, labels: Sequence[tuple[str, ...]], apply: Any) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in range(apply.shape[0])]
    for name in sorted({name for one in labels for name in one}):
        flags = ["yes" if name in one else "no" for one in labels]
        for one, told in zip(found, _classified(learn, flags, apply), strict=True):
            if told == "yes":
                one.append(name)
    return found


def _logistic(learn: Any, labels: Sequence[Any]) -> Any:
    # On sparse rows liblinear is several times faster than the default; it knows two labels at a time.
    regression = library("sklearn.linear_model").LogisticRegression(C=4.0, solver="liblinear")
    if len(set(labels)) > 2:
        regression = library("sklearn.multiclass").OneVsRestClassifier(regression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", library("sklearn.exceptions").ConvergenceWarning)  # a floor need not be exact
        return regression.fit(learn, labels)


def _chosen(train: list[Example], test: list[Example], sides: Sequence[int]) -> list[str]:
    def rows(examples: list[Example]) -> list[tuple[str, ...]]:
        return [(example.texts[0], choice) for example in examples for choice in example.texts[1:]]

    right = [i == int(str(example.label)) for example in train for i in range(len(example.texts) - 1)]
    learn, apply = _rows(rows(train), rows(test), sides)
    if all(right):  # nothing to choose from
        return ["0"] * len(test)
    scores = np.asarray(_logistic(learn, right).decision_function(apply))
    ends = np.cumsum([len(example.texts) - 1 for example in test])
    return [str(int(part.argmax())) for part in np.split(scores, ends[:-1])]


def _tags_of_words(train: list[Example], test: list[Example]) -> list[list[str]]:
    by_word: dict[str, Counter[str]] = defaultdict(Counter)
    by_suffix: dict[str, Counter[str]] = defaultdict(Counter)
    every: Counter[str] = Counter()
    for example in train:
        for word, tag in zip(example.words, example.tags or (), strict=True):
            by_word[word][tag] += 1
            by_suffix[word[-3:]][tag] += 1
            every[tag] += 1
    tags = {word: _first(counts) for word, counts in by_word.items()}
    suffixes = {suffix: _first(counts) for suffix, counts in by_suffix.items()}
    last = _first(every)
    return [[tags.get(word) or suffixes.get(word[-3:]) or last for word in example.words] for example in test]


def _first(counts: Counter[str]) -> str:
    """The most frequent; of equally frequent ones the first by name, so that files in another order give the same."""
    return min(counts, key=lambda name: (-counts[name], name))


def _numbers(examples: Sequence[Example]) -> np.ndarray:
    return np.array([float(str(example.label)) for example in examples])
