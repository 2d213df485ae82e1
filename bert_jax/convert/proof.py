"""A conversion that compares itself: what was written is loaded by transformers and must compute the same."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from bert_jax.config import BertConfig
from bert_jax.convert.families import Kind
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import Params
from bert_jax.errors import UserError
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
    """What was compared, and how far apart it is: `worst` has the largest absolute difference by quantity."""

    passed: bool
    architecture: str
    tolerance: float
    worst: dict[str, float]
    first_difference: str | None
    rows: int
    other_ids: tuple[str, ...]
    load_report: dict[str, list[str]]
    versions: dict[str, str]


def check_libraries() -> None:
    """Raises UserError naming each library of the proof that cannot be imported, and what installs it."""
    failed = {}
    for name, package in LIBRARIES.items():
        try:
            importlib.import_module(name)
        except ImportError as error:
            failed[package] = f"{name} ({error})"
    if failed:
        raise UserError(
            f"the proof cannot import {' and '.join(failed.values())}", "--prove", f"pip install {' '.join(failed)}"
        )


def prove(directory: str | Path, loaded: Loaded, kind: Kind, texts: Sequence[str] = TEXTS) -> Proof:
    """Load `directory` with transformers, compare it with our forward pass, and write `proof.json` there.

    Ids must be equal, every layer's states and all heads' logits within `TOLERANCE`, and no key may be missing,
    unexpected or newly initialised (but a pooler that the model has not). Texts go in as pairs with both segments,
    padded to the longest of the batch.

    Args:
        loaded: what the files should compute.
        kind: the class that they are of.

    Raises:
        UserError: transformers or torch cannot be imported.
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
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    other_ids = tuple(
        text
        for text in texts
        if theirs(text, add_special_tokens=False, verbose=False)["input_ids"]
        != loaded.tokenizer.encode_batch([text]).ids.tolist()
    )
    batch = _pairs(texts, loaded.tokenizer, loaded.config)
    parts = tuple(part for part in kind.parts if part in loaded.params)
    ours = states_and_heads(loaded.config, loaded.params, batch, parts)
    inputs = {"input_ids": "input_ids", "attention_mask": "sequence_ids", "token_type_ids": "segment_ids"}
    if not loaded.config.segments:
        del inputs["token_type_ids"]
    with torch.no_grad():
        outputs = model.eval()(
            **{name: torch.tensor(batch[key]).long() for name, key in inputs.items()}, output_hidden_states=True
        )
    found = {f"layer {number}": states for number, states in enumerate(outputs.hidden_states)}
    for name, keys in _HEADS.items():
        key = next((key for key in keys if key in outputs), None)
        if name in parts and key is not None:
            found[name] = outputs[key]
    real = batch["sequence_ids"] > 0  # what stands at padding is nobody's business
    worst = {name: worst_apart(tensor.numpy(), ours[name], real) for name, tensor in found.items()}
    first = next((name for name, value in worst.items() if not value <= TOLERANCE), None)
    lacking = {"missing_keys"} if "pooler" in kind.optional and "pooler" not in parts else set()
    report = {
        key: sorted(map(str, values))
        for key, values in report.items()
        if values and not (key in lacking and all("pooler" in str(value) for value in values))
    }
    proof = Proof(
        passed=first is None and not other_ids and not report,
        architecture=kind.architecture,
        tolerance=TOLERANCE,
        worst=worst,
        first_difference=first,
        rows=int(real.shape[0]),
        other_ids=other_ids,
        load_report=report,
        versions={"transformers": transformers.__version__, "torch": torch.__version__},
    )
    write_proof(Path(directory), proof)
    return proof


# Our heads, and transformers' names of their outputs.
_HEADS = {
    "pooler": ("pooler_output",),
    "masked_lm": ("prediction_logits", "logits"),
    "next_sentence": ("seq_relationship_logits", "sop_logits"),
    "replaced_token": ("logits",),
}


def worst_apart(theirs: np.ndarray, ours: np.ndarray, real: np.ndarray) -> float:
    """The largest absolute difference at real tokens (bool[B, T]), or in rows where the arrays have no tokens; infinite
    where something is not a number."""
    apart = np.abs(np.asarray(theirs, np.float32) - ours)
    apart = apart[real] if apart.shape[:2] == real.shape else apart
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0))


def write_proof(folder: Path, proof: Proof) -> None:
    """`proof.json` beside the weights."""
    text = json.dumps(asdict(proof), indent=1, ensure_ascii=False) + "\n"
    (folder / "proof.json").write_text(text, encoding="utf-8")


def _pairs(texts: Sequence[str], tokenizer: Tokenizer, config: BertConfig) -> dict[str, np.ndarray]:
    """[CLS] text [SEP] next text [SEP], one row a text, padded; int32[B, T]."""
    special = tokenizer.special
    half = (config.positions - 3) // 2
    pieces = [tokenizer.encode_batch([text]).ids[:half].tolist() for text in texts]
    rows, segments = [], []
    for first, second in zip(pieces, pieces[1:] + pieces[:1], strict=True):
        rows.append([special.cls, *first, special.sep, *second, special.sep])
        segments.append([0] * (len(first) + 2) + [1] * (len(second) + 1))
    length = max(map(len, rows))
    batch = {name: np.zeros((len(rows), length), np.int32) for name in ("input_ids", "segment_ids", "sequence_ids")}
    batch["input_ids"][:] = special.pad
    for number, (row, segment) in enumerate(zip(rows, segments, strict=True)):
        batch["input_ids"][number, : len(row)] = row
        batch["segment_ids"][number, : len(row)] = segment
        batch["sequence_ids"][number, : len(row)] = 1
    batch["position_ids"] = np.broadcast_to(np.arange(length, dtype=np.int32), (len(rows), length))
    return batch


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
    return found
