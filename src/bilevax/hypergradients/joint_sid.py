"""The efficient estimator: one minibatch, three directions, averaged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import check_choice, check_count, config, replace_unchecked, set_frozen
from bilevax.core.instance import Instance
from bilevax.core.keys import stream
from bilevax.core.protocols import BilevelProblem, RowSource
from bilevax.core.records import Cost, Count, ErrorReport, Estimate, Failure, SolverError, nonfinite_code, worst_part
from bilevax.core.trees import PyTree, norm, sub, where, zeros_like
from bilevax.hypergradients.batch_means import BATCHES, contraction_rate, extrapolated
from bilevax.hypergradients.diagnosis import Diagnosis, Run
from bilevax.hypergradients.joint_chains import Chains, Series, SVRGSnapshot, begin
from bilevax.hypergradients.joint_chains import run as run_chains
from bilevax.hypergradients.joint_report import PRICED, SUSPECTED, Length, averaged, on_every_row, polishing
from bilevax.hypergradients.residual_error import SolverErrors
from bilevax.linalg.power import met_on_a_walk
from bilevax.problems.gradient_step import MEASURED_WHOLE
from bilevax.solvers import at_step
from bilevax.solvers.fixed_point import SUSPICIOUS, has_grown
from bilevax.solvers.left import UNRESOLVED
from bilevax.solvers.schedules import schedule
from bilevax.solvers.stability import confirm_divergence

DISCARDED = 4
"""One in so many of the steps, the first ones, stays out of the averages."""

MEASURED = 32, 3
"""Minibatches on which the step is measured (of few rows each, fewer would miss the long ones), and Hessian-vector
products on each, from the direction that the one before ended with."""

FOLLOWED = 10
"""One Hessian-vector product in so many is spent on how the iteration contracts."""


class Suspicion(NamedTuple):
    """What the divergence of a run is judged by.

    Attributes:
        step_size: the last eta_j.
        growth: logarithm of what its slowest direction grew by in half of its steps.
        start: number of the minibatch from which on a coupled pair may go on.
    """

    step_size: Array
    growth: Array
    start: Array


class JointSIDState(NamedTuple):
    """What a run is continued from.

    Attributes:
        chains: where they are.
        eta: the measured step; 1 where the step is given.
        cost: so far.
        series: of the steps that were kept; None before the first.
        snapshot: the outer gradients of every row at a w on the way; None where minibatches are not corrected by them.
        suspicion: what its divergence is judged by; None before the first step.
    """

    chains: Chains
    eta: Array
    cost: Cost
    series: Series | None = None
    snapshot: SVRGSnapshot | None = None
    suspicion: Suspicion | None = None


@config
class JointSID:
    """Joint stochastic implicit differentiation: each minibatch moves w, moves v, and gives a hypergradient.

    For j < N, with one minibatch zeta_j of train and one, xi_j, of val, all at the same (w_j, v_j):

        x_j     = grad_2 E(w_j; xi_j) + d2Phi(w_j; zeta_j)^T v_j
        v_{j+1} = v_j + eta_j (grad_1 E(w_j; xi_j) + d1Phi(w_j; zeta_j)^T v_j - v_j)
        w_{j+1} = w_j + eta_j (Phi(w_j; zeta_j) - w_j)

    from one reverse pass; value is the mean of the last three quarters of the x_j, w and v the means of theirs. The
    averaging attains the least variance that N minibatches allow (Polyak and Juditsky 1992). Two chains, which from the
    first step that is kept move by eta and by eta / 2 on the same minibatches, remove the bias of first order in eta:
    2 x^(eta/2) - x^(eta). With the *last pass* the value is instead grad_2 E + d2Phi^T v at the means of w and v, on
    every row, free of the noise of the cross products.

    ``error`` comes from 12 batch means (6 where the run lasted less than 20 relaxation times of its slowest direction)
    of x^(eta), whose mean varies as the value does and which forgets sooner, widened for what they still remember of
    each other; after a last pass from what these means of w and v do to the hypergradient on one minibatch in 30. A run
    of less than 10 relaxation times has too few degrees of freedom for a verdict. Where N b > 3 n, or a bias of more
    than 2 % is suspected, every row says what is left (:func:`~bilevax.hypergradients.joint_report.on_every_row`); so a
    bias of kinks, to which the extrapolation is blind, is seen. A run whose slowest direction grows is looked into as
    :class:`~bilevax.FixedPoint` does, and is NOT_CONTRACTIVE, UNSTABLE or DIVERGED. Where both sources hand out every
    row, the average is over the last 12 steps.

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
            curvature, |I - d1Phi|, that a walk over 32 minibatches meets), at most 1; without ``extrapolate`` it
            decays as (1 + 10 j / N)^-0.6.
        extrapolate: run the second chain. Default True.
        snapshot: from the first step that is kept, correct the outer gradients of every minibatch of val by what they
            are at the w of that step, where every row is read: grad E(w; xi) - grad E(w_1; xi) + grad E(w_1)
            (Johnson, Zhang 2013). As w_1 is near w(lam), their noise all but vanishes. Costs an outer gradient of every
            row, and one of each minibatch more on rows that are in hand. Default True.
        last_pass: ``"always"``, ``"never"`` (nor is every row of train read for the report), or ``"auto"`` (default):
            where N b > 3 n or a bias is suspected, if it halves the estimated variance (it can raise it, where the
            noise of the cross products cancels that of v).
        confirm: as in :class:`~bilevax.FixedPoint`.
    """

    steps: Any
    step_size: Any = None
    extrapolate: bool = True
    last_pass: str = "auto"
    snapshot: bool = True
    confirm: bool = True

    def __post_init__(self) -> None:
        set_frozen(self, steps=check_count("steps", self.steps, low=1))
        check_choice("last_pass", self.last_pass, ("auto", "always", "never"))
        if self.step_size is not None:
            set_frozen(self, step_size=schedule(self.step_size))

    @property
    def chains(self) -> int:
        """Two, with whole and half steps, or one."""
        return 2 if self.extrapolate else 1

    def check(self, problem: BilevelProblem) -> None:
        """Every problem will do."""

    def estimate(
        self, instance: Instance, w0: PyTree, *, key: Array, outer_step: Array | int = 0, v0: PyTree | None = None
    ) -> Estimate:
        """One hypergradient; pure and traceable.

        Args:
            instance: with its inner step measured.
            w0: start of w.
            key: its streams inner (all minibatches of the run), linear, cross and measure are used.
            outer_step: for counts that grow.
            v0: start of v; None: 0.
        """
        state = self.init(instance, w0, key=key, v0=v0)
        return self.extend(instance, state, key=key, outer_step=outer_step)[0]

    def deterministic(self, instance: Instance) -> bool:
        """True if every stage sees every row."""
        return instance.train.is_full_batch and instance.val.is_full_batch

    def _takes_snapshot(self, val: RowSource) -> bool:
        """True if there is noise of val to correct."""
        return self.snapshot and not val.is_full_batch and not val.keys

    def init(self, instance: Instance, w0: PyTree, *, key: Array, v0: PyTree | None = None) -> JointSIDState:
        """A run without a step; its arguments are those of :meth:`estimate`. Measures the step."""
        _, lam, train, val = instance
        chains = begin(w0, zeros_like(w0) if v0 is None else v0, lanes=self.chains)
        cost, snapshot, eta = Cost(), None, jnp.ones((), norm(w0).dtype)
        if self._takes_snapshot(val):
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
        where the stretches of the error report end, and steps that decay with N.
        """
        begun, measured, cost, past, snapshot, _ = state
        planned = at_step(self.steps, outer_step)
        eta, steps, whole = self._steps(measured, planned), planned << doublings, self.deterministic(instance)
        made = jnp.where(jnp.asarray(doublings) > 0, steps // 2, 0)
        first = steps - jnp.minimum(steps, BATCHES) if whole else steps // DISCARDED
        kept, moves = (first, steps), stream(key, "inner")
        end, series, snapshot = run_chains(instance, eta, begun, kept, key=moves, made=made, snapshot=snapshot)
        if past is not None and not whole:
            series = series.continued(past)

        train, val = instance.train, instance.val
        any_step = jnp.sum(series.extrapolated.counts) > 0
        w, v = where(any_step, series.extrapolated.mean[1:], extrapolated((end.w, end.v)))
        outer_value, _, direct = instance.mean_outer_gradients(w)
        calls = steps * self.chains
        followed, priced = jnp.maximum(calls // FOLLOWED, 2), jnp.maximum(steps // PRICED, 1)
        mean_step = end.cumulative_step / steps.astype(end.cumulative_step.dtype)
        pair = series.extrapolated.drift[2], mean_step, followed
        rate = contraction_rate(instance, w, *pair, key=stream(key, "linear"))
        relaxations = -rate * steps.astype(rate.dtype)
        length = Length(steps, relaxations, mean_step)
        mean = averaged(series, length)

        def looked() -> ErrorReport:
            of_mean, of_pass = on_every_row(instance, series, mean, length, key=key)
            better = 2.0 * norm(of_pass.standard_error) ** 2 < norm(of_mean.standard_error) ** 2
            chosen: ErrorReport = where(better | (self.last_pass == "always"), of_pass, of_mean)
            return chosen

        suspected = norm(mean.bias) > SUSPECTED * norm(mean.value)
        may = self.last_pass != "never" and not (whole or train.keys or val.keys)  # one key is not their mean
        pays = suspected | (self.last_pass == "always") | (steps > 3 * train.rows // train.rows_per_batch)
        pays = pays & may
        error = jax.lax.cond(pays, looked, lambda: mean)

        step_size = jnp.asarray(eta(steps - 1)).astype(rate.dtype)
        suspicion = Suspicion(step_size, -0.5 * relaxations, followed)
        found, checks = self._looked_into(instance, (begun, end), suspicion, key=key)
        results = (outer_value, direct), error.value
        code, failure = worst_part((found, Failure.of("inner", steps)), *_parts((begun, end), steps, results))
        once = pays.astype(jnp.int32)
        extra = followed, once * priced, once * polishing(length), once, checks
        cost = cost.plus(self._cost(instance, steps - made, extra))
        estimate = Estimate(error.value, outer_value, w, v, code, cost, failure, error, steps=steps)
        if whole:  # nothing was sampled: the last steps differ by what is left to do
            estimate = estimate._replace(error=None, seen=_left(rate, step_size, steps))
        return estimate, JointSIDState(end, measured, cost, series, snapshot, suspicion)

    def suspecting(self) -> "JointSID":
        """The same, but a suspicion that the map does not contract is not looked into."""
        return replace_unchecked(self, confirm=False)

    def diagnose(self, instance: Instance, run: Run, estimate: Estimate, *, key: Array, stage: str) -> Diagnosis | None:
        """What was suspected of a run, looked into."""
        if stage != "inner":
            return None
        ends, suspicion = (run.before.chains, run.after.chains), run.after.suspicion
        suspected, _ = self.suspecting()._looked_into(instance, ends, suspicion, key=key)
        found, checks = self._looked_into(instance, ends, suspicion, key=key)
        code = jnp.where(estimate.code == suspected, found, estimate.code)
        return Diagnosis(code, estimate.failure, estimate.w, estimate.v, Count(checks, instance.train.rows_per_batch))

    def _looked_into(
        self, instance: Instance, ends: tuple[Chains, Chains], suspicion: Suspicion, *, key: Array
    ) -> tuple[Array, Array]:
        """The code of a run from and to those chains, and the products spent on it."""
        (problem, lam, train, _), (begun, end) = instance, ends
        grown = has_grown(begun.w, end.w)
        suspicious = (end.failure.stage == 0) & ~grown & (suspicion.growth > jnp.log(SUSPICIOUS))

        def image(w: PyTree, args: tuple[BilevelProblem, PyTree], batch: PyTree) -> PyTree:
            problem, lam = args
            return problem.inner_image(w, lam, batch)

        code, checks = confirm_divergence(
            image, _first_lanes(begun.w, end.w), (problem, lam), train,
            key=stream(key, "linear"), start=suspicion.start, step_size=suspicion.step_size,
            suspicious=suspicious, grown=grown, confirm=self.confirm,
        )  # fmt: skip
        if problem.damping is not None:  # which lets v contract, not w
            code = jnp.where(grown, jnp.int32(Code.DIVERGED), code)
        return code, checks

    def _cost(self, instance: Instance, steps: Array, extra: tuple[Array, ...]) -> Cost:
        """Of so many steps; of the products followed, minibatches priced and polished on, passes and checks beside."""
        train, val, (followed, priced, polished, passes, checks) = instance.train, instance.val, extra
        calls, report, moves = steps * self.chains, BATCHES * priced, 2 * polished
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

    def _steps(self, measured: Array, steps: Array) -> Callable[[Array], Array]:
        """The eta_j of a run that is planned to have so many steps."""
        if self.step_size is not None:
            return self.step_size
        if self.extrapolate:
            return lambda j: measured
        return lambda j: measured / (1 + 10 * (j / steps).astype(measured.dtype)) ** 0.6


def measured_step(instance: Instance, w: PyTree, *, key: Array, batches: int | None = None) -> Array:
    """The largest eta <= 1 with eta |I - d1Phi| <= 1 on each of ``batches`` minibatches, as a walk from w meets them.

    For a gradient step, E|e - eta H_B e|^2 < |e|^2 as soon as eta E[H_B^2] <= H, for which the largest curvature of any
    minibatch will do (in the metric of the step); such a step is stable in the second moment by a factor of two.
    """

    def gradient(w: PyTree, args: tuple[BilevelProblem, PyTree], batch: PyTree) -> PyTree:
        problem, lam = args
        return sub(w, problem.inner_image(w, lam, batch))

    def product(w: PyTree, args: tuple[BilevelProblem, PyTree], batch: PyTree, u: PyTree) -> PyTree:
        problem, lam = args
        return problem.system_product(w, lam, batch, u)

    start, looks = (w, jnp.ones((), norm(w).dtype)), _measured(instance.train, batches)
    args = instance.problem, instance.lam
    return 1.0 / met_on_a_walk(gradient, product, start, args, instance.train, key=key, looks=looks)


def _left(rate: Array, eta: Array, steps: Array) -> SolverErrors:
    """Of an iteration on every row whose slowest direction shrank by exp(rate) a step."""
    shown = 1.0 - jnp.exp(rate)
    slow = jnp.maximum(
        jnp.maximum(shown - UNRESOLVED / jnp.asarray(steps).astype(shown.dtype), 0.5 * shown),
        jnp.finfo(shown.dtype).eps,
    )
    left = SolverError(None, slow / eta, jnp.ones_like(slow))
    return SolverErrors(left, left)


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


def _first_lanes(*lanes: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], lanes)


def _parts(
    ends: tuple[Chains, Chains], steps: Array, results: tuple[PyTree, PyTree]
) -> tuple[tuple[Array, Failure], ...]:
    """What each part of a run says, with where it failed; an overflow is DIVERGED, as is what grew beyond all measure.

    Args:
        ends: the chains at the first and after the last step.
        steps: their number.
        results: of the outer loss on every row, and of the last pass.
    """
    begun, end = ends
    ok, diverged, lost = jnp.int32(Code.OK), jnp.int32(Code.DIVERGED), jnp.int32(Code.NONFINITE)
    v_grown = has_grown(begun.v, end.v)
    overflow = has_grown(begun.w, end.w) | v_grown
    return (
        (jnp.where((end.failure.stage == 0) | overflow, ok, lost), end.failure),
        (jnp.where(v_grown, diverged, ok), Failure.of("linear", steps)),
        (nonfinite_code(results[0]), Failure.of("outer")),
        (nonfinite_code(results[1]), Failure.of("cross")),
    )
