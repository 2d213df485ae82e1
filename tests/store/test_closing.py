"""Where the time went, and how long it took, from lines of timings that one can add up by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_jax.errors import UserError
from bert_jax.store.closing import closing_table, hours, time_spent, time_table, write_report
from bert_jax.store.rundir import read_json
from tests.store.synthetic import falling, heldout_row, timing, write_lines, write_run

# Ten steps take 10 s; saved after 20; killed after 30; goes on from 20.
KILLED = [
    timing(1, 0, 0, 3.0, starting=3.0),
    timing(1, 0, 20, 26.0, compiling=2.0, training=18.0, waiting=2.0, evaluating=1.0),
    timing(1, 20, 20, 27.0, saving=0.5),
    timing(1, 20, 30, 37.0, training=9.0, waiting=1.0),
    timing(2, 20, 20, 4.0, starting=4.0),
    timing(2, 20, 40, 24.0, training=19.0, waiting=1.0),
]


def test_steps_computed_twice_are_lost_to_restarts(tmp_path: Path) -> None:
    write_lines(tmp_path / "timings.jsonl", KILLED)
    assert time_spent(tmp_path) == {
        "productive": 37.0,
        "waiting for data": 3.0,
        "compiling": 2.0,
        "evaluating": 1.0,
        "saving": 0.5,
        "drawing": 0.0,
        "starting": 7.0,
        "other": 0.5,
        "lost to restarts": 10.0,
    }


def test_a_restart_inside_a_line_loses_its_share(tmp_path: Path) -> None:
    lines = [timing(1, 0, 40, 45.0, training=40.0, saving=5.0), timing(2, 30, 40, 10.0, training=10.0)]
    write_lines(tmp_path / "timings.jsonl", lines)
    spent = time_spent(tmp_path)
    assert spent["lost to restarts"] == 10.0 and spent["productive"] == 40.0 and spent["saving"] == 5.0


def test_what_was_lost_once_is_not_lost_again(tmp_path: Path) -> None:
    lines = [timing(1, 0, 40, 40.0, training=40.0), timing(2, 30, 30, 0.0), timing(3, 10, 10, 0.0)]
    write_lines(tmp_path / "timings.jsonl", lines)
    spent = time_spent(tmp_path)
    assert spent["lost to restarts"] == 30.0 and spent["productive"] == 10.0


def test_all_seconds_of_all_sessions_are_in_the_table(tmp_path: Path) -> None:
    write_lines(tmp_path / "timings.jsonl", KILLED)
    assert sum(time_spent(tmp_path).values()) == pytest.approx(37.0 + 24.0)
    assert time_table(tmp_path).splitlines()[-1].split() == ["in", "all,", "1", "min", "01", "s", "61.0"]


def test_hours_at_a_step_are_those_of_its_last_computation(tmp_path: Path) -> None:
    write_lines(tmp_path / "timings.jsonl", KILLED)
    steps, at = hours(tmp_path)
    assert steps == [0, 20, 40] and [round(h * 3600, 6) for h in at] == [3.0, 41.0, 61.0]


def test_a_run_without_timings_has_none(tmp_path: Path) -> None:
    assert time_spent(tmp_path) == {} and time_table(tmp_path) == "" and hours(tmp_path) == ([], [])


def test_the_closing_table_names_every_level_and_held_out_text(tmp_path: Path) -> None:
    heldout = [heldout_row(20, 6.5), heldout_row(40, 6.25, set="general"), heldout_row(40, 6.0)]
    run = write_run(tmp_path / "run", falling(40), heldout, KILLED)
    rows = {line[:34].strip(): line[34:].split() for line in closing_table(run).splitlines()}
    assert rows["every piece alike (ln V)"] == ["9.000"] and rows["unigram (word frequencies)"] == ["0.050", "7.000"]
    assert rows["this model, step 40"] == ["0.200", "6.000"] and rows["this model, step 40, general"][1] == "6.250"
    assert rows["lost to restarts"] == ["10.0", "16.4%"]

    write_report(run, 40, 40)
    assert [row["masked_lm_loss"] for row in read_json(run / "report.json")["heldout"]] == [6.0, 6.25]
    assert read_json(run / "report.json")["seconds"]["lost to restarts"] == 10.0


def test_a_run_that_measured_nothing_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", falling(3), [], [])
    with pytest.raises(UserError, match="nothing was measured on held-out text yet"):
        closing_table(run)
