"""Processes that run one program together, each with rows of its own, and what they tell one another.

All make the same calls here in the same order. Rows are dealt in *strata*, of which each process has as many,
neighbours; sums over them are added in pairs, so that they have the same bits however many processes there are.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from bilevax.core.errors import DataError, ParameterError

if TYPE_CHECKING:
    import numpy as np

STRATA = 8
"""Of the rows of a table that goes by in pieces; a power of two."""

SLICE = 1 << 20
"""Numbers of a sum that are told at once."""

T = TypeVar("T")


class Processes:
    """Those that compute together; this one alone by default.

    Args:
        number: of this one, from 0.
        count: of all.
        gathered: tells the others, and gives what each has told, in the order of their numbers.

    Raises:
        ParameterError: the strata cannot be dealt to so many.
    """

    def __init__(
        self, number: int = 0, count: int = 1, gathered: Callable[[bytes], Sequence[bytes]] = lambda mine: [mine]
    ) -> None:
        if STRATA % count:
            fit = ", ".join(str(k) for k in range(1, STRATA) if STRATA % k == 0)
            raise ParameterError(f"rows are dealt to {fit} or {STRATA} processes, got {count}")
        self.number, self.count, self.gathered = number, count, gathered

    @property
    def strata(self) -> range:
        """Those of this process."""
        each = STRATA // self.count
        return range(self.number * each, (self.number + 1) * each)

    def of_first(self, mine: bytes) -> bytes:
        """What process 0 has."""
        return self.gathered(mine if self.number == 0 else b"")[0]

    def any(self, mine: bool) -> bool:
        """Whether it is so in any of them."""
        return b"\1" in self.gathered(bytes([mine]))

    def summed(self, mine: "np.ndarray") -> "np.ndarray":
        """The sum over processes, in pairs, of float64."""
        if self.count == 1:
            return mine
        import numpy as np  # not for the sake of a command's help

        flat, out = mine.ravel(), np.empty(mine.size)
        for at in (slice(i, i + SLICE) for i in range(0, mine.size, SLICE)):
            parts = [np.frombuffer(part) for part in self.gathered(flat[at].tobytes())]
            while len(parts) > 1:
                parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
            out[at] = parts[0]
        return out.reshape(mine.shape)

    def require_same(self, what: str, mine: Mapping[str, object]) -> None:
        """Refuse, in every process, what is not the same in all.

        Raises:
            DataError: says which process has other values than process 0, and which.
        """
        if self.count > 1:
            require_same(what, self.gathered(json.dumps(mine, default=str).encode()))


ALONE = Processes()


def require_same(what: str, every: Sequence[bytes]) -> None:
    """Refuse what is not the same in all processes, of which each has told its own as JSON.

    Raises:
        DataError: says which process has other values than process 0, and which.
    """
    first, *others = (json.loads(x) for x in every)
    for rank, other in enumerate(others, 1):
        differs = [name for name, value in first.items() if other.get(name) != value]
        if differs:
            told = "; ".join(f"{name} is {_short(other.get(name))}, not {_short(first[name])}" for name in differs)
            raise DataError(f"{what} must be the same in every process, and in process {rank} {told}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Pairwise(Generic[T]):
    """A sum over strata that is added in pairs, and pairs in pairs: that of half of them is what another process has.

    It holds one partial sum for each of the log2(STRATA) levels, and one more, at most.

    Args:
        plus: the sum of two.
    """

    def __init__(self, plus: Callable[[T, T], T]) -> None:
        self._plus = plus
        # (level, i, x): x is of the strata from i 2^level to (i + 1) 2^level
        self._nodes: list[tuple[int, int, T]] = []

    def add(self, stratum: int, x: T) -> None:
        """One more of this stratum, or of a later one."""
        if self._nodes and self._nodes[-1][:2] == (0, stratum):
            x = self._plus(self._nodes.pop()[2], x)
        self._close(stratum)
        self._nodes.append((0, stratum, x))

    def total(self) -> T | None:
        """Of all; None of none. Nothing is left."""
        self._close(STRATA)
        return self._nodes.pop()[2] if self._nodes else None

    def _close(self, stop: int) -> None:
        """Add up what has no stratum from ``stop`` on."""
        while self._nodes:
            level, i, x = self._nodes[-1]
            if 1 << level == STRATA or (i // 2 + 1) << (level + 1) > stop:
                return
            self._nodes.pop()
            if self._nodes and self._nodes[-1][:2] == (level, i ^ 1):
                x = self._plus(self._nodes.pop()[2], x)
            self._nodes.append((level + 1, i // 2, x))
