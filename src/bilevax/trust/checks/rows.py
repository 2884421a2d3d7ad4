"""Is each function a mean over the rows of its batch? An exact test first, statistics only where it fails."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevax.core.trees import PyTree, norm, sub
from bilevax.data import Keyed, RowSource
from bilevax.problems.problem import Problem, inner_image
from bilevax.trust.checks.program import draws_fixed_numbers
from bilevax.trust.findings import Finding
from bilevax.trust.subject import TINY, Subject, epsilon, normal

PROBES = 8
"""Batches on which the exact test is made."""

MOST_ROWS = 64
"""Rows of such a batch at most."""

BATCHES = 4096
"""Batches from which a bias is judged, in two halves: one says the direction, the other the bias along it."""

ALARM = 6.0
"""Standard errors at which a mean is said to be wrong: one false alarm in 10^9."""

Parts = tuple[Array, ...]
Point = tuple[Problem, PyTree, PyTree, PyTree]
Oracle = Callable[..., Parts]


def check_rows(s: Subject) -> Iterator[Finding]:
    """ROWS_UNREAD, ROW_ORDER, FIXED_KEY, SUM, BIASED, NOT_A_MEAN."""
    if s.problem.composite:
        yield Finding(
            "COMPOSITE",
            "note",
            "The inner map ends with a prox: the map of a minibatch is biased even where its gradient is not.",
            "Use full batches, or expect a floor of the error that more steps do not lower.",
        )
    v = normal(s.stream(4), s.w0)
    for name, oracle, source in (("inner_map", inner, s.train), ("outer_loss", outer, s.val)):
        if source.rows > 1 and not isinstance(source.full, Keyed):  # whose noise is the batch's, not the rows'
            side = _Side(name, oracle, source, (s.smooth, s.far, s.lam, v), s)
            yield from side.findings(draws_fixed_numbers(name, s, source.full))


def inner(problem: Problem, w: PyTree, lam: PyTree, v: PyTree, batch: PyTree) -> Parts:
    """Phi - w, d1Phi^T v and d2Phi^T v, each a vector."""
    image, pullback = jax.vjp(lambda w, lam: inner_image(problem, w, lam, batch), w, lam)
    by_w, by_lam = pullback(v)
    return _flat(sub(image, w)), _flat(by_w), _flat(by_lam)


def outer(problem: Problem, w: PyTree, lam: PyTree, v: PyTree, batch: PyTree) -> Parts:
    """E, grad_1 E and grad_2 E."""
    value, (by_w, by_lam) = jax.value_and_grad(problem.outer_loss, (0, 1))(w, lam, batch)
    return value[None], _flat(by_w), _flat(by_lam)


def _flat(tree: PyTree) -> Array:
    return ravel_pytree(tree)[0]


class _Side:
    """One of the two functions, with the source of its batches."""

    def __init__(self, name: str, oracle: Oracle, source: RowSource, at: Point, s: Subject) -> None:
        self.name, self.oracle, self.source, self.at, self.s = name, oracle, source, at, s
        self.tolerance = 1e4 * epsilon((s.w0, s.lam))
        self.half = max(1, min(source.rows_per_batch, MOST_ROWS) // 2)
        self.severity = "warning" if source.whole else "error"

    def findings(self, fixed_key: bool) -> Iterator[Finding]:
        """What keeps it from being a mean over rows."""
        batches = [self.batch(i) for i in range(PROBES)]
        mean = not any(self.differ(self.look(b), self.mean_of_halves(b)) for b in batches)
        if fixed_key:
            yield self.fixed_key("error" if not mean and self.order_matters(batches) else "warning")
        elif not mean:
            yield self.why(batches)

    def batch(self, i: int) -> PyTree:
        """A batch of random rows."""
        key = jax.random.fold_in(self.s.stream(5), i)
        chosen = jax.random.randint(key, (2 * self.half,), 0, self.source.rows)
        return jax.tree.map(lambda x: x[chosen], self.source.full)

    def look(self, batch: PyTree) -> Parts:
        """What the function and its derivatives say of a batch."""
        return _looked(self.oracle, self.at, batch)

    def mean_of_halves(self, batch: PyTree) -> Parts:
        """What a mean over rows would be on the whole batch."""
        halves = [self.look(_rows(batch, part)) for part in (slice(None, self.half), slice(self.half, None))]
        return tuple((a + b) / 2 for a, b in zip(*halves, strict=True))

    def differ(self, a: Parts, b: Parts) -> bool:
        """True where two looks differ by more than rounding."""
        return any(_distance(x, y) > self.tolerance for x, y in zip(a, b, strict=True))

    def why(self, batches: list[PyTree]) -> Finding:
        """The reason, the simplest first."""
        unread = self.unread(batches)
        if unread.any():
            return Finding(
                "ROWS_UNREAD",
                "error",
                f"{self.name} does not read {unread.sum()} of the {unread.size} rows of a batch, the first at position "
                f"{unread.argmax()}.",
                "Take the mean over every row of the batch; look for a slice.",
            )
        if self.order_matters(batches):
            return Finding(
                "ROW_ORDER",
                "error",
                f"{self.name} changes when the rows of a batch change places.",
                "Treat every row alike: no weights, masks or noise by position. Random numbers of a row belong in the "
                "batch.",
            )
        once, twice, four = (self.look(_repeated(batches[0], times)) for times in (1, 2, 4))
        grows = self.differ(once, twice)
        if grows and not self.differ(_sub(four, twice), tuple(2 * x for x in _sub(twice, once))):
            return Finding(
                "SUM",
                self.severity,
                f"{self.name} grows with the number of rows: it doubles, but for a constant part, on a batch given "
                "twice. It is a sum.",
                "Take jnp.mean over the rows; steps and penalties then mean the same for every batch size.",
            )
        return self.biased()

    def unread(self, batches: list[PyTree]) -> np.ndarray:
        """Positions whose row can be replaced by that of another batch without a trace, in all batches; [rows]."""
        pairs = itertools.pairwise(batches)
        return np.all([_unmoved(self.oracle, self.at, *pair) for pair in pairs], axis=0)

    def order_matters(self, batches: list[PyTree]) -> bool:
        """True where the rows of a batch cannot change places."""
        return any(self.differ(self.look(b), self.look(_rows(b, slice(None, None, -1)))) for b in batches)

    def biased(self) -> Finding:
        """Whether the mean over batches depends on their size, along the direction in which it seems to most."""
        rows, zero = 2 * self.half, jnp.zeros_like(jnp.concatenate(self.look(self.batch(0))))
        sampled = partial(_sampled, self.oracle, self.at, self.source.full, rows=rows)
        first, _ = sampled(zero, self.s.stream(6))
        length = norm(first)
        _, along = sampled(first / jnp.where(length > 0, length, jnp.ones_like(length)), self.s.stream(7))
        bias, error = float(jnp.mean(along)), float(jnp.std(along)) / np.sqrt(BATCHES // 2)
        share = bias / max(float(norm(jnp.concatenate(self.look(self.source.full)))), TINY)
        measured = (
            f"{self.name} is no mean over rows: from {self.half} to {rows} rows its mean over {BATCHES // 2} batches "
            f"changes by {100 * share:.2g} %, {bias / max(error, TINY):.1f} standard errors."
        )
        if bias > ALARM * error:
            advice = "Let each row's part depend on that row alone: no mean or variance of the batch (batch norm)."
            return Finding("BIASED", self.severity, measured, advice)
        return Finding("NOT_A_MEAN", "note", measured, "No bias was found, so this may be right: sums over pairs are.")

    def fixed_key(self, severity: str) -> Finding:
        """Random numbers that are the same in every minibatch."""
        return Finding(
            "FIXED_KEY",
            severity,
            f"{self.name} draws random numbers from a key that is no part of the batch: they are the same in every "
            "minibatch.",
            "Build the source with keys=True and draw from batch.key, another in every draw (the rows are then "
            "batch.rows); or leave the noise out.",
        )


@partial(jax.jit, static_argnums=0)
def _looked(oracle: Oracle, at: Point, batch: PyTree) -> Parts:
    return oracle(*at, batch)


@partial(jax.jit, static_argnums=0)
def _unmoved(oracle: Oracle, at: Point, batch: PyTree, other: PyTree) -> Array:
    """Which rows of a batch can be replaced by those of another one by one, and nothing changes; [rows]."""
    before = oracle(*at, batch)

    def replaced(i: Array) -> Array:
        after = oracle(*at, jax.tree.map(lambda x, y: x.at[i].set(y[i]), batch, other))
        pairs = zip(before, after, strict=True)
        return jnp.all(jnp.stack([norm(x - y) <= 100 * jnp.finfo(x.dtype).eps * norm(x) for x, y in pairs]))

    return jax.lax.map(replaced, jnp.arange(jax.tree.leaves(batch)[0].shape[0]))


@partial(jax.jit, static_argnums=0, static_argnames="rows")
def _sampled(
    oracle: Oracle, at: Point, full: PyTree, direction: Array, key: Array, *, rows: int
) -> tuple[Array, Array]:
    """Batches less the mean of their halves: the mean of that, and each along a direction; of BATCHES / 2 batches."""

    def one(total: Array, key: Array) -> tuple[Array, Array]:
        chosen = jax.random.randint(key, (rows,), 0, jax.tree.leaves(full)[0].shape[0])
        batch = jax.tree.map(lambda x: x[chosen], full)
        parts = (batch, _rows(batch, slice(None, rows // 2)), _rows(batch, slice(rows // 2, None)))
        whole, first, second = (jnp.concatenate(oracle(*at, part)) for part in parts)
        excess = whole - (first + second) / 2
        return total + excess / (BATCHES // 2), excess @ direction

    return jax.lax.scan(one, jnp.zeros_like(direction), jax.random.split(key, BATCHES // 2))


def _rows(batch: PyTree, part: slice) -> PyTree:
    return jax.tree.map(lambda x: x[part], batch)


def _repeated(batch: PyTree, times: int) -> PyTree:
    return jax.tree.map(lambda x: jnp.concatenate([x] * times), batch)


def _sub(a: Parts, b: Parts) -> Parts:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _distance(a: Array, b: Array) -> float:
    """||a - b|| against the larger of the two."""
    size = max(float(norm(a)), float(norm(b)))
    return float(norm(a - b)) / size if size > 0 else 0.0
