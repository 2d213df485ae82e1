"""Whatever holds a BERT, opened: which format is this, and how is it read?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bert_jax.convert import google, huggingface, native, sentence_transformers, task_model
from bert_jax.convert.loaded import Loaded
from bert_jax.errors import UserError

REMEDY = "give a run directory, a model directory, a transformers directory or one of google-research/bert"


def open_foreign(path: str | Path, drop: Sequence[str] = ()) -> Loaded:
    """Open what is no run of ours: a model directory, a transformers directory, one of google-research/bert, or the
    beginning of the names of a checkpoint (`DIR/bert_model.ckpt`) in the latter. Of a fine-tuned model this is the
    encoder, with a note.

    Args:
        drop: beginnings of names of tensors to leave out.

    Raises:
        UserError: there is no model (what is there instead is named), or its files do not fit each other.
    """
    path = Path(path)
    if folder := task_model.within(path):
        model = task_model.read(folder)
        notes = (task_model.encoder_note(model),) if model.head else ()
        loaded = replace(model.loaded, notes=model.loaded.notes + notes)
    elif native.is_directory(path):
        loaded = native.read(path)
    elif sentence_transformers.is_directory(path):
        loaded = sentence_transformers.read(path, drop)
    elif huggingface.is_directory(path):
        loaded = huggingface.read(path, drop)
    elif google.holds(path):
        loaded = google.read(path, drop)
    else:
        raise _no_model(path)
    check_tokenizer(loaded, str(path))
    return loaded


def check_tokenizer(loaded: Loaded, where: str) -> None:
    """Raises UserError if the tokenizer has pieces that the word table lacks."""
    if loaded.tokenizer.vocab_size > loaded.config.vocab_size:
        raise UserError(
            f"the tokenizer has {loaded.tokenizer.vocab_size} pieces, the model {loaded.config.vocab_size}",
            where,
            "put the tokenizer there that the model was trained with",
        )


def _no_model(path: Path) -> UserError:
    """What stands at `path` instead of a model, and what to give."""

    def has(*names: str) -> bool:
        return any((path / name).exists() for name in names)

    above = path.absolute().parents
    holder = next((p for p in above if (p / "recipe.toml").is_file() and (p / "model.json").is_file()), None)
    if not path.exists():
        return UserError("this does not exist", str(path), REMEDY)
    if holder:
        return UserError("this is a part of a run", str(path), f"give the run directory, {holder}")
    if not path.is_dir():
        return UserError("this is a file", str(path), REMEDY)
    if has("manifest.json"):
        return UserError("this is a data set", str(path), "give the run directory of a model that was trained on it")
    if has("task.toml"):
        return UserError("this fine-tuning is not finished", str(path), "run the same `bert-jax finetune` again")
    if has("model.safetensors", "pytorch_model.bin", "flax_model.msgpack"):
        return UserError("these are weights without their config.json", str(path), "copy the whole directory")
    if has("tokenizer.json", "vocab.txt", "spiece.model"):
        return UserError("this is a tokenizer without a model", str(path), REMEDY)
    if not any(path.iterdir()):
        return UserError("this directory is empty", str(path), REMEDY)
    return UserError("this holds no model", str(path), REMEDY)
