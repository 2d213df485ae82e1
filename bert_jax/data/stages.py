"""The stages of a recipe with their data open, and whether they can be one run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from bert_jax.config import BertConfig, Recipe, Stage
from bert_jax.data.loader import Batches, Dataset, check_alike, open_batches, open_dataset
from bert_jax.errors import UserError
from bert_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class OpenStage:
    """A stage with its data open; `first_step` steps came before it."""

    number: int
    settings: Stage
    first_step: int
    path: Path
    replayed: Path | None
    train: Dataset
    batches: Batches
    heldout: dict[str, Dataset]  # by name; "", the stage's own, is the last

    @property
    def last_step(self) -> int:
        """So many steps are done at its end."""
        return self.first_step + self.settings.steps

    @property
    def lengths(self) -> tuple[int, ...]:
        """Those that rows have, held-out ones too."""
        buckets = self.batches.buckets
        return buckets.lengths if buckets else (self.train.manifest.length,)


def open_stages(recipe: Recipe) -> list[OpenStage]:
    """The stages in order, with as many steps as each takes."""
    stages: list[OpenStage] = []
    for number, settings in enumerate(recipe.stage):
        path = Path(recipe.data.path) / settings.data
        train, heldout = open_dataset(path, "train"), {"": open_dataset(path, "heldout")}
        if settings.length and settings.length != train.manifest.length:
            raise UserError(
                f"the recipe wants records of {settings.length} tokens, these have {train.manifest.length}",
                f"{path} (stage.{number}.length)",
                f"make shards with --length {settings.length}, or name the folder that has them in stage.{number}.data",
            )
        replayed = Path(recipe.data.path) / settings.replay_data if settings.replay_data else None
        old = open_dataset(replayed, "train") if replayed else None
        if replayed and old:
            check_alike(train.manifest, old.manifest, f"{replayed} (stage.{number}.replay_data)")
            heldout = {"general": open_dataset(replayed, "heldout"), **heldout}
        batches = open_batches(recipe.data, settings, number, recipe.train.seed, train, old)
        if settings.tokens:
            settings = replace(settings, steps=batches.steps_for(settings.tokens))
        first_step = sum(stage.settings.steps for stage in stages)
        stages.append(OpenStage(number, settings, first_step, path, replayed, train, batches, heldout))
    return stages


def manifest_digests(stages: list[OpenStage]) -> list[tuple[Path, str]]:
    """Each stage's data directory, and that of what it replays, with the SHA-256 of its manifest."""
    folders = [folder for stage in stages for folder in (stage.path, stage.replayed) if folder]
    return [(folder, hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()) for folder in folders]


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
