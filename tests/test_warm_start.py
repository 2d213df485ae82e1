"""Pretraining that begins with a model: its very weights, measured before the first step; what does not fit is told."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax import warm_start
from bert_jax.api import open_model
from bert_jax.config import TrainSettings
from bert_jax.convert import native
from bert_jax.convert.loaded import Loaded
from bert_jax.model import bert
from bert_jax.store.rundir import read_metrics
from bert_jax.text.tokenizer import Tokenizer
from bert_jax.train import sharding
from bert_jax.train.optimizer import make_optimizer
from bert_jax.train.state import fresh_state
from tests.conftest import louder
from tests.runs import differences
from tests.world import RECIPE, WORDS, bert_jax, write_data, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:orbax")

SHORT = (
    RECIPE.partition("[[stage]]")[0]
    + """
[[stage]]
batch = 8
steps = 12
learning_rate = 3e-3
warmup = 4
"""
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A recipe, shards, and a run of that recipe on them."""
    folder = tmp_path_factory.mktemp("warm")
    recipe, data = write_recipe(folder / "recipe.toml", SHORT), write_data(folder / "data")
    done = bert_jax("pretrain", recipe, "--data", data, "--run", folder / "first")
    assert done.returncode == 0, done.stderr
    return recipe, data, folder / "first"


def begin(recipe: Path, data: Path, start: Path, run: Path, *more: str, devices: int = 1):  # noqa: ANN201
    settings = ("--set", f"model.init_checkpoint={start}")
    return bert_jax("pretrain", recipe, "--data", data, "--run", run, *settings, *more, devices=devices)


def heldout(run: Path) -> list[dict]:
    return list(read_metrics(run, "heldout"))


@pytest.mark.parametrize("devices", [1, 4])
def test_it_begins_where_the_other_run_ended(world: tuple[Path, Path, Path], tmp_path: Path, devices: int) -> None:
    recipe, data, first = world
    mesh = ("--set", "train.mesh_fsdp=2") if devices > 1 else ()
    done = begin(recipe, data, first, tmp_path / "second", *mesh, devices=devices)
    assert done.returncode == 0, done.stderr
    assert f"weights of {first}\n" in done.stdout

    end, (before, after) = heldout(first)[-1], heldout(tmp_path / "second")
    assert (before["step"], after["step"]) == (0, 12)
    same = {name: value for name, value in end.items() if name not in ("kind", "step", "stage")}
    assert {name: before[name] for name in same} == pytest.approx(same, rel=1e-6 if devices > 1 else 0, abs=0)

    origin = json.loads((tmp_path / "second/provenance.json").read_text())["init_checkpoint"]
    assert origin == {"path": str(first), "step": 12, "sha256": warm_start.digest(open_model(first))}


def test_killed_before_and_after_its_first_save_and_the_model_gone(
    world: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Before the first save the model is read again; from then on the run needs it no more."""
    recipe, data, first = world
    start = tmp_path / "model"
    shutil.copytree(first, start)
    assert begin(recipe, data, start, tmp_path / "straight").returncode == 0
    assert begin(recipe, data, start, tmp_path / "killed", "--fault", "kill@3").returncode == -signal.SIGKILL
    shutil.copytree(tmp_path / "straight", tmp_path / "other")
    (tmp_path / "other").rename(start.rename(tmp_path / "kept").with_name("model"))
    done = begin(recipe, data, start, tmp_path / "killed")
    assert done.returncode == 1 and f"{start} has other weights than when this run began" in done.stderr, done.stderr
    start.rename(tmp_path / "other")
    (tmp_path / "kept").rename(start)
    assert begin(recipe, data, start, tmp_path / "killed", "--fault", "kill@11").returncode == -signal.SIGKILL
    # the save of step 10 waited for that of step 5
    start.rename(tmp_path / "gone")
    done = begin(recipe, data, start, tmp_path / "killed")
    assert done.returncode == 0 and "continuing after step" in done.stdout, done.stderr
    assert differences(tmp_path / "straight", tmp_path / "killed") == []
    assert [row["step"] for row in heldout(tmp_path / "killed")] == [0, 12]


def test_a_step_before_the_first_save_is_computed_again_from_the_model(
    world: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    recipe, data, first = world
    assert begin(recipe, data, first, tmp_path / "run", "--set", "checkpoint.keep=1").returncode == 0
    loss = next(row["loss"] for row in read_metrics(tmp_path / "run", "train") if row["step"] == 2)
    done = bert_jax("replay", tmp_path / "run", 2)
    assert done.returncode == 0 and f"loss {loss:.6g}" in done.stdout, (done.stdout, done.stderr, loss)


def test_what_does_not_fit_is_told_and_nothing_written(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    recipe, data, first = world
    run = tmp_path / "run"

    def refused(start: Path, *more: str, shards: Path = data) -> str:
        done = begin(recipe, shards, start, run, *more)
        assert done.returncode == 1 and "Traceback" not in done.stderr and not run.exists(), done.stderr
        looked = bert_jax(
            *("doctor", recipe, "--data", shards, "--quick", "--set", f"model.init_checkpoint={start}", *more)
        )
        assert looked.returncode == 1 and "fail  model" in looked.stdout, looked.stdout
        return done.stderr

    told = refused(first, "--set", "model.width=64", "--set", "model.activation=gelu_tanh")
    assert f"{first} has width 32, feed_forward 128, activation gelu, the recipe width 64, feed_forward 256" in told
    assert "add --set model.width=32 --set model.feed_forward=128 --set model.activation=gelu" in told

    other = write_data(tmp_path / "other", records=32, heldout=8)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *reversed(WORDS)]
    (other / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    shutil.rmtree(other / "tokenizer")
    Tokenizer.load(other / "vocab.txt").save(other / "tokenizer")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["tokenizer"] = Tokenizer.load(other / "tokenizer").fingerprint
    (other / "manifest.json").write_text(json.dumps(manifest))
    told = refused(first, shards=other)
    assert f"the shards were not made with the tokenizer of {first}" in told and f"--tokenizer {first}" in told
    assert Tokenizer.load(first).fingerprint == Tokenizer.load(data).fingerprint, "what is advised can be done"

    assert "nowhere: this does not exist" in refused(tmp_path / "nowhere")


def test_another_family_is_refused(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    recipe, data, first = world
    loaded = open_model(first)
    config = replace(loaded.config, groups=1)
    params = jax.device_get(bert.init(config, jax.random.key(0)))
    native.write(
        tmp_path / "shared", replace(loaded, config=config, params=params, architecture="AlbertModel"), provenance={}
    )
    done = begin(recipe, data, tmp_path / "shared", tmp_path / "run")
    assert done.returncode == 1 and "another family than BERT (AlbertModel)" in done.stderr, done.stderr


def test_parts_that_are_lacking_stay_fresh_on_any_mesh(world: tuple[Path, Path, Path]) -> None:
    """The table is cut and padded to the rows of training; where an array lies does not depend on the model."""
    tokenizer = open_model(world[2]).tokenizer
    config = replace(open_model(world[2]).config, vocab_multiple=16)
    given = replace(config, vocab_size=config.vocab_size + 3, vocab_multiple=1)  # rows that no piece has
    loud = jax.device_get(louder(bert.init(given, jax.random.key(3))))
    encoder = Loaded(given, {name: loud[name] for name in ("embeddings", "layers", "masked_lm")}, tokenizer)

    tx = make_optimizer(TrainSettings())
    mesh = sharding.make_mesh(2, 2, 2)
    make = partial(fresh_state, config, 0, tx)
    places = sharding.state_shardings(mesh, bert.axes(config), jax.eval_shape(make), False)
    with sharding.on(mesh):
        fresh = jax.jit(make, out_shardings=places)()
    state, lacked = warm_start.put_in(fresh, encoder, config)

    assert lacked == ["next_sentence", "pooler"]
    for name in lacked:
        jax.tree.map(np.testing.assert_array_equal, state.params[name], fresh.params[name])
    jax.tree.map(np.testing.assert_array_equal, state.params["layers"], encoder.params["layers"])
    size = config.vocab_size
    for part, name in (("embeddings", "word"), ("masked_lm", "bias")):
        table = np.asarray(state.params[part][name])
        np.testing.assert_array_equal(table[:size], encoder.params[part][name][:size])
        assert len(table) == 48 and not table[size:].any()
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, fresh)


def test_other_relations_leave_their_head_fresh(world: tuple[Path, Path, Path]) -> None:
    loaded = open_model(world[2])
    config = replace(loaded.config, relations=3)
    fresh = fresh_state(config, 0, make_optimizer(TrainSettings()))
    state, lacked = warm_start.put_in(fresh, loaded, config)
    assert lacked == ["next_sentence"] and state.params["next_sentence"]["kernel"].shape == (32, 3)
