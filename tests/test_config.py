"""Settings: every default written out, every mistake named with its nearest cure."""

from __future__ import annotations

import ast
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from bert_jax import config
from bert_jax.config import PRESETS, Recipe, Stage, load_recipe, preset
from bert_jax.errors import UserError
from bert_jax.settings import digest, to_toml

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_open_with_four_lines(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.model.bert(30522).width % recipe.model.bert(30522).heads == 0
    first = path.read_text(encoding="utf-8").splitlines()[:4]
    assert [line.split(":")[0] for line in first] == ["# Command", "# Hardware", "# Time", "# Expect"]


def test_base_and_large_go_from_128_to_512() -> None:
    for name in ("base", "large_lamb"):
        assert [stage.length for stage in load_recipe(ROOT / "configs" / f"{name}.toml").stage] == [128, 512]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_resolved_recipe_reads_back_equal(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, ["train.seed=7", "stage.0.batch=64", "model.preset=mini"])
    (tmp_path / "resolved.toml").write_text(to_toml(recipe), encoding="utf-8")
    again = load_recipe(tmp_path / "resolved.toml")
    assert again == recipe and digest(again) == digest(recipe)
    assert recipe.stage[0].batch == 64 and recipe.model.preset == "mini"
    assert digest(recipe) != digest(load_recipe(path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.sead=1", "train.sead: there is no such setting; did you mean 'seed'?"),
        ("stage.0.lenght=128", "stage.0.lenght: there is no such setting; did you mean 'length'?"),
        ("stage.3.batch=1", "--set stage.3.batch: '3' is none of the places 0 to 0; count stages from 0"),
        ("stage.0.batch=big", "stage.0.batch: 'big' is no int; give a value of type int"),
        ("stage.0.batch=true", "stage.0.batch: True is no int; give a value of type int"),
        ("stage.0.batch=0", "stage.0: batch = 0 is too small; give a number above 0"),
        ("stage.0.learning_rate=-1", "stage.0: learning_rate = -1.0 is too small; give a number above 0"),
        ("stage.0.learning_rate=nan", "stage.0: learning_rate = nan is out of range; give a number from 0 to 1e+30"),
        ("stage.0.tokens=-5", "stage.0: tokens = -5 is out of range"),
        ("train.clip_norm=-1", "train: clip_norm = -1.0 is out of range"),
        ("train.beta1=1.5", "train: beta1 = 1.5 is out of range"),
        ("train.evaluate_batch=-4", "train: evaluate_batch = -4 is out of range"),
        ("train.step_timeout=-1", "train: step_timeout = -1.0 is out of range"),
        ("stage.0.accumulate=3", "stage.0: a batch of 16 does not divide into 3 accumulation pieces"),
        ("stage.0.warmup=9999999", "stage.0: warmup = 9999999 does not fit into"),
        (
            "train.optimizer=lamp",
            "train: optimizer = 'lamp' is unknown; choose one of adamw, lamb (did you mean 'lamb'?)",
        ),
        ("train.seed.x=1", "--set train.seed.x: 'seed' holds a value, not a section; shorten the key"),
        ("seed", "--set: 'seed' is not KEY=VALUE; write for example --set train.seed=1"),
    ],
)
def test_a_wrong_setting_gets_one_sentence(setting: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[train]\nseed = 0\n[[stage]]\nbatch = 16\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_recipe(path, [setting])
    assert str(caught.value).startswith(message)


def test_a_recipe_that_is_missing_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.toml: there is no such recipe"):
        load_recipe(tmp_path / "nothing.toml")
    (tmp_path / "bad.toml").write_bytes(b"[train]\n\xff\n")
    with pytest.raises(UserError, match=r"bad.toml: not UTF-8 at byte 8; save it as UTF-8"):
        load_recipe(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\r\npreset = tiny\r\n", "line 2, column 10: 'preset = tiny' is no TOML (invalid value); write NAME ="),
        (
            "[train]\nseed = 1\nseed = 2\n",
            "line 3, column 9: 'seed = 2' is no TOML (cannot overwrite a value); keep one",
        ),
        ("[train]\nbeta1 = [1,\n\n", "line 2, column 12: 'beta1 = [1,' is no TOML (invalid value); write"),
        ("x" * 100, f"line 1, column 101: '{'x' * 59}…' is no TOML (expected '=' after a key in a key/value pair)"),
        ("[train\n", "line 1, column 7: '[train' is no TOML (expected ']' at the end of a table declaration)"),
    ],
)
def test_what_is_no_toml_names_line_and_column(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(text.encode())
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / "bad.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'bad.toml'}, {message}")


def test_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(UserError, match="a width of 100 does not divide into 12 heads"):
        preset("base", 100, width=100)


def test_sizes_are_the_published_ones() -> None:
    assert {name: (p["layers"], p["width"], p["heads"]) for name, p in PRESETS.items()} == {
        "tiny": (2, 128, 2),
        "mini": (4, 256, 4),
        "small": (4, 512, 8),
        "medium": (8, 512, 8),
        "base": (12, 768, 12),
        "large": (24, 1024, 16),
    }


def test_every_setting_is_read_somewhere() -> None:
    """A setting that no code reads promises what is not there."""
    read = {
        node.attr
        for path in (ROOT / "bert_jax").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    sections = [kind for kind in vars(config).values() if is_dataclass(kind) and isinstance(kind, type)]
    # `ModelSettings.bert` takes its sizes by name
    by_name = {"layers", "width", "heads", "feed_forward"}
    unread = {f"{kind.__name__}.{f.name}" for kind in sections for f in fields(kind) if f.name not in read | by_name}
    assert not unread
    assert sum(len(fields(kind)) for kind in sections if kind not in (config.BertConfig, config.Execution)) < 90


def test_stage_defaults_are_sound() -> None:
    assert Recipe().stage == (Stage(),)
