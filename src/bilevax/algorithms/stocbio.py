"""StocBiO: a few warm-started moves of w, a truncated Neumann series for the multiplier, and one move of lam.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, (w, lam), one minibatch of val, and as many
of train as moves and factors, as looks. Out, to the loop: the next (w, lam).
"""

from typing import ClassVar

from jax import Array

from bilevax.algorithms.measured_steps import Defaults
from bilevax.algorithms.step_rules import DoubleLoop
from bilevax.core.config import config
from bilevax.core.protocols import BilevelProblem, StepLooks
from bilevax.core.records import Info
from bilevax.core.trees import add
from bilevax.solvers.parts import Pair, Point, inner_directions, neumann, outer_directions


@config
class StocBiO(DoubleLoop):
    """T moves of w from where it was, a Neumann series of K factors for the multiplier u, and one move of lam.

        w   <- w + rho_k (-grad_1 G)                                     ``inner_steps`` times
        u    = sum_{i=0}^K (I - rho_0 H_i) ... (I - rho_0 H_1) rho_0 grad_1 E            K = ``linear_steps``
        lam <- P(lam - ratio rho_k (grad_2 E - d2(grad_1 G)^T u))

    Steps are in loss form, as in :class:`~bilevax.SOBA`. The series is cut off: in the mean u is
    (I - (I - rho_0 H)^(K+1)) H^-1 grad_1 E, so that lam ends where that direction is 0, and not at a minimum, unless K
    is some multiple of the condition of H. Assumes G strongly convex and smooth losses. To reach a squared
    hypergradient of eps it takes of the order of eps^-2 samples. Cost: ``inner_steps`` gradients, ``linear_steps``
    Hessian-vector products, one cross product, each on rows of its own, and one outer gradient.
    Source: Ji, Yang, Liang (2021), arXiv:2010.07962.

    Args:
        step_size: rho_k, a number or a schedule; :class:`~bilevax.BiSLS` or :class:`~bilevax.BiSPS`, which find the
            steps of both levels; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.
        inner_steps: T, from 1 to 256. Default 10.
        linear_steps: K, from 1 to 256. Default 10.

    Examples:
        >>> import bilevax as bx
        >>> bx.StocBiO(step_size=0.1, ratio=0.3, linear_steps=30)  # a longer series, less bias
        StocBiO(step_size=Constant(value=0.1), ratio=0.3, inner_steps=10, linear_steps=30)
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 1.0, carried=False)

    def step(self, problem: BilevelProblem, pair: Pair, looks: StepLooks, k: Array) -> tuple[Pair, Info]:
        """The moves of w, the series, the move of lam; the loop evaluates the outer value and the gradient norm."""
        lam = pair.lam
        # w + rho_k (-grad_1 G), T times, or by the rule's steps
        w, by = self.moves(problem, looks, k, pair).inner(pair.w, lam)
        g, direct = outer_directions(problem, w, lam, looks["val"])
        rho = by.series(w, lam)
        # u = sum_{i=0}^K (I - rho H_i) ... (I - rho H_1) rho grad_1 E
        u = neumann(problem, w, lam, g, looks["linear"], rho)
        p = Point(w, u, lam)
        d = add(direct, inner_directions(problem, p, looks["train"]).lam)
        # P(lam - gamma (grad_2 E - d2(grad_1 G)^T u))
        lam, info = by.outer(p, g, d, rho)
        return Pair(w, lam), self.counted(info, looks)
