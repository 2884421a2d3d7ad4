"""Ways to spend samples on one hypergradient, and what comes of them on a few of the rows."""

import math
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.core.instance import Instance
from bilevax.core.keys import stream
from bilevax.core.programs import BRIEFLY, compiled
from bilevax.core.protocols import RowSource
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, entries, norm, scale, sub, zeros_like
from bilevax.data import Arrays, Stream, refuse_keys
from bilevax.hypergradients.estimate import hypergradient
from bilevax.hypergradients.joint_report import PRICED
from bilevax.hypergradients.joint_sid import FOLLOWED, JointSID, epoch, measured_step, measuring_calls
from bilevax.hypergradients.residual_error import SAFETY
from bilevax.hypergradients.sid import SID
from bilevax.problems.problem import Problem
from bilevax.solvers import CG, GMRES, LBFGS, FixedPoint, Harmonic, Polynomial

Table = Arrays | Stream
Sources = tuple[Table, Table]
Solver = TypeVar("Solver")

SAMPLED = "JointSID", "SID"
"""Methods on minibatches."""

LOOKED_AT = 4
"""Minibatches on which the step of the map is measured."""

FEW, FEWEST, MOST = 32, 64, 256
"""One row in so many is one of the few on which a method is tried; at least and at most so many are."""

FURTHER, SOLVED = 0.5, 24.0
"""Passes over the few rows that solve them, after those of a method: a part of these, but at least so many."""

DEAREST = 0.1
"""Share of a budget, at most, that a trial on every one of the few rows takes."""

SHORTER = 8
"""Times as few steps as there would be with which a method on minibatches is tried."""

NEAR = 10
"""Rows among the few for each entry of w, from which on their solution is taken for a better start than w0."""

ANCHOR = 0.25
"""Share of a run's samples that reading every row of val once more may take, to correct those of minibatches."""

LINE_SEARCH = 1.5, 1.05
"""Gradients before the first step of L-BFGS has its length, and of each step."""

RESIDUAL = 1.0
"""Products of GMRES beside those of its steps: what it has left is computed."""

FOR_V = 0.4
"""Share of the passes of a deterministic method that v takes, where d iterations are too many."""

CROSS = 5
"""One step in so many of the two chains of SID together is one for the cross products."""

TYPICAL = 0.7
"""Relative error of SID that is typical of budgets without a trial: its report, which is cautious, predicts no more."""

SHORT_TERM = 0.2
"""Share of the steps of SID after which its step sizes fall."""


class Start(NamedTuple):
    """Where a run begins: w, and v, both like w0; v None: 0."""

    w: PyTree
    v: PyTree | None


class Option(NamedTuple):
    """A way to spend a budget.

    Attributes:
        method: ``"SID"``, ``"JointSID"``, ``"AID-CG"``, ``"AID-GMRES"`` or ``"AID-FP"``.
        problem: with the step of its map.
        estimator: with its counts and steps.
        sources: (train, val) in the batch sizes of the method.
    """

    method: str
    problem: Problem
    estimator: Any  # SID or JointSID, as the method says
    sources: Sources

    @property
    def sampled(self) -> bool:
        """True of methods on minibatches."""
        return self.method in SAMPLED


class Tried(NamedTuple):
    """What came of a trial on a few of the rows.

    Attributes:
        left: relative error, of these rows' hypergradient; 0 where there was no method but the solver.
        w: where the method ended, like w0.
        v: likewise.
        value: the hypergradient, like lam.
        spent: samples.
    """

    left: float
    w: PyTree
    v: PyTree
    value: PyTree
    spent: int


def in_minibatches(train: RowSource, val: RowSource) -> Sources:
    """Both sources in minibatches of n / 64 rows, a power of two from 8 to 64; a val of no more rows stays whole.

    Where steps are as long as the minibatch allows, its size hardly changes what a visit is worth until it exceeds
    R^2 / L, the ratio of the largest curvature of a row to that of the mean.
    """
    whole = _numbered("train", train), _numbered("val", val)
    refuse_keys("a plan", "take bx.JointSID without one", train=train, val=val)
    # b = 2^floor(log2(n / 64)), from 8 to 64
    b = int(2 ** np.clip(np.floor(np.log2(max(train.rows / 64, 1))), 3, 6))
    b = min(b, train.rows)
    return _batched(whole[0], b), _batched(whole[1], b // 4 if val.rows > b else None)


def _numbered(name: str, source: RowSource) -> Table:
    if not isinstance(source, Table):
        raise ParameterError(
            f"a plan chooses the rows in a minibatch, which {type(source).__name__}, the source {name}, has of its"
            " own; pass bx.Arrays, bx.SparseRows or bx.Stream, or an estimator without a plan"
        )
    return source


def _batched(source: Table, b: int | None) -> Table:
    if source.batch_size == b:
        return source
    # the shuffle of "blocks" is not made for whole batches, nor by replacing a field: epochs are shuffled instead
    if source.sampling == "blocks" and source.seed is not None:
        source = replace_unchecked(source, sampling="shuffled")
    return replace_unchecked(source, batch_size=b)


def _whole(sources: Sources) -> Sources:
    return _batched(sources[0], None), _batched(sources[1], None)


# Ways to spend a budget


def joint_sid_for(problem: Problem, step: float, budget_left: float, sources: Sources) -> Option | None:
    """JointSID with as many steps as ``budget_left`` samples allow; None where that is too few.

    Its steps fall from ``step`` on after the first third of the run.
    """
    (train, val), (b, bv) = sources, (s.rows_per_batch for s in sources)
    snapshot = not val.is_full_batch and val.rows <= ANCHOR * budget_left
    for with_pass in (True, False):
        # budget_left = fixed + steps each, in samples: the two chains, their runs ahead, the last pass and its price
        each = b * (1 + 1 / FOLLOWED) + bv + with_pass * (b + bv) / PRICED
        fixed = epoch(val) * bv * (1 + snapshot) + with_pass * epoch(train) * b
        steps = int((budget_left - fixed) / each)
        if steps < (3 * train.rows / b if with_pass else 8):
            continue
        size, last = Polynomial(step, 0.6, steps / 3), "auto" if with_pass else "never"
        joint_sid = JointSID(steps, size, extrapolate=False, last_pass=last, snapshot=snapshot)
        return Option("JointSID", problem, joint_sid, sources)
    return None


def sid_for(problem: Problem, step: float, budget_left: float, sources: Sources) -> Option | None:
    """SID with steps that fall as 1 / j from ``step`` on, as many for w as for v, and every row of val; or None."""
    train, val = sources[0], _batched(sources[1], None)
    # minibatches of train: t for w, k = t for v, J = both / CROSS for the cross products
    both = (budget_left - val.rows) / train.rows_per_batch
    J = int(both / CROSS)
    steps = int(both - J) // 2
    if steps < 1:
        return None
    # beta / (gamma + j) with gamma = SHORT_TERM t and beta / gamma = step
    falling = Harmonic(step * SHORT_TERM * steps, SHORT_TERM * steps)
    sid = SID(FixedPoint(steps, falling), FixedPoint(steps, falling), cross_batches=max(J, 1))
    return Option("SID", problem, sid, (train, val))


def deterministic_for(problem: Problem, w: PyTree, budget_left: float, sources: Sources) -> Option | None:
    """Every row at once, in so many samples; None where that is not one iteration for w and one for v.

    L-BFGS, then conjugate gradients. A share of the passes, but at most d, is for v: these solve a system of d entries
    in d iterations; up to 2 d, rounding included, where that is less than a fourth. The others are for w. Where there
    is no loss, the map itself for w, and for v GMRES, or as often the map where d iterations are too many.
    """
    train, val = whole = _whole(sources)
    passes = (budget_left - val.rows) / train.rows - 1.0
    # t = inner, k = linear: first + each t + k passes over train, and one for the cross product
    first, each = LINE_SEARCH if problem.has_loss else (RESIDUAL, 1.0)
    passes, d, tiny = passes - first, entries(w), rounding(w)
    linear = round(max(min(FOR_V * passes, d), min(passes / 4, 2 * d)))
    inner = round((passes - linear) / each)
    if min(inner, linear) < 1:
        return None
    if problem.has_loss:
        return Option("AID-CG", problem, SID(LBFGS(tiny, inner), CG(tiny, linear)), whole)
    if linear >= d:
        return Option("AID-GMRES", problem, SID(FixedPoint(inner), GMRES(tiny, linear)), whole)
    passes += RESIDUAL
    half = int(passes / 2)
    return Option("AID-FP", problem, SID(FixedPoint(round(passes - half)), FixedPoint(half)), whole)


def rounding(w: PyTree) -> float:
    """Relative residual that the type of w allows to reach, times 10."""
    return 10.0 * float(jnp.finfo(norm(w).dtype).eps)


# Trials


def subsampled(sources: Sources, key: Array) -> Sources:
    """Some rows of both sources, without replacement."""
    train, val = sources
    return _subsample(train, stream(key, "inner")), _subsample(val, stream(key, "outer"))


def trial_samples(rows: int, passes: float) -> float:
    """What a trial of a method of so many passes over train takes."""
    # the method's own iterations on the rows tried, and the solver's after it
    return _rows_tried(rows) * (passes + max(FURTHER * passes, SOLVED))


def _rows_tried(rows: int) -> int:
    return min(max(-(-rows // FEW), FEWEST), MOST, rows)


def _subsample(source: Table, key: Array) -> Arrays:
    number = _rows_tried(source.rows)
    b = None if source.batch_size is None else min(source.batch_size, number)
    if isinstance(source, Stream):
        return source.some(number, key, b)
    chosen = _chosen(source.data, key, source.rows, number)
    return replace_unchecked(source, data=chosen, batch_size=b, sampling="iid" if b else source.sampling)


@partial(compiled, options=BRIEFLY, static=("rows", "number"))
def _chosen(data: PyTree, key: Array, rows: int, number: int) -> PyTree:
    """So many of the rows, at random."""
    # without replacement: a row that is there twice would halve the noise it brings
    chosen = jax.random.choice(key, rows, (number,), replace=False)
    return jax.tree.map(lambda a: a[chosen], data)


def tried(option: Option | None, solver: Option, start: Start, lam: PyTree, sample: Sources, *, key: Array) -> Tried:
    """A deterministic method on a few rows: what it leaves of the error there, by what a solver makes of it.

    The iterations are those that every row would have.
    """
    # the method first, then the solver from where it ended, whose value stands for the truth
    sources, spent, ends = _whole(sample), 0, []
    w, v = start.w, zeros_like(start.w)
    for estimator in ((option.estimator,) if option else ()) + (solver.estimator,):
        # no more is spent on whether it converges
        quick = estimator.suspecting()
        est = hypergradient(solver.problem, quick, w, lam, *sources, key=key, v0=v, report=False)
        w, v, spent = est.w, est.v, spent + int(est.cost.samples)
        ends.append(est)
    failed = any(int(est.code) >= Code.NOT_CONTRACTIVE for est in ends)
    left = math.inf if failed else relative(ends[0].value, ends[-1].value)
    return Tried(left, w, v, ends[-1].value, spent)


def with_steps_times(factor: float, estimator: SID) -> SID:
    """With so many times the iterations of both solvers."""

    def longer(solver: Solver) -> Solver:
        name = "steps" if isinstance(solver, FixedPoint) else "max_steps"
        return replace_unchecked(solver, **{name: max(1, round(factor * getattr(solver, name)))})

    return replace_unchecked(estimator, inner=longer(estimator.inner), linear=longer(estimator.linear))


def tried_shortly(option: Option, start: Start, lam: PyTree, truth: PyTree, *, key: Array) -> tuple[float, int]:
    """A method on minibatches of a few rows whose hypergradient is known: its relative error, and the samples."""
    problem, estimator = option.problem, option.estimator
    est = hypergradient(problem, estimator, start.w, lam, *option.sources, key=key, v0=start.v, report=False)
    failed = int(est.code) >= Code.NOT_CONTRACTIVE
    return math.inf if failed else relative(est.value, truth), int(est.cost.samples)


def relative(value: PyTree, truth: PyTree) -> float:
    """How far a value is from the truth, over the size of that; infinite where either is not finite."""
    # ||value - truth|| / ||truth||, of which rounding hides what is below it
    ratio = float(norm(sub(value, truth)) / norm(truth))
    return max(ratio, rounding(truth)) if math.isfinite(ratio) else math.inf


# Runs that are no trial


def ran(option: Option, start: Start, lam: PyTree, goal: float, *, key: Array) -> tuple[Estimate, float]:
    """The run of a method, and the relative error that is predicted by its report; infinite where the run failed.

    A method on minibatches that is suspected not to contract is run once more, on others: a test of that reads several
    times as much as a run of few passes.
    """
    estimator = option.estimator.suspecting() if option.sampled else option.estimator
    args = option.problem, estimator, start.w, lam, *option.sources
    v0 = start.v if option.sampled else None
    est = hypergradient(*args, key=key, tol=goal, v0=v0)
    if option.sampled and int(est.code) >= Code.NOT_CONTRACTIVE:
        before, est = est, hypergradient(*args, key=jax.random.fold_in(key, 1), tol=goal, v0=v0)
        est = est._replace(cost=est.cost.plus(before.cost))
    report = est.error
    assert report is not None
    if int(est.code) >= Code.NOT_CONTRACTIVE:
        return est, math.inf
    if option.sampled:
        # TYPICAL where nothing is known, too
        return shrunk(est), float(jnp.fmin(report.relative, TYPICAL))
    # of the error, not of its limit; iterates of Krylov methods from 0 are hardly further from the solution than 0 is
    error = float(report.relative) / SAFETY
    return est, min(error, 1.0) if math.isfinite(error) else math.inf


def shrunk(est: Estimate) -> Estimate:
    """An estimate of SID with more noise than length, r = |standard error| / |value| > 1: the value is divided by r^2.

    Of the truth x with an error e that is independent of it, s (x + e) is nearest to x at s = |x|^2 / (|x|^2 + |e|^2)
    (Wiener 1949), less than |x|^2 / |e|^2, where |x + e| stands for |x|: an error longer than the value leaves little
    of it.
    """
    report = est.error
    assert report is not None
    r = float(norm(report.standard_error) / norm(est.value))
    if not 1.0 < r < math.inf:
        return est
    s = r**-2.0
    value = scale(s, est.value)
    # |s y - x| <= s |y - x| + (1 - s) |x|, and |x| is not known: |y| in its place
    bias = jax.tree.map(lambda b, y: s * b + (1.0 - s) * jnp.abs(y), report.bias, est.value)
    report = report._replace(value=value, standard_error=scale(s, report.standard_error), bias=bias)
    return est._replace(value=value, error=report)


# Steps


def measured(problem: Problem, w: PyTree, lam: PyTree, train: RowSource, key: Array) -> tuple[Problem, float, int]:
    """The problem with the step of its map, the largest relative step of one minibatch, and the samples they cost.

    A step that was measured on minibatches is one for minibatches.
    """
    products = problem.measuring_products(train, LOOKED_AT)
    if products:
        return _measured(problem, w, lam, train, key), 1.0, products * train.rows_per_batch
    return problem, float(_step(problem, w, lam, train, key)), measuring_calls(train, LOOKED_AT) * train.rows_per_batch


def followed(problem: Problem, w: PyTree, lam: PyTree, train: RowSource, key: Array) -> tuple[Problem, int]:
    """The problem as a deterministic method needs it, and the samples: L-BFGS and CG choose steps of their own."""
    products = problem.measuring_products(train, LOOKED_AT)
    if products and problem.has_loss:
        return problem.with_unit_step(), 0
    return _measured(problem, w, lam, train, key) if products else problem, products * train.rows_per_batch


_once = partial(compiled, options=BRIEFLY)


@_once
def _measured(problem: Problem, w: PyTree, lam: PyTree, train: RowSource, key: Array) -> Problem:
    return problem.with_measured_step(w, lam, train, key, LOOKED_AT)


@_once
def _step(problem: Problem, w: PyTree, lam: PyTree, train: RowSource, key: Array) -> Array:
    return measured_step(Instance(problem, lam, train, train), w, key=stream(key, "measure"), batches=LOOKED_AT)
