"""One ONNX file of a model: our own graph, written node by node.

Inputs are int64 [batch, sequence], both symbolic: `input_ids`, `attention_mask` (0: padding) and, where the model has
segments, `token_type_ids`; outputs float32 under transformers' names (see `artefacts.py`). Every weight is stored
once: the word table serves both ends, and layers that share weights share them here.

This is a second definition of the network, so `prove` belongs to every export: it runs the file with onnxruntime and
compares it with our forward pass, and where they differ, layer by layer.

    import onnxruntime
    session = onnxruntime.InferenceSession("model.onnx")
    (states,) = session.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds})
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bert_jax.config import BertConfig
from bert_jax.convert import artefacts
from bert_jax.convert.artefacts import SHAPES
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import Params
from bert_jax.convert.proof import Proof, check_libraries
from bert_jax.errors import UserError

if TYPE_CHECKING:
    import onnx

OPSET = 20  # the first with Gelu; onnxruntime runs it from 1.17 on
IR_VERSION = 9  # of the ONNX release that brought opset 20: a newer one would only shut older runtimes out
LIMIT = 2**31 - 2**20  # protobuf writes no message of 2 GiB; the graph itself is far below a MiB
EXTRA = "'bert-jax[onnx]'"
LIBRARIES = {"onnx": EXTRA, "onnxruntime": EXTRA}  # of the proof, and what installs them
MASKED = float(np.finfo(np.float32).min / 2)


# ------------------------------------------------------------------------------------------------------- writing


def write_onnx(path: str | Path, loaded: Loaded, *, all_layers: bool = False) -> None:
    """Write a model as one ONNX file, checked by `onnx.checker`, whole or not at all.

    Args:
        path: the file; it must not be there yet.
        all_layers: give out the states of every layer too, as `hidden_states.0` (the embeddings') and so on.

    Raises:
        UserError: onnx is not installed, `path` exists or cannot be written, or the weights need more than the 2 GiB
            that one file can hold.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"onnx cannot be imported ({error})", "ONNX export", f"pip install {EXTRA}") from None

    path = Path(path)
    artefacts.refuse_existing(path)
    size = sum(leaf.size * 4 for leaf in jax.tree.leaves(artefacts.parts(loaded)))
    if size > LIMIT:
        raise UserError(
            f"weights of {size / 2**30:.1f} GiB do not go into one ONNX file, which ends at 2 GiB",
            str(path),
            "export it as stablehlo",
        )
    model = build(loaded, all_layers=all_layers)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(beside), full_check=True)  # by its path: a model in memory would be copied first
        os.replace(beside, path)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})", str(path), "make room or choose another place"
        ) from None
    finally:
        with suppress(OSError):
            beside.unlink()


def build(loaded: Loaded, *, all_layers: bool = False) -> onnx.ModelProto:
    """The model as ONNX has it; values and weights have our names, so that a runtime's errors tell the place."""
    from onnx import TensorProto, helper

    config, params = loaded.config, artefacts.parts(loaded)
    graph = Graph()
    states = [embeddings(graph, config, params["embeddings"])]
    bias = attention_bias(graph)
    for number in range(config.layers):
        row = number * config.distinct_layers // config.layers  # whose weights it has
        name = "last_hidden_state" if number + 1 == config.layers else f"hidden_states.{number + 1}"
        states.append(layer(graph, config, params["layers"], row, states[-1], bias, f"layer {number + 1}", name))
    names = artefacts.output_names(loaded, all_layers=all_layers)
    if "masked_lm" in names:
        masked_lm(graph, config, params["masked_lm"], states[-1], names["masked_lm"])
    if "replaced_token" in names:
        replaced_token(graph, config, params["replaced_token"], states[-1], names["replaced_token"])
    if "pooler" in params:
        pooled = pooler(graph, params["pooler"], states[-1], names.get("pooler", "pooled"))
        if "next_sentence" in names:
            graph.gemm(pooled, params["next_sentence"], "next_sentence", output=names["next_sentence"])

    def values(named: Iterable[tuple[str, tuple[Any, ...]]], kind: int) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, kind, shape) for name, shape in named]

    inputs = [(name, ("batch", "sequence")) for name in artefacts.input_names(config)]
    outputs = [(name, artefacts.shape_of(quantity, config, "batch", "sequence")) for quantity, name in names.items()]
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "bert",
            values(inputs, TensorProto.INT64),
            values(outputs, TensorProto.FLOAT),
            list(graph.tensors.values()),
        ),
        producer_name="bert_jax",
        doc_string=f"{loaded.architecture}, at most {config.positions} tokens a row",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


# ----------------------------------------------------------------------------------------------------- the parts


class Graph:
    """Nodes and stored tensors as they are added; a tensor that is named twice is stored once."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, onnx.TensorProto] = {}

    def tensor(self, name: str, array: Any) -> str:
        """Store an array of float32 or int64 under a name."""
        from onnx import numpy_helper

        if name not in self.tensors:
            # not ascontiguousarray, which makes a scalar an array of one
            self.tensors[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def weight(self, name: str, array: Any) -> str:
        return self.tensor(name, np.asarray(array, np.float32))

    def integers(self, *numbers: int) -> str:
        """A stored int64 vector."""
        return self.tensor(f"integers {' '.join(map(str, numbers))}", np.array(numbers, np.int64))

    def integer(self, number: int) -> str:
        """A stored int64 scalar."""
        return self.tensor(f"integer {number}", np.int64(number))

    def node(self, kind: str, *inputs: str, output: str, **attributes: Any) -> str:
        """Add an operation; its one output, which is also its name, comes back."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def dense(self, x: str, tree: Params, weights: str, place: str, output: str = "") -> str:
        """x [..., K] · kernel [K, M] + bias: any leading axes."""
        kernel = self.weight(f"{weights}/kernel", tree["kernel"])
        product = self.node("MatMul", x, kernel, output=f"{place}/product")
        return self.node("Add", product, self.weight(f"{weights}/bias", tree["bias"]), output=output or place)

    def gemm(self, x: str, tree: Params, weights: str, output: str) -> str:
        """x [R, K] · kernel [K, M] + bias as one operation."""
        kernel = self.weight(f"{weights}/kernel", tree["kernel"])
        return self.node("Gemm", x, kernel, self.weight(f"{weights}/bias", tree["bias"]), output=output)

    def norm(self, config: BertConfig, x: str, tree: Params, weights: str, output: str) -> str:
        scale, bias = (self.weight(f"{weights}/{name}", tree[name]) for name in ("scale", "bias"))
        return self.node("LayerNormalization", x, scale, bias, output=output, axis=-1, epsilon=config.norm_epsilon)

    def gelu(self, config: BertConfig, x: str, output: str) -> str:
        return self.node("Gelu", x, output=output, approximate="tanh" if config.activation == "gelu_tanh" else "none")


def embeddings(graph: Graph, config: BertConfig, tree: Params) -> str:
    """Token + position + segment, normalised, and made D wide where the tables are narrower."""

    def look_up(table: str, ids: str, size: int) -> str:
        # Gather counts negative ids from the end without a word; past the end it fails and tells the table
        negative = graph.node("Less", ids, graph.integer(0), output=f"{table}/negative")
        checked = graph.node("Where", negative, graph.integer(size), ids, output=f"{table}/ids")
        return graph.node("Gather", graph.weight(f"embeddings/{table}", tree[table]), checked, output=f"{table} of ids")

    shape = graph.node("Shape", "input_ids", output="position/length of rows", start=1, end=2)
    length = graph.node("Squeeze", shape, output="position/length")
    places = graph.node("Range", graph.integer(0), length, graph.integer(1), output="position/ids")
    # Gather, and of two axes, as onnxruntime makes a slice of one: too long a row then fails at the table and tells its
    # length, where a slice would be too short for the next operation
    places = graph.node("Unsqueeze", places, graph.integers(0), output="position/wide")
    table = graph.weight("embeddings/position", tree["position"])
    position = graph.node("Gather", table, places, output="position of ids")
    x = graph.node("Add", look_up("word", "input_ids", config.vocab_size), position, output="embeddings/word+position")
    if config.segments:
        segment = look_up("segment", "token_type_ids", config.segments)
        x = graph.node("Add", x, segment, output="embeddings/sum")
    if "project" not in tree:
        return graph.norm(config, x, tree["norm"], "embeddings/norm", output="hidden_states.0")
    x = graph.norm(config, x, tree["norm"], "embeddings/norm", output="embeddings/normalised")
    return graph.dense(x, tree["project"], "embeddings/project", "embeddings/project", output="hidden_states.0")


def attention_bias(graph: Graph) -> str:
    """float32 [B, 1, 1, T], to be added to the scores: 0 at tokens, a large negative number at padding.

    As in transformers, padding is hidden as a key only. Ours also lets padding see nothing but padding, which makes
    no difference at any token.
    """
    from onnx import TensorProto

    real = graph.node("Cast", "attention_mask", output="attention_mask/real", to=TensorProto.BOOL)
    wide = graph.node("Unsqueeze", real, graph.integers(1, 2), output="attention_mask/wide")
    nothing, masked = graph.tensor("nothing", np.float32(0)), graph.tensor("masked", np.float32(MASKED))
    return graph.node("Where", wide, nothing, masked, output="attention_mask/bias")


def layer(graph: Graph, config: BertConfig, stack: Params, row: int, x: str, bias: str, place: str, output: str) -> str:
    """One encoder layer with the weights that stand in `row` of the stack: [B, T, D] → [B, T, D]."""
    tree = jax.tree.map(lambda leaf: np.asarray(leaf)[row], stack)
    weights = f"layers/{row}"
    size = config.width // config.heads

    def flat(name: str) -> Params:
        """A projection of attention with its heads in one axis."""
        kernel, bias = tree["attention"][name]["kernel"], tree["attention"][name]["bias"]
        return {"kernel": kernel.reshape(config.width, config.width), "bias": bias.reshape(-1)}

    def project(name: str, axes: list[int]) -> str:
        y = graph.dense(x, flat(name), f"{weights}/attention/{name}", f"{place}/{name}")
        apart = graph.integers(0, 0, config.heads, size)
        y = graph.node("Reshape", y, apart, output=f"{place}/{name}/heads")
        return graph.node("Transpose", y, output=f"{place}/{name}/turned", perm=axes)

    query, key, value = project("query", [0, 2, 1, 3]), project("key", [0, 2, 3, 1]), project("value", [0, 2, 1, 3])
    scale = graph.tensor("scale", np.float32(size**-0.5))
    query = graph.node("Mul", query, scale, output=f"{place}/query/scaled")
    scores = graph.node("MatMul", query, key, output=f"{place}/scores")
    scores = graph.node("Add", scores, bias, output=f"{place}/scores/masked")
    chances = graph.node("Softmax", scores, output=f"{place}/probabilities", axis=-1)
    context = graph.node("MatMul", chances, value, output=f"{place}/context/heads")
    context = graph.node("Transpose", context, output=f"{place}/context/turned", perm=[0, 2, 1, 3])
    context = graph.node("Reshape", context, graph.integers(0, 0, config.width), output=f"{place}/context")
    y = graph.dense(context, flat("output"), f"{weights}/attention/output", f"{place}/attention")
    x = graph.node("Add", x, y, output=f"{place}/attention/sum")
    x = graph.norm(
        config, x, tree["attention"]["norm"], f"{weights}/attention/norm", output=f"{place}/attention/normalised"
    )
    mlp = tree["mlp"]
    y = graph.gelu(config, graph.dense(x, mlp["up"], f"{weights}/mlp/up", f"{place}/up"), output=f"{place}/gelu")
    y = graph.dense(y, mlp["down"], f"{weights}/mlp/down", f"{place}/down")
    x = graph.node("Add", x, y, output=f"{place}/sum")
    return graph.norm(config, x, mlp["norm"], f"{weights}/mlp/norm", output=output)


def masked_lm(graph: Graph, config: BertConfig, tree: Params, x: str, output: str) -> str:
    """Dense, GELU, norm, the word table transposed and a bias a piece: [B, T, D] → [B, T, V]."""
    x = graph.dense(x, tree["transform"], "masked_lm/transform", "masked_lm/transformed")
    x = graph.norm(config, graph.gelu(config, x, "masked_lm/gelu"), tree["norm"], "masked_lm/norm", "masked_lm/normed")
    # Gemm takes the table as the embeddings have it, but two axes only
    rows = graph.node("Reshape", x, graph.integers(-1, config.embedding_width), output="masked_lm/rows")
    bias = graph.weight("masked_lm/bias", tree["bias"])
    scores = graph.node("Gemm", rows, "embeddings/word", bias, output="masked_lm/scores", transB=1)
    shape = graph.node("Shape", "input_ids", output="masked_lm/batch and sequence")
    shape = graph.node("Concat", shape, graph.integers(config.vocab_size), output="masked_lm/shape", axis=0)
    return graph.node("Reshape", scores, shape, output=output)


def replaced_token(graph: Graph, config: BertConfig, tree: Params, x: str, output: str) -> str:
    """ELECTRA's discriminator, above 0 where a token was replaced: [B, T, D] → [B, T]."""
    x = graph.dense(x, tree["transform"], "replaced_token/transform", "replaced_token/transformed")
    x = graph.dense(
        graph.gelu(config, x, "replaced_token/gelu"), tree["output"], "replaced_token/output", "replaced_token"
    )
    return graph.node("Squeeze", x, graph.integers(-1), output=output)


def pooler(graph: Graph, tree: Params, x: str, output: str) -> str:
    """Dense and tanh over the states of [CLS]: [B, T, D] → [B, D]."""
    first = graph.node("Gather", x, graph.integer(0), output="pooler/first", axis=1)
    return graph.node("Tanh", graph.gemm(first, tree, "pooler", output="pooler/dense"), output=output)


# --------------------------------------------------------------------------------------------------------- proof


def prove(path: str | Path, loaded: Loaded, shapes: Sequence[tuple[int, int]] = SHAPES) -> Proof:
    """Run a file with onnxruntime on a CPU and compare its outputs with our forward pass, within `TOLERANCE`.

    If they differ, the same file is run once more with every layer's states as outputs, which tells the first layer
    that is wrong.

    Raises:
        UserError: onnx or onnxruntime is not installed, or onnxruntime cannot run the file.
    """
    check_libraries(LIBRARIES)
    import onnx
    import onnxruntime

    inputs = artefacts.batches(loaded, shapes)
    names = artefacts.output_names(loaded)

    def layers() -> list[dict[str, np.ndarray]]:
        model = onnx.load(str(path))
        every = artefacts.output_names(loaded, all_layers=True)
        for quantity, name in every.items():
            if quantity not in names:
                shape = artefacts.shape_of(quantity, loaded.config, "batch", "sequence")
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        return _run(model.SerializeToString(), list(every.values()), inputs, str(path))

    outputs = _run(str(path), list(names.values()), inputs, str(path))
    versions = {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}
    return artefacts.judged(loaded, inputs, outputs, layers, versions)


def _run(
    model: str | bytes, names: list[str], inputs: Sequence[dict[str, np.ndarray]], where: str
) -> list[dict[str, np.ndarray]]:
    import onnxruntime

    wide = [{name: array.astype(np.int64) for name, array in batch.items()} for batch in inputs]
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return [dict(zip(names, session.run(names, batch), strict=True)) for batch in wide]
    except Exception as error:  # onnxruntime has a class for each status, without a base of their own
        raise UserError(f"onnxruntime cannot run it ({error})", where, "export it again") from None
