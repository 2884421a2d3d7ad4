"""The bilevel stochastic gradient method: a projected step along an inexact hypergradient."""

from typing import Any, NamedTuple

import optax
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import config
from bilevax.core.errors import ParameterError
from bilevax.core.promotion import usual_promotion
from bilevax.core.protocols import RowSource
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, all_finite, where, zeros_like
from bilevax.hypergradients.measured import measured_estimate
from bilevax.problems.problem import Problem


class BSGMState(NamedTuple):
    """What is carried from one outer step to the next."""

    lam: PyTree
    optimiser: Any
    w: PyTree
    v: PyTree


@config
class BSGM:
    """lam_{s+1} = P(lam_s - step along an estimated hypergradient), each from a cold start unless asked otherwise.

    Assumes what its estimator assumes, and a smooth E. With t, k and J growing linearly in s
    (:class:`~bilevax.Growing`) it is the method of optimal sample complexity; with ``warm_start`` and few steps it is
    in the spirit of AmIGO. Cost: that of one estimate a step. Source: Grazzi, Pontil, Salzo (2023), arXiv:2202.03397.

    Args:
        estimator: of the hypergradient, such as :class:`~bilevax.SID`.
        outer: :func:`~bilevax.optim` (a changed number compiles nothing) or any optax transformation.
        warm_start: start both solvers from where they ended at the last step; default False: from w0 and from 0.
    """

    estimator: Any
    outer: Any
    warm_start: bool = False

    def __post_init__(self) -> None:
        if not hasattr(self.estimator, "estimate"):
            raise ParameterError(f"estimator must be one such as bx.SID(...), got {self.estimator!r}")
        if not (hasattr(self.outer, "init") and hasattr(self.outer, "update")):
            raise ParameterError(
                f"outer must be bx.optim('adam', learning_rate=0.05) or an optax transformation, got {self.outer!r}"
            )

    def check(self, problem: Problem) -> None:
        """Refuse a problem that lacks what the estimator needs."""
        self.estimator.check(problem)

    def init(self, problem: Problem, w0: PyTree, lam: PyTree) -> BSGMState:
        """The state before the first step; lam is projected."""
        lam = lam if problem.project is None else problem.project(lam)
        return BSGMState(lam, self.outer.init(lam), w0, zeros_like(w0))

    def step(
        self,
        problem: Problem,
        state: BSGMState,
        w0: PyTree,
        sources: tuple[RowSource, RowSource],
        *,
        key: Array,
        s: Array,
    ) -> tuple[BSGMState, Estimate]:
        """One outer step; a hypergradient not finite, or NOT_CONTRACTIVE or worse, leaves the state as it was."""
        start = state.w if self.warm_start else w0
        v0 = state.v if self.warm_start else None
        est = measured_estimate(problem, self.estimator, start, state.lam, sources, key=key, s=s, v0=v0)
        with usual_promotion():
            updates, optimiser = self.outer.update(est.value, state.optimiser, state.lam)
            lam = optax.apply_updates(state.lam, updates)
        lam = lam if problem.project is None else problem.project(lam)
        new = BSGMState(lam, optimiser, est.w, state.v if est.v is None else est.v)
        usable = all_finite((est.value, lam)) & (est.code < Code.NOT_CONTRACTIVE)
        return where(usable, new, state), est

    def solution(self, state: BSGMState) -> tuple[PyTree, PyTree]:
        """The inner and the outer variable of a state."""
        return state.w, state.lam
