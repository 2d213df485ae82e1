"""Artefacts beside transformers: the same inputs by name give the same outputs by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.foreign import torch, transformers  # first: skips where they are missing

from bert_jax.convert import artefacts, run_stablehlo  # isort: skip
from bert_jax.convert.families import config_to_json, family_of
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import to_foreign
from bert_jax.convert.onnx import write_onnx
from bert_jax.convert.stablehlo import write_stablehlo
from tests.artefacts import CLASSES, a_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def theirs(loaded: Loaded) -> Any:
    """The transformers model with these weights."""
    family = family_of(loaded.architecture)
    kind = next(kind for kind in family.kinds if kind.architecture == loaded.architecture)
    tree = config_to_json(loaded.config, loaded.architecture, pad=0)
    model = getattr(transformers, loaded.architecture)(transformers.CONFIG_MAPPING[family.model_type](**tree))
    rows = family.rows_of(loaded.config, loaded.params, kind.prefixed)
    tensors = {name: torch.tensor(array) for name, array in to_foreign(rows, loaded.config, loaded.params).items()}
    report = model.load_state_dict(tensors, strict=False)
    assert not report.unexpected_keys and not [name for name in report.missing_keys if name not in family.copies]
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize("architecture", CLASSES)
def test_onnx_gives_what_transformers_gives(architecture: str, tmp_path: Path) -> None:
    loaded = a_model(architecture, relations=2)
    write_onnx(tmp_path / "model.onnx", loaded)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    compare(loaded, lambda batch: session.run(None, {name: array.astype(np.int64) for name, array in batch.items()}))


def test_stablehlo_gives_what_transformers_gives(tmp_path: Path) -> None:
    loaded = a_model("BertForPreTraining", relations=2)
    write_stablehlo(tmp_path, loaded)
    network = run_stablehlo.load(tmp_path)
    names = list(artefacts.output_names(loaded).values())
    compare(loaded, lambda batch: [np.asarray(network(**batch)[name]) for name in names])


def compare(loaded: Loaded, run: Any) -> None:
    (batch,) = artefacts.batches(loaded, [(3, 17)])
    real = batch["attention_mask"] > 0
    with torch.no_grad():
        outputs = theirs(loaded)(**{name: torch.tensor(array).long() for name, array in batch.items()})
    names = artefacts.output_names(loaded).values()
    assert {name for name in outputs.keys() if name != "loss"} == set(names)
    for name, found in zip(names, run(batch), strict=True):
        wanted = outputs[name].numpy()
        assert found.shape == wanted.shape and np.abs(wanted).max() > 0.1
        apart = np.abs(found - wanted)
        assert (apart[real] if found.shape[:2] == real.shape else apart).max() < 1e-5, name
