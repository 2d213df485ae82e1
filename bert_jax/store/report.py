"""What a person sees of a run: progress lines, metrics, TensorBoard, curves, the closing table."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TextIO, TypeVar

import numpy as np

from bert_jax.errors import UserError
from bert_jax.store.rundir import read_json, read_metrics, write_json

T = TypeVar("T")

# The held-out levels of the manifest, as curves and tables name them.
LEVELS = {
    "unigram": "unigram (word frequencies)",
    "left_bigram": "bigram (left neighbour)",
    "two_sided_bigram": "bigrams (both neighbours)",
}


class Clock:
    """Where the time of a session went: seconds by kind, for `report.json`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - start

    def each(self, kind: str, items: Iterable[T]) -> Iterator[T]:
        """The items, the time until each one comes counted as `kind`."""
        iterator = iter(items)
        while True:
            with self.timed(kind):
                item = next(iterator, None)
            if item is None:
                return
            yield item


class Reporter:
    """Writes `metrics.jsonl`, `log.txt`, TensorBoard events, and progress to the terminal.

    Lines are collected and written together at each progress line and before each checkpoint, so that a checkpoint
    never knows of a step whose line is lost. On all processes but the first it writes nothing.
    """

    def __init__(self, run: Path, total_steps: int, seconds: float, tensorboard: bool, active: bool) -> None:
        self.run, self.total, self.every, self.active = run, total_steps, seconds, active
        self._lines: list[str] = []
        self._held = False  # lines could not be written, and this was said
        self._log: TextIO | None = (run / "log.txt").open("a", encoding="utf-8") if active else None
        self._events: Any = None
        if active and tensorboard:
            from tensorboardX import SummaryWriter  # noqa: PLC0415  (half a second)

            # a full disk ends its thread: a queue that nobody empties would then stop the run
            self._events = SummaryWriter(str(run / "tensorboard"), max_queue=30_000)
        self._last = time.perf_counter()
        self._steps = self._tokens = 0
        self._rate = math.nan

    def say(self, text: str) -> None:
        """One line for the person, kept in log.txt. A full disk does not end a run over its log."""
        if self._log:
            try:
                print(text, flush=True)
                self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
                self._log.flush()
            except BrokenPipeError:
                raise
            except OSError:
                pass  # what is not written yet is tried again with the next line

    def step(self, row: dict[str, Any], tokens: int) -> None:
        """Take the metrics of one finished step and its useful tokens."""
        self._lines.append(json.dumps({"kind": "train", **row}))
        self._steps += 1
        self._tokens += tokens
        if time.perf_counter() - self._last >= self.every or row["step"] == self.total:
            self._progress(row)

    def heldout(self, row: dict[str, Any]) -> None:
        """Take a held-out measurement; `set` names other text than the stage's own."""
        self._lines.append(json.dumps({"kind": "heldout", **row}))
        self._flush_or_say()
        text = f"held out, {row['set']}" if "set" in row else "held out"
        self._scalars(text.replace(", ", "-").replace(" ", ""), row)
        self.say(
            f"step {row['step']:,}  {text}: masked LM {row['masked_lm_loss']:.3f} nats,"
            f" {row['masked_lm_accuracy']:.1%} right"
            + (f"; next sentence {row['next_sentence_accuracy']:.1%} right" if "next_sentence_accuracy" in row else "")
        )

    def pause(self) -> None:
        """Begin a new stretch of timing: what was done since the last line was not training."""
        self._last = time.perf_counter()
        self._steps = self._tokens = 0

    def flush(self) -> None:
        """Everything taken so far is in `metrics.jsonl` when this returns.

        Raises:
            OSError: it cannot be written; nothing is lost, and the next call tries again.
        """
        if self.active and self._lines:
            left = "".join(line + "\n" for line in self._lines).encode()
            with (self.run / "metrics.jsonl").open("ab", buffering=0) as file:
                end = file.tell()
                try:
                    while left:
                        left = left[file.write(left) :]
                except OSError:
                    file.truncate(end)  # no half lines
                    raise
            self._held = False
        self._lines.clear()

    def _flush_or_say(self) -> None:
        try:
            self.flush()
        except OSError as error:
            if not self._held:
                self.say(f"metrics cannot be written ({error.strerror}): they are held until they can")
            self._held = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush_or_say()
        if self._events:
            self._events.close()
        if self._log:
            with suppress(OSError):
                self._log.close()

    def _progress(self, row: dict[str, Any]) -> None:
        elapsed = max(time.perf_counter() - self._last, 1e-9)
        rate, tokens = self._steps / elapsed, self._tokens / elapsed
        # an average that forgets, so that one slow stretch does not move the end by hours
        self._rate = rate if math.isnan(self._rate) else 0.7 * self._rate + 0.3 * rate
        left = (self.total - row["step"]) / self._rate
        self.say(
            f"step {row['step']:,}/{self.total:,}  loss {row['loss']:.3f}  masked LM {row['masked_lm_loss']:.3f}"
            f" ({row['masked_lm_accuracy']:.1%})  rate {row['learning_rate']:.2e}"
            f"  {_pace(rate)}  {tokens:,.0f} tokens/s  ETA {_duration(left)}"
        )
        self._scalars("train", {**row, "tokens_per_second": tokens})
        self._flush_or_say()
        self.pause()

    def _scalars(self, group: str, row: dict[str, Any]) -> None:
        if self._events:
            for name, value in row.items():
                if isinstance(value, float):
                    self._events.add_scalar(f"{group}/{name}", value, row["step"])


def _pace(rate: float) -> str:
    """Steps a second, or seconds a step where there are more of those."""
    return f"{rate:,.1f} steps/s" if rate >= 1 else f"{1 / rate:,.1f} s/step"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


# ------------------------------------------------------------------------------------------ after the training


def close_session(run: Path, clock: Clock, step: int, steps: int) -> None:
    """Write `report.json`: the latest held-out figures, and the seconds of all sessions by kind."""
    path = run / "report.json"
    before = read_json(path)["seconds"] if path.exists() else {}
    seconds = {kind: round(before.get(kind, 0.0) + s, 1) for kind, s in clock.seconds.items()}
    heldout = list(read_metrics(run, "heldout"))[-1:]
    write_json(path, {"step": step, "steps": steps, "heldout": heldout, "seconds": {**before, **seconds}})


def draw_curves(run: str | Path) -> Path:
    """`curves.png`: masked-LM loss and accuracy over the steps, beside the levels that need no network."""
    import matplotlib  # noqa: PLC0415  (a second)

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    run = Path(run)
    levels = read_json(run / "manifest.json")["levels"]
    train, heldout = list(read_metrics(run, "train")), list(read_metrics(run, "heldout"))
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for panel, metric, title in (
        (panels[0], "loss", "masked LM loss, nats"),
        (panels[1], "accuracy", "masked LM accuracy"),
    ):
        steps = np.array([row["step"] for row in train])
        values = np.array([row[f"masked_lm_{metric}"] for row in train])
        width = max(1, len(values) // 150)
        if len(values) >= width:
            smooth = np.convolve(values, np.ones(width) / width, "valid")
            panel.plot(
                steps[width - 1 :], smooth, color="tab:blue", alpha=0.5, label=f"training, mean of {width} steps"
            )
        for name in {row.get("set", ""): None for row in heldout}:
            of_set = [row for row in heldout if row.get("set", "") == name]
            panel.plot(
                [row["step"] for row in of_set],
                [row[f"masked_lm_{metric}"] for row in of_set],
                "o-",
                color="tab:green" if name else "tab:orange",
                markersize=3,
                label=f"held out, {name}" if name else "held out",
            )
        for style, (level, name) in zip((":", "-.", "--"), LEVELS.items(), strict=True):
            if level in levels:
                panel.axhline(levels[level][metric], color="black", linewidth=0.9, linestyle=style, label=name)
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.25)
    panels[0].legend()
    path = run / "curves.png"
    temporary = path.with_name(".curves.png")
    figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    temporary.replace(path)
    return path


# What the second head has learned, by the layout of the data.
_RELATIONS = {"pair": "next sentence", "order": "sentence order", "three": "next, previous or random"}


def closing_table(run: str | Path) -> str:
    """The last held-out figures beside the levels, and where everything is."""
    run = Path(run)
    manifest = read_json(run / "manifest.json")
    levels = manifest["levels"]
    rows = list(read_metrics(run, "heldout"))
    if not rows:
        raise UserError("nothing was measured on held-out text yet", str(run), "let it train to its first evaluation")
    last = rows[-1]
    lines = [f"{'on held-out documents':<34}{'accuracy':>10}{'loss, nats':>12}"]
    for level, name in LEVELS.items():
        if level in levels:
            lines.append(f"{name:<34}{levels[level]['accuracy']:>10.3f}{levels[level]['loss']:>12.3f}")
    lines.append(
        f"{'this model, step ' + format(last['step'], ','):<34}"
        f"{last['masked_lm_accuracy']:>10.3f}{last['masked_lm_loss']:>12.3f}"
    )
    if "next_sentence_loss" in last:
        figures = f"{last['next_sentence_accuracy']:>10.3f}{last['next_sentence_loss']:>12.3f}"
        name = _RELATIONS[manifest["settings"].get("layout", "pair")]
        lines.append(f"{'  ' + name:<34}{figures}")
    lines += ["", f"{'run directory':<15}{run}", f"{'curves':<15}{run / 'curves.png'}"]
    return "\n".join(lines)
