"""The penalty estimator: first derivatives only, of minima of the inner loss without and with a little of the outer."""

import functools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.config import Steps, at_least_one, check_fields, config, or_none, positive
from bilevax.core.errors import ParameterError
from bilevax.core.given import require_inner_solver
from bilevax.core.instance import Instance, Oracle
from bilevax.core.keys import stream
from bilevax.core.protocols import BilevelProblem, Draw, InnerSolver, Loss, RowSource, Total
from bilevax.core.records import Cost, Count, Estimate, Failure, Solution, first_failure, nonfinite_code
from bilevax.core.trees import PyTree, add, axpy, norm, scale, sub, where, zeros_like
from bilevax.data import Join, join, refuse_keys
from bilevax.data.fold import fold
from bilevax.hypergradients.batches import Sampled, batch_mean, mean_and_deviation, with_squares
from bilevax.hypergradients.joint_sid import epoch
from bilevax.hypergradients.once import Once, RunsOnce
from bilevax.hypergradients.residual_error import SolverErrors
from bilevax.hypergradients.sid_error import ChainTrace
from bilevax.linalg.row_chunks import value_and_grad
from bilevax.solvers import at_step
from bilevax.solvers.parts import Copies, penalty_direction


class Minima(NamedTuple):
    """The minimum w of G, and those of G + E / c, one for each multiplier c."""

    w: PyTree
    z: tuple[PyTree, ...]


@config
class Penalty(RunsOnce):
    """H^-1 grad_1 E as c (w - z): w minimises the inner loss G, and z minimises G + E / c.

        value = grad_2 E(z, lam) + c (grad_2 G(z, lam) - grad_2 G(w, lam))

    It is the gradient of lam -> min_z (E + c (G - min G)), and differs from the hypergradient by O(1 / c). With
    ``extrapolate`` there is a second z, at 2 c, and the value is 2 value(2 c) - value(c): by O(1 / c^2). Paired move on
    the same minibatches, so that the noise of their difference is a difference too, and does not grow with c. v, in the
    result, is c (w - z) over the step of the inner map.

    Assumes an inner loss, strongly convex, and smooth losses with Lipschitz second derivatives. ``error`` is as that of
    :class:`~bilevax.SID` at (w, v), which knows of the bias; on short chains, where snapshots serve, that is taken to
    be the difference between value(2 c) and value(c), and as infinite without ``extrapolate``. Cost: a step of
    ``inner`` is 3 inner and 2 outer gradients on a minibatch of each (2 and 1), read once; beside these as many
    gradients in lam on J minibatches. Source: Kwon, Kwon, Wright, Nowak (2023), arXiv:2301.10945, at a fixed lam.

    Args:
        inner: :class:`~bilevax.FixedPoint`, which moves all on minibatches of both sources, or :class:`~bilevax.LBFGS`.
        multiplier: c in units, positive. Default 100.
        unit: positive; None (default): |s grad_1 E| / (|s grad_1 G| + |w0|) at w0, s the step of the inner map; then z
            is away from w by about 1 / ``multiplier`` of the way to it, or of its length, however E and G are scaled.
        extrapolate: default True.
        cross_batches: J, minibatches of both for the value, at least 1, or :class:`~bilevax.Growing`; None (default):
            every row once.

    Examples:
        >>> import bilevax as bx
        >>> bx.Penalty(bx.LBFGS(), multiplier=1000.0).multiplier
        1000.0
    """

    inner: InnerSolver
    multiplier: float = 100.0
    unit: float | None = None
    extrapolate: bool = True
    cross_batches: Steps | None = None

    def __post_init__(self) -> None:
        require_inner_solver("inner", self.inner)
        check_fields(self, multiplier=positive, unit=or_none(positive), cross_batches=or_none(at_least_one))

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a map that is no gradient step, and damping."""
        if not problem.has_loss:
            raise ParameterError("Penalty needs an inner loss: give Problem a GradientStep, or use bx.SID")
        if problem.damping is not None:
            raise ParameterError("Penalty solves no linear system, which damping could change: leave damping away")

    def deterministic(self, instance: Instance) -> bool:
        """True if every stage sees every row."""
        whole = instance.train.is_full_batch and instance.val.is_full_batch
        return whole or not (self.inner.stochastic or self.cross_batches is not None)

    def init(self, instance: Instance, w0: PyTree, *, key: Array, v0: PyTree | None = None) -> Once:
        """A run without a step."""
        return Once(w0, v0)

    def extend(
        self, instance: Instance, state: Once, *, key: Array, doublings: Array | int = 0, outer_step: Array | int = 0
    ) -> tuple[Estimate, Once]:
        """The estimate, and where it ended; no run goes on, and ``doublings`` is 0."""
        (problem, lam, train, val), w0, v0 = instance, state.w, state.v
        if not self.inner.stochastic or self.cross_batches is None:
            refuse_keys("Penalty", "take FixedPoint and a number of cross batches", train=train, val=val)
        first, measuring = self._multiplier(instance, w0)
        # 2 value(2 c) - value(c), or value(c)
        c, shares = ((first, 2.0 * first), (-1.0, 2.0)) if self.extrapolate else ((first,), (1.0,))

        def v_of(at: Minima) -> PyTree:
            # c (w - z) / s, or 2 (2 c (w - z_2)) - c (w - z_1)
            u = [scale(share * x, sub(at.w, z)) for share, x, z in zip(shares, c, at.z, strict=True)]
            # XLA would multiply by the reciprocal of s, and round otherwise where that is a constant
            s = jax.lax.optimization_barrier(problem.metric(at.w, lam))
            return jax.tree.map(jnp.divide, functools.reduce(add, u), s)

        # z = w - s v / c, which v_of turns round
        back = zeros_like(w0) if v0 is None else jax.tree.map(jnp.multiply, problem.metric(w0, lam), v0)
        start = Minima(w0, tuple(axpy(-1.0 / x, back, w0) for x in c))
        at, solved, cost = self._minima(instance, start, c, key=stream(key, "inner"), outer_step=outer_step)
        args, both = (instance.oracle, at, c, shares), Paired(train, val)
        reads: tuple[Array | int, Array | int] = epoch(train), epoch(val)
        if self.cross_batches is None:
            spread = None
            outer_value, value, change = both.total(_values, args)
        else:
            number = at_step(self.cross_batches, outer_step)
            squared = with_squares(_values)
            means = batch_mean(squared, args, both, key=stream(key, "cross"), number=number, first=0)
            mean, deviation = mean_and_deviation(means, number)
            (outer_value, value, change), spread, reads = mean, Sampled(deviation[1], number), (number, number)
        code, failure = first_failure(
            (solved.code, Failure.of("inner", solved.last_step)),
            (nonfinite_code(outer_value), Failure.of("outer")),
            (nonfinite_code(value), Failure.of("cross")),
        )
        copies = 1 + len(c)
        by_lam = Cost(
            cross=Count(copies * reads[0], train.rows_per_batch, reads[0]),
            outer_gradients=Count(copies * reads[1], val.rows_per_batch, reads[1]),
        )
        trace: ChainTrace | SolverErrors = SolverErrors(solved.error, None, solved.calls)
        if not self.deterministic(instance):
            chain = solved.snapshots
            # what no chain shows: the bias of c
            unseen = jax.tree.map(lambda d: jnp.abs(d) if self.extrapolate else jnp.full_like(d, jnp.inf), change)
            trace = ChainTrace(None, None, spread, None, unseen)
            if chain is not None:
                points = chain.points.w, jax.vmap(v_of)(chain.points)
                trace = trace._replace(inner=chain._replace(points=points[0]), linear=chain._replace(points=points[1]))
        steps = None if solved.snapshots is None else solved.calls
        cost = cost.plus(by_lam).plus(measuring)
        est = Estimate(value, outer_value, at.w, v_of(at), code, cost, failure, steps=steps)
        return est, Once(est.w, est.v, trace)

    def _multiplier(self, instance: Instance, w0: PyTree) -> tuple[Array, Cost]:
        """The smaller c, and the cost of its unit."""
        if self.unit is not None:
            return jnp.asarray(self.multiplier * self.unit), Cost()
        train, val, s = instance.train, instance.val, instance.problem.metric(w0, instance.lam)
        # |s grad_1 E| / (|s grad_1 G| + |w0|)
        _, g, _ = instance.mean_outer_gradients(w0)
        outer = norm(jax.tree.map(jnp.multiply, s, g))
        inner = norm(sub(w0, instance.mean_image(w0, instance.lam))) + norm(w0)
        usable = (outer > 0) & (inner > 0) & jnp.isfinite(outer) & jnp.isfinite(inner)
        unit = jnp.where(usable, outer, 1.0) / jnp.where(usable, inner, 1.0)
        gradients, outer_gradients = Count(epoch(train), train.rows_per_batch), Count(epoch(val), val.rows_per_batch)
        return jnp.asarray(self.multiplier).astype(unit.dtype) * unit, Cost(gradients, outer_gradients=outer_gradients)

    def _minima(
        self, instance: Instance, start: Minima, c: tuple[Array, ...], *, key: Array, outer_step: Array | int
    ) -> tuple[Minima, Solution, Cost]:
        """W and every z, how w was solved with the worst code of all, and the cost."""
        (problem, lam, train, val), copies = instance, len(c)
        if self.inner.stochastic:
            args, source = (instance.oracle, c), Paired(train, val)
            solved = self.inner.solve(_image, start, args, source, key=key, outer_step=outer_step)
            error = solved.error
            if error is not None and error.move is not None:
                error = error._replace(move=error.move.w)
            calls, at = solved.calls, solved.value
            cost = Cost(
                gradients=Count((1 + copies) * calls, train.rows_per_batch, calls),
                outer_gradients=Count(copies * calls, val.rows_per_batch, calls),
                measuring=Count(jnp.asarray(solved.diagnostic_products, jnp.int32), train.rows_per_batch),
            )
            return at, solved._replace(error=error), cost
        solved = self.inner.solve(problem.inner_loss, start.w, lam, train)
        z, calls = [], solved.calls
        for x in c:
            penalised = Penalised(problem.inner_loss, problem.outer_loss, x)
            # from w: z is near it
            one = self.inner.solve(penalised, solved.value, lam, Paired(train, val))
            worse = one.code > solved.code
            code, last = where(worse, (one.code, one.last_step), (solved.code, solved.last_step))
            solved, calls = solved._replace(code=code, last_step=last), calls + one.calls
            z.append(one.value)
        # every row, in minibatches
        inner, outer = epoch(train), epoch(val)
        cost = Cost(
            gradients=Count(inner * calls, train.rows_per_batch),
            outer_gradients=Count(outer * (calls - solved.calls), val.rows_per_batch),
        )
        return Minima(solved.value, tuple(z)), solved, cost


@config
class Penalised:
    """G + E / c, of a batch of both sources."""

    inner: Loss
    outer: Loss
    c: Array

    def __call__(self, w: PyTree, lam: PyTree, batch: tuple[Draw, Draw]) -> Array:
        """The loss."""
        zeta, xi = batch
        return self.inner(w, lam, zeta.batch) + self.outer(w, lam, xi.batch) / self.c

    def value_and_grad(self, w: PyTree, lam: PyTree, batch: tuple[Draw, Draw]) -> tuple[Array, PyTree]:
        """With the gradient in w, each by the loss's own where it has one."""
        pairs = zip((self.inner, self.outer), batch, strict=True)
        (G, by_inner), (E, by_outer) = (value_and_grad(loss)(w, lam, draw.batch) for loss, draw in pairs)
        # grad_1 G + grad_1 E / c
        return G + E / self.c, axpy(1.0 / self.c, by_outer, by_inner)


@config
class Paired:
    """Minibatches of train and of val together, a draw of each: for functions that are a sum of both parts."""

    train: RowSource
    val: RowSource

    rows = property(lambda self: self.train.rows)
    rows_per_batch = property(lambda self: self.train.rows_per_batch)
    is_full_batch = property(lambda self: self.train.is_full_batch and self.val.is_full_batch)
    blocks = property(lambda self: None)
    keys = property(lambda self: self.train.keys or self.val.keys)
    all_rows = property(lambda self: None)

    def total(self, fn: Callable[[PyTree, PyTree], Total], args: PyTree) -> Total:
        """The mean over every row of each."""

        def of_train(at: PyTree, zeta: PyTree) -> Total:
            return self.val.total(lambda at, xi: fn(at, (Draw(zeta, -1, 1.0), Draw(xi, -1, 1.0))), at)

        return self.train.total(of_train, args)

    def example(self) -> PyTree:
        """The shapes of both."""
        return tuple(Draw(source.example(), -1, 1.0) for source in (self.train, self.val))

    def plan_chunk(self, plan: PyTree, key: Array, j: Array, first: Array | bool) -> PyTree:
        """The plans of both."""
        return self._joined.plan_chunk(plan, key, j, first)

    def chunk_end(self, j: Array) -> Array:
        """The first minibatch after j that opens a chunk of either."""
        return self._joined.chunk_end(j)

    def visit(self, plan: PyTree, j: Array, use: Callable[[Draw], Total]) -> Total:
        """``use(draw)`` of minibatch j of both, whose weights are in the batch."""
        return self._joined.visit(plan, j, lambda draws: use(Draw((draws["train"], draws["val"]), -1, 1.0)))

    @property
    def _joined(self) -> Join:
        return join(train=self.train, val=self.val)

    fold = fold


def _image(at: Minima, args: tuple[Oracle, tuple[Array, ...]], batch: tuple[Draw, Draw]) -> Minima:
    """Gradient steps of G from w, and of G + E / c from each z, of the step s of the inner map."""
    (oracle, c), (zeta, xi) = args, batch

    def moved(x: PyTree) -> PyTree:
        # x + (Phi(x) - x), times the weight of its minibatch
        return axpy(zeta.weight, sub(oracle.inner_image(x, zeta.batch), x), x)

    def pulled(z: PyTree, c: Array) -> PyTree:
        # - s grad_1 E(z) / c
        _, g, _ = oracle.outer_gradients(z, xi.batch)
        return axpy(-xi.weight / c, jax.tree.map(jnp.multiply, oracle.problem.metric(z, oracle.lam), g), moved(z))

    return Minima(moved(at.w), tuple(pulled(z, x) for z, x in zip(at.z, c, strict=True)))


def _values(
    args: tuple[Oracle, Minima, tuple[Array, ...], tuple[float, ...]], batch: tuple[Draw, Draw]
) -> tuple[Array, PyTree, PyTree]:
    """E(w), the combined value, and the last of the values of which it is one less the first."""
    (oracle, at, c, shares), (_, xi) = args, batch
    looks = [partial(_look, draw) for draw in batch]
    each = [
        penalty_direction(oracle.problem, Copies(at.w, z, oracle.lam), x, *looks) for z, x in zip(at.z, c, strict=True)
    ]
    # 2 value(2 c) - value(c): the bias of order 1 / c falls out
    parts = [scale(share, value) for share, value in zip(shares, each, strict=True)]
    outer_value = oracle.problem.outer_loss(at.w, oracle.lam, xi.batch) * xi.weight
    return outer_value, functools.reduce(add, parts), sub(each[-1], each[0])


def _look(draw: Draw, use: Callable[[Draw], PyTree]) -> PyTree:
    return use(draw)
