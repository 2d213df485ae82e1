"""Host batches → global arrays on the mesh, some batches ahead of the step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

import jax
from jax.sharding import NamedSharding

from bert_jax.data.batching import HostBatch

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


def to_devices(rows: HostBatch, sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows as its part of global arrays."""
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in rows.items()}


def ahead(items: Iterable[T], depth: int = 2, idle: Callable[[], None] = lambda: None) -> Iterator[T]:
    """The items, made by one thread up to `depth` of them before they are asked for.

    An error in the thread is raised here, in its turn. Closing the iterator ends the thread. Where an item is not
    there when it is asked for, `idle` is called first: what there is to do meanwhile.
    """
    ready: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(maxsize=depth)  # one item, or how it ended
    closed = threading.Event()

    def put(found: tuple[list[T], BaseException | None]) -> None:
        while not closed.is_set():
            try:
                return ready.put(found, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(([item], None))
                if closed.is_set():
                    return
            put(([], None))
        except BaseException as error:
            put(([], error))

    thread = threading.Thread(target=work, name="feed", daemon=True)
    thread.start()
    try:
        while True:
            if ready.empty():
                idle()
            found, error = ready.get()
            if error is not None:
                raise error
            if not found:
                return
            yield found[0]
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
