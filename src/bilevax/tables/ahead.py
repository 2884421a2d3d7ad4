"""Items of which a thread makes the next one while one is in use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

THREADS = 2
"""That compute beside the one that reads; what they find is the same with any number."""


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, of which a thread makes the next one while one is in use."""
    with ThreadPoolExecutor(1, "bilevax-rows") as thread:
        make = iter(items)
        job = thread.submit(next, make, None)
        while (item := job.result()) is not None:
            job = thread.submit(next, make, None)
            yield item


def made_of(items: Iterable[T], make: Callable[[T], U], threads: int = THREADS) -> Iterator[U]:
    """What is made of each item, in their order, by threads that are at most so many items ahead."""
    with ThreadPoolExecutor(threads, "bilevax-rows") as pool:
        jobs: deque[Future[U]] = deque()
        for item in items:
            jobs.append(pool.submit(make, item))
            if len(jobs) > threads:
                yield jobs.popleft().result()
        while jobs:
            yield jobs.popleft().result()
