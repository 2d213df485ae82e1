"""Whether a run directory is this run's: what is told where it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bert_jax.config import BertConfig, CheckpointSettings, Recipe, Stage, TrainSettings
from bert_jax.errors import UserError
from bert_jax.store import rundir

RECIPE = Recipe(stage=(Stage(), Stage(batch=64)))
CONFIG = RECIPE.model.bert(100)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "data" / "tokenizer").mkdir(parents=True)
    (tmp_path / "data" / "manifest.json").write_text("{}")
    rundir.open_run(tmp_path / "run", RECIPE, CONFIG, [tmp_path / "data"], {"manifests": ["a"]})
    return tmp_path / "run"


def refused(run: Path, recipe: Recipe, config: BertConfig = CONFIG, manifest: str = "a") -> str:
    with pytest.raises(UserError) as raised:
        rundir.holds(run, recipe, config, [manifest])
    return str(raised.value)


def test_settings_that_differ_are_named_with_their_section(run: Path) -> None:
    other = replace(
        RECIPE,
        train=TrainSettings(seed=7),
        checkpoint=CheckpointSettings(every=7),  # changes no number of a run
        stage=(Stage(), Stage(batch=32, decay="cosine")),
    )
    assert (
        'this run was begun with train.seed = 0, not 7; stage.1.batch = 64, not 32; stage.1.decay = "polynomial",'
        ' not "cosine"; give the recipe it began with'
    ) in refused(run, other)
    assert "begun with 2 stages, not 1;" in refused(run, replace(RECIPE, stage=RECIPE.stage[:1]))
    assert "this run began on other shards" in refused(run, RECIPE, manifest="b")
    assert rundir.holds(run, RECIPE, CONFIG, ["a"])


def test_a_run_of_before_a_setting_has_its_default(run: Path) -> None:
    """The word table of a run that was begun before it was padded is what its checkpoints hold."""
    recipe, model = run / "recipe.toml", json.loads((run / "model.json").read_text(encoding="utf-8"))
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("vocab_multiple = 128\n", ""), encoding="utf-8")
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("silence = 60.0\n", ""), encoding="utf-8")
    model.pop("vocab_multiple")
    (run / "model.json").write_text(json.dumps(model), encoding="utf-8")
    assert rundir.load_config(run).vocab_rows == 100
    assert "word table has 100 rows, not 128; give --set model.vocab_multiple=1" in refused(run, RECIPE)
    assert rundir.holds(run, RECIPE, replace(CONFIG, vocab_multiple=1), ["a"])


def test_without_git_a_run_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert rundir.describe("recipe", ["a"], {})["git"] is None


def test_of_what_was_compiled_the_torn_goes_and_folders_stay(run: Path) -> None:
    folder = run / "compiled"
    (folder / "autotuned").mkdir(parents=True)
    (folder / "autotuned" / "whole").touch()
    (folder / "torn").touch()
    rundir.clear_torn(run)
    assert [path.name for path in folder.iterdir()] == ["autotuned"] and (folder / "autotuned" / "whole").exists()


def test_a_lock_alone_is_no_other_thing(tmp_path: Path) -> None:
    """Killed between taking a directory and writing into it."""
    rundir.hold(tmp_path / "run").close()
    assert not rundir.holds(tmp_path / "run", RECIPE, CONFIG, ["a"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run: cannot be written \(Not a directory\)"):
        rundir.hold(tmp_path / "file" / "run")
