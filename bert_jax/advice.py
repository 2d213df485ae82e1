"""What is unusual about shards and settings, and what to do about it: rules of thumb with their sources."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert_jax.config import BertConfig, Recipe, Stage
from bert_jax.data.loader import Dataset, open_dataset
from bert_jax.errors import UserError, counted
from bert_jax.text.corrupt import special_ids
from bert_jax.text.features import Records, restore
from bert_jax.text.tokenizer import Tokenizer

SAMPLE = 2000  # records of a split that are looked at


@dataclass(frozen=True)
class Finding:
    """One line: `state` is "ok", "warn" (it runs, but look) or "fail" (it will not run, or not learn)."""

    state: str
    subject: str
    what: str
    cure: str = ""


# ---------------------------------------------------------------------------------------------------------- data


def examine_split(path: Path, split: str) -> list[Finding]:
    """A split: shards as the manifest says, the tokenizer, and a seeded sample of the records."""
    dataset = open_dataset(path, split)  # sizes of the shards
    manifest, subject = dataset.manifest, f"data {split}"
    if split == "train" and Tokenizer.load(path / "tokenizer").fingerprint != manifest.tokenizer:
        raise UserError(
            "the shards were not made with the tokenizer that lies beside them",
            str(path / "tokenizer"),
            "put back the one they were made with, or make the shards anew",
        )
    told = manifest.splits[split].records
    if dataset.records != told:
        raise UserError(f"{dataset.records:,} records where the manifest says {told:,}", str(path), "make them anew")
    count = min(SAMPLE, dataset.records)
    numbers = np.sort(np.random.default_rng(0).choice(dataset.records, count, replace=False))
    sample = dataset.read(numbers)  # checksums, ids within the vocabulary, positions within the row
    found = labels(dataset, sample, numbers, str(path), subject)
    if split == "train":
        found += repeats(dataset, sample, str(path), subject)
    if not found:
        what = f"{path}: {told:,} records of {manifest.length} tokens; {counted(count, 'sampled record')} right"
        found.append(Finding("ok", subject, what))
    return found


def labels(dataset: Dataset, sample: Records, numbers: np.ndarray, where: str, subject: str) -> list[Finding]:
    """Whether what is to be predicted can be: ordinary tokens, each once, inside the row, mostly masked."""
    special = dataset.manifest.special
    asked = sample["masked_lm_weights"] > 0
    rows, slots = np.nonzero(asked)
    positions, ids = sample["masked_lm_positions"], sample["input_ids"]
    lengths = sample["input_mask"].sum(1)
    places = np.where(asked, positions, -1 - np.arange(positions.shape[1]))  # unused slots all differ
    twice = np.diff(np.sort(places, axis=1), axis=1) == 0
    predicted = np.zeros(ids.shape, bool)
    predicted[rows, positions[rows, slots]] = True
    barred = special_ids(special)
    barred = barred[barred != special.unk]  # a word that is unknown may have been chosen by another program
    anew = "make the shards anew, with `bert-data shards`"
    wrong = {
        "nothing is predicted": ~asked.any(1),
        "a predicted token lies in the padding": (asked & (positions >= lengths[:, None])).any(1),
        "one position is predicted twice": twice.any(1),
        "a label is a special token": (asked & np.isin(sample["masked_lm_ids"], barred)).any(1),
        "[MASK] stands where nothing is predicted": ((ids == special.mask) & ~predicted).any(1),
        "the row does not begin with [CLS]": ids[:, 0] != special.cls,
    }
    found = []
    for what, here in wrong.items():
        if here.any():
            share = here.mean()
            # few rows that predict nothing are rows too short to
            state = "warn" if what == "nothing is predicted" and share < 0.05 else "fail"
            record = f"{where}, record {numbers[here.argmax()]}"
            found.append(Finding(state, subject, f"{record}: {what} ({share:.1%} of the sample)", anew))
    if not rows.size:
        return found
    masked = float((ids[rows, positions[rows, slots]] == special.mask).mean())
    wanted = dataset.manifest.settings.get("mask_share", 0.8)
    if abs(masked - wanted) > 0.05 + 2 / math.sqrt(rows.size):
        what = f"{where}: {masked:.0%} of the predicted tokens are masked, the manifest says {wanted:.0%}"
        found.append(Finding("warn", subject, what, anew))
    return found


def repeats(dataset: Dataset, sample: Records, where: str, subject: str) -> list[Finding]:
    """How often a text stands in the split, from equal pairs in the sample.

    Of n records that stand k times each, two drawn at random are equal with probability (k - 1) / (n - 1); where k
    differs, its mean over the records takes its place.
    """
    texts = restore(sample)
    _, times = np.unique(texts, axis=0, return_counts=True)
    equal, drawn = int((times * (times - 1)).sum()) // 2, len(texts)
    copies = 1 + equal * (dataset.records - 1) / max(drawn * (drawn - 1) / 2, 1)
    passes = dataset.manifest.settings.get("duplicates", 1)
    if equal < 3 or copies < 1.05:
        return []
    cure = "make the shards anew with `bert-data shards --drop-copies`"
    if passes > 1:
        cure += f", and fewer than {passes} passes (--duplicates) with data.masking=dynamic"
    what = f"{where}: a record has about {copies - 1:.1f} word-for-word copies on average"
    return [Finding("warn", subject, what, cure)]


# -------------------------------------------------------------------------------------------------------- recipe


def usual_rate(optimizer: str, batch: int, width: int) -> float:
    """A peak learning rate that is known to work about there, to see what is far off.

    AdamW: 1e-4 at 256 rows for base (Devlin et al. 2018), the root of the batch, the inverse square of the width:
    within a factor of four of RoBERTa, ELECTRA small and base, and of this project's own small runs. LAMB: table 4 of
    You et al. 2019, 5e-3 at 32,768 rows and the root of the batch.
    """
    if optimizer == "lamb":
        return 5e-3 * math.sqrt(batch / 32768)
    return 1e-4 * math.sqrt(batch / 256) * (768 / width) ** 2


def examine_recipe(recipe: Recipe, data: Sequence[Dataset] = ()) -> list[Finding]:
    """What is unusual about the settings: rates, warm-up, plateau, epochs, schedules.

    Args:
        data: of each stage the open train split; none where there are no shards yet.
    """
    config = recipe.model.bert(data[0].manifest.vocab_size if data else 30522)
    found: list[Finding] = []
    for number, stage in enumerate(recipe.stage):
        found += _rate(recipe, number, config)
        if data:
            found += _data_for_network(data[number], stage, number, config)
            found += _epochs(recipe, data[number], stage, number)
    if data and not recipe.model.init_checkpoint:
        found += _plateau(recipe, data, config)
    found += _schedules(recipe)
    usual = f"{counted(recipe.steps, 'step')}: rates, warm-up and schedules are usual"
    return found or [Finding("ok", "recipe", usual)]


def _rate(recipe: Recipe, number: int, config: BertConfig) -> Iterator[Finding]:
    stage, where = recipe.stage[number], f"stage.{number}"
    usual = usual_rate(recipe.train.optimizer, stage.batch, config.width)
    ratio = stage.learning_rate / usual
    what = f"{where}: a peak rate of {stage.learning_rate:g} is {{}} the usual {usual:.1g} for {recipe.train.optimizer}"
    what += f", {stage.batch:,} rows and a width of {config.width}"
    cure = f"set {where}.learning_rate={usual:.0e}".replace("e-0", "e-")
    if ratio > 50 or stage.learning_rate > 0.1:
        yield Finding("fail", "recipe", what.format(f"{ratio:,.0f} times"), f"it will diverge: {cure}")
    elif ratio > 15:
        yield Finding("warn", "recipe", what.format(f"{ratio:,.0f} times"), f"{cure}, or watch the first steps")
    elif ratio < 1 / 15 and number == 0 and not recipe.model.init_checkpoint:
        yield Finding("warn", "recipe", what.format(f"1/{1 / ratio:,.0f} of"), f"it will learn slowly: {cure}")
    first = number == 0 or stage.restart
    if first and stage.warmup == 0 and stage.steps > 1:
        what = f"{where}: no warm-up, and the moments of {recipe.train.optimizer} begin empty"
        yield Finding("warn", "recipe", what, f"set {where}.warmup={max(1, stage.steps // 50)}")
    elif stage.warmup > stage.steps / 2:
        what = f"{where}: {stage.warmup:,} of {stage.steps:,} steps are warm-up"
        yield Finding("warn", "recipe", what, f"set {where}.warmup={max(1, stage.steps // 20)}")


def _data_for_network(data: Dataset, stage: Stage, number: int, config: BertConfig) -> Iterator[Finding]:
    length = data.manifest.length
    if stage.length and stage.length != length:
        cure = f"make shards with --length {stage.length}, or set stage.{number}.length={length}"
        yield Finding("fail", "recipe", f"stage.{number}: records have {length} tokens, not {stage.length}", cure)
    if length > config.positions:
        what = f"stage.{number}: records of {length} tokens are longer than the position table of {config.positions}"
        yield Finding("fail", "recipe", what, f"set model.positions={length}")


def _epochs(recipe: Recipe, data: Dataset, stage: Stage, number: int) -> Iterator[Finding]:
    epochs = _tokens(recipe, stage, data) / int(data.tokens.sum())
    length = f"{stage.tokens:,} tokens" if stage.tokens else f"{stage.steps:,} steps"
    said = f"stage.{number}: {length} see each of {data.records:,} records"
    if epochs > 10 and recipe.data.masking == "static":
        cure = "set data.masking=dynamic, which masks other tokens each time"
        yield Finding("warn", "recipe", f"{said} {epochs:,.0f} times with the same masks", cure)
    elif epochs > 100:
        yield Finding("warn", "recipe", f"{said} {epochs:,.0f} times", "prepare more text, or train for fewer steps")
    if epochs < 1 and len(recipe.stage) == 1 and recipe.model.hidden_dropout > 0:
        what = f"{said} less than once: dropout guards against nothing"
        yield Finding(
            "warn", "recipe", what, "set model.hidden_dropout=0 and model.attention_dropout=0: it learns faster"
        )


def _tokens(recipe: Recipe, stage: Stage, data: Dataset) -> float:
    """Useful tokens of a stage: of one record a row, or of as many as a packed one holds."""
    row = int(data.tokens.sum()) / data.records
    if recipe.data.batching == "packed":
        row = min(recipe.data.sequences * row, data.manifest.length)
    return stage.tokens or stage.steps * stage.batch * row


def _plateau(recipe: Recipe, opened: Sequence[Dataset], config: BertConfig) -> Iterator[Finding]:
    """The loss falls to the level of word frequencies and stays there for long, the longer the larger V / rate.

    About V / rate tokens, as fitted to runs of 2,000 pieces at 2e-3, 16,000 at 1.5e-3 and 30,522 at 1e-4 (an AdamW
    rate; LAMB's is set beside the usual one).
    """
    stage, level = recipe.stage[0], opened[0].manifest.levels.get("unigram", {}).get("loss")
    relative = stage.learning_rate / usual_rate(recipe.train.optimizer, stage.batch, config.width)
    rate = relative * usual_rate("adamw", stage.batch, config.width)
    tokens = sum(_tokens(recipe, stage, data) for stage, data in zip(recipe.stage, opened, strict=False))
    needed = config.vocab_size / rate
    levels = f"ln V = {math.log(config.vocab_size):.2f}" + (f", word frequencies {level:.2f}" if level else "")
    if tokens < 2 * needed:
        what = f"{tokens:,.0f} tokens of training may not leave the level of word frequencies ({levels}):"
        what += f" {config.vocab_size:,} pieces at a rate of {stage.learning_rate:g} take about {needed:,.0f}"
        cure = "more steps or rows, a higher rate, fewer pieces, first a stage of shorter rows, more masks"
        cure += " (bert-data shards --length 32 --rate 0.4), or model.position_init=sinusoid"
        yield Finding("warn", "recipe", what, cure)


def _schedules(recipe: Recipe) -> Iterator[Finding]:
    saves, looks = recipe.steps // recipe.checkpoint.every, recipe.steps // recipe.train.evaluate_every
    if not saves:
        what = f"a checkpoint every {recipe.checkpoint.every:,} steps, of {recipe.steps:,}: one only, at the end"
        yield Finding("warn", "recipe", what, f"set checkpoint.every={max(1, recipe.steps // 10)}")
    elif saves > 2000:
        what = f"{saves:,} checkpoints will be written"
        yield Finding("warn", "recipe", what, f"set checkpoint.every={recipe.steps // 200}")
    if not looks:
        what = f"an evaluation every {recipe.train.evaluate_every:,} steps, of {recipe.steps:,}: no curve"
        yield Finding("warn", "recipe", what, f"set train.evaluate_every={max(1, recipe.steps // 10)}")
    elif looks > 2000:
        what = f"{looks:,} evaluations of all held-out records"
        yield Finding("warn", "recipe", what, f"set train.evaluate_every={recipe.steps // 200}")
