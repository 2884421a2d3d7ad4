"""Processes that run one program together (``jax.distributed``): what they tell one another beside its sums.

Every function here is called by all of them, in the same order. Of one process alone they cost nothing.
"""

import json
import zlib
from collections.abc import Mapping

import jax
import numpy as np

from bilevax.core.keys import is_key
from bilevax.core.processes import require_same
from bilevax.core.trees import PyTree, is_spread, leaf_name


def gathered(mine: np.ndarray) -> np.ndarray:
    """What each process has, [P, ...], in the order of their numbers; of one shape and dtype everywhere."""
    if jax.process_count() == 1:
        return mine[None]
    from jax.experimental import multihost_utils

    # as bytes: an array of 64 bits would be narrowed
    flat = np.frombuffer(np.ascontiguousarray(mine).tobytes(), np.uint8)
    every = np.asarray(multihost_utils.process_allgather(flat))
    return np.stack([np.frombuffer(part.tobytes(), mine.dtype).reshape(mine.shape) for part in every])


def gathered_bytes(mine: bytes) -> list[bytes]:
    """What each process has, of any length."""
    lengths = gathered(np.asarray(len(mine)))
    every = gathered(np.frombuffer(mine.ljust(int(lengths.max()), b"\0"), np.uint8))
    return [part.tobytes()[:length] for part, length in zip(every, lengths, strict=True)]


def of_first(mine: bytes) -> bytes:
    """What process 0 has, of any length."""
    size, first = int(gathered(np.asarray(len(mine)))[0]), jax.process_index() == 0
    if jax.process_count() == 1 or not size:
        return mine if first else b""
    from jax.experimental import multihost_utils

    sent = np.frombuffer(mine if first else bytes(size), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes()


def same_on_all(what: str, mine: Mapping[str, object]) -> None:
    """Refuse, in every process, what is not the same in all.

    Raises:
        DataError: says which process has other values than process 0, and which.
    """
    require_same(what, gathered_bytes(json.dumps(mine, default=str).encode()))


def same_numbers(what: str, **trees: PyTree) -> None:
    """Refuse trees of numbers that are not the same in all, as :func:`same_on_all` does.

    Raises:
        DataError: says in which process, and which leaves.
    """
    told = {}
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if is_spread(leaf):  # one array of all processes
                told[leaf_name(name, path)] = f"{leaf.dtype}{list(leaf.shape)} dealt by {leaf.sharding.spec}"
                continue
            numbers = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
            few = numbers.tolist() if numbers.ndim == 0 else f"{numbers.dtype}{list(numbers.shape)}"
            told[leaf_name(name, path)] = f"{few} (crc32 {zlib.crc32(numbers.tobytes()):08x})"
    same_on_all(what, told)


class Group:
    """The processes that a run's rows are dealt to, which decide together; this one alone where they are all here.

    Args:
        sources: of the run.
    """

    def __init__(self, sources: PyTree) -> None:
        self.several = is_spread(sources)

    @property
    def writes(self) -> bool:
        """True in the one process that keeps what is kept."""
        return not self.several or jax.process_index() == 0

    def of_first(self, number: int) -> int:
        """What process 0 says."""
        return int(gathered(np.asarray(number))[0]) if self.several else number

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """The largest that any of them says, of each."""
        return tuple(map(int, gathered(np.asarray(numbers)).max(axis=0))) if self.several else numbers
