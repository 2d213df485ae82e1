"""XLA's flags: presets that parse, and a user whose own flags stand. An unknown flag would abort a run at its start."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax import flags
from bert_jax.config import TrainSettings
from bert_jax.errors import UserError
from tests.world import bert_jax, write_data

JAXLIB = importlib.metadata.version("jaxlib")


def starts(xla_flags: str) -> subprocess.CompletedProcess[str]:
    """A fresh process on this machine's CPU with these flags; the CPU's parser knows the GPU's flags as well."""
    environment = os.environ | {"XLA_FLAGS": xla_flags, "JAX_PLATFORMS": "cpu"}
    code = "import jax; jax.devices()"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_every_preset_of_this_jaxlib_parses(platform: str, devices: int) -> None:
    done = starts(flags.flags_for(platform, JAXLIB, devices, deterministic=True))
    assert done.returncode == 0, done.stderr


def test_a_flag_that_does_not_exist_ends_the_process() -> None:
    """Else the test above would show nothing."""
    done = starts("--xla_gpu_no_such_flag=true")
    assert done.returncode != 0 and "xla_gpu_no_such_flag" in done.stderr


def test_flags_of_another_jaxlib_are_left_out() -> None:
    """`xla_gpu_pipeline_*` aborts jaxlib 0.10; its predecessors are what that version knows."""
    old, new = (flags.flags_for("gpu", version, devices=8) for version in ("0.10.2", "0.11.0"))
    assert "--xla_gpu_enable_pipelined_all_reduce=true" in old and "--xla_gpu_pipeline_" not in old
    assert "--xla_gpu_pipeline_all_reduce=on" in new and "--xla_gpu_enable_pipelined_" not in new


def test_one_device_takes_no_flag_of_several() -> None:
    one = flags.flags_for("gpu", JAXLIB)
    assert "latency_hiding" not in one and "pipeline" not in one and "nondeterministic" not in one
    assert "latency_hiding" in flags.flags_for("gpu", JAXLIB, devices=2)
    assert flags.flags_for("cpu", JAXLIB, devices=8, deterministic=True) == ""


@pytest.mark.parametrize("platform", flags.TPUS)
def test_tpu_flags_go_where_libtpu_reads_them(platform: str) -> None:
    """In XLA_FLAGS they would abort: `--xla_tpu_…` is unknown to jaxlib."""
    rows = flags.preset(platform, JAXLIB, devices=8)
    assert rows and {row.variable for row in rows} == {"LIBTPU_INIT_ARGS"}


def test_every_row_says_why_and_for_whom() -> None:
    for flag in flags.TABLE:
        assert len(flag.reason) > 20 and flag.since < flag.until
        assert set(flag.platforms) <= set(flags.PLATFORMS)


# ------------------------------------------------------------------------------------------------- this machine


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of two GPUs as its files show it, with JAX's plug-in installed."""
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    monkeypatch.setattr(flags, "_installed", lambda package: package == "jax-cuda13-plugin")
    return tmp_path


def test_gpus_are_counted_without_asking_jax(gpus: Path) -> None:
    assert flags.here({}, gpus) == ("gpu", 2)
    assert flags.here({"CUDA_VISIBLE_DEVICES": "1"}, gpus) == ("gpu", 1)
    assert flags.here({"CUDA_VISIBLE_DEVICES": "-1"}, gpus) == ("cpu", 1)
    assert flags.here({"JAX_PLATFORMS": "cpu"}, gpus) == ("cpu", 1)
    assert flags.here({"JAX_PLATFORMS": "cuda,cpu"}, gpus) == ("gpu", 2)


def test_tpu_chips_are_told_apart_by_their_pci_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "_installed", lambda package: package == "libtpu")
    for place, (vendor, device) in enumerate([("0x1ae0", "0x006f"), ("0x1ae0", "0x006f"), ("0x8086", "0x1234")]):
        node = tmp_path / "sys/bus/pci/devices" / f"0000:00:{place:02}.0"
        node.mkdir(parents=True)
        (node / "vendor").write_text(vendor + "\n")
        (node / "device").write_text(device + "\n")
    assert flags.here({}, tmp_path) == ("v6e", 2)


@pytest.fixture
def on_gpus(gpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = flags.here
    monkeypatch.setattr(flags, "here", lambda environment: here(environment, gpus))


def test_what_the_user_set_stands(on_gpus: None) -> None:
    mine = "--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=/tmp/x"
    environment = {"XLA_FLAGS": mine, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    told = flags.prepare(environment, TrainSettings())
    assert environment["XLA_FLAGS"].startswith(mine + " --xla_gpu_")
    assert environment["XLA_FLAGS"].count("latency_hiding_scheduler") == 1
    assert environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
    assert "train.xla_preset=none" in told and "combine_threshold" in told
    assert flags.prepare(environment, TrainSettings()) == ""  # once is enough


def test_no_preset_still_leaves_determinism(on_gpus: None) -> None:
    environment: dict[str, str] = {}
    assert flags.prepare(environment, TrainSettings(xla_preset="none")) == "" and not environment
    flags.prepare(environment, TrainSettings(xla_preset="none", deterministic=True))
    assert environment == {"XLA_FLAGS": "--xla_gpu_exclude_nondeterministic_ops=true"}


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match="xla_preset = 'fast' is unknown"):
        TrainSettings(xla_preset="fast")


def test_a_run_records_the_flags_and_says_what_determinism_costs(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[[stage]]\nsteps = 1\nbatch = 8\n")
    sets = [f"--set={s}" for s in ("model.preset=tiny", "model.width=32", "train.deterministic=true")]
    done = bert_jax("pretrain", recipe, "--data", data, "--run", tmp_path / "run", *sets)
    assert done.returncode == 0, done.stderr
    recorded = json.loads((tmp_path / "run/provenance.json").read_text())["flags"]
    assert recorded == {"XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=1"}
    assert "deterministic: a cpu adds in one order" in (tmp_path / "run/log.txt").read_text()
