"""Is each function a mean over the rows of its batch? An exact test first, statistics only where it fails."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.audit.checks.program import draws_fixed_numbers
from bilevax.audit.findings import Finding
from bilevax.audit.oracles import ON_A_BATCH, flat, inner, outer, rows_of
from bilevax.audit.subject import TINY, AuditedProblem, apart, normal
from bilevax.core.protocols import RowSource
from bilevax.core.trees import PyTree, rounding_unit
from bilevax.problems.problem import Problem

PROBES = 8
"""Batches on which the exact test is made."""

MOST_ROWS = 64
"""Rows of such a batch at most."""

BATCHES = 4096
"""Batches from which a bias is judged, in two halves: one says the direction, the other the bias along it."""

ALARM = 6.0
"""Standard errors at which a mean is said to be wrong: one false alarm in 10^9."""

Parts = tuple[np.ndarray, ...]
Point = tuple[Problem, PyTree, PyTree, PyTree]
Oracle = Callable[..., tuple[PyTree, PyTree, PyTree]]


def check_rows(s: AuditedProblem) -> Iterator[Finding]:
    """BATCH_SIZE, ROWS_UNREAD, ROW_ORDER, FIXED_KEY, SUM, SIZE_OF_BATCH, BIASED, NOT_A_MEAN, COMPOSITE."""
    if s.problem.composite:
        yield Finding(
            "COMPOSITE",
            "note",
            "The inner map ends with a prox: the map of a minibatch is biased even where its gradient is not.",
            "Use full batches, or expect a floor of the error that more steps do not lower.",
        )
    v = normal(s.rng(4), s.w0)
    for name, oracle, source in (("inner_map", inner, s.train), ("outer_loss", outer, s.val)):
        if source.rows > 1 and not source.keys:  # whose noise is the batch's, not the rows'
            side = _Side(name, oracle, source, (s.smooth, s.perturbed, s.lam, v), s)
            yield from side.findings(draws_fixed_numbers(name, s))


class _Side:
    """One of the two functions, with the source of its batches."""

    def __init__(self, name: str, oracle: Oracle, source: RowSource, at: Point, s: AuditedProblem) -> None:
        self.name, self.oracle, self.source, self.at, self.s = name, oracle, source, at, s
        self.tolerance = 1e4 * rounding_unit((s.w0, s.lam))
        self.half = max(1, min(source.rows_per_batch, MOST_ROWS) // 2)
        self.severity = "warning" if source.is_full_batch else "error"

    def findings(self, fixed_key: bool) -> Iterator[Finding]:
        """What keeps it from being a mean over rows."""
        batches = [self.batch(i) for i in range(PROBES)]
        try:
            mean = not any(self.differ(self.look(b), self.mean_of_halves(b)) for b in batches)
        except (TypeError, ValueError) as e:  # every row went through: the shapes of another number do not fit
            yield self.of_one_size(e)
            return
        if fixed_key:
            yield self.fixed_key("error" if not mean and self.order_matters(batches) else "warning")
        elif not mean:
            yield self.why(batches)

    def batch(self, i: int) -> np.ndarray:
        """Numbers of random rows."""
        return self.s.rng(500 + i).integers(self.source.rows, size=2 * self.half)

    def look(self, rows: np.ndarray) -> Parts:
        """What the function and its derivatives say of a batch."""
        return tuple(map(flat, ON_A_BATCH[self.oracle](*self.at, rows_of(self.source, rows))))

    def mean_of_halves(self, rows: np.ndarray) -> Parts:
        """What a mean over rows would be on the whole batch."""
        halves = self.look(rows[: self.half]), self.look(rows[self.half :])
        return tuple((a + b) / 2 for a, b in zip(*halves, strict=True))

    def differ(self, a: Parts, b: Parts) -> bool:
        """True where two looks differ by more than rounding."""
        return any(apart(x, y) > self.tolerance for x, y in zip(a, b, strict=True))

    def why(self, batches: list[np.ndarray]) -> Finding:
        """The reason, the simplest first."""
        # positions whose row can be replaced by that of another batch without a trace, in all batches
        unread = np.all([self.unmoved(*pair) for pair in itertools.pairwise(batches)], axis=0)
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
        # f(k) on a batch given k times. A sum: f(4) - f(2) = 2 (f(2) - f(1)); a mean with a part over the number of
        # rows: f(4) - f(2) = (f(2) - f(1)) / 2
        once, twice, four = (self.look(np.tile(batches[0], times)) for times in (1, 2, 4))
        first, second = _sub(twice, once), _sub(four, twice)
        grows = self.differ(once, twice)
        if grows and not self.differ(second, tuple(2 * x for x in first)):
            return Finding(
                "SUM",
                self.severity,
                f"{self.name} grows with the number of rows: it doubles, but for a constant part, on a batch given "
                "twice. It is a sum.",
                "Take jnp.mean over the rows; steps and penalties then mean the same for every batch size.",
            )
        if grows and not self.differ(tuple(2 * x for x in second), first):
            return self.shrinks(batches[1], first)
        return self.biased()

    def shrinks(self, other: np.ndarray, change: Parts) -> Finding:
        """A part that is divided by the number of rows: that of a penalty, where it is the same for all rows."""
        same = not self.differ(_sub(self.look(np.tile(other, 2)), self.look(other)), change)
        what = "the same part for all rows, such as a penalty," if same else "a part"
        return Finding(
            "SIZE_OF_BATCH",
            self.severity,
            f"{self.name} has {what} that is divided by the number of rows in the batch: on a batch given twice that "
            "part is half as large. The inner problem is then another one for every batch size.",
            "Take the mean over the rows alone and add the penalty outside of it: jnp.mean(losses) + penalty, not "
            "(jnp.sum(losses) + penalty) / len(y). To divide by the number of all rows, use that fixed number.",
        )

    def of_one_size(self, e: Exception) -> Finding:
        """A function that takes no other number of rows than all."""
        text = str(e).splitlines()[0] if str(e) else type(e).__name__
        return Finding(
            "BATCH_SIZE",
            self.severity,
            f"{self.name} fails on batches of {2 * self.half} or {self.half} rows: {text}",
            "Read every row from the batch, and count them with len(y): look for an array of one fixed length, or for "
            "rows of another table, that the function closes over.",
        )

    def unmoved(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Which rows of a batch can be replaced by those of another one by one, and nothing changes; [rows]."""
        before, places = self.look(rows), np.arange(rows.size)
        after = (self.look(np.where(places == i, others, rows)) for i in places)
        tiny = 100 * rounding_unit((self.s.w0, self.s.lam))
        return np.array([all(apart(x, y) <= tiny for x, y in zip(before, a, strict=True)) for a in after])

    def order_matters(self, batches: list[np.ndarray]) -> bool:
        """True where the rows of a batch cannot change places."""
        return any(self.differ(self.look(b), self.look(b[::-1])) for b in batches)

    def biased(self) -> Finding:
        """Whether the mean over batches depends on their size, along the direction in which it seems to most."""
        # D = hat f(2h rows) - (hat f(h rows) + hat f(the others)) / 2, whose mean is 0 for a mean over rows
        rows, everything = 2 * self.half, np.concatenate(self.look(np.arange(self.source.rows)))
        sampled = partial(_sampled, self.oracle, self.at, self.source, rows=rows)
        kind = jnp.result_type(float)
        first = np.asarray(sampled(jnp.zeros(everything.size, kind), self.s.stream(6))[0], np.float64)
        # <D, u> in the second half of the batches, u = mean D of the first half / its norm
        u = jnp.asarray(first / max(float(np.linalg.norm(first)), TINY), kind)
        along = np.asarray(sampled(u, self.s.stream(7))[1], np.float64)
        bias, error = float(along.mean()), float(along.std()) / np.sqrt(BATCHES // 2)
        share = bias / max(float(np.linalg.norm(everything)), TINY)
        measured = (
            f"{self.name} is no mean over rows: from {self.half} to {rows} rows its mean over {BATCHES // 2} batches "
            f"changes by {100 * share:.2g} %, {bias / max(error, TINY):.1f} standard errors."
        )
        if bias > ALARM * error:
            advice = (
                "Let each row's part depend on that row alone: no mean, variance or quantile of the batch (batch "
                "norm), no ratio of two means over it; such numbers can be had from every row once, before."
            )
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


@partial(jax.jit, static_argnums=0, static_argnames="rows")
def _sampled(
    oracle: Oracle, at: Point, source: RowSource, direction: Array, key: Array, *, rows: int
) -> tuple[Array, Array]:
    """D, a batch less the mean of its halves: its mean, and each <D, direction>; of BATCHES / 2 batches."""

    def look(numbers: Array) -> Array:
        batch = source.at(numbers) if hasattr(source, "at") else jax.tree.map(lambda x: x[numbers], source.all_rows)
        return jnp.concatenate([jnp.ravel(x).astype(direction.dtype) for x in jax.tree.leaves(oracle(*at, batch))])

    def one(total: Array, key: Array) -> tuple[Array, Array]:
        chosen = jax.random.randint(key, (rows,), 0, source.rows)
        excess = look(chosen) - (look(chosen[: rows // 2]) + look(chosen[rows // 2 :])) / 2
        return total + excess / (BATCHES // 2), excess @ direction

    return jax.lax.scan(one, jnp.zeros_like(direction), jax.random.split(key, BATCHES // 2))


def _sub(a: Parts, b: Parts) -> Parts:
    return tuple(x - y for x, y in zip(a, b, strict=True))
