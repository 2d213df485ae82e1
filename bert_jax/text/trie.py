"""A vocabulary as a trie in arrays, which cuts many words into pieces at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_WORD = 100  # characters of a word above which it is [UNK], as in `tokenizers`


class Trie:
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
        text[ragged(begins, sizes)] = letters
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
        out[ragged(begins[unknown], sizes[unknown])] = -1
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


def ragged(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: starts[0], starts[0] + 1, … `lengths[0]` of them, then those of the next."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if ends.size else 0)
