"""A world one can read: a vocabulary of a few dozen words, sentences made of it, records of known content."""

from __future__ import annotations

import numpy as np

from bert_jax.text.features import Records
from bert_jax.text.tokenizer import SPECIAL_NAMES, Tokenizer, from_vocab

WORDS = (
    "the a cat dog bird fish sat ran flew swam on in over under mat house tree river big small red blue and "
    "then it was is not very old new man woman child saw heard liked . , ! ? un ##able ##s ##ing ##ed walk "
    "talk play"
).split()
PIECES = (*SPECIAL_NAMES, *WORDS)

NASTIES = (
    "a\x85b \u2028 c\u2029d \x85",
    "\x00\x01 a\x0bb\x0cc\x1cd \x7f \ufeff \u200b \u00ad",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "\u05e9\u05dc\u05d5\u05dd \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u202eabc\u202c",
    "\u0301 e\u0301 a\u0300\u0301\u0302 \u0301",
    "a" * 10_000,
    "ab " * 3 + "=" * 300 + "*" * 200,
    "[MASK] a [SEP]b[CLS] [PAD][UNK] [mask] [[MASK]] \uff3bMASK\uff3d x[MASK]y",
    "\u65e5\u672c\u8a9e \u4e2d\u6587\u3002 \ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\u2581 \u2581cat \u2581\u2581 a\u2581b ##ing ##",
    "",
    "   ",
    "\u0130stanbul stra\u00dfe \ufb01ne \u2260 \u00bd \u2126",
)


def tokenizer() -> Tokenizer:
    """Lower-casing WordPiece over PIECES."""
    return from_vocab(PIECES, lowercase=True)


def document(rng: np.random.Generator, sentences: int) -> str:
    """Sentences of three to nine words, a few a paragraph."""
    words = np.array([word for word in WORDS if word.isalpha() and word != "un"] + ["walking", "unable"])
    made = [" ".join(rng.choice(words, rng.integers(3, 10))).capitalize() + "." for _ in range(sentences)]
    return "\n".join(" ".join(made[at : at + 4]) for at in range(0, len(made), 4))


def text(documents: int, seed: int = 0, sentences: tuple[int, int] = (3, 12)) -> str:
    """A plain text corpus: documents apart by a blank line."""
    rng = np.random.default_rng(seed)
    return "\n\n".join(document(rng, int(rng.integers(*sentences))) for _ in range(documents)) + "\n"


def records(n: int, length: int = 32, predictions: int = 4, vocab_size: int = 30_000, seed: int = 0) -> Records:
    """Random records with all features, of all lengths."""
    rng = np.random.default_rng(seed)
    inside = np.arange(length) < rng.integers(5, length + 1, n)[:, None]
    used = np.arange(predictions) < rng.integers(1, predictions + 1, n)[:, None]
    positions = np.sort(rng.permuted(np.tile(np.arange(length), (n, 1)), axis=1)[:, :predictions], axis=1)
    return {
        "input_ids": (rng.integers(0, vocab_size, (n, length)) * inside).astype(np.int32),
        "input_mask": inside.astype(np.int32),
        "segment_ids": (rng.integers(0, 2, (n, length)) * inside).astype(np.int32),
        "masked_lm_positions": (positions * used).astype(np.int32),
        "masked_lm_ids": (rng.integers(0, vocab_size, (n, predictions)) * used).astype(np.int32),
        "masked_lm_weights": used.astype(np.float32),
        "next_sentence_labels": rng.integers(0, 2, n).astype(np.int32),
        "word_starts": rng.random((n, length)) < 0.5,
        "documents": rng.integers(-1, 10**10, (n, 2)),
        "relation": rng.integers(0, 3, n).astype(np.int32),
    }
