"""Toy tasks as files: an encoder's directory, examples of each family as JSON lines, recipes that name them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax import finetune
from bert_jax.api import open_model
from bert_jax.convert import native
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.origin import origin
from bert_jax.tasks import cells
from bert_jax.tasks.examples import Example
from bert_jax.tasks.reading import read_splits
from bert_jax.tasks.settings import load_task_recipe
from bert_jax.tasks.sweep import Cell, Result
from bert_jax.tasks.task import first_params, random_encoder
from tests.tasks import toy

# Few and small steps: the verbs are tested, not what is learned. Twelve short texts fill a row, so shapes are few.
TRAIN = {"epochs": 2, "batch": 12, "learning_rates": [1e-3], "seeds": [0]}
TASK = {"length": 32, "stride": 8, "question": 12}


def write_encoder(out: Path, **overrides: Any) -> Path:
    """A directory as `bert-jax import` writes it, of an encoder of one layer that has learned nothing."""
    config = toy.tiny(positions=64, layers=1, **overrides)
    params = jax.tree.map(np.asarray, random_encoder(config, 5))
    parts = {name: params[name] for name in ("embeddings", "layers", "pooler")}
    native.write(out, Loaded(config, parts, toy.tokenizer(out.parent), "BertModel"), provenance={})
    return out


def line(family: str, example: Example, labelled: bool = True) -> dict[str, Any]:
    """An example as an object of JSON lines, under the usual keys."""
    texts = example.texts
    match family:
        case "single":
            found: dict[str, Any] = {"text": texts[0]}
        case "multi_label":
            found = {"text": texts[0]} | ({"labels": list(example.labels or ())} if labelled else {})
        case "pair" | "regression" | "embedding":
            found = dict(zip(("text_a", "text_b"), texts, strict=True))
        case "choice":
            found = {"text": texts[0], "choices": [*texts[1:], "ban ker"]}
        case "qa":
            found = {"question": texts[0], "context": texts[1]}
            if labelled:
                found["answers"] = [{"text": a.text, "answer_start": a.start} for a in example.answers or ()]
        case _:
            found = {"words": list(example.words)}
            if labelled:
                found["tags"] = list(example.tags or ())
    if labelled and example.label is not None:
        found["label"] = example.label
    return found


def write_lines(path: Path, lines: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines), encoding="utf-8")
    return path


def write_examples(path: Path, family: str, count: int, seed: int, labelled: bool = True) -> Path:
    """As JSON lines, or where the name ends in .tsv, as a table of sentences."""
    examples = toy.examples(family, count, seed)
    if path.suffix != ".tsv":
        return write_lines(path, [line(family, example, labelled) for example in examples])
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ["sentence\tlabel", *(f"{example.texts[0]}\t{example.label}" for example in examples)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_recipe(path: Path, family: str, ending: str = "jsonl", **sections: dict[str, Any]) -> Path:
    """A recipe whose splits are FAMILY/train, dev and test."""
    task = {"family": family, **TASK, **{split: f"{family}/{split}.{ending}" for split in ("train", "dev", "test")}}
    if family == "tagging":
        task["scheme"] = "BIO"
    tree = {"task": task, "train": TRAIN} | {
        name: {**(task if name == "task" else TRAIN if name == "train" else {}), **given}
        for name, given in sections.items()
    }
    text = [
        "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())])
        for name, values in tree.items()
    ]
    path.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return path


def write_task(folder: Path, family: str, ending: str = "jsonl", **sections: dict[str, Any]) -> Path:
    """The recipe FAMILY.toml, and its files beside it."""
    for seed, (split, count) in enumerate((("train", 24), ("dev", 12), ("test", 12))):
        write_examples(folder / family / f"{split}.{ending}", family, count, seed)
    return write_recipe(folder / f"{family}.toml", family, ending, **sections)


def write_model(
    folder: Path, family: str, encoder: Path, no_answer: float | None = None, lines: Sequence[Any] = (), **sections: Any
) -> Path:
    """A fine-tuned model that was not trained, as `bert-jax finetune` writes it, and the files of its task.

    `lines` stand in all of these in place of the toy examples.
    """
    path = write_task(folder, family, **sections)
    for split in ("train", "dev", "test") if lines else ():
        write_lines(folder / family / f"{split}.jsonl", lines)
    recipe = load_task_recipe(path)
    loaded = open_model(encoder)
    main = cells.prepared(recipe, read_splits(folder, recipe), loaded.config, loaded.tokenizer)
    result = Result(Cell("model", 1e-3, 0), {}, {}, (), 0, no_answer, 0.0)
    params = first_params(main.asked.net, loaded.params, 3)
    job = cells.Job(main, "", lambda seed: loaded.params, same=True)
    finetune.keep(folder / "run", job, (), result, params, finetune.Model(encoder, loaded, origin(encoder, loaded)))
    return folder / "run"
