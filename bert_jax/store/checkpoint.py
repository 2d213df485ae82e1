"""Checkpoints: thin over Orbax. Three items a step: `params`, `optimizer`, `meta`, so that each restores alone."""

from __future__ import annotations

import itertools
import logging
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bert_jax.errors import UserError, counted

# Orbax tells every save in a dozen lines and a failed one in several tracebacks; we tell it once
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def _quiet_closed_loops() -> None:
    """When a save fails, Orbax closes its event loop under TensorStore's writers; each would print a traceback."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


class Damaged(Exception):
    """A checkpoint that cannot be read, and why."""


class Checkpoints:
    """The `checkpoints/` of a run: saves in the background, keeps the newest `keep`.

    A save that fails is told, and training goes on; after `failures` in a row it is an error.

    Args:
        say: takes the line that tells of a failed save.
        any_of: whether what is true or not here is true on any process: a save that fails on one has failed on all.
        read_only: of a run that may be training at this moment: nothing is cleared away.
    """

    def __init__(
        self,
        run: Path,
        keep: int = 1,
        failures: int = 1,
        say: Callable[[str], None] = print,
        read_only: bool = False,
        any_of: Callable[[bool], bool] = bool,
    ) -> None:
        self.path = (run / "checkpoints").absolute()
        self._read_only = read_only
        self._keep, self._limit, self._say, self._any_of = keep, failures, say, any_of
        self._failures = 0
        self._begun: int | None = None
        _quiet_closed_loops()
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.path,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if self._read_only else self._keep,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=not self._read_only,  # what killed and failed saves left fills the disk
                read_only=self._read_only,
            ),
            # named here, so that a manager which has not saved yet can tell what a checkpoint holds
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "optimizer": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self) -> list[int]:
        """The complete steps, oldest first; what a killed save left behind does not count."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest complete step."""
        return max(self.steps(), default=None)

    def rehearse(self, state: Any) -> None:
        """See that there is room for what will be saved, and that a small tree comes back as it was written.

        Args:
            state: all that a checkpoint holds: anything with a `shape` and a `dtype`.

        Raises:
            UserError: too little room, or this is no place to write to.
        """
        size = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state))
        # the oldest is deleted once the newest is complete
        missing = max(self._keep + 1 - len(self.steps()), 1)
        free = shutil.disk_usage(self.path).free
        if free < missing * size:
            raise UserError(
                f"{_gigabytes(free)} are free, where {counted(missing, 'checkpoint')} of {_gigabytes(size)} must fit",
                str(self.path),
                "make room, or keep fewer with --set checkpoint.keep=1",
            )
        # beside them: the manager may be clearing away halves among them at this moment
        place, tree = self.path.with_name("checkpoints-trial"), {"written": np.arange(1000, dtype=np.int32)}
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(place, tree, force=True)
                checkpointer.wait_until_finished()
                found = checkpointer.restore(place, tree)
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error
        finally:
            if jax.process_index() == 0:
                for path in place.parent.glob(f"{place.name}*"):
                    shutil.rmtree(path, ignore_errors=True)
        if not np.array_equal(found["written"], tree["written"]):
            raise UserError("what is written here comes back changed", str(self.path), "choose another disk")

    def save(
        self, step: int, params: Any, optimizer: Any, meta: dict[str, Any], first: Callable[[], None] | None = None
    ) -> None:
        """Begin to save; the arrays are copied before this returns, so the next step may overwrite them.

        A step that is saved already is left as it is.

        Args:
            first: what must be on disk before; if it raises `OSError` the save has failed.

        Raises:
            UserError: this save or the one before it could not be written, and so many before.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        error = None
        try:
            if first is not None:
                first()
        except OSError as failed:
            error = failed
        if self._any_of(error is not None):  # the others are not to wait for this process in a save
            self._failed(step, error or OSError("on another process"))
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    optimizer=ocp.args.StandardSave(optimizer),
                    meta=ocp.args.JsonSave({**meta, "step": step}),
                ),
            )
            self._begun = step
        except (OSError, ValueError) as error:
            self._failed(step, error)

    def wait(self) -> None:
        """Return when the save begun is on disk, or was told to have failed; raises as `save` does."""
        begun, self._begun = self._begun, None
        if begun is None:
            return
        error = None
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as failed:
            error = failed
        if self._any_of(error is not None):
            self._failed(begun, error or OSError("on another process"))
        else:
            self._failures = 0

    def _failed(self, step: int, error: Exception) -> None:
        self._failures += 1
        with suppress(OSError, ValueError):  # the same error once more
            self._manager.close()
        if self._failures >= self._limit:
            raise self._unwritable(error) from error
        self._manager = self._open()  # a manager that failed counts what it has not written
        self._say(
            f"step {step:,} could not be saved ({_first_line(error)}): training goes on, and ends after"
            f" {counted(self._limit, 'failure')} in a row"
        )

    def finish(self, step: int) -> None:
        """Wait for the last save and close.

        Raises:
            UserError: `step` is not on disk.
        """
        self.wait()
        if step not in self.steps():
            raise self._unwritable(OSError(f"step {step:,} could not be saved"))
        self._manager.close()

    def close(self) -> None:
        self._manager.close()

    def set_aside(self, step: int) -> None:
        """Move a damaged checkpoint out of the way, on one process; then all `reload`."""
        place = self.path / str(step)
        aside = place.with_name(f"{step}.damaged")
        for number in itertools.count(2):
            if not aside.exists():
                break
            aside = place.with_name(f"{step}.damaged.{number}")
        place.rename(aside)

    def reload(self) -> None:
        """Look anew at what is on disk."""
        self._manager.reload()

    def restore(self, step: int, params: Any, optimizer: Any) -> tuple[Any, Any]:
        """Parameters and optimizer state after `step` steps, placed on any number of devices.

        Args:
            params, optimizer: what to expect: `jax.ShapeDtypeStruct`s with shardings.

        Raises:
            Damaged: it cannot be read.
            UserError: the checkpoint holds other shapes or dtypes.
        """
        with _damage():
            self._check(step, params, str(self.path / str(step)))
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(params), optimizer=ocp.args.StandardRestore(optimizer)
                ),
            )
        return items.params, items.optimizer

    def _check(self, step: int, params: Any, where: str) -> None:
        # Orbax casts and cuts without a word: compare first
        metadata = self._manager.item_metadata(step).params
        if metadata is None:
            raise ValueError("it does not tell what it holds")
        found = jax.tree.map(lambda m: (tuple(m.shape), np.dtype(m.dtype)), dict(metadata))
        if found != jax.tree.map(lambda a: (tuple(a.shape), np.dtype(a.dtype)), params):
            raise UserError("this checkpoint holds another network", where, "give the recipe it began with")

    def _unwritable(self, error: Exception) -> UserError:
        often = f", {self._failures} times in a row" if self._failures > 1 else ""
        return UserError(
            f"a checkpoint cannot be written ({_first_line(error)}){often}",
            str(self.path),
            "make room, then start the same command again to continue from the newest complete one",
        )


def saved_steps(run: str | Path) -> list[int]:
    """The steps that a run has checkpoints of, in order; none where there is no run."""
    path = Path(run) / "checkpoints"
    return sorted(int(p.name) for p in path.iterdir() if p.name.isdigit()) if path.is_dir() else []


def load_params(run: str | Path, step: int | None = None) -> tuple[dict[str, Any], int]:
    """The parameters of a run as NumPy arrays, and their step; the newest complete one unless told.

    Raises:
        UserError: no checkpoint, or not that step.
    """
    path, steps = (Path(run) / "checkpoints").absolute(), saved_steps(run)
    if not steps:
        raise UserError("there is no checkpoint yet", str(run), "let it train to its first save")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise UserError(f"there is no step {step}", str(path), f"choose one of {', '.join(map(str, steps))}")
    item = path / str(step) / "params"
    try:
        with _damage(), ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(item).item_metadata
            if metadata is None:
                raise ValueError("it does not tell what it holds")
            abstract = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), dict(metadata))
            restored = checkpointer.restore(item, jax.tree.map(_on_one_device, abstract))
    except Damaged as error:
        others = f"choose another step of {', '.join(map(str, steps))}" if len(steps) > 1 else "restore it from a copy"
        raise UserError(f"this checkpoint cannot be read ({error})", str(path / str(step)), others) from None
    return jax.tree.map(np.asarray, restored), step


@contextmanager
def _damage() -> Iterator[None]:
    """Whatever Orbax and TensorStore raise of a checkpoint that cannot be read, as `Damaged`."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise Damaged(_first_line(error)) from error
    except Exception as error:
        # what TensorStore cannot read comes as a bare Exception, the reason behind it
        if type(error) is not Exception or not isinstance(error.__cause__, Exception):
            raise
        raise Damaged(_first_line(error.__cause__)) from error


def _on_one_device(abstract: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(abstract.shape, abstract.dtype, sharding=place)


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = (str(error).splitlines() or [type(error).__name__])[0]
    reason = re.search(r": ([^:]+?) \[os_error_code", text)  # the system's own words, where TensorStore passes them on
    return reason[1] if reason else text[:200]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
