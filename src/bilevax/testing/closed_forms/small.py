"""Small problems of which everything is known, posed as a user would pose them."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevax.core.config import canonicalize, config, replace_unchecked
from bilevax.core.instance import Instance
from bilevax.core.trees import PyTree, zeros_like
from bilevax.data import Arrays
from bilevax.problems import Composition, GradientStep, Problem
from bilevax.testing.closed_forms import FiniteAffine, FiniteQuadratic, PenalisedRidge, Solution
from bilevax.testing.closed_forms.quadratic import quadratic_inner_loss, quadratic_outer_loss
from bilevax.testing.tools import Tally

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
        truth: at lam.
    """

    name: str
    problem: Problem
    w0: PyTree
    lam: PyTree
    train: PyTree
    val: PyTree
    truth: Solution

    def start(self, batch_size: int | None = None, sampling: str = "iid") -> tuple[Instance, PyTree]:
        """The instance and w0 as arrays of JAX, val on every row."""
        w0, lam = jax.tree.map(jnp.asarray, (self.w0, self.lam))
        return Instance(canonicalize(self.problem), lam, Arrays(self.train, batch_size, sampling), Arrays(self.val)), w0

    def single(self) -> "Reference":
        """The same in float32."""
        narrow = partial(jax.tree.map, lambda x: np.asarray(x, np.float32))
        return self._replace(**{name: narrow(getattr(self, name)) for name in ("w0", "lam", "train", "val")})


def reference(p: FiniteQuadratic | FiniteAffine | PenalisedRidge) -> Reference:
    """A closed form at its lam."""
    truth = Solution(p.w(p.lam), p.v(p.lam), p.value(p.lam), p.hypergradient(p.lam))
    return Reference(type(p).__name__, p.problem, np.zeros_like(truth.w), p.lam, p.train_data, p.val_data, truth)


def finite_quadratic() -> FiniteQuadratic:
    """Rows whose two Jacobians go together, so that a minibatch used twice biases; f has curvature between .1 and 1."""
    p = FiniteQuadratic.random(0, correlated=True, n=N, d=D, m=M)
    # the Hessian of f is G'G + r I, G = A^-1 B: B is scaled until the largest eigenvalue of G'G is .9
    G = np.linalg.solve(p.A.mean(0), p.B.mean(0))
    return replace_unchecked(p, B=np.sqrt(0.9 / float(np.linalg.eigvalsh(G.T @ G)[-1])) * p.B)


def quadratic() -> Reference:
    """A finite sum of quadratics with a direct dependence on lam."""
    return reference(finite_quadratic())


def ridge() -> Reference:
    """Ridge regression with a penalty per coefficient: Jacobians that change with w and lam."""
    return reference(PenalisedRidge.random(1, n=N, d=D))


def affine() -> Reference:
    """A map that is no gradient step: d1Phi is not symmetric."""
    return reference(FiniteAffine.random(2, n=N, d=D, m=M))


def nest(x: Array) -> PyTree:
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


def nested(given: Reference) -> Reference:
    """The same problem, with w and lam as nested dictionaries; for a problem of vectors that has a loss."""
    step, outer, project = given.problem.inner_map, given.problem.outer_loss, given.problem.project
    new = Problem(GradientStep(Nested(step.loss), step.step_size), Nested(outer), project)
    return given._replace(problem=new, w0=nest(given.w0), lam=nest(given.lam))


@config
class Solved:
    """(lam, batch) -> A^-1 (b + B lam) of a loss of :func:`quadratic`, A of every row; its mean is the same w(lam).

    Args:
        loss: whose gradient at w = 0 is -(b + B lam).
        like: a tree like w.
    """

    loss: Callable[[PyTree, PyTree, PyTree], Array]
    like: PyTree

    def __call__(self, lam: PyTree, batch: PyTree) -> PyTree:
        """The w of the batch."""
        slope, tree = ravel_pytree(jax.grad(self.loss)(zeros_like(self.like), lam, batch))
        # w(lam) = A^-1 (b + B lam), the minimum of a quadratic with this slope at 0
        inverse = np.linalg.inv(finite_quadratic().A.mean(axis=0))
        return tree(-jnp.asarray(inverse, slope.dtype) @ slope)


def composed(given: Reference) -> Reference:
    """:func:`quadratic`, or what was made of it, as a composition: f, its minimum and w(lam) stay what they are."""
    inner, outer, project = given.problem.inner_map, given.problem.outer_loss, given.problem.project
    return given._replace(problem=Problem(Composition(Solved(inner.loss, given.w0)), outer, project))


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
        # the second term is 0 in value, and its mixed derivative in lam and w is `cross`
        return good + (value + _steep(lam, cross)) * jnp.sum(w)


class Watched(NamedTuple):
    """A problem that counts its traces and can be made to fail."""

    reference: Reference
    tally: Tally

    def flawed(self, where: str) -> Reference:
        """With NaN in the ``"inner"`` loss, the ``"outer"`` loss, or the ``"cross"`` derivative."""
        problem = self.reference.problem
        inner = Flawed(self.tally, float(where == "inner"), float(where == "cross"))
        outer = Flawed(quadratic_outer_loss, float(where == "outer"))
        step = GradientStep(inner, problem.inner_map.step_size)
        return self.reference._replace(problem=Problem(step, outer, problem.project))


def watched(project: Callable[[PyTree], PyTree] | None = None) -> Watched:
    """The quadratic, watched; its numbers are those of :func:`quadratic`."""
    given = quadratic()
    given = given._replace(problem=replace_unchecked(given.problem, project=project))
    watch = Watched(given, Tally(quadratic_inner_loss))
    return watch._replace(reference=watch.flawed("nowhere"))
