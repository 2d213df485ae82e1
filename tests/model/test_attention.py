"""Attention: every path against a masked reference, what the fused ones are told, and how one is chosen."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import BertConfig, Execution
from bert_jax.errors import UserError
from bert_jax.model import attention, bert
from bert_jax.train import sharding
from bert_jax.train.loss import make_pretraining_loss, weigh
from tests.conftest import louder, random_batch

LENGTH, HEADS, SIZE = 128, 2, 64
PACKED = [[1] * 40 + [2] * 7 + [3] * 61 + [0] * 20, [1] * 128, [1] * 3 + [2] * 125, [0] * 128]
PADDED = [[1] * 90 + [0] * 38, [1] * 128, [1] * 2 + [0] * 126, [0] * 128]
ROWS = {"packed": np.asarray(PACKED, np.int32), "padded": np.asarray(PADDED, np.int32)}


def operands(rows: int, seed: int = 0) -> list[jax.Array]:
    """Query, key, value and the gradient of the output; loud enough for a softmax that is far from flat."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(0, 1.5, (rows, LENGTH, HEADS, SIZE)), jnp.float32) for _ in range(4)]


def reference(query: np.ndarray, key: np.ndarray, value: np.ndarray, back: np.ndarray, ids: np.ndarray) -> list:
    """Output and the gradients of all three, by hand in float64."""
    q, k, v, do = (np.asarray(x, np.float64) for x in (query, key, value, back))
    scale = q.shape[-1] ** -0.5
    scores = np.einsum("btnh,bsnh->bnts", q, k) * scale
    scores = np.where((ids[:, :, None] == ids[:, None, :])[:, None], scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = np.einsum("btnh,bsnh->bnts", do, v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
    dq, dk = np.einsum("bnts,bsnh->btnh", ds, k), np.einsum("bnts,btnh->bsnh", ds, q)
    return [np.einsum("bnts,bsnh->btnh", p, v), dq, dk, np.einsum("bnts,btnh->bsnh", p, do)]


def outcome(way: attention.Path, *args: jax.Array) -> list[jax.Array]:
    *arrays, back, ids = args
    mask = way.prepare(ids)
    out, pull = jax.vjp(lambda *x: way.attend(*x, mask, 0.0, None), *arrays)
    return [out, *pull(back)]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["xla", "pallas", "splash"])
def test_a_path_is_the_masked_reference_forward_and_backward(name: str, rows: str) -> None:
    ids = ROWS[rows]
    arrays = operands(len(ids))
    real = (ids > 0)[:, :, None, None]
    arrays[3] = arrays[3] * real  # no loss comes from padding
    found = jax.jit(partial(outcome, attention.path(Execution(attention=name))))(*arrays, jnp.asarray(ids))
    for mine, theirs in zip(found, reference(*map(np.asarray, arrays), ids), strict=True):
        assert np.isfinite(mine).all()  # rows of nothing but padding too
        np.testing.assert_allclose(mine * real, theirs * real, atol=2e-5)


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="cuDNN and tokamax run on NVIDIA GPUs only")
@pytest.mark.parametrize(("name", "sequences"), [("cudnn_lengths", 1), ("cudnn_offsets", 3), ("tokamax", 3)])
def test_a_path_of_a_gpu_is_near_the_plain_one(name: str, sequences: int) -> None:
    """In a process of its own: this one has promised to use the CPU."""
    code = f"""
from bert_jax.config import Execution
from bert_jax.model import attention, bert
execution = Execution(dtype="bfloat16", attention="{name}", sequences={sequences})
print(attention.trial_error(attention.path(execution), execution, {SIZE}, {LENGTH}))
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip(f"{name} is not installed")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 0.05


@pytest.mark.parametrize("name", ["pallas", "splash"])
def test_a_kernel_on_a_mesh_gives_what_one_device_gives(name: str) -> None:
    """Kernels cannot be divided by XLA: each device runs its own rows, forward and backward, and gathers nothing."""
    ids = jnp.asarray(np.concatenate([ROWS["packed"], ROWS["padded"]]))
    arrays = [*operands(8), ids]
    run = partial(outcome, attention.path(Execution(attention=name)))
    alone = jax.jit(run)(*arrays)
    mesh = sharding.make_mesh(4, 2)
    with sharding.on(mesh):
        compiled = jax.jit(run, in_shardings=sharding.rows(mesh)).lower(*arrays).compile()
        spread = compiled(*jax.device_put(arrays, sharding.rows(mesh)))
    assert "all-gather" not in str(compiled.as_text())
    for one, many in zip(alone, spread, strict=True):
        assert len(many.sharding.device_set) == 8
        np.testing.assert_array_equal(one, many)


def test_the_whole_loss_is_the_same_by_a_kernel(small_world: BertConfig) -> None:
    """Below a loop over layers that are computed again, and with no gradient from padding."""
    config = replace(small_world, positions=LENGTH, layers=1, hidden_dropout=0.0, attention_dropout=0.0)
    params = louder(bert.init(config, jax.random.key(3)))
    batch = random_batch(config, 2, length=LENGTH) | {"sequence_ids": jnp.asarray(ROWS["packed"][:2])}

    def gradient(way: str) -> tuple:
        loss = make_pretraining_loss(config, Execution(scan="on", remat="all", attention=way))
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch, None, weigh(batch))

    ((plain, _), plain_grads), ((fused, _), fused_grads) = gradient("xla"), gradient("splash")
    np.testing.assert_allclose(plain, fused, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), plain_grads, fused_grads)


def test_dropout_of_probabilities_is_refused_where_it_cannot_be() -> None:
    *arrays, _ = operands(1)
    way = attention.path(Execution(attention="splash"))
    with pytest.raises(UserError, match="only the plain path drops attention probabilities"):
        way.attend(*arrays, jnp.asarray(ROWS["packed"][:1]), 0.1, jax.random.key(0))


# -------------------------------------------------------------------------------------- what fused paths are told


def random_ids(rows: int, length: int, sequences: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = np.zeros((rows, length), np.int32)
    for row in range(rows - 1):  # the last one is empty
        ends = np.sort(rng.choice(np.arange(1, length + 1), rng.integers(1, sequences + 1), replace=False))
        for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), 1):
            ids[row, start:end] = number
    return ids


def pieces(row: np.ndarray) -> list[tuple[int, int, int]]:
    """(id, start, end) of each run, one token at a time."""
    found: list[tuple[int, int, int]] = []
    for place, number in enumerate(row):
        if found and found[-1][0] == number:
            found[-1] = (number, found[-1][1], place + 1)
        else:
            found.append((number, place, place + 1))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_offsets_lengths_and_ranges_name_every_token_once(seed: int) -> None:
    ids = random_ids(rows=6, length=24, sequences=4, seed=seed)
    lengths, offsets = map(np.asarray, attention.sequence_offsets(jnp.asarray(ids), 4))
    start, end = map(np.asarray, attention.key_ranges(jnp.asarray(ids)))
    assert lengths.shape == (6, 5) and offsets.shape == (6, 6)
    assert {x.dtype for x in (lengths, offsets, start, end)} == {np.dtype(np.int32)}
    for row, ours in enumerate(ids):
        expected_lengths, expected_offsets = [-1] * 5, [-1] * 6
        for number, first, behind in pieces(ours):
            slot = (number or 5) - 1  # padding is one more sequence
            expected_lengths[slot], expected_offsets[slot] = behind - first, first
            assert set(start[row, first:behind]) == {first} and set(end[row, first:behind]) == {behind}
        assert lengths[row].tolist() == expected_lengths and offsets[row].tolist() == expected_offsets
        covered = [t for n, o in zip(lengths[row], offsets[row], strict=False) if n > 0 for t in range(o, o + n)]
        assert sorted(covered) == list(range(24))


def test_lengths_of_padded_rows_are_never_zero() -> None:
    assert attention.row_lengths(jnp.asarray(ROWS["padded"])).tolist() == [90, 128, 2, 1]


# ------------------------------------------------------------------------------------------------------ the choice

FREE = BertConfig(vocab_size=48, width=128, heads=2, layers=1, attention_dropout=0.0)
HALF = Execution(dtype="bfloat16")
WITHOUT_TOKAMAX = pytest.mark.skipif(importlib.util.find_spec("tokamax") is not None, reason="tokamax is installed")


def test_a_cpu_takes_the_plain_path_without_a_word() -> None:
    assert attention.choose("auto", FREE, HALF, lengths=[128]) == (HALF, [])


def test_what_fails_is_passed_over_with_one_line() -> None:
    names = ("cudnn_offsets", "cudnn_lengths", "splash", "xla")
    name, notes = attention.first_that_works(names, FREE, replace(HALF, sequences=3), [96])
    assert name == "xla" and len(notes) == 3
    assert notes[0] == "attention: cudnn_offsets does not work here (cuDNN needs an NVIDIA GPU, not cpu)"
    assert "rows are packed" in notes[1]
    assert notes[2].startswith("attention: splash does not work here (") and "\n" not in "".join(notes)


def test_a_kernel_that_compiles_and_is_right_is_taken() -> None:
    assert attention.first_that_works(("splash", "xla"), FREE, replace(HALF, sequences=3), [128]) == ("splash", [])
    execution, notes = attention.choose("splash", FREE, HALF, lengths=[128], sequences=3)
    assert execution == Execution(dtype="bfloat16", attention="splash", sequences=3) and not notes


def without_mask(q: jax.Array, k: jax.Array, v: jax.Array, *_: object) -> jax.Array:
    return attention.attend_xla(q, k, v, jnp.zeros((1, 1, 1, 1)), 0.0, None)


def with_nan(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, *_: object) -> jax.Array:
    return attention.attend_xla(q, k, v, bias, 0.0, None) * jnp.where(bias[:, 0, :, :1, None] == 0, 1.0, jnp.nan)


@pytest.mark.parametrize(("wrong", "sequences"), [(without_mask, 1), (without_mask, 3), (with_nan, 1)])
def test_the_trial_sees_a_wrong_kernel(wrong: Callable, sequences: int) -> None:
    """One that attends across sequences or into the padding, and one that leaves rubbish where the padding is."""
    way = attention.Path(attention.attention_bias, wrong)
    assert not attention.trial_error(way, Execution(sequences=sequences), 32, 64) < 0.05


@pytest.mark.parametrize(
    ("asked", "config", "sequences", "reason"),
    [
        ("cudnn_lengths", FREE, 1, "cuDNN needs an NVIDIA GPU, not cpu"),
        ("cudnn_lengths", FREE, 4, "rows are packed"),
        pytest.param("tokamax", FREE, 4, "tokamax is not installed", marks=WITHOUT_TOKAMAX),
        ("pallas", replace(FREE, attention_dropout=0.1), 4, "model.attention_dropout=0.0"),
    ],
)
def test_a_path_asked_for_by_name_is_refused_in_one_sentence(
    asked: str, config: BertConfig, sequences: int, reason: str
) -> None:
    with pytest.raises(UserError) as refused:
        attention.choose(asked, config, HALF, lengths=[128], sequences=sequences)
    assert reason in str(refused.value) and 'train.attention="auto"' in str(refused.value)
    assert "\n" not in str(refused.value)


def test_candidates_are_those_of_the_platform_and_the_rows() -> None:
    def names(platform: str, sequences: int = 1, length: int = 512, config: BertConfig = FREE, dtype: str = "bfloat16"):
        execution = Execution(dtype=dtype, sequences=sequences)
        return attention.candidates(platform, config, execution, [length])

    assert names("gpu") == (("cudnn_lengths", "tokamax", "pallas", "xla"), [])
    assert names("gpu", sequences=4)[0][0] == "cudnn_offsets" and "cudnn_lengths" not in names("gpu", sequences=4)[0]
    assert names("tpu", length=512)[0] == ("splash", "xla") and names("tpu", length=128)[0] == ("xla",)
    for platform in ("gpu", "tpu"):
        only, (why,) = names(platform, config=replace(FREE, attention_dropout=0.1))
        assert only == ("xla",) and "attention_dropout = 0.1" in why
        only, (why,) = names(platform, dtype="float32")
        assert only == ("xla",) and "float32" in why
