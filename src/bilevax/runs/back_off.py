"""What a run does about outer steps that failed: they are made again, the linear system damped, or slower."""

from collections.abc import Iterator
from itertools import repeat

from bilevax.algorithms.measured_steps import Measurable, needs_measuring, slower
from bilevax.algorithms.outer_loop import Record
from bilevax.core.codes import Code
from bilevax.core.config import replace_unchecked
from bilevax.core.protocols import Algorithm
from bilevax.core.records import STAGES
from bilevax.problems.problem import Problem

DAMPINGS = (0.01, 0.04, 0.16, 0.64)
"""Tried one after another, in units in which a gradient step of 1 / L has curvatures of at most 1."""


def dampings(problem: Problem) -> Iterator[float]:
    """Those that a run may try: of an inner loss, unless one was given."""
    return iter(DAMPINGS if problem.has_loss and problem.damping is None else ())


def damped(problem: Problem, last: Record, left: Iterator[float]) -> Problem | None:
    """The problem with the next damping; None if the last step did not fail, or none is left or would help.

    It may help against a linear system that is not positive definite, or whose solution overflowed, not against
    a step above 2 / L, nor where w diverges.
    """
    code, failure = Code(int(last.code)), last.failure
    # (I - d1Phi^T + delta I) v = g has a smaller solution, and is definite once delta exceeds the negative curvature
    linear = code in (Code.DIVERGED, Code.NONFINITE) and STAGES[int(failure.stage)] in ("linear", "cross")
    indefinite = code in (Code.NOT_CONTRACTIVE, Code.UNSTABLE, Code.SINGULAR, Code.INDEFINITE)
    if not (linear or indefinite) or failure.relative_step > 2.0:
        return None
    # each is tried once: a problem that fails at all of them is not mended by damping
    damping = next(left, None)
    return None if damping is None else replace_unchecked(problem, damping=damping)


SLOWER = 4
"""How often steps that were measured are made slower."""


def slowings(given: Algorithm) -> Iterator[Algorithm]:
    """The algorithm as it was given, as often as it may be made slower: never if its steps were."""
    return repeat(given, SLOWER if needs_measuring(given) else 0)


def slowed(algorithm: Algorithm, last: Record, left: Iterator[Algorithm]) -> Algorithm | None:
    """The algorithm with its measured steps cut; None if the last stretch did not diverge, or no cut is left.

    Where lam moves on, the curvature that was measured at the start may be left behind.
    """
    if Code(int(last.code)) not in (Code.DIVERGED, Code.NONFINITE):
        return None
    given = next(left, None)
    return slower(algorithm, given) if isinstance(given, Measurable) and isinstance(algorithm, Measurable) else None
