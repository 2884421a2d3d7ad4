"""Truncated iterative differentiation: the derivative of the last steps of a trajectory."""

from typing import Any, ClassVar

import jax
from jax import Array

from bilevax.core.config import config, count, real, set_fields, static
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import RowSource
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, zeros_like
from bilevax.hypergradients.itd import Trajectory, differentiated, unrolled
from bilevax.problems.problem import Problem
from bilevax.solvers.schedules import Constant, schedule


@config
class TruncatedITD:
    """The gradient of E(w_t(lam), lam) through the last k of t steps of the inner map, on every row of train.

    w_{t-k} counts as a constant, so the error has a floor that falls as q^k.

    Assumes that the map contracts. Cost: t + k gradients, k Hessian-vector and k cross products; memory of order
    sqrt(k). Source: Shaban, Cheng, Hatch, Boots (2019), arXiv:1810.10667.

    Args:
        steps: t, a count of at least 1; a changed one compiles anew.
        last: k, a count from 1 to t; likewise.
        step_size: eta_j, a number or a schedule. Default 1: the map itself.
        tol: relative error of w above which the code is BUDGET, as in :class:`~bilevax.FixedPoint`. Default 0.1.
    """

    steps: int = static()
    last: int = static()
    step_size: Any = Constant(1.0)
    tol: float = 0.1

    mode: ClassVar[str] = "reverse"

    def __post_init__(self) -> None:
        steps, last = count("steps", self.steps, low=1), count("last", self.last, low=1)
        if last > steps:
            raise ParameterError(f"last must lie in [1, steps={steps}], got {last}")
        tol = real("tol", self.tol, low=0.0, open_low=True)
        set_fields(self, steps=steps, last=last, step_size=schedule(self.step_size), tol=tol)

    def check(self, problem: Problem) -> None:
        """Every problem will do."""

    def deterministic(self, sources: tuple[RowSource, RowSource]) -> bool:
        """True: every step sees every row."""
        return True

    def estimate(
        self,
        problem: Problem,
        w0: PyTree,
        lam: PyTree,
        sources: tuple[RowSource, RowSource],
        *,
        key: Array,
        s: Array | int = 0,
        v0: PyTree | None = None,
    ) -> Estimate:
        """One hypergradient; pure and traceable. Draws nothing, solves no linear system: key, s and v0 play no part."""
        batch, first = sources[0].full, self.steps - self.last
        at = Trajectory.of(w0)
        at = unrolled(problem, at, (lam, zeros_like(w0)), batch, self.step_size, 0, first) if first else at

        def trajectory(lam: PyTree, offset: PyTree) -> Trajectory:
            return unrolled(problem, jax.lax.stop_gradient(at), (lam, offset), batch, self.step_size, first, self.last)

        return differentiated(self, problem, trajectory, (w0, lam), sources, self.last)
