"""How well predictions agree with what is right: one function a family. NumPy, scikit-learn and scipy."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from bert_jax.errors import UserError
from bert_jax.tasks.answer_scores import question_answering
from bert_jax.tasks.entities import SLOTS, entities
from bert_jax.tasks.examples import Example

_CLASSES = ("accuracy", "f1", "macro_f1", "matthews")
_SPANS = ("precision", "recall", "f1")
METRICS = {
    "single": _CLASSES,
    "pair": _CLASSES,
    "multi_label": ("micro_f1", "macro_f1", "accuracy"),
    "regression": ("pearson", "spearman", "mse"),
    "choice": ("accuracy",),
    "tagging": ("accuracy", *_SPANS),
    "qa": ("exact", "f1", "character_f1", "has_answer_exact", "has_answer_f1", "no_answer_exact"),
    "intent_slots": ("intent_accuracy", "slot_f1", "whole_accuracy"),
    "embedding": ("spearman", "accuracy_at_1", "mrr"),
}
HEADLINE = {
    "single": "accuracy",
    "pair": "accuracy",
    "multi_label": "micro_f1",
    "regression": "spearman",
    "choice": "accuracy",
    "tagging": "f1",
    "qa": "f1",
    "intent_slots": "whole_accuracy",
    "embedding": "accuracy_at_1",
}
_CELLS = 1 << 24  # of one block of similarities: 64 MB


def headline(family: str, scheme: str, metric: str = "", scored: bool = False) -> str:
    """The metric that chooses an epoch and a rate: the one asked for, or the family's own.

    `scored` is whether pairs of an embedding task have numbers: then it is the correlation with these.

    Raises:
        UserError: the family has no such metric.
    """
    names = METRICS[family]
    if family == "tagging" and not scheme:
        names = ("accuracy",)
    elif family == "embedding":
        names = ("spearman",) if scored else ("accuracy_at_1", "mrr")
    if metric and metric not in names:
        hint = "; f1 is of spans and needs scheme" if family == "tagging" and metric in _SPANS else ""
        raise UserError(f"metric = {metric!r} is none of {family}{hint}", "task", f"choose one of {', '.join(names)}")
    return metric or (HEADLINE[family] if HEADLINE[family] in names else names[0])


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better."""
    return metric not in ("mse", "expected_calibration_error")


def library(name: str) -> Any:
    """A module of the `tasks` extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs {name.split('.')[0]}", "", "pip install 'bert-jax[tasks]'") from None


def measure(
    examples: Sequence[Example], predictions: Any, family: str, scheme: str = "", labels: Sequence[str] = ()
) -> dict[str, float]:
    """The metrics of a family for predictions of its kind, a model's or those of floors.py.

    Args:
        examples: with their labels, tags or answers.
        predictions: single, pair, choice: a label each; multi_label: labels each; regression: a number each; tagging: a
            list of tags each; intent_slots: the intents and the lists of tags; qa: a text each; embedding: the vectors
            of both sides.
        family, scheme: of the task.
        labels: of single and pair, in the order of the model; of two, the second is the positive one.
    """
    if family in ("single", "pair"):
        return classification([str(example.label) for example in examples], predictions, labels)
    if family == "multi_label":
        return multi_label([example.labels or () for example in examples], predictions)
    if family == "regression":
        return regression(np.array([float(str(example.label)) for example in examples]), predictions)
    if family == "choice":
        return choice([str(example.label) for example in examples], predictions)
    if family == "qa":
        return question_answering([[a.text for a in example.answers or ()] for example in examples], predictions)
    if family == "embedding":
        scored = all(example.label is not None for example in examples)
        return embedding(*predictions, [float(str(example.label)) for example in examples] if scored else None)
    tags = [example.tags or () for example in examples]
    if family == "tagging":
        return tagging(tags, predictions, scheme)
    intents = [str(example.label) for example in examples]
    return intent_slots(intents, predictions[0], tags, predictions[1], scheme or SLOTS)


# ----------------------------------------------------------------------------------------------------- families


def classification(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """accuracy; f1, of two labels that of the second, of more the macro mean; macro_f1; matthews (correlation).

    The macro mean is over labels that are right or predicted anywhere. What is divided by zero is 0.
    """
    _same_number(gold, predicted)
    scores = library("sklearn.metrics")
    macro = float(scores.f1_score(gold, predicted, average="macro", zero_division=0))
    f1 = macro
    if len(labels) == 2:
        f1 = float(scores.f1_score(gold, predicted, labels=[labels[1]], average="macro", zero_division=0))
    # With one label on both sides there is nothing to correlate, which scikit-learn would warn of.
    one = len({*gold, *predicted}) == 1
    matthews = 0.0 if one else float(scores.matthews_corrcoef(gold, predicted))
    return {"accuracy": _share(gold, predicted), "f1": f1, "macro_f1": macro, "matthews": matthews}


def multi_label(gold: Sequence[Collection[str]], predicted: Sequence[Collection[str]]) -> dict[str, float]:
    """micro_f1, of all labels of all examples; macro_f1, the mean of each label's; accuracy, of whole sets.

    The macro mean is over labels that are right or predicted anywhere. What is divided by zero is 0.
    """
    _same_number(gold, predicted)
    accuracy = sum(set(right) == set(given) for right, given in zip(gold, predicted, strict=True)) / len(gold)
    names = sorted({name for one in [*gold, *predicted] for name in one})
    if not names:
        return {"micro_f1": 0.0, "macro_f1": 0.0, "accuracy": accuracy}
    micro, macro = (_flag_scores(gold, predicted, names, over)[2] for over in ("micro", "macro"))
    return {"micro_f1": float(micro), "macro_f1": float(macro), "accuracy": accuracy}


def label_scores(
    gold: Sequence[Collection[str]], predicted: Sequence[Collection[str]], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each of these labels, and how many examples have it; 0 where nothing is divided."""
    return _flag_scores(gold, predicted, names, None)


def regression(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """pearson, spearman and mse of float[n] and float[n].

    Correlations with something constant are 0, and so they are for predictions that are not finite; mse is then inf.
    """
    gold, predicted = np.asarray(gold, np.float64), np.asarray(predicted, np.float64)
    _same_number(gold, predicted)
    if not np.isfinite(predicted).all():
        return {"pearson": 0.0, "spearman": 0.0, "mse": float("inf")}
    stats = library("scipy.stats")
    varied = all(np.ptp(values) > 1e-9 * np.abs(values).max() for values in (gold, predicted))
    pearson = float(stats.pearsonr(gold, predicted).statistic) if varied else 0.0
    spearman = float(stats.spearmanr(gold, predicted).statistic) if varied else 0.0
    return {"pearson": pearson, "spearman": spearman, "mse": float(np.mean((gold - predicted) ** 2))}


def tagging(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: str) -> dict[str, float]:
    """accuracy over words and, with a scheme, precision, recall and f1 of spans: right are both ends and the kind.

    Raises:
        UserError: a tag is none of the scheme.
    """
    _same_number(gold, predicted)
    pairs = [pair for right, given in zip(gold, predicted, strict=True) for pair in zip(right, given, strict=True)]
    scores = {"accuracy": sum(right == given for right, given in pairs) / max(len(pairs), 1)}
    if scheme:
        scores |= _span_scores(gold, predicted, scheme)
    return scores


def intent_slots(
    gold_intents: Sequence[str],
    predicted_intents: Sequence[str],
    gold_slots: Sequence[Sequence[str]],
    predicted_slots: Sequence[Sequence[str]],
    scheme: str = SLOTS,
) -> dict[str, float]:
    """intent_accuracy; slot_f1, of spans; whole_accuracy, the share with the intent and every tag right."""
    _same_number(gold_intents, predicted_intents)
    slots = [tuple(right) == tuple(given) for right, given in zip(gold_slots, predicted_slots, strict=True)]
    intents = [right == given for right, given in zip(gold_intents, predicted_intents, strict=True)]
    whole = [slot and intent for slot, intent in zip(slots, intents, strict=True)]
    return {
        "intent_accuracy": sum(intents) / len(intents),
        "slot_f1": _span_scores(gold_slots, predicted_slots, scheme)["f1"],
        "whole_accuracy": sum(whole) / len(whole),
    }


def choice(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """accuracy of the chosen ones, each the number of a choice as text."""
    _same_number(gold, predicted)
    return {"accuracy": _share(gold, predicted)}


def embedding(a: Any, b: Any, scores: Sequence[float] | np.ndarray | None = None) -> dict[str, float]:
    """spearman of cosines with `scores`; without these, accuracy_at_1 and mrr of finding b[i] from a[i] among all b.

    Of what is equally near, each order is as likely: vectors that are all the same get 1/n, not 1. Similarities are
    computed in blocks, so memory does not grow with n².

    Args:
        a, b: vectors [n, D], arrays or sparse matrices of scipy.
        scores: float[n].
    """
    a, b = _unit(a), _unit(b)
    if scores is not None:
        own = _own_cosines(a, b)
        return {"spearman": regression(np.asarray(scores, np.float64), own)["spearman"]}
    n = a.shape[0]
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])
    first = reciprocal = 0.0
    step = max(1, _CELLS // n)
    for start in range(0, n, step):
        block = a[start : start + step] @ b.T
        block = block if isinstance(block, np.ndarray) else block.toarray()
        rows = np.arange(len(block))
        difference = block - block[rows, start + rows][:, None]
        above = (difference > 1e-6).sum(1)
        equal = (np.abs(difference) <= 1e-6).sum(1)  # itself among them
        first += float(np.where(above == 0, 1 / equal, 0).sum())
        reciprocal += float(((harmonic[above + equal] - harmonic[above]) / equal).sum())
    return {"accuracy_at_1": first / n, "mrr": reciprocal / n}


# ------------------------------------------------------------------------------------------------- calibration


def reliability(
    probabilities: np.ndarray, gold: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By the confidence in what is predicted, in bins of one width: mean confidence, accuracy, number; each [bins].

    Means of an empty bin are 0. A confidence at a border is in the lower bin.

    Args:
        probabilities: [n, K].
        gold: int[n], the right columns.
        bins: how many between 0 and 1.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == gold
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    number = np.bincount(place, minlength=bins)
    divisor = np.maximum(number, 1)
    return (
        np.bincount(place, confidence, bins) / divisor,
        np.bincount(place, right.astype(np.float64), bins) / divisor,
        number,
    )


def expected_calibration_error(probabilities: np.ndarray, gold: np.ndarray, bins: int = 15) -> float:
    """The mean distance of confidence and accuracy, of bins weighted by their numbers (Guo et al. 2017, equation 3).

    Args are those of `reliability`.
    """
    confidence, accuracy, number = reliability(probabilities, gold, bins)
    return float((np.abs(confidence - accuracy) * number).sum() / number.sum())


# --------------------------------------------------------------------------------------------------- the parts


def _span_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: str) -> dict[str, float]:
    right = [{*entities(tags, scheme)} for tags in gold]
    given = [{*entities(tags, scheme)} for tags in predicted]
    both = sum(len(a & b) for a, b in zip(right, given, strict=True))
    n, m = sum(map(len, right)), sum(map(len, given))
    return {"precision": both / max(m, 1), "recall": both / max(n, 1), "f1": 2 * both / max(n + m, 1)}


def _flag_scores(
    gold: Sequence[Collection[str]], predicted: Sequence[Collection[str]], names: Sequence[str], over: str | None
) -> Any:
    """scikit-learn's precision, recall, F1 and support of labels as columns of 0 and 1; `names` has all of them."""
    to_flags = library("sklearn.preprocessing").MultiLabelBinarizer(classes=names).fit([])
    flags = [to_flags.transform(one) for one in (gold, predicted)]
    scores = library("sklearn.metrics").precision_recall_fscore_support
    return scores(*flags, average=over, zero_division=0)


def _unit(vectors: Any) -> Any:
    if isinstance(vectors, np.ndarray):
        vectors = vectors.astype(np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return library("sklearn.preprocessing").normalize(vectors)


def _own_cosines(a: Any, b: Any) -> np.ndarray:
    product = a * b if isinstance(a, np.ndarray) else a.multiply(b)
    return np.asarray(product.sum(1), np.float64).ravel()


def _same_number(gold: Sequence[Any] | np.ndarray, predicted: Sequence[Any] | np.ndarray) -> None:
    if len(gold) == 0:
        raise UserError("there are no examples to measure", "task", "give a file with examples")
    assert len(gold) == len(predicted), (len(gold), len(predicted))


def _share(gold: Sequence[str], predicted: Sequence[str]) -> float:
    return sum(right == given for right, given in zip(gold, predicted, strict=True)) / len(gold)
