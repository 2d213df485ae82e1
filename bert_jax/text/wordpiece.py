"""WordPiece at array speed: the same ids as the `tokenizers` library, about ten times as fast on one core.

How it works. A block of texts becomes UTF-16 units. Each unit is blank, a token of its own (punctuation, an
ideograph) or part of a run; which of these, and what the normaliser makes of it, the library itself is asked once per
unit met, so that no Unicode table of ours can disagree. All that BERT does to text (deleting, decomposing, stripping,
lower-casing, cutting) is local to a run, since a unit that stands alone is a border before and after it. So the ids of
a run depend on the run alone, and a memo over runs is exact. Its keys are the whole runs, not their hashes: 16, 32 or
64 bytes, looked up for all runs of a block at once in open-addressing tables. Runs not met before are cut by greedy
longest match, all together, by walking a trie of the vocabulary. A run with a unit that is not plain (astral planes,
marks that normalisation may reorder) or that is longer than 64 bytes goes to the library.

Letters of most alphabets are keys of one byte: the first 252 normalised letters met below U+3000 get a code, so that
"The", "the" and "THÉ" are one entry of an uncased memo. Runs with other letters have keys of two bytes a unit.

Whom it follows. `tokenizers` and google-research/bert differ, and ids here are those of `tokenizers`:
- a word of more than 100 characters (after normalisation) is [UNK]; google-research/bert says 200;
- lower-casing goes character by character, so a final capital sigma becomes σ and not ς;
- private-use characters are deleted, where google-research/bert keeps them (and so gives [UNK]);
- U+2B820 to U+2B91F (ideographs) do not stand alone, and some marks and signs newer than the Unicode tables compiled
  into `tokenizers` count as letters.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bert_jax.text.exact_table import WIDTHS, Table, keys_of
from bert_jax.text.trie import Trie, ragged

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

_BLANK, _ALONE, _FIRST, _UNKNOWN, _OTHER = 0, 1, 2, 254, 255  # codes of a unit; from _FIRST on, below _UNKNOWN: letters
_PADDING = 64  # units that may be read beyond the end: the widest key

# The value of a run: its first id in 24 bits, how many ids it has in 8, where they stand in the pool in 31.
# Two more values, with no ids of their own:
_NEWLINE = 1 << 32
_LONG = 2 << 32
_POOL_BEGIN = 3  # so that no place in the pool looks like those


class WordPiece:
    """Ids of texts, with a memo over the runs met so far.

    The memo forgets everything when it holds more than `limit` runs (entries of frequent words come back at once); ids
    do not depend on it. Threads may share one: they take turns. A copy by pickle begins with an empty memo.

    Args:
        engine: a `tokenizers.Tokenizer` with BertNormalizer, BertPreTokenizer, a WordPiece model of "##" and
            trie.MAX_WORD, and no added tokens.
        pieces: all of them, by id; fewer than 2**24.
        unk: id of [UNK].
        limit: runs in the memo above which it starts anew, checked between blocks; 450,000 keep it below 100 MB.
        block: UTF-16 units to work on at a time; 1 << 20 is best for speed (the arrays fit in the cache).
    """

    def __init__(
        self, engine: Engine, pieces: Sequence[str], unk: int, limit: int = 450_000, block: int = 1 << 20
    ) -> None:
        self._settings = (engine, pieces, unk, limit, block)
        self._engine, self._limit, self._block = engine, limit, block
        self._letters = _Letters(engine)
        self._trie = Trie(pieces, unk)
        self._lock = threading.Lock()
        self.forget()

    def __reduce__(self):
        return WordPiece, self._settings

    def forget(self) -> None:
        """Empties the memo: all its state stands here."""
        # By bytes of a letter in the key (1: codes, 2: units), then by width of the key.
        self._tables = {size: [Table(width) for width in WIDTHS] for size in (1, 2)}
        self._pool = np.zeros(1 << 12, np.int32)
        self._pooled = _POOL_BEGIN

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays that stay between calls."""
        tables = sum(table.rows.nbytes for tables in self._tables.values() for table in tables)
        return tables + self._pool.nbytes + self._letters.nbytes + self._trie.nbytes

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of each text, without special tokens around it.

        Args:
            texts: any strings; a lone surrogate counts as U+FFFD.

        Returns:
            (ids int32[n], rows int64[b+1]): text i is `ids[rows[i]:rows[i+1]]`.
        """
        parts, ends, total = [], [np.zeros(1, np.int64)], 0
        with self._lock:
            try:
                for units in _groups(texts, self._block):
                    for ids, newlines in self._encode_units(units):
                        parts.append(ids)
                        ends.append(newlines + total)
                        total += ids.size
            except BaseException:
                # An interrupt may have left runs that are claimed and not yet known.
                self.forget()
                raise
        return np.concatenate(parts) if parts else np.zeros(0, np.int32), np.concatenate(ends)

    def _encode_units(self, units: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids int32, and int64 how many stand before each newline, of each block of `units`.

        `units` uint16 ends with a newline and then _PADDING more of them.
        """
        at, end = 0, units.size - _PADDING
        while at < end:
            if sum(table.used for tables in self._tables.values() for table in tables) > self._limit or (
                self._pooled > 6 * max(self._limit, 1000)
            ):
                self.forget()
            size = self._block
            while True:
                stop = end if end - at <= size + size // 4 else at + size
                codes = self._letters.codes(units[at : stop + _PADDING])
                outside = codes[stop - at - 1 :: -1] < _FIRST
                back = int(outside.argmax())
                if outside[back]:
                    break
                size *= 2  # one run of more than a block
            stop -= back  # a block ends with a unit that stands alone
            yield self._encode_block(units[at : stop + _PADDING], codes[: stop - at + _PADDING], stop - at)
            at = stop

    def _encode_block(self, units: np.ndarray, codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        inside = codes[:n] >= _FIRST
        begins = inside.copy()
        np.greater(inside[1:], inside[:-1], out=begins[1:])
        stops = np.flatnonzero(inside[:-1] > inside[1:]) + 1

        # 1. Every run and every unit that has an id of its own is an item with a value.
        items = np.flatnonzero(begins | (codes[:n] == _ALONE))
        values = self._letters.alone.take(units.take(items))
        runs = np.flatnonzero(begins.take(items))
        starts = items[runs]
        found = self._values(units, codes, starts, stops)
        values[runs] = found
        counts = values >> 24 & 0xFF
        several = np.flatnonzero(counts > 1)
        long = np.flatnonzero(found == _LONG)
        answers = self._ask([_text(units[starts[r] : stops[r]]) for r in long])
        for run, answer in zip(long, answers, strict=True):
            counts[runs[run]] = len(answer)

        # 2. The first id of each item, repeated; then the other ids of those that have several.
        ends = np.cumsum(counts)
        ids = np.repeat((values & 0xFFFFFF).astype(np.int32), counts)
        if several.size:
            more = counts[several] - 1
            ids[ragged(ends[several] - more, more)] = self._pool.take(ragged((values[several] >> 32) + 1, more))
        for run, answer in zip(long, answers, strict=True):
            ids[ends[runs[run]] - len(answer) : ends[runs[run]]] = answer
        return ids, ends[values == _NEWLINE]

    def _values(self, units: np.ndarray, codes: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """int64[r] for the runs `units[starts[i]:stops[i]]`, learning those not met before."""
        values, new = np.empty(starts.size, np.int64), []
        others = np.flatnonzero(codes[:-_PADDING] == _OTHER)
        if not others.size:
            new += self._look_up(codes, slice(None), starts, stops, values)
        else:
            if others.size < starts.size // 8:
                coded = np.ones(starts.size, bool)
                coded[np.searchsorted(starts, others, side="right") - 1] = False
            else:  # What follows a run before the next one has a lower code.
                coded = np.maximum.reduceat(codes[:-_PADDING], starts) < _OTHER
            new += self._look_up(codes, np.flatnonzero(coded), starts, stops, values)
            new += self._look_up(units, np.flatnonzero(~coded), starts, stops, values)
        if new:
            self._learn(new, starts, stops, values)
        return values

    def _look_up(
        self, source: np.ndarray, runs: np.ndarray | slice, starts: np.ndarray, stops: np.ndarray, values: np.ndarray
    ) -> list[_New]:
        """Sets the values of those of `runs` that the memo knows or that are too long for it; says which are new."""
        new = []
        for table in self._tables[source.itemsize]:
            # Longer runs are looked up by their beginnings too, which costs less than choosing the short ones;
            # what that finds is overwritten in the next round.
            begins = starts[runs]
            lengths = stops[runs] - begins
            keys = keys_of(source, begins, lengths, table.width)
            found = table.find(keys)
            values[runs] = found
            over = lengths > 8 * table.width // source.itemsize
            lost = np.flatnonzero((found < 0) & ~over)
            numbers = np.arange(starts.size) if isinstance(runs, slice) else runs
            if lost.size:
                new.append(_New(table, source, [key.take(lost) for key in keys], numbers[lost]))
            runs = numbers[over]
            if not runs.size:
                return new
        values[runs] = _LONG
        return new

    # -------------------------------------------------------------------------------------------------------
    # Runs not met before

    def _learn(self, new: list[_New], starts: np.ndarray, stops: np.ndarray, values: np.ndarray) -> None:
        """Sets the values of new runs, in their tables and in `values`."""
        # 1. Each new run once: its row in the table, its letters, or its text where a unit is not plain.
        claims, letters, sizes, odd, count = [], [], [], {}, 0
        for table, source, keys, runs in new:
            number, first = table.claim(keys)
            claims.append((number, [key.take(first) for key in keys]))
            begins, ends = starts[runs[first]], stops[runs[first]]
            taken = source.take(ragged(begins, ends - begins))
            if source.itemsize == 1:
                letters.append(self._letters.of_code.take(taken))
                sizes.append(ends - begins)
            else:
                normalised, size, plain = self._letters.normalised(taken, ends - begins)
                letters.append(normalised)
                sizes.append(size)
                odd |= {count + r: _text(source[begins[r] : ends[r]]) for r in np.flatnonzero(~plain).tolist()}
            count += first.size
        # 2. All cut into pieces at once; those that are not plain have come back with none.
        ids, counts = self._trie.cut(np.concatenate(letters), np.concatenate(sizes))
        if odd:
            places, answers = np.array(list(odd)), self._ask(list(odd.values()))
            many = np.array([len(answer) for answer in answers])
            flat = np.array([number for answer in answers for number in answer], np.int32)
            ids = np.insert(ids, np.repeat((np.cumsum(counts) - counts)[places], many), flat)
            counts[places] = many
        # 3. Known from here on.
        places = self._keep(ids) + np.cumsum(counts) - counts
        known = places << 32 | counts << 24 | np.where(counts > 0, self._pool[places], 0)
        known[counts > 0xFF] = _LONG
        for (table, _, _, runs), (number, keys) in zip(new, claims, strict=True):
            mine, known = known[: keys[0].size], known[keys[0].size :]
            table.set(keys, mine)
            values[runs] = mine[number]

    def _keep(self, ids: np.ndarray) -> int:
        """Puts ids into the pool; where they stand."""
        place, self._pooled = self._pooled, self._pooled + ids.size
        if self._pooled >= self._pool.size:
            self._pool = np.concatenate([self._pool, np.zeros(self._pooled, np.int32)])
        self._pool[place : self._pooled] = ids
        return place

    def _ask(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return [encoding.ids for encoding in self._engine.encode_batch_fast(texts, add_special_tokens=False)]


class _New(NamedTuple):
    """Runs that a table does not hold: their keys and numbers; `source` is what the keys were read from."""

    table: Table
    source: np.ndarray
    keys: list[np.ndarray]
    runs: np.ndarray


class _Letters:
    """What the tokenizer's own normaliser and pre-tokenizer make of each UTF-16 unit, learned as units are met.

    alone int64[65536]: value of a unit that stands alone (blanks have 0: no ids). of_code uint16[256]: the
    normalised letter of a code.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Of these two marks the first has the higher class.
        self._reorders = engine.normalizer.normalize_str("\u0301\u0323") != "\u0301\u0323"
        self._code = np.full(1 << 16, _UNKNOWN, np.uint8)
        self._code[0xD800:0xE000] = _OTHER  # halves of astral characters: their runs go to the library
        self.alone = np.zeros(1 << 16, np.int64)
        self._code[ord("\n")], self.alone[ord("\n")] = _ALONE, _NEWLINE
        self.of_code = np.zeros(256, np.uint16)
        self._coded: dict[str, int] = {}
        # Normalised unit u is `_forms[_form[u] : _form[u] + _size[u]]`; size 255: not plain.
        self._size = np.full(1 << 16, 255, np.uint8)
        self._form = np.zeros(1 << 16, np.int64)
        self._forms = np.zeros(0, np.uint16)

    @property
    def nbytes(self) -> int:
        arrays = (self._code, self.alone, self.of_code, self._size, self._form, self._forms)
        return sum(array.nbytes for array in arrays)

    def codes(self, units: np.ndarray) -> np.ndarray:
        """uint8[n]: blank, alone, a letter's code, or other."""
        codes = self._code.take(units)
        unknown = codes == _UNKNOWN
        if not unknown.any():
            return codes
        forms, size = [self._forms], self._forms.size
        for unit in np.unique(units[unknown]).tolist():
            form = self._learn(unit)
            if form is not None:
                self._size[unit], self._form[unit] = form.size, size
                forms.append(form)
                size += form.size
        self._forms = np.concatenate(forms)
        return self._code.take(units)

    def normalised(self, units: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normalised letters uint16 of runs, their sizes int64[r], and bool[r] whether all their units are plain.

        A run that is not plain comes back empty.
        """
        grown = self._size.take(units).astype(np.int64)
        begins = np.cumsum(sizes) - sizes
        plain = np.maximum.reduceat(grown, begins) < 255 if sizes.size else np.zeros(0, bool)
        if not plain.all():
            grown[np.repeat(~plain, sizes)] = 0
        letters = self._forms.take(ragged(self._form.take(units), grown))
        return letters, np.add.reduceat(grown, begins) if sizes.size else sizes, plain

    def _learn(self, unit: int) -> np.ndarray | None:
        """Sets the code of a unit; its normalised form, uint16[k], if the unit is a plain part of words."""
        character = chr(unit)
        normalise, split = self._engine.normalizer.normalize_str, self._engine.pre_tokenizer.pre_tokenize_str
        form = normalise(character)
        words = [word for word, _ in split(normalise(f"a{character}a"))]
        if not self._stays(character, form):
            self._code[unit] = _OTHER
            return None
        if len(words) > 1 and words[0] == words[-1] == "a":
            ids = self._engine.encode(character, add_special_tokens=False).ids
            self._code[unit] = (_BLANK, _ALONE, _OTHER)[min(len(ids), 2)]
            if len(ids) == 1:
                self.alone[unit] = 1 << 24 | ids[0]
            return None
        self._code[unit] = _OTHER
        if words != [f"a{form}a"] or any(ord(letter) > 0xFFFF for letter in form):
            return None
        if len(form) == 1 and form < "\u3000":
            code = self._coded.setdefault(form, _FIRST + len(self._coded))
            if code < _UNKNOWN:
                self._code[unit], self.of_code[code] = code, ord(form)
        return np.frombuffer(form.encode("utf-16-le"), "<u2").astype(np.uint16)

    def _stays(self, character: str, form: str) -> bool:
        """Whether normalisation makes `form` of a character whatever stands before and after.

        Canonical decomposition, where there is one (it comes with stripping accents), reorders marks.
        """
        if not self._reorders:
            return True
        normalise, mark = self._engine.normalizer.normalize_str, "\u302e"  # one that is not stripped
        # By the tables of the library, and by Python's.
        around = normalise(mark + character) == mark + form and normalise(character + mark) == form + mark
        return around and not any(map(unicodedata.combining, form))


def _groups(texts: Sequence[str], size: int) -> Iterator[np.ndarray]:
    """UTF-16 units of texts, about `size` at a time: a newline after each text, _PADDING more at the end."""
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    borders = [0, *(np.flatnonzero(np.diff(ends // size)) + 1).tolist(), len(texts)]
    for first, last in zip(borders, borders[1:], strict=False):
        if first < last:
            yield _units(texts[first:last])


def _units(texts: Sequence[str]) -> np.ndarray:
    tail = "\n" * _PADDING
    joined = "\n".join([*texts, tail])
    if joined.count("\n") != len(texts) + _PADDING:  # BERT takes a newline inside a text for a blank
        joined = "\n".join([*(text.replace("\n", " ") for text in texts), tail])
    if "\0" in joined:  # BERT deletes it, and no key of the memo may begin with it
        joined = joined.replace("\0", "")
    try:
        data = joined.encode("utf-16-le")
    except UnicodeEncodeError:
        data = re.sub("[\ud800-\udfff]", "\ufffd", joined).encode("utf-16-le")
    return np.frombuffer(data, "<u2")


def _text(units: np.ndarray) -> str:
    return units.tobytes().decode("utf-16-le")
