"""Diagnostics of learned weights: how few rows they rest on, and what the weights alone are worth."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.config import canonicalize
from bilevax.core.instance import Instance
from bilevax.core.keys import as_key, stream
from bilevax.core.protocols import InnerSolver, RowSource
from bilevax.core.trees import PyTree, as_parameters
from bilevax.hypergradients.sid import Segment, require_solvable, solve_inner
from bilevax.problems.problem import Problem
from bilevax.solvers.lbfgs import LBFGS


def effective_sample_size(weights: Array) -> Array:
    """How many equal weights would average noise as well: (sum_i p_i)^2 / sum_i p_i^2, from 1 to n.

    A variance of a mean of n equal rows falls as 1 / n, that of a weighted one as 1 / this. Where it falls while lam
    moves, weights become sparse (Ivanova, Ablin 2023, arXiv:2310.17386). Source: Kish (1965).

    Args:
        weights: p, [n] or any shape, nonnegative, of any sum but 0.

    Examples:
        >>> float(effective_sample_size(jnp.array([2.0, 2.0, 0.0, 0.0])))
        2.0
    """
    # by the largest, as squares of small weights vanish
    p = jnp.asarray(weights)
    p = p / jnp.max(p)
    return jnp.sum(p) ** 2 / jnp.sum(p**2)


class RetrainGap(NamedTuple):
    """What a model that was trained while lam moved owes to the lam on the way.

    Attributes:
        gap: E(w') - E(w): above 0 where the lam that was found does not give the model that was reported.
        outer_value: E(w, lam) of the model that was trained jointly.
        retrained_value: E(w', lam) of the one trained from scratch at lam.
        w: w'.
        code: of the solver that trained it.
    """

    gap: Array
    outer_value: Array
    retrained_value: Array
    w: PyTree
    code: Array


def retrain_gap(
    problem: Problem,
    w: PyTree,
    lam: PyTree,
    w0: PyTree,
    train: RowSource,
    val: RowSource,
    *,
    key: Array,
    inner: InnerSolver | None = None,
) -> RetrainGap:
    """E(w', lam) - E(w, lam), on every row of val, with w' the solution of the inner problem from scratch, at lam.

    A single-loop algorithm's w has seen every lam on the way: its outer loss may be small though the weights it ends
    with are useless. Assumes what the solver assumes. Cost: that of the solver. Source: Ivanova, Ablin (2023),
    arXiv:2310.17386; Vicol, Lorraine, Pedregosa, Duvenaud, Grosse (2022), arXiv:2212.14032.

    Args:
        problem: the inner map and the outer loss.
        w: where a run ended, such as ``result.w``.
        lam: likewise.
        w0: where the run began, or another start.
        train: source of inner minibatches.
        val: source of outer minibatches.
        key: a JAX random key, of a solver that draws.
        inner: the solver. None (default): :class:`~bilevax.LBFGS`.

    Raises:
        ParameterError: a solver that needs an inner loss, of a map that has none.

    Examples:
        >>> import bilevax as bx
        >>> step = bx.GradientStep(lambda w, lam, batch: jnp.mean((w - batch) ** 2) + jnp.exp(lam) * w**2)
        >>> problem, rows = bx.Problem(step, lambda w, lam, batch: jnp.mean((w - batch) ** 2)), bx.Arrays(jnp.ones(4))
        >>> out = bx.retrain_gap(problem, 0.9, 0.0, 0.0, rows, rows, key=jax.random.key(0))
        >>> round(float(out.w), 3), round(float(out.gap), 3)      # 1 / (1 + e^0), and .5^2 - .1^2
        (0.5, 0.24)
    """
    solver = LBFGS() if inner is None else inner
    require_solvable(solver, problem)
    points = as_parameters("w", w), as_parameters("lam", lam), as_parameters("w0", w0)
    ready = canonicalize(problem), canonicalize(solver)
    gap: RetrainGap = _retrained(*ready, points, (train, val), as_key(key))
    return gap


@jax.jit
def _retrained(
    problem: Problem,
    solver: InnerSolver,
    points: tuple[PyTree, PyTree, PyTree],
    sources: tuple[RowSource, RowSource],
    key: Array,
) -> RetrainGap:
    w, lam, w0 = points
    instance = Instance(problem, lam, *sources).with_measured_step(w0, key)
    solved = solve_inner(solver, instance, w0, key=stream(key, "inner"), segment=Segment(0))
    before, after = instance.mean_outer_loss(w), instance.mean_outer_loss(solved.value)
    # E(w') - E(w)
    return RetrainGap(after - before, before, after, solved.value, solved.code)
