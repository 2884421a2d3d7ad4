"""The efficient estimator: one minibatch, three directions, averaged."""

from typing import ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import Steps, at_least_one, check_choice, check_fields, config, or_none
from bilevax.core.estimator import Diagnosis, Run
from bilevax.core.instance import InnerImage, Instance, Oracle
from bilevax.core.keys import stream
from bilevax.core.protocols import BilevelProblem, RowSource
from bilevax.core.records import Cost, Count, ErrorReport, Estimate, Failure, SolverError, first_failure, nonfinite_code
from bilevax.core.trees import PyTree, norm, row, sub, where, zeros_like
from bilevax.hypergradients.batch_means import BATCHES, extrapolated
from bilevax.hypergradients.joint_chains import Chains, Series, SVRGSnapshot, begin
from bilevax.hypergradients.joint_chains import run as run_chains
from bilevax.hypergradients.joint_report import PRICED, SUSPECTED, Length, averaged, on_every_row, polishing
from bilevax.hypergradients.once import FromState
from bilevax.hypergradients.residual_error import SolverErrors
from bilevax.linalg.power import contraction_rate, walk_curvature
from bilevax.problems.gradient_step import MEASURED_WHOLE
from bilevax.solvers import at_step
from bilevax.solvers.chain import SUSPICIOUS, has_grown
from bilevax.solvers.left import slowest
from bilevax.solvers.schedules import Schedule, StepSize, schedule
from bilevax.solvers.stability import confirm_divergence

DISCARDED = 4
"""The first 1 / DISCARDED of the steps are burn-in."""

MEASURED = 32, 3
"""Minibatches on which the step is measured (of few rows each, fewer would miss the long ones), and Hessian-vector
products on each, from the direction that the one before ended with."""

FOLLOWED = 10
"""Hessian-vector products of the run for each of the estimated contraction rate."""


class Suspicion(NamedTuple):
    """Evidence by which the divergence of a run is judged.

    Attributes:
        step_size: the last eta_j.
        growth: logarithm of the growth of its slowest direction in half of its steps.
        start: number of the minibatch from which on a coupled pair may go on.
    """

    step_size: Array
    growth: Array
    start: Array


class JointSIDState(NamedTuple):
    """The state of a run, from which it is continued.

    Attributes:
        chains: where they are.
        eta: the measured step; 1 where the step is given.
        cost: so far.
        series: of the steps after the burn-in; None before the first.
        snapshot: the full outer gradients at an earlier w; None where minibatches are not corrected by them.
        suspicion: by which its divergence is judged; None before the first step.
        trace: the evidence for its error report where nothing was sampled, else None: it makes its own.
    """

    chains: Chains
    eta: Array
    cost: Cost
    series: Series | None = None
    snapshot: SVRGSnapshot | None = None
    suspicion: Suspicion | None = None
    trace: SolverErrors | None = None


@config
class JointSID(FromState):
    """Joint stochastic implicit differentiation: each minibatch moves w, moves v, and gives a hypergradient.

    For j < N, with a minibatch zeta_j of train and a minibatch xi_j of val, all at the same (w_j, v_j):

        x_j     = grad_2 E(w_j; xi_j) + d2Phi(w_j; zeta_j)^T v_j
        v_{j+1} = v_j + eta_j (grad_1 E(w_j; xi_j) + d1Phi(w_j; zeta_j)^T v_j - v_j)
        w_{j+1} = w_j + eta_j (Phi(w_j; zeta_j) - w_j)

    from one reverse pass; value is the mean of the last three quarters of the x_j, w and v the means of theirs. The
    averaging attains the least variance that N minibatches allow (Polyak and Juditsky 1992). Two chains, which after
    the burn-in move by eta and by eta / 2 on the same minibatches, remove the bias of first order in eta:
    2 x^(eta/2) - x^(eta). With the *last pass* the value is instead grad_2 E + d2Phi^T v at the means of w and v, on
    every row, free of the noise of the cross products.

    ``error`` comes from 12 batch means (6 where the run lasted less than 20 relaxation times of its slowest direction)
    of x^(eta), whose mean varies as the value does and whose autocorrelation decays faster, widened for what
    autocorrelation is left between them; after a last pass from the hypergradients at these means of w and v on one
    minibatch in 30. A run of less than 10 relaxation times has too few degrees of freedom for a verdict. Where N b >
    3 n, or a bias of more than 2 % is suspected, the error that is left is measured on every row
    (:func:`~bilevax.hypergradients.joint_report.on_every_row`); so a bias of kinks, to which the extrapolation is
    blind, is seen. A run whose slowest direction grows is tested as by :class:`~bilevax.FixedPoint`, and is
    NOT_CONTRACTIVE, UNSTABLE or DIVERGED. On full batches of both sources, the average is over the last 12 steps.

    Assumes what :class:`~bilevax.SID` assumes. Give ``val`` minibatches: one with every row is read at every step.
    Cost: N gradients, Hessian-vector products, cross products and outer gradients a chain (the rows are read once for
    both), n rows for the last pass, and less than 25 % of that for the report; 96 Hessian-vector products and 64
    gradients for a measured step. ``cost`` counts the calls of both chains. Memory: 24 m + 48 d numbers.

    Source: theory of averaging by Polyak and Juditsky (1992); the joint recursion with fixed lam is that of SOBA,
    Dagreou, Ablin, Vaiter, Moreau (2022), arXiv:2201.13409; extrapolation as in Dieuleveut, Durmus, Bach (2017),
    arXiv:1707.06386.

    Args:
        steps: N, a count of at least 1, or :class:`~bilevax.Growing` with the outer step; at least 40 for an error.
        step_size: eta_j, a number in (0, inf) or a schedule; None (default): eta = 1 / (the largest
            curvature, |I - d1Phi|, along a walk over 32 minibatches), at most 1; without ``extrapolate`` it decays as
            (1 + 10 j / N)^-0.6.
        extrapolate: run the second chain. Default True.
        snapshot: after the burn-in, correct the outer gradients of every minibatch of val by those at the w_1 reached
            there, where every row is read: grad E(w; xi) - grad E(w_1; xi) + grad E(w_1) (SVRG: Johnson, Zhang 2013).
            As w_1 is near w(lam), their noise all but vanishes. Costs an outer gradient of every row, and one of each
            minibatch more on rows that are in hand. Default True.
        last_pass: ``"always"``, ``"never"`` (nor is every row of train read for the report), or ``"auto"`` (default):
            where N b > 3 n or a bias is suspected, if it halves the estimated variance (it can raise it, where the
            noise of the cross products cancels that of v).
        confirm: as in :class:`~bilevax.FixedPoint`.

    Examples:
        >>> import bilevax as bx
        >>> bx.JointSID(steps=4000).steps  # the step of the chains is measured
        4000
    """

    extensible: ClassVar[bool] = True

    steps: Steps
    step_size: StepSize | None = None
    extrapolate: bool = True
    last_pass: str = "auto"
    snapshot: bool = True
    confirm: bool = True

    def __post_init__(self) -> None:
        check_fields(self, steps=at_least_one, step_size=or_none(schedule))
        check_choice("last_pass", self.last_pass, ("auto", "always", "never"))

    @property
    def chains(self) -> int:
        """Two, with full and half steps, or one."""
        return 2 if self.extrapolate else 1

    def check(self, problem: BilevelProblem) -> None:
        """Every problem will do."""

    def deterministic(self, instance: Instance) -> bool:
        """True if every stage sees every row."""
        return instance.train.is_full_batch and instance.val.is_full_batch

    def _takes_snapshot(self, val: RowSource) -> bool:
        """True if there is noise of val to correct."""
        return self.snapshot and not val.is_full_batch and not val.keys

    def init(self, instance: Instance, w0: PyTree, *, key: Array, v0: PyTree | None = None) -> JointSIDState:
        """A run without a step; its arguments are those of :meth:`estimate`. Measures the step."""
        _, lam, train, val = instance
        chains = begin(w0, zeros_like(w0) if v0 is None else v0, chains=self.chains)
        cost, snapshot, eta = Cost(), None, jnp.ones((), norm(w0).dtype)
        if self._takes_snapshot(val):
            # an epoch of val, when it is taken
            snapshot = SVRGSnapshot.unknown(w0, lam)
            cost = cost._replace(outer_gradients=Count(epoch(val), val.rows_per_batch))
        if self.step_size is None:
            eta = measured_step(instance, w0, key=stream(key, "measure"))
            cost = cost._replace(measuring=Count(jnp.int32(measuring_calls(train)), train.rows_per_batch))
        return JointSIDState(chains, eta, cost, snapshot=snapshot)

    def extend(
        self,
        instance: Instance,
        state: JointSIDState,
        *,
        key: Array,
        outer_step: Array | int = 0,
        doublings: Array | int = 0,
    ) -> tuple[Estimate, JointSIDState]:
        """The estimate after 2^doublings N steps, from a run of half of them (of none if 0), and the run so far.

        The minibatches go on; so it is the estimate of one run of as many steps, but for what only its length decides:
        where the batches of the error report end, and steps that decay with N.
        """
        # 2^doublings N steps, of which half are done
        planned, whole = at_step(self.steps, outer_step), self.deterministic(instance)
        eta, steps = self._steps(state.eta, planned), planned << doublings
        done = jnp.where(jnp.asarray(doublings) > 0, steps // 2, 0)
        first = steps - jnp.minimum(steps, BATCHES) if whole else steps // DISCARDED
        end, series, snapshot = run_chains(
            instance, eta, state.chains, (first, steps), key=stream(key, "inner"), done=done, snapshot=state.snapshot
        )
        if state.series is not None and not whole:
            series = series.continued(state.series)
        # a chain that failed in its burn-in has no averages: its last point
        any_step = jnp.sum(series.extrapolated.counts) > 0
        w, v = where(any_step, series.extrapolated.mean[1:], extrapolated((end.w, end.v)))
        outer_value, _, direct = instance.mean_outer_gradients(w)

        # ln ||u_{j+1}|| / ||u_j|| of the slowest direction, from the drift of v between the two halves of the run
        followed = jnp.maximum(steps * self.chains // FOLLOWED, 2)
        mean_step = end.cumulative_step / steps.astype(end.cumulative_step.dtype)
        rate = rate_at(instance, w, series.extrapolated.drift[2], mean_step, followed, key=stream(key, "linear"))
        relaxations = -rate * steps.astype(rate.dtype)
        length = Length(steps, relaxations, mean_step)
        error, once = self._error(instance, series, length, key=key)

        step_size = jnp.asarray(eta(steps - 1)).astype(rate.dtype)
        # growth in half of the steps: x_t is then exp(growth) times as far as x_{t/2}
        suspicion = Suspicion(step_size, -0.5 * relaxations, followed)
        ends = state.chains, end
        found, checks = self._tested(instance, ends, suspicion, key=key)
        results = (outer_value, direct), error.value
        code, failure = first_failure((found, Failure.of("inner", steps)), *_parts(ends, steps, results))
        # the same minibatches as influences() reads
        priced = jnp.maximum(steps // PRICED, 1)
        extra = followed, once * priced, once * polishing(length), once, checks
        cost = state.cost.plus(self._cost(instance, steps - done, extra))
        # Where nothing was sampled, batch means say nothing: the last steps differ by the error that is left.
        report, trace = (None, _solver_errors(rate, step_size, steps)) if whole else (error, None)
        estimate = Estimate(error.value, outer_value, w, v, code, cost, failure, report, steps=steps)
        return estimate, JointSIDState(end, state.eta, cost, series, snapshot, suspicion, trace)

    def _error(self, instance: Instance, series: Series, length: Length, *, key: Array) -> tuple[ErrorReport, Array]:
        """The report on the value that is returned, the mean or the last pass; and 1 if every row was read, else 0."""
        train, val = instance.train, instance.val
        mean = averaged(series, length)

        def from_every_row() -> ErrorReport:
            of_mean, of_pass = on_every_row(instance, series, mean, length, key=key)
            # the last pass if it halves the variance
            better = 2.0 * norm(of_pass.standard_error) ** 2 < norm(of_mean.standard_error) ** 2
            return where(better | (self.last_pass == "always"), of_pass, of_mean)

        suspected = norm(mean.bias) > SUSPECTED * norm(mean.value)
        # with one key every row is not the mean over draws
        may = self.last_pass != "never" and not (self.deterministic(instance) or train.keys or val.keys)
        pays = suspected | (self.last_pass == "always") | (length.steps > 3 * train.rows // train.rows_per_batch)
        pays = pays & may
        return jax.lax.cond(pays, from_every_row, lambda: mean), pays.astype(jnp.int32)

    def diagnose(self, instance: Instance, run: Run, estimate: Estimate, *, key: Array, stage: str) -> Diagnosis | None:
        """The test of a suspicion of a run."""
        if stage != "inner":
            return None
        ends, suspicion = (run.before.chains, run.after.chains), run.after.suspicion
        suspected, _ = self.suspecting()._tested(instance, ends, suspicion, key=key)
        found, checks = self._tested(instance, ends, suspicion, key=key)
        code = jnp.where(estimate.code == suspected, found, estimate.code)
        return Diagnosis(code, estimate.failure, estimate.w, estimate.v, Count(checks, instance.train.rows_per_batch))

    def _tested(
        self, instance: Instance, ends: tuple[Chains, Chains], suspicion: Suspicion, *, key: Array
    ) -> tuple[Array, Array]:
        """The code of a run from and to those chains, and the diagnostic products."""
        begun, end = ends
        # max |w| > 1e12 (1 + max |w_0|)
        grown = has_grown(begun.w, end.w)
        suspicious = (end.failure.stage == 0) & ~grown & (suspicion.growth > jnp.log(SUSPICIOUS))

        code, checks = confirm_divergence(
            InnerImage(), row((begun.w, end.w), 0), instance.oracle, instance.train,
            key=stream(key, "linear"), start=suspicion.start, step_size=suspicion.step_size,
            suspicious=suspicious, grown=grown, confirm=self.confirm,
        )  # fmt: skip
        if instance.problem.damping is not None:  # which lets v contract, not w
            code = jnp.where(grown, jnp.int32(Code.DIVERGED), code)
        return code, checks

    def _cost(self, instance: Instance, steps: Array, extra: tuple[Array, ...]) -> Cost:
        """Of so many steps; of products for the rate, minibatches priced and polished on, passes, checks beside."""
        train, val, (followed, priced, polished, passes, checks) = instance.train, instance.val, extra
        # each of K batch means of (w, v) on each minibatch priced; at the snapshot and at (w', v') on those polished on
        calls, report, moves = steps * self.chains, BATCHES * priced, 2 * polished
        # on every row: of val once, and of both once more for a last pass
        inner, outer = epoch(train), epoch(val)
        corrected = steps * int(self._takes_snapshot(val))
        b, again = train.rows_per_batch, passes * inner
        outer_calls, outer_reads = (1 + passes) * outer + moves + report, (1 + passes) * outer + polished + priced
        return Cost(
            gradients=Count(calls + again + moves, b, reads=steps + again + polished),
            hvps=Count(calls + followed + again + moves, b, reads=followed),
            cross=Count(calls + again + moves + report, b, reads=priced),
            outer_gradients=Count(calls + corrected + outer_calls, val.rows_per_batch, reads=steps + outer_reads),
            measuring=Count(jnp.asarray(checks, jnp.int32), b),
        )

    def _steps(self, measured: Array, steps: Array) -> Schedule:
        """The eta_j of a run that is planned to have so many steps."""
        if self.step_size is not None:
            return cast(Schedule, self.step_size)
        if self.extrapolate:
            return lambda j: measured
        # without extrapolation the bias of eta falls with it: eta (1 + 10 j / N)^-0.6
        return lambda j: measured / (1 + 10 * (j / steps).astype(measured.dtype)) ** 0.6


def measured_step(instance: Instance, w: PyTree, *, key: Array, batches: int | None = None) -> Array:
    """The largest eta <= 1 with eta |I - d1Phi| <= 1 on each of ``batches`` minibatches along a walk from w.

    For a gradient step, E|e - eta H_B e|^2 < |e|^2 as soon as eta E[H_B^2] <= H, for which the largest curvature of any
    minibatch will do (in the metric of the step); such a step is stable in the second moment by a factor of two.
    """

    def gradient(w: PyTree, oracle: Oracle, batch: PyTree) -> PyTree:
        return sub(w, oracle.inner_image(w, batch))

    def product(w: PyTree, oracle: Oracle, batch: PyTree, u: PyTree) -> PyTree:
        return oracle.system_product(w, batch, u)

    start, looks = (w, jnp.ones((), norm(w).dtype)), _measured(instance.train, batches)
    # eta = 1 / max(1, |I - d1Phi_B| along the walk)
    return 1.0 / walk_curvature(gradient, product, start, instance.oracle, instance.train, key=key, looks=looks)


def rate_at(instance: Instance, w: PyTree, direction: PyTree, eta: Array, number: Array, *, key: Array) -> Array:
    """Mean logarithm of the factor by which u <- u - eta (I - d1Phi(w)^T) u shrinks, on so many minibatches."""

    def product(args: tuple[Oracle, PyTree], batch: PyTree, u: PyTree) -> PyTree:
        oracle, w = args
        return oracle.system_product(w, batch, u)

    # w as an argument: nothing large is a closure constant
    args = instance.oracle, w
    return contraction_rate(product, direction, args, instance.train, key=key, eta=eta, number=number)


def _solver_errors(rate: Array, eta: Array, steps: Array) -> SolverErrors:
    """Of an iteration on every row whose slowest direction shrank by exp(rate) a step, 1 - eta times the curvature."""
    slow = slowest(1.0 - jnp.exp(rate), steps)
    error = SolverError(None, slow / eta, jnp.ones_like(slow))
    return SolverErrors(error, error)


def epoch(source: RowSource) -> int:
    """Minibatches in all rows, the last one perhaps short."""
    return -(-source.rows // source.rows_per_batch)


def measuring_calls(train: RowSource, batches: int | None = None) -> int:
    """Products that :func:`measured_step` takes, the two gradients on each minibatch counted as such."""
    minibatches, products = _measured(train, batches)
    return minibatches * (products + 2)


def _measured(train: RowSource, batches: int | None) -> tuple[int, int]:
    """On how many minibatches a step is measured, and the products on each."""
    if train.is_full_batch:
        return MEASURED_WHOLE
    return MEASURED[0] if batches is None else batches, MEASURED[1]


def _parts(
    ends: tuple[Chains, Chains], steps: Array, results: tuple[PyTree, PyTree]
) -> tuple[tuple[Array, Failure], ...]:
    """The code of each part of a run, and where it failed; an overflow is DIVERGED, as is what grew by 1e12.

    Args:
        ends: the chains at the first and after the last step.
        steps: their number.
        results: of the outer loss on every row, and of the last pass.
    """
    begun, end = ends
    ok, diverged, lost = jnp.int32(Code.OK), jnp.int32(Code.DIVERGED), jnp.int32(Code.NONFINITE)
    # NaN of a chain that had grown so far is an overflow, which the growth names
    v_grown = has_grown(begun.v, end.v)
    overflow = has_grown(begun.w, end.w) | v_grown
    return (
        (jnp.where((end.failure.stage == 0) | overflow, ok, lost), end.failure),
        (jnp.where(v_grown, diverged, ok), Failure.of("linear", steps)),
        (nonfinite_code(results[0]), Failure.of("outer")),
        (nonfinite_code(results[1]), Failure.of("cross")),
    )
