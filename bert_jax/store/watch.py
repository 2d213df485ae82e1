"""What a run notes of its own loss: a jump, and the batch of a step that was not finite."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bert_jax.errors import UserError
from bert_jax.store.rundir import write_json

_WINDOW = 100  # steps looked back upon
_FEWEST = 20  # before these, nothing is called a jump
_TIMES = 8.0  # typical deviations above the median
_BUNDLES = 10  # a session: a run that goes wrong often goes wrong in the same way


class LossWatch:
    """Says when the loss leaves the run of the last steps upwards, at most once in `quiet` steps.

    A jump is a loss above median + 8 × 1.4826 × MAD of the last 100 (the second is a normal's standard deviation,
    which outliers do not move: Hampel 1974), and at least a tenth above the median.
    """

    def __init__(self, quiet: int = 100) -> None:
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._quiet, self._said = quiet, -quiet

    def note(self, row: dict[str, Any]) -> str | None:
        """Take a step's line of metrics; the line to say, if any."""
        loss, step, past = row["loss"], row["step"], self._losses
        told = None
        if np.isfinite(loss):
            if len(past) >= _FEWEST and step >= self._said + self._quiet:
                middle = median(past)
                spread = 1.4826 * median(abs(x - middle) for x in past)
                if loss > max(middle + _TIMES * spread, 1.1 * middle):
                    self._said = step
                    told = (
                        f"step {step:,}: the loss jumped to {loss:.3f} from a median of {middle:.3f} over the last"
                        f" {len(past)} steps (batch {row['batch']}, gradient norm {row['gradient_norm']:.2f})"
                    )
            past.append(loss)
        return told


class Bundles:
    """`debug/STEP.json` and `debug/STEP.npz`: what is known of a step that was not finite, and the rows it was given.

    Of steps in a row the first one is kept, and ten of a session.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._left = run, _BUNDLES

    def note(
        self, row: dict[str, Any], records: np.ndarray, rows: dict[str, np.ndarray], settings: dict[str, Any]
    ) -> str | None:
        """Take a step's line of metrics, its batch and what else is worth knowing; the line to say, if any."""
        if row["skipped"] != 1 or not self._left:
            return None
        self._left -= 1
        told = f"step {row['step']:,}: the loss or a gradient is not finite, and the step changes nothing"
        path = self._run / "debug" / f"{row['step']}.json"
        try:
            path.parent.mkdir(exist_ok=True)
            write_json(path, {**row, **settings, "records": records.tolist()})
            with path.with_suffix(".npz").open("wb") as file:
                np.savez_compressed(file, **rows)
        except (OSError, UserError) as error:
            return f"{told}; its batch could not be kept ({error})"
        return f"{told}; {path} has its batch, and `bert-jax replay {self._run} {row['step']}` computes it again"
