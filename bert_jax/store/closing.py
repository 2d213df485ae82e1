"""What a run came to: where the time went, the closing table, `report.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.store.clock import WAITING, duration
from bert_jax.store.rundir import read_json, read_lines, read_metrics, write_json
from bert_jax.text.manifest import LEVELS

# What is done again where a step is; compiling, starting and saving are not.
_PER_STEP = ("training", WAITING, "evaluating")
LOST = "lost to restarts"
# The kinds of time in the table's order; "productive" are the seconds of training that were not lost.
_ORDER = ("productive", WAITING, "compiling", "evaluating", "saving", "drawing", "starting", "other", LOST)


def time_spent(run: str | Path) -> dict[str, float]:
    """Seconds of all sessions of a run by kind, from `timings.jsonl`.

    "lost to restarts" is what was spent on steps that were computed twice: a session that begins after step r has
    computed again whatever the sessions before it did beyond r (within one line of timings, by share of its steps).
    What passed between a session's last line and its kill is unknown, so it is in no figure.
    """
    stretches: list[tuple[int, int, dict[str, float]]] = []  # of steps (begin, end], seconds by kind
    lost, elapsed, session = 0.0, 0.0, None
    for line in read_lines(Path(run) / "timings.jsonl"):
        if line["session"] != session:
            session, elapsed = line["session"], 0.0
            for place, (begin, end, seconds) in enumerate(stretches):
                if end > line["from"]:
                    share = (end - line["from"]) / (end - begin) if begin < line["from"] else 1.0
                    lost += share * sum(seconds.get(kind, 0.0) for kind in _PER_STEP)
                    kept = {kind: s * (1 - share) if kind in _PER_STEP else s for kind, s in seconds.items()}
                    stretches[place] = (min(begin, line["from"]), line["from"], kept)
        other = max(line["elapsed"] - elapsed - sum(line["seconds"].values()), 0.0)
        elapsed = line["elapsed"]
        stretches.append((line["from"], line["step"], {**line["seconds"], "other": other}))
    total = dict.fromkeys(_ORDER, 0.0)
    for _, _, seconds in stretches:
        for kind, s in seconds.items():
            name = "productive" if kind == "training" else kind
            total[name] = total.get(name, 0.0) + s
    total[LOST] = lost
    return {kind: round(s, 1) for kind, s in total.items()} if stretches else {}


def hours(run: str | Path) -> tuple[list[int], list[float]]:
    """Steps, ascending, and the hours of work on the run until each; steps that a restart computed again count at
    their last time, and what they took the first time is in it."""
    steps: list[int] = []
    at: list[float] = []
    session, before, elapsed = None, 0.0, 0.0
    for line in read_lines(Path(run) / "timings.jsonl"):
        if line["session"] != session:
            session, before = line["session"], before + elapsed
            while steps and steps[-1] > line["from"]:
                steps.pop(), at.pop()
        elapsed = line["elapsed"]
        if steps and steps[-1] == line["step"]:
            at[-1] = (before + elapsed) / 3600
        else:
            steps.append(line["step"])
            at.append((before + elapsed) / 3600)
    return steps, at


def time_table(run: str | Path) -> str:
    """Where the time went, as aligned text; empty if a run has no timings."""
    spent = time_spent(run)
    whole = sum(spent.values())
    if not whole:
        return ""
    lines = [f"{'where the time went':<34}{'seconds':>10}{'share':>12}"]
    lines += [f"{kind:<34}{s:>10,.1f}{s / whole:>12.1%}" for kind, s in spent.items() if s >= 0.05]
    return "\n".join([*lines, f"{'in all, ' + duration(whole):<34}{whole:>10,.1f}"])


def write_report(run: Path, step: int, steps: int) -> None:
    """Write `report.json`: the latest held-out figures, and the seconds of all sessions by kind."""
    heldout = _latest(run)
    write_json(run / "report.json", {"step": step, "steps": steps, "heldout": heldout, "seconds": time_spent(run)})


def _latest(run: Path) -> list[dict[str, Any]]:
    """The held-out lines of the last step that was measured, the run's own held-out text first."""
    rows = list(read_metrics(run, "heldout"))
    latest = [row for row in rows if row["step"] == rows[-1]["step"]]
    return sorted(latest, key=lambda row: row.get("set", ""))


# What the second head has learned, by the layout of the data.
_RELATIONS = {"pair": "next sentence", "order": "sentence order", "three": "next, previous or random"}


def closing_table(run: str | Path) -> str:
    """The last held-out figures beside the levels, where the time went, and where everything is."""
    run = Path(run)
    manifest = read_json(run / "manifest.json")
    levels = manifest["levels"]
    latest = _latest(run)
    if not latest:
        raise UserError("nothing was measured on held-out text yet", str(run), "let it train to its first evaluation")
    lines = [f"{'on held-out documents':<34}{'accuracy':>10}{'loss, nats':>12}"]
    for level, name in LEVELS.items():
        if level in levels:
            accuracy = f"{levels[level]['accuracy']:.3f}" if "accuracy" in levels[level] else ""
            lines.append(f"{name:<34}{accuracy:>10}{levels[level]['loss']:>12.3f}")
    for row in latest:
        name = f"this model, step {row['step']:,}" + (f", {row['set']}" if "set" in row else "")
        lines.append(f"{name:<34}{row['masked_lm_accuracy']:>10.3f}{row['masked_lm_loss']:>12.3f}")
        if "next_sentence_loss" in row:
            name = "  " + _RELATIONS[manifest["settings"].get("layout", "pair")]
            lines.append(f"{name:<34}{row['next_sentence_accuracy']:>10.3f}{row['next_sentence_loss']:>12.3f}")
    if times := time_table(run):
        lines += ["", times]
    lines += ["", f"{'run directory':<15}{run}", f"{'curves':<15}{run / 'curves.png'}"]
    return "\n".join(lines)
