"""Reads a SentencePiece model file (spiece.model) without sentencepiece or protobuf, and rewrites its pieces.

Only what segmentation needs: pieces with scores and types, the model's type, and the normaliser. Field
numbers are those of sentencepiece_model.proto (github.com/google/sentencepiece).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from bert_jax.errors import UserError
from bert_jax.text import wire

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Model:
    """kind is "unigram" or "bpe"; scores are float32 values; types as in the constants of this file."""

    kind: str
    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def read(data: bytes, where: str) -> Model:
    """Parses the bytes of a model file.

    Raises:
        UserError: not a SentencePiece model, or of a type that BERT does not use (word, char).
    """
    pieces, scores, types = [], [], []
    model_type, charsmap, prefix, squeeze = 1, b"", True, True
    try:
        for number, value in wire.fields(data):
            if number == 1:
                piece = {1: b"", 2: 0, 3: NORMAL} | wire.last_of(value)
                pieces.append(piece[1].decode())
                scores.append(struct.unpack("<f", struct.pack("<I", piece[2]))[0])
                types.append(piece[3])
            elif number == 2:
                model_type = wire.last_of(value).get(3, 1)
            elif number == 3:
                normaliser = wire.last_of(value)
                charsmap = normaliser.get(2, b"")
                prefix, squeeze = bool(normaliser.get(3, 1)), bool(normaliser.get(4, 1))
    except (ValueError, struct.error, AttributeError, TypeError):
        raise UserError("this is not a SentencePiece model", where, "train one with bert-data tokenizer") from None
    kind = {1: "unigram", 2: "bpe"}.get(model_type)
    if kind is None or not pieces:
        raise UserError("the SentencePiece model is neither unigram nor bpe", where, "train one of these kinds")
    return Model(kind, tuple(pieces), tuple(scores), tuple(types), charsmap, prefix, squeeze)


def rewritten(data: bytes, kept: Sequence[int], added: Sequence[tuple[str, float]] = ()) -> bytes:
    """The same model with other pieces.

    Args:
        data: the bytes of a model file that `read` takes.
        kept: numbers of the pieces that stay, in the order in which they shall stand.
        added: further pieces with their scores, behind those.
    """
    parts = list(wire.fields(data))
    pieces = [value for number, value in parts if number == 1]
    new = [pieces[at] for at in kept]
    for piece, score in added:
        (bits,) = struct.unpack("<I", struct.pack("<f", score))
        new.append(wire.write_field(1, piece.encode()) + wire.write_fixed32(2, bits))
    out = [wire.write_field(1, piece) for piece in new]
    for number, value in parts:
        if number == 2 and isinstance(value, bytes):  # training, which tells a size too: of equal fields the last holds
            value += wire.write_field(4, len(new))
        if number != 1:
            out.append(wire.write_field(number, value))
    return b"".join(out)
