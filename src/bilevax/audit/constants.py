"""The constants of a problem, measured at a point."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevax.core.config import canonicalize, check_count, replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.core.keys import as_key, stream
from bilevax.core.protocols import Draw, RowSource
from bilevax.core.trees import PyTree, as_parameters
from bilevax.linalg.spectrum import Measured, extreme_eigenvalues, lanczos, spectral_norm, trilinear_norm
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.problem import Problem
from bilevax.problems.proximal_step import ProximalStep
from bilevax.problems.strata import over_strata
from bilevax.problems.validate import check_functions
from bilevax.theory import Constants

DIRECTION_STEPS = 8
"""Lanczos steps towards the direction of the largest variance."""

T = TypeVar("T", Array, tuple[Array, Array])


def estimate_constants(
    problem: Problem,
    w: PyTree,
    lam: PyTree,
    train: RowSource,
    val: RowSource,
    *,
    key: Array,
    batches: int = 100,
) -> Constants:
    """The constants of a problem at (w, lam), each with its standard error: local estimates, not certified constants.

    A bound made of them is an estimate too: nothing is known of them elsewhere. Take w near w(lam).

    - L, tau, q, L_Phi, mu1, mu2: Lanczos on every row; the error is the residual of the Ritz value. L, tau and alpha
      only where the inner map is a gradient step. If that step is diagonal, alpha is its largest entry, and q is
      |d1Phi| in the norm in which that is self-adjoint.
    - L_E: the norm of grad_1 E(w).
    - nu1, nu2: norm of the derivative of d1Phi and d2Phi in w, by an alternating power method.
    - sigma1: 2 V[hatPhi(w)]. sigma1_prime, sigma2_prime: variance along the direction in which it is largest. sigma2:
      2 sigma1_prime / (1 - q)^2. sigma1_E, sigma2_E: V[grad_1 E], V[grad_2 E]. All for one minibatch of the source, and
      0 where each minibatch is every row.

    Cost: about 150 Hessian-vector and cross products, 90 products with second derivatives of E and 360 with third
    derivatives of the inner loss on every row; and about 40 ``batches`` gradients and products on minibatches.

    Args:
        problem: its map is to be differentiable three times in w (forward and reverse).
        w: where to measure, d entries.
        lam: likewise, m entries.
        train: source of inner minibatches.
        val: source of outer minibatches.
        key: a JAX random key.
        batches: minibatches from which the variances are estimated; their relative error falls as its square root.

    Raises:
        ParameterError: a wrong leaf or function, fewer than two batches, or a map that does not contract at w.

    Examples:
        >>> import bilevax as bx
        >>> import jax, jax.numpy as jnp
        >>> inner_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2) + jnp.exp(lam) * w**2
        >>> outer_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2)
        >>> train, val = bx.Arrays(jnp.array([1.0, 3.0])), bx.Arrays(jnp.array([1.0]))
        >>> problem = bx.Problem(bx.GradientStep(inner_loss, 0.25), outer_loss)
        >>> constants = bx.estimate_constants(problem, 1.0, 0.0, train, val, key=jax.random.key(0), batches=4)
        >>> round(float(constants.L), 3), round(float(constants.q), 3)  # the curvature 2 + 2 exp(lam); a step of 1 / L
        (4.0, 0.0)
    """
    w, lam = as_parameters("w", w), as_parameters("lam", lam)
    problem, batches = over_strata(problem, train, val), check_count("batches", batches, low=2)
    found = _measure(canonicalize(problem), w, lam, train, val, as_key(key), jnp.int32(batches))
    values = {name: float(m.value) for name, m in found.items()}
    errors = {name: float(m.error) for name, m in found.items()}
    if values["q"] >= 1.0:
        raise ParameterError(
            f"the inner map does not contract at w: the norm of its Jacobian is {values['q']:.4g} +- {errors['q']:.1g};"
            " try a smaller step or a larger penalty"
        )
    # |Phi(w) - w| >= (1 - q) |w - w(lam)|: sigma2 = 2 sigma1' / (1 - q)^2
    for numbers in (values, errors):
        numbers["sigma2"] = 2.0 * numbers["sigma1_prime"] / (1.0 - values["q"]) ** 2
    return Constants(**values, standard_errors=errors)


class Point(NamedTuple):
    """A problem at (w, lam), on flat vectors.

    Attributes:
        problem: with its inner step measured.
        w: [d].
        lam: [m].
        trees: (w, lam) as the user gave them.
    """

    problem: Problem
    w: Array
    lam: Array
    trees: tuple[PyTree, PyTree]

    def image(self, w: Array, lam: Array, batch: PyTree) -> Array:
        """Phi(w, lam; zeta), [d]."""
        return _vector(self.problem.inner_image(*self._tree(w, lam), batch))

    def adjoint(self, x: Array, batch: PyTree) -> Array:
        """d1Phi^T x, [d]."""
        return _vector(self.problem.adjoint_product(*self.trees, batch, self._tree(x, self.lam)[0]))

    def cross(self, x: Array, batch: PyTree) -> Array:
        """d2Phi^T x, [m]."""
        return _vector(self.problem.cross_product(*self.trees, batch, self._tree(x, self.lam)[0]))

    def along_w(self, y: Array, batch: PyTree) -> Array:
        """d1Phi y, [d]."""
        return _derivative(lambda w: self.image(w, self.lam, batch), self.w, y)

    def along_lam(self, y: Array, batch: PyTree) -> Array:
        """d2Phi y, [d]."""
        return _derivative(lambda lam: self.image(self.w, lam, batch), self.lam, y)

    def outer(self, w: Array, batch: PyTree) -> tuple[Array, Array]:
        """(grad_1 E, grad_2 E), [d] and [m]."""
        _, by_w, by_lam = self.problem.outer_gradients(*self._tree(w, self.lam), batch)
        return _vector(by_w), _vector(by_lam)

    def mean(self, product: Callable[..., T], source: RowSource) -> Callable[..., T]:
        """One of the products above, of every row of a source."""
        return lambda *x: source.total(lambda args, batch: product(*args, batch), (self, *x))

    def _tree(self, w: Array, lam: Array) -> tuple[PyTree, PyTree]:
        return ravel_pytree(self.trees[0])[1](w), ravel_pytree(self.trees[1])[1](lam)


@jax.jit
def _measure(
    problem: Problem, w: PyTree, lam: PyTree, train: RowSource, val: RowSource, key: Array, batches: Array
) -> dict[str, Measured]:
    """Every constant but sigma2, by name; each draw has the next of the keys."""
    check_functions(problem, w, lam, train, val)
    keys = iter(jax.random.split(stream(key, "measure"), 12))
    inner_map = problem.inner_map
    if isinstance(inner_map, GradientStep | ProximalStep):
        problem = replace_unchecked(problem, inner_map=inner_map.measured(w, lam, train, next(keys)))
    at = Point(problem, _vector(w), _vector(lam), (w, lam))
    # one random start for all Krylov spaces on [d]
    start = jax.random.normal(next(keys), at.w.shape, at.w.dtype)
    found = {**_contraction(at, train, start), **_outer(at, val, start)}
    found["L_Phi"] = spectral_norm(at.mean(Point.cross, train), at.mean(Point.along_lam, train), start)
    found |= _curvature_of_the_map(at, train, next(keys))
    # where each minibatch is every row, there is no noise
    found |= dict.fromkeys(("sigma1", "sigma1_prime", "sigma2_prime", "sigma1_E", "sigma2_E"), _exactly(0.0))
    if not train.is_full_batch:
        full = at.mean(Point.image, train)(at.w, at.lam)
        # sigma1 = 2 V[hatPhi(w)]: a minibatch's Phi - w is 0 in the mean at w(lam), where it is measured
        noise = _variance(lambda at, b: at.image(at.w, at.lam, b), full, at, train, next(keys), batches)
        found["sigma1"] = Measured(2 * noise.value, 2 * noise.error)
        for name, adjoint, forward in (
            ("sigma1_prime", Point.adjoint, Point.along_w),
            ("sigma2_prime", Point.cross, Point.along_lam),
        ):
            found[name] = _worst_variance(adjoint, forward, at, train, start, (next(keys), next(keys)), batches)
    if not val.is_full_batch:
        k, gradients = next(keys), at.mean(Point.outer, val)(at.w)
        for i, name in enumerate(("sigma1_E", "sigma2_E")):
            found[name] = _variance(lambda at, b, i=i: at.outer(at.w, b)[i], gradients[i], at, val, k, batches)
    return found


def _contraction(at: Point, train: RowSource, start: Array) -> dict[str, Measured]:
    """q; and L and tau, where there is an inner loss."""
    adjoint = at.mean(Point.adjoint, train)
    if not at.problem.symmetric:
        return {"q": spectral_norm(adjoint, at.mean(Point.along_w, train), start)}
    # s^1/2 d1Phi^T s^-1/2 is symmetric for a diagonal step s: q = max |eigenvalue|
    root = jnp.sqrt(_vector(at.problem.metric(*at.trees)))
    q = {"q": _largest_modulus(lambda x: root * adjoint(x / root), start)}
    if not at.problem.has_loss:
        return q
    # H x = (x - d1Phi^T x) / s
    step = root**2
    low, high = extreme_eigenvalues(lambda x: x / step - adjoint(x / step), start)
    return {**q, "tau": low, "L": high, "alpha": _exactly(jnp.max(step))}


def _outer(at: Point, val: RowSource, start: Array) -> dict[str, Measured]:
    """L_E, mu1 and mu2."""
    outer = at.mean(Point.outer, val)

    def transposed(y: Array) -> Array:
        (product,) = jax.vjp(lambda w: outer(w)[1], at.w)[1](y)
        return jnp.asarray(product)

    # mu1 = ||d grad_1 E / dw||, mu2 = ||d grad_2 E / dw||
    mu1 = _largest_modulus(lambda x: _derivative(outer, at.w, x)[0], start)
    mu2 = spectral_norm(lambda x: _derivative(outer, at.w, x)[1], transposed, start)
    return {"L_E": _exactly(jnp.linalg.norm(outer(at.w)[0])), "mu1": mu1, "mu2": mu2}


def _curvature_of_the_map(at: Point, train: RowSource, key: Array) -> dict[str, Measured]:
    """nu1 and nu2: norms of (u, x, y) -> <x, d/dw (d_iPhi y) u>."""

    def form(product: Callable[..., Array], u: Array, x: Array, y: Array) -> Array:
        return _derivative(lambda w: jnp.vdot(x, at._replace(w=w).mean(product, train)(y)), at.w, u)

    d, m = at.w.size, at.lam.size
    first, second = jax.random.split(key)
    return {
        "nu1": trilinear_norm(partial(form, Point.along_w), (d, d, d), first),
        "nu2": trilinear_norm(partial(form, Point.along_lam), (d, d, m), second),
    }


def _variance(
    sampled: Callable[..., Array], mean: Array, args: PyTree, source: RowSource, key: Array, batches: Array
) -> Measured:
    """Mean of |sampled(args, batch) - mean|^2 over minibatches."""

    def step(sums: Array, given: tuple[PyTree, Array], _: Array, draw: Draw) -> Array:
        args, mean = given
        square = jnp.sum((sampled(args, draw.batch) - mean) ** 2)
        return sums + jnp.stack([square, square**2])

    sums = source.fold(step, jnp.zeros(2, mean.dtype), (args, mean), key=key, start=0, stop=batches)
    # mean of the squares x, and its standard error ((mean x^2 - (mean x)^2) / (n - 1))^1/2
    first, second = sums / batches.astype(mean.dtype)
    return Measured(first, jnp.sqrt(jnp.maximum(second - first**2, 0.0) / (batches - 1).astype(mean.dtype)))


def _worst_variance(
    adjoint: Callable[..., Array],
    forward: Callable[..., Array],
    at: Point,
    train: RowSource,
    start: Array,
    keys: tuple[Array, Array],
    batches: Array,
) -> Measured:
    """Largest E|(hat A - A)^T x|^2 over unit vectors x, A one of the two Jacobians.

    x by Lanczos on E[(hat A - A)(hat A - A)^T] over a fixed set of minibatches. The variance along it is too
    large in these, to which x was fitted, and too small in others, for which it is not the best: their mean is right
    to first order.
    """

    def step(sums: tuple[Array, Array], given: tuple[Point, Array, Array], _: Array, draw: Draw) -> tuple[Array, Array]:
        at, x, mean = given
        off = adjoint(at, x, draw.batch) - mean
        return sums[0] + forward(at, off, draw.batch), sums[1] + off

    def covariance(x: Array) -> Array:
        mean = at.mean(adjoint, train)(x)
        zero = jnp.zeros_like(x), jnp.zeros_like(mean)
        # sum_j (hat A_j - A) u_j with u_j = (hat A_j - A)^T x: the sum of hat A_j u_j, less A (sum of u_j)
        image, off = train.fold(step, zero, (at, x, mean), key=keys[0], start=0, stop=batches)
        return (image - at.mean(forward, train)(off)) / batches.astype(x.dtype)

    x = lanczos(covariance, start, DIRECTION_STEPS).vectors[:, -1]
    mean = at.mean(adjoint, train)(x)
    # on the minibatches that x was fitted to, and on others
    fitted, other = (_variance(lambda args, b: adjoint(*args, b), mean, (at, x), train, key, batches) for key in keys)
    gap = jnp.abs(fitted.value - other.value)
    return Measured(0.5 * (fitted.value + other.value), 0.5 * jnp.maximum(jnp.hypot(fitted.error, other.error), gap))


def _largest_modulus(product: Callable[[Array], Array], start: Array) -> Measured:
    """The largest |eigenvalue| of a symmetric map."""
    low, high = extreme_eigenvalues(product, start)
    # max |eigenvalue| is at one of the two ends
    return Measured(jnp.maximum(-low.value, high.value), jnp.maximum(low.error, high.error))


def _derivative(f: Callable[[Array], T], at: Array, direction: Array) -> T:
    """The derivative of f along a direction."""
    derivative: T
    _, derivative = jax.jvp(f, (at,), (direction,))
    return derivative


def _vector(tree: PyTree) -> Array:
    return jnp.asarray(ravel_pytree(tree)[0])


def _exactly(value: Array | float) -> Measured:
    return Measured(jnp.asarray(value), jnp.zeros(()))
