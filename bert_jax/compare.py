"""`bert-jax compare`: several runs over each other: curves, final figures, settings that differ, the same data?"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.errors import UserError
from bert_jax.store.closing import hours, time_spent
from bert_jax.store.curves import Compared, draw_comparison, read_curves
from bert_jax.store.rundir import check_output, check_run, read_json, read_metrics

AXES = ("step", "tokens", "hours")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories, finished or in progress")
    parser.add_argument("--by", choices=AXES, default="step", help="what the curves are drawn over (default: step)")
    parser.add_argument("--out", type=Path, default=Path("compare.png"), help="the picture (default: compare.png)")
    parser.add_argument("--log", action="store_true", help="make that axis logarithmic")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(args: argparse.Namespace) -> int:
    """Draw the picture and print the tables, or the JSON object."""
    runs = args.runs
    if len(runs) < 2 or len({path.resolve() for path in runs}) < len(runs):
        raise UserError("two different runs or more are needed", " ".join(map(str, runs)), "name each once")
    for path in runs:
        check_run(path)
    names = short_names(runs)
    curves = [read_curves(path) for path in runs]
    for path, curve in zip(runs, curves, strict=True):
        if "step" not in curve.train:
            raise UserError("no step is done yet", str(path), "compare it when its first progress line has come")
    places = [axis(path, curve.train, args.by) for path, curve in zip(runs, curves, strict=True)]
    drawn = [Compared(*parts) for parts in zip(names, curves, places, strict=True)]
    check_output(args.out)
    draw_comparison(drawn, {"step": "step", "tokens": "useful tokens"}.get(args.by, args.by), args.out, args.log)
    found = {
        "runs": dict(zip(names, map(str, runs), strict=True)),
        "figures": {name: figures(path) for name, path in zip(names, runs, strict=True)},
        "data": {name: same_data(runs[0], path) for name, path in zip(names[1:], runs[1:], strict=True)},
        "differences": differences(dict(zip(names, map(described, runs), strict=True))),
        "picture": str(args.out),
    }
    print(json.dumps(found, indent=1) if args.json else tables(found))
    return 0


# ------------------------------------------------------------------------------------------- what there is to tell


def short_names(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    parts = [path.resolve().parts for path in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in runs]


def axis(run: Path, train: dict[str, np.ndarray], by: str) -> Callable[[np.ndarray], np.ndarray]:
    """Steps → places on the common axis.

    Raises:
        UserError: the run has not kept what is asked for.
    """
    if by == "step":
        return lambda steps: steps
    if by == "tokens":
        if "tokens" not in train or np.isnan(train["tokens"]).any():
            raise UserError("its lines do not tell tokens: an earlier version wrote them", str(run), "compare by steps")
        at, values = train["step"], np.cumsum(train["tokens"])
    else:
        steps, values = hours(run)
        if not steps:
            raise UserError("there are no timings: an earlier version made this run", str(run), "compare by steps")
        at = np.array(steps, float)
    return lambda steps: np.interp(steps, at, values)


def figures(run: Path) -> dict[str, Any]:
    """How far a run is and what it reached: the newest held-out measurement, and what it took."""
    tokens = step = 0
    latest: dict[str, Any] = {}
    for row in read_metrics(run):
        if row["kind"] == "train":
            step, tokens = row["step"], tokens + row.get("tokens", 0)
        elif "set" not in row:
            latest = {"measured at step": row["step"], **{k: x for k, x in row.items() if isinstance(x, float)}}
    spent = time_spent(run)
    recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    found: dict[str, Any] = {"step": step, "steps in all": sum(stage["steps"] for stage in recipe["stage"])}
    if tokens:
        found["useful tokens"] = tokens
    if spent:
        found["hours"] = round(sum(spent.values()) / 3600, 4)
        busy = spent["productive"] + spent["waiting for data"]
        if tokens and busy:
            found["useful tokens/s"] = round(tokens / busy, 1)
    return found | {name.replace("_", " "): x for name, x in latest.items()}


def same_data(one: Path, other: Path) -> dict[str, int | None]:
    """Whether two runs trained on the same batches: the steps that both have, and the first whose digest differs."""
    steps = 0
    for ours, theirs in zip(read_metrics(one, "train"), read_metrics(other, "train"), strict=False):
        if ours["batch"] != theirs["batch"]:
            return {"steps compared": steps + 1, "first differing step": ours["step"]}
        steps += 1
    return {"steps compared": steps, "first differing step": None}


def described(run: Path) -> dict[str, Any]:
    """Every setting of a run, and where it was made, by dotted names."""
    recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    provenance = read_json(run / "provenance.json")
    kept = ("git", "python", "machine", "packages", "mesh", "manifests")
    return _flat(recipe) | _flat({name: provenance[name] for name in kept if name in provenance})


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    else:
        return {prefix: tree}
    return {key: x for name, part in items for key, x in _flat(part, f"{prefix}.{name}" if prefix else name).items()}


def differences(settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Dotted name → the value in each run, None where it has none, of those that are not the same in all."""
    names = dict.fromkeys(name for run in settings.values() for name in run)
    rows = {name: {run: values.get(name) for run, values in settings.items()} for name in names}
    return {name: row for name, row in rows.items() if len({json.dumps(x) for x in row.values()}) > 1}


# ------------------------------------------------------------------------------------------------------- tables


def tables(found: dict[str, Any]) -> str:
    """What `run` found, as aligned text."""
    names = list(found["runs"])
    keys = dict.fromkeys(key for row in found["figures"].values() for key in row)
    parts = [_table(["", *names], [[key, *(_cell(found["figures"][n].get(key)) for n in names)] for key in keys])]
    rows = [[key, *(_cell(row[n]) for n in names)] for key, row in found["differences"].items()]
    parts.append(_table(["settings that differ", *names], rows) if rows else "No setting differs.")
    for name, told in found["data"].items():
        steps, differs = told["steps compared"], told["first differing step"]
        if differs is None:
            parts.append(f"{names[0]} and {name} saw the same data in all {steps:,} steps that both have.")
        else:
            parts.append(f"{names[0]} and {name} saw other data from step {differs:,} on.")
    return "\n\n".join([*parts, f"picture: {found['picture']}"])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else text[:18] + "…" + text[-18:]


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip_longest(head, *rows, fillvalue="")]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in [head, *rows]
    )
