"""Small problems of which everything is known, posed as a user would pose them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.config import config
from bilevax.core.trees import PyTree
from bilevax.data import Arrays
from bilevax.problems import GradientStep, Problem
from bilevax.testing.closed_forms import FiniteAffine, FiniteQuadratic, PenalisedRidge
from bilevax.testing.closed_forms.quadratic import quadratic_inner_loss, quadratic_outer_loss

D, M, N, B = 4, 3, 30, 10
"""Inner and outer entries, rows of train, and rows of a minibatch."""


class Reference(NamedTuple):
    """A problem with its data, and the truth at lam.

    Attributes:
        name: for messages.
        problem: with a given step.
        w0: where solvers start, zeros.
        lam: outer variable.
        train: arrays of the inner source.
        val: arrays of the outer source.
        w: inner solution.
        v: solution of (I - d1Phi^T) v = grad_1 E.
        value: E(w, lam).
        hypergradient: like lam.
    """

    name: str
    problem: Problem
    w0: PyTree
    lam: PyTree
    train: PyTree
    val: PyTree
    w: PyTree
    v: PyTree
    value: float
    hypergradient: PyTree

    def sources(self, batch_size: int | None = None) -> tuple[Arrays, Arrays]:
        """(train, val), val on every row."""
        return Arrays(self.train, batch_size), Arrays(self.val)

    def single(self) -> "Reference":
        """The same in float32."""
        return self._replace(
            **{
                name: jax.tree.map(lambda x: np.asarray(x, np.float32), getattr(self, name))
                for name in ("w0", "lam", "train", "val")
            }
        )


def finite_quadratic() -> FiniteQuadratic:
    """Rows whose two Jacobians go together, so that a minibatch used twice biases; f has curvature between .1 and 1."""
    p = FiniteQuadratic.random(0, correlated=True, n=N, d=D, m=M)
    root = np.linalg.solve(p.A.mean(0), p.B.mean(0))
    top = float(np.linalg.eigvalsh(root.T @ root)[-1])
    size = np.sqrt(0.9 / top)
    return FiniteQuadratic(A=p.A, b=p.b, B=size * p.B, target=p.target, r=0.1, lam=p.lam)


def quadratic() -> Reference:
    """A finite sum of quadratics with a direct dependence on lam."""
    p = finite_quadratic()
    truth = p.w(p.lam), p.v(p.lam), p.value(p.lam), p.hypergradient(p.lam)
    return Reference("FiniteQuadratic", p.problem, np.zeros(D), p.lam, p.train_data, p.val_data, *truth)


def minimiser(p: FiniteQuadratic) -> np.ndarray:
    """Where f is least, [m]."""
    root = np.linalg.solve(p.A.mean(0), p.B.mean(0))
    slope = p.hypergradient(np.zeros(M))
    return np.linalg.solve(root.T @ root + float(p.r) * np.eye(M), -slope)


def ridge() -> Reference:
    """Ridge regression with a penalty per coefficient: Jacobians that change with w and lam."""
    p = PenalisedRidge.random(1, n=N, d=D)
    truth = p.w(p.lam), p.v(p.lam), p.value(p.lam), p.hypergradient(p.lam)
    return Reference("PenalisedRidge", p.problem, np.zeros((1, D)), p.lam, p.train_data, p.val_data, *truth)


def affine() -> Reference:
    """A map that is no gradient step: d1Phi is not symmetric."""
    p = FiniteAffine.random(2, n=N, d=D, m=M)
    truth = p.w(p.lam), p.v(p.lam), p.value(p.lam), p.hypergradient(p.lam)
    return Reference("FiniteAffine", p.problem, np.zeros(D), p.lam, p.train_data, p.val_data, *truth)


def nest(x: Any) -> PyTree:
    """A vector as a nested dictionary, with a leaf of rank 0."""
    return {"first": {"head": x[0]}, "rest": x[1:]}


def flat(tree: PyTree) -> Array:
    """The inverse of :func:`nest`."""
    return jnp.concatenate([tree["first"]["head"][None], tree["rest"]])


@config
class Nested:
    """A loss of vectors, as one of nested dictionaries."""

    loss: Callable[[PyTree, PyTree, PyTree], Array]

    def __call__(self, w: PyTree, lam: PyTree, batch: PyTree) -> Array:
        """The loss of the vectors."""
        return self.loss(flat(w), flat(lam), batch)


def nested(reference: Reference) -> Reference:
    """The same problem, with w and lam as nested dictionaries; for a problem of vectors that has a loss."""
    problem = reference.problem
    step: Any = problem.inner_map
    new = Problem(GradientStep(Nested(step.loss), step.step_size), Nested(problem.outer_loss), problem.project)
    trees = {name: nest(getattr(reference, name)) for name in ("w0", "lam", "w", "v", "hypergradient")}
    return reference._replace(problem=new, **trees)


@jax.custom_jvp
def _steep(x: Array, slope: Array) -> Array:
    """0, whose derivative along x is said to be the slope."""
    return jnp.zeros_like(slope)


@_steep.defjvp
def _steep_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return jnp.zeros_like(primals[1]), primals[1] * jnp.sum(tangents[0])


@config
class Flawed:
    """A loss that can be made NaN by a number, so that one program serves all faults.

    Args:
        loss: of vectors.
        value: 1 for a loss, and so all derivatives, of NaN; 0 for the loss itself.
        cross: 1 for a derivative in lam, of the gradient in w, of NaN.
    """

    loss: Callable[[PyTree, PyTree, PyTree], Array]
    value: float = 0.0
    cross: float = 0.0

    def __call__(self, w: Array, lam: Array, batch: PyTree) -> Array:
        """The loss of the batch."""
        good = self.loss(w, lam, batch)
        value, cross = (jnp.where(jnp.asarray(x) > 0, jnp.nan, 0.0).astype(w.dtype) for x in (self.value, self.cross))
        return good + (value + _steep(lam, cross)) * jnp.sum(w)


class Tally:
    """A function that counts how often Python runs it: at each trace."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        """What the function says."""
        self.calls += 1
        return self.function(*args)


class Watched(NamedTuple):
    """A problem that counts its traces and can be made to fail."""

    reference: Reference
    tally: Tally

    def flawed(self, where: str) -> Reference:
        """With NaN in the ``"inner"`` loss, the ``"outer"`` loss, or the ``"cross"`` derivative."""
        problem = self.reference.problem
        step: Any = problem.inner_map
        inner = Flawed(self.tally, float(where == "inner"), float(where == "cross"))
        outer = Flawed(quadratic_outer_loss, float(where == "outer"))
        return self.reference._replace(problem=Problem(GradientStep(inner, step.step_size), outer, problem.project))


def watched(project: Callable[[PyTree], PyTree] | None = None) -> Watched:
    """The quadratic, watched; its numbers are those of :func:`quadratic`."""
    reference, tally = quadratic(), Tally(quadratic_inner_loss)
    step: Any = reference.problem.inner_map
    inner = GradientStep(Flawed(tally), step.step_size)
    return Watched(reference._replace(problem=Problem(inner, Flawed(quadratic_outer_loss), project)), tally)
