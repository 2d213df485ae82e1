"""Self-attention inside sequences: the paths to it, and which one is taken.

Every path computes softmax(QKᵀ / √H) V where two tokens have the same sequence id. `xla` runs everywhere and is the
only one that can drop attention probabilities; the others are fused kernels that never write the scores to memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.sharding import PartitionSpec

from bert_jax.config import BertConfig, Execution
from bert_jax.errors import UserError
from bert_jax.model.dropout import dropout

# (query, key, value [B, T, N, H], mask, dropout rate, dropout key) → context [B, T, N, H] in the dtype of value
Attend = Callable[[Array, Array, Array, Any, float, Array | None], Array]


class Path(NamedTuple):
    """One way to attend. `prepare` turns sequence ids int32[B, T] into the mask that `attend` takes, whatever that is
    on this path: once a step, not once a layer. Every array of a mask leads with B."""

    prepare: Callable[[Array], Any]
    attend: Attend


def path(execution: Execution) -> Path:
    """The path that `execution.attention` names; `choose` finds out whether it works here."""
    match execution.attention:
        case "xla":
            return Path(attention_bias, attend_xla)
        case "cudnn_lengths":
            return Path(row_lengths, partial(_attend_fused, _cudnn_lengths))
        case "cudnn_offsets":
            prepare = partial(sequence_offsets, sequences=execution.sequences)
            return Path(prepare, partial(_attend_fused, _cudnn_offsets))
        case "tokamax":
            return Path(key_ranges, partial(_attend_fused, _tokamax))
        case "pallas":
            return Path(lambda ids: ids, partial(_attend_fused, _pallas))
        case "splash":
            return Path(lambda ids: ids, partial(_attend_fused, _splash))
    raise ValueError(execution.attention)


# ------------------------------------------------------------------------------------------------- the plain path


def attention_bias(sequence_ids: Array) -> Array:
    """What to add to the scores so that a token sees its own sequence only.

    Padding (id 0) sees padding, so that no row of scores is without a target.

    Args:
        sequence_ids: int32[B, T], 0 for padding, 1.. for the sequences packed into a row.

    Returns:
        float32[B, 1, T, T]: 0 where the two tokens belong together, a large negative number elsewhere.
    """
    same = sequence_ids[:, :, None] == sequence_ids[:, None, :]
    return jnp.where(same, 0.0, jnp.finfo(jnp.float32).min / 2)[:, None]


def attend_xla(query: Array, key: Array, value: Array, bias: Array, rate: float, dropout_key: Array | None) -> Array:
    """softmax(QKᵀ / √H + bias) V, with dropout on the probabilities (Devlin et al. 2018, appendix A.2).

    Scores and softmax are float32 whatever the operands are; probabilities take the dtype of `value` for the second
    product.

    Args:
        query, key, value: [B, T, N, H].
        bias: float32[B, 1, T, T] from `attention_bias`.
        rate, dropout_key: as in `dropout`.

    Returns:
        [B, T, N, H] in the dtype of `value`.
    """
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("btnh,bsnh->bnts", query * scale, key, preferred_element_type=jnp.float32)
    probabilities = jax.nn.softmax(scores + bias, axis=-1).astype(value.dtype)
    return jnp.einsum("bnts,bsnh->btnh", dropout(probabilities, rate, dropout_key), value)


# ------------------------------------------------------------------------------------- what fused paths are told


def row_lengths(sequence_ids: Array) -> Array:
    """Of padded rows: how many tokens come before the padding, int32[B].

    At least 1: in a row of nothing but padding every token then sees the first one, and nothing is divided by 0.
    """
    return jnp.maximum(jnp.sum(sequence_ids > 0, axis=1, dtype=jnp.int32), 1)


def sequence_offsets(sequence_ids: Array, sequences: int) -> tuple[Array, Array]:
    """Of packed rows: how long each sequence is and where it begins.

    The padding at a row's end is one more sequence, so that every token of the output is written.

    Args:
        sequence_ids: int32[B, T]; sequences lie in one piece each, padding behind them.
        sequences: the most sequences in a row. With M = sequences + 1:

    Returns:
        Lengths int32[B, M] and offsets from the row's start int32[B, M + 1], −1 where there is no such sequence.
    """
    numbers = jnp.arange(1, sequences + 2, dtype=jnp.int32)
    segments = jnp.where(sequence_ids > 0, sequence_ids, sequences + 1)
    hit = segments[:, None, :] == numbers[None, :, None]
    length = jnp.sum(hit, axis=-1, dtype=jnp.int32)
    first = jnp.where(length > 0, jnp.argmax(hit, axis=-1).astype(jnp.int32), -1)
    return jnp.where(length > 0, length, -1), jnp.pad(first, ((0, 0), (0, 1)), constant_values=-1)


def key_ranges(sequence_ids: Array) -> tuple[Array, Array]:
    """For every token the first key that it sees and the one behind the last, int32[B, T] each: a run of equal ids."""
    place = lax.broadcasted_iota(jnp.int32, sequence_ids.shape, 1)
    length = sequence_ids.shape[1]
    new = jnp.pad(sequence_ids[:, 1:] != sequence_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    last = jnp.pad(new[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    start = lax.cummax(jnp.where(new, place, 0), axis=1)
    end = lax.cummin(jnp.where(last, place + 1, length), axis=1, reverse=True)
    return start, end


# ------------------------------------------------------------------------------------------------ the fused paths

Kernel = Callable[[Array, Array, Array, Any], Array]


def _attend_fused(
    kernel: Kernel, query: Array, key: Array, value: Array, mask: Any, rate: float, dropout_key: Array | None
) -> Array:
    """Run a kernel that XLA cannot divide: each device attends for its own rows and heads."""
    if rate and dropout_key is not None:
        raise UserError(
            "only the plain path drops attention probabilities",
            "train.attention",
            'set model.attention_dropout=0.0 or train.attention="xla"',
        )
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(query, key, value, mask)
    heads = nn.logical_to_mesh_axes(("batch", None, "heads", None)) or PartitionSpec(None)
    divided = jax.shard_map(
        kernel,
        in_specs=(heads, heads, heads, PartitionSpec(heads[0])),
        out_specs=heads,
        check_vma=False,  # kernels do not say over which axes their results vary
    )
    return divided(query, key, value, mask)


def _cudnn_lengths(query: Array, key: Array, value: Array, lengths: Array) -> Array:
    # queries in the padding see the row's tokens too: without a length of their own no output row is left unwritten
    return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths, implementation="cudnn")


def _cudnn_offsets(query: Array, key: Array, value: Array, mask: tuple[Array, Array]) -> Array:
    # private, and the only door to cuDNN's packed layout: Hopper or later (jax 0.10 to 0.12 have it in one form).
    # Softmax statistics are float32[B·M, N, T]: keep the most sequences a row small.
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    lengths, offsets = mask
    return dot_product_attention(
        query,
        key,
        value,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=query.shape[-1] ** -0.5,
        mask_type=MaskType.NO_MASK,
        qkv_layout="BTNH",
    )


def _tokamax(query: Array, key: Array, value: Array, mask: tuple[Array, Array]) -> Array:
    # its public function takes no ranges, the class behind it does (tokamax 0.0.17)
    from tokamax._src.ops.attention import api, base

    start, end = (bound[:, None, :] for bound in mask)
    attend = api.IMPLEMENTATIONS["mosaic_gpu" if "mosaic_gpu" in api.IMPLEMENTATIONS else "triton"]
    return attend(query, key, value, mask=base.Mask(k_start=start, k_end=end))


def _pallas(query: Array, key: Array, value: Array, sequence_ids: Array) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # JAX points to tokamax, which has its own path
        from jax.experimental.pallas.ops.gpu.attention import mha

    scale = query.shape[-1] ** -0.5
    return mha(query, key, value, sequence_ids, sm_scale=scale, interpret=jax.default_backend() == "cpu")


def _splash(query: Array, key: Array, value: Array, sequence_ids: Array) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, length, heads, size = query.shape
    block = max(width for width in (128, 256, 512) if length % width == 0 or width == 128)
    blocks = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, use_fused_bwd_kernel=True
    )
    attend = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask((length, length))] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        interpret=jax.default_backend() == "cpu",
    )

    def row(q: Array, k: Array, v: Array, ids: Array) -> Array:
        return attend(q, k, v, splash.SegmentIds(ids, ids))

    q, k, v = (x.swapaxes(1, 2) for x in (query * size**-0.5, key, value))
    return jax.vmap(row)(q, k, v, sequence_ids).swapaxes(1, 2)


# ------------------------------------------------------------------------------------------------------ the choice


def choose(
    asked: str, config: BertConfig, execution: Execution, *, lengths: Sequence[int], sequences: int = 1
) -> tuple[Execution, list[str]]:
    """Decide the path by trying: each candidate is compiled and compared with the plain path, forward and gradient.

    Call it before a loss is made, outside of any mesh; the answer goes with the execution.

    Args:
        asked: "auto", or the name of a path (`bert_jax.config.ATTENTION_PATHS`) that is taken or refused.
        execution: its `dtype` is that of query, key and value.
        lengths: of all rows that will come.
        sequences: the most sequences packed into a row; 1 where rows are padded.

    Returns:
        The execution with `attention` and `sequences` set, and a line for each candidate that was passed over.

    Raises:
        UserError: the path that was asked for does not work here.
    """
    execution = replace(execution, sequences=sequences)
    if asked != "auto":
        reason = _obstacle(asked, config, execution, lengths)
        if reason is not None:
            raise UserError(f"{asked} does not work here ({reason})", "train.attention", 'set train.attention="auto"')
        return replace(execution, attention=asked), []
    names, notes = candidates(jax.default_backend(), config, execution, lengths)
    name, failed = first_that_works(names, config, execution, lengths)
    return replace(execution, attention=name), notes + failed


def first_that_works(
    names: Sequence[str], config: BertConfig, execution: Execution, lengths: Sequence[int]
) -> tuple[str, list[str]]:
    """The first of these paths that has no obstacle, and a line for each one before it."""
    notes = []
    for name in names:
        reason = _obstacle(name, config, execution, lengths)
        if reason is None:
            return name, notes
        notes.append(f"attention: {name} does not work here ({reason})")
    raise RuntimeError("\n".join(notes))  # the last of all candidates is the plain path


def candidates(
    platform: str, config: BertConfig, execution: Execution, lengths: Sequence[int]
) -> tuple[tuple[str, ...], list[str]]:
    """The paths worth a try on this platform, best first, and why fused ones are not among them."""
    if platform == "cpu":
        return ("xla",), []
    if config.attention_dropout:
        note = f"attention: the plain path, because attention_dropout = {config.attention_dropout}; 0 is faster"
        return ("xla",), [note]
    if execution.dtype == "float32":  # fused kernels would round to tensor-core formats
        return ("xla",), ["attention: the plain path, because of dtype float32; bfloat16 is faster"]
    if platform == "tpu":
        # rows of 128 are a grid of tiny steps in splash, which lose to plain products
        return (("splash", "xla") if min(lengths) >= 256 else ("xla",)), []
    if execution.sequences > 1:
        return ("cudnn_offsets", "tokamax", "pallas", "xla"), []
    return ("cudnn_lengths", "tokamax", "pallas", "xla"), []


def _obstacle(name: str, config: BertConfig, execution: Execution, lengths: Sequence[int]) -> str | None:
    """Why this path cannot be taken, in a few words; None if it can."""
    if name == "xla":
        return None
    if config.attention_dropout:
        return "only xla drops attention probabilities: set model.attention_dropout=0.0"
    if name == "cudnn_lengths" and execution.sequences > 1:
        return "rows are packed, and lengths tell of one sequence a row"
    if name.startswith("cudnn") and jax.default_backend() != "gpu":
        return f"cuDNN needs an NVIDIA GPU, not {jax.default_backend()}"
    way = path(replace(execution, attention=name))
    for length in sorted(set(lengths)):
        try:
            error = trial_error(way, execution, config.width // config.heads, length)
        except ImportError as missing:
            return f"{missing.name or missing} is not installed"
        except Exception as failure:  # whatever a kernel, its compiler or its library may raise
            return (str(failure).strip().splitlines() or [type(failure).__name__])[0][:160]
        if not error < 0.05:  # NaN too
            return f"at length {length} its result is off by {error:.2g} of the largest"
    return None


def trial_error(way: Path, execution: Execution, head_size: int, length: int) -> float:
    """How far a path is from the plain one in float32, on two rows of unequal sequences and padding.

    Args:
        execution: its `dtype` is that of query, key and value, its `sequences` the most in a row.

    Returns:
        The largest difference of output, dQ, dK and dV at real tokens, as a share of each one's largest element; NaN
        if anything is not finite, at padding too.
    """
    rng = np.random.default_rng(0)
    shape = (2, length, 2, head_size)
    operands = [jnp.asarray(rng.normal(size=shape), execution.dtype) for _ in range(3)]
    ids = trial_ids(length, execution.sequences)
    real = jnp.asarray(ids > 0)[:, :, None, None]
    cotangent = jnp.asarray(rng.normal(size=shape), execution.dtype) * real

    def outcome(way: Path, *operands: Array) -> list[Array]:
        mask = way.prepare(jnp.asarray(ids))
        out, pull = jax.vjp(lambda *x: way.attend(*x, mask, 0.0, None), *operands)
        return [out, *pull(cotangent.astype(out.dtype))]

    plain = Path(attention_bias, attend_xla)
    ours = jax.jit(partial(outcome, way))(*operands)
    reference = jax.jit(partial(outcome, plain))(*(x.astype(jnp.float32) for x in operands))
    worst = 0.0
    for mine, theirs in zip(ours, reference, strict=True):
        mine, theirs, where = (np.asarray(x, np.float64) for x in (mine, theirs, real))
        if not np.isfinite(mine).all():
            return float("nan")
        worst = max(worst, float(np.abs((mine - theirs) * where).max() / np.abs(theirs * where).max()))
    return worst


def trial_ids(length: int, sequences: int) -> np.ndarray:
    """Two rows int32[2, T]: one of as many sequences as may be, each half of what is left, and padding; one full."""
    ids = np.zeros((2, length), np.int32)
    ids[1] = 1
    start, end = 0, length - length // 8
    for number in range(1, sequences + 1):
        behind = end - (end - start) // 2 if number < sequences else end
        ids[0, start:behind] = number
        start = behind
    return ids
