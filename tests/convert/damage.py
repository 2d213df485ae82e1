"""Damaged copies of a small file, and what a reader may answer to them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bert_jax.errors import UserError


def every_answer_is_an_error_or_weights(path: Path, read: Callable[[Path], dict], times: int = 400) -> None:
    """Flips bytes and cuts the file: `read` raises a `UserError` of one line, or returns finite arrays.

    Most of these formats have no checksum, so a flipped byte may be another weight; it may be nothing else.
    """
    whole = path.read_bytes()
    right = read(path)
    rng = np.random.default_rng(0)
    damaged = [whole[:end] for end in {*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1}]
    for number in range(times):
        raw = bytearray(whole)
        # Half of them in the first part, where most of the structure lies.
        reach = len(raw) if number % 2 else min(len(raw), 400)
        for place in rng.integers(0, reach, rng.integers(1, 4)):
            raw[place] = int(rng.choice([0, 1, 255, rng.integers(256), raw[place] ^ 1 << int(rng.integers(8))]))
        damaged.append(bytes(raw))
    told = 0
    for raw in damaged:
        path.write_bytes(raw)
        try:
            found = read(path)
        except UserError as error:
            told += 1
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        assert sum(array.nbytes for array in found.values()) <= 4 * sum(array.nbytes for array in right.values())
        for name, array in found.items():
            assert type(name) is str and (array.dtype == np.float32 or array.dtype.kind in "biu")
            assert np.isfinite(array).all()
    path.write_bytes(whole)
    assert told > 50


@contextmanager
def little_memory() -> Iterator[None]:
    """Fails where more than 20 MB are taken at a time: a length in a file is a promise, not a reason to make room."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
