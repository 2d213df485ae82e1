"""`bert-jax plan`: what a run will cost and whether it fits, before anything is paid for.

Tokens, FLOPs and what a device is given are counted; hours rest on an assumed utilisation, activations and workspace
on an estimate. The table says which is which.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax import footprint as memory
from bert_jax.config import BertConfig, Recipe, Stage, load_recipe, with_data
from bert_jax.cost import ACCELERATORS, Accelerator, Work, accelerator, of_kind, parameters, train_flops
from bert_jax.data.batching import HostBatch
from bert_jax.data.loader import Batches, Dataset, open_batches, open_dataset
from bert_jax.data.order import Ramp
from bert_jax.errors import UserError, counted
from bert_jax.footprint import Footprint
from bert_jax.model import bert
from bert_jax.settings import add_settings
from bert_jax.train import sharding
from bert_jax.train.step import init_state

GIB = 2**30
FULL = 0.92  # of a device's memory; the rest is for programs, collectives and holes between arrays
MANY_EPOCHS = 40  # the reference trained for about 40; more on a small corpus learns it by heart


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a TOML recipe, such as those in configs/")
    parser.add_argument("--data", type=Path, help="a data directory from `bert-data shards`")
    names = ", ".join(ACCELERATORS)
    parser.add_argument("--device", default="h100", help=f"{names}; or here: time a few real steps on this machine")
    parser.add_argument("--devices", type=int, default=1, help="how many of them, over all hosts")
    parser.add_argument("--hosts", type=int, default=1, help="machines that they are in")
    parser.add_argument("--mfu", type=float, default=0.45, help="assumed share of the bfloat16 peak on full rows")
    parser.add_argument("--price-hour", type=float, help="price of one device for one hour, in any currency")
    parser.add_argument("--lower", action="store_true", help="lower the real step for that many devices, on this CPU")
    parser.add_argument(
        "--compile", action="store_true", help="compile it too, for as many virtual CPU devices: bytes and collectives"
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    add_settings(parser, "override a setting")


def run(args: argparse.Namespace) -> int:
    """Print the plan; 0 also where it does not fit, since that is an answer."""
    recipe = load_recipe(args.recipe, args.settings)
    if args.data:
        recipe = with_data(recipe, str(args.data))
    if not recipe.data.path:
        raise UserError("no data directory", "data.path", "give --data DIR")
    for name in ("devices", "hosts", "mfu"):
        if getattr(args, name) <= 0:
            raise UserError(f"{getattr(args, name)} is too small", f"--{name}", "give a number above 0")
    if not args.mfu <= 1:
        raise UserError(f"{args.mfu} is no share of the peak", "--mfu", "give one such as 0.45")
    if args.devices % args.hosts:
        raise UserError(
            f"{args.devices} devices do not divide over {args.hosts} hosts", "--hosts", "hosts are all alike"
        )
    here = args.device == "here"
    if here and (args.lower or args.compile):
        raise UserError("this machine trains, it need not be imagined", "--device here", "name another with --lower")
    target = None if here else accelerator(args.device)
    if not here:  # nothing here touches an accelerator, and its start can take a minute
        jax.config.update("jax_platforms", "cpu")
    if args.compile:
        count = f"--xla_force_host_platform_device_count={args.devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    devices = len(jax.devices()) if here else args.devices
    plan = make_plan(recipe, target, devices, args.mfu, args.lower, args.compile)
    if args.json:
        print(json.dumps(dataclasses.asdict(plan), indent=1))
    else:
        print("\n".join(lines(plan, target, args)))
    return 0


# -------------------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class StagePlan:
    """A stage in figures. `full` is the share of its rows' places that hold tokens, `packed_full` that of packed ones.

    `memory` are bytes a device; `seconds_a_row` is measured, and None where MFU is assumed instead.
    """

    number: int
    length: int
    batch: int
    steps: int
    tokens: float
    epochs: float
    flops: float
    full: float
    packed_full: float
    memory: Footprint
    rows: float
    seconds_a_row: float | None
    lowered: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """All that is told; `hours` for the device asked for and, at the same number and MFU, for the others."""

    parameters: int
    devices: int
    mesh: dict[str, int]
    stages: tuple[StagePlan, ...]
    hours: dict[str, float]
    warnings: tuple[str, ...]
    arrays: tuple[memory.Place, ...]

    @property
    def flops(self) -> float:
        return sum(stage.flops for stage in self.stages)

    @property
    def tokens(self) -> float:
        return sum(stage.tokens for stage in self.stages)


@dataclass(frozen=True)
class OpenStage:
    """A stage with its data: what there is, in which batches, and one row as the loader lays it out."""

    settings: Stage
    train: Dataset
    batches: Batches
    packed: Batches
    row: HostBatch
    rows: float  # of all steps together


def open_stage(recipe: Recipe, number: int) -> OpenStage:
    """Raises UserError: data that are not there, or not of the stage's length."""
    settings = recipe.stage[number]
    path = Path(recipe.data.path) / settings.data
    train = open_dataset(path, "train")
    if settings.length and settings.length != train.manifest.length:
        raise UserError(
            f"the recipe wants records of {settings.length} tokens, these have {train.manifest.length}",
            f"{path} (stage.{number}.length)",
            f"make shards with --length {settings.length}, or name the folder that has them in stage.{number}.data",
        )
    old = open_dataset(Path(recipe.data.path) / settings.replay_data, "train") if settings.replay_data else None
    batches = open_batches(recipe.data, settings, number, recipe.train.seed, train, old)
    pack = dataclasses.replace(recipe.data, batching="packed")
    packed = open_batches(pack, settings, number, recipe.train.seed, train, old)
    if settings.tokens:
        settings = dataclasses.replace(settings, steps=batches.steps_for(settings.tokens))
    if batches.buckets is None:
        row = dataclasses.replace(batches, ramp=Ramp(1)).load(0).rows
        rows = float(batches.ramp.rows_before(settings.steps))
    else:  # a batch of the longest rows; shorter ones have as many tokens
        row = dataclasses.replace(batches, buckets=None, ramp=Ramp(1)).load(0).rows
        rows = float(settings.steps * settings.batch)
    return OpenStage(settings, train, batches, packed, row, rows)


def make_plan(
    recipe: Recipe, target: Accelerator | None, devices: int, mfu: float, lower: bool = False, compiling: bool = False
) -> Plan:
    """Work it all out.

    Args:
        target: the accelerator; None times a few real steps on this machine's devices.
        devices: how many devices train; they need not exist unless `target` is None.
        mfu: share of the peak assumed for full rows.
        lower, compiling: lower the real step for them; compile it for as many CPU devices.

    Raises:
        UserError: data, mesh or sizes are at fault.
    """
    opened = [open_stage(recipe, number) for number in range(len(recipe.stage))]
    manifest = opened[0].train.manifest
    relations = next(filter(None, (stage.train.manifest.relations for stage in opened)), 2)
    config = recipe.model.bert(manifest.vocab_size, relations)
    sizes = (recipe.train.mesh_data, recipe.train.mesh_fsdp, recipe.train.mesh_tensor)
    mesh = sharding.abstract_mesh(devices, *sizes)
    warnings: list[str] = []
    stages = []
    for number, stage in enumerate(opened):
        where = f"stage.{number}"
        if stage.train.manifest.length > config.positions:
            raise UserError(
                f"records of {stage.train.manifest.length} tokens are longer than the table of {config.positions}",
                where,
                f"set model.positions={stage.train.manifest.length}, or make shorter records",
            )
        for size in stage.batches.sizes:
            try:
                sharding.check_batch(mesh, size, stage.settings.accumulate, where)
            except UserError as error:
                warnings.append(f"it will not start: {error}")
        planned = plan_stage(recipe, config, mesh, number, stage)
        if target is None:
            planned = dataclasses.replace(planned, seconds_a_row=time_steps(config, recipe, stage))
        if lower or compiling:
            planned = dataclasses.replace(planned, lowered=lowered(config, recipe, mesh, stage, target, compiling))
        warnings += remarks(planned, target, recipe, where)
        stages.append(planned)
    return Plan(
        parameters=parameters(config),
        devices=devices,
        mesh=dict(mesh.shape),
        stages=tuple(stages),
        hours=hours_of(stages, target, devices, mfu),
        warnings=tuple(warnings),
        arrays=tuple(memory.largest(memory.place(mesh, config, recipe))),
    )


def plan_stage(recipe: Recipe, config: BertConfig, mesh: Any, number: int, stage: OpenStage) -> StagePlan:
    """The figures of one stage, without its time."""
    parts = [(stage.batches.sources[0], 1.0 - stage.batches.share)]
    parts += [(source, stage.batches.share) for source in stage.batches.sources[1:]]
    done = Work(0.0, 0.0, 0.0, 0.0)
    epochs = 0.0
    for source, share in parts:
        if stage.batches.buckets is None:
            passes = stage.rows * share / source.order.epoch_rows
        else:
            passes = stage.settings.steps / stage.batches.buckets.epoch_batches
        one = epoch_work(source.dataset)
        done = Work(*(a + passes * b for a, b in zip(dataclasses.astuple(done), dataclasses.astuple(one), strict=True)))
        epochs = epochs or passes  # of the stage's own data, which come first
    length = stage.train.manifest.length
    return StagePlan(
        number=number,
        length=length,
        batch=stage.settings.batch,
        steps=stage.settings.steps,
        tokens=done.tokens,
        epochs=epochs,
        flops=train_flops(config, done),
        full=done.tokens / (stage.rows * length),
        packed_full=stage.packed.sources[0].row_tokens / length,
        memory=memory.footprint(config, recipe, mesh, stage.settings.batch, stage.settings.accumulate, stage.row),
        rows=stage.rows,
        seconds_a_row=None,
        lowered={},
    )


def epoch_work(dataset: Dataset) -> Work:
    """What one pass over the records asks, each attending within its own length."""
    lengths = dataset.tokens.astype(np.float64)
    manifest = dataset.manifest
    # as prepared; shards made elsewhere tell their rate alone
    chosen = manifest.splits["train"].rates.get("chosen", manifest.settings["rate"] * float(lengths.sum()))
    return Work(float(lengths.sum()), float((lengths**2).sum()), float(chosen), float(len(lengths)))


def hours_of(stages: list[StagePlan], target: Accelerator | None, devices: int, mfu: float) -> dict[str, float]:
    """Hours by device; MFU counts useful tokens alone, so places of rows that are empty cost time."""
    if target is None:
        return {"here": sum(stage.rows * (stage.seconds_a_row or 0.0) for stage in stages) / 3600}
    work = sum(stage.flops / stage.full for stage in stages)
    return {name: work / (devices * a.tflops * 1e12 * mfu) / 3600 for name, a in ACCELERATORS.items()}


def remarks(stage: StagePlan, target: Accelerator | None, recipe: Recipe, where: str) -> list[str]:
    """What a careful reader would object to, each with its cure."""
    said = []
    if stage.epochs > MANY_EPOCHS:
        said.append(
            f"{where}: {stage.epochs:.0f} passes over the same records; more than {MANY_EPOCHS} learn them by heart:"
            ' prepare more text, take fewer steps, or set data.masking="dynamic"'
        )
    if stage.packed_full / stage.full > 1.05:
        said.append(
            f'{where}: {1 - stage.full:.0%} of the places in its rows are empty; data.batching="packed" would take'
            f" {1 - stage.full / stage.packed_full:.0%} less time for the same tokens"
        )
    if target is not None and stage.memory.total > FULL * target.memory * GIB:
        said.append(
            f"{where}: {stage.memory.total / GIB:.1f} GiB a device do not fit into the {target.memory:g} GiB of a"
            f" {target.name}; {cure(stage.memory, recipe, stage, target)}"
        )
    return said


def cure(need: Footprint, recipe: Recipe, stage: StagePlan, target: Accelerator) -> str:
    """The setting that helps, by what is largest."""
    room = FULL * target.memory * GIB
    if need.total - need.activations > room:
        return "spread parameters and moments over more devices with train.mesh_fsdp"
    pieces = recipe.stage[stage.number].accumulate
    if recipe.train.remat == "none":
        return f"set stage.{stage.number}.accumulate={2 * pieces} or more, or train.remat=all, a third slower"
    return f"set stage.{stage.number}.accumulate={2 * pieces} or more"


# ------------------------------------------------------------------------------------------------- the real step


def time_steps(config: BertConfig, recipe: Recipe, stage: OpenStage) -> float:
    """Seconds a row on this machine: the real step, a few rows a device, the median of three after the first."""
    sizes = (recipe.train.mesh_data, recipe.train.mesh_fsdp, recipe.train.mesh_tensor)
    mesh = sharding.make_mesh(*sizes)
    groups = mesh.shape["data"] * mesh.shape["fsdp"]
    few = 2 if jax.default_backend() == "cpu" else max(1, 2**14 // stage.train.manifest.length)
    rows = groups * min(few, max(1, stage.settings.batch // stage.settings.accumulate // groups))
    whole = stage.batches if stage.batches.buckets is None else dataclasses.replace(stage.batches, buckets=None)
    ramp = dataclasses.replace(whole.ramp, batch=rows, first=0, steps=0)
    loaded = dataclasses.replace(whole, ramp=ramp).load(0).rows
    batch = {name: jax.device_put(x, sharding.rows(mesh)) for name, x in loaded.items()}
    places = jax.tree.map(lambda leaf: leaf.sharding, memory.place(mesh, config, recipe))
    step = jax.jit(memory.train_step(config, recipe, 1), out_shardings=(places, sharding.replicated(mesh)))
    with sharding.on(mesh):
        tx = memory.make_optimizer(recipe.train)
        state = jax.jit(lambda key: init_state(bert.init(config, key), tx), out_shardings=places)(jax.random.key(0))
        seconds = []
        for _ in range(4):
            begin = time.perf_counter()
            state, _metrics = jax.block_until_ready(step(state, batch))
            seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds[1:])) / rows


def lowered(
    config: BertConfig, recipe: Recipe, mesh: Any, stage: OpenStage, target: Accelerator | None, compiling: bool
) -> dict[str, Any]:
    """The real step lowered for the target, and compiled for as many CPU devices: the partitioner is the same one."""
    platform = {"gpu": "cuda", "tpu": "tpu"}[target.platform] if target else "cpu"
    begin = time.perf_counter()
    shape = (stage.settings.batch, stage.settings.accumulate, stage.row)
    text = memory.lower(config, recipe, mesh, *shape, platform).as_text()
    found: dict[str, Any] = {
        "platform": platform,
        "seconds": time.perf_counter() - begin,
        "partitions": mesh.size,
        "constraints": text.count("sdy.sharding_constraint"),
    }
    if compiling:
        real = sharding.make_mesh(*(mesh.shape[axis] for axis in sharding.AXES), jax.devices()[: mesh.size])
        compiled = memory.lower(config, recipe, real, *shape, "cpu").compile()
        analysis = compiled.memory_analysis()
        found["collectives"] = memory.collectives(compiled.as_text())
        assert analysis is not None  # the CPU backend has one
        found["arguments"] = analysis.argument_size_in_bytes
        found["temporaries"] = analysis.temp_size_in_bytes
    return found


# ------------------------------------------------------------------------------------------------------- the table


def lines(plan: Plan, target: Accelerator | None, args: argparse.Namespace) -> list[str]:
    """The plan for a person."""
    name = target.name if target else "here"
    kind = f"{target.name} ({target.tflops:g} TFLOP/s bfloat16, {target.memory:g} GiB)" if target else "this machine"
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    hosts = f" in {counted(args.hosts, 'host')}" if args.hosts > 1 else ""
    out = [f"{plan.parameters:,} parameters; {counted(plan.devices, 'device')}{hosts}, {kind}; mesh {mesh}", ""]
    out.append("stage length   batch      steps  tokens  epochs   FLOPs  rows full  packed")
    for s in plan.stages:
        out.append(
            f"{s.number:5} {s.length:6} {s.batch:7,} {s.steps:10,} {_short(s.tokens):>7} {s.epochs:7.2f}"
            f" {s.flops:7.1e} {s.full:9.1%} {s.packed_full:7.1%}"
        )
    out.append(f"  all {'':25} {_short(plan.tokens):>7} {'':7} {plan.flops:7.1e}")
    out += ["", "MiB a device   parameters  optimizer  gradients  activations  workspace  batch    all"]
    for s in plan.stages:
        m = s.memory
        parts = (m.parameters, m.optimizer, m.gradients, m.activations, m.workspace, m.batch, m.total)
        sizes = [f"{part / 2**20:,.1f}" for part in parts]
        widths = (11, 10, 10, 12, 10, 6, 8)
        out.append(f"stage {s.number:<6} " + " ".join(f"{x:>{w}}" for x, w in zip(sizes, widths, strict=True)))
    out.append("(parameters, optimizer and batch are counted; gradients, activations and workspace are estimates)")
    out.append("")
    for place in plan.arrays[:4]:
        spec = ", ".join("whole" if axis is None else str(axis) for axis in place.spec) or "whole"
        out.append(f"{place.name} {list(place.shape)} over ({spec}): {place.bytes / 2**20:,.1f} MiB a device")
    for s in plan.stages:
        out += _lowered(s)
    out.append("")
    hours = plan.hours[name]
    if target is None:
        peak = of_kind(jax.devices()[0].device_kind)
        at = f", {plan.flops / hours / 3600 / plan.devices / peak.tflops / 1e12:.0%} of its peak" if peak else ""
        out.append(f"{_time(hours)} here, from a few steps of few rows{at}; larger batches do better on accelerators")
    else:
        useful = plan.flops / (hours * 3600 * plan.devices * target.tflops * 1e12)
        out.append(
            f"{_time(hours)} on {plan.devices} × {name}, assuming {args.mfu:.0%} of the peak on full rows"
            f" ({useful:.0%} counting useful tokens alone)"
        )
        others = ", ".join(f"{n} {_time(h)}" for n, h in plan.hours.items() if n != name)
        out.append(f"as many others at the same share: {others}")
    if args.price_hour:
        out.append(f"price: {hours * plan.devices * args.price_hour:,.0f} at {args.price_hour:g} a device and hour")
    return out + [f"note: {warning}" for warning in plan.warnings]


def _lowered(stage: StagePlan) -> list[str]:
    if not (found := stage.lowered):
        return []
    out = [
        f"stage {stage.number}: the step lowers for {counted(found['partitions'], found['platform'] + ' device')}"
        f" ({found['seconds']:.1f} s; {counted(found['constraints'], 'constraint')} on activations)"
    ]
    if "collectives" in found:
        calls = ", ".join(f"{number} {kind}" for kind, number in found["collectives"].items()) or "no collectives"
        out.append(
            f"stage {stage.number}: compiled for CPU devices: {calls};"
            f" arguments {found['arguments'] / 2**20:,.1f} MiB, temporaries {found['temporaries'] / 2**20:,.1f} MiB"
        )
    return out


def _time(hours: float) -> str:
    """12.34 → "12.3 hours", 0.5 → "30 minutes", 1e-9 → "less than 2 seconds"."""
    if hours >= 1:
        return f"{hours:,.1f} hours"
    if hours * 60 >= 2:
        return f"{hours * 60:.0f} minutes"
    return f"{hours * 3600:.0f} seconds" if hours * 3600 >= 2 else "less than 2 seconds"


def _short(number: float) -> str:
    """1.6e10 → "16.0B"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"
