"""Another vocabulary under the same model: what is computed stays where it must, and all that is V long follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.api import open_model
from bert_jax.cli import main
from bert_jax.config import BertConfig
from bert_jax.convert import huggingface
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.vocabulary import NEVER, add, apply, between, resize, trim
from bert_jax.errors import UserError
from bert_jax.model import bert
from bert_jax.text.edits import extended
from bert_jax.text.tokenizer import Tokenizer, from_vocab
from tests.readable import PIECES, readable_params

# "\u2603" is unknown to the vocabulary, "zebra" is five letters of it.
DOMAIN = ("The capital of France is Paris.", "a \u2603 number [ ] berlin!", "return 今")
OTHER = "germany 42 object"


@pytest.fixture(scope="module")
def model() -> Loaded:
    config = BertConfig(vocab_size=len(PIECES), width=24, layers=1, heads=4, feed_forward=40, positions=48)
    return Loaded(config, readable_params(config), from_vocab(PIECES, lowercase=True), "BertForPreTraining")


def _computed(model: Loaded, text: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Pieces, hidden states [T, D] and masked-LM logits [T, V] of a text, in rows of one length whatever the text."""
    ids = model.tokenizer.encode_batch([text]).ids
    row = np.full((1, 24), model.tokenizer.special.pad, np.int32)
    row[0, : len(ids)] = ids
    places = np.arange(24, dtype=np.int32)[None]
    batch: dict[str, Any] = {
        "input_ids": row,
        "segment_ids": np.zeros_like(row),
        "position_ids": places,
        "sequence_ids": (places < len(ids)).astype(np.int32),
    }
    params = jax.tree.map(jnp.asarray, model.params)
    hidden = bert.encode(model.config, params, {name: jnp.asarray(value) for name, value in batch.items()}).hidden
    logits = bert.predict(model.config, params, hidden, jnp.asarray(places))
    pieces = [model.tokenizer.pieces[number] for number in ids]
    return pieces, np.asarray(hidden)[0, : len(ids)], np.asarray(logits)[0, : len(ids)]


def _assert_same(before: Loaded, after: Loaded, text: str) -> None:
    """Hidden states bit for bit, and the logits of pieces that both have."""
    (pieces, hidden, logits), (found, states, scores) = _computed(before, text), _computed(after, text)
    assert pieces == found
    np.testing.assert_array_equal(states, hidden)
    kept = [piece for piece in after.tokenizer.pieces if piece in before.tokenizer.pieces]
    ours, theirs = ([m.tokenizer.pieces.index(piece) for piece in kept] for m in (after, before))
    np.testing.assert_allclose(scores[:, ours], logits[:, theirs], atol=1e-6)


def _assert_sized(model: Loaded, rows: int) -> None:
    """The model's own idea of its tree, at the new size: nothing V long is forgotten."""
    assert model.config.vocab_size == rows
    shapes = jax.eval_shape(lambda: bert.init(model.config, jax.random.key(0)))
    assert jax.tree.map(lambda leaf: leaf.shape, model.params) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_an_added_word_begins_as_the_mean_of_its_pieces(model):
    after = apply(add(model.tokenizer, ["Zebra", "\u2603", "of"]), model)
    size = len(PIECES)
    assert after.tokenizer.pieces[size:] == ("zebra", "\u2603")
    _assert_sized(after, size + 2)
    parts = [PIECES.index(piece) for piece in ("z", "##e", "##b", "##r", "##a")]
    for leaf in (("embeddings", "word"), ("masked_lm", "bias")):
        old, new = (m.params[leaf[0]][leaf[1]] for m in (model, after))
        assert new.dtype == np.float32
        np.testing.assert_array_equal(new[:size], old)
        np.testing.assert_allclose(new[size], old[parts].mean(0), rtol=1e-6)
        np.testing.assert_array_equal(new[size + 1], old[model.tokenizer.special.unk])
    for text in (DOMAIN[0], OTHER):
        _assert_same(model, after, text)
    # A word that was unknown is read as before, until it is trained.
    np.testing.assert_array_equal(_computed(after, DOMAIN[1])[1], _computed(model, DOMAIN[1])[1])
    assert after.params["layers"]["mlp"]["up"]["kernel"] is model.params["layers"]["mlp"]["up"]["kernel"]


def test_a_trimmed_model_computes_the_same_inside(model):
    after = apply(trim(model.tokenizer, DOMAIN), model)
    assert after.tokenizer.vocab_size < len(PIECES) / 3
    _assert_sized(after, after.tokenizer.vocab_size)
    for text in DOMAIN:
        _assert_same(model, after, text)
    assert _computed(after, OTHER)[0] != _computed(model, OTHER)[0]


def test_rows_beyond_the_pieces_are_never_predicted(model):
    after = apply(resize(model.tokenizer, model.config, multiple=128), model)
    _assert_sized(after, 128)
    assert after.tokenizer.vocab_size == len(PIECES)
    for text in (DOMAIN[1], OTHER):
        _assert_same(model, after, text)
        before, padded = (jax.nn.softmax(_computed(m, text)[2], -1) for m in (model, after))
        assert not padded[:, len(PIECES) :].any()
        np.testing.assert_allclose(padded[:, : len(PIECES)], before, atol=1e-6)
    gradient = jax.jit(jax.grad(_loss(after)))(jax.tree.map(jnp.asarray, after.params))
    assert not gradient["embeddings"]["word"][len(PIECES) :].any() and gradient["embeddings"]["word"].any()
    assert not gradient["masked_lm"]["bias"][len(PIECES) :].any()
    assert (after.params["masked_lm"]["bias"][len(PIECES) :] == NEVER).all()
    back = apply(resize(model.tokenizer, after.config), after)
    for a, b in zip(jax.tree.leaves(back.params), jax.tree.leaves(model.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(resize(model.tokenizer, model.config, 97, 4).rows) == 100


def _loss(model: Loaded):
    ids = jnp.asarray(model.tokenizer.encode_batch([OTHER]).ids)[None]
    ones = jnp.ones_like(ids)
    batch = {"input_ids": ids, "segment_ids": 0 * ids, "position_ids": 0 * ids, "sequence_ids": ones}

    def loss(params):
        hidden = bert.encode(model.config, params, batch).hidden
        scores = jax.nn.log_softmax(bert.predict(model.config, params, hidden, 0 * ids))
        return -jnp.take_along_axis(scores, ids[..., None], 2).mean()

    return loss


def test_a_word_added_is_kept_by_a_trim_that_needs_it(model):
    added = apply(add(model.tokenizer, ["zebra"]), model)
    after = apply(trim(added.tokenizer, ["The zebra is \u2603"]), added)
    assert after.tokenizer.pieces[-1] == "zebra"
    _assert_same(added, after, "the zebra")
    np.testing.assert_array_equal(after.params["embeddings"]["word"][-1], added.params["embeddings"]["word"][-1])


def test_a_tokenizer_with_words_in_unused_slots_is_followed(model):
    pieces = [*PIECES, "[unused0]", "[unused1]"]
    config = replace(model.config, vocab_size=len(pieces))
    roomy = Loaded(config, readable_params(config), from_vocab(pieces, lowercase=True))
    after = apply(between(roomy.tokenizer, extended(roomy.tokenizer, ["zebra"], use_unused=True)), roomy)
    assert after.tokenizer.pieces[-2:] == ("zebra", "[unused1]")
    _assert_sized(after, len(pieces))
    word, old = after.params["embeddings"]["word"], roomy.params["embeddings"]["word"]
    np.testing.assert_array_equal(word[-1], old[-1])
    assert not np.array_equal(word[-2], old[-2])


def test_what_continues_a_word_is_cut_as_such_and_special_tokens_go_by_role(model):
    old = from_vocab(["[MASK]", "[PAD]", "[SEP]", "[CLS]", "[UNK]", "un", "##in", "##g", "in", "g"])
    new = from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##ing", "ing", "##x"])
    assert between(old, new).rows == ((1,), (4,), (3,), (2,), (0,), (6, 7), (8, 7), (4,))


@pytest.mark.parametrize("settings", [{"embedding": 8, "groups": 1}, {"embedding": 8, "segments": 0}])
def test_relatives_with_other_tables_follow(settings):
    config = BertConfig(len(PIECES), width=24, layers=2, heads=4, feed_forward=40, positions=48, **settings)
    params = readable_params(config)
    model = Loaded(config, params, from_vocab(PIECES, lowercase=True))
    after = apply(trim(model.tokenizer, DOMAIN), model)
    assert after.params["embeddings"]["word"].shape == (after.tokenizer.vocab_size, 8)
    _assert_same(model, after, DOMAIN[0])


def test_an_encoder_without_heads_follows(model):
    parts = {name: model.params[name] for name in ("embeddings", "layers")}
    after = apply(trim(model.tokenizer, DOMAIN), replace(model, params=parts))
    assert after.params.keys() == parts.keys()
    assert len(after.params["embeddings"]["word"]) == after.config.vocab_size


def test_a_width_of_as_many_as_there_are_pieces_is_no_vocabulary():
    config = BertConfig(len(PIECES), width=len(PIECES), layers=1, heads=4, feed_forward=len(PIECES), positions=48)
    model = Loaded(config, readable_params(config), from_vocab(PIECES, lowercase=True))
    _assert_sized(apply(trim(model.tokenizer, DOMAIN), model), 20)


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(UserError, match="made for another tokenizer"):
        apply(add(from_vocab(PIECES[:-1], lowercase=True), ["zebra"]), model)
    with pytest.raises(UserError, match="20 rows are too few for the tokenizer's 96 pieces"):
        resize(model.tokenizer, model.config, 20)
    with pytest.raises(UserError, match="multiple of 0"):
        resize(model.tokenizer, model.config, multiple=0)
    small = replace(model, config=replace(model.config, vocab_size=90))
    with pytest.raises(UserError, match="96 pieces, the word table 90 rows"):
        apply(add(model.tokenizer, ["zebra"]), small)
    with pytest.raises(UserError, match="96 pieces, the word table 90 rows"):
        resize(model.tokenizer, small.config)


# -------------------------------------------------------------------------------------------------- the verb


@pytest.fixture
def folder(tmp_path: Path, model: Loaded) -> Path:
    huggingface.write(tmp_path / "model", model)
    (tmp_path / "words").write_text("zebra\n\n Quagga \nthe\n", encoding="utf-8")
    (tmp_path / "text").write_text("\n".join(DOMAIN), encoding="utf-8")
    return tmp_path


def _vocabulary(folder: Path, *more: str) -> int:
    return main(["vocabulary", str(folder / "model"), str(folder / "out"), *more])


def test_the_verb_writes_a_model_and_says_its_sizes(folder, model, capsys):
    assert _vocabulary(folder, "--trim", str(folder / "text")) == 0
    after = open_model(folder / "out")
    expected = apply(trim(model.tokenizer, DOMAIN), model)
    assert after.tokenizer.fingerprint == expected.tokenizer.fingerprint
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_array_equal(a, b)
    out, count = capsys.readouterr().out, sum(leaf.size for leaf in jax.tree.leaves(after.params))
    assert f"{96:>14}{20:>14}" in out and f"{count:,}" in out


def test_the_verb_adds_words_in_their_order(folder):
    assert _vocabulary(folder, "--add", str(folder / "words")) == 0
    assert Tokenizer.load(folder / "out").pieces[len(PIECES) :] == ("zebra", "quagga")


def test_the_verb_follows_a_tokenizer_that_was_extended(folder, model):
    extended(model.tokenizer, ["zebra"]).save(folder / "tokenizer")
    assert _vocabulary(folder, "--tokenizer", str(folder / "tokenizer")) == 0
    assert Tokenizer.load(folder / "out").pieces[-1] == "zebra"


def test_the_verb_pads(folder):
    assert _vocabulary(folder, "--multiple", "64") == 0
    after = open_model(folder / "out")
    assert (after.config.vocab_size, after.tokenizer.vocab_size) == (128, len(PIECES))


def test_bad_words_and_files_are_one_line(folder, capsys):
    (folder / "bad").write_text("zebra\ne-mail\n")
    (folder / "empty").write_text("\n")
    (folder / "latin").write_bytes(b"caf\xe9\n")
    for name, said in (("bad", "'e-mail' cannot be"), ("empty", "no words"), ("latin", "not UTF-8"), ("none", "read")):
        assert _vocabulary(folder, "--add", str(folder / name)) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error
        assert not (folder / "out").exists()
