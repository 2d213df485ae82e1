"""`bert-data tokenizer`: sampling, sizes, being run again."""

from __future__ import annotations

import pytest

from bert_jax.text.tokenizer import Tokenizer
from data_prep.cli import main
from tests.text import tiny


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "a.txt").write_text(tiny.text(60))
    return tmp_path


def _train(corpus, *more: str) -> int:
    return main(["tokenizer", str(corpus / "a.txt"), "--out", str(corpus / "tok"), "--vocab", "80", *more])


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece"])
def test_each_kind_has_the_size_asked_for(corpus, kind):
    assert _train(corpus, "--kind", kind) == 0
    tokenizer = Tokenizer.load(corpus / "tok")
    assert (tokenizer.kind, tokenizer.vocab_size) == (kind, 80)
    encoded = tokenizer.encode_batch([tiny.text(3, seed=5)])
    assert tokenizer.special.unk not in encoded.ids


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_lower_makes_case_irrelevant(corpus, kind):
    assert _train(corpus, "--kind", kind, "--lower", "--vocab", "65") == 0
    tokenizer = Tokenizer.load(corpus / "tok")
    assert tokenizer.encode_batch(["THE CAT"]).ids.tolist() == tokenizer.encode_batch(["the cat"]).ids.tolist()


def test_the_same_again_is_already_done_and_others_are_refused(corpus, capsys):
    assert _train(corpus) == 0 and _train(corpus) == 0
    assert "already done" in capsys.readouterr().err
    assert _train(corpus, "--kind", "bpe") == 1
    assert "other settings" in capsys.readouterr().err
    assert Tokenizer.load(corpus / "tok").kind == "unigram"


def test_a_sample_is_drawn_by_document_and_seed(corpus, capsys):
    prints = []
    for number, seed in enumerate("001"):
        (corpus / "tok").exists() and (corpus / "tok").rename(corpus / f"tok{number}")
        assert _train(corpus, "--kind", "wordpiece", "--sample-megabytes", "0.006", "--seed", seed) == 0
        prints.append(Tokenizer.load(corpus / "tok").fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_too_many_pieces_for_the_text_are_refused(corpus, capsys, kind):
    assert _train(corpus, "--kind", kind, "--vocab", "9000") == 1
    error = capsys.readouterr().err
    assert "cannot train 9000 pieces" in error and error.count("\n") == 1
    assert not (corpus / "tok").exists()


def test_too_few_pieces_for_the_alphabet_are_refused(corpus, capsys):
    assert _train(corpus, "--kind", "wordpiece", "--vocab", "20") == 1
    assert "frequent characters" in capsys.readouterr().err
