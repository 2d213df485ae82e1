"""Memory of steps on a CPU: what one step has freed, the next one takes again."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Mapping

from bert_jax import flags

# mallopt(3), with the numbers of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed(environment: Mapping[str, str]) -> bool:
    """Have this process keep memory that is freed, if JAX computes on the CPU and glibc gives memory out.

    XLA allocates what a step needs anew each time. glibc gives blocks of that size back to the system as they are
    freed, which then has to clear each page again: an eighth of a step's time (benchmarks/RESULTS.md, "Memory of a
    step"). For commands, since it is the whole process that then stays at its largest size.

    Returns:
        Whether it does so now.
    """
    if flags.here(environment)[0] != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # never trim the heap; no blocks outside it; and one heap, since those of threads go back as they empty
    return all([mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_MMAP_MAX, 0), mallopt(M_ARENA_MAX, 1)])
