"""What a method works on: a bilevel problem at one lam, with its rows."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array

from bilevax.core.protocols import BilevelProblem, RowSource
from bilevax.core.trees import PyTree


class Oracle(NamedTuple):
    """The two functions of a bilevel problem at one lam: what a loop over minibatches reads beside its iterates.

    Letters: w has d entries, lam has m; zeta is a minibatch of train, xi one of val.

    Attributes:
        problem: the inner map Phi, the outer loss E, the set Lambda.
        lam: where the hypergradient is wanted.
    """

    problem: BilevelProblem
    lam: PyTree

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

    def mean_image(self, w: PyTree, source: RowSource) -> PyTree:
        """Phi(w, lam), on every row of a source, like w."""
        if not self.problem.composite:
            return source.total(lambda at, batch: at[0].inner_image(at[1], batch), (self, w))
        # the prox of a mean is not the mean of proxes: rows in pieces go through That, and their mean through G
        u = source.total(lambda at, batch: at[0].problem.smooth_image(at[1], at[0].lam, batch), (self, w))
        return self.problem.proximal_image(u, w, self.lam)

    # One linearisation of Phi serves both products.
    def inner_pullback(self, w: PyTree, batch: PyTree) -> tuple[PyTree, Callable[[PyTree], tuple[PyTree, PyTree]]]:
        """Phi(w, lam; zeta), and v -> (d1Phi^T v, d2Phi^T v)."""
        image, pullback = jax.vjp(lambda w, lam: self.problem.inner_image(w, lam, batch), w, self.lam)
        return image, pullback

    def outer_gradients(self, w: PyTree, batch: PyTree) -> tuple[Array, PyTree, PyTree]:
        """E(w, lam; xi), grad_1 E like w, grad_2 E like lam."""
        return self.problem.outer_gradients(w, self.lam, batch)


class InnerImage:
    """(w, oracle, batch) -> Phi(w, lam; zeta), like w, for a solver of the inner problem."""

    def __call__(self, w: PyTree, oracle: Oracle, batch: PyTree) -> PyTree:
        """Phi(w, lam; zeta)."""
        return oracle.problem.inner_image(w, oracle.lam, batch)

    def mean(self, w: PyTree, oracle: Oracle, source: RowSource) -> PyTree:
        """Phi(w, lam), on every row."""
        return oracle.mean_image(w, source)


class Instance(NamedTuple):
    """A bilevel problem at one lam, with the rows that its two functions are means over.

    Attributes:
        problem: the inner map Phi, the outer loss E, the set Lambda.
        lam: where the hypergradient is wanted.
        train: source of inner minibatches.
        val: source of outer minibatches.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> rows = bx.Arrays((jnp.ones((4, 2)),))
        >>> layer = bx.Problem(lambda w, lam, batch: 0.5 * w + lam, lambda w, lam, batch: jnp.sum(w**2))
        >>> bx.Instance(layer, jnp.ones(2), rows, rows).mean_image(jnp.ones(2), jnp.ones(2)).tolist()
        [1.5, 1.5]
    """

    problem: BilevelProblem
    lam: PyTree
    train: RowSource
    val: RowSource

    @property
    def oracle(self) -> Oracle:
        """The problem at lam, without the rows."""
        return Oracle(self.problem, self.lam)

    def with_measured_step(self, w0: PyTree, key: Array) -> "Instance":
        """With the inner step of its problem measured at (w0, lam), where that is None."""
        return self._replace(problem=self.problem.with_measured_step(w0, self.lam, self.train, key))

    # Below, what differs from call to call goes in by the arguments of total(), never by a closure: a source in
    # several places or pieces evaluates the function where its rows are.

    def mean_image(self, w: PyTree, lam: PyTree) -> PyTree:
        """Phi(w, lam), on every row of train; lam is an argument, so that it can be differentiated in both."""
        return Oracle(self.problem, lam).mean_image(w, self.train)

    def mean_adjoint(self, w: PyTree) -> tuple[PyTree, Callable[[PyTree], tuple[PyTree, PyTree]]]:
        """Phi(w, lam), and v -> (d1Phi(w, lam)^T v, d2Phi(w, lam)^T v), on every row of train."""
        image, pullback = jax.vjp(self.mean_image, w, self.lam)
        return image, pullback

    def mean_adjoint_product(self, w: PyTree, v: PyTree) -> PyTree:
        """d1Phi(w, lam)^T v, on every row of train."""
        if self.problem.composite:
            return jax.vjp(lambda x: self.mean_image(x, self.lam), w)[1](v)[0]
        return self.train.total(lambda at, batch: at[0].adjoint_product(at[1], batch, at[2]), (self.oracle, w, v))

    def mean_cross_product(self, w: PyTree, v: PyTree) -> PyTree:
        """d2Phi(w, lam)^T v, on every row of train."""
        if self.problem.composite:
            return jax.vjp(lambda x: self.mean_image(w, x), self.lam)[1](v)[0]
        return self.train.total(lambda at, batch: at[0].cross_product(at[1], batch, at[2]), (self.oracle, w, v))

    def mean_inner_loss(self, w: PyTree) -> Array:
        """The inner loss on every row of train, [], of a problem that has one."""
        loss: Array = self.train.total(
            lambda at, batch: at[0].problem.inner_loss(at[1], at[0].lam, batch), (self.oracle, w)
        )
        return loss

    def mean_outer_loss(self, w: PyTree) -> Array:
        """E(w, lam), on every row of val, []."""
        loss: Array = self.val.total(
            lambda at, batch: at[0].problem.outer_loss(at[1], at[0].lam, batch), (self.oracle, w)
        )
        return loss

    def mean_outer_gradients(self, w: PyTree) -> tuple[Array, PyTree, PyTree]:
        """E(w, lam), grad_1 E and grad_2 E, on every row of val."""
        gradients: tuple[Array, PyTree, PyTree] = self.val.total(
            lambda at, batch: at[0].outer_gradients(at[1], batch), (self.oracle, w)
        )
        return gradients
