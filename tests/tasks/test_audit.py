"""Labels, balance and what stands in two splits, on examples made by hand."""

from __future__ import annotations

import json

import pytest

from bert_jax.errors import UserError
from bert_jax.tasks import audit
from bert_jax.tasks.examples import Answer, Example
from bert_jax.tasks.reading import Splits


def single(*pairs: tuple[str, str | None], name: str = "train") -> list[Example]:
    return [
        Example(f"{name}{i}", f"{name}.tsv, line {i + 2}", texts=(text,), label=label)
        for i, (text, label) in enumerate(pairs)
    ]


def test_labels_that_are_all_integers_sort_as_numbers() -> None:
    examples = single(("a", "10"), ("b", "9"), ("c", "-1"), ("d", "9"), ("e", None))
    assert audit.labels_of(examples, "single") == {"label": ("-1", "9", "10")}
    assert audit.labels_of(single(("a", "10"), ("b", "9"), ("c", "x")), "pair") == {"label": ("10", "9", "x")}


def test_each_family_has_its_own_terms() -> None:
    said = [Example("0", "a", words=("x", "y"), label="go", tags=("O", "B-to"))]
    assert audit.labels_of(said, "intent_slots") == {"intent": ("go",), "slots": ("B-to", "O")}
    assert audit.labels_of(said, "tagging") == {"tags": ("B-to", "O")}
    for family in ("regression", "choice", "qa", "embedding"):
        assert audit.labels_of(said, family) == {}


def test_labels_that_train_lacks_are_told_with_their_lines() -> None:
    labels = {"label": ("a", "b")}
    audit.check_labels(labels, single(("x", "a"), ("y", None)), "dev")
    others = single(("x", "c"), ("y", "a"), ("z", "d"), ("v", "c"), ("w", "e"), ("u", "f"), name="dev")
    with pytest.raises(UserError) as error:
        audit.check_labels(labels, others, "dev")
    told = "'c' (dev.tsv, line 2), 'd' (dev.tsv, line 4), 'e' (dev.tsv, line 6) and 1 more;"
    assert told in str(error.value)
    found = audit.unseen(labels, others)["label"]
    assert {name: [e.id for e in items] for name, items in found.items()} == {
        "c": ["dev0", "dev3"],
        "d": ["dev2"],
        "e": ["dev4"],
        "f": ["dev5"],
    }


def test_an_input_is_the_same_whatever_its_blanks_and_case() -> None:
    train = single(("A  Cat\u3000sat ", "1"), ("dog", "0"), ("dog", "1"))
    dev = single(("a cat sat", "1"), ("a catsat", "1"), ("DOG", "1"), ("a CAT sat", "0"), ("dog", None), name="dev")
    found = audit.duplicates(train, dev)
    assert found == audit.Duplicates(4, ("dev0", "dev2", "dev3"), 2, ("dev2", "dev3"))
    assert [example.id for example in audit.without_overlap(train, dev)] == ["dev1"]
    assert audit.repeats(train) == audit.Duplicates(1, ("train2",), 1, ("train2",))
    assert audit.repeats(dev).ids == ("dev3", "dev4") and audit.repeats(dev).contradicting_ids == ("dev3",)


def test_an_unknown_label_contradicts_nothing() -> None:
    assert audit.duplicates(single(("a", None)), single(("a", "1"))).contradicting == 0
    assert audit.duplicates(single(("a", "1")), single(("a", None))).contradicting == 0


def test_words_spans_and_order_of_texts_are_part_of_an_input() -> None:
    pair = Example("0", "a", texts=("x", "y"), label="1")
    turned = Example("1", "a", texts=("y", "x"), label="1")
    marked = Example("2", "a", texts=("x", "y"), label="1", spans=((0, 0, 1),))
    words = Example("3", "a", words=("x", "y"), tags=("O", "O"))
    joined = Example("4", "a", words=("x y",), tags=("O",))
    assert audit.repeats([pair, turned, marked, words, joined]).count == 0
    other = Example("5", "a", words=("X", "y"), tags=("O", "B-a"))
    assert audit.duplicates([words], [other]) == audit.Duplicates(1, ("5",), 1, ("5",))


def test_answers_contradict_where_their_texts_differ() -> None:
    def question(*answers: Answer) -> Example:
        return Example("0", "a", texts=("What?", "Rome, Rome"), answers=answers)

    once, twice = question(Answer("Rome", 0)), question(Answer("Rome", 6), Answer("Rome", 0))
    assert audit.duplicates([once], [twice]).contradicting == 0
    assert audit.duplicates([once], [question()]).contradicting == 1


def test_balance_counts_what_the_family_asks() -> None:
    labelled = single(("a", "x"), ("b", "y"), ("c", "y"), ("d", None))
    assert list(audit.balance(labelled, "single")["label"].items()) == [("y", 2), ("x", 1)]
    assert audit.balance(labelled, "choice") == {"choice": {"y": 2, "x": 1}}
    numbers = single(("a", "1"), ("b", "4.0"), ("c", "1"))
    assert audit.balance(numbers, "regression") == {
        "number": {"mean": 2.0, "sd": pytest.approx(2**0.5), "min": 1.0, "max": 4.0}
    }
    asked = [Example("0", "a", answers=answers) for answers in ((Answer("x", 0),), (), (), None)]
    assert audit.balance(asked, "qa") == {"answer": {"there": 1, "none": 2}}
    assert audit.balance(single(("a", None)), "embedding") == {}


def test_facts_are_json_and_leave_out_splits_that_are_not_there() -> None:
    train = single(("a", "0"), ("b", "1"), ("A", "1"))
    facts = audit.facts(Splits(train, single(("b", "1"), ("c", "2"), name="dev"), []), "single")
    assert json.loads(json.dumps(facts)) == {
        "examples": {"train": 3, "dev": 2, "test": 0},
        "balance": {"train": {"label": {"1": 2, "0": 1}}, "dev": {"label": {"1": 1, "2": 1}}},
        "duplicates": {
            "in train": {"count": 1, "ids": ["train2"], "contradicting": 1, "contradicting_ids": ["train2"]},
            "dev in train": {"count": 1, "ids": ["dev0"], "contradicting": 0, "contradicting_ids": []},
        },
        "unseen": {"dev": {"label": {"2": 1}}},
    }
