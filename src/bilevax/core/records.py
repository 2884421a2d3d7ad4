"""What estimators and runs return: plain records of arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core import shown
from bilevax.core.codes import LARGER, Code
from bilevax.core.config import config, static
from bilevax.core.error_report import ErrorReport as ErrorReport
from bilevax.core.trees import PyTree, all_finite, leaf_name, where


@config
class Count:
    """Oracle calls of one kind: how many, on how many rows each, and how often the rows were read for them.

    The rows are a Python integer, so that products with them do not overflow an int32.

    Args:
        calls: how many.
        rows: of one call.
        reads: minibatches read for these calls; less than ``calls`` where one that is in hand serves several of them.
            None: as many as calls.

    Examples:
        >>> import bilevax as bx
        >>> bx.Count(1000, 32).samples, bx.Count(1000, 32, 500).samples  # each minibatch read for two calls
        (32000, 16000)
    """

    calls: Array | int = 0
    rows: int = static(0)
    reads: Array | int | None = None

    @property
    def evaluations(self) -> Array | int:
        """Rows the calls are on: calls * rows."""
        return self._times_rows(self.calls)

    @property
    def samples(self) -> Array | int:
        """Rows read: reads * rows."""
        return self._times_rows(self._known_reads)

    def _times_rows(self, number: Array | int) -> Array | int:
        # A Python integer wherever the number is at hand: 2^31 samples are soon read.
        return number * self.rows if isinstance(number, jax.core.Tracer) else int(number) * self.rows

    def __add__(self, other: "Count") -> "Count":
        # One number of rows serves both: parts of one kind differ in it only where one of them has no calls.
        calls, reads = self.calls + other.calls, self._known_reads + other._known_reads
        return Count(jnp.asarray(calls, jnp.int32), max(self.rows, other.rows), jnp.asarray(reads, jnp.int32))

    @property
    def _known_reads(self) -> Array | int:
        return self.calls if self.reads is None else self.reads


class Cost(NamedTuple):
    """What a computation cost, by kind of oracle call; ``samples`` is the number of rows read.

    Attributes:
        gradients: evaluations of the inner map (inner gradients).
        hvps: products with d1Phi^T (Hessian-vector products).
        cross: products with d2Phi^T (cross products).
        outer_gradients: gradients of the outer loss.
        measuring: Hessian-vector products of the measured inner step, and of the tests whether a map contracts.

    Examples:
        >>> import bilevax as bx
        >>> bx.Cost(gradients=bx.Count(1000, 32), outer_gradients=bx.Count(1, 400)).samples
        32400
    """

    gradients: Count = Count()
    hvps: Count = Count()
    cross: Count = Count()
    outer_gradients: Count = Count()
    measuring: Count = Count()

    @property
    def samples(self) -> Array | int:
        """Samples: rows read, over all kinds; a row in hand that serves several calls is read once."""
        # sum of reads * rows over the kinds
        return sum(part.samples for part in self)

    def plus(self, other: "Cost") -> "Cost":
        """The cost of both, kind by kind."""
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


class Snapshots(NamedTuple):
    """Iterates of a chain after 2^(-i/2) of its steps, i = SNAPSHOTS - 1, ..., 0.

    Attributes:
        points: [SNAPSHOTS, ...].
        cumulative_step: sum of the step sizes up to there, [SNAPSHOTS]; None of moves without a step size.
        step_sizes: of the step that led there, [SNAPSHOTS]; likewise.
    """

    points: PyTree
    cumulative_step: Array | None
    step_sizes: Array | None


SNAPSHOTS = 8
"""Iterates of a chain that are kept, an even number."""


class SolverError(NamedTuple):
    """Estimated error of a deterministic solver, from its own iterates.

    Attributes:
        move: estimated solution less value, like value: extrapolated along the last moves. None: the residual over
            ``least``.
        least: smallest curvature of I - d1Phi met; infinite where none was.
        most: the largest; 0 likewise.
    """

    move: PyTree | None
    least: Array
    most: Array


class Solution(NamedTuple):
    """What a solver returns.

    Attributes:
        value: where it ended; the last finite point if a later one was not.
        code: a :class:`~bilevax.Code`.
        calls: oracle calls made.
        last_step: the step it ended at: of the failure, if there was one.
        diagnostic_products: with the linearised map, beside the calls, to test whether it contracts.
        snapshots: earlier iterates of a chain of minibatches; None of a deterministic solver.
        error: of a deterministic solver that can estimate it; else None.
        reads: minibatches read for the calls; None: as many as calls.
    """

    value: PyTree
    code: Array
    calls: Array
    last_step: Array
    diagnostic_products: Array | int = 0
    snapshots: Snapshots | None = None
    error: SolverError | None = None
    reads: Array | int | None = None


# Written into records by number: a new stage goes to the end.
STAGES = ("none", "inner", "linear", "cross", "outer")
"""Where a hypergradient can fail."""


class Failure(NamedTuple):
    """Where the code of an estimate comes from, and what is known of its cause.

    Attributes:
        stage: number in STAGES, int32.
        step: of that stage's solver, int32.
        finite: True where a derivative is not finite although the function is.
        relative_step: step of a gradient step that does not contract, times ``curvature``; 0 where not estimated.
        curvature: largest eigenvalue L of the Hessian of the inner loss, from power iterations; likewise.
    """

    stage: Array
    step: Array
    finite: Array
    relative_step: Array
    curvature: Array

    @staticmethod
    def of(stage: str, step: Array | int = 0, finite: Array | bool = False) -> "Failure":
        """With a stage by name, and no curvature."""
        # Arrays of fixed dtypes, as two failures meet in a where.
        zero = jnp.zeros((), jnp.result_type(float))
        return Failure(Failure.stage_of(stage), jnp.asarray(step, jnp.int32), jnp.asarray(finite), zero, zero)

    @staticmethod
    def stage_of(name: str) -> Array:
        """The number of a stage."""
        return jnp.asarray(STAGES.index(name), jnp.int32)

    def describe(self, code: Code, where: str = "") -> str:
        """What happened, where, the likely causes, and what to try; outside of compiled programs."""
        stage = STAGES[int(self.stage)]
        if code == Code.OK or (stage == "none" and not where):
            return code.message
        if stage == "none":
            return f"{code.name}{where}. {code.message}"
        place = f"{stage} solver, step {int(self.step)}" if stage in ("inner", "linear") else f"{stage} stage"
        if code == Code.NONFINITE and bool(self.finite):
            what = ("loss", "gradient") if stage in ("inner", "outer") else ("map", "derivative")
            place += " (the {} is finite, its {} is not)".format(*what)
        out = f"{code.name} in the {place}{where}. {code.message}"
        relative, curvature = float(self.relative_step), float(self.curvature)
        # |1 - s L| > 1 where s L > 2: below that the step is not the cause
        if relative > 2.0:
            out += f" Here: step {relative:.3g}/L; try at most 2/L; estimated L = {curvature:.3g}."
        return out


def first_failure(*parts: tuple[Array, Failure]) -> tuple[Array, Failure]:
    """The first code of NOT_CONTRACTIVE or worse, as those after it are consequences; else the worst; and where."""
    code, failure = jnp.int32(Code.OK), Failure.of("none")
    for found, at in parts:
        # A divergence is not replaced: what follows it in later stages is its consequence.
        code, failure = where((found > code) & (code < Code.NOT_CONTRACTIVE), (found, at), (code, failure))
    return code, failure


def nonfinite_code(tree: PyTree) -> Array:
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
        unused: like lam; True where a leaf enters neither function, so that its hypergradient is zero by right.
        steps: of the longest of its chains of minibatches; None where there is none.
        tol: relative error by which it was judged; None where it was not.

    Examples:
        >>> import bilevax as bx
        >>> "value" in bx.Estimate._fields, "error" in bx.Estimate._fields  # made by bx.hypergradient
        (True, True)
    """

    value: PyTree
    outer_value: Array
    w: PyTree
    v: PyTree
    code: Array
    cost: Cost
    failure: Failure
    error: ErrorReport | None = None
    unused: PyTree = None
    steps: Array | None = None
    tol: Array | None = None

    @property
    def message(self) -> str:
        """What happened, where, the likely causes, and what to try; outside of compiled programs."""
        # A penalty that is misspelt has a hypergradient of zero, and nothing else would tell.
        leaves = jax.tree_util.tree_leaves_with_path(self.unused)
        names = [leaf_name("lam", path) for path, unused in leaves if bool(unused)]
        note = f" {', '.join(names)} unused: in neither the inner map nor the outer loss." if names else ""
        code = Code(int(self.code))
        judged = code == Code.TOLERANCE_NOT_MET and self.failure.stage == 0
        return (self._not_met if judged else self.failure.describe(code)) + note

    @property
    def _not_met(self) -> str:
        if self.error is None:
            return _NO_REPORT
        if self.error.lacks_replicas or self.error.draws is not None:
            return f"{LARGER} {self.error.advice}"
        needed = ""
        if self.steps is not None and self.tol is not None:
            needed = _in_steps(self.error.steps_needed(int(self.steps), float(self.tol)), int(self.steps))
        return f"{Code.TOLERANCE_NOT_MET.message} {self.error.advice}{needed}"

    def __repr__(self) -> str:
        """In one line: code, sizes and shapes; of several estimates, as from vmap, the range."""
        if not shown.is_plain(self.code, self.value, self.outer_value, self.w):
            return shown.shapes("Estimate", value=self.value, outer_value=self.outer_value, w=self.w, code=self.code)
        # those of vmap: of one estimate the code is a scalar
        axes = np.ndim(self.code)
        error = "" if self.error is None else f"relative error {self.error.shown_relative(axes)}, "
        return (
            f"Estimate({shown.code(self.code)}, {error}|value| {shown.size(self.value, axes)}, "
            f"outer_value {shown.number(self.outer_value)}, |w| {shown.size(self.w, axes)}; "
            f"value {shown.shape(self.value)}; w {shown.shape(self.w)})"
        )


_NO_REPORT = (
    "TOLERANCE_NOT_MET. Nothing is known of the error, as this estimator does not report it. Take one that does, such "
    "as `bx.SID` or `bx.JointSID`; of one that samples, `replicas=5` show the noise; `report=False` takes the "
    "estimator's own code."
)


def _in_steps(needed: float, made: int) -> str:
    if not np.isfinite(needed):
        return f" More than these {made:,} steps alone will not do."
    # Two digits: the extrapolation deserves no more.
    return f" About {float(f'{needed:.2g}'):,.0f} steps would do, instead of {made:,}."


class Info(NamedTuple):
    """What an outer step of an algorithm reports; None: not reported.

    Attributes:
        outer_value: E(w, lam) before the step, on its minibatches of val; None where that would cost something: the
            loop then evaluates it at the end of a stretch.
        gradient_norm: norm of its hypergradient; None where the algorithm's ``outer_step`` gives the gamma_k by which
            lam moves along a direction: of a stretch, the change of lam then gives the mean.
        outcome: a :class:`~bilevax.Code`, and where it comes from; None where a step fails by NaN alone, for which the
            loop tests.
        cost: oracle calls of the step, where nothing else knows them.
    """

    outer_value: Array | None = None
    gradient_norm: Array | None = None
    outcome: tuple[Array, Failure] | None = None
    cost: Cost | None = None
