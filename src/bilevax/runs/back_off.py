"""What a run does about an outer step that failed: its linear system is damped, and the step is made again."""

from collections.abc import Iterator

from bilevax.algorithms.outer_loop import Record
from bilevax.core.codes import Code
from bilevax.core.config import replace_unchecked
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
