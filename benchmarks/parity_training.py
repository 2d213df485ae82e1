"""Training here beside transformers on torch: the same weights, batches and AdamW, dropout off.

Run it where torch and transformers are installed:

    python -m benchmarks.parity_training --data DATA --preset tiny --steps 100

prints both losses at every step and the largest difference; exit status 1 if that is above 1e-3.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from bert_jax.config import PRESETS, BertConfig, DataSettings, Execution, Stage, TrainSettings, preset
from bert_jax.convert.families import config_to_json
from bert_jax.convert.names import HUGGING_FACE, Params, to_foreign
from bert_jax.data.batching import HostBatch
from bert_jax.data.loader import open_batches, open_dataset
from bert_jax.model import bert
from bert_jax.train.loss import make_pretraining_loss, weigh
from bert_jax.train.optimizer import make_optimizer, make_schedule
from bert_jax.train.step import init_state, make_train_step

BOUND = 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a data directory from `bert-data shards`")
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    dataset = open_dataset(args.data, "train")
    config = preset(args.preset, dataset.manifest.vocab_size)
    stage = Stage(steps=args.steps, batch=args.batch, learning_rate=args.learning_rate, warmup=args.steps // 10)
    data = open_batches(DataSettings(), stage, 0, 0, dataset)
    batches = [data.load(t).rows for t in range(args.steps)]
    ours, theirs = compare(config, batches, stage)
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True), 1):
        print(f"step {step:4d}   here {one:.6f}   transformers {other:.6f}   apart {abs(one - other):.1e}")
    apart = float(np.abs(np.subtract(ours, theirs)).max())
    print(f"{args.preset}, {args.steps} steps of {args.batch}: at most {apart:.1e} apart (bound {BOUND:g})")
    return 0 if apart <= BOUND else 1


def compare(config: BertConfig, batches: list[HostBatch], stage: Stage) -> tuple[list[float], list[float]]:
    """The losses of both sides, one a batch, each before its update; dropout is off."""
    config = replace(config, hidden_dropout=0.0, attention_dropout=0.0)
    params = jax.jit(partial(bert.init, config))(jax.random.key(0))
    model = torch_twin(config, params)  # before the step takes the arrays over
    settings = TrainSettings()
    return _train_here(config, params, batches, stage, settings), _train_there(model, batches, stage, settings)


def torch_twin(config: BertConfig, params: Params) -> Any:
    """transformers' BertForPreTraining with our weights."""
    tree = config_to_json(config, "BertForPreTraining", pad=0)
    model = transformers.BertForPreTraining(transformers.BertConfig(**tree))
    tensors = to_foreign(HUGGING_FACE, config, params)
    report = model.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()}, strict=False)
    # both are the same memory as tensors that were given
    assert set(report.missing_keys) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert not report.unexpected_keys
    model.tie_weights()
    return model


def torch_batch(batch: HostBatch) -> dict[str, Any]:
    """A batch as BertForPreTraining takes it: labels at their positions, −100 everywhere else."""
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    labels = np.full(arrays["input_ids"].shape, -100, np.int64)
    rows, slots = np.nonzero(arrays["mlm_weights"] > 0)
    labels[rows, arrays["mlm_positions"][rows, slots]] = arrays["mlm_labels"][rows, slots]
    return {
        "input_ids": torch.tensor(arrays["input_ids"]).long(),
        "attention_mask": torch.tensor(arrays["sequence_ids"]).long(),
        "token_type_ids": torch.tensor(arrays["segment_ids"]).long(),
        "labels": torch.tensor(labels),
        "next_sentence_label": torch.tensor(arrays["nsp_labels"][:, 0]).long(),
    }


def torch_adamw(model: Any, settings: TrainSettings) -> Any:
    """torch's AdamW as the recipe has it: biases and norms do not decay. The learning rate is set at each step."""
    named = dict(model.named_parameters())
    still = {name for name in named if name.endswith("bias") or "LayerNorm" in name}
    groups = [
        {"params": [named[n] for n in named if n not in still], "weight_decay": settings.weight_decay},
        {"params": [named[n] for n in still], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)


def _train_here(
    config: BertConfig, params: Params, batches: list[HostBatch], stage: Stage, settings: TrainSettings
) -> list[float]:
    tx = make_optimizer(settings)
    loss = make_pretraining_loss(config, Execution())
    step = jax.jit(make_train_step(loss, weigh, tx, make_schedule([stage]), seed=0), donate_argnums=0)
    state = init_state(params, tx)
    losses = []
    for batch in batches:
        state, metrics = step(state, {name: jnp.asarray(array) for name, array in batch.items()})
        losses.append(float(metrics["loss"][0]))
    return losses


def _train_there(model: Any, batches: list[HostBatch], stage: Stage, settings: TrainSettings) -> list[float]:
    optimizer = torch_adamw(model, settings)
    schedule = make_schedule([stage])
    model.train()
    losses = []
    for number, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(jnp.asarray(number)))
        loss = model(**torch_batch(batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


if __name__ == "__main__":
    sys.exit(main())
