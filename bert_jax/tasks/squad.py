"""Questions about texts, in the JSON of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.tasks.examples import Answer, Example
from bert_jax.tasks.files import read_text, told


def read_squad(path: Path, labelled: bool = True) -> list[Example]:
    """The questions of a file, each with its context and, where they are known, all right answers.

    A question may be empty, as some published ones are: it counts where all are counted.

    Raises:
        UserError: this is no such JSON, an answer does not stand in the context where it should, a question has
            none and is not marked as impossible, an id is there twice; names the question.
    """
    where = told(path)
    try:
        tree = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"this is not JSON ({error.msg})", f"{where}, line {error.lineno}", "copy it again") from None
    examples: dict[str, Example] = {}
    for i, article in enumerate(_list(tree, "data", where)):
        for j, paragraph in enumerate(_list(article, "paragraphs", f"{where}, data {i}")):
            place = f"{where}, data {i}, paragraph {j}"
            context = _text(paragraph, "context", place)
            for k, item in enumerate(_list(paragraph, "qas", place)):
                name = str(item.get("id", "")) if isinstance(item, dict) else ""
                if not name:
                    raise UserError(f"question {k} has no id", place, 'give each one of its own: "id": "7"')
                here = f"{where}, question {name}"
                if name in examples:
                    raise UserError("the id is there twice", here, "give each question one of its own")
                texts = (_text(item, "question", here, empty=True), context)
                answers = answers_of(item, context, here) if labelled or "answers" in item else None
                examples[name] = Example(name, here, texts=texts, answers=answers)
    if not examples:
        raise UserError("there is no question in it", where, "give a file with examples")
    return list(examples.values())


def answers_of(question: dict[str, Any], context: str, where: str) -> tuple[Answer, ...]:
    """The right answers of a question that holds `answers` and perhaps `is_impossible`.

    Raises:
        UserError: there are none and the question is not impossible; one does not stand in the context.
    """
    if question.get("is_impossible") is True:
        return ()  # those that look right are `plausible_answers`, in some files `answers` as well
    items = question.get("answers")
    if not isinstance(items, list) or not items:
        raise UserError("the question has no answer", where, 'give one, or write "is_impossible": true, or drop it')
    answers = []
    for item in items:
        text, start = (item.get("text"), item.get("answer_start")) if isinstance(item, dict) else (None, None)
        if not isinstance(text, str) or not text or type(start) is not int:
            raise UserError("an answer is no text with a start", where, 'write {"text": "Paris", "answer_start": 7}')
        if start < 0 or context[start : start + len(text)] != text:
            place = context.find(text)
            remedy = f"it stands at {place}" if place >= 0 else "it stands nowhere in it: mend it or drop the question"
            raise UserError(f"the answer {text!r} is not at character {start} of the context", where, remedy)
        answers.append(Answer(text, start))
    return tuple(answers)


def _list(tree: Any, key: str, where: str) -> list[Any]:
    value = tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(value, list):
        raise UserError(f"there is no list {key!r}", where, "give JSON of SQuAD: data, paragraphs, qas, answers")
    return value


def _text(tree: Any, key: str, where: str, empty: bool = False) -> str:
    value = tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(value, str) or not (empty or value.strip()):
        raise UserError(f"there is no text {key!r}", where, "give each question and context one, or drop it")
    return value
