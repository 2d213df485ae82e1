"""`bert_jax.load` and what it returns."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax
from bert_jax import fill_mask
from bert_jax.api import Model, load
from bert_jax.config import BertConfig, Execution
from bert_jax.convert import huggingface
from bert_jax.convert.loaded import Loaded
from bert_jax.errors import UserError
from bert_jax.model import bert
from bert_jax.rows import masked_ids
from bert_jax.text.tokenizer import Tokenizer
from data_prep.train_tokenizer import TokenizerSettings, train
from tests.readable import readable_config, readable_params, readable_tokenizer
from tests.text import tiny
from tests.world import write_data

TEXTS = ["the capital of france is paris .", "berlin", "a number , a number ! " * 5, "return"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "export"
    huggingface.write(out, Loaded(readable_config(), readable_params(readable_config()), readable_tokenizer()))
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


def alone(model: Model, ids: list[int], segments: list[int] | None = None) -> np.ndarray:
    """Every layer's states of one row without any padding: float32[L+1, T, D]."""
    row = jnp.asarray([ids], jnp.int32)
    batch = {
        "input_ids": row,
        "segment_ids": jnp.asarray([segments or [0] * len(ids)], jnp.int32),
        "position_ids": jnp.arange(len(ids), dtype=jnp.int32)[None],
        "sequence_ids": jnp.ones_like(row),
    }
    return np.asarray(every_layer(model.config, model.params, batch))[:, 0]


@partial(jax.jit, static_argnums=0)
def every_layer(config: BertConfig, params: bert.Params, batch: bert.Batch) -> jax.Array | None:
    return bert.encode(config, params, batch, all_layers=True, execution=Execution(scan="on")).layers


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'jax', 'numpy', 'tokenizers'} & set(sys.modules)"
    code = f"import sys, bert_jax; print(bert_jax.__version__, sorted({heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == [bert_jax.__version__, "[]\n"]
    assert bert_jax.load is load and bert_jax.Tokenizer is Tokenizer
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        bert_jax.lode  # noqa: B018


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_each_text_gets_the_vector_it_would_get_alone_and_in_its_place(model: Model, layer: int) -> None:
    cls, sep = model.tokenizer.special.cls, model.tokenizer.special.sep
    rows = [[cls, *model.tokenizer.encode_batch([text]).ids.tolist(), sep] for text in TEXTS]
    states = [alone(model, row)[layer] for row in rows]
    for pool, of in [("cls", lambda s: s[0]), ("mean", lambda s: s.mean(0))]:
        found = model.encode(TEXTS, layer=layer, pool=pool)
        assert found.shape == (len(TEXTS), model.config.width)
        np.testing.assert_allclose(found, [of(s) for s in states], rtol=0, atol=2e-5)
    for mine, theirs in zip(model.encode(TEXTS, layer=layer, pool="tokens"), states, strict=True):
        np.testing.assert_allclose(mine, theirs[1:-1], rtol=0, atol=2e-5)


def test_pairs_use_both_segments_and_the_pooler_reads_cls(model: Model) -> None:
    special, encode = model.tokenizer.special, model.tokenizer.encode_batch
    first, second = encode(["the capital"]).ids.tolist(), encode(["berlin !"]).ids.tolist()
    ids = [special.cls, *first, special.sep, *second, special.sep]
    segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    state = alone(model, ids, segments)[-1]
    found = model.encode(["a", ("the capital", "berlin !")])
    np.testing.assert_allclose(found[1], state[0], rtol=0, atol=2e-5)
    pooler = model.params["pooler"]
    pooled = np.tanh(state[0] @ np.asarray(pooler["kernel"]) + np.asarray(pooler["bias"]))
    np.testing.assert_allclose(model.encode([("the capital", "berlin !")], pool="pooled")[0], pooled, atol=2e-5)


def test_more_texts_than_a_batch_come_back_in_order(model: Model) -> None:
    texts = [f"{'a ' * (n % 40)}{n}" for n in range(75)]
    together = model.encode(texts)
    for number in (0, 39, 40, 74):
        np.testing.assert_allclose(together[number], model.encode([texts[number]])[0], rtol=0, atol=2e-5)


def test_long_texts_are_cut_at_the_position_table_and_of_a_pair_the_longer(model: Model) -> None:
    long = "a " * 100
    assert len(model.encode([long], pool="tokens")[0]) == model.config.positions - 2
    assert len(model.encode([long], pool="tokens", length=10)[0]) == 8
    np.testing.assert_array_equal(
        model.encode([("the capital", long)], length=12), model.encode([("the capital", "a " * 7)])
    )
    np.testing.assert_array_equal(
        model.encode([(long, "the capital")], length=12), model.encode([("a " * 7, "the capital")])
    )


def test_no_texts_give_no_vectors(model: Model) -> None:
    assert model.encode([]).shape == (0, model.config.width)
    assert model.encode([], pool="tokens") == []


def test_what_cannot_be_asked_is_told(model: Model) -> None:
    with pytest.raises(UserError, match="no layer 4; choose from 0 to 3"):
        model.encode(["a"], layer=4)
    with pytest.raises(UserError, match="pool = 'least' is unknown"):
        model.encode(["a"], pool="least")  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(UserError, match="the pooler reads the last layer"):
        model.encode(["a"], layer=1, pool="pooled")
    with pytest.raises(UserError, match="length = 49 cannot be; choose from 3 to 48"):
        model.encode(["a"], length=49)
    with pytest.raises(UserError, match="one string"):
        model.encode("a text")


def test_fill_mask_gives_the_model_s_own_probabilities_at_each_mask(model: Model) -> None:
    special, encode = model.tokenizer.special, model.tokenizer.encode_batch
    ids = [special.cls, special.mask, *encode(["of france is"]).ids.tolist(), special.mask]
    ids += [*encode(["."]).ids.tolist(), special.sep]
    state = alone(model, ids)[-1]
    places = jnp.asarray([[1, 5]], jnp.int32)
    assert [ids[p] for p in (1, 5)] == [special.mask] * 2
    logits = np.asarray(bert.predict(model.config, model.params, jnp.asarray(state)[None], places))[0]
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    found = model.fill_mask("[MASK] of france is [MASK].", k=3)
    assert len(found) == 2
    for guesses, expected in zip(found, chances, strict=True):
        assert [guess.id for guess in guesses] == np.argsort(-expected)[:3].tolist()
        np.testing.assert_allclose([guess.probability for guess in guesses], np.sort(expected)[:-4:-1], atol=2e-5)
    everything = model.fill_mask("[MASK]", k=len(model.tokenizer.pieces))[0]
    assert {guess.text for guess in everything} >= {"paris", "a", "…a", "[MASK]"}


def test_a_sign_right_after_a_mask_is_that_sign_and_not_a_word_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(tiny.text(40), encoding="utf-8")
    tokenizer = train([str(tmp_path / "text.txt")], str(tmp_path / "tok"), TokenizerSettings("unigram", 90))
    model = Model(replace(readable_config(), vocab_size=90), {}, tokenizer)

    def pieces(text: str) -> list[str]:
        return [tokenizer.pieces[i] for i in masked_ids(model.tokenizer, text)]

    whole = [tokenizer.pieces[i] for i in tokenizer.encode_batch(["the cat sat."]).ids]
    assert whole[-1] == "." and whole[-2] != "."
    assert pieces("the cat [MASK].") == ["[CLS]", *pieces("the cat")[1:-1], "[MASK]", ".", "[SEP]"]
    assert pieces("the [MASK] sat.")[-2:] == [".", "[SEP]"]
    assert pieces("the [MASK] cat")[3:] == pieces("cat")[1:]
    assert pieces("[MASK][MASK]") == ["[CLS]", "[MASK]", "[MASK]", "[SEP]"]


def test_fill_mask_refuses_no_mask_and_too_long_a_text(model: Model) -> None:
    with pytest.raises(UserError, match="has no \\[MASK\\]"):
        model.fill_mask("the capital of [mask]")
    with pytest.raises(UserError, match="103 tokens, where the position table has 48"):
        model.fill_mask("a " * 100 + "[MASK]")


def test_a_model_without_the_head_says_which_export_has_it(tmp_path: Path, model: Model) -> None:
    huggingface.write(tmp_path / "encoder", Loaded(model.config, model.params, model.tokenizer), kind="encoder")
    bare = load(tmp_path / "encoder")
    np.testing.assert_array_equal(bare.encode(TEXTS), model.encode(TEXTS))
    with pytest.raises(UserError, match="no masked-LM head.*--model pretraining or masked-lm"):
        bare.fill_mask("[MASK]")
    huggingface.write(tmp_path / "lm", Loaded(model.config, model.params, model.tokenizer), kind="masked-lm")
    with pytest.raises(UserError, match="no pooler"):
        load(tmp_path / "lm").encode(["a"], pool="pooled")


def test_load_names_what_is_no_model(tmp_path: Path, folder: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            load(path)
        assert caught.value.where == str(path) and "\n" not in str(caught.value)
        return caught.value.what + "; " + caught.value.remedy

    assert refused(tmp_path / "nowhere").startswith("this does not exist; give a run directory")
    assert refused(tmp_path).startswith("this directory is empty; give a run directory")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert refused(tmp_path).startswith("this holds no model; give a run directory")
    assert refused(tmp_path / "notes.txt").startswith("this is a file; give a run directory")
    data = write_data(tmp_path / "data")
    assert refused(data) == "this is a data set; give the run directory of a model that was trained on it"
    assert refused(data / "tokenizer").startswith("this is a tokenizer without a model; give a run directory")
    shutil.copytree(folder, tmp_path / "half")
    (tmp_path / "half" / "config.json").unlink()
    assert refused(tmp_path / "half").startswith("these are weights without their config.json")
    shutil.copytree(data / "tokenizer", tmp_path / "run" / "tokenizer")
    for name in ("recipe.toml", "model.json"):
        (tmp_path / "run" / name).touch()
    assert (
        refused(tmp_path / "run" / "tokenizer")
        == f"this is a part of a run; give the run directory, {tmp_path / 'run'}"
    )


def test_what_is_no_text_or_path_is_told_at_the_door(model: Model) -> None:
    with pytest.raises(UserError, match="^path: load takes a path, this is None; give a run directory"):
        load(None)  # pyright: ignore[reportArgumentType]
    for texts, message in [
        (None, "^texts: encode takes a list of texts, this is None; write"),
        (5, "^texts: encode takes a list of texts, this is of type int; write"),
        (["a", 5], r"^texts\[1\]: a text is a string or a pair of strings, this is of type int; leave out"),
        ([("a", None)], r"^texts\[0\]: a text is a string or a pair of strings, this is of type tuple"),
        ([("a", "b", "a")], r"^texts\[0\]: a text is a string or a pair of strings, this is 3 parts"),
    ]:
        with pytest.raises(UserError, match=message):
            model.encode(texts)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="^text: fill_mask takes one string, this is of type list; give it one text"):
        model.fill_mask(["the [MASK]"])  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(model.encode(text for text in TEXTS), model.encode(TEXTS))  # pyright: ignore


def test_the_verb_prints_every_text_and_its_guesses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    fill_mask.add_arguments(parser)
    texts = ["the [MASK] is paris .", "[MASK] [MASK]"]
    assert fill_mask.run(parser.parse_args([str(folder), *texts, "-k", "2"])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[2]] == texts and len(lines) == 5
    assert all(line.count("%") == 2 for line in (lines[1], lines[3], lines[4]))
    with pytest.raises(UserError, match="no \\[MASK\\]"):
        fill_mask.run(parser.parse_args(["no/such/model", "[MASK]", "nothing here"]))
