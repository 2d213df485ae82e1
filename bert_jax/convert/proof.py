"""A conversion that compares itself: what was written is loaded by transformers and must compute the same."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from bert_jax.config import BertConfig
from bert_jax.convert.families import Kind, family_of
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import Params
from bert_jax.errors import UserError, counted
from bert_jax.model import bert
from bert_jax.text.tokenizer import Tokenizer

# Float32 sums in another order: in trials 1.3e-5 at BERT's size, 6e-5 with weights far larger than trained
# ones.
TOLERANCE = 1e-4

# Library → what pip is to install for it.
LIBRARIES = {"transformers": "'bert-jax[hf]'", "torch": "torch"}

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "BERT reads a sentence from both sides at once, unlike a left-to-right language model!",
    "Return the number of items; raise ValueError if it is not a number.",
    "Der Würfel ist gefallen – und zwar um 7.30 Uhr.",
    "자연어 처리는 재미있다.",
    "今天天气很好,我们去公园吧。",
    "naïve café, 3.14159 × 10⁶, «guillemets», e\u0301 and \U0001f642",
    "a literal [MASK] and [SEP] are ordinary text",
)


@dataclass(frozen=True)
class Proof:
    """What was compared, and how far apart it is.

    `worst` has the largest absolute difference by quantity: "layer N" (0: the embeddings), "masked_lm", "pooler",
    "next_sentence", "replaced_token"; of fine-tuned heads "classifier", "token_classifier" or "qa_outputs". `other_ids`
    are texts with other ids, `load_report` what was said of keys.
    """

    passed: bool
    architecture: str
    tolerance: float
    worst: dict[str, float]
    first_difference: str | None
    rows: int
    other_ids: tuple[str, ...]
    load_report: dict[str, list[str]]
    versions: dict[str, str]


def check_libraries(libraries: Mapping[str, str] = LIBRARIES) -> None:
    """Raises UserError naming each library of a proof that cannot be imported, and what installs it."""
    failed = {}
    for name, package in libraries.items():
        try:
            importlib.import_module(name)
        except ImportError as error:
            failed[package] = f"{name} ({error})"
    if failed:
        raise UserError(
            f"the proof cannot import {' and '.join(failed.values())}", "--prove", f"pip install {' '.join(failed)}"
        )


def wanted(asked: bool | None, libraries: Mapping[str, str] = LIBRARIES) -> bool:
    """Whether to prove: if asked for, or (None) if the libraries are there, as far as is told without importing them.

    Raises:
        UserError: it is asked for and a library cannot be imported.
    """
    if asked:
        check_libraries(libraries)
    return all(importlib.util.find_spec(name) for name in libraries) if asked is None else asked


def not_proved(asked: bool | None, libraries: Mapping[str, str] = LIBRARIES) -> str:
    """What is said where there was no proof."""
    return "not proved, as asked" if asked is False else f"not proved: pip install {' '.join(libraries.values())}"


def prove(
    directory: str | Path,
    loaded: Loaded,
    kind: Kind,
    texts: Sequence[str] = TEXTS,
    report_to: str | Path | None = None,
    dropped: Sequence[str] = (),
    split_special_tokens: bool = False,
) -> Proof:
    """Load `directory` with transformers, compare it with our forward pass, and write `proof.json`.

    Ids must be equal, every layer's states and all heads' logits within `TOLERANCE`, and no key may be missing,
    unexpected or newly initialised (but a pooler that the model has not). Texts go in as pairs with both segments,
    padded to the longest of their batch.

    Args:
        loaded: what the files should compute.
        kind: the class that they are of.
        report_to: the folder of `proof.json`, if not the directory itself.
        dropped: beginnings of names that were left out on reading, so that the class need not know them.
        split_special_tokens: ask transformers' tokenizer to take a literal "[MASK]" for ordinary characters, as ours
            does and as the tokenizers that are written here do without being asked.

    Raises:
        UserError: transformers or torch cannot be imported, or cannot load the directory.
    """
    check_libraries()
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # what it would say of the keys is in the proof
    try:
        model, report = getattr(transformers, kind.architecture).from_pretrained(
            directory, output_loading_info=True, dtype=torch.float32
        )
        theirs = transformers.AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"transformers cannot load it ({reason})", str(directory), "leave the proof out") from None
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    config, tokenizer = loaded.config, loaded.tokenizer
    asked = {"split_special_tokens": True} if split_special_tokens else {}
    ids = tokenizer.encode_batch(list(texts))
    other_ids = tuple(
        text
        for text, start, stop in zip(texts, ids.rows[:-1], ids.rows[1:], strict=True)
        if theirs(text, add_special_tokens=False, verbose=False, **asked)["input_ids"] != ids.ids[start:stop].tolist()
    )
    parts = tuple(part for part in kind.parts if part in loaded.params)
    inputs = {"input_ids": "input_ids", "attention_mask": "sequence_ids", "token_type_ids": "segment_ids"}
    if not config.segments:
        del inputs["token_type_ids"]
    worst: dict[str, float] = {}
    rows = 0
    for batch in pairs(texts, tokenizer, config):
        ours = states_and_heads(config, loaded.params, batch, parts)
        given = {name: torch.tensor(batch[key]).long() for name, key in inputs.items()}
        if kind.name == "multiple-choice":  # the rows are the choices of one example
            given = {name: tensor[None] for name, tensor in given.items()}
        with torch.no_grad():
            outputs = model.eval()(**given, output_hidden_states=True)
        found = {f"layer {number}": states for number, states in enumerate(outputs.hidden_states)}
        for name, keys in _HEADS.items():
            key = next((key for key in keys if key in outputs), None)
            if name in ours and key is not None:
                found[name] = outputs[key]
        if "qa_outputs" in ours:
            found["qa_outputs"] = torch.stack([outputs["start_logits"], outputs["end_logits"]], -1)
        if kind.name == "multiple-choice":
            found["classifier"] = found["classifier"].T
        real = batch["sequence_ids"] > 0  # what stands at padding is nobody's business
        for name, tensor in found.items():
            at = real.any(1) if name in OF_ROWS else real
            worst[name] = max(worst.get(name, 0.0), worst_apart(tensor.numpy(), ours[name], at))
        rows += len(real)
    first = next((name for name, value in worst.items() if not value <= TOLERANCE), None)
    expected = {"unexpected_keys": tuple(dropped), "missing_keys": ()}
    if kind in family_of(kind.architecture).tasks and "pooler" in loaded.params and "pooler" not in kind.parts:
        expected["unexpected_keys"] += (f"{family_of(kind.architecture).prefix}pooler.",)  # as older years saved it
    if "pooler" in kind.optional and "pooler" not in parts:
        expected["missing_keys"] = ("pooler.",)
    report = {
        key: sorted(name for name in map(str, names) if not name.startswith(expected.get(key, ())))
        for key, names in report.items()
    }
    report = {key: names for key, names in report.items() if names}
    proof = Proof(
        passed=first is None and not other_ids and not report,
        architecture=kind.architecture,
        tolerance=TOLERANCE,
        worst=worst,
        first_difference=first,
        rows=rows,
        other_ids=other_ids,
        load_report=report,
        versions={"transformers": transformers.__version__, "torch": torch.__version__},
    )
    write_proof(Path(report_to or directory), proof)
    return proof


def demand(proof: Proof, where: str) -> str:
    """What a proof says in one sentence.

    Raises:
        UserError: it failed.
    """
    name, version = next(iter(proof.versions.items()))
    said = f"{name} {version}, {proof.rows} rows of text"
    if proof.passed:
        worst = max(proof.worst, key=lambda name: proof.worst[name])
        return f"proved with {said}: no difference above {proof.worst[worst]:.1e} ({worst})"
    reasons = [f"the first difference above {proof.tolerance:g} is in {proof.first_difference}"] * bool(
        proof.first_difference
    )
    reasons += [f"{counted(len(proof.other_ids), 'text')} with other ids"] * bool(proof.other_ids)
    reasons += [f"{key}: {', '.join(names[:3])}" for key, names in proof.load_report.items()]
    raise UserError(f"not proved with {said}: {'; '.join(reasons)}", where, "see proof.json there")


# Our heads, and transformers' names of their outputs.
_HEADS = {
    "pooler": ("pooler_output",),
    "masked_lm": ("prediction_logits", "logits"),
    "next_sentence": ("seq_relationship_logits", "sop_logits"),
    "replaced_token": ("logits",),
    "classifier": ("logits",),
    "token_classifier": ("logits",),
}


OF_ROWS = ("pooler", "next_sentence", "classifier")  # a value a row; the others have one a token


def worst_apart(theirs: np.ndarray, ours: np.ndarray, real: np.ndarray) -> float:
    """The largest absolute difference where `real` is true, bool[B] of rows or bool[B, T] of tokens; infinite where
    something is not a number."""
    apart = np.abs(np.asarray(theirs, np.float32) - ours)[real]
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0))


def write_proof(folder: Path, proof: Any) -> None:
    """`proof.json` beside the weights: the fields of a proof, which is a dataclass."""
    text = json.dumps(asdict(proof), indent=1, ensure_ascii=False) + "\n"
    (folder / "proof.json").write_text(text, encoding="utf-8")


def pairs(
    texts: Sequence[str], tokenizer: Tokenizer, config: BertConfig, tokens: int = 2048
) -> Iterator[dict[str, np.ndarray]]:
    """[CLS] text [SEP] next text [SEP], one row a text, as batches int32[B, T] of like lengths and about so many
    tokens; what is too long for the position table is cut."""
    special = tokenizer.special
    half = (config.positions - 3) // 2
    encoded = tokenizer.encode_batch(list(texts))
    pieces = [encoded.ids[a:b][:half].tolist() for a, b in zip(encoded.rows[:-1], encoded.rows[1:], strict=True)]
    rows, segments = [], []
    for first, second in zip(pieces, pieces[1:] + pieces[:1], strict=True):
        rows.append([special.cls, *first, special.sep, *second, special.sep])
        segments.append([0] * (len(first) + 2) + [int(config.segments > 1)] * (len(second) + 1))
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    while order:
        length = min(-(-len(rows[order[0]]) // 64) * 64, config.positions)  # few shapes to compile
        chosen, order = order[: max(2, tokens // length)], order[max(2, tokens // length) :]
        names = ("input_ids", "segment_ids", "sequence_ids")
        batch = {name: np.zeros((len(chosen), length), np.int32) for name in names}
        batch["input_ids"][:] = special.pad
        for place, number in enumerate(chosen):
            size = len(rows[number])
            batch["input_ids"][place, :size] = rows[number]
            batch["segment_ids"][place, :size] = segments[number]
            batch["sequence_ids"][place, :size] = 1
        batch["position_ids"] = np.broadcast_to(np.arange(length, dtype=np.int32), (len(chosen), length))
        yield batch


def states_and_heads(
    config: BertConfig, params: Params, batch: dict[str, np.ndarray], parts: Sequence[str]
) -> dict[str, np.ndarray]:
    """Every layer's states as "layer 0" and so on, and what the heads among `parts` make of the last one."""
    arrays: dict[str, Any] = {name: jnp.asarray(array) for name, array in batch.items()}
    encoded = bert.encode(config, params, arrays, all_layers=True)
    assert encoded.layers is not None
    found = {f"layer {number}": np.asarray(states) for number, states in enumerate(encoded.layers)}
    cls = jnp.zeros((len(batch["input_ids"]), 1), jnp.int32)
    if "masked_lm" in parts:
        found["masked_lm"] = np.asarray(bert.predict(config, params, encoded.hidden, arrays["position_ids"]))
    if "pooler" in parts:
        pooled = bert.pool(config, params, encoded.hidden, cls)
        found["pooler"] = np.asarray(pooled)[:, 0]
        if "next_sentence" in parts:
            found["next_sentence"] = np.asarray(bert.relate(config, params, pooled))[:, 0]
    if "replaced_token" in parts:
        found["replaced_token"] = np.asarray(bert.replaced(config, params, encoded.hidden))
    if "classifier" in parts:
        name, states = ("classifier", found["pooler"]) if "pooler" in parts else ("token_classifier", encoded.hidden)
        found[name] = _linear(states, params["classifier"])
    if "qa_outputs" in parts:
        found["qa_outputs"] = _linear(encoded.hidden, params["qa_outputs"])
    return found


def _linear(states: Any, head: Params) -> np.ndarray:
    """[..., D] → float32[..., K], in NumPy: a second computation beside that of training."""
    return np.asarray(states) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
