"""A task's network: encoder, what is read of it, head, and the loss of each family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bert_jax.config import BertConfig, Execution
from bert_jax.errors import UserError, counted
from bert_jax.model import readout
from bert_jax.model.dropout import dropout
from bert_jax.model.heads import NEVER
from bert_jax.tasks.settings import ReadoutSettings, TaskSettings
from bert_jax.train.loss import Batch, LossFn, Metrics, Totals, cross_entropy

Params = dict[str, Any]
ENCODER = ("embeddings", "layers", "pooler")

# What each family's head reads where the recipe says nothing (Devlin et al. 2018; Peters et al. 2019 for the mix).
USUAL = {
    "tagging": ("mix", "first"),
    "intent_slots": ("last", "first"),
    "qa": ("last", "all"),
    "embedding": ("last", "mean"),
}


@dataclass(frozen=True)
class Network:
    """What is computed for a task; holds no weights.

    Attributes:
        outputs: name of each product of the head, and its size K.
        layers, tokens: what is read, never empty.
        mean, spread: of regression's numbers in training; the network learns them in units of `spread` around `mean`.
        temperature: of embedding.
    """

    config: BertConfig
    family: str
    outputs: tuple[tuple[str, int], ...]
    layers: str
    tokens: str
    spans: int = 1
    dropout: float = 0.1
    layer_dropout: float = 0.0
    mean: float = 0.0
    spread: float = 1.0
    temperature: float = 0.05
    execution: Execution = Execution()

    @property
    def size(self) -> int:
        """D': numbers that the head's products read."""
        return readout.width(self.config, self.layers, self.tokens, self.spans)


def make_network(
    config: BertConfig,
    task: TaskSettings,
    read: ReadoutSettings,
    labels: Mapping[str, tuple[str, ...]],
    *,
    spans: int = 1,
    mean: float = 0.0,
    spread: float = 1.0,
    temperature: float = 0.05,
    execution: Execution = Execution(),
) -> Network:
    """The network for these labels.

    Raises:
        UserError: the read-out cannot be of this family or of this encoder.
    """
    match task.family:
        case "single" | "pair":
            outputs = {"classifier": len(labels["label"])}
        case "multi_label":
            outputs = {"classifier": len(labels["labels"])}
        case "regression" | "choice":
            outputs = {"classifier": 1}
        case "tagging":
            outputs = {"classifier": len(labels["tags"])}
        case "qa":
            outputs = {"qa_outputs": 2}
        case "intent_slots":
            outputs = {"intent": len(labels["intent"]), "slots": len(labels["slots"])}
        case _:
            outputs = {}
    layers, tokens = usual = USUAL.get(task.family, ("last", "pooled"))
    layers = read.layers or layers
    tokens = read.tokens or ("first" if tokens == "pooled" and layers != "last" else tokens)
    if layers.removeprefix("-").isdigit() and not -config.layers - 1 <= int(layers) <= config.layers:
        raise UserError(
            f"there is no layer {layers}", "readout.layers", f"choose from 0 to {config.layers}, or -1 the last"
        )
    if layers == "cat4" and config.layers < 4:
        raise UserError(f"cat4 needs four layers, the encoder has {config.layers}", "readout.layers", 'choose "mix"')
    if tokens == "pooled" and layers != "last":
        raise UserError("the pooler reads the last layer", "readout.tokens", 'choose "first", or readout.layers="last"')
    if task.family == "embedding" and readout.joined(layers):
        raise UserError(
            f"vectors have no head that could learn {layers!r}", "readout.layers", 'choose "last" or "mean"'
        )
    if task.family == "qa" and read.tokens:
        raise UserError("a span is looked for among all tokens", "readout.tokens", "leave it out")
    if task.family in ("tagging", "intent_slots") and tokens in ("pooled", "span"):
        raise UserError(f"words are not read as {tokens!r}", "readout.tokens", f"choose {usual[1]!r} or mean")
    return Network(
        config,
        task.family,
        tuple(outputs.items()),
        layers,
        tokens,
        spans if tokens == "span" else 1,
        read.dropout,
        read.layer_dropout,
        mean,
        spread,
        temperature,
        execution,
    )


@partial(jax.jit, static_argnames=("net",))
def fresh_head(net: Network, key: Array) -> Params:
    """A head's first weights."""
    return readout.init_head(net.config, net.layers, dict(net.outputs), net.size, key)


# -------------------------------------------------------------------------------------------------------- forward


def features(net: Network, params: Params, batch: Batch, key: Array | None = None, shift: Array | None = None) -> Array:
    """What the head reads: float32[B, R, L', D'], of qa [B, T, L', D]; see `readout.features`."""
    return readout.features(
        net.config, params, batch, net.layers, net.tokens, key=key, execution=net.execution, shift=shift
    )


def outputs(
    net: Network, params: Params, batch: Batch, key: Array | None = None, shift: Array | None = None
) -> dict[str, Array]:
    """Name → float32[B, R, K]; of qa [B, T, 2]; of embedding `vectors` [B, R, D'] of length 1."""
    keys = (None, None, None) if key is None else jax.random.split(key, 3)
    read = batch["features"] if "features" in batch else features(net, params, batch, keys[0], shift)
    x = readout.join(params, read, net.layer_dropout, keys[1])
    if net.family == "embedding":
        return {"vectors": x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)}
    x = dropout(x, net.dropout, keys[2])
    heads = {name: readout.output(net.config, net.size, size) for name, size in net.outputs}
    return {name: head.apply({"params": params[name]}, x) for name, head in heads.items()}


class Term(NamedTuple):
    """Logits float32[..., K], labels [...] and weights [...]; of numbers K = 1 and labels are float32; of multi_label
    labels are float32[..., K], 1 where one holds."""

    logits: Array
    labels: Array
    weights: Array


def terms(net: Network, out: Mapping[str, Array], batch: Batch) -> dict[str, Term]:
    """What the outputs of a batch are compared with, by term of the loss."""

    def labelled(name: str, logits: Array) -> Term:
        return Term(logits, batch[f"{name}_labels"], batch[f"{name}_weights"])

    match net.family:
        case "single" | "pair":
            return {"label": labelled("label", out["classifier"])}
        case "multi_label":
            return {"labels": labelled("labels", out["classifier"])}
        case "tagging":
            return {"tags": labelled("tags", out["classifier"])}
        case "intent_slots":
            return {name: labelled(name, out[name]) for name in ("intent", "slots")}
        case "regression":
            found = labelled("score", out["classifier"])
            return {"score": found._replace(labels=(found.labels - net.mean) / net.spread)}
        case "choice":
            scores = out["classifier"].reshape(-1)[batch["groups"]]
            return {"choice": labelled("choice", jnp.where(batch["group_weights"] > 0, scores, NEVER))}
        case "qa":
            slots = jnp.arange(1, batch["start_labels"].shape[1] + 1)
            inside = batch["sequence_ids"][:, None, :] == slots[None, :, None]  # [B, R, T]
            logits = (jnp.where(inside, out["qa_outputs"][:, None, :, place], NEVER) for place in (0, 1))
            return {name: labelled(name, each) for name, each in zip(("start", "end"), logits, strict=True)}
    vectors = out["vectors"].reshape(-1, out["vectors"].shape[-1])
    pairs = vectors[batch["groups"]]  # [N, 2, D]
    there = batch["group_weights"][:, 0]
    cosines = jnp.einsum("nd,md->nm", pairs[:, 0], pairs[:, 1], precision="highest") / net.temperature
    return {"pairs": Term(jnp.where(there[None] > 0, cosines, NEVER), jnp.arange(len(there)), there)}


def make_weigh(net: Network) -> Callable[[Batch], Totals]:
    """What each term of the loss is divided by, from labels alone."""
    if net.family == "embedding":
        return lambda batch: {"pairs": jnp.sum(batch["group_weights"][:, 0])}
    end = "_weights"

    def weigh(batch: Batch) -> Totals:
        names = [name for name in batch if name.endswith(end) and name != "group_weights"]
        return {name.removesuffix(end): jnp.sum(batch[name]) for name in names}

    return weigh


def make_loss(net: Network, adversarial: float = 0.0, adversarial_step: float = 1e-3) -> LossFn:
    """Cross-entropy, of multi_label the mean over its labels, or squared differences of regression; each a mean over
    its weights, and terms are averaged.

    With `adversarial` above 0 and a key, that times the smoothness term of Jiang et al. 2020 (SMART, section 3.1) is
    added: how far the outputs move when the embeddings are moved by `adversarial_step` where that changes them most.
    """

    def loss(params: Params, batch: Batch, key: Array | None, totals: Totals) -> tuple[Array, Metrics]:
        found = terms(net, outputs(net, params, batch, key), batch)
        metrics: Metrics = {}
        scalar = jnp.zeros((), jnp.float32)
        for name, term in found.items():
            if net.family == "regression":
                each = jnp.square(term.logits[..., 0] - term.labels)
            elif net.family == "multi_label":
                each = jnp.mean(jax.nn.softplus(term.logits) - term.labels * term.logits, axis=-1)
                right = jnp.mean((term.logits > 0) == (term.labels > 0), axis=-1)
                metrics[f"{name}_accuracy"] = (jnp.sum(right * term.weights), jnp.sum(term.weights))
            else:
                each, correct = cross_entropy(term.logits, term.labels)
                metrics[f"{name}_accuracy"] = (jnp.sum(correct * term.weights), jnp.sum(term.weights))
            total = jnp.sum(each * term.weights)
            scalar += total / jnp.maximum(totals[name], 1.0) / len(found)
            metrics[f"{name}_loss"] = (total, jnp.sum(term.weights))
        if adversarial and key is not None:
            rough = smoothness(net, params, batch, key, adversarial_step, totals)
            scalar += adversarial * rough
            metrics["smoothness"] = (rough, jnp.ones(()))
        return scalar, metrics

    return loss


def smoothness(net: Network, params: Params, batch: Batch, key: Array, step: float, totals: Totals) -> Array:
    """How far outputs move under the worst small move of the embeddings, found by one step up from noise."""
    still = terms(net, outputs(net, params, batch), batch)
    shape = (*batch["input_ids"].shape, net.config.width)
    noise = step * 1e-2 * jax.random.normal(jax.random.fold_in(key, 1), shape)

    def distance(shift: Array, still: Mapping[str, Term]) -> Array:
        moved = terms(net, outputs(net, params, batch, shift=shift), batch)
        sums = []
        for name, term in moved.items():
            if net.family == "regression":
                apart = jnp.square(term.logits - still[name].logits)[..., 0]
            elif net.family == "multi_label":
                p, q = term.logits, still[name].logits
                apart = jnp.mean((jax.nn.sigmoid(p) - jax.nn.sigmoid(q)) * (p - q), axis=-1)
            else:
                p, q = (jax.nn.log_softmax(each) for each in (term.logits, still[name].logits))
                apart = jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), axis=-1)
            sums.append(jnp.sum(apart * term.weights) / jnp.maximum(totals[name], 1.0))
        return jnp.stack(sums).mean()

    uphill = jax.grad(distance)(noise, jax.lax.stop_gradient(still))
    largest = jnp.max(jnp.abs(uphill), axis=-1, keepdims=True)  # each token moves by the same
    shift = jax.lax.stop_gradient(step * uphill / jnp.maximum(largest, 1e-30))
    return distance(shift, still)


# ---------------------------------------------------------------------------------- which weights are trained, how


def divide(net: Network, params: Params, what: str, top: int | None) -> tuple[Params, Params]:
    """Parameters that stay, and those that are trained; `whole` puts them together again.

    Layers are divided along their leading axis. Whatever is not trained has no gradient, so nothing below it is
    computed backwards.
    """
    if what == "all":
        return {}, params
    still = {name: tree for name, tree in params.items() if name in ENCODER}
    trained = {name: tree for name, tree in params.items() if name not in ENCODER}
    if top is not None:
        kept = net.config.layers - top
        check_layers(net.config, top, f"top:{top} cannot be", "train.what", 'choose "all" or "head"')
        layers = still.pop("layers")
        still["layers"] = jax.tree.map(lambda leaf: leaf[:kept], layers)
        trained["layers"] = jax.tree.map(lambda leaf: leaf[kept:], layers)
        if "pooler" in still:
            trained["pooler"] = still.pop("pooler")
    return still, trained


def check_layers(config: BertConfig, count: int, what: str, where: str, remedy: str) -> None:
    """Raises `UserError` unless the encoder has so many layers of their own."""
    if count > config.layers or (count and config.groups):
        has = "layers share weights" if config.groups else f"the encoder has {counted(config.layers, 'layer')}"
        raise UserError(f"{what}, {has}", where, remedy)


def whole(still: Params, trained: Params) -> Params:
    """The parameters from the two parts that `divide` gave."""
    params = {**still, **trained}
    if "layers" in still and "layers" in trained:
        params["layers"] = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), still["layers"], trained["layers"])
    return params


def rate_scales(net: Network, trained: Params, layer_decay: float, head: float | Array) -> Params:
    """What the learning rate of each leaf is multiplied by: `layer_decay` to the number of layers above, plus one.

    Args:
        trained: as `divide` gave it.
        head: of what is no encoder.
    """
    layers = net.config.layers

    def scale(path: tuple[Any, ...], leaf: Array) -> Array:
        part = path[0].key
        if part == "embeddings":
            return jnp.asarray(layer_decay ** (layers + 1))
        if part == "layers":
            each = layers // net.config.distinct_layers
            above = jnp.arange(len(leaf))[::-1] * each
            return (layer_decay ** (above + 1.0)).reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.asarray(1.0 if part in ENCODER else head)

    return jax.tree_util.tree_map_with_path(scale, trained)


def mixed_out(trained: Params, first: Params, rate: float, key: Array) -> Params:
    """Mixout (Lee et al. 2020, equation 5): each weight of the encoder back at its first value with probability `rate`,
    scaled so that the mean stays."""

    def leaf(path: tuple[Any, ...], w: Array, u: Array) -> Array:
        if path[0].key not in ENCODER or path[-1].key in ("bias", "scale"):
            return w
        place = sum(ord(letter) << (number % 16) for number, letter in enumerate(jax.tree_util.keystr(path)))
        moved = dropout(w - u, rate, jax.random.fold_in(key, place))
        return u + moved

    return jax.tree_util.tree_map_with_path(leaf, trained, first)


def folded(net: Network, params: Params) -> tuple[Network, Params]:
    """The same outputs in the units of the labels: what leaves training."""
    if net.family != "regression" or (net.mean, net.spread) == (0.0, 1.0):
        return net, params
    head = params["classifier"]
    head = {"kernel": head["kernel"] * net.spread, "bias": head["bias"] * net.spread + net.mean}
    return replace(net, mean=0.0, spread=1.0), {**params, "classifier": head}
