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
from bert_jax.convert.huggingface import KINDS
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


def prove(
    directory: str | Path,
    config: BertConfig,
    params: Params,
    tokenizer: Tokenizer,
    kind: str = "pretraining",
    texts: Sequence[str] = TEXTS,
) -> Proof:
    """Load `directory` with transformers, compare it with our forward pass, and write `proof.json` there.

    Ids must be equal, every layer's states and both heads' logits within `TOLERANCE`, and no key may be
    missing, unexpected or newly initialised. Texts go in as pairs with both segments, padded to the longest
    of the batch.

    Raises:
        UserError: transformers or torch cannot be imported.
    """
    check_libraries()
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()

    architecture = KINDS[kind].architecture
    model, report = getattr(transformers, architecture).from_pretrained(
        directory, output_loading_info=True, dtype=torch.float32
    )
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    other_ids = tuple(
        text
        for text in texts
        if theirs(text, add_special_tokens=False, verbose=False)["input_ids"]
        != tokenizer.encode_batch([text]).ids.tolist()
    )
    batch = _pairs(texts, tokenizer, config)
    ours = _ours(config, params, batch, KINDS[kind].parts)
    with torch.no_grad():
        outputs = model.eval()(
            input_ids=torch.tensor(batch["input_ids"]).long(),
            attention_mask=torch.tensor(batch["sequence_ids"]).long(),
            token_type_ids=torch.tensor(batch["segment_ids"]).long(),
            output_hidden_states=True,
        )
    found = {f"layer {number}": states for number, states in enumerate(outputs.hidden_states)}
    named = {"pooler": "pooler_output", "masked_lm": "logits", "next_sentence": "seq_relationship_logits"}
    if kind == "pretraining":
        named = {"masked_lm": "prediction_logits", "next_sentence": "seq_relationship_logits"}
    found.update({name: outputs[key] for name, key in named.items() if name in KINDS[kind].parts})
    real = batch["sequence_ids"] > 0  # what stands at padding is nobody's business
    worst = {}
    for name, tensor in found.items():
        apart = np.abs(tensor.numpy() - ours[name])
        worst[name] = float(np.nan_to_num(apart[real] if apart.ndim == 3 else apart, nan=np.inf).max())
    first = next((name for name, value in worst.items() if not value <= TOLERANCE), None)
    report = {key: sorted(map(str, values)) for key, values in report.items() if values}
    proof = Proof(
        passed=first is None and not other_ids and not report,
        architecture=architecture,
        tolerance=TOLERANCE,
        worst=worst,
        first_difference=first,
        rows=int(real.shape[0]),
        other_ids=other_ids,
        load_report=report,
        versions={"transformers": transformers.__version__, "torch": torch.__version__},
    )
    path = Path(directory) / "proof.json"
    path.write_text(json.dumps(asdict(proof), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return proof


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


def _ours(
    config: BertConfig, params: Params, batch: dict[str, np.ndarray], parts: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Every layer's states and what the heads make of the last one."""
    arrays: dict[str, Any] = {name: jnp.asarray(array) for name, array in batch.items()}
    encoded = bert.encode(config, params, arrays, all_layers=True)
    assert encoded.layers is not None
    found = {f"layer {number}": np.asarray(states) for number, states in enumerate(encoded.layers)}
    cls = jnp.zeros((len(batch["input_ids"]), 1), jnp.int32)
    if "masked_lm" in parts:
        found["masked_lm"] = np.asarray(bert.predict(config, params, encoded.hidden, arrays["position_ids"]))
    if "pooler" in parts:
        found["pooler"] = np.asarray(bert.pool(config, params, encoded.hidden, cls))[:, 0]
    if "next_sentence" in parts:
        heads = {**arrays, "mlm_positions": cls, "cls_positions": cls}
        found["next_sentence"] = np.asarray(bert.apply(config, params, heads).nsp_logits)[:, 0]
    return found
