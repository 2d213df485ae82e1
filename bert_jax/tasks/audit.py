"""What a data set of a task is like before anything is trained: labels, their balance, what stands in two splits."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bert_jax.errors import UserError, counted
from bert_jax.tasks.examples import Example
from bert_jax.tasks.reading import Splits

TERMS = {  # family → the terms that are classes
    "single": ("label",),
    "pair": ("label",),
    "multi_label": ("labels",),
    "tagging": ("tags",),
    "intent_slots": ("intent", "slots"),
}
FEW = 3  # examples that a message or a report names
# of labels that a model cannot say
REMEDY = 'give train examples of them, rewrite them with labels in [columns], or set unseen = "wrong" in [task]'


@dataclass(frozen=True)
class Duplicates:
    """Examples whose input was met before, and those of them whose label was another; the first few ids of each."""

    count: int
    ids: tuple[str, ...]
    contradicting: int
    contradicting_ids: tuple[str, ...]


def labels_of(examples: Sequence[Example], family: str) -> dict[str, tuple[str, ...]]:
    """Term → the names of its classes, sorted: as numbers where all are integers, as text otherwise.

    The terms are `label` of single and pair, `labels` of multi_label, `tags` of tagging, `intent` and `slots` of
    intent_slots; other families have none.
    """
    return {term: _sorted({name for e in examples for name in _names(e, term)}) for term in TERMS.get(family, ())}


def _sorted(names: set[str]) -> tuple[str, ...]:
    numbers = all(name.removeprefix("-").isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if numbers else (0, name)))


def _names(example: Example, term: str) -> tuple[str, ...]:
    if term in ("tags", "slots"):
        return example.tags or ()
    if term == "labels":
        return example.labels or ()
    return () if example.label is None else (example.label,)


def unseen(labels: dict[str, tuple[str, ...]], examples: Sequence[Example]) -> dict[str, dict[str, list[Example]]]:
    """Term → names that examples have and `labels` has not → the examples, each once."""
    found: dict[str, dict[str, list[Example]]] = {}
    for term, names in labels.items():
        known = set(names)
        for example in examples:
            for name in dict.fromkeys(_names(example, term)):
                if name not in known:
                    found.setdefault(term, {}).setdefault(name, []).append(example)
    return found


def check_labels(
    labels: dict[str, tuple[str, ...]], examples: Sequence[Example], split: str, remedy: str = REMEDY
) -> None:
    """See that a model with these classes can say what the examples of a split ask for.

    Raises:
        UserError: it lacks some; names them, with file and line of the first three.
    """
    for term, names in unseen(labels, examples).items():
        told = ", ".join(f"{name!r} ({items[0].where})" for name, items in list(names.items())[:FEW])
        more = f" and {len(names) - FEW:,} more" if len(names) > FEW else ""
        what = f"{split} has {counted(len(names), term.removesuffix('s'))} that train lacks: {told}{more}"
        raise UserError(what, remedy=remedy)


def balance(examples: Sequence[Example], family: str) -> dict[str, dict[str, float]]:
    """Term → name → how many there are, the most frequent first.

    Of a choice, `choice` counts the places of the right ones; of questions, `answer` counts those with and without one;
    of numbers, `number` has mean, sd (the population's), min and max. Examples without a label do not count.
    """
    if family == "qa":
        known = [example for example in examples if example.answers is not None]
        there = sum(bool(example.answers) for example in known)
        return {"answer": {"there": there, "none": len(known) - there}}
    if family in ("regression", "embedding"):
        values = [float(example.label) for example in examples if example.label is not None]
        return {"number": _moments(values)} if values else {}
    counts = {}
    for term in TERMS.get(family, ("choice",)):
        counter = Counter(name for e in examples for name in _names(e, "label" if term == "choice" else term))
        counts[term] = {name: counter[name] for name in sorted(counter, key=lambda name: (-counter[name], name))}
    return counts


def _moments(values: Sequence[float]) -> dict[str, float]:
    mean = math.fsum(values) / len(values)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return {"mean": mean, "sd": sd, "min": min(values), "max": max(values)}


def _input(example: Example) -> Hashable:
    """What an example asks, blanks and case left out: two that share it should share their label.

    Spans stay as they are, since they ask about another part of a text.
    """
    texts = tuple(" ".join(text.split()).casefold() for text in example.texts)
    return texts, tuple(word.casefold() for word in example.words), example.spans


def _target(example: Example) -> Hashable:
    """What should be said; None where that is not known."""
    answers = None if example.answers is None else frozenset(answer.text for answer in example.answers)
    labels = None if example.labels is None else frozenset(example.labels)
    known = (example.label, labels, example.tags, answers)
    return None if known == (None, None, None, None) else known


def duplicates(a: Iterable[Example], b: Iterable[Example]) -> Duplicates:
    """Examples of b whose input stands in a, and those of them that a has with another label (tags, answers).

    Two texts are compared in their order; a pair turned round is another.
    """
    before: defaultdict[Hashable, set[Hashable]] = defaultdict(set)
    for example in a:
        before[_input(example)].add(_target(example))
    found = [example for example in b if _input(example) in before]
    return _counted(found, [example for example in found if _contradicts(example, before[_input(example)])])


def repeats(examples: Iterable[Example]) -> Duplicates:
    """Examples whose input stands among those before them, and those that had another label there."""
    before: defaultdict[Hashable, set[Hashable]] = defaultdict(set)
    found, contradicting = [], []
    for example in examples:
        key = _input(example)
        if key in before:
            found.append(example)
            if _contradicts(example, before[key]):
                contradicting.append(example)
        before[key].add(_target(example))
    return _counted(found, contradicting)


def _contradicts(example: Example, others: set[Hashable]) -> bool:
    target = _target(example)
    return target is not None and bool(others - {None, target})


def _counted(found: Sequence[Example], contradicting: Sequence[Example]) -> Duplicates:
    few = tuple(example.id for example in found[:FEW])
    return Duplicates(len(found), few, len(contradicting), tuple(example.id for example in contradicting[:FEW]))


def without_overlap(train: Iterable[Example], examples: Sequence[Example]) -> list[Example]:
    """The examples whose input is not in train."""
    known = {_input(example) for example in train}
    return [example for example in examples if _input(example) not in known]


def facts(splits: Splits, family: str) -> dict[str, Any]:
    """What a report tells of the data, ready for JSON.

    Keys: `examples` (split → count), `balance` (split → as `balance`), `duplicates` ("in train", "dev in train", "test
    in train" → as `Duplicates`), `unseen` (split → term → label that train lacks → count).
    """
    train = splits.train
    others = {name: examples for name, examples in (("dev", splits.dev), ("test", splits.test)) if examples}
    labels = labels_of(train, family)
    lacking = {
        name: {
            term: {label: len(items) for label, items in found.items()}
            for term, found in unseen(labels, examples).items()
        }
        for name, examples in others.items()
    }
    same = {"in train": repeats(train), **{f"{name} in train": duplicates(train, e) for name, e in others.items()}}
    return {
        "examples": {"train": len(train), "dev": len(splits.dev), "test": len(splits.test)},
        "balance": {name: balance(examples, family) for name, examples in {"train": train, **others}.items()},
        "duplicates": {name: asdict(found) for name, found in same.items()},
        "unseen": {name: found for name, found in lacking.items() if found},
    }
