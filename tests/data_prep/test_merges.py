"""The merge loop against a plain one, and against the trainer of `tokenizers`."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data_prep.merges import learn
from tests.text import tiny


def _alphabet(words) -> list[str]:
    first = sorted({word[0] for word in words})
    return ["[UNK]", *first, *sorted({"##" + character for word in words for character in word[1:]})]


def _plain(words: list[str], counts: list[int], pieces: list[str], size: int, least: int = 2) -> list[str]:
    """Counts all pairs anew before each merge."""
    found = list(pieces)
    split = [[word[0], *("##" + character for character in word[1:])] for word in words]
    while len(found) < size:
        pairs: Counter[tuple[int, int]] = Counter()
        for parts, count in zip(split, counts, strict=True):
            for a, b in zip(parts, parts[1:], strict=False):
                pairs[found.index(a), found.index(b)] += count
        pairs = Counter({pair: count for pair, count in pairs.items() if count >= least})
        if not pairs:
            break
        a, b = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merged = found[a] + found[b].removeprefix("##")
        if merged not in found:
            found.append(merged)
        for parts in split:
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == (found[a], found[b]):
                    parts[at : at + 2] = [merged]
                at += 1
    return found


@pytest.mark.parametrize("letters", ["ab", "abc", "abcdefg"])
def test_pieces_are_those_of_counting_anew_each_time(letters):
    # Two letters make runs such as "aaa" and "abab", where places of a pair overlap or touch.
    rng = np.random.default_rng(len(letters))
    for _ in range(40):
        made = {"".join(rng.choice(list(letters), rng.integers(1, 10))) for _ in range(30)}
        words = sorted(made)
        counts = rng.integers(1, 6, len(words)).tolist()
        pieces = _alphabet(words)
        size = len(pieces) + int(rng.integers(0, 60))
        assert learn(words, counts, pieces, size) == _plain(words, counts, pieces, size)


def test_one_piece_reached_by_two_merges_is_there_once():
    words, counts = ["abc", "abd", "xbc", "ybc", "abcabc"], [9, 20, 30, 30, 5]
    pieces = _alphabet(words)
    found = learn(words, counts, pieces, 100)
    assert len(set(found)) == len(found)
    assert found == _plain(words, counts, pieces, 100)


def test_pieces_are_those_of_the_library_where_it_numbers_characters_alike():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = Counter(tiny.text(60).replace(".", "").split())
    alphabet = sorted(set("".join(words)))
    fixed = ["[UNK]", *alphabet, *("##" + character for character in alphabet)]
    engine = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=160,
        min_frequency=2,
        special_tokens=fixed,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    engine.train_from_iterator((word for word in sorted(words) for _ in range(words[word])), trainer)
    vocab = engine.get_vocab()
    order = sorted(words)
    assert learn(order, [words[word] for word in order], fixed, 160) == sorted(vocab, key=vocab.get)


def test_pairs_seen_once_are_not_merged_and_progress_counts_pieces():
    steps = []
    found = learn(["ab", "cd"], [1, 2], ["a", "c", "##b", "##d"], 10, progress=steps.append)
    assert found == ["a", "c", "##b", "##d", "cd"] and steps == [1]
