"""How hypergradients of tuned penalties are computed: on full batches or on minibatches, as the table's size has it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.config import from_plain, replace_unchecked, to_plain
from bilevax.core.estimator import Estimator
from bilevax.core.events import Plain
from bilevax.core.trees import PyTree, norm, sub
from bilevax.data import Arrays
from bilevax.hypergradients import SID, hypergradient
from bilevax.planning.pilot import SAMPLED
from bilevax.planning.planner import plan
from bilevax.problems import Problem
from bilevax.solvers import CG, LBFGS, FixedPoint

MANY_ROWS = 10_000
"""Training rows up to which five models are cross-fitted; three beyond."""

PLANNED = 0.1
"""Relative error of a hypergradient that the method is planned for where a pass is long."""

NEAR = 0.3
"""Relative error up to which the first hypergradient on minibatches is good enough to tune by."""

FULL_BATCH_PRICE = 0.3
"""Time per row of a full batch over the time per row of a minibatch."""

FULL_BATCH_LIMIT = 3e8
"""Multiplications in one pass (rows * weights) up to which full batches are the faster choice: nothing is planned."""

DETERMINISTIC = SID(LBFGS(tol=1e-4, max_steps=100), CG(tol=1e-2, max_steps=100))
"""Estimator on full batches."""

STOCHASTIC = SID(
    inner=FixedPoint(steps=400, step_size=0.5),
    linear=FixedPoint(steps=200, step_size=0.5),
    # lam enters the penalty alone: every minibatch gives the product exactly.
    cross_batches=1,
    outer_batches=32,
)
"""Estimator on minibatches of BATCH rows."""

BATCH = 512
"""Rows of a minibatch, where none is planned."""


class Method(NamedTuple):
    """The estimator of the hypergradients, and why it was chosen; without one it is to be planned.

    Attributes:
        name: ``"deterministic"``, ``"stochastic"``, or ``"planned"``.
        reason: one sentence.
        folds: K.
        estimator: None: to be planned.
        batches: rows in a minibatch of (train, val) that were planned, None: every row; None: every row, or minibatches
            of 512.
    """

    name: str
    reason: str
    folds: int
    estimator: Estimator | None = None
    batches: tuple[int | None, int | None] | None = None

    def to_plain(self) -> Plain:
        """As JSON can say it."""
        return {name: to_plain(value) for name, value in self._asdict().items()}

    @staticmethod
    def from_plain(plain: Plain) -> "Method":
        """The inverse."""
        method = Method(**{name: from_plain(value) for name, value in plain.items()})
        return method._replace(batches=method.batches and (method.batches[0], method.batches[1]))


def choose_method(name: str, n: int, p: int, outputs: int) -> Method:
    """Full batches or minibatches; ``name`` may ask for either, and a plan decides where a pass is long."""
    # A pass is a product of X [n, p] with the weights of all scores.
    weights, folds = p * outputs, 5 if n <= MANY_ROWS else 3
    size = f"{n:,} training rows for {weights:,} weights"
    if name == "auto" and n * weights > FULL_BATCH_LIMIT:
        return Method("planned", size, folds)
    if name == "auto":
        return Method("deterministic", f"{size}: a pass is so short that full batches are faster", folds, DETERMINISTIC)
    estimator = DETERMINISTIC if name == "deterministic" else STOCHASTIC
    return Method(name, f"asked for; {size}", folds, estimator)


def plan_method(
    method: Method, problem: Problem, w: PyTree, lam: Array, sources: tuple[Arrays, Arrays], *, key: Array
) -> Method:
    """The method that a plan for the first hypergradient chooses.

    Minibatches are chosen only if their estimate is within NEAR of the full-batch hypergradient: near a stationary
    point the hypergradient is small, and the bias that noise gives the models is not.

    Args:
        method: from :func:`choose_method`, without an estimator.
        problem: whose hypergradients are wanted.
        w: the K models at lam.
        lam: log of the single penalty.
        sources: the training rows in minibatches, and as one full batch.
        key: of the pilot.
    """
    batches, full = sources
    plan_key, run_key = jax.random.split(key)
    planned = plan(problem, w, lam, batches, batches, key=plan_key, target=PLANNED, full_batch_price=FULL_BATCH_PRICE)
    reason = f"{method.reason}: {planned.method} is planned to come within {PLANNED:.0%} of a hypergradient soonest"
    if planned.method in SAMPLED:
        sampled = planned.run(key=run_key).value
        exact = hypergradient(full_batch(problem), DETERMINISTIC, w, lam, full, full, key=run_key).value
        # ||sampled - exact|| / ||exact||
        error = float(norm(sub(sampled, exact)) / jnp.maximum(norm(exact), np.finfo(lam.dtype).tiny))
        if error <= NEAR:
            train, val = (None if s.is_full_batch else s.rows_per_batch for s in (planned.train, planned.val))
            return Method("stochastic", reason, method.folds, planned.estimator, (train, val))
        reason = f"{method.reason}: {planned.method} came no nearer than {error:.1g} times its size to a hypergradient"
    return Method("deterministic", reason, method.folds, DETERMINISTIC)


def full_batch(problem: Problem) -> Problem:
    """The problem with a step of 1: full-batch solvers choose their own."""
    return replace_unchecked(problem, inner_map=replace_unchecked(problem.inner_map, step_size=1.0))
