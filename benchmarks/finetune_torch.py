"""The other side of `benchmarks.finetune`: our rows through transformers' classes on torch, trained and asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from bert_jax.config import TrainSettings
from bert_jax.tasks.batches import epoch_units, units
from bert_jax.tasks.encoding import TaskRow
from bert_jax.tasks.loop import Outs
from bert_jax.tasks.network import Network
from bert_jax.tasks.settings import FineTuneSettings

CLASSES = {
    "single": transformers.AutoModelForSequenceClassification,
    "pair": transformers.AutoModelForSequenceClassification,
    "multi_label": transformers.AutoModelForSequenceClassification,
    "regression": transformers.AutoModelForSequenceClassification,
    "choice": transformers.AutoModelForMultipleChoice,
    "tagging": transformers.AutoModelForTokenClassification,
    "qa": transformers.AutoModelForQuestionAnswering,
}
NONE = -100  # of a label: it does not count
EVALUATED = 64  # rows at a time


class Joint(nn.Module):
    """An intent from [CLS] and a slot from each word's first piece (Chen et al. 2019, without the CRF)."""

    def __init__(self, encoder: Any, intents: int, slots: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(encoder.config.hidden_dropout_prob)
        self.intent, self.slots = (nn.Linear(encoder.config.hidden_size, size) for size in (intents, slots))
        for head in (self.intent, self.slots):
            nn.init.normal_(head.weight, std=encoder.config.initializer_range)
            nn.init.zeros_(head.bias)

    def forward(self, **given: Tensor) -> tuple[Tensor, Tensor]:
        x = self.dropout(self.encoder(**given).last_hidden_state)
        return self.intent(x[:, 0]), self.slots(x)


def make_model(source: Path, net: Network) -> nn.Module:
    """transformers' class for the family with a fresh head, or what stands for one; dropout as `net` has it."""
    dropouts = {
        "hidden_dropout_prob": net.config.hidden_dropout,
        "attention_probs_dropout_prob": net.config.attention_dropout,
    }
    sizes = dict(net.outputs)
    if net.family in ("embedding", "intent_slots"):
        encoder = transformers.AutoModel.from_pretrained(
            source, dtype=torch.float32, add_pooling_layer=False, **dropouts
        )
        return Joint(encoder, sizes["intent"], sizes["slots"]) if sizes else encoder
    labels: dict[str, Any] = (
        {"num_labels": sizes["classifier"]} if "classifier" in sizes and net.family != "choice" else {}
    )
    if net.family == "multi_label":
        labels |= {"problem_type": "multi_label_classification"}
    return CLASSES[net.family].from_pretrained(source, dtype=torch.float32, **labels, **dropouts)


# ------------------------------------------------------------------------------------------------------ batches


def tensors(rows: Sequence[TaskRow], pad: int) -> dict[str, Tensor]:
    """Rows padded to the longest of them: int64[B, T] each."""
    shape = (len(rows), max(len(row.ids) for row in rows))
    arrays = {
        "input_ids": np.full(shape, pad),
        "token_type_ids": np.zeros(shape, int),
        "attention_mask": np.zeros(shape, int),
    }
    for number, row in enumerate(rows):
        for name, values in zip(arrays, (row.ids, row.segments, 1), strict=True):
            arrays[name][number, : len(row.ids)] = values
    return {name: torch.from_numpy(array).long() for name, array in arrays.items()}


def word_labels(rows: Sequence[TaskRow], term: str, length: int) -> Tensor:
    """int64[B, T]: labels at first pieces, elsewhere none."""
    found = np.full((len(rows), length), NONE)
    for number, row in enumerate(rows):
        known = row.targets[term] >= 0
        found[number, row.spans[known, 0, 0]] = row.targets[term][known]
    return torch.from_numpy(found).long()


def first_targets(rows: Sequence[TaskRow], term: str) -> Tensor:
    """[B]: the first target of each row; int64, or float32 of numbers; of several labels float32[B, K]."""
    found = torch.from_numpy(np.array([row.targets[term][0] for row in rows]))
    return found if found.is_floating_point() else torch.where(found < 0, NONE, found.long())


def loss_of(model: nn.Module, net: Network, rows: Sequence[TaskRow], count: int, pad: int) -> Tensor:
    """The loss of a batch as the class itself computes it.

    Args:
        rows: of `count` units one after the other.
    """
    given = tensors(rows, pad)
    length = given["input_ids"].shape[1]
    match net.family:
        case "single" | "pair":
            return model(**given, labels=first_targets(rows, "label")).loss
        case "multi_label":
            return model(**given, labels=first_targets(rows, "labels")).loss
        case "regression":
            return model(**given, labels=(first_targets(rows, "score") - net.mean) / net.spread).loss
        case "choice":
            given = {name: tensor.view(count, -1, length) for name, tensor in given.items()}
            labels = first_targets(rows, "choice").view(count, -1)[:, 0]
            return model(**given, labels=labels).loss
        case "tagging":
            return model(**given, labels=word_labels(rows, "tags", length)).loss
        case "qa":
            places = {f"{name}_positions": first_targets(rows, name) for name in ("start", "end")}
            return model(**given, **places).loss
        case "intent_slots":
            intent, slots = model(**given)
            spoken = functional.cross_entropy(intent, first_targets(rows, "intent"), ignore_index=NONE)
            words = word_labels(rows, "slots", length)
            return (spoken + functional.cross_entropy(slots.flatten(0, 1), words.flatten(), ignore_index=NONE)) / 2
    vectors = means(model, given).view(count, 2, -1)
    cosines = vectors[:, 0] @ vectors[:, 1].T / net.temperature
    return functional.cross_entropy(cosines, torch.arange(count))


def means(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """Mean states of length 1, float32[B, D]."""
    mask = given["attention_mask"][..., None].float()
    states = model(**given).last_hidden_state
    return functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


# ------------------------------------------------------------------------------------------------- train and ask


def fit(
    model: nn.Module,
    net: Network,
    rows: Sequence[TaskRow],
    settings: FineTuneSettings,
    rate: float,
    seed: int,
    pad: int,
    told: Callable[[float], None] = lambda loss: None,
) -> tuple[int, float]:
    """Train as `loop.fit` does: order of examples, AdamW, its rate at each step, clipping.

    Returns:
        Examples, and the seconds that they took, without the first step.
    """
    model.train()
    usual = TrainSettings()
    still = [w for name, w in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    bare = {id(w) for w in still}
    groups = [
        {"params": [w for w in model.parameters() if id(w) not in bare], "weight_decay": settings.weight_decay},
        {"params": still, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(usual.beta1, usual.beta2), eps=usual.epsilon, fused=True)
    total = math.ceil(len(units(rows, net.family)) / settings.batch) * settings.epochs
    warmup = int(total * settings.warmup)

    def share(step: int) -> float:
        return (step + 1) / warmup if step < warmup else 1 - (step + 1 - warmup) / max(total + 1 - warmup, 1)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    examples, seconds, step = 0, 0.0, 0
    for epoch in range(settings.epochs):
        for chosen in epoch_units(rows, net.family, settings.batch, seed, epoch):
            begun = time.perf_counter()
            loss = loss_of(model, net, [rows[n] for unit in chosen for n in unit], len(chosen), pad)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            schedule.step()
            told(loss.item())
            if step:
                examples += len(chosen)
                seconds += time.perf_counter() - begun
            step += 1
    return examples, seconds


@torch.no_grad()
def outputs_of(model: nn.Module, net: Network, rows: Sequence[TaskRow], pad: int) -> Outs:
    """What the head gives for each row, as `loop.outputs_of`."""
    model.eval()
    found: Outs = [{} for _ in rows]
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
    for first in range(0, len(rows), EVALUATED):
        numbers = order[first : first + EVALUATED]
        given = tensors([rows[number] for number in numbers], pad)
        if net.family == "embedding":
            for number, vector in zip(numbers, means(model, given).numpy(), strict=True):
                found[number]["vectors"] = vector[None]
            continue
        if net.family == "choice":
            given = {name: tensor[:, None] for name, tensor in given.items()}
        out: Any = model(**given)
        for place, number in enumerate(numbers):
            row = rows[number]
            match net.family:
                case "qa":
                    logits = [each[place, : len(row.ids)].numpy() for each in (out.start_logits, out.end_logits)]
                    found[number]["qa_outputs"] = np.stack(logits, -1)
                case "tagging":
                    found[number]["classifier"] = out.logits[place].numpy()[row.spans[:, 0, 0]]
                case "intent_slots":
                    found[number]["intent"] = out[0][place].numpy()[None]
                    found[number]["slots"] = out[1][place].numpy()[row.spans[:, 0, 0]]
                case _:
                    found[number]["classifier"] = out.logits[place].numpy()[None] * net.spread + net.mean
    return found
