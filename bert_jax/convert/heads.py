"""Fine-tuned models between our directories and transformers' classes for tasks.

transformers has classes for seven of our families, and each of them reads the encoder in one way: the last layer,
and of it [CLS] through the pooler or every token. Other read-outs stay here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bert_jax.convert import huggingface, sentence_transformers, task_model
from bert_jax.convert.families import Kind, family_of, kind_in
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import flatten
from bert_jax.convert.opening import check_tokenizer
from bert_jax.convert.task_model import LABELLED, TaskModel
from bert_jax.errors import UserError, counted

# Our family → transformers' class, and what it reads of the tokens.
_CLASSES = {
    "single": ("sequence-classification", "pooled"),
    "pair": ("sequence-classification", "pooled"),
    "multi_label": ("sequence-classification", "pooled"),
    "regression": ("sequence-classification", "pooled"),
    "choice": ("multiple-choice", "pooled"),
    "tagging": ("token-classification", "first"),
    "qa": ("question-answering", "all"),
}
_FAMILIES = {"multiple-choice": "choice", "token-classification": "tagging", "question-answering": "qa"}
KEEP = "give --model encoder to export the encoder alone"


def open_task(path: str | Path) -> TaskModel | None:
    """A fine-tuned model, of ours or in a transformers class for a task; None if what is there is neither.

    Raises:
        UserError: it is one, and cannot be read.
    """
    if folder := task_model.within(path):
        model = task_model.read(folder)
        return model if model.head else None
    return open_class(path)


def open_class(path: str | Path, drop: Sequence[str] = (), family: str | None = None) -> TaskModel | None:
    """A transformers directory of a class with a fine-tuned head; None if it is of another class, or is no such
    directory.

    Args:
        drop: beginnings of names of tensors to leave out; without its head it is of another class.
        family: "single" or "pair", which a directory does not tell apart; "single" if not given.

    Raises:
        UserError: its files are missing or broken, its head is one that no read-out here makes, or `family` is not what
            such a head is for.
    """
    if not huggingface.is_directory(path) or sentence_transformers.is_directory(path):
        return None
    loaded = huggingface.read(path, drop, fine_tuned=True)
    if not loaded.config.classes:
        return None
    check_tokenizer(loaded, str(path))
    task = from_class(loaded)
    if family is None and task.family == "single":
        note = "whether it takes one text or two is not on record; this is for one, --task pair for two"
        return replace(task, loaded=replace(task.loaded, notes=(*task.loaded.notes, note)))
    if family is not None and task.family not in ("single", family):
        raise UserError(f"{loaded.architecture} is for {task.family}", "--task", "leave --task out")
    return replace(task, task={**task.task, "family": family or task.family})


def from_class(loaded: Loaded) -> TaskModel:
    """What `huggingface.read` returned of a class for a task, as encoder, head and task."""
    model_family = family_of(loaded.architecture)
    kind = kind_in(model_family, loaded.architecture)
    assert kind is not None and kind in model_family.tasks
    regression = kind.name == "sequence-classification" and loaded.config.classes == 1
    usual = "multi_label" if loaded.multi_label else "regression" if regression else "single"
    family = _FAMILIES.get(kind.name, usual)
    name = kind.parts[-1]
    length = min(loaded.config.positions, 512)  # what it was trained with is not on record
    task: dict[str, Any] = {
        "family": family,
        "labels": {LABELLED[family]["classifier"]: list(loaded.labels)} if family in LABELLED else {},
        "readout": {"layers": "last", "tokens": _CLASSES[family][1]},
        "task": {"family": family, "scheme": _scheme(loaded.labels), "length": length, "stride": length // 4},
    }
    params = {part: tree for part, tree in loaded.params.items() if part != name}
    encoder = replace(
        loaded,
        config=replace(loaded.config, classes=0),
        params=params,
        architecture=model_family.richest(params).architecture,
        labels=(),
        multi_label=False,
    )
    return TaskModel(encoder, {name: loaded.params[name]}, task)


def _scheme(labels: Sequence[str]) -> str:
    """How these tags write spans, as `task.scheme` says it; IOB1 has the same tags as BIO."""
    begins = {label.partition("-")[0] for label in labels if "-" in label}
    if "O" not in labels or not all(label == "O" or "-" in label for label in labels) or "B" not in begins:
        return ""
    return "BIO" if begins <= {"B", "I"} else "IOBES" if begins <= {"B", "I", "E", "S"} else ""


def to_class(model: TaskModel, where: str) -> Loaded:
    """The model as one of transformers' class for its task, for `huggingface.write`.

    Raises:
        UserError: there is no such class, or it reads the encoder in another way.
    """
    loaded, task = model.loaded, model.task
    if model.family not in _CLASSES:
        raise UserError(f"transformers has no class for {model.family}", where, KEEP)
    kind_name, tokens = _CLASSES[model.family]
    kind = _class(loaded, kind_name, where)
    last = ("", "last", "-1", str(loaded.config.layers))
    layers_read, tokens_read = (str(task["readout"].get(key, "")) for key in ("layers", "tokens"))
    if layers_read not in last or tokens_read not in ("", tokens) or len(model.head) > 1:
        also = "" if tokens == "all" else f' and readout.tokens="{tokens}"'
        raise UserError(
            f"no class of transformers reads layers = {layers_read or 'last'!r}, tokens = {tokens_read or tokens!r}",
            where,
            f'fine-tune with readout.layers="last"{also}, or {KEEP}',
        )
    name, width = kind.parts[-1], loaded.config.width
    shapes = {path: leaf.shape for path, leaf in flatten(model.head)}
    (outputs,) = shapes.get(f"{name}/bias", (0,))
    if shapes != {f"{name}/kernel": (width, outputs), f"{name}/bias": (outputs,)}:
        found = ", ".join(f"{path} {list(shape)}" for path, shape in shapes.items())
        raise UserError(f"the head of {kind.architecture} is {name} of {width} rows, this is {found}", where, KEEP)
    only = {"regression": 1, "choice": 1, "qa": 2}.get(model.family)
    # one label of a text would be taken for a number there
    one_may_be = model.family == "multi_label" or kind_name != "sequence-classification"
    if not (outputs == only if only else outputs > 1 or one_may_be):
        raise UserError(f"a head of {counted(outputs, 'output')} is none for {model.family}", where, KEEP)
    return replace(
        loaded,
        config=replace(loaded.config, classes=outputs),
        params={**loaded.params, **model.head},
        architecture=kind.architecture,
        pooling=None,
        labels=model.labels,
        multi_label=model.family == "multi_label",
    )


def _class(loaded: Loaded, name: str, where: str) -> Kind:
    """The model's class of this name.

    Raises:
        UserError: its family of models has one of another head, or the model has no pooler.
    """
    family = family_of(loaded.architecture)
    kind = next((kind for kind in family.tasks if kind.name == name), None)
    if kind is None:
        of = family.kinds[0].architecture.partition("For")[0]
        architecture = of + "For" + "".join(word.capitalize() for word in name.split("-"))
        reason = huggingface.OTHERS[architecture]
        raise UserError(f"{architecture} has {reason}, which no read-out here has", where, KEEP)
    if "pooler" in kind.parts and "pooler" not in loaded.params:
        raise UserError(f"this model has no pooler, which {kind.architecture} has", where, KEEP)
    return kind
