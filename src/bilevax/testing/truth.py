"""A problem with its data and the truth about it, found in float64 whatever precision JAX is set to."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevax.core.config import replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree
from bilevax.data import Arrays
from bilevax.problems import GradientStep, Problem
from bilevax.testing.closed_forms import Curvature, Solution
from bilevax.testing.tools import float64

HALVINGS = 12
"""Lengths of a Newton step that are tried."""


class Drawn(NamedTuple):
    """What a draw of a family consists of, in numpy and float64."""

    train: PyTree
    val: PyTree
    lam: PyTree
    w0: PyTree


class Family(NamedTuple):
    """What the draws of a family share.

    Attributes:
        recipe: a draw from a generator; all have the same shapes.
        inner: the inner loss, or the map where there is none.
        outer: the outer loss.
        batch_size: b.
        sampling: of train.
        descends: False where ``inner`` is a map.
    """

    recipe: Callable[[np.random.Generator], Drawn]
    inner: Callable[[PyTree, PyTree, PyTree], PyTree]
    outer: Callable[[PyTree, PyTree, PyTree], Array]
    batch_size: int = 8
    sampling: str = "iid"
    descends: bool = True


@dataclass(frozen=True, eq=False)
class NamedProblem:
    """A problem with its data and what is known about it.

    Attributes:
        name: as in :func:`problems`.
        problem: with a step in closed form.
        train: arrays of the inner source, float64.
        val: arrays of the outer source, float64.
        w0: where solvers start, d entries.
        lam: where the hypergradient is wanted, m entries.
        batch_size: b, rows of a minibatch of train; the outer loss is of every row of val.
        curvature: L and tau of the inner loss at lam, of its smooth part where there is a prox: bounds on its Hessian
            that hold at every w. Of a map without a loss: bounds on the singular values of I - d1Phi. Of a family:
            those of the Hessian, or of I - d1Phi, at the solution alone.
        sampling: of train, as in :class:`~bilevax.Arrays`; blocks are of the rows in their order.
    """

    name: str
    problem: Problem
    train: PyTree
    val: PyTree
    w0: PyTree
    lam: PyTree
    batch_size: int
    curvature: Curvature
    sampling: str = "iid"

    @property
    def unmeasured(self) -> Problem:
        """The problem as users hand it in: the step of its gradient step, if it has one, is left to be measured."""
        inner_map = self.problem.inner_map
        # maps that are no gradient step have no step to leave out, and that of a prox stays
        if not isinstance(inner_map, GradientStep):
            return self.problem
        return replace_unchecked(self.problem, inner_map=GradientStep(inner_map.loss))

    def sources(self, batch_size: int | Literal["own"] | None = "own") -> tuple[Arrays, Arrays]:
        """(train, val) in JAX's default precision.

        Args:
            batch_size: of train; None: every row. Default: the problem's own.
        """
        # before a source could warn that it narrows: float64 is what the truth needs
        kind = jnp.result_type(float)
        train, val = jax.tree.map(lambda x: x.astype(kind) if x.dtype.kind == "f" else x, (self.train, self.val))
        return Arrays(train, self.batch_size if batch_size == "own" else batch_size, self.sampling, None), Arrays(val)

    def solution(self) -> Solution:
        """The truth at ``lam``; computed once."""
        return self._solution

    def solve(self, lam: PyTree, start: PyTree | None = None) -> Solution:
        """The truth at any lam, from ``start`` (None: w0). Cost: O(n d^2 + d^3) a step of Newton's method."""
        # float64 before the arrays are made: what they are made in stays
        with float64():
            args = jax.tree.map(jnp.asarray, (self.w0 if start is None else start, lam, self.train))
            w = _fixed_point(self.problem, *args)
            v, value, hypergradient = implicit(self.problem, w, *args[1:], jax.tree.map(jnp.asarray, self.val))
            w, v, hypergradient = jax.tree.map(np.asarray, (w, v, hypergradient))
            return Solution(w, v, float(value), hypergradient)

    def system(self, w: PyTree) -> np.ndarray:
        """I - d1Phi at w, of every row of train, [d, d] in float64."""
        with float64():
            args = jax.tree.map(jnp.asarray, (w, self.lam, self.train))
            return np.asarray(_system(self.problem, *args), np.float64)

    @functools.cached_property
    def _solution(self) -> Solution:
        return self.solve(self.lam)


def _flat(problem: Problem, w: PyTree, lam: PyTree, train: PyTree) -> tuple[Array, Callable[[Array], Array]]:
    """The vector x [d] of w, and x -> Phi(x) - x."""
    x, tree = ravel_pytree(w)
    return x, lambda x: ravel_pytree(problem.inner_map(tree(x), lam, train))[0] - x


@jax.jit
def _system(problem: Problem, w: PyTree, lam: PyTree, train: PyTree) -> Array:
    x, residual = _flat(problem, w, lam, train)
    # I - d1Phi, the residual being Phi(x) - x
    return jnp.negative(jax.jacfwd(residual)(x))


@jax.jit
def _newton(problem: Problem, w: PyTree, lam: PyTree, train: PyTree) -> tuple[PyTree, Array, Array]:
    """The best of 1, 1/2, 1/4, ... of a Newton step, and the norms of the residual before and after it."""
    x, residual = _flat(problem, w, lam, train)
    before = residual(x)
    # x - t (J^-1 r),  r = Phi(x) - x,  J = dr/dx,  for t = 1, 1/2, 1/4, ...
    lengths = jnp.asarray(0.5 ** np.arange(HALVINGS), x.dtype)
    points = x[None] - jnp.outer(lengths, jnp.linalg.solve(jax.jacfwd(residual)(x), before))
    after = jnp.linalg.norm(jax.vmap(residual)(points), axis=1)
    best = jnp.nanargmin(after)
    return ravel_pytree(w)[1](points[best]), jnp.linalg.norm(before), after[best]


@jax.jit
def _moved(problem: Problem, w: PyTree, lam: PyTree, train: PyTree) -> PyTree:
    """A hundred steps of the map: where Newton's do not help, contraction does."""
    return jax.lax.fori_loop(0, 100, lambda _, w: problem.inner_map(w, lam, train), w)


def _fixed_point(problem: Problem, w: PyTree, lam: PyTree, train: PyTree) -> PyTree:
    """The fixed point w = Phi(w, lam), to rounding."""
    for _ in range(200):
        # quadratic near the solution; where a step leaves more than .9 of the residual, the map itself is iterated
        new, before, after = _newton(problem, w, lam, train)
        if before <= 1e-12 * (1.0 + np.linalg.norm(ravel_pytree(w)[0])):
            return new
        w = new if after < 0.9 * before else _moved(problem, w, lam, train)
    raise ParameterError("Newton's method did not find the fixed point; is the inner map a contraction?")


@jax.jit
def implicit(problem: Problem, w: PyTree, lam: PyTree, train: PyTree, val: PyTree) -> tuple[PyTree, Array, PyTree]:
    """The multiplier v by a direct solve, E and the hypergradient."""
    x, residual = _flat(problem, w, lam, train)
    tree = ravel_pytree(w)[1]
    value, (by_w, by_lam) = jax.value_and_grad(problem.outer_loss, (0, 1))(w, lam, val)
    # (I - d1Phi^T) v = grad_1 E;  grad f = grad_2 E + d2Phi^T v
    v = jnp.linalg.solve(-jax.jacfwd(residual)(x).T, ravel_pytree(by_w)[0])
    through = jax.vjp(lambda lam: problem.inner_map(w, lam, train), lam)[1](tree(v))[0]
    return tree(v), value, jax.tree.map(jnp.add, by_lam, through)
