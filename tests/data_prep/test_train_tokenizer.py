"""`bert-data tokenizer`: sampling, sizes, being run again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from tqdm import tqdm

from bert_jax.text.tokenizer import Tokenizer
from data_prep import train_tokenizer
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
def test_too_many_pieces_for_the_text_are_refused_and_the_remedy_works(corpus, capsys, kind):
    assert _train(corpus, "--kind", kind, "--vocab", "9000") == 1
    error = capsys.readouterr().err
    assert "too little for 9,000 pieces" in error and error.count("\n") == 1
    assert not (corpus / "tok").exists()
    assert _train(corpus, "--kind", kind, "--vocab", re.search(r"--vocab (\d+)", error)[1]) == 0


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece"])
def test_too_few_pieces_for_the_alphabet_are_refused_and_the_remedy_works(corpus, capsys, kind):
    assert _train(corpus, "--kind", kind, "--vocab", "20") == 1
    error = capsys.readouterr().err
    assert "frequent characters" in error and "lower --coverage" in error and error.count("\n") == 1
    assert "character_coverage" not in error and "vocab_size" not in error
    least = re.search(r"--vocab (\d+)", error)[1]
    assert _train(corpus, "--kind", kind, "--vocab", least) == 0
    assert Tokenizer.load(corpus / "tok").vocab_size == int(least)


def test_a_wordpiece_vocabulary_that_ends_early_is_told(corpus, capsys):
    assert _train(corpus, "--kind", "wordpiece", "--vocab", "9000") == 0
    error = capsys.readouterr().err
    size = Tokenizer.load(corpus / "tok").vocab_size
    assert error.startswith("bert-data: note:") and f"{size:,} pieces, not 9,000" in error
    assert size < 9000


def test_a_sample_is_told(corpus, capsys):
    assert _train(corpus, "--kind", "wordpiece", "--sample-megabytes", "0.006") == 0
    assert "trained on a sample, 0.006 of 0.0" in capsys.readouterr().err


def test_text_without_words_is_refused(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\u200b\n")
    assert _train(tmp_path, "--kind", "wordpiece") == 1
    assert "holds no words" in capsys.readouterr().err


def test_words_that_can_only_be_unknown_do_not_shape_the_pieces(tmp_path):
    # "q" is rare enough to fall out of the alphabet: "zq" and "zqz" would otherwise give "z", "##z", "zz".
    (tmp_path / "a.txt").write_text("ab " * 3000 + "zqz zqz " + "a" * 101 + " " + "a" * 101 + "\n")
    assert _train(tmp_path, "--kind", "wordpiece", "--coverage", "0.9") == 0
    assert Tokenizer.load(tmp_path / "tok").pieces[5:] == ("a", "b", "##a", "##b", "ab")


def test_bytes_depend_on_no_hash_seed_and_no_number_of_threads(corpus):
    """Twice the same in processes of their own, with other hash seeds and other numbers of threads."""
    code = """
import sys
from pathlib import Path
from data_prep.extend import ExtendSettings, extend
from data_prep.train_tokenizer import TokenizerSettings, train
folder, out = sys.argv[1:]
for kind in ("unigram", "bpe", "wordpiece"):
    train([folder + "/a.txt"], f"{out}/{kind}", TokenizerSettings(kind, 80))
extend(out + "/wordpiece", [folder + "/a.txt"], out + "/extended", ExtendSettings(5))
"""
    found = []
    for number, threads in enumerate("17"):
        out = corpus / f"run{number}"
        threading = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS"), threads)
        environment = os.environ | threading | {"PYTHONHASHSEED": str(number), "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code, str(corpus), str(out)], env=environment, check=True)
        found.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert len(found[0]) == 4 * 5
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--vocab", "x", "'x' is not a whole number"),
        ("--vocab", "0", "0 is below 1"),
        ("--coverage", "much", "'much' is not a number"),
        ("--coverage", "nan", "'nan' is not a number"),
        ("--coverage", "2", "2 is not above 0 and at most 1"),
        ("--sample-megabytes", "-1", "-1 is not above 0"),
        ("--seed", "1.5", "'1.5' is not a whole number"),
    ],
)
def test_values_that_are_none_are_named_in_a_sentence(corpus, capsys, option, value, message):
    with pytest.raises(SystemExit) as stopped:
        _train(corpus, option, value)
    assert stopped.value.code == 2
    assert f"argument {option}: {message}" in capsys.readouterr().err


def test_counts_beyond_the_limit_are_divided_and_keep_their_shares(monkeypatch):
    chunks = Counter({f"rare{number:04}": 1 for number in range(4000)} | {"frequent": 4000})
    everything = list(train_tokenizer._counted(chunks, tqdm(disable=True)))
    assert everything[:2] == ["frequent\t4000", "rare0000\t1"] and len(everything) == 4001
    monkeypatch.setattr(train_tokenizer, "_CHARACTERS", 18_000)  # a quarter of 8,000 words of 9 with their blank
    counts = dict(line.split("\t") for line in train_tokenizer._counted(chunks, tqdm(disable=True)))
    assert counts.pop("frequent") in ("1000", "1001", "999")
    assert set(counts.values()) == {"1"} and 900 < len(counts) < 1100
