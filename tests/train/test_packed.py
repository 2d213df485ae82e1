"""Packed rows train as the same records one a row do: losses, accuracies, every gradient."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from bert_jax.config import BertConfig, DataSettings, Execution, Stage
from bert_jax.data.batching import HostBatch, padded
from bert_jax.data.loader import Batches, Dataset, open_batches, open_dataset
from bert_jax.data.order import PackedOrder
from bert_jax.model import bert
from bert_jax.train.loss import make_pretraining_loss, weigh
from bert_jax.train.step import init_state, make_train_step
from tests.conftest import louder
from tests.world import LENGTH, VOCABULARY, write_data

ROWS = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_data(tmp_path_factory.mktemp("data") / "data", shortest=5), "train")


@pytest.fixture(scope="module")
def config() -> BertConfig:
    return BertConfig(
        vocab_size=len(VOCABULARY),
        width=32,
        layers=2,
        heads=4,
        feed_forward=64,
        positions=LENGTH,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )


@pytest.fixture(scope="module")
def params(config: BertConfig) -> dict:
    return louder(bert.init(config, jax.random.key(7)))


def batches_of(dataset: Dataset, batching: str, masking: str = "static", **stage: int) -> Batches:
    return open_batches(DataSettings(batching=batching, masking=masking), Stage(batch=ROWS, **stage), 0, 3, dataset)


def same_records_unpacked(batches: Batches, t: int) -> HostBatch:
    source = batches.sources[0]
    numbers = source.order.rows(t * ROWS, (t + 1) * ROWS).numbers
    return padded(source.dataset.read(numbers[numbers >= 0]))


def gradients(config: BertConfig, params: dict, batch: HostBatch) -> tuple:
    loss = make_pretraining_loss(config, Execution())
    (scalar, metrics), grads = jax.jit(
        lambda p, b: jax.value_and_grad(loss, has_aux=True)(p, b, None, weigh(b)),
    )(params, batch)
    return jax.device_get((scalar, metrics, grads))


def assert_close(one: object, other: object, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=atol, atol=atol), one, other)


def test_packed_equals_unpacked(dataset: Dataset, config: BertConfig, params: dict) -> None:
    batches = batches_of(dataset, "packed")
    packed, plain = batches.load(0).rows, same_records_unpacked(batches, 0)
    # worth comparing: rows of several records, with uneven predictions and padding behind
    assert packed["sequence_ids"].max() > 1 and len(plain["input_ids"]) > ROWS
    assert (packed["sequence_ids"] == 0).any() and len(set(packed["mlm_weights"].sum(1))) > 1
    ours, theirs = gradients(config, params, packed), gradients(config, params, plain)
    assert float(theirs[1]["masked_lm_accuracy"][1]) > 12
    assert_close(ours, theirs, 1e-5)


def test_a_record_sees_nothing_of_its_neighbours_in_the_row(dataset: Dataset, config: BertConfig, params: dict) -> None:
    packed = batches_of(dataset, "packed").load(0).rows
    row = int(np.argmax(packed["sequence_ids"].max(1)))
    other = packed["input_ids"].copy()
    second = packed["sequence_ids"][row] == 2
    other[row, second] = 5 + (other[row, second] + 11) % 40
    encode = jax.jit(lambda ids: bert.encode(config, params, packed | {"input_ids": ids}).hidden)
    one, two = encode(packed["input_ids"]), encode(other)
    moved = np.abs(np.asarray(one - two)[row]).max(-1)
    assert (moved[second] > 1e-3).all() and (moved[~second] == 0).all()


@pytest.mark.parametrize("masking", ["static", "dynamic"])
def test_labels_point_at_the_tokens_that_they_replaced(dataset: Dataset, masking: str) -> None:
    batches = batches_of(dataset, "packed", masking)
    assert isinstance(batches.sources[0].order, PackedOrder)
    cls, sep, mask = dataset.manifest.special.cls, dataset.manifest.special.sep, dataset.manifest.special.mask
    for t in range(6):
        rows, batch = batches.sources[0].order.rows(t * ROWS, (t + 1) * ROWS).numbers, batches.load(t).rows
        used = batch["mlm_weights"] > 0
        places = np.nonzero(used)[0], batch["mlm_positions"][used]
        ids = batch["input_ids"].copy()
        ids[places] = batch["mlm_labels"][used]
        assert (batch["input_ids"] == mask).any() and not (ids == mask).any()
        assert len({*zip(*(p.tolist() for p in places), strict=True)}) == used.sum()
        for row, numbers in enumerate(rows):
            for place, number in enumerate(numbers[numbers >= 0]):
                inside = batch["sequence_ids"][row] == place + 1
                original = _original(dataset, number)
                np.testing.assert_array_equal(ids[row, inside], original)
                np.testing.assert_array_equal(batch["position_ids"][row, inside], np.arange(len(original)))
                assert batch["cls_positions"][row, place] == np.flatnonzero(inside)[0]
                assert ids[row, batch["cls_positions"][row, place]] == cls and original[-1] == sep
                assert batch["nsp_weights"][row, place] == 1
                assert batch["nsp_labels"][row, place] == dataset.read(np.array([number]))["next_sentence_labels"][0]
                segments = dataset.read(np.array([number]))["segment_ids"][0, : len(original)]
                np.testing.assert_array_equal(batch["segment_ids"][row, inside], segments)
            assert batch["nsp_weights"][row].sum() == batch["sequence_ids"][row].max() == (numbers >= 0).sum()


def _original(dataset: Dataset, number: int) -> np.ndarray:
    record = {name: value[0] for name, value in dataset.read(np.array([number])).items()}
    ids = record["input_ids"].copy()
    used = record["masked_lm_weights"] > 0
    ids[record["masked_lm_positions"][used]] = record["masked_lm_ids"][used]
    return ids[: record["input_mask"].sum()]


def test_accumulation_over_uneven_pieces_equals_the_whole_packed_batch(
    dataset: Dataset, config: BertConfig, params: dict
) -> None:
    batch = batches_of(dataset, "packed").load(0).rows
    # the first piece (rows 0, 3, 6, …) keeps one prediction a row
    batch["mlm_weights"][::3, 1:] = 0
    weights = batch["mlm_weights"].sum(1).reshape(-1, 3).sum(0)
    assert weights.max() > 1.5 * weights.min()

    def step(accumulate: int) -> tuple:
        # no optimizer: parameters move by the gradient itself
        tx = optax.with_extra_args_support(optax.scale(-1.0))
        step = make_train_step(make_pretraining_loss(config, Execution()), weigh, tx, lambda _: 1.0, 3, accumulate)
        state, metrics = jax.device_get(jax.jit(step)(init_state(params, tx), batch))
        return state.params, {name: metrics[name] for name in metrics if not name.endswith("/")}  # "/": by layer

    (whole, figures), (pieces, added) = step(1), step(3)
    assert_close(pieces, whole, 1e-6)
    assert_close(added, figures, 2e-6)


@pytest.mark.parametrize("batching", ["padded", "packed", "bucketed"])
def test_the_slices_of_several_hosts_are_the_whole_batch(dataset: Dataset, batching: str) -> None:
    batches = batches_of(dataset, batching, "dynamic")
    for t in (0, 3, 11):
        whole = batches.load(t)
        hosts = [batches.load(t, lambda n, i=i: slice(i * n // 4, (i + 1) * n // 4)) for i in range(4)]
        assert {(host.digest, host.tokens) for host in hosts} == {(whole.digest, whole.tokens)}
        assert whole.tokens == (whole.rows["sequence_ids"] > 0).sum()
        for name, rows in whole.rows.items():
            np.testing.assert_array_equal(np.concatenate([host.rows[name] for host in hosts]), rows, name)


def test_an_epoch_of_each_batching_has_the_same_tokens_and_predictions(dataset: Dataset) -> None:
    sums = []
    for batching in ("padded", "bucketed", "packed"):
        batches = batches_of(dataset, batching)
        epoch = batches.buckets.epoch_batches if batches.buckets else -(-batches.sources[0].order.epoch_rows // ROWS)
        rest = 0 if batches.buckets else epoch * ROWS - batches.sources[0].order.epoch_rows
        got = [batches.load(t).rows for t in range(epoch)]
        if rest:
            got[-1] = {name: x[:-rest] for name, x in got[-1].items()}
        sums.append([sum((x[name] > 0).sum() for x in got) for name in ("sequence_ids", "mlm_weights", "nsp_weights")])
    assert sums[0] == sums[1] == sums[2] and sums[0][2] == dataset.records


def test_replayed_rows_stand_where_the_order_says(dataset: Dataset, tmp_path: Path) -> None:
    old = open_dataset(write_data(tmp_path / "old", records=40, seed=9, shortest=5), "train")
    for batching in ("padded", "packed"):
        settings, stage = DataSettings(batching=batching), Stage(batch=ROWS, replay=0.25, replay_data="old")
        mixed = open_batches(settings, stage, 0, 3, dataset, old)
        alone = [open_batches(settings, Stage(batch=rows), 0, 3, data) for rows, data in ((9, dataset), (3, old))]
        for t in (0, 5):
            whole = mixed.load(t)
            parts = [batches.load(t) for batches in alone]
            assert whole.tokens == sum(part.tokens for part in parts)
            back = np.argsort([3, 7, 11, *(i for i in range(12) if i % 4 != 3)])
            for name in ("input_ids", "sequence_ids", "position_ids"):
                together = np.concatenate([parts[1].rows[name], parts[0].rows[name]])[back]
                np.testing.assert_array_equal(whole.rows[name], together)
            hosts = [mixed.load(t, lambda n, i=i: slice(i * n // 3, (i + 1) * n // 3)).rows for i in range(3)]
            for name, rows in whole.rows.items():
                np.testing.assert_array_equal(np.concatenate([host[name] for host in hosts]), rows, name)
