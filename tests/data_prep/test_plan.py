"""Which documents go where."""

from __future__ import annotations

import pytest

from data_prep import plan, spool
from data_prep.clean import Cleaning


@pytest.mark.parametrize(("most", "expected"), [(10**9, [0, 1, 2, 3, 4, 5]), (3_700, [0, 2, 4]), (1, [0])])
def test_reference_levels_are_counted_on_text_of_all_inputs(tmp_path, monkeypatch, most, expected):
    # Two files, one after the other, as corpora of two languages would be: 6 shards of about 1,200 bytes.
    inputs = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.txt"
        path.write_text("\n\n".join(f"{name} document {number:02d} {'x' * 80}" for number in range(40)))
        inputs.append((0, str(path)))
    monkeypatch.setattr(plan, "_COUNTED", most)
    groups = spool.groups(inputs, [1, 1])
    work = str(tmp_path / "work")
    summaries = [spool.read(group, spool.Reading(), work) for group in groups]
    made = plan.make(groups, summaries, [""], Cleaning(), plan.Selection(shards=6), work)
    assert [task.number for task in made.tasks if task.counted] == expected
    assert all(task.split == "train" for task in made.tasks if task.counted)
