"""Reads a SentencePiece model file (spiece.model) without sentencepiece or protobuf, and rewrites its pieces.

Only what segmentation needs: pieces with scores and types, the model's type, and the normaliser. Field
numbers are those of sentencepiece_model.proto (github.com/google/sentencepiece).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bert_jax.errors import UserError

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
        for number, value in _fields(data):
            if number == 1:
                piece = {1: b"", 2: 0.0, 3: NORMAL} | dict(_fields(value))
                pieces.append(piece[1].decode())
                scores.append(piece[2])
                types.append(piece[3])
            elif number == 2:
                model_type = dict(_fields(value)).get(3, 1)
            elif number == 3:
                normaliser = dict(_fields(value))
                charsmap = normaliser.get(2, b"")
                prefix, squeeze = bool(normaliser.get(3, 1)), bool(normaliser.get(4, 1))
    except (ValueError, IndexError, struct.error, AttributeError, TypeError):
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
    fields = [(number, value) for number, value in _fields(data)]
    pieces = [value for number, value in fields if number == 1]
    new = [pieces[at] for at in kept]
    for piece, score in added:
        text = piece.encode()
        new.append(b"\x0a" + _as_varint(len(text)) + text + b"\x15" + struct.pack("<f", score))
    settings = []
    for number, value in fields:
        if number == 2:  # of training, where a size stands too
            value = _with_size(value, len(new))
        if number != 1:
            settings.append(_bytes_field(number, value))
    return b"".join([*(_bytes_field(1, piece) for piece in new), *settings])


def _with_size(trainer: bytes, size: int) -> bytes:
    """A trainer_spec whose vocab_size (field 4) is another: the last of a field counts."""
    return trainer + b"\x20" + _as_varint(size)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _as_varint(number << 3 | 2) + _as_varint(len(value)) + value


def _as_varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int | float]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 5:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        elif wire == 1:
            value, at = data[at : at + 8], at + 8
        elif wire == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
            if len(value) != size:
                raise ValueError("cut")
        else:
            raise ValueError("wire type")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("varint")
