"""Memory of steps on a CPU, in huge pages: hundreds of times fewer that the system has to clear."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

from bert_jax import flags

HUGE = "glibc.malloc.hugetlb=1"


def tunables(environment: Mapping[str, str], root: Path = Path("/")) -> str:
    """GLIBC_TUNABLES with huge pages added; empty where they would change nothing.

    XLA allocates what a step needs anew each time, and glibc gives blocks of that size back to the system as they are
    freed, which then has to clear each page again: up to a sixth of a step (benchmarks/RESULTS.md, "Memory of a
    step"). glibc reads the variable as a process starts, so it takes effect in the next one (glibc's manual, "Memory
    Allocation Tunables"). Nothing changes where JAX computes elsewhere, for another libc or one before 2.35, where the
    kernel gives huge pages to all or to none, and where the variable speaks of them already.
    """
    said = environment.get("GLIBC_TUNABLES", "")
    libc, version = platform.libc_ver()
    modes = root / "sys/kernel/mm/transparent_hugepage/enabled"
    if (
        flags.here(environment, root)[0] != "cpu"
        or libc != "glibc"
        or tuple(map(int, version.split(".")[:2])) < (2, 35)
        or "glibc.malloc.hugetlb" in said
        or not modes.exists()
        or "[madvise]" not in modes.read_text()
    ):
        return ""
    return ":".join(filter(None, (said, HUGE)))
