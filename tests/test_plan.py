"""`bert-jax plan`: counted figures are exact, estimates are near what XLA allots, nothing needs the devices."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bert_jax import cli, cost, footprint
from bert_jax.config import BertConfig, Execution, Recipe, load_recipe, preset, with_data
from bert_jax.data.loader import open_dataset
from bert_jax.model import bert
from bert_jax.plan import Plan, _time, make_plan, open_stage
from bert_jax.train import sharding
from bert_jax.train.loss import make_pretraining_loss, weigh
from tests.world import LENGTH, write_data

Planner = Callable[..., Plan]
SIZES = ["model.width=32", "model.layers=2", "model.heads=4", "model.positions=16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("plan") / "data", shortest=5)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('[model]\npreset = "tiny"\n[[stage]]\nsteps = 6\nbatch = 32\n')
    return path


@pytest.fixture
def plan(recipe_file: Path, data: Path) -> Planner:
    """(settings, …) → Plan for 4 H100s."""

    def of(*settings: str, devices: int = 4, device: str = "h100", **more: bool) -> Plan:
        recipe = load_recipe(recipe_file, [*SIZES, f"data.path={data}", *settings])
        return make_plan(recipe, cost.accelerator(device), devices, 0.5, **more)

    return of


def test_tokens_epochs_and_flops_are_counted(plan: Planner, data: Path) -> None:
    lengths = open_dataset(data, "train").tokens.astype(float)
    (stage,) = plan().stages
    assert stage.epochs == pytest.approx(6 * 32 / 96)  # the little world has 96 records
    assert stage.tokens == pytest.approx(2 * lengths.sum())
    assert stage.full == pytest.approx(lengths.mean() / LENGTH)
    config = preset("tiny", 45, width=32, layers=2, heads=4, feed_forward=128, positions=16)
    assert plan().parameters == cost.parameters(config)
    chosen = 0.15 * lengths.sum()  # this manifest counted none, so its rate speaks
    assert stage.flops == pytest.approx(cost.train_flops(config, cost.work(lengths.astype(int), chosen) * 2))


def test_hours_fall_with_devices_and_rise_with_padding(plan: Planner) -> None:
    four, eight = plan(), plan(devices=8)
    assert four.hours["h100"] == pytest.approx(2 * eight.hours["h100"])
    assert four.hours["h100"] == four.hours["h200"] > four.hours["b200"]
    padded, packed = (plan(f"data.batching={kind}") for kind in ("padded", "packed"))
    seconds_a_token = [p.hours["h100"] / p.tokens for p in (padded, packed)]
    full = [p.stages[0].full for p in (padded, packed)]
    assert seconds_a_token[1] / seconds_a_token[0] == pytest.approx(full[0] / full[1])
    assert full[1] == pytest.approx(padded.stages[0].packed_full)


def test_what_a_step_is_given_is_what_xla_counts(plan: Planner) -> None:
    """Parameters, moments and batch on one device of a 2 × 2 mesh: the compiled step's arguments, to the byte."""
    (stage,) = plan("train.mesh_fsdp=2", "train.optimizer=lamb", compiling=True).stages
    integers = 2 * 4 + 4  # the step, the skipped ones, the optimizer's count
    assert abs(stage.lowered["arguments"] - stage.memory.arguments) <= integers + 64 * 20  # XLA aligns small arrays
    assert "all-gather" in stage.lowered["collectives"]


def test_activations_are_what_a_compiled_loop_of_layers_keeps(plan: Planner) -> None:
    """Eight times the rows: what XLA allots grows by what the estimate says, within a tenth."""
    few, many = (
        plan("train.scan=on", "model.layers=8", f"stage.0.batch={rows}", devices=1, compiling=True).stages[0]
        for rows in (64, 512)
    )
    grown = many.lowered["temporaries"] - few.lowered["temporaries"]
    assert many.memory.activations - few.memory.activations == pytest.approx(grown, rel=0.1)


def test_fsdp_divides_the_state(plan: Planner) -> None:
    whole, parted = (plan(f"train.mesh_fsdp={n}", devices=8).stages[0].memory for n in (1, 8))
    assert whole.parameters == 4 * plan().parameters
    assert whole.optimizer == pytest.approx(2 * whole.parameters, rel=0.01)
    # biases and norms stay whole
    assert whole.parameters / 8 < parted.parameters < whole.parameters / 5
    assert whole.activations == parted.activations  # rows are spread over both axes alike


def test_remat_and_accumulation_keep_less(plan: Planner) -> None:
    plain, remat, pieces = (
        plan("train.scan=on", *more).stages[0].memory for more in ((), ("train.remat=all",), ("stage.0.accumulate=2",))
    )
    assert remat.activations < plain.activations / 2
    assert pieces.activations == pytest.approx(plain.activations / 2)
    assert pieces.gradients == 2 * plain.gradients


def test_the_step_lowers_for_256_tpu_chips_that_are_not_there(plan: Planner) -> None:
    result = plan("train.mesh_fsdp=8", "stage.0.batch=256", devices=256, device="v5p", lower=True)
    assert result.mesh == {"data": 32, "fsdp": 8, "tensor": 1}
    found = result.stages[0].lowered
    assert found["partitions"] == 256 and found["platform"] == "tpu" and found["constraints"] > 0
    assert len(jax.devices()) == 8
    up = next(place for place in result.arrays if place.name.endswith("params/layers/mlp/up/kernel"))
    assert up.spec[1] == "fsdp" and up.bytes == 2 * 32 * 128 * 4 // 8


def test_a_mesh_that_does_not_fit_costs_one_sentence(
    recipe_file: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", str(recipe_file), "--data", str(data), *(f"--set={s}" for s in SIZES)]
    for more, said in (
        (["--devices", "6", "--set=train.mesh_fsdp=4"], "does not fit 6 devices"),
        (["--devices", "128", "--set=train.mesh_fsdp=64"], "an axis of 32 (embed) does not divide over 64"),
        (["--device", "h300"], "'h300' is no accelerator known here; choose one of v4"),
        (["--devices", "3", "--hosts", "2"], "3 devices do not divide over 2 hosts"),
        (["--mfu", "0"], "0.0 is too small"),
        (["--data", str(data / "nowhere")], "there is no manifest.json"),
    ):
        assert cli.main([*command, *more]) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error


def test_notes_name_the_cure(plan: Planner) -> None:
    def notes(*settings: str, **more: int) -> str:
        return "\n".join(plan(*settings, **more).warnings)

    assert "it will not start: stage.0: a batch of 32 does not divide over 5 devices" in notes(devices=5)
    assert "100 passes over the same records" in notes("stage.0.steps=300")
    assert 'data.batching="packed" would take' in notes()
    assert "passes" not in notes() and "packed" not in notes("data.batching=packed")
    large = ("stage.0.batch=40000000", "train.scan=on")
    assert "do not fit into the 80 GiB of a h100; set stage.0.accumulate=2" in notes(*large, devices=1)


def test_the_table_and_its_json(recipe_file: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(recipe_file), "--data", str(data), *(f"--set={s}" for s in SIZES), "--price-hour", "2.5"]
    assert cli.main([*command, "--device", "v6e", "--devices", "8", "--hosts", "2"]) == 0
    text = capsys.readouterr().out
    assert "8 devices in 2 hosts, v6e (918 TFLOP/s bfloat16, 32 GiB); mesh data 8 × fsdp 1 × tensor 1" in text
    assert "less than 2 seconds on 8 × v6e, assuming 45% of the peak on full rows" in text and "price: " in text
    assert cli.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["stages"][0]["steps"] == 6 and set(told["hours"]) == set(cost.ACCELERATORS)


def test_times_are_told_in_units_that_fit_them() -> None:
    told = {
        1234.56: "1,234.6 hours",
        1.0: "1.0 hours",
        0.5: "30 minutes",
        0.01: "36 seconds",
        1e-9: "less than 2 seconds",
    }
    assert {hours: _time(hours) for hours in told} == told


def test_this_machine_is_timed(recipe_file: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(recipe_file), "--data", str(data), *(f"--set={s}" for s in SIZES), "--device", "here"]
    assert cli.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (stage,) = told["stages"]
    assert told["devices"] == 8
    assert told["hours"] == {"here": pytest.approx(stage["seconds_a_row"] * 6 * 32 / 3600)}


def test_what_is_kept_of_deep_networks_is_told_by_small_ones(small_world: BertConfig, data: Path) -> None:
    """`kept` looks at one and two layers; the residuals of five are on the same line."""
    row = open_stage(with_data(Recipe(), str(data)), 0).row
    config, execution = replace(small_world, layers=5), Execution(scan="on")
    loss = make_pretraining_loss(config, execution)
    params = jax.eval_shape(partial(bert.init, config), jax.random.key(0))

    def residuals(rows: int) -> int:
        def forward(params: Any, batch: Any, key: Any) -> Any:
            return jax.vjp(lambda p: loss(p, batch, key, weigh(batch))[0], params)[1]

        shapes = jax.eval_shape(forward, params, footprint.batch_shapes(rows, row), jax.random.key(0))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    assert footprint.kept(config, execution, row) == residuals(4) - residuals(3)


def test_shapes_of_a_batch_are_those_of_the_loader(data: Path) -> None:
    stage = open_stage(with_data(Recipe(), str(data)), 0)
    real = stage.batches.load(0).rows
    assert footprint.batch_shapes(256, stage.row) == {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in real.items()
    }
    assert all(isinstance(x, np.ndarray) and len(x) == 1 for x in stage.row.values())


def test_places_need_no_devices(small_world: BertConfig) -> None:
    state = footprint.place(sharding.abstract_mesh(64, fsdp=8), small_world, Recipe())
    assert footprint.local_bytes(state.params["embeddings"]["word"]) == 48 * 32 * 4 // 8
