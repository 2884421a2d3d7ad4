"""Exact means and second moments of stochastic hypergradients on finite sums of quadratics.

The inner rows are l_i(w, lam) = 1/2 w'A_i w - w'(b_i + B_i lam), i < n, with symmetric A_i; the map of a minibatch is
w - alpha (mean of grad_1 l_i over its b rows, drawn independently with replacement); the outer loss is
1/2 |w - target|^2 + r/2 |lam|^2. A, B without an index are means over the rows, dA_i, dB_i the deviations, and

    w* = A^-1 (mean b + B lam) ,  v* = (alpha A)^-1 (w* - target) ,  xi_i = -alpha (dA_i w* - db_i - dB_i lam) ,

so that E xi_i = 0 and a step of size eta is, in the errors e = w - w* and f = v - v*,

    e+ = (I - eta alpha A) e - eta alpha dA_B e + eta xi_B ,
    f+ = (I - eta alpha A) f + eta (w_t - w*) - eta alpha dA_B v .

Both are affine in the error and the fresh minibatch enters linearly, so first and second moments close on themselves:
iterating them on d x d matrices replaces all sampling. No bound and no approximation is involved, which makes them the
test oracle for the stochastic estimators, and the standard against which the bounds are judged.

Source: the algorithm is that of Grazzi, Pontil, Salzo (2021), arXiv:2011.07122; the recursions are this project's own
derivation.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bilevax.core.errors import ParameterError


class Moments(NamedTuple):
    """The error of a random vector: its mean, and its second moment about the truth.

    Attributes:
        mean: E[x - x*], [d].
        second: E[(x - x*)(x - x*)'], [d, d].

    Examples:
        >>> import numpy as np
        >>> from bilevax.theory import known
        >>> known(np.ones(2), np.zeros(2)).second  # E (x - truth)(x - truth)'
        array([[1., 1.],
               [1., 1.]])
    """

    mean: np.ndarray
    second: np.ndarray

    @property
    def square(self) -> float:
        """E|x - x*|^2."""
        return float(np.trace(self.second))


class LinearMoments(NamedTuple):
    """The error of v_k, and how it goes with that of the w_t at which the system was set up.

    Attributes:
        mean: E[v_k - v*], [d].
        second: E[(v_k - v*)(v_k - v*)'], [d, d].
        with_inner: E[(v_k - v*)(w_t - w*)'], [d, d].

    Examples:
        >>> from bilevax.theory import linear_moments, LinearMoments
        >>> LinearMoments._fields  # of v, made by linear_moments
        ('mean', 'second', 'with_inner')
    """

    mean: np.ndarray
    second: np.ndarray
    with_inner: np.ndarray

    @property
    def square(self) -> float:
        """E|v_k - v*|^2."""
        return float(np.trace(self.second))


class HypergradientMoments(NamedTuple):
    """The error of a stochastic hypergradient.

    Attributes:
        bias: E[estimate] - gradient, [m].
        second: E[(estimate - gradient)(estimate - gradient)'], [m, m].

    Examples:
        >>> import numpy as np
        >>> from bilevax.theory import HypergradientMoments
        >>> float(HypergradientMoments(np.zeros(2), np.eye(2)).second.trace())  # the mean square error
        2.0
    """

    bias: np.ndarray
    second: np.ndarray

    @property
    def mse(self) -> float:
        """E|estimate - gradient|^2."""
        return float(np.trace(self.second))

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the estimate, [m, m]."""
        # Cov = E[e e'] - E[e] E[e]'
        return self.second - np.outer(self.bias, self.bias)


@dataclass(frozen=True, eq=False)
class QuadraticMoments:
    """Of a finite sum of quadratics, all that the recursions read; made by :meth:`of_rows`.

    Operators on vectors and matrices are stored as matrices that act on the row-major flattening.

    Attributes:
        alpha: step of the inner map, positive.
        A: mean inner Hessian, [d, d].
        B: mean of the B_i, [d, m].
        w: w*, [d].
        v: v*, [d].
        hypergradient: r lam + alpha B'v*, [m].
        jacobian_noise: S -> E[dA S dA], [d^2, d^2].
        cross_noise: V -> E[dB'V dB], [m^2, d^2].
        noise: E[xi xi'], [d, d].
        mixed_noise: e -> E[dA e xi'], [d^2, d].

    Examples:
        >>> from bilevax.theory import QuadraticMoments
        >>> from bilevax.testing.closed_forms import FiniteQuadratic
        >>> p = FiniteQuadratic.random(0)
        >>> isinstance(p.moments(p.lam), QuadraticMoments)
        True
    """

    alpha: float
    A: np.ndarray
    B: np.ndarray
    w: np.ndarray
    v: np.ndarray
    hypergradient: np.ndarray
    jacobian_noise: np.ndarray
    cross_noise: np.ndarray
    noise: np.ndarray
    mixed_noise: np.ndarray

    @classmethod
    def of_rows(
        cls,
        rows: tuple[np.ndarray, np.ndarray, np.ndarray],
        lam: np.ndarray,
        *,
        target: np.ndarray,
        r: float,
        alpha: float,
    ) -> "QuadraticMoments":
        """The moments of given rows.

        Args:
            rows: (A_i, b_i, B_i), of shapes [n, d, d], [n, d] and [n, d, m]; every A_i symmetric, their mean definite.
            lam: outer variable, [m].
            target: of the outer loss, [d].
            r: weight of |lam|^2 / 2 in the outer loss.
            alpha: step of the inner map.

        Raises:
            ParameterError: an A_i is not symmetric, or the step is not positive.
        """
        As, bs, Bs = (np.asarray(a, np.float64) for a in rows)
        if not np.array_equal(As, As.transpose(0, 2, 1)):
            raise ParameterError("every A_i must be symmetric")
        if not alpha > 0:
            raise ParameterError(f"alpha must be positive, got {alpha}")
        A, b, B = As.mean(0), bs.mean(0), Bs.mean(0)
        # w* = A^-1 (b + B lam), v* = (alpha A)^-1 (w* - target)
        w = np.linalg.solve(A, b + B @ lam)
        v = np.linalg.solve(alpha * A, w - target)
        dA, dB = As - A, Bs - B
        # xi_i = -alpha (dA_i w* - db_i - dB_i lam), the noise of the map at w*
        xi = -alpha * (dA @ w - (bs - b) - dB @ lam)
        n, d, m = Bs.shape
        # vec(dA S dA) = (dA (x) dA) vec(S): entry (ac, bd) is dA_ab dA_cd; likewise dB' V dB
        return cls(
            alpha=float(alpha),
            A=A,
            B=B,
            w=w,
            v=v,
            hypergradient=r * np.asarray(lam) + alpha * (B.T @ v),
            jacobian_noise=(np.einsum("iab,icd->acbd", dA, dA) / n).reshape(d * d, d * d),
            cross_noise=(np.einsum("iba,idc->acbd", dB, dB) / n).reshape(m * m, d * d),
            noise=xi.T @ xi / n,
            mixed_noise=(np.einsum("iab,ic->acb", dA, xi) / n).reshape(d * d, d),
        )


def known(x: np.ndarray, truth: np.ndarray) -> Moments:
    """The moments of a start value that is not random: x against its truth, both [d].

    Examples:
        >>> import numpy as np
        >>> from bilevax.theory import known
        >>> known(np.ones(2), np.zeros(2)).mean  # less the truth
        array([1., 1.])
    """
    error = np.asarray(x, np.float64) - truth
    # of a constant: mean e, second moment e e'
    return Moments(error, np.outer(error, error))


def inner_moments(problem: QuadraticMoments, start: Moments, steps: Iterable[float], batch_size: int | None) -> Moments:
    """Moments of w_t - w* after w_{j+1} = w_j + eta_j (Phi_B(w_j) - w_j).

    With M = I - eta alpha A, e the mean and S the second moment,

        e+ = M e ,
        S+ = M S M + (eta^2 / b) (alpha^2 E[dA S dA] + E[xi xi'] - alpha E[dA e xi'] - alpha E[xi e'dA]) .

    Args:
        problem: the moments of the rows.
        start: of w_0; ``known(w0, problem.w)``, or where another run of this function ended.
        steps: eta_0, ..., eta_{t-1}, in map form.
        batch_size: b; None: every row at once, without noise.

    Examples:
        >>> import numpy as np
        >>> from bilevax.theory import inner_moments, known
        >>> from bilevax.testing.closed_forms import FiniteQuadratic
        >>> p = FiniteQuadratic.random(0)
        >>> moments = p.moments(p.lam)
        >>> start = known(0 * moments.w, moments.w)
        >>> after = inner_moments(moments, start, [1.0] * 200, None)  # every row: no noise
        >>> bool(np.trace(after.second) < 1e-3 * np.trace(start.second))
        True
    """
    e, S = start
    identity, alpha, A = np.eye(e.size), problem.alpha, problem.A
    fresh = 0.0 if batch_size is None else 1.0 / batch_size
    for eta in steps:
        M = identity - eta * alpha * A
        # E[dA e xi']
        cross = (problem.mixed_noise @ e).reshape(S.shape)
        # E[(xi - alpha dA e)(xi - alpha dA e)'], e random of second moment S
        spread = alpha**2 * _apply(problem.jacobian_noise, S) + problem.noise - alpha * (cross + cross.T)
        # e+ = M e, S+ = M S M + (eta^2 / b) spread
        e, S = M @ e, M @ S @ M + eta**2 * fresh * spread
    return Moments(e, S)


def linear_moments(
    problem: QuadraticMoments,
    inner: Moments,
    steps: Iterable[float],
    batch_size: int | None,
    v0: np.ndarray | None = None,
) -> LinearMoments:
    """Moments of v_k - v* after v_{j+1} = v_j + eta_j (d1Phi_B'v_j + w_t - target - v_j) at a random, then frozen w_t.

    With e, S the moments of w_t - w*, f the mean and P the second moment of v - v*, C = E[(v - v*)(w_t - w*)'] and
    V = E[v v'] = P + f v*' + v* f' + v* v*',

        P+ = M P M + eta (M C + C'M) + eta^2 S + (eta^2 / b) alpha^2 E[dA V dA] ,
        C+ = M C + eta S ,    f+ = M f + eta e .

    Args:
        problem: the moments of the rows.
        inner: of w_t - w*.
        steps: eta_0, ..., eta_{k-1}.
        batch_size: b; None: every row at once.
        v0: start, [d], not random; None for 0.

    Examples:
        >>> import numpy as np
        >>> from bilevax.theory import known, linear_moments
        >>> from bilevax.testing.closed_forms import FiniteQuadratic
        >>> p = FiniteQuadratic.random(0)
        >>> moments = p.moments(p.lam)
        >>> v = linear_moments(moments, known(moments.w, moments.w), [1.0] * 400, None)
        >>> bool(np.trace(v.second) < 1e-3 * (moments.v**2).sum())
        True
    """
    e, S = inner
    start = known(np.zeros_like(e) if v0 is None else v0, problem.v)
    # v_0 is no random number: E[(v_0 - v*)(w_t - w*)'] = f e'
    f, P, C = start.mean, start.second, np.outer(start.mean, e)
    identity, alpha, A = np.eye(e.size), problem.alpha, problem.A
    fresh = 0.0 if batch_size is None else 1.0 / batch_size
    for eta in steps:
        M = identity - eta * alpha * A
        # alpha^2 E[dA V dA], V = E[v v']
        spread = alpha**2 * _apply(problem.jacobian_noise, _raw_second(problem, f, P))
        mixed = M @ C
        # P+ = M P M + eta (M C + C'M) + eta^2 (S + spread / b), with the C before
        P = M @ P @ M + eta * (mixed + mixed.T) + eta**2 * (S + fresh * spread)
        # C+ = M C + eta S, f+ = M f + eta e
        C = mixed + eta * S
        f = M @ f + eta * e
    return LinearMoments(f, P, C)


def second_moment_rate(problem: QuadraticMoments, eta: float, batch_size: int | None) -> float:
    """Factor by which E|w_t - w*|^2 and E|v_k - v*|^2 are multiplied at each constant step, in the long run.

    The spectral radius of S -> M S M + (eta^2 / b) alpha^2 E[dA S dA], M = I - eta alpha A. At 1 or more the step is
    too large for the batch: the mean square error grows although the map contracts.

    Args:
        problem: the moments of the rows.
        eta: the step.
        batch_size: b; None: every row at once.

    Examples:
        >>> from bilevax.theory import second_moment_rate
        >>> from bilevax.testing.closed_forms import FiniteQuadratic
        >>> p = FiniteQuadratic.random(0)
        >>> bool(second_moment_rate(p.moments(p.lam), 0.5, 10) < 1)  # this step is stable for batches of ten
        True
    """
    M = np.eye(problem.w.size) - eta * problem.alpha * problem.A
    # vec(M S M) = (M (x) M) vec(S)
    operator = np.kron(M, M)
    if batch_size is not None:
        # + (eta^2 / b) alpha^2 E[dA (x) dA]
        operator = operator + (eta * problem.alpha) ** 2 / batch_size * problem.jacobian_noise
    # the spectral radius, by LAPACK: d^2 x d^2, for small d
    return float(np.max(np.abs(np.linalg.eigvals(operator))))


def hypergradient_moments(
    problem: QuadraticMoments, linear: Moments | LinearMoments, batch_size: int | None, cross_batches: int | None
) -> HypergradientMoments:
    """Bias and second moment of r lam + (mean of d2Phi_B' over J fresh minibatches) v_k against the gradient.

        bias = alpha B'f ,    second = alpha^2 (B'P B + E[dB'V dB] / (J b)) ,

    with f, P and V as in :func:`linear_moments`: all Jacobians are constant, so w_t enters through v_k alone.

    Args:
        problem: the moments of the rows.
        linear: of v_k - v*.
        batch_size: b; None: every row at once.
        cross_batches: J; None: every row once.

    Examples:
        >>> import numpy as np
        >>> from bilevax.theory import hypergradient_moments, known, linear_moments
        >>> from bilevax.testing.closed_forms import FiniteQuadratic
        >>> p = FiniteQuadratic.random(0)
        >>> moments = p.moments(p.lam)
        >>> solved = known(moments.w, moments.w)
        >>> v = linear_moments(moments, solved, [1.0] * 2000, None)
        >>> bool(np.linalg.norm(hypergradient_moments(moments, v, None, None).bias) < 1e-6)
        True
    """
    alpha, B = problem.alpha, problem.B
    # h - f' = alpha B'(v_k - v*) + alpha (dB of the J minibatches)'v_k, the second centred given v_k
    second = B.T @ linear.second @ B
    if batch_size is not None and cross_batches is not None:
        # alpha^2 (B'P B + E[dB'V dB] / (J b))
        V = _raw_second(problem, linear.mean, linear.second)
        second = second + _apply(problem.cross_noise, V) / (cross_batches * batch_size)
    return HypergradientMoments(alpha * (B.T @ linear.mean), alpha**2 * second)


def sid_moments(
    problem: QuadraticMoments,
    w0: np.ndarray,
    inner_steps: Iterable[float],
    linear_steps: Iterable[float],
    *,
    batch_size: int | None,
    cross_batches: int | None,
    v0: np.ndarray | None = None,
) -> HypergradientMoments:
    """Bias and second moment of SID from a given start: the three stages one after the other.

    Args:
        problem: the moments of the rows.
        w0: start of the inner solver, [d].
        inner_steps: eta_j, j < t.
        linear_steps: eta_j, j < k.
        batch_size: b; None: every row at once.
        cross_batches: J; None: every row once.
        v0: start of the linear solver, [d]; None for 0.

    Examples:
        >>> rows = np.array([[[1.0]], [[3.0]]]), np.ones((2, 1)), np.ones((2, 1, 1))
        >>> p = QuadraticMoments.of_rows(rows, np.zeros(1), target=np.zeros(1), r=0.0, alpha=0.5)
        >>> exact = sid_moments(p, np.zeros(1), [0.5] * 9, [0.5] * 9, batch_size=None, cross_batches=None)
        >>> sampled = sid_moments(p, np.zeros(1), [0.5] * 9, [0.5] * 9, batch_size=1, cross_batches=1)
        >>> bool(np.allclose(exact.bias, sampled.bias)), exact.mse < sampled.mse
        (True, True)
    """
    # w_t, then v_k at that random, frozen w_t, then the mean of J cross products
    inner = inner_moments(problem, known(w0, problem.w), inner_steps, batch_size)
    linear = linear_moments(problem, inner, linear_steps, batch_size, v0)
    return hypergradient_moments(problem, linear, batch_size, cross_batches)


def _raw_second(problem: QuadraticMoments, f: np.ndarray, P: np.ndarray) -> np.ndarray:
    """E[v v'], [d, d], from the moments of v - v*."""
    # V = P + f v*' + v* f' + v* v*'
    mixed = np.outer(f, problem.v)
    return P + mixed + mixed.T + np.outer(problem.v, problem.v)


def _apply(operator: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A linear operator [r^2, d^2] on a [d, d] matrix, as an [r, r] matrix."""
    side = math.isqrt(operator.shape[0])
    image: np.ndarray = operator @ matrix.reshape(-1)
    return image.reshape(side, side)
