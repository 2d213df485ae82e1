"""Memory of steps in huge pages, where JAX computes on the CPU."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax import heap

STEPS = """
import resource
import jax
import jax.numpy as jnp

@jax.jit
def step(x):
    wide = jnp.tile(x, (1, 64))  # 64 MB
    return x + jnp.tanh(wide @ jnp.ones((16384, 1)))

x = jnp.ones((1024, 256))
for number in range(16):
    if number == 8:
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = jax.block_until_ready(step(x))
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun) / 8)
"""

# a verb that tells what it was started with, and as which process
VERB = """
import os, sys, types
from bert_jax import cli
verb = types.ModuleType("bert_jax.told")
verb.add_arguments = lambda parser: parser.add_argument("word")
verb.run = lambda args: print(args.word, os.getpid(), os.environ.get("GLIBC_TUNABLES", ""))
sys.modules["bert_jax.told"] = verb
cli.VERBS |= dict.fromkeys(("pretrain", "plan"), ("told", ""))
cli.main()
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")


def system(root: Path, modes: str) -> Path:
    """A root directory that says how the kernel gives out huge pages."""
    path = root / "sys/kernel/mm/transparent_hugepage/enabled"
    path.parent.mkdir(parents=True)
    path.write_text(modes)
    return root


@glibc
def test_huge_pages_are_asked_for_where_that_changes_something(tmp_path: Path) -> None:
    madvise = system(tmp_path / "madvise", "always [madvise] never\n")
    assert heap.tunables({"JAX_PLATFORMS": "cpu"}, madvise) == heap.HUGE
    others = "glibc.malloc.tcache_count=0"
    assert heap.tunables({"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": others}, madvise) == f"{others}:{heap.HUGE}"
    # what is asked for already is not asked for again: the process that begins once more goes on
    assert not heap.tunables({"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": heap.HUGE}, madvise)
    assert not heap.tunables({"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, madvise)
    for number, modes in enumerate(("[always] madvise never\n", "always madvise [never]\n")):
        assert not heap.tunables({"JAX_PLATFORMS": "cpu"}, system(tmp_path / str(number), modes))
    assert not heap.tunables({"JAX_PLATFORMS": "cpu"}, tmp_path)  # another kernel
    (madvise / "dev").mkdir()
    (madvise / "dev/nvidia0").touch()
    assert heap.tunables({"JAX_PLATFORMS": "cpu"}, madvise)  # a GPU that is not asked for


@pytest.mark.skipif(not heap.tunables({"JAX_PLATFORMS": "cpu"}), reason="no huge pages to be had for the asking")
def test_steps_in_huge_pages_touch_few() -> None:
    few, many = (float(python(STEPS, tunables).stdout) for tunables in (heap.tunables({"JAX_PLATFORMS": "cpu"}), ""))
    assert few < many / 10


@pytest.mark.skipif(not heap.tunables({"JAX_PLATFORMS": "cpu"}), reason="no huge pages to be had for the asking")
def test_a_verb_that_trains_begins_once_more_with_them() -> None:
    begun = subprocess.Popen(
        [sys.executable, "-c", VERB, "pretrain", "a word"], stdout=subprocess.PIPE, text=True, env=environment("")
    )
    told, _ = begun.communicate()
    assert told == f"a word {begun.pid} {heap.HUGE}\n"  # the same process, for who waits for it or kills it
    assert python(VERB, "", "plan", "other").stdout.startswith("other ")
    assert heap.HUGE not in python(VERB, "", "plan", "other").stdout


def environment(tunables: str) -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": tunables}


def python(code: str, tunables: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment(tunables), capture_output=True, text=True, check=True)
