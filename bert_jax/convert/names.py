"""The table: where each of our parameters stands in a foreign checkpoint.

A row holds our path, the foreign name and one rearrangement of axes; import, export and the tests read the
same rows. Our layers are stacked on a leading L; a name with `{layer}` stands for L foreign tensors. What is
left over on either side is an error.

Letters: V vocabulary, T positions, S segments, D and E width, N heads, H head size, F feed-forward, C the classes
of next sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_jax.config import BertConfig
from bert_jax.errors import UserError

Params = dict[str, Any]
Tensors = dict[str, np.ndarray]

LAYER = "{layer}"


@dataclass(frozen=True)
class Row:
    """One parameter.

    `axes` names our axes (without L), `foreign_axes` those of the foreign tensor, brackets joining what it
    has flat.

    Example:
        "D N H" ours and "(N H) D" theirs: transpose what PyTorch keeps as [out, in], and part the heads.
    """

    path: str
    axes: str
    foreign: str
    foreign_axes: str

    @property
    def stacked(self) -> bool:
        return LAYER in self.foreign


def _dense(path: str, foreign: str, out: str, into: str) -> list[Row]:
    """A PyTorch Linear, weight [out, in] and bias [out]; heads are flat there and axes of their own here."""
    kernel = Row(f"{path}/kernel", f"{into} {out}", f"{foreign}.weight", f"{_flat(out)} {_flat(into)}")
    return [kernel, Row(f"{path}/bias", out, f"{foreign}.bias", _flat(out))]


def _norm(path: str, foreign: str) -> list[Row]:
    return [
        Row(f"{path}/scale", "D", f"{foreign}.weight", "D"),
        Row(f"{path}/bias", "D", f"{foreign}.bias", "D"),
    ]


def _flat(axes: str) -> str:
    return f"({axes})" if " " in axes else axes


_LAYER = f"bert.encoder.layer.{LAYER}"

# transformers' BertForPreTraining. The decoder's weight is the word table and its bias cls.predictions.bias,
# so transformers saves neither a second time.
HUGGING_FACE: tuple[Row, ...] = (
    Row("embeddings/word", "V D", "bert.embeddings.word_embeddings.weight", "V D"),
    Row("embeddings/position", "T D", "bert.embeddings.position_embeddings.weight", "T D"),
    Row("embeddings/segment", "S D", "bert.embeddings.token_type_embeddings.weight", "S D"),
    *_norm("embeddings/norm", "bert.embeddings.LayerNorm"),
    *_dense("layers/attention/query", f"{_LAYER}.attention.self.query", out="N H", into="D"),
    *_dense("layers/attention/key", f"{_LAYER}.attention.self.key", out="N H", into="D"),
    *_dense("layers/attention/value", f"{_LAYER}.attention.self.value", out="N H", into="D"),
    *_dense("layers/attention/output", f"{_LAYER}.attention.output.dense", out="D", into="N H"),
    *_norm("layers/attention/norm", f"{_LAYER}.attention.output.LayerNorm"),
    *_dense("layers/mlp/up", f"{_LAYER}.intermediate.dense", out="F", into="D"),
    *_dense("layers/mlp/down", f"{_LAYER}.output.dense", out="D", into="F"),
    *_norm("layers/mlp/norm", f"{_LAYER}.output.LayerNorm"),
    *_dense("pooler", "bert.pooler.dense", out="E", into="D"),
    *_dense("masked_lm/transform", "cls.predictions.transform.dense", out="E", into="D"),
    *_norm("masked_lm/norm", "cls.predictions.transform.LayerNorm"),
    Row("masked_lm/bias", "V", "cls.predictions.bias", "V"),
    *_dense("next_sentence", "cls.seq_relationship", out="C", into="D"),
)


def _tf1_dense(path: str, foreign: str, out: str, into: str) -> list[Row]:
    """A dense layer of TensorFlow, kernel [in, out] and bias [out]."""
    kernel = Row(f"{path}/kernel", f"{into} {out}", f"{foreign}/kernel", f"{_flat(into)} {_flat(out)}")
    return [kernel, Row(f"{path}/bias", out, f"{foreign}/bias", _flat(out))]


def _tf1_norm(path: str, foreign: str) -> list[Row]:
    return [Row(f"{path}/scale", "D", f"{foreign}/gamma", "D"), Row(f"{path}/bias", "D", f"{foreign}/beta", "D")]


_TF1_LAYER = f"bert/encoder/layer_{LAYER}"

# google-research/bert (modeling.py, run_pretraining.py). The decoder is the word table there too; next sentence alone
# keeps its weights as [classes, width].
TF1: tuple[Row, ...] = (
    Row("embeddings/word", "V D", "bert/embeddings/word_embeddings", "V D"),
    Row("embeddings/position", "T D", "bert/embeddings/position_embeddings", "T D"),
    Row("embeddings/segment", "S D", "bert/embeddings/token_type_embeddings", "S D"),
    *_tf1_norm("embeddings/norm", "bert/embeddings/LayerNorm"),
    *_tf1_dense("layers/attention/query", f"{_TF1_LAYER}/attention/self/query", out="N H", into="D"),
    *_tf1_dense("layers/attention/key", f"{_TF1_LAYER}/attention/self/key", out="N H", into="D"),
    *_tf1_dense("layers/attention/value", f"{_TF1_LAYER}/attention/self/value", out="N H", into="D"),
    *_tf1_dense("layers/attention/output", f"{_TF1_LAYER}/attention/output/dense", out="D", into="N H"),
    *_tf1_norm("layers/attention/norm", f"{_TF1_LAYER}/attention/output/LayerNorm"),
    *_tf1_dense("layers/mlp/up", f"{_TF1_LAYER}/intermediate/dense", out="F", into="D"),
    *_tf1_dense("layers/mlp/down", f"{_TF1_LAYER}/output/dense", out="D", into="F"),
    *_tf1_norm("layers/mlp/norm", f"{_TF1_LAYER}/output/LayerNorm"),
    *_tf1_dense("pooler", "bert/pooler/dense", out="E", into="D"),
    *_tf1_dense("masked_lm/transform", "cls/predictions/transform/dense", out="E", into="D"),
    *_tf1_norm("masked_lm/norm", "cls/predictions/transform/LayerNorm"),
    Row("masked_lm/bias", "V", "cls/predictions/output_bias", "V"),
    Row("next_sentence/kernel", "D C", "cls/seq_relationship/output_weights", "C D"),
    Row("next_sentence/bias", "C", "cls/seq_relationship/output_bias", "C"),
)


# ------------------------------------------------------------------------------------------------- both ways


def to_foreign(rows: Sequence[Row], config: BertConfig, params: Params) -> Tensors:
    """Our parameters under foreign names: float arrays of the dtype they came in, layers apart, C order.

    Raises:
        ValueError: the tree and the rows do not cover each other, or a leaf has another shape: a bug, no
            user's.
    """
    leaves = dict(_flatten(params))
    if leaves.keys() != {row.path for row in rows}:
        raise ValueError(f"the table and the tree differ in {sorted(leaves.keys() ^ {row.path for row in rows})}")
    sizes = sizes_of(config)
    tensors: Tensors = {}
    for row in rows:
        leaf = np.asarray(leaves[row.path])
        if leaf.shape != our_shape(row, config):
            raise ValueError(f"{row.path} has shape {leaf.shape}, not {our_shape(row, config)}")
        if row.stacked:
            for layer in range(config.layers):
                tensors[row.foreign.replace(LAYER, str(layer))] = _outward(row, sizes, leaf[layer])
        else:
            tensors[row.foreign] = _outward(row, sizes, leaf)
    return tensors


def from_foreign(rows: Sequence[Row], config: BertConfig, tensors: Mapping[str, np.ndarray], where: str) -> Params:
    """Foreign tensors as our tree of float32 arrays, layers stacked.

    Raises:
        UserError: tensors are missing, left over, or of another shape than the config says; `where` names the
            file.
    """
    expected = foreign_shapes(rows, config)
    _account("are missing", "was it saved from another class?", expected.keys() - tensors.keys(), where)
    _account("are not BERT's", "remove them or say what they are", tensors.keys() - expected.keys(), where)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{name} has shape {list(tensors[name].shape)}, where config.json asks for {list(shape)}",
                where,
                "config and weights must be of one model",
            )
    sizes = sizes_of(config)
    params: Params = {}
    for row in rows:
        if row.stacked:
            names = [row.foreign.replace(LAYER, str(layer)) for layer in range(config.layers)]
            leaf = np.stack([_inward(row, sizes, tensors[name]) for name in names])
        else:
            leaf = _inward(row, sizes, tensors[row.foreign])
        node = params
        *folders, last = row.path.split("/")
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = np.array(leaf, np.float32, order="C")
    return params


def foreign_shapes(rows: Sequence[Row], config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Every foreign tensor that the rows stand for, and its shape."""
    sizes = sizes_of(config)
    shapes = {}
    for row in rows:
        shape = tuple(int(np.prod([sizes[a] for a in group])) for group in _groups(row.foreign_axes))
        layers = range(config.layers) if row.stacked else (0,)
        shapes.update({row.foreign.replace(LAYER, str(layer)): shape for layer in layers})
    return shapes


def our_shape(row: Row, config: BertConfig) -> tuple[int, ...]:
    """The shape of our leaf, with its leading L where layers are stacked."""
    shape = tuple(sizes_of(config)[axis] for axis in row.axes.split())
    return (config.layers, *shape) if row.stacked else shape


def sizes_of(config: BertConfig) -> dict[str, int]:
    """The size that each letter of the table stands for."""
    return {
        "V": config.vocab_size,
        "T": config.positions,
        "S": config.segments,
        "D": config.width,
        "E": config.width,
        "N": config.heads,
        "H": config.width // config.heads,
        "F": config.feed_forward,
        "C": config.relations,
    }


# ------------------------------------------------------------------------------------------------- the parts


def _groups(axes: str) -> list[list[str]]:
    """ "(N H) D" → [["N", "H"], ["D"]]."""
    groups: list[list[str]] = []
    inside = False
    for token in axes.replace("(", "( ").replace(")", " )").split():
        if token in "()":
            inside = token == "("
            if inside:
                groups.append([])
        elif inside:
            groups[-1].append(token)
        else:
            groups.append([token])
    return groups


def _inward(row: Row, sizes: dict[str, int], tensor: np.ndarray) -> np.ndarray:
    """One foreign tensor (of one layer) in our axes."""
    theirs = [axis for group in _groups(row.foreign_axes) for axis in group]
    parted = tensor.reshape([sizes[axis] for axis in theirs])
    return parted.transpose([theirs.index(axis) for axis in row.axes.split()])


def _outward(row: Row, sizes: dict[str, int], leaf: np.ndarray) -> np.ndarray:
    """The inverse of `_inward`, contiguous: safetensors writes memory as it lies."""
    groups = _groups(row.foreign_axes)
    ours = row.axes.split()
    moved = leaf.transpose([ours.index(axis) for group in groups for axis in group])
    return np.ascontiguousarray(moved.reshape([int(np.prod([sizes[a] for a in group])) for group in groups]))


def _flatten(tree: Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(dict(value), f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _account(what: str, remedy: str, names: set[str], where: str) -> None:
    if names:
        first = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise UserError(f"{len(names)} tensors {what}: {first}", where, remedy)
