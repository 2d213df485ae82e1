"""Two runs of one recipe: are they the same, bit for bit? For tests and for benchmarks/faults.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


def saved(run: Path, step: int) -> dict[str, Any]:
    """Parameters and optimizer state of a step, as they lie on disk."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        tree = {}
        for item in ("params", "optimizer"):
            path = run.absolute() / "checkpoints" / str(step) / item
            abstract = jax.tree.map(
                lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place),
                dict(checkpointer.metadata(path).item_metadata),
            )
            tree[item] = jax.device_get(checkpointer.restore(path, abstract))
    return tree


def steps(run: Path) -> list[int]:
    """The complete checkpoints, oldest first."""
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same in two finished runs: the last checkpoint leaf by leaf, the metrics line by line."""
    last = steps(one)[-1]
    if steps(other)[-1] != last:
        return [f"they end with steps {last} and {steps(other)[-1]}"]
    ours, theirs = (jax.tree_util.tree_leaves_with_path(saved(run, last)) for run in (one, other))
    found = [] if len(ours) == len(theirs) else ["the trees differ"]
    for (path, a), (_, b) in zip(ours, theirs, strict=False):
        if a.dtype != b.dtype or not np.array_equal(a, b):
            found.append(jax.tree_util.keystr(path))
    if (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes():
        found.append("metrics.jsonl")
    return found
