"""The mesh, the one table from logical to mesh axes, and the shardings of trees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from flax import linen as nn
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
