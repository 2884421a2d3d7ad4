"""The error report of one run of JointSID: by batch means, and by every row at the point that it found."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from bilevax.core.error_report import FEWEST, as_others
from bilevax.core.instance import Instance
from bilevax.core.keys import stream
from bilevax.core.records import ErrorReport
from bilevax.core.trees import norm, sub
from bilevax.hypergradients.batch_means import excess, influences, remaining_bias
from bilevax.hypergradients.every_row import way_on_every_row
from bilevax.hypergradients.joint_chains import Series

FORGOTTEN = 10.0
"""Relaxation times that a run must last for its batch means to have enough degrees of freedom for a verdict."""

SUSPECTED = 0.02
"""Relative bias from which on every row is read."""

PRICED = 30
"""Steps per minibatch, drawn anew, for the standard error of a last pass."""

POLISHED, SHORTEST, LONGEST = 4.0, 40, 10
"""Relaxation times of the iteration from the means of a run to the solution on every row; steps of the run per step of
it, at most and at least."""


class Length(NamedTuple):
    """How long a run was.

    Attributes:
        steps: N.
        relaxations: relaxation times of its slowest direction, -N ln(contraction).
        eta: mean step.
    """

    steps: Array
    relaxations: Array
    eta: Array

    @property
    def contraction(self) -> Array:
        """Factor by which a step shrinks the slowest direction."""
        # q^N = exp(-R)
        return jnp.exp(-self.relaxations / self.steps.astype(self.relaxations.dtype))


def averaged(series: Series, length: Length) -> ErrorReport:
    """The report on the mean of the hypergradients: one series prices all three stages together."""
    all_means = series.full_step.decorrelated(length.relaxations), series.extrapolated, series.difference
    means, settled, moved = (part.like(part.means[0]) for part in all_means)  # of (x, w, v), x alone
    unknown = jnp.full_like(norm(settled.mean), jnp.nan)
    # 4 degrees of freedom, the fewest of a verdict, at 10 relaxation times, and in proportion
    enough = jnp.floor(length.relaxations * (FEWEST / FORGOTTEN)).astype(jnp.int32)
    return ErrorReport(
        value=settled.mean,
        standard_error=as_others(means.standard_error),
        bias=as_others(remaining_bias(settled.mean, moved, settled.drift, settled.standard_error)),
        degrees_of_freedom=jnp.clip(enough, 0, means.degrees_of_freedom),
        inner=unknown,
        linear=unknown,
        sampling=unknown,
        contraction=length.contraction,
    )


def on_every_row(
    instance: Instance, series: Series, mean: ErrorReport, length: Length, *, key: Array
) -> tuple[ErrorReport, ErrorReport]:
    """The reports on the mean of the hypergradients, and on the hypergradient at the means of w and v on every row.

    From the means, (w, v) is iterated to where both equations of every row hold
    (:func:`~bilevax.hypergradients.every_row.way_on_every_row`); the bias of a value is its distance from the
    hypergradient there, as far as noise does not explain it.

    Cost: a gradient, a Hessian-vector product and a cross product on every row of train, an outer gradient on every row
    of val; two of each on every minibatch of at most a tenth of the steps.

    Args:
        instance: with its inner step measured.
        series: of the run.
        mean: the report on the mean.
        length: of the run.
        key: its streams cross and linear are used.
    """
    _, w, v = series.extrapolated.mean
    number, rate = polishing(length), -length.relaxations / length.steps.astype(length.relaxations.dtype)
    way = way_on_every_row(instance, (w, v), (length.eta, number), rate, key=stream(key, "linear"))
    means = series.full_step.decorrelated(length.relaxations)
    minibatches = jnp.maximum(length.steps // PRICED, 1)
    noise = influences(instance, means.like(means.means[1:]), minibatches, key=stream(key, "cross"))

    def biased(report: ErrorReport) -> ErrorReport:
        # sqrt(|value - truth|^2 - |standard error|^2) along value - truth
        return report._replace(bias=excess(sub(report.value, way.truth), report.standard_error, 1.0))

    # the last pass: the hypergradient at the means on every row, whose noise is that of the means of w and v
    spread = as_others(noise.standard_error)
    passed = mean._replace(value=way.value, standard_error=spread, sampling=jnp.zeros_like(mean.sampling))
    return biased(mean), biased(passed)


def polishing(length: Length) -> Array:
    """Minibatches of the iteration from the means."""
    # 4 N / R, between N / 40 and N / 10
    wanted = POLISHED * length.steps.astype(length.relaxations.dtype) / jnp.maximum(length.relaxations, 1.0)
    low, high = (jnp.maximum(length.steps // share, 1) for share in (SHORTEST, LONGEST))
    return jnp.clip(wanted.astype(jnp.int32), low, high)
