"""The planner: a budget of sample visits, or a relative error, in; method, counts, steps, batch size and start out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.config import count, real, replace, strong
from bilevax.core.errors import ParameterError
from bilevax.core.keys import as_key
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, as_parameters, entries, norm, sub
from bilevax.data import RowSource
from bilevax.hypergradients.door import hypergradient
from bilevax.hypergradients.sid import SID
from bilevax.problems.problem import Problem
from bilevax.solvers import CG, LBFGS, FixedPoint, Harmonic
from bilevax.trust.pilot import (
    MOVED,
    Pilot,
    Start,
    in_minibatches,
    joint,
    moved_pilot,
    reported,
    run_pilot,
    whole,
)
from bilevax.trust.rates import Rates

ROUGHLY = 1.4
"""Error of L-BFGS and conjugate gradients, over that of as many conjugate gradients on the model system."""

INEXACT = 1.75
"""Steps of L-BFGS after which it has seen every direction, over their number."""

LINE_SEARCH = 1.5, 1.05
"""Gradients before the first step of L-BFGS has its length, and of each step."""

SAMPLED = "JointSID", "SID"
"""Methods on minibatches."""

UNSURE = 3.0
"""Factor by which a sampled method must be better than another, whose error report is certain."""

SETTLED = 0.3
"""Relative error from which on a deterministic method has not converged, so that its forecast is not certain either."""

STRAYING = {"AID-CG": 1.4, "AID-FP": 2.0}
"""Factor by which a sampled method may then be worse, in what is predicted, and is preferred: conjugate gradients stray
before they converge, and what minibatches forget says little of how a map contracts."""

STEADY = 0.05
"""Relative standard deviation of the cross products of minibatches below which SID is considered."""

APART = 0.55
"""Noise of SID with N minibatches for w and N others for v, over that of the pilot's JointSID with N for both, whose
minibatches of val are noisy."""

TOLERABLE = 0.1
"""Relative error above which the code of a run is BUDGET, where no target is given."""

FIRST = 8
"""Passes over train with which the search for a target begins."""

MARGIN = 2.0
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
    """A way to spend a budget; v0 starts its linear solver."""

    method: str
    estimator: Any
    sources: Sources
    predicted: float
    v0: PyTree | None


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
        method: ``"SID"``, ``"JointSID"``, ``"AID-FP"`` or ``"AID-CG"``.
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
        return hypergradient(*args, key=key, tol=self.goal, v0=self.v0)

    def verify(self, *, key: Array, replicas: int = 4) -> "Verified":
        """The predicted error beside a measured one.

        A method on minibatches is run ``replicas`` times: their spread, and the bias that each reports, but
        not a bias that they share unseen. A deterministic method is compared with itself at twice as many iterations.

        Args:
            key: a JAX random key.
            replicas: a count of at least 2. Cost: so many runs, or three.
        """
        count("replicas", replicas, low=2)
        args = self.w0, self.lam, self.train, self.val
        if self.method in SAMPLED:
            est = hypergradient(self.problem, self.estimator, *args, key=key, v0=self.v0, replicas=replicas)
            error = reported(est)
            spread = norm(error.standard_error) * replicas**0.5
            return Verified(
                self.predicted,
                float(jnp.hypot(spread, norm(jax.tree.map(jnp.nan_to_num, error.bias))) / norm(est.value)),
            )
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
    full_batch_price: float = 1.0,
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
        full_batch_price: of a row that is read along with every other, in rows read in minibatches, which a budget
            counts. Default 1; in seconds it is rather a third where rows are many and short.

    Raises:
        ParameterError: not exactly one of ``budget`` and ``target``, one of these or a price that is not positive, a
            budget of less than four passes over the rows, a wrong leaf of w0 or lam.
    """
    if (budget is None) == (target is None):
        raise ParameterError("plan takes a budget (sample visits) or a target (relative error), exactly one of them")
    w0, lam, key = as_parameters("w0", w0), as_parameters("lam", lam), as_key(key)
    price = real("full_batch_price", full_batch_price, low=0.0, open_low=True)
    problem, sources = strong(problem), in_minibatches(train, val)
    start = Start(w0, None, 1.0)
    if budget is not None:
        budget = real("budget", budget, low=0.0, open_low=True)
        pilot = _piloted(problem, start, lam, sources, budget, key=key)._replace(price=price)
        return _chosen(pilot, lam, budget, goal=TOLERABLE)
    target = real("target", target, low=0.0, open_low=True)
    return _to_target(problem, start, lam, sources, target, price, key=key)


def _to_target(
    problem: Problem, start: Start, lam: PyTree, sources: Sources, target: float, price: float, *, key: Array
) -> Plan:
    """Plans for budgets that double, each from where the last one's pilot ended, until one promises the target."""
    passes, spent = FIRST, 0
    while True:
        budget, here = passes * sources[0].rows, jax.random.fold_in(key, passes)
        pilot = _piloted(problem, start, lam, sources, budget, key=here)._replace(price=price)
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
    pilot = run_pilot(problem, start, lam, sources, budget, key=key)
    return pilot._replace(spent=pilot.spent + spent)


def _chosen(pilot: Pilot, lam: PyTree, budget: float, *, goal: float) -> Plan:
    """The method with the least predicted error for what the pilot has left."""
    options = list(_options(pilot, budget - pilot.spent))
    if not options:
        raise ParameterError(
            f"a budget of {budget:g} sample visits leaves no run beside the pilot; try {FIRST * pilot.sources[0].rows}"
        )
    best = min(options, key=lambda option: _risk(option, pilot))
    estimator: Any = best.estimator
    blind = () if pilot.informed else ("the budget allowed no pilot: what is predicted is what is typical",)
    return Plan(
        problem=pilot.problem,
        estimator=estimator,
        train=best.sources[0],
        val=best.sources[1],
        w0=pilot.start.w,
        v0=best.v0,
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


def _risk(option: Option, pilot: Pilot) -> float:
    """What is predicted, times what the method may be worse by."""
    if option.method in SAMPLED:
        return option.predicted
    certain = option.predicted <= SETTLED or pilot.moved or not pilot.informed
    return option.predicted * (1 / UNSURE if certain else STRAYING[option.method])


def _options(pilot: Pilot, room: float) -> Iterator[Option]:
    """The ways to spend what the pilot has left; on every row alone where it is known how the map contracts there."""
    forgetting = pilot.rates.forgetting if pilot.informed else 0.0
    run = None if pilot.moved else joint(room, pilot.sources, pilot.rates.step, forgetting)
    if run is not None:
        estimator, steps = run
        noise = pilot.rates.noise / math.sqrt(steps)
        predicted = math.hypot(noise, pilot.start.error * pilot.rates.kept(steps))
        yield Option("JointSID", estimator, pilot.sources, predicted, pilot.start.v)
        if pilot.rates.cross < STEADY:
            yield from _published(pilot, room)
    train, val = sources = whole(pilot.sources[0]), whole(pilot.sources[1])
    by = _by_loss if pilot.problem.has_loss else _by_map
    yield from by(pilot, sources, (room / pilot.price - val.rows) / train.rows - 1.0)


def _published(pilot: Pilot, room: float) -> Iterator[Option]:
    """SID with steps that fall as 1 / j, as many for w as for v, and twelve times fewer cross products.

    Where these have next to no noise it may be the better of the two: every row of val is read once, where JointSID
    has noise of minibatches.
    """
    train, val, rates = pilot.sources[0], whole(pilot.sources[1]), pilot.rates
    steps = int((room - val.rows) / train.rows_per_batch / (2 + 1 / 12))
    if steps < 12:
        return
    falling = Harmonic(rates.step / rates.forgetting, 1.0 / rates.forgetting)
    left = pilot.start.error * rates.kept_by_falling(steps)
    noise = APART * rates.noise / math.sqrt(steps)
    sid = SID(FixedPoint(steps, falling), FixedPoint(steps, falling), cross_batches=steps // 12)
    yield Option("SID", sid, (train, val), math.hypot(noise, left), pilot.start.v)


def _by_loss(pilot: Pilot, sources: Sources, passes: float) -> Iterator[Option]:
    """L-BFGS and conjugate gradients in so many passes over train.

    As many steps for w as for v, but that 2 d conjugate gradients solve any system of d entries, rounding included.
    L-BFGS, which takes no exact steps, is not done after d of them: more are as those on a larger system. Conjugate
    gradients that come near start at 0: the noise that a start from minibatches has in every direction would take more
    of them than it saves.
    """
    (w, v, error), rates = pilot.start, pilot.rates
    first, each = LINE_SEARCH
    d, tiny = entries(w), 10 * float(jnp.finfo(norm(w).dtype).eps)

    def split(passes: float) -> tuple[int, int]:
        linear = int(min(passes / 2, 2 * d))
        return round((passes - linear) / each), linear

    inner, linear = split(passes - first)
    if min(inner, linear) < 2:
        return
    solved = rates.krylov(inner, d if inner < d else int(INEXACT * d)), rates.krylov(linear, d)
    left = ROUGHLY * sum(solved) + tiny * rates.kappa
    near = left < TOLERABLE
    inner, linear = (inner, linear) if near or v is None else split(passes - first - 1)  # a product for where v starts
    solvers = SID(LBFGS(tiny, inner), CG(tiny, linear))
    yield Option("AID-CG", solvers, sources, error * min(1.0, left), None if near else v)


def _by_map(pilot: Pilot, sources: Sources, passes: float) -> Iterator[Option]:
    """The iteration itself, for w and for v; steps for w that the pilot made are made."""
    made = MOVED * pilot.moved
    linear = int((passes + made) / 2)
    inner = int(passes) - linear
    if min(linear, inner) < 1:
        return
    (w, v, error), factor = pilot.start, pilot.whole_factor
    if pilot.moved:
        left = factor ** (inner + made) + factor**linear
    else:
        left = sum(pilot.rates.iterated(steps, entries(w)) for steps in (inner, linear))
    yield Option("AID-FP", SID(FixedPoint(inner), FixedPoint(linear)), sources, error * min(1.0, left), v)


def _doubled(estimator: SID) -> SID:
    """With twice as many iterations of both solvers."""

    def twice(solver: Any) -> Any:
        name = "steps" if isinstance(solver, FixedPoint) else "max_steps"
        return replace(solver, **{name: 2 * getattr(solver, name)})

    return replace(estimator, inner=twice(estimator.inner), linear=twice(estimator.linear))
