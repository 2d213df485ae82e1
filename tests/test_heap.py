"""Memory that a step has freed is the next one's, where JAX computes on the CPU."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import os, resource, sys
from bert_jax.heap import keep_freed
if sys.argv[1] == "keep":
    assert keep_freed(os.environ)
import jax
import jax.numpy as jnp

@jax.jit
def step(x):
    wide = jnp.tile(x, (1, 64))  # 64 MB
    return x + jnp.tanh(wide @ jnp.ones((16384, 1)))

x = jnp.ones((1024, 256))
for number in range(32):
    if number == 24:  # by then the heap is as large as it needs to be
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = jax.block_until_ready(step(x))
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun) / 8)
"""


def faults(what: str) -> float:
    """Pages a step that the system had to give out."""
    variables = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", STEPS, what]
    done = subprocess.run(command, env=variables | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_steps_touch_no_new_pages():
    assert faults("keep") < 100 < 1000 < faults("leave")
