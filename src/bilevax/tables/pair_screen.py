"""Which pairs of columns stand out of what an additive model leaves.

With r the negative slopes of the rows' losses at the model and W their curvatures, a pair's effect Z b, b ~ N(0, tau),
makes u = Z' r a draw of N(0, C + tau C^2), C = Z' W Z. In the basis of the eigenvectors of C, of eigenvalues c_k, it
adds to the log marginal likelihood, to second order,

    gain(tau) = 1/2 sum_k (u_k^2 / c_k * tau c_k / (1 + tau c_k) - log(1 + tau c_k))

whose slope at 0 is the score statistic of tau, 1/2 (|u|^2 - tr C). The maximum is the logarithm of the restricted
likelihood ratio: without an effect, twice it is 0 in half of the cases or more, and else chi-squared of one degree of
freedom (Crainiceanu, Ruppert 2004, J. R. Stat. Soc. B 66:1). Z is pure in the inner product of W here, since the model
has fitted the functions of one column.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.special import chdtri

from bilevax.tables.effects import Effect, Part
from bilevax.tables.pairs import PURE, Margin, Pair, Purifier, margin, products, pure_basis

GROUPS = 12
"""Groups of a column where pairs are screened, at most."""

FUNCTIONS = 5
"""Functions of a column there, at most."""

FINE = 20, 32
"""Groups of a column of a pair that is kept: half the root of the number of rows, but within these."""

LEVEL = 0.05
"""Pairs that a screen keeps on average where none has an effect, at most."""

TESTED = 1000
"""Pairs that are screened: the most promising ones, where there are more."""

MOST = 30
"""Pairs of a model, at most."""

LEAST = 0.2
"""Least prior variance of the weight of a function that is kept, over the variance with which the rows tell it."""


class _Found(NamedTuple):
    """A pair's gain at its best, its tau there, and whether its effects are rough."""

    gain: float
    tau: float
    rough: bool
    columns: tuple[int, int]


def screened(
    effects: Sequence[Effect],
    codes: Sequence[np.ndarray],
    slope: np.ndarray,
    curvature: np.ndarray,
    weight: np.ndarray,
    *,
    budget: int,
    phi: float = 1.0,
    known: Collection[tuple[int, int]] = (),
    most: int = MOST,
    level: float = LEVEL,
) -> list[Pair]:
    """The pairs that stand out, the strongest first, each with the functions of which the rows can tell something.

    Args:
        effects: of the table's columns, p of them.
        codes: bins of the training rows in each, [n].
        slope: of the rows' losses in the S scores at the model, [n, S].
        curvature: likewise, [n, S, S].
        weight: of the rows, [n].
        budget: functions of all pairs, at most.
        phi: dispersion.
        known: numbers of the columns of pairs that the model has, (a, b) with a < b.
        most: pairs, at most.
        level: pairs that are kept on average if none has an effect, at most.

    Cost: 2 S histograms of n rows and S eigenproblems of 2 x 25 functions a pair, of p (p - 1) / 2 or of TESTED.
    """
    r, w = rotated(slope, curvature)
    # a change f of the scores gains sum r f - w f^2 / 2 of log-likelihood, r = - slope / phi, w = curvature / phi
    r, w = -r * (weight / phi)[:, None], w * (weight / phi)[:, None]
    coarse = _Columns(codes, [margin(effect, GROUPS, FUNCTIONS) for effect in effects])
    columns = [pair for pair in combinations(range(len(effects)), 2) if pair not in known]
    # Of twice as many variables, smooth and rough, that are 0 in half of the cases, and else half of a chi-squared one.
    least = 0.5 * float(chdtri(1.0, min(1.0, level / max(len(columns), 1))))
    found = [_best(coarse, pair, r, w) for pair in promising(coarse, r, w, columns)]
    kept = sorted((f for f in found if f.gain > least), key=lambda f: -f.gain)[:most]
    # Once more with all their groups and functions.
    G = int(np.clip(np.sqrt(len(weight)) / 2.0, *FINE))
    used = {j for f in kept for j in f.columns}
    fine = _Columns(codes, [margin(effect, G if j in used else 1, G) for j, effect in enumerate(effects)])
    kept = sorted((_best(fine, f.columns, r, w) for f in kept), key=lambda f: -f.gain)
    kept = [f for f in kept if f.gain > 0.0]
    made = [_pair(effects, fine, weight, f, phi) for f in kept]
    told = [f.tau * float(w.sum()) / w.shape[1] * _squares(pair) for f, pair in zip(kept, made, strict=True)]
    strongest = np.sort(np.concatenate([np.zeros(0), *told]))[::-1]
    floor = max(LEAST, strongest[budget] if len(strongest) > budget else 0.0)
    cut = [_first(pair, int(np.sum(t > floor))) for pair, t in zip(made, told, strict=True)]
    return [pair for pair in cut if pair.basis.shape[1]]


def rotated(slope: np.ndarray, curvature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and curvatures in scores that are uncorrelated on average, [n, S] each."""
    # Q' (mean curvature) Q is diagonal
    Q = np.linalg.eigh(curvature.mean(axis=0))[1]
    return slope @ Q, np.einsum("ts,ntu,us->ns", Q, curvature, Q, optimize=True)


def gain(u: np.ndarray, C: np.ndarray) -> tuple[float, float]:
    """The largest gain, and its tau, on a grid whose steps are a fifth of log tau; u [S, k], C [S, k, k]."""
    c, V = np.linalg.eigh(C)
    there = c > 1e-9 * np.max(c, initial=0.0)
    if not np.any(there):
        return 0.0, 0.0
    # in the axes of C = V c V': gain = 1/2 sum_i (u_i^2 / c_i) tau c_i / (1 + tau c_i) - log(1 + tau c_i)
    ratio = np.einsum("ski,sk->si", V, u)[there] ** 2 / c[there]
    c = c[there]
    tau = np.exp(np.arange(np.log(1e-3 / np.max(c)), np.log(1e3 / np.median(c)), 0.2))[:, None]
    gains = 0.5 * np.sum(ratio * (tau * c / (1.0 + tau * c)) - np.log1p(tau * c), axis=1)
    best = int(np.argmax(gains))
    return float(gains[best]), float(tau[best, 0])


class _Columns:
    """Columns and the groups of the rows in each."""

    def __init__(self, codes: Sequence[np.ndarray], margins: Sequence[Margin]) -> None:
        self.margins = margins
        self.groups = [m.group[c] for m, c in zip(margins, codes, strict=True)]

    def shape(self, pair: tuple[int, int]) -> tuple[int, int]:
        """Groups of the two columns."""
        a, b = (len(self.margins[j].weight) for j in pair)
        return a, b

    def table(self, pair: tuple[int, int], x: np.ndarray) -> np.ndarray:
        """Sums of x [n] in the joint bins of a pair."""
        a, b = self.shape(pair)
        code = self.groups[pair[0]] * np.uint16(b) + self.groups[pair[1]]
        # bin (g, h) of the pair is number g b + h
        return np.bincount(code, x, a * b).reshape(a, b)


def _best(columns: _Columns, pair: tuple[int, int], r: np.ndarray, w: np.ndarray) -> _Found:
    """The gain of a pair, by smooth or by rough effects."""
    a, b = (columns.margins[j] for j in pair)
    kinds = [False] if a.rough is None and b.rough is None else [False, True]
    F = [products(a, b, rough=rough) for rough in kinds]
    sums = [[columns.table(pair, x).ravel() for x in z.T] for z in (r, w)]
    pure = [Purifier(W.reshape(columns.shape(pair)))(np.concatenate(F, axis=1)) for W in sums[1]]
    out, start = _Found(0.0, 0.0, False, pair), 0
    for rough, Z in zip(kinds, F, strict=True):
        own = slice(start, start + Z.shape[1])
        start = own.stop
        u = np.array([P[:, own].T @ R for P, R in zip(pure, sums[0], strict=True)])
        C = np.array([(P[:, own].T * W) @ P[:, own] for P, W in zip(pure, sums[1], strict=True)])
        # of a mean square of 1 over all rows and scores
        mass, trace = float(np.sum(sums[1])), float(np.trace(C, axis1=1, axis2=2).sum())
        if trace > PURE * sum(float(W @ np.sum(Z**2, axis=1)) for W in sums[1]):
            found = gain(u * np.sqrt(mass / trace), C * (mass / trace))
            out = max(out, _Found(*found, rough, pair))
    return out


def promising(columns: _Columns, r: np.ndarray, w: np.ndarray, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """TESTED of the pairs, by the products of their columns' first two functions: sum of (sum r g h)^2 / sum w g^2 h^2.

    Cost: 2 S n (2 p)^2 multiplications, where there are more.
    """
    if len(pairs) <= TESTED:
        return pairs
    G = [m.smooth[:, :2][g] for m, g in zip(columns.margins, columns.groups, strict=True)]
    owner = np.repeat(np.arange(len(G)), [g.shape[1] for g in G])
    X = np.concatenate(G, axis=1)
    ratio = np.zeros((len(owner), len(owner)))
    for slope, curvature in zip(r.T, w.T, strict=True):
        # sum w g^2 h^2 and (sum r g h)^2 of all pairs of functions at once
        variance = (X**2 * curvature[:, None]).T @ X**2
        ratio += ((X * slope[:, None]).T @ X) ** 2 / np.maximum(variance, np.finfo(float).tiny)
    one = (np.arange(len(G))[:, None] == owner).astype(float)
    # mean over the pairs of functions that two columns have
    statistic = one @ ratio @ one.T / np.maximum(one.sum(axis=1)[:, None] * one.sum(axis=1), 1.0)
    order = sorted(pairs, key=lambda pair: -statistic[pair])
    return sorted(order[:TESTED])


def _pair(effects: Sequence[Effect], columns: _Columns, weight: np.ndarray, found: _Found, phi: float) -> Pair:
    """A pair with all its functions."""
    i, j = found.columns
    a, b, N = columns.margins[i], columns.margins[j], columns.table(found.columns, weight)
    Z = pure_basis(a, b, N, rough=found.rough)
    # prior variance tau = phi / lam
    start = float(np.log(phi / found.tau))
    return Pair((effects[i].name, effects[j].name), (i, j), (a.group, b.group), Z, _part(Z), N, found.gain, start)


def _squares(pair: Pair) -> np.ndarray:
    """Mean squares of the functions on the training rows; they fall."""
    w = pair.weight.ravel() / pair.weight.sum()
    out: np.ndarray = w @ pair.basis**2
    return out


def _first(pair: Pair, k: int) -> Pair:
    """A pair with its first k functions."""
    Z = pair.basis[:, :k]
    return replace(pair, basis=Z, parts=_part(Z))


def _part(Z: np.ndarray) -> tuple[Part, ...]:
    return (Part("pair", 0, Z.shape[1]),)
