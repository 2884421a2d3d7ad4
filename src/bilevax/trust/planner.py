"""The planner: a budget of sample visits, or a relative error, in; method, counts, steps, batch size and start out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import count, real, replace, strong
from bilevax.core.errors import ParameterError
from bilevax.core.keys import as_key
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, as_parameters, entries, norm, sub
from bilevax.data import RowSource
from bilevax.hypergradients.door import hypergradient
from bilevax.hypergradients.sid import SID
from bilevax.problems.problem import Problem
from bilevax.solvers import CG, LBFGS, FixedPoint
from bilevax.trust.pilot import (
    MOVED,
    Pilot,
    Rates,
    Start,
    in_minibatches,
    joint,
    moved_pilot,
    pilot_room,
    reported,
    run_pilot,
    whole,
)

LINE_SEARCH = 1.5, 1.05
"""Gradients before the first step of L-BFGS has its length, and of each step."""

UNSURE = 3.0
"""Factor by which the sampled method must be better than the other, whose error report is certain."""

TOLERABLE = 0.1
"""Relative error above which the code of a run is BUDGET, where no target is given."""

FIRST = 8
"""Passes over train with which the search for a target begins."""

MARGIN = 1.5
"""Factor by which the predicted error must be below a target."""

SEEN_WHOLE = 16
"""Passes from which on a map without a loss is first tried on every row."""

Sources = tuple[RowSource, RowSource]

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
    sources: Sources
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
        v0: start of v, likewise; None: 0.
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
    v0: PyTree | None = field(repr=False)
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
        far = not float(reported(est).relative) <= self.goal  # that a solver used up its steps is as planned
        return est._replace(code=jnp.int32(Code.BUDGET if far else Code.OK))

    def verify(self, *, key: Array, replicas: int = 4) -> "Verified":
        """The predicted error beside a measured one.

        JointSID is run ``replicas`` times: their spread, and the bias that each reports, but not a bias that they
        share unseen. A deterministic method is compared with itself at twice as many iterations.

        Args:
            key: a JAX random key.
            replicas: a count of at least 2. Cost: so many runs, or three.
        """
        count("replicas", replicas, low=2)
        args = self.w0, self.lam, self.train, self.val
        if self.method == "JointSID":
            est = hypergradient(self.problem, self.estimator, *args, key=key, v0=self.v0, replicas=replicas)
            error = reported(est)
            spread = norm(error.standard_error) * replicas**0.5
            return Verified(self.predicted, float(jnp.hypot(spread, error.bias) / norm(est.value)))
        est, further = (
            hypergradient(self.problem, estimator, *args, key=key, v0=self.v0)
            for estimator in (self.estimator, _doubled(self.estimator))
        )
        return Verified(self.predicted, float(norm(sub(est.value, further.value)) / norm(further.value)))

    def __str__(self) -> str:
        rates = self.constants
        sampled = "" if math.isnan(rates.step) else f"step {rates.step:.2g}, noise {rates.noise:.2g} / sqrt(N), "
        others = ", ".join(f"{name} {error:.1e}" for name, error in self.alternatives.items())
        lines = [
            f"{self.method}: relative error {self.predicted:.1e} predicted at {self.budget:.3g} sample visits,"
            f" {self.spent} of them spent on the pilot",
            f"  {self.estimator}",
            f"  minibatches of {self.train.rows_per_batch} rows of train, {self.val.rows_per_batch} of val",
            f"  {sampled}condition about {rates.kappa:.2g}",
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
    start = Start(w0, None, 1.0)
    if budget is not None:
        budget = real("budget", budget, low=0.0, open_low=True)
        pilot = _piloted(problem, start, lam, sources, budget, key=key)
        return _chosen(pilot, lam, budget, goal=TOLERABLE)
    target = real("target", target, low=0.0, open_low=True)
    return _to_target(problem, start, lam, sources, target, key=key)


def _to_target(problem: Problem, start: Start, lam: PyTree, sources: Sources, target: float, *, key: Array) -> Plan:
    """Plans for budgets that double, each from where the last one's pilot ended, until one promises the target."""
    passes, spent = FIRST, 0
    while True:
        budget, here = passes * sources[0].rows, jax.random.fold_in(key, passes)
        pilot = _piloted(problem, start, lam, sources, budget, key=here)
        made = _chosen(pilot, lam, budget, goal=target)
        spent, before = spent + pilot.spent, spent
        if made.predicted <= target / MARGIN:
            made = _cheapest(made, pilot, target)
            return replace(made, spent=spent, budget=made.budget + before)
        if passes >= LONGEST:
            note = f"the target {target:g} was not promised by any budget up to {LONGEST} passes over the rows"
            return replace(made, spent=spent, budget=budget + before, notes=(note,))
        start, passes = pilot.start, 2 * passes


def _cheapest(made: Plan, pilot: Pilot, target: float) -> Plan:
    """The plan for the least of half its budget, a quarter, ... that still promises the target."""
    while True:
        room = (made.budget - pilot.spent) / 2
        if all(option.predicted > target / MARGIN for option in _options(pilot, room)):
            return made
        half = _chosen(pilot, made.lam, pilot.spent + room, goal=target)
        if half.predicted > target / MARGIN:  # another method promises it, but is not sure enough
            return made
        made = half


def _piloted(problem: Problem, start: Start, lam: PyTree, sources: Sources, budget: float, *, key: Array) -> Pilot:
    """A map without a loss is tried on every row first; where it contracts soon enough, there is no other pilot."""
    rows, spent = sources[0].rows, 0
    if not problem.has_loss and budget >= SEEN_WHOLE * rows:
        moved = moved_pilot(problem, start, lam, sources, key=key)
        if moved.whole_factor ** (0.5 * budget / rows) < TOLERABLE:
            return moved
        start, spent = moved.start, moved.spent
    pilot = run_pilot(problem, start, lam, sources, pilot_room(budget, sources), key=key)
    return pilot._replace(spent=pilot.spent + spent)


def _chosen(pilot: Pilot, lam: PyTree, budget: float, *, goal: float) -> Plan:
    """The method with the least predicted error for what the pilot has left."""
    options = list(_options(pilot, budget - pilot.spent))
    if not options:
        raise ParameterError(
            f"a budget of {budget:g} sample visits leaves no run beside the pilot; try {FIRST * pilot.sources[0].rows}"
        )
    best = min(options, key=lambda option: option.predicted * (UNSURE if option.method == "JointSID" else 1.0))
    estimator: Any = best.estimator
    blind = () if pilot.informed else ("the budget allowed no pilot: what is predicted is what is typical",)
    return Plan(
        problem=pilot.problem,
        estimator=estimator,
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
        goal=goal,
        notes=blind,
    )


def _options(pilot: Pilot, room: float) -> Iterator[Option]:
    """The ways to spend what the pilot has left; on every row alone where it is known how the map contracts there."""
    forgetting = pilot.rates.forgetting if pilot.informed else 0.0
    run = None if pilot.moved else joint(room, pilot.sources, pilot.rates.step, forgetting)
    if run is not None:
        estimator, steps = run
        noise = pilot.rates.noise / math.sqrt(steps)
        predicted = math.hypot(noise, pilot.start.error * pilot.rates.kept(steps))
        yield Option("JointSID", estimator, pilot.sources, predicted)
    train, val = map(whole, pilot.sources)
    option = (_by_loss if pilot.problem.has_loss else _by_map)(pilot, (room - val.rows) / train.rows - 1.0)
    if option is not None:
        method, solvers, left = option
        yield Option(method, solvers, (train, val), pilot.start.error * min(1.0, left))


def _by_loss(pilot: Pilot, passes: float) -> tuple[str, SID, float] | None:
    """L-BFGS and conjugate gradients in so many passes over train, and the share of an error that they leave.

    As many steps for w as for v, but that 2 d conjugate gradients solve any system of d entries, rounding included. Of
    few entries L-BFGS remembers all directions, and is soon done.
    """
    first, each = LINE_SEARCH
    passes -= first + (pilot.start.v is not None)
    d = entries(pilot.start.w)
    linear = int(min(passes / 2, 2 * d))
    inner = round((passes - linear) / each)
    if min(linear, inner) < 1:
        return None
    tiny = 10 * float(jnp.finfo(norm(pilot.start.w).dtype).eps)
    rates = pilot.rates
    left = rates.krylov(inner) ** max(inner / d, 1.0) ** 2 + rates.krylov(linear) * (linear < d) + tiny * rates.kappa
    return "AID-CG", SID(LBFGS(tiny, inner), CG(tiny, linear)), left


def _by_map(pilot: Pilot, passes: float) -> tuple[str, SID, float] | None:
    """The iteration itself, for w and for v; steps for w that the pilot made are made."""
    made = MOVED * pilot.moved
    linear = int((passes + made) / 2)
    inner = int(passes) - linear
    if min(linear, inner) < 1:
        return None
    factor = pilot.whole_factor if pilot.moved else max(1.0 - 1.0 / pilot.rates.kappa, 0.3)
    return "AID-FP", SID(FixedPoint(inner), FixedPoint(linear)), factor ** (inner + made) + factor**linear


def _doubled(estimator: SID) -> SID:
    """With twice as many iterations of both solvers."""

    def twice(solver: Any) -> Any:
        name = "steps" if isinstance(solver, FixedPoint) else "max_steps"
        return replace(solver, **{name: 2 * getattr(solver, name)})

    return replace(estimator, inner=twice(estimator.inner), linear=twice(estimator.linear))
