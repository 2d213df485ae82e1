"""Pictures of tasks are PNG files that replace what was there, whatever the labels are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from bert_jax.tasks import pictures
from bert_jax.tasks.pictures import Fit, Row


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures, save = [], pictures._save

    def keep(figure: Figure, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(pictures, "_save", keep)
    return figures


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and not list(path.parent.glob(".*"))


def test_confusion_has_the_right_label_in_rows(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "confusion.png"
    path.write_text("what was there before")
    pictures.confusion(path, list("aaab"), list("aabb"), ["a", "b"])
    assert is_png(path)
    counts = {(text.get_position(), text.get_text()) for text in drawn[0].axes[0].texts}
    assert counts == {((0, 0), "2"), ((1, 0), "1"), ((1, 1), "1")}  # across, down: a taken for b is above, right
    assert drawn[0].axes[0].get_title() == "3 of 4 right (75.0%)"


def test_of_many_labels_the_most_confused_are_shown(tmp_path: Path, drawn: list[Figure]) -> None:
    labels = [f"label{i:02}" for i in range(60)]
    gold = labels * 3 + ["label40"] * 5
    predicted = labels * 3 + ["label50"] * 5
    pictures.confusion(tmp_path / "confusion.png", gold, predicted, labels)
    shown = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert len(shown) == 20
    assert {"label40", "label50", "(others)"} <= set(shown)
    assert sum(map(int, texts(drawn[0]))) == len(gold)


@pytest.mark.parametrize("labels", [["好", "坏"], ["$5", "$6"], ["a" * 80, "a" * 79 + "b"], ["", "x"]])
def test_odd_labels_are_drawn(tmp_path: Path, drawn: list[Figure], labels: list[str]) -> None:
    pictures.confusion(tmp_path / "confusion.png", labels * 2, labels + labels[::-1], labels)
    assert is_png(tmp_path / "confusion.png")
    assert len({label.get_text() for label in drawn[0].axes[0].get_yticklabels()}) == 2


def test_each_label_has_its_scores(tmp_path: Path, drawn: list[Figure]) -> None:
    gold, given = [("a", "b"), ("a",), (), ("a", "c")], [("a",), ("a", "c"), (), ("b",)]
    pictures.by_label(tmp_path / "labels.png", gold, given, ["a", "b", "c", "never"])
    assert is_png(tmp_path / "labels.png")
    panel = drawn[0].axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["a  (3)", "b  (1)", "c  (1)", "never  (0)"]
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([2 * 2 / 5, 0, 0, 0])
    assert [list(line.get_xdata()) for line in panel.lines] == [[1, 0, 0, 0], pytest.approx([2 / 3, 0, 0, 0])]
    many = [f"label{i:02}" for i in range(30)]
    pictures.by_label(tmp_path / "labels.png", [many, many[10:]], [many, many], many)
    shown = [label.get_text() for label in drawn[1].axes[0].get_yticklabels()]
    assert shown == [f"{name}  (2)" for name in many[10:]]


def test_calibration_tells_the_error(tmp_path: Path, drawn: list[Figure]) -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1]])
    pictures.calibration(tmp_path / "calibration.png", probabilities, np.array([0, 1]))
    assert is_png(tmp_path / "calibration.png")
    assert "0.400" in drawn[0].axes[0].get_title()


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 2), ("mse", 1)])
def test_the_best_epoch_has_a_ring(tmp_path: Path, drawn: list[Figure], metric: str, best: int) -> None:
    fits = [Fit(1e-5, 0, [0.1, 0.9, 0.5], [3, 2, 1]), Fit(2e-5, 0, [float("nan")], [float("nan")])]
    pictures.curves(tmp_path / "curves.png", fits, metric)
    assert is_png(tmp_path / "curves.png")
    rings = [line for line in drawn[0].axes[0].lines if line.get_markerfacecolor() == "none"]
    assert [list(line.get_xdata()) for line in rings] == [[best]]


def test_a_table_has_deviations_and_floors(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [Row("2e-05", [0.8, 0.9]), Row("a rather long name of a row", [0.7])]
    pictures.table(tmp_path / "table.png", rows, "accuracy", "test", {"majority": 0.5, "bag of words": 0.6})
    assert is_png(tmp_path / "table.png")
    assert texts(drawn[0]) == ["0.850\n±0.071", "0.700"]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["majority 0.500", "bag of words 0.600"]
