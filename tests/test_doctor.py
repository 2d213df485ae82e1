"""The doctor in a healthy world and in broken ones: the right line and its cure."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bert_jax.advice import usual_rate
from bert_jax.cli import main
from bert_jax.config import load_recipe, with_data
from bert_jax.data.stages import check_stages, manifest_digests, open_stages
from bert_jax.store import rundir
from bert_jax.text.features import Records, RecordSpec
from bert_jax.text.manifest import ShardInfo, load_manifest, write_manifest
from bert_jax.text.records import open_shard, write_shard
from tests.several import finish, free_port, start
from tests.world import LENGTH, PREDICTIONS, VOCABULARY, Tokenizer, write_data, write_recipe

HEALTHY = ["data.masking=dynamic", "stage.0.steps=400", "stage.0.learning_rate=5e-3", "stage.0.warmup=20"]
HOST = socket.gethostname()
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


def settings(*texts: str) -> list[str]:
    return [word for text in (*HEALTHY, *texts) for word in ("--set", text)]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("world")
    return write_recipe(folder / "recipe.toml"), write_data(folder / "data")


@pytest.fixture
def world(healthy: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy that may be broken."""
    return healthy[0], Path(shutil.copytree(healthy[1], tmp_path / "data"))


def doctor(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, list[dict]]:
    capsys.readouterr()
    status = main(["doctor", *map(str, arguments), "--json"])
    return status, json.loads(capsys.readouterr().out)


def line(found: list[dict], state: str, subject: str, what: str) -> dict:
    """The one line that says so."""
    lines = [one for one in found if (one["state"], one["subject"]) == (state, subject) and what in one["what"]]
    assert len(lines) == 1, found
    return lines[0]


def rewrite(data: Path, change: Callable[[Records], Records]) -> None:
    """The first shard of the train split with its records changed, the manifest agreeing with its bytes."""
    manifest = load_manifest(data)
    train = manifest.splits["train"]
    path = data / train.shards[0].name
    records = open_shard(path).read(np.arange(train.shards[0].records))
    path.with_name(path.name + ".idx").unlink()
    done = write_shard(path, [change(records)], RecordSpec(LENGTH, PREDICTIONS))
    info = ShardInfo(path.name, done.records, done.bytes, done.sha256, done.tokens, 0)
    splits = manifest.splits | {"train": replace(train, shards=(info, *train.shards[1:]))}
    write_manifest(data, replace(manifest, splits=splits))


# ------------------------------------------------------------------------------------------------------- healthy


def test_in_a_healthy_world_every_line_is_ok(
    healthy: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe, data = healthy
    run = tmp_path / "runs" / "one"
    status, found = doctor(capsys, recipe, "--data", data, "--run", run, *settings())
    # with a GPU beside it, a session that is held to the CPU is told so
    assert status == 0 and {one["state"] for one in found[1:]} == {"ok"}, found
    subjects = [one["subject"] for one in found]
    assert subjects == [
        *("devices", "hosts", "clock", "collectives", "paths", "checkpoint"),
        *("data train", "data heldout", "space", "run", "mesh", "recipe", "one batch"),
    ]
    assert "learned by heart" in found[-1]["what"]
    assert not (tmp_path / "runs").exists()  # nothing is left behind


def test_hosts_alone_can_be_looked_at(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [text.split()[:2] for text in lines] == [
        ["ok", name] for name in ("devices", "hosts", "clock", "collectives")
    ]


def test_a_run_that_stands_keeps_its_files(
    healthy: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert doctor(capsys, "--run", tmp_path)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_directory_tells_whose_it_is(
    healthy: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe, data = healthy
    stages = open_stages(with_data(load_recipe(recipe), str(data)))
    digests = [sha256 for _, sha256 in manifest_digests(stages)]
    begun, run = load_recipe(recipe), tmp_path / "run"
    rundir.open_run(run, begun, check_stages(begun, stages), [data], {"manifests": digests})

    ask = partial(doctor, capsys, recipe, "--data", data, "--run", run, "--quick", "--set=stage.0.batch=16")
    line(ask()[1], "fail", "run", f"{run}: this run was begun with stage.0.batch = 8, not 16")
    found = ask("--set=stage.0.batch=8")[1]
    line(found, "ok", "run", "holds a run of this recipe on these shards")
    line(ask("--set=stage.0.batch=8", "--set=model.vocab_multiple=64")[1], "fail", "run", "128 rows, not 64")
    other = write_data(tmp_path / "other", seed=5)
    found = doctor(capsys, recipe, "--data", other, "--run", run, "--quick", "--set=stage.0.batch=8")[1]
    line(found, "fail", "run", "this run began on other shards")


def test_a_missing_manifest_is_told_once(
    healthy: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    status, found = doctor(capsys, healthy[0], "--data", tmp_path, "--run", tmp_path / "run")
    assert status == 1 and [one["subject"] for one in found if one["state"] == "fail"] == ["data"], found


# -------------------------------------------------------------------------------------------------------- broken


def test_an_id_that_the_tokenizer_does_not_have(world: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    def change(records: Records) -> Records:
        records["input_ids"][3, 2] = len(VOCABULARY)
        return records

    rewrite(world[1], change)
    status, found = doctor(capsys, "--data", world[1])
    assert status == 1
    told = line(found, "fail", "data", f"record 3: input_ids holds {len(VOCABULARY)} where values run from 0 to 44")
    assert "another tokenizer" in told["cure"]


def test_a_shard_that_was_cut(world: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    path = world[1] / "train-00001-of-00002.tfrecord"
    path.write_bytes(path.read_bytes()[:-7])
    status, found = doctor(capsys, "--data", world[1])
    assert status == 1 and "copy it again" in line(found, "fail", "data", f"{path}: this shard has")["cure"]


def test_a_byte_that_turned(world: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    path = world[1] / "train-00000-of-00002.tfrecord"
    content = bytearray(path.read_bytes())
    content[60] ^= 1  # in the first record's Example, which begins at 12
    path.write_bytes(content)
    status, found = doctor(capsys, "--data", world[1])
    assert status == 1 and "copy or make" in line(found, "fail", "data", "checksum of the record does not")["cure"]


def test_another_tokenizer_beside_the_shards(
    world: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY[:5], *reversed(VOCABULARY[5:])]) + "\n")
    shutil.rmtree(world[1] / "tokenizer")
    Tokenizer.load(tmp_path / "vocab.txt").save(world[1] / "tokenizer")
    status, found = doctor(capsys, "--data", world[1])
    assert status == 1
    assert "put back" in line(found, "fail", "data", "not made with the tokenizer that lies beside them")["cure"]


def test_records_that_repeat(world: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    """The first shard, half of all, holds four texts twelve times each."""
    rewrite(world[1], lambda records: {name: np.concatenate([x[:4]] * 12) for name, x in records.items()})
    status, found = doctor(capsys, "--data", world[1])
    told = line(found, "warn", "data train", "word-for-word copies on average")
    assert status == 0 and "--drop-copies" in told["cure"]


@pytest.mark.parametrize(
    "what",
    ["a label is a special token", "[MASK] stands where nothing is predicted", "one position is predicted twice"],
)
def test_labels_that_cannot_be_right(world: tuple[Path, Path], capsys: pytest.CaptureFixture, what: str) -> None:
    def change(records: Records) -> Records:
        several = np.flatnonzero(records["masked_lm_weights"].sum(1) > 1)
        row = several[0]
        if "label" in what:
            records["masked_lm_ids"][row, 0] = 2
        elif "nothing" in what:
            records["input_ids"][row, records["masked_lm_positions"][row, 0]] = 4
            records["masked_lm_weights"][row, 0] = 0
        else:
            records["masked_lm_positions"][row, 1] = records["masked_lm_positions"][row, 0]
        return records

    rewrite(world[1], change)
    status, found = doctor(capsys, "--data", world[1])
    assert status == 1 and "make the shards anew" in [one for one in found if what in one["what"]][0]["cure"], found


def test_a_run_directory_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    status, found = doctor(capsys, "--run", tmp_path / "thesis.tex" / "run")
    assert status == 1
    assert "--run" in line(found, "fail", "paths", "cannot be written (Not a directory)")["cure"]


def test_stages_that_say_tokens_are_judged_by_their_steps(
    healthy: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    told = settings("stage.0.tokens=100000", "stage.0.warmup=300", "stage.1.warmup=1", "checkpoint.every=20")
    found = doctor(capsys, healthy[0], "--data", healthy[1], *told, "--quick")[1]
    assert not [one for one in found if "warm-up" in one["what"] and one["state"] != "ok"], found


def test_replayed_shards_are_looked_at_too(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe, _ = write_recipe(tmp_path / "recipe.toml"), write_data(tmp_path / "data" / "new")
    asked = settings("stage.0.data=new", "stage.1.data=new", "stage.0.replay_data=old", "stage.0.replay=0.1")
    status, found = doctor(capsys, recipe, "--data", tmp_path / "data", *asked, "--quick")
    assert status == 1 and any(str(tmp_path / "data" / "old") in one["what"] for one in found), found


def test_a_rate_that_is_too_high(healthy: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    """Told from the number, and seen on one batch."""
    status, found = doctor(capsys, healthy[0], "--data", healthy[1], *settings("stage.0.learning_rate=5.0"))
    assert status == 1
    assert "set stage.0.learning_rate=1e-2" in line(found, "fail", "recipe", "a peak rate of 5 is")["cure"]
    assert "lower the rate" in line(found, "fail", "one batch", "not learned by heart")["cure"]


@pytest.mark.parametrize(
    ("setting", "state", "subject", "what", "cure"),
    [
        ("stage.0.learning_rate=1e-5", "warn", "recipe", "a peak rate of 1e-05 is 1/", "it will learn slowly"),
        ("stage.0.learning_rate=1e-3", "warn", "recipe", "word frequencies (ln V = 3.81", "more steps or rows"),
        ("stage.0.warmup=0", "warn", "recipe", "no warm-up", "set stage.0.warmup=8"),
        ("stage.0.warmup=300", "warn", "recipe", "300 of 400 steps are warm-up", "set stage.0.warmup=20"),
        ("data.masking=static", "warn", "recipe", "33 times with the same masks", "data.masking=dynamic"),
        ("checkpoint.every=9999", "warn", "recipe", "one only, at the end", "set checkpoint.every=41"),
        ("train.evaluate_every=9999", "warn", "recipe", "no curve", "set train.evaluate_every=41"),
        ("train.mesh_tensor=4", "fail", "mesh", "an axis of 2 (heads) does not divide", "another mesh"),
        (
            "stage.1.ramp_from=4 stage.1.ramp_steps=4",
            "fail",
            "mesh",
            "does not divide over 8 devices",
            "a multiple of 16",
        ),
        ("stage.0.batch=12", "fail", "mesh", "does not divide over 8 devices", "a multiple of 8"),
        (
            "model.positions=8",
            "fail",
            "recipe",
            "stage.0: records of 16 tokens are longer",
            "set model.positions=16",
        ),
        ("stage.1.length=64", "fail", "recipe", "records have 16 tokens, not 64", "make shards with --length 64"),
    ],
)
def test_settings_that_are_unusual(
    healthy: tuple[Path, Path],
    capsys: pytest.CaptureFixture,
    setting: str,
    state: str,
    subject: str,
    what: str,
    cure: str,
) -> None:
    found = doctor(capsys, healthy[0], "--data", healthy[1], *settings(*setting.split()), "--quick")[1]
    assert cure in line(found, state, subject, what)["cure"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_no_shipped_recipe_has_a_rate_far_from_the_usual(config: Path) -> None:
    recipe = load_recipe(config)
    for stage in recipe.stage[:1]:
        usual = usual_rate(recipe.train.optimizer, stage.batch, recipe.model.bert(30522).width)
        assert usual / 15 < stage.learning_rate < usual * 15


# ------------------------------------------------------------------------------------------------------- several


def test_hosts_that_differ_and_a_file_system_that_is_not_shared(healthy: tuple[Path, Path], tmp_path: Path) -> None:
    port, started = free_port(), []
    for number in range(2):
        words = ["doctor", healthy[0], "--data", healthy[1], "--run", tmp_path / str(number), "--distributed"]
        words += ["--quick", *settings(f"train.seed={number}")]
        started.append(start(2, number, port, "-m", "bert_jax.cli", *words))
    (status, told, _), (other_status, other, _) = said = finish(started)
    assert (status, other_status) == (1, 1), said
    assert f"on process 0 ({HOST}) but" in told and "→ give every host the same file and the same --set" in told
    assert f"fail  paths        process 0 ({HOST}): {tmp_path / '0'} is not the directory of process 1" in told
    assert "ok    collectives  a sum over 2 devices is right" in told
    assert not [line for line in other.splitlines() if "[Gloo]" not in line]  # the first process speaks for all


def test_a_host_that_never_comes_is_named(tmp_path: Path) -> None:
    only = start(2, 0, free_port(), "-m", "bert_jax.cli", "doctor", "--distributed", "--join-timeout", 1)
    [(status, _, errors)] = finish([only])
    assert status == 1, errors
    assert "--distributed: 1 of 2 processes came within 1 s, missing process 1; see why those hosts" in errors
