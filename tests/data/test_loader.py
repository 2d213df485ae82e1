"""Shards → batches: slices agree with the whole, masks move between epochs, damage is named."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from bert_jax.config import DataSettings, Stage
from bert_jax.data.feed import ahead
from bert_jax.data.loader import Batches, Dataset, heldout_batches, open_batches, open_dataset
from bert_jax.errors import UserError
from bert_jax.text.features import restore
from tests.world import LENGTH, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


def batches_of(dataset: Dataset, batch: int, masking: str, seed: int = 0) -> Batches:
    return open_batches(DataSettings(masking=masking), Stage(batch=batch), 0, seed, dataset)


@pytest.mark.parametrize("masking", ["static", "dynamic"])
def test_hosts_read_slices_of_one_batch(data: Path, masking: str) -> None:
    dataset = open_dataset(data, "train")
    batches = batches_of(dataset, 16, masking, seed=5)
    for t in (0, 5, 6):  # 96 records: batch 5 ends the first epoch, batch 6 begins the next
        whole = batches.load(t)
        parts = [batches.load(t, lambda _, i=i: slice(i, i + 4)) for i in (0, 4, 8, 12)]
        for name, rows in whole.rows.items():
            assert np.array_equal(rows, np.concatenate([part.rows[name] for part in parts])), name
        assert {(part.digest, part.tokens) for part in parts} == {(whole.digest, whole.tokens)}
        assert whole.tokens == (whole.rows["sequence_ids"] > 0).sum()


def test_dynamic_masks_move_between_epochs_and_static_ones_do_not(data: Path) -> None:
    dataset = open_dataset(data, "train")

    def sorted_rows(t: int, masking: str) -> dict[str, np.ndarray]:
        batches = batches_of(dataset, dataset.records, masking)
        numbers = batches.sources[0].order.rows(t * dataset.records, (t + 1) * dataset.records).numbers
        batch = batches.load(t)
        return {name: rows[np.argsort(numbers[:, 0])] for name, rows in batch.rows.items()}

    static, dynamic = ([sorted_rows(t, masking) for t in (0, 1)] for masking in ("static", "dynamic"))
    assert np.array_equal(static[0]["input_ids"], static[1]["input_ids"])
    assert (dynamic[0]["mlm_positions"] != dynamic[1]["mlm_positions"]).any(1).mean() > 0.9

    def text(batch: dict[str, np.ndarray]) -> np.ndarray:
        names = {
            "mlm_positions": "masked_lm_positions",
            "mlm_labels": "masked_lm_ids",
            "mlm_weights": "masked_lm_weights",
        }
        return restore({"input_ids": batch["input_ids"]} | {new: batch[old] for old, new in names.items()})

    for one, other in itertools.combinations([*static, *dynamic], 2):
        assert np.array_equal(text(one), text(other))


def test_heldout_batches_hold_every_record_once(data: Path) -> None:
    dataset = open_dataset(data, "heldout")
    batches = list(heldout_batches(dataset, 10, slice(0, 10)))
    assert [len(b["input_ids"]) for b in batches] == [10, 10, 10]
    together = np.concatenate([b["input_ids"] for b in batches])
    assert np.array_equal(together[:24], dataset.read(np.arange(24))["input_ids"])
    assert not np.concatenate([b["mlm_weights"] for b in batches])[24:].any()
    assert np.concatenate([b["nsp_weights"] for b in batches]).sum() == 24
    hosts = [
        np.concatenate([b["input_ids"] for b in heldout_batches(dataset, 10, s)]) for s in (slice(0, 5), slice(5, 10))
    ]
    assert np.array_equal(np.concatenate([h.reshape(3, 5, LENGTH) for h in hosts], 1).reshape(30, LENGTH), together)


def test_the_layout_decides_what_the_segments_are_labelled(tmp_path: Path) -> None:
    three = open_dataset(write_data(tmp_path / "three", layout="three"), "train")
    records = three.read(np.arange(three.records))
    batches = batches_of(three, 96, "dynamic")
    batch, numbers = batches.load(0).rows, batches.sources[0].order.rows(0, 96).numbers
    np.testing.assert_array_equal(batch["nsp_labels"], records["relation"][numbers])
    assert set(batch["nsp_labels"][:, 0].tolist()) == {0, 1, 2} and batch["nsp_weights"].all()
    np.testing.assert_array_equal(records["next_sentence_labels"], records["relation"] > 0)

    for layout in ("full", "document"):
        single = open_dataset(write_data(tmp_path / layout, layout=layout), "heldout")
        batches = list(heldout_batches(single, 10, slice(0, 10)))
        assert not any(batch["nsp_weights"].any() for batch in batches)
        assert sum(batch["mlm_weights"].sum() for batch in batches) > 0


def test_a_layout_that_the_records_or_this_version_do_not_have_is_told(tmp_path: Path) -> None:
    pairs = write_data(tmp_path / "pairs")
    path = pairs / "manifest.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"layout": "pair"', '"layout": "three"'), encoding="utf-8")
    with pytest.raises(UserError, match="lack a relation from 0 to 2"):
        open_dataset(pairs, "train").read(np.arange(3))
    path.write_text(text.replace('"layout": "pair"', '"layout": "spiral"'), encoding="utf-8")
    with pytest.raises(UserError, match="'spiral' is unknown"):
        open_dataset(pairs, "train").read(np.arange(3))
    path.write_text(text.replace(',\n  "layout": "pair"', ""), encoding="utf-8")
    assert "layout" not in open_dataset(pairs, "train").manifest.settings
    assert open_dataset(pairs, "train").manifest.relations == 2


def test_ahead_keeps_order_and_passes_errors_in_their_turn() -> None:
    def make(t: int) -> int:
        if t == 5:
            raise UserError("the shard is damaged")
        return t

    items = ahead(map(make, range(2, 8)))
    assert [next(items) for _ in range(3)] == [2, 3, 4]
    with pytest.raises(UserError, match="damaged"):
        next(items)


def test_missing_short_and_damaged_shards_are_named(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    shard = sorted(copy.glob("train-*.tfrecord"))[1]
    whole = shard.read_bytes()

    shard.write_bytes(whole[:-10])
    with pytest.raises(UserError, match=rf"{shard.name}: this shard has {len(whole) - 10:,} bytes where"):
        open_dataset(copy, "train")
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: this shard is missing"):
        open_dataset(copy, "train")
    middle = len(whole) // 2 + 50  # inside a record, not in its frame
    shard.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    dataset = open_dataset(copy, "train")
    with pytest.raises(UserError, match=rf"{shard.name}.*record \d+"):
        dataset.read(np.arange(dataset.records))
