"""Rules by which a double loop finds its steps as it goes, in place of step sizes: BiSLS and BiSPS.

In, from an algorithm's step: the problem, its looks, and the points it moves. Out, to it: the moves of w, the step of
its linear system, the move of lam, and what they cost. :class:`Scheduled` makes the same moves with given steps.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.algorithms.common import (
    Draws,
    InLossForm,
    StepRule,
    TwoSteps,
    check_damping,
    checked_steps,
    double_loop_cost,
    outer_step_size,
    series_step,
    sources_of,
    step_sizes,
    undrawn,
)
from bilevax.core.config import (
    at_least_one,
    check_fields,
    check_real,
    config,
    nonnegative,
    positive,
    positive_fraction,
    set_frozen,
)
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import BilevelProblem, Draw, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import PyTree, add, axpy, norm, scale, sub, vdot, where, zeros_like
from bilevax.data import Several
from bilevax.linalg.power import POWER_STEPS, nonzero, power_iteration
from bilevax.linalg.row_chunks import value_and_grad
from bilevax.solvers import parts
from bilevax.solvers.schedules import StepSize, envelope, scheduled

ROUNDING = 10.0
"""Units in the last place of a loss, by which a step may seem to raise it."""


def _checked(rule: StepRule) -> None:
    check_fields(rule, outer_decrease=positive, slack=nonnegative, halvings=at_least_one)
    check_fields(rule, inner=envelope, outer=envelope, decrease=positive)


@config
class BiSLS:
    """Stochastic line searches for both levels of a double loop: ``bx.AmIGO(step_size=bx.BiSLS(1.0, 10.0))``.

    Each move of w, on a minibatch with the loss G_i and the gradient g, starts at s = b_k and halves s until

        G_i(w - s g) <= G_i(w) - c s |g|^2

    The move of lam, along -d, d the algorithm's direction, on a minibatch with the outer loss E_j, starts at s = a_k
    and halves s until, with lam' = P(lam - s d) and r the way of w(lam) along -d,

        E_j(w + s r, lam') <= E_j(w, lam) - p |lam' - lam|^2 / s + slack |E_j(w, lam)|
        H r = d2(grad_1 G) d      by as many moves from 0 as the linear system takes, and then by g = grad_1 E_j
        r  <- r + (<u, d2(grad_1 G) d> - <g, r>) g / |g|^2

    so that the left side falls as |d|^2 to the first order, as f does, however far the solution of the system has come.

    Each search begins at its envelope (reset), b_k and a_k, never where the last one ended: a step that once collapsed
    does not stay small. Without a step that will do, none is made. The step of the linear system is 1 / L, L the
    largest curvature of G on one minibatch, by power iterations. So starts far too large are no harm.

    Assumes an inner loss, and directions of lam without much noise: of :class:`~bilevax.AmIGO` and
    :class:`~bilevax.StocBiO`. Cost of a step, beside the algorithm's: a value of G for each trial of w and one of E for
    each of lam, on minibatches in hand, ``linear_steps`` + 12 Hessian-vector products, and a cross product. In the
    spirit of Fan, Chone-Ducasse, Schmidt, Thrampoulidis (2023), arXiv:2305.18666, where w at lam' is one move from w.

    Args:
        inner: b_k in loss form, a number or a schedule; published: ``bx.Polynomial(b_0, 0.5)``.
        outer: a_k, likewise.
        decrease: c, in ]0, 1]; of a quadratic G_i, s <= 2 (1 - c) / (its curvature along g). Default 0.7.
        outer_decrease: p, positive; less than 1. Default 0.3.
        slack: at least 0; for errors of the hypergradient. Default 0.03.
        halvings: of one search, at most, at least 1. Default 50.

    Examples:
        >>> import bilevax as bx
        >>> bx.AmIGO(step_size=bx.BiSLS(inner=1.0, outer=1.0)).step_size.inner  # where its search begins
        Constant(value=1.0)
    """

    inner: StepSize
    outer: StepSize
    decrease: float = 0.7
    outer_decrease: float = 0.3
    slack: float = 0.03
    halvings: int = 50

    def __post_init__(self) -> None:
        _checked(self)
        check_fields(self, decrease=positive_fraction)

    def inner_step(
        self, loss: Callable[[PyTree], Array], w: PyTree, at: tuple[Array, PyTree], k: Array
    ) -> tuple[Array, Array]:
        """The step of w against the gradient, and the values of the loss that were asked for."""
        value, g = at
        square, c = vdot(g, g), jnp.asarray(self.decrease)
        rounding = ROUNDING * jnp.finfo(value.dtype).eps * jnp.abs(value)

        def accepted(s: Array) -> Array:
            # G_i(w - s g) <= G_i(w) - c s |g|^2
            return loss(axpy(-s, g, w)) <= value - (c * s).astype(value.dtype) * square + rounding

        s, number = halved(accepted, scheduled(self.inner, k), self.halvings)
        # where nothing is known no step is right: NaN, which ends the run
        return jnp.where(jnp.isfinite(value + square), s, jnp.nan), number


@config
class BiSPS:
    """Polyak's steps for w, capped by an envelope, and the search of :class:`BiSLS` for lam.

        w <- w - min(b_k, (G_i(w) - l) / (c |g|^2)) g

    with l a lower bound of the loss of a minibatch. Everything else is as there. Cost of a step, beside the
    algorithm's: a value of E for each trial of lam, ``linear_steps`` + 12 Hessian-vector products, and a cross product.
    In the spirit of Fan, Chone-Ducasse, Schmidt, Thrampoulidis (2023), arXiv:2305.18666.

    Args:
        inner: b_k in loss form, a number or a schedule; published: ``bx.Polynomial(b_0, 0.5)``.
        outer: a_k, likewise.
        lower: l. Default 0. A loss below it ends the run as NONFINITE.
        decrease: c, positive; 1/2 where l is the least value of each minibatch. Default 20, for losses with penalties,
            whose least values are far above 0.
        outer_decrease: as in :class:`BiSLS`.
        slack: likewise.
        halvings: likewise.

    Examples:
        >>> import bilevax as bx
        >>> bx.StocBiO(step_size=bx.BiSPS(inner=1.0, outer=1.0)).step_size.inner
        Constant(value=1.0)
    """

    inner: StepSize
    outer: StepSize
    lower: float = 0.0
    decrease: float = 20.0
    outer_decrease: float = 0.3
    slack: float = 0.03
    halvings: int = 50

    def __post_init__(self) -> None:
        _checked(self)
        check_fields(self, lower=check_real)

    def inner_step(
        self, loss: Callable[[PyTree], Array], w: PyTree, at: tuple[Array, PyTree], k: Array
    ) -> tuple[Array, Array]:
        """The step of w against the gradient; no further value of the loss is asked for."""
        value, g = at
        # (G_i - l) / (c |g|^2), at most b_k
        square = jnp.asarray(self.decrease).astype(value.dtype) * vdot(g, g)
        lower = jnp.asarray(self.lower).astype(value.dtype)
        step = jnp.maximum(value - lower, 0.0) / jnp.maximum(square, jnp.finfo(value.dtype).tiny)
        # a loss that is below its bound by more than rounding: there is no such step, and the run says NONFINITE
        rounding = jnp.sqrt(jnp.finfo(value.dtype).eps) * jnp.maximum(jnp.abs(lower), 1.0)
        step = jnp.where(value < lower - rounding, jnp.nan, step)
        return jnp.minimum(step, scheduled(self.inner, k).astype(value.dtype)), jnp.int32(0)


def halved(accepted: Callable[[Array], Array], first: Array, halvings: Array | int) -> tuple[Array, Array]:
    """The first of s, s / 2, s / 4, ... that is accepted, 0 where none is; and how many were tried."""

    def trial(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        s, _, number = state
        s = jnp.where(number > 0, 0.5 * s, s)
        return s, accepted(s), number + 1

    def going_on(state: tuple[Array, Array, Array]) -> Array:
        return ~state[1] & (state[2] <= halvings)

    s, found, number = jax.lax.while_loop(going_on, trial, (jnp.asarray(first), jnp.bool_(False), jnp.int32(0)))
    return jnp.where(found, s, 0.0), number


class Scheduled(NamedTuple):
    """The moves of a double loop with its step sizes rho_k and gamma_k.

    Attributes:
        algorithm: whose they are.
        problem: the maps.
        looks: of the step.
        k: its number.
        begin: (w, lam) before it.
    """

    algorithm: TwoSteps
    problem: BilevelProblem
    looks: StepLooks
    k: Array
    begin: tuple[PyTree, PyTree]

    def inner(self, w: PyTree, lam: PyTree) -> tuple[PyTree, "Scheduled"]:
        """The moves of w."""
        return parts.inner_moves(self.problem, w, lam, self.looks["inner"], self.linear(w, lam)), self

    def linear(self, w: PyTree, lam: PyTree) -> PyTree:
        """The step of an iteration for u."""
        return step_sizes(self.algorithm, self.k, *self.begin)[0]

    def series(self, w: PyTree, lam: PyTree) -> PyTree:
        """The step of a Neumann series."""
        return series_step(self.algorithm, *self.begin)

    def outer(self, p: parts.Point, g: PyTree, d: PyTree, rho: PyTree) -> tuple[PyTree, Info]:
        """The move of lam."""
        return parts.outer_move(self.problem, p.lam, d, outer_step_size(self.algorithm, self.k)), Info()


class Searched(NamedTuple):
    """The moves of a double loop by a rule; see :class:`Scheduled`.

    Attributes:
        rule: that chooses.
        problem: the maps.
        looks: of the step.
        k: its number.
        linear_steps: products of a linear solve.
        values: of the inner loss that were asked for.
    """

    rule: StepRule
    problem: BilevelProblem
    looks: StepLooks
    k: Array
    linear_steps: Array | int
    values: Array | int = 0

    def inner(self, w: PyTree, lam: PyTree) -> tuple[PyTree, "Searched"]:
        """The moves of w."""
        loss = self.problem.inner_loss

        def move(carry: tuple[PyTree, Array], i: Array, draw: Draw) -> tuple[PyTree, Array]:
            w, values = carry
            at = value_and_grad(loss)(w, lam, draw.batch)
            s, more = self.rule.inner_step(lambda x: loss(x, lam, draw.batch), w, at, self.k)
            # w - s grad_1 G_i
            return axpy(-s * draw.weight, at[1], w), values + more

        w, values = self.looks["inner"].fold(move, (w, jnp.int32(0)))
        return w, self._replace(values=values)

    def linear(self, w: PyTree, lam: PyTree) -> Array:
        """1 / L, L the largest curvature of G on the first minibatch of the products."""

        def largest(draw: Draw) -> Array:
            product = partial(parts.minus_hessian_product, self.problem, w, lam, draw._replace(weight=1.0))
            return power_iteration(product, nonzero(w))

        L = self.looks["linear"][0](largest)
        return jnp.where(L > 0, 1.0 / jnp.where(L > 0, L, 1.0), 1.0)

    def series(self, w: PyTree, lam: PyTree) -> Array:
        """The step of a Neumann series, the same."""
        return self.linear(w, lam)

    def outer(self, p: parts.Point, g: PyTree, d: PyTree, rho: PyTree) -> tuple[PyTree, Info]:
        """The move of lam along -d from p, with g = grad_1 E, and what the searches of the step have cost."""
        problem, rule, val, lam = self.problem, self.rule, self.looks["val"], p.lam

        def outer_loss(w: PyTree, lam: PyTree) -> Array:
            value: Array = val(lambda draw: problem.outer_loss(w, lam, draw.batch))
            return value

        value, way = outer_loss(p.w, lam), self._way(p, g, d, rho)
        allowed = jnp.asarray(rule.slack).astype(value.dtype) * jnp.abs(value)

        def accepted(s: Array) -> Array:
            # E_j(w + s r, lam') <= E_j(w, lam) - p |lam' - lam|^2 / s + slack |E_j|,  lam' = P(lam - s d)
            new = parts.outer_move(problem, lam, d, s)
            promised = jnp.asarray(rule.outer_decrease) * (norm(sub(new, lam)) ** 2).astype(s.dtype) / s
            return outer_loss(axpy(s, way, p.w), new) <= value - promised.astype(value.dtype) + allowed

        s, trials = halved(accepted, scheduled(rule.outer, self.k), rule.halvings)
        size = norm(d)
        s = jnp.where(jnp.isfinite(value) & jnp.isfinite(size), s, jnp.nan)
        lam = where(s == 0, lam, parts.outer_move(problem, lam, d, s))
        return lam, Info(gradient_norm=size, cost=self._cost(trials))

    def _way(self, p: parts.Point, g: PyTree, d: PyTree, rho: PyTree) -> PyTree:
        """r, along which w(lam) moves as lam moves along -d."""

        def change(draw: Draw) -> PyTree:
            moved = jax.jvp(lambda lam: parts.descent(self.problem, p.w, lam, draw.batch), (p.lam,), (scale(-1.0, d),))
            return scale(draw.weight, moved[1])

        # H r = b, b = d2(grad_1 G) d: r + rho (b - H r), from 0
        b = self.looks["train"](change)

        def move(r: PyTree, i: Array, draw: Draw) -> PyTree:
            return parts.moved_by(rho, add(b, parts.minus_hessian_product(self.problem, p.w, p.lam, draw, r)), r)

        r = self.looks["linear"].fold(move, zeros_like(p.w))
        # r + (<u, b> - <g, r>) g / |g|^2: so E falls along it as d says
        square = vdot(g, g)
        return axpy((vdot(p.u, b) - vdot(g, r)) / jnp.where(square > 0, square, 1.0), g, r)

    def _cost(self, trials: Array) -> Cost:
        """Of the searches, whose minibatches are in hand."""
        train, val = (source.rows_per_batch for source in sources_of(self.looks))
        # a value of the loss counts as a gradient
        inner, linear = Count(self.values, train, 0), Count(POWER_STEPS + self.linear_steps, train, 0)
        return Cost(inner, linear, Count(1, train, 0), Count(trials + 1, val, 0))


Moves = Scheduled | Searched


@config
class DoubleLoop(InLossForm):
    """T moves of w and K of a linear system a step, which is made by step sizes or by a rule."""

    steps_per_record: ClassVar[int] = 16

    step_size: StepSize | StepRule | None = None
    ratio: float | None = None
    inner_steps: int = 10
    linear_steps: int = 10

    def __post_init__(self) -> None:
        check_fields(self, inner_steps=at_least_one, linear_steps=at_least_one)
        set_frozen(self, **checked_steps(self, rules=True))

    @property
    def rule(self) -> StepRule | None:
        """What owns the steps of both levels, if that is a rule."""
        return self.step_size if isinstance(self.step_size, StepRule) else None

    def check(self, problem: BilevelProblem) -> None:
        """Refuse damping without a given inner step, and a rule where there is no loss to search along."""
        check_damping(self, problem)
        if self.rule is not None and not problem.has_loss:
            name = type(self.rule).__name__
            raise ParameterError(
                f"{name} needs an inner loss to search along, and the inner map has none: use GradientStep"
            )

    def streams(self, sources: Sources) -> Draws:
        """Fresh minibatches of train for each move of w and each product, one for the cross product, one of val.

        And the sources themselves where a rule makes the cost of a step one that only the step knows.
        """
        train, whole = sources[0], {} if self.rule is None else undrawn(sources)
        several = {"inner": Several(train, self.inner_steps), "linear": Several(train, self.linear_steps)}
        return {**several, **super().streams(sources), **whole}

    def moves(self, problem: BilevelProblem, looks: StepLooks, k: Array, begin: tuple[PyTree, PyTree]) -> Moves:
        """How step k moves: by the rule, or by step sizes."""
        if self.rule is None:
            return Scheduled(self, problem, looks, k, begin)
        return Searched(self.rule, problem, looks, k, self.linear_steps)

    def counted(self, info: Info, looks: StepLooks) -> Info:
        """With the cost of the algorithm's own calls beside that of the searches of its rule."""
        if info.cost is None:
            return info
        own = double_loop_cost(sources_of(looks), self.inner_steps, self.linear_steps)
        return info._replace(cost=own.plus(info.cost))

    def outer_step_size(self, k: Array) -> Array | None:
        """gamma_k, the step of lam; None where a rule finds it."""
        return super().outer_step_size(k) if self.rule is None else None

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost | None:
        """As many gradients and products as steps, each on rows of its own; a cross product; an outer gradient."""
        return double_loop_cost(sources, self.inner_steps, self.linear_steps) if self.rule is None else None
