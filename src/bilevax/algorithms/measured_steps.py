"""Default steps: rho_k and gamma_k of an algorithm that was built without them, measured at the start of its run.

In, from a run: the problem, the start (w0, lam) and both sources. A short run at lam, w and u moving as in SOBA, meets
the curvature L of the inner loss and, with its tangents, the curvature K of f; and how fast an error of u decays. Out,
to the run: the algorithm with rho_0 and gamma_0 in it, in these units, and where w and u have come to.
"""

from functools import partial
from typing import NamedTuple, Protocol, TypeGuard, cast, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.algorithms.common import CurvatureStep, StepRule, rates
from bilevax.core.config import canonicalize, check_count, replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.core.keys import as_key
from bilevax.core.protocols import Algorithm, BilevelProblem, RowSource, Sources, StepLooks
from bilevax.core.records import Cost, Count
from bilevax.core.trees import PyTree, all_finite, as_parameters, axpy, norm, scale, where, zeros_like
from bilevax.data import fold_looks
from bilevax.linalg.power import nonzero, unit
from bilevax.problems.gradient_step import GradientStep, InverseCurvature, measuring_products
from bilevax.problems.strata import over_strata
from bilevax.solvers.parts import (
    Point,
    directions,
    inner_directions,
    joined,
    minus_hessian_product,
    moved_by,
    outer_directions,
    start,
)
from bilevax.solvers.schedules import Polynomial, StepSize, scheduled

SAMPLES = 5000
"""Rows that measuring reads at most, where they are more than SHARE of the run."""

SHARE = 0.05
"""Part of a run's samples that measuring takes at most."""

LOOKS, WHOLE = 10, 2
"""Minibatches on which L is measured; the same where each is every row."""

LEAST, MOST = 16, 400
"""Steps of the short run: fewer tell nothing, more do not tell more."""

PHASES = 4
"""Of the short run: one to lead w and u near, the others for K, each from the direction that the last one found."""

INNER = 0.5
"""rho of the short run in units of 1 / L, of a map in units of the map."""

LAG = 1.0
"""The most that lam may move in the time in which w and u follow, in units of 1 / K."""

HORIZON = 30.0
"""Steps in units of 1 / (gamma_0 K) before which steps that fall hardly do."""

SLOWEST = 10
"""Times the length of the short run: the slowest decay that it can tell."""

GROWN = 5.0
"""Times its size at the start, a direction of lam that says that the steps are too long."""

AWAY = 10.0
"""Times its size after the first phase, a w at the end that comes to no rest."""

SLOWER = 3.0
"""By which gamma is divided where the steps were too long."""

STEEPER = 1.5
"""Times the curvature that was met, one that says that they were for another inner loss."""


class Defaults(NamedTuple):
    """Constants of a class: its steps in units of what is measured.

    Attributes:
        inner: a = rho_0 L; of a map rho_0.
        outer: c, the most that gamma_0 K may be.
        carried: the multiplier goes on from step to step, and follows w as w follows lam; else each step makes its own.
        power: by which both fall, (1 + k / horizon)^(-power).
    """

    inner: float
    outer: float
    carried: bool = True
    power: float = 0.0

    def speed(self, rate: Array, a: Array | float, moves: Array | int, multiplier: Array | float) -> Array:
        """gamma_0 K, where an error of w falls by ``rate`` a move of rho = 1 / L, and rho_0 is a / L."""
        # two lags in line, s (s + r)^2 + g r^2 = 0, are stable for g < 2 r; one, s (s + r) + g r = 0, for every g > 0
        if not self.carried:
            return jnp.asarray(self.outer, rate.dtype)
        # min(c, LAG T a (r + 1 / multiplier)): c (w - z) follows faster than w, by what E / c adds to the curvature
        return jnp.minimum(self.outer, LAG * moves * a * (rate + 1.0 / multiplier))


@runtime_checkable
class Measurable(Algorithm, Protocol):
    """An algorithm that may be built without its steps."""

    @property
    def step_size(self) -> StepSize | StepRule | None:
        """rho_k; None: to be measured."""

    @property
    def ratio(self) -> float | None:
        """gamma_k / rho_k; None: to be measured."""

    @property
    def defaults(self) -> Defaults:
        """Its constants."""


class Curvatures(NamedTuple):
    """What a short run at lam has measured, and where it has led.

    Attributes:
        inner: 1 / (L + p(lam)), L the largest curvature of a minibatch of the inner loss that was met, p that
            of its penalty where the loss tells it, else None; None of a map.
        outer: K, the largest curvature of f that was met, |f'' t| of unit directions t.
        rate: by which an error of w or u falls in a move of rho = 1 / L, about the least curvature over L.
        size: of the mean direction of lam at the end.
        unit: |grad_1 E| / |grad_1 G|, root mean squares over minibatches.
        w: the inner variable.
        u: the multiplier.
    """

    inner: InverseCurvature | None
    outer: Array
    rate: Array
    size: Array
    unit: Array
    w: PyTree
    u: PyTree


class Measured(NamedTuple):
    """An algorithm with its steps, where to start it, and what it cost to measure them.

    Attributes:
        algorithm: with every step filled in.
        w0: the inner variable after measuring.
        u0: the multiplier after measuring, for ``algorithm.init``.
        limit: of the mean direction of lam over a stretch of a run: beyond it the steps are too long.
        cost: oracle calls.
    """

    algorithm: Measurable
    w0: PyTree
    u0: PyTree
    limit: Array
    cost: Cost


def needs_measuring(algorithm: object) -> TypeGuard[Measurable]:
    """True if the algorithm was built without one of its steps."""
    if isinstance(getattr(algorithm, "step_size", None), StepRule):
        return False
    return isinstance(algorithm, Measurable) and any(
        getattr(algorithm, name, 0) is None for name in ("step_size", "ratio", "unit")
    )


def measure_steps(
    problem: BilevelProblem,
    algorithm: Measurable,
    w0: PyTree,
    lam: PyTree,
    train: RowSource,
    val: RowSource,
    *,
    key: Array,
    samples: int = SAMPLES,
) -> Measured:
    """Fill in the steps with which an algorithm was built without.

        rho_0   = a / L                    L the largest curvature of minibatches of the inner loss, on a walk from w0
        gamma_0 = min(c, bound) / K        K = |f''(lam) t|, the largest over unit directions t of lam
        bound   = T a (r + 1 / multiplier), or none

    f'' t is the derivative of the mean direction of lam along t, by forward differentiation through the moves of w and
    u at a fixed lam; t is the direction of lam first, and then f'' t (power iteration). r is the rate at which an error
    of w or u decays in a move of rho = 1 / L, about the least curvature over L, and T the moves of w in a step.

    w follows lam with a lag of 1 / (T a r) steps, and a multiplier that is carried from step to step follows w with
    another: faster than both lam must not move, else it runs away. That of a penalty, multiplier (w - z), lags less, as
    E adds curvature to z. One that each step makes anew adds no lag, and there is no bound. a and c are constants of
    the class, and so is the power by which the steps fall; of a rho_0 that is given a is rho_0 L. Scaling the outer
    loss scales K, and u, and changes no iterate. What so short a run can not tell is seen later: a run whose direction
    of lam grows beyond ``limit`` moves too fast. :func:`bilevax.minimize` calls this by itself.

    Args:
        problem: the maps.
        algorithm: built without ``step_size``, ``ratio``, or (F2SA) ``unit``; what is given stays.
        w0: start of the inner variable.
        lam: start of the outer variable.
        train: source of inner minibatches.
        val: source of outer minibatches.
        key: a JAX random key.
        samples: rows to read for it, at most; at least for 16 steps, at most for 400.

    Raises:
        ParameterError: the algorithm's steps cannot be measured, or another argument is wrong.

    Cost: L takes 10 minibatches of train (3 Hessian-vector products and 2 gradients on each; 2 and 2 where each is
    every row; one bound of a loss that knows its ``curvature``; none of a map), each step of the short run the calls of
    one step of :class:`~bilevax.SOBA`, on one minibatch each, and in three quarters of them those of its derivative and
    one more Hessian-vector product.

    Examples:
        >>> import bilevax as bx
        >>> import jax, jax.numpy as jnp
        >>> inner_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2) + jnp.exp(lam) * w**2
        >>> outer_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2)
        >>> train, val = bx.Arrays(jnp.array([1.0, 3.0])), bx.Arrays(jnp.array([1.0]))
        >>> problem = bx.Problem(bx.GradientStep(inner_loss, 0.25), outer_loss)
        >>> found = bx.measure_steps(problem, bx.SOBA(), 0.0, 0.0, train, val, key=jax.random.key(0))
        >>> type(found).__name__
        'Measured'
    """
    if not isinstance(algorithm, Measurable):
        raise ParameterError(f"the steps of a {type(algorithm).__name__} cannot be measured, those of bx.SOBA() can")
    problem = over_strata(problem, train, val)
    samples, key = check_count("samples", samples, low=1), as_key(key)
    w0, lam = as_parameters("w0", w0, spread=True), as_parameters("lam", lam)
    b, b_val = train.rows_per_batch, val.rows_per_batch
    minibatches, looks = _looks(problem, train)
    steps = min(max((samples - looks.samples) // (b + b_val), LEAST), MOST) // PHASES * PHASES
    start = canonicalize(problem), w0, lam, (train, val)
    found = _curvatures(*start, key, jnp.int32(steps // PHASES), minibatches=minibatches)
    # each call once in every step, and once more where it is differentiated
    more = steps // PHASES * (PHASES - 1)
    train_cost = Count(steps + more, b, steps), Count(steps + 2 * more, b, 0), Count(steps + more, b, 0)
    cost = Cost(*train_cost, Count(steps + more, b_val, steps), looks)
    return Measured(filled(algorithm, found), found.w, found.u, GROWN * found.size, cost)


def _looks(problem: BilevelProblem, train: RowSource) -> tuple[int, Count]:
    """Minibatches on which L is measured, and the products that it takes."""
    minibatches = 0 if not problem.has_loss else WHOLE if train.is_full_batch else LOOKS
    known = problem.has_loss and hasattr(problem.inner_loss, "curvature")
    products = measuring_products(train, minibatches, known=known)
    # what a loss knows of its own curvature takes one call a minibatch
    return minibatches, Count(products, train.rows_per_batch, products if known else minibatches)


def steepness(
    problem: BilevelProblem, algorithm: Measurable, w: PyTree, lam: PyTree, sources: Sources, *, key: Array
) -> tuple[Array | None, Cost]:
    """The largest curvature of minibatches of the inner loss on a walk from w, times rho_0 / a; and what it cost.

    1 where it is that for which rho_0 = a / L was made. None of a map.
    """
    if not problem.has_loss:
        return None, Cost()
    problem = over_strata(problem, *sources)
    minibatches, looks = _looks(problem, sources[0])
    unit = _times(cast(CurvatureStep | Polynomial, algorithm.step_size), 1.0 / algorithm.defaults.inner)
    args = canonicalize(problem), unit, w, lam, sources[0], key
    return _steepness(*args, minibatches=minibatches), Cost(measuring=looks)


@partial(jax.jit, static_argnames="minibatches")
def _steepness(
    problem: BilevelProblem,
    step: CurvatureStep | Polynomial,
    w: PyTree,
    lam: PyTree,
    train: RowSource,
    key: Array,
    *,
    minibatches: int,
) -> Array:
    loss, k = problem.inner_loss, jnp.int32(0)
    if hasattr(loss, "curvature"):
        known = GradientStep(loss).measured(w, lam, train, key, minibatches)
        return step(k) * cast(InverseCurvature, known.step_size).bound
    # of x -> G(S^(1/2) x): S^(1/2) H S^(1/2), S = 1 / (L + p)
    S = step.at(k, w, lam) if isinstance(step, CurvatureStep) else jax.tree.map(lambda x: step(k).astype(x.dtype), w)
    root = jax.tree.map(jnp.sqrt, S)
    scaled = GradientStep(lambda x, lam, batch: loss(jax.tree.map(jnp.multiply, root, x), lam, batch))
    measured = scaled.measured(jax.tree.map(jnp.divide, w, root), lam, train, key, minibatches)
    return cast(InverseCurvature, measured.step_size).bound


def filled(algorithm: Measurable, found: Curvatures) -> Measurable:
    """The algorithm with the steps that it lacks, in JAX's default float, like numbers that are given."""
    d, rho = algorithm.defaults, algorithm.step_size
    moves, multiplier = getattr(algorithm, "inner_steps", 1), getattr(algorithm, "multiplier", jnp.inf)
    L, penalty = (jnp.ones(()), None) if found.inner is None else (found.inner.bound, found.inner.penalty)
    L = jnp.where(L > 0, L, 1.0).astype(float)  # without any curvature every step will do
    a = d.inner if rho is None else scheduled(cast(StepSize, rho), jnp.int32(0)) * L
    speed = d.speed(found.rate.astype(float), a, moves, multiplier)
    if rho is None:
        # a_k / L = (a / L) / (1 + k / horizon)^power, the horizon thirty times the steps in which lam gets somewhere
        falling = replace_unchecked(Polynomial(1.0, d.power), value=d.inner / L, horizon=HORIZON / speed)
        rho = falling if penalty is None else CurvatureStep(falling, L, penalty)
    changes: dict[str, object] = {"step_size": rho}
    if algorithm.ratio is None:
        # gamma_0 / rho_0, gamma_0 = speed / K
        changes["ratio"] = speed / found.outer.astype(float) / scheduled(cast(StepSize, rho), jnp.int32(0))
    if getattr(algorithm, "unit", 0) is None:
        changes["unit"] = found.unit.astype(float)
    return replace_unchecked(algorithm, **changes)


def slower(algorithm: Measurable, given: Measurable, *, both: bool) -> Measurable:
    """The algorithm with gamma_k a third; ``both``: rho_k half; each where ``given`` had left it to be measured."""
    (rho, ratio), changes = rates(algorithm), dict[str, object]()
    if both and given.step_size is None:
        changes["step_size"] = _times(cast(CurvatureStep | Polynomial, rho), 0.5)
    if given.ratio is None:
        # gamma_k = ratio rho_k
        changes["ratio"] = ratio / (SLOWER / 2 if both else SLOWER)
    return replace_unchecked(algorithm, **changes)


def steeper(algorithm: Measurable, given: Measurable, times: Array | None) -> Measurable | None:
    """The algorithm with rho_k for an inner loss so many times as steep, and gamma_k with it, a third at most.

    None where it is hardly steeper, or ``times`` is not finite, or rho_k was given.
    """
    if given.step_size is not None or times is None or not STEEPER < times < jnp.inf:
        return None
    step = _times(cast(CurvatureStep | Polynomial, algorithm.step_size), 1.0 / times.astype(float))
    # gamma_k = ratio rho_k; r = rho_0 times the slowest curvature falls with rho_0, and gamma_0 = T a r / K with it
    third = 1.0 if given.ratio is not None else jnp.maximum(SLOWER / times, 1.0)
    return replace_unchecked(algorithm, step_size=step, ratio=rates(algorithm)[1] / third)


def _times(step: CurvatureStep | Polynomial, part: Array | float) -> CurvatureStep | Polynomial:
    if isinstance(step, CurvatureStep):
        return replace_unchecked(step, schedule=replace_unchecked(step.schedule, value=step.schedule.value * part))
    return replace_unchecked(step, value=step.value * part)


@partial(jax.jit, static_argnames="minibatches")
def _curvatures(
    problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, key: Array, phase: Array, *, minibatches: int
) -> Curvatures:
    walk_key, key = jax.random.split(key)
    streams, half = dict(zip(("train", "val"), sources, strict=True)), phase // 2
    p = begin = start(problem, w0, lam)
    rho, met, zero = INNER, None, jnp.zeros((), jnp.result_type(*jax.tree.leaves(w0)))
    if problem.has_loss:
        step = GradientStep(problem.inner_loss).measured(p.w, p.lam, sources[0], walk_key, minibatches)
        rho = scale(INNER, step.metric(p.w, p.lam))
        met = cast(InverseCurvature, step.step_size)

    def moved(p: Point, d: Point) -> Point:
        # w and u as in SOBA, lam stays
        return Point(moved_by(rho, d.w, p.w), moved_by(rho, d.u, p.u), p.lam)

    def in_second_half(k: Array) -> Array:
        return jnp.where(k % phase >= half, 1.0 / (phase - half).astype(float), 0.0)

    def lead_near(carry: PyTree, args: PyTree, k: Array, looks: StepLooks) -> PyTree:
        p, mean, squares = carry
        inner, outer = inner_directions(problem, p, looks["train"]), outer_directions(problem, p.w, p.lam, looks["val"])
        d, squares = joined(inner, outer), (squares[0] + norm(outer[0]) ** 2, squares[1] + norm(inner.w) ** 2)
        return moved(p, d), axpy(in_second_half(k), d.lam, mean), squares

    def differentiate(carry: PyTree, args: PyTree, k: Array, looks: StepLooks) -> PyTree:
        p, tangent, mean, e, way = carry
        # the derivatives of (d_w, d_u, d_lam) along (w', u', t)
        d, dot = jax.jvp(lambda p: directions(problem, p, looks["train"], looks["val"]), (p,), (tangent,))
        # (I - rho H) e: how an error of u decays
        e = moved_by(rho, looks["train"](lambda draw: minus_hessian_product(problem, p.w, p.lam, draw, e)), e)
        means = axpy(in_second_half(k), dot.lam, mean), e, axpy(in_second_half(k), d.lam, way)
        return moved(p, d), moved(tangent, dot), *means

    ends = {"key": key, "start": jnp.int32(0), "stop": phase}
    p, way, (outer, inner) = fold_looks(streams, lead_near, (p, zeros_like(p.lam), (zero, zero)), (), **ends)
    K, e, first = zero, p.u, norm(p.w)
    for i in range(1, PHASES):
        t = unit(nonzero(way))
        tangent = Point(zeros_like(p.w), zeros_like(p.u), t)
        ends = {"key": key, "start": i * phase, "stop": (i + 1) * phase}
        # of length 1 at the beginning of each phase, so that it does not vanish in rounding
        carry = p, tangent, zeros_like(t), unit(nonzero(e)), zeros_like(t)
        p, _, way, e, direction = fold_looks(streams, differentiate, carry, (), **ends)
        K = jnp.maximum(K, norm(way).astype(K.dtype))  # |f'' t|
    # e falls by exp(-rate) a step, once its quick parts are gone; what hardly falls in so few steps is not known better
    length, number = norm(e), phase.astype(float)
    rate = -jnp.log(length).astype(float) / number
    rate = jnp.clip(jnp.where(length < 1, rate, 0.0), 1.0 / (SLOWEST * PHASES * number), 1.0) / INNER
    # an outer loss that does not depend on lam: every step will do
    K = jnp.where(K > 0, K, 1.0)
    ratio = jnp.where((inner > 0) & (outer > 0), jnp.sqrt(outer / inner), 1.0)
    # where the short run diverged its end is of no use, and the run will say so itself
    found = where(all_finite(p) & (norm(p.w) <= AWAY * jnp.maximum(first, norm(begin.w))), p, begin)
    return Curvatures(met, K, rate, norm(direction), ratio, found.w, found.u)
