"""Are the labels in the form that the losses expect? Said from what the losses do with them."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from bilevax.audit.checks.program import plain
from bilevax.audit.findings import Finding
from bilevax.audit.oracles import ON_A_BATCH, Parts, flat, loss, outer, rows_of
from bilevax.audit.subject import AuditedProblem, apart, leaf_names
from bilevax.core.protocols import RowSource
from bilevax.core.trees import PyTree, rounding_unit

ROWS = 64
"""Rows of the batches that are looked at, at most."""

ALIKE = 1e-3
"""Share of the size of w below which the weights of all classes are one and the same."""

Loss = Callable[[PyTree, PyTree], tuple[float, np.ndarray]]
"""(w, batch) -> the value and its gradient in w."""


def check_labels(s: AuditedProblem) -> Iterator[Finding]:
    """LABELS."""
    sides = (("inner loss", loss, s.train), ("outer_loss", outer, s.val))
    for name, oracle, source in sides[not s.problem.has_loss :]:

        def of_batch(w: PyTree, batch: PyTree, oracle: Callable[..., Parts] = oracle) -> tuple[float, np.ndarray]:
            value, by_w, _ = ON_A_BATCH[oracle](s.problem, w, s.lam, None, batch)
            return float(value), flat(by_w)

        for place, (leaf, y) in enumerate(_columns(source.all_rows)):
            kind = _kind(y)
            if y is not None and kind == "0/1" and _needs_signs(s, of_batch, source, y):
                yield Finding(
                    "LABELS",
                    "error",
                    f"The labels {leaf} are 0 and 1, but the {name} expects -1 and +1: rows with label 0 do not move "
                    "its gradient, as in a loss of the product of label and score.",
                    "Pass 2 * y - 1 in train and val (-1 for 0, +1 for 1), or use a loss for 0/1, such as "
                    "jnp.mean(jnp.logaddexp(0, score) - y * score).",
                )
            elif kind == "-1/+1" and _needs_shares(s, of_batch, source, place):
                yield Finding(
                    "LABELS",
                    "error",
                    f"The labels {leaf} are -1 and +1, but the {name} expects 0 and 1: it is linear in the label, as "
                    "cross-entropy is, and falls without end where a label is -1.",
                    "Pass (y + 1) / 2 in train and val (0 for -1), or use a loss for -1/+1, such as "
                    "jnp.mean(jnp.logaddexp(0, -y * score)).",
                )
    yield from _classes(s)


def _columns(rows: PyTree) -> list[tuple[str, np.ndarray | None]]:
    """Every leaf, with its numbers where it holds one a row, else None."""
    found = zip(leaf_names("batch", rows), jax.tree.leaves(rows), strict=True)
    numbers = [(name, plain(x)) if x.ndim else (name, np.zeros((1, 2))) for name, x in found]
    return [(name, x.ravel() if x.size == x.shape[0] and x.dtype.kind in "fiub" else None) for name, x in numbers]


def _kind(y: np.ndarray | None) -> str:
    """``0/1``, ``-1/+1``, ``whole`` or ``other``."""
    if y is None:
        return "other"
    values = np.unique(y).astype(np.float64)
    known = {(0.0, 1.0): "0/1", (-1.0, 1.0): "-1/+1"}.get(tuple(values.tolist()))
    # 0, 1, ..., K - 1 or 1, ..., K
    whole = values[0] in (0, 1) and values.size > 1 and np.array_equal(values - values[0], np.arange(values.size))
    return known or ("whole" if whole else "other")


def _needs_signs(s: AuditedProblem, f: Loss, source: RowSource, y: np.ndarray) -> bool:
    """True where the loss is one of the product of label and score: rows with label 0 have no influence.

    Such a row adds the same number whatever its features and w are; at w = 0 it is that of the other rows. (The rows of
    a mask of zeros and ones add nothing.)
    """
    rng, size = s.rng(15), min(ROWS, y.size)
    batches = [rows_of(source, rng.choice(np.flatnonzero(y == label), size)) for label in (0, 0, 1, 1)]
    a, b, c, d = (f(s.perturbed, batch) for batch in batches)
    zero = jax.tree.map(np.zeros_like, s.w0)
    none, all_ = f(zero, batches[0])[0], f(zero, batches[2])[0]
    tiny = 1e3 * rounding_unit(s.w0)
    # the gradient at label 0 does not depend on the row, that at label 1 does; at w = 0 both have one value, not 0
    still, moving = apart(a[1], b[1]) <= tiny, apart(c[1], d[1]) > 10 * tiny
    return still and moving and none != 0 and abs(none - all_) <= tiny * abs(none)


def _needs_shares(s: AuditedProblem, f: Loss, source: RowSource, place: int) -> bool:
    """True where the loss is linear in the label, and a loss of w and the row at label 0: a cross-entropy."""
    rng = s.rng(17)
    draws = [rng.integers(source.rows, size=min(ROWS, source.rows)) for _ in range(2)]
    batches = [rows_of(source, rows) for rows in draws]
    up, none, down = (f(s.perturbed, _labelled(batches[0], place, y)) for y in (1.0, 0.0, -1.0))
    other = f(s.perturbed, _labelled(batches[1], place, 0.0))
    tiny = 1e3 * rounding_unit(s.w0)
    sizes = abs(up[0]) + abs(down[0]) + abs(none[0])
    # f(1) + f(-1) = 2 f(0), in value and gradient; f(1) /= f(-1), and f(0) depends on the row
    linear = abs(up[0] + down[0] - 2 * none[0]) <= tiny * sizes and apart(up[1] + down[1], 2 * none[1]) <= 10 * tiny
    return linear and apart(up[1], down[1]) > 100 * tiny and apart(none[1], other[1]) > 100 * tiny


def _labelled(batch: PyTree, place: int, label: float) -> PyTree:
    """The batch with one label for all rows."""
    leaves, structure = jax.tree.flatten(batch)
    leaves[place] = np.full_like(np.asarray(leaves[place]), label)
    return jax.tree.unflatten(structure, leaves)


def _classes(s: AuditedProblem) -> Iterator[Finding]:
    """Whole numbers that multiply the scores of all classes alike: then all classes get the same weights."""
    size = float(np.sqrt(np.mean(flat(s.perturbed) ** 2)))
    for leaf, y in _columns(s.tables["train"]):
        if y is None or _kind(y) not in ("whole", "0/1") or not s.is_solved:
            continue
        values = np.unique(y).astype(int)
        classes = values.size
        owners = [w for w in jax.tree.leaves(s.solution) if classes in w.shape]
        if any(w.ndim > 1 for w in owners) and all(_alike(w, classes, ALIKE * size) for w in owners):
            yield Finding(
                "LABELS",
                "error",
                f"The labels {leaf} are whole numbers, {values[0]} to {values[-1]}, and the inner solution has "
                f"the same weights for all of {classes} classes: the loss takes the number of a class for its size.",
                f"Pass jax.nn.one_hot(y, {classes}) in train and val (of numbers from 0), or pick the entry of the "
                "label: optax.softmax_cross_entropy_with_integer_labels(scores, y).",
            )
            return


def _alike(w: np.ndarray, classes: int, tolerance: float) -> bool:
    axes = [i for i, n in enumerate(w.shape) if n == classes]
    return any(np.max(np.ptp(np.asarray(w, np.float64), axis=i)) <= tolerance for i in axes)
