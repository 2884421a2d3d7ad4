"""The planner: a budget of samples, or a relative error, in; method, counts, steps, batch size and start out."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import canonicalize, check_count, check_real, replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.core.given import require_problem
from bilevax.core.keys import as_key
from bilevax.core.limits import said
from bilevax.core.protocols import RowSource
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, as_parameters, norm
from bilevax.hypergradients.estimate import hypergradient
from bilevax.hypergradients.joint_sid import JointSID
from bilevax.hypergradients.sid import SID
from bilevax.planning.choice import PASSES, Pilot
from bilevax.planning.pilot import (
    DEAREST,
    SAMPLED,
    Sources,
    Start,
    in_minibatches,
    relative,
    subsampled,
    with_steps_times,
)
from bilevax.problems.problem import Problem

TOLERABLE = 0.1
"""Relative error above which the code of a run is TOLERANCE_NOT_MET, where no target is given."""

LONGEST = 4096
"""Passes over train after which the search for a target, which begins with PASSES, ends."""

MARGIN = 2.0
"""Factor by which the predicted error must be below a target."""


class Verified(NamedTuple):
    """What a plan said, and what came of it.

    Attributes:
        predicted: relative error.
        measured: root of the mean square distance of the replicas from their mean or, of deterministic methods, from
            twice as many iterations, relative to it.
    """

    predicted: float
    measured: float


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
        method: ``"SID"``, ``"JointSID"``, ``"AID-CG"`` or, of a map without a loss, ``"AID-GMRES"`` or ``"AID-FP"``.
        predicted: relative error, root of the mean square error over the size of the hypergradient.
        alternatives: predicted relative error of each method at this budget.
        budget: samples, the pilot's included.
        spent: of these, the pilot's.
        goal: relative error above which the code of a run is TOLERANCE_NOT_MET.
        notes: what the user should know, in sentences.
        estimate: the hypergradient, where it is computed already: by a method for which too few rows leave no room for
            a trial, or by a deterministic one that meets a target. Its cost is that of the run, and not in ``spent``.
            A value of SID with more noise than length has been shrunk.

    Examples:
        >>> import bilevax as bx
        >>> import jax, jax.numpy as jnp
        >>> inner_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2) + jnp.exp(lam) * w**2
        >>> outer_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2)
        >>> train, val = bx.Arrays(jnp.array([1.0, 3.0])), bx.Arrays(jnp.array([1.0]))
        >>> problem = bx.Problem(bx.GradientStep(inner_loss, 0.25), outer_loss)
        >>> made = bx.plan(problem, 0.0, 0.0, train, val, key=jax.random.key(0), budget=1000)
        >>> made.estimator.linear  # ready to use; made.run(key=...) does
        CG(tol=1.1920928955078125e-06, max_steps=2, damping=0.0)
    """

    problem: Problem
    estimator: SID | JointSID
    train: RowSource
    val: RowSource
    w0: PyTree = field(repr=False)
    v0: PyTree | None = field(repr=False)
    lam: PyTree = field(repr=False)
    method: str
    predicted: float
    alternatives: dict[str, float]
    budget: float
    spent: int
    goal: float
    notes: tuple[str, ...] = ()
    estimate: Estimate | None = field(default=None, repr=False)

    def run(self, *, key: Array) -> Estimate:
        """The hypergradient as planned; the code is TOLERANCE_NOT_MET where its error report exceeds the goal."""
        if self.estimate is not None:
            return self.estimate
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
        check_count("replicas", replicas, low=2)
        args = self.w0, self.lam, self.train, self.val
        if self.method in SAMPLED:
            est = hypergradient(self.problem, self.estimator, *args, key=key, v0=self.v0, replicas=replicas)
            assert est.error is not None
            error = est.error
            # of one run: (replicas |standard error of the mean|^2 + |bias|^2)^1/2 / |value|
            spread, bias = norm(error.standard_error) * replicas**0.5, norm(jax.tree.map(jnp.nan_to_num, error.bias))
            return Verified(self.predicted, float(jnp.hypot(spread, bias) / norm(est.value)))
        assert isinstance(self.estimator, SID)
        est, further = (
            self.run(key=key),
            hypergradient(self.problem, with_steps_times(2, self.estimator), *args, key=key, v0=self.v0),
        )
        return Verified(self.predicted, relative(est.value, further.value))

    def __str__(self) -> str:
        others = ", ".join(f"{name} {error:.1e}" for name, error in self.alternatives.items())
        lines = [
            f"{self.method}: relative error {self.predicted:.1e} predicted at {self.budget:.3g} samples,"
            f" {self.spent} of them spent on the pilot",
            f"  {self.estimator}",
            f"  minibatches of {self.train.rows_per_batch} rows of train, {self.val.rows_per_batch} of val",
            f"  considered: {others}",
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@said("this plan")
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
        key: a JAX random key, of the pilot, and of a run without one.
        budget: samples (rows read), the pilot's included.
        target: a relative error; instead of a budget.
        full_batch_price: of a row that is read along with every other, in rows read in minibatches, which a budget
            counts. Default 1; in seconds it is rather a third where rows are many and short.

    Raises:
        ParameterError: not exactly one of ``budget`` and ``target``, one of these or a price that is not positive, a
            budget of less than four passes over the rows, a wrong leaf of w0 or lam, a source that is none of
            :class:`~bilevax.Arrays`, :class:`~bilevax.SparseRows` and :class:`~bilevax.Stream`.

    Examples:
        >>> import bilevax as bx
        >>> import jax, jax.numpy as jnp
        >>> inner_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2) + jnp.exp(lam) * w**2
        >>> outer_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2)
        >>> train, val = bx.Arrays(jnp.array([1.0, 3.0])), bx.Arrays(jnp.array([1.0]))
        >>> problem = bx.Problem(bx.GradientStep(inner_loss, 0.25), outer_loss)
        >>> made = bx.plan(problem, 0.0, 0.0, train, val, key=jax.random.key(0), budget=1000)
        >>> made.method, made.spent  # few rows: nothing is tried
        ('AID-CG', 0)
    """
    # refused before the pilot reads a row
    if (budget is None) == (target is None):
        raise ParameterError("plan takes a budget (samples) or a target (relative error), exactly one of them")
    require_problem(problem)
    w0, lam, key = as_parameters("w0", w0), as_parameters("lam", lam), as_key(key)
    price = check_real("full_batch_price", full_batch_price, low=0.0, open_low=True)
    problem, sources = canonicalize(problem), in_minibatches(train, val)
    start = Start(w0, None)
    if budget is not None:
        budget = check_real("budget", budget, low=0.0, open_low=True)
        return _for_budget(problem, start, lam, sources, (budget, price), TOLERABLE, key=key)
    target = check_real("target", cast(float, target), low=0.0, open_low=True)
    return _to_target(problem, start, lam, sources, target, price, key=key)


def _to_target(
    problem: Problem, start: Start, lam: PyTree, sources: Sources, target: float, price: float, *, key: Array
) -> Plan:
    """Plans for budgets that double, each from the start that the last one found, until one promises the target."""
    # doubling: all budgets before the last one together cost as much as it
    passes, spent = PASSES, 0
    while True:
        budget, here = passes * sources[0].rows, jax.random.fold_in(key, passes)
        made = _for_budget(problem, start, lam, sources, (budget, price), target, key=here)
        before, spent = spent, spent + made.spent
        made = replace_unchecked(made, spent=spent, budget=budget + before)
        promised = made.predicted <= target / MARGIN
        if promised and made.method not in SAMPLED and made.estimate is None:
            # the same whatever the key: it is run, and believed where it says OK
            made = replace_unchecked(made, estimate=made.run(key=here))
        est = made.estimate
        if promised if est is None else int(est.code) == Code.OK:
            return made
        # where every method fails more passes do not help
        if passes >= LONGEST or not math.isfinite(made.predicted):
            note = f"the target {target:g} was not promised by any budget up to {passes} passes over the rows"
            return replace_unchecked(made, notes=(note,))
        start, passes = Start(made.w0, made.v0) if est is None else Start(est.w, est.v), 2 * passes
        spent += 0 if est is None else int((1.0 if made.method in SAMPLED else price) * est.cost.samples)


def _for_budget(
    problem: Problem,
    start: Start,
    lam: PyTree,
    sources: Sources,
    given: tuple[float, float],
    goal: float,
    *,
    key: Array,
) -> Plan:
    """The method that leaves the least of the error where it is tried on a few of the rows.

    Args:
        problem: the inner map, the outer loss.
        start: of w and v.
        lam: where the hypergradient is wanted.
        sources: in minibatches.
        given: the budget in samples, and the price of one of a row that is read along with every other.
        goal: relative error.
        key: a JAX random key.
    """
    budget, price = given
    # two samples of rows, so that what the first chooses the second judges
    pilot = Pilot(problem, start, lam, sources, budget, price)
    first, second = (subsampled(sources, k) if pilot.trial <= DEAREST * budget else None for k in jax.random.split(key))
    pilot = pilot.tried(first, key).tried_on_minibatches(second, key) if first and second else pilot.untried(goal, key)
    if not pilot.found:
        raise ParameterError(
            f"a budget of {budget:g} samples leaves no run beside the pilot; try {PASSES * sources[0].rows}"
        )
    predicted, best = min(pilot.found, key=lambda of: of[0])
    return Plan(
        problem=best.problem,
        estimator=best.estimator,
        train=best.sources[0],
        val=best.sources[1],
        w0=pilot.start.w,
        v0=pilot.start.v if best.sampled else None,
        lam=lam,
        method=best.method,
        predicted=predicted,
        alternatives={option.method: predicted for predicted, option in pilot.found},
        budget=budget,
        spent=pilot.spent,
        goal=goal,
        notes=pilot.notes,
        estimate=pilot.estimate,
    )
