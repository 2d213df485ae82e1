"""What a trace of `jax.profiler` says about the device's time: by kind of kernel, and the longest ones."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Kernel(NamedTuple):
    """One execution: its name, the XLA operation it comes from ("" if the trace does not say), nanoseconds."""

    name: str
    operation: str
    start: float
    length: float


# The first that fits. Kernels of libraries tell by their own name, XLA's by that of their operation.
KINDS = (
    ("attention", re.compile(r"fmha|sdpa|flash|mha_|splash|attention|fort_native", re.I)),
    ("products", re.compile(r"gemm|nvjet|cublas|xmma|cutlass|wgmma|dot|convolution|matmul", re.I)),
    ("copies", re.compile(r"memcpy|memset|copy|transpose|concatenate|slice", re.I)),
    ("scatter and gather", re.compile(r"scatter|gather|sort", re.I)),
    ("fusions with a sum", re.compile(r"reduce|softmax|norm", re.I)),
    (
        "other fusions",
        re.compile(r"fusion|wrapped|loop|convert|broadcast|select|add|multiply|rng|tanh|exp", re.I),
    ),
)


def kind(kernel: Kernel) -> str:
    for name, pattern in KINDS:
        if pattern.search(kernel.name) or pattern.search(kernel.operation):
            return name
    return "other"


def kernel_times(trace: Path) -> list[Kernel]:
    """All kernels of a trace's devices; on a CPU the operations that XLA ran."""
    from jax.profiler import ProfileData

    planes = list(ProfileData.from_file(str(trace)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    found = []
    for plane in devices or planes:
        for line in plane.lines:
            # streams of a GPU, operations of a TPU; other lines of a device say the same again, grouped
            if devices and not line.name.startswith(("Stream", "XLA Ops")):
                continue
            if devices and line.name == "XLA Ops" and any(other.name.startswith("Stream") for other in plane.lines):
                continue
            for event in line.events:
                operation = _operation(event)
                if devices or operation:
                    found.append(Kernel(event.name, operation, float(event.start_ns), float(event.duration_ns)))
    return found


def _operation(event: Any) -> str:
    return next((str(value) for key, value in event.stats if key == "hlo_op"), "")


def summarise(kernels: Iterable[Kernel], steps: int) -> dict[str, Any]:
    """Milliseconds a step by kind, in idle gaps between the first and the last kernel, and of the ten longest."""
    kernels = sorted(kernels, key=lambda kernel: kernel.start)
    by_kind: dict[str, float] = defaultdict(float)
    by_name: dict[tuple[str, str], list[float]] = defaultdict(list)
    busy = end = 0.0
    for kernel in kernels:
        by_kind[kind(kernel)] += kernel.length
        by_name[kernel.name, kernel.operation].append(kernel.length)
        busy += max(kernel.start + kernel.length - max(end, kernel.start), 0.0)
        end = max(end, kernel.start + kernel.length)
    span = end - kernels[0].start if kernels else 0.0

    def ms(nanoseconds: float) -> float:
        return round(nanoseconds / steps / 1e6, 4)

    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:10]
    return {
        "ms_by_kind": {name: ms(total) for name, total in sorted(by_kind.items(), key=lambda item: -item[1])},
        "busy_ms": ms(busy),
        "idle_ms": ms(span - busy),
        "longest": [
            {"kernel": name[:80], "operation": operation[:60], "ms": ms(sum(times)), "times": len(times) // steps}
            for (name, operation), times in longest
        ],
    }
