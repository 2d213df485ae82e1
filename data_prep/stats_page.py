"""What `stats.measure` found, as a picture of panels and as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bert_jax.errors import UserError
from bert_jax.text.corrupt import special_ids
from bert_jax.text.manifest import Manifest
from bert_jax.text.tokenizer import Tokenizer
from data_prep import stats, views
from data_prep.stats import Found
from data_prep.views import View, layout_of, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 6  # records on the page
_LISTED = 60  # pieces of each kind on the page


def write(directory: str, manifest: Manifest, found: Found, out: str, seed: int = 0) -> tuple[Path, Path]:
    """Writes `out`/stats.html and `out`/stats.png, each whole or not at all.

    Args:
        directory: the data set, for its tokenizer and the records shown.
        manifest: its manifest.
        found: what was measured of it.
        out: made where it is missing; may be inside the data set, whose files it leaves alone.
        seed: of drawing the records shown.

    Raises:
        UserError: `out` is a file or cannot be written.
    """
    data = views.open_data(directory, None, found.split)
    shown = [views.view(data, number) for number in views.draw(data.total, _SHOWN, seed)]
    light, dark = (picture(found, manifest, colours) for colours in (LIGHT, DARK))
    name = Path(directory).resolve().name
    text = page(name, manifest, found, data.tokenizer, shown, light, dark)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _replace(folder / "stats.html", text.encode()), _replace(folder / "stats.png", light)
    except OSError as error:
        raise UserError(f"the page cannot be written ({error.strerror})", out, "give another --out") from None


def _replace(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


# ------------------------------------------------------------------------------------------------------------
# The picture


@dataclass(frozen=True)
class Colours:
    """`first` for what is counted, `second` for what stands beside it, `asked` for what the settings asked for."""

    paper: str
    ink: str
    faint: str
    grid: str
    first: str
    second: str
    asked: str


LIGHT = Colours("#ffffff", "#24292f", "#6b7280", "#e5e7eb", "#5b7fa6", "#d9a05b", "#a8483f")
DARK = Colours("#15181d", "#d7dce2", "#98a1ad", "#2c323a", "#7c9fc9", "#c99655", "#e08a7d")


def picture(found: Found, manifest: Manifest, colours: Colours = LIGHT) -> bytes:
    """A PNG of one panel for each thing that the records tell; no text of the corpus stands in it."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no state shared with anyone

    panels = [panel for panel in _panels(found, manifest) if panel is not None]
    columns = 3
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(15, 0.9 + 3.7 * rows), dpi=100, layout="constrained", facecolor=colours.paper)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15, wspace=0.03, hspace=0.05)  # type: ignore[union-attr]
    part = f"{found.read:,} of " if found.read < found.total else ""
    figure.suptitle(
        f"{found.split.capitalize()}: {part}{plural(found.total, 'record')} of {plural(found.length, 'token')}, "
        f"layout {layout_of(manifest)}",
        x=0.012,
        ha="left",
        fontsize=15,
        color=colours.ink,
    )
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place, facecolor=colours.paper)
        _quiet(axes, colours)
        panel(axes, colours)
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def _quiet(axes: Axes, colours: Colours) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(colours.grid)
    axes.tick_params(colors=colours.faint, labelsize=9.5, length=3)
    axes.grid(axis="y", color=colours.grid, linewidth=0.8)
    axes.set_axisbelow(True)


def _say(axes: Axes, colours: Colours, title: str, x: str = "", y: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=11.5, color=colours.ink, pad=10)
    axes.set_xlabel(x, color=colours.faint, fontsize=10)
    axes.set_ylabel(y, color=colours.faint, fontsize=10)


def _legend(axes: Axes, colours: Colours, **more) -> None:
    axes.legend(frameon=False, fontsize=9.5, labelcolor=colours.ink, **more)


def _percent(axis) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 6):g}%"))


def _thousands(axis) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


Panel = Callable[["Axes", Colours], None]


def _panels(found: Found, manifest: Manifest) -> list[Panel | None]:
    """The panels in their order; None for what these records do not tell."""
    settings = manifest.settings
    return [
        lambda axes, colours: _lengths(axes, colours, found),
        lambda axes, colours: _segments(axes, colours, found),
        (lambda axes, colours: _labels(axes, colours, found)) if found.labels else None,
        lambda axes, colours: _chosen(axes, colours, found, settings.get("rate")),
        lambda axes, colours: _positions(axes, colours, found, settings.get("rate")),
        lambda axes, colours: _outcomes(axes, colours, found, settings),
        (lambda axes, colours: _documents(axes, colours, found)) if found.documents is not None else None,
        (lambda axes, colours: _words(axes, colours, found)) if found.words is not None else None,
        lambda axes, colours: _vocabulary(axes, colours, found),
    ]


def _binned(histogram: np.ndarray, bins: int = 32) -> tuple[np.ndarray, np.ndarray, int]:
    """Left borders, shares and width of bins of whole numbers; the last one ends with the last value."""
    width = -(-(len(histogram) - 1) // bins)
    # Values 1..T in full bins counted from the end, so that whole rows never share a bin with a stump.
    ends = np.arange(len(histogram) - 1, 0, -width)[::-1]
    counts = np.add.reduceat(histogram[1:], np.maximum(ends - width, 0))
    return ends - width + 1, counts / max(histogram.sum(), 1), width


def _lengths(axes: Axes, colours: Colours, found: Found) -> None:
    left, share, width = _binned(found.lengths)
    axes.bar(left, share, width * 0.9, align="edge", color=colours.first)
    axes.set_xlim(0, found.length + 1)
    _percent(axes.yaxis)
    title = f"{found.lengths[-1] / found.read:.0%} of the rows are full; {found.padding_share:.1%} is padding"
    _say(axes, colours, title, "tokens a row", "rows")


def _segments(axes: Axes, colours: Colours, found: Found) -> None:
    from matplotlib.ticker import MaxNLocator

    title = f"Segment A holds {stats.mean(found.a):.0f} tokens on average"
    pairs = found.b[0] < found.read
    if pairs:
        title += f", B {stats.mean(found.b):.0f}"
    for name, histogram, colour in (("A", found.a, colours.first), ("B", found.b, colours.second))[: 1 + pairs]:
        left, share, width = _binned(histogram)
        axes.stairs(share, np.append(left, left[-1] + width), color=colour, linewidth=1.6, label=f"segment {name}")
        axes.stairs(share, np.append(left, left[-1] + width), color=colour, fill=True, alpha=0.25)
    axes.set_xlim(0, found.length + 1)
    axes.set_ylim(0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    _percent(axes.yaxis)
    if pairs:
        _legend(axes, colours)
    _say(axes, colours, title, "tokens a segment", "rows")


def _bars(axes: Axes, colours: Colours, shares: dict[str, float], asked: dict[str, float]) -> None:
    """Horizontal bars with their share written at the end, and a stroke where the settings asked for it."""
    places = np.arange(len(shares))[::-1]
    axes.barh(places, list(shares.values()), 0.55, color=colours.first)
    top = max(*shares.values(), *asked.values(), 0.01)
    for place, (name, share) in zip(places, shares.items(), strict=True):
        axes.text(share + 0.02 * top, place, f"{share:.2%}", va="center", color=colours.ink, fontsize=10)
        if name in asked:
            axes.plot([asked[name]] * 2, [place - 0.38, place + 0.38], color=colours.asked, linewidth=1.6)
    axes.set_yticks(places, list(shares), color=colours.ink, fontsize=10)
    axes.set_xlim(0, 1.22 * top)
    axes.set_ylim(-0.7, max(len(shares), 2) - 0.3)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=colours.grid, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= min(1.0, 1.22 * top)])
    _percent(axes.xaxis)


def _labels(axes: Axes, colours: Colours, found: Found) -> None:
    shares = {name: count / found.read for name, count in found.labels.items()}
    _bars(axes, colours, shares, {})
    most = max(shares, key=lambda name: shares[name])
    _say(axes, colours, f"{shares[most]:.1%} of the pairs are “{most}”", "rows")


def _outcomes(axes: Axes, colours: Colours, found: Found, settings: dict) -> None:
    shares = {name: count / max(found.chosen, 1) for name, count in stats.outcomes(found)}
    asked = {}
    if "mask_share" in settings and "random_share" in settings:
        mask, random = settings["mask_share"], settings["random_share"]
        asked = {"[MASK]": mask, "kept": 1 - mask - random, "random": random}
    _bars(axes, colours, shares, asked)
    title = f"Of the chosen tokens {shares['[MASK]']:.1%} became [MASK]"
    _say(axes, colours, title, "chosen tokens" + ("; strokes: asked for" if asked else ""))


def _chosen(axes: Axes, colours: Colours, found: Found, rate: float | None) -> None:
    """By rows. Short rows cannot meet the rate exactly, so the shares spread."""
    used = np.flatnonzero(found.shares)
    first, last = max(int(used[0]) - 2, 0), min(int(used[-1]) + 3, len(found.shares))
    # A few rows of a handful of tokens would stretch the axis: what lies beyond 99.9 % goes into the last bar.
    reach = int(np.searchsorted(np.cumsum(found.shares), 0.999 * found.read)) + 1
    last = min(last, max(reach, first + 20))
    shown = found.shares[first:last].copy()
    shown[-1] += found.shares[last:].sum()
    axes.bar(np.arange(first, last) / 200, shown / found.read, 0.0045, align="edge", color=colours.first)
    if rate is not None:
        axes.axvline(rate, color=colours.asked, linewidth=1.6, label=f"asked for: {rate:.1%}")
        _legend(axes, colours)
    _percent(axes.xaxis)
    _percent(axes.yaxis)
    _say(axes, colours, f"{found.chosen_share:.2%} of all tokens are chosen", "chosen share of a row's tokens", "rows")


def _positions(axes: Axes, colours: Colours, found: Found, rate: float | None) -> None:
    here = found.eligible_at > 0
    places = np.flatnonzero(here)
    share = found.chosen_at[here] / found.eligible_at[here]
    often = found.eligible_at[here] >= min(1000, found.eligible_at.max())
    axes.plot(places[often], share[often], ".", color=colours.first, markersize=4)
    if rate is not None:
        axes.axhline(rate, color=colours.asked, linewidth=1.6, label=f"asked for: {rate:.1%}")
        _legend(axes, colours, loc="lower right")
    axes.set_xlim(0, found.length + 1)
    axes.set_ylim(0, min(1.35 * max(share[often].max(), rate or 0.0, 1e-3), 1.05))
    _percent(axes.yaxis)
    low, high = share[often].min(), share[often].max()
    _say(
        axes,
        colours,
        f"Whatever the position, {low:.1%} to {high:.1%} are chosen",
        "position in the row",
        "tokens chosen",
    )


def _documents(axes: Axes, colours: Colours, found: Found) -> None:
    from matplotlib.ticker import MaxNLocator

    sizes = found.documents
    assert sizes is not None
    low, high = max(int(sizes.min()), 1), max(int(sizes.max()), 2)
    borders = np.geomspace(low, high * 1.001, 33) if high > 2 * low else np.linspace(0, high * 1.2, 13)
    axes.hist(np.maximum(sizes, 1), borders, color=colours.first, rwidth=0.92)
    middle = float(np.median(sizes))
    axes.axvline(middle, color=colours.second, linewidth=1.6, label=f"median: {middle:,.0f}")
    if high > 2 * low:
        axes.set_xscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    _thousands(axes.xaxis)
    _thousands(axes.yaxis)
    _legend(axes, colours)
    extent = f"of {high:,} tokens" if int(sizes.min()) == high else f"of {low:,} to {high:,} tokens"
    title = f"{plural(len(sizes), 'document')} {extent}"
    _say(axes, colours, title, "tokens of a document, as far as they stand in rows", "documents")


def _words(axes: Axes, colours: Colours, found: Found) -> None:
    assert found.words is not None
    share = found.words / max(int(found.words.sum()), 1)
    last = max(int(np.flatnonzero(share >= 5e-4)[-1]) if share.any() else 1, 4)
    shown = np.append(share[1:last], share[last:].sum())
    axes.bar(np.arange(1, last + 1), shown, 0.8, color=colours.first)
    for place, value in enumerate(shown, 1):
        axes.text(place, value + 0.01, f"{value:.1%}", ha="center", color=colours.ink, fontsize=9)
    axes.set_xticks(np.arange(1, last + 1), [*map(str, range(1, last)), f"{last} +"])
    axes.set_ylim(0, 1.12 * shown.max() + 0.01)
    _percent(axes.yaxis)
    title = f"{found.fertility:.2f} pieces a word; {found.unknown_share:.2%} of the tokens unknown"
    _say(axes, colours, title, "pieces of a word", "words")


def _vocabulary(axes: Axes, colours: Colours, found: Found) -> None:
    counts = np.sort(found.ordinary)[::-1]
    used = int((counts > 0).sum())
    never = len(counts) - used
    axes.loglog(np.arange(1, used + 1), counts[:used], color=colours.first, linewidth=2)
    if never:
        axes.axvspan(max(used, 1), len(counts), color=colours.second, alpha=0.55, linewidth=0, label="never")
    axes.axhline(stats.FEW, color=colours.faint, linewidth=1, linestyle=":", label=f"{stats.FEW} times")
    axes.set_xlim(1, len(counts))
    axes.set_ylim(0.8)
    axes.grid(axis="x", color=colours.grid, linewidth=0.8)
    _thousands(axes.xaxis)
    _thousands(axes.yaxis)
    _legend(axes, colours, loc="lower left")
    title = f"{never:,} of {plural(len(counts), 'piece')} never occur ({never / max(len(counts), 1):.1%})"
    _say(axes, colours, title, "rank of the piece", "occurrences")


# ------------------------------------------------------------------------------------------------------------
# The page

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #24292f; --faint: #5f6873; --line: #e5e7eb;
  --masked: #dbe6f3; --kept: #dcebd8; --random: #f6e1c6; --code: #f5f6f8 }
@media (prefers-color-scheme: dark) { :root { --paper: #15181d; --ink: #d7dce2; --faint: #98a1ad; --line: #2c323a;
  --masked: #2b425e; --kept: #2c4a33; --random: #5a4220; --code: #1d2127 } }
body { background: var(--paper); color: var(--ink); margin: 0 auto; max-width: 1240px; padding: 24px 20px 60px;
  font: 15px/1.55 system-ui, sans-serif }
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 17px; margin: 36px 0 8px }
p { margin: 4px 0 } .faint { color: var(--faint) }
img { width: 100%; height: auto; margin-top: 12px }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 3px 16px 3px 0; border-bottom: 1px solid var(--line); font-weight: normal;
  vertical-align: top }
thead th { color: var(--faint) } td.n, th.n { text-align: right; white-space: nowrap }
.record { border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px; margin: 10px 0 }
.record p { overflow-wrap: anywhere } .side { color: var(--faint); margin-inline-end: 8px }
mark { color: inherit; border-radius: 3px; padding: 1px 1px } mark.masked { background: var(--masked) }
mark.kept { background: var(--kept); border-bottom: 2px dotted } mark.random { background: var(--random) }
mark s { opacity: .7 } .record b { color: var(--faint); font-weight: normal; font-size: 12px }
.columns { display: flex; flex-wrap: wrap; column-gap: 48px } section { max-width: 100% }
section p { max-width: 34em }
.pieces { overflow-wrap: anywhere } .pieces span { background: var(--code); border-radius: 3px; padding: 1px 5px;
  margin: 2px 4px 2px 0; display: inline-block }
"""


def page(
    name: str,
    manifest: Manifest,
    found: Found,
    tokenizer: Tokenizer,
    records: list[View],
    light: bytes,
    dark: bytes,
) -> str:
    """The HTML page, pictures inside; nothing on it is asked of a network.

    Args:
        name: of the data set.
        manifest, found: what there is to tell.
        tokenizer: names the pieces.
        records: to show.
        light, dark: the picture as PNG, for either background.
    """
    first, second = stats.headline(manifest)
    whole = stats.whole_counts(manifest)
    measured = "<h2>Measured</h2>" + _table([], [[left, right] for left, right in stats.summary(found, manifest)], 2)
    if manifest.levels:
        measured += (
            "<h2>What needs no network</h2><p class=faint>Loss (nats) and accuracy on the held-out masked tokens. A "
            "model whose loss stays near the unigram level knows how frequent words are, and no more.</p>"
            + _table(["", "loss", "accuracy"], [list(row) for row in stats.levels(manifest)])
        )
    head = ["", *(cell for split in manifest.splits for cell in (split, "share"))]
    counted = "<h2>Counted while it was made</h2>" + _table(head, _cells(stats.counts(manifest)))
    if whole:
        counted += _table(["whole input", "", "share"], _cells([(left, [cell]) for left, cell in whole]))
    parts = [
        f"<h1>{_e(name)}</h1><p class=faint>{_e(first)}</p><p class=faint>{_e(second)}</p>",
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_data_uri(dark)}">'
        f'<img src="{_data_uri(light)}" alt="Panels; their figures stand in the tables below"></picture>',
        f"<div class=columns><section>{measured}</section><section>{counted}</section></div>",
        "<h2>Records</h2><p class=faint>Drawn at random, with their original text. Of the chosen pieces, "
        "<mark class=masked>these</mark> became [MASK], <mark class=kept>these</mark> were kept, and "
        "<mark class=random><s>these</s> others</mark> were replaced at random.</p>" + "".join(map(_record, records)),
        "<h2>Pieces</h2>" + _piece_lists(found, tokenizer),
        "<h2>Settings and inputs</h2>" + _settings(manifest),
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(name)}: statistics</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _e(text: object) -> str:
    return html.escape(str(text))


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _table(head: list[str], rows: list[list[str]], words: int = 1) -> str:
    """A table whose first `words` columns are words, the others numbers."""

    def line(cells: list[str], tag: str) -> str:
        kinds = ("" if place < words else " class=n" for place in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{kind}>{_e(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))

    top = f"<thead>{line(head, 'th')}</thead>" if head else ""
    return f"<div class=wide><table>{top}<tbody>{''.join(line(row, 'td') for row in rows)}</tbody></table></div>"


def _cells(rows: list[tuple[str, list[tuple[str, str]]]]) -> list[list[str]]:
    return [[name, *(text for cell in cells for text in cell)] for name, cells in rows]


def _record(one: View) -> str:
    lines = [f"<p class=faint>{_e(one.title)}{_e('; ' + one.documents if one.documents else '')}</p>"]
    for name, pieces in zip("AB", one.segments, strict=False):
        text = ""
        for piece in pieces:
            shown = _e(piece.text)
            if piece.fate == "random":
                shown = f"<s>{shown}</s> {_e(piece.now)}"
            if piece.now:
                shown = f'<mark class={piece.fate} title="{_e(piece.now)}">{shown}</mark>'
            elif piece.fate:
                shown = f"<b>{shown}</b>"
            text += piece.blank + shown
        lines.append(f"<p dir=auto><span class=side>{name}</span>{text}</p>")
    return f"<div class=record>{''.join(lines)}</div>"


def _piece_lists(found: Found, tokenizer: Tokenizer) -> str:
    """The most frequent pieces, and of those that never occur an even selection."""
    counts = found.pieces.copy()
    counts[special_ids(found.special)] = -1
    order = np.argsort(-counts, kind="stable")
    most = [number for number in order[:_LISTED].tolist() if counts[number] > 0]
    never = np.flatnonzero(counts == 0)
    some = never[np.linspace(0, len(never) - 1, min(_LISTED, len(never))).astype(int)].tolist()
    text = f"<p class=faint>The {len(most)} most frequent:</p><p class=pieces>{_pieces(most, tokenizer)}</p>"
    if len(some):
        which = "All" if len(some) == len(never) else f"{len(some)} of the"
        text += f"<p class=faint>{which} {len(never):,} that never occur, by number:</p>"
        text += f"<p class=pieces>{_pieces(some, tokenizer)}</p>"
    return text


def _pieces(numbers: list[int], tokenizer: Tokenizer) -> str:
    return "".join(f"<span>{_e(tokenizer.pieces[number])}</span> " for number in numbers)


def _settings(manifest: Manifest) -> str:
    rows = [
        [key.replace("_", " "), str(value)] for key, value in manifest.settings.items() if not isinstance(value, dict)
    ]
    files = [[one["name"], f"{one['bytes']:,}", one["sha256"][:16]] for one in manifest.inputs]
    tables = _table([], rows, 2)
    if files:
        tables += f"<details><summary>{_e(plural(len(files), 'input file'))}</summary>"
        tables += _table(["name", "bytes", "SHA-256"], files) + "</details>"
    return tables
