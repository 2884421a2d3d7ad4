"""What estimators and runs return: plain records of arrays."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import config, static
from bilevax.core.trees import PyTree, all_finite, where
from bilevax.core.uncertainty import Error as Error


@config
class Count:
    """Oracle calls of one kind: how many, on how many rows each, and how often the rows were read for them.

    The rows are a Python integer, so the products do not overflow an int32.

    Args:
        calls: how many.
        rows: of one call.
        reads: minibatches read for these calls; less than ``calls`` where one that is in hand serves several of them.
            None: as many as calls.
    """

    calls: Array | int = 0
    rows: int = static(0)
    reads: Array | int | None = None

    @property
    def samples(self) -> Any:
        """Rows the calls are on: calls * rows."""
        return self._times_rows(self.calls)

    @property
    def visits(self) -> Any:
        """Rows read: reads * rows."""
        return self._times_rows(self._known_reads)

    def _times_rows(self, number: Any) -> Any:
        return number * self.rows if isinstance(number, jax.core.Tracer) else int(number) * self.rows

    def __add__(self, other: "Count") -> "Count":
        calls, reads = self.calls + other.calls, self._known_reads + other._known_reads
        return Count(jnp.asarray(calls, jnp.int32), max(self.rows, other.rows), jnp.asarray(reads, jnp.int32))

    @property
    def _known_reads(self) -> Any:
        return self.calls if self.reads is None else self.reads


class Cost(NamedTuple):
    """What a computation cost, by kind of oracle call; ``visits`` is the number of rows read.

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
        """Sample visits: rows read, over all kinds; a row in hand that serves several calls is read once."""
        return sum(part.visits for part in self)

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


def worst_part(*parts: tuple[str | Array, Array, Array]) -> tuple[Array, Failure]:
    """The worst code of (stage, code, step), and the first stage that has it."""
    code, failure = jnp.int32(Code.OK), Failure(Failure.stage_of("none"), jnp.int32(0))
    for stage, found, step in parts:
        number = Failure.stage_of(stage) if isinstance(stage, str) else stage
        failure = where(found > code, Failure(number, jnp.asarray(step, jnp.int32)), failure)
        code = jnp.maximum(code, found)
    return code, failure


def nonfinite(tree: PyTree) -> Array:
    """NONFINITE if an entry is, else OK."""
    return jnp.where(all_finite(tree), jnp.int32(Code.OK), jnp.int32(Code.NONFINITE))


class Estimate(NamedTuple):
    """A hypergradient and what it came from.

    Attributes:
        value: the hypergradient, like lam.
        outer_value: E(w, lam), at the w below.
        w: the approximate fixed point, like w0.
        v: the approximate solution of (I - d1Phi^T) v = grad_1 E, like w0; None where nothing stands for it.
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
