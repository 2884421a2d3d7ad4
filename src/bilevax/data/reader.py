"""Rows that a thread reads while a compiled program runs."""

import itertools
import threading
import weakref
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeAlias, cast

import jax
import numpy as np
from jax import Array

from bilevax.core.errors import DataError, in_a_line
from bilevax.core.trees import PyTree, map_named
from bilevax.data.announced import Announced, Chunk, Place
from bilevax.data.array_rows import ArrayRows, require_finite
from bilevax.data.arrays import check_numbers, to_default_precision
from bilevax.data.data_sets import DataSetRows
from bilevax.data.readings import Numbers, Reading, Rows, share, these, write

IDLE = 1.0
"""Seconds without a request after which the thread ends."""

LOOKED_AT, OF_ARRAYS = 8, 1000
"""Rows by which a table is known again: of a loader, and of arrays."""

AHEAD = 2
"""Pieces of a chunk that are read while one is in use: what a thread waits for the other does not."""

USED = 4
"""Readings that are kept once they were used, as a step may come back to them."""

Key: TypeAlias = bytes | range | Place


class Loader(Protocol):
    """Rows by number, wherever they are."""

    def __len__(self) -> int:
        """Number of rows, n."""

    def rows(self, numbers: np.ndarray, /) -> PyTree:
        """These rows, a pytree of numpy arrays with leading axis ``len(numbers)``; numbers may repeat, in any order."""


_looking = ThreadPoolExecutor(1, "bilevax-look")
"""Looks for NaN, while loaders read on."""

_readers: dict[int, list["weakref.ref[Reader]"]] = {}
"""Readers that are in use, by the numbers that programs know their tables by."""

_numbers = itertools.count(1)


def number_of(reader: "Reader") -> int:
    """The number that programs know a reader's table by: of the same table, read by another that is in use, its own."""
    for number, others in list(_readers.items()):
        alive = [other for one in others if (other := one()) is not None]
        if not alive:
            del _readers[number]
        elif same := [other for other in alive if other.known == reader.known]:
            _readers[number] = [weakref.ref(other) for other in (*alive, reader)]
            reader.mapped = same[0].mapped
            return number
    number = next(_numbers)
    _readers[number] = [weakref.ref(reader)]
    return number


def reader_of(number: int) -> "Reader":
    """The newest reader of a table that is still in use."""
    for known in reversed(_readers.get(number, [])):
        if (reader := known()) is not None:
            return reader
    raise DataError("a program asks for rows of a bx.Stream that is gone; keep it until the result is there")


class Reader:
    """Rows by number, the next ones read on a thread while those before are in use.

    What is read ahead is known by its numbers: that it was read is never needed, only waited for. Of arrays in files
    that JAX can read where they lie nothing is handed over but numbers: their rows were looked at, so that they are in
    memory, finite, and not behind the end of a file.

    Args:
        data: a :class:`Loader`; or a pytree of arrays or of paths of ``.npy`` files.
        seed: of a shuffle of the numbers of its rows; None: as they are.
        prefetch_bytes: what is read ahead takes at most.
        timeout: seconds that a read may take.

    Attributes:
        mapped: of each leaf the array where it lies, or None.
    """

    def __init__(self, data: PyTree, seed: int | None, prefetch_bytes: int, timeout: float) -> None:
        again = data if isinstance(data, Reader) else None
        data = again.loader if again else data
        self.loader: Loader = data if callable(getattr(data, "rows", None)) else ArrayRows(data)
        # rows of a group are read together
        self.groups: np.ndarray | None = getattr(self.loader, "groups", None)
        self._most, self._timeout = prefetch_bytes, timeout
        self._own = isinstance(self.loader, ArrayRows | DataSetRows)
        self.mapped: tuple[Array | None, ...] = self.loader.mapped if isinstance(self.loader, ArrayRows) else ()
        self.name = "data" if self._own else f"{type(data).__name__}.rows"
        self._ready = threading.Condition()
        self._jobs: deque[tuple[Numbers, Future[PyTree], Callable[[Numbers], PyTree]]] = deque()
        self._ahead: OrderedDict[Key, Reading] = OrderedDict()
        self._announced = Announced()
        self._thread: threading.Thread | None = None
        self._span = range(0)
        self._kinds: list[tuple[tuple[int, ...], np.dtype]] = []
        self._unseen: list[str] = []
        self.length = self._counted()
        self.order: np.ndarray | None = again.order if again else None
        if seed is not None:
            self.order = np.random.default_rng(seed).permutation(self.length).astype(np.int32)
        self._begin()

    def _counted(self) -> int:
        try:
            n = len(self.loader)
        except Exception as e:
            raise DataError(
                f"len of {type(self.loader).__name__}, the number of its rows, raised {in_a_line(e)}"
            ) from e
        if not 0 < n < 2**31:
            raise DataError(f"{self.name} has {n} rows; a stream has 1 to 2^31 - 1")
        return n

    def _begin(self) -> None:
        """Structure, shapes and dtypes, and a number by which the table is known, from a few rows."""
        most = self.length if self.groups is None else int(self.groups[0])
        looked_at = OF_ARRAYS if isinstance(self.loader, ArrayRows) else LOOKED_AT
        few = np.unique(np.linspace(0, most - 1, looked_at).astype(np.int64))
        ask = partial(self._ask, few, partial(self._asked, self.loader.rows))
        tree = self._wait(ask(), few)
        if not jax.tree.leaves(tree):
            raise DataError(f"{self.name} gave no arrays")
        tree = jax.tree.map(np.asarray, tree)
        self.names = jax.tree.leaves(map_named(lambda name, _: name, self.name, tree))
        given: list[np.ndarray] = jax.tree.leaves(tree)
        for name, x in zip(self.names, given, strict=True):
            check_numbers(name, x)
        self.structure: jax.tree_util.PyTreeDef = jax.tree.structure(tree)
        # an array that a loader fills again is copied before it can be
        self._copied = not self._own and share(given, list(map(np.asarray, jax.tree.leaves(self._wait(ask(), few)))))
        self._kinds = [(x.shape[1:], x.dtype) for x in given]
        self.mapped = self.mapped or (None,) * len(given)
        # rows of arrays are looked at where they are read
        self._unseen = [] if isinstance(self.loader, ArrayRows) else self.names
        narrow = jax.tree.leaves(to_default_precision(tree, self.name))
        self.shapes = [jax.ShapeDtypeStruct(x.shape[1:], jax.dtypes.canonicalize_dtype(x.dtype)) for x in narrow]
        self.row_bytes = sum(s.dtype.itemsize * int(np.prod(s.shape)) for s in self.shapes)
        words = [repr((self.length, self._kinds)).encode(), *(np.ascontiguousarray(x).tobytes() for x in given)]
        ordered = b"" if self.order is None else self.order.tobytes()
        words += [ordered, *([self.loader.told()] if isinstance(self.loader, DataSetRows) else [])]
        self._fingerprint = zlib.crc32(b"".join(words))
        # while the loader is held no other has its id
        self.known = getattr(self.loader, "known", id(self.loader)), ordered

    # What a program is compiled for is alike; which table it reads it is told when it runs.
    def _alike(self) -> object:
        return self.length, self.structure, tuple((s.shape, s.dtype) for s in self.shapes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reader) and self._alike() == other._alike()

    def __hash__(self) -> int:
        return hash(self._alike())

    def __repr__(self) -> str:
        kinds = (f"{s.dtype}[{','.join(map(str, (self.length, *s.shape)))}]" for s in self.shapes)
        return f"rows({', '.join(kinds)}, crc32={self._fingerprint:08x})"

    def __call__(self, now: Numbers, then: Numbers | None, out: Rows) -> None:
        """Write these rows: their numbers in their files, and the leaves that are not mapped.

        Of a range, rows as they lie there, the first number, []. Those of ``then`` are read meanwhile; what was read is
        kept within the bytes.

        Args:
            now: row numbers, [n].
            then: those that come next; None: nobody knows.
            out: the number of each row [n], and the leaves, each [n, ...].

        Raises:
            DataError: the rows cannot be had, are not like the first ones, not finite, or did not come in time.
        """
        with self._ready:
            reading = self._asked_for(_key(now), now)
            if isinstance(now, range):
                del self._ahead[now]
            if then is not None:
                self._asked_ahead(_key(then), then)
        write(self._wait(reading.job, now), slice(None), out)

    def announce(self, now: np.ndarray, then: np.ndarray, batch_size: int, together: int) -> int:
        """A number for a chunk that comes now, before another (see :meth:`Announced.announce`)."""
        with self._ready:
            return self._announced.announce(now, then, batch_size, together, self.length)

    def minibatches(self, number: int, begin: int, numbers: np.ndarray, out: Rows) -> None:
        """Write the rows of some minibatches of a chunk that was announced; the pieces that come next are read.

        Args:
            number: of the chunk.
            begin: the place of the first of them in it.
            numbers: their row numbers; of a chunk of which nothing is known any more these are read alone.
            out: as of a call.

        Raises:
            DataError: as of a call.
        """
        chunk = self._announced[number]
        if chunk is not None:
            reading = self._piece((number, begin // chunk.together), chunk)
            first = begin % chunk.together * chunk.batch_size
            some = slice(first, first + len(numbers))
            if np.array_equal(reading.numbers[some], numbers):
                return write(self._wait(reading.job, numbers), some, out)
        return self(numbers, None, out)

    def _piece(self, place: Place, chunk: Chunk) -> Reading:
        """The reading of a piece of a chunk; when it is first used the next ones are asked for."""
        reading = self._ahead.get(place)
        if reading is not None and reading.used and not reading.failed:
            return reading
        with self._ready:
            reading = self._asked_for(place, chunk.numbers(place[1]))
            following = self._announced.after(place)
            for _ in range(AHEAD):
                if following is None or not self._asked_ahead(*following):
                    break
                following = self._announced.after(following[0])
        return reading

    def _asked_for(self, key: Key, numbers: Numbers) -> Reading:
        """The reading of rows that are used now, which may have been asked for before."""
        reading = self._ahead.pop(key, None)
        # what could not be read is tried again: the fault may have passed
        if reading is None or reading.failed:
            reading = self._reading(numbers, urgent=True)
        self._ahead[key], reading.used = reading, True
        self._forget()
        return reading

    def _asked_ahead(self, key: Key, numbers: Numbers) -> bool:
        """Ask for rows that are used later, where the bytes allow it; what was not asked for before is read."""
        if key not in self._ahead:
            waiting = sum(len(reading.numbers) for reading in self._ahead.values() if not reading.used)
            if waiting and (waiting + len(numbers)) * self.row_bytes > self._most:
                return False
            self._ahead[key] = self._reading(numbers)
            self._forget()
        return True

    def _reading(self, numbers: Numbers, *, urgent: bool = False) -> Reading:
        if isinstance(numbers, np.ndarray):
            numbers = numbers.copy()  # a program takes its memory back
        return Reading(numbers, self._ask(numbers, self._read, urgent=urgent))

    def span(self, start: int, size: int, out: Rows) -> None:
        """Write so many rows from one on; what follows is read meanwhile, or what is before where a pass goes down."""
        now, last, n = range(start, start + size), self._span, self.length
        self._span = now
        down = range(start - size, start)
        if last == range(start + size, start + 2 * size) and start >= size:
            self(now, down, out)
        else:
            self(now, range(size) if now.stop >= n else range(now.stop, min(now.stop + size, n)), out)

    def _forget(self) -> None:
        """Of what was used all but the last few; of the rest what was asked for longest ago, beyond the bytes."""
        used = [key for key, reading in self._ahead.items() if reading.used]
        for key in used[:-USED]:
            del self._ahead[key]
        most = self._most // self.row_bytes
        while len(self._ahead) > 1 and sum(len(reading.numbers) for reading in self._ahead.values()) > most:
            gone = self._ahead.popitem(last=False)[1]
            # what is used may be waited for
            if not gone.used:
                gone.job.cancel()

    def _ask(self, numbers: Numbers, read: Callable[[Numbers], PyTree], *, urgent: bool = False) -> "Future[PyTree]":
        job: Future[PyTree] = Future()
        with self._ready:
            (self._jobs.appendleft if urgent else self._jobs.append)((numbers, job, read))
            if self._thread is None:
                # a daemon: a loader that stalls must not keep the process from ending
                self._thread = threading.Thread(target=self._work, name="bilevax-rows", daemon=True)
                self._thread.start()
            self._ready.notify()
        return job

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._jobs or self._thread is not me, IDLE)
                if self._thread is not me:
                    return
                if not self._jobs:
                    self._thread = None
                    return
                numbers, job, read = self._jobs.popleft()
            if job.set_running_or_notify_cancel():
                try:
                    rows = read(numbers)
                    if self._unseen:
                        _looking.submit(self._look, rows, numbers, job)
                    else:
                        job.set_result(rows)
                except BaseException as e:  # whatever a loader raises, its rows' user is told
                    job.set_exception(e)

    def _look(self, rows: Rows, numbers: Numbers, job: "Future[PyTree]") -> None:
        """The end of a reading: what a loader gave is finite."""
        try:
            for name, x in zip(self._unseen, rows[1:], strict=True):
                require_finite(name, x, numbers)
            job.set_result(rows)
        except Exception as e:
            job.set_exception(e)

    def _wait(self, job: "Future[PyTree]", numbers: Numbers) -> PyTree:
        try:
            return job.result(self._timeout)
        except TimeoutError:
            if job.done():
                raise
            with self._ready:  # the thread is left to itself, and what waits for it is asked for again
                self._thread = None
                self._jobs.clear()
                self._ahead.clear()
                self._ready.notify_all()
            raise DataError(
                f"{self.name} has not returned {these(numbers)} after {self._timeout:g} s; a slower source needs a"
                " larger timeout="
            ) from None

    def rows(self, numbers: np.ndarray) -> Rows:
        """The leaves of these rows."""

        def read(numbers: Numbers) -> Rows:
            return [np.zeros(0), *self._checked(numbers)]

        return cast(Rows, self._wait(self._ask(numbers, read, urgent=True), numbers))[1:]

    def _in_order(self, numbers: Numbers) -> np.ndarray:
        # a range is of rows as they lie
        return np.asarray(numbers) if self.order is None or isinstance(numbers, range) else self.order[numbers]

    def _asked(self, read: Callable[[np.ndarray], PyTree], numbers: Numbers) -> PyTree:
        """What the loader says of these rows."""
        wanted = self._in_order(numbers)
        try:
            return read(wanted)
        except DataError:
            raise
        except BaseException as e:
            raise DataError(f"{self.name} raised {in_a_line(e)}, for {these(wanted)}") from e

    def _read(self, numbers: Numbers) -> Rows:
        """What a program is told of the rows."""
        where = np.asarray(numbers[0] if isinstance(numbers, range) else self._in_order(numbers), np.int32)
        if isinstance(self.loader, ArrayRows):
            return [where, *self._asked(self.loader.read, numbers)]
        return [where, *self._checked(numbers)]

    def _checked(self, numbers: Numbers) -> Rows:
        """The rows, as JAX takes them, with the shapes and dtypes of the first ones."""
        tree = self._asked(self.loader.rows, numbers)
        if jax.tree.structure(tree) != self.structure:
            raise DataError(f"{self.name} returned {jax.tree.structure(tree)}, and at first {self.structure}")
        out = []
        for name, x, (shape, kind), wanted in zip(
            self.names, map(np.asarray, jax.tree.leaves(tree)), self._kinds, self.shapes, strict=True
        ):
            if (x.shape, x.dtype) != ((len(numbers), *shape), kind):
                right = f"{kind}{[len(numbers), *shape]}"
                raise DataError(f"{name} must be {right} for {these(numbers)}, got {x.dtype}{list(x.shape)}")
            out.append(x.astype(wanted.dtype, copy=self._copied))
        held = [] if self._own or self._copied else [reading.rows for reading in list(self._ahead.values())]
        if any(share(out, rows[1:]) for rows in held if rows):
            raise DataError(
                f"{self.name} gave the memory of rows that are in use once more; give a new array at each call, or the"
                " same one at every call, which is copied"
            )
        return out


def _key(numbers: Numbers) -> Key:
    return numbers if isinstance(numbers, range) else numbers.tobytes()
