"""Words added, pieces trimmed: what is cut as before, what is not, and that files follow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.text import spiece
from bert_jax.text.edits import as_piece, extended, trimmed
from bert_jax.text.tokenizer import SPECIAL_NAMES, Tokenizer, from_vocab
from data_prep.train_tokenizer import TokenizerSettings, train
from tests.text import tiny

KINDS = ("wordpiece", "unigram", "bpe", "unigram json", "bpe json")
DOMAIN = ("The cat sat on the mat, walking!", "a \u2603 unable \u65e5 dogs", "", "man woman\u2028child")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Tokenizer]:
    """A tokenizer of each kind, and SentencePiece's also as a lone tokenizer.json."""
    folder = tmp_path_factory.mktemp("edits")
    (folder / "text.txt").write_text(tiny.text(60) + "\n" + "[MASK] [SEP] [CLS] [PAD] [UNK]. " * 20, encoding="utf-8")
    found = {}
    for kind, size in (("wordpiece", 120), ("unigram", 120), ("bpe", 160)):
        lower = kind == "wordpiece"
        found[kind] = train([str(folder / "text.txt")], str(folder / kind), TokenizerSettings(kind, size, lower))
        if kind != "wordpiece":
            for name in ("spiece.model", "fingerprint"):
                (folder / kind / name).unlink()
            found[f"{kind} json"] = Tokenizer.load(folder / kind)
            assert found[f"{kind} json"].file[0] == "tokenizer.json"
    return found


def _pieces(tokenizer: Tokenizer, texts: list[str] | tuple[str, ...]) -> list[list[str]]:
    encoded = tokenizer.encode_batch(texts)
    rows = zip(encoded.rows[:-1], encoded.rows[1:], strict=True)
    return [[tokenizer.pieces[number] for number in encoded.ids[a:b]] for a, b in rows]


def _assert_saved_alike(tokenizer: Tokenizer, folder: Path) -> None:
    texts = [*tiny.NASTIES, *DOMAIN, tiny.text(2)]
    tokenizer.save(folder)
    again = Tokenizer.load(folder)
    assert (again.fingerprint, again.special) == (tokenizer.fingerprint, tokenizer.special)
    np.testing.assert_array_equal(again.encode_batch(texts).ids, tokenizer.encode_batch(texts).ids)


# ------------------------------------------------------------------------------------------------------- adding


def test_a_word_is_added_as_the_tokenizer_normalises_it():
    tokenizer = from_vocab([*tiny.PIECES, "[unused0]"], lowercase=True, strip_accents=False)
    found = extended(tokenizer, ["Zebra", "caf\u00c9", "zebra", "the", " quagga\n"])
    assert found.pieces == (*tokenizer.pieces, "zebra", "caf\u00e9", "quagga")
    assert _pieces(found, ["ZEBRA caf\u00e9s zebras"]) == [["zebra", "caf\u00e9", "##s", "zebra", "##s"]]
    assert found.options == tokenizer.options and found.special == tokenizer.special
    assert as_piece(tokenizer, "e-mail") is None and as_piece(tokenizer, "a" * 101) is None


@pytest.mark.parametrize("word", ["e-mail", "two words", "", " ", "a" * 101, "\u4e2d\u6587", "[MASK]"])
def test_what_can_be_no_piece_is_refused(word):
    with pytest.raises(UserError, match="cannot be one piece"):
        extended(tiny.tokenizer(), [word])


def test_unused_slots_take_words_in_their_order():
    tokenizer = from_vocab(["[PAD]", "[unused3]", "[unused1]", *tiny.PIECES[1:]], lowercase=True)
    found = extended(tokenizer, ["zebra", "quagga"], use_unused=True)
    assert found.pieces[:3] == ("[PAD]", "zebra", "quagga") and found.pieces[3:] == tokenizer.pieces[3:]
    with pytest.raises(UserError, match="2 pieces named .unusedN., too few for 3 words"):
        extended(tokenizer, ["zebra", "quagga", "okapi"], use_unused=True)


@pytest.mark.parametrize("kind", ["unigram", "unigram json"])
def test_a_unigram_word_wins_over_its_pieces_and_nothing_else_changes(trained, kind, tmp_path):
    tokenizer = trained[kind]
    words = ["housetree", "catfish\u2603", "bluebird"]
    assert all(len(pieces) > 1 for pieces in _pieces(tokenizer, words))
    found = extended(tokenizer, words)
    assert found.pieces[: tokenizer.vocab_size] == tokenizer.pieces
    assert _pieces(found, words) == [["\u2581" + word] for word in words]
    assert _pieces(found, ["a bluebird sat"])[0][1] == "\u2581bluebird"
    # Unknown characters too: their price hangs on the lowest score of all.
    texts = [*tiny.NASTIES, *DOMAIN, *tiny.text(30).split("\n"), "blue bird cat \u2603fish house \u2603\u2604 tree"]
    np.testing.assert_array_equal(found.encode_batch(texts).ids, tokenizer.encode_batch(texts).ids)
    _assert_saved_alike(found, tmp_path)


def test_bpe_takes_no_words(trained):
    with pytest.raises(UserError, match="merges that build them would change other words"):
        extended(trained["bpe"], ["zebra"])


# ----------------------------------------------------------------------------------------------------- trimming


@pytest.mark.parametrize("kind", KINDS)
def test_a_domain_is_cut_as_before_by_fewer_pieces(trained, kind, tmp_path):
    tokenizer = trained[kind]
    found = trimmed(tokenizer, iter(DOMAIN))
    assert _pieces(found, DOMAIN) == _pieces(tokenizer, DOMAIN)
    assert found.vocab_size < 0.7 * tokenizer.vocab_size
    assert set(SPECIAL_NAMES) <= set(found.pieces)
    order = [tokenizer.pieces.index(piece) for piece in found.pieces]
    assert order == sorted(order), "ids move together"
    assert trimmed(found, DOMAIN).pieces == found.pieces
    _assert_saved_alike(found, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sentence_of_a_text_is_cut_as_before(trained, kind):
    tokenizer, lines = trained[kind], tiny.text(20, seed=9).replace("\n\n", "\n").rstrip().split("\n")
    for at in range(0, len(lines), 7):
        found = trimmed(tokenizer, lines[at : at + 7])
        assert _pieces(found, lines[at : at + 7]) == _pieces(tokenizer, lines[at : at + 7])


@pytest.mark.parametrize("kind", KINDS)
def test_nasties_are_a_domain_like_any_other(trained, kind):
    found = trimmed(trained[kind], tiny.NASTIES)
    assert _pieces(found, tiny.NASTIES) == _pieces(trained[kind], tiny.NASTIES)


def test_an_unknown_word_stays_unknown_though_shorter_pieces_would_cut_it():
    # "abc" begins with "ab", behind which nothing fits. Without "ab" it would be "a", "##bc".
    tokenizer = from_vocab([*SPECIAL_NAMES, "a", "ab", "##bc", "##b"], lowercase=True)
    texts = ["abc", "a", "abcbc", "aabc", "b" * 101]
    assert _pieces(tokenizer, texts)[0] == ["[UNK]"]
    assert _pieces(trimmed(tokenizer, ["abc", "aab", "abcbc", "aabc"]), texts[:1]) == [["[UNK]"]]
    kept = trimmed(tokenizer, ["abc"]).pieces
    assert kept == (*SPECIAL_NAMES, "ab")


def _unigram(folder: Path, pieces: list[tuple[str, float]]) -> Tokenizer:
    vocab = [*([name, 0.0] for name in SPECIAL_NAMES), *map(list, pieces)]
    tree = {
        "model": {"type": "Unigram", "unk_id": 1, "vocab": vocab},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    return Tokenizer.load(folder)


def test_unknown_characters_keep_their_price_in_unigram(tmp_path):
    # In "abcd" an unknown "\u2581" and "abcd" would win, if the unknown were priced from what the texts need.
    pieces = [("\u2581ab", -15.0), ("cd", -15.0), ("abcd", -1.0), ("\u2581x", -1.0), ("more", -2.0)]
    tokenizer, texts = _unigram(tmp_path, [*pieces, ("never", -30.0)]), ["abcd", "xabcd"]
    assert _pieces(tokenizer, texts) == [["\u2581ab", "cd"], ["\u2581x", "abcd"]]
    found = trimmed(tokenizer, texts)
    assert _pieces(found, texts) == _pieces(tokenizer, texts)
    assert "never" in found.pieces and "more" not in found.pieces
    # Without "never" they do win, and would no longer, if a word of many dear pieces were as dear as they are together.
    tokenizer = _unigram(tmp_path, pieces)
    assert _pieces(tokenizer, texts)[0] == ["[UNK]", "abcd"]
    found = extended(tokenizer, ["cdcdcd"])
    assert _pieces(found, [*texts, "cdcdcd"]) == [*_pieces(tokenizer, texts), ["\u2581cdcdcd"]]


def test_texts_without_a_token_are_refused():
    with pytest.raises(UserError, match="hold nothing"):
        trimmed(tiny.tokenizer(), ["", " \u2028"])


def test_framing_follows_in_a_tokenizer_json(trained, tmp_path):
    from tokenizers import Tokenizer as Engine

    found = trimmed(trained["unigram json"], DOMAIN)
    found.save(tmp_path)
    framed = Engine.from_file(str(tmp_path / "tokenizer.json")).encode("the cat", "a dog").ids
    one, two = (found.encode_batch([text]).ids.tolist() for text in ("the cat", "a dog"))
    special = found.special
    assert framed == [special.cls, *one, special.sep, *two, special.sep]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_itself_reads_the_new_file(trained, kind):
    library = pytest.importorskip("sentencepiece")
    found = trimmed(trained[kind], DOMAIN)
    found = extended(found, ["housetree"]) if kind == "unigram" else found
    processor = library.SentencePieceProcessor(model_proto=found.file[1])
    assert processor.vocab_size() == found.vocab_size
    texts = [*DOMAIN, "a housetree"]
    assert [processor.encode(text, out_type=int) for text in texts] == [
        found.encode_batch([text]).ids.tolist() for text in texts
    ]


def test_a_model_file_rewritten_with_all_its_pieces_reads_the_same(trained):
    data = trained["unigram"].file[1]
    model = spiece.read(data, "")
    again = spiece.read(spiece.rewritten(data, range(len(model.pieces)), [("\u2581neu", -3.5)]), "")
    assert (again.pieces[:-1], again.scores[:-1], again.types[:-1]) == (model.pieces, model.scores, model.types)
    assert (again.pieces[-1], again.scores[-1], again.types[-1]) == ("\u2581neu", -3.5, spiece.NORMAL)
    assert (again.kind, again.charsmap) == (model.kind, model.charsmap)
