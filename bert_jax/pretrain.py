"""`bert-jax pretrain`: from shards to a trained encoder. The recipe of pretraining, top to bottom.

The same command begins a run and continues it. Nothing but the optimizer's state and one integer, the step, is
carried over: order, masks, dropout and learning rate are functions of it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bert_jax.config import BertConfig, Recipe, Stage, digest, load_recipe, with_data
from bert_jax.data.feed import ahead, to_devices
from bert_jax.data.loader import Dataset, TrainBatch, heldout_batches, open_dataset, train_batch
from bert_jax.data.order import Order
from bert_jax.errors import UserError, counted
from bert_jax.model import bert
from bert_jax.store import rundir
from bert_jax.store.checkpoint import Checkpoints
from bert_jax.store.interrupt import STOPPED, Notice
from bert_jax.store.report import Clock, Reporter, close_session, draw_curves
from bert_jax.text.tokenizer import Tokenizer
from bert_jax.train import processes, sharding
from bert_jax.train.loss import Metrics, make_pretraining_loss, weigh
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.processes import StepWatch
from bert_jax.train.step import TrainState, init_state, make_eval_step, make_train_step, measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a TOML recipe, such as those in configs/")
    parser.add_argument("--data", type=Path, help="a data directory from `bert-data shards`")
    parser.add_argument("--run", type=Path, required=True, help="the run directory to begin or continue")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting of the recipe, such as stage.0.batch=64",
    )
    parser.add_argument("--distributed", action="store_true", help="join the other processes (several hosts)")
    parser.add_argument(
        "--join-timeout", type=float, default=300.0, metavar="SECONDS", help="how long to wait for them (default: 300)"
    )
    parser.add_argument("--fault", metavar="kill@STEP", help="rehearse a crash: die by SIGKILL after this step")


def run(args: argparse.Namespace) -> int:
    """The command line's part: settings and processes."""
    recipe = load_recipe(args.recipe, args.settings)
    if args.data:
        recipe = with_data(recipe, str(args.data))
    if not recipe.data.path:
        raise UserError("no data directory", "data.path", "give --data DIR")
    kill_at = _fault(args.fault)
    settings = recipe.train
    with (
        processes.joined(args.distributed, args.join_timeout, settings.step_timeout, settings.silence) as watch,
        Notice() as notice,  # after joining, where JAX takes SIGTERM for itself
    ):
        # from here on: a compilation that is interrupted takes the process down with it
        return pretrain(recipe, args.run, notice, watch, kill_at)


def pretrain(recipe: Recipe, run_dir: Path, notice: Notice, watch: StepWatch, kill_at: int | None = None) -> int:
    """Train as the recipe says, in this run directory, until the end or a notice to stop.

    Returns:
        0 when the last step is done and measured, 75 when a notice came and the state was saved.

    Raises:
        UserError: settings, data, devices or disk are at fault.
    """
    # ------------------------------------------------------------------------------------ data and run directory
    clock = Clock()
    stages = [open_stage(recipe, number) for number in range(len(recipe.stage))]
    config = check_stages(recipe, stages)
    mesh = sharding.make_mesh(recipe.train.mesh_data, recipe.train.mesh_fsdp)
    for stage in stages:
        sharding.check_batch(mesh, stage.settings.batch, stage.settings.accumulate, f"stage.{stage.number}")
    if recipe.train.evaluate_batch:
        sharding.check_batch(mesh, recipe.train.evaluate_batch, 1, "train.evaluate_batch")
    first = jax.process_index() == 0
    manifests = [hashlib.sha256((s.path / "manifest.json").read_bytes()).hexdigest() for s in stages]
    provenance = rundir.describe(digest(recipe), manifests, dict(mesh.shape))
    sources = [stage.path for stage in stages]
    processes.on_first_process(lambda: rundir.open_run(run_dir, recipe, config, sources, provenance))
    checkpoints = Checkpoints(run_dir, recipe.checkpoint.keep)
    done = checkpoints.latest() or 0
    if done >= recipe.steps and (run_dir / "report.json").exists():
        if first:
            print(f"{run_dir}: finished after {counted(recipe.steps, 'step')}; `bert-jax report {run_dir}` shows them")
        checkpoints.close()
        return 0

    # a restart compiles nothing, and on a GPU runs the very kernels that were tuned before: same bits
    jax.config.update("jax_compilation_cache_dir", str(run_dir.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    # ----------------------------------------------------------------- state: shapes, then shardings, then arrays
    tx = make_optimizer(recipe.train)
    make_state = partial(_fresh_state, config, recipe.train.seed, tx)
    shapes = jax.eval_shape(make_state)
    places = _state_shardings(mesh, config, shapes)
    abstract = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    if done:
        state = restore(checkpoints, done, abstract)
    else:
        with sharding.on(mesh):
            state = jax.jit(make_state, out_shardings=places)()
    if first:
        rundir.cut_metrics(run_dir, done)

    # --------------------------------------------------------------------------------------------- the functions
    execution = recipe.train.execution
    loss = make_pretraining_loss(config, execution)
    schedule = make_schedule(recipe.stage)
    eval_step = jax.jit(make_eval_step(loss, weigh))
    report = Reporter(run_dir, recipe.steps, recipe.report.seconds, recipe.report.tensorboard, first)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    platform = jax.devices()[0].platform
    report.say(
        f"{parameters:,} parameters on {counted(mesh.size, platform + ' device')}, {execution.dtype};"
        f" {counted(stages[0].train.records, 'record')} of {stages[0].train.manifest.length} tokens;"
        + (f" continuing after step {done:,}" if done else f" {counted(recipe.steps, 'step')}")
    )

    def save(state: TrainState) -> None:
        report.flush()  # a checkpoint must not know of a step whose line is lost
        optimizer = {"opt_state": state.opt_state, "skipped": state.skipped}
        with clock.timed("saving"):
            checkpoints.save(int(state.step), state.params, optimizer, {"recipe": digest(recipe)})

    def evaluate(state: TrainState, stage: OpenStage) -> None:
        batch = recipe.train.evaluate_batch or stage.settings.batch
        parts = heldout_batches(stage.heldout, batch, sharding.process_rows(mesh, batch))
        watch.compiling()  # a whole evaluation is one step to the watch
        with clock.timed("evaluating"):
            figures = measure(eval_step, state.params, (to_devices(part, sharding.rows(mesh)) for part in parts))
        report.heldout({"step": int(state.step), "stage": stage.number, **figures})
        report.pause()

    def settle(pending: Pending | None) -> None:
        """Bring a step's metrics to the host; this waits for that step."""
        if pending is not None:
            row = report_row(pending, stage.number)
            report.step(row, pending.batch.tokens)
            watch.done(pending.step)
            if row["skipped"] >= recipe.train.skip_limit:
                raise UserError(
                    f"{counted(recipe.train.skip_limit, 'step')} in a row had a loss or gradient that is not finite",
                    f"step {row['step']}",
                    "lower the learning rate or lengthen the warm-up; the newest checkpoint is from before",
                )

    # -------------------------------------------------------------------------------------------------- the loop
    noticed = processes.Agreement(mesh)
    with sharding.on(mesh), report:
        for stage in stages:
            begin, end = stage.first_step, stage.first_step + stage.settings.steps
            if done >= end:
                continue
            if done <= begin and stage.settings.restart:
                state = state._replace(opt_state=jax.jit(tx.init, out_shardings=places.opt_state)(state.params))
            train_step = jax.jit(
                make_train_step(loss, weigh, tx, schedule, recipe.train.seed, stage.settings.accumulate),
                out_shardings=(places, sharding.replicated(mesh)),
                donate_argnums=0,
            )
            order = Order(stage.train.records, stage.settings.batch, recipe.train.seed, stage.number)
            mine = sharding.process_rows(mesh, stage.settings.batch)
            load = partial(train_batch, stage.train, order, rows=mine, masking=recipe.data.masking)
            pending: Pending | None = None
            watch.compiling()
            with closing(ahead(load, max(done - begin, 0), stage.settings.steps)) as batches:
                for step, batch in enumerate(clock.each("waiting for data", batches), max(done, begin) + 1):
                    rows = to_devices(batch.rows, sharding.rows(mesh))
                    with clock.timed("compiling" if step == max(done, begin) + 1 else "training"):
                        state, metrics = train_step(state, rows)
                        settle(pending)  # the step before: the one just begun runs on meanwhile
                        pending = Pending(step, metrics, batch)
                    if step == max(done, begin) + 1:
                        report.pause()  # rates leave the compilation out
                    stop = noticed.any(notice.given)  # asked once: a later notice waits for the next step
                    saves = step % recipe.checkpoint.every == 0 or step == recipe.steps or stop
                    measures = step % recipe.train.evaluate_every == 0 or step == end
                    if saves or measures or step == kill_at:
                        with clock.timed("training"):
                            settle(pending)
                            pending = None
                    if measures:
                        evaluate(state, stage)  # before the save: what was due is never owed by a restart
                    if saves:
                        save(state)
                    if step == kill_at:
                        report.flush()
                        os.kill(os.getpid(), signal.SIGKILL)
                    if stop:
                        break
            if int(state.step) < end:
                break
        with clock.timed("saving"):
            checkpoints.wait()
        step = int(state.step)
        finished = step == recipe.steps
        report.say("done" if finished else f"stopped after step {step:,}, saved; the same command continues")

    # --------------------------------------------------------------------------------------------------- the end
    checkpoints.close()
    if first:
        close_session(run_dir, clock, step, recipe.steps)
        draw_curves(run_dir)
    return 0 if finished else STOPPED


# ------------------------------------------------------------------------------------------------------ its parts


@dataclass(frozen=True)
class OpenStage:
    """A stage with its data open; `first_step` steps came before it."""

    number: int
    settings: Stage
    first_step: int
    path: Path
    train: Dataset
    heldout: Dataset


def open_stage(recipe: Recipe, number: int) -> OpenStage:
    settings = recipe.stage[number]
    path = Path(recipe.data.path) / settings.data
    first_step = sum(stage.steps for stage in recipe.stage[:number])
    train, heldout = open_dataset(path, "train"), open_dataset(path, "heldout")
    if settings.length and settings.length != train.manifest.length:
        raise UserError(
            f"the recipe wants records of {settings.length} tokens, these have {train.manifest.length}",
            f"{path} (stage.{number}.length)",
            f"make shards with --length {settings.length}, or name the folder that has them in stage.{number}.data",
        )
    return OpenStage(number, settings, first_step, path, train, heldout)


def check_stages(recipe: Recipe, stages: list[OpenStage]) -> BertConfig:
    """The network that all stages train; raises `UserError` if their data do not fit it or each other."""
    relations = [stage.train.manifest.relations for stage in stages]
    config = recipe.model.bert(stages[0].train.manifest.vocab_size, next(filter(None, relations), 2))
    for stage in stages:
        manifest = stage.train.manifest
        if relations[stage.number] not in (0, config.relations):
            raise UserError(
                f"stage {stage.number}'s records tell {relations[stage.number]} relations of segments apart, those of"
                f" an earlier stage {config.relations}",
                str(stage.path),
                "make all with one layout; those of one segment go with any",
            )
        if Tokenizer.load(stage.path / "tokenizer").fingerprint != manifest.tokenizer:
            raise UserError(
                "the shards were not made with the tokenizer that lies beside them",
                str(stage.path / "tokenizer"),
                "put back the one they were made with, or make them anew",
            )
        if manifest.tokenizer != stages[0].train.manifest.tokenizer:
            raise UserError(
                f"stage {stage.number}'s shards were made with another tokenizer than stage 0's",
                str(stage.path),
                "make both with one tokenizer",
            )
        if manifest.length > config.positions:
            raise UserError(
                f"records of {manifest.length} tokens are longer than the position table of {config.positions}",
                str(stage.path),
                f"set model.positions={manifest.length}, or make shorter records",
            )
    return config


def restore(checkpoints: Checkpoints, step: int, abstract: TrainState) -> TrainState:
    """The state after `step` steps, placed as `abstract` says."""
    optimizer = {"opt_state": abstract.opt_state, "skipped": abstract.skipped}
    params, found = checkpoints.restore(step, abstract.params, optimizer)
    number = jax.device_put(jnp.asarray(step, jnp.int32), abstract.step.sharding)
    return TrainState(number, found["skipped"], params, found["opt_state"])


def _fresh_state(config: BertConfig, seed: int, tx: Any) -> TrainState:
    # the step folds small numbers into this seed's key for dropout: initial values come from another
    return init_state(bert.init(config, jax.random.fold_in(jax.random.key(seed), 2**31 - 1)), tx)


def _state_shardings(mesh: jax.sharding.Mesh, config: BertConfig, shapes: TrainState) -> TrainState:
    """Moments lie where their parameters lie, all else on every device."""
    params = sharding.shard_tree(mesh, bert.axes(config), shapes.params)
    return like_params(shapes, params, sharding.replicated(mesh))


def like_params(shapes: TrainState, params: Any, other: Any) -> TrainState:
    """A tree of shardings for the state: subtrees shaped as the parameters get theirs, other leaves get `other`."""
    structure = jax.tree.structure(shapes.params)

    def is_params(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    return jax.tree.map(lambda node: params if is_params(node) else other, shapes, is_leaf=is_params)


class Pending(NamedTuple):
    """A step that was begun: its metrics, perhaps still being computed, and its batch."""

    step: int
    metrics: Metrics
    batch: TrainBatch


def report_row(pending: Pending, stage: int) -> dict[str, Any]:
    """One line of `metrics.jsonl`: every number a function of recipe and data alone, so that runs can be compared."""
    figures = {
        name: float(total) / max(float(weight), 1.0)
        for name, (total, weight) in jax.device_get(pending.metrics).items()
        if weight or not name.startswith("next_sentence")  # rows of one segment have no such figure
    }
    return {"step": pending.step, "stage": stage, **figures, "batch": pending.batch.digest}


def _fault(text: str | None) -> int | None:
    if text is None:
        return None
    kind, _, step = text.partition("@")
    if kind != "kill" or not step.isdigit():
        raise UserError(f"{text!r} is no fault", "--fault", "write for example --fault kill@15")
    return int(step)
