"""Problems as a comparison poses them: where runs start, what they draw, and the truth about where they are."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize as scipy_minimize

from bilevax.core.errors import ParameterError
from bilevax.core.protocols import RowSource
from bilevax.core.trees import PyTree
from bilevax.data import Arrays
from bilevax.hypergradients import SID, value_and_hypergradient
from bilevax.problems import Problem
from bilevax.solvers import CG, LBFGS
from bilevax.testing.problems import problem
from bilevax.testing.tools import float64, vector
from bilevax.testing.truth import NamedProblem

DIRECT = 200
"""Unknowns up to which the truth is had by Newton's method; beyond, by L-BFGS and conjugate gradients."""


class Truth(NamedTuple):
    """f and its gradient at some lam, in float64."""

    value: float
    hypergradient: PyTree


class Task(NamedTuple):
    """A problem to be solved by several algorithms.

    Attributes:
        name: in the record.
        problem: the maps.
        w0: start of the inner variable.
        lam: start of the outer variable.
        train: source of inner minibatches; blocks, or SABA refuses.
        val: source of outer minibatches, likewise.
        truth: (w, lam) -> f and its exact gradient at lam; w is where a run was, a start for solvers.
        L: largest curvature of the inner loss; NaN: not known, and a grid of steps is refused.
        K: curvature of f at the start, likewise.
        least: the least f that is known of; infinite: none.
    """

    name: str
    problem: Problem
    w0: PyTree
    lam: PyTree
    train: RowSource
    val: RowSource
    truth: Callable[[PyTree, PyTree], Truth]
    L: float = np.nan
    K: float = np.nan
    least: float = np.inf


def named_task(name: str) -> Task:
    """A problem of :func:`bilevax.testing.problems.problem` on shuffled blocks of train and of val.

    Minibatches of val have as many rows as those of train, or every row where there are no more. The step of the inner
    map is left to be measured, by the algorithms that have a use for one.

    Raises:
        ParameterError: there is none of that name.
    """
    p = problem(name)
    train, val = (s.data for s in p.sources())
    w0, lam = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), (p.w0, p.lam))
    sources = _blocks(train, p.batch_size), _blocks(val, p.batch_size)
    truth = exact(p)
    least = least_value(truth, p.w0, p.lam)
    return Task(name, p.unmeasured, w0, lam, *sources, truth, p.curvature.L, outer_curvature(truth, p.w0, p.lam), least)


def _blocks(data: PyTree, batch_size: int) -> Arrays:
    rows = len(jax.tree.leaves(data)[0])
    return Arrays(data, batch_size, "blocks") if rows > batch_size else Arrays(data)


def exact(p: NamedProblem) -> Callable[[PyTree, PyTree], Truth]:
    """The truth of a problem, as a function of where a run is."""
    if vector(p.w0).size > DIRECT and p.problem.has_loss:
        return lambda w, lam: iterated(p.problem, w, lam, p.train, p.val)

    def solved(w: PyTree, lam: PyTree) -> Truth:
        found = p.solve(_float64(lam), _float64(w))
        return Truth(found.value, found.hypergradient)

    return solved


def iterated(problem: Problem, w: PyTree, lam: PyTree, train: PyTree, val: PyTree) -> Truth:
    """The truth by L-BFGS and conjugate gradients on every row, in float64."""
    with float64():
        method = SID(LBFGS(1e-9, 5000), CG(1e-9, 5000))
        w, lam = jax.tree.map(jnp.asarray, (_float64(w), _float64(lam)))
        found = value_and_hypergradient(problem, method, w, lam, Arrays(train), Arrays(val), key=jax.random.key(0))
        return Truth(float(found[0]), jax.tree.map(np.asarray, found[1]))


def _float64(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def _flat(tree: PyTree) -> tuple[np.ndarray, Callable[[np.ndarray], PyTree]]:
    """Its entries, [m], and the tree of other ones; in numpy, so that float64 stays."""
    leaves, structure = jax.tree.flatten(_float64(tree))
    ends = np.cumsum([x.size for x in leaves])[:-1]

    def rebuilt(x: np.ndarray) -> PyTree:
        return jax.tree.unflatten(
            structure, [a.reshape(b.shape) for a, b in zip(np.split(x, ends), leaves, strict=True)]
        )

    return vector(tree), rebuilt


def outer_curvature(truth: Callable[[PyTree, PyTree], Truth], w: PyTree, lam: PyTree, products: int = 5) -> float:
    """The largest curvature of f at lam, by power iteration on differences of hypergradients."""
    x, tree = _flat(lam)
    here = vector(truth(w, lam).hypergradient)

    def change(unit: np.ndarray, h: float) -> np.ndarray:
        # (grad f(lam + h d) - grad f(lam)) / h, |d| = 1
        try:
            return np.asarray((vector(truth(w, tree(x + h * unit)).hypergradient) - here) / h)
        # entries of very different size: h is too far for the small ones
        except ParameterError:
            if h < 1e-6:
                raise
            return change(unit, 0.01 * h)

    direction, curvature = here, 0.0
    for _ in range(products):
        h = 1e-4 * (1.0 + float(np.linalg.norm(x)))
        direction = change(direction / max(np.linalg.norm(direction), 1e-300), h)
        curvature = float(np.linalg.norm(direction))
    return curvature


def least_value(truth: Callable[[PyTree, PyTree], Truth], w: PyTree, lam: PyTree, evaluations: int = 40) -> float:
    """The least f that L-BFGS on exact hypergradients finds."""
    x, tree = _flat(lam)
    best = np.inf

    def f(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        try:
            found = truth(w, tree(x))
        # where there is no inner solution, no smaller value is met
        except ParameterError:
            return np.inf, np.zeros_like(x)
        best = min(best, found.value) if np.isfinite(found.value) else best
        return found.value, vector(found.hypergradient)

    scipy_minimize(f, x, jac=True, method="L-BFGS-B", options={"maxfun": evaluations})
    return best
