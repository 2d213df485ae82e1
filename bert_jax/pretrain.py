"""`bert-jax pretrain`: from shards to a trained encoder. The recipe of pretraining, top to bottom.

The same command begins a run and continues it. Nothing but the optimizer's state and one integer, the step, is
carried over: order, masks, dropout and learning rate are functions of it.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from bert_jax import cost, flags, warm_start
from bert_jax.config import BertConfig, Recipe, load_recipe, with_data, with_steps
from bert_jax.data.feed import ahead, noting, to_devices, until_error
from bert_jax.data.loader import Dataset, TrainBatch, heldout_batches
from bert_jax.data.stages import OpenStage, check_stages, manifest_digests, open_stages
from bert_jax.errors import UserError, counted
from bert_jax.model import attention, bert
from bert_jax.settings import add_settings, digest
from bert_jax.store import rundir
from bert_jax.store.checkpoint import Checkpoints, Damaged, saved_steps
from bert_jax.store.clock import WAITING, Clock
from bert_jax.store.closing import time_table, write_report
from bert_jax.store.curves import Picture
from bert_jax.store.faults import KINDS, Faults, parse_faults
from bert_jax.store.interrupt import STOPPED, Notice, Stopped, leave, unless_told, until_told
from bert_jax.store.profile import Profile
from bert_jax.store.report import Amount, Reporter
from bert_jax.store.watch import Bundles, LossWatch
from bert_jax.train import processes, sharding
from bert_jax.train.loss import Metrics, make_pretraining_loss, weigh
from bert_jax.train.optimizer import layer_groups, make_optimizer, make_schedule
from bert_jax.train.state import fresh_state, from_items, to_items
from bert_jax.train.step import TrainState, make_eval_step, make_train_step, means, measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a TOML recipe, such as those in configs/")
    parser.add_argument("--data", type=Path, help="a data directory from `bert-data shards`")
    parser.add_argument("--run", type=Path, required=True, help="the run directory to begin or continue")
    add_settings(parser, "override a setting of the recipe, such as stage.0.batch=64")
    parser.add_argument("--distributed", action="store_true", help="join the other processes (several hosts)")
    parser.add_argument(
        "--join-timeout", type=float, default=300.0, metavar="SECONDS", help="how long to wait for them (default: 300)"
    )
    parser.add_argument(
        "--fault",
        dest="faults",
        action="append",
        default=[],
        metavar="KIND@STEP",
        help="rehearse what may happen: " + "; ".join(f"{kind}: {what}" for kind, what in KINDS.items()),
    )


def run(args: argparse.Namespace) -> int:
    """The command line's part: settings and processes."""
    recipe = load_recipe(args.recipe, args.settings)
    if args.data:
        recipe = with_data(recipe, str(args.data))
    if not recipe.data.path:
        raise UserError("no data directory", "data.path", "give --data DIR")
    faults = parse_faults(args.faults)
    if told := flags.prepare(os.environ, recipe.train, several=args.distributed):
        print(told, flush=True)  # before any device is asked for: a flag that is refused ends the process
    settings = recipe.train
    with (
        processes.joined(args.distributed, args.join_timeout, settings.step_timeout, settings.silence) as watch,
        Notice(recipe.checkpoint.notice) as notice,  # after joining, where JAX takes SIGTERM for itself
    ):
        status = pretrain(recipe, args.run, notice, watch, faults)
    return leave(status)


def pretrain(recipe: Recipe, run_dir: Path, notice: Notice, watch: processes.StepWatch, faults: Faults) -> int:
    """Train as the recipe says, in this run directory, until the end or a notice to stop.

    Returns:
        0 when the last step is done and measured, 75 when a notice came and the state was saved.

    Raises:
        UserError: settings, data, devices or disk are at fault.
    """
    # ------------------------------------------------------------------------------------ data and run directory
    clock = Clock()
    stages = open_stages(recipe)
    recipe = with_steps(recipe, [stage.settings.steps for stage in stages])
    config = check_stages(recipe, stages)
    mesh = sharding.make_mesh(recipe.train.mesh_data, recipe.train.mesh_fsdp, recipe.train.mesh_tensor)
    for stage in stages:
        for size in stage.batches.sizes:
            sharding.check_batch(mesh, size, stage.settings.accumulate, f"stage.{stage.number}")
    if recipe.train.evaluate_batch:
        sharding.check_batch(mesh, recipe.train.evaluate_batch, 1, "train.evaluate_batch")
    first = jax.process_index() == 0
    manifests = manifest_digests(stages)
    provenance = rundir.describe(digest(recipe), [sha256 for _, sha256 in manifests], dict(mesh.shape))
    provenance["flags"] = flags.recorded(os.environ)
    start, given = recipe.model.init_checkpoint, None
    tokenizer = stages[0].train.manifest.tokenizer
    if start and not saved_steps(run_dir):  # a run that has a save needs it no more
        given, weights = warm_start.open_same(start, config, tokenizer, run_dir)
        if len(set(processes.gather("init_checkpoint", weights, 3600).values())) > 1:
            raise UserError("hosts read other weights there", start, "give one file system, or copies of one model")
        provenance["init_checkpoint"] = {"path": start, "step": given.step, "sha256": weights}
    sources = [stage.path for stage in stages]
    held: list[TextIO] = []  # as long as this is alive, nobody else trains here

    def take() -> None:
        rundir.holds(run_dir, recipe, config, provenance["manifests"])  # or refuses, and nothing is written
        held.append(rundir.hold(run_dir))  # first: two that begin at once must not write into each other's
        rundir.open_run(run_dir, recipe, config, sources, provenance)

    processes.on_first_process(take)
    if rundir.finished(run_dir, recipe.steps):
        if first:
            print(f"{run_dir}: finished after {counted(recipe.steps, 'step')}; `bert-jax report {run_dir}` shows them")
        return 0

    # a restart compiles nothing, and on a GPU runs the very kernels that were tuned before: same bits
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        processes.on_first_process(partial(rundir.clear_torn, run_dir))
        jax.config.update("jax_compilation_cache_dir", str(run_dir.absolute() / "compiled"))
    # a run goes on without it, and tells of a full disk itself
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "xla_gpu_per_fusion_autotune_cache_dir")

    # ----------------------------------------------------------------- state: shapes, then shardings, then arrays
    tx = make_optimizer(recipe.train)
    make_state = partial(fresh_state, config, recipe.train.seed, tx)
    shapes = jax.eval_shape(make_state)
    places = sharding.state_shardings(mesh, bert.axes(config), shapes, recipe.train.shard_optimizer)
    abstract = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    checkpoints = Checkpoints(
        run_dir, recipe.checkpoint.keep, recipe.checkpoint.failures, lambda line: report.say(line), any_of=anywhere()
    )
    checkpoints.rehearse(shapes)
    state, news = restore_newest(checkpoints, abstract)
    if state is None:
        with sharding.on(mesh):
            state = jax.jit(make_state, out_shardings=places)()
        if start:
            given = given or warm_start.open_same(start, config, tokenizer, run_dir)[0]
            state, lacked = warm_start.put_in(state, given, config)
            given = None  # its memory
            news.append(f"weights of {start}" + (f"; at random begin {', '.join(lacked)}" if lacked else ""))
    done = int(state.step)
    if first:
        rundir.cut_metrics(run_dir, done)

    # --------------------------------------------------------------------------------------------- the functions
    execution, notes = attention.choose(
        recipe.train.attention,
        config,
        recipe.train.execution,
        lengths=[length for stage in stages for length in stage.lengths],
        sequences=recipe.data.sequences if recipe.data.batching == "packed" else 1,
    )
    loss = make_pretraining_loss(config, execution)
    schedule, groups = make_schedule(recipe.stage), layer_groups(shapes.params)
    eval_step = jax.jit(make_eval_step(loss, weigh))
    agreement = processes.Agreement(mesh)
    jumps, bundles = LossWatch(), Bundles(run_dir)
    compiled: dict[Any, Callable[..., Any]] = {}
    sizes = [(stage.settings.steps, stage.settings.batch * stage.train.manifest.length) for stage in stages]
    flops = [flops_a_token(config, stage.train) for stage in stages]
    report = Reporter(run_dir, recipe.report, sizes, clock, done, first)
    picture = Picture(run_dir, report.say)
    profile = Profile(run_dir, recipe.report, report.say, first)
    parameters = cost.parameters(config)
    platform = jax.devices()[0].platform
    report.say(
        f"{parameters:,} parameters on {counted(mesh.size, platform + ' device')}, "
        f"{execution.dtype}, {execution.attention} attention;"
        f" {counted(stages[0].train.records, 'record')} of {stages[0].train.manifest.length} tokens;"
        + (f" continuing after step {done:,}" if done else f" {counted(recipe.steps, 'step')}")
    )
    for note in [*news, *notes]:
        report.say(note)
    if recipe.train.deterministic:
        report.say(flags.price(platform))

    def compiled_for(function: Any, name: str, argument: Any, batch: dict[str, jax.Array]) -> Callable[..., Any]:
        """The function for batches of these shapes. Compiled in a thread: this one listens; raises `Stopped`."""
        key = (name, *sorted((feature, rows.shape) for feature, rows in batch.items()))
        if key not in compiled:
            number = len(compiled)  # the same on all processes
            report.say(f"compiling the {name}, {' × '.join(map(str, batch['input_ids'].shape))} tokens …")
            watch.compiling()

            def work() -> None:
                with sharding.on(mesh):
                    compiled[key] = function.lower(argument, batch).compile()

            stopped = False
            with clock.timed("compiling"):
                try:
                    unless_told(work, lambda: notice.given or bool(processes.published("stop")))
                except Stopped:
                    processes.publish("stop", True)
                    stopped = True
                # nobody begins what another one will not join
                if any(processes.gather(f"compiled/{number}", stopped, 3600).values()):
                    raise Stopped
            if first:
                rundir.mark_compiled(run_dir)
            report.pause()  # rates leave the compilation out
        return compiled[key]

    def save(state: TrainState) -> None:
        step = int(state.step)
        faults.before_save(step, checkpoints.path)
        with clock.timed("saving"):  # a checkpoint must not know of a step whose line is lost: lines first
            checkpoints.save(step, *to_items(state), {"recipe": digest(recipe)}, report.flush)

    def due(step: int, stage: OpenStage) -> bool:
        return step % recipe.train.evaluate_every == 0 or step == stage.last_step

    def evaluate(state: TrainState, stage: OpenStage) -> None:
        """Measure on the held-out text; `Stopped` if a notice comes, and the next start makes up for it."""
        # of as many rows as a step works on at once: what fits into memory there fits here
        batch = recipe.train.evaluate_batch or stage.settings.batch // stage.settings.accumulate

        def told() -> bool:
            watch.done(int(state.step))
            return agreement.any(notice.given, False, False)[0]

        for name, dataset in stage.heldout.items():
            parts = heldout_batches(dataset, batch, sharding.process_rows(mesh, batch))
            placed = (to_devices(part, sharding.rows(mesh)) for part in parts)
            one = next(placed)
            metrics_of = compiled_for(eval_step, "evaluation", state.params, one)
            with clock.timed("evaluating"):
                figures = measure(metrics_of, state.params, until_told(chain([one], placed), told))
            told_name = {"set": name} if name else {}
            report.heldout({"step": int(state.step), "stage": stage.number, **told_name, **figures})
        if first:
            with clock.timed("drawing"):
                picture.update()

    def settle(pending: Pending | None) -> None:
        """Bring a step's metrics to the host; this waits for that step."""
        if pending is not None:
            row = report_row(pending, stage.number, groups)
            report.step(row, amount_of(pending.batch, flops[stage.number]))
            watch.done(row["step"])
            known = {
                "seed": recipe.train.seed,
                "masking": recipe.data.masking,
                "manifest": dict(manifests)[stage.path],
            }
            if first:
                kept = bundles.note(row, pending.batch.records, pending.batch.rows, known)
                for line in filter(None, (jumps.note(row), kept)):
                    report.say(line)
            if row["skipped"] >= recipe.train.skip_limit:
                raise UserError(
                    f"{counted(recipe.train.skip_limit, 'step')} in a row had a loss or gradient that is not finite",
                    f"step {row['step']}",
                    "lower the learning rate or lengthen the warm-up; the newest checkpoint is from before",
                )

    def finish_step() -> None:
        """Wait for the step that is running: only from then on is waiting for data time that is lost."""
        with clock.timed("training"):
            jax.block_until_ready(pending.metrics if pending else None)

    # -------------------------------------------------------------------------------------------------- the loop
    # a model that is there is measured before the first step too
    owed = (done or start) and not processes.gather("measured", first and rundir.measured(run_dir, done), 600)[0]
    unread: list[UserError] = []  # records that the data thread cannot read: known some batches before their step
    pending: Pending | None = None
    stop, saved_at = False, time.monotonic()
    with sharding.on(mesh), clock.timed("training"), report:  # what is not said to be something else inside
        for stage in stages:
            begin, end = stage.first_step, stage.last_step
            load = partial(stage.batches.load, rows_of=partial(sharding.process_rows, mesh))
            load = noting(faults.loading(load, begin), UserError, unread)
            train_step = jax.jit(
                make_train_step(loss, weigh, tx, schedule, recipe.train.seed, stage.settings.accumulate),
                out_shardings=(places, sharding.replicated(mesh)),
                donate_argnums=0,
            )
            try:
                if owed and begin < max(done, 1) <= end and due(done, stage):
                    evaluate(state, stage)
                if done >= end:
                    continue
                if done <= begin and stage.settings.restart:
                    state = state._replace(opt_state=jax.jit(tx.init, out_shardings=places.opt_state)(state.params))
                made = map(load, range(max(done - begin, 0), end - begin))
                with closing(ahead(made, idle=finish_step)) as batches:
                    readable = clock.each(WAITING, until_error(batches, UserError))
                    for step, batch in enumerate(readable, max(done, begin) + 1):
                        profile.before(step, state)
                        rows = to_devices(batch.rows, sharding.rows(mesh))
                        run_step = compiled_for(train_step, f"step of stage {stage.number}", state, rows)
                        with clock.timed("training"):
                            state, metrics = run_step(state, rows)
                            settle(pending)  # the step before: the one just begun runs on meanwhile
                            pending = Pending(step, metrics, batch)
                        late = first and time.monotonic() - saved_at >= 60 * (recipe.checkpoint.minutes or math.inf)
                        # asked once: a later notice waits for the next step
                        told, late, spoilt = agreement.any(notice.given, late, bool(unread))
                        stop = told or spoilt
                        saves = late or step % recipe.checkpoint.every == 0 or step == recipe.steps
                        if stop or saves or due(step, stage) or faults.at(step):
                            with clock.timed("training"):
                                settle(pending)
                                pending = None
                        if stop or saves:
                            save(state)
                            saved_at = time.monotonic()
                        if faults.at(step):
                            report.flush()
                            faults.strike(step, checkpoints.wait)
                        if stop:
                            break
                        if due(step, stage):
                            evaluate(state, stage)  # after the save: what a kill leaves owed is made up for
            except Stopped:  # by a notice in an evaluation or a compilation
                stop = True
            if stop or unread:
                break
        settle(pending)
        profile.close(state)
        step = int(state.step)
        finished = step == recipe.steps and not stop
        saves = step > 0 and (stop or not unread or jax.process_count() == 1)  # the others may be inside a step
        if saves:
            save(state)
            with clock.timed("saving"):
                checkpoints.finish(step)
        stopped = f"stopped after step {step:,}{', saved' if saves else ''}; the same command continues"
        if step or not unread:  # data that could not be read from the first step on have their own sentence
            report.say("done" if finished else stopped)

    # --------------------------------------------------------------------------------------------------- the end
    if first and step:
        write_report(run_dir, step, recipe.steps)
        picture.draw()
        print(time_table(run_dir))
    if unread:
        raise unread[0]
    return 0 if finished else STOPPED


# ------------------------------------------------------------------------------------------------------ its parts


def restore_newest(checkpoints: Checkpoints, like: TrainState) -> tuple[TrainState | None, list[str]]:
    """The newest state that can be read, placed as `like` says (None where nothing was saved yet), and what to tell.

    A damaged checkpoint is told and moved aside: the steps since the one before are computed again.

    Raises:
        UserError: it is another network's, or damaged and the only one.
    """
    damaged: list[str] = []
    while (step := checkpoints.latest()) is not None:
        place, found, reason = checkpoints.path / str(step), None, ""
        try:
            found = from_items(step, *checkpoints.restore(step, *to_items(like)), like)
        except Damaged as error:
            reason = str(error)
        # one host alone may meet a damaged file, and all go on from one step
        reason = next(filter(None, processes.gather(f"restored/{step}", reason, 3600).values()), "")
        if not reason:
            return found, damaged
        if checkpoints.steps() == [step]:
            raise UserError(
                f"this checkpoint cannot be read ({reason}), and there is none before it",
                str(place),
                "restore it from a copy, or move it away to begin anew",
            )
        damaged.append(f"{place}: this checkpoint cannot be read ({reason}); moved to {step}.damaged")
        processes.on_first_process(partial(checkpoints.set_aside, step))
        checkpoints.reload()
    return None, damaged


def anywhere() -> Callable[[bool], bool]:
    """Asks all processes, each time anew, whether something holds on any of them."""
    asked = count()
    return lambda here: any(processes.gather(f"anywhere/{next(asked)}", here, 3600).values())


class Pending(NamedTuple):
    """A step that was begun: its metrics, perhaps still being computed, and its batch."""

    step: int
    metrics: Metrics
    batch: TrainBatch


def report_row(pending: Pending, stage: int, groups: list[str]) -> dict[str, Any]:
    """One line of `metrics.jsonl`: every number a function of recipe and data alone, so that runs can be compared."""
    metrics = {
        name: pair
        for name, pair in jax.device_get(pending.metrics).items()
        if pair[1] or not name.startswith("next_sentence")  # rows of one segment have no such figure
    }
    batch, figures = pending.batch, means(metrics, groups)
    return {"step": pending.step, "stage": stage, **figures, "tokens": batch.tokens, "batch": batch.digest}


def flops_a_token(config: BertConfig, data: Dataset) -> float:
    """Training FLOPs a useful token of these records, each token attending within its own record."""
    tokens = data.tokens.astype(np.float64)
    predictions = np.minimum(data.manifest.predictions, data.manifest.settings["rate"] * tokens)
    work = cost.Work(tokens.sum(), np.square(tokens).sum(), predictions.sum(), len(tokens))
    return cost.train_flops(config, work) / work.tokens


def amount_of(batch: TrainBatch, flops: float) -> Amount:
    """What a batch lets the devices work through; `flops` a useful token. Every process has an equal part of it."""
    places = batch.rows["input_ids"].size * jax.process_count()
    return Amount(batch.tokens, places, batch.tokens * flops)
