"""What estimators and runs return: plain records of arrays."""

import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import config, real, static
from bilevax.core.trees import PyTree, norm


@config
class Count:
    """Oracle calls of one kind: how many, and how many rows each reads.

    The rows are a Python integer, so the product does not overflow an int32.
    """

    calls: Array | int = 0
    rows: int = static(0)

    @property
    def samples(self) -> Any:
        """Rows visited: calls * rows."""
        return self.calls * self.rows if isinstance(self.calls, jax.core.Tracer) else int(self.calls) * self.rows

    def __add__(self, other: "Count") -> "Count":
        return Count(jnp.asarray(self.calls + other.calls, jnp.int32), max(self.rows, other.rows))


class Cost(NamedTuple):
    """What a computation cost, by kind of oracle call; ``visits`` is the sum in rows.

    Attributes:
        gradients: evaluations of the inner map (inner gradients).
        hvps: products with d1Phi^T (Hessian-vector products).
        cross: products with d2Phi^T (cross products).
        outer_gradients: gradients of the outer loss.
        measuring: Hessian-vector products spent on measuring the inner step, and on asking whether a map contracts.
    """

    gradients: Count = Count()
    hvps: Count = Count()
    cross: Count = Count()
    outer_gradients: Count = Count()
    measuring: Count = Count()

    @property
    def visits(self) -> Any:
        """Sample visits: rows read, over all kinds."""
        return sum(part.samples for part in self)

    def plus(self, other: "Cost") -> "Cost":
        """The cost of both, kind by kind."""
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


class Solved(NamedTuple):
    """What a solver returns.

    Attributes:
        value: where it ended; the last finite point if a later one was not.
        code: a :class:`~bilevax.Code`.
        calls: oracle calls made.
        step: the step it ended at: of the failure, if there was one.
        checks: products with the linearised map, beside the calls, that asked whether it contracts.
    """

    value: PyTree
    code: Array
    calls: Array
    step: Array
    checks: Array | int = 0


STAGES = ("none", "inner", "linear", "cross", "outer")
"""Where a hypergradient can fail."""


class Failure(NamedTuple):
    """Where the worst code of an estimate comes from.

    Attributes:
        stage: number in STAGES, int32.
        step: of that stage's solver, int32.
    """

    stage: Array
    step: Array

    @staticmethod
    def stage_of(name: str) -> Array:
        """The number of a stage."""
        return jnp.int32(STAGES.index(name))


class Error(NamedTuple):
    """How wrong an estimated hypergradient may be: what one run says of itself.

    Norms are Euclidean, over all m entries; a part that is not known is NaN.

    Attributes:
        value: the hypergradient, like lam.
        standard_error: of the sampling of minibatches, per entry, like lam.
        bias: estimated norm of E[value] - truth.
        degrees: degrees of freedom of the t distribution that goes with ``standard_error``; 0 where nothing is known.
        inner: the part of w in the norm of ``standard_error``.
        linear: the part of v.
        sampling: the part of the cross products.
        contraction: estimated factor by which one step of the iteration shrinks an error.
        bound: of the norm of the whole error, from constants that were given; None where there are none.
    """

    value: PyTree
    standard_error: PyTree
    bias: Array
    degrees: Array
    inner: Array
    linear: Array
    sampling: Array
    contraction: Array
    bound: Array | None = None

    @property
    def relative(self) -> Array:
        """sqrt(estimated mean square error) / |value|, the mean square error being |standard_error|^2 + bias^2."""
        return jnp.hypot(norm(self.standard_error), self.bias) / norm(self.value)

    def interval(self, level: float = 0.95, bias: bool = False) -> tuple[PyTree, PyTree]:
        """Per entry, an interval for E[value], from the t distribution; outside of compiled programs.

        Args:
            level: its probability, in ]0, 1[.
            bias: True for an interval for the truth, value +- c standard_error, where P(|Z + r| <= c) = level for a
                standard normal Z, and r is the ratio of ``bias`` to the standard error (Armstrong and Kolesar 2018,
                arXiv:1606.01200).

        Returns:
            (low, high), trees of numpy arrays like lam.
        """
        level = real("level", level, low=0.0, high=1.0, open_low=True)
        shift = float(self.bias) if bias else 0.0
        half = jax.tree.map(
            lambda e: _half_width(np.asarray(e), shift, level, float(self.degrees)), self.standard_error
        )
        low = jax.tree.map(lambda x, h: np.asarray(x) - h, self.value, half)
        return low, jax.tree.map(lambda x, h: np.asarray(x) + h, self.value, half)

    @property
    def sign_confidence(self) -> PyTree:
        """Per entry, the confidence that E[value] has the sign of value, in [1/2, 1]; outside of compiled programs."""
        return jax.tree.map(lambda x, e: _confidence(x, e, float(self.degrees)), self.value, self.standard_error)


def _half_width(standard_error: np.ndarray, shift: float, level: float, degrees: float) -> np.ndarray:
    """Half the length of the interval, with the bias ``shift`` in units of the value."""
    special = importlib.import_module("scipy.special")
    normal = special.ndtri((1 + level) / 2)
    student = special.stdtrit(degrees, (1 + level) / 2) if degrees > 0 else np.inf
    sigma = standard_error * (student / normal)  # a normal deviate with these tails at the level
    ratio = np.divide(shift, sigma, out=np.full_like(sigma, np.inf), where=sigma > 0)
    near = sigma * np.sqrt(special.chndtrix(level, 1.0, np.minimum(ratio, 6.0) ** 2))
    far = shift + special.ndtri(level) * sigma  # the other tail has no mass
    return np.where(ratio < 6.0, near, far).astype(standard_error.dtype)


def _confidence(value: Array, standard_error: Array, degrees: float) -> np.ndarray:
    special = importlib.import_module("scipy.special")
    size, spread = np.abs(np.asarray(value)), np.asarray(standard_error)
    certain = np.where(size > 0, np.inf, 0.0).astype(size.dtype)
    ratio = np.divide(size, spread, out=certain, where=spread > 0)
    return special.stdtr(degrees, ratio).astype(size.dtype) if degrees > 0 else np.full_like(size, 0.5)


class Estimate(NamedTuple):
    """A hypergradient and what it came from.

    Attributes:
        value: the hypergradient, like lam.
        outer_value: E(w, lam), at the w below.
        w: the approximate fixed point, like w0.
        v: the approximate solution of (I - d1Phi^T) v = grad_1 E, like w0; None where no system is solved.
        code: a :class:`~bilevax.Code`, int32.
        cost: oracle calls.
        failure: where the code comes from.
        error: how wrong the value may be; None where the estimator does not say.
    """

    value: PyTree
    outer_value: Array
    w: PyTree
    v: PyTree
    code: Array
    cost: Cost
    failure: Failure
    error: Error | None = None

    @property
    def message(self) -> str:
        """What happened, where, the likely causes, and what to try; outside of compiled programs."""
        code, stage = Code(int(self.code)), STAGES[int(self.failure.stage)]
        if code == Code.OK or stage == "none":
            return code.message
        place = f"{stage} solver, step {int(self.failure.step)}" if stage in ("inner", "linear") else f"{stage} stage"
        if code == Code.NONFINITE and stage == "outer" and bool(jnp.isfinite(self.outer_value)):
            place += " (the loss is finite, its gradient is not)"
        return f"{code.name} in the {place}. {code.message}"


class History(NamedTuple):
    """One entry an outer step; arrays of shape [steps].

    Attributes:
        outer_value: E(w, lam) before the step, on what the estimator saw of val.
        gradient_norm: norm of the estimated hypergradient.
        code: the estimate's :class:`~bilevax.Code`.
        visits: sample visits up to and including the step.
        seconds: time since the start when the step's chunk was done, compilation included.
    """

    outer_value: np.ndarray
    gradient_norm: np.ndarray
    code: np.ndarray
    visits: np.ndarray
    seconds: np.ndarray


class Result(NamedTuple):
    """The end of a run.

    Attributes:
        w: the last inner variable.
        lam: the last outer variable; the last finite one if the run became non-finite.
        code: the worst :class:`~bilevax.Code` of its steps.
        history: one entry an outer step.
        cost: oracle calls of the whole run.
        config: the problem and the algorithm as plain values, JSON-ready.
        interrupted: True if the user stopped it; everything above is what was reached.
    """

    w: PyTree
    lam: PyTree
    code: int
    history: History
    cost: Cost
    config: dict[str, Any]
    interrupted: bool
