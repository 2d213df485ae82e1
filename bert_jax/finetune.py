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
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax import fine_tuned
from bert_jax.api import open_model
from bert_jax.convert import task_model
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.origin import origin
from bert_jax.errors import UserError, counted
from bert_jax.settings import build, changes, flat, to_toml
from bert_jax.store import rundir
from bert_jax.store.clock import duration
from bert_jax.tasks import audit, cells, floors, metrics, pictures, sweep
from bert_jax.tasks.cells import Job, Prepared
from bert_jax.tasks.network import Params
from bert_jax.tasks.reading import Splits, read_splits
from bert_jax.tasks.settings import TaskRecipe, load_task_recipe
from bert_jax.tasks.sweep import Cell, Line, Result
from bert_jax.tasks.task import Asked, Judged, judge, labelled, scores

QUIET = 30.0  # seconds between lines where there is no terminal


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
    for recipe in recipes[1:]:  # what is wrong with a later one is told before the first is trained
        checked(recipe, read_splits(args.data, recipe))
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
    facts = audit.facts(splits, task.family)
    say_facts(facts)
    config, tokenizer = model.loaded.config, model.loaded.tokenizer
    stages = [cells.prepared(one, trained_before(data, one), config, tokenizer) for one in before]
    main = cells.prepared(recipe, splits, config, tokenizer)
    full = sum(len(row.ids) >= task.length for row in main.rows["train"])
    if full and task.family not in ("tagging", "qa"):  # which read long texts in windows
        of = f"{full:,} of {len(main.rows['train']):,}"
        print(f"  {of} rows of train fill all {task.length} tokens: longer texts are cut")
    if main.asked.net.tokens == "pooled" and "pooler" not in model.loaded.params:
        still = ", and stays so" if recipe.train.what == "head" else ""
        print(f"  the encoder has no pooler: [CLS] goes through a random one{still} (not with readout.tokens=first)")
    job = Job(main, stages, metric, model.loaded.params)
    with opened(run, recipe, before, model, [main, *stages]):
        # ------------------------------------------------------------------------------------------------- the sweep
        compile_once(run)
        results, best_params = [], None
        for cell in sweep.cells(recipe.train):
            result, params = result_of(run, job, cell)
            results.append(result)
            if sweep.best_cell(results, metric) is result:  # the only parameters that are kept in memory
                best_params = params
        rate = sweep.best_rate(results, metric)
        seeds = recipe.train.seeds if twin else ()
        twins = [result_of(run, job, Cell("random", rate, seed))[0] for seed in seeds]
        # ------------------------------------------------------------------------------------------------ the model
        best = sweep.best_cell(results, metric)
        keep(run, job, best, best_params, model)
        # ---------------------------------------------------------------------------------------------- the report
        on = "test" if splits.test else "dev" if splits.dev else "train"
        examples = getattr(splits, on)
        measured = dict.fromkeys((on, "dev")) if splits.dev else (on,)
        floored = {split: floor_scores(main, split, audited) for split in measured}
        lines = sweep.lines_of([*results, *twins], metric)
        for name in floored[on]:
            by_split = {split: (found[name][metric],) for split, found in floored.items()}
            lines.append(Line(name, by_split.get("dev", ()), by_split.get("test", ())))
        found = judge_kept(run, main, on)
        report: dict[str, Any] = {
            "metric": metric,
            "chosen": {"cell": best.cell.name, "best rate": rate, "dev": best.dev, "test": best.test},
            "cells": [sweep.as_json(result) for result in [*results, *twins]],
            "floors": floored,
            "data": facts,
        }
        if audited and on != "train":
            alone = audit.without_overlap(splits.train, examples)
            apart_from = {id(example) for example in alone}  # ids of a file may stand there twice
            pairs = zip(examples, found.predictions, strict=True)
            apart = [one for example, one in pairs if id(example) in apart_from]
            if alone and labelled(alone, task.family):
                value = scores(main.asked, alone, apart)[metric]
                report["without overlap"] = {"examples": len(alone), metric: value}
                lines.append(Line("chosen model, without what is in train", *_on(on, value)))
        text = sweep.table(lines, metric)
        rundir.write_json(run / "report.json", report)
        rundir.write_text(run / "table.md", text + "\n")
        told = [{**one, **e.gold()} for one, e in zip(found.predictions, examples, strict=True)]
        rundir.write_text(run / f"predictions-{on}.jsonl", _json_lines(told))
        try:
            draw(run, main.asked, results, lines, metric, on, examples, found)
        except OSError as error:
            print(f"{run}: the pictures cannot be written ({error.strerror})")
    print(text)
    print(f"{run / 'model'}: {best.cell.name}; predictions, tables and pictures beside it", flush=True)
    twin_line = next((line for line in lines if line.name.startswith("random")), Line("", (), ()))
    model_line = next(line for line in lines if line.name == f"rate {rate:g}")
    return [
        metric,
        f"{rate:g}",
        *(sweep.told(scores) for scores in (model_line.dev, model_line.test)),
        sweep.told(getattr(twin_line, on, ())),
        *(f"{floored[on][name][metric]:.4f}" for name in ("majority", "bag of words")),
    ]


# --------------------------------------------------------------------------------------------- what is checked first


def checked(recipe: TaskRecipe, splits: Splits) -> str:
    """The metric that chooses. Raises `UserError` where the splits do not allow what the recipe asks for."""
    task, settings = recipe.task, recipe.train
    if not splits.train:
        raise UserError("there are no training examples", "task.train", "name a file")
    if task.unseen == "error":
        labels = audit.labels_of(splits.train, task.family)
        for name in ("dev", "test"):
            audit.check_labels(labels, getattr(splits, name), name)
    if not splits.dev and len(settings.learning_rates) > 1:
        raise UserError(
            "several learning rates need a dev split to choose by",
            "task.dev",
            "name a file, or give task.dev_share=0.1, or one rate",
        )
    scored = task.family == "embedding" and bool(splits.dev) and all(e.label is not None for e in splits.dev)
    return metrics.headline(task.family, task.scheme, task.metric, scored)


def trained_before(data: Path, recipe: TaskRecipe) -> Splits:
    """The training split alone of a task that comes before another."""
    share = 0.0 if recipe.task.dev else recipe.task.dev_share
    splits = read_splits(data, replace(recipe, task=replace(recipe.task, dev="", test="", dev_share=share)))
    if not splits.train:
        raise UserError("there are no training examples", "before", "name a file in task.train of that recipe")
    return splits


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


@contextmanager
def opened(
    run: Path, recipe: TaskRecipe, before: Sequence[TaskRecipe], model: Model, tasks: Sequence[Prepared]
) -> Iterator[None]:
    """Hold the run directory: a new one, or one that was begun with the same recipe, encoder and data.

    Rates and seeds alone may be others: what is fitted already is kept.

    Args:
        tasks: all whose files are read.

    Raises:
        UserError: it is another one's, holds something else, or another process is at work in it.
    """
    files = [(name, path) for task in tasks for name, path in task.splits.files.items()]
    told = {
        "recipes": [to_toml(one) for one in (recipe, *before)],
        "data": [f"{name} {_sha256(path)}" for name, path in files],
        "encoder": {name: file["sha256"] for name, file in model.origin["files"].items()},
    }
    here = run / "inputs.json"
    begun = run.is_dir() and here.is_file()
    if not begun and run.exists() and (not run.is_dir() or any(not unfinished(path) for path in run.iterdir())):
        raise UserError("this is there already, and no fine-tuning of ours", str(run), "choose another --run")
    try:
        (run / "cells").mkdir(parents=True, exist_ok=True)
        holding = rundir.hold(run)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", str(run), "choose another --run") from None
    with holding:
        kept = rundir.read_json(here) if here.is_file() else told
        if differs := _changed(kept["recipes"], [recipe, *before]):
            raise UserError(f"this was begun with {differs}", str(run), "give what it began with, or another --run")
        for name, what in (("data", "other data"), ("encoder", "another encoder")):
            if kept[name] != told[name]:
                raise UserError(f"this was begun with {what}", str(run), "give what it began with, or another --run")
        rundir.write_text(run / "task.toml", to_toml(recipe))
        rundir.write_json(here, told)
        yield


def _changed(kept: Sequence[str], given: Sequence[TaskRecipe]) -> str:
    """What differs between recipes as TOML, the task's own the first, and those given; a sweep may grow.

    What a kept one does not name, because it is older than the setting, has its default.
    """
    pairs = [(build(TaskRecipe, tomllib.loads(text), ""), one) for text, one in zip(kept, given, strict=False)]
    for number, (then, now) in enumerate(pairs):
        free = () if number else ("train.learning_rates", "train.seeds")
        bound = [{name: value for name, value in flat(one).items() if name not in free} for one in (then, now)]
        if differs := changes(*bound):
            return f"{given[0].before[number - 1].recipe}: {differs}" if number else differs
    return ""


def unfinished(path: Path) -> bool:
    """Whether this is what a kill can leave before it is on record whose directory it is."""
    return path.name in ("cells", "lock", "task.toml") or path.name.startswith((".task.toml.", ".inputs.json."))


def _sha256(path: Path) -> str:
    """Of a file, or of those of a directory."""
    digest = hashlib.sha256()
    for part in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(part.read_bytes())
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------------------- the fits


def compile_once(run: Path) -> None:
    """What is compiled here goes into the run directory, so that a second start runs the very same kernels."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        rundir.clear_torn(run)
        jax.config.update("jax_compilation_cache_dir", str(run.absolute() / "compiled"))
    # a sweep goes on without it, and tells of a full disk itself
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "xla_gpu_per_fusion_autotune_cache_dir")


def result_of(run: Path, job: Job, cell: Cell) -> tuple[Result, Params | None]:
    """The cell's result: read, or fitted and written; with its parameters if it was fitted."""
    if result := sweep.read_result(run, cell):
        return result, None
    begun = time.monotonic()
    result, params = _fit(job, cell)
    rundir.write_json(sweep.result_path(run, cell), sweep.as_json(result))
    rundir.mark_compiled(run)
    scores = [f"{name} {getattr(result, name)[job.metric]:.4f}" for name in ("dev", "test") if getattr(result, name)]
    speed = [f"{result.rate_of_examples:,.0f} examples/s"] if result.rate_of_examples else []  # every step compiled
    told = ", ".join([*scores, f"epoch {result.best + 1}", *speed, f"{time.monotonic() - begun:.0f} s"])
    print(f"{cell.name}: {told}", flush=True)
    return result, params


def _fit(job: Job, cell: Cell) -> tuple[Result, Params]:
    from tqdm import tqdm

    with tqdm(desc=cell.name, unit="step", leave=False, disable=None) as bar:
        return cells.fit(job, cell, _in_lines(cell.name) if bar.disable else _in_bar(bar))


def keep(run: Path, job: Job, best: Result, params: Params | None, model: Model) -> None:
    """Write the chosen cell's model, unless it is there.

    Args:
        params: the cell's, None where they went with the process that made them.
    """
    out, recipe = run / "model", job.main.recipe
    if task_model.is_directory(out):
        try:
            if task_model.read(out).task.get("cell") == best.cell.name:
                return
        except UserError as error:
            print(f"{error}; it is written again", flush=True)
    if params is None:
        print(f"{best.cell.name}: fitted once more, for its weights", flush=True)
        _, params = _fit(job, best.cell)
    fine_tuned.write(
        out,
        replace(job.main.asked, no_answer=best.no_answer),
        params,
        model.loaded,
        {"cell": best.cell.name, "scores": {"dev": best.dev, "test": best.test}, "columns": asdict(recipe.columns)},
        {"encoder": model.origin, "recipe": to_toml(recipe), "cell": best.cell.name},
    )


def judge_kept(run: Path, main: Prepared, on: str) -> Judged:
    """What the model that was written says of a split."""
    kept = task_model.read(run / "model")
    net = replace(main.asked.net, mean=0.0, spread=1.0)  # which are in its weights
    asked = replace(main.asked, net=net, no_answer=kept.task["no_answer"])
    return judge(asked, {**kept.loaded.params, **kept.head}, getattr(main.splits, on), main.rows[on])


def _in_bar(bar: Any) -> Callable[[int, int, float], None]:
    def told(step: int, steps: int, loss: float) -> None:
        bar.total = steps
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        bar.update()

    return told


def _in_lines(name: str) -> Callable[[int, int, float], None]:
    """Where there is no terminal: a line each half minute."""
    begun = said = time.monotonic()
    first = 0

    def told(step: int, steps: int, loss: float) -> None:
        nonlocal begun, said, first
        now = time.monotonic()
        if first == 0:  # it took what there was to compile
            first, begun = step, now
        if now - said >= QUIET and step < steps and step > first:
            left = (now - begun) / (step - first) * (steps - step)
            print(f"{name}: step {step:,}/{steps:,}, loss {loss:.3f}, ETA {duration(left)}", flush=True)
            said = now

    return told


# ------------------------------------------------------------------------------------------------------- the report


def floor_scores(main: Prepared, split: str, audited: bool) -> dict[str, dict[str, float]]:
    """The metrics of each floor on a split."""
    task, examples = main.recipe.task, getattr(main.splits, split)
    found = floors.floors(main.splits.train, examples, task.family, audited)
    names = main.asked.labels.get("label", ())
    return {name: metrics.measure(examples, one, task.family, task.scheme, names) for name, one in found.items()}


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
        pictures.table(run / "table.png", rows, metric, split, others)
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
