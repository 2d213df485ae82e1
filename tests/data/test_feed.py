"""Batches ahead of the step: what happens where one is not ready."""

from __future__ import annotations

import threading

from bert_jax.data.feed import ahead


def test_idle_is_called_before_an_item_is_waited_for() -> None:
    asked = threading.Event()

    def make(t: int) -> tuple[int, bool]:
        return t, asked.wait(60) if t else True

    assert list(ahead(make, 0, 3, idle=asked.set)) == [(0, True), (1, True), (2, True)]
