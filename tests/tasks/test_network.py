"""Losses in NumPy, what is trained and how fast, mixout, smoothness, and a head in the labels' own units."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import BertConfig, Execution
from bert_jax.errors import UserError
from bert_jax.model import bert
from bert_jax.tasks import loop, network
from bert_jax.tasks.network import Network, make_network
from bert_jax.tasks.settings import FineTuneSettings, ReadoutSettings, TaskRecipe, TaskSettings
from bert_jax.tasks.task import first_params, make_asked
from tests.conftest import louder
from tests.tasks import toy

CONFIG = BertConfig(vocab_size=40, width=16, layers=3, heads=2, feed_forward=32, positions=16)
LABELS = {"label": ("no", "yes", "maybe"), "tags": ("O", "X"), "intent": ("a", "b", "c"), "slots": ("O", "X")}


def net_of(family: str, config: BertConfig = CONFIG, layers: str = "", tokens: str = "", **given) -> Network:
    read = ReadoutSettings(layers=layers, tokens=tokens)
    return make_network(config, TaskSettings(family=family), read, LABELS, **given)


@pytest.fixture(scope="module")
def encoder() -> dict:
    tree = louder(jax.eval_shape(partial(bert.init, CONFIG), jax.random.key(0)))
    return {name: tree[name] for name in network.ENCODER}


def head_of(net: Network) -> dict:
    return louder(jax.eval_shape(partial(network.fresh_head, net), jax.random.key(0)))


# ---------------------------------------------------------------------------------------------------------- losses

RNG = np.random.default_rng(5)
D = 16


def features(*shape: int) -> np.ndarray:
    return RNG.normal(size=(*shape, 1, D)).astype(np.float32)


def entropy(logits: np.ndarray, label: int) -> float:
    wide = logits.astype(np.float64)
    return float(np.log(np.exp(wide - wide.max()).sum()) + wide.max() - wide[label])


def product(batch: dict, part: dict) -> np.ndarray:
    return batch["features"][..., 0, :] @ np.asarray(part["kernel"]) + np.asarray(part["bias"])


def weighted(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """A mean of entropies over all places, loop by loop."""
    total = sum(
        weights[place] * entropy(logits[place], labels[place]) for place in np.ndindex(*weights.shape) if weights[place]
    )
    return total / weights.sum()


def loss_of(net: Network, params: dict, batch: dict) -> tuple[float, dict]:
    value, metrics = network.make_loss(net)(params, batch, None, network.make_weigh(net)(batch))
    return float(value), metrics


@pytest.mark.parametrize(("family", "term"), [("single", "label"), ("pair", "label"), ("tagging", "tags")])
def test_the_loss_of_labels_is_a_mean_over_those_that_count(family: str, term: str):
    net = net_of(family, layers="last", tokens="first")
    params = head_of(net)
    weights = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]], np.float32)
    batch = {
        "features": features(3, 4),
        f"{term}_labels": RNG.integers(0, len(LABELS[term]), (3, 4)).astype(np.int32),
        f"{term}_weights": weights,
    }
    logits = product(batch, params["classifier"])
    value, metrics = loss_of(net, params, batch)
    assert abs(value - weighted(logits, batch[f"{term}_labels"], weights)) < 1e-5
    right = (logits.argmax(-1) == batch[f"{term}_labels"]) * weights
    assert [float(each) for each in metrics[f"{term}_accuracy"]] == [right.sum(), 6]


def test_the_losses_of_intent_and_slots_are_averaged_each_over_its_own_items():
    net = net_of("intent_slots")
    params = head_of(net)
    batch = {
        "features": features(2, 4),
        "intent_labels": np.array([[2, 0, 0, 0], [1, 0, 0, 0]], np.int32),
        "intent_weights": np.array([[1, 0, 0, 0], [1, 0, 0, 0]], np.float32),
        "slots_labels": np.array([[0, 1, 0, 1], [0, 1, 1, 0]], np.int32),
        "slots_weights": np.array([[0, 1, 1, 1], [0, 1, 0, 0]], np.float32),
    }
    expected = [
        weighted(product(batch, params[name]), batch[f"{name}_labels"], batch[f"{name}_weights"])
        for name in ("intent", "slots")
    ]
    assert abs(loss_of(net, params, batch)[0] - sum(expected) / 2) < 1e-5


def test_the_loss_of_regression_is_in_units_of_the_spread():
    net = net_of("regression", tokens="first", mean=2.5, spread=1.5)
    params = head_of(net)
    batch = {
        "features": features(2, 3),
        "score_labels": RNG.uniform(0, 5, (2, 3)).astype(np.float32),
        "score_weights": np.array([[1, 1, 0], [1, 0, 0]], np.float32),
    }
    found = product(batch, params["classifier"])[..., 0]
    apart = ((found - (batch["score_labels"] - 2.5) / 1.5) ** 2)[batch["score_weights"] > 0]
    assert abs(loss_of(net, params, batch)[0] - apart.mean()) < 1e-5


def test_the_loss_of_choices_is_a_softmax_over_each_groups_own_number_of_choices():
    net = net_of("choice", tokens="first")
    params = head_of(net)
    groups = [[4, 1], [0, 5, 2], [3, 6, 8, 7], [9, 10], []]
    gold, counts = [1, 0, 3, 0, 0], [1, 1, 1, 0, 0]
    batch = {
        "features": features(3, 4),
        "groups": np.array([group + [0] * (4 - len(group)) for group in groups], np.int32),
        "group_weights": np.array([[1] * len(group) + [0] * (4 - len(group)) for group in groups], np.float32),
        "choice_labels": np.array(gold, np.int32),
        "choice_weights": np.array(counts, np.float32),
    }
    scores = product(batch, params["classifier"]).reshape(-1)
    expected = np.mean([entropy(scores[group], place) for group, place in zip(groups[:3], gold, strict=False)])
    assert abs(loss_of(net, params, batch)[0] - expected) < 1e-5


def test_the_loss_of_an_answer_is_a_softmax_over_its_own_sequence():
    net = net_of("qa")
    params = head_of(net)
    sequences = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 0, 0, 0]], np.int32)
    weights = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    batch = {
        "features": features(2, 8),
        "sequence_ids": sequences,
        "start_labels": np.array([[1, 3, 0], [0, 0, 0]], np.int32),
        "end_labels": np.array([[2, 6, 0], [0, 0, 0]], np.int32),
        "start_weights": weights,
        "end_weights": weights,
    }
    logits = product(batch, params["qa_outputs"])
    total = 0.0
    for row, slot in ((0, 0), (0, 1), (1, 0)):
        own = np.flatnonzero(sequences[row] == slot + 1)
        for which, name in enumerate(("start", "end")):
            total += entropy(logits[row, own, which], int(batch[f"{name}_labels"][row, slot] - own[0])) / 3 / 2
    assert abs(loss_of(net, params, batch)[0] - total) < 1e-5


def test_the_loss_of_pairs_takes_the_other_pairs_for_negatives_and_no_padding():
    net = net_of("embedding", temperature=0.1)
    batch = {
        "features": features(2, 4),
        "groups": np.array([[0, 3], [6, 1], [5, 2], [0, 0]], np.int32),
        "group_weights": np.array([[1, 1], [1, 1], [1, 1], [0, 0]], np.float32),
    }
    vectors = batch["features"].reshape(-1, D)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = vectors[[0, 6, 5]], vectors[[3, 1, 2]]
    expected = np.mean([entropy(first[n] @ second.T / 0.1, n) for n in range(3)])
    assert abs(loss_of(net, {}, batch)[0] - expected) < 1e-5


def test_a_batch_without_labels_has_no_loss():
    net = net_of("single", tokens="first")
    batch = {
        "features": features(1, 2),
        "label_labels": np.zeros((1, 2), np.int32),
        "label_weights": np.zeros((1, 2), np.float32),
    }
    assert loss_of(net, head_of(net), batch)[0] == 0.0


# --------------------------------------------------------------------------------------------------- what is trained


def tokens(rows: int = 2, length: int = 8) -> dict:
    ids = np.random.default_rng(1).integers(5, 40, (rows, length)).astype(np.int32)
    return {
        "input_ids": ids,
        "segment_ids": 0 * ids,
        "position_ids": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "sequence_ids": 0 * ids + 1,
        "spans": np.tile(np.array([0, length], np.int32), (rows, 1, 1, 1)),
        "label_labels": np.arange(rows, dtype=np.int32)[:, None] % 3,
        "label_weights": np.ones((rows, 1), np.float32),
    }


@pytest.mark.parametrize("what", ["all", "head", "top:1", "top:3"])
def test_divided_parameters_are_whole_again(what: str, encoder: dict):
    net = net_of("single")
    params = {**encoder, **head_of(net)}
    still, trained = network.divide(net, params, what, FineTuneSettings(what=what).top)
    again = network.whole(still, trained)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), again, params)))
    depth = {"all": 3, "head": 0, "top:1": 1, "top:3": 3}[what]
    assert {len(leaf) for leaf in jax.tree.leaves(trained.get("layers", {}))} == ({depth} if depth else set())
    assert ("embeddings" in trained, "pooler" in trained) == (what == "all", what != "head")
    assert "classifier" in trained and "classifier" not in still


def test_more_layers_than_there_are_or_shared_ones_are_not_divided(encoder: dict):
    with pytest.raises(UserError, match="the encoder has 3 layers"):
        network.divide(net_of("single"), encoder, "top:4", 4)
    shared = net_of("single", BertConfig(vocab_size=40, width=16, layers=4, heads=2, feed_forward=32, groups=2))
    with pytest.raises(UserError, match="share weights"):
        network.divide(shared, encoder, "top:1", 1)


def work(net: Network, params: dict, what: str) -> float:
    """Floating-point operations of one gradient, compiled."""
    still, trained = network.divide(net, params, what, FineTuneSettings(what=what).top)

    def loss(trained: dict, still: dict) -> jax.Array:
        batch = tokens()
        return network.make_loss(net)(network.whole(still, trained), batch, None, network.make_weigh(net)(batch))[0]

    return jax.jit(jax.grad(loss)).lower(trained, still).compile().cost_analysis()["flops"]


def test_nothing_is_computed_backwards_below_what_is_trained(encoder: dict):
    net = net_of("single")
    params = {**encoder, **head_of(net)}
    head, one, three = (work(net, params, what) for what in ("head", "top:1", "top:3"))
    assert head < one < head + (three - head) / 2.5


def test_layers_are_unrolled_where_some_of_them_are_trained(tmp_path):
    """A loop over them would go backwards through all."""
    for what, scan in (("top:1", "off"), ("all", "auto"), ("head", "auto")):
        recipe = TaskRecipe(TaskSettings(length=16), train=FineTuneSettings(what=what))
        assert make_asked(CONFIG, toy.tokenizer(tmp_path), recipe, LABELS, []).net.execution.scan == scan


def test_rates_fall_by_layer_decay_from_each_layer_to_the_one_below(encoder: dict):
    net = net_of("single")
    scales = network.rate_scales(net, {**encoder, **head_of(net)}, 0.5, 10.0)
    assert all(leaf == 0.0625 for leaf in jax.tree.leaves(scales["embeddings"]))
    for leaf, given in zip(jax.tree.leaves(scales["layers"]), jax.tree.leaves(encoder["layers"]), strict=True):
        assert leaf.ravel().tolist() == [0.125, 0.25, 0.5] and leaf.ndim == given.ndim
    assert all(leaf == 1.0 for leaf in jax.tree.leaves(scales["pooler"]))
    assert all(leaf == 10.0 for leaf in jax.tree.leaves(scales["classifier"]))
    _, trained = network.divide(net, {**encoder, **head_of(net)}, "top:2", 2)
    scales = network.rate_scales(net, trained, 0.5, 1.0)
    assert jax.tree.leaves(scales["layers"])[0].ravel().tolist() == [0.25, 0.5]


def test_rates_of_shared_layers_are_those_of_their_highest():
    config = BertConfig(vocab_size=40, width=16, layers=6, heads=2, feed_forward=32, groups=2)
    tree = {"layers": {"kernel": np.zeros((2, 3))}, "embeddings": {"word": np.zeros((40, 16))}}
    scales = network.rate_scales(net_of("single", config), tree, 0.5, 1.0)
    assert scales["layers"]["kernel"].ravel().tolist() == [0.0625, 0.5]
    assert scales["embeddings"]["word"] == 0.5**7


def test_the_optimizer_moves_each_leaf_by_its_share_of_the_rate(encoder: dict):
    net = net_of("single")
    trained = {**encoder, **head_of(net)}
    grads = jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape), jnp.float32), trained)
    given = {"rate": jnp.asarray(0.1), "norm": jnp.asarray(1.0), "finite": jnp.asarray(True)}

    def moved(**settings) -> dict:
        tx = loop.optimizer(net, FineTuneSettings(**settings), trained, 0.1)
        return jax.jit(lambda: tx.update(grads, tx.init(trained), trained, **given)[0])()

    plain, scaled = moved(), moved(layer_decay=0.5, head_rate=0.3)
    np.testing.assert_allclose(scaled["classifier"]["kernel"], 3 * plain["classifier"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(scaled["embeddings"]["word"], plain["embeddings"]["word"] / 16, rtol=1e-6)
    kernel = "attention", "query", "kernel"
    one, other = (tree["layers"][kernel[0]][kernel[1]][kernel[2]] for tree in (plain, scaled))
    np.testing.assert_allclose(other, one * np.array([0.125, 0.25, 0.5])[:, None, None, None], rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "rate", "settings", "expected"),
    [
        ("single", 1e-4, {}, 1),
        ("tagging", 1e-4, {}, 50),
        ("intent_slots", 1e-4, {}, 50),
        ("tagging", 1e-2, {}, 1),
        ("tagging", 1e-4, {"head_rate": 1e-4}, 1),
        ("tagging", 1e-4, {"what": "top:1"}, 50),
        ("tagging", 1e-3, {"what": "head"}, 1),
        ("single", 1e-3, {"head_rate": 1e-4}, 0.1),
    ],
)
def test_many_labels_are_learned_at_a_rate_of_their_own(
    encoder: dict, family: str, rate: float, settings: dict, expected: float
):
    """How much more the head moves than in an optimizer with one rate."""
    net = net_of(family)
    head = head_of(net)
    grads = jax.tree.map(jnp.ones_like, head)
    given = {"rate": jnp.asarray(rate), "norm": jnp.asarray(1.0), "finite": jnp.asarray(True)}

    def moved(settings: FineTuneSettings) -> float:
        tx = loop.optimizer(net, settings, head, rate)
        (updates, *_) = jax.tree.leaves(tx.update(grads, tx.init(head), head, **given)[0])
        return float(jnp.abs(updates).sum())

    assert moved(FineTuneSettings(**settings)) / moved(FineTuneSettings(head_rate=rate)) == pytest.approx(expected)


def test_reset_gives_the_last_layers_and_the_pooler_fresh_weights_alone(encoder: dict):
    net = net_of("single")
    old, new, other = (first_params(net, encoder, seed, count) for seed, count in ((0, 0), (0, 2), (1, 2)))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), old["embeddings"], new["embeddings"])))
    for (path, a), b, c in zip(
        jax.tree_util.tree_leaves_with_path(old["layers"]),
        jax.tree.leaves(new["layers"]),
        jax.tree.leaves(other["layers"]),
        strict=True,
    ):
        assert (a[:1] == b[:1]).all()
        changed = (np.asarray(a[1:]) != np.asarray(b[1:])).mean()
        assert changed > 0.99
        if path[-1].key == "kernel":
            assert (np.asarray(b[1:]) != np.asarray(c[1:])).mean() > 0.99 and 0.01 < np.std(b[1:]) < 0.03
            assert (b[1] != b[2]).any()
        else:  # as pretraining begins them
            assert (np.asarray(b[1:]) == (path[-1].key == "scale")).all()
    assert (old["pooler"]["kernel"] == encoder["pooler"]["kernel"]).all()
    assert (new["pooler"]["kernel"] != old["pooler"]["kernel"]).any() and not new["pooler"]["bias"].any()
    with pytest.raises(UserError, match="4 layers cannot be reset"):
        first_params(net, encoder, 0, 4)


def test_a_pooler_is_made_where_one_is_read_and_left_out_where_none_is(encoder: dict):
    bare = {name: tree for name, tree in encoder.items() if name != "pooler"}
    assert "pooler" in first_params(net_of("single"), bare, 0)
    assert "pooler" not in first_params(net_of("tagging"), encoder, 0)
    assert "masked_lm" not in first_params(net_of("single"), {**encoder, "masked_lm": {"bias": np.zeros(40)}}, 0)


# ----------------------------------------------------------------------------------------------------------- mixout


def moved(encoder: dict) -> tuple[dict, dict]:
    """Parameters before and after some training."""
    first = {**encoder, **head_of(net_of("single"))}
    return first, jax.tree.map(lambda leaf: jnp.asarray(leaf) + 1.0, first)


def test_mixout_puts_weights_of_the_encoder_back_and_keeps_their_mean(encoder: dict):
    first, trained = moved(encoder)
    rate = 0.5
    found = network.mixed_out(trained, first, rate, jax.random.key(0))
    for (path, w), u, each in zip(
        jax.tree_util.tree_leaves_with_path(trained), jax.tree.leaves(first), jax.tree.leaves(found), strict=True
    ):
        if path[0].key == "classifier" or path[-1].key in ("bias", "scale"):
            assert (each == w).all(), path
            continue
        back = np.asarray(each == u)
        assert abs(back.mean() - rate) < 4 * (0.25 / back.size) ** 0.5, path
        np.testing.assert_allclose(np.asarray(each)[~back], np.asarray(u)[~back] + 2.0, rtol=1e-5, atol=1e-5)
    runs = jax.jit(jax.vmap(lambda key: network.mixed_out(trained, first, 0.9, key)["embeddings"]["word"]))
    mean = np.asarray(runs(jax.random.split(jax.random.key(1), 4000))).mean(0)
    assert np.abs(mean - np.asarray(trained["embeddings"]["word"])).max() < 0.3  # 3 / √4000 = 0.05 is its deviation
    assert abs((mean - np.asarray(trained["embeddings"]["word"])).mean()) < 0.01


def test_mixout_of_rate_0_changes_nothing(encoder: dict):
    first, trained = moved(encoder)
    found = network.mixed_out(trained, first, 0.0, jax.random.key(0))
    for w, each in zip(jax.tree.leaves(trained), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(each, w, rtol=1e-6, atol=1e-6)


def test_mixout_draws_for_each_leaf_by_itself(encoder: dict):
    first, trained = moved(encoder)
    found = network.mixed_out(trained, first, 0.5, jax.random.key(0))
    masks: dict[tuple, list] = {}
    for (path, u), each in zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(found), strict=True):
        if path[0].key in network.ENCODER and path[-1].key not in ("bias", "scale"):
            masks.setdefault(u.shape, []).append(np.asarray(each == u))
    assert len(masks) < sum(map(len, masks.values()))  # some leaves have one shape
    for alike in masks.values():
        for number, mask in enumerate(alike):
            assert all((mask != other).any() for other in alike[:number])


# ------------------------------------------------------------------------------------------------------- smoothness


@pytest.fixture(scope="module")
def rough(encoder: dict):
    """(net, params, batch, smoothness of a step)."""
    net = replace(net_of("single"), execution=Execution(scan="on"))  # compiles faster
    params, batch = {**encoder, **head_of(net)}, tokens()
    batch["label_weights"] = np.array([[1.0], [0.0]], np.float32)
    totals = network.make_weigh(net)(batch)
    run = jax.jit(lambda step: network.smoothness(net, params, batch, jax.random.key(0), step, totals))
    return net, params, batch, run


def test_smoothness_is_what_the_slopes_of_the_outputs_say(rough):
    """For small moves the divergence is dzᵀ (diag p − p pᵀ) dz, dz what the Jacobian makes of the move."""
    net, params, batch, run = rough
    step = 1e-2

    def logits(shift: jax.Array) -> jax.Array:
        return network.outputs(net, params, batch, shift=shift)["classifier"][0, 0]

    jacobian, p = jax.jit(lambda x: (jax.jacrev(logits)(x), jax.nn.softmax(logits(x))))(jnp.zeros((2, 8, 16)))
    slopes, p = np.asarray(jacobian).reshape(3, -1).astype(np.float64), np.asarray(p, np.float64)
    curved = np.diag(p) - np.outer(p, p)
    noise = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(0), 1), (2, 8, 16))).reshape(-1)
    uphill = (slopes.T @ curved @ slopes @ noise).reshape(2, 8, 16)
    move = step * uphill / np.maximum(np.abs(uphill).max(-1, keepdims=True), 1e-30)
    dz = slopes @ move.reshape(-1)
    assert float(run(step)) == pytest.approx(float(dz @ curved @ dz), rel=0.1)
    random = np.where(np.random.default_rng(0).random((20, 2 * 8 * 16)) < 0.5, step, -step) @ slopes.T
    assert float(run(step)) > 2 * np.mean([dz @ curved @ dz for dz in random])  # it looks for the worst


def test_smoothness_grows_with_the_square_of_the_step_from_0(rough):
    *_, run = rough
    one, two, none = (float(run(step)) for step in (5e-3, 1e-2, 1e-6))
    assert 0 < one and two / one == pytest.approx(4, rel=0.1)
    assert 0 <= none < 1e-6


def test_the_smoothness_term_is_added_in_training_alone(rough):
    net, params, batch, run = rough
    params = {name: jax.tree.map(jnp.asarray, tree) for name, tree in params.items()}
    totals = network.make_weigh(net)(batch)
    still = replace(net, dropout=0.0, config=replace(CONFIG, hidden_dropout=0.0, attention_dropout=0.0))
    plain = float(network.make_loss(still)(params, batch, None, totals)[0])
    loss = network.make_loss(still, 2.0, 1e-2)
    assert float(loss(params, batch, None, totals)[0]) == pytest.approx(plain, rel=1e-6)
    with_term, metrics = jax.jit(loss)(params, batch, jax.random.key(0), totals)
    assert float(with_term) == pytest.approx(plain + 2.0 * float(run(1e-2)), rel=1e-3)
    assert float(metrics["smoothness"][0]) == pytest.approx(float(run(1e-2)), rel=1e-2)


# ------------------------------------------------------------------------------------------------------ what leaves


def test_a_folded_head_says_numbers_in_the_labels_own_units():
    net = net_of("regression", tokens="first", mean=2.5, spread=1.5)
    params, batch = head_of(net), {"features": features(2, 3)}
    plain, weights = network.folded(net, params)
    assert (plain.mean, plain.spread) == (0.0, 1.0)
    expected = loop._outputs(params, batch, net=net)["classifier"]
    np.testing.assert_allclose(network.outputs(plain, weights, batch)["classifier"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(product(batch, params["classifier"]) * 1.5 + 2.5, expected, rtol=1e-5, atol=1e-5)
    other = net_of("single")
    assert network.folded(other, params) == (other, params)


def test_a_readout_that_cannot_be_is_told():
    for family, layers, tokens, told in (
        ("single", "4", "", "no layer 4"),
        ("single", "-5", "", "no layer -5"),
        ("single", "cat4", "", "needs four layers"),
        ("single", "mix", "pooled", "the last layer"),
        ("embedding", "mix", "", "no head"),
        ("qa", "", "first", "among all tokens"),
        ("tagging", "last", "pooled", "not read"),
    ):
        with pytest.raises(UserError, match=told):
            net_of(family, layers=layers, tokens=tokens)
    assert net_of("single", layers="-4").tokens == "first"
