"""`bert-jax doctor`: what would stop or spoil a run, looked for before it begins; what is not ok comes with a cure."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import warm_start
from bert_jax.advice import Finding, examine_recipe, examine_split, usual_rate
from bert_jax.config import Recipe, load_recipe, with_data, with_steps
from bert_jax.data.batching import padded
from bert_jax.data.feed import to_devices
from bert_jax.data.loader import open_dataset
from bert_jax.data.order import Ramp
from bert_jax.data.stages import check_stages, manifest_digests, open_stages
from bert_jax.errors import UserError, counted
from bert_jax.footprint import place
from bert_jax.model import bert
from bert_jax.settings import add_settings, digest
from bert_jax.store import rundir
from bert_jax.store.checkpoint import Checkpoints, saved_steps
from bert_jax.store.rundir import PACKAGES
from bert_jax.text.manifest import NAME as MANIFEST
from bert_jax.train import processes, sharding
from bert_jax.train.loss import make_pretraining_loss, weigh
from bert_jax.train.optimizer import make_optimizer
from bert_jax.train.step import init_state, make_train_step

SECONDS = 60.0  # what a host is waited for at each check
CLOCKS_MAY_DIFFER = 2.0  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", type=Path, help="the TOML recipe that is to be run")
    parser.add_argument("--data", type=Path, help="its data directory, from `bert-data shards`")
    parser.add_argument("--run", type=Path, help="the run directory that it would write")
    add_settings(parser, "override a setting of the recipe, such as stage.0.batch=64")
    parser.add_argument("--distributed", action="store_true", help="look at all processes (several hosts)")
    parser.add_argument(
        "--join-timeout", type=float, default=300.0, metavar="SECONDS", help="how long to wait for them (default: 300)"
    )
    parser.add_argument("--quick", action="store_true", help="do not train on one batch")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of lines")


def run(args: argparse.Namespace) -> int:
    """Print what was found, line by line; 1 if anything failed."""
    if args.settings and not args.recipe:
        raise UserError("there is no recipe to set anything in", "--set", "name the recipe first")
    recipe = load_recipe(args.recipe, args.settings) if args.recipe else None
    data = args.data or (Path(recipe.data.path) if recipe and recipe.data.path else None)
    found = []
    with processes.joined(args.distributed, args.join_timeout):
        first = processes.process_index() == 0
        for finding in examine(checks(recipe, data, args.run, args.quick)):
            found.append(finding)
            if first and not args.json:
                print(f"{finding.state:<6}{finding.subject:<13}{finding.what}", flush=True)
                if finding.cure:
                    print(f"{'':<19}→ {finding.cure}", flush=True)
        if first and args.json:
            print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=1))
    return int(any(finding.state == "fail" for finding in found))


Check = Callable[[], list[Finding]]


def checks(recipe: Recipe | None, data: Path | None, run: Path | None, quick: bool) -> list[tuple[str, Check]]:
    """What there is to look at, in the order in which it is needed."""
    places = data_places(recipe, data)
    asked: list[tuple[str, Check]] = [
        ("devices", devices),
        ("hosts", partial(hosts, recipe, places)),
        ("clock", clock),
        ("collectives", collectives),
    ]
    if run:
        asked += [("paths", partial(paths, run)), ("checkpoint", partial(checkpoint, run))]
    for path in places:
        for split in ("train", "heldout"):
            asked.append((f"data {len(asked)}", partial(examine_split, path, split)))
    if run and recipe:
        asked.append(("space", partial(space, recipe, places, run)))
    if run and recipe and data:
        asked.append(("run", partial(continued, recipe, data, run)))
    if recipe and data and recipe.model.init_checkpoint and not (run and saved_steps(run)):
        asked.append(("model", partial(begins_with, recipe, data)))
    if recipe:
        asked += [("mesh", partial(divisions, recipe)), ("recipe", partial(settings, recipe, data))]
        if not quick and places:
            asked.append(("one batch", partial(one_batch, recipe, places[0])))
    return asked


def data_places(recipe: Recipe | None, data: Path | None) -> list[Path]:
    """The data directories of a run, each once; without a recipe, the one named or those in it."""
    if data is None:
        return []
    if recipe is None:
        inside = sorted(path.parent for path in data.glob(f"*/{MANIFEST}"))
        return [data] if (data / MANIFEST).exists() or not inside else inside
    names = [name for stage in recipe.stage for name in (stage.data, stage.replay_data or stage.data)]
    return [data / name for name in dict.fromkeys(names)]


def examine(asked: list[tuple[str, Check]]) -> Iterator[Finding]:
    """Run the checks on every process; what all of them find alike is told once, the rest with who found it.

    Raises:
        UserError: a process does not come to a check; it is named.
    """
    barred = ""
    failed: set[str] = set()  # one fault may stop several checks, which need not all tell of it
    for name, check in asked:
        if name == barred:
            continue
        try:
            mine = check()
        except UserError as error:
            subject = name.partition(" ")[0] if name.startswith("data") else name
            where = f"{error.where}: " if error.where else ""
            mine = [Finding("fail", subject, where + error.what, error.remedy)]
        told = processes.gather(f"doctor found {name}", [dataclasses.asdict(one) for one in mine], 10 * SECONDS)
        who: dict[Finding, list[int]] = {}
        for process, findings in sorted(told.items()):
            for finding in findings:
                who.setdefault(Finding(**finding), []).append(process)
        for finding, found_by in who.items():
            if finding.state == "fail":
                if finding.what in failed:
                    continue
                failed.add(finding.what)
            alone = len(found_by) < len(told)
            names = processes.numbered(found_by, processes.roll_call()) + ": " if alone else ""
            yield replace(finding, what=names + finding.what)
        if any(finding.state == "fail" for finding in who):
            if name in ("devices", "collectives"):
                return  # what follows computes on them, and would hang
            if name == "paths":
                barred = "checkpoint"  # whose processes would wait for each other's files


# --------------------------------------------------------------------------------------------------------- hosts


def devices() -> list[Finding]:
    """What JAX computes on here."""
    try:
        mine = jax.local_devices()
    except RuntimeError as error:
        what = str(error).splitlines()[0]
        return [Finding("fail", "devices", what, "see that no other process holds the device, and its driver works")]
    memory = (mine[0].memory_stats() or {}).get("bytes_limit", 0) if mine[0].platform != "cpu" else 0
    what = f"{len(mine)} × {mine[0].device_kind}" + (f", {memory / 1e9:,.0f} GB each" if memory else "")
    idle = None
    if mine[0].platform == "cpu":
        nvidia = Path("/proc/driver/nvidia/version").exists()
        tpu = any(Path("/dev").glob("accel[0-9]*")) or Path("/dev/vfio/0").exists()
        idle = ("a GPU driver", "cuda13") if nvidia else ("a TPU", "tpu") if tpu else None
    if idle is None:
        return [Finding("ok", "devices", what)]
    asked = os.environ.get("JAX_PLATFORMS")
    cure = f"unset JAX_PLATFORMS={asked}" if asked else f"pip install 'bert-jax[{idle[1]}]'"
    return [Finding("warn", "devices", f"{what} only, though {idle[0]} is present", cure)]


def hosts(recipe: Recipe | None, places: list[Path]) -> list[Finding]:
    """Versions, code, recipe and data, which must be the same everywhere."""
    manifests = [hashlib.sha256(path.read_bytes()).hexdigest()[:12] for p in places if (path := p / MANIFEST).exists()]
    mine = jax.local_devices()
    facts = {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "code": code_digest(),
        "recipe": digest(recipe) if recipe else None,
        "data": manifests or None,
        "devices": f"{len(mine)} × {mine[0].device_kind}",
    }
    cures = {
        "code": "install the same commit everywhere",
        "recipe": "give every host the same file and the same --set",
        "data": "give every host the same data directory",
        "devices": "take hosts of one kind",
    }
    told = processes.gather("doctor facts", facts, SECONDS)
    names = processes.roll_call()
    found = []
    for name in facts:
        others = {process: theirs[name] for process, theirs in sorted(told.items()) if theirs[name] != told[0][name]}
        if others:
            process, theirs = next(iter(others.items()))
            found.append(
                Finding(
                    "fail",
                    "hosts",
                    f"{name} is {_short(told[0][name])} on {processes.numbered([0], names)} but {_short(theirs)} on"
                    f" {processes.numbered([process], names)}"
                    + (f" ({len(others):,} differ)" if len(others) > 1 else ""),
                    cures.get(name, "install the same versions everywhere"),
                )
            )
    if not found:
        versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "jax", "jaxlib", "flax", "optax", "numpy"))
        count = "" if len(told) == 1 else f"{len(told):,} processes alike: "
        digests = "".join(f", {name} {_short(facts[name])}" for name in ("code", "recipe") if facts[name])
        found.append(Finding("ok", "hosts", f"{count}{versions}{digests}"))
    return found


def code_digest() -> str:
    """Twelve hex digits that are equal where all source files of the package are."""
    root, found = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _short(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)[:12] if value else "none"


def clock() -> list[Finding]:
    """Clocks apart make logs unreadable and certificates invalid."""
    processes.barrier("doctor clock begins", SECONDS)  # which lets all go within a moment
    told = processes.gather("doctor clock", time.time(), SECONDS)
    apart = max(told.values()) - min(told.values())
    if len(told) == 1:
        return [Finding("ok", "clock", time.strftime("%Y-%m-%d %H:%M:%S %Z"))]
    if apart <= CLOCKS_MAY_DIFFER:
        return [Finding("ok", "clock", f"the hosts' clocks are within {CLOCKS_MAY_DIFFER:.0f} s")]
    late = processes.numbered([min(told, key=told.__getitem__)], processes.roll_call())
    what = f"clocks are up to {apart:,.0f} s apart, {late} is the latest"
    return [Finding("warn", "clock", what, "let every host keep time by NTP (timedatectl set-ntp true)")]


def collectives() -> list[Finding]:
    """A sum over all devices of all processes."""
    processes.barrier("doctor collectives", SECONDS)  # names a host that is missing; the devices could not
    mesh = sharding.make_mesh()
    answer: list[float] = []

    def add() -> None:
        ones = np.ones(len(mesh.local_devices), np.float32)
        spread = jax.make_array_from_process_local_data(sharding.rows(mesh), ones)
        answer.append(float(jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))(spread)))

    begun = time.perf_counter()
    thread = threading.Thread(target=add, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if not answer:
        raise UserError(
            f"the devices' sum did not come back within {SECONDS:.0f} s",
            "",
            "all processes are alive: look at the network between their devices (NCCL_DEBUG=INFO tells more)",
        )
    if answer[0] != mesh.size:
        what = f"a sum over {counted(mesh.size, 'device')} gave {answer[0]:g}"
        return [Finding("fail", "collectives", what, "a device or a link computes wrongly: leave that host out")]
    took = time.perf_counter() - begun
    return [Finding("ok", "collectives", f"a sum over {counted(mesh.size, 'device')} is right"), *_slow(took)]


def _slow(seconds: float) -> list[Finding]:
    if seconds < SECONDS / 4:
        return []
    return [Finding("warn", "collectives", f"the first sum took {seconds:.0f} s", "look at the network and its driver")]


# --------------------------------------------------------------------------------------------------------- paths


def paths(run: Path) -> list[Finding]:
    """Write into the run directory, read back, delete; what one host writes the others must see."""
    me = processes.process_index()
    made = [path for path in (run, *run.parents) if not path.exists()]  # deepest first
    probe, wrong = run / f".doctor-{me}", None
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe.write_text(code_digest())
        if probe.read_text() != code_digest():
            wrong = "what was written is read back otherwise"
    except OSError as error:
        wrong = f"cannot be written ({error.strerror})"
    processes.barrier("doctor paths written", SECONDS)
    unseen = [p for p in range(processes.process_count()) if wrong is None and not (run / f".doctor-{p}").exists()]
    processes.barrier("doctor paths seen", SECONDS)
    with suppress(OSError):
        probe.unlink(missing_ok=True)
    for path in made:  # as it was: `pretrain` begins a run in an empty or new directory only
        with suppress(OSError):
            path.rmdir()
    if wrong:
        return [Finding("fail", "paths", f"{run}: {wrong}", "give another --run, or the right to write there")]
    if unseen:
        what = f"{run} is not the directory of {processes.numbered(unseen, processes.roll_call())}"
        return [Finding("fail", "paths", what, "put --run on a file system that all hosts share")]
    return [Finding("ok", "paths", f"{run} can be written and read")]


def checkpoint(run: Path) -> list[Finding]:
    """Save a small tree as a run does, and restore it."""
    made = [path for path in (run, *run.parents) if not path.exists()]
    place = run / ".doctor"
    mesh = sharding.make_mesh()
    where = sharding.rows(mesh)
    make = jax.jit(lambda: {"table": jnp.arange(8.0 * mesh.size).reshape(mesh.size, 8)}, out_shardings=where)
    try:
        begun = time.perf_counter()
        place.mkdir(parents=True, exist_ok=True)
        saved = make()
        store = Checkpoints(place, 1)
        store.save(1, saved, saved, {})
        store.wait()
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), saved)
        found, _ = store.restore(1, abstract, abstract)
        store.close()
        same = bool(jax.jit(jnp.array_equal, out_shardings=sharding.replicated(mesh))(found["table"], saved["table"]))
        took = time.perf_counter() - begun
    except OSError as error:
        return [Finding("fail", "checkpoint", f"{run}: {error.strerror or error}", "give another --run")]
    finally:
        processes.barrier("doctor checkpoint", SECONDS)
        if processes.process_index() == 0:
            shutil.rmtree(place, ignore_errors=True)
            for path in made:
                with suppress(OSError):
                    path.rmdir()
    if not same:
        return [Finding("fail", "checkpoint", "restored arrays differ from those saved", "give another --run")]
    state, cure = ("ok", "") if took < 30 else ("warn", "the file system is slow: put --run on a faster one")
    size = "a small tree was saved and restored" + ("" if state == "ok" else f" in {took:.0f} s")
    return [Finding(state, "checkpoint", size, cure)]


def space(recipe: Recipe, places: list[Path], run: Path) -> list[Finding]:
    """Room for the checkpoints: parameters and two moments of 4 bytes each, those kept and the one being written."""
    config = recipe.model.bert(open_dataset(places[0], "train").manifest.vocab_size if places else 30522)
    shapes = jax.eval_shape(lambda: bert.init(config, jax.random.key(0)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    stand = len(saved_steps(run))  # whose room a later one takes
    new = max(recipe.checkpoint.keep + 1 - stand, 1)
    need = parameters * 12 * new
    standing = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    free = shutil.disk_usage(standing).free
    new_ones = f"{recipe.checkpoint.keep} + 1 checkpoints" if not stand else counted(new, "checkpoint") + " more"
    what = f"{free / 1e9:,.1f} GB free, {new_ones} of {parameters:,} parameters take {need / 1e9:,.1f} GB"
    if free < need:
        cure = "make room, give another --run, or set checkpoint.keep=1"
        return [Finding("fail", "space", what, cure)]
    if free < 2 * need:
        return [Finding("warn", "space", what, "make room: curves, logs and compiled programs come on top")]
    # what is free changes from host to host and second to second: not told, so that the line is the same for all
    return [Finding("ok", "space", f"room for {new_ones} ({need / 1e9:,.1f} GB)")]


# -------------------------------------------------------------------------------------------------------- recipe


def continued(recipe: Recipe, data: Path, run: Path) -> list[Finding]:
    """Whether the run directory is free, or holds this very run."""
    stages = open_stages(with_data(recipe, str(data)))
    recipe = with_steps(recipe, [stage.settings.steps for stage in stages])
    config, manifests = check_stages(recipe, stages), [sha256 for _, sha256 in manifest_digests(stages)]
    if not rundir.holds(run, recipe, config, manifests):
        return [Finding("ok", "run", f"{run} is free for a new run")]
    return [Finding("ok", "run", f"{run} holds a run of this recipe on these shards, which would go on")]


def begins_with(recipe: Recipe, data: Path) -> list[Finding]:
    """Whether the model that the run begins with fits its network and shards."""
    stages, start = open_stages(with_data(recipe, str(data))), recipe.model.init_checkpoint
    loaded = warm_start.open_fitting(start, check_stages(recipe, stages), stages[0].train.manifest.tokenizer)
    return [Finding("ok", "model", f"{start} ({loaded.architecture}) fits the recipe and the shards")]


def divisions(recipe: Recipe) -> list[Finding]:
    """Whether devices and batches divide."""
    mesh = sharding.make_mesh(recipe.train.mesh_data, recipe.train.mesh_fsdp, recipe.train.mesh_tensor)
    for number, stage in enumerate(recipe.stage):
        for size in Ramp(stage.batch, stage.ramp_from, stage.ramp_steps).sizes:
            sharding.check_batch(mesh, size, stage.accumulate, f"stage.{number}")
    place(mesh, recipe.model.bert(30522), recipe)  # every axis of the parameters, or it says which does not divide
    if recipe.train.evaluate_batch:
        sharding.check_batch(mesh, recipe.train.evaluate_batch, 1, "train.evaluate_batch")
    shape = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return [Finding("ok", "mesh", f"{shape}; every batch divides over it")]


def settings(recipe: Recipe, data: Path | None) -> list[Finding]:
    """What can be told from the settings and the data's totals."""
    if data is None:
        return examine_recipe(recipe)
    if any(stage.tokens for stage in recipe.stage):
        recipe = with_steps(recipe, [stage.settings.steps for stage in open_stages(with_data(recipe, str(data)))])
    opened = {name: open_dataset(data / name, "train") for name in {stage.data for stage in recipe.stage}}
    return examine_recipe(recipe, [opened[stage.data] for stage in recipe.stage])


def one_batch(recipe: Recipe, path: Path, rows: int = 8, steps: int = 200) -> list[Finding]:
    """Learn a few rows by heart, on the first process: what cannot do that cannot learn anything.

    The recipe's optimizer at its peak rate, no dropout; on a CPU a network of at most 2 × 128. Learned means: below
    half the entropy of the labels, which is what counting them would reach.
    """
    if processes.process_index():
        return []
    dataset = open_dataset(path, "train")
    sample = dataset.read(np.arange(min(rows, dataset.records)))
    config = recipe.model.bert(dataset.manifest.vocab_size, dataset.manifest.relations or 2)
    config = replace(config, hidden_dropout=0.0, attention_dropout=0.0)
    whole = jax.default_backend() != "cpu" or (config.layers <= 2 and config.width <= 128)
    if not whole:
        config = replace(config, layers=2, width=128, heads=2, feed_forward=512)
    stage = recipe.stage[0]
    floor = 1e-3 if config.width <= 256 else 1e-4  # a recipe that learns slowly is told so elsewhere
    rate = max(stage.learning_rate, floor)
    asked = sample["masked_lm_weights"] > 0
    shares = np.unique(sample["masked_lm_ids"][asked], return_counts=True)[1] / asked.sum()
    entropy = float(-(shares * np.log(shares)).sum())
    losses: list[float] = []
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    with sharding.on(mesh):
        tx = make_optimizer(recipe.train)
        loss = make_pretraining_loss(config, recipe.train.execution)
        step = jax.jit(make_train_step(loss, weigh, tx, partial(_climb, rate), recipe.train.seed))
        state = init_state(jax.jit(partial(bert.init, config))(jax.random.key(recipe.train.seed)), tx)
        batch = to_devices(padded(sample, dataset.manifest.relations), sharding.rows(mesh))
        for _ in range(steps):
            state, metrics = step(state, batch)
            total, weight = metrics["masked_lm_loss"]
            losses.append(float(total) / float(weight))
            if not math.isfinite(losses[-1]) or losses[-1] < entropy / 2:
                break
    said = f"{len(asked)} rows from {losses[0]:.2f} to {losses[-1]:.2f} nats in {counted(len(losses), 'step')}"
    said += "" if whole else " by a network of 2 × 128"
    if losses[-1] < entropy / 2:
        return [Finding("ok", "one batch", f"learned by heart: {said}")]
    what = f"not learned by heart: {said} at a rate of {rate:g} (counting the labels gives {entropy:.2f})"
    if not math.isfinite(losses[-1]) or losses[-1] > 0.9 * losses[0]:
        usual = usual_rate(recipe.train.optimizer, stage.batch, config.width)
        return [Finding("fail", "one batch", what, f"lower the rate: set stage.0.learning_rate={usual:.0e}")]
    return [Finding("fail", "one batch", what, "look at the lines on data, and at changes of the network or loss")]


def _climb(rate: float, step: jax.Array) -> jax.Array:
    return rate * jnp.minimum(1.0, (step + 1) / 10)
