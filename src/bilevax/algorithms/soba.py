"""SOBA: w, the multiplier u and lam move together, each along one stochastic direction.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the point (w, u, lam) and one minibatch each
of train and val, as looks. Out, to the loop: the next point. The directions are those of ``solvers.parts``.
"""

from typing import ClassVar

from jax import Array

from bilevax.algorithms.common import ScheduledSteps, step_sizes, together_cost
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import config
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Cost, Info
from bilevax.core.trees import PyTree
from bilevax.solvers.parts import Point, directions, moved, start


@config
class SOBA(ScheduledSteps):
    """Three moves a step, along directions of one inner and one outer minibatch at (w, u, lam) before it.

        w   <- w + rho_k (-grad_1 G)
        u   <- u + rho_k (grad_1 E - H u)                                H the Hessian of the inner loss G
        lam <- P(lam - ratio rho_k (grad_2 E - d2(grad_1 G)^T u))

    Steps are in loss form, as published: the step of :class:`~bilevax.GradientStep` plays no part. Where the inner map
    is no gradient step they are in map form: w moves along Phi - w, u along grad_1 E + d1Phi^T u - u, and lam against
    grad_2 E + d2Phi^T u.

    Assumes G strongly convex (or Phi a contraction) and smooth losses. With steps of order (k + 1)^(-1/2) the squared
    hypergradient falls as log(K) K^(-1/2) in the mean; constant steps lead to a floor. Cost: one gradient, one
    Hessian-vector product and one cross product, on the same rows of train, and one outer gradient.
    Source: Dagreou, Ablin, Vaiter, Moreau (2022), arXiv:2201.13409.

    Args:
        step_size: rho_k, a number or a schedule such as ``bx.Polynomial(0.1, 0.5)``; at most 1 / (largest curvature of
            a minibatch of G), or 1 in map form. None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, of the step of lam to that of w and u; positive. None (default): measured.

    Examples:
        >>> import bilevax as bx
        >>> bx.SOBA(step_size=bx.Polynomial(0.1, 0.5), ratio=0.3)  # bx.SOBA() measures both
        SOBA(step_size=Polynomial(value=0.1, power=0.5, horizon=1.0), ratio=0.3)
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.3, power=0.5)

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> Point:
        """The state before the first step: u is u0, or 0; lam projected."""
        return start(problem, w0, lam, u0)

    def step(self, problem: BilevelProblem, p: Point, looks: StepLooks, k: Array) -> tuple[Point, Info]:
        """One step of all three; the loop evaluates the outer value and the gradient norm."""
        # (d_w, d_u, d_lam), all at the same point and, of train, on the same rows
        d = directions(problem, p, looks["train"], looks["val"])
        # w + rho_k d_w, u + rho_k d_u, P(lam - gamma_k d_lam)
        return moved(problem, p, d, *step_sizes(self, k, p.w, p.lam)), Info()

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost:
        """Three calls on one minibatch of train, which is read once, and one on one of val."""
        return together_cost(sources)
