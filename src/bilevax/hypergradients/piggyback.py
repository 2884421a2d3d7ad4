"""Derivatives of stochastic gradient descent: w and its Jacobian in lam move together."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevax.core.config import config
from bilevax.core.error_report import as_others
from bilevax.core.errors import ParameterError
from bilevax.core.instance import Instance, Oracle
from bilevax.core.keys import stream
from bilevax.core.protocols import BilevelProblem
from bilevax.core.records import Cost, Count, ErrorReport, Estimate, Failure, Solution, first_failure, nonfinite_code
from bilevax.core.trees import PyTree, add, entries, norm, row, scale, sub, vdot, zeros
from bilevax.data import refuse_keys
from bilevax.hypergradients.once import RunsOnce
from bilevax.hypergradients.residual_error import SAFETY, report_of_bias
from bilevax.hypergradients.sid_error import ANSWERED, FEWEST, relaxation_rate, with_independent
from bilevax.hypergradients.spread import last_point_error, sum_of_entries
from bilevax.solvers import FixedPoint
from bilevax.solvers.schedules import scheduled


class Carried(NamedTuple):
    """What moves together.

    Attributes:
        w: the inner variable.
        J: dw / dlam, a leading axis of the m entries of lam before each leaf of w.
    """

    w: PyTree
    J: PyTree


@config
class Piggyback(RunsOnce):
    """Forward-mode differentiation of stochastic gradient descent: w and J = dw / dlam are carried together.

        w <- w + eta_j (Phi(w, lam; zeta_j) - w)
        J <- J + eta_j (d1Phi(w, lam; zeta_j) J + d2Phi(w, lam; zeta_j) - J)        on the same minibatch, J from 0
        value = grad_2 E(w, lam) + J^T grad_1 E(w, lam)

    J is the derivative of the iterates themselves, and its noise that of both; their covariance, of the order of eta_j,
    is a bias of the value. With steps as 1 / j the mean square
    error of J falls about as 1 / j, with constant steps to a floor; where every minibatch has the same solution and the
    same derivative of it, geometrically. On full batches it is :class:`~bilevax.ITD` in forward mode.

    Assumes that Phi(., lam) is a contraction in expectation. ``error``, of minibatches: noise and bias of the value
    from its course along the chain, as in the report on short chains of :class:`~bilevax.SID`; of full batches: from
    its last move. Cost: t gradients and t m products with d1Phi and d2Phi on minibatches, memory of m copies of w, and
    an outer gradient of every row: for a lam of few entries. Source: Iutzeler, Pauwels, Vaiter (2024),
    arXiv:2405.15894; the name: Griewank, Faure (2003).

    Args:
        inner: :class:`~bilevax.FixedPoint`, which moves both.

    Examples:
        >>> import bilevax as bx
        >>> bx.Piggyback(bx.FixedPoint(5000, bx.Polynomial(1.0, 0.5))).inner.steps
        5000
    """

    inner: FixedPoint

    def __post_init__(self) -> None:
        if not isinstance(self.inner, FixedPoint):
            raise ParameterError(
                f"inner must be bx.FixedPoint(steps=...), which can be differentiated; got {self.inner!r}"
            )

    def check(self, problem: BilevelProblem) -> None:
        """Every problem will do."""

    def deterministic(self, instance: Instance) -> bool:
        """True if every step sees every row."""
        return instance.train.is_full_batch

    def estimate(
        self, instance: Instance, w0: PyTree, *, key: Array, outer_step: Array | int = 0, v0: PyTree | None = None
    ) -> Estimate:
        """One hypergradient; pure and traceable. Its stream inner is drawn from; v0 plays no part."""
        refuse_keys("Piggyback", "take bx.JointSID", val=instance.val)
        lam, train, val = instance.lam, instance.train, instance.val
        m, (flat, unravel) = entries(lam), ravel_pytree(lam)
        # a unit vector for each entry of lam
        basis = jax.vmap(unravel)(jnp.eye(m, dtype=flat.dtype))
        start = Carried(w0, zeros(w0, m))
        solved = self.inner.solve(
            pushed, start, (instance.oracle, basis), train, key=stream(key, "inner"), outer_step=outer_step
        )
        (outer_value, value), w = of_carried(instance, solved.value), solved.value.w
        code, failure = first_failure(
            (solved.code, Failure.of("inner", solved.last_step)),
            (nonfinite_code((outer_value, value)), Failure.of("outer", finite=jnp.isfinite(outer_value))),
        )
        rows, moves = train.rows_per_batch, solved.calls
        products = Count(m * moves, rows, reads=0)
        checks = Count(jnp.asarray(solved.diagnostic_products, jnp.int32), rows)
        cost = Cost(Count(moves, rows), products, products, Count(jnp.int32(1), val.rows), checks)
        steps = None if solved.snapshots is None else moves
        error = self._error(instance, solved, value, key=key)
        return Estimate(value, outer_value, w, None, code, cost, failure, error, steps=steps)

    def _error(self, instance: Instance, solved: Solution, value: PyTree, *, key: Array) -> ErrorReport:
        if solved.snapshots is None:
            # deterministic moves: to where they lead
            assert solved.error is not None
            further = of_carried(instance, add(solved.value, solved.error.move))[1]
            change = scale(SAFETY, jax.tree.map(jnp.abs, sub(further, value)))
            eta = scheduled(self.inner.step_size, jnp.maximum(solved.calls - 1, 0))
            q = 1.0 - jnp.minimum(eta.astype(solved.error.least.dtype) * solved.error.least, 1.0)
            return report_of_bias(value, change, q)
        chain, number = solved.snapshots, jnp.maximum(solved.calls // ANSWERED, FEWEST)
        drift = sub(solved.value.w, row(chain.points.w, 0))
        drawn = with_independent(instance)
        rate = relaxation_rate(drawn, solved.value.w, drift, number=number, key=stream(key, "measure"))
        # the value at each snapshot
        values = jax.vmap(lambda at: of_carried(instance, at)[1])(chain.points)
        assert chain.step_sizes is not None
        error, size = last_point_error(chain._replace(points=values), rate), norm(value)
        spread, unknown = jnp.sqrt(sum_of_entries(error.squares)), jnp.full_like(size, jnp.nan)
        return ErrorReport(
            value=value,
            standard_error=as_others(jax.tree.map(jnp.sqrt, error.squares)),
            bias=as_others(error.bias),
            degrees_of_freedom=error.degrees_of_freedom.astype(jnp.int32),
            inner=jnp.hypot(spread.astype(size.dtype), norm(error.bias)),
            linear=unknown,
            sampling=jnp.zeros_like(size),
            contraction=(1.0 - rate.seen * chain.step_sizes[-1]).astype(size.dtype),
            samples=number.astype(size.dtype) * drawn.train.rows_per_batch + 8.0 * instance.val.rows,
        )


def pushed(at: Carried, args: tuple[Oracle, PyTree], batch: PyTree) -> Carried:
    """Phi(w), and d1Phi J + d2Phi, by a tangent for each entry of lam."""
    oracle, basis = args

    def image(w: PyTree, lam: PyTree) -> PyTree:
        return oracle._replace(lam=lam).inner_image(w, batch)

    # one linearisation serves all tangents
    out, push = jax.linearize(image, at.w, oracle.lam)
    return Carried(out, jax.vmap(push)(at.J, basis))


def of_carried(instance: Instance, at: Carried) -> tuple[Array, PyTree]:
    """E(w, lam), and grad_2 E + J^T grad_1 E, on every row of val."""
    outer_value, g, direct = instance.mean_outer_gradients(at.w)
    flat, unravel = ravel_pytree(direct)
    # (J^T g)_i = <J_i, g>
    return outer_value, unravel(flat + jax.vmap(lambda J: vdot(J, g))(at.J).astype(flat.dtype))
