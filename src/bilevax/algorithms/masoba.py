"""MA-SOBA: SOBA whose lam moves along a moving average of its directions.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the state and one minibatch each of train
and val, as looks. Out, to the loop: the next state. The directions are those of ``solvers.parts``.
"""

from typing import ClassVar, NamedTuple

from jax import Array

from bilevax.algorithms.common import WithMemory, checked_steps, step_sizes, together_cost
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import check_fields, config, positive_fraction, set_frozen
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Cost, Info
from bilevax.core.trees import PyTree, axpy, scale, zeros_like
from bilevax.solvers.parts import Point, directions, moved, start


class State(NamedTuple):
    """The point, and the average of the directions of lam so far, like lam."""

    p: Point
    average: PyTree


@config
class MASOBA(WithMemory):
    """SOBA's moves of w and u, and of lam along a moving average a_k of its directions.

        w   <- w + rho_k (-grad_1 G)
        u   <- u + rho_k (grad_1 E - H u)                                H the Hessian of the inner loss G
        a_k <- (1 - weight) a_{k-1} + weight (grad_2 E - d2(grad_1 G)^T u)
        lam <- P(lam - ratio rho_k a_k)

    As published lam moves along a_{k-1}; here along a_k, so that weight 1 is :class:`~bilevax.SOBA`, and a_{-1} = 0.
    Steps are in loss form, as in SOBA. Assumes G strongly convex and smooth losses; unlike SOBA no second derivative of
    E that is Lipschitz. With steps and weights of order K^(-1/2) the squared hypergradient falls as K^(-1/2) in the
    mean. Cost: that of SOBA.
    Source: Chen, Xiao, Balasubramanian (2023), arXiv:2306.12067.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.
        weight: of the newest direction, in (0, 1]. Default .1.

    Examples:
        >>> import bilevax as bx
        >>> bx.MASOBA(step_size=0.05, ratio=0.2, weight=0.05)
        MASOBA(step_size=Constant(value=0.05), ratio=0.2, weight=0.05)
    """

    defaults: ClassVar[Defaults] = Defaults(1.0, 0.2)

    weight: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, weight=positive_fraction)
        set_frozen(self, **checked_steps(self))

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> State:
        """The state before the first step: u is u0, or 0; lam projected."""
        return State(start(problem, w0, lam, u0), zeros_like(lam))

    def step(self, problem: BilevelProblem, state: State, looks: StepLooks, k: Array) -> tuple[State, Info]:
        """One step of all three; the loop evaluates the outer value and the gradient norm."""
        # (-grad_1 G, grad_1 E - H u, grad_2 E - d2(grad_1 G)^T u)
        d = directions(problem, state.p, looks["train"], looks["val"])
        # a_k = (1 - weight) a_{k-1} + weight d_lam
        average = axpy(self.weight, d.lam, scale(1.0 - self.weight, state.average))
        # w + rho_k d_w, u + rho_k d_u, P(lam - gamma_k a_k)
        p = moved(problem, state.p, d._replace(lam=average), *step_sizes(self, k, state.p.w, state.p.lam))
        return State(p, average), Info()

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost:
        """Three calls on one minibatch of train, which is read once, and one on one of val."""
        return together_cost(sources)
