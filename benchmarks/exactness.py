"""Token ids here beside the `tokenizers` library on whole corpora and on generated nasty lines: they must be equal.

    python -m benchmarks.exactness VOCAB [FILE ...] --nasties 100000

VOCAB is a vocab.txt; files are .txt, also .zst or .gz. Ids of all lines are compared in blocks of 2 million characters,
the memo kept between them as in preparation; character offsets of every tenth block (--offsets 1: of all) and of all
nasties too. What differs is printed; exit status 1 if anything does. --limit sets how many runs the memo may hold.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before the library is loaded: one thread

from bert_jax.text.tokenizer import Tokenizer  # noqa: E402
from bert_jax.text.wordpiece import WordPiece  # noqa: E402
from data_prep import sources  # noqa: E402

# Single characters that a tokenizer may get wrong: blanks of all kinds, controls, joiners, marks, direction, private
# use, characters that decompose, expand or change with lower-casing, ideographs at the edges of their ranges.
CHARACTERS = (
    "\x00\x01\x08\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x7f\x80\x85\x9f\xa0\xad\u1680\u180e\u2000\u200b\u200c\u200d\u200e\u2028"
    "\u2029\u202e\u202f\u205f\u2060\u3000\ufeff\ufff9\ufffc\ufffd\ufffe\uffff\ue000\uf8ff\ud7a4\ufdd0"
    "\u0300\u0301\u0307\u0323\u0327\u0345\u0338\u035c\u0483\u05b0\u0653\u0897\u093c\u094d\u09be\u0ccd\u0e48\u0f71\u1037"
    "\u17d2\u1ab0\u1dc0\u20d0\u20e3\u302a\u302e\u302f\u3099\u309a\ua66f\ufb1e\ufe00\ufe0f\ufe20"
    "\u0130\u0131\xdf\u1e9e\ufb01\ufb00\u01c5\u01f0\u0149\u0390\u03a3\u03c2\u03c3\u1f80\u1fb3\u1fc1\u1fee\u212a\u212b\u2126"
    "\u2260\u226e\u2adc\u00bd\u2167\uff21\uff41\uff76\uff9e\u0958\u0f43\u1100\u1161\u11a8\uac00\uac01\ud7a3\u3131\u115f"
    "\u2e80\u3001\u3005\u3007\u3041\u30a2\u30fb\u33ff\u3400\u4dbf\u4e00\u9fff\uf900\ufa0e\ufaff\ua000\u2581\u2018\u2019"
    "\u201c\u2026\u20ac\xb0\xb7\u037e\u0387\u055a\u0589\u060c\u061f\u06dd\u0964\u0e2f\u10fb\u1361\u166d\u1fef\u2010\u2e2e"
    "\U0001f469\U0001f467\U0001f3fd\U0001f1e9\U0001f1ea\u2764\U00020000\U0002a6df\U0002b81d\U0002b820\U0002b920"
    "\U0002f800\U00030000\U0001d400\U0001d165\U00010400\U00011131\U000e0061\U0010fffd"
)
TEXTS = (
    "[MASK] [SEP] [CLS] [PAD] [UNK] [mask] [[MASK]] ##ing ## # [ ] the The THE of unaffable Straße café CAFÉ naïve "
    "e\u0301 O\u0308\u0304 \u110b\u1161\u11ab\u1102\u1167\u11bc \uc548\ub155\ud558\uc138\uc694 \ud55c\uad6d\uc5b4 "
    "\u4e2d\u6587\u6ca1\u6709\u7a7a\u683c \u65e5\u672c\u8a9e \u3067\u3059 \u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 "
    "\u0639\u0631\u0628\u064a\u0651 \u05e9\u05b8\u05dc\u05d5\u05b9\u05dd "
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u03a3\u039f\u03a6\u039f\u03a3 "
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f 1,234.56 don't e-mail http://a.b/c?d=e"
).split()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("vocab", type=Path, help="a vocab.txt")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--nasties", type=int, default=0, help="generated lines (0)")
    parser.add_argument("--seed", type=int, default=0, help="of the generated lines (0)")
    parser.add_argument("--offsets", type=int, default=10, help="compare offsets of every n-th block (10; 0: of none)")
    parser.add_argument("--limit", type=int, default=450_000, help="runs in the memo (450000)")
    args = parser.parse_args()

    ours = Tokenizer.load(args.vocab)
    ours.__dict__["_fast"] = WordPiece(ours._engine, ours.pieces, ours.special.unk, args.limit)
    theirs = reference(ours)
    wrong = 0
    for path in args.files:
        wrong += report(f"{path.parent.name}/{path.name}", ours, theirs, blocks(path), args.offsets)
    if args.nasties:
        lines = nasties(args.nasties, args.seed, ours.pieces)
        parts = (lines[at : at + 5000] for at in range(0, len(lines), 5000))
        wrong += report(f"nasties, seed {args.seed}", ours, theirs, parts, min(args.offsets, 1))
    return 1 if wrong else 0


def reference(tokenizer: Tokenizer):
    """The library's own tokenizer of the same vocabulary and casing, built here anew and without special tokens."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, normalizers, pre_tokenizers

    vocab = {piece: number for number, piece in enumerate(tokenizer.pieces)}
    engine = Engine(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    engine.normalizer = normalizers.BertNormalizer(lowercase=tokenizer.lowercase)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return engine


def blocks(path: Path, size: int = 2_000_000) -> Iterator[list[str]]:
    """Lines of a text file, about `size` characters at a time."""
    lines, held = [], 0
    for document in sources.documents(path, "fail"):
        for line in document.split("\n"):
            lines.append(line)
            held += len(line) + 1
        if held >= size:
            yield lines
            lines, held = [], 0
    if lines:
        yield lines


def nasties(count: int, seed: int, pieces: tuple[str, ...]) -> list[str]:
    """Random lines of hard characters, words, pieces of a vocabulary and code points from everywhere."""
    rng = random.Random(seed)
    words = [piece.removeprefix("##") for piece in pieces]

    def code_point() -> str:
        number = rng.choice(
            (rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x110000))
        )
        return "\ufffd" if 0xD800 <= number < 0xE000 else chr(number)

    def part() -> str:
        kind = rng.randrange(10)
        if kind < 3:
            return "".join(rng.choices(CHARACTERS, k=rng.randrange(1, 5)))
        if kind < 5:
            return rng.choice(TEXTS)
        if kind < 7:
            return "".join(rng.choices(words, k=rng.randrange(1, 4)))
        if kind == 7:
            return "".join(code_point() for _ in range(rng.randrange(1, 6)))
        if kind == 8:
            word = rng.choice(words)
            return "".join(rng.choice((letter, letter.upper(), letter + rng.choice(CHARACTERS))) for letter in word)
        return rng.choice("ab\xe9\u4e00\uac00\u3042\u0301\U00010400=") * rng.choice(
            (1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 99)
        )

    lines = []
    for _ in range(count):
        line = "".join(part() + rng.choice(("", "", " ", " ", ".", "-")) for _ in range(rng.randrange(12)))
        if rng.random() < 0.01:
            line += rng.choice(("a", "\xc9", "e\u0301", "\uac00", "\U00010400")) * rng.choice(
                (99, 100, 101, 102, 10_000)
            )
        lines.append(line)
    return lines


def report(title: str, ours: Tokenizer, theirs, parts: Iterator[list[str]], offsets: int) -> int:
    """Compares and prints; how many lines differ."""
    lines = ids = places = wrong = 0
    begun = time.process_time()
    for number, block in enumerate(parts):
        with_offsets = offsets > 0 and number % offsets == 0
        mine = ours.encode_batch(block)
        found = (theirs.encode_batch if with_offsets else theirs.encode_batch_fast)(block, add_special_tokens=False)
        lines, ids = lines + len(block), ids + mine.ids.size
        wrong += compare(block, mine.ids, mine.rows, [encoding.ids for encoding in found])
        if with_offsets:
            more = ours.encode_batch(block, offsets=True)
            assert more.offsets is not None
            wrong += compare(block, more.ids, more.rows, [encoding.ids for encoding in found])
            spans = [[stripped(text, *span) for span in e.offsets] for text, e in zip(block, found, strict=True)]
            wrong += compare(block, more.offsets, more.rows, spans)
            places += len(more.offsets)
    seconds = time.process_time() - begun
    print(
        f"{title}: {lines:,} lines, {ids:,} ids, {places:,} offsets, {wrong} lines differ ({seconds:.0f} CPU s)",
        flush=True,
    )
    return wrong


def stripped(text: str, begin: int, end: int) -> tuple[int, int]:
    """A span without the blanks at its ends."""
    inner = text[begin:end]
    left = inner.lstrip()
    return end - len(left), end - len(left) + len(left.rstrip())


def compare(lines: list[str], flat: np.ndarray, rows: np.ndarray, wanted: list[list]) -> int:
    """Prints the lines whose ids or offsets differ; how many they are."""
    ends = np.cumsum([0, *map(len, wanted)])
    whole = np.array([item for row in wanted for item in row], np.int64).reshape(-1, *flat.shape[1:])
    if np.array_equal(rows, ends) and np.array_equal(flat, whole):
        return 0
    wrong = 0
    for number, (line, row) in enumerate(zip(lines, wanted, strict=True)):
        mine = flat[rows[number] : rows[number + 1]]
        if mine.tolist() != [list(item) if isinstance(item, tuple) else item for item in row]:
            wrong += 1
            if wrong <= 10:
                print(f"  {line[:80]!r}: {mine.tolist()[:20]} and not {row[:20]}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
