"""What training costs, by arithmetic: parameters, FLOPs, bytes, accelerators. Standard library only.

Letters as everywhere: T tokens of a sequence, D width, E width of the tables, F feed-forward, N heads, V vocabulary,
L layers, P predictions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bert_jax.config import BertConfig
from bert_jax.errors import UserError

# ------------------------------------------------------------------------------------------------ the network


def parameters(config: BertConfig) -> int:
    """How many numbers a network learns, both heads and the pooler included; the masked-LM product is the word table.

    Example:
        >>> f"{parameters(BertConfig(vocab_size=30522)):,}"  # base: 110.1 million
        '110,106,428'
    """
    c, d, e, f = config, config.width, config.embedding_width, config.feed_forward
    embeddings = (c.vocab_size + c.positions + c.segments) * e + 2 * e + (e * d + d) * bool(c.embedding)
    layer = 4 * (d * d + d) + 2 * d * f + f + d + 2 * 2 * d
    masked_lm = d * e + e + 2 * e + c.vocab_size
    pooled = d * d + d + d * c.relations + c.relations
    return embeddings + c.distinct_layers * layer + masked_lm + pooled


# ------------------------------------------------------------------------------------------------------ FLOPs


@dataclass(frozen=True)
class Work:
    """What a batch (or a whole data set) asks of the network; everything adds up over rows and batches.

    `tokens` useful ones, padding left out; `squares` the sum of the squares of the sequences' lengths, since a token
    attends within its own sequence, packed or not; `predictions` masked tokens; `sequences` pooled [CLS] states.
    """

    tokens: float
    squares: float
    predictions: float
    sequences: float

    def __mul__(self, times: float) -> Work:
        return Work(self.tokens * times, self.squares * times, self.predictions * times, self.sequences * times)


def work(lengths: Iterable[int], predictions: float) -> Work:
    """The work of sequences of these lengths, with so many predictions in all."""
    tokens = squares = sequences = 0
    for length in lengths:
        tokens, squares, sequences = tokens + length, squares + length * length, sequences + 1
    return Work(tokens, squares, predictions, sequences)


def train_flops(config: BertConfig, work: Work) -> float:
    """FLOPs of training, forward and backward: every product costs 2 per multiplication, the backward pass twice the
    forward one; look-ups, norms, the two or three columns of next sentence and whatever is computed twice cost nothing
    (Kaplan et al. 2020, section 2.1, with attention and the heads written out).

    For rows of one length T with p predictions a token it is, a token,
    6·L·(4D² + 2DF) + 12·L·T·D + 6·p·(D² + D·V) + 6·D²/T.

    Example:
        >>> base = BertConfig(vocab_size=30522)
        >>> round(train_flops(base, work([128], 20)) / 1e9, 1)  # a sequence of 128 tokens
        69.9
    """
    d, e = config.width, config.embedding_width
    project = 6 * e * d * work.tokens * bool(config.embedding)
    layers = 6 * config.layers * (4 * d * d + 2 * d * config.feed_forward) * work.tokens
    attention = 12 * config.layers * d * work.squares
    masked_lm = 6 * (d * e + e * config.vocab_size) * work.predictions
    return project + layers + attention + masked_lm + 6 * d * d * work.sequences


def flops_a_token(config: BertConfig, length: float, predictions: float) -> float:
    """Training FLOPs a token of full sequences of `length`, with `predictions` masked tokens in each.

    Of uneven lengths with moments m1 = mean and m2 = mean square, give `length = m2 / m1` for the attention term;
    `train_flops` is exact for them.
    """
    return train_flops(config, Work(length, length * length, predictions, 1)) / length


# ----------------------------------------------------------------------------------------------- accelerators


@dataclass(frozen=True)
class Accelerator:
    """`tflops` dense bfloat16 peak in 10¹² FLOPs a second, `memory` in GiB, of what JAX calls one device.

    `kinds` are what `jax.Device.device_kind` begins with, in small letters.
    """

    name: str
    tflops: float
    memory: float
    platform: str
    kinds: tuple[str, ...]
    source: str


_TPU = "https://cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"

# Dense figures: data sheets that tell "with sparsity" are halved.
ACCELERATORS = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator("v4", 275, 32, "tpu", ("tpu v4",), _TPU + "v4"),
        Accelerator("v5e", 197, 16, "tpu", ("tpu v5 lite", "tpu v5e"), _TPU + "v5e"),
        Accelerator("v5p", 459, 95, "tpu", ("tpu v5p", "tpu v5"), _TPU + "v5p"),
        Accelerator("v6e", 918, 32, "tpu", ("tpu v6 lite", "tpu v6e"), _TPU + "v6e"),
        Accelerator("a100-40", 312, 40, "gpu", ("nvidia a100-sxm4-40gb", "nvidia a100-pcie-40gb"), _NVIDIA + "a100/"),
        Accelerator("a100", 312, 80, "gpu", ("nvidia a100",), _NVIDIA + "a100/"),
        Accelerator("h100", 989, 80, "gpu", ("nvidia h100 80gb hbm3",), _NVIDIA + "h100/"),
        Accelerator("h200", 989, 141, "gpu", ("nvidia h200",), _NVIDIA + "h200/"),
        Accelerator("b200", 2250, 180, "gpu", ("nvidia b200",), _NVIDIA + "dgx-b200/"),
    )
}


def accelerator(name: str) -> Accelerator:
    """The accelerator of this name, in capitals or not.

    Raises:
        UserError: no such name in the table.
    """
    if name.lower() not in ACCELERATORS:
        raise UserError(
            f"{name!r} is no accelerator known here", "--device", f"choose one of {', '.join(ACCELERATORS)}"
        )
    return ACCELERATORS[name.lower()]


def of_kind(device_kind: str) -> Accelerator | None:
    """The accelerator that `jax.Device.device_kind` names, or None: its peak is then unknown, and so is any MFU.

    Example:
        >>> of_kind("NVIDIA H200").name, of_kind("TPU v5 lite").name, of_kind("cpu")
        ('h200', 'v5e', None)
    """
    kinds = {kind: accelerator for accelerator in ACCELERATORS.values() for kind in accelerator.kinds}
    fitting = [kind for kind in kinds if device_kind.lower().startswith(kind)]
    return kinds[max(fitting, key=len)] if fitting else None


def mfu(flops_a_second: float, devices: int, peak_tflops: float) -> float:
    """Model FLOPs utilisation (Chowdhery et al. 2022, appendix B): useful FLOPs over what the devices could do."""
    return flops_a_second / (devices * peak_tflops * 1e12)
