"""Faults to rehearse: `--fault KIND@STEP`. Each is the real thing (a signal, a limit of the kernel's), at a step."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bert_jax.errors import UserError

T = TypeVar("T")

KINDS = {
    "kill": "die by SIGKILL after this step",
    "save": "die by SIGKILL inside the first save from this step on",
    "term": "get SIGTERM after this step",
    "disk": "from this step on no file grows beyond a kilobyte",
    "nan": "one weight of this step's batch is no number",
    "stall": "this step's batch never comes",
}
_ROOM = 1000  # bytes


@dataclass(frozen=True)
class Faults:
    """What was asked for: pairs of kind and step."""

    asked: frozenset[tuple[str, int]] = frozenset()

    def at(self, step: int) -> bool:
        """Whether anything was asked for at this step."""
        return any(asked == step for _, asked in self.asked)

    def loading(self, load: Callable[[int], T], first_step: int) -> Callable[[int], T]:
        """`load`, which makes batch t of a stage that begins after `first_step`; spoilt, or never ending, if so asked.

        The batch is a dataclass with its arrays in `rows`.
        """

        def spoilt(t: int) -> T:
            batch: Any = load(t)
            if ("stall", first_step + t + 1) in self.asked:
                threading.Event().wait()
            if ("nan", first_step + t + 1) in self.asked:
                weights = batch.rows["mlm_weights"].copy()
                weights.flat[0] = np.nan
                batch = replace(batch, rows={**batch.rows, "mlm_weights": weights})
            return batch

        return spoilt if self.asked else load

    def strike(self, step: int, saved: Callable[[], None]) -> None:
        """What happens once a step was begun; `saved` waits for a save under way, which still finds room."""
        if ("disk", step) in self.asked:
            saved()
            resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        if ("term", step) in self.asked:
            os.kill(os.getpid(), signal.SIGTERM)
        if ("kill", step) in self.asked:
            os.kill(os.getpid(), signal.SIGKILL)

    def before_save(self, step: int, checkpoints: Path) -> None:
        """Lie in wait for a save's first file where one was asked for at this step or earlier."""
        if any(kind == "save" and from_step <= step for kind, from_step in self.asked):
            threading.Thread(target=_die_inside, args=(checkpoints, str(step)), daemon=True).start()


def _die_inside(checkpoints: Path, step: str) -> None:
    while True:
        with suppress(OSError):  # renamed while it was looked into
            for path in checkpoints.iterdir():
                # the name with more behind it is that of a save under way
                if path.name == step or (path.name.startswith(f"{step}.") and any(path.rglob("*"))):
                    os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.0005)


def parse_faults(texts: Sequence[str]) -> Faults:
    """Read `KIND@STEP` texts.

    Raises:
        UserError: one is no such text.
    """
    asked: set[tuple[str, Any]] = set()
    for text in texts:
        kind, _, step = text.partition("@")
        if kind not in KINDS or not step.isdigit():
            raise UserError(f"{text!r} is no fault", "--fault", f"write KIND@STEP with a kind of {', '.join(KINDS)}")
        asked.add((kind, int(step)))
    return Faults(frozenset(asked))
