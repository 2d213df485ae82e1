"""Pictures of tasks: who is taken for whom, whether confidence is deserved, and how the fits of a sweep went."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bert_jax.tasks.metrics import expected_calibration_error, higher_is_better, label_scores, reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#4878a8", "#d9701e", "#5a9a4a", "#9a5fb0", "#b08a2e", "#4aa5a5", "#c04a5a", "#6b6b6b")
_STYLES = (":", "--", "-.", (0, (1, 3)), (0, (5, 1, 1, 1, 1, 1)))
_MOST = 20  # labels of a confusion matrix that can still be read


@dataclass(frozen=True)
class Fit:
    """One cell of a sweep, as its curves show it.

    Attributes:
        rate: learning rate.
        seed: of the cell.
        scores: the dev metric after each epoch.
        losses: the mean training loss of each epoch.
    """

    rate: float
    seed: int
    scores: Sequence[float]
    losses: Sequence[float]


@dataclass(frozen=True)
class Row:
    """One line of a sweep's table: its name and a score for each seed."""

    name: str
    scores: Sequence[float]


def confusion(path: str | Path, gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> None:
    """How often each label was predicted for each that was right, as a PNG; colours are shares of a row.

    Of more than 20 labels it shows those that are confused most often, the others together as "(others)".
    """
    names = list(labels) + sorted({*gold, *predicted} - {*labels})
    if len(names) > _MOST:
        wrong = Counter(name for pair in zip(gold, predicted, strict=True) if pair[0] != pair[1] for name in pair)
        often = Counter(gold)
        kept = {*sorted(names, key=lambda name: (-wrong[name], -often[name], name))[: _MOST - 1]}
        names = [name for name in names if name in kept] + ["(others)"]
    places = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(names), len(names)), int)
    for right, given in zip(gold, predicted, strict=True):
        table[places.get(right, -1), places.get(given, -1)] += 1
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)

    shown = [_short(name) for name in names]
    longest = max(map(len, shown))
    upright = longest > 3
    beside = 0.9 + 0.085 * longest
    figure = _figure(max(beside + 0.5 * len(names), 4.4), 0.9 + (beside - 0.4) * upright + 0.46 * max(len(names), 4))
    panel = figure.subplots()
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    panel.set_xticks(range(len(names)), shown, rotation=90 if upright else 0)
    panel.set_yticks(range(len(names)), shown)
    size = 9 if table.max() < 1000 else 7
    for (row, column), count in np.ndenumerate(table):
        if count:
            colour = "white" if shares[row, column] > 0.55 else "0.15"
            panel.text(column, row, f"{count}", ha="center", va="center", fontsize=size, color=colour)
    panel.set(xlabel="predicted", ylabel="right")
    hits = sum(right == given for right, given in zip(gold, predicted, strict=True))
    panel.set_title(f"{hits:,} of {len(gold):,} right ({hits / max(len(gold), 1):.1%})", fontsize="medium")
    _save(figure, Path(path))


def by_label(
    path: str | Path, gold: Sequence[Collection[str]], predicted: Sequence[Collection[str]], labels: Sequence[str]
) -> None:
    """Precision, recall and F1 of each label, the most frequent above, as a PNG; of more than 20 those."""
    names = sorted({*labels, *(name for one in [*gold, *predicted] for name in one)})
    precision, recall, f1, number = label_scores(gold, predicted, names)
    kept = np.argsort(-number, kind="stable")[:_MOST]
    precision, recall, f1 = precision[kept], recall[kept], f1[kept]
    shown = [f"{_short(names[place])}  ({number[place]:,})" for place in kept]
    places = np.arange(len(kept))

    figure = _figure(4.6 + 0.085 * max(map(len, shown)), 1.4 + 0.34 * max(len(kept), 3))
    panel = figure.subplots()
    panel.barh(places, f1, 0.7, color=_COLOURS[0], alpha=0.75, label="F1")
    panel.plot(precision, places, "|", color=_COLOURS[1], markersize=12, markeredgewidth=2, label="precision")
    panel.plot(recall, places, "|", color=_COLOURS[2], markersize=12, markeredgewidth=2, label="recall")
    panel.set_yticks(places, shown)
    panel.set(xlim=(0, 1.02), ylim=(len(kept) - 0.4, -0.6))
    more = f", the {len(kept)} most frequent of {len(names)}" if len(names) > len(kept) else ""
    panel.set_title(f"each label, and how many examples have it{more}", fontsize="medium")
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize="small")
    panel.grid(alpha=0.25, axis="x")
    panel.set_axisbelow(True)
    _save(figure, Path(path))


def calibration(path: str | Path, probabilities: np.ndarray, gold: np.ndarray, bins: int = 15) -> None:
    """Accuracy by confidence (a reliability diagram) and how often each confidence occurs, as a PNG.

    Args are those of `metrics.reliability`.
    """
    confidence, accuracy, number = reliability(probabilities, gold, bins)
    error = expected_calibration_error(probabilities, gold, bins)
    edges, some = np.linspace(0, 1, bins + 1), number > 0

    figure = _figure(5.2, 6.2)
    panel, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    middles, width = (edges[1:] + edges[:-1])[some] / 2, 0.92 / bins
    panel.bar(middles, accuracy[some], width, color=_COLOURS[0], alpha=0.75, label="accuracy")
    low, gap = np.minimum(accuracy, confidence)[some], np.abs(accuracy - confidence)[some]
    panel.bar(
        middles, gap, width, low, color="none", edgecolor=_COLOURS[1], hatch="////", label="gap to mean confidence"
    )
    panel.plot([0, 1], [0, 1], color="0.4", linewidth=1, linestyle="--", label="as it should be")
    panel.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    panel.set_title(f"expected calibration error {error:.3f}, {bins} bins", fontsize="medium")
    panel.legend(frameon=False, loc="upper left", fontsize="small")
    below.bar(middles, number[some] / number.sum(), width, color="0.6")
    below.set(xlabel="confidence in the predicted label", ylabel="share")
    for one in (panel, below):
        one.grid(alpha=0.25)
        one.set_axisbelow(True)
    _save(figure, Path(path))


def curves(path: str | Path, fits: Sequence[Fit], metric: str) -> None:
    """The dev score and the training loss of each fit over its epochs, a colour a learning rate, as a PNG.

    A fit's best epoch has a ring. Fits may have different numbers of epochs.
    """
    rates = sorted({fit.rate for fit in fits})
    figure = _figure(11, 4.6)
    left, right = figure.subplots(1, 2)
    for fit in fits:
        colour = _COLOURS[rates.index(fit.rate) % len(_COLOURS)]
        for panel, values in ((left, fit.scores), (right, fit.losses)):
            panel.plot(range(1, len(values) + 1), values, "o-", color=colour, linewidth=1.2, markersize=3, alpha=0.7)
        scores = np.asarray(fit.scores, np.float64)
        if np.isfinite(scores).any():
            best = int(np.nanargmax(scores) if higher_is_better(metric) else np.nanargmin(scores))
            left.plot([best + 1], [scores[best]], "o", color=colour, markersize=8, markerfacecolor="none")
    left.set(title=f"dev: {_told(metric)}", xlabel="epoch")
    right.set(title="training: loss", xlabel="epoch")
    for panel in (left, right):
        panel.grid(alpha=0.25)
        panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        panel.set_xlim(0.5, max(len(fit.losses) for fit in fits) + 0.5)
    for rate in rates:
        seeds = sum(fit.rate == rate for fit in fits)
        label = f"{rate:g}, {seeds} seed" + ("" if seeds == 1 else "s")
        left.plot([], [], "o-", color=_COLOURS[rates.index(rate) % len(_COLOURS)], label=label)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False, title="learning rate"
    )
    _save(figure, Path(path))


def table(
    path: str | Path, rows: Sequence[Row], metric: str, split: str, floors: Mapping[str, float] | None = None
) -> None:
    """Mean ± standard deviation of each row of a sweep, its scores as dots and floors as lines, as a PNG."""
    figure = _figure(3.4 + 0.95 * len(rows), 4.6)
    panel = figure.subplots()
    for i, row in enumerate(rows):
        scores = np.asarray(row.scores, np.float64)
        deviation = scores.std(ddof=1) if len(scores) > 1 else 0.0
        panel.errorbar(
            i, scores.mean(), deviation, fmt="s", color=_COLOURS[0], markersize=6, capsize=5, linewidth=1.6, zorder=3
        )
        beside = i + 0.16 + 0.05 * (np.arange(len(scores)) - (len(scores) - 1) / 2) / max(len(scores) - 1, 1)
        if len(scores) > 1:
            panel.plot(beside, scores, "o", color=_COLOURS[1], markersize=3.5, alpha=0.8, zorder=2)
        text = f"{scores.mean():.3f}" + (f"\n±{deviation:.3f}" if len(scores) > 1 else "")
        panel.annotate(
            text,
            (i, scores.mean()),
            (-9, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize="x-small",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # floors may lie behind it
        )
    for (name, score), style in zip((floors or {}).items(), _STYLES * 3, strict=False):
        panel.axhline(score, color="0.3", linewidth=1.1, linestyle=style, label=f"{name} {score:.3f}", zorder=1)
    panel.set_xticks(range(len(rows)), [_short(row.name, 30) for row in rows])
    if max(len(row.name) for row in rows) > 9:
        panel.tick_params(axis="x", rotation=30)
        for label in panel.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
    panel.set_xlim(-0.75, len(rows) - 0.4)
    panel.margins(y=0.12)
    seeded = any(len(row.scores) > 1 for row in rows)
    panel.set_title(f"{_told(metric)} on {split}" + "\nmean ± deviation; dots: seeds" * seeded, fontsize="medium")
    panel.grid(axis="y", alpha=0.25)
    if floors:
        figure.legend(loc="outside lower center", ncols=min(len(floors), 2), frameon=False, fontsize="small")
    _save(figure, Path(path))


# --------------------------------------------------------------------------------------------------- the parts


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415  (a second)

    return Figure(figsize=(width, height), layout="constrained")


def _told(metric: str) -> str:
    return metric.replace("_", " ")


def _short(name: str, most: int = 24) -> str:
    """A name with its middle left out if it is long: names that begin alike often end differently."""
    if len(name) > most:
        name = f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"
    return name.replace("$", r"\$")  # matplotlib would set what is between two as mathematics


def _save(figure: Figure, path: Path) -> None:
    """Replace the picture whole."""
    temporary = path.with_name(f".{path.name}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # of labels in scripts that no font here has
            figure.savefig(temporary, dpi=110, format="png")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
