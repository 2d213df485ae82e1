"""What to tell XLA before it starts: one table, each flag with its reason. Standard library only.

XLA reads its flags once, when JAX first asks for devices, and a flag that it does not know aborts the process. So the
table is keyed by jaxlib's version, the command line calls `prepare` before anything touches a device, and a test
starts a process for each preset. What the user has set already is never set again.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from bert_jax.config import TrainSettings

TPUS = ("v4", "v5e", "v5p", "v6e")
PLATFORMS = ("cpu", "gpu", *TPUS)


@dataclass(frozen=True)
class Flag:
    """One flag of a preset, or an environment variable where the name has no dashes.

    `platforms` are those it is for. It holds for jaxlib from `since` on and before `until`; with `several`, only
    where more than one device trains; with `deterministic`, only where the recipe asks for that.
    """

    name: str
    value: str
    platforms: tuple[str, ...]
    reason: str
    since: tuple[int, ...] = (0, 10)
    until: tuple[int, ...] = (99,)
    several: bool = False
    deterministic: bool = False

    @property
    def text(self) -> str:
        return f"{self.name}={self.value}"

    @property
    def variable(self) -> str:
        """The environment variable that takes it. libtpu has a parser of its own, whose flags XLA's refuses."""
        if not self.name.startswith("--"):
            return self.name
        return "LIBTPU_INIT_ARGS" if self.platforms[0] in TPUS else "XLA_FLAGS"


# One GPU and one CPU need no flag to be fast; defaults were read out of jaxlib 0.10.2, 0.11.2 and 0.12.0. Flags of
# several GPUs: JAX-Toolbox, docs/GPU_performance.md. TPU: openxla.org/xla/flags_guidance and MaxText,
# benchmarks/xla_flags_library.py; they cannot be parsed without a TPU, so no test holds them.
_COMBINE = "128 MiB a message instead of 30: BERT's gradients are many small arrays, each call has a fixed price"
_PIPELINE = "start it for one layer while the products of the next one run, also across iterations of a loop"
_TPU_GATHER = "fsdp: gather the next layer's parameters behind this one's products"
TABLE = (
    Flag(
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
        "0.92",
        ("gpu",),
        "JAX takes 0.75 of a GPU's memory at its start and leaves the rest to others; here nobody else is there",
    ),
    Flag(
        "--xla_gpu_enable_dynamic_slice_fusion",
        "true",
        ("gpu",),
        "a looped layer's product writes straight into the stack of what the backward pass needs; on since 0.11",
        until=(0, 11),
    ),
    Flag(
        "--xla_gpu_exclude_nondeterministic_ops",
        "true",
        ("gpu",),
        "scatters sort instead of adding in whatever order threads come, and cuDNN's attention takes the backward"
        " pass that adds in one order; autotuning stays, its results lie in the run directory",
        deterministic=True,
    ),
    Flag(
        "--xla_gpu_enable_latency_hiding_scheduler",
        "true",
        ("gpu",),
        "order the step so that collectives run behind products; off by default on GPU",
        several=True,
    ),
    Flag("--xla_gpu_all_reduce_combine_threshold_bytes", "134217728", ("gpu",), _COMBINE, several=True),
    Flag("--xla_gpu_all_gather_combine_threshold_bytes", "134217728", ("gpu",), _COMBINE, several=True),
    Flag("--xla_gpu_reduce_scatter_combine_threshold_bytes", "134217728", ("gpu",), _COMBINE, several=True),
    Flag("--xla_gpu_enable_pipelined_all_reduce", "true", ("gpu",), _PIPELINE, until=(0, 11), several=True),
    Flag("--xla_gpu_enable_pipelined_all_gather", "true", ("gpu",), _PIPELINE, until=(0, 11), several=True),
    Flag("--xla_gpu_enable_pipelined_reduce_scatter", "true", ("gpu",), _PIPELINE, until=(0, 11), several=True),
    Flag("--xla_gpu_pipeline_all_reduce", "on", ("gpu",), _PIPELINE, since=(0, 11), several=True),
    Flag("--xla_gpu_pipeline_all_gather", "on", ("gpu",), _PIPELINE, since=(0, 11), several=True),
    Flag("--xla_gpu_pipeline_reduce_scatter", "on", ("gpu",), _PIPELINE, since=(0, 11), several=True),
    Flag(
        "--xla_tpu_scoped_vmem_limit_kib",
        "98304",
        ("v6e",),
        "larger fusions than the default 16 MiB of vector memory allow; this chip waits for memory first",
    ),
    Flag(
        "--xla_tpu_enable_async_collective_fusion_fuse_all_reduce",
        "true",
        ("v5e",),
        "data parallel: the gradients' all-reduce runs inside the products that follow it",
        several=True,
    ),
    Flag("--xla_tpu_enable_async_collective_fusion_fuse_all_gather", "true", ("v5p", "v6e"), _TPU_GATHER, several=True),
    Flag("--xla_tpu_enable_async_collective_fusion_multiple_steps", "true", ("v5p", "v6e"), _TPU_GATHER, several=True),
    Flag("--xla_tpu_overlap_compute_collective_tc", "true", ("v5p", "v6e"), _TPU_GATHER, several=True),
    Flag("--xla_enable_async_all_gather", "true", ("v4", "v5p", "v6e"), _TPU_GATHER, several=True),
)


def preset(platform: str, jaxlib: str, devices: int = 1, deterministic: bool = False) -> tuple[Flag, ...]:
    """The rows of the table for a platform (of `PLATFORMS`), a version of jaxlib and so many devices in all.

    Example:
        >>> [flag.name for flag in preset("gpu", "0.12.0.1")]
        ['XLA_PYTHON_CLIENT_MEM_FRACTION']
    """
    version = tuple(int(part) for part in re.findall(r"\d+", jaxlib)[:3])
    return tuple(
        flag
        for flag in TABLE
        if platform in flag.platforms
        and flag.since <= version < flag.until
        and (devices > 1 or not flag.several)
        and (deterministic or not flag.deterministic)
    )


def flags_for(platform: str, jaxlib: str, devices: int = 1, deterministic: bool = False) -> str:
    """The flags of `preset` as the text for `XLA_FLAGS`, or for `LIBTPU_INIT_ARGS` on a TPU."""
    return " ".join(
        flag.text for flag in preset(platform, jaxlib, devices, deterministic) if flag.name.startswith("--")
    )


def prepare(environment: MutableMapping[str, str], settings: TrainSettings, several: bool = False) -> str:
    """Add the preset of this machine to the environment; call it before anything asks JAX for devices.

    Flags and variables that are there already stay as the user set them. With `train.xla_preset = "none"` nothing is
    added but what `train.deterministic` needs. `several` says that other processes take part.

    Returns:
        A sentence on what was added, empty if nothing was. Should libtpu or XLA refuse a flag, it is the last thing
        that is read, so it names the way out.
    """
    platform, devices = here(environment)
    rows = preset(platform, importlib.metadata.version("jaxlib"), devices + several, settings.deterministic)
    added = []
    for flag in rows:
        if settings.xla_preset == "none" and not flag.deterministic:
            continue
        before = environment.get(flag.variable, "")
        if flag.name == flag.variable:
            if not before:
                environment[flag.name] = flag.value
                added.append(flag.text)
        elif not re.search(rf"(^|\s){re.escape(flag.name)}(=|\s|$)", before):
            environment[flag.variable] = f"{before} {flag.text}".strip()
            added.append(flag.text)
    if not added:
        return ""
    return f"XLA preset for {platform}: {' '.join(added)} (train.xla_preset=none leaves it out)"


def recorded(environment: Mapping[str, str]) -> dict[str, str]:
    """What the environment tells XLA, for a run's provenance."""
    names = {"XLA_FLAGS", "LIBTPU_INIT_ARGS"} | {flag.variable for flag in TABLE}
    return {name: environment[name] for name in sorted(names) if environment.get(name)}


def price(platform: str) -> str:
    """One line on what `train.deterministic` changes here and what it costs."""
    if platform == "gpu":
        return (
            "deterministic: scatters and attention's backward pass add in one order, which takes longer;"
            " benchmarks/h200.py measures by how much on this device, benchmarks/RESULTS.md has what it found"
        )
    return f"deterministic: a {platform} adds in one order as it is, so this changes nothing and costs nothing"


# --------------------------------------------------------------------------------------------------- this machine

# As JAX itself finds TPUs (jax/_src/hardware_utils.py): Google's PCI vendor number, then the chip's.
_GOOGLE = "0x1ae0"
_CHIPS = {"0x005e": "v4", "0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e"}


def here(environment: Mapping[str, str], root: Path = Path("/")) -> tuple[str, int]:
    """Platform and devices of this host, without asking JAX: to ask it is to start XLA.

    `JAX_PLATFORMS` decides where it is set; an accelerator counts only if JAX's plug-in for it is installed.
    """
    asked = environment.get("JAX_PLATFORMS", "").split(",")[0].lower()
    chips = [
        _CHIPS.get((vendor.parent / "device").read_text().strip())
        for vendor in sorted((root / "sys/bus/pci/devices").glob("*/vendor"))
        if vendor.read_text().strip() == _GOOGLE
    ]
    known = [chip for chip in chips if chip]
    if asked in ("", "tpu") and known and _installed("libtpu"):
        return known[0], len(known)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        gpus = len([node for node in (root / "dev").glob("nvidia*") if node.name[6:].isdigit()])
    else:
        gpus = len([place for place in visible.split(",") if place.strip() not in ("", "-1")])
    if asked in ("", "gpu", "cuda") and gpus and (_installed("jax-cuda12-plugin") or _installed("jax-cuda13-plugin")):
        return "gpu", gpus
    return "cpu", 1


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
