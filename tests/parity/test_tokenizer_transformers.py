"""A saved tokenizer in transformers' AutoTokenizer: the same ids, special tokens included."""

from __future__ import annotations

import json
from pydoc_data.topics import topics

import numpy as np
import pytest

from bert_jax.text.tokenizer import Tokenizer, from_vocab
from data_prep.train_tokenizer import TokenizerSettings, train
from tests.text import tiny

pytestmark = pytest.mark.filterwarnings("default")

TEXTS = [
    *tiny.NASTIES,
    *tiny.text(30, seed=4).split("\n"),
    "Straßen führen über 20.000\xa0Brücken – „Nein“, sagte er.",
    "언어 모델은 문장을 배운다. (2015년)",
    "自然语言处理，是人工智能的一个分支。",
]


@pytest.fixture(scope="module", params=["unigram", "unigram lower", "bpe", "wordpiece", "wordpiece lower", "accents"])
def pair(request, tmp_path_factory):
    """Our tokenizer and transformers' view of its directory."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    # The language reference that comes with Python, and characters of other scripts.
    prose = [topics[name] for name in sorted(topics)[:12]]
    text = "\n\n".join([*prose, *TEXTS * 3, *["[MASK] [SEP] [CLS] [PAD] [UNK]"] * 30])
    (folder / "a.txt").write_text(text, encoding="utf-8")
    kind, _, lower = request.param.partition(" ")
    if kind == "accents":
        # Lower-casing with the accents kept: an option that only the configuration tells.
        from_vocab([*tiny.PIECES, "é", "##é"], lowercase=True, strip_accents=False).save(folder / "tok")
    else:
        settings = TokenizerSettings(kind, 600, lower == "lower", coverage=0.999, on_bad_bytes="replace")
        train([str(folder / "a.txt")], str(folder / "tok"), settings)
    return Tokenizer.load(folder / "tok"), transformers.AutoTokenizer.from_pretrained(folder / "tok"), folder


def _assert_same(ours, theirs):
    encoded = ours.encode_batch(TEXTS)
    found = theirs(TEXTS, add_special_tokens=False)["input_ids"]
    for number, text in enumerate(TEXTS):
        assert found[number] == encoded.ids[encoded.rows[number] : encoded.rows[number + 1]].tolist(), repr(text[:60])


def test_ids_are_the_same_on_nasties_and_four_languages(pair):
    ours, theirs, _ = pair
    _assert_same(ours, theirs)


def test_ids_survive_transformers_own_save(pair, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours, theirs, _ = pair
    theirs.save_pretrained(tmp_path)
    _assert_same(ours, transformers.AutoTokenizer.from_pretrained(tmp_path))


def test_ids_are_the_same_beside_the_configuration_of_a_bert_model(pair, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours, _, _ = pair
    ours.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForPreTraining"]}))
    _assert_same(ours, transformers.AutoTokenizer.from_pretrained(tmp_path))


def test_special_tokens_are_known_and_pairs_are_framed(pair):
    ours, theirs, _ = pair
    special = ours.special
    found = (
        theirs.pad_token_id,
        theirs.unk_token_id,
        theirs.cls_token_id,
        theirs.sep_token_id,
        theirs.mask_token_id,
    )
    assert found == (special.pad, special.unk, special.cls, special.sep, special.mask)
    one, two = (ours.encode_batch([text]).ids.tolist() for text in ("the cat", "a dog"))
    framed = theirs("the cat", "a dog")
    assert framed["input_ids"] == [special.cls, *one, special.sep, *two, special.sep]
    assert framed["token_type_ids"] == [0] * (len(one) + 2) + [1] * (len(two) + 1)
    padded = theirs(["the cat", "the"], padding=True)
    assert padded["input_ids"][1][-1] == special.pad and padded["attention_mask"][1][-1] == 0


def test_offsets_lie_where_transformers_sees_the_tokens(pair):
    ours, theirs, _ = pair
    text = "The  cat, über dog!"
    found = theirs(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    mine = ours.encode_batch([text], offsets=True).offsets
    assert len(found) == len(mine)
    for (a, b), (c, d) in zip(found, mine.tolist(), strict=True):
        assert a <= c and d <= b and text[a:b].strip() == text[c:d]


def test_what_transformers_saved_is_loaded_back(pair, tmp_path):
    ours, theirs, _ = pair
    theirs.save_pretrained(tmp_path)
    again = Tokenizer.load(tmp_path)
    np.testing.assert_array_equal(again.encode_batch(TEXTS).ids, ours.encode_batch(TEXTS).ids)
    assert again.special == ours.special
