"""Mixed fixed-point iterations for the linear system: between the Neumann series and the fixed-point iteration."""

from typing import ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.config import Steps, check_count, check_fields, config, fraction, positive
from bilevax.core.protocols import Draw, RowSource
from bilevax.core.records import Solution
from bilevax.core.trees import PyTree, add, axpy, scale, sub
from bilevax.solvers.chain import Image
from bilevax.solvers.product_neumann import first_residual, series_solution
from bilevax.solvers.schedules import Constant, StepSize, at_step, schedule, scheduled

Triple: TypeAlias = tuple[PyTree, PyTree, PyTree]
"""(z, w, u): the solution, a fixed-point iteration, and what is left of the residual."""


@config
class MixedFP:
    """Mixed fixed-point iteration on v = E (M_j v + g), M_j = d1Phi(w; zeta_j)^T; with eta < 1 Mixed FP-KM.

    From z = v_0, r_0 = M_0 v_0 + g - v_0, w = v_0 + r_0 and u = r_0, in turn

        z <- z + eta_j ((1 - a) u + a (w - z)) ,
        w <- w + eta_j (M_{j+1} w + g - w) ,      u <- u + eta_j (M_{j+1} u - u) ,

    both products on one minibatch. z is the solution. In the mean w = z + u and A z + u = g, A = I - E M: rates of
    mixing have one mean. a = 0 is the Neumann series in product form (:class:`ProductNeumann`), a = 1 with eta = 1
    the fixed-point iteration (:class:`FixedPoint`), on the same minibatches; a small one has less noise than either.

    A linear solver for :class:`~bilevax.SID`. Assumes E M of spectral radius below one. The code is TOLERANCE_NOT_MET
    where u, the residual in the mean, ends longer than ``tol`` r_0.

    Cost: 2 steps - 1 products, on ``steps`` minibatches. Source: Terashita, Hara (2025), TMLR.

    Args:
        steps: k, a count of at least 0, or :class:`~bilevax.Growing` with the outer step.
        mixing: a in [0, 1].
        step_size: eta_j, as in :class:`FixedPoint`. Default 1: no averaging of Krasnoselskii and Mann.
        tol: length of u against r_0, positive. Default 0.1.

    Examples:
        >>> import bilevax as bx
        >>> bx.MixedFP(500, mixing=0.5).mixing
        0.5
    """

    stochastic: ClassVar[Literal[True]] = True
    affine: ClassVar[bool] = True

    steps: Steps
    mixing: Array | float
    step_size: StepSize = Constant(1.0)
    tol: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, mixing=fraction, tol=positive, steps=check_count, step_size=schedule)

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
        """Run the iteration; the arguments are those of :meth:`ProductNeumann.solve`."""
        steps = at_step(self.steps, outer_step)

        def mixed(triple: Triple, j: Array) -> Triple:
            z, w, u = triple
            # z + eta_j ((1 - a) u + a (w - z))
            way = axpy(self.mixing, sub(w, z), scale(1.0 - self.mixing, u))
            return axpy(scheduled(self.step_size, j), way, z), w, u

        def step(triple: Triple, args: PyTree, j: Array, draw: Draw) -> Triple:
            z, w, u = triple
            eta = scheduled(self.step_size, j - 1) * draw.weight
            # T(w) = M w + g and M u, of one linearisation
            fixed, product = jax.jvp(lambda x: image(x, args, draw.batch), (w,), (u,))
            return mixed((z, axpy(eta, sub(fixed, w), w), axpy(eta, sub(product, u), u)), j)

        r = first_residual(image, start, args, source, key=key, first=first, steps=steps)
        begun = first + jnp.minimum(steps, 1)
        # w_1 = v_0 + r and u_1 = r, of the first minibatch
        begin = mixed((start, add(start, r), r), jnp.asarray(first, jnp.int32))
        z, _, u = source.fold(step, begin, args, key=key, start=begun, stop=first + steps)
        return series_solution(
            z, start, (u, r, self.tol),
            calls=jnp.maximum(2 * steps - 1, 0), last_step=first + steps, reads=steps,
        )  # fmt: skip
