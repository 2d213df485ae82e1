"""Fine-tuning here and in transformers on torch: the same tasks, scores over seeds, and speed.

    pip install transformers torch
    python -m benchmarks.finetune TASKS MODEL [--families single pair …] [--seeds 3] [--train 1000]

TASKS is the directory that the recipes of configs/tasks name files in, MODEL a transformers directory of a BERT. Both
sides read the same rows, made here: the same pieces, windows and examples, in the same order and the same batches.
Both train with AdamW (torch's fused one), decay not on biases and norms, gradients clipped at norm 1, the same warm-up
and linear fall, dropout of 0.1 in the places where transformers' class has it; numbers of regression in units of their
spread. Heads begin at random, each side's own way. Batches there are padded to their longest row, as transformers
usually does; here rows share the places of a batch. The last epoch is measured on dev, by our metrics on both.
transformers has no class for intents with slots, nor for pairs of near texts: there its encoder is in a small module.

Each fit has a process of its own, one at a time, here and torch in turn, on as many threads as there are cores, and
nothing is compiled before. Examples a second leave out what is compiled here and the first step there; the seconds of
a fit have all of it, and neither reading nor measuring.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.kept import Kept
from benchmarks.train_step import keep_freed
from bert_jax import heap
from bert_jax.api import open_model
from bert_jax.tasks import audit, loop, metrics, predictions, sweep
from bert_jax.tasks.reading import Splits, read_splits
from bert_jax.tasks.settings import TaskRecipe, load_task_recipe
from bert_jax.tasks.task import Asked, first_params, make_asked, scores

RECIPES = Path(__file__).parents[1] / "configs/tasks"
TASKS = {
    "single": "sst2",
    "pair": "mrpc",
    "regression": "stsb",
    "choice": "commonsenseqa",
    "tagging": "conll2003",
    "qa": "squad1",
    "intent_slots": "snips",
    "embedding": "stsb",
}
NEAR = 4.0  # of stsb's numbers: such pairs are near each other
SIDES = ("here", "torch")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tasks", type=Path, metavar="TASKS")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--families", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=1000, help="examples to train on (1000)")
    parser.add_argument("--dev", type=int, default=1000, help="examples to measure on, at most (1000)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-4, help="the learning rate (1e-4)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="write every fit there too, and go on from those that stand there")
    parser.add_argument("--worker", nargs=3, metavar=("SIDE", "FAMILY", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        side, family, seed = args.worker
        print(json.dumps(work(side, family, int(seed), args)))
        return 0

    rows = [["family", "task", "metric", "here", "torch", "within 2 sd", "examples/s here", "torch", "ratio"]]
    rows[0] += ["s a fit here", "torch"]
    rows.append(["---"] * len(rows[0]))
    free = ("families", "seeds", "json", "worker")
    kept = Kept(args.json, {name: value for name, value in vars(args).items() if name not in free})
    for family in args.families:
        fits: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for seed in range(args.seeds):
            for side in SIDES:
                name = f"{family}, {side}, seed {seed}"
                fit = kept.get(name) or kept.put(name, started(side, family, seed))
                fits[side].append(fit)
                print(f"{name}: {json.dumps(fit)}", file=sys.stderr, flush=True)
        rows.append(row(family, fits))
    print(sweep.aligned(rows))
    return 0


def started(side: str, family: str, seed: int) -> dict[str, Any]:
    """Run one fit to its end in a process of its own, with the arguments of this one."""
    command = [sys.executable, "-m", "benchmarks.finetune", *sys.argv[1:], "--worker", side, family, str(seed)]
    left_out = ("OMP_NUM_THREADS", "JAX_COMPILATION_CACHE_DIR")
    variables = {name: value for name, value in os.environ.items() if name not in left_out}
    variables |= {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": heap.HUGE if side == "here" else ""}  # as the command does
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} {family} {seed}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def row(family: str, fits: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A row of the table."""
    of = {name: [[fit[name] for fit in fits[side]] for side in SIDES] for name in ("score", "speed", "wall")}
    speeds, walls = ([statistics.median(column) for column in of[name]] for name in ("speed", "wall"))
    return [
        family,
        TASKS[family],
        fits["here"][0]["metric"].replace("_", " "),
        *map(sweep.told, of["score"]),
        within(*of["score"]),
        *(f"{speed:,.1f}" for speed in speeds),
        f"{speeds[0] / speeds[1]:.2f}",
        *(f"{wall:,.0f}" for wall in walls),
    ]


def within(here: Sequence[float], there: Sequence[float]) -> str:
    """Whether the means are within two standard deviations of one fit, and how many they are apart."""
    if len(here) < 2:
        return "–"
    apart = abs(statistics.fmean(here) - statistics.fmean(there))
    spread = math.sqrt((statistics.variance(here) + statistics.variance(there)) / 2)
    return f"{'yes' if apart <= 2 * spread else 'NO'} ({apart / spread:.1f})" if spread else "–"


# ----------------------------------------------------------------------------------------------------- one process


def work(side: str, family: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One fit: its score on dev, examples a second, seconds in all, and the losses of its first steps."""
    recipe, splits = read(args.tasks, family, args)
    loaded = open_model(args.model)
    labels = audit.labels_of(splits.train, family)
    asked = make_asked(loaded.config, loaded.tokenizer, recipe, labels, splits.train)
    train, dev = asked.rows(splits.train), asked.rows(splits.dev)
    rate, settings = recipe.train.learning_rates[0], recipe.train
    losses: list[float] = []
    if side == "here":
        params = first_params(asked.net, loaded.params, seed)
        begun = time.perf_counter()
        fitted = loop.fit(
            asked.net,
            params,
            train,
            settings,
            rate,
            seed,
            asked.pad,
            told=lambda step, steps, loss: losses.append(loss),
        )
        wall = time.perf_counter() - begun
        examples, seconds = fitted.examples, fitted.seconds
        outs = loop.outputs_of(asked.net, fitted.params, dev, asked.pad)
    else:
        import torch

        from benchmarks import finetune_torch

        keep_freed()  # which is faster still for torch
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(seed)
        model = finetune_torch.make_model(args.model, asked.net)
        begun = time.perf_counter()
        examples, seconds = finetune_torch.fit(model, asked.net, train, settings, rate, seed, asked.pad, losses.append)
        wall = time.perf_counter() - begun
        outs = finetune_torch.outputs_of(model, asked.net, dev, asked.pad)
    found = predictions.predictions(asked.task, asked.labels, splits.dev, dev, outs)
    metric = headline(asked, splits)
    return {
        "metric": metric,
        "score": scores(asked, splits.dev, found)[metric],
        "speed": examples / seconds if seconds else 0.0,
        "wall": wall,
        "steps": len(losses),
        "first losses": [round(loss, 4) for loss in losses[:3]],
        "last losses": [round(loss, 4) for loss in losses[-3:]],
    }


def read(tasks: Path, family: str, args: argparse.Namespace) -> tuple[TaskRecipe, Splits]:
    """A recipe as both sides follow it, and its examples."""
    near = family == "embedding"
    settings = [
        f"task.family={family}",
        f"task.train_limit={0 if near else args.train}",
        f"task.dev_limit={args.dev}",
        'task.test=""',
        f"train.epochs={args.epochs}",
        f"train.batch={args.batch}",
        f"train.learning_rates=[{args.rate}]",
        "train.hidden_dropout=0.1",
        "train.attention_dropout=0.1",
        f"train.head_rate={args.rate}",  # one rate for all, as there
        'readout.layers="last"',
        f"readout.dropout={0.0 if family == 'qa' else 0.1}",  # transformers' class for it has none there
    ]
    recipe = load_task_recipe(RECIPES / f"{TASKS[family]}.toml", [*settings, *args.settings])
    splits = read_splits(tasks, recipe)
    if near:
        close = [example for example in splits.train if float(str(example.label)) >= NEAR]
        kept = sorted(random.Random(0).sample(range(len(close)), min(args.train, len(close))))
        splits = replace(splits, train=[close[place] for place in kept])
    return recipe, splits


def headline(asked: Asked, splits: Splits) -> str:
    """The metric of the table: the recipe's."""
    scored = asked.task.family == "embedding" and all(example.label is not None for example in splits.dev)
    return metrics.headline(asked.task.family, asked.task.scheme, asked.task.metric, scored)


if __name__ == "__main__":
    sys.exit(main())
