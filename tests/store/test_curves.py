"""Pictures: what is drawn is what was written, and no picture ends or slows a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bert_jax.store import curves
from bert_jax.store.curves import Picture, draw_curves, figure_of, read_curves, smooth
from bert_jax.text.manifest import LEVELS
from tests.store.synthetic import falling, heldout_row, timing, train_row, write_run

HELDOUT = [heldout_row(20, 7.5), heldout_row(40, 6.0), heldout_row(40, 8.0, set="general")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", falling(40), HELDOUT, [timing(1, 0, 40, 9.0, training=9.0)])


def test_levels_curves_and_evaluations_are_drawn_where_they_are(run: Path) -> None:
    panel = figure_of(read_curves(run)).axes[0]
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in panel.get_lines()}
    assert {lines[label][0] for label in LEVELS.values()} == {9.0, 7.0, 5.0, 4.0}
    assert lines["held out"].tolist() == [7.5, 6.0] and lines["held out: general"].tolist() == [8.0]


def titles(run: Path) -> list[str]:
    return [panel.get_title() for panel in figure_of(read_curves(run)).axes if panel.get_title()]


def test_there_is_a_panel_for_each_thing_that_was_written(run: Path, tmp_path: Path) -> None:
    assert titles(run) == [
        "masked LM: loss, nats",
        "masked LM: accuracy",
        "second segment: loss and accuracy",
        "learning rate and gradient norm",
        "speed, waits for data 10%",
    ]
    ratios = {f"update_ratio/layer {n}": 1e-3 for n in range(8)} | {"trust_ratio/embeddings": 0.5}
    rows = [train_row(step, 7.0, **ratios) for step in range(1, 6)]
    for row in rows:
        del row["next_sentence_loss"], row["next_sentence_accuracy"]
    assert titles(write_run(tmp_path / "ratios", rows, [], [])) == [
        "masked LM: loss, nats",
        "masked LM: accuracy",
        "learning rate and gradient norm",
        "update ÷ parameter norm by layer group",
        "trust ratio by layer group",
    ]


def test_a_run_of_one_step_and_one_that_was_not_finite_can_be_drawn(tmp_path: Path) -> None:
    for name, rows in (
        ("one", falling(1)),
        ("nan", [train_row(1, 9.0), train_row(2, float("nan")), train_row(3, 8.0)]),
    ):
        assert draw_curves(write_run(tmp_path / name, rows, [], [])).read_bytes()[:4] == b"\x89PNG"


def test_a_run_that_is_measured_and_has_no_step_yet_can_be_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [], [heldout_row(0, 5.0)], [])
    assert "learning rate and gradient norm" in titles(run)


def test_the_running_mean_skips_what_is_no_number() -> None:
    values = np.array([np.nan, 1.0, 3.0, np.nan, 5.0])
    assert smooth(values, 2).tolist()[1:] == [1.0, 2.0, 3.0, 5.0] and np.isnan(smooth(values, 2)[0])


def test_steps_computed_twice_are_drawn_once(tmp_path: Path) -> None:
    timings = [timing(1, 0, 20, 1.0), timing(1, 20, 30, 2.0), timing(2, 20, 40, 3.0)]
    run = write_run(tmp_path / "run", falling(40), [], timings)
    assert read_curves(run).timings["step"].tolist() == [20.0, 40.0]


def test_a_picture_that_fails_is_told_once_and_leaves_the_old_one(run: Path) -> None:
    told: list[str] = []
    picture = Picture(run, told.append)
    picture.draw()
    before = (run / "curves.png").read_bytes()
    (run / ".curves.png").mkdir()  # in the way of the new one
    picture.draw()
    picture.draw()
    assert len(told) == 1 and "curves.png could not be drawn" in told[0]
    assert (run / "curves.png").read_bytes() == before


def test_drawing_takes_at_most_a_hundredth_of_the_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, drawn = [0.0], []

    def draw(_: Path) -> None:
        drawn.append(now[0])
        now[0] += 3.0

    monkeypatch.setattr(curves, "draw_curves", draw)
    monkeypatch.setattr(curves.time, "perf_counter", lambda: now[0])
    picture = Picture(run, print)
    for now[0] in range(0, 1000, 20):
        picture.update()
    assert drawn == [100, 420, 740]
