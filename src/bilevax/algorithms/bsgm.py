"""The bilevel stochastic gradient method: a projected step along an inexact hypergradient.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the state and both sources, undrawn. The
estimator draws from these and returns one hypergradient, the optimiser the update. Out, to the loop: the next state,
and the outer value, gradient norm, code and cost of the estimate.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple, TypeVar

import optax
from jax import Array

from bilevax.algorithms.optim import Optim
from bilevax.core.config import config, replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.core.estimator import Estimator
from bilevax.core.instance import Instance
from bilevax.core.promotion import usual_promotion
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Estimate, Info
from bilevax.core.trees import PyTree, norm, zeros_like
from bilevax.data import Undrawn
from bilevax.hypergradients.driver import measured_estimate, suspecting
from bilevax.solvers.parts import projected

SOLVERS = "inner", "linear"
"""The two of an estimator."""

Method = TypeVar("Method")


class BSGMState(NamedTuple):
    """What is carried from one outer step to the next.

    Attributes:
        lam: outer variable.
        optimiser: state of ``outer``.
        w: inner variable of the last estimate.
        v: of the last estimate that has one; 0 at first.
        w0: where every cold start begins; None of a warm one.
    """

    lam: PyTree
    optimiser: PyTree
    w: PyTree
    v: PyTree
    w0: PyTree


@config
class BSGM:
    """lam_{k+1} = P(lam_k + update(g_k)), g_k an estimated hypergradient, its solvers started cold by default.

    Assumes what its estimator assumes, and a smooth E. With inner steps, linear steps and cross minibatches of SID that
    grow linearly in k (:class:`~bilevax.Growing`) it is the method of optimal sample complexity; with ``warm_start``
    and few steps it is in the spirit of AmIGO. Cost: that of one estimate a step.
    Source: Grazzi, Pontil, Salzo (2023), arXiv:2202.03397.

    With ``tolerance``, deterministic solvers and one minibatch of val a step it is inexact stochastic gradient descent:
    SGD whose hypergradients are the more exact the later (ISGD; Salehi, Mukherjee, Roberts, Ehrhardt 2024,
    arXiv:2412.12049).

    Args:
        estimator: of the hypergradient, such as :class:`~bilevax.SID`.
        outer: :func:`~bilevax.optim` (a changed number compiles nothing) or any optax transformation.
        warm_start: start both solvers from where they ended at the last step; default False: from w0 and from 0.
        confirm: whether a suspicion of divergence is tested; as in :class:`~bilevax.FixedPoint`.
        tolerance: k -> ``tol`` of both solvers at outer step k, such as :class:`~bilevax.Polynomial`; None: their own.

    Raises:
        ParameterError: an estimator or optimiser that is none, or a tolerance of solvers that have none to be replaced.

    Examples:
        >>> import bilevax as bx
        >>> bx.BSGM(bx.SID(bx.LBFGS(), bx.CG()), outer=bx.optim("adam", learning_rate=0.05)).warm_start
        False
    """

    steps_per_record: ClassVar[int] = 1

    estimator: Estimator
    outer: Optim | optax.GradientTransformation
    warm_start: bool = False
    confirm: bool = True
    tolerance: Callable[[Array], Array] | None = None

    def __post_init__(self) -> None:
        if not hasattr(self.estimator, "estimate"):
            raise ParameterError(f"estimator must be one such as bx.SID(...), got {self.estimator!r}")
        if not (hasattr(self.outer, "init") and hasattr(self.outer, "update")):
            raise ParameterError(f"outer must be bx.optim('adam', 0.05) or an optax transformation, got {self.outer!r}")
        _check_tolerance(self.tolerance, self.estimator)

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a problem that lacks what the estimator needs."""
        self.estimator.check(problem)

    def suspecting(self) -> "BSGM":
        """The same, but the estimator takes a suspected divergence for proof: the loop's first, cheaper program."""
        return replace_unchecked(self, estimator=suspecting(self.estimator), confirm=False)

    def streams(self, sources: Sources) -> dict[str, Undrawn]:
        """The sources themselves: an estimator draws from them, with streams of its own for each stage."""
        train, val = sources
        return {"train": Undrawn(train), "val": Undrawn(val)}

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources) -> BSGMState:
        """The state before the first step; lam is projected."""
        lam = projected(problem, lam)
        return BSGMState(lam, self.outer.init(lam), w0, zeros_like(w0), None if self.warm_start else w0)

    def step(self, problem: BilevelProblem, state: BSGMState, looks: StepLooks, k: Array) -> tuple[BSGMState, Info]:
        """Outer step k: estimate, update, projection."""
        est = self._estimate(problem, state, looks, k)
        # lam <- P(lam + update), update = -step g for SGD; optax relies on JAX's usual dtype promotion
        with usual_promotion():
            updates, optimiser = self.outer.update(est.value, state.optimiser, state.lam)
            lam = optax.apply_updates(state.lam, updates)
        # carried for a warm start, also where the estimator has no v
        v = state.v if est.v is None else est.v
        new = BSGMState(projected(problem, lam), optimiser, est.w, v, state.w0)
        return new, Info(est.outer_value, norm(est.value), outcome=(est.code, est.failure), cost=est.cost)

    def _estimate(self, problem: BilevelProblem, state: BSGMState, looks: StepLooks, k: Array) -> Estimate:
        instance = Instance(problem, state.lam, looks["train"].source, looks["val"].source)
        # cold: every estimate from w0 and v = 0
        start, v0 = (state.w, state.v) if self.warm_start else (state.w0, None)
        estimator = self.estimator if self.tolerance is None else with_tolerance(self.estimator, self.tolerance(k))
        return measured_estimate(instance, estimator, start, key=looks.key, outer_step=k, v0=v0, explain=self.confirm)

    def solution(self, state: BSGMState) -> tuple[PyTree, PyTree]:
        """The inner and the outer variable of a state."""
        return state.w, state.lam

    def outer_step_size(self, k: Array) -> None:
        """None: the optimiser has its own step, and ``info`` the gradient norm."""

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> None:
        """None: every step reports the cost of its estimate in ``info``."""


def with_tolerance(estimator: Method, tol: Array) -> Method:
    """The estimator with this tolerance in both of its solvers."""
    # of both solvers, as their errors add up in the hypergradient
    return replace_unchecked(estimator, **{x: replace_unchecked(getattr(estimator, x), tol=tol) for x in SOLVERS})


def _check_tolerance(tolerance: object, estimator: Estimator) -> None:
    solvers = [getattr(estimator, name, None) for name in SOLVERS]
    served = all(hasattr(x, "tol") and not getattr(x, "stochastic", True) for x in solvers)
    if tolerance is not None and not (callable(tolerance) and served):
        raise ParameterError(
            "tolerance is a schedule such as bx.Polynomial(0.1, 1.0), for deterministic solvers of an estimator such as"
            f" bx.SID(bx.LBFGS(), bx.CG()); got {tolerance!r} for {estimator!r}"
        )
