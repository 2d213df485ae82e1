"""What the head sees, each setting against a plain computation from the states of all layers of unpacked rows."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import BertConfig, Execution
from bert_jax.model import bert, readout
from tests.conftest import louder

CONFIG = BertConfig(vocab_size=40, width=16, layers=5, heads=2, feed_forward=32, positions=16)
SEQUENCES = ([5, 9, 7, 30], [8, 8, 21, 6, 11, 12, 39], [10, 33])
# Of each sequence two items of two spans: whole, one token, the last two.
SPANS = (
    [[(0, 4), (1, 2)], [(2, 4), (0, 1)]],
    [[(0, 7), (3, 6)], [(1, 3), (5, 7)]],
    [[(0, 2), (1, 2)], [(1, 2), (0, 2)]],
)


@pytest.fixture(scope="module")
def params() -> dict:
    return louder(jax.eval_shape(partial(bert.init, CONFIG), jax.random.key(0)))


@pytest.fixture(scope="module")
def states(params: dict) -> list[np.ndarray]:
    """[L+1, n, D] of each sequence, encoded in a row of its own."""
    ids = np.zeros((3, 8), np.int32)
    for row, sequence in enumerate(SEQUENCES):
        ids[row, : len(sequence)] = sequence
    there = (ids > 0).astype(np.int32)
    places = np.tile(np.arange(8), (3, 1))
    batch = {"input_ids": ids, "segment_ids": 0 * ids, "position_ids": places, "sequence_ids": there}
    found = jax.jit(partial(bert.encode, CONFIG, all_layers=True))(params, batch).layers
    return [np.asarray(found[:, row, : len(sequence)]) for row, sequence in enumerate(SEQUENCES)]


@pytest.fixture(scope="module")
def packed() -> dict:
    """The first and the third sequence in one row, the second in another behind a gap of padding at its end."""
    arrays = {name: np.zeros((2, 8), np.int32) for name in ("input_ids", "segment_ids", "position_ids", "sequence_ids")}
    spans = np.tile(np.array([0, 1]), (2, 5, 2, 1))
    for number, (row, start, slot) in enumerate(PLACES):
        sequence = SEQUENCES[number]
        here = (row, slice(start, start + len(sequence)))
        arrays["input_ids"][here] = sequence
        arrays["position_ids"][here] = np.arange(len(sequence))
        arrays["sequence_ids"][here] = slot + 1
        spans[row, 2 * slot : 2 * slot + 2] = np.array(SPANS[number]) + start
    return {**arrays, "spans": spans}


PLACES = ((0, 0, 0), (1, 0, 0), (0, 4, 1))  # row, first token, slot


def of_layers(states: np.ndarray, layers: str) -> np.ndarray:
    """[L+1, n, D] → [L', n, D'], written out."""
    if layers == "mean":
        return sum(states[n] for n in range(6))[None] / 6
    if layers == "cat4":
        return np.concatenate([states[2], states[3], states[4], states[5]], axis=1)[None]
    if layers in ("mix", "attention"):
        return states
    return states[{"last": 5, "-1": 5, "3": 3, "0": 0, "-2": 4, "-6": 0, "5": 5}[layers]][None]


def of_tokens(states: np.ndarray, tokens: str, spans: list, params: dict) -> np.ndarray:
    """[n, D] and the spans of one item → [D'], written out."""
    (begin, end), second = spans
    match tokens:
        case "pooled":
            return np.tanh(states[begin] @ params["pooler"]["kernel"] + params["pooler"]["bias"])
        case "first":
            return states[begin]
        case "first_last":
            return np.concatenate([states[begin], states[end - 1]])
        case "mean":
            return np.mean([states[n] for n in range(begin, end)], axis=0)
    return np.concatenate([states[begin:end].mean(0), states[second[0] : second[1]].mean(0)])


SETTINGS = [("last", "pooled")] + [
    (layers, tokens)
    for layers, tokens in (
        *((layers, "first") for layers in ("last", "3", "0", "-2", "-6", "5", "mean", "cat4", "mix", "attention")),
        *((layers, "mean") for layers in ("last", "cat4", "mix")),
        *((layers, "first_last") for layers in ("-2", "mix")),
        *((layers, "span") for layers in ("last", "mean", "attention")),
    )
]


@pytest.mark.parametrize(("layers", "tokens"), SETTINGS)
def test_the_head_sees_what_a_plain_computation_gives(
    layers: str, tokens: str, params: dict, states: list[np.ndarray], packed: dict
):
    batch = packed if tokens == "span" else {**packed, "spans": packed["spans"][:, :, :1]}
    execution = Execution(scan="off" if (layers, tokens) == ("-2", "first") else "on")  # a loop compiles faster
    run = jax.jit(partial(readout.features, CONFIG, layers=layers, tokens=tokens, execution=execution))
    found = np.asarray(run(params, batch))
    assert np.isfinite(found).all()  # those that stand for no item, too
    spans = 2 if tokens == "span" else 1
    assert found.shape[-1] == readout.width(CONFIG, layers, tokens, spans)
    assert found.dtype == np.float32
    for number, (row, _, slot) in enumerate(PLACES):
        chosen = of_layers(states[number], layers)
        for item in range(2):
            expected = np.stack([of_tokens(layer, tokens, SPANS[number][item], params) for layer in chosen])
            np.testing.assert_allclose(found[row, 2 * slot + item], expected, atol=2e-5)


def test_all_tokens_are_read_in_their_places(params: dict, states: list[np.ndarray], packed: dict):
    for layers, first in (("last", 5), ("mix", 0)):
        run = jax.jit(partial(readout.features, CONFIG, layers=layers, tokens="all", execution=Execution(scan="on")))
        found = np.asarray(run(params, packed))
        for number, (row, start, _) in enumerate(PLACES):
            here = found[row, start : start + len(SEQUENCES[number])]
            np.testing.assert_allclose(here, np.moveaxis(states[number][first:], 0, 1), atol=2e-5)


# ------------------------------------------------------------------------------------------------------ layers joined

FEATURES = np.random.default_rng(0).normal(size=(2, 3, 6, 16)).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_mix_is_a_softmax_of_weights_times_a_scale():
    weights = np.array([0.3, -1.0, 2.0, 0.0, 0.5, -0.2], np.float32)
    tree = {"mix": {"weights": jnp.asarray(weights), "scale": jnp.asarray(1.7)}}
    expected = 1.7 * sum(share * FEATURES[:, :, n] for n, share in enumerate(softmax(weights)))
    np.testing.assert_allclose(readout.join(tree, FEATURES, 0.5, None), expected, atol=1e-5)


def test_attention_weighs_layers_for_each_item_by_a_query():
    query = np.random.default_rng(1).normal(size=16).astype(np.float32)
    found = readout.join({"layer_attention": {"query": jnp.asarray(query)}}, FEATURES, 0.5, None)
    for row in range(2):
        for item in range(3):
            states = FEATURES[row, item]
            expected = softmax(states @ query / 4.0) @ states
            np.testing.assert_allclose(found[row, item], expected, atol=1e-5)


def test_without_parameters_the_one_layer_is_read():
    np.testing.assert_array_equal(readout.join({}, FEATURES[:, :, :1], 0.5, jax.random.key(0)), FEATURES[:, :, 0])


def test_layer_dropout_leaves_layers_out_whole_but_never_all():
    """Of features that name their layer, the mix says which layers it saw."""
    names = jnp.eye(6)[None, None] * jnp.ones((1, 1, 6, 6))  # layer l is the unit vector l
    weights = np.array([0.5, 0.0, -0.5, 0.3, 0.0, 1.0], np.float32)
    tree = {"mix": {"weights": jnp.asarray(weights), "scale": jnp.asarray(1.0)}}
    run = jax.jit(jax.vmap(lambda key: readout.join(tree, names, 0.6, key)[0, 0]))
    shares = np.asarray(run(jax.random.split(jax.random.key(0), 2000)))
    seen = shares > 1e-6
    assert seen.any(1).all()
    np.testing.assert_allclose(shares.sum(1), 1.0, atol=1e-5)  # those that are left share the whole
    left = seen * softmax(weights)
    np.testing.assert_allclose(shares, left / left.sum(1, keepdims=True), atol=1e-5)
    assert abs(seen.mean() - (0.4 + 0.6**6)) < 0.02  # where all would be out, none is
    np.testing.assert_allclose(readout.join(tree, names, 0.6, None)[0, 0], softmax(weights), atol=1e-6)


@pytest.mark.parametrize("layers", ["mix", "attention"])
def test_what_joins_layers_is_learned(layers: str):
    tree = readout.init_head(CONFIG, layers, {"classifier": 3}, 16, jax.random.key(0))
    grads = jax.grad(lambda tree: jnp.sum(jnp.square(readout.join(tree, FEATURES, 0.0, None))))(tree)
    part = grads["mix" if layers == "mix" else "layer_attention"]
    assert all(float(jnp.abs(leaf).max()) > 1e-3 for leaf in jax.tree.leaves(part))


def test_a_fresh_mix_is_the_mean_and_products_differ():
    tree = readout.init_head(CONFIG, "mix", {"intent": 3, "slots": 3}, 16, jax.random.key(0))
    np.testing.assert_allclose(readout.join(tree, FEATURES, 0.0, None), FEATURES.mean(2), atol=1e-6)
    assert tree["intent"]["kernel"].shape == (16, 3) and not tree["intent"]["bias"].any()
    assert (tree["intent"]["kernel"] != tree["slots"]["kernel"]).any()
    assert 0.01 < float(tree["intent"]["kernel"].std()) < 0.03
