"""Files of torch.save and safetensors as torch writes them, read without torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from tests.parity.foreign import torch, transformers  # first: skips where they are missing

from safetensors.torch import save_file  # isort: skip
from bert_jax.convert.safetensors_file import read_safetensors
from bert_jax.convert.torch_pickle import read_torch
from bert_jax.errors import UserError
from tests.convert.damage import every_answer_is_an_error_or_weights

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def some_tensors() -> dict:
    torch.manual_seed(0)
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    kinds += (torch.int8, torch.uint8, torch.bool)
    return {f"of.{str(kind).removeprefix('torch.')}": (torch.randn(3, 4) * 3).to(kind) for kind in kinds}


def as_numpy(tensor) -> np.ndarray:
    return (tensor.detach().float() if tensor.is_floating_point() else tensor).numpy()


def equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        value = as_numpy(tensor)
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@FORMS
def test_a_model_of_transformers_is_read_equal(tmp_path, zipped):
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    state = transformers.BertForPreTraining(config).state_dict()
    assert state._metadata  # an attribute on the OrderedDict, which the pickle sets
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    equal(read_torch(tmp_path / "pytorch_model.bin"), state)


@FORMS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_type_view_and_sharing_is_read_equal(tmp_path, zipped, protocol):
    base = torch.arange(24, dtype=torch.float32)
    odd = {
        "whole": base,
        "turned": base.view(4, 6).T,
        "part": base[5:17:3],
        "block": base.view(2, 3, 4)[1, 1:, ::2],
        "scalar": torch.tensor(2.5),
        "number": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "tied": base,
        "half of a storage": torch.randn(8).bfloat16()[3:],
        "expanded": torch.ones(1, 3).expand(1, 3),
    }
    state = some_tensors() | odd
    path = tmp_path / "m.bin"
    torch.save(state, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    equal(read_torch(path), state)


def test_bfloat16_and_halves_are_widened_exactly_in_both_forms(tmp_path):
    """Every finite value that the types have."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    state = {name: bits.view(kind) for name, kind in [("brain", torch.bfloat16), ("half", torch.float16)]}
    state = {name: tensor[torch.isfinite(tensor)] for name, tensor in state.items()}
    for zipped in (True, False):
        torch.save(state, tmp_path / "m.bin", _use_new_zipfile_serialization=zipped)
        equal(read_torch(tmp_path / "m.bin"), state)
    save_file(state, tmp_path / "m.safetensors")
    equal(read_safetensors(tmp_path / "m.safetensors"), state)


def test_safetensors_of_torch_are_read_equal(tmp_path):
    state = some_tensors()
    save_file(state, tmp_path / "m.safetensors", metadata={"format": "pt"})
    equal(read_safetensors(tmp_path / "m.safetensors"), state)


def test_shards_are_read_as_one(tmp_path):
    state = some_tensors()
    names = sorted(state)
    parts = {"pytorch_model-00001-of-00002.bin": names[:4], "pytorch_model-00002-of-00002.bin": names[4:]}
    for file, inside in parts.items():
        torch.save({name: state[name] for name in inside}, tmp_path / file)
    index = {"metadata": {}, "weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    equal(read_torch(tmp_path / "pytorch_model.bin.index.json"), state)


@FORMS
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"state_dict": {"a": torch.ones(2)}, "epoch": 3},
            "a training checkpoint, with the weights under 'state_dict'",
        ),
        ({"model": {"a": torch.ones(2)}}, "a training checkpoint, with the weights under 'model'"),
        ({"a": torch.ones(2), "args": argparse.Namespace(lr=1)}, "it asks for argparse.Namespace"),
        (torch.nn.Linear(2, 2), "it asks for torch.nn.modules.linear.Linear"),
        ({"a": torch.ones(2).to_sparse()}, "it asks for torch._utils._rebuild_sparse_tensor"),
        ({"a": torch.complex(torch.ones(2), torch.ones(2))}, "it asks for torch.ComplexFloatStorage"),
        ({"a": torch.ones(2), "epoch": 3}, "epoch is no tensor"),
        ([torch.ones(2)], "it holds no state dict"),
        ({"a": torch.tensor([1.0, float("nan"), float("-inf")])}, "2 values of 3 in a are NaN or infinite"),
        ({"a": torch.tensor([1e300], dtype=torch.float64)}, "1 value of 1 in a is NaN or infinite"),
    ],
)
def test_what_is_no_state_dict_is_told(tmp_path, zipped, content, message):
    torch.save(content, tmp_path / "m.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=message):
        read_torch(tmp_path / "m.bin")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # it still is in the files that people have
def test_torchscript_is_told(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / "m.bin"))
    with pytest.raises(UserError, match="this is TorchScript"):
        read_torch(tmp_path / "m.bin")


@FORMS
def test_flipped_bytes_and_cut_files_are_told_or_read(tmp_path: Path, zipped):
    state = {"a.weight": torch.arange(12, dtype=torch.float32).view(3, 4), "b": torch.ones(5).bfloat16()}
    torch.save(state, tmp_path / "m.bin", _use_new_zipfile_serialization=zipped)
    every_answer_is_an_error_or_weights(tmp_path / "m.bin", read_torch)
