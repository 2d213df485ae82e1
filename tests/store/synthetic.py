"""A run directory with figures but no training: what the curves, tables and comparisons read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from bert_jax.config import load_recipe
from bert_jax.settings import to_toml
from tests.world import write_recipe

LEVELS = {
    "uniform": {"loss": 9.0},
    "unigram": {"loss": 7.0, "accuracy": 0.05},
    "left_bigram": {"loss": 5.0, "accuracy": 0.2},
    "two_sided_bigram": {"loss": 4.0, "accuracy": 0.3},
}


def train_row(step: int, loss: float, **more: float | str) -> dict:
    return {
        "step": step,
        "stage": int(step > 25),
        "loss": loss + 0.7,
        "masked_lm_loss": loss,
        "masked_lm_accuracy": 0.1,
        "next_sentence_loss": 0.7,
        "next_sentence_accuracy": 0.5,
        "learning_rate": 1e-3 * step,
        "gradient_norm": 2.0,
        "skipped": 0.0,
        "tokens": 100,
        "batch": f"batch{step}",
        **more,
    }


def heldout_row(step: int, loss: float, **more: float | str) -> dict:
    return {"step": step, "stage": 0, "masked_lm_loss": loss, "masked_lm_accuracy": 0.2, **more}


def timing(session: int, begin: int, end: int, elapsed: float, **seconds: float) -> dict:
    """A line of `timings.jsonl`; `waiting` stands for waiting for data."""
    named = {"waiting for data" if kind == "waiting" else kind: s for kind, s in seconds.items()}
    speeds = {"tokens_per_second": 1000.0, "places_per_second": 1200.0, "waiting": 0.1}
    line = {"session": session, "from": begin, "step": end, "elapsed": elapsed, "seconds": named}
    return {**line, **(speeds if end > begin else {})}


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(
    run: Path, train: list[dict], heldout: list[dict], timings: list[dict], settings: tuple[str, ...] = ()
) -> Path:
    run.mkdir(parents=True)
    rows = [{"kind": "train", **row} for row in train] + [{"kind": "heldout", **row} for row in heldout]
    write_lines(run / "metrics.jsonl", rows)
    if timings:
        write_lines(run / "timings.jsonl", timings)
    recipe = load_recipe(write_recipe(run / "written.toml"), settings)
    (run / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")
    (run / "manifest.json").write_text(json.dumps({"levels": LEVELS, "settings": {}}), encoding="utf-8")
    provenance = {"arguments": [str(run)], "git": "abc", "packages": {"jax": "0.10.2"}, "mesh": {"data": 8, "fsdp": 1}}
    (run / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    return run


def falling(steps: int, start: float = 9.0, end: float = 6.0) -> list[dict]:
    return [train_row(step, loss) for step, loss in enumerate(np.linspace(start, end, steps).tolist(), 1)]


def again(run: Path, copy: Path) -> Path:
    return Path(shutil.copytree(run, copy))
