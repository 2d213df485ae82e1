"""A directory with the network as StableHLO, which runs wherever JAX does, without bert_jax.

| file | what |
|---|---|
| `network.jax_export` | `jax.export` of the forward pass for CPU, CUDA, ROCm and TPU; rows and tokens are symbols |
| `network.safetensors` | its first argument: our paths, float32, layers stacked |
| `signature.json` | inputs, outputs, the most tokens a row, versions, calling convention |
| `run.py` | reads these three and runs them; needs jax, numpy, safetensors and flatbuffers |

    python run.py inputs.npz outputs.npz

Inputs are int32 [rows, tokens]: `input_ids`, `attention_mask` (0: padding) and, where the model has segments,
`token_type_ids`; outputs are float32 under transformers' names (see `artefacts.py`). Of what lies beyond a
table `run.py` tells in one sentence. The network alone refuses too long a row as well, but says only "Error refining
shapes" (jax 0.10), and of an id it says nothing.

JAX promises that a file of `jax.export` is read for six months by later versions, and by versions three weeks older
(https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees): keep what it was made from.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from bert_jax.convert import artefacts, run_stablehlo
from bert_jax.convert.artefacts import SHAPES
from bert_jax.convert.directory import write_json, write_tensors
from bert_jax.convert.loaded import Loaded
from bert_jax.convert.names import flatten, nested
from bert_jax.convert.proof import Proof
from bert_jax.errors import UserError

NETWORK, WEIGHTS, SIGNATURE, RUN = "network.jax_export", "network.safetensors", "signature.json", "run.py"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


# ------------------------------------------------------------------------------------------------------- writing


def write_stablehlo(directory: str | Path, loaded: Loaded) -> None:
    """Write the four files of the module's table into a directory, which is made if it is not there.

    Raises:
        UserError: one of the files exists, or they cannot be written.
    """
    directory = Path(directory)
    artefacts.refuse_existing(*(directory / name for name in (NETWORK, WEIGHTS, SIGNATURE, RUN)))
    exported = exported_network(loaded)
    tensors = {path: np.asarray(leaf, np.float32, order="C") for path, leaf in flatten(artefacts.parts(loaded))}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".stablehlo.") as folder:
            made = Path(folder)
            (made / NETWORK).write_bytes(exported.serialize())
            write_tensors(made / WEIGHTS, tensors)
            write_json(made / SIGNATURE, signature(loaded, exported))
            shutil.copyfile(run_stablehlo.__file__, made / RUN)
            for name in (RUN, WEIGHTS, NETWORK, SIGNATURE):  # what names the others comes last
                os.replace(made / name, directory / name)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})", str(directory), "make room or choose another place"
        ) from None


def exported_network(loaded: Loaded, *, all_layers: bool = False) -> export.Exported:
    """The forward pass of two arguments: the weights by path, and the inputs by name; it gives outputs by name."""
    config = loaded.config
    names = artefacts.output_names(loaded, all_layers=all_layers)

    def network(weights: dict[str, jax.Array], inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        found = artefacts.forward(config, nested(weights), inputs, all_layers=all_layers)
        return {name: found[quantity] for quantity, name in names.items()}

    shape = export.symbolic_shape("rows, tokens", constraints=[f"tokens <= {config.positions}"])
    weights = {path: jax.ShapeDtypeStruct(leaf.shape, np.float32) for path, leaf in flatten(artefacts.parts(loaded))}
    inputs = {name: jax.ShapeDtypeStruct(shape, np.int32) for name in artefacts.input_names(config)}
    return export.export(jax.jit(network), platforms=PLATFORMS)(weights, inputs)


def signature(loaded: Loaded, exported: export.Exported) -> dict[str, Any]:
    """What `signature.json` says."""
    config = loaded.config
    below = {"input_ids": config.vocab_size, "attention_mask": 2, "token_type_ids": config.segments}
    return {
        "schema": 1,
        "architecture": loaded.architecture,
        "network": NETWORK,
        "weights": WEIGHTS,
        "positions": config.positions,
        "inputs": {
            name: {"dtype": "int32", "shape": ["rows", "tokens"], "below": below[name]}
            for name in artefacts.input_names(config)
        },
        "outputs": {
            name: {"dtype": "float32", "shape": list(artefacts.shape_of(quantity, config, "rows", "tokens"))}
            for quantity, name in artefacts.output_names(loaded).items()
        },
        "platforms": list(exported.platforms),
        "calling_convention": exported.calling_convention_version,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    import jaxlib

    return {"jax": jax.__version__, "jaxlib": jaxlib.__version__}


# --------------------------------------------------------------------------------------------------------- proof

# A process that has jax, numpy and safetensors, and in which bert_jax and flax cannot be imported.
_ALONE = """
import sys
absent = ("bert_jax", "flax", "optax", "orbax")
assert not any(name in sys.modules for name in absent)
sys.modules.update(dict.fromkeys(absent))
directory, network, *paths = sys.argv[1:]
sys.path.insert(0, directory)
import run
load = run.load
if network:
    run.load = lambda directory: load(directory, network)
run.main(paths)
assert not any(module and name.split(".")[0] in absent for name, module in sys.modules.items())
"""


def prove(directory: str | Path, loaded: Loaded, shapes: Sequence[tuple[int, int]] = SHAPES) -> Proof:
    """Run `run.py` in a fresh process without bert_jax, on a CPU, and compare with our forward pass in this one.

    If they differ, the weights of the directory are run once more, through a network that gives out every layer's
    states, which tells the first layer that is wrong.

    Raises:
        UserError: the process failed; its last line is told.
    """
    directory = Path(directory)
    inputs = artefacts.batches(loaded, shapes)

    def layers() -> list[dict[str, np.ndarray]]:
        with tempfile.TemporaryDirectory() as folder:
            network = Path(folder) / NETWORK
            network.write_bytes(exported_network(loaded, all_layers=True).serialize())
            return _run_alone(directory, inputs, network)

    return artefacts.judged(loaded, inputs, _run_alone(directory, inputs), layers, _versions())


def _run_alone(
    directory: Path, inputs: Sequence[Mapping[str, np.ndarray]], network: Path | None = None
) -> list[dict[str, np.ndarray]]:
    """What the directory's `run.py` gives for these inputs, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, batch in enumerate(inputs):
            paths += [f"{folder}/inputs{number}.npz", f"{folder}/outputs{number}.npz"]
            np.savez(paths[-2], **batch)
        # -I: neither the working directory nor PYTHONPATH; -B: nothing is left beside run.py
        command = [sys.executable, "-I", "-B", "-c", _ALONE, str(directory.resolve()), str(network or ""), *paths]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise UserError(f"run.py failed ({said})", str(directory), "export it again")
        outputs = []
        for path in paths[1::2]:
            with np.load(path) as arrays:
                outputs.append(dict(arrays))
        return outputs
