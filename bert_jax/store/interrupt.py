"""SIGTERM and Ctrl-C: finish the step, save, and leave with a status that says "start me again"."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

STOPPED = 75  # EX_TEMPFAIL: stopped by notice after saving


class Notice:
    """Inside `with Notice() as notice`, SIGTERM and the first SIGINT set `notice.given` instead of killing."""

    def __init__(self) -> None:
        self.given = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Notice:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.given and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C means now
        self.given = True
