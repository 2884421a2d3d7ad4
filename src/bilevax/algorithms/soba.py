"""SOBA: w, the multiplier u and lam move together, each along one stochastic direction.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the point (w, u, lam) and one minibatch each
of train and val, as looks. Out, to the loop: the next point. The directions are those of ``solvers.parts``.
"""

from typing import Any, ClassVar

from jax import Array

from bilevax.core.config import check_real, config, set_frozen
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import BilevelProblem, RowSource, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import PyTree, zeros_like
from bilevax.problems.gradient_step import GradientStep
from bilevax.solvers.parts import Point, directions, moved, projected
from bilevax.solvers.schedules import schedule


@config
class SOBA:
    """Three moves a step, along directions of one inner and one outer minibatch at (w, u, lam) before it.

        w   <- w + rho_k (-grad_1 G)
        u   <- u + rho_k (grad_1 E - H u)                                H the Hessian of the inner loss G
        lam <- P(lam - ratio rho_k (grad_2 E - d2(grad_1 G)^T u))

    Steps are in loss form, as published: the step of :class:`~bilevax.GradientStep` plays no part, and none is
    measured. Where the inner map is no gradient step they are in map form: w moves along Phi - w, u along
    grad_1 E + d1Phi^T u - u, and lam against grad_2 E + d2Phi^T u.

    Assumes G strongly convex (or Phi a contraction) and smooth losses. With steps of order (k + 1)^(-1/2) the squared
    hypergradient falls as log(K) K^(-1/2) in the mean; constant steps lead to a floor. Cost: one gradient, one
    Hessian-vector product and one cross product, on the same rows of train, and one outer gradient.
    Source: Dagreou, Ablin, Vaiter, Moreau (2022), arXiv:2201.13409.

    Args:
        step_size: rho_k, a number or a schedule such as ``bx.Polynomial(0.1, 0.5)``; at most 1 / (largest curvature of
            a minibatch of G), or 1 in map form.
        ratio: gamma_k / rho_k, of the step of lam to that of w and u; positive. Default .1.
    """

    steps_per_record: ClassVar[int] = 256

    step_size: Any
    ratio: float = 0.1

    def __post_init__(self) -> None:
        ratio = check_real("ratio", self.ratio, low=0.0, open_low=True)
        set_frozen(self, step_size=schedule(self.step_size), ratio=ratio)

    def check(self, problem: BilevelProblem) -> None:
        """Refuse damping without a given inner step s: in loss form it adds delta / s to H."""
        step = problem.inner_map
        if problem.damping is not None and isinstance(step, GradientStep) and step.step_size is None:
            raise ParameterError("damping is in units of the inner step, and SOBA measures none: give GradientStep one")

    def streams(self, sources: tuple[RowSource, RowSource]) -> dict[str, RowSource]:
        """One minibatch of train and one of val a step."""
        train, val = sources
        return {"train": train, "val": val}

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: tuple[RowSource, RowSource]) -> Point:
        """The state before the first step: u is 0, lam projected."""
        return Point(w0, zeros_like(w0), projected(problem, lam))

    def step(self, problem: BilevelProblem, p: Point, looks: StepLooks, k: Array) -> tuple[Point, Info]:
        """One step of all three; the loop evaluates the outer value and the gradient norm."""
        # (d_w, d_u, d_lam), all at the same point and, of train, on the same rows
        d = directions(problem, p, looks["train"], looks["val"])
        return moved(problem, p, d, self.step_size(k), self.outer_step_size(k)), Info()

    def outer_step_size(self, k: Array) -> Array:
        """gamma_k, the step of lam."""
        # gamma_k = ratio rho_k
        step: Array = self.ratio * self.step_size(k)
        return step

    def solution(self, p: Point) -> tuple[PyTree, PyTree]:
        """The inner and the outer variable of a state."""
        return p.w, p.lam

    def step_cost(self, problem: BilevelProblem, sources: tuple[RowSource, RowSource]) -> Cost:
        """Three calls on one minibatch of train, which is read once, and one on one of val."""
        train, val = (source.rows_per_batch for source in sources)
        # grad_1 G, H u and the cross product on the same rows: read for the first alone
        rereading = Count(1, train, reads=0)
        return Cost(Count(1, train), rereading, rereading, Count(1, val))
