"""Checkpoints: thin over Orbax. Three items a step: `params`, `optimizer`, `meta`, so that each restores alone."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bert_jax.errors import UserError

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


class Checkpoints:
    """The `checkpoints/` of a run: saves in the background, keeps the newest `keep`."""

    def __init__(self, run: Path, keep: int) -> None:
        self.path = (run / "checkpoints").absolute()
        _quiet_closed_loops()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(
            self.path,
            options=options,
            # named here, so that a manager which has not saved yet can tell what a checkpoint holds
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "optimizer": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def latest(self) -> int | None:
        """The newest complete step; what a killed save left behind does not count."""
        return self._manager.latest_step()

    def save(self, step: int, params: Any, optimizer: Any, meta: dict[str, Any]) -> None:
        """Begin to save; the arrays are copied before this returns, so the next step may overwrite them.

        A step that is saved already is left as it is.

        Raises:
            UserError: this save, or the one before it, could not be written.
        """
        if step in self._manager.all_steps():
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
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Return when all saves begun are on disk; raises as `save` does."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def close(self) -> None:
        self._manager.close()

    def restore(self, step: int, params: Any, optimizer: Any) -> tuple[Any, Any]:
        """Parameters and optimizer state after `step` steps, placed on any number of devices.

        Args:
            params, optimizer: what to expect: `jax.ShapeDtypeStruct`s with shardings.

        Raises:
            UserError: the checkpoint holds other shapes or dtypes, or cannot be read.
        """
        where = str(self.path / str(step))
        try:
            self._check(step, params, where)
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(params), optimizer=ocp.args.StandardRestore(optimizer)
                ),
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"this checkpoint cannot be read ({_first_line(error)})",
                where,
                "move it away to continue from the one before",
            ) from error
        return items.params, items.optimizer

    def _check(self, step: int, params: Any, where: str) -> None:
        # Orbax casts and cuts without a word: compare first
        found = jax.tree.map(
            lambda m: (tuple(m.shape), np.dtype(m.dtype)), dict(self._manager.item_metadata(step).params)
        )
        if found != jax.tree.map(lambda a: (tuple(a.shape), np.dtype(a.dtype)), params):
            raise UserError("this checkpoint holds another network", where, "give the recipe it began with")

    def _failed(self, error: Exception) -> UserError:
        return UserError(
            f"a checkpoint cannot be written ({_first_line(error)})",
            str(self.path),
            "make room, then start the same command again to continue from the newest complete one",
        )


def load_params(run: str | Path, step: int | None = None) -> tuple[dict[str, Any], int]:
    """The parameters of a run as NumPy arrays, and their step; the newest complete one unless told.

    Raises:
        UserError: no checkpoint, or not that step.
    """
    path = (Path(run) / "checkpoints").absolute()
    steps = sorted(int(p.name) for p in path.iterdir() if p.name.isdigit()) if path.is_dir() else []
    if not steps:
        raise UserError("there is no checkpoint yet", str(run), "let it train to its first save")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise UserError(f"there is no step {step}", str(path), f"choose one of {', '.join(map(str, steps))}")
    with ocp.StandardCheckpointer() as checkpointer:
        item = path / str(step) / "params"
        metadata = checkpointer.metadata(item).item_metadata
        abstract = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), dict(metadata))
        restored = checkpointer.restore(item, jax.tree.map(_on_one_device, abstract))
    return jax.tree.map(np.asarray, restored), step


def _on_one_device(abstract: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(abstract.shape, abstract.dtype, sharding=place)


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0]
    reason = re.search(r": ([^:]+?) \[os_error_code", text)  # the system's own words, where TensorStore passes them on
    return reason[1] if reason else text[:200]
