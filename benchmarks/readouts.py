"""What a head reads, and whether the encoder is trained: frozen features beside fine-tuning, read-out by read-out.

    python -m benchmarks.readouts TASKS MODEL [--tasks sst2 mrpc conll2003] [--what head all] [--json FILE]

TASKS is the directory that the recipes of configs/tasks name files in, MODEL what `bert-jax finetune` takes. A row for
each read-out: every layer by itself (0 the embeddings), the mean of all, the last four beside each other, the learned
mix and the layer attention, read at [CLS] (of tagging at each word's first piece); then the last layer read in other
places of the text. Features are computed once a read-out; heads train on them longer and faster. The last epoch is
measured on dev. Scores are means over seeds with their standard deviation.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.kept import Kept
from bert_jax.api import open_model
from bert_jax.config import BertConfig
from bert_jax.convert.loaded import Loaded
from bert_jax.tasks import audit, loop, metrics, sweep
from bert_jax.tasks.reading import Splits, read_splits
from bert_jax.tasks.settings import FineTuneSettings, ReadoutSettings, TaskRecipe, load_task_recipe
from bert_jax.tasks.task import first_params, judge, make_asked

RECIPES = Path(__file__).parents[1] / "configs/tasks"
JOINED = ("mean", "cat4", "mix", "attention")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, metavar="TASKS")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "mrpc", "conll2003"], help="names of recipes")
    parser.add_argument("--what", nargs="+", default=["head", "all"], choices=("head", "all"))
    parser.add_argument("--layers", nargs="+", help="only these, such as 0 -1 mix (all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=1000, help="examples to train on (1000)")
    parser.add_argument("--dev", type=int, default=1000, help="examples to measure on, at most (1000)")
    parser.add_argument("--epochs", type=int, nargs=2, default=[20, 3], metavar=("HEAD", "ALL"))
    parser.add_argument("--rates", type=float, nargs=2, default=[1e-3, 1e-4], metavar=("HEAD", "ALL"))
    parser.add_argument("--json", type=Path, help="write every fit there too, and go on from those that stand there")
    args = parser.parse_args()
    loaded = open_model(args.model)
    kinds = dict(zip(("head", "all"), zip(args.epochs, args.rates, strict=True), strict=True))
    trained = {
        what: FineTuneSettings(epochs=kinds[what][0], learning_rates=(kinds[what][1],), what=what) for what in args.what
    }
    free = ("tasks", "what", "layers", "json")
    kept = Kept(args.json, {name: value for name, value in vars(args).items() if name not in free})
    table: list[list[str]] = []
    for name in args.tasks:
        limits = [f"task.train_limit={args.train}", f"task.dev_limit={args.dev}", 'task.test=""']
        recipe = load_task_recipe(RECIPES / f"{name}.toml", limits)
        splits = read_splits(args.data, recipe)
        for layers, tokens in readouts(loaded.config, recipe.task.family, args.layers):
            read = ReadoutSettings(layers=layers, tokens=tokens)
            cells, metric = [], metrics.headline(recipe.task.family, recipe.task.scheme, recipe.task.metric)
            for what, settings in trained.items():
                told = f"{name}, {layers}, {tokens}, {what}"
                if (fits := kept.get(told)) is None:
                    asked = replace(recipe, readout=read, train=settings)
                    fits = kept.put(told, fitted(asked, splits, loaded, range(args.seeds)))
                print(f"{told}: {json.dumps(fits)}", file=sys.stderr, flush=True)
                cells += [sweep.told(fits["scores"]), f"{fits['seconds'] / args.seeds:,.1f}"]
            table.append([name, metric.replace("_", " "), layers, tokens, *cells])
    titles = ["task", "metric", "layers", "tokens"]
    for what in trained:
        titles += [{"head": "frozen", "all": "fine-tuned"}[what], "s a fit"]
    print(sweep.aligned([titles, ["---"] * len(titles), *table]))
    return 0


def readouts(config: BertConfig, family: str, only: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    """(layers, tokens) of each row."""
    wanted = None if only is None else {numbered(config, name) for name in only}
    every = [str(number) for number in range(config.layers)] + ["last", *JOINED]
    for layers in every:
        if (wanted is None or layers in wanted) and not (layers == "cat4" and config.layers < 4):
            yield layers, "first"
            if layers == "last" and family in ("single", "pair"):
                yield from ((layers, tokens) for tokens in ("pooled", "mean", "first_last"))


def numbered(config: BertConfig, layers: str) -> str:
    """A layer's number from the embeddings on; the last one by its name."""
    if not layers.removeprefix("-").isdigit():
        return layers
    number = int(layers) % (config.layers + 1)
    return "last" if number == config.layers else str(number)


def fitted(recipe: TaskRecipe, splits: Splits, loaded: Loaded, seeds: Sequence[int]) -> dict[str, Any]:
    """Scores on dev by seed, and the seconds of all: features, compiling and training, no measuring."""
    family, settings = recipe.task.family, recipe.train
    labels = audit.labels_of(splits.train, family)
    asked = make_asked(loaded.config, loaded.tokenizer, recipe, labels, splits.train)
    net, pad = asked.net, asked.pad
    rows = {"train": asked.rows(splits.train), "dev": asked.rows(splits.dev)}
    given: dict[str, Any] = dict.fromkeys(rows)
    metric = metrics.headline(family, recipe.task.scheme, recipe.task.metric)
    scores, seconds = [], 0.0
    for seed in seeds:
        begun = time.perf_counter()
        params = first_params(net, loaded.params, seed)
        fresh = net.tokens == "pooled" and "pooler" not in loaded.params  # of each seed another
        if settings.what == "head" and (fresh or seed == seeds[0]):
            given = {name: loop.compute_features(net, params, each, pad) for name, each in rows.items()}
        fit = loop.fit(
            net, params, rows["train"], settings, settings.learning_rates[0], seed, pad, features=given["train"]
        )
        seconds += time.perf_counter() - begun
        scores.append(judge(asked, fit.params, splits.dev, rows["dev"], given["dev"]).scores[metric])
    return {"metric": metric, "scores": scores, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
