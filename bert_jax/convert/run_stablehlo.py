"""Runs the network of this directory with jax, numpy, safetensors and flatbuffers; nothing else is needed.

    python run.py INPUTS.npz OUTPUTS.npz [INPUTS.npz OUTPUTS.npz ...]

INPUTS.npz holds int32 arrays [rows, tokens] under the names of signature.json: `input_ids`, `attention_mask` (1 for a
token, 0 for padding) and, if the network has segments, `token_type_ids`. From Python:

    import sys; sys.path.insert(0, DIRECTORY)
    from run import load
    network = load(DIRECTORY)
    outputs = network(input_ids=..., attention_mask=..., token_type_ids=...)

Each new shape is compiled once. The network runs where JAX does: on a CPU, or a GPU or TPU if JAX is installed for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from safetensors.numpy import load_file


def load(directory: str | Path, network: str | Path | None = None) -> Callable[..., dict[str, jax.Array]]:
    """The network of a directory, as a function of its inputs by name.

    Args:
        network: another file of the same inputs and weights instead of the directory's own.

    Returns:
        A function that gives outputs by name and raises ValueError for inputs that signature.json does not allow.
    """
    directory = Path(directory)
    signature = json.loads((directory / "signature.json").read_text(encoding="utf-8"))
    path = Path(network) if network is not None else directory / signature["network"]
    call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    weights = {name: jax.numpy.asarray(array) for name, array in load_file(directory / signature["weights"]).items()}

    def run(**inputs: Any) -> dict[str, jax.Array]:
        return call(weights, checked(signature, inputs))

    return run


def checked(signature: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inputs as int32 arrays; raises ValueError where a name, a shape, a length or an id cannot be."""
    wanted = signature["inputs"]
    if inputs.keys() != wanted.keys():
        raise ValueError(f"the inputs are {', '.join(wanted)}, and not {', '.join(inputs)}")
    arrays = {name: np.asarray(inputs[name]) for name in wanted}
    shape = arrays["input_ids"].shape
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape != shape or not array.size or array.dtype.kind not in "iub":
            raise ValueError(
                f"{name} is {array.dtype}{list(array.shape)}: whole numbers [rows, tokens] are needed, all of one shape"
            )
        below = wanted[name]["below"]
        if array.min() < 0 or array.max() >= below:
            raise ValueError(f"{name} holds {array.min()} to {array.max()}, where 0 to {below - 1} can be")
    if shape[1] > signature["positions"]:
        raise ValueError(f"rows of {shape[1]} tokens, where the position table ends at {signature['positions']}")
    return {name: array.astype(np.int32) for name, array in arrays.items()}


def main(paths: list[str]) -> None:
    """Run the files of the command line, pair by pair."""
    if not paths or len(paths) % 2:
        sys.exit((__doc__ or "").strip())
    network = load(Path(__file__).parent)
    for source, target in zip(paths[::2], paths[1::2], strict=True):
        try:
            with np.load(source) as inputs:
                outputs = network(**inputs)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            sys.exit(f"{source}: {error}")
        np.savez(target, **{name: np.asarray(array) for name, array in outputs.items()})


if __name__ == "__main__":
    main(sys.argv[1:])
