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

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

MAX_WORD = 100  # characters of a word above which it is [UNK]

_BLANK, _ALONE, _FIRST, _UNKNOWN, _OTHER = 0, 1, 2, 254, 255  # codes of a unit; from _FIRST on, below _UNKNOWN: letters
_WIDTHS = (2, 4, 8)  # 64-bit words of a key
_PADDING = 64  # units that may be read beyond the end: the widest key
_CHUNK = 1 << 15  # keys to claim at a time: most that come again are then found, so that tables stay small

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
            MAX_WORD, and no added tokens.
        pieces: all of them, by id; fewer than 2**24.
        unk: id of [UNK].
        limit: runs in the memo above which it starts anew, checked between blocks.
        block: UTF-16 units to work on at a time; 1 << 20 is best for speed (the arrays fit in the cache).
    """

    def __init__(
        self, engine: Engine, pieces: Sequence[str], unk: int, limit: int = 250_000, block: int = 1 << 20
    ) -> None:
        self._settings = (engine, pieces, unk, limit, block)
        self._engine, self._limit, self._block = engine, limit, block
        self._letters = _Letters(engine)
        self._trie = _Trie(pieces, unk)
        self._lock = threading.Lock()
        self.forget()

    def __reduce__(self):
        return WordPiece, self._settings

    def forget(self) -> None:
        """Empties the memo: all its state stands here."""
        # By bytes of a letter in the key (1: codes, 2: units), then by width of the key.
        self._tables = {size: [_Table(width) for width in _WIDTHS] for size in (1, 2)}
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
                self._pooled > 16 * max(self._limit, 1000)
            ):
                self.forget()
            size = self._block
            while True:
                stop = end if end - at < 2 * size else at + size
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
            ids[_ragged(ends[several] - more, more)] = self._pool.take(_ragged((values[several] >> 32) + 1, more))
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
            keys = _keys(source, begins, lengths, table.width)
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
            taken = source.take(_ragged(begins, ends - begins))
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

    table: _Table
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
        letters = self._forms.take(_ragged(self._form.take(units), grown))
        return letters, np.add.reduceat(grown, begins) if sizes.size else sizes, plain

    def _learn(self, unit: int) -> np.ndarray | None:
        """Sets the code of a unit; its normalised form, uint16[k], if the unit is a plain part of words."""
        character = chr(unit)
        normalise, split = self._engine.normalizer.normalize_str, self._engine.pre_tokenizer.pre_tokenize_str
        form = normalise(character)
        words = [word for word, _ in split(normalise(f"a{character}a"))]
        if not self._stays(form):
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

    def _stays(self, form: str) -> bool:
        """Whether normalisation leaves a normalised form where it is, whatever stands before and after.

        Canonical decomposition, where there is one (it comes with stripping accents), reorders marks.
        """
        if not self._reorders:
            return True
        normalise = self._engine.normalizer.normalize_str
        # A mark that is not stripped, as seen by the tables of the library; and marks as seen by Python's.
        around = normalise(f"\u302e{form}") == f"\u302e{form}" and normalise(f"{form}\u302e") == f"{form}\u302e"
        return around and not any(map(unicodedata.combining, form))


class _Trie:
    """The pieces of a vocabulary as a trie, for greedy longest match of many words at once.

    One root for the beginnings of words and one for what "##" continues. The trie is a double array: node n with base b
    has its child by letter c, if any, at row (b + c) mod size, and that row says n; so a step is one probe. Rows are
    int64[size, 2]: the parent's row, then the node's base in 32 bits and, above them, 1 + id of the piece that ends
    there (0: none).
    """

    def __init__(self, pieces: Sequence[str], unk: int) -> None:
        self._unk = unk
        # Runs that come here are of plain units below 0x10000 without "#", which stands alone.
        usable = [n for n, piece in enumerate(pieces) if piece and "\0" not in piece and max(piece) <= "\uffff"]
        numbers = np.array([n for n in usable if pieces[n] != "##"], np.int64)
        texts = [pieces[n].removeprefix("##") for n in numbers]
        sizes = np.array([len(text) for text in texts], np.int64)
        letters = np.frombuffer("".join(texts).encode("utf-16-le"), "<u2").astype(np.int64)
        begins = np.cumsum(sizes) - sizes

        # 1. Edges (parent, letter), those of a parent together; node 2 + e is the end of edge e.
        node = np.array([pieces[n].startswith("##") for n in numbers], np.int64)  # the root: 0 or 1
        parents, labels, ends, count = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 2
        for depth in range(int(sizes.max(initial=0))):
            here = sizes > depth
            numbers, node, sizes, begins = numbers[here], node[here], sizes[here], begins[here]
            edge, inverse = np.unique(node << 16 | letters[begins + depth], return_inverse=True)
            last = sizes == depth + 1
            end = np.zeros(edge.size, np.int64)
            end[inverse[last]] = numbers[last] + 1
            node, count = count + inverse, count + edge.size
            parents.append(edge >> 16)
            labels.append(edge & 0xFFFF)
            ends.append(end)
        parent, label, end = np.concatenate(parents), np.concatenate(labels), np.concatenate(ends)

        # 2. Rows for them.
        size = 1 << max(17, int(2 * parent.size).bit_length())
        base, row = _place(parent, label, size)
        self._roots, self._mask = (base[0], base[1]), size - 1
        rows = np.concatenate([[size, size + 1], row])  # of nodes; roots have none, but names of their own
        self._rows = np.full((size, 2), -1, np.int64)
        self._rows[row, 0] = rows[parent]
        self._rows[row, 1] = end << 32 | base[2:]

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes

    def cut(self, letters: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pieces of words.

        Args:
            letters: uint16, the normalised words one after the other.
            sizes: int64[w], their lengths; an empty word has no pieces.

        Returns:
            (ids int32[n], counts int64[w])
        """
        # 1. A 0, which continues nothing, after each word.
        begins = np.cumsum(sizes + 1) - (sizes + 1)
        text = np.zeros(letters.size + sizes.size, np.int64)
        text[_ragged(begins, sizes)] = letters
        out = np.full(text.size, -1, np.int32)  # ids, where their pieces begin

        # 2. One letter of every word a round.
        failed = [np.flatnonzero(sizes > MAX_WORD)]
        word = np.flatnonzero((sizes > 0) & (sizes <= MAX_WORD))
        at = begins[word]  # the next letter
        begin, stop = at.copy(), at.copy()  # of the piece; where its longest match so far ends
        best = np.zeros(word.size, np.int64)  # 1 + id of that
        node, base = np.full(word.size, len(self._rows)), np.full(word.size, self._roots[0])
        while word.size:
            slot = base + text.take(at) & self._mask
            row = self._rows.take(slot, axis=0)
            ended = (row[:, 0] != node).nonzero()[0]
            node, value = slot, row[:, 1]
            base, found = value & 0xFFFFFFFF, value >> 32
            at += 1
            found[ended] = 0
            matched = found.nonzero()[0]
            best[matched] = found.take(matched)
            stop[matched] = at.take(matched)
            if not ended.size:
                continue
            piece, next_ = best.take(ended), stop.take(ended)
            out[begin.take(ended)] = piece - 1
            at[ended] = begin[ended] = next_
            best[ended], node[ended], base[ended] = 0, len(self._rows) + 1, self._roots[1]
            lost = piece == 0
            done = ended[lost | (text.take(next_) == 0)]
            if done.size:
                failed.append(word[ended[lost]])
                left = np.ones(word.size, bool)
                left[done] = False
                left = left.nonzero()[0]
                word, at, begin, stop = word.take(left), at.take(left), begin.take(left), stop.take(left)
                best, node, base = best.take(left), node.take(left), base.take(left)

        # 3. A word that cannot be cut to its end is unknown as a whole.
        unknown = np.concatenate(failed)
        out[_ragged(begins[unknown], sizes[unknown])] = -1
        out[begins[unknown]] = self._unk
        kept = out >= 0
        counts = np.add.reduceat(kept, begins, dtype=np.int64) if sizes.size else sizes
        return out[kept], counts


def _place(parent: np.ndarray, label: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places the edges of a trie in a double array.

    Args:
        parent: int64[e]; nodes 0 and 1 are roots, node 2 + i is the end of edge i. The edges of a node stand together.
        label: int64[e], from 1 to 65,535.
        size: rows, a power of two and at least 65,536 and 2 * e.

    Returns:
        (base int64[e + 2] of nodes, row int64[e] of edges): row = (base[parent] + label) mod size, all rows distinct.
    """
    rng = np.random.default_rng(0)
    base, row = np.zeros(parent.size + 2, np.int64), np.zeros(parent.size, np.int64)
    taken, owner = np.zeros(size, bool), np.zeros(size, np.int64)
    nodes, first, degree = np.unique(parent, return_index=True, return_counts=True)
    # Nodes of many children first, those of equally many together: all try a random base, those whose rows are free
    # and not wanted by another have them, the others try again.
    for many in np.unique(degree)[::-1]:
        pending = np.flatnonzero(degree == many)
        alone = many > 256  # wide nodes would be in each other's way
        while pending.size:
            trying = pending[:1] if alone else pending
            edges = first[trying, None] + np.arange(many)
            tried = rng.integers(0, size, trying.size)
            rows = tried[:, None] + label[edges] & size - 1
            good = ~taken[rows].any(axis=1)
            owner[rows[good]] = np.flatnonzero(good)[:, None]
            good &= (owner[rows] == np.arange(trying.size)[:, None]).all(axis=1)
            base[nodes[trying[good]]] = tried[good]
            row[edges[good]] = rows[good]
            taken[rows[good]] = True
            pending = np.concatenate([trying[~good], pending[trying.size :]])
    return base, row


class _Table:
    """An open-addressing hash table of exact keys: rows of `width` 64-bit words of key and one of value.

    The first word of a key is never 0, which marks a free row; a free row has the value -1.
    """

    def __init__(self, width: int) -> None:
        self.width, self.used = width, 0
        self.rows = _free_rows(1 << 10, width)

    def find(self, keys: list[np.ndarray]) -> np.ndarray:
        """Values int64[n], each at least 0, or -1; `keys` are uint64[n], one a word."""
        return self._find(keys)[0]

    def claim(self, keys: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Makes rows for keys that the table does not hold; the caller must then set their values.

        Args:
            keys: uint64[n], one a word; keys may occur several times.

        Returns:
            (number int64[n], first int64[m]) over the m distinct keys: which of them each key is, and where it occurs
            among the keys.
        """
        numbers, firsts, count = [], [], 0
        for at in range(0, keys[0].size, _CHUNK):
            part = [key[at : at + _CHUNK] for key in keys]
            # Until it is set, the value of a claimed row is the number of its key.
            number = self.find(part)
            new = np.flatnonzero(number < 0)
            number[new], first = self._claim([key.take(new) for key in part], count)
            numbers.append(number)
            firsts.append(at + new[first])
            count += first.size
        return np.concatenate(numbers), np.concatenate(firsts)

    def set(self, keys: list[np.ndarray], values: np.ndarray) -> None:
        """Gives keys that the table holds their values, int64[n], each at least 0."""
        self.rows[self._find(keys)[1], self.width] = values.view(np.uint64)

    def _find(self, keys: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(values, slots), int64[n] each: the rows that hold the keys, or where the search for them ended."""
        slots = self._slots(keys)
        rows = self.rows.take(slots, axis=0)  # ten times as fast as rows[slots]
        values = rows[:, self.width].astype(np.int64)
        pending = self._others(rows, keys)
        while pending.size:
            keys = [key.take(pending) for key in keys] if pending.size < keys[0].size else keys
            slot = slots.take(pending) + 1 & len(self.rows) - 1
            rows = self.rows.take(slot, axis=0)
            slots[pending] = slot
            values[pending] = rows[:, self.width].astype(np.int64)
            more = self._others(rows, keys)
            pending, keys = pending[more], [key.take(more) for key in keys]
        return values, slots

    def _claim(self, keys: list[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
        """As `claim`, for keys that no row has; numbers begin at `count`."""
        n = keys[0].size
        self._make_room(n)
        slots, pending = self._slots(keys), np.arange(n)
        number, firsts = np.empty(n, np.int64), [pending[:0]]
        while pending.size:
            # Of several keys that want a free row the last one written has it.
            free = self.rows[slots, 0] == 0
            wanting, wanted = pending[free], slots[free]
            self.rows[wanted, self.width] = wanting.view(np.uint64)
            won = self.rows[wanted, self.width] == wanting.view(np.uint64)
            winners, place = wanting[won], wanted[won]
            for word, key in enumerate(keys):
                self.rows[place, word] = key[winners]
            self.rows[place, self.width] = np.arange(count, count + winners.size).view(np.uint64)
            count += winners.size
            firsts.append(winners)
            rows = self.rows.take(slots, axis=0)
            mine = [key.take(pending) for key in keys]
            differ = rows[:, 0] != mine[0]
            for word in range(1, self.width):
                differ |= rows[:, word] != mine[word]
            number[pending[~differ]] = rows[~differ, self.width].astype(np.int64)
            pending, slots = pending[differ], slots[differ] + 1 & len(self.rows) - 1
        first = np.concatenate(firsts)
        self.used += first.size
        return number, first

    def _make_room(self, more: int) -> None:
        """Grows so that with `more` keys the table is at most half full."""
        used = self.used + more
        if 2 * used <= len(self.rows):
            return
        old = self.rows[self.rows[:, 0] != 0]
        self.rows, self.used = _free_rows(1 << (2 * used - 1).bit_length(), self.width), 0
        keys = [old[:, word] for word in range(self.width)]
        self._claim(keys, 0)
        self.set(keys, old[:, self.width].view(np.int64))

    def _others(self, rows: np.ndarray, keys: list[np.ndarray]) -> np.ndarray:
        """Which rows hold another key, so that the search goes on."""
        differ = rows[:, 0] != keys[0]
        for word in range(1, self.width):
            differ |= rows[:, word] != keys[word]
        differ = differ.nonzero()[0]
        return differ[rows[differ, 0] != 0] if differ.size else differ

    def _slots(self, keys: list[np.ndarray]) -> np.ndarray:
        # Sums of products with odd numbers: the upper bits depend on every bit of the key.
        mixed = keys[0] * _FACTORS[0]
        for key, factor in zip(keys[1:], _FACTORS[1:], strict=False):
            mixed += key * factor
        return (mixed >> np.uint64(65 - len(self.rows).bit_length())).view(np.int64)


# Odd 64-bit numbers without a pattern: digits of the golden ratio, then a linear congruence.
_FACTORS = [np.uint64((0x9E3779B97F4A7C15 * pow(6364136223846793005, k, 1 << 64) | 1) % (1 << 64)) for k in range(8)]


def _free_rows(size: int, width: int) -> np.ndarray:
    # A width of 2 takes rows of 32 bytes: NumPy copies those in one piece.
    rows = np.zeros((size, 4 if width == 2 else width + 1), np.uint64)
    rows[:, width] = 0xFFFFFFFFFFFFFFFF
    return rows


def _keys(source: np.ndarray, starts: np.ndarray, lengths: np.ndarray, width: int) -> list[np.ndarray]:
    """The `lengths[i]` items from `starts[i]` on, at most 8 * width bytes of them, as uint64[r], one a word."""
    size, words = source.itemsize, []
    for word in range(width):
        window = np.ndarray((source.size - 8 * width // size + 1,), "<u8", source, 8 * word, (size,))
        words.append(window[starts] & _MASKS[size][word].take(lengths, mode="clip"))
    return words


def _masks(size: int) -> list[np.ndarray]:
    """By word of a key: uint64[length + 1], which bits of the word belong to a run of that length."""
    longest = 8 * _WIDTHS[-1] // size
    return [
        np.array([(1 << 8 * min(max(size * n - 8 * word, 0), 8)) - 1 for n in range(longest + 1)], np.uint64)
        for word in range(_WIDTHS[-1])
    ]


_MASKS = {size: _masks(size) for size in (1, 2)}


def _ragged(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: starts[0], starts[0] + 1, … `lengths[0]` of them, then those of the next."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if ends.size else 0)


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
