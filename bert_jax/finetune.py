"""`bert-jax finetune`: an encoder and labelled examples to a model of a task, with its score and what that is worth.

One fit for each learning rate and seed. The same command continues a sweep that was stopped or killed: finished cells
are kept, and those that were running begin anew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from bert_jax import fine_tuned
from bert_jax.api import open_model
from bert_jax.convert import task_model
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.origin import origin
from bert_jax.errors import UserError, counted
from bert_jax.settings import add_settings, to_toml
from bert_jax.store import rundir, taskdir
from bert_jax.store.clock import duration
from bert_jax.tasks import audit, cells, metrics, network, summary, sweep
from bert_jax.tasks.cells import Job, Prepared
from bert_jax.tasks.network import Params
from bert_jax.tasks.reading import Splits, read_splits
from bert_jax.tasks.settings import TaskRecipe, load_task_recipe
from bert_jax.tasks.sweep import Cell, Result
from bert_jax.tasks.task import Judged, judge

QUIET = 30.0  # seconds between lines where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", type=Path, nargs="+", metavar="RECIPE", help="TOML recipes, such as configs/tasks/")
    parser.add_argument("--model", type=Path, required=True, help="a run directory, or what `bert-jax import` reads")
    parser.add_argument("--data", type=Path, required=True, help="the directory that the recipes' file names begin at")
    parser.add_argument(
        "--run", type=Path, required=True, help="the directory to begin or continue; of several recipes it has one each"
    )
    add_settings(parser, "override a setting of every recipe, such as train.epochs=5")
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
    splits = read_splits(data, recipe)
    metric = checked(recipe, splits)
    facts = audit.facts(splits, recipe.task.family)
    say_facts(facts)
    config, tokenizer = model.loaded.config, model.loaded.tokenizer
    stages = [cells.prepared(one, trained_before(data, one), config, tokenizer) for one in before]
    main = cells.prepared(recipe, splits, config, tokenizer)
    say_notes(main, stages, model.loaded)
    job = Job(main, metric, cache(partial(encoder_after, run, stages, model, recipe)), same=not stages)
    files = [item for one in (main, *stages) for item in one.splits.files.items()]
    encoder = {name: file["sha256"] for name, file in model.origin["files"].items()}
    with taskdir.opened(run, [recipe, *before], files, encoder):
        # ------------------------------------------------------------------------------------------------- the sweep
        taskdir.compile_once(run)
        results, best_params = [], None
        for cell in sweep.cells(recipe.train):
            result, params = result_of(run, job, cell)
            results.append(result)
            if sweep.best_cell(results, metric) is result:  # the only parameters that are kept in memory
                best_params = params
        seeds = recipe.train.seeds if twin else ()
        rate = sweep.best_rate(results, metric)
        twins = [result_of(run, job, Cell("random", rate, seed))[0] for seed in seeds]
        # ---------------------------------------------------------------------------------- the model and the report
        best = sweep.best_cell(results, metric)
        keep(run, job, before, best, best_params, model)
        on = summary.reported(main)
        judged = judge_kept(run, main, on)
        found = summary.summarize(main, metric, results, twins, judged, facts, audited)
        found.report["before"] = [
            {"recipe": named.recipe, "examples": len(stage.splits.train), "settings": asdict(stage.recipe.train)}
            for named, stage in zip(recipe.before, stages, strict=True)
        ]
        table = sweep.table(found.lines, metric)
        told = [{**one, **e.gold()} for one, e in zip(judged.predictions, getattr(splits, on), strict=True)]
        rundir.write_json(run / "report.json", found.report)
        rundir.write_text(run / "table.md", table + "\n")
        rundir.write_text(run / f"predictions-{on}.jsonl", _json_lines(told))
        try:
            summary.draw(run, main, found, results, judged)
        except OSError as error:
            print(f"{run}: the pictures cannot be written ({error.strerror})")
    print(table)
    if len(rates := sorted(recipe.train.learning_rates)) > 1 and rate in (rates[0], rates[-1]) and splits.dev:
        end, other = ("lowest", "lower") if rate == rates[0] else ("highest", "higher")
        print(f"the best rate is the {end} of those tried: a {other} one in train.learning_rates costs its fits alone")
    print(f"{run / 'model'}: {best.cell.name}; predictions, tables and pictures beside it", flush=True)
    return found.row


# --------------------------------------------------------------------------------------------- what is checked first


def checked(recipe: TaskRecipe, splits: Splits) -> str:
    """The metric that chooses. Raises `UserError` where the splits do not allow what the recipe asks for."""
    task, settings = recipe.task, recipe.train
    if not splits.train:
        raise UserError("there are no training examples", "task.train", "name a file")
    labels = audit.labels_of(splits.train, task.family)
    if task.family == "multi_label" and not labels["labels"]:
        raise UserError("no example has a label", task.train, "name their column with label or flags in [columns]")
    if task.unseen == "error":
        for name in ("dev", "test"):
            audit.check_labels(labels, getattr(splits, name), name)
    if not splits.dev and len(settings.learning_rates) > 1:
        raise UserError(
            "several learning rates need a dev split to choose by",
            "task.dev",
            "name a file, or give task.dev_share=0.1, or one rate",
        )
    measured = {name: examples for name in ("dev", "test") if (examples := getattr(splits, name))}
    measured = measured or {"train": splits.train}
    scored = {all(e.label is not None for e in examples) for examples in measured.values()}
    if task.family == "embedding" and len(scored) > 1:
        what = "one of dev and test has a number for every pair, the other has not: they cannot be measured alike"
        raise UserError(what, "task", "give both numbers, or name a column that is not there in columns.label")
    if task.family == "qa" and task.metric.startswith(("has_answer", "no_answer")):
        for name, examples in measured.items():
            if len({bool(e.answers) for e in examples}) < 2:
                what = f"metric = {task.metric!r} is of questions with and without an answer, and {name} has one kind"
                raise UserError(what, "task", 'choose "f1" or "exact"')
    return metrics.headline(task.family, task.scheme, task.metric, scored == {True})


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
        if term in ("label", "labels", "intent", "choice", "answer") and counts:
            total = facts["examples"]["train"] if term == "labels" else sum(counts.values())
            common, rare = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
            told = f"{common} {counts[common] / total:.1%}, {rare} {counts[rare] / total:.1%}"
            print(f"  {counted(len(counts), term.removesuffix('s'))}: most {told} least")
    for where, found in facts["duplicates"].items():
        if found["count"]:
            other = f", {found['contradicting']:,} with another label" if found["contradicting"] else ""
            print(f"  {counted(found['count'], 'example')} {'twice ' if where == 'in train' else 'of '}{where}{other}")
    for split, terms in facts["unseen"].items():
        for term, names in terms.items():
            print(f"  {split} has {counted(len(names), term.removesuffix('s'))} that train lacks: they count as wrong")


def say_notes(main: Prepared, stages: Sequence[Prepared], loaded: Loaded) -> None:
    """What is trained before it, which texts are cut, how [CLS] is read, and what is missing."""
    recipe, task, splits = main.recipe, main.recipe.task, main.splits
    for stage, named in zip(stages, recipe.before, strict=True):
        print(f"  before it {named.recipe}, train {len(stage.splits.train):,}")
    full = sum(len(row.ids) >= task.length for row in main.rows["train"])
    if full and task.family not in ("tagging", "qa"):  # which read long texts in windows
        of = f"{full:,} of {len(main.rows['train']):,}"
        print(f"  {of} rows of train fill all {task.length} tokens: longer texts are cut")
    if main.asked.net.tokens == "pooled" and "pooler" not in loaded.params:
        still = ", and stays so" if recipe.train.what == "head" else ""
        print(f"  the encoder has no pooler: [CLS] goes through a random one{still} (not with readout.tokens=first)")
    elif main.asked.net.tokens == "pooled" and loaded.pooling is not None:
        usual = "first" if loaded.pooling.mode == "cls" else "mean"
        print(f"  the encoder was trained to be read otherwise than by its pooler (readout.tokens={usual})")
    if not splits.dev:
        measured = "test is measured" if splits.test else "nothing is measured"
        print(f"  no dev split: the last epoch is kept, and {measured} (task.dev_share=0.1 takes one from train)")


# -------------------------------------------------------------------------------------------------------- the fits


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
    with _told(cell.name) as told:
        return cells.fit(job, cell, told)


def encoder_after(run: Path, stages: Sequence[Prepared], model: Model, recipe: TaskRecipe, seed: int) -> Params:
    """The encoder that the fits of a seed begin with: the one that was given, after all tasks that come before.

    Each of these is kept in `before/`, a fine-tuned model as any other: it may take longer than all that follows.
    """
    encoder = model.loaded.params
    for number, (named, stage) in enumerate(zip(recipe.before, stages, strict=True), 1):
        name = f"{number}-{Path(named.recipe).stem}-seed{seed}"
        out = run / "before" / name
        if task_model.is_directory(out):
            kept = task_model.read(out)
            params = {**kept.loaded.params, **kept.head}
        else:
            begun = time.monotonic()
            with _told(name) as told:
                fitted = cells.fit_before(stage, encoder, seed, told)
            params = fitted.params
            provenance = _provenance(model, [one.recipe for one in stages[: number - 1]], stage.recipe, name)
            columns = asdict(stage.recipe.columns)
            fine_tuned.write(out, stage.asked, params, model.loaded, {"cell": name, "columns": columns}, provenance)
            loss, seconds = fitted.curve[-1]["loss"], time.monotonic() - begun
            print(f"{name}: loss {loss:.3f} in the last of {counted(len(fitted.curve), 'epoch')}, {seconds:.0f} s")
        encoder = {**encoder, **{part: params[part] for part in network.ENCODER if part in params}}
    return encoder


def keep(run: Path, job: Job, before: Sequence[TaskRecipe], best: Result, params: Params | None, model: Model) -> None:
    """Write the chosen cell's model, unless it is there.

    Args:
        before: recipes of the tasks that were trained before.
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
        _provenance(model, before, recipe, best.cell.name),
    )


def _provenance(model: Model, before: Sequence[TaskRecipe], recipe: TaskRecipe, fit: str) -> dict[str, Any]:
    trained = [to_toml(one) for one in before]
    return {"encoder": model.origin, "trained before": trained, "recipe": to_toml(recipe), "cell": fit}


def judge_kept(run: Path, main: Prepared, on: str) -> Judged:
    """What the model that was written says of a split."""
    kept = task_model.read(run / "model")
    net = replace(main.asked.net, mean=0.0, spread=1.0)  # which are in its weights
    asked = replace(main.asked, net=net, no_answer=kept.task["no_answer"])
    return judge(asked, {**kept.loaded.params, **kept.head}, getattr(main.splits, on), main.rows[on])


@contextmanager
def _told(name: str) -> Iterator[cells.Told]:
    """Tells how a fit goes on: in a bar, or in lines where there is no terminal."""
    from tqdm import tqdm

    with tqdm(desc=name, unit="step", leave=False, disable=None) as bar:
        yield _in_lines(name) if bar.disable else _in_bar(bar)


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


def _json_lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
