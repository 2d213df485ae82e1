"""Packed rows, a ramp, tokens instead of steps and replay, in one run: killed and continued, it is the same run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bert_jax.config import Recipe, Stage, load_recipe, with_steps
from bert_jax.errors import UserError
from bert_jax.store.rundir import read_metrics
from tests.runs import differences
from tests.world import RECIPE, bert_jax, write_data, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:orbax")

STAGES = """
[data]
batching = "packed"
sequences = 4
masking = "dynamic"

[[stage]]
data = "old"
batch = 16
ramp_from = 8
ramp_steps = 6
tokens = 1600
learning_rate = 3e-3

[[stage]]
data = "new"
batch = 8
steps = 8
replay = 0.25
replay_data = "old"
learning_rate = 1e-3
"""


def test_a_run_of_packed_ramped_and_replayed_batches_resumes_bitwise(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", RECIPE.partition("[[stage]]")[0] + STAGES)
    for seed, name in enumerate(("old", "new")):
        write_data(tmp_path / "data" / name, seed=seed, shortest=5)
    command = ("pretrain", recipe, "--data", tmp_path / "data", "--run")
    straight = bert_jax(*command, tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr
    killed = bert_jax(*command, tmp_path / "killed", "--fault", "kill@7")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    continued = bert_jax(*command, tmp_path / "killed")
    assert continued.returncode == 0, continued.stderr
    assert differences(tmp_path / "straight", tmp_path / "killed") == []

    steps = load_recipe(tmp_path / "straight" / "recipe.toml").stage[0].steps
    rows = 6 * 8 + (steps - 6) * 16
    assert 1600 / 16 <= rows < 1600 / 12 + 16  # rows of 16 tokens, some of them padding
    train, heldout = (list(read_metrics(tmp_path / "straight", kind)) for kind in ("train", "heldout"))
    last = steps + 8
    assert [row["step"] for row in train] == list(range(1, last + 1)) and last < 20  # none is measured in between
    assert [(row["step"], row.get("set")) for row in heldout] == [(steps, None), (last, "general"), (last, None)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batch": 12, "ramp_from": 8, "ramp_steps": 4}, "a batch of 12 is not reached by doubling ramp_from = 8"),
        ({"batch": 12, "ramp_from": 4, "ramp_steps": 4}, "choose ramp_from as a half"),
        ({"batch": 16, "ramp_from": 8}, "ramp_from = 8 and ramp_steps = 0 make no ramp"),
        ({"replay": 0.5}, "replay = 0.5 of nothing is no share"),
        ({"replay": 1.0, "replay_data": "old"}, "give a number from 0 up to, not including, 1"),
    ],
)
def test_ramps_and_shares_that_cannot_be_are_told(settings: dict, told: str) -> None:
    with pytest.raises(UserError) as error:
        Stage(**settings)
    assert told in str(error.value)


def test_a_warmup_longer_than_the_tokens_last_is_told() -> None:
    recipe = Recipe(stage=(Stage(tokens=1000, warmup=50),))
    with pytest.raises(UserError, match="warmup = 50 does not fit into 20 steps, which hold 1,000 tokens"):
        with_steps(recipe, [20])
    assert with_steps(recipe, [60]).stage[0].steps == 60
