"""What a sweep came to: the table with its floors, the report, and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.tasks import audit, floors, metrics, pictures, sweep
from bert_jax.tasks.cells import Prepared
from bert_jax.tasks.examples import Example
from bert_jax.tasks.sweep import Line, Result
from bert_jax.tasks.task import Judged, labelled, scores


@dataclass(frozen=True, eq=False)
class Summary:
    """A sweep and what it is worth.

    Attributes:
        on: the split that is reported: test, else dev, else train.
        lines: of the table.
        report: all of it, ready for JSON.
        row: of a suite: metric, best rate, dev, test, random weights, majority, bag of words.
    """

    on: str
    lines: list[Line]
    report: dict[str, Any]
    row: list[str]


def reported(main: Prepared) -> str:
    """The split that is reported."""
    return "test" if main.splits.test else "dev" if main.splits.dev else "train"


def summarize(
    main: Prepared,
    metric: str,
    results: Sequence[Result],
    twins: Sequence[Result],
    judged: Judged,
    facts: dict[str, Any],
    audited: bool,
) -> Summary:
    """Put cells beside floors.

    Args:
        main: the task.
        metric: what chose.
        results, twins: of the model, and of the same network with random weights.
        judged: what the chosen model says of the split that is reported.
        facts: of the data.
        audited: also what one of two texts says alone, and what remains without what stands in train.
    """
    on, splits = reported(main), main.splits
    best, rate = sweep.best_cell(results, metric), sweep.best_rate(results, metric)
    floored = {split: _floors(main, split, audited) for split in (dict.fromkeys((on, "dev")) if splits.dev else (on,))}
    lines = sweep.lines_of([*results, *twins], metric)
    model = next(line for line in lines if line.name == f"rate {rate:g}")
    twin = next((line for line in lines if line.name.startswith("random")), Line("", (), ()))
    for name in floored[on]:
        of = {split: (found[name][metric],) for split, found in floored.items()}
        lines.append(Line(name, of.get("dev", ()), of.get("test", ())))
    report: dict[str, Any] = {
        "metric": metric,
        "chosen": {"cell": best.cell.name, "best rate": rate, "dev": best.dev, "test": best.test},
        "cells": [sweep.as_json(result) for result in [*results, *twins]],
        "floors": floored,
        "data": facts,
    }
    if audited and on != "train" and (apart := _without_overlap(main, getattr(splits, on), judged, metric)):
        report["without overlap"] = apart
        value = (apart[metric],)
        name = "chosen model, without what is in train"
        lines.append(Line(name, value if on == "dev" else (), value if on == "test" else ()))
    row = [
        metric,
        f"{rate:g}",
        *(sweep.told(scores) for scores in (model.dev, model.test, getattr(twin, on, ()))),
        *(f"{floored[on][name][metric]:.4f}" for name in ("majority", "bag of words")),
    ]
    return Summary(on, lines, report, row)


def _floors(main: Prepared, split: str, audited: bool) -> dict[str, dict[str, float]]:
    """The metrics of each floor on a split."""
    task, examples = main.recipe.task, getattr(main.splits, split)
    found = floors.floors(main.splits.train, examples, task.family, audited)
    names = main.asked.labels.get("label", ())
    return {name: metrics.measure(examples, one, task.family, task.scheme, names) for name, one in found.items()}


def _without_overlap(main: Prepared, examples: list[Example], judged: Judged, metric: str) -> dict[str, Any]:
    """How many examples do not stand in train, and the score of these; empty where there is none to measure."""
    alone = audit.without_overlap(main.splits.train, examples)
    apart_from = {id(example) for example in alone}  # ids of a file may stand there twice
    pairs = zip(examples, judged.predictions, strict=True)
    found = [one for example, one in pairs if id(example) in apart_from]
    if not alone or not labelled(alone, main.recipe.task.family):
        return {}
    of = scores(main.asked, alone, found)
    return {"examples": len(alone), metric: of[metric]} if metric in of else {}


def draw(run: Path, main: Prepared, summary: Summary, results: Sequence[Result], judged: Judged) -> None:
    """curves.png, table.png and, where there are classes, confusion.png or labels.png, and calibration.png.

    Raises:
        OSError: one cannot be written.
    """
    metric, examples = summary.report["metric"], getattr(main.splits, summary.on)
    if results[0].dev:
        fits = [
            pictures.Fit(r.cell.rate, r.cell.seed, [e["score"] for e in r.curve], [e["loss"] for e in r.curve])
            for r in results
        ]
        pictures.curves(run / "curves.png", fits, metric)
    split = summary.on if summary.on != "train" else "dev"
    there = [line for line in summary.lines if getattr(line, split)]
    seeded = [line for line in there if line.name.startswith(("rate", "random"))]
    rows = [pictures.Row(line.name, getattr(line, split)) for line in seeded]
    others = {line.name: getattr(line, split)[0] for line in there if line not in seeded}
    if rows:
        pictures.table(run / "table.png", rows, metric, split, others)
    names = main.asked.labels.get("label")
    if names and labelled(examples, main.recipe.task.family):
        gold = [str(example.label) for example in examples]
        pictures.confusion(run / "confusion.png", gold, [one["label"] for one in judged.predictions], names)
        chances = np.array([[one["probabilities"][name] for name in names] for one in judged.predictions])
        known = [n for n, name in enumerate(gold) if name in names]
        pictures.calibration(run / "calibration.png", chances[known], np.array([names.index(gold[n]) for n in known]))
    several = main.asked.labels.get("labels")
    if several and labelled(examples, main.recipe.task.family):
        sets = [example.labels or () for example in examples]
        pictures.by_label(run / "labels.png", sets, [one["labels"] for one in judged.predictions], several)
        chances = np.array([[one["probabilities"][name] for name in several] for one in judged.predictions]).ravel()
        holds = np.array([[name in one for name in several] for one in sets]).ravel()
        pictures.calibration(run / "calibration.png", np.stack([1 - chances, chances], -1), holds.astype(int))
