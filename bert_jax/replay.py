"""`bert-jax replay`: compute one step of a run again and look inside: loss, and norms by layer."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import warm_start
from bert_jax.config import load_recipe, with_data, with_steps
from bert_jax.data.feed import to_devices
from bert_jax.data.stages import check_stages, open_stages
from bert_jax.errors import UserError
from bert_jax.model import attention, bert
from bert_jax.store.checkpoint import Checkpoints, Damaged
from bert_jax.store.rundir import check_run, load_config
from bert_jax.train import sharding
from bert_jax.train.loss import Batch, LossFn, make_pretraining_loss, weigh
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.state import fresh_state, from_items, to_items
from bert_jax.train.step import TrainState, make_train_step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("step", type=int, help="the step to compute again")
    parser.add_argument("--data", type=Path, help="the run's data directory, if it has moved")


def run(args: argparse.Namespace) -> int:
    """Go from the newest checkpoint before the step up to it, then print what it finds; writes nothing."""
    check_run(args.run)
    recipe = load_recipe(args.run / "recipe.toml")
    if args.data:
        recipe = with_data(recipe, str(args.data))
    stages = open_stages(recipe)
    recipe = with_steps(recipe, [stage.settings.steps for stage in stages])
    if not 0 < args.step <= recipe.steps:
        raise UserError(f"there is no step {args.step}", str(args.run), f"give one from 1 to {recipe.steps}")
    # a run of before that setting has no row for padding
    config = replace(check_stages(recipe, stages), vocab_multiple=load_config(args.run).vocab_multiple)
    mesh = sharding.make_mesh(recipe.train.mesh_data, recipe.train.mesh_fsdp, recipe.train.mesh_tensor)
    for stage in stages:
        for size in stage.batches.sizes:
            sharding.check_batch(mesh, size, stage.settings.accumulate, f"stage.{stage.number}")
    execution, _ = attention.choose(
        recipe.train.attention,
        config,
        recipe.train.execution,
        lengths=[length for stage in stages for length in stage.lengths],
        sequences=recipe.data.sequences if recipe.data.batching == "packed" else 1,
    )
    loss = make_pretraining_loss(config, execution)
    tx, schedule, seed = make_optimizer(recipe.train), make_schedule(recipe.stage), recipe.train.seed
    make_state = partial(fresh_state, config, seed, tx)
    shapes = jax.eval_shape(make_state)
    places = sharding.state_shardings(mesh, bert.axes(config), shapes, recipe.train.shard_optimizer)
    like = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)

    with sharding.on(mesh):
        state = _newest_before(args.run, args.step, like)
        if state is None:
            state = jax.jit(make_state, out_shardings=places)()
            if start := recipe.model.init_checkpoint:
                given, _ = warm_start.open_same(start, config, stages[0].train.manifest.tokenizer, args.run)
                state, _ = warm_start.put_in(state, given, config)
        print(f"from step {int(state.step):,}", flush=True)
        for stage in stages:
            begin, end, settings = stage.first_step, stage.last_step, stage.settings
            if int(state.step) >= end:
                continue
            if int(state.step) <= begin and settings.restart:
                state = state._replace(opt_state=jax.jit(tx.init, out_shardings=places.opt_state)(state.params))
            train_step = jax.jit(
                make_train_step(loss, weigh, tx, schedule, seed, settings.accumulate),
                out_shardings=(places, sharding.replicated(mesh)),
                donate_argnums=0,
            )
            load = stage.batches.load
            for step in range(int(state.step) + 1, min(end, args.step - 1) + 1):
                state, _ = train_step(state, to_devices(load(step - 1 - begin).rows, sharding.rows(mesh)))
            if args.step <= end:
                batch = load(args.step - 1 - begin)
                kept = _kept_rows(args.run, args.step, len(batch.rows["input_ids"]))
                rows, where = kept or (batch.rows, "the shards")
                look = jax.jit(partial(look_inside, loss, seed, settings.accumulate))
                found, weights, gradients = jax.device_get(look(state, to_devices(rows, sharding.rows(mesh))))
                print(f"step {args.step:,}, stage {stage.number}, batch {batch.digest} from {where}: loss {found:.6g}")
                print(
                    f"learning rate {float(schedule(state.step)):.6g}\n\n{'norm of':<14}{'weights':>12}{'gradient':>12}"
                )
                for name, weight in weights.items():
                    print(f"{name:<14}{weight:>12.4g}{gradients[name]:>12.4g}")
                return 0
    raise AssertionError("the stages' steps add up to the recipe's")


def look_inside(loss: LossFn, seed: int, accumulate: int, state: TrainState, batch: Batch) -> tuple[Any, Any, Any]:
    """The loss of the step that comes after `state`, and the norms by layer of weights and gradient.

    Pieces, totals and keys are those of `train.step.make_train_step`; here a gradient that is not finite is kept.
    """
    totals, key = weigh(batch), jax.random.fold_in(jax.random.key(seed), state.step)
    pieces = [
        jax.value_and_grad(loss, has_aux=True)(
            state.params,
            jax.tree.map(lambda x, number=number: x[number::accumulate], batch),
            jax.random.fold_in(key, number),
            totals,
        )
        for number in range(accumulate)
    ]
    (total, _), gradients = jax.tree.map(lambda *parts: sum(parts), *pieces)
    return total, norms_by_layer(state.params), norms_by_layer(gradients)


def norms_by_layer(tree: Any) -> dict[str, jax.Array]:
    """Norms of the tree's parts by name, of each of the stacked layers by its own.

    Args:
        tree: shaped as the parameters, leaves below `layers` with a leading axis L.
    """
    squares: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        part = path[0].key
        stacked = [(f"{part}/{n}", leaf[n]) for n in range(len(leaf))] if part == "layers" else [(part, leaf)]
        for name, array in stacked:
            squares[name] = squares.get(name, 0.0) + jnp.sum(jnp.square(array))
    return {name: jnp.sqrt(square) for name, square in squares.items()}


def _newest_before(run: Path, step: int, like: TrainState) -> TrainState | None:
    if not (run / "checkpoints").is_dir():
        return None
    checkpoints = Checkpoints(run, read_only=True)
    try:
        for saved in reversed([saved for saved in checkpoints.steps() if saved < step]):
            return from_items(saved, *checkpoints.restore(saved, *to_items(like)), like)
    except Damaged as error:
        raise UserError(f"a checkpoint cannot be read ({error})", str(run), "move it away") from error
    finally:
        checkpoints.close()
    return None


def _kept_rows(run: Path, step: int, whole: int) -> tuple[dict[str, np.ndarray], str] | None:
    """The rows that a step which was not finite left behind, if they are a whole batch of so many.

    Of several hosts only the first one's part is kept; the shards have all.
    """
    path = run / "debug" / f"{step}.npz"
    if not path.exists():
        return None
    with np.load(path) as kept:
        return (dict(kept), str(path)) if len(kept["input_ids"]) == whole else None
