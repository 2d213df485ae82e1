"""`bert-jax export`: from a run directory to transformers files."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import export as verb
from bert_jax.api import load
from bert_jax.config import Recipe
from bert_jax.convert import huggingface
from bert_jax.errors import UserError
from bert_jax.store import rundir
from bert_jax.store.checkpoint import Checkpoints
from tests.readable import readable_config, readable_params, readable_tokenizer


def export(*arguments: object) -> int:
    """`bert-jax export`, not proved unless asked: tests/parity does that."""
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args(["--no-prove", *map(str, arguments)]))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two checkpoints, its vocabulary padded as in training: the readable weights, and twice those."""
    box = tmp_path_factory.mktemp("exchange")
    (box / "data").mkdir()
    (box / "data/manifest.json").write_text('{"splits": {}}')
    readable_tokenizer().save(box / "data/tokenizer")
    config, params = readable_config(), jax.tree.map(jnp.asarray, readable_params(readable_config()))
    word, bias = params["embeddings"]["word"], params["masked_lm"]["bias"]
    config = replace(config, vocab_multiple=128)
    more = config.vocab_rows - config.vocab_size
    params["embeddings"]["word"], params["masked_lm"]["bias"] = (
        jnp.pad(word, ((0, more), (0, 0))),
        jnp.pad(bias, (0, more)),
    )
    rundir.open_run(box / "run", Recipe(), config, [box / "data"], {"manifests": ["digest"], "git": "abc"})
    checkpoints = Checkpoints(box / "run", keep=2)
    checkpoints.save(5, params, {"count": jnp.zeros(())}, {})
    checkpoints.save(10, jax.tree.map(lambda leaf: 2 * leaf, params), {"count": jnp.zeros(())}, {})
    checkpoints.wait()
    checkpoints.close()
    return box / "run"


def test_the_newest_weights_and_where_they_come_from_are_written(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run_dir, tmp_path / "out") == 0
    assert "BertForPreTraining after step 10" in capsys.readouterr().out
    read = huggingface.read(tmp_path / "out")
    assert (read.config, read.architecture) == (readable_config(), "BertForPreTraining")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), read.params, readable_params(read.config))
    provenance = json.loads((tmp_path / "out/provenance.json").read_text())
    assert (provenance["git"], provenance["step"]) == ("abc", 10)
    assert (tmp_path / "out/recipe.toml").read_text() == (run_dir / "recipe.toml").read_text()


def test_a_step_and_a_class_can_be_chosen(run_dir: Path, tmp_path: Path) -> None:
    assert export(run_dir, tmp_path / "out", "--step", 5, "--model", "encoder") == 0
    read = huggingface.read(tmp_path / "out")
    assert read.architecture == "BertModel" and "masked_lm" not in read.params
    word = readable_params(read.config)["embeddings"]["word"]
    np.testing.assert_array_equal(read.params["embeddings"]["word"], word)
    with pytest.raises(UserError, match="no step 7; choose one of 5, 10"):
        export(run_dir, tmp_path / "other", "--step", 7)
    assert not (tmp_path / "other").exists()


def test_a_run_and_its_export_answer_alike(run_dir: Path, tmp_path: Path) -> None:
    export(run_dir, tmp_path / "out")
    text = "the [MASK] of france is paris ."
    assert load(run_dir).fill_mask(text) == load(tmp_path / "out").fill_mask(text)
    assert load(run_dir).fill_mask(text) != load(run_dir, step=5).fill_mask(text)


def test_a_proof_that_cannot_be_made_is_refused_before_anything_is_written(run_dir: Path, tmp_path: Path) -> None:
    """In a process of its own, in which both libraries are missing."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; from bert_jax.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "export", str(run_dir), str(tmp_path / "out"), "--prove"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert "--prove: the proof cannot import transformers (" in done.stderr and " and torch (" in done.stderr
    assert done.stderr.endswith("; pip install 'bert-jax[hf]' torch\n")
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this directory is empty; give a run directory"):
        export(tmp_path, tmp_path / "out")
