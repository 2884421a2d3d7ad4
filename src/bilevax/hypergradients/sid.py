"""Stochastic implicit differentiation, the estimator of the founding paper."""

import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import check_count, config, replace_unchecked, set_frozen
from bilevax.core.errors import ParameterError
from bilevax.core.instance import Instance
from bilevax.core.keys import stream
from bilevax.core.protocols import BilevelProblem, RowSource
from bilevax.core.records import Cost, Count, Estimate, Failure, Solution, nonfinite_code, worst_part
from bilevax.core.trees import PyTree, add, axpy, scale, sub, zeros_like
from bilevax.data import refuse_keys
from bilevax.hypergradients.batches import Sampled, batch_mean, batch_spread
from bilevax.hypergradients.diagnosis import Diagnosis, Run
from bilevax.hypergradients.residual_error import SolverErrors
from bilevax.hypergradients.sid_error import ChainTrace
from bilevax.solvers import FixedPoint, Given, Neumann, at_step
from bilevax.solvers.fixed_point import has_grown


class SIDState(NamedTuple):
    """What a run is continued from: its w and v (None: start from 0), and its cost so far."""

    w: PyTree
    v: PyTree | None
    cost: Cost


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

    def solve(self, solver: Any, image: Any, start: PyTree, args: PyTree, source: RowSource, *, key: Array) -> Solution:
        """A chain of minibatches: its first steps, or as many more as there were before."""
        if self._only:
            return solver.solve(image, start, args, source, key=key, s=self.outer_step)
        steps = at_step(solver.steps, self.outer_step)
        first = jnp.where(jnp.asarray(self.doublings) > 0, steps << self.doublings >> 1, 0)
        solver = replace_unchecked(solver, steps=jnp.maximum(first, steps))
        return solver.solve(image, start, args, source, key=key, first=first)

    def batches(self, number: Any) -> tuple[Array, Array]:
        """The first of the minibatches of a mean, and how many: all of them after those before."""
        once = at_step(number, self.outer_step)
        number = once if self._only else once << self.doublings
        return number - once, number


@config
class SID:
    """Stochastic implicit differentiation: the hypergradient from two solvers and one Jacobian product.

    1. w_t: t steps of ``inner`` on w = Phi(w, lam).
    2. With w_t frozen and g = grad_1 E(w_t, lam): v_k, k steps of ``linear`` from 0 on (I - d1Phi(w_t, lam)^T) v = g.
    3. value = grad_2 E(w_t, lam) + (1/J) sum_{i <= J} d2Phi(w_t, lam; zeta_i)^T v_k.

    The minibatches of the three stages come from independent streams of the key. Assumes that Phi(., lam) is a
    contraction in expectation; the mean square error is bounded whatever the two solvers are. On full batches
    (``batch_size=None``) this is approximate implicit differentiation (AID).

    ``error``, made by :func:`~bilevax.hypergradient`, is of this one value: after chains of at least 20 epochs, and of
    640 steps, w and v are led on to where both equations of every row hold, and the value's distance from the
    hypergradient there is ``bias``, kinks and all. Shorter chains are priced by where both were at eight points of
    their ways, their noise and what they remember of their starts, which errs on the side of caution
    (:func:`~bilevax.hypergradients.sid_report.sid_report`).

    Cost: t gradients, k Hessian-vector products and J cross products on minibatches, and one outer gradient; what is
    spent on confirming that an iteration does not contract is ``cost.measuring``, and what the report reads
    ``error.samples``: every row and a tenth of k minibatches, or a fortieth of them, at least 24. Memory, with the
    report: 18 copies of w and v, and 16 of lam.
    Source: Grazzi, Pontil, Salzo (2021), arXiv:2011.07122.

    Args:
        inner: :class:`~bilevax.FixedPoint`, :class:`~bilevax.LBFGS`, or :class:`~bilevax.Given`: w0 is the solution.
        linear: :class:`~bilevax.FixedPoint` or :class:`~bilevax.CG`.
        cross_batches: J, at least 1, or :class:`~bilevax.Growing`; None: every row of train once.
        outer_batches: J1, minibatches of val for E and its gradients, likewise; None (default): every row of val once.
    """

    inner: Any
    linear: Any
    cross_batches: Any = None
    outer_batches: Any = None

    def __post_init__(self) -> None:
        for name in ("inner", "linear"):
            if not (hasattr(getattr(self, name), "solve") or (name == "inner" and isinstance(self.inner, Given))):
                raise ParameterError(
                    f"{name} must be a solver such as bx.FixedPoint(steps=100), got {getattr(self, name)!r}"
                )
        for name in ("cross_batches", "outer_batches"):
            if getattr(self, name) is not None:
                set_frozen(self, **{name: check_count(name, getattr(self, name), low=1)})

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a problem that lacks what the solvers need.

        Raises:
            ParameterError: the linear solver needs a symmetric problem, or the inner one a loss.
        """
        if getattr(self.linear, "needs_symmetry", False) and not problem.symmetric:
            raise ParameterError(
                f"{type(self.linear).__name__} needs a symmetric system, and the inner map is not known to be a"
                " gradient step; use bx.GradientStep(loss), or linear=bx.GMRES() or bx.FixedPoint(steps=...)"
            )
        if not isinstance(self.inner, Given) and not self.inner.stochastic and not problem.has_loss:
            raise ParameterError(
                f"{type(self.inner).__name__} needs an inner loss without a prox, and the inner map has none; "
                "use bx.GradientStep(loss), or inner=bx.FixedPoint(steps=...)"
            )

    def estimate(
        self, instance: Instance, w0: PyTree, *, key: Array, outer_step: Array | int = 0, v0: PyTree | None = None
    ) -> Estimate:
        """One hypergradient; pure and traceable.

        Args:
            instance: with its inner step measured.
            w0: start of the inner solver.
            key: its streams inner, linear, cross and outer are used.
            outer_step: for counts that grow.
            v0: start of the linear solver; None: 0.
        """
        return self._from(instance, w0, v0, key=key, segment=Segment(outer_step))

    def init(self, instance: Instance, w0: PyTree, *, key: Array, v0: PyTree | None = None) -> SIDState:
        """A run without a step; its arguments are those of :meth:`estimate`."""
        return SIDState(w0, v0, Cost())

    def extend(
        self, instance: Instance, state: SIDState, *, key: Array, doublings: Array | int = 0
    ) -> tuple[Estimate, SIDState]:
        """The estimate after 2^doublings t and k steps, from a run of half of them (of none if 0), and the run so far.

        Both chains go on from where they ended, v for the w that is reached now, with the minibatches and the steps
        that are next; J and J1 are doubled as well, all of them new. Deterministic solvers are called again from there.
        """
        est = self._from(instance, state.w, state.v, key=key, segment=Segment(0, doublings))
        est = est._replace(cost=state.cost.plus(est.cost))
        return est, SIDState(est.w, est.v, est.cost)

    def suspecting(self) -> "SID":
        """The same, but a suspicion that an iteration does not contract is not looked into."""
        return replace_unchecked(self, inner=_suspecting(self.inner), linear=_suspecting(self.linear))

    def diagnose(self, instance: Instance, run: Run, estimate: Estimate, *, key: Array, stage: str) -> Diagnosis | None:
        """The stage that failed, made again alone, with what was suspected looked into."""
        segment, w, v = Segment(0, run.doublings), estimate.w, estimate.v
        if stage == "inner" and _suspects(self.inner):
            solver, start = self.inner, run.before.w
            solved = self._solve_inner(instance, start, key=stream(key, "inner"), segment=segment)
            w = solved.value
        elif stage == "linear" and _suspects(self.linear):
            solver, (_, g, _) = self.linear, self._outer(instance, w, key=stream(key, "outer"), segment=segment)[0]
            solved = self._solve_linear(instance, w, g, run.before.v, key=stream(key, "linear"), segment=segment)
            v = solved.value
        else:
            return None
        checks = _checks(solver, solved, instance.train)
        return Diagnosis(solved.code, Failure.of(stage, solved.step), w, v, checks)

    def deterministic(self, instance: Instance) -> bool:
        """True if every stage sees every row."""
        solvers = not (getattr(self.inner, "stochastic", False) or self.linear.stochastic)
        inner = instance.train.is_full_batch or (solvers and self.cross_batches is None)
        return inner and (instance.val.is_full_batch or self.outer_batches is None)

    def _from(self, instance: Instance, w0: PyTree, v0: PyTree | None, *, key: Array, segment: Segment) -> Estimate:
        train, val = instance.train, instance.val
        self._check_keys(train, val)
        # w ~ w(lam)
        inner = self._solve_inner(instance, w0, key=stream(key, "inner"), segment=segment)
        w = inner.value
        (value, g, direct), halves, outer = self._outer(instance, w, key=stream(key, "outer"), segment=segment)
        # v ~ (I - d1Phi^T)^-1 grad_1 E
        linear = self._solve_linear(instance, w, g, v0, key=stream(key, "linear"), segment=segment)
        v = linear.value
        product, spread, cross = self._cross(instance, w, v, key=stream(key, "cross"), segment=segment)
        # grad_2 E + d2Phi^T v
        hypergradient = add(direct, product)
        cost = Cost(
            gradients=Count(inner.calls, _rows(self.inner, train)),
            hvps=Count(linear.calls, _rows(self.linear, train)),
            cross=cross,
            outer_gradients=outer,
            measuring=_checks(self.inner, inner, train) + _checks(self.linear, linear, train),
        )
        code, failure = worst_part(
            (inner.code, Failure.of("inner", inner.step)),
            (nonfinite_code((value, g, direct)), Failure.of("outer", finite=jnp.isfinite(value))),
            (linear.code, Failure.of("linear", linear.step)),
            (nonfinite_code(product), Failure.of("cross")),
        )
        chains = [solved.calls for solved in (inner, linear) if solved.tail is not None]
        steps = functools.reduce(jnp.maximum, chains) if chains else None
        if self.deterministic(instance):
            seen: ChainTrace | SolverErrors = SolverErrors(inner.left, linear.left, inner.calls + linear.calls)
        else:
            seen = ChainTrace(inner.tail, linear.tail, spread, halves)
        return Estimate(hypergradient, value, w, v, code, cost, failure, seen=seen, steps=steps)

    def _check_keys(self, train: RowSource, val: RowSource) -> None:
        """Refuse stages that see every row of a source whose batches bring keys."""
        if not (isinstance(self.inner, Given) or getattr(self.inner, "stochastic", False)):
            refuse_keys(type(self.inner).__name__, "solve by bx.FixedPoint, or take bx.JointSID", train=train)
        if not self.linear.stochastic:
            refuse_keys(type(self.linear).__name__, "solve by bx.FixedPoint, or take bx.JointSID", train=train)
        if self.cross_batches is None:
            refuse_keys("cross_batches=None", "pass a number of cross batches", train=train)
        if self.outer_batches is None:
            refuse_keys("outer_batches=None", "pass a number of outer batches", val=val)

    def _solve_inner(self, instance: Instance, w0: PyTree, *, key: Array, segment: Segment) -> Solution:
        """The fixed point of Phi(., lam)."""
        if isinstance(self.inner, Given):
            return Solution(w0, jnp.int32(Code.OK), jnp.int32(0), jnp.int32(0))
        problem, lam, train, _ = instance
        if not self.inner.stochastic:
            return self.inner.solve(problem.inner_loss, w0, lam, train)

        def image(w: PyTree, args: tuple[BilevelProblem, PyTree], batch: PyTree) -> PyTree:
            problem, lam = args
            return problem.inner_image(w, lam, batch)

        solved = segment.solve(self.inner, image, w0, (problem, lam), train, key=key)
        if problem.damping is None:
            return solved
        lost = has_grown(w0, solved.value) & (solved.code < Code.DIVERGED)  # damping lets v contract, not w
        return solved._replace(code=jnp.where(lost, jnp.int32(Code.DIVERGED), solved.code))

    def _solve_linear(
        self, instance: Instance, w: PyTree, g: PyTree, v0: PyTree | None, *, key: Array, segment: Segment
    ) -> Solution:
        """The solution of (I - d1Phi(w, lam)^T) v = g."""
        problem, lam, train, _ = instance
        if not self.linear.stochastic:
            # w's part is computed once
            _, pullback = jax.vjp(lambda x: instance.mean_image(x, lam), w)
            metric = problem.metric(w, lam) if problem.symmetric else None
            return self.linear.solve(lambda v: sub(v, pullback(v)[0]), g, metric, v0)

        def image(v: PyTree, args: tuple[BilevelProblem, PyTree, PyTree, PyTree], batch: PyTree) -> PyTree:
            problem, w, lam, g = args
            return problem.affine_image(w, lam, batch, g, v)

        start = zeros_like(w) if v0 is None else v0
        return segment.solve(self.linear, image, start, (problem, w, lam, g), train, key=key)

    def _outer(
        self, instance: Instance, w: PyTree, *, key: Array, segment: Segment
    ) -> tuple[tuple[Array, PyTree, PyTree], Sampled | None, Count]:
        """E, grad_1 E, grad_2 E, from the same minibatches, and what these say of the noise of the gradients."""
        problem, lam, _, val = instance
        if self.outer_batches is None:
            return instance.mean_outer_gradients(w), None, Count(jnp.int32(1), val.rows)

        def terms(args: tuple[BilevelProblem, PyTree, PyTree], batch: PyTree) -> PyTree:
            problem, w, lam = args
            return problem.outer_gradients(w, lam, batch)

        first, number = segment.batches(self.outer_batches)
        early, late, real = number // 2, number - number // 2, jnp.result_type(float)
        half = partial(batch_mean, terms, (problem, w, lam), val, key=key)
        one, other = half(number=early, first=first), half(number=late, first=first + early)
        mean = axpy(early.astype(real) / number.astype(real), sub(one, other), other)
        deviation = scale(jnp.sqrt((early * late).astype(real) / number.astype(real)), sub(one[1:], other[1:]))
        return mean, Sampled(deviation, number), Count(number, val.rows_per_batch)

    def _cross(
        self, instance: Instance, w: PyTree, v: PyTree, *, key: Array, segment: Segment
    ) -> tuple[PyTree, Sampled | None, Count]:
        """d2Phi^T v, averaged over the cross batches, and what these say of its noise."""
        problem, lam, train, _ = instance
        if self.cross_batches is None:
            return instance.mean_cross_product(w, v), None, Count(jnp.int32(1), train.rows)

        def product(args: tuple[BilevelProblem, PyTree, PyTree, PyTree], batch: PyTree) -> PyTree:
            problem, w, lam, v = args
            return problem.cross_product(w, lam, batch, v)

        first, number = segment.batches(self.cross_batches)
        mean, deviation = batch_spread(product, (problem, w, lam, v), train, key=key, number=number, first=first)
        return mean, Sampled(deviation, number), Count(number, train.rows_per_batch)


def _suspects(solver: Any) -> bool:
    """True if a solver may suspect its iteration of not contracting."""
    return isinstance(solver, FixedPoint | Neumann)


def _suspecting(solver: Any) -> Any:
    return replace_unchecked(solver, confirm=False) if _suspects(solver) else solver


def _checks(solver: Any, solved: Solution, source: RowSource) -> Count:
    return Count(jnp.asarray(solved.checks, jnp.int32), _rows(solver, source))


def _rows(solver: Any, source: RowSource) -> int:
    return source.rows_per_batch if getattr(solver, "stochastic", False) else source.rows
