"""`bert-jax compare`: what differs between runs is found, named and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bert_jax.cli import main
from tests.store.synthetic import falling, heldout_row, timing, train_row, write_run

TIMINGS = [timing(1, 0, 0, 0.0), timing(1, 0, 40, 3600.0, training=3000.0, waiting=600.0)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    one = write_run(folder / "one" / "run", falling(40), [heldout_row(20, 7.5), heldout_row(40, 6.0)], TIMINGS)
    rows = falling(30, end=7.0)
    rows[11]["batch"] = "another"
    two = write_run(folder / "two" / "run", rows, [], TIMINGS[:1], ("train.seed=3", "stage.1.batch=32"))
    return one, two


def compared(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main(["compare", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_figures_settings_and_data(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, *runs, "--out", tmp_path / "both.png")
    assert list(found["runs"]) == ["one/run", "two/run"]
    assert found["differences"] == {
        "train.seed": {"one/run": 0, "two/run": 3},
        "stage.1.batch": {"one/run": 16, "two/run": 32},
    }
    assert found["data"] == {"two/run": {"steps compared": 12, "first differing step": 12}}
    one, two = found["figures"]["one/run"], found["figures"]["two/run"]
    assert one["masked lm loss"] == 6.0 and one["measured at step"] == 40 and one["hours"] == 1.0
    assert one["useful tokens"] == 4000 and one["useful tokens/s"] == 1.1
    assert two["step"] == 30 and "masked lm loss" not in two  # still on its way to the first evaluation
    assert (tmp_path / "both.png").read_bytes()[:4] == b"\x89PNG"


def test_the_tables_say_the_same(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for axis in ("tokens", "hours"):
        assert main(["compare", *map(str, runs), "--out", str(tmp_path / "both.png"), "--by", axis, "--log"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train.seed", "0", "3"] in rows and ["masked", "lm", "loss", "6", "–"] in rows
    assert "one/run and two/run saw other data from step 12 on.".split() in rows


def test_the_same_data_and_settings(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shorter = write_run(tmp_path / "short", falling(10), [], [])
    assert main(["compare", str(runs[0]), str(shorter), "--out", str(tmp_path / "both.png")]) == 0
    shown = capsys.readouterr().out
    assert "No setting differs." in shown and "saw the same data in all 10 steps that both have" in shown


def test_what_cannot_be_compared_gets_one_sentence(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = write_run(tmp_path / "empty", [], [], [])
    old = [{name: x for name, x in row.items() if name != "tokens"} for row in (train_row(1, 9.0), train_row(2, 8.0))]
    early = write_run(tmp_path / "early", old, [], [])
    for arguments, message in (
        ([runs[0]], "two different runs or more are needed; name each once"),
        ([runs[0], runs[0]], "two different runs or more are needed"),
        ([runs[0], tmp_path], "this is no run directory; give one that `bert-jax pretrain` made"),
        ([runs[0], empty], "empty: no step is done yet"),
        ([runs[0], early, "--by", "tokens"], "early: its lines do not tell tokens"),
        ([runs[0], early, "--by", "hours"], "early: there are no timings"),
        ([*runs, "--out", tmp_path / "no" / "a.png"], "no: there is no such directory; make it"),
    ):
        assert main(["compare", *map(str, arguments)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and message in err, err
