"""Batches: neighbours change nothing, labels stand at their items, an epoch has each example once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from bert_jax.config import BertConfig
from bert_jax.model import bert
from bert_jax.tasks import loop, network
from bert_jax.tasks.batches import (
    all_batches,
    balanced,
    epoch_units,
    features_batch,
    grid,
    layout,
    shapes_of,
    train_batches,
    units,
)
from bert_jax.tasks.encoding import TaskRow, encode
from bert_jax.tasks.examples import Example
from bert_jax.tasks.network import Network, make_network
from bert_jax.tasks.settings import FAMILIES, FineTuneSettings, ReadoutSettings, TaskSettings
from bert_jax.tasks.task import first_params
from tests.conftest import louder
from tests.tasks import toy
from tests.world import VOCABULARY

LABELS = {
    "label": toy.NAMES,
    "labels": toy.NAMES,
    "tags": toy.TAGS,
    "intent": toy.NAMES,
    "slots": toy.TAGS,
}
CONFIG = BertConfig(len(VOCABULARY), width=32, layers=1, heads=2, feed_forward=64, positions=128)


@pytest.fixture(scope="module")
def loud() -> dict:
    return louder(jax.eval_shape(partial(bert.init, CONFIG), jax.random.key(0)))


def rows_of(family: str, folder: Path, count: int = 12, seed: int = 0) -> list[TaskRow]:
    task = TaskSettings(family=family, length=20, stride=6)
    return encode(toy.examples(family, count, seed), toy.tokenizer(folder), task, LABELS)


def net_of(family: str, layers: str = "", tokens: str = "") -> Network:
    read = ReadoutSettings(layers=layers, tokens=tokens)
    return make_network(CONFIG, TaskSettings(family=family), read, LABELS)


def params_of(net: Network, encoder: dict) -> dict:
    params = first_params(net, encoder, 0)
    return params | louder({name: tree for name, tree in params.items() if name not in network.ENCODER})


@partial(jax.jit, static_argnames=("net",))
def outputs(params: dict, batch: dict, net: Network) -> dict[str, jax.Array]:
    return network.outputs(net, params, batch)


@partial(jax.jit, static_argnames=("net",))
def loss_of(params: dict, batch: dict, net: Network) -> tuple:
    return network.make_loss(net)(params, batch, None, network.make_weigh(net)(batch))


def alone(net: Network, params: dict, rows: list[TaskRow]) -> list[dict[str, np.ndarray]]:
    """The head's outputs where each sequence has a row of the batch to itself."""
    most = max(len(row.items) for row in rows)
    arrays = {name: np.zeros((len(rows), 20), np.int32) for name in ("input_ids", "segment_ids", "sequence_ids")}
    arrays["position_ids"] = np.tile(np.arange(20), (len(rows), 1))
    arrays["spans"] = np.tile(np.array([0, 1]), (len(rows), most, 1, 1))
    for number, row in enumerate(rows):
        arrays["input_ids"][number, : len(row.ids)] = row.ids
        arrays["segment_ids"][number, : len(row.ids)] = row.segments
        arrays["sequence_ids"][number, : len(row.ids)] = 1
        arrays["spans"][number, : len(row.items)] = row.spans
    out = outputs(params, arrays, net=net)
    sizes = [len(row.ids) if net.family == "qa" else len(row.items) for row in rows]
    return [
        {name: np.asarray(values)[number, :size] for name, values in out.items()} for number, size in enumerate(sizes)
    ]


# --------------------------------------------------------------------------------------------------------- outputs

READ = [(family, "", "") for family in FAMILIES] + [
    ("single", "attention", "mean"),
    ("tagging", "0", "first_last"),
    ("intent_slots", "mean", "mean"),
    ("qa", "mix", ""),
]


@pytest.mark.parametrize(("family", "layers", "tokens"), READ)
def test_packed_rows_and_kept_features_say_what_each_row_says_alone(
    family: str, layers: str, tokens: str, loud: dict, tmp_path: Path
):
    net, rows = net_of(family, layers, tokens), rows_of(family, tmp_path)
    params = params_of(net, loud)
    kept = loop.compute_features(net, params, rows, 0)
    for found in (loop.outputs_of(net, params, rows, 0), loop.outputs_of(net, params, rows, 0, kept)):
        for expected, out in zip(alone(net, params, rows), found, strict=True):
            assert out.keys() == expected.keys()
            for name, values in expected.items():
                np.testing.assert_allclose(out[name], values, atol=2e-5, rtol=1e-5)
    # and a batch of training has the same loss either way
    chosen = units(rows, family)[1:8]
    given = (layout(rows, chosen, family, 0, 8), features_batch(rows, kept, chosen, family, 8))
    (one, counts), (other, also) = (loss_of(params, batch.arrays, net=net) for batch in given)
    assert abs(float(one) - float(other)) < 1e-5 * max(1, abs(float(one)))
    for name, (_, weight) in counts.items():
        assert float(weight) == float(also[name][1]) > 0
    assert [batch.examples for batch in given] == [7, 7]


# ---------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(("family", "term"), [("single", "label"), ("tagging", "tags"), ("intent_slots", "slots")])
def test_balanced_classes_count_the_same(family: str, term: str, loud: dict, tmp_path: Path):
    """By scikit-learn's weights; the loss is that of torch's CrossEntropyLoss(weight=…), from the head's own logits."""
    plain = rows_of(family, tmp_path, count=24)
    rows = balanced(plain)
    known = np.concatenate([row.targets[term][row.targets[term] >= 0] for row in rows])
    counts = np.concatenate([row.weights[term][row.targets[term] >= 0] for row in rows])
    classes = np.unique(known)
    expected = dict(zip(classes, compute_class_weight("balanced", classes=classes, y=known), strict=True))
    np.testing.assert_allclose(counts, [expected[place] for place in known], rtol=1e-6)
    assert counts.mean() == pytest.approx(1) and np.ptp(counts) > 0.1

    net = net_of(family)
    params = params_of(net, loud)
    (head,) = (name for name, _ in net.outputs if name in ("classifier", "slots"))
    logits = np.concatenate(
        [out[head][row.targets[term] >= 0] for out, row in zip(alone(net, params, rows), rows, strict=True)]
    )
    each = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(known)), known]
    _, metrics = loss_of(params, layout(rows, units(rows, family), family, 0, 24).arrays, net=net)
    total, weight = map(float, metrics[f"{term}_loss"])
    assert total / weight == pytest.approx(float((each * counts).sum() / counts.sum()), rel=1e-5)
    assert total / weight != pytest.approx(float(each.mean()), rel=1e-3)


@pytest.mark.parametrize("cached", [False, True], ids=["tokens", "features"])
@pytest.mark.parametrize("family", ["single", "regression", "tagging", "intent_slots", "qa"])
def test_labels_stand_at_their_items_and_weigh_nothing_elsewhere(family: str, cached: bool, tmp_path: Path):
    rows = rows_of(family, tmp_path)
    for row in rows[::3]:  # some are not known
        for values in row.targets.values():
            values[: len(values) // 2 + 1] = np.nan if family == "regression" else -1
    chosen = [[number] for number in reversed(range(len(rows)))]
    if cached:
        sizes = [len(row.ids) if family == "qa" else len(row.items) for row in rows]
        given = [np.zeros((size, 1, 4), np.float32) for size in sizes]
        batch = features_batch(rows, given, chosen, family, 0)
    else:
        batch = layout(rows, chosen, family, 0, 0)
    assert sorted(number for number, _, _ in batch.places) == list(range(len(rows)))
    for term in rows[0].targets:
        labels, weights = batch.arrays[f"{term}_labels"].copy(), batch.arrays[f"{term}_weights"].copy()
        for number, row, item in batch.places:
            one = rows[number]
            here = (row, slice(item, item + len(one.items)))
            known = one.targets[term] >= 0
            assert weights[here].tolist() == known.tolist()
            moved = one.targets[term][known]
            if family == "qa" and not cached:
                moved = moved + batch.arrays["spans"][row, item, 0, 0]
                place = (row, labels[here][known])
                sequence = batch.arrays["sequence_ids"][place]
                assert (sequence == item + 1).all()
            np.testing.assert_array_equal(labels[here][known], moved)
            if not cached:
                read = batch.arrays["spans"][here]
                np.testing.assert_array_equal(read - read[:1, :, :1] + one.spans[:1, :, :1], one.spans)
            weights[here] = 0
        assert not weights.any()


@pytest.mark.parametrize("cached", [False, True], ids=["tokens", "features"])
@pytest.mark.parametrize("family", ["choice", "embedding"])
def test_groups_point_to_the_items_of_one_example(family: str, cached: bool, tmp_path: Path):
    rows = rows_of(family, tmp_path)
    for row in rows:
        if family == "choice" and row.example == 2:
            row.targets["choice"][:] = -1
    chosen = units(rows, family)[::-1]
    given = [np.full((1, 1, 4), number, np.float32) for number in range(len(rows))]
    batch = features_batch(rows, given, chosen, family, 16) if cached else layout(rows, chosen, family, 0, 16)
    arrays = batch.arrays
    slots = arrays["features" if cached else "spans"].shape[1]
    of = {row * slots + item: number for number, row, item in batch.places}
    assert arrays["groups"].shape[0] == 16 and len(of) == len(rows)
    for number, unit in enumerate(chosen):
        there = arrays["group_weights"][number] > 0
        assert [of[int(item)] for item in arrays["groups"][number][there]] == unit
        for flat in arrays["groups"][number][there]:
            row, item = divmod(int(flat), slots)
            if cached:
                assert (arrays["features"][row, item] == of[int(flat)]).all()
            else:
                begin, end = arrays["spans"][row, item, 0]
                assert arrays["input_ids"][row, begin:end].tolist() == rows[of[int(flat)]].ids.tolist()
    assert not arrays["group_weights"][len(chosen) :].any()
    if family == "choice":
        gold = [int(rows[unit[0]].targets["choice"][0]) for unit in chosen] + [-1] * (16 - len(chosen))
        assert arrays["choice_weights"].tolist() == [float(place >= 0) for place in gold]
        assert arrays["choice_labels"].tolist() == [max(place, 0) for place in gold]


def test_packed_tokens_are_those_of_the_rows(tmp_path: Path):
    rows = rows_of("single", tmp_path, count=40)
    batch = layout(rows, [[number] for number in range(40)], "single", 0, 0)
    arrays = batch.arrays
    assert arrays["input_ids"].shape[1] == 128 and len(arrays["input_ids"]) == grid(len(arrays["input_ids"]))
    held = 0
    for number, row, item in batch.places:
        here = arrays["sequence_ids"][row] == item + 1
        assert arrays["input_ids"][row][here].tolist() == rows[number].ids.tolist()
        assert arrays["segment_ids"][row][here].tolist() == rows[number].segments.tolist()
        assert arrays["position_ids"][row][here].tolist() == list(range(len(rows[number].ids)))
        held += here.sum()
    assert held == (arrays["sequence_ids"] > 0).sum()


# ----------------------------------------------------------------------------------------------------------- order


def seen(rows: list[TaskRow], family: str, seed: int, epoch: int) -> list[list[int]]:
    """The numbers of the rows, batch by batch."""
    return [[n for n, _, _ in batch.places] for batch in train_batches(rows, family, 8, seed, epoch, 0)]


@pytest.mark.parametrize("family", ["single", "choice", "embedding", "qa"])
def test_an_epoch_has_each_example_once_in_an_order_of_seed_and_epoch(family: str, tmp_path: Path):
    rows = rows_of(family, tmp_path, count=30)
    first = seen(rows, family, 1, 0)
    assert sorted(sum(first, [])) == list(range(len(rows)))
    assert first == seen(rows, family, 1, 0)
    assert first != seen(rows, family, 2, 0) and first != seen(rows, family, 1, 1) != seen(rows, family, 1, 2)
    sizes = [batch.examples for batch in train_batches(rows, family, 8, 1, 0, 0)]
    count = len(units(rows, family))
    assert sizes == [8] * (count // 8) + [count % 8] * (count % 8 > 0)
    if family in ("choice", "embedding"):
        for numbers in first:
            held = {rows[number].example for number in numbers}
            assert sorted(numbers) == [n for n, row in enumerate(rows) if row.example in held]


def test_cached_features_come_in_the_order_of_the_rows_themselves(loud: dict, tmp_path: Path):
    rows, net = rows_of("tagging", tmp_path, count=30), net_of("tagging")
    kept = [np.zeros((len(row.items), 2, 32), np.float32) for row in rows]
    settings = FineTuneSettings(batch=8)
    orders = [
        [sorted(n for n, _, _ in batch.places) for batch in loop._epoch(net, rows, given, settings, 3, 2, 0, None)]
        for given in (None, kept)
    ]
    assert orders[0] == orders[1]


@pytest.mark.parametrize("family", ["single", "choice"])
def test_rows_that_are_only_looked_at_are_each_there_once(family: str, tmp_path: Path):
    rows = rows_of(family, tmp_path, count=30)
    found = [number for batch in all_batches(rows, family, 100, 0) for number, _, _ in batch.places]
    assert sorted(found) == list(range(len(rows)))
    assert len(list(all_batches(rows, family, 100, 0))) > 2


def test_a_row_longer_than_a_batch_and_rows_without_items_have_a_place(loud: dict, tmp_path: Path):
    long = Example("0", "here:1", words=("ban",) * 120, tags=("O",) * 120)
    empty = Example("1", "here:2", words=(), tags=())
    task = TaskSettings(family="tagging", length=128)
    rows = encode([empty, long, empty], toy.tokenizer(tmp_path), task, LABELS)
    batches = list(all_batches(rows, "tagging", 50, 0))
    assert sorted(n for batch in batches for n, _, _ in batch.places) == [0, 1, 2]
    net = net_of("tagging")
    params = params_of(net, loud)
    kept = loop.compute_features(net, params, rows, 0)
    for given in (None, kept):
        outs = loop.outputs_of(net, params, rows, 0, given)
        assert [out["classifier"].shape for out in outs] == [(0, 4), (120, 4), (0, 4)]


def test_the_same_shape_is_made_for_batches_of_alike_rows(tmp_path: Path):
    rows = rows_of("tagging", tmp_path, count=64)
    shapes = {
        batch.arrays["input_ids"].shape
        for epoch in range(3)
        for batch in train_batches(rows, "tagging", 16, 0, epoch, 0)
    }
    assert len(shapes) <= 2  # each shape costs a compilation


def texts(lengths: list[int], folder: Path) -> list[TaskRow]:
    """A row of each of these lengths, [CLS] and [SEP] included."""
    examples = [
        Example(str(number), f"here:{number}", texts=(" ".join(["ban"] * (length - 2)),), label=toy.NAMES[0])
        for number, length in enumerate(lengths)
    ]
    rows = encode(examples, toy.tokenizer(folder), TaskSettings(family="single", length=512), LABELS)
    assert [len(row.ids) for row in rows] == lengths
    return rows


def test_every_batch_has_a_text_of_each_class_of_lengths(tmp_path: Path):
    lengths = np.random.default_rng(0).permutation(np.arange(3, 67)).tolist()
    rows = texts([*lengths, 90, 90, 90], tmp_path)
    for seed, epoch in ((0, 0), (0, 1), (5, 0)):
        *full, rest = epoch_units(rows, "single", 8, seed, epoch)
        assert len(full) == 8 and len(rest) == 3
        left = {number for [number] in rest}
        classes = sorted(len(row.ids) for number, row in enumerate(rows) if number not in left)
        for batch in full:
            found = sorted(len(rows[number].ids) for [number] in batch)
            assert all(classes[8 * place] <= length <= classes[8 * place + 7] for place, length in enumerate(found))
    assert (
        len({tuple(map(tuple, batch)) for seed in range(20) for batch in epoch_units(rows, "single", 8, seed, 0)}) > 100
    )


def padded(rows: list[TaskRow], seed: int, shapes: dict | None) -> tuple[int, set[tuple[int, int]]]:
    """Tokens of three epochs with padding, and the shapes of their batches."""
    found = [
        batch.arrays["input_ids"].shape
        for epoch in range(3)
        for batch in train_batches(rows, "single", 16, seed, epoch, 0, shapes)
    ]
    return sum(height * length for height, length in found), set(found)


@pytest.mark.parametrize(
    ("mean", "spread", "count", "at_most", "fill"),
    [(12, 4, 500, 2, 0.85), (50, 20, 500, 3, 0.85), (300, 80, 200, 2, 0.6), (12, 4, 9, 1, 0.5)],
    ids=["short", "middling", "long", "less than a batch"],
)
def test_a_fit_has_few_shapes_with_little_padding_whatever_the_seed(
    mean: int, spread: int, count: int, at_most: int, fill: float, tmp_path: Path
):
    drawn = np.random.default_rng(1).normal(mean, spread, count)
    rows = texts(np.clip(drawn, 3, 512).astype(int).tolist(), tmp_path)
    shapes = shapes_of(rows, "single", 16, 384)
    everywhere: set[tuple[int, int]] = set()
    for seed in range(3):
        tokens, found = padded(rows, seed, dict(shapes))
        everywhere |= found
        assert sum(len(row.ids) for row in rows) * 3 > fill * tokens
        assert tokens <= padded(rows, seed, None)[0] * 1.1  # those are exact, and many shapes
    assert len(everywhere) <= at_most


def test_a_rare_long_text_has_the_rows_that_it_needs(tmp_path: Path):
    rows = texts([20] * 300 + [400], tmp_path)
    shapes = shapes_of(rows, "single", 16, 384)
    for seed in range(5):
        for epoch in range(2):
            for batch in train_batches(rows, "single", 16, seed, epoch, 0, shapes):
                held = sorted(len(rows[number].ids) for number, _, _ in batch.places)
                assert (batch.arrays["sequence_ids"] > 0).sum() == sum(held)
                assert batch.arrays["input_ids"].shape[1] >= held[-1]
