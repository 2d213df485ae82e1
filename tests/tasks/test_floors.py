"""Floors: on toy sets where words tell the answer they beat chance, and each gives what metrics take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bert_jax.tasks.answer_floors import words
from bert_jax.tasks.examples import Answer, Example
from bert_jax.tasks.floors import bag_of_words, floors, majority, partial
from bert_jax.tasks.metrics import headline, measure

THINGS = ["cat", "dog", "train", "soup", "house", "river", "song", "chair"]
GOOD, BAD = ["lovely", "bright", "kind", "fresh"], ["awful", "grey", "cruel", "stale"]
Sets = tuple[list[Example], list[Example]]


def halves(examples: list[Example]) -> Sets:
    return examples[: len(examples) * 3 // 4], examples[len(examples) * 3 // 4 :]


def drawn(seed: int = 0, n: int = 400) -> list[tuple[np.random.Generator, int]]:
    return [(np.random.default_rng((seed, i)), i) for i in range(n)]


def sentiment() -> Sets:
    made = []
    for random, i in drawn():
        good = random.random() < 0.6
        text = f"the {random.choice(THINGS)} is {random.choice(GOOD if good else BAD)}"
        made.append(Example(str(i), "", (text,), label="good" if good else "bad"))
    return halves(made)


def topics() -> Sets:
    """Each text has the things that it names for labels, or none."""
    made = []
    for random, i in drawn():
        things = [str(thing) for thing in random.choice(THINGS, int(random.integers(0, 3)), replace=False)]
        made.append(Example(str(i), "", (f"look at {' and '.join(things) or 'nothing'}",), labels=tuple(things)))
    return halves(made)


def same_thing() -> Sets:
    """Whether two texts name the same thing: neither says it alone, nor do both without what they share."""
    made = []
    for random, i in drawn():
        one = random.choice(THINGS)
        other = one if random.random() < 0.5 else random.choice([thing for thing in THINGS if thing != one])
        texts = (f"look at this {one}", f"a {other} stood there")
        made.append(Example(str(i), "", texts, label="same" if one == other else "other"))
    return halves(made)


def praise() -> Sets:
    made = []
    for random, i in drawn():
        number = int(random.integers(0, 4))
        text = " ".join([*random.choice(GOOD, number), *random.choice(BAD, 3 - min(number, 3))])
        made.append(Example(str(i), "", (text,), label=str(number)))
    return halves(made)


def choices() -> Sets:
    made = []
    for random, i in drawn():
        place = int(random.integers(0, 3))
        texts = [f"a {random.choice(BAD)} end" for _ in range(3)]
        texts[place] = f"a {random.choice(GOOD)} end"
        made.append(Example(str(i), "", (f"once a {random.choice(THINGS)}", *texts), label=str(place)))
    return halves(made)


def tags(intents: bool = False) -> Sets:
    made = []
    for random, i in drawn():
        city = f"{random.choice(list('abcdefgh'))}{random.choice(list('klmnopq'))}ville"
        verb = str(random.choice(["fly", "drive"]))
        label = verb if intents else None
        made.append(Example(str(i), "", words=(verb, "to", city), label=label, tags=("O", "O", "B-city")))
    return halves(made)


def questions(unanswered: bool = False) -> Sets:
    made = []
    for random, i in drawn():
        things = random.permutation(THINGS)[:4]
        who = [f"{name}{i}" for name in ("anna", "bert", "carl", "dora")]
        filler = "it was late and all of them went home where nothing else of note was ever said again"
        context = ". ".join(
            f"the {thing} belongs to {name} . {filler}" for thing, name in zip(things, who, strict=True)
        )
        if unanswered and i % 2:
            made.append(Example(str(i), "", ("how often do zebras migrate", context), answers=()))
            continue
        which = int(random.integers(0, 4))
        answers = (Answer(who[which], context.index(who[which])),)
        made.append(Example(str(i), "", (f"who owns the {things[which]} it belongs to", context), answers=answers))
    return halves(made)


def twins(scored: bool = False) -> Sets:
    made = []
    for random, i in drawn():
        some = list(random.choice(THINGS + GOOD + BAD, 4, replace=False))
        kept = int(random.integers(0, 5)) if scored else 3
        other = [*some[:kept], f"word{i}", *["filler"] * (4 - kept)]
        texts = (" ".join([*some, f"word{i}"]), " ".join(other))
        made.append(Example(str(i), "", texts, label=str(kept) if scored else None))
    return halves(made)


@pytest.mark.parametrize(
    ("family", "scheme", "sets", "at_least"),
    [
        ("single", "", sentiment(), 0.99),
        ("pair", "", same_thing(), 0.95),
        ("multi_label", "", topics(), 0.95),
        ("regression", "", praise(), 0.9),
        ("choice", "", choices(), 0.95),
        ("tagging", "BIO", tags(), 0.99),
        ("qa", "", questions(), 0.5),
        ("qa", "", questions(unanswered=True), 0.7),
        ("intent_slots", "", tags(intents=True), 0.99),
        ("embedding", "", twins(), 0.9),
        ("embedding", "", twins(scored=True), 0.7),
    ],
)
def test_bags_of_words_beat_the_majority(family: str, scheme: str, sets: Sets, at_least: float) -> None:
    train, test = sets
    labels = sorted({str(example.label) for example in train})
    scores: dict[str, float] = {}
    for name, predictions in floors(train, test, family).items():
        measured = measure(test, predictions, family, scheme, labels)
        scores[name] = measured[headline(family, scheme, scored=family == "embedding" and test[0].label is not None)]
    assert scores["bag of words"] >= at_least
    assert scores["majority"] < min(0.65, at_least - 0.1)


def test_one_side_of_a_pair_tells_only_what_it_says() -> None:
    train, test = same_thing()
    for side in (0, 1):
        score = measure(test, partial(train, test, "pair", side), "pair", labels=["other", "same"])["accuracy"]
        assert score < 0.65
    told = [Example(e.id, "", (e.texts[0], f"{e.texts[1]} {e.label}"), label=e.label) for e in train + test]
    train, test = halves(told)
    found = floors(train, test, "pair", audit=True)
    assert list(found) == ["majority", "bag of words", "first text alone", "second text alone"]
    scores = {name: measure(test, given, "pair", labels=["other", "same"])["accuracy"] for name, given in found.items()}
    assert scores["second text alone"] == 1
    assert scores["first text alone"] < 0.65


def test_choices_alone_are_audited() -> None:
    train, test = choices()
    found = floors(train, test, "choice", audit=True)["choices alone"]
    assert measure(test, found, "choice")["accuracy"] > 0.95


def test_the_majority_is_of_training_not_of_the_test() -> None:
    train = [Example(str(i), "", ("x",), label=label) for i, label in enumerate("aab")]
    test = [Example(str(i), "", ("x",), label="b") for i in range(3)]
    assert majority(train, test, "single") == ["a", "a", "a"]
    assert majority(train[::-1][:2], test, "single") == ["a", "a", "a"]  # a tie: by name


def test_an_unknown_word_gets_the_tag_of_its_ending() -> None:
    train = [Example("0", "", words=("running", "dogs", "bark", "."), tags=("VBG", "NNS", "NN", "NN"))]
    test = [Example("1", "", words=("swimming", "dogs", "xyz"))]
    assert bag_of_words(train, test, "tagging") == [["VBG", "NNS", "NN"]]


@pytest.mark.parametrize("good_bad", [("好看", "难看"), ("좋아요", "싫어요")], ids=["chinese", "korean"])
def test_texts_without_blanks_are_read_by_characters(good_bad: tuple[str, str]) -> None:
    made = []
    for random, i in drawn(n=120):
        before, after = ("".join(random.choice(list("天地人山水火木金土日月年"), 3)) for _ in range(2))
        which = int(random.integers(0, 2))
        made.append(Example(str(i), "", (before + good_bad[which] + after,), label="+-"[which]))
    train, test = halves(made)
    assert measure(test, bag_of_words(train, test, "single"), "single", labels=["+", "-"])["accuracy"] == 1


def test_words_of_many_scripts() -> None:
    assert words("Don't stop, 3.5 Füße!") == ["don", "'", "t", "stop", ",", "3", ".", "5", "füße", "!"]
    assert words("NBA球员 한국") == ["nba", "球", "员", "한", "국"]


def test_of_several_labels_the_majority_is_what_half_of_all_have() -> None:
    def examples(*labels: str) -> list[Example]:
        return [Example(str(n), "", ("x",), labels=tuple(one)) for n, one in enumerate(labels)]

    test = examples("", "b")
    assert majority(examples("ab", "ab", "a", "c"), test, "multi_label") == [["a", "b"]] * 2
    assert majority(examples("a", "b", "b", "", ""), test, "multi_label") == [["b"]] * 2
    assert majority(examples("", ""), test, "multi_label") == [[]] * 2
    assert bag_of_words(examples("", ""), test, "multi_label") == [[], []]


@pytest.mark.parametrize("family", ["single", "pair", "regression", "choice", "embedding", "qa"])
def test_odd_texts_and_one_label_are_no_errors(family: str) -> None:
    texts: dict[str, tuple[str, ...]] = {"single": ("",), "regression": ("…", "")}
    label: Any = {"choice": "0", "embedding": None}.get(family, "1")
    answers = () if family == "qa" else None
    made = [Example(str(i), "", texts.get(family, ("", " ")), label=label, answers=answers) for i in range(4)]
    for predictions in floors(made, made, family, audit=True).values():
        assert measure(made, predictions, family, labels=["0", "1"])
