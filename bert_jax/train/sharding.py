"""Processes and the mesh, the one table from logical to mesh axes, and the shardings of trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax.errors import UserError, counted

# Logical axis of an array → mesh axis it is spread over. `data` holds copies of the parameters, `fsdp` pieces of
# them; rows of a batch are spread over both. Every logical name of the model stands here.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "vocab": None,
    "layers": None,
    "heads": None,
    "head_size": None,
    "feed_forward": None,
    "norm": None,
}


def join_processes() -> None:
    """Join the other processes of the run, as Slurm, Open MPI, Kubernetes or a Cloud TPU slice tell of them.

    Call it before anything that asks for devices. JAX takes SIGTERM for itself here: listen to it afterwards.

    Raises:
        UserError: nobody tells of other processes, or they do not come.
    """
    try:
        jax.distributed.initialize()
    except ValueError:  # a coordinator, a number of processes or this one's number is missing
        raise UserError(
            "nobody tells this process of the others",
            "--distributed",
            "start it with srun, mpirun or on every worker of a TPU slice, or leave --distributed out on one host",
        ) from None
    except RuntimeError as error:
        raise UserError(
            f"the other processes cannot be joined ({(str(error).splitlines() or ['no reason given'])[0]})",
            "--distributed",
            "see that all are running and reach the first one's port",
        ) from None


def on_first_process(act: Callable[[], None]) -> None:
    """Do something on the first process while the others wait; a `UserError` there ends them all."""
    error: UserError | None = None
    if jax.process_index() == 0:
        try:
            act()
        except UserError as raised:
            error = raised
    if jax.process_count() > 1 and not multihost_utils.broadcast_one_to_all(np.array(error is None)):
        error = error or UserError("the first process could not begin", f"process {jax.process_index()}", "see there")
    if error is not None:
        raise error


class Agreement:
    """Whether any process says so: one answer for all of them, in the same call.

    Among several the answer comes a call late, as a step's metrics do: to wait for it at once would stop the devices.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))
        self._places, self._devices = rows(mesh), len(mesh.local_devices)
        self._asked: jax.Array | None = None

    def any(self, said: bool) -> bool:
        """Call it equally often on all processes."""
        if jax.process_count() == 1:
            return said
        before = self._asked
        mine = np.full(self._devices, said)
        self._asked = self._any(jax.make_array_from_process_local_data(self._places, mine))
        return before is not None and bool(before)


def make_mesh(data: int = 0, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of `data` × `fsdp` devices; `data = 0` takes all that `fsdp` leaves.

    Axes are Auto: with the Explicit ones that JAX now makes by default, Linen's gathers fail.

    Raises:
        UserError: the devices do not divide so.
    """
    devices = list(jax.devices() if devices is None else devices)
    if len(devices) % fsdp or (data and data * fsdp != len(devices)):
        raise UserError(
            f"a mesh of data {data or 'any'} × fsdp {fsdp} does not fit {counted(len(devices), 'device')}",
            "train",
            "choose mesh_data and mesh_fsdp so that their product is the number of devices",
        )
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, ("data", "fsdp"), (AxisType.Auto, AxisType.Auto), devices=devices)


@contextmanager
def on(mesh: Mesh) -> Iterator[None]:
    """Inside, the model's axis names mean axes of this mesh. `with mesh:` would drop the model's constraints."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(RULES.items())):
        yield


def shard_tree(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """Shardings for a tree of arrays.

    Args:
        axes: `PartitionSpec`s of logical names, as `bert.axes` gives them.
        shapes: the same tree of anything with a `shape`.

    Raises:
        UserError: an axis is not divisible by the devices it is spread over.
    """

    def sharding(path: Any, names: PartitionSpec, leaf: Any) -> NamedSharding:
        spec = PartitionSpec(*(None if name is None else RULES[name] for name in names))
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"an axis of {size} does not divide over {mesh.shape[axis]} devices of mesh axis {axis!r}",
                    jax.tree_util.keystr(path, simple=True, separator="/"),
                    "choose another mesh",
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(
        sharding, axes, shapes, is_leaf=lambda node: isinstance(node, PartitionSpec)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """Of every array in a batch: the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def check_batch(mesh: Mesh, batch: int, accumulate: int, where: str) -> None:
    """Raise `UserError` unless each device gets as many rows of each accumulation piece as the others."""
    if batch % (mesh.size * accumulate):
        pieces = f" in {accumulate} accumulation pieces" if accumulate > 1 else ""
        raise UserError(
            f"a batch of {batch}{pieces} does not divide over {mesh.size} devices",
            where,
            f"choose a batch that is a multiple of {mesh.size * accumulate}",
        )


def process_rows(mesh: Mesh, batch: int) -> slice:
    """The rows of a global batch that this process has to read: those of its own devices."""
    places = rows(mesh).addressable_devices_indices_map((batch,)).values()
    bounds = [place[0].indices(batch) for place in places if place is not None]
    start, stop = min(b[0] for b in bounds), max(b[1] for b in bounds)
    if sum(b[1] - b[0] for b in {b[:2]: b for b in bounds}.values()) != stop - start:
        raise RuntimeError("the rows of one process are not contiguous on this mesh")
    return slice(start, stop)
