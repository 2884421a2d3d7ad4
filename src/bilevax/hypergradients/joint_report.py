"""How wrong one run of JointSID is: its batch means, and what every row says at the point that it found."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.keys import stream
from bilevax.core.records import Error
from bilevax.core.trees import PyTree, add, astype_of, axpy, norm, scale, sub, zeros_like
from bilevax.core.uncertainty import FEWEST, as_others
from bilevax.data import RowSource, join
from bilevax.hypergradients.chains import Series, moved
from bilevax.hypergradients.error import BatchMeans, excess, influences, remaining_bias
from bilevax.problems.problem import Problem, inner_image, outer_gradients

FORGOTTEN = 10.0
"""Relaxation times that a run must last for its batch means to have enough degrees of freedom for a verdict."""

SUSPECTED = 0.02
"""Bias over the size of a hypergradient from which on every row is asked."""

PRICED = 30
"""One minibatch in so many, drawn anew, is spent on what the noise of w and v does to a last pass."""

POLISHED, SHORTEST, LONGEST = 4.0, 40, 10
"""Relaxation times of the iteration from the means of a run to what every row wants; one step in so many at least, and
at most."""


class Length(NamedTuple):
    """How long a run was.

    Attributes:
        steps: N.
        relaxations: times that it forgot its slowest direction.
        eta: mean step.
    """

    steps: Array
    relaxations: Array
    eta: Array

    @property
    def contraction(self) -> Array:
        """Factor by which a step shrinks the slowest direction."""
        return jnp.exp(-self.relaxations / self.steps.astype(self.relaxations.dtype))


def averaged(series: Series, length: Length) -> Error:
    """The report on the mean of the hypergradients: one series prices all three stages together."""
    means = _hypergradients(series.whole.independent(length.relaxations))
    settled, moved = map(_hypergradients, (series.settled, series.moved))
    unknown = jnp.full_like(norm(settled.mean), jnp.nan)
    enough = jnp.floor(length.relaxations * (FEWEST / FORGOTTEN)).astype(jnp.int32)
    return Error(
        value=settled.mean,
        standard_error=as_others(means.standard_error),
        bias=as_others(remaining_bias(settled.mean, moved, settled.drift, settled.standard_error)),
        degrees=jnp.clip(enough, 0, means.degrees),
        inner=unknown,
        linear=unknown,
        sampling=unknown,
        contraction=length.contraction,
    )


def on_every_row(
    problem: Problem,
    lam: PyTree,
    sources: tuple[RowSource, RowSource],
    series: Series,
    mean: Error,
    length: Length,
    *,
    key: Array,
) -> tuple[Error, Error]:
    """The reports on the mean of the hypergradients, and on the hypergradient at the means of w and v on every row.

    From the means, (w, v) are moved on by minibatches whose noise every row takes away (Johnson, Zhang 2013),

        w' <- w' + eta (Phi_B(w') - Phi_B(w) + Phi(w) - w') ,   v' likewise,

    to where both equations of every row hold; what that does to the hypergradient, on the same minibatches, is what is
    left of it, whatever it comes from: a start, long steps, a Jacobian with kinks. The truth is then about
    h(w, v) + left, and the bias of a value is its distance from there as far as noise does not explain it.

    Cost: a gradient, a Hessian-vector product and a cross product on every row of train, an outer gradient on every row
    of val; two of each on every minibatch of at most a tenth of the steps.

    Args:
        problem: with its inner step measured.
        lam: where the hypergradient is wanted.
        sources: (train, val).
        series: of the run.
        mean: the report on the mean.
        length: of the run.
        key: its streams cross and linear are used.
    """
    train, val = sources
    _, w, v = series.settled.mean
    image, pullback = jax.vjp(lambda w, lam: inner_image(problem, w, lam, train.full), w, lam)
    by_w, by_lam = pullback(v)
    _, g, direct = outer_gradients(problem, w, lam, val.full)
    value = add(astype_of(direct, lam), by_lam)
    residuals = sub(image, w), sub(add(astype_of(g, w), by_w), v)

    means = series.whole.independent(length.relaxations)
    asked = jnp.maximum(length.steps // PRICED, 1)
    noise = influences(problem, lam, sources, means.of(means.means[1:]), asked, key=stream(key, "cross"))
    number = polishing(length)
    left = _left(problem, lam, sources, (w, v), residuals, length.eta, number, key=stream(key, "linear"))
    resolved = 1.0 - length.contraction ** number.astype(length.eta.dtype)
    truth = add(value, scale(1.0 / jnp.maximum(resolved, 0.1), left))

    def biased(report: Error) -> Error:
        bias = excess(sub(report.value, truth), report.standard_error, 1.0)
        return report._replace(bias=bias)

    spread = as_others(noise.standard_error)
    passed = mean._replace(value=value, standard_error=spread, sampling=jnp.zeros_like(mean.sampling))
    return biased(mean), biased(passed)


def polishing(length: Length) -> Array:
    """How many minibatches move (w, v) on from the means."""
    wanted = POLISHED * length.steps.astype(length.relaxations.dtype) / jnp.maximum(length.relaxations, 1.0)
    low, high = (jnp.maximum(length.steps // share, 1) for share in (SHORTEST, LONGEST))
    return jnp.clip(wanted.astype(jnp.int32), low, high)


def _left(
    problem: Problem,
    lam: PyTree,
    sources: tuple[RowSource, RowSource],
    points: tuple[PyTree, PyTree],
    residuals: tuple[PyTree, PyTree],
    eta: Array,
    number: Array,
    *,
    key: Array,
) -> PyTree:
    """h(w', v') - h(w, v), its mean over the last half of so many minibatches that move (w', v') on from (w, v)."""

    def step(carry: Any, args: Any, j: Array, draws: Any) -> Any:
        (w, v), total = carry
        problem, lam, here, residuals, eta, number = args
        pair_w, pair_v = jax.tree.map(lambda *x: jnp.stack(x), (w, v), here)
        new_w, new_v, x, _ = jax.vmap(lambda w, v: moved(problem, lam, None, draws, w, v, eta))(pair_w, pair_v)
        change = jax.tree.map(lambda new, at: new[0] - new[1] + at, (new_w, new_v), here)
        late = (j >= number // 2).astype(eta.dtype)
        total = axpy(late, jax.tree.map(lambda x: x[0] - x[1], x), total)
        return axpy(eta, residuals, change), total

    args = problem, lam, points, residuals, eta, number
    both = join(train=sources[0], val=sources[1])
    _, total = both.fold(step, (points, zeros_like(lam)), args, key=key, start=0, stop=number)
    return scale(1.0 / jnp.maximum(number - number // 2, 1).astype(eta.dtype), total)


def _hypergradients(series: BatchMeans) -> BatchMeans:
    """Of (x, w, v), x alone."""
    return series.of(series.means[0])
