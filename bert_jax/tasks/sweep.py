"""A sweep: one fit for each learning rate and seed, its result in a file, and the table of all.

A cell whose file stands is finished and never done again, so a sweep that was killed goes on to the same table.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.tasks.metrics import higher_is_better
from bert_jax.tasks.settings import FineTuneSettings


@dataclass(frozen=True)
class Cell:
    """One fit: of the model that was given, or of its twin with random weights (`kind` "model" or "random")."""

    kind: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}-rate{self.rate:g}-seed{self.seed}"


@dataclass(frozen=True)
class Result:
    """What a cell came to.

    Attributes:
        dev, test: metrics of the best epoch, empty where there is no such split.
        curve, best: as `loop.Fitted` has them; `score` of each epoch is the sweep's metric on dev.
        no_answer: of qa, chosen on dev.
        rate_of_examples: a second of training.
    """

    cell: Cell
    dev: dict[str, float]
    test: dict[str, float]
    curve: tuple[dict[str, float], ...]
    best: int
    no_answer: float | None
    rate_of_examples: float


@dataclass(frozen=True)
class Line:
    """One line of the table: a learning rate, a floor or a twin, with a score for each seed."""

    name: str
    dev: tuple[float, ...]
    test: tuple[float, ...]


def cells(settings: FineTuneSettings) -> list[Cell]:
    """The sweep of the model itself, rate by rate."""
    return [Cell("model", rate, seed) for rate in settings.learning_rates for seed in settings.seeds]


def result_path(run: Path, cell: Cell) -> Path:
    return run / "cells" / f"{cell.name}.json"


def read_result(run: Path, cell: Cell) -> Result | None:
    """The cell's result, if it is finished.

    Raises:
        UserError: the file is damaged.
    """
    path = result_path(run, cell)
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return Result(**{**tree, "cell": cell, "curve": tuple(tree["curve"])})
    except (ValueError, TypeError, KeyError):
        raise UserError("this is no result of a fit", str(path), "delete it, and the fit is done again") from None


def as_json(result: Result) -> dict[str, Any]:
    return {**asdict(result), "curve": list(result.curve)}


def better(metric: str, a: float, b: float) -> bool:
    """Whether a score is better than another."""
    return a > b if higher_is_better(metric) else a < b


def best_cell(results: Sequence[Result], metric: str) -> Result:
    """The one with the best dev score, the first of those that are equal; without a dev split, the first."""
    best = results[0]
    for result in results[1:]:
        if best.dev and better(metric, result.dev[metric], best.dev[metric]):
            best = result
    return best


def best_rate(results: Sequence[Result], metric: str) -> float:
    """The learning rate with the best mean over seeds on dev; without a dev split, the first."""
    lines = {rate: [r for r in results if r.cell.rate == rate] for rate in dict.fromkeys(r.cell.rate for r in results)}
    best, *others = lines
    for rate in others:
        if results[0].dev and better(metric, *(_mean(lines[each], metric) for each in (rate, best))):
            best = rate
    return best


def _mean(results: Sequence[Result], metric: str) -> float:
    return statistics.fmean(result.dev[metric] for result in results)


def lines_of(results: Sequence[Result], metric: str) -> list[Line]:
    """A line for each kind and rate."""
    groups: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        groups.setdefault((result.cell.kind, result.cell.rate), []).append(result)
    names = {"model": "rate {:g}", "random": "random weights, rate {:g}"}
    return [
        Line(names[kind].format(rate), *(_scores(group, split, metric) for split in ("dev", "test")))
        for (kind, rate), group in groups.items()
    ]


def _scores(results: Sequence[Result], split: str, metric: str) -> tuple[float, ...]:
    return tuple(getattr(result, split)[metric] for result in results if getattr(result, split))


def told(scores: Sequence[float]) -> str:
    """Mean ± standard deviation (of a sample) of three scores or more; of fewer, the scores."""
    if not scores:
        return "–"
    if len(scores) < 3:
        return ", ".join(f"{score:.4f}" for score in scores)
    return f"{statistics.fmean(scores):.4f} ± {statistics.stdev(scores):.4f}"


def table(lines: Sequence[Line], metric: str) -> str:
    """The lines as a Markdown table; of floors there is one number."""
    rows = [[metric.replace("_", " "), "dev", "test"], ["---"] * 3]
    rows += [[line.name, told(line.dev), told(line.test)] for line in lines]
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of a Markdown table with columns of one width; "---" fills its column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    filled = [["-" * w if c == "---" else c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in filled)
