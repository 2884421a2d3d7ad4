"""The plain deterministic method, which stochastic ones are compared with.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the state and both sources, undrawn. Out:
the next state, and the value, the norm and the cost of one hypergradient on every row.
"""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from bilevax.core.config import check_fields, config, positive, replace_unchecked
from bilevax.core.instance import Instance
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Info
from bilevax.core.trees import PyTree, axpy, norm, sub, vdot, where, zeros_like
from bilevax.data import Undrawn
from bilevax.hypergradients import SID
from bilevax.problems import GradientStep
from bilevax.solvers import CG, LBFGS
from bilevax.solvers.parts import projected

SUFFICIENT = 1e-4
"""Share of the predicted decrease that a step must reach (Armijo)."""

SLACK = 1e-4
"""By how much of itself the value may grow where the gradient says that a step is sound: it is known so well."""


class State(NamedTuple):
    """The best point with its value and gradient, and the step that is tried next."""

    lam: PyTree
    w: PyTree
    v: PyTree
    value: Array
    gradient: PyTree
    step: Array


@config
class Descent:
    """Projected gradient descent with Barzilai-Borwein steps and backtracking, on exact hypergradients.

        w = argmin G by L-BFGS and v by conjugate gradients, on every row, from where they were at the last point
        trial = P(lam - t g),   taken if f(trial) <= f(lam) - 1e-4 <g, lam - trial>; else t <- t / 2
        t     = <s, s> / <s, y> after it, s and y the changes of lam and g, within a factor of ten; ten t if <s, y> <= 0

    Where f(trial) - f(lam) drowns in the errors of w, a trial is also taken if its slope along s is no steeper than
    that at lam (the approximate Wolfe condition of Hager, Zhang 2005). An outer step is one trial, one hypergradient.
    Assumes an inner loss. No step is to be chosen: the first moves lam by a tenth of 1 + |lam|. Cost: of L-BFGS and of
    conjugate gradients, all on every row.
    Source: Barzilai, Borwein (1988); Pedregosa (2016), arXiv:1602.02355, with tolerances that stay.

    Args:
        tol: of L-BFGS and of conjugate gradients. Default 1e-6.
    """

    steps_per_record: ClassVar[int] = 1

    tol: float = 1e-6

    def __post_init__(self) -> None:
        check_fields(self, tol=positive)

    @property
    def estimator(self) -> SID:
        """L-BFGS and conjugate gradients."""
        return SID(LBFGS(self.tol), CG(self.tol))

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a problem without an inner loss."""
        self.estimator.check(problem)

    def streams(self, sources: Sources) -> dict[str, Undrawn]:
        """The sources themselves: every row is read."""
        return {"train": Undrawn(sources[0]), "val": Undrawn(sources[1])}

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources) -> State:
        """The state before the first step, which moves nothing but knows the value and the gradient."""
        lam = projected(problem, lam)
        infinite = jnp.full((), jnp.inf, norm(lam).dtype)
        return State(lam, w0, zeros_like(w0), infinite, zeros_like(lam), jnp.zeros_like(infinite))

    def step(self, problem: BilevelProblem, state: State, looks: StepLooks, k: Array) -> tuple[State, Info]:
        """One trial."""
        trial = projected(problem, axpy(-state.step, state.gradient, state.lam))
        # neither solver needs a step to be measured: with s = 1 the map's linear system is that of the Hessian
        problem = replace_unchecked(problem, inner_map=GradientStep(problem.inner_loss, 1.0))
        instance = Instance(problem, trial, looks["train"].source, looks["val"].source)
        est = self.estimator.estimate(instance, state.w, key=looks.key, outer_step=k, v0=state.v)
        s, y = sub(trial, state.lam), sub(est.value, state.gradient)
        # f(trial) <= f(lam) + c <g, s>, where f(lam) is infinite at the first step; NaN is refused
        slope, value = vdot(state.gradient, s), est.outer_value
        sufficient = value <= state.value + SUFFICIENT * slope
        # or <g(trial), s> <= -(1 - 2 c) <g, s>, and f no larger but for its errors
        sound = vdot(est.value, s) <= (2.0 * SUFFICIENT - 1.0) * slope
        taken = sufficient | (sound & (value <= state.value + SLACK * jnp.abs(value)))
        # |t g| = (1 + |lam|) / 10 at first, then <s, s> / <s, y>
        first = 0.1 * (1.0 + norm(trial)) / jnp.maximum(norm(est.value), jnp.finfo(state.value.dtype).tiny)
        curved = vdot(s, y)
        secant = jnp.where(curved > 0.0, vdot(s, s) / jnp.where(curved > 0.0, curved, 1.0), jnp.inf)
        longer = jnp.where(k == 0, first, jnp.clip(secant, 0.1 * state.step, 10.0 * state.step))
        new = State(trial, est.w, est.v, value, est.value, longer)
        state = where(taken, new, state._replace(step=0.5 * state.step))
        return state, Info(state.value, norm(state.gradient), cost=est.cost)

    def outer_step_size(self, k: Array) -> None:
        """None: steps are searched."""

    def solution(self, state: State) -> tuple[PyTree, PyTree]:
        """The inner and the outer variable of a state."""
        return state.w, state.lam

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> None:
        """None: every step reports the cost of its hypergradient."""
