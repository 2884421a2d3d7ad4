"""Quadratic functions with an l1 penalty: proximal coordinate descent, and the linear system on the support.

On the host, in float64: what a table needs is solved before a program would be compiled.
"""

import numpy as np
from scipy.linalg import lapack

SWEEPS = 1000
"""Sweeps at most; each is followed by a step to the minimum on the support, so that few are needed."""

SLACK = 1e-10
"""Part of l1 by which a gradient may exceed it off the support."""

SIZE = 150
"""Of the support, for which the system is solved after one sweep more."""

SINGULAR = 1e-7
"""Part of its diagonal that is added to a singular matrix."""


def minimise_l1_quadratic(H: np.ndarray, q: np.ndarray, l1: np.ndarray, w: np.ndarray) -> np.ndarray:
    """argmin_w 1/2 w'Hw - q'w + sum_j l1_j |w_j|.

    In turn: the minimum on the support with its signs, by one linear system; and a sweep of coordinate descent over the
    support and what violates optimality off it. Both only descend, and the first is exact once the signs are right, so
    that it ends after finitely many turns. Cost of a turn: s^3 / 3 for the support's size s, and a product with H.

    Source: Lee, Battle, Raina, Ng (2006), for the line search across changes of sign; Friedman, Hastie, Tibshirani
    (2010), for coordinate descent.

    Args:
        H: symmetric and positive semidefinite, [d, d].
        q: [d].
        l1: penalties, at least 0; a coordinate with 0 is never taken off the support; [d].
        w: start, [d].
    """
    w, free = w.copy(), l1 == 0.0
    slack = SLACK * l1 + 1e-14 * np.max(np.abs(q), initial=0.0)
    for _ in range(SWEEPS):
        minimal = _to_minimum_on_support(H, q, l1, w)
        # H is symmetric: its rows are contiguous
        on = np.flatnonzero(w)
        h = q - w[on] @ H[on]
        violating = (np.abs(h) > l1 + slack) & (w == 0.0) & ~free
        if minimal and not violating.any():
            break
        # as many sweeps as take about as long as the system does
        for _ in range(1 + np.count_nonzero(w) // SIZE):
            _sweep(H, l1, w, h, np.flatnonzero((w != 0.0) | free | (np.abs(h) > l1)))
    return w


def solve_on_support(H: np.ndarray, g: np.ndarray) -> np.ndarray:
    """v = H^-1 g by Cholesky; of a singular H, of H plus a little of its diagonal."""
    if not g.size:
        return g
    _, v, info = lapack.dposv(H, g, lower=1)
    # of a nearly singular H rounding leaves v'Hv = g'v wrong
    if info != 0 or abs(v @ H @ v - g @ v) > 1e-6 * abs(g @ v):
        # (H + delta diag(H)) v = g
        _, v, _ = lapack.dposv(H + np.diag(SINGULAR * np.diag(H) + np.finfo(float).tiny), g, lower=1)
    out: np.ndarray = v
    return out


def _sweep(H: np.ndarray, l1: np.ndarray, w: np.ndarray, h: np.ndarray, coordinates: np.ndarray) -> None:
    """Each coordinate to its minimum in turn, in place; h = q - H w is kept up to date."""
    at = (a[coordinates].tolist() for a in (H.diagonal(), l1, w))
    for j, curvature, threshold, old in zip(coordinates.tolist(), *at, strict=True):
        # w_j <- S(h_j + H_jj w_j, l1_j) / H_jj, S the soft threshold
        z = h.item(j) + curvature * old
        if -threshold <= z <= threshold or curvature <= 0.0:
            new = 0.0
        else:
            new = (z - threshold if z > 0.0 else z + threshold) / curvature
        if new != old:
            w[j] = new
            h -= (new - old) * H[j]


def _to_minimum_on_support(H: np.ndarray, q: np.ndarray, l1: np.ndarray, w: np.ndarray) -> bool:
    """Move w, in place, towards the minimum for its support and signs; False where a sign changes on the way."""
    S = np.flatnonzero((w != 0.0) | (l1 == 0.0))
    if not S.size:
        return True
    at, l1, A = w[S], l1[S], H[S[:, None], S]
    signs = np.sign(at) * (l1 > 0.0)
    # A (at + step) = q_S - l1 signs
    slope = A @ at - q[S] + l1 * signs
    step = -solve_on_support(A, slope)
    changes = np.flatnonzero(signs * (at + step) < 0.0)
    if not changes.size:
        w[S] = at + step
        left = np.abs(A @ w[S] - q[S] + l1 * signs)
        return bool(np.max(left) <= 1e-8 * np.max(np.abs(q[S]) + l1))
    # along at + t step the derivative is slope'step + t step'A step, and rises by 2 l1 |step| where a sign changes
    t = -at[changes] / step[changes]
    changes = changes[np.argsort(t)]
    t, rises = np.sort(t), 2.0 * l1[changes] * np.abs(step[changes])
    start, curvature, risen = slope @ step, step @ A @ step, np.cumsum(rises)
    past = np.flatnonzero(start + t * curvature + risen >= 0.0)
    i = int(past[0]) if past.size else len(t)
    # the derivative vanishes between two changes, or jumps over 0 at change i
    size = -(start + (risen[i - 1] if i else 0.0)) / curvature
    at_change = i < len(t) and size >= t[i]
    w[S] = at + (t[i] if at_change else size) * step
    if at_change:
        w[S[changes[i]]] = 0.0
    return False
