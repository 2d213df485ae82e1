"""`bert-jax evaluate` knows where a run's data are, and says so when they are gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_jax.errors import UserError
from bert_jax.evaluate import own_data
from tests.store.synthetic import write_run


def test_the_data_are_those_of_the_last_stage(tmp_path: Path) -> None:
    (tmp_path / "data" / "512").mkdir(parents=True)
    settings = (f"data.path={tmp_path / 'data'}", 'stage.0.data="128"', 'stage.1.data="512"')
    assert own_data(write_run(tmp_path / "run", [], [], [], settings)) == tmp_path / "data" / "512"


def test_data_that_are_gone_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [], [], [], (f"data.path={tmp_path / 'moved'}",))
    with pytest.raises(UserError, match="moved: the data that this run was trained on are gone; give others with"):
        own_data(run)
