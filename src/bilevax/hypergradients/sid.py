"""Stochastic implicit differentiation, the estimator of the founding paper."""

import functools
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import Steps, at_least_one, check_fields, config, or_none, replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.core.estimator import Diagnosis, Run
from bilevax.core.given import require_inner_solver, require_linear_solver
from bilevax.core.instance import InnerImage, Instance, Oracle
from bilevax.core.keys import stream
from bilevax.core.protocols import BilevelProblem, InnerSolver, LinearSolver, RowSource, StochasticSolver
from bilevax.core.records import Cost, Count, Estimate, Failure, Solution, first_failure, nonfinite_code
from bilevax.core.trees import PyTree, add, axpy, scale, sub, zeros_like
from bilevax.data import refuse_keys
from bilevax.hypergradients.batches import Sampled, batch_mean, mean_and_deviation, with_squares
from bilevax.hypergradients.once import FromState
from bilevax.hypergradients.residual_error import SolverErrors
from bilevax.hypergradients.sid_error import ChainTrace
from bilevax.solvers import Given, at_step
from bilevax.solvers.chain import confirms, has_grown


class SIDState(NamedTuple):
    """The state of a run, from which it is continued.

    Attributes:
        w: where it is.
        v: likewise; None: at 0.
        cost: so far.
        trace: the evidence for its error report; None before the first step.
    """

    w: PyTree
    v: PyTree | None
    cost: Cost
    trace: ChainTrace | SolverErrors | None = None


class Segment(NamedTuple):
    """A part of a run.

    Attributes:
        outer_step: for counts that grow.
        doublings: how often the run has been doubled with this segment; the Python integer 0: it is all of the run.
    """

    outer_step: Array | int = 0
    doublings: Array | int = 0

    @property
    def _only(self) -> bool:
        return isinstance(self.doublings, int) and self.doublings == 0

    def part(self, solver: StochasticSolver) -> tuple[StochasticSolver, dict[str, Array | int]]:
        """The solver of the first steps of a chain, or of as many more as were before, and what its solve is told."""
        if self._only:
            return solver, {"outer_step": self.outer_step}
        steps = at_step(solver.steps, self.outer_step)
        # t steps at first; then from 2^(i-1) t to 2^i t
        first = jnp.where(jnp.asarray(self.doublings) > 0, steps << self.doublings >> 1, 0)
        return replace_unchecked(solver, steps=jnp.maximum(first, steps)), {"first": first}

    def batches(self, number: Steps) -> tuple[Array, Array]:
        """The first of the minibatches of a mean, and how many: all of them after those before."""
        # n at first; then 2^i n from (2^i - 1) n on, as n + 2 n + ... + 2^(i-1) n = (2^i - 1) n were read before
        once = at_step(number, self.outer_step)
        number = once if self._only else once << self.doublings
        return number - once, number


@config
class SID(FromState):
    """Stochastic implicit differentiation: the hypergradient from two solvers and one Jacobian product.

    1. w_t: t steps of ``inner`` on w = Phi(w, lam).
    2. With w_t frozen and g = grad_1 E(w_t, lam): v_k, k steps of ``linear`` from 0 on (I - d1Phi(w_t, lam)^T) v = g.
    3. value = grad_2 E(w_t, lam) + (1/J) sum_{i <= J} d2Phi(w_t, lam; zeta_i)^T v_k.

    The minibatches of the three stages come from independent streams of the key. Assumes that Phi(., lam) is a
    contraction in expectation; the mean square error is bounded whatever the two solvers are. On full batches
    (``batch_size=None``) this is approximate implicit differentiation (AID).

    ``error``, made by :func:`~bilevax.hypergradient`, is of this one value: after chains of at least 20 epochs, and of
    640 steps, w and v are iterated to where both equations of every row hold, and the value's distance from the
    hypergradient there is ``bias``, kinks and all. Of shorter chains, noise and bias are estimated from eight snapshots
    of both, which errs on the side of caution (:func:`~bilevax.hypergradients.sid_report.sid_report`). Of
    :class:`~bilevax.MixedFP` and :class:`~bilevax.ProductNeumann`, whose chains do not show their noise, it comes
    of the residuals on every row.

    Cost: t gradients, k Hessian-vector products and J cross products on minibatches, and one outer gradient; products
    that test whether an iteration contracts are ``cost.measuring``, and what the report reads ``error.samples``: every
    row and a tenth of k minibatches, or a fortieth of them, at least 24. Memory, with the
    report: 18 copies of w and v, and 16 of lam.
    Source: Grazzi, Pontil, Salzo (2021), arXiv:2011.07122.

    Args:
        inner: :class:`~bilevax.FixedPoint`, :class:`~bilevax.LBFGS`, :class:`~bilevax.CoordinateDescent`, or
            :class:`~bilevax.Given`: w0 is the solution.
        linear: :class:`~bilevax.FixedPoint`, :class:`~bilevax.MixedFP`, :class:`~bilevax.CG`, or any other.
        cross_batches: J, at least 1, or :class:`~bilevax.Growing`; None: every row of train once.
        outer_batches: J1, minibatches of val for E and its gradients, likewise; None (default): every row of val once.

    Examples:
        >>> import bilevax as bx
        >>> bx.SID(inner=bx.LBFGS(), linear=bx.CG()).cross_batches is None  # every row
        True
        >>> sampled = bx.SID(bx.FixedPoint(1000, bx.Harmonic(20, 40)), bx.FixedPoint(1000, bx.Harmonic(20, 40)), 100)
        >>> sampled.cross_batches
        100
    """

    extensible: ClassVar[bool] = True

    inner: InnerSolver | Given
    linear: LinearSolver
    cross_batches: Steps | None = None
    outer_batches: Steps | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Given):
            require_inner_solver("inner", self.inner)
        require_linear_solver("linear", self.linear)
        # None is no count: every row
        check_fields(self, cross_batches=or_none(at_least_one), outer_batches=or_none(at_least_one))

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a problem that lacks what the solvers need.

        Raises:
            ParameterError: the linear solver needs a symmetric problem, or the inner one a loss.
        """
        if not self.linear.stochastic and self.linear.needs_symmetry and not problem.symmetric:
            raise ParameterError(
                f"{type(self.linear).__name__} needs a symmetric system, and the inner map is not known to be a"
                " gradient step; use bx.GradientStep(loss), or linear=bx.GMRES() or bx.FixedPoint(steps=...)"
            )
        require_solvable(self.inner, problem)

    def init(self, instance: Instance, w0: PyTree, *, key: Array, v0: PyTree | None = None) -> SIDState:
        """A run without a step; its arguments are those of :meth:`estimate`."""
        return SIDState(w0, v0, Cost())

    def extend(
        self,
        instance: Instance,
        state: SIDState,
        *,
        key: Array,
        doublings: Array | int = 0,
        outer_step: Array | int = 0,
    ) -> tuple[Estimate, SIDState]:
        """The estimate after 2^doublings t and k steps, from a run of half of them (of none if 0), and the run so far.

        Both chains go on from where they ended, v for the w that is reached now, with the minibatches and the steps
        that are next; J and J1 are doubled as well, all of them new. Deterministic solvers are called again from there.
        """
        train, val, segment = instance.train, instance.val, Segment(outer_step, doublings)
        self._check_keys(train, val)
        # w ~ w(lam)
        inner = solve_inner(self.inner, instance, state.w, key=stream(key, "inner"), segment=segment)
        w = inner.value
        # E, grad_1 E, grad_2 E at w
        (value, g, direct), halves, outer = self.outer(instance, w, key=stream(key, "outer"), segment=segment)
        # v ~ (I - d1Phi^T)^-1 grad_1 E
        linear = self._solve_linear(instance, w, g, state.v, key=stream(key, "linear"), segment=segment)
        v = linear.value
        product, spread, cross = self._cross(instance, w, v, key=stream(key, "cross"), segment=segment)
        # grad_2 E + d2Phi^T v
        hypergradient = add(direct, product)
        cost = Cost(
            gradients=Count(inner.calls, _rows(self.inner, train)),
            hvps=Count(linear.calls, _rows(self.linear, train), linear.reads),
            cross=cross,
            outer_gradients=outer,
            measuring=_checks(self.inner, inner, train) + _checks(self.linear, linear, train),
        )
        code, failure = first_failed(inner, (value, g, direct), linear, product)
        # the longer one: both noises fall with their own length
        chains = [solved.calls for solved in (inner, linear) if solved.snapshots is not None]
        steps = functools.reduce(jnp.maximum, chains) if chains else None
        trace: ChainTrace | SolverErrors = ChainTrace(inner.snapshots, linear.snapshots, spread, halves)
        if self.deterministic(instance):
            trace = SolverErrors(inner.error, linear.error, inner.calls + linear.calls)
        elif self.linear.stochastic and linear.snapshots is None:
            # no snapshots tell its noise: every row does
            refuse_keys(f"the report on {type(self.linear).__name__}", "take bx.FixedPoint", train=train, val=val)
            trace = SolverErrors()
        est = Estimate(hypergradient, value, w, v, code, state.cost.plus(cost), failure, steps=steps)
        return est, SIDState(w, v, est.cost, trace)

    def diagnose(self, instance: Instance, run: Run, estimate: Estimate, *, key: Array, stage: str) -> Diagnosis | None:
        """The stage that failed, repeated alone, with what was suspected tested."""
        segment, w, v = Segment(0, run.doublings), estimate.w, estimate.v
        solver = self.inner if stage == "inner" else self.linear
        if stage not in ("inner", "linear") or not confirms(solver):
            return None
        if stage == "inner":
            solved = solve_inner(self.inner, instance, run.before.w, key=stream(key, "inner"), segment=segment)
            w = solved.value
        else:
            (_, g, _), *_ = self.outer(instance, w, key=stream(key, "outer"), segment=segment)
            solved = self._solve_linear(instance, w, g, run.before.v, key=stream(key, "linear"), segment=segment)
            v = solved.value
        checks = _checks(solver, solved, instance.train)
        return Diagnosis(solved.code, Failure.of(stage, solved.last_step), w, v, checks)

    def deterministic(self, instance: Instance) -> bool:
        """True if every stage sees every row."""
        solvers = isinstance(self.inner, Given) or not self.inner.stochastic
        # all of train in every stage, and all of val
        inner = instance.train.is_full_batch or (solvers and not self.linear.stochastic and self.cross_batches is None)
        return inner and (instance.val.is_full_batch or self.outer_batches is None)

    def _check_keys(self, train: RowSource, val: RowSource) -> None:
        """Refuse stages that see every row of a source whose batches bring keys."""
        for solver in (self.inner, self.linear):
            if not (isinstance(solver, Given) or solver.stochastic):
                refuse_keys(type(solver).__name__, "solve by bx.FixedPoint, or take bx.JointSID", train=train)
        if self.cross_batches is None:
            refuse_keys("cross_batches=None", "pass a number of cross batches", train=train)
        if self.outer_batches is None:
            refuse_keys("outer_batches=None", "pass a number of outer batches", val=val)

    def _solve_linear(
        self, instance: Instance, w: PyTree, g: PyTree, v0: PyTree | None, *, key: Array, segment: Segment
    ) -> Solution:
        """The solution of (I - d1Phi(w, lam)^T) v = g."""
        problem, lam, train, _ = instance
        if not self.linear.stochastic:
            # w's part is computed once
            _, pullback = jax.vjp(lambda x: instance.mean_image(x, lam), w)
            # A v = v - d1Phi^T v
            metric = problem.metric(w, lam) if problem.symmetric else None
            return self.linear.solve(lambda v: sub(v, pullback(v)[0]), g, metric, v0)

        def image(v: PyTree, args: tuple[BilevelProblem, PyTree, PyTree, PyTree], batch: PyTree) -> PyTree:
            # Psi(v) = d1Phi(w; zeta)^T v + g
            problem, w, lam, g = args
            return problem.affine_image(w, lam, batch, g, v)

        start = zeros_like(w) if v0 is None else v0
        solver, part = segment.part(self.linear)
        return solver.solve(image, start, (problem, w, lam, g), train, key=key, **part)

    def outer(
        self, instance: Instance, w: PyTree, *, key: Array, segment: Segment
    ) -> tuple[tuple[Array, PyTree, PyTree], Sampled | None, Count]:
        """E, grad_1 E, grad_2 E, from the same minibatches, and the noise of the gradients."""
        val = instance.val
        if self.outer_batches is None:
            return instance.mean_outer_gradients(w), None, Count(jnp.int32(1), val.rows)

        def terms(args: tuple[Oracle, PyTree], batch: PyTree) -> PyTree:
            oracle, w = args
            return oracle.outer_gradients(w, batch)

        first, number = segment.batches(self.outer_batches)
        early, late, real = number // 2, number - number // 2, jnp.result_type(float)
        half = partial(batch_mean, terms, (instance.oracle, w), val, key=key)
        one, other = half(number=early, first=first), half(number=late, first=first + early)
        # (n_1 x_1 + n_2 x_2) / n, and |x_1 - x_2| sqrt(n_1 n_2 / n), of one degree of freedom: no second sum is carried
        mean = axpy(early.astype(real) / number.astype(real), sub(one, other), other)
        deviation = scale(jnp.sqrt((early * late).astype(real) / number.astype(real)), sub(one[1:], other[1:]))
        return mean, Sampled(deviation, number), Count(number, val.rows_per_batch)

    def _cross(
        self, instance: Instance, w: PyTree, v: PyTree, *, key: Array, segment: Segment
    ) -> tuple[PyTree, Sampled | None, Count]:
        """d2Phi^T v, averaged over the cross batches, and its noise."""
        train = instance.train
        if self.cross_batches is None:
            return instance.mean_cross_product(w, v), None, Count(jnp.int32(1), train.rows)

        def product(args: tuple[Oracle, PyTree, PyTree], batch: PyTree) -> PyTree:
            oracle, w, v = args
            return oracle.cross_product(w, batch, v)

        first, number = segment.batches(self.cross_batches)
        args = instance.oracle, w, v
        # (1/J) sum_i d2Phi(w; zeta_i)^T v
        means = batch_mean(with_squares(product), args, train, key=key, number=number, first=first)
        mean, deviation = mean_and_deviation(means, number)
        return mean, Sampled(deviation, number), Count(number, train.rows_per_batch)


def require_solvable(solver: InnerSolver | Given, problem: BilevelProblem) -> None:
    """Refuse an inner map without the loss, or without the penalty, that the solver needs."""
    if isinstance(solver, Given) or solver.stochastic or problem.has_loss:
        return
    if not (problem.composite and getattr(solver, "takes_prox", False)):
        raise ParameterError(
            f"{type(solver).__name__} needs an inner loss without a prox, and the inner map has none; "
            "use bx.GradientStep(loss), or inner=bx.FixedPoint(steps=...), or bx.CoordinateDescent() with a prox"
        )


def solve_inner(
    solver: InnerSolver | Given, instance: Instance, w0: PyTree, *, key: Array, segment: Segment
) -> Solution:
    """The fixed point of Phi(., lam)."""
    if isinstance(solver, Given):
        return Solution(w0, jnp.int32(Code.OK), jnp.int32(0), jnp.int32(0))
    if not solver.stochastic:
        # min over w of the inner loss, on every row
        problem = instance.problem
        loss = problem.inner_loss if problem.has_loss else problem.inner_map
        return solver.solve(loss, w0, instance.lam, instance.train)

    # w <- w + eta_j (Phi(w; zeta_j) - w)
    solver, part = segment.part(solver)
    solved = solver.solve(InnerImage(), w0, instance.oracle, instance.train, key=key, **part)
    if instance.problem.damping is None:
        return solved
    # damping lets v contract, not w
    lost = has_grown(w0, solved.value) & (solved.code < Code.DIVERGED)
    return solved._replace(code=jnp.where(lost, jnp.int32(Code.DIVERGED), solved.code))


def first_failed(inner: Solution, outer: tuple[PyTree, ...], linear: Solution, cross: PyTree) -> tuple[Array, Failure]:
    """The code of the four stages, and where the first of them that failed did; E is the first of the outer results."""
    return first_failure(
        (inner.code, Failure.of("inner", inner.last_step)),
        (nonfinite_code(outer), Failure.of("outer", finite=jnp.isfinite(outer[0]))),
        (linear.code, Failure.of("linear", linear.last_step)),
        (nonfinite_code(cross), Failure.of("cross")),
    )


def cost_of_inner(solver: InnerSolver | Given, solved: Solution, source: RowSource) -> Cost:
    """What the inner stage cost."""
    return Cost(gradients=Count(solved.calls, _rows(solver, source)), measuring=_checks(solver, solved, source))


def _checks(solver: InnerSolver | LinearSolver | Given, solved: Solution, source: RowSource) -> Count:
    return Count(jnp.asarray(solved.diagnostic_products, jnp.int32), _rows(solver, source))


def _rows(solver: InnerSolver | LinearSolver | Given, source: RowSource) -> int:
    """Of each of its oracle calls."""
    if isinstance(solver, Given):
        return 0
    return source.rows_per_batch if solver.stochastic else source.rows
