"""`bert-data extend`: which words, where they go, what stays."""

from __future__ import annotations

import json

import pytest

from bert_jax.text.tokenizer import Tokenizer, from_vocab
from data_prep.cli import main
from data_prep.extend import figures, propose
from tests.text import tiny

# "walkable" is cut into 2 pieces, "unables" into 3, "zebra" is unknown.
TEXT = "The walkable house. " * 6 + "The unables! " * 4 + "zebra " * 2


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"{number} {TEXT}" for number in range(60)))
    pieces = ["[PAD]", "[unused0]", "[unused1]", "[unused2]", *tiny.PIECES[1:]]
    from_vocab(pieces, lowercase=True, strip_accents=False).save(tmp_path / "old")
    return tmp_path


def _extend(folder, *more: str, old: str = "old") -> int:
    return main(["extend", str(folder / old), str(folder / "a.txt"), "--out", str(folder / "new"), *more])


def test_words_are_chosen_by_the_tokens_they_save():
    counts = {"walkable": 6, "unables": 4, "zebra": 2, "playing": 3, "the": 100, "unable": 1, "a" * 101: 50}
    found = propose(tiny.tokenizer(), counts, 10)
    assert [(each.word, each.gain, each.pieces) for each in found] == [
        ("zebra", 10, ("[UNK]",)),
        ("unables", 8, ("un", "##able", "##s")),
        ("walkable", 6, ("walk", "##able")),
        ("playing", 3, ("play", "##ing")),
    ]
    assert propose(tiny.tokenizer(), counts, 2) == found[:2]


def test_old_ids_stay_and_options_are_kept(folder, capsys):
    assert _extend(folder, "--add", "3") == 0
    old, new = Tokenizer.load(folder / "old"), Tokenizer.load(folder / "new")
    assert new.pieces[: old.vocab_size] == old.pieces
    assert new.pieces[old.vocab_size :] == ("zebra", "unables", "walkable")
    assert new.encode_batch(["The WALKABLE house"]).ids.tolist() == [
        new.pieces.index(piece) for piece in ("the", "walkable", "house")
    ]
    config = json.loads((folder / "new" / "tokenizer_config.json").read_text())
    assert (config["do_lower_case"], config["strip_accents"]) == (True, False)
    out = capsys.readouterr().out
    assert "walk ##able" in out and "held out" in out and "3 words added" in out


def test_unused_slots_take_the_words_and_the_size_stays(folder, capsys):
    assert _extend(folder, "--add", "2", "--use-unused") == 0
    old, new = Tokenizer.load(folder / "old"), Tokenizer.load(folder / "new")
    assert new.vocab_size == old.vocab_size
    changed = [number for number in range(old.vocab_size) if new.pieces[number] != old.pieces[number]]
    assert changed == [1, 2] and new.special == old.special
    assert new.encode_batch([new.pieces[1]]).ids.tolist() == [1]


def test_too_few_unused_slots_are_refused(folder, capsys):
    assert _extend(folder, "--add", "4", "--use-unused") == 1
    assert "has 3 pieces named [unusedN], too few for 4 words; pass --add 3" in capsys.readouterr().err
    assert not (folder / "new").exists()


def test_fewer_words_than_asked_for_are_told(folder, capsys):
    assert _extend(folder, "--add", "1000") == 0
    captured = capsys.readouterr()
    assert "words to add, not 1,000" in captured.err and captured.err.count("\n") == 1
    assert Tokenizer.load(folder / "new").vocab_size == Tokenizer.load(folder / "old").vocab_size + 3


def test_sentencepiece_is_refused_in_one_sentence(folder, capsys):
    text = str(folder / "a.txt")
    assert main(["tokenizer", text, "--out", str(folder / "spiece"), "--vocab", "36"]) == 0
    capsys.readouterr()
    assert _extend(folder, "--add", "3", old="spiece") == 1
    error = capsys.readouterr().err
    assert "words can be added to WordPiece only" in error and error.count("\n") == 1


def test_the_same_again_is_already_done_and_another_is_refused(folder, capsys):
    assert _extend(folder, "--add", "2") == 0 and _extend(folder, "--add", "2") == 0
    assert "already done" in capsys.readouterr().err
    assert _extend(folder, "--add", "3") == 1
    assert "other settings" in capsys.readouterr().err


def test_figures_count_each_word_as_often_as_it_stands():
    counts = {"the": 6, "walking": 3, "zebra": 1}
    found = figures(tiny.tokenizer(), counts)
    assert (found.fertility, found.whole, found.unknown) == (1.3, 0.6, 0.1)


def test_a_single_document_is_compared_with_itself_and_that_is_told(folder, capsys):
    (folder / "a.txt").write_text(TEXT)
    assert _extend(folder, "--add", "2") == 0
    assert "of the same text" in capsys.readouterr().out
