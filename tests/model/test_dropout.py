"""Dropout: its bits, its rate, and the same mask on any mesh."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.config import BertConfig, Execution
from bert_jax.model import bert
from bert_jax.model.dropout import dropout, random_bytes, threefry
from bert_jax.train import sharding
from tests.conftest import random_batch


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0xFD36D048, 0x2D17272C)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xBA3E4725, 0xF27D669E)),
    ],
)
def test_words_are_those_that_the_authors_publish(
    counter: tuple[int, int], key: tuple[int, int], words: tuple[int, int]
) -> None:
    """Known answers of Random123, threefry2x32 with 13 rounds."""
    found = threefry(jnp.asarray(key, jnp.uint32), *(jnp.asarray([x], jnp.uint32) for x in counter))
    assert tuple(int(word[0]) for word in found) == words


def test_bytes_are_uniform_and_independent_of_their_neighbours() -> None:
    x = np.asarray(random_bytes(jax.random.key(3), (700, 1001))).astype(int)  # 1001: the last block is cut
    counts = np.bincount(x.ravel(), minlength=256)
    assert abs(counts - x.size / 256).max() < 5 * np.sqrt(x.size / 256)
    for a, b in ((x[:, :-1], x[:, 1:]), (x[:-1], x[1:]), (x[:, :-8], x[:, 8:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)
    other = np.asarray(random_bytes(jax.random.key(4), (700, 1001)))
    assert abs((x == other).mean() - 1 / 256) < 5 * np.sqrt(1 / 256 / x.size)


def test_dropout_keeps_the_mean_and_the_rate() -> None:
    x = jnp.ones((1000, 1001))
    y = np.asarray(dropout(x, 0.1, jax.random.key(0)))
    kept = round(0.9 * 256)
    assert set(np.unique(y)) == {np.float32(0), np.float32(256 / kept)}
    share = kept / 256
    assert abs((y > 0).mean() - share) < 4 * np.sqrt(share * (1 - share) / y.size)
    columns = (y > 0).mean(0)
    assert abs(columns - share).max() < 5.5 * np.sqrt(share * (1 - share) / 1000)
    assert dropout(x, 0.1, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize("shape", [(8, 16, 24), (8, 4, 16, 16)], ids=["hidden", "attention"])
def test_the_mask_is_the_same_on_one_and_on_eight_devices(shape: tuple[int, ...]) -> None:
    key, x = jax.random.key(5), jnp.ones(shape)
    alone = np.asarray(jax.jit(partial(dropout, rate=0.3))(x, key=key))
    mesh = sharding.make_mesh(2, 4)
    rows = jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    compiled = jax.jit(partial(dropout, rate=0.3)).lower(rows, key=key).compile()
    together = compiled(rows, key=key)
    assert {shard.data.shape[0] for shard in together.addressable_shards} == {1}
    assert np.array_equal(np.asarray(together), alone) and 0.2 < (alone == 0).mean() < 0.4
    # every device makes its own part of the bits: none comes from elsewhere, none is made eight times
    text = compiled.as_text()
    assert "all-gather" not in text and f"u32[{','.join(map(str, (*shape[:-1], shape[-1] // 8)))}]" not in text


def test_an_encoder_drops_the_same_states_on_one_and_on_eight_devices(
    small_world: BertConfig, loud_params: dict
) -> None:
    batch, key = random_batch(small_world, 8), jax.random.key(1)

    def states(params: dict, batch: dict) -> jax.Array:
        return bert.encode(small_world, params, batch, key=key, execution=Execution()).hidden

    alone = jax.jit(states)(loud_params, batch)
    still = bert.encode(small_world, loud_params, batch).hidden
    mesh = sharding.make_mesh(2, 4)
    with sharding.on(mesh):
        together = jax.jit(states)(loud_params, jax.device_put(batch, sharding.rows(mesh)))
    np.testing.assert_allclose(alone, together, atol=1e-5)
    assert np.abs(alone - still).max() > 0.1
