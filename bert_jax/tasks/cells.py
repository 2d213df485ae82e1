"""One fit of a sweep, from the encoder that was given to the scores on dev and test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from bert_jax.config import BertConfig
from bert_jax.tasks import audit, loop, metrics
from bert_jax.tasks.encoding import TaskRow
from bert_jax.tasks.network import Params
from bert_jax.tasks.reading import Splits
from bert_jax.tasks.settings import TaskRecipe
from bert_jax.tasks.sweep import Cell, Result
from bert_jax.tasks.task import Asked, Judged, first_params, judge, make_asked, random_encoder
from bert_jax.text.tokenizer import Tokenizer

SPLITS = ("train", "dev", "test")
Told = Callable[[int, int, float], None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task whose examples are rows."""

    recipe: TaskRecipe
    splits: Splits
    asked: Asked
    rows: dict[str, list[TaskRow]]


@dataclass(frozen=True, eq=False)
class Job:
    """What all cells of a sweep share.

    Attributes:
        main: the task.
        metric: what chooses an epoch.
        encoder_of: seed → the encoder that its fits begin with.
        same: whether that is one encoder for all seeds.
        cache: features of the frozen encoder.
    """

    main: Prepared
    metric: str
    encoder_of: Callable[[int], Params]
    same: bool
    cache: loop.Features = field(default_factory=loop.Features)


def prepared(recipe: TaskRecipe, splits: Splits, config: BertConfig, tokenizer: Tokenizer) -> Prepared:
    """Raises `UserError` as `make_asked` and `encode` do."""
    labels = audit.labels_of(splits.train, recipe.task.family)
    asked = make_asked(config, tokenizer, recipe, labels, splits.train)
    return Prepared(recipe, splits, asked, {name: asked.rows(getattr(splits, name)) for name in SPLITS})


def fit(job: Job, cell: Cell, told: Told = lambda step, steps, loss: None) -> tuple[Result, Params]:
    """One fit: what it came to, and its parameters.

    Args:
        told: as in `loop.fit`.
    """
    main, asked, settings = job.main, job.main.asked, job.main.recipe.train
    pad = asked.pad
    random = cell.kind == "random"
    encoder = random_encoder(asked.net.config, cell.seed) if random else job.encoder_of(cell.seed)
    params = first_params(asked.net, encoder, cell.seed, settings.reset_layers)
    given: dict[str, Any] = dict.fromkeys(SPLITS)
    if settings.what == "head":
        same = job.same and not random and not settings.reset_layers
        same = same and (asked.net.tokens != "pooled" or "pooler" in encoder)
        cache = job.cache if same else loop.Features()
        given = {name: cache.of(name, asked.net, params, rows, pad) for name, rows in main.rows.items()}

    def judged(name: str, params: Params, tune: bool = False, no_answer: float | None = None) -> Judged:
        if not (examples := getattr(main.splits, name)):
            return Judged([], {})
        return judge(replace(asked, no_answer=no_answer), params, examples, main.rows[name], given[name], tune=tune)

    def measure(params: Params) -> float:
        score = judged("dev", params, tune=True).scores[job.metric]
        return score if metrics.higher_is_better(job.metric) else -score

    fitted = loop.fit(
        asked.net,
        params,
        main.rows["train"],
        settings,
        cell.rate,
        cell.seed,
        pad,
        measure if main.splits.dev else None,
        given["train"],
        told,
    )
    dev = judged("dev", fitted.params, tune=True)
    test = judged("test", fitted.params, no_answer=dev.no_answer)
    speed = fitted.examples / fitted.seconds if fitted.seconds else 0.0
    result = Result(cell, dev.scores, test.scores, fitted.curve, fitted.best, dev.no_answer, speed)
    return result, fitted.params


def fit_before(stage: Prepared, encoder: Params, seed: int, told: Told = lambda step, steps, loss: None) -> loop.Fitted:
    """The fit of a task that comes before another: on its training split alone, at its first rate."""
    asked, settings = stage.asked, stage.recipe.train
    params = first_params(asked.net, encoder, seed, settings.reset_layers)
    rate = settings.learning_rates[0]
    return loop.fit(asked.net, params, stage.rows["train"], settings, rate, seed, asked.pad, told=told)
