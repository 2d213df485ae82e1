"""What deployable artefacts share: the names of what goes in and comes out, our forward pass, and the proof.

An artefact is of one class, and which class is seen from the parts that a model has. Its outputs have the names that
transformers gives them:

| parts | outputs |
|---|---|
| encoder, with or without pooler | `last_hidden_state`, `pooler_output` |
| masked LM | `logits` |
| masked LM and next sentence | `prediction_logits`, `seq_relationship_logits` (ALBERT: `sop_logits`) |
| next sentence alone | `logits` |
| replaced token | `logits` |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bert_jax.config import BertConfig, Execution
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import Params
from bert_jax.convert.proof import OF_ROWS, TEXTS, TOLERANCE, Proof, pairs, states_and_heads, worst_apart
from bert_jax.errors import UserError
from bert_jax.model import bert

Arrays = Mapping[str, Any]
Found = dict[str, np.ndarray]

# Rows × tokens that a proof runs: one row, odd sizes, a usual batch, and longer than any multiple of a tile.
SHAPES = ((1, 5), (3, 17), (8, 128), (2, 300))
LOOP = Execution(scan="on")  # one compiled layer in a loop


# --------------------------------------------------------------------------------------------------- what it has


def input_names(config: BertConfig) -> tuple[str, ...]:
    """The inputs, each [batch, sequence]; a model without a segment table takes no `token_type_ids`."""
    return ("input_ids", "attention_mask", *(("token_type_ids",) if config.segments else ()))


def output_names(loaded: Loaded, *, all_layers: bool = False) -> dict[str, str]:
    """Quantity → output: see the module's table; with `all_layers` every layer's states as well.

    Those are `hidden_states.0` (the embeddings') to `hidden_states.L-1`, and `last_hidden_state`.
    """
    last = f"layer {loaded.config.layers}"
    has = set(loaded.params) - (set() if "pooler" in loaded.params else {"next_sentence"})  # which reads the pooler
    order = "sop_logits" if loaded.architecture.startswith("Albert") else "seq_relationship_logits"
    several = {"masked_lm": "prediction_logits", "next_sentence": order, "replaced_token": "replaced_token_logits"}
    names = {quantity: name for quantity, name in several.items() if quantity in has}
    if len(names) == 1:
        names = dict.fromkeys(names, "logits")
    if not names:
        names = {last: "last_hidden_state", **({"pooler": "pooler_output"} if "pooler" in has else {})}
    if all_layers:
        names |= {f"layer {n}": f"hidden_states.{n}" for n in range(loaded.config.layers)}
        names[last] = "last_hidden_state"
    return names


def parts(loaded: Loaded) -> Params:
    """The parts of the tree that the outputs are computed from; nothing else goes into an artefact."""
    wanted = {"embeddings", "layers", *output_names(loaded)}
    if "next_sentence" in wanted:
        wanted.add("pooler")
    return {name: tree for name, tree in loaded.params.items() if name in wanted}


def shape_of(quantity: str, config: BertConfig, rows: Any, tokens: Any) -> tuple[Any, ...]:
    """The shape of an output."""
    match quantity:
        case "masked_lm":
            return (rows, tokens, config.vocab_size)
        case "next_sentence":
            return (rows, config.relations)
        case "replaced_token":
            return (rows, tokens)
        case "pooler":
            return (rows, config.width)
    return (rows, tokens, config.width)


# ------------------------------------------------------------------------------------------------------- forward


def forward(config: BertConfig, params: Params, inputs: Arrays, *, all_layers: bool = False) -> dict[str, Array]:
    """Everything that the parts given compute, by quantity, layers in their order first.

    Args:
        inputs: `input_ids`, `attention_mask` (0: padding) and, where there are segments, `token_type_ids`, each
            int32[B, T]; B and T may be symbols of `jax.export`.
        all_layers: every layer's states and not only the last one's.
    """
    ids = inputs["input_ids"]
    places = lax.broadcasted_iota(jnp.int32, ids.shape, 1)
    batch = {
        "input_ids": ids,
        "position_ids": places,
        "segment_ids": inputs["token_type_ids"] if config.segments else jnp.zeros_like(ids),
        "sequence_ids": (inputs["attention_mask"] != 0).astype(jnp.int32),
    }
    encoded = bert.encode(config, params, batch, execution=LOOP, all_layers=all_layers)
    found = {f"layer {n}": encoded.layers[n] for n in range(config.layers)} if encoded.layers is not None else {}
    found[f"layer {config.layers}"] = encoded.hidden
    if "masked_lm" in params:
        found["masked_lm"] = bert.predict(config, params, encoded.hidden, places)
    if "replaced_token" in params:
        found["replaced_token"] = bert.replaced(config, params, encoded.hidden)
    if "pooler" in params:
        pooled = bert.pool(config, params, encoded.hidden, jnp.zeros_like(ids[:, :1]))
        found["pooler"] = pooled[:, 0]
        if "next_sentence" in params:
            found["next_sentence"] = bert.relate(config, params, pooled)[:, 0]
    return found


# --------------------------------------------------------------------------------------------------------- proof


def batches(loaded: Loaded, shapes: Iterable[tuple[int, int]] = SHAPES) -> list[dict[str, np.ndarray]]:
    """Pairs of texts as int32 inputs of these shapes, no longer than the position table.

    The first row is full, each one below ends earlier, and padding follows.
    """
    made = []
    for rows, length in shapes:
        length = min(length, loaded.config.positions)
        starts = [number % len(TEXTS) for number in range(rows)]
        texts = [" ".join((TEXTS[start:] + TEXTS[:start]) * (1 + length // 64)) for start in starts]
        pair = next(pairs(texts, loaded.tokenizer, replace(loaded.config, positions=length), tokens=rows * length))
        full = pair["input_ids"].shape[1]
        ends = [[full * (rows - number) // rows] for number in range(rows)]
        real = np.arange(length)[None] < ends
        wide = {name: np.pad(array, ((0, 0), (0, length - full))) for name, array in pair.items()}
        batch = {
            "input_ids": np.where(real, wide["input_ids"], loaded.tokenizer.special.pad),
            "attention_mask": real,
            "token_type_ids": np.where(real, wide["segment_ids"], 0),
        }
        made.append({name: batch[name].astype(np.int32) for name in input_names(loaded.config)})
    return made


def differences(
    loaded: Loaded, inputs: Sequence[dict[str, np.ndarray]], found: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """The largest absolute difference to our network by quantity, layers in their order first; NaN counts as infinite.

    Args:
        inputs, found: what went in and came out, by quantity, of each batch. What stands at padding is not compared.
    """
    params = jax.tree.map(jnp.asarray, parts(loaded))
    worst: dict[str, float] = {}
    for batch, theirs in zip(inputs, found, strict=True):
        mask = batch["attention_mask"]
        ours = states_and_heads(
            loaded.config,
            params,
            {
                "input_ids": batch["input_ids"],
                "segment_ids": batch.get("token_type_ids", np.zeros_like(mask)),
                "sequence_ids": mask,
                "position_ids": np.broadcast_to(np.arange(mask.shape[1], dtype=np.int32), mask.shape),
            },
            tuple(params),
        )
        for name in [name for name in ours if name in theirs]:
            real = mask.any(1) if name in OF_ROWS else mask > 0
            fits = theirs[name].shape == ours[name].shape
            apart = worst_apart(theirs[name], ours[name], real) if fits else float("inf")
            worst[name] = max(worst.get(name, 0.0), apart)
    return worst


def judged(
    loaded: Loaded,
    inputs: Sequence[dict[str, np.ndarray]],
    outputs: Sequence[Mapping[str, np.ndarray]],
    layers: Callable[[], Sequence[Mapping[str, np.ndarray]]],
    versions: dict[str, str],
) -> Proof:
    """Compare what an artefact gave with our network, and where it fails, layer by layer.

    Args:
        outputs: by the artefact's names, of each batch.
        layers: gives the same with `output_names(all_layers=True)`; asked only if `outputs` are not equal.
    """

    def by_quantity(all_layers: bool, results: Sequence[Mapping[str, np.ndarray]]) -> list[Found]:
        names = output_names(loaded, all_layers=all_layers)
        return [{quantity: result[name] for quantity, name in names.items()} for result in results]

    worst = differences(loaded, inputs, by_quantity(False, outputs))
    first = _first(worst)
    if first is not None:
        by_layer = differences(loaded, inputs, by_quantity(True, layers()))
        # the layers alone may agree where the artefact itself does not: then the output is what differs
        first = _first(by_layer) or first
        worst = {**by_layer, **worst}
    return Proof(
        passed=first is None,
        architecture=loaded.architecture,
        tolerance=TOLERANCE,
        worst=worst,
        first_difference=first,
        rows=sum(len(batch["input_ids"]) for batch in inputs),
        other_ids=(),  # ids go in as they are
        load_report={},
        versions=versions,
    )


def _first(worst: Mapping[str, float]) -> str | None:
    return next((name for name, value in worst.items() if not value <= TOLERANCE), None)


# --------------------------------------------------------------------------------------------------------- files


def refuse_existing(*paths: Path) -> None:
    """Raises UserError if one of these is there already."""
    for path in paths:
        if path.exists():
            raise UserError("this exists already", str(path), "give another name, or remove it first")
