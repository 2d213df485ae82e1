"""Several processes as one run: how they find each other, wait for each other, and end together.

Devices cannot say that a host is missing: a collective with a dead partner hangs or fails without a name. So whatever
names hosts goes through the key-value store that `jax.distributed` keeps on the first process. JAX shows that store to
its own modules only: `jax._src` is named in this file and nowhere else.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import clusters, distributed  # private: the store, and what a cluster tells of the processes
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from bert_jax.errors import UserError
from bert_jax.train.sharding import each_device, replicated

AGAIN = 75  # as after a notice: nothing is to be mended, the same command continues

# Keys of the store: PREFIX/roll/PROCESS, PREFIX/ended/PROCESS, PREFIX/at/BARRIER/PROCESS.
PREFIX = "bert_jax"


class Seen(NamedTuple):
    """What a process last told of itself."""

    host: str
    step: int  # the last that it finished; -1: none
    when: float  # its clock then, seconds since 1970
    beat: int  # how often it has told


# --------------------------------------------------------------------------------------------------------- joining


def join_processes(seconds: float = 300.0) -> None:
    """Join the other processes of the run, as Slurm, Open MPI, Kubernetes or a Cloud TPU slice tell of them.

    Call it before anything that asks for devices. JAX takes SIGTERM for itself here: listen to it afterwards.
    JAX aborts the process when one of the others does not come in time, so a roll call at the same port comes first.

    Raises:
        UserError: nobody tells of other processes, or some do not come within `seconds`: they are named.
    """
    # the four arguments that `initialize` would find out for itself: the roll call needs three of them before
    address, count, number, local_devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, int(seconds)
    )
    if address is None or count is None or number is None:
        raise UserError(
            "nobody tells this process of the others",
            "--distributed",
            "start it with srun, mpirun or on every worker of a TPU slice, or leave --distributed out on one host",
        )
    if count > 1:
        call_roll(address, count, number, seconds)
    try:
        jax.distributed.initialize(
            address,
            count,
            number,
            local_devices,
            initialization_timeout=int(max(seconds, 60)),
            heartbeat_timeout_seconds=600,  # JAX then aborts with a stack trace; `StepWatch` speaks long before
        )
    except RuntimeError as error:
        raise UserError(
            f"the other processes cannot be joined ({_first_line(error)})",
            "--distributed",
            "see that all are running and reach the first one's port",
        ) from None


def call_roll(address: str, count: int, number: int, seconds: float) -> None:
    """Return when all processes have come, on the port where JAX will meet them afterwards.

    The first process counts the others and tells them who is missing; they are connected to it meanwhile.

    Raises:
        UserError: some did not come within `seconds` (their numbers are named), or the first one does not answer.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    missing = (
        _count_others(int(port), count, deadline)
        if number == 0
        else _report_to_first(host.strip("[]"), int(port), number, deadline)
    )
    if missing is None:
        raise UserError(
            f"the first process did not answer at {address} within {seconds:,.0f} s",
            f"process {number} of {count} on {socket.gethostname()}",
            "see that it runs, and that its port can be reached from here",
        )
    if missing:
        raise UserError(
            f"{count - len(missing):,} of {count:,} processes came within {seconds:,.0f} s,"
            f" missing {numbered(missing)}",
            "--distributed",
            "see why those hosts did not start, or give them longer with --join-timeout SECONDS",
        )


def _count_others(port: int, count: int, deadline: float) -> list[int]:
    """On the first process: the numbers that did not come."""
    both = socket.has_dualstack_ipv6()
    try:
        door = socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=count
        )
    except OSError as error:
        raise UserError(
            f"port {port} cannot be opened ({error.strerror})", "--distributed", "choose another: JAX_COORDINATOR_PORT"
        ) from None
    guests: dict[int, socket.socket] = {}
    with door:
        while len(guests) < count - 1 and (left := deadline - time.monotonic()) > 0:
            door.settimeout(left)
            try:
                guest, _ = door.accept()
                guest.settimeout(5)
                said = guest.makefile().readline().split()
            except OSError:
                continue
            # whatever else knocks at an open port is left standing
            if len(said) == 2 and said[0] == PREFIX and said[1].isdigit() and 0 < int(said[1]) < count:
                guests[int(said[1])] = guest
            else:
                guest.close()
    missing = [number for number in range(1, count) if number not in guests]
    for guest in guests.values():
        with guest:
            try:
                guest.sendall(f"{json.dumps(missing)}\n".encode())
            except OSError:
                pass  # it has gone since: JAX's own joining will say so
    return missing


def _report_to_first(host: str, port: int, number: int, deadline: float) -> list[int] | None:
    """On another process: the numbers that did not come, as the first one tells; None if that never answers."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as line:
                line.sendall(f"{PREFIX} {number}\n".encode())
                line.settimeout(max(left, 0) + 10)  # the first one began to wait a little later perhaps
                if answer := line.makefile().readline():
                    return json.loads(answer)
        except (OSError, ValueError):
            pass  # not yet listening, or started anew
        time.sleep(0.2)
    return None


def numbered(processes: list[int], names: Mapping[int, Seen] | None = None) -> str:
    """Processes by number and host, the first eight of them.

    Example:
        >>> numbered([1, 5])
        'process 1, process 5'
    """
    told = [
        f"process {number}" + (f" ({names[number].host})" if names and number in names else "")
        for number in processes[:8]
    ]
    return ", ".join(told) + (f" and {len(processes) - 8:,} more" if len(processes) > 8 else "")


# ------------------------------------------------------------------------------------------------ the store's uses


def process_count() -> int:
    """How many processes there are; asks for no device."""
    return distributed.global_state.num_processes


def process_index() -> int:
    """This process's number; asks for no device."""
    return distributed.global_state.process_id


def publish(key: str, value: Any) -> None:
    """Tell the other processes something (JSON) under a key, in this process's name; the last telling counts."""
    if process_count() > 1:
        _client().key_value_set(f"{PREFIX}/{key}/{process_index()}", json.dumps(value), allow_overwrite=True)


def published(key: str) -> dict[int, Any]:
    """What the processes have told under a key so far: process → value."""
    found = _client().key_value_dir_get(f"{PREFIX}/{key}/") if process_count() > 1 else []
    return {int(name.rpartition("/")[2]): json.loads(value) for name, value in found}


def gather(key: str, value: Any, seconds: float) -> dict[int, Any]:
    """Every process's value, on every process. Each key may be used once.

    Raises:
        UserError: some did not tell within `seconds`: their numbers and hosts are named.
    """
    if process_count() == 1:
        return {0: value}
    publish(key, value)
    barrier(key, seconds)
    return published(key)


def barrier(name: str, seconds: float) -> None:
    """Wait until every process has come here; works, unlike a device's collective, where one is dead.

    Args:
        name: what is waited for; each name may be used once.

    Raises:
        UserError: some did not come within `seconds`: their numbers and hosts are named.
    """
    if process_count() == 1:
        return
    publish(f"at/{name}", True)
    try:
        _client().wait_at_barrier(f"{PREFIX}/{name}", int(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        came = published(f"at/{name}")
        missing = [process for process in range(process_count()) if process not in came]
        if not missing:  # this one came last, or the store has gone
            raise UserError(
                f"this process came too late ({_first_line(error)})", name, "see what held it up; start all again"
            ) from None
        raise UserError(
            f"{numbered(missing, roll_call())} did not come within {seconds:,.0f} s",
            name,
            "see the log of that host; start all again without it or when it is back",
        ) from None


def roll_call() -> dict[int, Seen]:
    """What each process last told of itself, from the store: also of those that are dead."""
    return {process: Seen(*told) for process, told in published("roll").items()}


def on_first_process(act: Callable[[], None]) -> None:
    """Do something on the first process while the others wait; a `UserError` there ends them all."""
    error: UserError | None = None
    if process_index() == 0:
        try:
            act()
        except UserError as raised:
            error = raised
    if process_count() > 1 and not multihost_utils.broadcast_one_to_all(np.array(error is None)):
        error = error or UserError("the first process could not begin", remedy="see what it says")
    if error is not None:
        raise error


class Agreement:
    """Whether any process says so, of several things at once: one answer for all of them, in the same call.

    Among several the answer comes a call late, as a step's metrics do: to wait for it at once would stop the devices.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._any = jax.jit(partial(jnp.any, axis=0), out_shardings=replicated(mesh))
        self._places, self._devices = each_device(mesh), len(mesh.local_devices)
        self._asked: jax.Array | None = None

    def any(self, *said: bool) -> tuple[bool, ...]:
        """Call it equally often on all processes, about the same things in the same order."""
        if process_count() == 1:
            return said
        before = self._asked
        mine = np.tile(np.array(said), (self._devices, 1))
        self._asked = self._any(jax.make_array_from_process_local_data(self._places, mine))
        return (False,) * len(said) if before is None else tuple(map(bool, np.asarray(before)))


# --------------------------------------------------------------------------------------------------- ending together


@contextmanager
def joined(
    several: bool, join_timeout: float = 300.0, step_timeout: float = 0.0, silence: float = 60.0
) -> Iterator[StepWatch]:
    """A run's processes from joining to the common end.

    Left by an exception on one of several processes, it prints it, tells the others, and ends all of them at once:
    JAX would let each wait five minutes for the others at its exit. Alone, exceptions pass through.

    Args:
        several: join the others (`--distributed`).
        join_timeout: seconds to wait for all to come.
        step_timeout, silence: see `StepWatch`.

    Raises:
        UserError: as `join_processes`.
    """
    if several:
        join_processes(join_timeout)
    with StepWatch(step_timeout, silence) as watch:
        try:
            yield watch
            barrier("the end", 3600)  # what one process still does alone may fail: the watch goes on meanwhile
        except BaseException as error:
            if process_count() == 1:
                raise
            watch.end(error)


class StepWatch:
    """A thread that ends the process, with a line that says why, where the run cannot go on.

    - No step was finished for `seconds` (0: never looked at): every process's last step is printed. Until the first
      step is finished, and after `compiling()`, four times as long are given.
    - Another process showed no sign of life for `silence` seconds: it is named, with its last step.
    - Another process ended with an error: its message is printed.

    The exit status is 75 (the same command continues) where a host was lost, or steps stopped after some had been
    finished; 1 otherwise. Nothing is saved: the next start goes on from the newest checkpoint.
    """

    def __init__(self, seconds: float = 0.0, silence: float = 60.0) -> None:
        self.seconds, self.silence = seconds, silence
        self.period = min(5.0, silence / 6)  # of telling and asking: at 256 processes about 1 MB/s on the first one
        self._step, self._finished, self._patience = -1, time.monotonic(), 4
        self._told = 0  # signs of life given
        self._heard: dict[int, tuple[int, float]] = {}  # other process → its newest sign and when it came here
        self._deaf = 0  # questions in a row that the store did not answer
        self._over = threading.Event()
        self._ending = threading.Lock()  # held by whoever ends the process: one reason is told
        self._thread = threading.Thread(target=self._watch, name="StepWatch", daemon=True)

    def __enter__(self) -> StepWatch:
        if process_count() > 1:
            self._heard = {
                process: (0, time.monotonic()) for process in range(process_count()) if process != process_index()
            }
            self._tell()
        if self.seconds or process_count() > 1:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def done(self, step: int) -> None:
        """This step is finished; the same number again is a sign of life (an evaluation's batch, a save)."""
        self._step, self._finished, self._patience = step, time.monotonic(), 1

    def compiling(self) -> None:
        """What comes next may take four times as long."""
        self._finished, self._patience = time.monotonic(), 4

    def end(self, error: BaseException) -> NoReturn:
        """End this process because of an error, and with it all others."""
        if _of_devices(error) and process_count() > 1:
            # most often a partner of a collective has gone: the thread finds out which, and ends the process first
            time.sleep(self.silence + 3 * self.period)
        with self._ending:
            what, status = f"{type(error).__name__}: {_first_line(error)}", 1
            if isinstance(error, KeyboardInterrupt):
                what, status = "interrupted; run the same command again", 130
            elif isinstance(error, UserError):
                what = str(error)
            else:
                traceback.print_exception(error)
            _say(what)
            self._leave(status, what)

    # ---------------------------------------------------------------------------------------------- in the thread

    def _watch(self) -> None:
        while not self._over.wait(self.period):
            found = self._look()
            if found is None or self._over.is_set():
                continue
            with self._ending:
                status, what = found
                _say(what)
                self._leave(status, what)

    def _tell(self) -> None:
        self._told += 1
        publish("roll", Seen(socket.gethostname(), self._step, time.time(), self._told))

    def _look(self) -> tuple[int, str] | None:
        """The exit status and the reason to end, if there is one."""
        try:
            self._tell()
            seen, ended = roll_call(), published("ended")
            self._deaf = 0
        except jax.errors.JaxRuntimeError:
            self._deaf += 1  # JAX aborts the process by itself soon, unless we are faster
            return (AGAIN, "the first process is gone; " + _ONWARD) if self._deaf > 1 else None
        now = time.monotonic()
        for process, (status, what) in sorted(ended.items()):
            self._over.wait(self.period)  # this one's own main thread may be about to say the same of itself
            return status, f"{numbered([process], seen)} ended: {what}"
        for process, told in seen.items():
            if process in self._heard and told.beat != self._heard[process][0]:
                self._heard[process] = (told.beat, now)
        silent = [process for process, (_, heard) in self._heard.items() if now - heard > self.silence]
        if silent:
            what = f"no sign of life for {self.silence:,.0f} s from {numbered(silent, seen)}"
            return AGAIN, f"{what}; last steps: {last_steps(seen)}; {_ONWARD}"
        if self.seconds and now - self._finished > self.seconds * self._patience:
            seen = seen or {process_index(): Seen(socket.gethostname(), self._step, time.time(), self._told)}
            what = f"no step was finished for {self.seconds * self._patience:,.0f} s (train.step_timeout)"
            status = AGAIN if self._step >= 0 else 1
            return status, f"{what}; last steps: {last_steps(seen)}; {_ONWARD}"
        return None

    def _leave(self, status: int, what: str) -> NoReturn:
        """End the process at once, the first one last: the store lives in it."""
        try:
            if not published("ended"):
                publish("ended", (status, what))
            publish("left", True)
            deadline = time.monotonic() + 3 * self.period + 2
            while process_index() == 0 and time.monotonic() < deadline:
                silent = [p for p, (_, heard) in self._heard.items() if time.monotonic() - heard > self.silence]
                if len(published("left").keys() | set(silent)) >= process_count():
                    break
                time.sleep(self.period / 4)
        except jax.errors.JaxRuntimeError:
            pass
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # JAX's own exit would wait for processes that are gone


_ONWARD = "the same command goes on from the newest checkpoint"


def last_steps(seen: Mapping[int, Seen]) -> str:
    """Who finished which step last, stragglers first.

    Example:
        >>> last_steps({0: Seen("a", 812, 0.0, 1), 1: Seen("b", 811, 0.0, 1), 2: Seen("c", 812, 0.0, 1)})
        'step 811: process 1 (b); step 812: process 0 (a), process 2 (c)'
    """
    steps = sorted({told.step for told in seen.values()})
    return "; ".join(
        (f"step {step:,}: " if step >= 0 else "none yet: ")
        + numbered([process for process, told in sorted(seen.items()) if told.step == step], seen)
        for step in steps
    )


def _say(what: str) -> None:
    print(
        f"bert-jax, process {process_index()}: {what}" if process_count() > 1 else f"bert-jax: {what}",
        file=sys.stderr,
        flush=True,
    )


def _client() -> Any:
    return distributed.global_state.client


def _of_devices(error: BaseException) -> bool:
    """Whether the runtime raised it: some of its errors come as a ValueError that begins with a status of its own."""
    status = r"(UNKNOWN|INTERNAL|ABORTED|CANCELLED|UNAVAILABLE|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
    return isinstance(error, jax.errors.JaxRuntimeError) or (
        isinstance(error, ValueError) and re.match(status, str(error)) is not None
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "no reason given")
