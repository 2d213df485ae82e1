"""Another vocabulary for a model: words added, a domain's pieces kept, rows to a round number.

An `Edit` says where each row of the new word table comes from, and brings the new tokenizer; `apply` is the one
function that changes word table, masked-LM bias, config and tokenizer together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bert_jax.config import BertConfig
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import Params
from bert_jax.errors import UserError
from bert_jax.model import bert
from bert_jax.text.edits import extended, trimmed
from bert_jax.text.tokenizer import ROLES, Tokenizer

# Softmax makes this an exact 0 beside any logit of a real piece, float16 can still hold it, and at probability 0 no
# gradient ever moves it.
NEVER = -1e4


@dataclass(frozen=True)
class Edit:
    """A new vocabulary as rows over the old one.

    Attributes:
        rows: for each new row the old ids whose rows it is the mean of, in the word table and in the masked-LM bias
            alike. One id: the row as it stands, bit for bit. No id: no piece stands there; the row is 0 and its bias
            `NEVER`, so that it is never predicted and takes nothing from what is.
        tokenizer: the new one; piece i has row i. There may be more rows than pieces.
        fingerprint: of the tokenizer that the old ids are of.
    """

    rows: tuple[tuple[int, ...], ...]
    tokenizer: Tokenizer
    fingerprint: str


def add(tokenizer: Tokenizer, words: Iterable[str], use_unused: bool = False) -> Edit:
    """Words that become one piece each.

    A word's row is the mean over the pieces into which it was cut so far, [UNK]'s row where it was unknown: what the
    model read in its place until now. Old ids stay.

    Args, Raises: as `bert_jax.text.edits.extended`.
    """
    return between(tokenizer, extended(tokenizer, words, use_unused))


def trim(tokenizer: Tokenizer, texts: Iterable[str]) -> Edit:
    """The special tokens and the pieces that these texts need; all that is computed from these texts stays the same.

    Args, Raises: as `bert_jax.text.edits.trimmed`.
    """
    return between(tokenizer, trimmed(tokenizer, texts))


def between(old: Tokenizer, new: Tokenizer) -> Edit:
    """From one tokenizer to another, such as `bert-data extend` writes.

    Special tokens go by their role and pieces by their name. A piece that the old one does not have is the mean over
    the pieces into which the old one cuts it. A table with more rows than pieces loses the rows beyond them.

    Raises:
        UserError: they are of different kinds, whose pieces do not compare.
    """
    if old.kind != new.kind:
        raise UserError(
            f"a {old.kind} vocabulary cannot become a {new.kind} vocabulary",
            remedy="give a tokenizer made from the model's own",
        )
    number = {piece: at for at, piece in enumerate(old.pieces)}
    rows = [(number[piece],) if piece in number else tuple(old.spell(piece)) for piece in new.pieces]
    for role in ROLES:
        rows[getattr(new.special, role)] = (getattr(old.special, role),)
    return Edit(tuple(rows), new, old.fingerprint)


def resize(tokenizer: Tokenizer, config: BertConfig, size: int | None = None, multiple: int = 1) -> Edit:
    """As many rows as asked for: at least `size` (the tokenizer's pieces if not given), up to a multiple.

    Rows beyond the tokenizer's pieces are never predicted, whatever they held before: see `Edit`.

    Raises:
        UserError: fewer rows than pieces, or than the table of the model needs for them.
    """
    pieces = tokenizer.vocab_size
    size = pieces if size is None else size
    if size < pieces:
        raise UserError(
            f"{size:,} rows are too few for the tokenizer's {pieces:,} pieces",
            remedy="give as many at least, or trim the vocabulary to texts",
        )
    if multiple < 1:
        raise UserError(f"no number of rows is a multiple of {multiple}", remedy="give 1 or more, such as 128")
    if config.vocab_size < pieces:
        raise UserError(
            f"the tokenizer has {pieces:,} pieces, the word table {config.vocab_size:,} rows",
            remedy="give the model's own tokenizer",
        )
    kept: list[tuple[int, ...]] = [(number,) for number in range(pieces)]
    return Edit(tuple(kept + [()] * (-(-size // multiple) * multiple - pieces)), tokenizer, tokenizer.fingerprint)


def apply(edit: Edit, loaded: Loaded) -> Loaded:
    """The model with the new vocabulary: a new config, tokenizer, word table and masked-LM bias; all other parameters
    are the same arrays as before.

    Raises:
        UserError: the edit was made for another tokenizer, or the model has fewer rows than that has pieces.
    """
    if edit.fingerprint != loaded.tokenizer.fingerprint:
        raise UserError(
            "the edit was made for another tokenizer than the model's",
            remedy="make it with the tokenizer of this model",
        )
    config = loaded.config
    if max(number for row in edit.rows for number in row) >= config.vocab_size:
        raise UserError(
            f"the tokenizer has {loaded.tokenizer.vocab_size:,} pieces, the word table {config.vocab_size:,} rows",
            remedy="give the model's own tokenizer",
        )
    params = _over(loaded.params, bert.axes(config), edit.rows)
    return replace(loaded, config=replace(config, vocab_size=len(edit.rows)), params=params, tokenizer=edit.tokenizer)


def _over(params: Params, axes: Params, rows: Sequence[tuple[int, ...]]) -> Params:
    """The tree with new rows wherever the model names an axis "vocab"."""
    new: Params = {}
    for name, leaf in params.items():
        if isinstance(leaf, Mapping):
            new[name] = _over(dict(leaf), axes.get(name, {}), rows)
        else:
            named = tuple(axes.get(name) or ())
            new[name] = _rows(leaf, named.index("vocab"), rows) if "vocab" in named else leaf
    return new


def _rows(leaf: Any, axis: int, rows: Sequence[tuple[int, ...]]) -> np.ndarray:
    """[…, V, …] → […, V', …] in the leaf's dtype; means are taken in float64."""
    old = np.moveaxis(np.asarray(leaf), axis, 0)
    new = old[[row[0] if row else 0 for row in rows]]
    for at, row in enumerate(rows):
        if len(row) > 1:
            new[at] = old[list(row)].mean(0, np.float64)
        elif not row:
            new[at] = 0 if old.ndim > 1 else NEVER
    return np.ascontiguousarray(np.moveaxis(new, 0, axis))
