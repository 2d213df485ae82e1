"""What training costs: exact where it is counted, the published figures where it is computed."""

from __future__ import annotations

import doctest
from functools import partial

import jax
import pytest

from bert_jax import cost
from bert_jax.config import PRESETS, BertConfig, preset
from bert_jax.errors import UserError
from bert_jax.model import bert

V = 30522


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("relations", [2, 3])
def test_parameters_are_those_that_init_makes(name: str, relations: int) -> None:
    config = preset(name, V, relations=relations)
    shapes = jax.eval_shape(partial(bert.init, config), jax.random.key(0))
    assert cost.parameters(config) == sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_parameters_of_sizes_that_share_no_number() -> None:
    config = BertConfig(vocab_size=53, width=12, layers=5, heads=3, feed_forward=37, positions=29, segments=7)
    shapes = jax.eval_shape(partial(bert.init, config), jax.random.key(0))
    assert cost.parameters(config) == sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    "name, length, predictions, gflops_a_token, gflops_a_sequence",
    [
        ("base", 128, 20, 0.546, 69.9),
        ("base", 512, 76, 0.588, 301),
        ("large", 128, 20, 1.88, 241),
        ("large", 512, 76, 1.99, 1020),
    ],
)
def test_flops_are_those_of_the_formula(
    name: str, length: int, predictions: int, gflops_a_token: float, gflops_a_sequence: float
) -> None:
    config = preset(name, V)
    a_token = cost.flops_a_token(config, length, predictions)
    assert a_token / 1e9 == pytest.approx(gflops_a_token, rel=3e-3)
    assert a_token * length / 1e9 == pytest.approx(gflops_a_sequence, rel=3e-3)


def test_packed_sequences_cost_what_they_cost_alone() -> None:
    """Two sequences in a row attend each within itself: the row's length appears nowhere."""
    config = preset("tiny", V)
    apart = sum(cost.train_flops(config, cost.work([length], 5)) for length in (30, 98))
    assert cost.train_flops(config, cost.work([30, 98], 10)) == pytest.approx(apart, rel=1e-12)
    assert cost.train_flops(config, cost.work([128], 10)) > apart


def test_products_of_a_compiled_layer_agree_with_the_formula() -> None:
    """XLA counts the FLOPs of the forward pass itself; a third of training's are forward."""
    config = BertConfig(vocab_size=1000, width=128, layers=1, heads=2, feed_forward=512, positions=64)
    batch = {
        name: jax.ShapeDtypeStruct((4, 64), "int32")
        for name in ("input_ids", "segment_ids", "position_ids", "sequence_ids")
    }
    batch |= {
        "mlm_positions": jax.ShapeDtypeStruct((4, 10), "int32"),
        "cls_positions": jax.ShapeDtypeStruct((4, 1), "int32"),
    }
    shapes = jax.eval_shape(partial(bert.init, config), jax.random.key(0))
    analysis = jax.jit(partial(bert.apply, config)).lower(shapes, batch).cost_analysis()
    expected = cost.train_flops(config, cost.work([64] * 4, 40)) / 3
    assert expected < (analysis or {})["flops"] < 1.1 * expected  # norms, softmax and GELU are no products


def test_device_kinds_find_their_accelerator() -> None:
    kinds = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA A100-SXM4-80GB": "a100",
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v5p": "v5p",
        "TPU v6 lite": "v6e",
        "TPU v4": "v4",
    }
    assert {kind: getattr(cost.of_kind(kind), "name", None) for kind in kinds} == kinds
    assert cost.of_kind("cpu") is None
    assert cost.accelerator("H200").memory == 141
    with pytest.raises(UserError, match="choose one of v4"):
        cost.accelerator("v3")


def test_mfu_of_a_device_at_half_its_peak() -> None:
    assert cost.mfu(8 * 494.5e12, 8, cost.ACCELERATORS["h100"].tflops) == pytest.approx(0.5)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(cost).failed == 0
