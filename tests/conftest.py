"""A strict session: eight virtual devices, warnings are errors (pyproject), rank promotion raises."""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

from bert_jax.config import BertConfig  # noqa: E402
from bert_jax.model import bert  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What one `bert-jax` process of the session has compiled, the others find; this process read its own before."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def small_world() -> BertConfig:
    """A network that compiles in seconds but has every part."""
    return BertConfig(vocab_size=48, width=32, layers=2, heads=4, feed_forward=64, positions=16)


@pytest.fixture(scope="session")
def loud_params(small_world: BertConfig) -> dict:
    """Weights of std 0.2 and norms off 1 and 0: at the initial std of 0.02 wrong code looks right."""
    return louder(bert.init(small_world, jax.random.key(7)))


def louder(params: dict) -> dict:
    rng = np.random.default_rng(7)

    def redraw(path: tuple, leaf: jax.Array) -> jax.Array:
        noise = jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32)
        return 1 + noise if path[-1].key == "scale" else noise

    return jax.tree_util.tree_map_with_path(redraw, params)


def random_batch(config: BertConfig, rows: int, seed: int = 0, length: int = 16, predictions: int = 4) -> dict:
    """A batch as training sees it: padding, both segments, uneven predictions."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length // 2, length + 1, (rows, 1))
    place = np.broadcast_to(np.arange(length), (rows, length))
    chosen = rng.integers(1, predictions + 1, (rows, 1))
    batch = {
        "input_ids": rng.integers(5, config.vocab_size, (rows, length)) * (place < lengths),
        "segment_ids": ((place > lengths // 2) & (place < lengths)).astype(int),
        "position_ids": place,
        "sequence_ids": (place < lengths).astype(int),
        "mlm_positions": np.sort(rng.integers(1, length // 2, (rows, predictions)), axis=1),
        "mlm_labels": rng.integers(5, config.vocab_size, (rows, predictions)),
        "cls_positions": np.zeros((rows, 1)),
        "nsp_labels": rng.integers(0, 2, (rows, 1)),
    }
    weights = {
        "mlm_weights": (np.arange(predictions)[None] < chosen).astype(np.float32),
        "nsp_weights": np.ones((rows, 1), np.float32),
    }
    return {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()} | {
        name: jnp.asarray(x) for name, x in weights.items()
    }
