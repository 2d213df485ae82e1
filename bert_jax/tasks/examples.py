"""What an example of a task is, before it becomes tokens. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """An answer as it stands in a context: its text, and the character where it begins."""

    text: str
    start: int


@dataclass(frozen=True)
class Example:
    """One item of any family; what a family does not have stays empty.

    Attributes:
        id: from the file, or the number of the example in it.
        where: file and line, for messages.
        texts: single: one; multi_label, regression: one or two; pair, embedding: two; choice: the text, then those to
            choose from; qa: question and context; intent_slots and tagging: none, they have words; to predict, also the
            text that these were split from, where they were.
        words: of tagging and intent_slots.
        label: of single, pair and intent_slots: a name; of regression: a number as text; of choice: the number of the
            right one from 0 on, as text; None where it is not known.
        labels: of multi_label: names, each once; None where they are not known.
        tags: a name a word; None where they are not known.
        answers: of qa: all right ones; empty: there is none; None where it is not known.
        spans: of `readout.tokens = "span"`: (number of the text, from, to) in characters.
    """

    id: str
    where: str
    texts: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    label: str | None = None
    labels: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None
    answers: tuple[Answer, ...] | None = None
    spans: tuple[tuple[int, int, int], ...] = ()

    def gold(self) -> dict[str, Any]:
        """What is right, for JSON beside a prediction: `gold`, and `gold_tags`; none of what is not known."""
        right: Any = self.label if self.labels is None else list(self.labels)
        right = right if self.answers is None else [answer.text for answer in self.answers]
        told = {"gold": right, "gold_tags": None if self.tags is None else list(self.tags)}
        return {name: value for name, value in told.items() if value is not None}
