"""What `bert_jax.load` returns: a BERT that one can ask.

Texts are put into batches of one length and one number of rows out of a few, so that each shape is compiled
once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.config import BertConfig, Execution
from bert_jax.convert import huggingface
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.opening import REMEDY, check_tokenizer, open_foreign
from bert_jax.errors import UserError
from bert_jax.model import bert
from bert_jax.store.checkpoint import load_params
from bert_jax.store.rundir import load_config
from bert_jax.text.tokenizer import Tokenizer

MASK = "[MASK]"
LENGTHS = (16, 32, 64, 96, 128, 192, 256, 384, 512)  # beyond: multiples of 512
ROWS = (1, 8, 32)
# One compiled layer in a loop: 4 to 9 times faster at the first call, as fast afterwards (base on two cores).
LOOP = Execution(scan="on")

Text = str | tuple[str, str]
Pool = Literal["cls", "mean", "pooled", "tokens"]


@dataclass(frozen=True)
class Guess:
    """A piece for a mask: its id, its text, begun with … if it continues a word, and its probability."""

    id: int
    text: str
    probability: float


def load(path: str | os.PathLike, step: int | None = None) -> Model:
    """Open a run directory or a transformers directory.

    Args:
        path: what `bert-jax pretrain` or `bert-jax export` wrote, or transformers' `save_pretrained` of
            BertForPreTraining, BertForMaskedLM or BertModel (safetensors) together with its tokenizer.
        step: a checkpoint of the run; the newest complete one if not given.

    Raises:
        UserError: there is no model (what is there instead is named), or its files do not fit each other.
    """
    return Model.of(open_model(path, step))


def open_model(path: str | os.PathLike, step: int | None = None, drop: Sequence[str] = ()) -> Loaded:
    """As `load`, but the parts themselves: config, parameters, tokenizer and where they came from.

    Args:
        drop: beginnings of names of tensors to leave out, as of a head that nothing here knows.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"load takes a path, this is {_kind(path)}", "path", REMEDY)
    path = Path(path)
    if not (path / "recipe.toml").is_file() or huggingface.is_directory(path):
        return open_foreign(path, drop)
    params, step = load_params(path, step)
    config, params = bert.unpadded(load_config(path), params)
    loaded = Loaded(config, params, Tokenizer.load(path / "tokenizer"), step=step)
    check_tokenizer(loaded, str(path))
    return loaded


class Model:
    """A BERT with its tokenizer; make one with `load`.

    Attributes:
        config: its shape.
        params: float32 arrays in the tree of `bert_jax.model.bert.init`, without the heads that it lacks.
        tokenizer: what turns text into ids.
    """

    def __init__(self, config: BertConfig, params: bert.Params, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.params: bert.Params = jax.tree.map(jnp.asarray, params)

    @classmethod
    def of(cls, loaded: Loaded) -> Model:
        """The model of what a reader returned."""
        return cls(loaded.config, loaded.params, loaded.tokenizer)

    def __repr__(self) -> str:
        c = self.config
        return f"Model({c.layers} layers of {c.width}, {', '.join(self.params)}; {self.tokenizer})"

    @overload
    def encode(
        self, texts: Sequence[Text], layer: int = ..., *, pool: Literal["tokens"], length: int | None = ...
    ) -> list[np.ndarray]: ...

    @overload
    def encode(
        self,
        texts: Sequence[Text],
        layer: int = ...,
        pool: Literal["cls", "mean", "pooled"] = ...,
        length: int | None = ...,
    ) -> np.ndarray: ...

    def encode(
        self, texts: Sequence[Text], layer: int = -1, pool: Pool = "cls", length: int | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """Vectors of texts, in their order.

        Args:
            texts: strings, or pairs of strings for the two segments. [CLS] and [SEP] are added; a text that
                is too long is cut at its end, of a pair the longer one.
            layer: whose states: 0 the embeddings', 1 to L the layers'; negative numbers count from the last.
            pool: "cls", the state of [CLS]; "mean", over all tokens of the row with [CLS] and [SEP];
                "pooled", [CLS] of the last layer through the pooler, as next sentence prediction sees it;
                "tokens", the states of the text's own tokens, as many as `tokenizer.encode_batch` gives.
            length: tokens a row at most, with [CLS] and [SEP]; the position table's size if not given.

        Returns:
            float32[len(texts), D]; for "tokens" a list of float32[tokens, D].

        Raises:
            UserError: no such layer or pooling, a length that the position table does not have, or something
                else than texts.
        """
        layer = self._layer(layer, pool)
        texts = _checked(texts)
        rows = _rows(self.tokenizer, texts, self._length(length))
        found: list[np.ndarray] = [np.empty(0, np.float32)] * len(rows)
        for numbers, batch in _batches(rows, self.tokenizer.special.pad, self.config.positions):
            states = np.asarray(_encode(self.config, self.params, batch, layer, pool))
            for number, state in zip(numbers, states, strict=False):  # the batch may have rows to spare
                found[number] = state[np.flatnonzero(rows[number].own)] if pool == "tokens" else state
        if pool == "tokens":
            return found
        return np.stack(found) if found else np.zeros((0, self.config.width), np.float32)

    def fill_mask(self, text: str, k: int = 5) -> list[tuple[Guess, ...]]:
        """The `k` likeliest pieces for each [MASK] of a text, the likeliest first.

        Only here does "[MASK]" in a text stand for the mask; everywhere else it is ordinary characters.

        Raises:
            UserError: the text is no string, has no [MASK], is longer than the position table, or the model has no
                masked-LM head.
        """
        check_masked(text)
        if "masked_lm" not in self.params:
            raise UserError(
                "this model has no masked-LM head",
                "fill_mask",
                "export with --model pretraining or masked-lm",
            )
        ids = _masked_ids(self.tokenizer, text)
        if len(ids) > self.config.positions:
            raise UserError(
                f"{len(ids)} tokens, where the position table has {self.config.positions}",
                _short(text),
                "shorten the text around the [MASK]",
            )
        row = Row(np.array(ids, np.int32), np.zeros(len(ids), np.int32), np.ones(len(ids), bool))
        _, batch = next(_batches([row], self.tokenizer.special.pad, self.config.positions))
        places = np.flatnonzero(row.ids == self.tokenizer.special.mask)
        positions = np.zeros((1, 1 << (len(places) - 1).bit_length()), np.int32)  # few shapes to compile
        positions[0, : len(places)] = places
        chances = np.asarray(_guess(self.config, self.params, batch, positions))[0, : len(places)]
        chances = chances[:, : self.tokenizer.vocab_size]
        best = np.argsort(-chances, axis=1, kind="stable")[:, : max(k, 0)]
        return [
            tuple(Guess(int(i), _readable(self.tokenizer, int(i)), float(each[i])) for i in top)
            for each, top in zip(chances, best, strict=True)
        ]

    def _layer(self, layer: int, pool: str) -> int:
        layers = self.config.layers
        if not -layers - 1 <= layer <= layers:
            raise UserError(f"there is no layer {layer}", "layer", f"choose from 0 to {layers}, or -1 the last")
        layer %= layers + 1
        if pool not in ("cls", "mean", "pooled", "tokens"):
            raise UserError(f"pool = {pool!r} is unknown", "pool", "choose cls, mean, pooled or tokens")
        if pool == "pooled" and (layer != layers or "pooler" not in self.params):
            why = "the pooler reads the last layer" if layer != layers else "this model has no pooler"
            raise UserError(why, "pool", "choose cls, mean or tokens")
        return layer

    def _length(self, length: int | None) -> int:
        most = self.config.positions
        if length is not None and not 3 <= length <= most:
            raise UserError(f"length = {length} cannot be", "length", f"choose from 3 to {most} positions")
        return most if length is None else length


def check_masked(text: str) -> None:
    """Raises UserError if the text is no string or has no [MASK]."""
    if not isinstance(text, str):
        raise UserError(f"fill_mask takes one string, this is {_kind(text)}", "text", "give it one text at a time")
    if MASK not in text:
        raise UserError("the text has no [MASK]", _short(text), "write [MASK] in place of the word to guess")


# ------------------------------------------------------------------------------------------------ on the
# device


@partial(jax.jit, static_argnames=("config", "layer", "pool"))
def _encode(config: BertConfig, params: bert.Params, batch: bert.Batch, layer: int, pool: str) -> jax.Array:
    """[B, D], or [B, T, D] for "tokens"; layers above `layer` are never computed."""
    depth = max(layer, 1)  # the embeddings come as what one layer begins with
    encoded = bert.encode(config, params, batch, execution=LOOP, all_layers=layer == 0, depth=depth)
    states = encoded.hidden if encoded.layers is None else encoded.layers[0]
    if pool == "tokens":
        return states
    if pool == "mean":
        real = (batch["sequence_ids"] > 0)[:, :, None].astype(states.dtype)
        return (states * real).sum(1) / jnp.maximum(real.sum(1), 1)
    if pool == "pooled":
        return bert.pool(config, params, states, jnp.zeros((states.shape[0], 1), jnp.int32))[:, 0]
    return states[:, 0]


@partial(jax.jit, static_argnames=("config",))
def _guess(config: BertConfig, params: bert.Params, batch: bert.Batch, positions: jax.Array) -> jax.Array:
    """Probabilities float32[B, P, V]."""
    hidden = bert.encode(config, params, batch, execution=LOOP).hidden
    return jax.nn.softmax(bert.predict(config, params, hidden, positions), axis=-1)


# --------------------------------------------------------------------------------------------------- on the
# host


@dataclass(frozen=True)
class Row:
    """One text as the model reads it: ids and segments int32[n]; `own` bool[n] is False at [CLS] and
    [SEP]."""

    ids: np.ndarray
    segments: np.ndarray
    own: np.ndarray


def _checked(texts: Sequence[Text]) -> list[Text]:
    """The texts as a list; raises UserError unless they are strings and pairs of strings."""
    if isinstance(texts, str):
        raise UserError("encode takes a list of texts, this is one string", "texts", "write [text]")
    if not isinstance(texts, Iterable):
        raise UserError(f"encode takes a list of texts, this is {_kind(texts)}", "texts", "write [text]")
    texts = list(texts)
    for number, item in enumerate(texts):
        pair = isinstance(item, tuple | list)
        if not isinstance(item, str) and not (pair and [isinstance(part, str) for part in item] == [True, True]):
            found = f"{len(item)} parts" if pair and len(item) != 2 else f"{_kind(item)}"
            raise UserError(
                f"a text is a string or a pair of strings, this is {found}",
                f"texts[{number}]",
                "leave out what is no text",
            )
    return texts


def _kind(value: object) -> str:
    """The type of a value, for messages."""
    return "None" if value is None else f"of type {type(value).__name__}"


def _rows(tokenizer: Tokenizer, texts: Sequence[Text], length: int) -> list[Row]:
    parts = [text for item in texts for text in ((item,) if isinstance(item, str) else item)]
    encoded = tokenizer.encode_batch(parts)
    pieces = iter(encoded.ids[a:b] for a, b in zip(encoded.rows[:-1], encoded.rows[1:], strict=True))
    rows = []
    for item in texts:
        segments = [next(pieces) for _ in range(1 if isinstance(item, str) else 2)]
        segments = _cut(segments, length - 1 - len(segments))
        cls, sep = tokenizer.special.cls, tokenizer.special.sep
        ids, kinds, own = [np.array([cls])], [np.array([0])], [np.array([False])]
        for kind, segment in enumerate(segments):
            ids += [segment, np.array([sep])]
            kinds += [np.full(len(segment) + 1, kind)]
            own += [np.ones(len(segment), bool), np.array([False])]
        rows.append(
            Row(
                np.concatenate(ids, dtype=np.int32),
                np.concatenate(kinds, dtype=np.int32),
                np.concatenate(own),
            )
        )
    return rows


def _cut(segments: list[np.ndarray], room: int) -> list[np.ndarray]:
    """Shorten the longer segment, token by token from its end, until both fit."""
    if len(segments) == 1:
        return [segments[0][:room]]
    first, second = (len(segment) for segment in segments)
    keep = min(second, max(room - first, room // 2))
    return [segments[0][: room - keep], segments[1][:keep]]


def _batches(rows: list[Row], pad: int, positions: int) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Batches of rows of like length with the numbers of their rows; rows to spare are all padding."""
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number].ids))
    while order:
        length = len(rows[order[0]].ids)
        length = min(next((n for n in LENGTHS if n >= length), -(-length // 512) * 512), positions)
        numbers, order = order[: ROWS[-1]], order[ROWS[-1] :]
        shape = (next(n for n in ROWS if n >= len(numbers)), length)
        batch = {name: np.zeros(shape, np.int32) for name in ("segment_ids", "sequence_ids")}
        batch["input_ids"] = np.full(shape, pad, np.int32)
        batch["position_ids"] = np.tile(np.arange(length, dtype=np.int32), (shape[0], 1))
        for place, number in enumerate(numbers):
            row = rows[number]
            batch["input_ids"][place, : len(row.ids)] = row.ids
            batch["segment_ids"][place, : len(row.ids)] = row.segments
            batch["sequence_ids"][place, : len(row.ids)] = 1
        yield numbers, batch


def _masked_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """[CLS], the text with mask ids for each "[MASK]", [SEP]."""
    special = tokenizer.special
    ids = [special.cls]
    for number, part in enumerate(text.split(MASK)):
        if number:
            ids.append(special.mask)
        pieces = tokenizer.encode_batch([part]).ids.tolist()
        if number and pieces and tokenizer.kind != "wordpiece" and not part[0].isspace():
            pieces = _without_space(tokenizer, pieces)
        ids += pieces
    return [*ids, special.sep]


def _without_space(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """SentencePiece puts a space before every text; where a text follows its mask closely there is none."""
    bare = tokenizer.pieces[ids[0]].removeprefix("\u2581")
    if not bare:
        return ids[1:]
    return [tokenizer.pieces.index(bare), *ids[1:]] if bare in tokenizer.pieces else ids


def _readable(tokenizer: Tokenizer, number: int) -> str:
    """The piece without its kind's sign for words, which stand before words or before what continues them."""
    piece = tokenizer.pieces[number]
    if tokenizer.kind == "wordpiece":
        begins, text = not piece.startswith("##"), piece.removeprefix("##")
    else:
        begins, text = piece.startswith("\u2581"), piece.removeprefix("\u2581") or piece
    return text if begins or not text[:1].isalnum() else "…" + text


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "…")
