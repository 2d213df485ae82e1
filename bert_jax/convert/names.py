"""The table: where each of our parameters stands in a foreign checkpoint.

A row holds our path, the foreign name and one rearrangement of axes; import, export and the tests read the
same rows. Our layers are stacked on a leading L; a name with `{layer}` stands for L foreign tensors. What is
left over on either side is an error.

Letters: V vocabulary, T positions, S segments, D width (W where it stands a second time), E width of the tables,
N heads, H head size, F feed-forward, C the classes of next sentence, K the outputs of a fine-tuned head, O one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_jax.config import BertConfig
from bert_jax.errors import UserError, counted

Params = dict[str, Any]
Tensors = dict[str, np.ndarray]

LAYER = "{layer}"


@dataclass(frozen=True)
class Row:
    """One parameter.

    `axes` names our axes (without the leading one of stacked layers), `foreign_axes` those of the foreign tensor,
    brackets joining what it has flat.

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

    def foreign_names(self, config: BertConfig) -> list[str]:
        """The foreign tensors that the row stands for: one, or one a distinct layer."""
        layers = range(config.distinct_layers) if self.stacked else (0,)
        return [self.foreign.replace(LAYER, str(layer)) for layer in layers]


def _dense(path: str, foreign: str, out: str, into: str) -> list[Row]:
    """A PyTorch Linear, weight [out, in] and bias [out]; heads are flat there and axes of their own here."""
    kernel = Row(f"{path}/kernel", f"{into} {out}", f"{foreign}.weight", f"{_flat(out)} {_flat(into)}")
    return [kernel, Row(f"{path}/bias", out, f"{foreign}.bias", _flat(out))]


def _norm(path: str, foreign: str, axis: str = "D") -> list[Row]:
    return [
        Row(f"{path}/scale", axis, f"{foreign}.weight", axis),
        Row(f"{path}/bias", axis, f"{foreign}.bias", axis),
    ]


def _flat(axes: str) -> str:
    return f"({axes})" if " " in axes else axes


def _tables(foreign: str) -> list[Row]:
    return [
        Row("embeddings/word", "V E", f"{foreign}.word_embeddings.weight", "V E"),
        Row("embeddings/position", "T E", f"{foreign}.position_embeddings.weight", "T E"),
        Row("embeddings/segment", "S E", f"{foreign}.token_type_embeddings.weight", "S E"),
        *_norm("embeddings/norm", f"{foreign}.LayerNorm", "E"),
    ]


def _layer(
    query: str, key: str, value: str, output: str, attention_norm: str, up: str, down: str, norm: str
) -> list[Row]:
    """A layer's rows, from the foreign names of its eight parts."""
    return [
        *_dense("layers/attention/query", query, out="N H", into="D"),
        *_dense("layers/attention/key", key, out="N H", into="D"),
        *_dense("layers/attention/value", value, out="N H", into="D"),
        *_dense("layers/attention/output", output, out="D", into="N H"),
        *_norm("layers/attention/norm", attention_norm),
        *_dense("layers/mlp/up", up, out="F", into="D"),
        *_dense("layers/mlp/down", down, out="D", into="F"),
        *_norm("layers/mlp/norm", norm),
    ]


def _bert_layer(prefix: str) -> list[Row]:
    return _layer(
        *(f"{prefix}.attention.self.{name}" for name in ("query", "key", "value")),
        f"{prefix}.attention.output.dense",
        f"{prefix}.attention.output.LayerNorm",
        f"{prefix}.intermediate.dense",
        f"{prefix}.output.dense",
        f"{prefix}.output.LayerNorm",
    )


# transformers' names. The masked LM's product is the word table, so no family saves it a second time; DistilBERT keeps
# the bias under the product's own name.
HUGGING_FACE: tuple[Row, ...] = (
    *_tables("bert.embeddings"),
    *_bert_layer(f"bert.encoder.layer.{LAYER}"),
    *_dense("pooler", "bert.pooler.dense", out="W", into="D"),
    *_dense("masked_lm/transform", "cls.predictions.transform.dense", out="E", into="D"),
    *_norm("masked_lm/norm", "cls.predictions.transform.LayerNorm", "E"),
    Row("masked_lm/bias", "V", "cls.predictions.bias", "V"),
    *_dense("next_sentence", "cls.seq_relationship", out="C", into="D"),
)

_SHARED = f"albert.encoder.albert_layer_groups.{LAYER}.albert_layers.0"

# What ALBERT's second head tells apart is whether two segments stand in their order: 0 they do, 1 they are swapped.
ALBERT: tuple[Row, ...] = (
    *_tables("albert.embeddings"),
    *_dense("embeddings/project", "albert.encoder.embedding_hidden_mapping_in", out="D", into="E"),
    *_layer(
        *(f"{_SHARED}.attention.{name}" for name in ("query", "key", "value", "dense", "LayerNorm")),
        f"{_SHARED}.ffn",
        f"{_SHARED}.ffn_output",
        f"{_SHARED}.full_layer_layer_norm",
    ),
    *_dense("pooler", "albert.pooler", out="W", into="D"),
    *_dense("masked_lm/transform", "predictions.dense", out="E", into="D"),
    *_norm("masked_lm/norm", "predictions.LayerNorm", "E"),
    Row("masked_lm/bias", "V", "predictions.bias", "V"),
    *_dense("next_sentence", "sop_classifier.classifier", out="C", into="D"),
)

ELECTRA: tuple[Row, ...] = (
    *_tables("electra.embeddings"),
    *_dense("embeddings/project", "electra.embeddings_project", out="D", into="E"),
    *_bert_layer(f"electra.encoder.layer.{LAYER}"),
    *_dense("masked_lm/transform", "generator_predictions.dense", out="E", into="D"),
    *_norm("masked_lm/norm", "generator_predictions.LayerNorm", "E"),
    Row("masked_lm/bias", "V", "generator_lm_head.bias", "V"),
    *_dense("replaced_token/transform", "discriminator_predictions.dense", out="W", into="D"),
    *_dense("replaced_token/output", "discriminator_predictions.dense_prediction", out="O", into="D"),
)

_DISTILLED = f"distilbert.transformer.layer.{LAYER}"

DISTILBERT: tuple[Row, ...] = (
    *(row for row in _tables("distilbert.embeddings") if row.path != "embeddings/segment"),
    *_layer(
        *(f"{_DISTILLED}.attention.{name}_lin" for name in ("q", "k", "v", "out")),
        f"{_DISTILLED}.sa_layer_norm",
        f"{_DISTILLED}.ffn.lin1",
        f"{_DISTILLED}.ffn.lin2",
        f"{_DISTILLED}.output_layer_norm",
    ),
    *_dense("masked_lm/transform", "vocab_transform", out="E", into="D"),
    *_norm("masked_lm/norm", "vocab_layer_norm", "E"),
    Row("masked_lm/bias", "V", "vocab_projector.bias", "V"),
)

# What is fine-tuned has the same names in every family: a label (of a text or of each token), and where an answer
# begins and ends.
FINE_TUNED: tuple[Row, ...] = (
    *_dense("classifier", "classifier", out="K", into="D"),
    *_dense("qa_outputs", "qa_outputs", out="K", into="D"),
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
    *_tf1_dense("pooler", "bert/pooler/dense", out="W", into="D"),
    *_tf1_dense("masked_lm/transform", "cls/predictions/transform/dense", out="E", into="D"),
    *_tf1_norm("masked_lm/norm", "cls/predictions/transform/LayerNorm"),
    Row("masked_lm/bias", "V", "cls/predictions/output_bias", "V"),
    Row("next_sentence/kernel", "D C", "cls/seq_relationship/output_weights", "C D"),
    Row("next_sentence/bias", "C", "cls/seq_relationship/output_bias", "C"),
)


# ----------------------------------------------------------------------------------------------- parts of a model


def of_parts(rows: Iterable[Row], parts: Iterable[str]) -> tuple[Row, ...]:
    """The rows of these parts of the tree (`embeddings`, `layers`, `pooler`, …)."""
    parts = set(parts)
    return tuple(row for row in rows if row.path.split("/")[0] in parts)


def without(tensors: Tensors, drop: Sequence[str], where: str) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors whose names begin with none of `drop`, and a sentence on those that are left out.

    Raises:
        UserError: no name begins with one of them.
    """
    for prefix in drop:
        if not any(name.startswith(prefix) for name in tensors):
            raise UserError(f"no tensor's name begins with {prefix!r}", where, "leave this --drop out")
    dropped = sorted(name for name in tensors if name.startswith(tuple(drop)))
    if not dropped:
        return tensors, ()
    named = ", ".join(dropped[:3]) + (f" and {len(dropped) - 3} more" if len(dropped) > 3 else "")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(drop))}
    return kept, (f"{counted(len(dropped), 'tensor')} left out as asked: {named}",)


def parts_in(rows: Iterable[Row], config: BertConfig, names: Iterable[str]) -> tuple[str, ...]:
    """The parts of the tree of which any tensor is among the foreign `names`, and the encoder's in any case."""
    names = set(names)
    found = {row.path.split("/")[0] for row in rows if names & set(row.foreign_names(config))} | {
        "embeddings",
        "layers",
    }
    return tuple(part for part in dict.fromkeys(row.path.split("/")[0] for row in rows) if part in found)


# ------------------------------------------------------------------------------------------------- both ways


def to_foreign(rows: Sequence[Row], config: BertConfig, params: Params) -> Tensors:
    """Our parameters under foreign names: float arrays of the dtype they came in, layers apart, C order.

    Raises:
        ValueError: the tree and the rows do not cover each other, or a leaf has another shape: a bug, no
            user's.
    """
    leaves = dict(flatten(params))
    if leaves.keys() != {row.path for row in rows}:
        raise ValueError(f"the table and the tree differ in {sorted(leaves.keys() ^ {row.path for row in rows})}")
    sizes = sizes_of(config)
    tensors: Tensors = {}
    for row in rows:
        leaf = np.asarray(leaves[row.path])
        if leaf.shape != our_shape(row, config):
            raise ValueError(f"{row.path} has shape {leaf.shape}, not {our_shape(row, config)}")
        for name, one in zip(row.foreign_names(config), leaf if row.stacked else [leaf], strict=True):
            tensors[name] = _outward(row, sizes, one)
    return tensors


def from_foreign(rows: Sequence[Row], config: BertConfig, tensors: Mapping[str, np.ndarray], where: str) -> Params:
    """Foreign tensors as our tree of float32 arrays, layers stacked.

    Raises:
        UserError: tensors are missing, left over, or of another shape than the config says; `where` names the
            file.
    """
    expected = foreign_shapes(rows, config)
    _account("are missing", "was it saved from another class?", expected.keys() - tensors.keys(), where)
    more = tensors.keys() - expected.keys()
    _account(
        "are not in the table of this architecture",
        "leave out a head of yours with `bert-jax import --drop PREFIX`",
        more,
        where,
    )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{name} has shape {list(tensors[name].shape)}, where config.json asks for {list(shape)}",
                where,
                "config and weights must be of one model",
            )
    sizes = sizes_of(config)
    leaves: dict[str, Any] = {}
    for row in rows:
        found = [_inward(row, sizes, tensors[name]) for name in row.foreign_names(config)]
        leaf = np.stack(found) if row.stacked else found[0]
        leaves[row.path] = np.array(leaf, np.float32, order="C")
    return nested(leaves)


def foreign_shapes(rows: Sequence[Row], config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Every foreign tensor that the rows stand for, and its shape."""
    sizes = sizes_of(config)
    shapes = {}
    for row in rows:
        shape = tuple(int(np.prod([sizes[a] for a in group])) for group in _groups(row.foreign_axes))
        shapes.update(dict.fromkeys(row.foreign_names(config), shape))
    return shapes


def our_shape(row: Row, config: BertConfig) -> tuple[int, ...]:
    """The shape of our leaf, with a leading axis of distinct layers where they are stacked."""
    shape = tuple(sizes_of(config)[axis] for axis in row.axes.split())
    return (config.distinct_layers, *shape) if row.stacked else shape


def sizes_of(config: BertConfig) -> dict[str, int]:
    """The size that each letter of the table stands for."""
    return {
        "V": config.vocab_size,
        "T": config.positions,
        "S": config.segments,
        "D": config.width,
        "W": config.width,
        "E": config.embedding_width,
        "N": config.heads,
        "H": config.width // config.heads,
        "F": config.feed_forward,
        "C": config.relations,
        "K": config.classes,
        "O": 1,
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


def flatten(tree: Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree by their paths."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(dict(value), f"{prefix}{name}/")
        else:
            yield prefix + name, value


def nested(leaves: Mapping[str, Any]) -> Params:
    """The tree of leaves by their paths: the inverse of `flatten`."""
    tree: Params = {}
    for path, leaf in leaves.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def _account(what: str, remedy: str, names: set[str], where: str) -> None:
    if names:
        first = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        verb = what if len(names) > 1 else what.replace("are ", "is ", 1)
        raise UserError(f"{counted(len(names), 'tensor')} {verb}: {first}", where, remedy)
