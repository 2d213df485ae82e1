"""The benchmark of an accelerator: what can be wrong in it without anybody seeing it there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cases import CASES, TINY, Case, make_batch
from benchmarks.h200 import parts, run_apart
from benchmarks.h200_parts import Setting, attempt
from benchmarks.kernels import Kernel, kind, summarise

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("case", [Case("base", 128, 16), Case("base", 512, 16, packed=True)], ids=lambda c: c.name)
def test_a_batch_is_what_the_formats_say(case: Case) -> None:
    batch, work = make_batch(case)
    ids = batch["sequence_ids"]
    assert work.tokens == (ids > 0).sum() and work.sequences == batch["nsp_weights"].sum()
    assert work.predictions == batch["mlm_weights"].sum() and 0.12 < work.predictions / work.tokens < 0.17
    lengths = [np.bincount(row, minlength=1)[1:] for row in ids]
    assert work.squares == sum(int((n**2).sum()) for n in lengths)
    assert all(len(n) <= case.sequences for n in lengths)
    for row in range(case.rows):
        chosen = batch["mlm_positions"][row][batch["mlm_weights"][row] > 0]
        assert len(set(chosen)) == len(chosen) and (ids[row][chosen] > 0).all()
        starts = batch["cls_positions"][row][batch["nsp_weights"][row] > 0]
        assert (batch["position_ids"][row][starts] == 0).all() and len(starts) == ids[row].max()
        assert (np.diff(ids[row][ids[row] > 0]) >= 0).all()


def test_packed_rows_hold_nearly_twice_as_much() -> None:
    padded, packed = (make_batch(Case("base", 512, 64, packed))[1].tokens for packed in (False, True))
    assert packed > 0.9 * 64 * 512 and packed > 1.6 * padded


def test_cases_are_sizes_by_lengths_by_layouts() -> None:
    names = {f"{size}@{length}{way}" for size in ("base", "large") for length in (128, 512) for way in ("", "/packed")}
    assert set(CASES) == names and len(TINY) == 2


@pytest.mark.parametrize(
    ("name", "operation", "expected"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "custom-call.12", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "", "products"),
        ("gemm_fusion_dot_43", "gemm_fusion_dot_43", "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "", "attention"),
        ("mha_backward", "", "attention"),
        ("MemcpyD2D", "copy.3", "copies"),
        ("wrapped_transpose", "", "copies"),
        ("input_scatter_fusion", "", "scatter and gather"),
        ("input_reduce_fusion_5", "", "fusions with a sum"),
        ("loop_convert_fusion_9", "", "other fusions"),
        ("loop_multiply_fusion_2", "", "other fusions"),
    ],
)
def test_kernels_are_told_apart_by_name(name: str, operation: str, expected: str) -> None:
    assert kind(Kernel(name, operation, 0.0, 1.0)) == expected


def test_times_add_up_and_gaps_are_idle() -> None:
    """Two kernels overlap on two streams: the busy time counts the overlap once, the kinds count it twice."""
    trace = [
        Kernel("gemm", "", 0, 4e6),
        Kernel("loop_fusion", "", 3e6, 2e6),
        Kernel("gemm", "", 7e6, 3e6),
    ]
    told = summarise(trace, steps=1)
    assert told["ms_by_kind"] == {"products": 7.0, "other fusions": 2.0}
    assert told["busy_ms"] == 8.0 and told["idle_ms"] == 2.0
    assert told["longest"][0] == {"kernel": "gemm", "operation": "", "ms": 7.0, "times": 2}


def test_a_failure_is_a_line_and_the_rest_goes_on() -> None:
    def fails() -> dict:
        raise ValueError("no plan\nmany more lines")

    assert attempt({"item": "a"}, fails) == {"item": "a", "error": "ValueError: no plan"}
    assert attempt({"item": "b"}, lambda: {"ms": 1}) == {"item": "b", "ms": 1}


def test_a_process_that_dies_or_hangs_is_told() -> None:
    code = "import json, os; print(json.dumps({'ms': 1}), flush=True); print('noise', flush=True); os.abort()"
    lines = list(run_apart([sys.executable, "-c", code], {"part": "x"}, dict(os.environ), 60))
    assert lines[0] == {"ms": 1, "part": "x"} and lines[1]["error"] == "ended with -6" and "noise" in lines[1]["said"]
    code = "import time; print('{}', flush=True); time.sleep(600)"
    lines = list(run_apart([sys.executable, "-c", code], {"part": "x"}, dict(os.environ), 1))
    assert lines[-1] == {"part": "x", "error": "killed after 1 s"}


def test_the_whole_plan_writes_a_json_line_a_result(tmp_path: Path) -> None:
    """Every part, as small as it gets, each line there as soon as it is known; what fails would be a line too."""
    command = [sys.executable, "-m", "benchmarks.h200", "--tiny", "--out", str(tmp_path), "--cache", str(tmp_path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and not [line for line in lines if "error" in line], done.stdout + done.stderr
    assert {line["part"] for line in lines} == {*parts(Setting(tiny=True, out=None)), "flags"}
    assert lines[0]["part"] == "versions" and lines[0]["platform"] == "cpu" and "jaxlib" in lines[1]
    assert (tmp_path / "results.jsonl").read_text().splitlines() == done.stdout.splitlines()
    assert (tmp_path / "tiny@32.xplane.pb").exists()
    steps = [line for line in lines if line.get("item") == "step"]
    assert {line["case"] for line in steps} == set(TINY) and all(6 < line["loss"] < 8 for line in steps)
