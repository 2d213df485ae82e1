"""Token ids and character offsets here beside transformers' BertTokenizer, for published vocabularies on whole corpora.

    python -m benchmarks.bert_tokenizer --vocab DIRECTORY/*.txt --text FILE [FILE ...] --nasties 20000

Each vocab.txt is opened bare, so its casing is found here from the pieces alone; BertTokenizer is told it by the name
of the file: lower-casing is off where that says "-cased" (Google's convention: uncased and Chinese models lower-case).
Texts are .txt, also .zst or .gz. Special tokens in text are ordinary characters on both sides
(`split_special_tokens`).
Ids by the fast path, ids with offsets, and the offsets themselves are compared on every line; what differs is printed,
exit status 1 if anything does.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before the library is loaded: one thread

from benchmarks.exactness import blocks, compare, nasties  # noqa: E402
from benchmarks.parity_tokenizer import NASTIES  # noqa: E402
from bert_jax.text.tokenizer import Tokenizer  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vocab", nargs="+", type=Path, required=True, help="vocab.txt files")
    parser.add_argument("--text", nargs="*", type=Path, default=[])
    parser.add_argument("--nasties", type=int, default=0, help="generated lines besides the hand-made ones (0)")
    parser.add_argument("--seed", type=int, default=0, help="of the generated lines (0)")
    args = parser.parse_args()

    wrong = 0
    for path in args.vocab:
        ours, theirs = Tokenizer.load(path), bert_tokenizer(path, lowercase="-cased" not in path.name)
        print(f"{path.name}: {ours.vocab_size:,} pieces, {'lower-casing' if ours.lowercase else 'cased'}", flush=True)
        hard = [*NASTIES, *nasties(args.nasties, args.seed, ours.pieces)]
        texts = [("nasties", (hard[at : at + 5000] for at in range(0, len(hard), 5000)))]
        texts += [(f"{file.parent.name}/{file.name}", blocks(file)) for file in args.text]
        for name, parts in texts:
            wrong += report(name, ours, theirs, parts)
    return 1 if wrong else 0


def bert_tokenizer(path: Path, lowercase: bool):
    """transformers' own class over a vocab.txt, whose path it takes by position only."""
    from transformers import BertTokenizer  # pyright: ignore[reportMissingImports]

    return BertTokenizer(str(path), do_lower_case=lowercase, split_special_tokens=True)


def report(title: str, ours: Tokenizer, theirs, parts: Iterable[list[str]]) -> int:
    """Compares and prints; how many lines differ."""
    lines = ids = wrong = 0
    begun = time.process_time()
    for block in parts:
        fast, slow = ours.encode_batch(block), ours.encode_batch(block, offsets=True)
        found = theirs(block, add_special_tokens=False, return_offsets_mapping=True)
        assert slow.offsets is not None
        lines, ids = lines + len(block), ids + slow.ids.size
        wrong += compare(block, fast.ids, fast.rows, found["input_ids"])
        wrong += compare(block, slow.ids, slow.rows, found["input_ids"])
        wrong += compare(block, slow.offsets, slow.rows, found["offset_mapping"])
    seconds = time.process_time() - begun
    print(
        f"  {title}: {lines:,} lines, {ids:,} ids and offsets, {wrong} lines differ ({seconds:.0f} CPU s)", flush=True
    )
    return wrong


if __name__ == "__main__":
    sys.exit(main())
