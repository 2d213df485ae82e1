"""Beam calls the same steps: the same bytes as our own workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.cli import main
from tests.text import tiny


@pytest.mark.parametrize("layout", ["pair", "full"])
def test_beam_writes_the_same_files(tmp_path, layout):
    pytest.importorskip("apache_beam", exc_type=ImportError)
    (tmp_path / "a.txt").write_text(tiny.text(120, seed=1))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": d}) for d in tiny.text(90, 2).split("\n\n")))
    tiny.tokenizer().save(tmp_path / "tok")
    command = ["shards", str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"), "--tokenizer", str(tmp_path / "tok")]
    command += ["--length", "32", "--shards", "3", "--layout", layout, "--drop-copies"]
    assert main([*command, "--out", str(tmp_path / "ours"), "--workers", "1"]) == 0
    # A process of its own: Beam's imports warn, and its workers are threads of it.
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "data_prep.cli",
            *command,
            "--out",
            str(tmp_path / "beam"),
            "--beam=--runner=DirectRunner",
        ],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert _files(tmp_path / "beam") == _files(tmp_path / "ours")


def _files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
