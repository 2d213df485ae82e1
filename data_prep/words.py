"""Words and how often they stand in a text, as BERT cuts them, in bounded memory.

Text is first counted in chunks between blanks, which is cheap, and only distinct chunks are normalised and cut
into words: each is local to a chunk, so the counts are those of the whole text.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

# What is held at most: about 120 bytes a word, so some 250 MB of words, and a block of text with its chunks.
LIMIT = 2_000_000
_BLOCK = 1 << 24  # characters of text between two foldings of chunks into words
# str.split takes these for blanks, BERT deletes them: "a\x0bb" is one word.
_DELETED = dict.fromkeys(map(ord, "\x0b\x0c\x1c\x1d\x1e\x1f\x85"))
_ANY_DELETED = re.compile("[\x0b\x0c\x1c-\x1f\x85]")
_IDEOGRAPH = re.compile("[\u4e00-\u9fff]")  # the block that every version of Unicode calls so
_ASCII_WORDS = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")


@dataclass(frozen=True)
class Rules:
    """How a WordPiece tokenizer makes words of text; the names are those of tokenizer_config.json."""

    do_lower_case: bool
    strip_accents: bool | None = None  # None: as do_lower_case
    tokenize_chinese_chars: bool = True


@dataclass(frozen=True)
class Words:
    """Counts of words, and what was given up to hold them.

    Attributes:
        counts: by word, in no meaningful order.
        pruned: occurrences of words that were dropped for being rare when the table was full.
        border: no word lost more than this many occurrences, so those seen more often are all there.
    """

    counts: dict[str, int]
    pruned: int
    border: int


class WordCounter:
    """Counts the words of texts given one by one.

    Whenever more than `limit` distinct words are held, the rarest are dropped: all seen once, all seen twice,
    and so on until at most half of the table is left. What remains hangs on the texts and their order alone.

    Example:
        >>> counter = WordCounter(Rules(do_lower_case=True))
        >>> counter.add("The cat, the dog.")
        >>> counter.result().counts
        {'the': 2, 'cat': 1, ',': 1, 'dog': 1, '.': 1}
    """

    def __init__(self, rules: Rules, limit: int = LIMIT) -> None:
        self._cut, self._ideographs_apart, self._limit = _cutter(rules), rules.tokenize_chinese_chars, limit
        self._chunks: Counter[str] = Counter()  # of the block of text since the last folding
        self._size = 0
        self._counts: dict[str, int] = {}
        self._pruned = self._border = 0

    def add(self, text: str) -> None:
        """Counts the words of a text; none reaches beyond it."""
        if _ANY_DELETED.search(text):
            text = text.translate(_DELETED)
        if self._ideographs_apart and not text.isascii() and (found := _IDEOGRAPH.findall(text)):
            self._chunks.update(found)
            text = _IDEOGRAPH.sub(" ", text)
        self._chunks.update(text.split())
        self._size += len(text)
        if self._size >= _BLOCK:
            self._fold()

    def result(self) -> Words:
        """The counts so far."""
        self._fold()
        return Words(self._counts, self._pruned, self._border)

    def _fold(self) -> None:
        counts = self._counts
        for chunk, count in self._chunks.items():
            for word in self._cut(chunk):
                counts[word] = counts.get(word, 0) + count
        self._chunks, self._size = Counter(), 0
        if len(counts) > self._limit:
            left, lowest = len(counts), 0
            for lowest, words in sorted(Counter(counts.values()).items()):
                left -= words
                self._pruned += lowest * words
                if left <= self._limit // 2:
                    break
            self._counts = {word: count for word, count in counts.items() if count > lowest}
            self._border += lowest


def _cutter(rules: Rules):
    """A function from text to its words. ASCII goes the short way, whatever else through `tokenizers`."""
    from tokenizers import normalizers, pre_tokenizers

    normalise = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=rules.tokenize_chinese_chars,
        strip_accents=rules.strip_accents,
        lowercase=rules.do_lower_case,
    ).normalize_str
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str

    def cut(text: str) -> list[str]:
        if text.isascii() and text.isprintable():
            return _ASCII_WORDS.findall(text.lower() if rules.do_lower_case else text)
        return [word for word, _ in split(normalise(text))]

    return cut
