"""Edited vocabularies in transformers: equal ids from the files, equal logits, and silence beyond the pieces."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import BertConfig
from bert_jax.convert import huggingface
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.vocabulary import Edit, add, apply, resize, trim
from bert_jax.model import bert
from bert_jax.text.edits import extended, trimmed
from bert_jax.text.tokenizer import Tokenizer, from_vocab
from data_prep.train_tokenizer import TokenizerSettings, train
from tests.parity.foreign import torch, transformers
from tests.readable import PIECES, readable_params
from tests.text import tiny

pytestmark = pytest.mark.filterwarnings("default")

DOMAIN = ("The capital of France is Paris.", "a \u2603 number [ ] berlin!", "return 今")
TEXTS = [*tiny.NASTIES, *DOMAIN, "Zebras are quaggas, zebra!", "germany 42 object"]


@pytest.fixture(scope="module")
def model() -> Loaded:
    config = BertConfig(vocab_size=len(PIECES), width=24, layers=1, heads=4, feed_forward=40, positions=48)
    return Loaded(config, readable_params(config), from_vocab(PIECES, lowercase=True), "BertForPreTraining")


def _edits(model: Loaded) -> dict[str, Edit]:
    return {
        "add": add(model.tokenizer, ["zebra", "\u2603"]),
        "trim": trim(model.tokenizer, DOMAIN),
        "resize": resize(model.tokenizer, model.config, multiple=64),
    }


@pytest.mark.parametrize("name", ["add", "trim", "resize"])
def test_an_edited_model_is_the_same_in_transformers(name, model, tmp_path):
    after = apply(_edits(model)[name], model)
    huggingface.write(tmp_path / "out", after)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.vocab_size == after.config.vocab_size

    encoded = after.tokenizer.encode_batch(TEXTS)
    found = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert sum(found, []) == encoded.ids.tolist()

    ids = after.tokenizer.encode_batch(["the zebra of \u2603 is number 42 [ ]"]).ids[None]
    with torch.no_grad():
        expected = theirs(torch.tensor(ids, dtype=torch.long)).prediction_logits.numpy()
    places = jnp.arange(ids.shape[1])[None]
    batch = {
        **{"input_ids": jnp.asarray(ids), "position_ids": places},
        **{"segment_ids": 0 * places, "sequence_ids": 0 * places + 1},
    }

    @jax.jit
    def logits(params):
        return bert.predict(after.config, params, bert.encode(after.config, params, batch).hidden, places)

    ours = np.asarray(logits(after.params))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert (expected.argmax(-1) < after.tokenizer.vocab_size).all()
    assert np.ptp(ours) > 1, "weights too quiet to tell"


@pytest.mark.parametrize("kind", ["unigram", "bpe", "unigram json", "bpe json"])
def test_edited_tokenizers_have_equal_ids_there(kind, tmp_path):
    text = tiny.text(60) + "\n" + "[MASK] [SEP] [CLS] [PAD] [UNK]. " * 20
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    name, _, lone = kind.partition(" ")
    tokenizer = train([str(tmp_path / "text.txt")], str(tmp_path / "old"), TokenizerSettings(name, 120))
    if lone:
        for file in ("spiece.model", "fingerprint"):
            (tmp_path / "old" / file).unlink()
        tokenizer = Tokenizer.load(tmp_path / "old")
    edited = trimmed(tokenizer, [*DOMAIN, tiny.text(2)])
    edited = extended(edited, ["zebra", "housetree"]) if name == "unigram" else edited
    _assert_same_ids(edited, tmp_path / "new")


def _assert_same_ids(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, *tiny.text(10).split("\n"), "a zebra, a housetree"]
    assert sum(theirs(texts, add_special_tokens=False)["input_ids"], []) == tokenizer.encode_batch(texts).ids.tolist()
    special = tokenizer.special
    assert (theirs.pad_token_id, theirs.mask_token_id) == (special.pad, special.mask)
    one = tokenizer.encode_batch(["the cat"]).ids.tolist()
    assert theirs("the cat")["input_ids"] == [special.cls, *one, special.sep]
