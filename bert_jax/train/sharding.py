"""Processes and the mesh, the one table from logical to mesh axes, and the shardings of trees."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from bert_jax.errors import UserError, counted
from bert_jax.train.step import TrainState

# Logical axis of an array → mesh axis it is spread over. `data` holds copies of the parameters, `fsdp` pieces of
# them, gathered where they are used; `tensor` pieces that stay where they are and meet in the products. Rows of a
# batch are spread over the first two. Every logical name of the model stands here.
AXES = ("data", "fsdp", "tensor")
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "vocab": "tensor",
    "layers": None,
    "heads": "tensor",
    "head_size": None,
    "feed_forward": "tensor",
    "norm": None,
}
# Left whole where it does not divide: 30,522 word pieces are 2 × 3 × 5,087.
MAY_STAY_WHOLE = {"vocab"}


def mesh_shape(devices: int, data: int = 0, fsdp: int = 1, tensor: int = 1) -> tuple[int, int, int]:
    """The sizes of `AXES` for so many devices; `data = 0` takes all that the others leave.

    Raises:
        UserError: the devices do not divide so.
    """
    if devices % (fsdp * tensor) or (data and data * fsdp * tensor != devices):
        raise UserError(
            f"a mesh of data {data or 'any'} × fsdp {fsdp} × tensor {tensor} does not fit {counted(devices, 'device')}",
            "train",
            "choose mesh_data, mesh_fsdp and mesh_tensor so that their product is the number of devices",
        )
    return devices // (fsdp * tensor), fsdp, tensor


def make_mesh(data: int = 0, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of these devices (all, if none are named), in the sizes of `mesh_shape`, which also says what it raises.

    Among several processes devices stand in the order of the processes: what a process reads is then one stretch of
    the batch, which the order that fits a torus best would not give. Axes are Auto: with the Explicit ones that JAX
    now makes by default, Linen's gathers fail.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape, types = mesh_shape(len(devices), data, fsdp, tensor), (AxisType.Auto,) * len(AXES)
    if len({device.process_index for device in devices}) == 1:
        return jax.make_mesh(shape, AXES, types, devices=devices)
    devices.sort(key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=types)


def abstract_mesh(devices: int, data: int = 0, fsdp: int = 1, tensor: int = 1) -> AbstractMesh:
    """A mesh of devices that need not exist, to place and lower for; sizes as in `mesh_shape`."""
    return AbstractMesh(mesh_shape(devices, data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES))


@contextmanager
def on(mesh: Mesh | AbstractMesh) -> Iterator[None]:
    """Inside, the model's axis names mean axes of this mesh. `with mesh:` would drop the model's constraints."""
    used = jax.set_mesh(mesh) if isinstance(mesh, Mesh) else use_abstract_mesh(mesh)
    with used, nn.logical_axis_rules(list(RULES.items())):
        yield


def shard_tree(mesh: Mesh | AbstractMesh, axes: Any, shapes: Any) -> Any:
    """Shardings for a tree of arrays.

    Args:
        axes: `PartitionSpec`s of logical names, as `bert.axes` gives them.
        shapes: the same tree of anything with a `shape`.

    Raises:
        UserError: an axis is not divisible by the devices it is spread over.
    """

    def place(path: Any, name: str | None, size: int) -> str | tuple[str, ...] | None:
        axis = None if name is None else RULES[name]
        if size % _pieces(mesh, axis) == 0:
            return axis
        if name in MAY_STAY_WHOLE:
            return None
        raise UserError(
            f"an axis of {size} ({name}) does not divide over {_pieces(mesh, axis)} devices of mesh axis {axis!r}",
            jax.tree_util.keystr(path, simple=True, separator="/"),
            "choose another mesh",
        )

    def sharding(path: Any, names: PartitionSpec, leaf: Any) -> NamedSharding:
        places = (place(path, name, size) for name, size in zip(names, leaf.shape, strict=False))
        return NamedSharding(mesh, PartitionSpec(*places))

    return jax.tree_util.tree_map_with_path(
        sharding, axes, shapes, is_leaf=lambda node: isinstance(node, PartitionSpec)
    )


def state_shardings(
    mesh: Mesh | AbstractMesh, axes: Any, shapes: TrainState, shard_optimizer: bool = False
) -> TrainState:
    """Shardings for all that a step changes: moments lie where their parameters lie, all else on every device.

    Args:
        axes: of the parameters, as `bert.axes` gives them.
        shapes: the state, of anything with a `shape`.
        shard_optimizer: moments are spread over `data` too, so that each device updates a piece of its parameters
            and gathers the others' (Xu et al. 2020, "Automatic Cross-Replica Sharding of Weight Update").

    Raises:
        UserError: as `shard_tree`.
    """
    params = shard_tree(mesh, axes, shapes.params)
    moments = jax.tree.map(_over_data, params, shapes.params) if shard_optimizer else params
    return like_params(shapes, moments, replicated(mesh))._replace(params=params)


def _over_data(place: NamedSharding, leaf: Any) -> NamedSharding:
    """The same place, its longest axis that divides so spread over `data` too; small odd leaves stay as they are."""
    spec = [*place.spec, *[None] * (len(leaf.shape) - len(place.spec))]
    for axis in sorted(range(len(spec)), key=lambda axis: -leaf.shape[axis]):
        own = spec[axis] or ()
        spread = (*((own,) if isinstance(own, str) else own), "data")
        if leaf.shape[axis] % _pieces(place.mesh, spread) == 0:
            spec[axis] = spread
            return NamedSharding(place.mesh, PartitionSpec(*spec))
    return place


def like_params(shapes: TrainState, params: Any, other: Any) -> TrainState:
    """A tree of shardings for the state: subtrees shaped as the parameters get theirs, other leaves get `other`."""
    structure = jax.tree.structure(shapes.params)

    def is_params(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    return jax.tree.map(lambda node: params if is_params(node) else other, shapes, is_leaf=is_params)


def _pieces(mesh: Mesh | AbstractMesh, axis: str | tuple[str, ...] | None) -> int:
    """Into how many pieces an axis is cut that is spread over these mesh axes."""
    names = (axis,) if isinstance(axis, str) else axis or ()
    return math.prod(mesh.shape[name] for name in names)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def each_device(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def rows(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Of every array in a batch: the leading axis over `data` and `fsdp`; devices along `tensor` hold the same rows."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def check_batch(mesh: Mesh | AbstractMesh, batch: int, accumulate: int, where: str) -> None:
    """Raise `UserError` unless each device gets as many rows of each accumulation piece as the others."""
    parts = _pieces(mesh, RULES["batch"])
    if batch % (parts * accumulate):
        pieces = f" in {accumulate} accumulation pieces" if accumulate > 1 else ""
        groups = f" in groups of {mesh.shape['tensor']}" if mesh.shape["tensor"] > 1 else ""
        raise UserError(
            f"a batch of {batch}{pieces} does not divide over {mesh.size} devices{groups}",
            where,
            f"choose a batch that is a multiple of {parts * accumulate}",
        )


def process_rows(mesh: Mesh, batch: int) -> slice:
    """The rows of a global batch that this process has to read: those of its own devices.

    Processes that share a group of `tensor` read the same rows.
    """
    places = rows(mesh).addressable_devices_indices_map((batch,)).values()
    bounds = [place[0].indices(batch) for place in places if place is not None]
    start, stop = min(b[0] for b in bounds), max(b[1] for b in bounds)
    if sum(b[1] - b[0] for b in {b[:2]: b for b in bounds}.values()) != stop - start:
        raise RuntimeError("the rows of one process are not contiguous on this mesh")
    return slice(start, stop)
