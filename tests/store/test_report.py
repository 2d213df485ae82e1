"""Progress, metrics and timings of a run: nothing lost, nothing absurd, and no clock in `metrics.jsonl`."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bert_jax.config import ReportSettings
from bert_jax.store import clock as clock_module
from bert_jax.store.clock import WAITING, Clock
from bert_jax.store.report import Amount, Reporter, progress_line
from bert_jax.store.rundir import Lines, read_lines, read_metrics
from tests.store.synthetic import LEVELS, heldout_row, train_row

AMOUNT = Amount(tokens=100, places=128, flops=1e6)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_text(json.dumps({"levels": LEVELS}), encoding="utf-8")
    return tmp_path


def reporter(run: Path, seconds: float = 1e9, done: int = 0, clock: Clock | None = None, **more: bool) -> Reporter:
    settings = ReportSettings(seconds=seconds, tensorboard=more.pop("tensorboard", False))
    return Reporter(run, settings, [(30, 128.0), (10, 512.0)], clock or Clock(), done, more.pop("active", True))


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """What a full disk does: a write beyond fails, after as much as has room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_stretch_inside_another_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    clock = Clock()
    with clock.timed("training"):
        now[0] += 5
        with clock.timed(WAITING):
            now[0] += 2
            with clock.timed("training"):
                now[0] += 1
            assert clock.now() == {"training": 6, WAITING: 2}
            now[0] += 4
        now[0] += 8
        assert clock.now() == {"training": 14, WAITING: 6}
    now[0] += 50
    assert clock.now() == {"training": 14, WAITING: 6} and clock.elapsed == 70


def test_a_full_disk_loses_no_line_and_tears_none(run: Path) -> None:
    with reporter(run) as report:
        for step in range(1, 4):
            report.step(train_row(step, 7.0), AMOUNT)
        report.flush()
        before = (run / "metrics.jsonl").read_bytes()
        for step in range(4, 7):
            report.step(train_row(step, 7.0), AMOUNT)
        for _ in range(2):
            with no_file_beyond(len(before) + 40), pytest.raises(OSError, match="File too large"):
                report.flush()
            assert (run / "metrics.jsonl").read_bytes() == before
        report.step(train_row(7, 7.0), AMOUNT)
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4, 5, 6, 7]


def test_what_is_only_looked_at_never_ends_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(run) as report:
        with no_file_beyond(10):
            report.say("a line for the log")
            report.say("another")
        shown, told = capsys.readouterr()
    assert shown == "a line for the log\nanother\n"
    assert told.count("\n") == 1 and "log.txt: cannot be written" in told and "training goes on" in told


def test_a_torn_line_is_cut_before_the_next_is_written(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    path.write_text('{"a": 1}\n{"a": 2', encoding="utf-8")
    lines = Lines(path)
    lines.add({"a": 3})
    lines.write()
    assert [row["a"] for row in read_lines(path)] == [1, 3]


def test_lines_do_not_wait_for_a_far_progress_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with reporter(run) as report:
        report.step(train_row(1, 7.0), AMOUNT)
        assert not (run / "metrics.jsonl").exists()
        later = clock_module.time.perf_counter() + 11
        monkeypatch.setattr(clock_module.time, "perf_counter", lambda: later)
        report.step(train_row(2, 7.0), AMOUNT)
        assert [row["step"] for row in read_metrics(run)] == [1, 2]


def test_no_eta_until_two_stretches_are_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = reporter(run, seconds=0.0, clock=clock)
    with clock.timed("training"), report:
        for step in range(1, 5):
            report.step(train_row(step, 7.0), AMOUNT)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert ["ETA" in line for line in lines] == [False, True, True, True]


def test_the_eta_weighs_steps_by_their_stage(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps in 10 s; 20 such steps remain, and 10 that are four times as large: 60 s."""
    now = [0.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    clock = Clock()
    report = reporter(run, seconds=5.0, clock=clock)
    with clock.timed("training"), report:
        report.pause()
        for step in range(1, 11):
            now[0] += 1
            report.step(train_row(step, 7.0), AMOUNT)
    log = (run / "log.txt").read_text(encoding="utf-8").splitlines()
    assert log[-1].endswith("1.0 steps/s  100 tokens/s + 22% padding  ETA 1 min 00 s")


def test_the_eta_forgets_the_first_stretch_and_what_is_compiled_once(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that warms up, then 11 of a second each, between them an hour of compiling and 10 s of evaluation."""
    now = [0.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    clock = Clock()
    report = reporter(run, seconds=5.0, clock=clock)
    with clock.timed("training"), report:
        report.pause()
        for step, seconds in enumerate([50, 1, 1, 1, 1, 1], 1):
            now[0] += seconds
            report.step(train_row(step, 7.0), AMOUNT)
        with clock.timed("compiling"):
            now[0] += 3600
        report.pause()
        with clock.timed("evaluating"):
            now[0] += 10
        for step in range(7, 13):
            now[0] += 1
            report.step(train_row(step, 7.0), AMOUNT)
    log = [line for line in (run / "log.txt").read_text(encoding="utf-8").splitlines() if "  ETA " in line]
    assert log[-1].endswith("ETA 1 min 50 s")  # 18 steps and 10 of four times the size, at 21 s for 11


def test_timings_of_a_session_add_up(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    clock = Clock()
    now[0] = 3.0
    report = reporter(run, seconds=4.0, clock=clock)
    with clock.timed("training"), report:
        for step in range(1, 6):
            with clock.timed(WAITING):
                now[0] += 0.5
            now[0] += 1.5
            report.step(train_row(step, 7.0), AMOUNT)
    lines = list(read_lines(run / "timings.jsonl"))
    assert [(line["from"], line["step"], line["elapsed"]) for line in lines] == [
        (0, 0, 3),
        (0, 2, 7),
        (2, 4, 11),
        (4, 5, 13),
    ]
    assert [line["seconds"] for line in lines] == [
        {"starting": 3.0},
        {"training": 3.0, WAITING: 1.0},
        {"training": 3.0, WAITING: 1.0},
        {"training": 1.5, WAITING: 0.5},
    ]
    assert lines[1]["waiting"] == 0.25 and lines[1]["tokens_per_second"] == 50 and lines[1]["places_per_second"] == 64
    assert "mfu" not in lines[1]  # nobody knows the peak of this machine
    assert lines[1]["host_peak_bytes"] > 1e6
    with reporter(run, done=5):
        pass
    assert [line["session"] for line in read_lines(run / "timings.jsonl")] == [1, 1, 1, 1, 2, 2]


def test_metrics_hold_no_time(run: Path) -> None:
    with reporter(run, seconds=0.0) as report:
        report.step(train_row(1, 7.0), AMOUNT)
        report.heldout(heldout_row(1, 6.5))
    kinds = [{"kind": "train", **train_row(1, 7.0)}, {"kind": "heldout", **heldout_row(1, 6.5)}]
    assert list(read_metrics(run)) == kinds


def test_other_processes_write_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(run, seconds=0.0, active=False) as report:
        report.step(train_row(1, 7.0), AMOUNT)
        report.heldout(heldout_row(1, 6.5))
    assert [path.name for path in run.iterdir()] == ["manifest.json"] and capsys.readouterr().out == ""


def test_a_plateau_is_said_and_a_resumed_run_does_not_say_it_again(run: Path) -> None:
    with reporter(run) as report:
        for step in range(1, 1501):
            report.step(train_row(step, 7.0), AMOUNT)
    with reporter(run, done=1500) as report:
        for step in range(1501, 1601):
            report.step(train_row(step, 7.0), AMOUNT)
    assert (run / "log.txt").read_text(encoding="utf-8").count("masked LM has stood at 7.00 nats for 1,000 steps") == 1


def test_tensorboard_groups_come_in_order(run: Path) -> None:
    with reporter(run, seconds=0.0, tensorboard=True) as report:
        report.step(train_row(1, 7.0, **{"update_ratio/heads": 1e-3}), AMOUNT)
        report.heldout(heldout_row(1, 6.5))
    (events,) = (run / "tensorboard").iterdir()
    found = events.read_bytes()
    for tag in (b"1_held_out/masked_lm_loss", b"2_train/masked_lm_loss", b"3_optimizer/learning_rate"):
        assert tag in found
    assert b"3_optimizer/update_ratio/heads" in found and b"4_speed/tokens_per_second" in found
    assert b"5_memory/host_peak_bytes" in found


def test_a_progress_line_has_about_120_characters() -> None:
    row = train_row(12_000, 6.543, learning_rate=1.5e-4)
    figures = {"steps_per_second": 2.1, "tokens_per_second": 124_600.0, "padding": 0.12, "waiting": 0.01, "mfu": 0.412}
    line = progress_line(row, 125_000, figures, 44_400.0)
    assert line == (
        "step 12,000/125,000  masked LM 6.543 (10.0%)  rate 1.5e-04  2.1 steps/s  124.6k tokens/s + 12% padding"
        "  MFU 41.2%  ETA 12 h 20 min"
    )
    assert len(line) < 135
    assert "waits for data 30%" in progress_line(row, 125_000, {**figures, "waiting": 0.3}, None)
