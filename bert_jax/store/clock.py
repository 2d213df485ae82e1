"""Where the time of a session goes. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

WAITING = "waiting for data"


class Clock:
    """Where the time of a session goes: seconds by kind. A stretch inside of another counts once, as what it is."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []  # kind, and since when it runs or runs again

    @property
    def elapsed(self) -> float:
        """Seconds since the session began."""
        return time.perf_counter() - self.began

    def now(self) -> dict[str, float]:
        """Seconds by kind up to this moment."""
        self._mark()
        return dict(self.seconds)

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        self._mark()
        self._open.append((kind, time.perf_counter()))
        try:
            yield
        finally:
            self._mark()
            self._open.pop()
            if self._open:
                self._open[-1] = (self._open[-1][0], time.perf_counter())

    def each(self, kind: str, items: Iterable[T]) -> Iterator[T]:
        """The items, the time until each one comes counted as `kind`."""
        iterator = iter(items)
        while True:
            with self.timed(kind):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def _mark(self) -> None:
        """Count what the innermost open stretch has taken so far."""
        if self._open:
            kind, since = self._open[-1]
            now = time.perf_counter()
            self.seconds[kind] = self.seconds.get(kind, 0.0) + now - since
            self._open[-1] = (kind, now)


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Example:
        >>> duration(75), duration(7500)
        ('1 min 15 s', '2 h 05 min')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
