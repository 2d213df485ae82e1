"""The sentence-transformers layout without that library: what is written is read back, and what is not read is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax.api import open_model
from bert_jax.convert import native, sentence_transformers
from bert_jax.convert.loaded import Dense, Loaded, Pooling
from bert_jax.errors import UserError
from tests.readable import readable_config, readable_params, readable_tokenizer

RNG = np.random.default_rng(0)
TANH = Dense(RNG.normal(size=(24, 10)).astype(np.float32), RNG.normal(size=10).astype(np.float32), "tanh")
BARE = Dense(RNG.normal(size=(10, 6)).astype(np.float32))
POOLINGS = [
    Pooling("mean", normalize=True, length=20),
    Pooling("cls"),
    Pooling("max", dense=(TANH, BARE), normalize=True),
]


def loaded() -> Loaded:
    return Loaded(readable_config(), readable_params(readable_config()), readable_tokenizer())


def same(one: Pooling, other: Pooling | None) -> bool:
    """Equal settings, and equal numbers in the dense layers."""
    assert other is not None

    def parts(pooling: Pooling) -> list:
        arrays = [
            (dense.activation, dense.kernel.tolist(), None if dense.bias is None else dense.bias.tolist())
            for dense in pooling.dense
        ]
        return [pooling.mode, pooling.normalize, pooling.length, arrays]

    return parts(one) == parts(other)


@pytest.mark.parametrize("pooling", POOLINGS, ids=["mean", "cls", "dense"])
def test_what_is_written_is_read_back_here_and_in_our_own_directories(pooling: Pooling, tmp_path: Path) -> None:
    sentence_transformers.write(tmp_path / "theirs", loaded(), pooling)
    again = open_model(tmp_path / "theirs")
    assert same(pooling, again.pooling) and again.architecture == "BertModel"
    native.write(tmp_path / "ours", again, provenance={})
    assert same(pooling, open_model(tmp_path / "ours").pooling)
    with pytest.raises(UserError, match="exists already"):
        sentence_transformers.write(tmp_path / "theirs", loaded(), pooling)


def edited(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    path = folder / name
    tree = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(change(tree)))


def test_keys_and_classes_of_today_and_of_other_years_are_read(tmp_path: Path) -> None:
    sentence_transformers.write(tmp_path / "out", loaded(), Pooling("max", normalize=True, length=20))
    today = [
        "sentence_transformers.base.modules.transformer.Transformer",
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "sentence_transformers.base.modules.normalize.Normalize",
    ]
    edited(tmp_path / "out", "modules.json", lambda m: [e | {"type": t} for e, t in zip(m, today, strict=True)])
    edited(tmp_path / "out", "1_Pooling/config.json", lambda _: {"embedding_dimension": 24, "pooling_mode": "max"})
    (tmp_path / "out" / "sentence_bert_config.json").unlink()  # today the length stands with the tokenizer
    edited(tmp_path / "out", "tokenizer_config.json", lambda tree: tree | {"model_max_length": 20})
    assert same(Pooling("max", normalize=True, length=20), open_model(tmp_path / "out").pooling)


def test_lower_case_before_a_cased_tokenizer_keeps_its_accents(tmp_path: Path) -> None:
    from bert_jax.text.tokenizer import from_vocab

    cased = from_vocab([*readable_tokenizer().pieces[:-1], "é"], lowercase=False)
    sentence_transformers.write(tmp_path / "out", Loaded(readable_config(), readable_params(readable_config()), cased))
    edited(tmp_path / "out", "sentence_bert_config.json", lambda tree: tree | {"do_lower_case": True})
    tokenizer = open_model(tmp_path / "out").tokenizer
    assert [tokenizer.pieces[i] for i in tokenizer.encode_batch(["PARIS É"]).ids] == ["paris", "é"]
    assert cased.encode_batch(["PARIS"]).ids.tolist() == [cased.special.unk]


def test_a_prompt_that_would_stand_before_every_text_is_noted(tmp_path: Path) -> None:
    sentence_transformers.write(tmp_path / "out", loaded())
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    edited(tmp_path / "out", "config_sentence_transformers.json", lambda tree: tree | prompts)
    (note,) = open_model(tmp_path / "out").notes
    assert "'query: ' before every text" in note


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("modules.json", lambda m: {}, "a list of modules is needed"),
        ("modules.json", lambda m: [m[0], {"path": "x"}], "a module without type or path"),
        ("modules.json", lambda m: [m[0] | {"path": "../x"}, *m[1:]], "leads out of the directory"),
        ("modules.json", lambda m: m[:1], "the modules Transformer are not read"),
        ("modules.json", lambda m: [*m[:2], m[2] | {"type": "a.CNN"}], "Transformer, Pooling, CNN are not read"),
        ("1_Pooling/config.json", lambda t: t | {"pooling_mode_cls_token": True}, "pooling by cls and max is not read"),
        ("1_Pooling/config.json", lambda t: {"pooling_mode": "lasttoken"}, "pooling by lasttoken is not read"),
        ("1_Pooling/config.json", lambda t: t | {"word_embedding_dimension": 7}, "the pooling takes 7 numbers"),
        ("2_Dense/config.json", lambda t: t | {"activation_function": "os.system"}, "'os.system' is not read"),
        ("2_Dense/config.json", lambda t: t | {"use_residual": True}, "use_residual = True is not read"),
        ("2_Dense/config.json", lambda t: t | {"out_features": 9}, r"linear.weight \[10, 24\]\) are not what"),
        ("2_Dense/config.json", lambda t: t | {"bias": False}, "are not what config.json says"),
        ("3_Dense/config.json", lambda t: [], "an object is needed"),
    ],
)
def test_what_is_not_read_is_told(name: str, change: Callable, message: str, tmp_path: Path) -> None:
    sentence_transformers.write(tmp_path / "out", loaded(), POOLINGS[2])
    edited(tmp_path / "out", name, change)
    with pytest.raises(UserError, match=message):
        open_model(tmp_path / "out")


def test_dense_layers_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a dense layer takes 10 numbers and is given 24"):
        sentence_transformers.write(tmp_path / "out", loaded(), Pooling(dense=(BARE,)))
    assert not (tmp_path / "out").exists()


def test_whitened_vectors_have_mean_0_and_unit_covariance_in_the_largest_directions() -> None:
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(12, 12)) * np.linspace(5, 0.1, 12)[:, None]
    vectors = (rng.normal(size=(400, 12)) @ mix + 3).astype(np.float32)
    white = sentence_transformers.fit_whitening(vectors, 5)
    found = white(vectors)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(found.T @ found / 400, np.eye(5), atol=1e-4)
    # the kept directions are the leading eigenvectors of the covariance
    values, directions = np.linalg.eigh(np.cov(vectors.T, bias=True))
    kept = white.kernel / np.linalg.norm(white.kernel, axis=0)
    np.testing.assert_allclose(np.abs(np.diag(directions[:, ::-1][:, :5].T @ kept)), 1, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(white.kernel, axis=0), values[::-1][:5] ** -0.5, rtol=1e-3)
    with pytest.raises(UserError, match="3 vectors of 12 differ in 2 directions, 5 are asked for"):
        sentence_transformers.fit_whitening(vectors[:3], 5)
    with pytest.raises(UserError, match="differ in 0 directions"):
        sentence_transformers.fit_whitening(np.ones((4, 3), np.float32), 1)
