"""What a person sees of a run while it goes on: progress lines, metrics, timings, TensorBoard."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self, TextIO

import jax

from bert_jax.config import ReportSettings
from bert_jax.cost import mfu, of_kind
from bert_jax.store.clock import WAITING, Clock, duration
from bert_jax.store.plateau import Plateau
from bert_jax.store.rundir import Lines, read_json, read_lines, read_metrics

_KEEP = 10.0  # seconds that a finished step's line may wait for the disk


class Amount(NamedTuple):
    """What one step worked through, on all devices: useful tokens, places with padding, useful FLOPs."""

    tokens: int
    places: int
    flops: float


class Reporter:
    """Writes `metrics.jsonl`, `timings.jsonl`, `log.txt`, TensorBoard events, and progress to the terminal.

    A line of metrics waits at most some ten seconds and never longer than until the next checkpoint, so that a
    checkpoint never knows of a step whose line is lost. On all processes but the first nothing is written.

    Args:
        run: the run directory.
        settings: `[report]` of the recipe.
        stages: (steps, size of a step) of each, in any unit that time is proportional to.
        clock: of this session.
        done: the step after which this session goes on.
        active: whether this process is the first.
    """

    def __init__(
        self,
        run: Path,
        settings: ReportSettings,
        stages: Sequence[tuple[int, float]],
        clock: Clock,
        done: int,
        active: bool,
    ) -> None:
        self.run, self.settings, self.clock, self.active = run, settings, clock, active
        self.total = sum(steps for steps, _ in stages)
        self._stages, self._step = stages, done
        self._pace = _Pace()
        self._metrics, self._timings = Lines(run / "metrics.jsonl"), Lines(run / "timings.jsonl")
        self._told: set[str] = set()
        self._log: TextIO | None = None
        self._events: _Events | None = None
        levels = read_json(run / "manifest.json")["levels"]
        self._plateau = Plateau({name: level["loss"] for name, level in levels.items()})
        if active:
            self._log = (run / "log.txt").open("a", encoding="utf-8")
            if settings.tensorboard:
                self._events = _Events(run / "tensorboard", done)
            for row in read_metrics(run, "train"):
                self._plateau.see(row["masked_lm_loss"])
            session = max((line["session"] for line in read_lines(run / "timings.jsonl")), default=0) + 1
        else:
            session = 0
        self._line = {"session": session, "from": done}  # the timings since the line before begin at this step
        self._counted: dict[str, float] = {}  # seconds by kind that stand in earlier lines
        clock.seconds["starting"] = clock.elapsed
        self._since = self._flushed = time.perf_counter()
        self._write_timings({})

    def say(self, text: str) -> None:
        """One line for the person, kept in log.txt. A full disk does not end a run over its log."""
        if self._log:
            with self._survives("log.txt"):
                print(text, flush=True)
                self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
                self._log.flush()

    def step(self, row: dict[str, Any], amount: Amount) -> None:
        """Take the metrics of one finished step, and what it worked through."""
        if not self.active:
            return
        self._metrics.add({"kind": "train", **row})
        self._step = row["step"]
        self._pace.add(amount, self._work(row["step"] - 1, row["step"]))
        sentence = self._plateau.see(row["masked_lm_loss"])
        if sentence:
            self.say(sentence)
        now = time.perf_counter()
        if now - self._since >= self.settings.seconds or row["step"] == self.total:
            self._progress(row)
        elif now - self._flushed >= _KEEP:
            self._flush_or_say()

    def heldout(self, row: dict[str, Any]) -> None:
        """Take a held-out measurement; `row["set"]` names the held-out text if it is not the run's own."""
        if not self.active:
            return
        self._metrics.add({"kind": "heldout", **row})
        self._flush_or_say()
        other = row.get("set", "")
        self._scalars("1_held_out", row["step"], {f"{other}_{key}" if other else key: x for key, x in row.items()})
        name = f"held out ({other})" if other else "held out"
        self.say(
            f"step {row['step']:,}  {name}: masked LM {row['masked_lm_loss']:.3f} nats,"
            f" {row['masked_lm_accuracy']:.1%} right"
            + (f"; next sentence {row['next_sentence_accuracy']:.1%} right" if "next_sentence_accuracy" in row else "")
        )

    def pause(self) -> None:
        """Speeds are measured anew from here: what was taken since the last progress line does not count."""
        self._pace.begin(self.clock.now())

    def flush(self) -> None:
        """Everything taken so far is in `metrics.jsonl` when this returns.

        Raises:
            OSError: it cannot be written. Nothing is lost, and the next call tries again.
        """
        if self.active:
            self._flushed = time.perf_counter()
            self._metrics.write()
            self._write_timings({})

    def _flush_or_say(self) -> None:
        with self._survives("metrics.jsonl", "its lines are held until they can be written"):
            self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush_or_say()
        if self._events:
            with self._survives("tensorboard"):
                self._events.close()
        if self._log:
            with suppress(OSError):
                self._log.close()

    def _progress(self, row: dict[str, Any]) -> None:
        figures = {**self._pace.figures(self.clock.now()), **_memory()}
        step = row["step"]
        self.say(progress_line(row, self.total, figures, self._pace.eta(self._work(step, self.total))))
        self._scalars("2_train", step, {name: x for name, x in row.items() if not _of_optimizer(name)})
        self._scalars("3_optimizer", step, {name: x for name, x in row.items() if _of_optimizer(name)})
        self._scalars("4_speed", step, {name: x for name, x in figures.items() if not name.endswith("bytes")})
        self._scalars("5_memory", step, {name: x for name, x in figures.items() if name.endswith("bytes")})
        with self._survives("metrics.jsonl", "its lines are held until they can be written"):
            self._metrics.write()
        self._since = self._flushed = time.perf_counter()
        self._write_timings(figures)

    def _work(self, begin: int, end: int) -> float:
        """Steps from `begin` up to `end`, each counted with its stage's size."""
        work, first = 0.0, 0
        for steps, size in self._stages:
            work += size * max(0, min(end, first + steps) - max(begin, first))
            first += steps
        return work

    def _write_timings(self, figures: dict[str, float]) -> None:
        """A line of `timings.jsonl`: what has passed since the line before, and the figures measured."""
        if not self.active:
            return
        total = self.clock.now()
        seconds = {kind: s - self._counted.get(kind, 0.0) for kind, s in total.items()}
        rounded = {kind: round(s, 3) for kind, s in seconds.items() if s >= 0.0005}
        now = {"step": self._step, "time": round(time.time(), 3), "elapsed": round(self.clock.elapsed, 3)}
        self._timings.add({**self._line, **now, "seconds": rounded, **figures})
        self._counted = total
        self._line["from"] = self._step
        with self._survives("timings.jsonl"):
            self._timings.write()

    def _scalars(self, group: str, step: int, row: dict[str, Any]) -> None:
        if self._events:
            with self._survives("tensorboard"):
                self._events.add(step, {f"{group}/{name}": x for name, x in row.items() if isinstance(x, float)})

    @contextmanager
    def _survives(self, name: str, remedy: str = "training goes on without it") -> Iterator[None]:
        """What is only looked at must not end a run: that it cannot be written is told once, and training goes on."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            if name not in self._told:
                self._told.add(name)
                with suppress(OSError):
                    print(
                        f"{self.run / name}: cannot be written ({error.strerror}); {remedy}",
                        file=sys.stderr,
                        flush=True,
                    )


def _of_optimizer(name: str) -> bool:
    return name in ("learning_rate", "gradient_norm", "skipped") or "ratio" in name


# ------------------------------------------------------------------------------------------------- progress


class _Pace:
    """Speeds of the stretch since the last figures, and how long the rest takes.

    A stretch is the time spent on steps and on waiting for their data; compiling, evaluating and saving are not in it.
    The first one warms up and is no guide to the others.
    """

    def __init__(self) -> None:
        self.begin({})
        self._rate = 0.0  # work a second
        self._stretches = 0
        self._origin: dict[str, float] = {}  # the clock as the second stretch began
        self._now: dict[str, float] = {}  # and as the last one ended

    def begin(self, seconds: dict[str, float]) -> None:
        """A stretch begins at this state of the clock."""
        self._from = seconds
        self._steps, self._work, self._amount = 0, 0.0, Amount(0, 0, 0.0)

    def add(self, amount: Amount, work: float) -> None:
        self._steps += 1
        self._work += work
        self._amount = Amount(*(a + b for a, b in zip(self._amount, amount, strict=True)))

    def figures(self, seconds: dict[str, float]) -> dict[str, float]:
        """Speeds of the stretch that ends here; the next one begins. MFU only where the devices' peak is known."""
        passed = {kind: seconds.get(kind, 0.0) - self._from.get(kind, 0.0) for kind in ("training", WAITING)}
        spent = max(sum(passed.values()), 1e-9)
        a = self._amount
        figures = {
            "steps_per_second": self._steps / spent,
            "tokens_per_second": a.tokens / spent,
            "places_per_second": a.places / spent,
            "padding": 1 - a.tokens / max(a.places, 1),
            "waiting": passed[WAITING] / spent,
        }
        device = of_kind(jax.devices()[0].device_kind)
        if device:
            figures["mfu"] = mfu(a.flops / spent, jax.device_count(), device.tflops)
        if self._stretches == 1:
            self._origin = self._from
        if self._stretches:  # an average that forgets, so that one slow stretch does not move the end by hours
            newest = max(0.3, 1 / self._stretches)
            self._rate += newest * (self._work / spent - self._rate)
        self._stretches += 1
        self._now = seconds
        self.begin(seconds)
        return figures

    def eta(self, work: float) -> float | None:
        """Seconds that so much work takes, evaluations and saves as often as until now, nothing compiled any more;
        None until two stretches have been measured."""
        if self._stretches < 2 or not self._rate:
            return None
        passed = {kind: s - self._origin.get(kind, 0.0) for kind, s in self._now.items() if kind != "compiling"}
        return work / self._rate * sum(passed.values()) / (passed.get("training", 0.0) + passed.get(WAITING, 0.0))


def progress_line(row: dict[str, Any], total: int, figures: dict[str, float], eta: float | None) -> str:
    """Where a run stands, in about 120 characters.

    Args:
        row: of `metrics.jsonl`, kind "train".
        total: steps of the whole run.
        figures: of `timings.jsonl`.
        eta: seconds, None where not known yet.
    """
    tokens = figures["tokens_per_second"]
    speed = f"{tokens:,.0f} tokens/s" if tokens < 10_000 else f"{tokens / 1000:,.1f}k tokens/s"
    if figures["padding"] >= 0.005:
        speed += f" + {figures['padding']:.0%} padding"
    parts = [
        f"step {row['step']:,}/{total:,}",
        f"masked LM {row['masked_lm_loss']:.3f} ({row['masked_lm_accuracy']:.1%})",
        f"rate {row['learning_rate']:.1e}",
        _pace(figures["steps_per_second"]),
        speed,
    ]
    if "mfu" in figures:
        parts.append(f"MFU {figures['mfu']:.1%}")
    if figures["waiting"] > 0.05:
        parts.append(f"waits for data {figures['waiting']:.0%}")
    if eta is not None and row["step"] < total:
        parts.append(f"ETA {duration(eta)}")
    return "  ".join(parts)


def _pace(rate: float) -> str:
    """Steps a second, or seconds a step where there are more of those."""
    return f"{rate:,.1f} steps/s" if rate >= 1 else f"{1 / max(rate, 1e-9):,.1f} s/step"


def _memory() -> dict[str, float]:
    """Bytes: the fullest of this process's devices where they tell, and the most that this process has held."""
    told = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"host_peak_bytes": float(peak)}
    for name, key in (("device_bytes", "bytes_in_use"), ("device_peak_bytes", "peak_bytes_in_use")):
        if values := [stats[key] for stats in told if key in stats]:
            found[name] = float(max(values))
    return found


class _Events:
    """TensorBoard events, written where they are added: tensorboardX's own writer has a thread that dies on a full
    disk, after which the training waits for it for ever."""

    def __init__(self, folder: Path, done: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415  (half a second)
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        # TensorBoard drops what an earlier session wrote of later steps
        self._write(step=done + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, scalars: dict[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # noqa: PLC0415

        values = [Summary.Value(tag=tag, simple_value=x) for tag, x in scalars.items()]
        self._write(step=step, summary=Summary(value=values))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, **content: Any) -> None:
        self._file.write_event(self._event(wall_time=time.time(), **content))
