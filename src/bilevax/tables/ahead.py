"""Items of which a thread makes the next one while one is in use."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, of which a thread makes the next one while one is in use."""
    with ThreadPoolExecutor(1, "bilevax-rows") as thread:
        make = iter(items)
        job = thread.submit(next, make, None)
        while (item := job.result()) is not None:
            job = thread.submit(next, make, None)
            yield item
