"""Bytes a device, from XLA's own memory analysis of the compiled step, for meshes of devices that need not exist.

    python -m benchmarks.memory --preset large --optimizer lamb --devices 1 8 64

Each row is a process with so many virtual CPU devices, that compiles the real step for abstract arrays; nothing is
allocated. `state` is parameters, moments and counts by their shapes and places, `arguments` what XLA counts for them
and the batch, `temporary` what it needs beside: gradients, activations, gathered parameters. `plan` is what
`bert-jax plan` tells of both together, and `off` how far that is from XLA's sum. A row of the table a device keeps the
same rows of the batch (--rows), so that what falls is what sharding saves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import numpy as np

MEASURES = ("state", "arguments", "temporary", "plan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="large")
    parser.add_argument(
        "--layers", type=int, default=0, help="instead of the preset's, to compile faster where unrolled"
    )
    parser.add_argument("--optimizer", default="lamb", choices=("adamw", "lamb"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--tensor", type=int, default=1, help="of the devices, so many along the tensor axis")
    parser.add_argument("--data", type=int, default=1, help="of the devices, so many along the data axis; others: fsdp")
    parser.add_argument("--shard-optimizer", action="store_true")
    parser.add_argument("--unroll", action="store_true", help="layers unrolled instead of scanned")
    parser.add_argument("--remat", default="none", choices=("none", "names", "all"))
    parser.add_argument("--rows", type=int, default=8, help="rows of the batch a device")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="a line of JSON a row")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options, options.one)))
        return
    if not options.json:
        print(f"{'devices':>8}  {'mesh':<12}" + "".join(f"{name + ', MB':>16}" for name in MEASURES) + "     off")
    for devices in options.devices:
        row = in_a_process(devices)
        if options.json:
            print(json.dumps(row), flush=True)
        else:
            mesh = "×".join(map(str, row["mesh"].values()))
            sizes = "".join(f"{row[name] / 1e6:>16,.1f}" for name in MEASURES)
            off = row["plan"] / (row["arguments"] + row["temporary"]) - 1
            print(f"{devices:>8}  {mesh:<12}{sizes}{off:>+8.1%}", flush=True)


def in_a_process(devices: int) -> dict[str, Any]:
    """This script again, with these options and so many virtual devices: their number is fixed when JAX starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--one", str(devices)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace, devices: int) -> dict[str, Any]:
    """Compile the step for this many devices and read off what one of them needs, in bytes."""

    from bert_jax import footprint  # noqa: PLC0415
    from bert_jax.config import ModelSettings, Recipe, TrainSettings  # noqa: PLC0415
    from bert_jax.train import sharding  # noqa: PLC0415

    settings = TrainSettings(
        optimizer=options.optimizer,
        dtype=options.dtype,
        scan="off" if options.unroll else "on",
        remat=options.remat,
        shard_optimizer=options.shard_optimizer,
    )
    recipe = Recipe(ModelSettings(options.preset, layers=options.layers), train=settings)
    config = recipe.model.bert(30522)
    tensor, data = min(options.tensor, devices), min(options.data, devices)
    mesh = sharding.make_mesh(data, devices // (data * tensor), tensor)
    rows, row = options.rows * devices // tensor, one_row(options.length)
    compiled = footprint.lower(config, recipe, mesh, rows, 1, row, "cpu").compile()
    analysis = compiled.memory_analysis()
    planned = footprint.footprint(config, recipe, mesh, rows, 1, row)
    return {
        "devices": devices,
        "mesh": dict(mesh.shape),
        "state": footprint.local_bytes(footprint.place(mesh, config, recipe)),
        "arguments": analysis.argument_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "plan": planned.total,
        "planned": asdict(planned),
    }


def one_row(length: int) -> dict[str, np.ndarray]:
    """What the loader gives, with as many predictions as the reference makes of a row this long."""
    predictions = -(-15 * length // 100)
    tokens = dict.fromkeys(("input_ids", "segment_ids", "position_ids", "sequence_ids"), length)
    chosen = dict.fromkeys(("mlm_positions", "mlm_labels", "mlm_weights"), predictions)
    pairs = dict.fromkeys(("cls_positions", "nsp_labels", "nsp_weights"), 1)
    return {
        name: np.zeros((1, width), np.float32 if name.endswith("weights") else np.int32)
        for name, width in (tokens | chosen | pairs).items()
    }


if __name__ == "__main__":
    main()
