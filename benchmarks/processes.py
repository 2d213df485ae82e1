"""What runs on this machine (Linux), for the benchmarks that watch or kill processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def processes() -> Iterator[tuple[int, str, int, int]]:
    """(number, state, process group, session) of every process, as /proc/NUMBER/stat has them."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        yield int(name), fields[0], int(fields[2]), int(fields[3])
