"""What is done to documents before they become shards, and which of them are left out: each step optional, counted.

`Cleaner` looks at one document and can run anywhere. Copies need all documents: workers make one hash or one row of
band keys a document, and `exact_copies` and `near_copies` decide over all of them in the order of the inputs, so that
no number of workers changes what stays.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from bert_jax.errors import UserError
from bert_jax.text.corrupt import mix
from data_prep.formats import library, tidy
from data_prep.hooks import brief, function_named

FORMS = ("", "NFC", "NFKC")

# Near copies: 14 bands of 8 slots over the 5-grams of words, the setting of FineWeb (Penedo et al. 2024). A pair of
# Jaccard similarity s shares a band with probability 1 - (1 - s^8)^14: 0.05 at 0.5, 0.77 at 0.75, 0.92 at 0.8,
# 0.9997 at 0.9.
_BANDS, _SLOTS, _SHINGLE, _SEED = 14, 8, 5, 1

_BLANKS = re.compile("[\t\x0b\x0c\r\x1c-\x1f\x85]")
_CONTROLS = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")


@dataclass(frozen=True)
class Cleaning:
    """The steps, all off unless asked for. Part of the settings that decide what shards hold.

    Attributes:
        normalise: Unicode form, "NFC" or "NFKC"; "" leaves the text as it is.
        controls: control characters, byte order marks and noncharacters go, tabs and their like become blanks.
        minimum: characters a document needs to have after that; 0 for none.
        maximum: characters above which a document is left out; 0 for none.
        filter: "module:function", a function from str to bool that tells whether to keep a document, as one for
            languages.
        exact: leave out exact copies.
        near: leave out near copies.
        grams: documents that share that many words in a row with an evaluation text are left out, if there are any
            evaluation texts. 13 is GPT-3's (Brown et al. 2020, appendix C).
    """

    normalise: str = ""
    controls: bool = False
    minimum: int = 0
    maximum: int = 0
    filter: str = ""
    exact: bool = False
    near: bool = False
    grams: int = 13

    def __post_init__(self) -> None:
        if self.normalise not in FORMS:
            raise UserError(f"there is no Unicode form {self.normalise}", remedy="take NFC or NFKC")
        if self.minimum < 0 or self.maximum < 0 or 0 < self.maximum < self.minimum:
            what = f"documents of {self.minimum} to {self.maximum} characters do not exist"
            raise UserError(what, remedy="give a maximum that is 0 (none) or not below the minimum")
        if not 1 <= self.grams <= _MOST_GRAMS:
            what = f"{self.grams} words in a row cannot be compared"
            raise UserError(what, remedy=f"give 1 to {_MOST_GRAMS}, as 13")


class Cleaner:
    """The steps that need one document only.

    Args:
        cleaning: which.
        evaluation: texts that no document may share `cleaning.grams` words in a row with.

    Raises:
        UserError: the filter cannot be imported.

    Example:
        >>> Cleaner(Cleaning(minimum=3)).apply("ab")
        ('', 'short')
    """

    def __init__(self, cleaning: Cleaning, evaluation: Iterable[str] = ()) -> None:
        self.cleaning = cleaning
        self.grams = grams(evaluation, cleaning.grams)
        self._sieve = sieve(self.grams)
        self._keep = function_named(cleaning.filter) if cleaning.filter else None

    def apply(self, text: str) -> tuple[str, str]:
        """The cleaned document and "", or "" and why it is left out: empty, short, long, filter or evaluation.

        Raises:
            UserError: the filter failed.
        """
        wanted, before = self.cleaning, text
        if wanted.normalise and not unicodedata.is_normalized(wanted.normalise, text):
            text = unicodedata.normalize(wanted.normalise, text)
        if wanted.controls and _CONTROLS.search(text):
            text = _CONTROLS.sub("", _BLANKS.sub(" ", text))
        if text is not before:
            text = tidy(text)
        if not text:
            return "", "empty"
        if len(text) < wanted.minimum:
            return "", "short"
        if wanted.maximum and len(text) > wanted.maximum:
            return "", "long"
        if self._keep and not self._kept(text):
            return "", "filter"
        if overlaps(text, self.grams, wanted.grams, self._sieve):
            return "", "evaluation"
        return text, ""

    def _kept(self, text: str) -> bool:
        try:
            return bool(self._keep and self._keep(text))
        except Exception as error:
            begin = text[:40].replace("\n", " ")
            what = f'the filter failed on "{begin}…" ({brief(error)})'
            raise UserError(what, self.cleaning.filter, "mend it") from error


# -- copies ----------------------------------------------------------------------------------------------------------


def exact_copies(hashes: np.ndarray) -> np.ndarray:
    """Which documents are copies of an earlier one.

    Args:
        hashes: uint64[n], a hash of each document's text in the order of the inputs.

    Returns:
        bool[n], False for the first of each hash.
    """
    copy = np.ones(len(hashes), bool)
    copy[np.unique(hashes, return_index=True)[1]] = False
    return copy


def signature(text: str) -> np.ndarray:
    """MinHash band keys of a document, uint64[14]: near copies have one of them in common, mostly.

    Of the set of all 5 words in a row, whatever blanks and punctuation stand between and whatever the case; a shorter
    document is one such shingle. Keys are equal on every machine under one version of rensa's algorithm.

    Raises:
        UserError: rensa is not installed.
    """
    rensa = library("rensa", "rensa", "sources", "near copies")
    shingles = _grams(_words(text), _SHINGLE, shorter=True)
    if not len(shingles):  # no word at all: signs only
        shingles = _grams(_points(text[:_PIECE]).astype(np.uint64), min(len(text), _PIECE))
    ends = np.array([0, len(shingles)], np.uint64)
    made = rensa.RMinHash.digest_matrix_from_flat_token_hashes(shingles, ends, _BANDS * _SLOTS, _SEED)
    slots = np.array(made.to_rows()[0], np.uint64).reshape(_BANDS, _SLOTS)
    key = np.zeros(_BANDS, np.uint64)
    for column in slots.T:
        key = mix(key ^ column + _ODD)
    return key


def near_copies(signatures: np.ndarray) -> np.ndarray:
    """Which documents have an earlier near copy.

    Documents that share a key in one of the bands belong together, and so do those joined by a third: the first of
    each such cluster stays.

    Args:
        signatures: uint64[n,b], a row from `signature` for each document in the order of the inputs.

    Returns:
        bool[n].
    """
    n = len(signatures)
    lefts, rights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for keys in signatures.T:
        order = np.argsort(keys, kind="stable")
        same = keys[order[1:]] == keys[order[:-1]]
        lefts.append(order[:-1][same])
        rights.append(order[1:][same])
    left, right = np.concatenate(lefts), np.concatenate(rights)
    first = np.arange(n)  # of the documents known to belong together, the first; it always points to itself
    while len(left):
        low = np.minimum(first[left], first[right])
        np.minimum.at(first, first[left], low)
        np.minimum.at(first, first[right], low)
        while (first != (next_ := first[first])).any():
            first = next_
        apart = first[left] != first[right]
        left, right = left[apart], right[apart]
    return first != np.arange(n)


# -- overlap with evaluation texts -----------------------------------------------------------------------------------


def grams(texts: Iterable[str], n: int) -> np.ndarray:
    """Hashes of all `n` words in a row of some texts, sorted uint64 without repeats. Shorter texts have none."""
    parts = [np.unique(_grams(_words(text), n)) for text in texts]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))


def sieve(grams: np.ndarray) -> np.ndarray:
    """A bool table of a power of two by the upper bits of hashes: False for most of those not among `grams`."""
    bits = len(grams).bit_length() + 4
    table = np.zeros(1 << bits, bool)
    table[grams >> np.uint64(64 - bits)] = True
    return table


def overlaps(text: str, grams: np.ndarray, n: int, table: np.ndarray | None = None) -> bool:
    """Whether a document holds one of the hashes that `grams` made with the same `n`.

    `table` is what `sieve` makes of them: the answer is the same, and comes at twice the speed.
    """
    if not len(grams):
        return False
    found = _grams(_words(text), n)
    if table is not None:
        found = found[table[found >> np.uint64(65 - len(table).bit_length())]]
    at = np.searchsorted(grams, found)
    return bool((grams[np.minimum(at, len(grams) - 1)] == found).any())


# -- words as hashes -------------------------------------------------------------------------------------------------
# Words are runs of letters, digits and marks; where writing has no blanks (Chinese, Japanese, Thai, …) each character
# is one. Case, blanks and punctuation play no part. Substrings are hashed by differences of prefix sums modulo 2^64.

_ODD = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse
_INVERSE = np.uint64(pow(int(_ODD), -1, 1 << 64))
_PIECE = 1 << 18  # characters or words hashed at a time
_MOST_GRAMS = 1000
_PLANES = 0x20000  # code points from here on are Chinese, but for a few selectors
_ALONE = (  # code points of scripts without blanks: Thai to Tibetan, Myanmar, Khmer, Japanese, Chinese
    (0x0E00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
)


def _points(text: str) -> np.ndarray:
    """Code points, int64; halves of surrogate pairs too."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """For code points below _PLANES: the class uint8, and the point without case uint64.

    Classes: 0 between words, 1 part of one, 2 one by itself; 4 more where the text may not be composed (NFC).
    """
    characters = [chr(point) for point in range(_PLANES)]
    categories = [unicodedata.category(character)[0] for character in characters]
    kinds = np.array([category in "LNM" for category in categories], np.uint8)
    for low, high in _ALONE:
        kinds[low : high + 1] *= 2
    loose = [
        kind == "M" or not unicodedata.is_normalized("NFC", one)
        for kind, one in zip(categories, characters, strict=True)
    ]
    kinds[loose] |= 4
    kinds[0x1161:0x1200] |= 4  # vowels and finals of Hangul compose with what is before them
    kinds = np.append(kinds, np.uint8(2))
    folded = [character.casefold() for character in characters]  # ß and its like become two: they stay
    folded += ["\0\0"]
    return kinds, np.array([ord(one) if len(one) == 1 else at for at, one in enumerate(folded)], np.uint64)


@functools.cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """The powers 0 to _PIECE - 1 of _ODD and of its inverse, uint64; products wrap around, as they should."""
    steps = np.full((2, _PIECE), ((_ODD,), (_INVERSE,)), np.uint64)
    steps[:, 0] = 1
    power, inverse = np.cumprod(steps, axis=1, dtype=np.uint64)
    return power, inverse


def _hashes(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """uint64 of each stretch of uint64 values, at most _PIECE of them: equal for equal values wherever they stand."""
    power, inverse = _powers()
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * power[: len(values)], out=sums[1:])
    return mix((sums[ends] - sums[starts]) * inverse[starts])


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces that end at a blank, so that memory is bounded; without blanks, anywhere."""
    at = 0
    while at < len(text):
        end = at + _PIECE // 4  # composing can lengthen a text, threefold at most
        if end < len(text):
            end = max(text.rfind(" ", at, end), text.rfind("\n", at, end)) + 1 or end
        yield text[at:end]
        at = end


def _classified(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The code points without case, uint64, and their classes, uint8."""
    classes, folded = _tables()
    points = _points(text)
    if points.max(initial=0) < _PLANES:
        return folded[points], classes[points]
    low = np.minimum(points, _PLANES)
    return np.where(points < _PLANES, folded[low], points.astype(np.uint64)), classes[low]


def _words(text: str) -> np.ndarray:
    """A hash of each word in order, uint64."""
    made = [np.zeros(0, np.uint64)]
    for piece in _pieces(text):
        values, kinds = _classified(piece)
        if (kinds & 4).any():
            values, kinds = _classified(unicodedata.normalize("NFC", piece))
        inside = np.concatenate([[False], kinds & 1 > 0, [False]])
        alone = kinds & 2 > 0
        starts = np.flatnonzero(alone | (inside[1:-1] & ~inside[:-2]))
        ends = np.flatnonzero(alone | (inside[1:-1] & ~inside[2:])) + 1
        made.append(_hashes(values, starts, ends))
    return np.concatenate(made)


def _grams(words: np.ndarray, n: int, shorter: bool = False) -> np.ndarray:
    """A hash of each `n` words in a row, uint64; of fewer words none, or all of them as one if `shorter`."""
    if shorter and 0 < len(words) < n:
        n = len(words)
    made, step = [np.zeros(0, np.uint64)], _PIECE - n + 1
    for at in range(0, len(words) - n + 1, step):
        piece = words[at : at + _PIECE]
        starts = np.arange(len(piece) - n + 1)
        made.append(_hashes(piece, starts, starts + n))
    return np.concatenate(made)
