"""The constants that all bounds read: those of the founding paper, of one problem at one lam."""

from bilevax.core.config import check_real, config, set_frozen
from bilevax.core.errors import ParameterError
from bilevax.core.trees import is_concrete
from bilevax.theory.mean_square import MeanSquare

POSITIVE = ("L", "tau", "alpha")


@config
class Constants:
    """What is known of the inner map Phi and the outer loss E at one lam, in map form.

    ``hat`` marks what one minibatch of b rows gives, V[X] is E|X - E X|^2, norms are Euclidean and spectral; [w], [lam]
    and [E] are the units of w, lam and the outer loss. The bounds hold if the constants do wherever the iterates go,
    so constants that are local (measured at a point, or valid on a ball) make local bounds. Names are those of the
    founding paper, with sigma for its noise constants.

    Source: Grazzi, Pontil, Salzo (2021), arXiv:2011.07122; sigma1_E and sigma2_E: Grazzi, Pontil, Salzo (2023),
    arXiv:2202.03397.

    Args:
        q: contraction constant, |d1Phi| <= q, in [0, 1[.
        L_Phi: bound on |d2Phi|, [w / lam].
        L_E: bound on |grad_1 E|, [E / w].
        mu1: Lipschitz constant of grad_1 E in w, [E / w^2].
        mu2: Lipschitz constant of grad_2 E in w, [E / (lam w)].
        nu1: Lipschitz constant of d1Phi in w, [1 / w].
        nu2: Lipschitz constant of d2Phi in w, [1 / lam].
        sigma1: V[hatPhi(w)] <= sigma1 + sigma2 |Phi(w) - w|^2, [w^2]. This and the other noise constants are 0 by
            default: every row at each step.
        sigma2: see sigma1; a pure number.
        sigma1_prime: E|(hat d1Phi - d1Phi)^T x|^2 <= sigma1_prime |x|^2; a pure number.
        sigma2_prime: E|(hat d2Phi - d2Phi)^T x|^2 <= sigma2_prime |x|^2, [w^2 / lam^2]. 0 where lam enters nothing but
            a deterministic penalty.
        sigma1_E: V[hat grad_1 E] <= sigma1_E, [E^2 / w^2], of one minibatch of val.
        sigma2_E: V[hat grad_2 E] <= sigma2_E, [E^2 / lam^2], of one minibatch of val.
        L: largest curvature of the inner loss, where there is one.
        tau: smallest curvature of the inner loss.
        alpha: step of the inner map, in units of 1 / L.
        standard_errors: {name of a field: standard error}, where the constants are estimates.

    Raises:
        ParameterError: q lies outside [0, 1[, another constant is negative, or a curvature or the step is not positive.

    Examples:
        >>> c = Constants(q=0.5, L_Phi=1.0, L_E=2.0, mu1=1.0, mu2=0.0, nu1=0.0, nu2=0.0, sigma1=0.1, sigma2=1.0)
        >>> c.c1, c.inner.limit
        (2.0, 0.5)
    """

    q: float
    L_Phi: float
    L_E: float
    mu1: float
    mu2: float
    nu1: float
    nu2: float
    sigma1: float = 0.0
    sigma2: float = 0.0
    sigma1_prime: float = 0.0
    sigma2_prime: float = 0.0
    sigma1_E: float = 0.0
    sigma2_E: float = 0.0
    L: float | None = None
    tau: float | None = None
    alpha: float | None = None
    standard_errors: dict[str, float] | None = None

    def __post_init__(self) -> None:
        # Zero is allowed of all but curvatures and the step: a quadratic has nu1 = nu2 = 0, full batches no noise.
        for name, value in vars(self).items():
            if name != "standard_errors" and value is not None:
                set_frozen(self, **{name: check_real(name, value, low=0.0, open_low=name in POSITIVE)})
        if is_concrete(self.q) and self.q >= 1.0:
            raise ParameterError(
                f"q must lie in [0, 1[, got {self.q:g}: the map does not contract and no bound holds; try a smaller"
                " step of the inner map or a larger penalty"
            )
        unknown = set(self.standard_errors or {}) - vars(self).keys()
        if unknown:
            raise ParameterError(f"standard_errors names no constant: {', '.join(sorted(unknown))}")

    @property
    def kappa(self) -> float:
        """Condition number of the inner problem, L / tau.

        Raises:
            ParameterError: L or tau is not known.
        """
        if self.L is None or self.tau is None:
            raise ParameterError("kappa is L / tau, and these constants do not have both")
        return self.L / self.tau

    @property
    def c1(self) -> float:
        """Lipschitz constant in w of the hypergradient, mu2 + (mu1 L_Phi + nu2 L_E)/(1-q) + nu1 L_E L_Phi/(1-q)^2."""
        # h(w) = grad_2 E + d2Phi^T v(w), |v| <= L_E / (1 - q), |v(w) - v(w')| <= (mu1 / gap + nu1 L_E / gap^2) |w - w'|
        gap = 1.0 - self.q
        first_order = self.mu1 * self.L_Phi + self.nu2 * self.L_E
        return self.mu2 + first_order / gap + self.nu1 * self.L_E * self.L_Phi / gap**2

    @property
    def inner(self) -> MeanSquare:
        """How fast w_t approaches w(lam)."""
        # T = Phi(., lam)
        return MeanSquare.of_contraction(q=self.q, sigma1=self.sigma1, sigma2=self.sigma2)

    def linear(self, outer_batches: int | None = None) -> MeanSquare:
        """How fast v_k approaches v(w_t) = (I - d1Phi^T)^-1 grad_1 E(w_t).

        V[hat d1Phi^T v] <= sigma1_prime |v|^2 <= 2 sigma1_prime (|v(w_t)|^2 + |Psi(v) - v|^2 / (1-q)^2), Psi(v) =
        d1Phi^T v + grad_1 E, so that noise = 2 sigma1_prime E|grad_1 E|^2 / (1-q)^2.

        Args:
            outer_batches: J1, minibatches of val of which grad_1 E is the mean; None: every row.
        """
        # v = v(w_t) + (v - v(w_t)), |v - v(w_t)| <= |Psi(v) - v| / (1 - q): sigma2 = 2 sigma1' / (1 - q)^2
        spread = 2.0 * self.sigma1_prime / (1.0 - self.q) ** 2
        return MeanSquare.of_contraction(q=self.q, sigma1=spread * self.outer_square(outer_batches), sigma2=spread)

    def linear_start(self, outer_batches: int | None = None) -> float:
        """Bound on E|v(w_t)|^2, and so on the square error of v_0 = 0: E|grad_1 E|^2 / (1 - q)^2."""
        # |(I - d1Phi^T)^-1| <= 1 / (1 - q)
        return self.outer_square(outer_batches) / (1.0 - self.q) ** 2

    def outer_square(self, outer_batches: int | None = None) -> float:
        """Bound on E|mean of J1 minibatches' grad_1 E|^2, which is L_E^2 + sigma1_E / J1."""
        # |E g|^2 + V[g] / J1
        return self.L_E**2 + (0.0 if outer_batches is None else self.sigma1_E / outer_batches)
