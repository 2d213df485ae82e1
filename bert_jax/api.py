"""`bert_jax.load` and the `Model` that it returns: a BERT that one can ask."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.config import BertConfig, Execution
from bert_jax.convert import huggingface, native
from bert_jax.convert.loaded import Loaded, Pooling
from bert_jax.convert.opening import REMEDY, check_tokenizer, open_foreign
from bert_jax.errors import UserError
from bert_jax.model import bert
from bert_jax.rows import (
    MASK,
    Batch,
    Row,
    Text,
    batches,
    checked,
    kind,
    masked_ids,
    one_masked_each,
    readable,
    rows_of,
)
from bert_jax.store.checkpoint import load_params
from bert_jax.store.rundir import load_config
from bert_jax.text.tokenizer import Tokenizer

# One compiled layer in a loop: 3 to 9 times faster at the first call, as fast afterwards (base on two cores).
LOOP = Execution(scan="on")
# Of a batch. A CPU is as fast with few; what stays empty in the last batch costs as much as text.
CPU_TOKENS, DEVICE_TOKENS = 1024, 16384
TEXTS_AT_ONCE = 64  # whose masked copies `score` holds

Pool = Literal["cls", "mean", "max", "pooled", "tokens"]


@dataclass(frozen=True)
class Guess:
    """A piece for a mask: its id, its text, begun with … if it continues a word, and its probability."""

    id: int
    text: str
    probability: float


def load(path: str | os.PathLike, step: int | None = None) -> Model:
    """Open a run directory, or a model directory of this or of another library.

    Args:
        path: what `bert-jax pretrain`, `import` or `export` wrote, or whatever `bert-jax import` reads, as
            transformers' `save_pretrained` of a BERT and its relatives together with its tokenizer, or a
            sentence-transformers directory.
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
        raise UserError(f"load takes a path, this is {kind(path)}", "path", REMEDY)
    path = Path(path)
    if not (path / "recipe.toml").is_file() or huggingface.is_directory(path) or native.is_directory(path):
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
        pooling: how it makes one vector of a text, where its directory says so.
    """

    def __init__(
        self, config: BertConfig, params: bert.Params, tokenizer: Tokenizer, pooling: Pooling | None = None
    ) -> None:
        self.config, self.tokenizer, self.pooling = config, tokenizer, pooling
        self.params: bert.Params = jax.tree.map(jnp.asarray, params)

    @classmethod
    def of(cls, loaded: Loaded) -> Model:
        """The model of what a reader returned."""
        return cls(loaded.config, loaded.params, loaded.tokenizer, loaded.pooling)

    def __repr__(self) -> str:
        c = self.config
        return f"Model({c.layers} layers of {c.width}, {', '.join(self.params)}; {self.tokenizer})"

    # ---------------------------------------------------------------------------------------------- vectors

    @overload
    def encode(
        self,
        texts: Iterable[Text],
        layer: int = ...,
        *,
        pool: Literal["tokens"],
        length: int | None = ...,
        normalize: bool | None = ...,
        progress: bool = ...,
    ) -> list[np.ndarray]: ...

    @overload
    def encode(
        self,
        texts: Iterable[Text],
        layer: int = ...,
        pool: Literal["cls", "mean", "max", "pooled"] | None = ...,
        length: int | None = ...,
        normalize: bool | None = ...,
        progress: bool = ...,
    ) -> np.ndarray: ...

    def encode(
        self,
        texts: Iterable[Text],
        layer: int = -1,
        pool: Pool | None = None,
        length: int | None = None,
        normalize: bool | None = None,
        progress: bool = False,
    ) -> np.ndarray | list[np.ndarray]:
        """Vectors of texts, in their order.

        Args:
            texts: strings, or pairs of strings for the two segments. [CLS] and [SEP] are added; a text that is too
                long is cut at its end, of a pair the longer one.
            layer: whose states: 0 the embeddings', 1 to L the layers'; negative numbers count from the last.
            pool: "cls", the state of [CLS]; "mean" or "max", over all tokens of the row with [CLS] and [SEP];
                "pooled", [CLS] of the last layer through the pooler, as next sentence prediction sees it; "tokens",
                the states of the text's own tokens, as many as `tokenizer.encode_batch` gives. If not given, all that
                a sentence-transformers directory says, its dense layers included; elsewhere "cls".
            length: tokens a row at most, with [CLS] and [SEP]; if not given, what a sentence-transformers directory
                says, elsewhere the position table's size.
            normalize: scale each vector to length 1; if not given, where a sentence-transformers directory says so and
                `pool` is not given.
            progress: show how many texts are done, on standard error.

        Returns:
            float32[len(texts), D], D the width of the model or of the last dense layer; for "tokens" a list of
            float32[tokens, D].

        Raises:
            UserError: no such layer or pooling, a length that the position table does not have, or something else than
                texts.
        """
        own = self.pooling if pool is None else None
        mode: Pool = pool or (own.mode if own else "cls")
        layer = self._layer(layer, mode)
        if own and own.dense and layer != self.config.layers:
            raise UserError("the dense layers read the last layer", "layer", "choose a pool with it")
        rows = rows_of(self.tokenizer, checked(texts, "encode"), self._length(length))
        found: list[np.ndarray] = [np.empty(0, np.float32)] * len(rows)
        for batch in self._batches(rows, progress):
            states = np.asarray(_encode(self.config, self.params, batch.arrays, layer, mode))
            for number, row, slot in batch.places:
                if mode == "tokens":
                    start = batch.arrays["starts"][row, slot]
                    found[number] = states[row, start + np.flatnonzero(rows[number].own)]
                else:
                    found[number] = states[row, slot]
        normalize = bool(own and own.normalize) if normalize is None else normalize
        if mode == "tokens":
            return [_normalized(each) for each in found] if normalize else found
        vectors = np.stack(found) if found else np.zeros((0, self.config.width), np.float32)
        for dense in own.dense if own else ():
            vectors = dense(vectors)
        return _normalized(vectors) if normalize else vectors

    def similarity(
        self, a: Iterable[Text], b: Iterable[Text] | None = None, pool: Literal["cls", "mean", "max"] | None = None
    ) -> np.ndarray:
        """Cosines between the vectors that `encode` gives: float32[len(a), len(b)].

        Args:
            a, b: texts; `a` among themselves if `b` is not given.
            pool: as in `encode`.
        """
        first = self.encode(a, pool=pool, normalize=True)
        return first @ (first if b is None else self.encode(b, pool=pool, normalize=True)).T

    # ------------------------------------------------------------------------------------------------ heads

    def fill_mask(self, text: str, k: int = 5) -> list[tuple[Guess, ...]]:
        """The `k` likeliest pieces for each [MASK] of a text, the likeliest first.

        Only here does "[MASK]" in a text stand for the mask; everywhere else it is ordinary characters.

        Raises:
            UserError: the text is no string, has no [MASK], is longer than the position table, or the model has no
                masked-LM head.
        """
        check_masked(text)
        if not isinstance(k, int) or k < 1:
            raise UserError(f"k = {k!r} guesses cannot be given", "k", "ask for 1 or more")
        self._need("masked_lm", "masked-LM", "fill_mask")
        ids = masked_ids(self.tokenizer, text)
        if len(ids) > self.config.positions:
            raise UserError(
                f"{len(ids)} tokens, where the position table has {self.config.positions}",
                _short(text),
                "shorten the text around the [MASK]",
            )
        row = Row(np.array(ids, np.int32), np.zeros(len(ids), np.int32), np.ones(len(ids), bool))
        (batch,) = self._batches([row])
        places = np.flatnonzero(row.ids == self.tokenizer.special.mask)
        positions = np.zeros((1, 1 << (len(places) - 1).bit_length()), np.int32)  # few shapes to compile
        positions[0, : len(places)] = places
        chances = np.asarray(_guess(self.config, self.params, batch.arrays, positions))[0, : len(places)]
        chances = chances[:, : self.tokenizer.vocab_size]
        best = np.argsort(-chances, axis=1, kind="stable")[:, :k]
        return [
            tuple(Guess(int(i), readable(self.tokenizer, int(i)), float(each[i])) for i in top)
            for each, top in zip(chances, best, strict=True)
        ]

    @overload
    def score(
        self, texts: Iterable[Text], *, per: Literal["token"], length: int | None = ..., progress: bool = ...
    ) -> list[np.ndarray]: ...

    @overload
    def score(
        self, texts: Iterable[Text], per: Literal["text"] = ..., length: int | None = ..., progress: bool = ...
    ) -> np.ndarray: ...

    def score(
        self,
        texts: Iterable[Text],
        per: Literal["text", "token"] = "text",
        length: int | None = None,
        progress: bool = False,
    ) -> np.ndarray | list[np.ndarray]:
        """Pseudo-log-likelihoods: how natural a text is to the model, the nearer to 0 the more.

        Each of a text's own tokens is masked in turn, all others seen, and the natural logarithms of what the masked-LM
        head gives the right ones are added (Salazar et al. 2020, https://arxiv.org/abs/1910.14659). A text of n tokens
        costs n rows. Sums compare texts of equal length; divide by the number of tokens to compare others, and note
        that the first pieces of a rare word are easily guessed from its last.

        Args:
            texts: as in `encode`; a text that is too long is cut.
            per: "text" for the sums, 0 where a text has no token; "token" for what they are the sums of.
            length, progress: as in `encode`.

        Returns:
            float32[len(texts)]; for "token" a list of float32[tokens].

        Raises:
            UserError: the model has no masked-LM head, or as in `encode`.
        """
        if per not in ("text", "token"):
            raise UserError(f"per = {per!r} is unknown", "per", "choose text or token")
        self._need("masked_lm", "masked-LM", "score")
        rows = rows_of(self.tokenizer, checked(texts, "score"), self._length(length))
        found: list[np.ndarray] = []
        with _told(len(rows), progress) as done:
            for first in range(0, len(rows), TEXTS_AT_ONCE):
                some = rows[first : first + TEXTS_AT_ONCE]
                found += self._score(some)
                done(len(some))
        return found if per == "token" else np.array([each.sum() for each in found], np.float32)

    def _score(self, rows: list[Row]) -> list[np.ndarray]:
        """Log-probabilities of each row's own tokens, float32[tokens]."""
        masked = [one_masked_each(row, self.tokenizer.special.mask) for row in rows]
        copies = [copy for each, _, _ in masked for copy in each]
        places = np.concatenate([place for _, place, _ in masked])
        labels = np.concatenate([label for _, _, label in masked])
        found = np.zeros(len(copies), np.float32)
        for batch in self._batches(copies, shortest=8):  # a slot costs a product with the vocabulary
            positions, right = batch.arrays["starts"].copy(), np.zeros_like(batch.arrays["starts"])
            for number, row, slot in batch.places:
                positions[row, slot] += places[number]
                right[row, slot] = labels[number]
            logs = np.asarray(_log_likelihoods(self.config, self.params, batch.arrays, positions, right))
            for number, row, slot in batch.places:
                found[number] = logs[row, slot]
        return np.split(found, np.cumsum([len(copies) for copies, _, _ in masked])[:-1])

    def next_sentence(self, pairs: Iterable[tuple[str, str]], progress: bool = False) -> np.ndarray:
        """Probabilities of how the second text of each pair stands to the first.

        Returns:
            float32[len(pairs), R] of the model's R relations; 0 is "it follows", 1 in BERT "it is from elsewhere", in
            ALBERT "they are swapped".

        Raises:
            UserError: the model has no next-sentence head, or something is no pair of strings.
        """
        self._need("next_sentence", "next-sentence", "next_sentence")
        texts = checked(pairs, "next_sentence")
        for number, item in enumerate(texts):
            if isinstance(item, str):
                raise UserError("this is one text, not a pair", f"pairs[{number}]", "write (first, second)")
        rows = rows_of(self.tokenizer, texts, self.config.positions)
        found = np.zeros((len(rows), self.config.relations), np.float32)
        for batch in self._batches(rows, progress):
            chances = np.asarray(_encode(self.config, self.params, batch.arrays, self.config.layers, "related"))
            for number, row, slot in batch.places:
                found[number] = chances[row, slot]
        return found

    # ---------------------------------------------------------------------------------------------- arguments

    def _batches(self, rows: Sequence[Row], progress: bool = False, shortest: int = 4) -> Iterator[Batch]:
        tokens = CPU_TOKENS if jax.default_backend() == "cpu" else DEVICE_TOKENS
        with _told(len(rows), progress) as done:
            for batch in batches(rows, self.tokenizer.special.pad, self.config.positions, tokens, shortest):
                yield batch
                done(len(batch.places))

    def _need(self, part: str, head: str, where: str) -> None:
        if part not in self.params:
            what = "export with --model pretraining" + (" or masked-lm" if part == "masked_lm" else "")
            raise UserError(f"this model has no {head} head", where, what)

    def _layer(self, layer: int, pool: str) -> int:
        layers = self.config.layers
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise UserError(
                f"layer = {layer!r} is no whole number", "layer", f"choose from 0 to {layers}, or -1 the last"
            )
        if not -layers - 1 <= layer <= layers:
            raise UserError(f"there is no layer {layer}", "layer", f"choose from 0 to {layers}, or -1 the last")
        layer %= layers + 1
        if pool not in ("cls", "mean", "max", "pooled", "tokens"):
            raise UserError(f"pool = {pool!r} is unknown", "pool", "choose cls, mean, max, pooled or tokens")
        if pool == "pooled" and (layer != layers or "pooler" not in self.params):
            why = "the pooler reads the last layer" if layer != layers else "this model has no pooler"
            raise UserError(why, "pool", "choose cls, mean, max or tokens")
        return layer

    def _length(self, length: int | None) -> int:
        most = self.config.positions
        if length is not None and not 3 <= length <= most:
            raise UserError(f"length = {length} cannot be", "length", f"choose from 3 to {most} positions")
        if length is None and self.pooling and self.pooling.length:
            return min(self.pooling.length, most)
        return most if length is None else length


def check_masked(text: str) -> None:
    """Raises UserError if the text is no string or has no [MASK]."""
    if not isinstance(text, str):
        raise UserError(f"fill_mask takes one string, this is {kind(text)}", "text", "give it one text at a time")
    if MASK not in text:
        raise UserError("the text has no [MASK]", _short(text), "write [MASK] in place of the word to guess")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "…")


def _normalized(vectors: np.ndarray) -> np.ndarray:
    """float32[n, D] of length 1; zeros stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


@contextmanager
def _told(texts: int, progress: bool):
    """A function that takes how many texts more are done."""
    if not progress:
        yield lambda number: None
        return
    from tqdm import tqdm

    with tqdm(total=texts, unit="text") as bar:
        yield bar.update


# ------------------------------------------------------------------------------------------ on the device


@partial(jax.jit, static_argnames=("config", "layer", "pool"))
def _encode(config: BertConfig, params: bert.Params, batch: bert.Batch, layer: int, pool: str) -> jax.Array:
    """[B, S, D] of the texts in the slots, or [B, T, D] for "tokens"; layers above `layer` are never computed."""
    depth = max(layer, 1)  # the embeddings come as what one layer begins with
    encoded = bert.encode(config, params, batch, execution=LOOP, all_layers=layer == 0, depth=depth)
    states = encoded.hidden if encoded.layers is None else encoded.layers[0]
    if pool == "tokens":
        return states
    if pool in ("mean", "max"):
        slots = jnp.arange(1, batch["starts"].shape[1] + 1)[None, :, None]
        inside = batch["sequence_ids"][:, None, :] == slots  # [B, S, T]
        if pool == "max":
            return jnp.where(inside[..., None], states[:, None], -jnp.inf).max(2)
        sums = jnp.einsum("bst,btd->bsd", inside.astype(states.dtype), states, precision="highest")
        return sums / jnp.maximum(inside.sum(2), 1)[..., None]
    if pool == "cls":
        return jnp.take_along_axis(states, batch["starts"][:, :, None], axis=1)
    pooled = bert.pool(config, params, states, batch["starts"])
    return jax.nn.softmax(bert.relate(config, params, pooled)) if pool == "related" else pooled


@partial(jax.jit, static_argnames=("config",))
def _guess(config: BertConfig, params: bert.Params, batch: bert.Batch, positions: jax.Array) -> jax.Array:
    """Probabilities float32[B, P, V]."""
    hidden = bert.encode(config, params, batch, execution=LOOP).hidden
    return jax.nn.softmax(bert.predict(config, params, hidden, positions), axis=-1)


@partial(jax.jit, static_argnames=("config",))
def _log_likelihoods(
    config: BertConfig, params: bert.Params, batch: bert.Batch, positions: jax.Array, labels: jax.Array
) -> jax.Array:
    """Logarithms of the probabilities of `labels` at `positions`, both int32[B, P]: float32[B, P]."""
    hidden = bert.encode(config, params, batch, execution=LOOP).hidden
    logs = jax.nn.log_softmax(bert.predict(config, params, hidden, positions), axis=-1)
    return jnp.take_along_axis(logs, labels[:, :, None], axis=-1)[:, :, 0]
