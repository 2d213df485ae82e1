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
from bert_jax.convert.loaded import Dense, Loaded, Pooling
from bert_jax.errors import UserError
from bert_jax.model import bert
from bert_jax.rows import batches, masked_ids, rows_of
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
    """Every layer's states of one text in a row of its own: float32[L+1, T, D]."""
    real, length = len(ids), model.config.positions  # one shape, compiled once
    batch = {name: np.zeros((1, length), np.int32) for name in ("input_ids", "segment_ids", "sequence_ids")}
    batch["input_ids"][0, :real], batch["sequence_ids"][0, :real] = ids, 1
    batch["segment_ids"][0, :real] = segments or 0
    batch["position_ids"] = np.arange(length, dtype=np.int32)[None]
    return np.asarray(every_layer(model.config, model.params, batch))[:, 0, :real]


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


def rows_alone(model: Model, texts: list[str]) -> list[list[int]]:
    """[CLS], the text's ids, [SEP]."""
    special = model.tokenizer.special
    return [[special.cls, *model.tokenizer.encode_batch([text]).ids.tolist(), special.sep] for text in texts]


@pytest.mark.parametrize(("layer", "pool"), [(0, "mean"), (1, "cls"), (-1, "mean"), (-1, "max"), (2, "tokens")])
def test_each_text_gets_the_vector_it_would_get_alone_and_in_its_place(model: Model, layer: int, pool: str) -> None:
    states = [alone(model, row)[layer] for row in rows_alone(model, TEXTS)]
    pooled = {
        "cls": lambda s: s[0],
        "mean": lambda s: s.mean(0),
        "max": lambda s: s.max(0),
        "tokens": lambda s: s[1:-1],
    }
    found = model.encode(TEXTS, layer=layer, pool=pool)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert len(found) == len(TEXTS) and (pool == "tokens" or found.shape == (len(TEXTS), model.config.width))
    for mine, theirs in zip(found, states, strict=True):
        np.testing.assert_allclose(mine, pooled[pool](theirs), rtol=0, atol=2e-5)


def test_a_network_without_segments_whose_layers_share_weights_is_asked_alike() -> None:
    config = replace(readable_config(), embedding=12, groups=1, segments=0)
    other = Model(config, readable_params(config), readable_tokenizer())
    states = [alone(other, row)[-1] for row in rows_alone(other, TEXTS)]
    np.testing.assert_allclose(other.encode(TEXTS), [s[0] for s in states], rtol=0, atol=2e-5)


def test_rows_are_full_shapes_few_and_every_text_has_one_place(model: Model) -> None:
    rng = np.random.default_rng(0)
    texts = ["a " * n for n in rng.integers(0, 60, 700)] + ["a " * n for n in (90, 200, 290)]
    rows = rows_of(model.tokenizer, texts, 300)
    found = list(batches(rows, 0, 300, 1024))
    assert sorted(number for batch in found for number, _, _ in batch.places) == list(range(703))
    assert {batch.arrays["input_ids"].shape for batch in found} <= {
        (8, 128),
        (3, 128),
        (1, 128),
        (4, 256),
        (3, 300),
    } | {(height, length) for height in (1, 2) for length in (256, 300)}
    for batch in found:
        for number, row, slot in batch.places:
            start, length = batch.arrays["starts"][row, slot], len(rows[number].ids)
            here = {name: array[row, start : start + length].tolist() for name, array in batch.arrays.items()}
            assert here["input_ids"] == rows[number].ids.tolist()
            assert here["position_ids"] == list(range(length)) and set(here["sequence_ids"]) == {slot + 1}
    filled = sum((batch.arrays["sequence_ids"] > 0).sum() for batch in found)
    assert filled == sum(len(row.ids) for row in rows)
    assert filled > 0.9 * sum(batch.arrays["input_ids"].size for batch in found)


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
    assert model.encode([""]).shape == (1, model.config.width)
    assert model.encode([""], pool="tokens")[0].shape == (0, model.config.width)


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


def test_a_score_is_the_sum_of_each_token_s_log_probability_with_that_token_masked(model: Model) -> None:
    texts = [TEXTS[0], "", TEXTS[3], ("berlin", "a !")]
    ids = rows_alone(model, ["berlin", "a !"])
    rows = [*rows_alone(model, [text for text in texts if isinstance(text, str)]), [*ids[0], *ids[1][1:]]]
    segments = [[0] * len(row) for row in rows[:3]] + [[0] * len(ids[0]) + [1] * (len(ids[1]) - 1)]
    expected = []
    special = model.tokenizer.special
    for row, segment in zip(rows, segments, strict=True):
        logs = []
        for place, right in enumerate(row):
            if right in (special.cls, special.sep):
                continue
            masked = [*row[:place], special.mask, *row[place + 1 :]]
            state = jnp.asarray(alone(model, masked, segment)[-1])[None, place : place + 1]
            logits = np.asarray(bert.predict(model.config, model.params, state, jnp.zeros((1, 1), jnp.int32)))[0, 0]
            logs.append(logits[right] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
        expected.append(logs)
    found = model.score(texts, per="token")
    assert [len(each) for each in found] == [len(each) for each in expected] and len(found[1]) == 0
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5)
    np.testing.assert_allclose(model.score(texts), [sum(logs) for logs in expected], rtol=0, atol=1e-4)
    assert model.score([]).shape == (0,) and model.score([""]).tolist() == [0.0]
    with pytest.raises(UserError, match="per = 'word' is unknown"):
        model.score(texts, per="word")  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_similarities_are_cosines_of_the_vectors(model: Model) -> None:
    vectors = model.encode(TEXTS)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(model.similarity(TEXTS, TEXTS[:2]), unit @ unit[:2].T, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.diag(model.similarity(TEXTS)), 1, atol=1e-6)
    assert model.similarity([], TEXTS).shape == (0, 4)


def test_the_relation_of_two_texts_is_the_head_s(model: Model) -> None:
    pairs = [(TEXTS[0], TEXTS[1]), ("a", "return")]
    pooled = model.encode(pairs, pool="pooled")
    head = model.params["next_sentence"]
    logits = pooled @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(model.next_sentence(pairs), expected, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=r"^pairs\[1\]: this is one text, not a pair"):
        model.next_sentence([pairs[0], "a"])  # pyright: ignore[reportArgumentType]


def test_a_directory_s_own_pooling_is_what_encode_does_unless_told_otherwise(model: Model) -> None:
    dense = Dense(np.eye(24, 5, dtype=np.float32), np.ones(5, np.float32), "tanh")
    pooling = Pooling("mean", normalize=True, length=6, dense=(dense,))
    own = Model(model.config, model.params, model.tokenizer, pooling)
    mean = model.encode(TEXTS, pool="mean", length=6)
    expected = np.tanh(mean[:, :5] + 1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(own.encode(TEXTS), expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(own.encode(TEXTS, pool="mean"), mean)
    np.testing.assert_allclose(own.encode(TEXTS, normalize=False), np.tanh(mean[:, :5] + 1), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="the dense layers read the last layer"):
        own.encode(TEXTS, layer=1)


def test_progress_counts_texts_on_standard_error(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.encode(TEXTS, progress=True)
    out, err = capsys.readouterr()
    assert "4/4" in err and not out
    model.encode(TEXTS)
    assert capsys.readouterr() == ("", "")


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
    with pytest.raises(UserError, match="no masked-LM head"):
        bare.score(["a"])
    with pytest.raises(UserError, match="no next-sentence head; export with --model pretraining$"):
        bare.next_sentence([("a", "b")])
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
