"""Pictures of runs: `curves.png`, drawn again while a run goes on, and several runs over each other."""

from __future__ import annotations

import re
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_jax.store.rundir import read_json, read_lines, read_metrics
from bert_jax.text.manifest import LEVELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAIN, _HELDOUT, _THIRD = "#4878a8", "#d9701e", "#5a9a4a"
_COLOURS = (_TRAIN, _HELDOUT, _THIRD, "#9a5fb0", "#b08a2e", "#4aa5a5", "#c04a5a", "#6b6b6b")
_LEVEL_STYLES: dict[str, Any] = {"uniform": (0, (1, 3)), "unigram": ":", "left_bigram": "-.", "two_sided_bigram": "--"}
_RATIO = re.compile(r"(update|trust)_ratio[/.:_ ]?(.*)")
_SHARE = 0.01  # of the time may go into drawing
_POINTS = 2_000  # of a raw line; more cannot be told apart

Columns = dict[str, np.ndarray]


# ----------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Curves:
    """What a run has written so far: columns float64[n] of its training steps, evaluations and timings.

    `others` are evaluations on further held-out sets by their names.
    """

    train: Columns
    heldout: Columns
    others: Mapping[str, Columns]
    timings: Columns
    levels: Mapping[str, Mapping[str, float]]


def read_curves(run: str | Path) -> Curves:
    """The curves of a run, finished or in progress."""
    run = Path(run)
    train, heldout, timings, others = _Table(), _Table(), _Table(), defaultdict(_Table)
    for row in read_metrics(run):
        if row["kind"] == "train":
            train.add(row)
        else:
            (others[row["set"]] if row.get("set") else heldout).add(row)
    for line in lasting(read_lines(run / "timings.jsonl")):
        if "tokens_per_second" in line:
            timings.add(line)
    sets = {name: table.columns() for name, table in others.items()}
    levels = read_json(run / "manifest.json")["levels"]
    return Curves(train.columns(), heldout.columns(), sets, timings.columns(), levels)


def lasting(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of `timings.jsonl` without those of steps that a later session computed again."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        if kept and line["session"] != kept[-1]["session"]:
            kept = [earlier for earlier in kept if earlier["step"] <= line["from"]]
        kept.append(line)
    return kept


class _Table:
    """Rows of numbers as columns; what a row lacks is not a number. A million rows take 8 MB a column."""

    def __init__(self) -> None:
        self._rows = 0
        self._columns: dict[str, array[float]] = {}

    def add(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, int | float):
                column = self._columns.get(name)
                if column is None:
                    column = self._columns[name] = array("d")
                if len(column) < self._rows:
                    column.extend([np.nan] * (self._rows - len(column)))
                column.append(value)
        self._rows += 1

    def columns(self) -> Columns:
        return {
            name: np.pad(np.frombuffer(column), (0, self._rows - len(column)), constant_values=np.nan)
            for name, column in self._columns.items()
        }


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of each value and of up to `width` − 1 before it that are finite; float64[n] → float64[n]."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    first = np.maximum(np.arange(1, len(values) + 1) - width, 0)
    seen = counts[1:] - counts[first]
    return np.where(seen > 0, (sums[1:] - sums[first]) / np.maximum(seen, 1), np.nan)


# ---------------------------------------------------------------------------------------------------- one run


class Picture:
    """Keeps `curves.png` up to date. Nothing that goes wrong with a picture ends a run: it is told once.

    Args:
        run: the run directory.
        say: tells the person a line.
    """

    def __init__(self, run: Path, say: Callable[[str], None]) -> None:
        self.run, self.say = run, say
        self._cost = 1.0  # seconds of the last drawing; the first one imports matplotlib
        self._since = time.perf_counter()
        self._told = False

    def update(self) -> None:
        """Draw anew, unless that would take more than a hundredth of the time since the last drawing."""
        if self._cost <= _SHARE * (time.perf_counter() - self._since):
            self.draw()

    def draw(self) -> None:
        start = time.perf_counter()
        try:
            draw_curves(self.run)
        except Exception as error:  # whatever matplotlib, its fonts or the disk come up with
            if not self._told:
                self.say(f"curves.png could not be drawn ({type(error).__name__}: {error}); training goes on")
            self._told = True
        self._since = time.perf_counter()
        self._cost = self._since - start


def draw_curves(run: str | Path, log_steps: bool = False) -> Path:
    """`curves.png`: what a run has learned beside the levels that need no network, and how it was trained."""
    path = Path(run) / "curves.png"
    _save(figure_of(read_curves(run), log_steps), path)
    return path


def figure_of(curves: Curves, log_steps: bool = False) -> Figure:
    """Above, what was learned; below, how: a panel for each thing that the run has figures of."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (a second)

    upper: list[Callable[[Axes], None]] = [
        lambda panel: _learned(panel, curves, "masked_lm_loss", "loss", "masked LM: loss, nats"),
        lambda panel: _learned(panel, curves, "masked_lm_accuracy", "accuracy", "masked LM: accuracy"),
    ]
    if "next_sentence_loss" in curves.train:
        upper.append(lambda panel: _second_head(panel, curves))
    lower: list[Callable[[Axes], None]] = [lambda panel: _optimizer(panel, curves)]
    for kind in ("update", "trust"):
        found = [(name, match[2]) for name in curves.train if (match := _RATIO.fullmatch(name)) and match[1] == kind]
        groups = {group or "all": curves.train[name] for name, group in found}
        if groups:
            lower.append(lambda panel, kind=kind, groups=groups: _ratios(panel, curves, kind, groups))
    if curves.timings:
        lower.append(lambda panel: _speed(panel, curves))

    figure = Figure(figsize=(5.2 * max(len(upper), len(lower)), 8.6), layout="constrained")
    above, below = (figure.add_subfigure(place) for place in figure.add_gridspec(2, 1, height_ratios=(1.15, 1)))
    for part, panels in ((above, upper), (below, lower)):
        for panel, paint in zip(np.atleast_1d(part.subplots(1, len(panels))), panels, strict=True):
            paint(panel)
            _steps(panel, curves, log_steps)
    handles, labels = above.axes[0].get_legend_handles_labels()
    above.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False)
    return figure


def _learned(panel: Axes, curves: Curves, name: str, level: str, title: str) -> None:
    _line(panel, curves.train, name, _TRAIN, "training")
    _evaluations(panel, curves.heldout, name, _HELDOUT, "held out")
    for (other, columns), colour in zip(curves.others.items(), _COLOURS[3:], strict=False):
        _evaluations(panel, columns, name, colour, f"held out: {other}")
    top = np.nanmax(curves.train[name]) if name in curves.train and len(curves.train[name]) else 1.0
    for key, label in LEVELS.items():
        if level in curves.levels.get(key, {}):
            at = curves.levels[key][level]
            panel.axhline(at, color="0.25", linewidth=1.0, linestyle=_LEVEL_STYLES[key], label=label, zorder=1)
            top = max(top, at)
    if level == "accuracy":
        panel.set_ylim(0, min(1.0, 1.08 * top))
    panel.set_title(title)


def _second_head(panel: Axes, curves: Curves) -> None:
    for name, colour, label in (("loss", _TRAIN, "loss, nats"), ("accuracy", _THIRD, "accuracy")):
        _line(panel, curves.train, f"next_sentence_{name}", colour, label)
        _evaluations(panel, curves.heldout, f"next_sentence_{name}", colour, f"{label}, held out")
    panel.set_ylim(0, max(1.0, 1.1 * float(np.nanmax(smooth(curves.train["next_sentence_loss"], 20)))))
    panel.set_title("second segment: loss and accuracy")
    panel.legend(frameon=False, fontsize="small")


def _optimizer(panel: Axes, curves: Curves) -> None:
    _line(panel, curves.train, "gradient_norm", _THIRD, "gradient norm, before clipping")
    _log_values(panel)
    panel.set_ylabel("gradient norm", color=_THIRD)
    rate = panel.twinx()
    if "step" in curves.train:  # a run that began with a model is measured before its first step
        rate.plot(*_thin(curves.train["step"], curves.train["learning_rate"]), color=_HELDOUT, linewidth=1.6)
    rate.set_ylabel("learning rate", color=_HELDOUT)
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    panel.set_title("learning rate and gradient norm")


def _ratios(panel: Axes, curves: Curves, kind: str, groups: Columns) -> None:
    """One line a group up to six groups; of more, a map with a row each."""
    title = {"update": "update ÷ parameter norm", "trust": "trust ratio"}[kind]
    panel.set_title(f"{title} by layer group")
    steps, width = curves.train["step"], _width(curves.train["step"])
    if len(groups) <= 6:
        for (name, values), colour in zip(groups.items(), _COLOURS, strict=False):
            panel.plot(*_thin(steps, smooth(values, width)), color=colour, linewidth=1.3, label=name)
        _log_values(panel)
        panel.legend(frameon=False, fontsize="small", ncols=2)
        return
    from matplotlib.colors import LogNorm  # noqa: PLC0415

    edges = np.linspace(0, len(steps), min(len(steps), 200) + 1).astype(int)
    cells = np.array([np.add.reduceat(np.nan_to_num(values), edges[:-1]) for values in groups.values()])
    cells = np.maximum(cells / np.diff(edges), 1e-12)
    borders = np.append(steps[edges[:-1]], steps[-1] + 1)
    low, high = np.percentile(cells, 2), np.percentile(cells, 98)
    norm = LogNorm(low, max(high, 1.01 * low))
    drawn = panel.pcolormesh(borders, np.arange(len(groups) + 1), cells, norm=norm, cmap="viridis", rasterized=True)
    panel.set_yticks(np.arange(len(groups)) + 0.5, list(groups), fontsize="x-small")
    panel.figure.colorbar(drawn, ax=panel, pad=0.01)


def _speed(panel: Axes, curves: Curves) -> None:
    steps, t = curves.timings["step"], curves.timings
    panel.plot(steps, t["places_per_second"], color="0.65", linewidth=1.0, label="with padding")
    panel.plot(steps, t["tokens_per_second"], color=_TRAIN, linewidth=1.5, label="useful tokens/s")
    panel.set_ylim(0, 1.2 * float(np.nanmax(t["places_per_second"])))
    panel.yaxis.set_major_formatter(_thousands)
    title = "speed"
    if "mfu" in t:
        title += f": MFU {np.nanmedian(t['mfu']):.1%}"
    waiting = float(np.nanmean(t["waiting"]))
    if waiting > 0.005:
        title += f", waits for data {waiting:.0%}"
    panel.set_title(title)
    panel.legend(frameon=False, fontsize="small", loc="upper right", ncols=2)


# ------------------------------------------------------------------------------------------ runs over each other


@dataclass(frozen=True)
class Compared:
    """One of several runs: its name, curves, and the place of each step on the common axis."""

    name: str
    curves: Curves
    place: Callable[[np.ndarray], np.ndarray]


def draw_comparison(runs: Sequence[Compared], axis: str, path: Path, log_axis: bool = False) -> None:
    """Masked-LM loss and accuracy, trained and held out, of several runs over each other, as a PNG.

    Args:
        runs: what to draw; levels are drawn where all have the same.
        axis: what the common axis counts.
        path: of the picture, replaced whole.
        log_axis: whether that axis is logarithmic.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(13, 6), layout="constrained")
    panels = figure.subplots(1, 2)
    common = runs[0].curves.levels if all(run.curves.levels == runs[0].curves.levels for run in runs) else {}
    for panel, metric in zip(panels, ("loss", "accuracy"), strict=True):
        for number, run in enumerate(runs):
            colour, name = _COLOURS[number % len(_COLOURS)], f"masked_lm_{metric}"
            _line(panel, run.curves.train, name, colour, "", run.place, linewidth=0.9, alpha=0.6)
            _evaluations(panel, run.curves.heldout, name, colour, run.name, run.place)
            if not run.curves.heldout:
                panel.plot([], [], color=colour, label=f"{run.name} (not measured yet)")
        for key, label in LEVELS.items():
            if metric in common.get(key, {}):
                style = _LEVEL_STYLES[key]
                panel.axhline(common[key][metric], color="0.25", linewidth=1.0, linestyle=style, label=label, zorder=1)
        panel.set(title=f"masked LM: {'loss, nats' if metric == 'loss' else metric}", xlabel=axis)
        panel.grid(alpha=0.25)
        if log_axis:
            panel.set_xscale("log")
        elif axis != "hours":
            panel.xaxis.set_major_formatter(_thousands)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    _save(figure, path)


# --------------------------------------------------------------------------------------------------- the parts


def _line(
    panel: Axes,
    train: Columns,
    name: str,
    colour: str,
    label: str,
    place: Callable[[np.ndarray], np.ndarray] = lambda steps: steps,
    **style: Any,
) -> None:
    """A figure of every step: faint as it is, strong as a running mean. An empty label keeps the faint one out."""
    if name not in train:
        return
    x, width = place(train["step"]), _width(train["step"])
    if label:
        panel.plot(*_thin(x, train[name]), color=colour, linewidth=0.5, alpha=0.22)
        label += f" (mean of {width} steps)" if width > 1 and label == "training" else ""
    style = {"linewidth": 1.4, **style}
    panel.plot(*_thin(x, smooth(train[name], width)), color=colour, label=label or "_", **style)


def _evaluations(
    panel: Axes,
    heldout: Columns,
    name: str,
    colour: str,
    label: str,
    place: Callable[[np.ndarray], np.ndarray] = lambda steps: steps,
) -> None:
    if name in heldout:
        x = place(heldout["step"])
        size = 4.5 if len(x) <= 40 else 2.0
        panel.plot(x, heldout[name], "o-", color=colour, markersize=size, linewidth=1.2, label=label)


def _steps(panel: Axes, curves: Curves, log_steps: bool) -> None:
    """The axis of steps, with a line where a stage begins."""
    if "stage" in curves.train:
        for border in np.flatnonzero(np.diff(curves.train["stage"])):
            panel.axvline(curves.train["step"][border] + 0.5, color="0.6", linewidth=0.8)
    panel.set_xlabel("step")
    panel.grid(alpha=0.25)
    if log_steps:
        panel.set_xscale("log")
    else:
        panel.set_xlim(left=0)
        panel.xaxis.set_major_formatter(_thousands)


def _log_values(panel: Axes) -> None:
    """A logarithmic axis of values, with 1, 2 and 5 of each decade written out where there is room."""
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")


def _width(steps: np.ndarray) -> int:
    """Of the running mean: a hundredth of the run, of a short one up to 20 steps."""
    return max(len(steps) // 100, min(len(steps) // 5, 20), 1)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    every = max(1, len(x) // _POINTS)
    return x[every - 1 :: every], y[every - 1 :: every]


def _thousands(value: float, _: int | None = None) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _save(figure: Figure, path: Path) -> None:
    """Replace the picture whole."""
    temporary = path.with_name(f".{path.name}")
    try:
        figure.savefig(temporary, dpi=110, format="png")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
