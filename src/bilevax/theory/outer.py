"""The outer problem: how smooth f(lam) = E(w(lam), lam) is, and what projected inexact gradients reach.

Source: Grazzi, Pontil, Salzo (2023), arXiv:2202.03397; the constants are this project's own derivation.
"""

from bilevax.core.errors import ParameterError
from bilevax.theory.constants import Constants


def smoothness(
    constants: Constants, *, mu1_lam: float = 0.0, mu2_lam: float = 0.0, nu1_lam: float = 0.0, nu2_lam: float = 0.0
) -> float:
    """L_f, a Lipschitz constant of grad f.

    With L_w = L_Phi / (1 - q), that of w(lam),

        L_f = mu2_lam + mu2 L_w + L_w (mu1_lam + mu1 L_w)
              + L_E ((nu2_lam + nu2 L_w) / (1 - q) + L_Phi (nu1_lam + nu1 L_w) / (1 - q)^2) .

    Args:
        constants: valid at every lam in Lambda.
        mu1_lam: Lipschitz constant in lam of grad_1 E.
        mu2_lam: in lam, of grad_2 E.
        nu1_lam: in lam, of d1Phi.
        nu2_lam: in lam, of d2Phi.

    Examples:
        >>> from bilevax.theory import smoothness
        >>> from bilevax.testing.closed_forms import FiniteQuadratic
        >>> p = FiniteQuadratic.random(0)
        >>> constants = p.constants(p.lam, batch_size=10)
        >>> smoothness(constants) > 0
        True
    """
    c, gap = constants, 1.0 - constants.q
    # |w(lam) - w(lam')| <= L_w |lam - lam'|: both arguments of a constant in (w, lam) move
    L_w = c.L_Phi / gap
    # |v| <= L_E / gap, v = (I - d1Phi^T)^-1 grad_1 E: the Jacobians enter as nu2 |v| and L_Phi nu1 |v| / gap
    jacobians = (nu2_lam + c.nu2 * L_w) / gap + c.L_Phi * (nu1_lam + c.nu1 * L_w) / gap**2
    # grad_2 E, w'(lam)^T grad_1 E with w' = (I - d1Phi)^-1 d2Phi, and w' itself
    return mu2_lam + c.mu2 * L_w + L_w * (mu1_lam + c.mu1 * L_w) + c.L_E * jacobians


def stationarity_bound(gap: float, *, L_f: float, step: float, steps: int, mse: float) -> float:
    """Mean over s < S of E|G(lam_s)|^2 <= 4 gap / (step S) + 6 mse, for lam_{s+1} = P(lam_s - step h_s).

    G(lam) = (lam - P(lam - step grad f(lam))) / step, the gradient of f where nothing is projected.

    Proof. With G_s = (lam_s - lam_{s+1}) / step and d = |h_s - grad f(lam_s)|, the projection gives <h_s, G_s> >=
    |G_s|^2, so f falls by at least step (|G_s|^2 - d |G_s|) - L_f step^2 |G_s|^2 / 2 >= step (|G_s|^2 / 2 - d^2); and
    |G(lam_s)|^2 <= 2 |G_s|^2 + 2 d^2.

    Args:
        gap: f(lam_0) - inf f.
        L_f: Lipschitz constant of grad f.
        step: of the outer variable, at most 1 / (2 L_f).
        steps: S.
        mse: mean over s of E|h_s - grad f(lam_s)|^2.

    Raises:
        ParameterError: the step is longer than 1 / (2 L_f).

    Examples:
        >>> from bilevax.theory import stationarity_bound
        >>> stationarity_bound(1.0, L_f=2.0, step=0.25, steps=1600, mse=0.0)
        0.01
    """
    if not 0.0 < step <= 0.5 / L_f:
        raise ParameterError(f"the outer step must lie in ]0, 1/(2 L_f) = {0.5 / L_f:g}], got {step:g}")
    # sum over s: step sum (|G_s|^2 / 2 - d_s^2) <= gap, and |G|^2 <= 2 |G_s|^2 + 2 d_s^2
    return 4.0 * gap / (step * steps) + 6.0 * mse
