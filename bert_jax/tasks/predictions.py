"""What the outputs of a network mean: labels, numbers, tags, answers, vectors; and how good they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bert_jax.tasks.answer_scores import best_threshold
from bert_jax.tasks.answers import Window, choose, decode
from bert_jax.tasks.encoding import TaskRow
from bert_jax.tasks.entities import entities
from bert_jax.tasks.examples import Example
from bert_jax.tasks.loop import Outs
from bert_jax.tasks.settings import TaskSettings

Prediction = dict[str, Any]
Labels = Mapping[str, Sequence[str]]
BEST = 5  # answers told of each question


def predictions(
    task: TaskSettings,
    labels: Labels,
    examples: Sequence[Example],
    rows: Sequence[TaskRow],
    outs: Outs,
    no_answer: float | None = None,
) -> list[Prediction]:
    """One object for each example, ready for JSON, with its `id`.

    single, pair: `label`, `probability`, `probabilities` by name. multi_label: `labels`, those of at least the task's
    threshold, the likeliest first, and `probabilities` by name, each by itself. regression: `score`. choice: `choice`
    from 0 on, `probabilities` in order. tagging: `words`, `tags`, `probabilities`, and `entities` where the recipe has
    a scheme. intent_slots: `intent`, `probability`, `words`, `slots`. Of a text that was split into words there are
    `offsets` of each as well, and `start` and `end` of each entity, in characters. qa: `answer` ("" for none), `start`,
    `end` in characters of the context, `probability`, `no_answer_score`, `best`. embedding: `vectors`, and `cosine` of
    two.

    Args:
        rows, outs: of all examples, as `encode` and `outputs_of` gave them.
        no_answer: of qa: an answer is given where it beats none by less than this; None: always.
    """
    of: list[list[int]] = [[] for _ in examples]
    for number, row in enumerate(rows):
        of[row.example].append(number)
    match task.family:
        case "single" | "pair":
            found = [_label(labels["label"], outs[numbers[0]]["classifier"][0]) for numbers in of]
        case "multi_label":
            found = [_several(labels["labels"], outs[numbers[0]]["classifier"][0], task.threshold) for numbers in of]
        case "regression":
            found = [{"score": float(outs[numbers[0]]["classifier"][0, 0])} for numbers in of]
        case "choice":
            found = [_choice([outs[number]["classifier"][0, 0] for number in numbers]) for numbers in of]
        case "tagging":
            found = [
                _tags(task, labels["tags"], example, [(rows[n], outs[n]["classifier"]) for n in numbers])
                for example, numbers in zip(examples, of, strict=True)
            ]
        case "intent_slots":
            found = [
                _intent(labels, example, rows[numbers[0]], outs[numbers[0]])
                for example, numbers in zip(examples, of, strict=True)
            ]
        case "qa":
            found = _answers(task, examples, rows, outs, no_answer)
        case _:
            found = [_vectors([outs[number]["vectors"][0] for number in numbers]) for numbers in of]
    return [{"id": example.id, **one} for example, one in zip(examples, found, strict=True)]


def _label(names: Sequence[str], logits: np.ndarray) -> Prediction:
    chances = _softmax(logits)
    best = int(chances.argmax())
    return {
        "label": names[best],
        "probability": float(chances[best]),
        "probabilities": dict(zip(names, chances.tolist(), strict=True)),
    }


def _several(names: Sequence[str], logits: np.ndarray, threshold: float) -> Prediction:
    chances = np.exp(-np.logaddexp(0, -logits))
    order = np.argsort(-chances, kind="stable")
    return {
        "labels": [names[place] for place in order if chances[place] >= threshold],
        "probabilities": dict(zip(names, chances.tolist(), strict=True)),
    }


def _choice(scores: Sequence[float]) -> Prediction:
    chances = _softmax(np.array(scores))
    return {"choice": int(chances.argmax()), "probabilities": chances.tolist()}


def _tags(
    task: TaskSettings, names: Sequence[str], example: Example, windows: Sequence[tuple[TaskRow, np.ndarray]]
) -> Prediction:
    chances = np.zeros((len(example.words), len(names)), np.float32)
    for row, logits in windows:
        chances[row.items] = _softmax(logits)
    tags = [names[place] for place in chances.argmax(1)]
    found = {"words": list(example.words), "tags": tags, "probabilities": chances.max(1).tolist()}
    offsets = _offsets(example)
    if offsets:
        found["offsets"] = offsets
    if task.scheme:
        found["entities"] = [
            {
                "type": kind,
                "from": begin,
                "to": end,
                "text": " ".join(example.words[begin:end]),
                **({"start": offsets[begin][0], "end": offsets[end - 1][1]} if offsets else {}),
            }
            for begin, end, kind in entities(tags, task.scheme)
        ]
    return found


def _offsets(example: Example) -> list[tuple[int, int]]:
    """From and to of each word in characters of the text that it was split from; none without such a text."""
    places = re.finditer(r"\S+", example.texts[0]) if example.texts else ()
    return [(place.start(), place.start() + len(word)) for place, word in zip(places, example.words, strict=False)]


def _intent(labels: Labels, example: Example, row: TaskRow, out: Mapping[str, np.ndarray]) -> Prediction:
    intent = _label(labels["intent"], out["intent"][0])
    read = out["slots"][1:].argmax(1)
    slots = [labels["slots"][place] for place in read]
    slots += ["O"] * (len(example.words) - len(slots))  # words behind the cut
    return {
        "intent": intent["label"],
        "probability": intent["probability"],
        "words": list(example.words),
        "slots": slots,
        **({"offsets": offsets} if (offsets := _offsets(example)) else {}),
    }


def _answers(
    task: TaskSettings, examples: Sequence[Example], rows: Sequence[TaskRow], outs: Outs, no_answer: float | None
) -> list[Prediction]:
    windows = []
    for row in rows:
        assert row.offsets is not None
        windows.append(Window(row.example, row.offsets))
    starts, ends = ([np.asarray(out["qa_outputs"][:, place]) for out in outs] for place in (0, 1))
    contexts = [example.texts[1] for example in examples]
    found = []
    for one in decode(windows, starts, ends, contexts, task.answer):
        best = choose(one.candidates, one.null_score, no_answer)
        top = one.candidates[0] if one.candidates else None
        found.append(
            {
                "answer": best.text if best else "",
                "start": best.start_char if best else None,
                "end": best.end_char if best else None,
                "probability": best.probability if best else one.null_probability,
                "no_answer_score": one.null_score - top.score if top else None,
                "best": [{"answer": each.text, "probability": each.probability} for each in one.candidates[:BEST]],
            }
        )
    return found


def _vectors(vectors: Sequence[np.ndarray]) -> Prediction:
    found: Prediction = {"vectors": [vector.tolist() for vector in vectors]}
    if len(vectors) == 2:
        found["cosine"] = float(vectors[0] @ vectors[1])
    return found


# --------------------------------------------------------------------------------------------------------- scores


def plain(family: str, found: Sequence[Prediction]) -> Any:
    """Predictions as `metrics.measure` takes them."""
    match family:
        case "single" | "pair":
            return [one["label"] for one in found]
        case "multi_label":
            return [one["labels"] for one in found]
        case "regression":
            return np.array([one["score"] for one in found])
        case "choice":
            return [str(one["choice"]) for one in found]
        case "tagging":
            return [one["tags"] for one in found]
        case "intent_slots":
            return [one["intent"] for one in found], [one["slots"] for one in found]
        case "qa":
            return [one["answer"] for one in found]
    return tuple(np.array([one["vectors"][side] for one in found], np.float32) for side in (0, 1))


def no_answer_threshold(examples: Sequence[Example], found: Sequence[Prediction], metric: str = "f1") -> float | None:
    """What `no_answer` should be, by these examples: None where each of them has an answer.

    Args:
        found: predictions made without a threshold.
        metric: what is to be best.
    """
    if all(example.answers for example in examples):
        return None
    pairs = [(one, example) for one, example in zip(found, examples, strict=True) if one["no_answer_score"] is not None]
    scores = [one["no_answer_score"] for one, _ in pairs]
    gold = [[answer.text for answer in example.answers or ()] for _, example in pairs]
    return best_threshold(scores, [one["answer"] for one, _ in pairs], gold, metric) if pairs else None


def _softmax(logits: np.ndarray) -> np.ndarray:
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    return chances / chances.sum(-1, keepdims=True)
