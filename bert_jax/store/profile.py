"""A window of steps under JAX's profiler, asked for by `[report]` profile_step and profile_steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bert_jax.config import ReportSettings


class Profile:
    """Traces the steps `profile_step` … `profile_step + profile_steps − 1` into `RUN/profile`, on the first process.

    A session that begins later than that traces nothing. A profiler that cannot work on this machine is told in one
    line, and training goes on.
    """

    def __init__(self, run: Path, settings: ReportSettings, say: Callable[[str], None], active: bool) -> None:
        self.folder, self.say = run / "profile", say
        self.first = settings.profile_step if active else 0
        self.last = self.first + settings.profile_steps - 1
        self._running = False

    def before(self, step: int, state: Any) -> None:
        """Call before each step, with the state that it begins with: this waits for it at both ends of the window."""
        if self._running and step > self.last:
            self.close(state)
        if step == self.first:
            jax.block_until_ready(state)
            try:
                jax.profiler.start_trace(str(self.folder))
                self._running = True
            except RuntimeError as error:
                self.say(f"no profile: {error}")

    def close(self, state: Any) -> None:
        """End the window, if one is open: call after the last step of a session too."""
        if not self._running:
            return
        self._running = False
        jax.block_until_ready(state)
        try:
            jax.profiler.stop_trace()
            self.say(f"profile from step {self.first:,} in {self.folder}; `tensorboard --logdir` or xprof shows it")
        except (RuntimeError, OSError) as error:
            self.say(f"no profile: {error}")
