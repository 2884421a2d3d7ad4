"""Stochastic reverse mode: back-propagation along a path of minibatches that stays at the inner solution."""

from typing import TypeAlias

from jax import Array

from bilevax.core.config import Steps, check_count, check_fields, config, positive
from bilevax.core.estimator import Diagnosis, Run
from bilevax.core.instance import Instance, Oracle
from bilevax.core.keys import stream
from bilevax.core.protocols import BilevelProblem, Draw, InnerSolver
from bilevax.core.records import Cost, Count, Estimate
from bilevax.core.trees import PyTree, add, axpy, sub, zeros_like
from bilevax.data import refuse_keys
from bilevax.hypergradients.once import Once, RunsOnce
from bilevax.hypergradients.residual_error import SolverErrors
from bilevax.hypergradients.sid import SID, Segment, cost_of_inner, first_failed, solve_inner
from bilevax.solvers import Given, ProductNeumann, at_step
from bilevax.solvers.product_neumann import series_solution

Carry: TypeAlias = tuple[PyTree, PyTree, PyTree]
"""(u, v, h): the multiplier of a step, the sum of those before, and the hypergradient so far."""


@config
class StochasticReverse(RunsOnce):
    """Reverse mode along a path that is frozen at the inner solution, one minibatch a step.

    1. w_t: t steps of ``inner`` on w = Phi(w, lam).
    2. From u = grad_1 E(w_t, lam) and h = grad_2 E(w_t, lam), for j < k

           h <- h + d2Phi(w_t, lam; zeta_j)^T u ,      u <- d1Phi(w_t, lam; zeta_j)^T u .

    3. value = h.

    It is what back-propagation through k steps of stochastic gradients would give if they all were at w_t, or
    :class:`~bilevax.SID` with :class:`~bilevax.ProductNeumann`, each term with a cross product of its own; ``v`` is the
    sum of the u. The bias falls as q^k; the noise of one path of products stays, however long it is.

    Assumes d1Phi of spectral radius below one, and products that do not grow in mean square. ``error`` comes of the
    residuals of both equations on every row (:func:`~bilevax.hypergradients.residual_error.residual_error`).

    Cost: t gradients; k Hessian-vector and k cross products on the same minibatches, of one vector-Jacobian product
    each; an outer gradient; the report five epochs. Source: Terashita, Hara (2025), TMLR, where it is StocRB; the
    deterministic one is recurrent back-propagation (Almeida 1987; Pineda 1987).

    Args:
        inner: as in :class:`~bilevax.SID`.
        steps: k, a count of at least 0, or :class:`~bilevax.Growing`.
        outer_batches: J1, minibatches of val, or :class:`~bilevax.Growing`; None (default): every row of val once.
        tol: length of the last u against grad_1 E above which the code is TOLERANCE_NOT_MET. Default 0.1.

    Examples:
        >>> import bilevax as bx
        >>> bx.StochasticReverse(bx.LBFGS(), steps=200).steps
        200
    """

    inner: InnerSolver | Given
    steps: Steps
    outer_batches: Steps | None = None
    tol: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, steps=check_count)
        _ = self._sid  # which checks the rest

    @property
    def _sid(self) -> SID:
        """With the same stages before the path."""
        return SID(self.inner, ProductNeumann(self.steps, None, self.tol), 1, self.outer_batches)

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a problem that lacks what the inner solver needs.

        Raises:
            ParameterError: it has no loss, and the inner solver needs one.
        """
        self._sid.check(problem)

    def deterministic(self, instance: Instance) -> bool:
        """True if every stage sees every row."""
        return self._sid.deterministic(instance)

    def extend(
        self,
        instance: Instance,
        state: Once,
        *,
        key: Array,
        doublings: Array | int = 0,
        outer_step: Array | int = 0,
    ) -> tuple[Estimate, Once]:
        """The estimate; a path begins at its end, so that none goes on, and ``doublings`` is 0."""
        train, sid, segment, steps = instance.train, self._sid, Segment(outer_step), at_step(self.steps, outer_step)
        refuse_keys("the report on StochasticReverse", "take bx.JointSID", train=train, val=instance.val)
        inner = solve_inner(sid.inner, instance, state.w, key=stream(key, "inner"), segment=segment)
        w = inner.value
        (value, g, direct), _, outer = sid.outer(instance, w, key=stream(key, "outer"), segment=segment)

        def step(carry: Carry, args: tuple[Oracle, PyTree], _: Array, draw: Draw) -> Carry:
            (u, v, h), (oracle, w) = carry, args
            by_w, by_lam = oracle.inner_pullback(w, draw.batch)[1](u)
            # u <- d1Phi^T u, v <- v + u, h <- h + d2Phi^T u, the old u on the right
            return axpy(draw.weight, sub(by_w, u), u), add(v, u), axpy(draw.weight, by_lam, h)

        # u_0 = grad_1 E, v_0 = 0, h_0 = grad_2 E
        start, args = (g, zeros_like(g), direct), (instance.oracle, w)
        u, v, h = train.fold(step, start, args, key=stream(key, "linear"), start=0, stop=steps)
        # v = sum_j u_j, the multiplier; u, its last term, tells what is left out
        solved = series_solution(v, zeros_like(v), (u, g, self.tol), calls=steps, last_step=steps)
        code, failure = first_failed(inner, (value, g, direct), solved, h)
        rows = train.rows_per_batch
        # both products of a step are one vector-Jacobian product
        path = Cost(hvps=Count(steps, rows), cross=Count(steps, rows, 0), outer_gradients=outer)
        cost = cost_of_inner(self.inner, inner, train).plus(path)
        trace = SolverErrors(inner.error, None, inner.calls) if self.deterministic(instance) else SolverErrors()
        return Estimate(h, value, w, solved.value, code, cost, failure), Once(w, solved.value, trace)

    def diagnose(self, instance: Instance, run: Run, estimate: Estimate, *, key: Array, stage: str) -> Diagnosis | None:
        """The inner chain, repeated alone, with what was suspected tested."""
        return self._sid.diagnose(instance, run, estimate, key=key, stage=stage)
