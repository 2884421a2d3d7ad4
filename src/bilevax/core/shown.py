"""Records of arrays in one line: what they say, not what they hold."""

import jax
import numpy as np

from bilevax.core.codes import Code
from bilevax.core.trees import PyTree

_FEW = 3
"""Leaves that are named one by one."""


def is_plain(*trees: PyTree) -> bool:
    """True if every tree has leaves and each is a number at hand: no tracer, no shape, nothing donated."""
    leaves = [jax.tree.leaves(tree) for tree in trees]
    return all(leaves) and all(_at_hand(x) for part in leaves for x in part)


def _at_hand(x: object) -> bool:
    # A donated array has lost its buffer, and to read it is an error.
    if isinstance(x, jax.core.Tracer) or getattr(x, "is_deleted", bool)():
        return False
    return isinstance(x, jax.Array | np.ndarray | np.generic | float | int)


def shape(tree: PyTree) -> str:
    """``float32[3]``; of a tree, each leaf's, or how many there are."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    # Of a network's hundred leaves no one reads the names.
    if len(named) > _FEW:
        return f"{len(named)} leaves of {sum(np.size(x) for _, x in named):,} entries"
    return ", ".join(f"{jax.tree_util.keystr(path)} {_kind(x)}".strip() for path, x in named) or "None"


def _kind(x: object) -> str:
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype}[{','.join(map(str, x.shape))}]"
    return type(x).__name__


def shapes(name: str, **fields: PyTree) -> str:
    """A record of which no number is at hand."""
    return f"{name}({', '.join(f'{field} {shape(x)}' for field, x in fields.items())})"


def code(x: PyTree) -> str:
    """The name of a code; of several, how many of each."""
    found, number = np.unique(np.asarray(x), return_counts=True)
    names = [Code(int(c)).name for c in found]
    return names[0] if np.ndim(x) == 0 else ", ".join(f"{n} {c}" for c, n in zip(names, number, strict=True))


def number(x: PyTree) -> str:
    """Three digits; of several numbers, the smallest and the largest."""
    ends = [f"{end(x):.3g}" for end in (np.min, np.max)] if np.size(x) else ["none"]
    return " to ".join(dict.fromkeys(ends))


def size(tree: PyTree, axes: int) -> str:
    """Euclidean norm over all leaves, for each index of so many leading axes."""
    # In numpy and double precision: a repr compiles nothing, and squares of bfloat16 overflow nowhere.
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    parts = [np.linalg.norm(x.reshape(*x.shape[:axes], -1), axis=-1) for x in leaves]
    return number(np.linalg.norm(np.stack(parts), axis=0))
