"""`bert-jax finetune`: an encoder and labelled examples to a model of a task, with its score and what that is worth.

One fit for each learning rate and seed. The same command continues a sweep that was stopped or killed: finished cells
are kept, and those that were running begin anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.api import open_model
from bert_jax.convert import task_model
from bert_jax.convert.families import family_of
from bert_jax.convert.loaded import Loaded, Pooling
from bert_jax.convert.origin import origin
from bert_jax.errors import UserError, counted
from bert_jax.settings import to_toml
from bert_jax.store import rundir
from bert_jax.tasks import audit, floors, loop, metrics, network, pictures, predictions, sweep
from bert_jax.tasks.reading import Splits, read_splits
from bert_jax.tasks.settings import TaskRecipe, load_task_recipe
from bert_jax.tasks.sweep import Cell, Line, Result
from bert_jax.tasks.task import Asked, Judged, first_params, judge, labelled, make_asked, random_encoder, to_json

SPLITS = ("train", "dev", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", type=Path, nargs="+", metavar="RECIPE", help="TOML recipes, such as configs/tasks/")
    parser.add_argument("--model", type=Path, required=True, help="a run directory, or what `bert-jax import` reads")
    parser.add_argument("--data", type=Path, required=True, help="the directory that the recipes' file names begin at")
    parser.add_argument(
        "--run", type=Path, required=True, help="the directory to begin or continue; of several recipes it has one each"
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting of every recipe, such as train.epochs=5",
    )
    parser.add_argument(
        "--audit",
        action="store_true",
        help="also what one text of two says alone, and the score of test examples that do not stand in train",
    )
    parser.add_argument(
        "--random-twin",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also fit the same network with random weights, at the best rate (done unless --no-random-twin)",
    )


def run(args: argparse.Namespace) -> int:
    """One recipe, or a suite of several with a table of all."""
    names = [path.stem for path in args.recipes]
    if len(set(names)) < len(names):
        raise UserError("two recipes have one name", " ".join(map(str, args.recipes)), "rename one of them")
    recipes = [load_task_recipe(path, args.settings) for path in args.recipes]  # all, before the first is trained
    before = [_stages_before(path, recipe, args.settings) for path, recipe in zip(args.recipes, recipes, strict=True)]
    loaded = open_model(args.model)
    model = Model(args.model, loaded, origin(args.model, loaded))
    rows = [["task", "metric", "best rate", "dev", "test", "random weights", "majority", "bag of words"], ["---"] * 8]
    for name, recipe, stages in zip(names, recipes, before, strict=True):
        place = args.run / name if len(names) > 1 else args.run
        if len(names) > 1:
            print(f"== {name}", flush=True)
        rows.append([name, *finetune(recipe, stages, model, args.data, place, args.audit, args.random_twin)])
    if len(names) > 1:
        text = sweep.aligned(rows)
        rundir.write_text(args.run / "suite.md", text + "\n")
        rundir.write_json(args.run / "suite.json", [dict(zip(rows[0], row, strict=True)) for row in rows[2:]])
        print(text)
    return 0


@dataclass(frozen=True, eq=False)
class Model:
    """The encoder that was given, and what its files are."""

    path: Path
    loaded: Loaded
    origin: dict[str, Any]


def _stages_before(path: Path, recipe: TaskRecipe, settings: Sequence[str]) -> list[TaskRecipe]:
    """The recipes of `[[before]]`, named from the folder of the one that names them."""
    found = [load_task_recipe(path.parent / stage.recipe, settings) for stage in recipe.before]
    for stage, one in zip(recipe.before, found, strict=True):
        if one.before:
            raise UserError("a task that comes before has none before it", stage.recipe, "name all in the last recipe")
    return found


def finetune(
    recipe: TaskRecipe, before: Sequence[TaskRecipe], model: Model, data: Path, run: Path, audited: bool, twin: bool
) -> list[str]:
    """Fit, choose, measure and report one task in its run directory.

    Returns:
        A row for a suite: metric, best rate, dev, test, random weights, majority, bag of words.

    Raises:
        UserError: recipe, data, model or directory are at fault.
    """
    # ------------------------------------------------------------------------------------------ data and directory
    task = recipe.task
    splits = read_splits(data, recipe)
    metric = checked(recipe, splits)
    labels = audit.labels_of(splits.train, task.family)
    facts = audit.facts(splits, task.family)
    for name in ("dev", "test"):
        if task.unseen == "error":
            audit.check_labels(labels, getattr(splits, name), name)
    say_facts(facts)
    stages = [prepared(one, read_splits(data, one), model.loaded) for one in before]
    main = prepared(recipe, splits, model.loaded, labels)
    asked = main.asked
    open_directory(run, recipe, before, model, splits)
    with held(run):
        # ------------------------------------------------------------------------------------------------- the sweep
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            jax.config.update("jax_compilation_cache_dir", str(run.absolute() / "compiled"))
        fits = Fits(main, stages, metric, model.loaded)
        results = [fits.done(run, cell) for cell in sweep.cells(recipe.train)]
        rate = sweep.best_rate(results, metric)
        twins = [fits.done(run, Cell("random", rate, seed)) for seed in recipe.train.seeds] if twin else []
        # ------------------------------------------------------------------------------------------------ the model
        best = sweep.best_cell(results, metric)
        fits.keep(run, best, recipe, model)
        # ---------------------------------------------------------------------------------------------- the report
        on = "test" if splits.test else "dev" if splits.dev else "train"
        examples = getattr(splits, on)
        guesses = floors.floors(splits.train, examples, task.family, audited)
        scored = {
            name: metrics.measure(examples, found, task.family, task.scheme, labels.get("label", ()))
            for name, found in guesses.items()
        }
        lines = sweep.lines_of([*results, *twins], metric)
        for name, found in scored.items():
            score = (found[metric],)
            lines.append(Line(name, score if on == "dev" else (), score if on == "test" else ()))
        found = fits.judge_kept(run, on)
        report: dict[str, Any] = {
            "metric": metric,
            "chosen": {"cell": best.cell.name, "best rate": rate, "dev": best.dev, "test": best.test},
            "cells": [sweep.as_json(result) for result in [*results, *twins]],
            "floors": scored,
            "data": facts,
        }
        if audited and on != "train":
            alone = audit.without_overlap(splits.train, examples)
            kept = {example.id for example in alone}
            apart = [one for one in found.predictions if one["id"] in kept]
            if alone and labelled(alone, task.family):
                value = task_scores(asked, alone, apart)[metric]
                report["without overlap"] = {"examples": len(alone), metric: value}
                lines.append(Line("chosen model, without what is in train", *_on(on, value)))
        text = sweep.table(lines, metric)
        rundir.write_json(run / "report.json", report)
        rundir.write_text(run / "table.md", text + "\n")
        rundir.write_text(run / f"predictions-{on}.jsonl", _json_lines(found.predictions))
        draw(run, asked, results, lines, metric, on, examples, found)
    print(text)
    print(f"{run / 'model'}: {best.cell.name}; predictions, tables and pictures beside it", flush=True)
    twin_line = next((line for line in lines if line.name.startswith("random")), Line("", (), ()))
    model_line = next(line for line in lines if line.name == f"rate {rate:g}")
    return [
        metric,
        f"{rate:g}",
        *(sweep.told(scores) for scores in (model_line.dev, model_line.test)),
        sweep.told(getattr(twin_line, on, ())),
        *(f"{scored[name][metric]:.4f}" for name in ("majority", "bag of words")),
    ]


# --------------------------------------------------------------------------------------------- what is checked first


def checked(recipe: TaskRecipe, splits: Splits) -> str:
    """The metric that chooses. Raises `UserError` where the splits do not allow what the recipe asks for."""
    task, settings = recipe.task, recipe.train
    if not splits.train:
        raise UserError("there are no training examples", "task.train", "name a file")
    if not splits.dev and len(settings.learning_rates) > 1:
        raise UserError(
            "several learning rates need a dev split to choose by",
            "task.dev",
            "name a file, or give task.dev_share=0.1, or one rate",
        )
    scored = task.family == "embedding" and bool(splits.dev) and all(e.label is not None for e in splits.dev)
    return metrics.headline(task.family, task.scheme, task.metric, scored)


def say_facts(facts: dict[str, Any]) -> None:
    """How much there is, how uneven it is, and what stands twice."""
    print(", ".join(f"{name} {count:,}" for name, count in facts["examples"].items() if count))
    for term, counts in facts["balance"].get("train", {}).items():
        if term in ("label", "intent", "choice", "answer") and counts:
            total = sum(counts.values())
            common, rare = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
            told = f"{common} {counts[common] / total:.1%}, {rare} {counts[rare] / total:.1%}"
            print(f"  {counted(len(counts), term)}: most {told} least")
    for where, found in facts["duplicates"].items():
        if found["count"]:
            other = f", {found['contradicting']:,} with another label" if found["contradicting"] else ""
            print(f"  {counted(found['count'], 'example')} {'twice ' if where == 'in train' else 'of '}{where}{other}")
    for split, terms in facts["unseen"].items():
        for term, names in terms.items():
            print(f"  {split} has {counted(len(names), term)} that train lacks: they count as wrong")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task whose examples are rows."""

    recipe: TaskRecipe
    splits: Splits
    asked: Asked
    rows: dict[str, list[Any]]


def prepared(recipe: TaskRecipe, splits: Splits, loaded: Loaded, labels: Any = None) -> Prepared:
    """Raises `UserError` as `make_asked` and `encode` do."""
    labels = audit.labels_of(splits.train, recipe.task.family) if labels is None else labels
    asked = make_asked(loaded.config, loaded.tokenizer, recipe, labels, splits.train)
    return Prepared(recipe, splits, asked, {name: asked.rows(getattr(splits, name)) for name in SPLITS})


def open_directory(run: Path, recipe: TaskRecipe, before: Sequence[TaskRecipe], model: Model, splits: Splits) -> None:
    """Make the run directory, or see that the one there is of the same recipe, encoder and data.

    Raises:
        UserError: it is another one's, or holds something else.
    """
    sha = {name: digest for name, path in splits.files.items() if (digest := _sha256(path))}
    encoder = {name: file["sha256"] for name, file in model.origin["files"].items()}
    told = {"recipes": [to_toml(one) for one in (recipe, *before)], "data": sha, "encoder": encoder}
    here = run / "inputs.json"
    if here.is_file():
        kept = rundir.read_json(here)
        for name, what in (("recipes", "recipe"), ("data", "data"), ("encoder", "encoder")):
            if kept[name] != told[name]:
                raise UserError(f"this was begun with another {what}", str(run), "give that one, or another --run")
        return
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError("this is there already, and no fine-tuning of ours", str(run), "choose another --run")
    try:
        (run / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", str(run), "choose another --run") from None
    rundir.write_text(run / "recipe.toml.tmp", to_toml(recipe))
    os.replace(run / "recipe.toml.tmp", run / "task.toml")
    rundir.write_json(here, told)


def _sha256(path: Path) -> str:
    """Of a file, or of those of a directory."""
    digest = hashlib.sha256()
    for part in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(part.read_bytes())
    return digest.hexdigest()


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Nobody else fits here meanwhile."""
    with rundir.hold(run):
        yield


# -------------------------------------------------------------------------------------------------------- the fits


class Fits:
    """All fits of a task: what they share, and the best of them so far."""

    def __init__(self, main: Prepared, stages: Sequence[Prepared], metric: str, loaded: Loaded) -> None:
        self.main, self.stages, self.metric, self.loaded = main, stages, metric, loaded
        self.shared = loop.Features()
        self.kept: tuple[Result, dict[str, Any]] | None = None

    def done(self, run: Path, cell: Cell) -> Result:
        """The cell's result: read, or fitted and written."""
        if result := sweep.read_result(run, cell):
            return result
        begun = time.monotonic()
        result, params = self.fit(cell)
        if cell.kind == "model":
            if self.kept is None or sweep.best_cell([self.kept[0], result], self.metric) is result:
                self.kept = (result, params)
        rundir.write_json(sweep.result_path(run, cell), sweep.as_json(result))
        scores = [
            f"{name} {getattr(result, name)[self.metric]:.4f}" for name in ("dev", "test") if getattr(result, name)
        ]
        told = ", ".join([*scores, f"epoch {result.best + 1}", f"{result.rate_of_examples:,.0f} examples/s"])
        print(f"{cell.name}: {told}, {time.monotonic() - begun:.0f} s", flush=True)
        return result

    def fit(self, cell: Cell) -> tuple[Result, dict[str, Any]]:
        """One fit, and its parameters."""
        from tqdm import tqdm

        main = self.main
        asked, settings, pad = main.asked, main.recipe.train, main.asked.pad
        if cell.kind == "random":
            encoder = random_encoder(asked.net.config, cell.seed)
        else:
            encoder = self.loaded.params
            for stage in self.stages:
                encoder = self._before(stage, encoder, cell.seed)
        params = first_params(asked.net, encoder, cell.seed, settings.reset_layers)
        given: dict[str, Any] = dict.fromkeys(SPLITS)
        if settings.what == "head":
            same = cell.kind == "model" and not self.stages and not settings.reset_layers
            same = same and (asked.net.tokens != "pooled" or "pooler" in encoder)
            cache = self.shared if same else loop.Features()
            given = {name: cache.of(name, asked.net, params, rows, pad) for name, rows in main.rows.items()}

        def judged(name: str, params: Any, tune: bool = False, no_answer: float | None = None) -> Judged:
            asking = replace(asked, no_answer=no_answer)
            return judge(asking, params, getattr(main.splits, name), main.rows[name], given[name], tune=tune)

        def measure(params: Any) -> float:
            score = judged("dev", params, tune=True).scores[self.metric]
            return score if metrics.higher_is_better(self.metric) else -score

        with tqdm(desc=cell.name, unit="step", leave=False, disable=None) as bar:
            fitted = loop.fit(
                asked.net,
                params,
                main.rows["train"],
                settings,
                cell.rate,
                cell.seed,
                pad,
                measure if main.splits.dev else None,
                given["train"],
                _telling(bar),
            )
        dev = judged("dev", fitted.params, tune=True) if main.splits.dev else Judged([], {})
        test = judged("test", fitted.params, no_answer=dev.no_answer) if main.splits.test else Judged([], {})
        speed = fitted.examples / fitted.seconds if fitted.seconds else 0.0
        result = Result(cell, dev.scores, test.scores, fitted.curve, fitted.best, dev.no_answer, speed)
        return result, fitted.params

    def _before(self, stage: Prepared, encoder: Any, seed: int) -> Any:
        """The encoder after an intermediate task."""
        asked, settings = stage.asked, stage.recipe.train
        params = first_params(asked.net, encoder, seed, settings.reset_layers)
        rate = settings.learning_rates[0]
        fitted = loop.fit(asked.net, params, stage.rows["train"], settings, rate, seed, asked.pad)
        return {**encoder, **{name: fitted.params[name] for name in network.ENCODER if name in fitted.params}}

    def keep(self, run: Path, best: Result, recipe: TaskRecipe, model: Model) -> None:
        """Write the chosen cell's model, unless it is there."""
        out = run / "model"
        if task_model.is_directory(out) and task_model.read(out).task.get("cell") == best.cell.name:
            return
        if self.kept is None or self.kept[0].cell != best.cell:  # its parameters went with the process that made them
            print(f"{best.cell.name}: fitted once more, for its weights", flush=True)
            self.kept = self.fit(best.cell)
        net, params = network.folded(self.main.asked.net, self.kept[1])
        asked = replace(self.main.asked, net=net, no_answer=best.no_answer)
        encoder, head = _divided(params, self.loaded)
        pooling = None
        if recipe.task.family == "embedding" and net.layers == "last" and net.tokens in ("mean", "first"):
            pooling = Pooling("mean" if net.tokens == "mean" else "cls", normalize=True, length=recipe.task.length)
        loaded = replace(self.loaded, params=encoder, pooling=pooling, step=None)
        tree = to_json(asked)
        tree["cell"] = best.cell.name
        tree["scores"] = {"dev": best.dev, "test": best.test}
        tree["columns"] = {}
        provenance = {"encoder": model.origin, "recipe": to_toml(recipe), "cell": best.cell.name}
        task_model.write(out, task_model.TaskModel(loaded, head, tree), force=True, provenance=provenance)

    def judge_kept(self, run: Path, on: str) -> Judged:
        """What the model that was written says of a split."""
        kept = task_model.read(run / "model")
        net, _ = network.folded(self.main.asked.net, {"classifier": {"kernel": np.zeros(1), "bias": np.zeros(1)}})
        asked = replace(self.main.asked, net=net, no_answer=kept.task["no_answer"])
        params = {**kept.loaded.params, **kept.head}
        return judge(asked, params, getattr(self.main.splits, on), self.main.rows[on])


def _telling(bar: Any) -> Callable[[int, int, float], None]:
    def told(step: int, steps: int, loss: float) -> None:
        bar.total = steps
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        bar.update()

    return told


def _divided(params: Any, loaded: Loaded) -> tuple[Any, Any]:
    """Encoder and head: what the encoder's family has a place for, and the rest."""
    parts = {row.path.split("/")[0] for row in family_of(loaded.architecture).rows} & set(network.ENCODER)
    encoder = {name: tree for name, tree in params.items() if name in parts}
    if "pooler" in loaded.params and "pooler" not in encoder:
        encoder["pooler"] = loaded.params["pooler"]
    return encoder, {name: tree for name, tree in params.items() if name not in encoder}


# ------------------------------------------------------------------------------------------------------- the report


def task_scores(asked: Asked, examples: Sequence[Any], found: Sequence[Any]) -> dict[str, float]:
    """The metrics of some of the predictions."""
    family = asked.task.family
    return metrics.measure(
        examples, predictions.plain(family, found), family, asked.task.scheme, asked.labels.get("label", ())
    )


def draw(
    run: Path,
    asked: Asked,
    results: Sequence[Result],
    lines: Sequence[Line],
    metric: str,
    on: str,
    examples: Sequence[Any],
    found: Judged,
) -> None:
    """curves.png, table.png and, where there are classes, confusion.png and calibration.png."""
    if results[0].dev:
        fits = [
            pictures.Fit(r.cell.rate, r.cell.seed, [e["score"] for e in r.curve], [e["loss"] for e in r.curve])
            for r in results
        ]
        pictures.curves(run / "curves.png", fits, metric)
    split = on if on != "train" else "dev"
    seeded = [line for line in lines if line.name.startswith(("rate", "random"))]
    rows = [pictures.Row(line.name, getattr(line, split)) for line in seeded if getattr(line, split)]
    others = {line.name: getattr(line, split)[0] for line in lines if line not in seeded and getattr(line, split)}
    if rows:
        pictures.table(run / "table.png", rows, metric, others)
    names = asked.labels.get("label")
    if names and labelled(examples, asked.task.family):
        gold = [str(example.label) for example in examples]
        pictures.confusion(run / "confusion.png", gold, [one["label"] for one in found.predictions], names)
        chances = np.array([[one["probabilities"][name] for name in names] for one in found.predictions])
        known = [n for n, name in enumerate(gold) if name in names]
        pictures.calibration(run / "calibration.png", chances[known], np.array([names.index(gold[n]) for n in known]))


def _on(split: str, value: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return ((value,), ()) if split == "dev" else ((), (value,))


def _json_lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
