"""What a person gets wrong, and the one sentence they get for it: exit status 1, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bert_jax.cli import main
from bert_jax.errors import UserError, counted
from bert_jax.store import rundir
from bert_jax.store.report import _pace
from bert_jax.store.rundir import read_metrics
from bert_jax.text.records import open_shard
from bert_jax.text.tokenizer import Tokenizer
from tests.world import VOCABULARY, bert_jax, write_data, write_recipe

Cli = Callable[..., str]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "recipe.toml")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a verb that must be refused; returns its one line."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "Traceback" not in err, err
        return err

    return run


def test_no_data_directory(refused: Cli, recipe: Path, tmp_path: Path) -> None:
    assert "data.path: no data directory; give --data DIR" in refused("pretrain", recipe, "--run", tmp_path / "run")


def test_an_unfinished_data_set(refused: Cli, recipe: Path, tmp_path: Path) -> None:
    line = refused("pretrain", recipe, "--data", tmp_path, "--run", tmp_path / "run")
    assert f"{tmp_path}: there is no manifest.json" in line


def test_a_key_that_does_not_exist(refused: Cli, recipe: Path, data: Path, tmp_path: Path) -> None:
    line = refused("pretrain", recipe, "--data", data, "--run", tmp_path / "run", "--set", "train.seeed=1")
    assert "train.seeed: there is no such setting; did you mean 'seed'?" in line
    assert not (tmp_path / "run").exists()


def test_records_longer_than_the_position_table(refused: Cli, recipe: Path, data: Path, tmp_path: Path) -> None:
    line = refused("pretrain", recipe, "--data", data, "--run", tmp_path / "run", "--set", "model.positions=8")
    assert "records of 16 tokens are longer than the position table of 8; set model.positions=16" in line
    assert not (tmp_path / "run").exists()


def test_a_second_process_in_the_same_run(recipe: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".opening").touch()
    with rundir.hold(run):
        refused = bert_jax("pretrain", recipe, "--data", data, "--run", run)
        assert refused.returncode == 1 and refused.stderr.count("\n") == 1, refused.stderr
        assert f"{run}: process {os.getpid()} on " in refused.stderr and "trains in this directory" in refused.stderr
    assert not (run / "metrics.jsonl").exists()
    rundir.hold(run).close()  # free again


def test_a_disk_that_is_full_at_the_start(recipe: Path, data: Path, tmp_path: Path) -> None:
    full = bert_jax("pretrain", recipe, "--data", data, "--run", tmp_path / "run", largest_file=200)
    assert full.returncode == 1 and full.stderr.count("\n") == 1, full.stderr
    assert "cannot be written" in full.stderr and "make room" in full.stderr


def test_a_length_that_the_shards_do_not_have(refused: Cli, recipe: Path, data: Path, tmp_path: Path) -> None:
    line = refused("pretrain", recipe, "--data", data, "--run", tmp_path / "run", "--set", "stage.0.length=128")
    assert "the recipe wants records of 128 tokens, these have 16; make shards with --length 128" in line


def test_a_batch_that_the_mesh_cannot_divide(refused: Cli, recipe: Path, data: Path, tmp_path: Path) -> None:
    line = refused("pretrain", recipe, "--data", data, "--run", tmp_path / "run", "--set", "stage.0.batch=12")
    assert "stage.0: a batch of 12 does not divide over 8 devices; choose a batch that is a multiple of 8" in line


def test_an_evaluation_batch_that_the_mesh_cannot_divide(
    refused: Cli, recipe: Path, data: Path, tmp_path: Path
) -> None:
    settings = ["--set", "stage.0.batch=8", "--set", "stage.1.batch=16", "--set", "train.evaluate_batch=12"]
    line = refused("pretrain", recipe, "--data", data, "--run", tmp_path / "run", *settings)
    assert "train.evaluate_batch: a batch of 12 does not divide over 8 devices" in line


def test_a_mesh_that_the_devices_cannot_make(refused: Cli, recipe: Path, data: Path, tmp_path: Path) -> None:
    line = refused("pretrain", recipe, "--data", data, "--run", tmp_path / "run", "--set", "train.mesh_fsdp=3")
    assert "a mesh of data any × fsdp 3 × tensor 1 does not fit 8 devices" in line


def other_tokenizer(data: Path) -> None:
    """Put another tokenizer beside shards."""
    shutil.rmtree(data / "tokenizer")
    path = data / "other.txt"
    path.write_text("\n".join([*VOCABULARY[:-1], "other"]) + "\n", encoding="utf-8")
    Tokenizer.load(path).save(data / "tokenizer")


def test_a_tokenizer_that_is_not_the_shards(refused: Cli, recipe: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    other_tokenizer(tmp_path / "data")
    line = refused("pretrain", recipe, "--data", tmp_path / "data", "--run", tmp_path / "run")
    assert "tokenizer: the shards were not made with the tokenizer that lies beside them" in line


def test_stages_made_with_different_tokenizers(refused: Cli, recipe: Path, data: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    for name in ("first", "second"):
        shutil.copytree(data, both / name)
    other_tokenizer(both / "second")
    manifest = json.loads((both / "second" / "manifest.json").read_text(encoding="utf-8"))
    manifest["tokenizer"] = Tokenizer.load(both / "second" / "tokenizer").fingerprint
    (both / "second" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    settings = ["--set", "stage.0.data=first", "--set", "stage.1.data=second"]
    line = refused("pretrain", recipe, "--data", both, "--run", tmp_path / "run", *settings)
    assert "stage 1's shards were made with another tokenizer than stage 0's" in line


def test_data_of_another_number_of_relations(refused: Cli, recipe: Path, data: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(data, both / "pair")
    write_data(both / "three", layout="three")
    settings = ["--set", "stage.0.data=three", "--set", "stage.1.data=pair"]
    line = refused("pretrain", recipe, "--data", both, "--run", tmp_path / "run", *settings)
    assert "stage 1's records tell 2 relations of segments apart, those of an earlier stage 3; make all" in line

    run = tmp_path / "trained"
    run.mkdir()
    shutil.copy(data / "manifest.json", run)
    (run / "model.json").write_text(json.dumps({"vocab_size": len(VOCABULARY), "positions": 16}), encoding="utf-8")
    line = refused("evaluate", run, "--data", both / "three")
    assert "these records tell 3 relations of segments apart, the model 2; give some of the layout" in line


def test_a_directory_that_holds_something_else(refused: Cli, recipe: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    settings = ["--set", "stage.0.batch=8", "--set", "stage.1.batch=16"]
    line = refused("pretrain", recipe, "--data", data, "--run", tmp_path, *settings)
    assert "this directory is not empty and holds no run; choose another" in line
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_report_and_evaluate_want_a_run(refused: Cli, data: Path, tmp_path: Path) -> None:
    assert "this is no run directory" in refused("report", tmp_path)
    assert "model.json: there is no such file; is this a run directory?" in refused(
        "evaluate", tmp_path, "--data", data
    )


def test_a_fault_that_is_none(refused: Cli, recipe: Path, data: Path, tmp_path: Path) -> None:
    line = refused("pretrain", recipe, "--data", data, "--run", tmp_path / "run", "--fault", "burn@3")
    assert "--fault: 'burn@3' is no fault; write KIND@STEP with a kind of kill, save" in line


def test_a_run_directory_that_is_a_file(refused: Cli, recipe: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    settings = ["--set", "stage.0.batch=8", "--set", "stage.1.batch=16"]
    line = refused("pretrain", recipe, "--data", data, "--run", tmp_path / "notes.txt", *settings)
    assert "notes.txt: this is a file; name a directory for the run" in line


def test_an_empty_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="vocab.txt: the vocabulary is empty; give a vocab.txt with one piece a line"):
        Tokenizer.load(tmp_path / "vocab.txt")


def test_a_shard_that_is_gzip_by_name_only(data: Path, tmp_path: Path) -> None:
    shutil.copyfile(next(data.glob("train-*.tfrecord")), tmp_path / "fake.gz")
    with pytest.raises(UserError, match="fake.gz: this is not gzip, whatever its name says; make it again, or rename"):
        open_shard(tmp_path / "fake.gz")


def test_an_empty_recipe(refused: Cli, data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.toml").touch()
    line = refused("pretrain", tmp_path / "empty.toml", "--data", data, "--run", tmp_path / "run")
    assert "empty.toml: no [[stage]] says what to train; begin with a copy of a recipe in configs/" in line


def test_a_recipe_of_another_verb(refused: Cli, data: Path, tmp_path: Path) -> None:
    line = refused("plan", "configs/tasks/sst2.toml")
    assert "configs/tasks/sst2.toml: this is the recipe of a task; give it to `bert-jax finetune`" in line
    line = refused("finetune", "configs/tiny.toml", "--model", data, "--data", data, "--run", tmp_path / "run")
    assert "configs/tiny.toml: this is a recipe of pretraining; give it to `bert-jax pretrain`" in line


def test_usage_exits_with_2() -> None:
    for arguments in ([], ["pretrian"], ["pretrain"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2


def test_a_damaged_record_ends_the_run_with_its_place(recipe: Path, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    shard = sorted(copy.glob("train-*.tfrecord"))[0]
    whole = bytearray(shard.read_bytes())
    whole[len(whole) // 2 + 50] ^= 1  # inside a record, not in its frame
    shard.write_bytes(whole)
    done = bert_jax("pretrain", recipe, "--data", copy, "--run", tmp_path / "run")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert shard.name in done.stderr and "record" in done.stderr and "checksum" in done.stderr


def test_a_full_disk_during_a_checkpoint_loses_nothing(recipe: Path, data: Path, tmp_path: Path) -> None:
    """No file may grow beyond 100 kB, and a checkpoint needs more."""
    settings = ["--set", "model.width=128", "--set", "train.evaluate_every=40"]
    run = ["pretrain", recipe, "--data", data, "--run", tmp_path / "run", *settings]
    assert bert_jax(*run, "--fault", "kill@12").returncode < 0
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()}

    full = bert_jax(*run, largest_file=100_000)
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    assert "a checkpoint cannot be written" in full.stderr and "make room" in full.stderr
    assert kept <= {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}

    assert bert_jax(*run).returncode == 0
    assert [row["step"] for row in read_metrics(tmp_path / "run", "train")] == list(range(1, 41))


def test_an_exhausted_run_of_bad_steps_is_told(recipe: Path, data: Path, tmp_path: Path) -> None:
    settings = ["--set", "stage.0.learning_rate=1e30", "--set", "train.skip_limit=3", "--set", "stage.0.warmup=0"]
    done = bert_jax("pretrain", recipe, "--data", data, "--run", tmp_path / "run", *settings)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "3 steps in a row had a loss or gradient that is not finite" in done.stderr


def test_figures_are_said_as_a_person_would() -> None:
    assert [counted(n, "device") for n in (0, 1, 2, 2000)] == ["0 devices", "1 device", "2 devices", "2,000 devices"]
    assert [_pace(rate) for rate in (0.01, 0.4, 1.0, 1234.5)] == [
        "100.0 s/step",
        "2.5 s/step",
        "1.0 steps/s",
        "1,234.5 steps/s",
    ]
