"""A fine-tuned model written, opened and asked: its network and labels, its weights, and how its files are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bert_jax.convert import task_model
from bert_jax.convert.families import family_of
from bert_jax.convert.loaded import Loaded, Pooling
from bert_jax.errors import UserError
from bert_jax.settings import assign, build
from bert_jax.tasks import network
from bert_jax.tasks.network import Params
from bert_jax.tasks.predictions import Prediction
from bert_jax.tasks.reading import read_objects
from bert_jax.tasks.settings import ColumnSettings, TaskSettings
from bert_jax.tasks.task import Asked, from_json, judge, to_json


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A fine-tuned model. `columns` are those of the files that it was trained on, empty of one from elsewhere."""

    asked: Asked
    params: dict[str, Any]
    columns: ColumnSettings

    def __repr__(self) -> str:
        net, labels = self.asked.net, [f"{len(names)} {term}" for term, names in self.asked.labels.items()]
        told = ", ".join([f"{net.config.layers} layers of {net.config.width}", *labels])
        return f"FineTuned({net.family}, {told}; {self.asked.tokenizer})"

    def predict(self, examples: Iterable[str | Mapping[str, Any]]) -> list[Prediction]:
        """What the model says of each example.

        Args:
            examples: objects with the keys that `bert-jax predict` reads (docs/finetuning.md), or texts where a text
                is all that the family takes.

        Returns:
            What `bert-jax predict` writes, an object for each example, in their order.

        Raises:
            UserError: an example is neither, or lacks a key; or this is one example and no list.
        """
        if isinstance(examples, str | Mapping):
            raise UserError("this is one example", "predict", "give a list of them")
        objects = [{"text": one} if isinstance(one, str) else one for one in examples]
        if not objects:
            return []
        found = read_objects(objects, self.asked.task.family, self.columns)
        return judge(self.asked, self.params, found).predictions


@dataclass(frozen=True)
class Kept:
    """The sections of a recipe that a model keeps."""

    task: TaskSettings = field(default_factory=TaskSettings)
    columns: ColumnSettings = field(default_factory=ColumnSettings)


def write(
    out: Path,
    asked: Asked,
    params: Params,
    loaded: Loaded,
    told: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write the directory of a fine-tuned model, in the place of an earlier one.

    Args:
        out: the directory.
        asked, params: as they were trained.
        loaded: the encoder that they began with.
        told: what task.json has beside the network: `cell`, `scores`, `columns`.
        provenance: where the weights come from.

    Raises:
        UserError: it cannot be written.
    """
    net, params = network.folded(asked.net, params)
    encoder, head = _divided(params, loaded)
    pooling = None
    if net.family == "embedding" and net.layers == "last" and net.tokens in ("mean", "first"):
        pooling = Pooling("mean" if net.tokens == "mean" else "cls", normalize=True, length=asked.task.length)
    loaded = replace(loaded, params=encoder, pooling=pooling, step=None)
    tree = {**to_json(replace(asked, net=net)), **told}
    task_model.write(out, task_model.TaskModel(loaded, head, tree), force=True, provenance=provenance)


def _divided(params: Params, loaded: Loaded) -> tuple[Params, Params]:
    """Encoder and head: what the encoder's family has a place for, and the rest."""
    parts = {row.path.split("/")[0] for row in family_of(loaded.architecture).rows} & set(network.ENCODER)
    encoder = {name: tree for name, tree in params.items() if name in parts}
    if "pooler" in loaded.params and "pooler" not in encoder:
        encoder["pooler"] = loaded.params["pooler"]
    return encoder, {name: tree for name, tree in params.items() if name not in encoder}


def load_task(path: str | Path, settings: Sequence[str] = ()) -> FineTuned:
    """A fine-tuned model, ready to be asked.

    Args:
        path: its directory, or that of the fine-tuning that made it.
        settings: texts as of `--set`, for `[task]` and `[columns]`.

    Raises:
        UserError: there is none, its files do not fit each other, or a setting cannot be.
    """
    path = Path(path)
    folder = task_model.within(path)
    if folder is None:
        if (path / "inputs.json").is_file():
            raise UserError("this fine-tuning is not finished", str(path), "run the same `bert-jax finetune` again")
        what = "this is no fine-tuned model" if path.exists() else "there is no such directory"
        remedy = "give one that `bert-jax finetune` wrote, or import one"
        if (path / "config.json").is_file():
            remedy = f"import it first, `bert-jax import {path} --output DIR`"
        raise UserError(what, str(path), remedy)
    model = task_model.read(folder)
    tree = {"task": {"family": model.family, **model.task["task"]}, "columns": dict(model.task["columns"])}
    for setting in settings:
        assign(tree, setting)
    kept = build(Kept, tree, "")
    if kept.task.family != model.family:
        raise UserError(f"the model's family is {model.family}", "--set task.family", "leave it out")
    asked = from_json({**model.task, "task": asdict(kept.task)}, model.loaded.config, model.loaded.tokenizer)
    return FineTuned(asked, {**model.loaded.params, **model.head}, kept.columns)
