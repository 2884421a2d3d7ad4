"""The planner: a budget of sample visits, or a relative error, in; method, counts, steps, batch size and start out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import real, strong
from bilevax.core.errors import ParameterError
from bilevax.core.keys import as_key, stream
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, as_parameters, norm, sub, zeros_like
from bilevax.data import RowSource
from bilevax.hypergradients.door import hypergradient
from bilevax.hypergradients.sid import SID
from bilevax.problems.problem import Problem
from bilevax.solvers import CG, GMRES, LBFGS, FixedPoint
from bilevax.trust.pilot import Pilot, Rates, Start, fly, in_minibatches, joint, pilot_room, whole

LINE_SEARCH = 1.1
"""Gradients of an L-BFGS step."""

UNSURE = 2.0
"""Factor by which the sampled method must be better than the other, whose error report is certain."""

LONGEST = 4096
"""Passes over train after which the search for a target ends."""


class Verified(NamedTuple):
    """What a plan said, and what came of it.

    Attributes:
        predicted: relative error.
        measured: root of the mean square distance of the replicas from their mean or, of deterministic methods, from
            twice as many iterations, relative to it.
    """

    predicted: float
    measured: float


class Option(NamedTuple):
    """A way to spend a budget."""

    method: str
    estimator: Any
    sources: tuple[RowSource, RowSource]
    predicted: float


@dataclass(frozen=True)
class Plan:
    """How to compute one hypergradient, what it will cost, and how wrong it should be; made by :func:`plan`.

    Attributes:
        problem: with its inner step measured.
        estimator: with its counts and steps.
        train: in the batch size of the method.
        val: likewise.
        w0: start of w, from the pilot where that came nearer.
        v0: start of v, likewise.
        lam: where the hypergradient is wanted.
        method: ``"JointSID"``, ``"AID-FP"`` or ``"AID-CG"``.
        constants: what the pilot measured.
        predicted: relative error, root of the mean square error over the size of the hypergradient.
        alternatives: predicted relative error of each method at this budget.
        budget: sample visits, the pilot's included.
        spent: of these, the pilot's.
        goal: relative error above which the code of a run is BUDGET.
        notes: what the user should know, in sentences.
    """

    problem: Problem
    estimator: Any
    train: RowSource
    val: RowSource
    w0: PyTree = field(repr=False)
    v0: PyTree = field(repr=False)
    lam: PyTree = field(repr=False)
    method: str
    constants: Rates
    predicted: float
    alternatives: dict[str, float]
    budget: float
    spent: int
    goal: float
    notes: tuple[str, ...] = ()

    def run(self, *, key: Array) -> Estimate:
        """The hypergradient as planned; the code is BUDGET where its error report exceeds the goal."""
        args = self.problem, self.estimator, self.w0, self.lam, self.train, self.val
        est = hypergradient(*args, key=key, tol=self.goal, v0=self.v0)
        if self.method == "JointSID" or int(est.code) > Code.BUDGET:
            return est
        far = not float(est.error.relative) <= self.goal  # that a solver used up its steps is as planned
        return est._replace(code=jnp.int32(Code.BUDGET if far else Code.OK))

    def __str__(self) -> str:
        others = ", ".join(f"{name} {error:.1e}" for name, error in self.alternatives.items())
        lines = [
            f"{self.method}: relative error {self.predicted:.1e} predicted at {self.budget:.3g} sample visits,"
            f" {self.spent} of them spent on the pilot",
            f"  {self.estimator}",
            f"  minibatches of {self.train.rows_per_batch} rows of train, {self.val.rows_per_batch} of val",
            f"  step {self.constants.step:.2g}, noise {self.constants.noise:.2g} / sqrt(N), condition about"
            f" {self.constants.kappa:.2g}",
            f"  considered: {others}",
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def plan(
    problem: Problem,
    w0: PyTree,
    lam: PyTree,
    train: RowSource,
    val: RowSource,
    *,
    key: Array,
    budget: float | None = None,
    target: float | None = None,
) -> Plan:
    """Choose the method, its counts, step sizes, batch size and start, for a budget or for an error.

    Args:
        problem: the inner map, the outer loss, the set Lambda.
        w0: start of the inner solver, d entries.
        lam: where the hypergradient is wanted, m entries.
        train: source of inner minibatches; its batch size is replaced.
        val: source of outer minibatches; likewise.
        key: a JAX random key, of the pilot.
        budget: sample visits (rows read), the pilot's included.
        target: a relative error; instead of a budget.

    Raises:
        ParameterError: not exactly one of ``budget`` and ``target``, one that is not positive, a budget of less than
            four passes over the rows, a wrong leaf of w0 or lam.
    """
    if (budget is None) == (target is None):
        raise ParameterError("plan takes a budget (sample visits) or a target (relative error), exactly one of them")
    w0, lam, key = as_parameters("w0", w0), as_parameters("lam", lam), as_key(key)
    problem, sources = strong(problem), in_minibatches(train, val)
    start = Start(w0, zeros_like(w0), 1.0)
    if budget is not None:
        budget = real("budget", budget, low=0.0, open_low=True)
        return _planned(problem, start, lam, sources, budget, key=key)
    target = real("target", target, low=0.0, open_low=True)
    return _to_target(problem, start, lam, sources, target, key=key)


def _to_target(
    problem: Problem, start: Start, lam: PyTree, sources: tuple[RowSource, RowSource], target: float, *, key: Array
) -> Plan:
    """Plans for budgets that double, each from the last one's start, until one promises the target."""
    passes, spent = 4, 0
    while True:
        made = _planned(problem, start, lam, sources, passes * sources[0].rows, key=jax.random.fold_in(key, passes))
        raise NotImplementedError


def _planned(
    problem: Problem, start: Start, lam: PyTree, sources: tuple[RowSource, RowSource], budget: float, *, key: Array
) -> Plan:
    pilot = fly(problem, start, lam, sources, pilot_room(budget, sources), key=stream(key, "measure"))
    options = list(_options(pilot, budget - pilot.spent))
    if not options:
        n = sources[0].rows
        raise ParameterError(f"a budget of {budget:g} sample visits is too small for n={n} rows; try {6 * n}")
    best = min(options, key=lambda option: option.predicted * (UNSURE if option.method == "JointSID" else 1.0))
    return Plan(
        problem=pilot.problem,
        estimator=best.estimator,
        train=best.sources[0],
        val=best.sources[1],
        w0=pilot.start.w,
        v0=pilot.start.v,
        lam=lam,
        method=best.method,
        constants=pilot.rates,
        predicted=best.predicted,
        alternatives={option.method: option.predicted for option in options},
        budget=budget,
        spent=pilot.spent,
        goal=0.1,
    )


def _options(pilot: Pilot, room: float) -> Iterator[Option]:
    run = joint(room, pilot.sources, pilot.rates.step)
    if run is not None:
        estimator, steps = run
        noise = pilot.rates.noise / math.sqrt(steps)
        predicted = math.hypot(noise, pilot.start.error * pilot.rates.kept(steps))
        yield Option("JointSID", estimator, pilot.sources, predicted)
    train, val = (whole(source) for source in pilot.sources)
    n, d = train.rows, sum(x.size for x in jax.tree.leaves(pilot.start.w))
    passes = (room - n - val.rows) / n - LINE_SEARCH - 1.0
    linear = int(min(passes / 2, d + 2))
    inner = int((passes - linear) / LINE_SEARCH)
    if min(linear, inner) < 1:
        return
    tiny = 10 * float(jnp.finfo(norm(pilot.start.w).dtype).eps)
    if pilot.problem.has_loss:
        root = math.sqrt(pilot.rates.kappa)
        factor = (root - 1.0) / (root + 1.0)
        left = 2.0 * factor**inner * (inner < 3 * d) + 2.0 * factor**linear * (linear < d)
        method, estimator = "AID-CG", SID(LBFGS(tiny, inner), CG(tiny, linear))
    else:
        factor = 1.0 - pilot.rates.forgetting
        left = 2.0 * factor**inner + 2.0 * factor**linear
        method, estimator = "AID-FP", SID(FixedPoint(inner), GMRES(tiny, linear))
    yield Option(method, estimator, (train, val), pilot.start.error * min(1.0, left))
