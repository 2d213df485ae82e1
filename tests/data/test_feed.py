"""Batches ahead of the step: what happens where one is not ready."""

from __future__ import annotations

import itertools
import threading

from bert_jax.data.feed import ahead


def test_idle_is_called_before_an_item_is_waited_for() -> None:
    asked = threading.Event()

    def make(t: int) -> tuple[int, bool]:
        return t, asked.wait(60) if t else True

    assert list(ahead(map(make, range(3)), idle=asked.set)) == [(0, True), (1, True), (2, True)]


def test_closing_ends_the_thread_of_items_without_end() -> None:
    before = set(threading.enumerate())
    items = ahead(itertools.count())
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    (thread,) = set(threading.enumerate()) - before
    items.close()  # type: ignore[attr-defined]
    assert not thread.is_alive()
