"""SIGTERM, Ctrl-C and the platform's notice: finish the step, save, and leave with "start me again" as the status."""

from __future__ import annotations

import os
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

from bert_jax.errors import UserError

T = TypeVar("T")

STOPPED = 75  # EX_TEMPFAIL: stopped by notice after saving

_ASIDE = "compiling"  # the name of threads that may be given up

# What Google's machines are told of themselves, and the answers that mean "you have half a minute".
# https://cloud.google.com/compute/docs/instances/preemptible and .../setting-vm-host-options#getting_live_notices
_GCE = {"preempted": ("TRUE",), "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE",)}


class Stopped(Exception):
    """A notice came while something ran that need not end."""


class Notice:
    """Inside `with Notice() as notice`, SIGTERM, SIGUSR1 and the first SIGINT set `notice.given` instead of killing.

    Args:
        platform: "signal", or "gce": ask the metadata server too, every second. `GCE_METADATA_HOST` says where it
            is, as Google's own libraries have it.
    """

    def __init__(self, platform: str = "signal") -> None:
        self.given = False
        self._platform = platform
        self._before: dict[int, object] = {}
        self._left = threading.Event()

    def __enter__(self) -> Notice:
        if self._platform == "gce":
            self._ask()  # a server that never answers is told now, not when it would have mattered
            threading.Thread(target=self._poll, name="notice", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # the last: Slurm, before the time limit
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.given and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C means now
        self.given = True

    def _poll(self) -> None:
        while not self._left.wait(1.0) and not self.given:
            try:
                self._ask()
            except UserError:
                continue  # it answered when the run began: ask again

    def _ask(self) -> None:
        host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
        for name, answers in _GCE.items():
            url = f"http://{host}/computeMetadata/v1/instance/{name}"
            request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
            try:
                with urllib.request.urlopen(request, timeout=5) as reply:
                    self.given |= reply.read().decode().strip() in answers
            except OSError as error:
                raise UserError(
                    f"the metadata server does not answer ({getattr(error, 'reason', error)})",
                    url,
                    'set checkpoint.notice = "signal" where this is no machine of Google\'s',
                ) from None


def unless_told(work: Callable[[], T], told: Callable[[], bool]) -> T:
    """The result of `work`, computed in a thread while this one listens.

    A signal's handler runs between two bytecodes of the main thread, so while that is inside a compilation of
    minutes no notice would be heard.

    Raises:
        Stopped: `told` said so first; the thread goes on, and `leave` ends the process without waiting for it.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def aside() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=aside, name=_ASIDE, daemon=True)
    thread.start()
    while thread.is_alive():
        if told():
            raise Stopped
        thread.join(0.5)
    if failed:
        raise failed[0]
    return done[0]


def until_told(items: Iterable[T], told: Callable[[], bool]) -> Iterator[T]:
    """The items; `told` is asked before each.

    Raises:
        Stopped: it said so.
    """
    for item in items:
        if told():
            raise Stopped
        yield item


def leave(status: int) -> int:
    """The status; ends the process at once where a compilation was given up, for the interpreter would wait for it."""
    if any(thread.name == _ASIDE for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
