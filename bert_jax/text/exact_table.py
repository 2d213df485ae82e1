"""A hash table in arrays that looks up many exact keys at once: the memo of wordpiece.py."""

from __future__ import annotations

import numpy as np

WIDTHS = (2, 4, 8)  # 64-bit words of a key
_CHUNK = 1 << 15  # keys to claim at a time: most that come again are then found, so that tables stay small


class Table:
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


def keys_of(source: np.ndarray, starts: np.ndarray, lengths: np.ndarray, width: int) -> list[np.ndarray]:
    """The `lengths[i]` items from `starts[i]` on, at most 8 * width bytes of them, as uint64[r], one a word."""
    size, words = source.itemsize, []
    for word in range(width):
        window = np.ndarray((source.size - 8 * width // size + 1,), "<u8", source, 8 * word, (size,))
        words.append(window[starts] & _MASKS[size][word].take(lengths, mode="clip"))
    return words


def _masks(size: int) -> list[np.ndarray]:
    """By word of a key: uint64[length + 1], which bits of the word belong to a run of that length."""
    longest = 8 * WIDTHS[-1] // size
    return [
        np.array([(1 << 8 * min(max(size * n - 8 * word, 0), 8)) - 1 for n in range(longest + 1)], np.uint64)
        for word in range(WIDTHS[-1])
    ]


_MASKS = {size: _masks(size) for size in (1, 2)}
