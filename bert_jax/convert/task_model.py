"""The directory of a fine-tuned model: a model directory of its encoder, and beside it the head and the task.

`head.safetensors` has the head under our own names, `task.json` what its outputs mean. Whoever asks for an encoder
finds one in the same directory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from bert_jax.convert import native
from bert_jax.convert.directory import read_json
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import Params, flatten, nested
from bert_jax.convert.safetensors_file import read_safetensors
from bert_jax.errors import UserError

HEAD, TASK = "head.safetensors", "task.json"
SCHEMA = 1

# Of each family the products of its head whose columns are labels, and the term under which their names stand.
LABELLED = {
    "single": {"classifier": "label"},
    "pair": {"classifier": "label"},
    "multi_label": {"classifier": "labels"},
    "tagging": {"classifier": "tags"},
    "intent_slots": {"intent": "intent", "slots": "slots"},
}

# What task.json holds besides `schema`, `family` and `head`, and what stands there where nothing is known.
_KEYS: dict[str, Any] = {"labels": {}, "readout": {}, "task": {}, "columns": {}, "no_answer": None, "scores": {}}
_REMEDY = "fine-tune or import it anew"


@dataclass(frozen=True, eq=False)
class TaskModel:
    """A fine-tuned model.

    Attributes:
        loaded: the encoder, as any other.
        head: float32 arrays: `classifier`, `qa_outputs`, or `intent` and `slots`, each with `kernel` [D', K] and `bias`
            [K], and what a learned read-out has (`mix`, `layer_attention`).
        task: what task.json says: `family`, `labels` (term → names), `readout`, `task`, `columns`, `no_answer`,
            `scores`.
    """

    loaded: Loaded
    head: Params
    task: dict[str, Any]

    @property
    def family(self) -> str:
        return self.task["family"]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classifier's outputs, none where they have none."""
        return tuple(self.task["labels"].get(LABELLED.get(self.family, {}).get("classifier", ""), ()))


def is_directory(path: str | Path) -> bool:
    """Whether `path` looks like the directory of a fine-tuned model."""
    return (Path(path) / TASK).is_file() and native.is_directory(path)


def within(path: str | Path) -> Path | None:
    """Where a fine-tuned model lies: at `path`, or where the fine-tuning in `path` wrote it; None: at neither."""
    return next((folder for folder in (Path(path), Path(path) / "model") if is_directory(folder)), None)


def write(
    out: str | Path,
    model: TaskModel,
    *,
    force: bool = False,
    provenance: Mapping[str, Any],
    extra: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write the directory, whole or not at all.

    Args:
        model: of its task only `family` has to be there.
        force: replace an earlier one at `out`; anything else there is never touched.
        provenance: where the weights come from.
        extra: further files by name.

    Raises:
        UserError: `out` exists or cannot be written.
    """
    tensors = {path: np.array(leaf, np.float32, order="C") for path, leaf in sorted(flatten(model.head))}
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    tree = {"schema": SCHEMA, **_KEYS, **model.task, "head": shapes}
    files: dict[str, str | bytes] = {TASK: json.dumps(tree, indent=2, ensure_ascii=False) + "\n"}
    if tensors:  # the head of the embedding family is its pooling
        files[HEAD] = save(tensors, metadata={"format": "pt"})
    native.write(out, model.loaded, force=force, provenance=provenance, extra={**files, **(extra or {})})


def read(directory: str | Path) -> TaskModel:
    """What `write` wrote.

    Raises:
        UserError: files are missing, broken, of a later version, or do not fit each other.
    """
    directory = Path(directory)
    where = str(directory / TASK)
    tree = read_json(directory / TASK, "give a directory that `bert-jax finetune` wrote")
    if not isinstance(tree, dict) or not isinstance(tree.get("schema"), int):
        raise UserError("this is not the task of a model of ours", where, _REMEDY)
    if tree["schema"] > SCHEMA:
        raise UserError(f"schema {tree['schema']} is of a later bert_jax", where, f"install that, or {_REMEDY}")
    _check(tree, where)
    tensors = read_safetensors(directory / HEAD) if tree["head"] else {}
    for name in sorted(tensors.keys() ^ tree["head"].keys()):
        what = "is not in task.json" if name in tensors else f"of task.json is not in {HEAD}"
        raise UserError(f"{name} {what}", str(directory / HEAD), _REMEDY)
    for name, tensor in tensors.items():
        if list(tensor.shape) != tree["head"][name]:
            what = f"{name} has shape {list(tensor.shape)}, where task.json says {tree['head'][name]}"
            raise UserError(what, str(directory / HEAD), _REMEDY)
    for product, term in LABELLED.get(tree["family"], {}).items():
        shape, names = tree["head"].get(f"{product}/kernel", [0]), tree["labels"].get(term, ())
        if shape[-1] != len(names):
            raise UserError(f"{product} has {shape[-1]} outputs and {term} {len(names)} names", where, _REMEDY)
    head = nested({name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()})
    return TaskModel(native.read(directory), head, tree)


def _check(tree: Mapping[str, Any], where: str) -> None:
    """Raises UserError unless all keys are there with values of their kind."""
    kinds = {"family": str, "head": dict} | {name: type(empty) for name, empty in _KEYS.items()}
    kinds["no_answer"] = float | int | None
    for name, kind in kinds.items():
        if name not in tree:
            raise UserError(f"{name} is missing", where, _REMEDY)
        if not isinstance(tree[name], kind) or isinstance(tree[name], bool):
            raise UserError(f"{name} = {str(tree[name])[:40]} cannot be", where, _REMEDY)
    if tree["no_answer"] is not None and not math.isfinite(tree["no_answer"]):
        raise UserError(f"no_answer = {tree['no_answer']} is no threshold", where, _REMEDY)
    for term, names in tree["labels"].items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"the labels of {term} are no list of names", where, _REMEDY)
        if len(set(names)) < len(names):
            raise UserError(f"two labels of {term} have one name", where, _REMEDY)


def encoder_note(model: TaskModel) -> str:
    """What is said where the encoder alone is opened."""
    return f"the head of the task ({model.family}) is left out: this is the encoder"
