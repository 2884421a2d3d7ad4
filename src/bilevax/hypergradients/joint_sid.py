"""The efficient estimator: one minibatch, three directions, averaged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import choice, config, count, real, set_fields
from bilevax.core.keys import stream
from bilevax.core.records import Cost, Count, Error, Estimate, Failure, nonfinite, worst_part
from bilevax.core.trees import PyTree, add, astype_of, norm, where, zeros_like
from bilevax.data import RowSource
from bilevax.hypergradients.chains import Chains, Series, begin, run
from bilevax.hypergradients.error import (
    BATCHES,
    contraction_rate,
    extrapolated,
    influences,
    remaining_bias,
)
from bilevax.problems.gradient_step import POWER_STEPS, power_iteration
from bilevax.problems.problem import Problem, cross_product, outer_gradients, residual
from bilevax.solvers import at_step
from bilevax.solvers.fixed_point import has_grown
from bilevax.solvers.schedules import schedule

DISCARDED = 4
"""One in so many of the steps, the first ones, stays out of the averages."""

MEASURED = 8
"""Minibatches on which the step is measured."""

FORGOTTEN = 10.0
"""Relaxation times that a run must last to have forgotten its start."""

FOLLOWED = 10
"""One Hessian-vector product in so many is spent on how the iteration contracts."""

PRICED = 40
"""One minibatch in so many, drawn anew, is spent on what the noise of w and v does to a last pass."""


@config
class JointSID:
    """Joint stochastic implicit differentiation: each minibatch moves w, moves v, and gives a hypergradient.

    For j < N, with one minibatch zeta_j of train and one, xi_j, of val, all at the same (w_j, v_j):

        x_j     = grad_2 E(w_j; xi_j) + d2Phi(w_j; zeta_j)^T v_j
        v_{j+1} = v_j + eta_j (grad_1 E(w_j; xi_j) + d1Phi(w_j; zeta_j)^T v_j - v_j)
        w_{j+1} = w_j + eta_j (Phi(w_j; zeta_j) - w_j)

    from one reverse pass; value is the mean of the last three quarters of the x_j, w and v the means of theirs. The
    averaging attains the least variance that N minibatches allow (Polyak and Juditsky 1992). Two chains, with eta and
    eta / 2 on the same minibatches, remove the bias of first order in eta: 2 x^(eta/2) - x^(eta). With the *last pass*
    the value is instead grad_2 E + d2Phi^T v at the means of w and v, on every row, free of the cross products' noise.

    ``error`` comes from 20 batch means of the extrapolated series; after a last pass from what 10 means of w and v do
    to the hypergradient on one minibatch in 20. The code is BUDGET unless the run lasted 10 relaxation times of its
    slowest direction and the relative error is at most ``tol``. Where both sources hand out every row, the average is
    over the last 20 steps.

    Assumes what :class:`~bilevax.SID` assumes. Give ``val`` minibatches: one with every row is read at every step.
    Cost: N gradients, Hessian-vector products, cross products and outer gradients a chain (the rows are read once for
    both), n rows for the last pass, and less than 15 % of that for the report; 96 Hessian-vector products for a
    measured step. ``cost`` counts the calls of both chains. Memory: 40 (d + m) numbers.

    Source: theory of averaging by Polyak and Juditsky (1992); the joint recursion with fixed lam is that of SOBA,
    Dagreou, Ablin, Vaiter, Moreau (2022), arXiv:2201.13409; extrapolation as in Dieuleveut, Durmus, Bach (2017),
    arXiv:1707.06386.

    Args:
        steps: N, a count of at least 1, or :class:`~bilevax.Growing` with the outer step; at least 40 for an error.
        step_size: eta_j, a number in (0, inf) or a schedule; None (default): eta = 1 / (the largest
            curvature, |I - d1Phi|, of 8 minibatches at w0), at most 1; without ``extrapolate`` it decays as
            (1 + 10 j / N)^-0.6.
        extrapolate: run the second chain. Default True.
        last_pass: ``"always"``, ``"never"``, or ``"auto"`` (default): where N b > 3 n, if it halves the estimated
            variance (it can raise it, where the noise of the cross products cancels that of v).
        tol: relative error above which the code is BUDGET. Default 0.1.
    """

    steps: Any
    step_size: Any = None
    extrapolate: bool = True
    last_pass: str = "auto"
    tol: float = 0.1

    def __post_init__(self) -> None:
        tol = real("tol", self.tol, low=0.0, open_low=True)
        set_fields(self, steps=count("steps", self.steps, low=1), tol=tol)
        choice("last_pass", self.last_pass, ("auto", "always", "never"))
        if self.step_size is not None:
            set_fields(self, step_size=schedule(self.step_size))

    @property
    def chains(self) -> int:
        """Two, with whole and half steps, or one."""
        return 2 if self.extrapolate else 1

    def check(self, problem: Problem) -> None:
        """Every problem will do."""

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
        """One hypergradient; pure and traceable.

        Args:
            problem: with its inner step measured.
            w0: start of w.
            lam: where the hypergradient is wanted.
            sources: (train, val).
            key: its streams inner (all minibatches of the run), linear, cross and measure are used.
            s: outer step, for counts that grow.
            v0: start of v; None: 0.
        """
        train, val = sources
        steps = at_step(self.steps, s)
        eta, products = self._step_sizes(problem, w0, lam, train, steps, key=stream(key, "measure"))
        start = begin(w0, zeros_like(w0) if v0 is None else v0, lanes=self.chains)
        first = steps - jnp.minimum(steps, BATCHES) if train.whole and val.whole else steps // DISCARDED
        end, series = run(problem, lam, sources, eta, start, (first, steps), key=stream(key, "inner"))

        any_step = jnp.sum(series.x.counts) > 0
        w, v = where(any_step, (series.w.mean, series.v.mean), extrapolated((end.w, end.v)))
        outer_value, _, direct = outer_gradients(problem, w, lam, val.full)
        calls = steps * self.chains
        followed, priced = jnp.maximum(calls // FOLLOWED, 2), jnp.maximum(calls // PRICED, 1)
        pair = series.v.drift, end.travel / steps.astype(end.travel.dtype), followed
        rate = contraction_rate(problem, w, lam, train, *pair, key=stream(key, "linear"))
        averaged = _averaged(series, jnp.exp(rate))

        def exact() -> Error:
            value = add(astype_of(direct, lam), cross_product(problem, w, lam, train.full, v))
            around = influences(problem, lam, sources, (series.w, series.v), priced, key=stream(key, "cross"))
            error = averaged._replace(value=value, standard_error=around.standard_error, degrees=around.degrees)
            better = 2.0 * norm(error.standard_error) ** 2 < norm(averaged.standard_error) ** 2
            error = error._replace(sampling=jnp.zeros_like(error.sampling))
            return error if self.last_pass == "always" else where(better, error, averaged)

        pays = {"always": True, "never": False}.get(self.last_pass, steps > 3 * train.rows // train.rows_per_batch)
        error = jax.lax.cond(pays, exact, lambda: averaged)
        relative = error.relative
        lasted = -rate * steps.astype(rate.dtype) >= FORGOTTEN
        trusted = lasted & (relative <= jnp.asarray(self.tol).astype(relative.dtype))
        code, failure = _judge(start, end, steps, trusted, outer=(outer_value, direct), value=error.value)
        b, passed = train.rows_per_batch, jnp.asarray(pays, jnp.int32)
        last, outer, report = passed * _batches(train), _batches(val), passed * BATCHES // 2 * priced
        read = passed * priced
        cost = Cost(
            gradients=Count(calls, b, reads=steps),
            hvps=Count(calls + followed, b, reads=followed),
            cross=Count(calls + last + report, b, reads=last + read),
            outer_gradients=Count(calls + outer + report, val.rows_per_batch, reads=steps + outer + read),
            measuring=Count(jnp.int32(products), b),
        )
        return Estimate(error.value, outer_value, w, v, code, cost, failure, error)

    def _step_sizes(
        self, problem: Problem, w0: PyTree, lam: PyTree, train: RowSource, steps: Array, *, key: Array
    ) -> tuple[Callable[[Array], Array], int]:
        """The eta_j, and the Hessian-vector products spent on measuring them."""
        if self.step_size is not None:
            return self.step_size, 0
        eta = measured_step(problem, w0, lam, train, key=key)
        products = (1 if train.whole else MEASURED) * POWER_STEPS
        if self.extrapolate:
            return lambda j: eta, products
        return lambda j: eta / (1 + 10 * (j / steps).astype(eta.dtype)) ** 0.6, products


def measured_step(
    problem: Problem, w: PyTree, lam: PyTree, train: RowSource, *, key: Array, batches: int = MEASURED
) -> Array:
    """The largest eta <= 1 with eta |I - d1Phi| <= 1 on each of a few minibatches, by power iteration.

    For a gradient step, E|e - eta H_B e|^2 < |e|^2 as soon as eta E[H_B^2] <= H, for which the largest curvature of any
    minibatch will do (in the metric of the step); such a step is stable in the second moment by a factor of two.
    """

    def largest(seen: Array, args: Any, j: Array, draw: Any) -> Array:
        problem, w, lam, key = args
        leaves, structure = jax.tree.flatten(w)
        keys = jax.random.split(jax.random.fold_in(key, j), len(leaves))
        normal = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        curvature = power_iteration(
            lambda u: residual(problem, w, lam, draw.batch, u), jax.tree.unflatten(structure, normal)
        )
        return jnp.maximum(seen, curvature)

    one, stop = jnp.ones((), norm(w).dtype), 1 if train.whole else batches
    return 1.0 / train.fold(largest, one, (problem, w, lam, key), key=key, start=0, stop=stop)


def _averaged(series: Series, contraction: Array) -> Error:
    """The report on the mean of the hypergradients: one series prices all three stages together."""
    value = series.x.mean
    bias = remaining_bias(value, series.x, series.moved)
    unknown = jnp.full_like(bias, jnp.nan)
    return Error(
        value=value,
        standard_error=series.x.standard_error,
        bias=bias,
        degrees=series.x.degrees,
        inner=unknown,
        linear=unknown,
        sampling=unknown,
        contraction=contraction,
    )


def _judge(
    start: Chains, end: Chains, steps: Array, trusted: Array, *, outer: PyTree, value: PyTree
) -> tuple[Array, Failure]:
    """The worst code, and the first stage that has it."""
    ok, diverged, lost = jnp.int32(Code.OK), jnp.int32(Code.DIVERGED), jnp.int32(Code.NONFINITE)
    return worst_part(
        (jnp.where(end.failure.stage == 0, ok, lost), end.failure),
        (jnp.where(has_grown(start.w, end.w), diverged, ok), Failure.of("inner", steps)),
        (jnp.where(has_grown(start.v, end.v), diverged, ok), Failure.of("linear", steps)),
        (nonfinite(outer), Failure.of("outer")),
        (nonfinite(value), Failure.of("cross")),
        (jnp.where(trusted, ok, jnp.int32(Code.BUDGET)), Failure.of("none")),
    )


def _batches(source: RowSource) -> int:
    """Minibatches that hold as many rows as the table."""
    return -(-source.rows // source.rows_per_batch)
