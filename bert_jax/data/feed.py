"""Host batches → global arrays on the mesh, some batches ahead of the step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding

from bert_jax.data.batching import HostBatch

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


def to_devices(rows: HostBatch, sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows as its part of global arrays."""
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in rows.items()}


def ahead(
    make: Callable[[int], T], start: int, stop: int, depth: int = 2, idle: Callable[[], None] = lambda: None
) -> Iterator[T]:
    """make(start), …, make(stop − 1), computed by one thread up to `depth` items before they are asked for.

    An error in the thread is raised here, in its turn. Closing the iterator ends the thread. Where an item is not
    there when it is asked for, `idle` is called first: what there is to do meanwhile.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(item: tuple[Any, BaseException | None]) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        for t in range(start, stop):
            if closed.is_set():
                return
            try:
                item = (make(t), None)
            except BaseException as error:
                put((None, error))
                return
            put(item)

    thread = threading.Thread(target=work, name="feed", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            if ready.empty():
                idle()
            value, error = ready.get()
            if error is not None:
                raise error
            yield value  # type: ignore[misc]
    finally:
        closed.set()
        thread.join()


def noting(make: Callable[[int], T], kind: type[E], errors: list[E]) -> Callable[[int], T]:
    """`make`, which puts an error of this kind into `errors` before it raises it.

    Made `ahead`, an item that fails is known some items before it is asked for.
    """

    def noted(t: int) -> T:
        try:
            return make(t)
        except kind as error:
            errors.append(error)
            raise

    return noted


def until_error(items: Iterable[T], kind: type[BaseException]) -> Iterator[T]:
    """The items up to the one that raises an error of this kind."""
    with suppress(kind):
        yield from items
