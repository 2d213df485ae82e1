"""The network: its tree, its dropout, and which token sees which."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import PRESETS, BertConfig, Execution, preset
from bert_jax.model import bert
from bert_jax.model.attention import attend_xla, attention_bias
from bert_jax.model.layers import Layer, gelu
from tests.conftest import random_batch
from tests.readable import readable_params

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_tree_is_the_golden_one(name: str) -> None:
    """To write it anew after a deliberate change: python -m tests.golden.write"""
    shapes = jax.eval_shape(partial(bert.init, preset(name, 30522)), jax.random.key(0))
    tree = {
        jax.tree_util.keystr(p, simple=True, separator="/"): list(x.shape)
        for p, x in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert tree == json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


def test_init_is_truncated_normal_ones_and_zeros(small_world: BertConfig) -> None:
    params = bert.init(replace(small_world, vocab_size=5000), jax.random.key(0))
    word = np.asarray(params["embeddings"]["word"])
    assert np.abs(word).max() <= 0.04 + 1e-6 and 0.0170 < word.std() < 0.0182  # two sigma of 0.02
    kernels = params["layers"]["attention"]["query"]["kernel"]
    assert not np.array_equal(kernels[0], kernels[1])
    assert np.all(params["layers"]["mlp"]["norm"]["scale"] == 1) and np.all(params["pooler"]["bias"] == 0)


def test_a_token_sees_its_own_sequence_only(small_world: BertConfig, loud_params: dict) -> None:
    batch = random_batch(small_world, 2)
    packed = batch | {
        "sequence_ids": jnp.asarray([[1] * 6 + [2] * 7 + [0] * 3, [1] * 16], jnp.int32),
        "position_ids": jnp.asarray([[*range(6), *range(7), *range(3)], range(16)], jnp.int32),
    }
    hidden = jax.jit(partial(bert.encode, small_world))
    first = hidden(loud_params, packed).hidden
    changed = packed | {"input_ids": packed["input_ids"].at[0, 8].add(1)}
    moved = np.abs(np.asarray(hidden(loud_params, changed).hidden - first)).max(-1)
    assert np.all(moved[0, :6] == 0) and np.all(moved[0, 13:] == 0) and np.all(moved[1] == 0)
    assert np.all(moved[0, 6:13] > 1e-4)

    alone = {name: packed[name][:1, 6:13] for name in ("input_ids", "segment_ids", "position_ids", "sequence_ids")}
    np.testing.assert_allclose(hidden(loud_params, alone).hidden[0], first[0, 6:13], atol=2e-6)


def test_all_layers_begin_with_the_embeddings_and_end_with_the_output(
    small_world: BertConfig, loud_params: dict
) -> None:
    batch = random_batch(small_world, 2)
    for execution in (Execution(), Execution(scan="on")):
        out = bert.encode(small_world, loud_params, batch, execution=execution, all_layers=True)
        assert out.layers is not None and out.layers.shape == (small_world.layers + 1, 2, 16, small_world.width)
        assert np.array_equal(out.layers[-1], out.hidden) and not np.array_equal(out.layers[0], out.layers[1])


def test_bfloat16_stays_near_float32(small_world: BertConfig, loud_params: dict) -> None:
    batch = random_batch(small_world, 4)
    full = bert.apply(small_world, loud_params, batch)
    half = bert.apply(small_world, loud_params, batch, execution=Execution(dtype="bfloat16"))
    assert half.mlm_logits.dtype == jnp.float32 and half.hidden.dtype == jnp.bfloat16
    error = np.abs(np.asarray(full.mlm_logits) - np.asarray(half.mlm_logits))
    assert error.mean() < 0.05 * np.asarray(full.mlm_logits).std()


def test_gelu_and_its_slope_are_those_of_jax() -> None:
    x = jnp.linspace(-12.0, 12.0, 4801)
    expected = partial(jax.nn.gelu, approximate=False)
    np.testing.assert_allclose(gelu(x), expected(x), atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), jax.vmap(jax.grad(expected))(x), atol=1e-6)
    assert gelu(x.astype(jnp.bfloat16)).dtype == jax.grad(lambda x: gelu(x).sum())(x.astype(jnp.bfloat16)).dtype


def test_remat_by_names_forgets_all_but_the_products(small_world: BertConfig, loud_params: dict) -> None:
    """A scanned layer keeps less for the backward pass by names, and least if all is forgotten."""
    batch = random_batch(small_world, 8)

    def kept(remat: str) -> int:
        execution = Execution(scan="on", remat=remat)

        def total(params: dict) -> jax.Array:
            return bert.encode(small_world, params, batch, key=jax.random.key(0), execution=execution).hidden.sum()

        residuals = jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(total, p)[1], loud_params))
        stacked = [x for x in residuals if x.shape[:2] == (small_world.layers, 8)]  # of a layer, of every row
        return sum(x.size * x.dtype.itemsize for x in stacked)

    tokens, width = 8 * 16, small_world.width
    assert kept("all") == small_world.layers * tokens * width * 4  # a layer's input
    products = (3 + 1 + 1 + 1) * width + small_world.feed_forward  # q, k, v, context, two sums, before the GELU
    assert kept("names") == small_world.layers * tokens * (products + width) * 4
    assert kept("none") > 1.5 * kept("names")


def test_dropout_masks_of_layers_differ(small_world: BertConfig, loud_params: dict) -> None:
    """The second layer's states are those of its own key, not of the first layer's."""
    batch, key = random_batch(small_world, 2), jax.random.key(1)
    run = partial(bert.encode, small_world, loud_params, batch, key=key, all_layers=True)
    unrolled, scanned = run().layers, run(execution=Execution(scan="on")).layers
    assert unrolled is not None
    np.testing.assert_allclose(unrolled, scanned, atol=1e-5)

    layer = Layer(small_world, jnp.float32, attend_xla)
    second = jax.tree.map(lambda x: x[1], loud_params["layers"])
    bias, keys = attention_bias(batch["sequence_ids"]), jax.random.split(key)[1]
    by_key = [layer.apply({"params": second}, unrolled[1], bias, jax.random.fold_in(keys, n)) for n in (0, 1)]
    np.testing.assert_allclose(by_key[1], unrolled[2], atol=1e-5)
    assert np.abs(by_key[0] - unrolled[2]).max() > 0.1


@pytest.mark.parametrize("scan", ["on", "off"])
def test_groups_are_layers_that_stand_several_times(small_world: BertConfig, scan: str) -> None:
    """Two groups over four layers compute what four layers with the weights written out twice do."""
    shared = replace(small_world, layers=4, groups=2, embedding=12)
    params = readable_params(shared)
    twice = {**params, "layers": jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), params["layers"])}
    batch = random_batch(shared, 2)
    run = partial(bert.encode, batch=batch, execution=Execution(scan=scan))
    found = np.asarray(run(shared, params, all_layers=True).layers)
    np.testing.assert_allclose(found, run(replace(shared, groups=0), twice, all_layers=True).layers, atol=1e-5)
    assert np.abs(found[1] - found[2]).max() > 0.1
    np.testing.assert_allclose(run(shared, params, depth=3).hidden, found[3], atol=1e-5)
