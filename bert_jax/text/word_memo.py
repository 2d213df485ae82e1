"""Ids of SentencePiece's kinds with a memo over the words between blanks: the same as the engine's, and faster.

Exact because of what the engine does: blanks become word beginnings, no piece reaches over one, runs of them count as
one and those at the ends for nothing. Two things could still reach over a blank. Normalisation goes by grapheme, so a
mark after a blank belongs to it; and a word may hold blanks that are not U+0020. So a word is remembered only if its
first and last characters cannot join a blank, and if the engine's own normaliser makes the same of it alone and between
others. A text with any other word, with a newline or with a literal U+2581 goes to the engine whole.
"""

from __future__ import annotations

import sys
import threading
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

_END = "\n"  # of a text, as a word
# Letters and signs that grapheme rules join to what stands before them, though their category is not that of a mark.
_JOINING = frozenset("\u0e33\u0eb3\uff9e\uff9f\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff")


class WordMemo:
    """Ids of texts by their words; threads may share one, and a copy by pickle begins empty.

    Args:
        engine: a `tokenizers.Tokenizer` that strips blanks, takes several for one, puts U+2581 before every word
            (the first too) and cuts there.
        limit: words remembered above which all are forgotten, checked between calls.
    """

    def __init__(self, engine: Engine, limit: int = 250_000) -> None:
        self._settings = (engine, limit)
        self._engine, self._limit = engine, limit
        self._lock = threading.Lock()
        self.forget()

    def __reduce__(self):
        return WordMemo, self._settings

    def forget(self) -> None:
        """Empties the memo: all its state stands here."""
        self._numbers = {"": 0, _END: 1}  # of words
        # By number: where the ids stand in the pool, how many they are, and whether the word stands for itself.
        self._places, self._counts, self._safe = np.zeros(2, np.int64), np.zeros(2, np.int64), np.ones(2, bool)
        self._pool = np.zeros(0, np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of arrays and words that stay between calls."""
        arrays = (self._places, self._counts, self._safe, self._pool)
        words = sum(map(sys.getsizeof, self._numbers)) + sys.getsizeof(self._numbers)
        return sum(array.nbytes for array in arrays) + words

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of each text, without special tokens around it.

        Args:
            texts: any strings without lone surrogates.

        Returns:
            (ids int32[n], rows int64[b+1]): text i is `ids[rows[i]:rows[i+1]]`.

        Raises:
            UnicodeEncodeError, TypeError: a lone surrogate.
        """
        whole = {n for n, text in enumerate(texts) if _END in text or "\u2581" in text}
        chosen = ["" if n in whole else text for n, text in enumerate(texts)] if whole else texts
        words = f" {_END} ".join([*chosen, ""]).split(" ")
        with self._lock:
            if len(self._numbers) > self._limit:
                self.forget()
            try:
                self._learn([word for word in set(words) if word not in self._numbers])
            except BaseException:
                self.forget()  # an interrupt may have left half of it
                raise
            numbers = np.fromiter(map(self._numbers.__getitem__, words), np.int64, len(words))
            places, counts, safe, pool = self._places, self._counts, self._safe, self._pool
        counts = counts.take(numbers)
        ends = np.cumsum(counts)
        stops = np.flatnonzero(numbers == 1)
        rows = np.concatenate([np.zeros(1, np.int64), ends[stops]])
        ids = pool.take(np.repeat(places.take(numbers) - (ends - counts), counts) + np.arange(ends[-1]))
        unsafe = np.flatnonzero(~safe.take(numbers))
        whole |= set(np.searchsorted(stops, unsafe).tolist())
        return self._replaced(ids, rows, texts, sorted(whole)) if whole else (ids, rows)

    def _learn(self, words: list[str]) -> None:
        if not words:
            return
        safe = [_apart(word) and self._alike(word) for word in words]
        found = [encoding.ids for encoding in self._engine.encode_batch_fast(words, add_special_tokens=False)]
        counts = np.array([len(ids) for ids in found])
        flat = np.array([number for ids in found for number in ids], np.int32)
        places = self._pool.size + np.cumsum(counts) - counts
        first = len(self._counts)
        self._pool = np.concatenate([self._pool, flat])
        self._places, self._counts = np.concatenate([self._places, places]), np.concatenate([self._counts, counts])
        self._safe = np.concatenate([self._safe, safe])
        self._numbers.update(zip(words, range(first, first + len(words)), strict=True))

    def _alike(self, word: str) -> bool:
        """Whether normalisation makes the same of a word alone and between others."""
        normalise = self._engine.normalizer.normalize_str
        form = normalise(word)
        return normalise(f"a {word} a") == (f"a {form} a" if form else "a a") and "\u2581" not in form

    def _replaced(
        self, ids: np.ndarray, rows: np.ndarray, texts: Sequence[str], whole: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """With the texts numbered in `whole` as the engine has them."""
        answers = self._engine.encode_batch_fast([texts[n] for n in whole], add_special_tokens=False)
        parts, at, sizes = [], 0, np.diff(rows)
        for n, answer in zip(whole, answers, strict=True):
            parts += [ids[at : rows[n]], np.array(answer.ids, np.int32)]
            at, sizes[n] = rows[n + 1], len(answer.ids)
        parts.append(ids[at:])
        return np.concatenate(parts), np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def _apart(word: str) -> bool:
    """Whether no grapheme can hold a character of the word and a blank beside it."""
    first, last = word[0], word[-1]
    if any(unicodedata.category(letter)[0] not in "LNPS" for letter in (first, last)) or first in _JOINING:
        return False
    # The letters that join what follows are of a few scripts.
    return last != "\u0d4e" and not 0x11000 <= ord(last) < 0x12000
