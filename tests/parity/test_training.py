"""A hundred steps of AdamW here and in transformers, from the same weights on the same batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.parity.foreign import torch  # noqa: F401 - first: skips where it is missing

from benchmarks.parity_training import compare  # isort: skip
from bert_jax.config import BertConfig, DataSettings, Stage
from bert_jax.data.loader import open_batches, open_dataset
from tests.world import write_data


def test_the_losses_of_a_hundred_steps_stay_within_1e3(tmp_path: Path) -> None:
    dataset = open_dataset(write_data(tmp_path / "data"), "train")
    config = BertConfig(
        vocab_size=dataset.manifest.vocab_size, width=32, layers=2, heads=2, feed_forward=64, positions=16
    )
    stage = Stage(steps=100, batch=8, learning_rate=3e-3, warmup=10, end_fraction=0.1)
    data = open_batches(DataSettings(), stage, 0, 0, dataset)
    batches = [data.load(t).rows for t in range(100)]
    ours, theirs = compare(config, batches, stage)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
    assert np.mean(ours[-10:]) < np.mean(ours[:10]) - 0.3  # they learn, so the steps are not nothing
