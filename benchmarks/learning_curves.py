"""Learning here beside transformers on torch: one recipe with dropout, several seeds, the held-out loss on the way.

Where torch and transformers are installed:

    python -m benchmarks.learning_curves --data DATA --out OUT

trains every seed on both sides, each run in a process of its own (`--jobs` of them at a time, one thread each), and
writes a table and OUT/learning_curves.png. Runs that are finished are kept: the same command goes on. A seed means the
same first weights and the same batches on both sides; dropout is each side's own. Exit status 1 if the two means are
more than two standard deviations apart anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

SIDES = ("here", "transformers")
POINTS = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a data directory from `bert-data shards`")
    parser.add_argument("--out", type=Path, required=True, help="where curves and picture go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--heldout", type=int, default=1024, help="held-out records to measure on")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--run", metavar="SIDE-SEED", help="train this one only (what the main process calls)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.run:
        side, _, seed = args.run.partition("-")
        curve = list(train(side, int(seed), args))
        (args.out / f"{args.run}.json").write_text(json.dumps(curve))
        return 0
    run_all(args)
    curves = {
        side: np.array([json.loads((args.out / f"{side}-{seed}.json").read_text()) for seed in range(args.seeds)])
        for side in SIDES
    }
    levels = json.loads((args.data / "manifest.json").read_text())["levels"]
    draw(curves, levels, args.out / "learning_curves.png")
    return 0 if table(curves) else 1


def run_all(args: argparse.Namespace) -> None:
    """Every run that has no curve yet, `args.jobs` at a time, one thread each."""
    names = [f"{side}-{seed}" for seed in range(args.seeds) for side in SIDES]
    waiting = [name for name in names if not (args.out / f"{name}.json").exists()]
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < args.jobs:
            name = waiting.pop(0)
            command = [sys.executable, "-m", "benchmarks.learning_curves", *sys.argv[1:], "--run", name]
            running.append(subprocess.Popen(command, env=environment))
        process = running.pop(0)
        if process.wait():
            for other in running:
                other.terminate()
            raise SystemExit("a run failed; its message is above")


def train(side: str, seed: int, args: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """(step, masked-LM loss on held-out text in nats) at `POINTS` places of one run."""
    import jax  # noqa: PLC0415 - the process that only waits needs none of this

    from bert_jax.config import DataSettings, Stage, TrainSettings, preset  # noqa: PLC0415
    from bert_jax.data.loader import heldout_batches, open_batches, open_dataset  # noqa: PLC0415
    from bert_jax.model import bert  # noqa: PLC0415

    dataset, heldout = open_dataset(args.data, "train"), open_dataset(args.data, "heldout")
    config = preset(
        "tiny", dataset.manifest.vocab_size, positions=dataset.manifest.length, init_std=0.06, position_init="sinusoid"
    )
    stage = Stage(steps=args.steps, batch=32, learning_rate=2e-3, warmup=args.steps // 15)
    settings = TrainSettings(seed=seed, beta2=0.98)
    batches = open_batches(DataSettings(masking="dynamic"), stage, 0, seed, dataset)
    measured = list(islice(heldout_batches(heldout, 64, slice(0, 64)), args.heldout // 64))
    params = jax.jit(partial(bert.init, config))(jax.random.key(seed))
    begin = _here if side == "here" else _transformers
    step, measure = begin(config, params, settings, stage, measured)
    every = args.steps // POINTS
    for t in range(every * POINTS):
        step(batches.load(t).rows)
        if (t + 1) % every == 0:
            loss = measure()
            print(f"{side} {seed}: step {t + 1:,} of {args.steps:,}, held out {loss:.3f} nats", flush=True)
            yield t + 1, loss


Sides = tuple[Callable[[Any], None], Callable[[], float]]


def _here(config: Any, params: Any, settings: Any, stage: Any, heldout: list[Any]) -> Sides:
    """Our step and our measure."""
    import jax  # noqa: PLC0415

    from bert_jax.config import Execution  # noqa: PLC0415
    from bert_jax.train.loss import make_pretraining_loss, weigh  # noqa: PLC0415
    from bert_jax.train.optimizer import make_optimizer, make_schedule  # noqa: PLC0415
    from bert_jax.train.step import init_state, make_eval_step, make_train_step, measure  # noqa: PLC0415

    tx = make_optimizer(settings)
    loss = make_pretraining_loss(config, Execution())
    one = make_train_step(loss, weigh, tx, make_schedule([stage]), settings.seed)
    train_step, eval_step = jax.jit(one, donate_argnums=0), jax.jit(make_eval_step(loss, weigh))
    state = init_state(params, tx)

    def step(batch: Any) -> None:
        nonlocal state
        state, _ = train_step(state, batch)

    return step, lambda: measure(eval_step, state.params, heldout)["masked_lm_loss"]


def _transformers(config: Any, params: Any, settings: Any, stage: Any, heldout: list[Any]) -> Sides:
    """The same with transformers' network, torch's AdamW and torch's dropout."""
    import torch  # noqa: PLC0415

    from benchmarks.parity_training import torch_adamw, torch_batch, torch_twin  # noqa: PLC0415
    from bert_jax.train.optimizer import make_schedule  # noqa: PLC0415

    torch.manual_seed(settings.seed)
    model = torch_twin(config, params)
    optimizer = torch_adamw(model, settings)
    schedule = make_schedule([stage])
    done = 0

    def step(batch: Any) -> None:
        nonlocal done
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(np.int32(done)))
        model.train()
        loss = model(**torch_batch(batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        done += 1

    def measure() -> float:
        model.eval()
        total = weight = 0.0
        with torch.no_grad():
            for part in heldout:
                arrays = torch_batch(part)
                labels = arrays["labels"]
                del arrays["labels"], arrays["next_sentence_label"]
                logits = model(**arrays).prediction_logits
                chosen = labels != -100
                total += float(torch.nn.functional.cross_entropy(logits[chosen], labels[chosen], reduction="sum"))
                weight += float(chosen.sum())
        return total / weight

    return step, measure


def table(curves: dict[str, np.ndarray]) -> bool:
    """Print means and standard deviations over the seeds; True if the means are nowhere two deviations apart."""
    here, there = (curves[side] for side in SIDES)
    print("| step | here, nats | transformers, nats | apart | two standard deviations |\n|---|---|---|---|---|")
    close = True
    for point, step in enumerate(here[0, :, 0]):
        one, other = here[:, point, 1], there[:, point, 1]
        apart = abs(one.mean() - other.mean())
        spread = 2 * np.sqrt((one.var(ddof=1) + other.var(ddof=1)) / 2)
        close &= bool(apart <= spread)
        print(
            f"| {int(step):,} | {one.mean():.3f} ± {one.std(ddof=1):.3f} | {other.mean():.3f} ± {other.std(ddof=1):.3f}"
            f" | {apart:.3f} | {spread:.3f} |"
        )
    return close


def draw(curves: dict[str, np.ndarray], levels: dict[str, Any], path: Path) -> None:
    """The mean curve of each side in a band of two standard deviations, beside the levels that need no network."""
    import matplotlib  # noqa: PLC0415

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, panel = plt.subplots(figsize=(8, 5), layout="constrained")
    for (side, runs), color, style in zip(curves.items(), ("tab:blue", "tab:orange"), ("o-", "s--"), strict=True):
        steps, mean, spread = runs[0, :, 0], runs[:, :, 1].mean(0), 2 * runs[:, :, 1].std(0, ddof=1)
        panel.plot(steps, mean, style, color=color, markersize=4, label=f"{side}, mean of {len(runs)} seeds")
        panel.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
    for level, name, style in (("unigram", "word frequencies", ":"), ("left_bigram", "left neighbour", "--")):
        if level in levels:
            panel.axhline(levels[level]["loss"], color="black", linewidth=0.9, linestyle=style, label=name)
    panel.set(xlabel="step", ylabel="masked LM on held-out text, nats", title="The same recipe, with dropout")
    panel.grid(alpha=0.25)
    panel.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
