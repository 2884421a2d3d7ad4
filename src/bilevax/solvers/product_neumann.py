"""The Neumann series of the linear system in product form: each factor from a minibatch of its own."""

from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import Steps, check_choice, check_count, check_fields, config, positive
from bilevax.core.protocols import Draw, RowSource
from bilevax.core.records import Solution
from bilevax.core.trees import PyTree, add, all_finite, axpy, norm, scale, sub, where, zeros_like
from bilevax.solvers.chain import Image, has_grown
from bilevax.solvers.schedules import at_step


@config
class ProductNeumann:
    """v_K = v_0 + sum_{j < K} M_j ... M_1 r_0, M_j = d1Phi(w; zeta_j)^T and r_0 = M_0 v_0 + g - v_0.

    A linear solver for :class:`~bilevax.SID`. In the mean it is the truncated Neumann series, whose bias A^-1 M^K r_0
    falls as q^K; one path of products is not averaged, so that its noise stays, however many terms there are. The terms
    may be cut off at random: ``"uniform"`` takes one of the K, times K, which has the same mean from half as many
    products and more noise; ``"geometric"`` goes on with probability rho = 1 - 1/K after each and divides it by the
    probability of getting there, which has no bias at all, and a variance where q^2 < rho (Russian roulette).

    Assumes E M_j of spectral radius below one, and products that do not grow in mean square. The code is
    TOLERANCE_NOT_MET where the last term is more than ``tol`` of r_0, unless it was cut off at random.

    Cost: K products on minibatches; at random K/2 + 1/2, or K, in the mean. Source: Ji, Yang, Liang (2021),
    arXiv:2010.07962, stocBiO; uniform: Ghadimi, Wang (2018), arXiv:1802.02246.

    Args:
        steps: K, a count of at least 0, or :class:`~bilevax.Growing` with the outer step.
        truncation: None (default), ``"uniform"`` or ``"geometric"``.
        tol: length of the last term against r_0, positive. Default 0.1.

    Examples:
        >>> import bilevax as bx
        >>> bx.ProductNeumann(30).steps  # 30 terms, in product form
        30
    """

    stochastic: ClassVar[Literal[True]] = True
    affine: ClassVar[bool] = True

    steps: Steps
    truncation: str | None = None
    tol: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, steps=check_count)
        if self.truncation is not None:
            check_choice("truncation", self.truncation, ("uniform", "geometric"))

    def solve(
        self,
        image: Image,
        start: PyTree,
        args: PyTree,
        source: RowSource,
        *,
        key: Array,
        outer_step: Array | int = 0,
        first: Array | int = 0,
    ) -> Solution:
        """The series for v = E (M v + g).

        Args:
            image: (v, args, batch) -> M v + g.
            start: v_0.
            args: what it reads beside.
            source: where the minibatches come from.
            key: of this stream.
            outer_step: for counts that grow.
            first: number of the first minibatch; a series that is continued begins again, from where v is.
        """
        steps = at_step(self.steps, outer_step)
        factors, grown = self._factors(steps, jax.random.fold_in(jax.random.split(key)[1], first))

        def step(carry: tuple[PyTree, PyTree], args: PyTree, _: Array, draw: Draw) -> tuple[PyTree, PyTree]:
            total, u = carry
            # u <- M_j u / P(go on), total <- total + u
            u = scale(grown, weighted_move(lambda x: image(x, args, draw.batch), u, draw.weight))
            return add(total, u), u

        r = first_residual(image, start, args, source, key=key, first=first, steps=steps)
        begun = first + jnp.minimum(steps, 1)
        total, u = source.fold(step, (add(start, r), r), args, key=key, start=begun, stop=begun + factors)
        # one term of the K, times K
        v = axpy(steps.astype(jnp.result_type(float)), u, start) if self.truncation == "uniform" else total
        # a random end is unbiased: what it leaves out tells nothing of the mean
        left = None if self.truncation else (u, r, self.tol)
        return series_solution(v, start, left, calls=begun - first + factors, last_step=first + steps)

    def _factors(self, steps: Array, key: Array) -> tuple[Array, Array | float]:
        """How many factors, and one over the probability to go on after each."""
        if self.truncation == "uniform":  # 0 to K - 1, each with probability 1/K
            return jax.random.randint(key, (), 0, jnp.maximum(steps, 1), jnp.int32), 1.0
        most = jnp.maximum(steps - 1, 0)
        if self.truncation is None:
            return most, 1.0
        # P(N >= j) = rho^j: N = floor(X / -ln rho), X exponential; K = 1 never goes on
        real = jnp.result_type(float)
        rho = most.astype(real) / jnp.maximum(steps, 1).astype(real)
        number = jnp.floor(jax.random.exponential(key, (), rho.dtype) / -jnp.log(rho)).astype(jnp.int32)
        return number, 1.0 / jnp.maximum(rho, 0.5)


def weighted_move(affine: Callable[[PyTree], PyTree], u: PyTree, weight: Array | float) -> PyTree:
    """U + weight (M u - u), M the linear part of an affine map; itself of one linearisation."""
    # M u, M the derivative of v -> M v + g
    product = jax.jvp(affine, (u,), (u,))[1]
    return axpy(weight, sub(product, u), u)


def first_residual(
    image: Image, start: PyTree, args: PyTree, source: RowSource, *, key: Array, first: Array | int, steps: Array
) -> PyTree:
    """r_0 = T(v_0; zeta_0) - v_0, of the first minibatch; 0 where no steps are made."""

    def residual(_: PyTree, args: tuple[PyTree, PyTree], __: Array, draw: Draw) -> PyTree:
        v, args = args
        return scale(draw.weight, sub(image(v, args, draw.batch), v))

    stop = first + jnp.minimum(steps, 1)
    return source.fold(residual, zeros_like(start), (start, args), key=key, start=first, stop=stop)


def series_solution(
    v: PyTree,
    start: PyTree,
    left: tuple[PyTree, PyTree, Array | float] | None,
    *,
    calls: Array,
    last_step: Array,
    reads: Array | None = None,
) -> Solution:
    """A solution, and its code: ``left`` is (u, r, tol), u what is left of the residual r; None: not known."""
    code = jnp.int32(Code.OK)
    if left is not None:
        u, r, tol = left
        # |last term| <= tol |first term|
        code = jnp.where(norm(u) > scale(tol, norm(r)), jnp.int32(Code.TOLERANCE_NOT_MET), code)
    code = jnp.where(has_grown(start, v), jnp.int32(Code.DIVERGED), code)
    finite = all_finite(v)
    code = jnp.where(finite, code, jnp.int32(Code.NONFINITE))
    return Solution(where(finite, v, start), code, calls, last_step, reads=reads)
