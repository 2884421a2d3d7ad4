"""MAID: descent on every row that chooses its own step sizes and accuracies, from estimates of what these cost it.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the state and both sources, undrawn. The
solvers and the error report of ``hypergradients`` say what is known at lam, and how well. Out, to the loop: the next
state, and the outer value, gradient norm, code and cost of the step.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.algorithms.bsgm import with_tolerance
from bilevax.algorithms.common import check_inner_loss, sources_of, undrawn
from bilevax.core.codes import Code
from bilevax.core.config import check_fields, config, or_none, positive, replace_unchecked
from bilevax.core.instance import Instance
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Cost, Count, Failure, Info
from bilevax.core.trees import PyTree, norm, sub, where, zeros, zeros_like
from bilevax.data import Undrawn
from bilevax.hypergradients.driver import with_measuring_cost
from bilevax.hypergradients.residual_error import SolverErrors, report_products, residual_error
from bilevax.hypergradients.sid import SID
from bilevax.linalg.row_chunks import value_and_grad
from bilevax.solvers import CG, LBFGS
from bilevax.solvers.parts import outer_move, projected

DECREASE = 1e-4
"""Of what the gradient promises, the part by which the outer function must fall; and that a direction keeps."""

SHORTER, LONGER = 0.5, 10 / 9
"""What a step size is multiplied by where it was too long, and where it was not."""

FINER, COARSER = 0.5, 1.05
"""Of the tolerances: where they left a question open, and where they did not."""

COARSEST = 0.5
"""The largest tolerance."""


class Known(NamedTuple):
    """What is known at lam: w, u, E(w, lam) and the most by which that is off, the hypergradient, and its error."""

    w: PyTree
    u: PyTree
    value: Array
    slack: Array
    gradient: PyTree
    error: Array


class State(NamedTuple):
    """Lam, what is known there, whether that is still good, the tolerance of both solvers, and the step size."""

    lam: PyTree
    known: Known
    good: Array
    tol: Array
    size: Array


@config
class MAID:
    """Descent on every row with certified backtracking: a step is made if f fell, whatever the solvers left over.

        w, u : solved to |grad_1 G| <= tol (1 + |w|) and |H u - grad_1 E| <= tol |grad_1 E|, from where they were
        g     = grad_2 E - d2(grad_1 G)^T u,    |g - grad f(lam)| <= error,    |E(w, lam) - f(lam)| <= slack
        rise  = E(w', lam') - E(w, lam) + 1e-4 |lam' - lam|^2 / beta       at lam' = P(lam - beta g), w' solved likewise
        lam  <- lam', beta <- 10/9 beta, tol <- 1.05 tol     if rise <= -(slack + slack')
        beta <- beta / 2                                     if rise > slack + slack'
        tol  <- tol / 2          else, and where error > (1 - 1e-4) |g|: -g need not be a direction of descent

    An outer step is one such trial. slack is |u| |grad_1 G(w)|, to first order a bound, as E changes by <u, grad_1 G>
    on the way to w(lam); the error is that of :func:`~bilevax.hypergradients.residual_error.residual_error`, of no
    constant of the problem. Published, ten shorter steps are tried before a finer tolerance is asked for; here what
    left the question open decides. Assumes an inner loss, strongly convex. Cost: the solvers', and that of one report
    on every row. Source: Salehi, Mukherjee, Roberts, Ehrhardt (2023), arXiv:2308.10098.

    Args:
        step_size: beta_0, positive; None (default): the first move has length 1.
        tol: the first tolerance, positive. Default 0.1.
        inner: of which the tolerance is replaced. Default :class:`~bilevax.LBFGS`.
        linear: likewise. Default :class:`~bilevax.CG`.

    Raises:
        ParameterError: the problem has no inner loss (when a run begins).

    Examples:
        >>> MAID(tol=0.05).tol
        0.05
    """

    steps_per_record: ClassVar[int] = 1

    step_size: float | None = None
    tol: float = 0.1
    inner: LBFGS = LBFGS()
    linear: CG = CG()

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, step_size=or_none(positive))

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a map that is no gradient step."""
        check_inner_loss(self, problem)

    def streams(self, sources: Sources) -> dict[str, Undrawn]:
        """The sources themselves: every row is read."""
        return undrawn(sources)

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources) -> State:
        """The state before the first step, at which nothing is known; lam projected."""
        zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(lam)))
        size = zero if self.step_size is None else jnp.asarray(self.step_size, zero.dtype)
        lam = projected(problem, lam)
        known = Known(w0, zeros_like(w0), zero, zero, zeros_like(lam), zero)
        return State(lam, known, jnp.asarray(False), jnp.asarray(self.tol, zero.dtype), size)

    def step(self, problem: BilevelProblem, state: State, looks: StepLooks, k: Array) -> tuple[State, Info]:
        """One trial; what is known of lam is found first, where it is not."""
        train, val = sources_of(looks)
        here = partial(_known_at, self, Instance(problem, state.lam, train, val), state, looks.key)
        known, outcome, cost = _if(~state.good, here, (state.known, (jnp.int32(Code.OK), Failure.of("none"))))
        length = norm(known.gradient)
        # |beta g| = 1 where no size is given
        beta = jnp.where(state.size > 0, state.size, 1.0 / jnp.where(length > 0, length, 1.0))
        certain = known.error <= (1.0 - DECREASE) * length
        lam = outer_move(problem, state.lam, known.gradient, beta)
        there = partial(_value_at, self, Instance(problem, lam, train, val), known, state.tol)
        w, value, slack, further = _if(certain, there, (known.w, known.value, known.slack))
        change = norm(sub(lam, state.lam))
        # E(w', lam') - E(w, lam) + 1e-4 |lam' - lam|^2 / beta, and the most by which that is off
        rise, off = value - known.value + DECREASE * change**2 / beta, slack + known.slack
        fell, rose = certain & (rise <= -off) & (change > 0), certain & ~(rise <= off)
        beta *= jnp.where(fell, LONGER, jnp.where(rose, SHORTER, 1.0))
        tol = state.tol * jnp.where(fell, COARSER, jnp.where(rose, 1.0, FINER))
        tol = jnp.clip(tol, 10 * float(jnp.finfo(tol.dtype).eps), COARSEST)
        lam, known = where(fell, lam, state.lam), known._replace(w=where(fell, w, known.w))
        # a step that was too long changes nothing of what is known
        new = State(lam, known, rose, tol.astype(state.tol.dtype), beta.astype(state.size.dtype))
        return new, Info(known.value, length, outcome, cost.plus(further))

    def outer_step_size(self, k: Array) -> None:
        """None: a step has its own, and ``info`` the gradient norm."""

    def solution(self, state: State) -> tuple[PyTree, PyTree]:
        """The inner and the outer variable of a state."""
        return state.known.w, state.lam

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> None:
        """None: every step reports its own."""


def _known_at(
    algorithm: MAID, instance: Instance, state: State, key: Array
) -> tuple[Known, tuple[Array, Failure], Cost]:
    """Both solvers at lam, to the tolerance of the state, and the report on what they give."""
    at, tol = state.known, state.tol
    ready = instance.with_measured_step(at.w, key)
    sid, metric = with_tolerance(SID(algorithm.inner, algorithm.linear), tol), ready.problem.metric(at.w, instance.lam)
    # u = s v
    start = sid.init(ready, at.w, key=key, v0=jax.tree.map(jnp.divide, at.u, metric))
    est, after = sid.extend(ready, start, key=key)
    assert isinstance(after.trace, SolverErrors)
    report = residual_error(ready, est.value, (est.w, est.v), after.trace)
    u = jax.tree.map(jnp.multiply, metric, est.v)
    value, error = (jnp.asarray(x, tol.dtype) for x in (est.outer_value, norm(report.bias)))
    # an error that is not known is as large as can be
    error = jnp.nan_to_num(error, nan=jnp.inf)
    known = Known(est.w, u, value, _slack(instance, est.w, u, tol), est.value, error)
    rows = instance.train.rows, instance.val.rows
    products = Count(report_products(after.trace), rows[0])
    further = Cost(Count(1, rows[0]), outer_gradients=Count(2, rows[1]), measuring=products)
    return known, (est.code, est.failure), with_measuring_cost(est, instance).cost.plus(further)


def _value_at(algorithm: MAID, instance: Instance, known: Known, tol: Array) -> tuple[PyTree, Array, Array, Cost]:
    """W solved at another lam, E there, and the most by which that is off."""
    problem, lam, train, val = instance
    solved = replace_unchecked(algorithm.inner, tol=tol).solve(problem.inner_loss, known.w, lam, train)
    value, slack = instance.mean_outer_loss(solved.value), _slack(instance, solved.value, known.u, tol)
    cost = Cost(Count(solved.calls + 1, train.rows), outer_gradients=Count(1, val.rows))
    # a sum has arrays for counts
    return solved.value, value.astype(tol.dtype), slack, Cost().plus(cost)


def _slack(instance: Instance, w: PyTree, u: PyTree, tol: Array) -> Array:
    """|u| |grad_1 G(w)|, of the type of the tolerance."""
    gradient = instance.train.total(
        lambda at, batch: value_and_grad(at[0].problem.inner_loss)(at[1], at[0].lam, batch)[1], (instance.oracle, w)
    )
    # |E(w) - E(w(lam))| <= |H^-1 grad_1 E| |grad_1 G(w)|, to first order
    return jnp.asarray(norm(u) * norm(gradient), tol.dtype)


def _if(condition: Array, found: Callable[[], tuple[PyTree, ...]], otherwise: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    """What is found, its cost last, where the condition holds; else this, at no cost."""
    nothing = zeros(jax.eval_shape(found)[-1])
    out: tuple[PyTree, ...] = jax.lax.cond(condition, found, lambda: (*otherwise, nothing))
    return out
