"""What a run does about outer steps that failed: they are made again, the linear system damped, or slower."""

from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
from jax import Array

from bilevax.algorithms.measured_steps import GROWN, Measurable, needs_measuring, slower, steeper
from bilevax.algorithms.outer_loop import Record
from bilevax.core.codes import Code
from bilevax.core.config import replace_unchecked
from bilevax.core.protocols import Algorithm
from bilevax.core.records import STAGES
from bilevax.core.trees import PyTree
from bilevax.problems.problem import Problem

DAMPINGS = (0.01, 0.04, 0.16, 0.64)
"""Tried one after another, in units in which a gradient step of 1 / L has curvatures of at most 1."""


CUTS = 6
"""How often steps that were measured are made slower; rho every third time."""


class BackOff:
    """What a run may still try, and at which outer steps it did.

    Args:
        problem: its system is damped if it has an inner loss, unless a damping was given.
        algorithm: as it was given; made slower if its steps are to be measured.

    Attributes:
        limit: of the mean direction of lam over a stretch, of steps that were measured; infinite of steps that were
            given.
        tried: for a result's ``config``: under "damping" pairs (outer step, damping), under "slower_from" and
            "steeper_from" outer steps.
    """

    def __init__(self, problem: Problem, algorithm: Algorithm) -> None:
        self._given = algorithm
        self._dampings = DAMPINGS if problem.has_loss and problem.damping is None else ()
        self._cuts = CUTS if needs_measuring(algorithm) else 0
        self._damped = self._cut = 0
        self.limit: Array | float = np.inf
        # the outer step at which the last stretch that failed began, and its direction's length
        self._beyond = -1, np.inf
        self.tried: dict[str, list[int | list[float]]] = {}

    def again(
        self,
        problem: Problem,
        algorithm: Algorithm,
        last: Record,
        step: int,
        steepness: Callable[[], Array | None],
    ) -> tuple[Problem, Algorithm] | None:
        """With what the last stretch, from this step on, is made again; None if it did not fail or nothing would help.

        Each damping is tried once: a problem that fails at all of them is not mended by damping. ``steepness`` measures
        that of the inner loss where the run is.
        """
        if _damping_helps(last) and self._damped < len(self._dampings):
            damping, self._damped = self._dampings[self._damped], self._damped + 1
            self.tried.setdefault("damping", []).append([step, damping])
            return replace_unchecked(problem, damping=damping), algorithm
        if int(last.code) not in (Code.DIVERGED, Code.NONFINITE):
            return None
        # slower steps do not help against a direction that is as long from the stretch's start on
        size, before = float(last.gradient_norm), self._beyond
        self._beyond = step, size
        if before[0] == step and 0.5 * before[1] < size < np.inf and size > self.limit:
            self.limit = GROWN * size
            return problem, algorithm
        # where lam moves on, the curvature for which the steps are may be left behind
        given, measured = cast(Measurable, self._given), cast(Measurable, algorithm)
        if self._cuts and (followed := steeper(measured, given, steepness())) is not None:
            self.tried.setdefault("steeper_from", []).append(step)
            return problem, followed
        # or w and u stay behind
        if self._cut < self._cuts:
            self._cut += 1
            self.tried.setdefault("slower_from", []).append(step)
            return problem, slower(measured, given, both=self._cut % 3 == 0)
        return None

    def state(self) -> dict[str, PyTree]:
        """What has been tried, for a checkpoint."""
        counts = {"damped": self._damped, "cut": self._cut, "beyond": list(self._beyond)}
        return counts | {"limit": np.asarray(self.limit), "tried": self.tried}

    def resume(self, state: Mapping[str, PyTree]) -> None:
        """As it was at a checkpoint."""
        self._damped, self._cut, self._beyond = state["damped"], state["cut"], tuple(state["beyond"])
        self.limit, self.tried = state["limit"], dict(state["tried"])


def _damping_helps(last: Record) -> bool:
    """Against a linear system that is not positive definite, or whose solution overflowed.

    Not against a step above 2 / L, nor where w diverges.
    """
    code, failure = Code(int(last.code)), last.failure
    # (I - d1Phi^T + delta I) v = g has a smaller solution, and is definite once delta exceeds the negative curvature
    linear = code in (Code.DIVERGED, Code.NONFINITE) and STAGES[int(failure.stage)] in ("linear", "cross")
    indefinite = code in (Code.NOT_CONTRACTIVE, Code.UNSTABLE, Code.SINGULAR, Code.INDEFINITE)
    return (linear or indefinite) and not failure.relative_step > 2.0
