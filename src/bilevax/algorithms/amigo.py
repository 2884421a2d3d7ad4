"""AmIGO: a few warm-started moves of w, a few of the multiplier u, and one of lam.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the point (w, u, lam), one minibatch of val,
and as many of train as moves, as looks. Out, to the loop: the next point.
"""

from typing import ClassVar

from jax import Array

from bilevax.algorithms.measured_steps import Defaults
from bilevax.algorithms.step_rules import DoubleLoop
from bilevax.core.config import config
from bilevax.core.protocols import BilevelProblem, Draw, Sources, StepLooks
from bilevax.core.records import Info
from bilevax.core.trees import PyTree, add
from bilevax.solvers.parts import Point, inner_directions, minus_hessian_product, moved_by, outer_directions, start


@config
class AmIGO(DoubleLoop):
    """T moves of w and then K of u from where they were, and one of lam, each on fresh minibatches.

        w   <- w + rho_k (-grad_1 G)                                     ``inner_steps`` times
        u   <- u + rho_k (grad_1 E - H u)                                ``linear_steps`` times, at the new w
        lam <- P(lam - ratio rho_k (grad_2 E - d2(grad_1 G)^T u))        at the new w and u

    Steps are in loss form, as in :class:`~bilevax.SOBA`. Assumes G strongly convex and smooth losses. With rho_k small
    as the noise asks, and minibatches that grow with the accuracy, it has the sample complexity of stochastic gradient
    descent on f: eps^-2 for a squared hypergradient of eps. Cost: ``inner_steps`` gradients, ``linear_steps``
    Hessian-vector products, one cross product, each on rows of its own, and one outer gradient.
    Source: Arbel, Mairal (2022), arXiv:2111.14580.

    Args:
        step_size: rho_k, a number or a schedule; :class:`~bilevax.BiSLS` or :class:`~bilevax.BiSPS`, which find the
            steps of both levels; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.
        inner_steps: T, from 1 to 256. Default 10.
        linear_steps: K, from 1 to 256. Default 10.

    Examples:
        >>> import bilevax as bx
        >>> bx.AmIGO(step_size=0.1, ratio=0.3, inner_steps=5, linear_steps=5)
        AmIGO(step_size=Constant(value=0.1), ratio=0.3, inner_steps=5, linear_steps=5)
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 1.0)

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> Point:
        """The state before the first step: u is u0, or 0; lam projected."""
        return start(problem, w0, lam, u0)

    def step(self, problem: BilevelProblem, p: Point, looks: StepLooks, k: Array) -> tuple[Point, Info]:
        """The moves of w, of u, of lam; the loop evaluates the outer value and the gradient norm."""
        # w + rho_k (-grad_1 G), T times, or by the rule's steps
        w, by = self.moves(problem, looks, k, (p.w, p.lam)).inner(p.w, p.lam)
        rho = by.linear(w, p.lam)
        g, direct = outer_directions(problem, w, p.lam, looks["val"])

        def linear_move(u: PyTree, i: Array, draw: Draw) -> PyTree:
            # u + rho (grad_1 E - H u), grad_1 E the same in every move
            return moved_by(rho, add(g, minus_hessian_product(problem, w, p.lam, draw, u)), u)

        u = looks["linear"].fold(linear_move, p.u)
        p = Point(w, u, p.lam)
        d = add(direct, inner_directions(problem, p, looks["train"]).lam)
        # P(lam - gamma (grad_2 E - d2(grad_1 G)^T u))
        lam, info = by.outer(p, g, d, rho)
        return p._replace(lam=lam), self.counted(info, looks)
