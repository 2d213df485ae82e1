"""The same numbers as transformers' BertForPreTraining, with weights at which a wrong formula shows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.foreign import torch, transformers  # first: skips where they are missing

from benchmarks.parity_training import torch_batch, torch_twin  # isort: skip
from bert_jax.config import PRESETS, BertConfig, Execution, preset
from bert_jax.convert.families import config_to_json
from bert_jax.convert.names import HUGGING_FACE, from_foreign
from bert_jax.model import bert
from bert_jax.train.loss import make_pretraining_loss, weigh
from tests.conftest import random_batch
from tests.readable import readable_config, readable_params

CONFIGS = {"readable": readable_config()} | {
    size: preset(size, 211, positions=40) for size in ("tiny", "mini", "small")
}


def loud(config: BertConfig) -> dict:
    """Weights that hide nothing: at the initial std of 0.02 a wrong GELU moves the output by less than the
    bound.

    Every product keeps the size of what it is given (std 1/√fan-in, 0.2 at the readable size), and norms are
    off 1 and 0. With 0.2 throughout, attention at widths of 256 and 512 is so steep that torch in float32 is
    8e-5 and 3e-4 away from torch in float64: no implementation could be within 1e-5 of another.
    """

    def rescale(path: tuple, leaf: np.ndarray) -> jax.Array:
        name = "/".join(part.key for part in path)
        fan_in = config.feed_forward if "mlp/down" in name else config.width
        product = name.endswith("kernel") or name in (
            "embeddings/word",
            "embeddings/position",
            "embeddings/segment",
        )
        return jnp.asarray(leaf / 0.2 / np.float32(np.sqrt(fan_in)) if product else leaf)

    return jax.tree_util.tree_map_with_path(rescale, readable_params(config))


def a_batch(config: BertConfig, seed: int = 0) -> dict[str, jax.Array]:
    """Four rows of up to 24 tokens: padding, both segments, predictions at places of their own."""
    batch = random_batch(config, rows=4, seed=seed, length=24, predictions=4)
    rng = np.random.default_rng(seed)
    places = np.sort([rng.choice(np.arange(1, 12), 4, replace=False) for _ in range(4)], axis=1)
    return batch | {"mlm_positions": jnp.asarray(places, jnp.int32)}


def theirs(config: BertConfig, params: dict, batch: dict) -> tuple:
    model = torch_twin(config, params)
    return model, model.eval()(**torch_batch(batch), output_hidden_states=True)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("size", CONFIGS)
def test_states_of_every_layer_logits_and_loss_are_within_1e5(size: str, activation: str) -> None:
    config = replace(CONFIGS[size], activation=activation)
    params = loud(config)
    batch = a_batch(config)
    _, outputs = theirs(config, params, batch)
    layers = jax.jit(lambda p, b: bert.encode(config, p, b, all_layers=True).layers)(params, batch)
    assert layers is not None and len(outputs.hidden_states) == len(layers) == config.layers + 1
    real = np.asarray(batch["sequence_ids"]) > 0
    for number, states in enumerate(outputs.hidden_states):
        apart = np.abs(np.asarray(layers[number]) - states.detach().numpy())[real]
        assert apart.max() < 1e-5, f"layer {number}"
    out = jax.jit(lambda p, b: bert.apply(config, p, b))(params, batch)
    logits = outputs.prediction_logits.detach().numpy()
    places = np.asarray(batch["mlm_positions"])
    close(out.mlm_logits, np.take_along_axis(logits, places[:, :, None], axis=1), 1e-5)
    close(out.nsp_logits[:, 0], outputs.seq_relationship_logits.detach().numpy(), 1e-5)
    assert np.abs(logits).max() > 1 and np.abs(out.nsp_logits).max() > 0.1  # not blind
    loss, _ = make_pretraining_loss(config, Execution())(params, batch, None, weigh(batch))
    close(loss, outputs.loss.detach().numpy(), 1e-5)


def test_these_weights_would_show_the_other_gelu() -> None:
    config = CONFIGS["tiny"]
    params, batch = loud(config), a_batch(config)
    states = [bert.encode(replace(config, activation=a), params, batch).hidden for a in ("gelu", "gelu_tanh")]
    assert np.abs(states[0] - states[1]).max() > 1e-4


@pytest.mark.parametrize("size", CONFIGS)
def test_gradients_of_every_parameter_are_within_1e4(size: str) -> None:
    config = replace(CONFIGS[size], hidden_dropout=0.0, attention_dropout=0.0)
    params = loud(config)
    batch = a_batch(config, seed=1)
    model, outputs = theirs(config, params, batch)
    outputs.loss.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if "decoder" not in name}
    expected = from_foreign(HUGGING_FACE, config, gradients, "torch")
    loss = make_pretraining_loss(config, Execution())
    found = jax.jit(jax.grad(lambda p, b: loss(p, b, None, weigh(b))[0]))(params, batch)
    jax.tree.map(partial(close, atol=1e-4), found, expected)
    assert all(np.abs(leaf).max() > 1e-3 for path, leaf in paths(expected) if "key/bias" not in path)


def test_rows_that_hardly_vary_find_the_epsilon_and_the_way_the_variance_is_taken() -> None:
    config = CONFIGS["tiny"]
    params = loud(config)
    batch = a_batch(config)
    # a variance of 2e-12 beside the epsilon of 1e-12; then one of 2e-3 around a middle of 1, of which
    # E[x²]−E[x]² keeps four digits
    for spread, middle, atol in [(1e-5, 0.0, 1e-5), (3e-1, 1.0, 2e-5)]:
        tables = {name: spread * params["embeddings"][name] for name in ("word", "position", "segment")}
        tables["word"] = tables["word"] + np.float32(middle)
        quiet = {**params, "embeddings": {**params["embeddings"], **tables}}
        _, outputs = theirs(config, quiet, batch)
        encoded = jax.jit(lambda p, b: bert.encode(config, p, b, all_layers=True).layers)(quiet, batch)
        assert encoded is not None
        real = np.asarray(batch["sequence_ids"]) > 0
        close(encoded[0][real], outputs.hidden_states[0].detach().numpy()[real], atol)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_as_many_parameters_as_transformers(name: str) -> None:
    config = preset(name, 30522)
    ours = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: bert.init(config, jax.random.key(0)))))
    with torch.device("meta"):
        tree = config_to_json(config, "BertForPreTraining", 0)
        model = transformers.BertForPreTraining(transformers.BertConfig(**tree))
    assert ours == sum(p.numel() for p in model.parameters())


def close(found: object, expected: object, atol: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def paths(tree: dict) -> list[tuple[str, np.ndarray]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [("/".join(part.key for part in path), leaf) for path, leaf in leaves]
