"""`bert-jax finetune`: what a sweep leaves behind, and that a killed one ends as if nothing had been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax import finetune
from bert_jax.api import load, open_model
from bert_jax.cli import main
from bert_jax.convert import native
from bert_jax.errors import UserError
from bert_jax.fine_tuned import load_task
from bert_jax.tasks.examples import Answer, Example
from bert_jax.tasks.reading import Splits
from bert_jax.tasks.settings import FineTuneSettings, TaskRecipe, TaskSettings
from tests.tasks import toy
from tests.tasks.written import write_encoder, write_examples, write_lines, write_recipe, write_task
from tests.world import bert_jax, flags

SWEEP = {"learning_rates": [1e-3, 3e-3], "seeds": [0, 1, 2], "epochs": 2}
CELLS = {f"model-rate{rate}-seed{seed}.json" for rate in ("0.001", "0.003") for seed in range(3)}


class World:
    """An encoder, a task as tables, and a whole sweep over it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.encoder = folder, write_encoder(folder / "encoder")
        self.recipe = write_task(folder, "single", "tsv", train=SWEEP)
        self.straight = folder / "straight"
        done = bert_jax(*self.command(self.straight, "--audit"))
        assert done.returncode == 0, done.stderr
        self.said = done.stdout

    def command(self, run: Path, *more: object, recipe: Path | None = None) -> list[object]:
        given = ["--model", self.encoder, "--data", self.folder, "--run", run]
        return ["finetune", recipe or self.recipe, *given, *more]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a verb that must be refused; returns its one line of errors."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "Traceback" not in err, err
        return err

    return run


def finish(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """What stands in a folder: bytes and when they were written."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 2000


# ------------------------------------------------------------------------------------------------------- one sweep


def test_a_sweep_leaves_a_report_tables_pictures_predictions_and_a_model(world: World) -> None:
    run = world.straight
    twins = {f"random-rate{rate}-seed{seed}.json" for rate in ("0.001", "0.003") for seed in range(3)}
    names = {path.name for path in (run / "cells").iterdir()}
    assert names >= CELLS and len(names & twins) == 3 and names <= CELLS | twins
    report = json.loads((run / "report.json").read_text())
    results = [json.loads((run / "cells" / f"{name}").read_text()) for name in sorted(CELLS)]
    chosen = report["chosen"]
    assert chosen["dev"]["accuracy"] == max(result["dev"]["accuracy"] for result in results)
    means = {
        rate: np.mean([r["dev"]["accuracy"] for r in results if r["cell"]["rate"] == rate]) for rate in (1e-3, 3e-3)
    }
    assert means[chosen["best rate"]] == max(means.values())
    assert all(len(result["curve"]) == 2 for result in results)
    assert report["data"]["examples"] == {"train": 24, "dev": 12, "test": 12}

    table = (run / "table.md").read_text()
    scores = [r["test"]["accuracy"] for r in results if r["cell"]["rate"] == 1e-3]
    assert f"{np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f}" in table
    for line in ("rate 0.003", "random weights, rate", "majority", "bag of words", "chosen model, without what is in"):
        assert line in table
    assert table.strip() in world.said

    for name in ("curves", "table", "confusion", "calibration"):
        assert is_picture(run / f"{name}.png"), name
    found = [json.loads(line) for line in (run / "predictions-test.jsonl").read_text().splitlines()]
    gold = [example.label for example in toy.examples("single", 12, 2)]
    assert [one["gold"] for one in found] == gold
    assert np.mean([one["label"] == g for one, g in zip(found, gold, strict=True)]) == chosen["test"]["accuracy"]
    kept = load_task(run)
    assert kept.asked.labels == {"label": ("maybe", "no", "yes")} and kept.asked.task.length == 32


def test_the_second_start_does_nothing_anew_and_says_the_same(world: World) -> None:
    before = files(world.straight)
    again = bert_jax(*world.command(world.straight, "--audit"))
    assert again.returncode == 0, again.stderr
    table = (world.straight / "table.md").read_text()
    assert table.strip() in again.stdout and "examples/s" not in again.stdout
    after = files(world.straight)
    for name in before:
        if name.startswith(("cells/", "model/")):
            assert after[name] == before[name], name
    for name in ("table.md", "report.json", "predictions-test.jsonl"):
        assert after[name][0] == before[name][0], name


def test_a_killed_sweep_goes_on_to_the_same_table_and_model(world: World, tmp_path: Path) -> None:
    """Stopped when its first cell stands, held against a second process meanwhile, and killed."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "bert_jax.cli", *map(str, world.command(run, "--audit"))]
    environment = {**os.environ, "XLA_FLAGS": flags(1), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("model-"):
                process.send_signal(signal.SIGSTOP)
                break
        other = bert_jax(*world.command(run, "--audit"))
        process.kill()
    assert other.returncode == 1 and other.stderr.count("\n") == 1
    assert f"run: process {process.pid} on " in other.stderr and "trains in this directory" in other.stderr
    finished = files(run / "cells")
    assert 1 <= len(finished) < len(CELLS) and not (run / "table.md").exists()

    done = bert_jax(*world.command(run, "--audit"))
    assert done.returncode == 0, done.stderr
    after = files(run / "cells")
    assert finished.items() <= after.items()
    assert after.keys() == files(world.straight / "cells").keys()
    for name in ("table.md", "predictions-test.jsonl", "model/task.json", "model/weights.safetensors"):
        assert (run / name).read_bytes() == (world.straight / name).read_bytes(), name


def test_a_model_that_went_with_its_process_is_fitted_once_more(world: World, tmp_path: Path) -> None:
    """Killed between the last cell and the model; and killed before it was on record whose directory it is."""
    run = tmp_path / "run"
    shutil.copytree(world.straight, run)
    shutil.rmtree(run / "model")
    done = bert_jax(*world.command(run, "--audit"))
    assert done.returncode == 0 and "fitted once more, for its weights" in done.stdout, done.stderr
    for name in ("table.md", "model/task.json", "model/weights.safetensors", "model/head.safetensors"):
        assert (run / name).read_bytes() == (world.straight / name).read_bytes(), name

    head = run / "model" / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-8])
    done = bert_jax(*world.command(run, "--audit"))
    assert done.returncode == 0 and "head.safetensors" in done.stdout and "written again" in done.stdout, done.stderr
    assert head.read_bytes() == (world.straight / "model/head.safetensors").read_bytes()

    begun = tmp_path / "begun"
    (begun / "cells").mkdir(parents=True)
    for name in ("lock", "task.toml", ".inputs.json.1"):
        (begun / name).touch()
    small = ["--set", "train.learning_rates=[1e-3]", "--set", "train.seeds=[0]", "--set", "train.epochs=1"]
    finish(*world.command(begun, *small, "--no-random-twin"))


def test_rates_and_seeds_may_be_added_to_a_sweep(world: World, tmp_path: Path) -> None:
    """The larger sweep keeps the cells of the smaller one, and ends as if it had been asked for at once."""
    run, small = tmp_path / "run", ["--set", "train.learning_rates=[3e-3]", "--set", "train.seeds=[1]"]
    finish(*world.command(run, "--audit", *small))
    before = files(run / "cells")
    done = bert_jax(*world.command(run, "--audit"))
    assert done.returncode == 0, done.stderr
    assert before.items() <= files(run / "cells").items()
    for name in ("table.md", "predictions-test.jsonl", "model/task.json", "model/weights.safetensors"):
        assert (run / name).read_bytes() == (world.straight / name).read_bytes(), name


def test_sigterm_keeps_what_is_finished(world: World, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bert_jax.cli", *map(str, world.command(tmp_path / "run"))]
    environment = {**os.environ, "XLA_FLAGS": flags(1), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.startswith("model-"):
                process.terminate()
                break
        said = process.stderr.read()
    assert process.returncode == 75 and said == "bert-jax finetune: interrupted; run the same command again\n"
    assert files(tmp_path / "run/cells") and not (tmp_path / "run/table.md").exists()


INSIDE = """
import gc, os, signal, sys
from bert_jax import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background has ignored
left = [int(sys.argv.pop())]
def inside(phase, info):  # as JAX has one, in which Python drops what a handler raises
    if left and "bert_jax.tasks.loop" in sys.modules and phase == "stop":
        os.kill(os.getpid(), left.pop())
gc.callbacks.append(inside)
sys.exit(cli.main())
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_inside_a_callback_is_heard(world: World, tmp_path: Path, number: int, status: int) -> None:
    given = [*map(str, world.command(tmp_path / "run")), str(int(number))]
    environment = {**os.environ, "XLA_FLAGS": flags(1), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", INSIDE, *given], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "bert-jax finetune: interrupted; run the same command again\n")


def test_progress_without_a_terminal_is_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """None for the first step, which compiled, nor for the last, behind which the result is told."""
    monkeypatch.setattr(finetune, "QUIET", 0.0)
    told = finetune._in_lines("model-rate0.001-seed0")
    for step in (1, 2, 3):
        told(step, 3, 1.0 / step)
    assert capsys.readouterr().out == "model-rate0.001-seed0: step 2/3, loss 0.500, ETA 0 min 00 s\n"
    monkeypatch.setattr(finetune, "QUIET", 1e9)
    finetune._in_lines("cell")(2, 3, 1.0)
    assert capsys.readouterr().out == ""


def test_a_full_disk_is_told_and_what_was_finished_stays(world: World, tmp_path: Path) -> None:
    """At the very start; at the model; and at pictures, which never end a run."""
    run, one = tmp_path / "run", ["--set=train.learning_rates=[1e-3]", "--set=train.seeds=[0]", "--no-random-twin"]
    finished: dict[str, tuple[bytes, int]] = {}
    for largest, what in ((200, "task.toml"), (20_000, "model"), (0, ""), (20_000, "")):
        done = bert_jax(*world.command(run, *one), largest_file=largest)
        if what:
            assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
            assert f"{run / what}: cannot be written (" in done.stderr and "File too large" in done.stderr
        else:
            assert done.returncode == 0 and done.stderr == "", done.stderr
        assert finished.items() <= files(run / "cells").items()
        finished = files(run / "cells")
        assert not [path.name for path in run.iterdir() if path.name.startswith(".")]
        assert ("pictures cannot be written (File too large)" in done.stdout) == (not what and largest > 0)
    assert len(finished) == 1 and is_picture(run / "curves.png"), "the one there was is whole"


# --------------------------------------------------------------------------------------------------- what is refused


def test_splits_that_cannot_be_measured_alike_are_refused() -> None:
    pairs = [Example("0", "line 1", texts=("a", "b")), Example("1", "line 2", texts=("a", "b"), label="1.5")]
    recipe = TaskRecipe(TaskSettings(family="embedding"), train=FineTuneSettings(learning_rates=(1e-3,)))
    assert finetune.checked(recipe, Splits(pairs, pairs[1:], pairs[1:])) == "spearman"
    assert finetune.checked(recipe, Splits(pairs, pairs[:1], [])) == "accuracy_at_1"
    assert finetune.checked(recipe, Splits(pairs, [], pairs[1:])) == "spearman"
    with pytest.raises(UserError, match="one of dev and test has a number for every pair, the other has not"):
        finetune.checked(recipe, Splits(pairs, pairs[1:], pairs[:1]))

    asked = [replace(pairs[0], answers=answers) for answers in ((), (Answer("b", 0),))]
    recipe = TaskRecipe(TaskSettings(family="qa", metric="has_answer_f1"))
    assert finetune.checked(recipe, Splits(asked, asked, [])) == "has_answer_f1"
    with pytest.raises(UserError, match="with and without an answer, and dev has one kind"):
        finetune.checked(recipe, Splits(asked, asked[:1], asked))


def test_another_recipe_data_or_encoder_is_refused(world: World, tmp_path: Path, refused: Callable[..., str]) -> None:
    before = files(world.straight)
    said = refused(*world.command(world.straight, "--set", "train.epochs=3"))
    assert "straight: this was begun with train.epochs = 2, not 3; give what it began with, or another --run" in said

    data = tmp_path / "data"
    shutil.copytree(world.folder / "single", data / "single")
    write_examples(data / "single" / "dev.tsv", "single", 12, 7)
    given = ["finetune", world.recipe, "--model", world.encoder, "--data", data, "--run", world.straight]
    assert "this was begun with other data; give what it began with" in refused(*given)

    encoder = tmp_path / "encoder"
    read = open_model(world.encoder)
    native.write(encoder, read, provenance={})
    moved = jax.tree.map(lambda leaf: leaf + np.float32(1e-3), read.params)
    native.write(encoder, type(read)(read.config, moved, read.tokenizer, "BertModel"), provenance={}, force=True)
    given = ["finetune", world.recipe, "--model", encoder, "--data", world.folder, "--run", world.straight]
    assert "this was begun with another encoder; give what" in refused(*given)

    (tmp_path / "thesis.tex").write_text("years of work")
    assert "this is there already, and no fine-tuning of ours" in refused(*world.command(tmp_path))
    assert "this is there already" in refused(*world.command(tmp_path / "thesis.tex"))
    assert {name: entry for name, entry in files(world.straight).items() if name != "lock"} == {
        name: entry for name, entry in before.items() if name != "lock"
    }


def test_what_a_recipe_cannot_ask_of_its_files(world: World, tmp_path: Path, refused: Callable[..., str]) -> None:
    run = tmp_path / "run"
    without = ["--set", 'task.dev=""']
    said = refused(*world.command(run, *without))
    assert "task.dev: several learning rates need a dev split to choose by; name a file, or give" in said
    assert "task.train: there are no training examples" in refused(*world.command(run, "--set", 'task.train=""'))
    said = refused(*world.command(run, "--set", "task.metric=bleu"))
    assert "metric = 'bleu' is none of single; choose one of accuracy" in said
    twice = ["finetune", world.recipe, world.recipe, *world.command(run)[2:]]
    assert "two recipes have one name" in refused(*twice)
    assert not run.exists()


# ------------------------------------------------------------------------------------------------- other ways to fit

ONE = ["--no-random-twin", "--set", "train.learning_rates=[1e-3]", "--set", "train.seeds=[0]", "--set=train.epochs=1"]


def test_without_dev_and_test_the_last_epoch_is_kept(world: World, tmp_path: Path) -> None:
    splits = ["--set", 'task.dev=""', "--set", 'task.test=""']
    finish(*world.command(tmp_path / "run", *ONE, *splits, "--set", "train.epochs=2"))
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["chosen"] == {"cell": "model-rate0.001-seed0", "best rate": 1e-3, "dev": {}, "test": {}}
    assert report["cells"][0]["best"] == 1
    assert len((tmp_path / "run/predictions-train.jsonl").read_text().splitlines()) == 24


def test_the_card_of_an_export_says_what_it_was_trained_on(world: World, tmp_path: Path) -> None:
    finish("export", world.straight, tmp_path / "out", "--no-prove")
    text, report = (tmp_path / "out/README.md").read_text(), json.loads((world.straight / "report.json").read_text())
    for said in (
        "fine-tuned with bert_jax from `encoder` to tell one label of a text.",
        "| train examples | `single/train.tsv` |",
        f"| fit | {report['chosen']['cell']}, the best of dev |",
        "| epochs, at most | 2, ",
        "| read | layers last, tokens pooled |",
        "- It was fine-tuned on rows of 32 tokens at most.",
    ):
        assert said in text, said


def test_without_dev_it_is_told_what_that_means(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(*world.command(tmp_path / "run", *ONE, "--set", 'task.dev=""'))
    said = capsys.readouterr().out
    assert (
        "no dev split: the last epoch is kept, and test is measured (task.dev_share=0.1 takes one from train)" in said
    )


def test_a_suite_has_a_table_of_all(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_task(world.folder, "regression")
    finish(*["finetune", world.recipe, other, *world.command(tmp_path / "run")[2:]], *ONE)
    text = (tmp_path / "run/suite.md").read_text()
    assert text in capsys.readouterr().out
    rows = json.loads((tmp_path / "run/suite.json").read_text())
    assert [(row["task"], row["metric"]) for row in rows] == [("single", "accuracy"), ("regression", "spearman")]
    for row in rows:
        report = json.loads((tmp_path / "run" / row["task"] / "report.json").read_text())
        assert row["test"] == f"{report['chosen']['test'][row['metric']]:.4f}"
        assert row["random weights"] == "–" and row["task"] in text
        floors = report["floors"]
        assert row["majority"] == f"{floors['test']['majority'][row['metric']]:.4f}"
        numbers = [f"{floors[split]['bag of words'][row['metric']]:.4f}" for split in ("dev", "test")]
        table = (tmp_path / "run" / row["task"] / "table.md").read_text()
        told = next(line for line in table.splitlines() if "bag of words" in line)
        assert [cell.strip() for cell in told.split("|")[2:4]] == numbers


def test_a_suite_begins_with_nothing_while_a_later_recipe_is_wrong(
    world: World, tmp_path: Path, refused: Callable[..., str]
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('[task]\nfamily = "single"\ntrain = "not-there.tsv"\n')
    assert "not-there.tsv" in refused("finetune", world.recipe, wrong, *world.command(tmp_path / "run")[2:], *ONE)
    assert not (tmp_path / "run").exists()


def test_an_audit_tells_what_one_side_says_and_what_remains_without_overlap(world: World, tmp_path: Path) -> None:
    """Half of test stands in train, under ids that stand there twice."""
    recipe = write_task(tmp_path, "pair", columns={"id": "name"})
    for split, names in (("train", range(24)), ("dev", range(12)), ("test", [n % 6 for n in range(12)])):
        path = tmp_path / "pair" / f"{split}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if split == "test":
            lines[6:] = [json.loads(line) for line in (tmp_path / "pair/train.jsonl").read_text().splitlines()[:6]]
        write_lines(path, [{**line, "name": str(name)} for line, name in zip(lines, names, strict=True)])
    given = ["--model", world.encoder, "--data", tmp_path, "--run", tmp_path / "run", "--audit"]
    finish("finetune", recipe, *given, *ONE)
    report = json.loads((tmp_path / "run/report.json").read_text())
    found = [json.loads(line) for line in (tmp_path / "run/predictions-test.jsonl").read_text().splitlines()]
    gold = [example.label for example in toy.examples("pair", 12, 2)][:6]
    alone = np.mean([one["label"] == g for one, g in zip(found[:6], gold, strict=True)])
    assert report["without overlap"] == {"examples": 6, "accuracy": alone}
    assert {"first text alone", "second text alone"} <= report["floors"]["test"].keys()
    assert report["data"]["duplicates"]["test in train"]["count"] == 6


def test_a_frozen_encoder_leaves_as_it_came(world: World, tmp_path: Path) -> None:
    finish(*world.command(tmp_path / "run", *ONE, "--set", "train.what=head", "--set", "readout.layers=mix"))
    given, kept = open_model(world.encoder).params, load_task(tmp_path / "run").params
    for part in ("embeddings", "layers", "pooler"):
        jax.tree.map(np.testing.assert_array_equal, kept[part], given[part])
    assert np.abs(kept["mix"]["weights"]).max() > 0


def test_a_task_before_another_hands_on_its_encoder(world: World, tmp_path: Path, refused: Callable[..., str]) -> None:
    """With the encoder frozen in the last task, its bits are those that the first one left: of its own rate alone."""
    first = write_task(world.folder, "pair")
    last = write_recipe(world.folder / "last.toml", "single", "tsv")
    last.write_text(last.read_text() + '\n[[before]]\nrecipe = "pair.toml"\n')
    given = world.command(tmp_path / "run", *ONE, "--set", "train.what=head", recipe=last)
    finish(*given)
    encoder, kept = open_model(world.encoder).params, load_task(tmp_path / "run").params
    word = encoder["embeddings"]["word"]
    np.testing.assert_array_equal(kept["embeddings"]["word"], word)  # --set is of both: frozen there as well
    last.write_text(last.read_text().replace("[train]", '[train]\nwhat = "head"'))
    finish(*world.command(tmp_path / "again", *ONE, recipe=last))
    kept = load_task(tmp_path / "again").params
    assert np.abs(kept["embeddings"]["word"] - word).max() > 1e-4
    assert kept["classifier"]["kernel"].shape[1] == 3
    again = tmp_path / "again"
    assert json.loads((again / "report.json").read_text())["before"][0]["examples"] == 24
    assert load_task(again / "before/1-pair-seed0").predict([{"text_a": "a", "text_b": "b"}])  # a model as any other

    cells, kept = files(again / "cells"), files(again / "before")
    shutil.rmtree(again / "cells")
    finish(*world.command(again, *ONE, "--set", "train.seeds=[0, 1]", recipe=last))  # of both, as all is
    assert kept.items() < files(again / "before").items()  # not trained again, and one more for the other seed
    same = "model-rate0.001-seed0.json"
    scores = [json.loads(found[same][0])["curve"] for found in (cells, files(again / "cells"))]
    assert scores[0] == scores[1]  # bit for bit the encoder that it was

    first.write_text(first.read_text() + '\n[[before]]\nrecipe = "single.toml"\n')
    said = refused(*world.command(tmp_path / "more", recipe=last))
    assert "pair.toml: a task that comes before has none before it" in said
    first.write_text(first.read_text().partition("\n[[before]]")[0].replace('"pair/train.jsonl"', '""'))
    said = refused(*world.command(tmp_path / "more", recipe=last))
    assert "before: there are no training examples; name a file in task.train of that recipe" in said


def test_vectors_open_as_a_model_with_its_pooling(world: World, tmp_path: Path) -> None:
    recipe = write_task(world.folder, "embedding")
    finish(*world.command(tmp_path / "run", *ONE, recipe=recipe))
    texts = [text for example in toy.examples("embedding", 12, 2) for text in example.texts]
    found = [json.loads(line) for line in (tmp_path / "run/predictions-test.jsonl").read_text().splitlines()]
    model = load(tmp_path / "run")
    vectors = np.array([vector for one in found for vector in one["vectors"]], np.float32)
    np.testing.assert_allclose(model.encode(texts), vectors, atol=2e-5)
    before = load(world.encoder).encode(texts)
    assert np.abs(before / np.linalg.norm(before, axis=1, keepdims=True) - vectors).max() > 1e-3
    exported = ["--format", "sentence-transformers", "--no-prove"]
    finish("export", tmp_path / "run", tmp_path / "out", *exported)
    np.testing.assert_allclose(load(tmp_path / "out").encode(texts), vectors, atol=2e-5)
