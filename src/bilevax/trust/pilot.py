"""A short stochastic run before the long one: minibatches, a step, a start, and what it says of errors to come."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import replace
from bilevax.core.keys import stream
from bilevax.core.records import Error, Estimate
from bilevax.core.trees import PyTree, axpy, norm, scale, sub, vdot
from bilevax.data import Arrays, RowSource, refuse_keys
from bilevax.hypergradients.batches import batch_mean
from bilevax.hypergradients.door import hypergradient
from bilevax.hypergradients.error import contraction_rate
from bilevax.hypergradients.joint_report import PRICED
from bilevax.hypergradients.joint_sid import FOLLOWED, MEASURED, JointSID, epoch, measured_step
from bilevax.hypergradients.measured import measured_problem, measuring_products
from bilevax.hypergradients.programs import BRIEFLY, compiled
from bilevax.problems.problem import Problem, cross_product, inner_image, residual
from bilevax.solvers import Polynomial
from bilevax.trust.rates import Rates

LOOKED_AT = 2
"""Minibatches on which the step of the stochastic run is measured."""

SPREAD = 10.0
"""R^2 / L, the largest curvature of a row over that of the mean, as it is taken to be where it is too dear to find: of
the problems of :mod:`bilevax.testing.problems` with d <= 30 most are between 5 and 20. Minibatches have 1 + SPREAD / b
times L."""

TYPICAL = 1.5, (0.09, 20.0)
"""Noise and forgetting, where the budget allows no pilot."""

STEEPEST = 1.4
"""Largest curvature of I - d1Phi on every row, at most, as it is taken to be: that of a contraction is below 2."""

INFORMED = 40
"""Steps of the stochastic run that it takes to learn anything."""

ANCHOR = 0.25
"""Share of a run's visits that reading every row of val once more may take, to correct those of minibatches."""

ASIDE = 0.12
"""Share of the pilot's visits that reading its rows of val takes; it reads these once more, for the anchor."""

FOLLOWED_SHARE = 0.02
"""Of the budget, what is read to see how the iteration contracts; and, at most, to find the largest curvature."""

SHORTEST = 24
"""Minibatches, at least, on which it is seen how the iteration contracts."""

CLIMBED = 16
"""Minibatches, a product on each, that find the largest curvature of every row."""

CROSSED = 4
"""Minibatches that show how cross products differ."""

MOVED = 3
"""Steps of the map on every row that show how it contracts."""

FORGOTTEN = 3.0
"""Relaxation times after which the steps of JointSID fall."""

SHARES = 0.02, 0.13
"""Of the budget that the pilot's run takes, and that it may take where that is what INFORMED steps cost."""


_once = partial(compiled, options=BRIEFLY)
"""What a pilot looks at beside its run, once, on a few minibatches."""


class Start(NamedTuple):
    """Where a run begins, and what is known of it.

    Attributes:
        w: like w0.
        v: like w0; None: 0.
        error: estimated relative error of the hypergradient there; 1 where nothing is known.
    """

    w: PyTree
    v: PyTree | None
    error: float


class Pilot(NamedTuple):
    """A pilot's outcome.

    Attributes:
        problem: with its inner step measured.
        sources: (train, val) in minibatches.
        start: the best start that is known.
        rates: what was measured.
        spent: sample visits.
        informed: False where the budget allowed no more than to measure a step.
        whole_factor: by which a step of the map on every row shortens the step after it; 1 where it was not tried.
        price: of a row that is read along with every other, in rows of minibatches.
    """

    problem: Problem
    sources: tuple[RowSource, RowSource]
    start: Start
    rates: Rates
    spent: int
    informed: bool = False
    whole_factor: float = 1.0
    price: float = 1.0

    @property
    def moved(self) -> bool:
        """True if the start was moved by steps of the map on every row, and these contract."""
        return self.whole_factor < 1.0


def in_minibatches(train: RowSource, val: RowSource) -> tuple[RowSource, RowSource]:
    """Both sources in minibatches of n / 64 rows, a power of two from 8 to 64; a val of no more rows stays whole.

    Where steps are as long as the minibatch allows, its size hardly changes what a visit is worth until it exceeds
    R^2 / L, the ratio of the largest curvature of a row to that of the mean.
    """
    refuse_keys("a plan", "take bx.JointSID without one", train=train, val=val)
    b = int(2 ** np.clip(np.floor(np.log2(max(train.rows / 64, 1))), 3, 6))
    b = min(b, train.rows)
    return _batched(train, b), _batched(val, b // 4 if val.rows > b else None)


def whole(source: RowSource) -> RowSource:
    """The source that hands out every row at once."""
    return _batched(source, None)


def _batched(source: Any, b: int | None) -> Any:
    if source.batch_size == b:
        return source
    if source.sampling == "blocks" and source.seed is not None:  # a shuffle that whole batches have not needed
        source = replace(source, sampling="shuffled")
    return replace(source, batch_size=b)


def joint(
    room: float, sources: tuple[RowSource, RowSource], step: float, forgetting: float = 0.0
) -> tuple[JointSID, int] | None:
    """JointSID with as many steps as ``room`` visits allow, and their number; None where that is too few.

    Its steps fall from ``step`` on, from when they have forgotten the start three times, or from the first third of the
    run. On :mod:`bilevax.testing.problems` that is better than a tenth, and than constant steps, extrapolated.
    """
    (train, val), (b, bv) = sources, (s.rows_per_batch for s in sources)
    anchored = not val.whole and val.rows <= ANCHOR * room
    for with_pass in (True, False):
        each = b * (1 + 1 / FOLLOWED) + bv + with_pass * (b + bv) / PRICED
        fixed = epoch(val) * bv * (1 + anchored) + with_pass * epoch(train) * b
        steps = int((room - fixed) / each)
        if steps < (3 * train.rows / b if with_pass else 8):
            continue
        horizon = min(steps / 3, FORGOTTEN / forgetting if forgetting else math.inf)
        last = "auto" if with_pass else "never"
        size = Polynomial(step, 0.6, horizon)
        return JointSID(steps, size, extrapolate=False, last_pass=last, anchored=anchored), steps
    return None


def run_pilot(
    problem: Problem, start: Start, lam: PyTree, sources: tuple[RowSource, RowSource], budget: float, *, key: Array
) -> Pilot:
    """A pilot from a start, of a share of the budget."""
    train, b = sources[0], sources[0].rows_per_batch
    measuring = measuring_products(problem, train)
    room = _room(budget, sources, measuring)
    products = LOOKED_AT * (MEASURED[1] + 2) + measuring
    problem = _ready(problem, start.w, lam, train, key)
    eta = _step(problem, start.w, lam, train, key)
    top = min(1.0 / (float(eta) * (1.0 + SPREAD / b)), STEEPEST)
    if CLIMBED * b <= FOLLOWED_SHARE * budget:
        top, products = float(_steepest(problem, start.w, lam, train, eta, key)), products + CLIMBED
    val = _some(sources[1], int(ASIDE * room), key)
    run = joint(room - products * b, (train, val), float(eta))
    blind = Pilot(problem, sources, start, Rates.of(float(eta), *TYPICAL, top, math.nan), products * b)
    if run is None:
        return blind
    estimator, steps = run
    est = hypergradient(problem, estimator, start.w, lam, train, val, key=key, v0=start.v, tol=1e6)
    spent = blind.spent + est.cost.visits
    error = reported(est)
    noise = float(norm(error.standard_error) / norm(est.value))
    if int(est.code) >= Code.NOT_CONTRACTIVE or not math.isfinite(noise):
        return blind._replace(spent=spent)
    cross = float(_cross_noise(problem, (est.w, est.v, lam), train, key))
    horizon = max(int(FOLLOWED_SHARE * budget / b), SHORTEST)
    rate = _contraction(problem, (est.w, est.v, lam), train, eta, horizon, key)
    lost = float(np.clip(-np.expm1(float(rate)), 1e-6, 1.0))
    rates = Rates.of(float(eta), noise * steps**0.5, (lost, horizon), top, cross)
    there = math.hypot(noise, start.error * rates.kept(steps))
    reached = Start(est.w, est.v, there) if there < start.error else start
    return Pilot(problem, sources, reached, rates, spent + (CROSSED + horizon) * b, informed=True)


def _room(budget: float, sources: tuple[RowSource, RowSource], measuring: int) -> float:
    """Visits of the pilot's run, and of the products before it."""
    b, bv = (s.rows_per_batch for s in sources)
    informed = (INFORMED * (1.2 * b + bv) + LOOKED_AT * (MEASURED[1] + 2) * b) / (1 - 2 * ASIDE)
    return measuring * b + float(np.clip(informed, SHARES[0] * budget, SHARES[1] * budget))


def _some(source: Any, number: int, key: Array) -> Any:
    """A source of so many of the rows, or fewer by half, chosen at random; itself where that is all, or no array."""
    number = max(2 ** int(math.log2(max(number, 1))), source.rows_per_batch)  # few sizes: each is compiled
    if number >= source.rows or not isinstance(source, Arrays):
        return source
    return replace(source, data=_chosen(source.data, stream(key, "outer"), source.rows, number))


@partial(_once, static=("rows", "number"))
def _chosen(data: PyTree, key: Array, rows: int, number: int) -> PyTree:
    """So many of the rows, at random."""
    chosen = jax.random.choice(key, rows, (number,), replace=False)
    return jax.tree.map(lambda a: a[chosen], data)


def moved_pilot(
    problem: Problem, start: Start, lam: PyTree, sources: tuple[RowSource, RowSource], *, key: Array
) -> Pilot:
    """Steps of the map on every row, which show how it contracts and move the start; no step of minibatches."""
    train = sources[0]
    spent = measuring_products(problem, train) * train.rows_per_batch + MOVED * train.rows
    ready = _ready(problem, start.w, lam, train, key)
    w, ratio = _moved(ready, start.w, lam, whole(train))
    factor = float(ratio)
    rates = Rates(math.nan, math.nan, 1.0 - factor, MOVED, 1.0 / max(1.0 - factor, 1e-9), math.nan)
    return Pilot(ready, sources, start._replace(w=w), rates, spent, informed=True, whole_factor=factor)


@_once
def _contraction(
    problem: Problem, points: tuple[PyTree, PyTree, PyTree], train: RowSource, eta: Array, number: Any, key: Array
) -> Array:
    """Mean logarithm of the growth of v; points are (w, v, lam)."""
    w, v, lam = points
    return contraction_rate(problem, w, lam, train, v, eta, jnp.asarray(number), key=stream(key, "linear"))


@_once
def _steepest(problem: Problem, w: PyTree, lam: PyTree, train: RowSource, eta: Array, key: Array) -> Array:
    """The largest curvature of every row, or hardly less: of a direction that grows with it (Oja 1982).

    Each minibatch is asked about the direction that those before it made, so that it says what every row would; the
    mean over the last half.
    """
    leaves, structure = jax.tree.flatten(w)
    keys = jax.random.split(stream(key, "outer"), len(leaves))
    normal = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]

    def step(carry: tuple[PyTree, Array], args: Any, j: Array, draw: Any) -> tuple[PyTree, Array]:
        (u, total), (problem, w, lam, eta) = carry, args
        u = scale(1.0 / norm(u), u)
        image = residual(problem, w, lam, draw.batch, u)
        return axpy(2.0 * eta, image, u), total + jnp.where(j >= CLIMBED // 2, vdot(u, image), 0.0)

    start = jax.tree.unflatten(structure, normal), jnp.zeros_like(eta)
    total = train.fold(step, start, (problem, w, lam, eta), key=stream(key, "measure"), start=0, stop=CLIMBED)[1]
    return total / (CLIMBED - CLIMBED // 2)


@_once
def _cross_noise(problem: Problem, points: tuple[PyTree, PyTree, PyTree], train: RowSource, key: Array) -> Array:
    """Standard deviation of the cross products of minibatches over their mean; points are (w, v, lam)."""

    def moments(args: Any, batch: PyTree) -> tuple[PyTree, Array]:
        problem, (w, v, lam) = args
        product = cross_product(problem, w, lam, batch, v)
        return product, norm(product) ** 2

    args, number = (problem, points), jnp.int32(CROSSED)
    mean, square = batch_mean(moments, args, train, key=stream(key, "cross"), number=number, first=0)
    size = norm(mean)
    return jnp.sqrt(jnp.maximum(square - size**2, 0.0)) / jnp.maximum(size, jnp.finfo(size.dtype).tiny)


@jax.jit
def _moved(problem: Problem, w: PyTree, lam: PyTree, train: RowSource) -> tuple[PyTree, Array]:
    """W after MOVED steps, and the ratio of the lengths of the last two."""
    lengths = []
    for _ in range(MOVED):
        before, w = w, inner_image(problem, w, lam, train.full)
        lengths.append(norm(sub(w, before)))
    return w, lengths[-1] / jnp.maximum(lengths[-2], jnp.finfo(lengths[-1].dtype).tiny)


def reported(est: Estimate) -> Error:
    """The error report, which every method that is planned has."""
    assert est.error is not None
    return est.error


@_once
def _ready(problem: Problem, w: PyTree, lam: PyTree, train: RowSource, key: Array) -> Problem:
    return measured_problem(problem, w, lam, train, key)


@_once
def _step(problem: Problem, w: PyTree, lam: PyTree, train: RowSource, key: Array) -> Array:
    return measured_step(problem, w, lam, train, key=stream(key, "measure"), batches=LOOKED_AT)
