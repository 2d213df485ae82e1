"""The table covers both sides, and what it leaves over is told."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bert_jax.config import PRESETS, BertConfig, preset
from bert_jax.convert.names import HUGGING_FACE, foreign_shapes, from_foreign, our_shape, to_foreign
from bert_jax.errors import UserError
from bert_jax.model import bert


@pytest.mark.parametrize("name", PRESETS)
def test_rows_are_exactly_the_tree_of_every_preset(name: str) -> None:
    config = preset(name, 30522)
    shapes = jax.eval_shape(lambda: bert.init(config, jax.random.key(0)))
    leaves = {
        "/".join(part.key for part in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert {row.path: our_shape(row, config) for row in HUGGING_FACE} == leaves
    assert len({row.path for row in HUGGING_FACE}) == len(HUGGING_FACE)
    ours = sum(int(np.prod(shape)) for shape in leaves.values())
    assert sum(int(np.prod(shape)) for shape in foreign_shapes(HUGGING_FACE, config).values()) == ours


def test_there_and_back_is_bit_identical(config: BertConfig, params: dict) -> None:
    tensors = to_foreign(HUGGING_FACE, config, params)
    back = from_foreign(HUGGING_FACE, config, tensors, "here")
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_dense_weight_is_transposed_and_heads_lie_flat(config: BertConfig, params: dict) -> None:
    tensors = to_foreign(HUGGING_FACE, config, params)
    query = params["layers"]["attention"]["query"]["kernel"]  # L D N H
    size = config.width // config.heads
    for layer, head, inside, width in [(0, 0, 0, 0), (2, 3, 4, 7), (1, 2, 5, 23)]:
        theirs = tensors[f"bert.encoder.layer.{layer}.attention.self.query.weight"]
        assert theirs[head * size + inside, width] == query[layer, width, head, inside]
    output = params["layers"]["attention"]["output"]["kernel"]  # L N H D
    theirs = tensors["bert.encoder.layer.1.attention.output.dense.weight"]
    assert theirs[9, 2 * size + 3] == output[1, 2, 3, 9]


def test_a_leaf_without_a_row_is_an_error(config: BertConfig, params: dict) -> None:
    with pytest.raises(ValueError, match="pooler/extra"):
        to_foreign(HUGGING_FACE, config, {**params, "pooler": {**params["pooler"], "extra": np.zeros(2)}})
    with pytest.raises(ValueError, match="next_sentence/kernel"):
        to_foreign(HUGGING_FACE, config, {k: v for k, v in params.items() if k != "next_sentence"})


def test_missing_left_over_and_misshapen_tensors_are_named(config: BertConfig, params: dict) -> None:
    tensors = to_foreign(HUGGING_FACE, config, params)
    bias = "bert.encoder.layer.2.output.dense.bias"
    with pytest.raises(UserError, match=f"1 tensor is missing: {bias}"):
        from_foreign(HUGGING_FACE, config, {k: v for k, v in tensors.items() if k != bias}, "here")
    with pytest.raises(UserError, match="layer.3.output.dense.bias"):
        more = {**tensors, "bert.encoder.layer.3.output.dense.bias": tensors[bias]}
        from_foreign(HUGGING_FACE, config, more, "here")
    with pytest.raises(UserError, match=r"has shape \[12, 2\], where config.json asks for \[24\]"):
        from_foreign(HUGGING_FACE, config, {**tensors, bias: tensors[bias].reshape(12, 2)}, "here")
