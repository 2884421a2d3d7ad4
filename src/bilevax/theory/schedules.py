"""How many steps, how large, and how to share a budget among the stages."""

import math
from typing import NamedTuple

from bilevax.core.errors import ParameterError
from bilevax.theory.constants import Constants
from bilevax.theory.efficiency import Traces
from bilevax.theory.mean_square import HarmonicSteps


def published_steps(q: float) -> HarmonicSteps:
    """The steps of the authors' code, beta = gamma = 2 / (1 - q^2): eta_0 = 1, whatever the noise.

    For moderate batches; where the noise is large, gamma = beta (1 + sigma2) is what the theory asks for.

    Examples:
        >>> from bilevax.theory import published_steps
        >>> published_steps(0.5)
        HarmonicSteps(beta=2.6666666666666665, gamma=2.6666666666666665)
    """
    # beta = 2 / rate, rate = 1 - q^2
    return HarmonicSteps(2.0 / (1.0 - q**2), 2.0 / (1.0 - q**2))


class Counts(NamedTuple):
    """Minibatches of the three stages.

    Attributes:
        t: of the inner solver.
        k: of the linear solver.
        J: of the cross product; None: every row once.

    Examples:
        >>> from bilevax.theory import Counts
        >>> Counts(t=100, k=100, J=None)
        Counts(t=100, k=100, J=None)
    """

    t: int
    k: int
    J: int | None


def sample_complexity(constants: Constants, target: float, start: float) -> Counts:
    """t, k and J, each of order 1 / target, for which the MSE bound with the optimal decreasing steps is ``target``.

    A third of the target each for 2 c1^2 rho, 2 L_Phi^2 sigma and the cross term. It is a guarantee, and far above
    what is needed: never a plan.

    Args:
        constants: of the problem; L_E bounds every row of val's gradient at once.
        target: mean square error of the hypergradient.
        start: |w_0 - w(lam)|^2.

    Examples:
        >>> from bilevax.theory import sample_complexity
        >>> from bilevax.testing.closed_forms import FiniteQuadratic
        >>> p = FiniteQuadratic.random(0)
        >>> constants = p.constants(p.lam, batch_size=10)
        >>> few, many = (sample_complexity(constants, target, 1.0) for target in (1e-2, 1e-3))
        >>> 8 < many.t / few.t < 12  # of order 1 / target
        True
    """
    c, share = constants, target / 3.0
    # 2 c1^2 rho = 2 L_Phi^2 sigma = (sigma2' / J) E|v_k|^2 = target / 3
    rho = share / (2.0 * c.c1**2) if c.c1 else math.inf
    sigma = share / (2.0 * c.L_Phi**2) if c.L_Phi else math.inf
    t = c.inner.decreasing_steps_to(rho, start)
    k = c.linear().decreasing_steps_to(sigma, c.linear_start())
    # E|v_k|^2 <= 2 (sigma + E|v(w_t)|^2), and no more than what v_0 = 0 has
    reached = min(sigma, c.linear_start())
    return Counts(t, k, max(1, math.ceil(2.0 * c.sigma2_prime * (reached + c.linear_start()) / share)))


class Split(NamedTuple):
    """How a budget is shared, and what that is worth.

    Attributes:
        counts: t, k and J.
        mse: predicted mean square error, for solvers whose iterates are averaged.

    Examples:
        >>> from bilevax.theory import optimal_split, Traces
        >>> optimal_split(Traces(4.0, 1.0, 1.0), budget=400).counts
        Counts(t=200, k=100, J=100)
    """

    counts: Counts
    mse: float


def optimal_split(
    traces: Traces,
    budget: float,
    *,
    costs: tuple[float, float, float] = (1.0, 1.0, 1.0),
    burn_in: float = 0.0,
    exact_pass: float | None = None,
) -> Split:
    """The best t, k and J with c_t t + c_k k + c_J J = N: sqrt(inner / c_t) : sqrt(linear / c_k) : sqrt(cross / c_J).

    MSE = (sqrt(inner c_t) + sqrt(linear c_k) + sqrt(cross c_J))^2 / N, at most 3 times less than with t = k = J. The
    burn-in of either chain is taken off the budget first and added to t and k: without it k starves.

    Args:
        traces: variance per minibatch of the stages.
        budget: N, in the units of ``costs``.
        costs: of one minibatch in each stage.
        burn_in: of either chain, in minibatches; see :func:`burn_in_steps`.
        exact_pass: cost of the cross product on every row, n / b at unit cost; taken instead of J minibatches where
            that is better. None: not considered.

    Raises:
        ParameterError: the budget does not cover the burn-in.

    Examples:
        >>> from bilevax.theory import optimal_split, Traces
        >>> split = optimal_split(Traces(4.0, 1.0, 1.0), budget=400)
        >>> split.counts, split.mse  # sqrt(4) : 1 : 1
        (Counts(t=200, k=100, J=100), 0.04)
    """
    c_t, c_k, _ = costs
    # N' = N - burn-in of both chains
    left = budget - burn_in * (c_t + c_k)
    if not left > 0:
        raise ParameterError(
            f"a budget of {budget:g} does not cover a burn-in of {burn_in:g} minibatches in two chains"
        )
    # min V_t / t + V_k / k + V_J / J under c_t t + c_k k + c_J J = N: t = (N / sum_i sqrt(V_i c_i)) sqrt(V_t / c_t)
    weights = [math.sqrt(part * cost) for part, cost in zip(traces, costs, strict=True)]
    options = [(left, weights)]
    if exact_pass is not None and exact_pass < left:
        options.append((left - exact_pass, [*weights[:2], 0.0]))
    # (sum of the weights)^2 / N, the value of that minimum
    share, weights = min(options, key=lambda option: sum(option[1]) ** 2 / option[0])
    t, k, J = (share * w / (sum(weights) * cost) for w, cost in zip(weights, costs, strict=True))
    cross = None if share < left else max(1, round(J))
    return Split(Counts(max(1, round(burn_in + t)), max(1, round(burn_in + k)), cross), sum(weights) ** 2 / share)


def equal_split_mse(traces: Traces, budget: float, *, costs: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> float:
    """Predicted mean square error of t = k = J, (inner + linear + cross)(c_t + c_k + c_J) / N.

    Examples:
        >>> from bilevax.theory import equal_split_mse, Traces
        >>> equal_split_mse(Traces(4.0, 1.0, 1.0), budget=400)  # the best split has 0.04
        0.045
    """
    # t = k = J = N / (c_t + c_k + c_J)
    return sum(traces) * sum(costs) / budget


def burn_in_steps(step: float, tau: float, budget: float) -> float:
    """Burn-in of a chain in minibatches, min(1.5 / (step tau), N / 6): its start is then down to exp(-1.5).

    Args:
        step: alpha eta, the step in units of 1 / curvature.
        tau: smallest curvature of the inner loss.
        budget: N minibatches.

    Examples:
        >>> from bilevax.theory import burn_in_steps
        >>> burn_in_steps(step=0.5, tau=0.1, budget=1e4)
        30.0
    """
    # exp(-step tau n) = exp(-1.5)
    return min(1.5 / (step * tau), budget / 6.0)
