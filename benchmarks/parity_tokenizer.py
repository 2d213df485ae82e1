"""Token ids here beside transformers' AutoTokenizer, and beside SentencePiece's own library for its kinds.

Run it where transformers is installed, on any text:

    python -m benchmarks.parity_tokenizer TOKENIZER FILE [FILE ...] --lines 2000

takes lines of each file (.txt, also .zst or .gz), adds hand-made nasties, and lists every line that differs. Exit
status 1 if any differs from AutoTokenizer. SentencePiece may break a tie of scores the other way; such lines are
listed and counted, `tokenizers` is ours everywhere.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bert_jax.text.tokenizer import Tokenizer
from data_prep import sources

NASTIES = [
    "a\u0085b \u2028 c\u2029d",
    "tab\tand\x00nul\x0band\x1ccontrols\x7f",
    "\u0301lone \u0345 marks o\u0308\u0304\u0301",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 ☕️ \U0001f9d1\U0001f3fd",
    "עברית \u202eمرحبا\u202c بالعالم",
    "x" * 10_000,
    "literal [SEP] and [MASK] [CLS][PAD] ##ing [UNK]",
    "ＦＵＬＬ　ｗｉｄｔｈ ﬁ ﬀ ½ ² Ⅷ",
    "İstanbul ß ẞ ΣΑΣ σς",
    "한국어 각 각 中文没有空格 日本語ｶﾞ",
    "  many   blanks \u00a0\u3000 \u200b ",
    "=" * 40 + "*" * 37,
    "",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tokenizer", type=Path, help="a tokenizer directory or a vocab.txt")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--lines", type=int, default=2000, help="of each file (2000)")
    args = parser.parse_args()

    from transformers import AutoTokenizer  # pyright: ignore[reportMissingImports]

    ours = Tokenizer.load(args.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        ours.save(folder)
        theirs = AutoTokenizer.from_pretrained(folder)
        wrong = 0
        for name, lines in [
            ("nasties", NASTIES),
            *((f"{f.parent.name}/{f.name}", list(read(f, args.lines))) for f in args.files),
        ]:
            wanted = theirs(lines, add_special_tokens=False)["input_ids"]
            wrong += compare(f"{name}, AutoTokenizer", lines, ids_of(ours, lines), wanted)
            if (Path(folder) / "spiece.model").exists():
                import sentencepiece  # pyright: ignore[reportMissingImports]

                library = sentencepiece.SentencePieceProcessor(model_file=str(Path(folder) / "spiece.model"))
                compare(f"{name}, sentencepiece", lines, ids_of(ours, lines), library.encode(lines))
    return 1 if wrong else 0


def read(path: Path, count: int) -> Iterator[str]:
    lines = (line for document in sources.documents(path, "fail") for line in document.splitlines() if line.strip())
    return itertools.islice(lines, count)


def ids_of(tokenizer: Tokenizer, lines: list[str]) -> list[list[int]]:
    encoded = tokenizer.encode_batch(lines)
    return [encoded.ids[a:b].tolist() for a, b in itertools.pairwise(encoded.rows)]


def compare(title: str, lines: list[str], ours: list[list[int]], theirs: list[list[int]]) -> int:
    """Print what differs; how many lines do."""
    wrong = [number for number, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    print(f"{title}: {len(lines)} lines, {sum(map(len, ours)):,} ids, {len(wrong)} lines differ")
    for number in wrong:
        print(f"  {lines[number][:70]!r}")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
