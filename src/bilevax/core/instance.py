"""What a method works on: a bilevel problem at one lam, with its rows."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
from jax import Array

from bilevax.core.protocols import BilevelProblem, RowSource
from bilevax.core.trees import PyTree

T = TypeVar("T")


class Instance(NamedTuple):
    """A bilevel problem at one lam, with the rows that its two functions are means over.

    Letters: w has d entries, lam has m; zeta is a minibatch of train, xi one of val.

    Attributes:
        problem: the inner map Phi, the outer loss E, the set Lambda.
        lam: where the hypergradient is wanted.
        train: source of inner minibatches.
        val: source of outer minibatches.
    """

    problem: BilevelProblem
    lam: PyTree
    train: RowSource
    val: RowSource

    def inner_image(self, w: PyTree, batch: PyTree) -> PyTree:
        """Phi(w, lam; zeta), like w."""
        return self.problem.inner_image(w, self.lam, batch)

    def adjoint_product(self, w: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        """d1Phi(w, lam; zeta)^T v, like w."""
        return self.problem.adjoint_product(w, self.lam, batch, v)

    def system_product(self, w: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        """(I - d1Phi(w, lam; zeta)^T) v, like w."""
        return self.problem.system_product(w, self.lam, batch, v)

    def cross_product(self, w: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        """d2Phi(w, lam; zeta)^T v, like lam."""
        return self.problem.cross_product(w, self.lam, batch, v)

    def outer_gradients(self, w: PyTree, batch: PyTree) -> tuple[Array, PyTree, PyTree]:
        """E(w, lam; xi), grad_1 E like w, grad_2 E like lam."""
        return self.problem.outer_gradients(w, self.lam, batch)

    def mean_image(self, w: PyTree, lam: PyTree) -> PyTree:
        """Phi(w, lam), on every row of train; lam is an argument, so that it can be differentiated in both."""
        return self._mean(self.train, lambda p, batch, w, lam: p.inner_image(w, lam, batch), w, lam)

    def mean_adjoint(self, w: PyTree) -> tuple[PyTree, Callable[[PyTree], tuple[PyTree, PyTree]]]:
        """Phi(w, lam), and v -> (d1Phi(w, lam)^T v, d2Phi(w, lam)^T v), on every row of train."""
        image, pullback = jax.vjp(self.mean_image, w, self.lam)
        return image, pullback

    def mean_adjoint_product(self, w: PyTree, v: PyTree) -> PyTree:
        """d1Phi(w, lam)^T v, on every row of train."""
        return self._mean(
            self.train, lambda p, batch, *args: p.adjoint_product(*args[:2], batch, args[2]), w, self.lam, v
        )

    def mean_cross_product(self, w: PyTree, v: PyTree) -> PyTree:
        """d2Phi(w, lam)^T v, on every row of train."""
        return self._mean(
            self.train, lambda p, batch, *args: p.cross_product(*args[:2], batch, args[2]), w, self.lam, v
        )

    def mean_inner_loss(self, w: PyTree) -> Array:
        """The inner loss on every row of train, [], of a problem that has one."""
        return self._mean(self.train, lambda p, batch, w, lam: p.inner_loss(w, lam, batch), w, self.lam)

    def mean_outer_loss(self, w: PyTree) -> Array:
        """E(w, lam), on every row of val, []."""
        return self._mean(self.val, lambda p, batch, w, lam: p.outer_loss(w, lam, batch), w, self.lam)

    def mean_outer_gradients(self, w: PyTree) -> tuple[Array, PyTree, PyTree]:
        """E(w, lam), grad_1 E and grad_2 E, on every row of val."""
        return self._mean(self.val, lambda p, batch, w, lam: p.outer_gradients(w, lam, batch), w, self.lam)

    def _mean(self, source: RowSource, oracle: Callable[..., T], *args: PyTree) -> T:
        """oracle(problem, batch, *args), averaged over every row of a source."""
        return source.total(lambda at, batch: oracle(at[0], batch, *at[1:]), (self.problem, *args))
