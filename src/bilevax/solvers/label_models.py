"""Linear models of classes whose labels are wrong at random: classifier and noise matrix in one likelihood.

With p_c(x) = softmax(x W + b)_c the probability of the true class, and T that of a given label (:mod:`.label_noise`),

    F(theta) = - sum_i c_i log sum_c p_c(x_i) T_{c, y_i} - w sum over trusted i of c_i log p_{y_i}(x_i)
               + 1/2 sum_j alpha_j |W_j|^2 - log prior(T),        theta = (W, b, r, R)

Its gradient in the scores is c (p - q), q the posterior of the true class, which is that of EM's lower bound (Fisher's
identity). L-BFGS goes down F itself and needs fewer passes than EM, of dense rows in coordinates in which the curvature
of W is about the same in all directions. The *hypergradient* of the loss of held-out rows, E = - sum of their
log-likelihoods, is - v' d(grad F) where H v = grad E: by conjugate gradients, preconditioned by these coordinates, on
exact products with the Hessian H of F.
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import expit

from bilevax.linalg.columns import Matrix, gram, is_sparse
from bilevax.solvers.label_noise import Given, Noise, Prior, normalised, posterior
from bilevax.solvers.preconditioned import conjugate_gradients


class Strengths(NamedTuple):
    """Hyperparameters, by their logarithms.

    Attributes:
        penalty: alpha, of 1/2 |W_j|^2 beside the sum over the rows.
        trusted: w, what a trusted row counts.
        rates: b of the :class:`~bilevax.solvers.label_noise.Prior`.
        others: a of it.
        rate: of flips that it is about, by their log-odds, [C].
    """

    penalty: float
    trusted: float
    rates: float
    others: float
    rate: np.ndarray

    @property
    def prior(self) -> Prior:
        """Of the noise matrix."""
        return Prior(expit(self.rate), float(np.exp(self.rates)), float(np.exp(self.others)))

    def named(self, classes: np.ndarray) -> dict[str, float]:
        """Themselves, by name."""
        parts = {name: float(np.exp(value)) for name, value in zip(self._fields, self[:4], strict=False)}
        return parts | {f"rate of {c}": float(rate) for c, rate in zip(classes, expit(self.rate), strict=True)}

    def flat(self) -> np.ndarray:
        """As a vector, [4 + C]."""
        return np.array([*self[:4], *self.rate])

    @staticmethod
    def of(flat: np.ndarray) -> "Strengths":
        """From a vector."""
        penalty, trusted, rates, others = map(float, flat[:4])
        return Strengths(penalty, trusted, rates, others, flat[4:])


class Point(NamedTuple):
    """theta: weights [p, C], bias [C] and noise."""

    W: np.ndarray
    b: np.ndarray
    noise: Noise

    def flat(self) -> np.ndarray:
        """As a vector."""
        return np.concatenate([self.W.ravel(), self.b, self.noise.r, self.noise.R.ravel()])

    @staticmethod
    def of(flat: np.ndarray, p: int, C: int) -> "Point":
        """From a vector."""
        W, b, r, R = np.split(flat, np.cumsum([p * C, C, C]))
        return Point(W.reshape(p, C), b, Noise(r, R.reshape(C, C)))

    def log_p(self, X: Matrix) -> np.ndarray:
        """Log-probabilities of the true classes, [n, C]."""
        return normalised(_product(X, self.W) + self.b)[0]


class Coordinates(NamedTuple):
    """z, of theta = S z: W = root z_W, and the noise's parameters a multiple.

    Attributes:
        root: upper triangular [p, p]; None: the identity.
        noise: the multiple.
    """

    root: np.ndarray | None
    noise: float

    def theta(self, z: Point) -> Point:
        """S z."""
        return self._mapped(z, None if self.root is None else self.root @ z.W)

    def slope(self, gradient: Point) -> Point:
        """S' times a gradient in theta: that in z."""
        return self._mapped(gradient, None if self.root is None else self.root.T @ gradient.W)

    def z(self, theta: Point) -> Point:
        """S^-1 theta."""
        inverse = Coordinates(self.root, 1.0 / self.noise)
        return inverse._mapped(theta, None if self.root is None else solve_triangular(self.root, theta.W))

    def _mapped(self, at: Point, W: np.ndarray | None) -> Point:
        return Point(at.W if W is None else W, at.b, Noise(self.noise * at.noise.r, self.noise * at.noise.R))


def _product(X: Matrix, W: np.ndarray) -> np.ndarray:
    """X W, in Fortran's order."""
    return np.asarray(W.T @ X.T).T


def _transposed(X: Matrix, slope: np.ndarray) -> np.ndarray:
    """X' slope, of a slope in Fortran's order."""
    return np.asarray(X.T @ slope if is_sparse(X) else (slope.T @ X).T)


class LabelModel:
    """F of some rows.

    Args:
        X: features [n, p], dense or CSR.
        given: labels.
        weight: of the rows, [n].
    """

    def __init__(self, X: Matrix, given: Given, weight: np.ndarray) -> None:
        self.X, self.given, self.weight = X, given, weight
        self.p, self.C = X.shape[1], given.classes

    def loss(self, at: Point, by: Strengths | None) -> tuple[float, np.ndarray]:
        """F and its gradient; without strengths, the loss of the rows alone, E."""
        c, prior = self._row_weight(by), by.prior if by else Prior(0.5, 0.0, 0.0)
        alpha = np.exp(by.penalty) if by else 0.0
        log_p, T = at.log_p(self.X), np.exp(at.noise.log_matrix)
        q, log_m = posterior(log_p, self.given, at.noise.log_matrix)
        # F = - sum_i c_i log m_i + alpha / 2 |W|^2 - log prior(T)
        value = -float(c @ log_m) + 0.5 * alpha * float(np.sum(at.W**2)) - prior.log_density(T)
        # dF / ds_i = c_i (p_i - q_i)
        slope = (np.exp(log_p) - q) * c[:, None]
        r, R = self._noise_slope(self.given.expected(q * c[:, None]), at.noise, prior)
        return value, Point(_transposed(self.X, slope) + alpha * at.W, slope.sum(axis=0), Noise(r, R)).flat()

    def _noise_slope(self, N: np.ndarray, noise: Noise, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
        rho, U = noise.rho, noise.others
        flips = N.sum(axis=1) - np.diag(N)
        # dF / dr_c = rho_c N_c - flips_c + b (rho_c - rate_c)
        r = rho * N.sum(axis=1) - flips + prior.rates * (rho - prior.rate)
        # dF / dR_cj = flips_c U_cj - N_cj + a (U_cj - 1 / (C - 1))
        R = flips[:, None] * U - N + prior.others * (U - 1.0 / (self.C - 1))
        np.fill_diagonal(R, 0.0)
        return r, R

    def _row_weight(self, by: Strengths | None) -> np.ndarray:
        return self.weight if by is None else np.where(self.given.trusted, np.exp(by.trusted), 1.0) * self.weight

    @cached_property
    def _moments(self) -> np.ndarray | None:
        """X' diag(c) X / sum of c, of dense rows that are more than their columns."""
        if is_sparse(self.X) or self.p > len(self.weight):
            return None
        return gram(self.X, self.X, self.weight / self.weight.sum())

    def _coordinates(self, by: Strengths) -> Coordinates:
        if self._moments is None:
            return Coordinates(None, 1.0)
        # S S' = (X' X / n + 4 alpha / n)^-1: H / n is at most a quarter of what is inverted in two classes
        alpha = 4.0 * np.exp(by.penalty) / self.weight.sum()
        factor = cholesky(self._moments + alpha * np.eye(self.p), lower=True)
        # the flips of a class depend on some C-th of the rows
        return Coordinates(solve_triangular(factor, np.eye(self.p), lower=True).T, float(np.sqrt(2.0 * self.C)))

    def fit(
        self, start: Point, by: Strengths, *, steps: int = 300, tolerance: float = 1e-6, noise: bool = True
    ) -> Point:
        """The minimiser of F from a start; ``noise``: of T, too."""
        size, fixed, S = float(self.weight.sum()), (self.p + 1) * self.C, self._coordinates(by)

        def scaled(flat: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.loss(S.theta(self._point(flat)), by)
            slope = S.slope(self._point(gradient)).flat()
            slope[fixed if not noise else len(slope) :] = 0.0
            return value / size, slope / size

        options = {"maxiter": steps, "ftol": 1e-13, "gtol": tolerance}
        found = minimize(scaled, S.z(start).flat(), jac=True, method="L-BFGS-B", options=options).x
        at = S.theta(self._point(found))
        return at if noise else at._replace(noise=start.noise)

    def _point(self, flat: np.ndarray) -> Point:
        return Point.of(flat, self.p, self.C)

    def hessian(self, at: Point, by: Strengths) -> Callable[[np.ndarray], np.ndarray]:
        """d -> H d, exactly."""
        c, prior, noise = self._row_weight(by)[:, None], by.prior, at.noise
        log_p, rho, U = at.log_p(self.X), noise.rho, noise.others
        p, (q, _) = np.exp(log_p), posterior(log_p, self.given, noise.log_matrix)
        N = self.given.expected(q * c)
        flips = N.sum(axis=1) - np.diag(N)

        def product(flat: np.ndarray) -> np.ndarray:
            d = self._point(flat)
            # dlog T
            dR = d.noise.R - np.sum(U * d.noise.R, axis=1, keepdims=True)
            # dlog rho = (1 - rho) dr, dlog(1 - rho) = -rho dr and dlog U = dR - <U, dR>
            dlog_T = (1.0 - rho)[:, None] * d.noise.r[:, None] + dR
            np.fill_diagonal(dlog_T, -rho * d.noise.r)
            ds = _product(self.X, d.W) + d.b
            dlog = np.take(dlog_T, self.given.y, axis=1).T
            dlog += ds
            # dp = (diag(p) - p p') ds, and dq likewise
            dp = p * (ds - np.sum(p * ds, axis=1, keepdims=True))
            dq = q * (dlog - np.sum(q * dlog, axis=1, keepdims=True))
            slope, dN = (dp - dq) * c, self.given.expected(dq * c)
            dflips, drho = dN.sum(axis=1) - np.diag(dN), rho * (1.0 - rho) * d.noise.r
            # the slopes in r and R that F has, differentiated
            r = drho * (N.sum(axis=1) + prior.rates) + rho * dN.sum(axis=1) - dflips
            R = dflips[:, None] * U + (flips[:, None] + prior.others) * U * dR - dN
            np.fill_diagonal(R, 0.0)
            W = _transposed(self.X, slope) + np.exp(by.penalty) * d.W
            return Point(W, slope.sum(axis=0), Noise(r, R)).flat()

        return product

    def by_strengths(self, at: Point, by: Strengths, v: np.ndarray) -> np.ndarray:
        """v' d(grad F) in the strengths, [4 + C]."""
        d, prior, alpha = self._point(v), by.prior, np.exp(by.penalty)
        log_p = at.log_p(self.X)
        # of trusted rows the posterior is sure
        trusted = np.flatnonzero(self.given.trusted)
        slope = np.exp(log_p[trusted])
        slope[np.arange(len(trusted)), self.given.y[trusted]] -= 1.0
        slope *= self._row_weight(by)[trusted, None]
        off = at.noise.others - 1.0 / (self.C - 1)
        np.fill_diagonal(off, 0.0)
        return np.array(
            [
                alpha * np.sum(at.W * d.W),
                np.sum((_product(self.X[trusted], d.W) + d.b) * slope),
                prior.rates * (at.noise.rho - prior.rate) @ d.noise.r,
                prior.others * np.sum(off * d.noise.R),
                *(-prior.rates * prior.rate * (1.0 - prior.rate) * d.noise.r),
            ]
        )

    def solve(
        self, at: Point, by: Strengths, right: np.ndarray, *, steps: int = 30, tolerance: float = 1e-2
    ) -> np.ndarray:
        """v with H v = right, by conjugate gradients to a relative residual, in z."""
        S, hessian = self._coordinates(by), self.hessian(at, by)
        return conjugate_gradients(
            lambda d: (hessian(d), 0.0),
            right,
            lambda r: S.theta(S.slope(self._point(r))).flat(),
            tolerance=tolerance,
            most=steps,
        ).x
