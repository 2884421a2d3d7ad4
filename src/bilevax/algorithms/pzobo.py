"""PZOBO: the inner Jacobian by differences of short inner runs at perturbed lam, and no second derivative.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, (w, lam), minibatches of train for the inner
runs and one of val, as looks. Out, to the loop: the next (w, lam).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.algorithms.common import Draws, ScheduledSteps, check_no_damping, checked_steps, step_sizes
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import at_least_one, check_fields, config, positive, set_frozen, static
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import PyTree, add, axpy, entries, scale, shrink, sub, vdot
from bilevax.data import Several
from bilevax.solvers.parts import Pair, inner_moves, outer_directions, outer_move


@config
class PZOBO(ScheduledSteps):
    """The derivative of a T-step inner run, along Gaussian directions, by differences.

        w(lam) = w after ``inner_steps`` moves w + rho_k (-grad_1 G(w, lam)), from where w was
        lam   <- P(lam - ratio rho_k (grad_2 E + 1/Q sum_j <(w(lam + r v_j) - w(lam)) / r, grad_1 E> v_j))
        w     <- w(lam)                      v_j standard normal, j = 1, ..., Q, all on the same minibatches

    In the mean over v that is w'(lam)^T grad_1 E, of w(lam) smoothed over lam + r v: the derivative of T steps, whose
    bias is that of :class:`~bilevax.StocBiO`'s series with T terms where the inner problem is quadratic. The noise of
    Q directions is (m + 1) / Q times the square of that, and stays at the end. lam + r v may lie outside Lambda.

    Steps are in loss form, as in :class:`~bilevax.SOBA`. Assumes G strongly convex and smooth losses. On every row, as
    published, the squared hypergradient falls as m / K, up to the bias and the noise. Cost: ``inner_steps`` (Q + 1)
    inner gradients on ``inner_steps`` minibatches of train, and one outer gradient.
    Source: Sow, Ji, Liang (2022), arXiv:2110.07004.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.
        inner_steps: T, from 1 to 256. Default 10.
        perturbations: Q, at least 1. Default 10.
        radius: r, in the units of lam, positive. Default 0.01.

    Examples:
        >>> import bilevax as bx
        >>> bx.PZOBO(step_size=0.1, ratio=0.3, perturbations=20)
        PZOBO(step_size=Constant(value=0.1), ratio=0.3, inner_steps=10, perturbations=20, radius=0.01)
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.1, carried=False, power=0.5)

    inner_steps: int = 10
    perturbations: int = static(10)
    radius: float = 0.01

    def __post_init__(self) -> None:
        check_fields(self, inner_steps=at_least_one, perturbations=at_least_one, radius=positive)
        set_frozen(self, **checked_steps(self))

    def check(self, problem: BilevelProblem) -> None:
        """Refuse damping."""
        check_no_damping(self, problem)

    def streams(self, sources: Sources) -> Draws:
        """A minibatch of train for each move of w, and one of val."""
        train, val = sources
        return {"inner": Several(train, self.inner_steps), "val": val}

    def step(self, problem: BilevelProblem, pair: Pair, looks: StepLooks, k: Array) -> tuple[Pair, Info]:
        """The inner runs and the move of lam; the loop evaluates the outer value and the gradient norm."""
        lam, (rho, gamma) = pair.lam, step_sizes(self, k, *pair)

        def end(lam: PyTree) -> PyTree:
            # w(lam), by the same minibatches at every lam, so that differences are of lam alone
            return inner_moves(problem, pair.w, lam, looks["inner"], rho)

        w = end(lam)
        g, direct = outer_directions(problem, w, lam, looks["val"])

        def along(v: PyTree) -> PyTree:
            # <(w(lam + r v) - w(lam)) / r, grad_1 E> v
            return scale(vdot(sub(end(axpy(self.radius, v, lam)), w), g), shrink(self.radius, v))

        each = jax.vmap(along)(_normal(looks.key, lam, self.perturbations))
        # grad_2 E + 1/Q sum_j <(w(lam + r v_j) - w(lam)) / r, grad_1 E> v_j
        d = add(direct, jax.tree.map(lambda x: jnp.mean(x, axis=0), each))
        return Pair(w, outer_move(problem, lam, d, gamma)), Info()

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost:
        """Q + 1 gradients on each minibatch of train, which is read once; one on that of val."""
        (train, val), T = (source.rows_per_batch for source in sources), self.inner_steps
        return Cost(Count(T * (self.perturbations + 1), train, T), outer_gradients=Count(1, val))


def _normal(key: Array, like: PyTree, number: int) -> PyTree:
    """So many standard normal trees, stacked; how entries are grouped in leaves plays no part."""
    leaves, structure = jax.tree.flatten(like)
    # in float32, as the draws of another dtype are others
    rows = jax.random.normal(key, (number, entries(like)), jnp.float32)
    parts = jnp.split(rows, np.cumsum([x.size for x in leaves])[:-1], axis=1)
    drawn = [part.reshape(number, *x.shape).astype(x.dtype) for part, x in zip(parts, leaves, strict=True)]
    out: PyTree = jax.tree.unflatten(structure, drawn)
    return out
