"""Nonsmooth stochastic implicit differentiation: SID where the inner map ends in a proximal step."""

import functools
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from bilevax.core.config import Steps, config
from bilevax.core.errors import ParameterError
from bilevax.core.estimator import Diagnosis, Run
from bilevax.core.instance import Instance, Oracle
from bilevax.core.keys import stream
from bilevax.core.protocols import BilevelProblem, LinearSolver, RowSource
from bilevax.core.records import Cost, Count, Estimate, Failure, Solution, first_failure
from bilevax.core.trees import PyTree, sub
from bilevax.data import refuse_keys
from bilevax.hypergradients.batches import batch_mean
from bilevax.hypergradients.once import FromState
from bilevax.hypergradients.residual_error import SolverErrors
from bilevax.hypergradients.sid import SID, Segment, SIDState, cost_of_inner, solve_inner
from bilevax.solvers import FixedPoint, Given
from bilevax.solvers.chain import PLAIN, Rule, View, plain


@config
class ProximalMoves(FixedPoint):
    """w_{j+1} = prox(w_j - eta_j s grad loss(w_j; zeta_j), lam, eta_j s): the chain of a composite map."""

    def rule(self, args: Oracle, source: RowSource) -> Rule:
        """How w moves."""

        def move(x: PyTree, memory: PyTree, view: View) -> tuple[PyTree, PyTree, PyTree]:
            if view.batch is None:
                return plain(x, memory, view)
            # G_eta((1 - eta) w + eta That(w; zeta))
            new = args.problem.relaxed_image(x, args.lam, view.batch, view.eta * view.weight)
            return new, memory, sub(new, x)

        return PLAIN._replace(move=move, average=self.average)


@config
class NSID(FromState):
    """Nonsmooth stochastic implicit differentiation, for Phi(w, lam) = G(E That(w, lam; zeta), lam), G a proximal step.

    1. w_t: t steps w <- G_eta((1 - eta) w + eta That(w, lam; zeta)), in which the prox G has the step of eta.
    2. With w_t frozen, u = (1/J) sum_{i <= J} That(w_t, lam; zeta_i), D = D_1G(u, lam), once for all, g = grad_1 E:
       v_k, k steps of ``linear`` on (I - D_1T^T D^T) v = g, in which minibatches are those of That alone.
    3. value = grad_2 E + (1/J) sum_{i <= J} D_2That(w_t, lam; zeta_i)^T D^T v_k + D_2G(u, lam)^T v_k, of the same J.

    Where :class:`~bilevax.SID` differentiates the prox of a step on a minibatch, whose mean is not the derivative of
    Phi, this one has no floor: the mean square error is O(1/t + 1/k + 1/J), a part of the bias O(1/J). Of a map without
    a prox, G is the identity, and the value that of SID. Assumes, as SID, a contraction in expectation, and that G is
    smooth about E That at the fixed point.

    ``error``, made by :func:`~bilevax.hypergradient`, comes of the residuals of both equations on every row, the kinks
    there included (:func:`~bilevax.hypergradients.residual_error.residual_error`), whatever was sampled.

    Cost: t + J gradients, k Hessian-vector products and J cross products on minibatches, and one outer gradient; the
    report five epochs. Source: Grazzi, Pontil, Salzo (2024), arXiv:2403.11687.

    Args:
        inner: :class:`~bilevax.FixedPoint`, or :class:`~bilevax.Given`: w0 is the solution.
        linear: as in :class:`~bilevax.SID`.
        cross_batches: J, at least 1, or :class:`~bilevax.Growing`; None: every row of train once.
        outer_batches: J1, minibatches of val, likewise; None (default): every row of val once.

    Examples:
        >>> import bilevax as bx
        >>> bx.NSID(bx.FixedPoint(1000, bx.Harmonic(20, 40)), bx.GMRES(), cross_batches=100).linear
        GMRES(tol=1e-06, max_steps=1000, restart=50, damping=0.0)
    """

    extensible: ClassVar[bool] = True

    inner: FixedPoint | Given
    linear: LinearSolver
    cross_batches: Steps | None = None
    outer_batches: Steps | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.inner, FixedPoint | Given):
            raise ParameterError(f"inner must be bx.FixedPoint(...) or bx.Given(), got {self.inner!r}")
        _ = self._sid  # which checks the rest

    @property
    def _sid(self) -> SID:
        """The same of a smooth map, but that its inner chain makes proximal moves."""
        inner = self.inner
        if isinstance(inner, FixedPoint):
            inner = ProximalMoves(inner.steps, inner.step_size, inner.tol, inner.confirm, inner.average)
        return SID(inner, self.linear, self.cross_batches, self.outer_batches)

    @property
    def _at_w(self) -> SID:
        """All but the first stage."""
        return SID(Given(), self.linear, self.cross_batches, self.outer_batches)

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a problem whose inner map is not known in two parts.

        Raises:
            ParameterError: it is not, or the linear solver needs a symmetric problem.
        """
        if not (problem.composite or problem.has_loss):
            raise ParameterError(
                "NSID needs the proximal step of the inner map apart from the rest, and the inner map is a function"
                " of its own; use bx.ProximalStep(loss, prox), or bx.SID for a map without kinks"
            )
        self._at_w.check(problem)

    def deterministic(self, instance: Instance) -> bool:
        """True if every stage sees every row."""
        return self._sid.deterministic(instance)

    def init(self, instance: Instance, w0: PyTree, *, key: Array, v0: PyTree | None = None) -> SIDState:
        """A run without a step."""
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
        """The estimate after 2^doublings t and k steps, from a run of half of them, as :meth:`SID.extend`."""
        inner, smooth, cost = self._before(instance, state.w, key=key, segment=Segment(outer_step, doublings))
        # with G linearised at u the map is smooth, and all that is left is SID at a given w
        at_w = SIDState(inner.value, state.v, state.cost)
        rest, after = self._at_w.extend(smooth, at_w, key=key, doublings=doublings, outer_step=outer_step)
        est, trace, known = _joined(inner, rest, cost), SolverErrors(), after.trace
        if self.deterministic(instance) and isinstance(known, SolverErrors):
            trace = known._replace(inner=inner.error, calls=inner.calls + known.calls)
        return est, SIDState(est.w, est.v, est.cost, trace)

    def diagnose(self, instance: Instance, run: Run, estimate: Estimate, *, key: Array, stage: str) -> Diagnosis | None:
        """The stage that failed, repeated alone, with what was suspected tested."""
        if stage != "inner":
            instance = self._linearised(instance, estimate.w, key=key, segment=Segment(0, run.doublings))[0]
        return self._sid.diagnose(instance, run, estimate, key=key, stage=stage)

    def _before(
        self, instance: Instance, w0: PyTree, *, key: Array, segment: Segment
    ) -> tuple[Solution, Instance, Cost]:
        """The inner solution, the instance whose proximal step is linearised there, and the cost of both."""
        train = instance.train
        refuse_keys("the report on NSID", "take bx.JointSID", train=train, val=instance.val)
        inner = solve_inner(self._sid.inner, instance, w0, key=stream(key, "inner"), segment=segment)
        instance, means = self._linearised(instance, inner.value, key=key, segment=segment)
        return inner, instance, cost_of_inner(self.inner, inner, train).plus(Cost(gradients=means))

    def _linearised(self, instance: Instance, w: PyTree, *, key: Array, segment: Segment) -> tuple[Instance, Count]:
        """The instance with the proximal step linearised at u = mean of That(w), and what u cost."""
        if not instance.problem.composite:
            return instance, Count(0, instance.train.rows_per_batch)

        def smooth(args: tuple[Oracle, PyTree], batch: PyTree) -> PyTree:
            oracle, w = args
            return oracle.problem.smooth_image(w, oracle.lam, batch)

        train, args = instance.train, (instance.oracle, w)
        if self.cross_batches is None:
            u, number = train.total(smooth, args), jnp.int32(-(-train.rows // train.rows_per_batch))
        else:
            first, number = segment.batches(self.cross_batches)
            # (1/J) sum_i That(w; zeta_i), on the minibatches of the cross products
            u = batch_mean(smooth, args, train, key=stream(key, "cross"), number=number, first=first)
        return instance._replace(problem=instance.problem.linearised(u)), Count(number, train.rows_per_batch)


def _joined(inner: Solution, rest: Estimate, cost: Cost) -> Estimate:
    """The estimate with its first stage."""
    parts = (inner.code, Failure.of("inner", inner.last_step)), (rest.code, rest.failure)
    code, failure = first_failure(*parts)
    steps = [n for n in (rest.steps, None if inner.snapshots is None else inner.calls) if n is not None]
    longest = functools.reduce(jnp.maximum, steps) if steps else None
    return rest._replace(code=code, failure=failure, cost=rest.cost.plus(cost), steps=longest)
