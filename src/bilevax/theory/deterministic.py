"""How far deterministic hypergradients can be off: iterative (ITD) and approximate implicit differentiation (AID).

Bounds on |estimate - gradient| after t steps w_{j+1} = Phi(w_j) from a start at the distance D = |w_0 - w(lam)|, and k
steps on the linear system from v_0 = 0. L_Phi and L_E must hold on the ball around w(lam) of radius D. All contain

    direct = mu2 + mu1 L_Phi / (1 - q) ,    jacobians = nu2 L_E + nu1 L_E L_Phi / (1 - q) ,
    system = L_E L_Phi / (1 - q) .

Source: Grazzi, Franceschi, Pontil, Salzo (2020), arXiv:2006.16218.
"""

import math

from bilevax.core.errors import ParameterError
from bilevax.theory.constants import Constants


def itd_bound(constants: Constants, t: int, distance: float) -> float:
    """(direct D + jacobians D t/q + system) q^t, for the derivative of E(w_t(lam), lam) by reverse or forward mode.

    Examples:
        >>> from bilevax.theory import aid_fixed_point_bound, itd_bound
        >>> from bilevax.testing.closed_forms import FiniteQuadratic
        >>> p = FiniteQuadratic.random(0)
        >>> constants = p.constants(p.lam, batch_size=10)
        >>> itd_bound(constants, 20, 1.0) >= aid_fixed_point_bound(constants, 20, 20, 1.0)
        True
    """
    direct, jacobians, system = _parts(constants)
    q = constants.q
    # sum_{i < t} q^i q^{t-1-i} = t q^(t-1): each of t Jacobians is taken at an iterate, i steps on the way
    slow = t * q ** (t - 1) if t else 0.0
    # (direct D + system) q^t + jacobians D t q^(t-1)
    return (direct * distance + system) * q**t + jacobians * distance * slow


def aid_bound(constants: Constants, rho: float, sigma: float, distance: float) -> float:
    """(direct + jacobians / (1 - q)) D rho + system sigma, for any two solvers.

    Args:
        constants: of the problem.
        rho: |w_t - w(lam)| <= rho D.
        sigma: |v_k - v(w_t)| <= sigma |v(w_t)|.
        distance: D = |w_0 - w(lam)|.

    Examples:
        >>> from bilevax.theory import aid_bound
        >>> from bilevax.testing.closed_forms import FiniteQuadratic
        >>> p = FiniteQuadratic.random(0)
        >>> constants = p.constants(p.lam, batch_size=10)
        >>> aid_bound(constants, rho=0.0, sigma=0.0, distance=1.0)
        0.0
    """
    direct, jacobians, system = _parts(constants)
    # |v(w_t) - v(lam)| <= (mu1 + nu1 L_E / (1 - q)) rho D / (1 - q), and |v_k - v(w_t)| <= sigma L_E / (1 - q)
    return (direct + jacobians / (1.0 - constants.q)) * distance * rho + system * sigma


def aid_fixed_point_bound(constants: Constants, t: int, k: int, distance: float) -> float:
    """(direct D + jacobians D (1 - q^k)/(1 - q)) q^t + system q^k, for k fixed-point steps; at k = t below ITD's.

    Examples:
        >>> from bilevax.theory import aid_fixed_point_bound
        >>> from bilevax.testing.closed_forms import FiniteQuadratic
        >>> p = FiniteQuadratic.random(0)
        >>> constants = p.constants(p.lam, batch_size=10)
        >>> aid_fixed_point_bound(constants, 20, 20, 1.0) < aid_fixed_point_bound(constants, 10, 10, 1.0)
        True
    """
    direct, jacobians, system = _parts(constants)
    q = constants.q
    # sum_{i < k} q^i = (1 - q^k) / (1 - q): all of its k Jacobians are at w_t, where the error is q^t D
    return (direct + jacobians * (1.0 - q**k) / (1.0 - q)) * distance * q**t + system * q**k


def conjugate_gradient_factor(k: int, kappa: float) -> float:
    """sigma(k) = 2 sqrt(kappa) ((sqrt(kappa) - 1) / (sqrt(kappa) + 1))^k, for :func:`aid_bound`.

    Args:
        k: steps of conjugate gradients from 0.
        kappa: condition number of the symmetric I - d1Phi; L / tau for a gradient step.

    Raises:
        ParameterError: kappa is less than 1.

    Examples:
        >>> from bilevax.theory import conjugate_gradient_factor
        >>> conjugate_gradient_factor(10, 4.0) < 1e-4 < conjugate_gradient_factor(10, 100.0)
        True
    """
    if not kappa >= 1.0:
        raise ParameterError(f"kappa is largest over smallest eigenvalue and at least 1, got {kappa:g}")
    # 2 ((root - 1) / (root + 1))^k in the norm of A, which is within sqrt(kappa) of the Euclidean one
    root = math.sqrt(kappa)
    return 2.0 * root * ((root - 1.0) / (root + 1.0)) ** k


def _parts(c: Constants) -> tuple[float, float, float]:
    # (direct, jacobians, system)
    gap = 1.0 - c.q
    return c.mu2 + c.mu1 * c.L_Phi / gap, c.nu2 * c.L_E + c.nu1 * c.L_E * c.L_Phi / gap, c.L_E * c.L_Phi / gap
