"""Thirty-two examples of each family in the tiny world: labels at random, so that only remembering helps."""

from __future__ import annotations

import numpy as np

from bert_jax.config import BertConfig, preset
from bert_jax.tasks.examples import Answer, Example
from bert_jax.text.tokenizer import Tokenizer
from tests.world import VOCABULARY, WORDS, write_vocabulary

NAMES = ("no", "yes", "maybe")
TAGS = ("O", "B-x", "I-x", "B-y")


def tokenizer(folder) -> Tokenizer:
    return Tokenizer.load(write_vocabulary(folder / "vocab.txt"))


def tiny(positions: int = 128, **overrides) -> BertConfig:
    return preset("tiny", len(VOCABULARY), positions=positions, **overrides)


def examples(family: str, count: int = 32, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)

    def words(least: int = 4, most: int = 9) -> list[str]:
        return rng.choice(WORDS, rng.integers(least, most)).tolist()

    def text() -> str:
        return " ".join(words())

    found = []
    for number in range(count):
        known = {"id": str(number), "where": f"toy:{number + 1}"}
        label = NAMES[rng.integers(len(NAMES))]
        if family == "single":
            one = Example(**known, texts=(text(),), label=label)
        elif family == "pair":
            one = Example(**known, texts=(text(), text()), label=label)
        elif family == "multi_label":
            labels = tuple(name for name in NAMES if rng.random() < 0.5)
            one = Example(**known, texts=(text(),), labels=labels)
        elif family == "regression":
            one = Example(**known, texts=(text(), text()), label=f"{rng.uniform(0, 5):.3f}")
        elif family == "choice":
            texts = tuple(text() for _ in range(2 + number % 3))
            one = Example(**known, texts=texts, label=str(rng.integers(len(texts) - 1)))
        elif family == "tagging":
            given = words()
            one = Example(**known, words=tuple(given), tags=tuple(rng.choice(TAGS, len(given)).tolist()))
        elif family == "intent_slots":
            given = words()
            tags = tuple(rng.choice(TAGS, len(given)).tolist())
            one = Example(**known, words=tuple(given), label=label, tags=tags)
        elif family == "qa":
            given = words(8, 16)
            begin = int(rng.integers(len(given) - 1))
            span = " ".join(given[begin : begin + 2])
            start = len(" ".join(given[:begin])) + (begin > 0)
            answers = () if number % 4 == 3 else (Answer(span, start),)
            one = Example(**known, texts=(text(), " ".join(given)), answers=answers)
        else:
            one = Example(**known, texts=(text(), text()))
        found.append(one)
    return found
