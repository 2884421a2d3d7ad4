"""Stochastic bilevel algorithms on a :class:`FiniteQuadratic`, from their formulas: steps that are affine in the state.

Each function gives a step as stages that draw once each: what it makes of given minibatches is exact, and so are its
moments over independent ones (:mod:`bilevax.testing.closed_forms.random_maps`). A state is (w, lam, what else is
carried); steps are in loss form, along

    d_w = b + B lam - A w,    d_u = w - target - A u,    d_lam = r lam + B'u

since grad_1 G = A w - b - B lam, H = A, d2(grad_1 G)'u = -B'u, grad_1 E = w - target and grad_2 E = r lam.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from bilevax.testing.closed_forms.quadratic import FiniteQuadratic, Floats
from bilevax.testing.closed_forms.random_maps import RandomMap, Stage, Stages, coordinates, mixture, moments, state


class Rows:
    """A_i, b_i, B_i', target_j and r_j as matrices that act on coordinates, rows first; and the two dimensions."""

    def __init__(self, p: FiniteQuadratic) -> None:
        val = p.val_data
        self.A, self.b, self.B, self.BT = p.A, p.b[:, :, None], p.B, p.B.transpose(0, 2, 1)
        self.target, self.r = val["target"][:, :, None], val["r"][:, None, None]
        self.d, self.m = p.B.shape[1:]

    def d_w(self, w: Floats, lam: Floats, one: Floats) -> Floats:
        """-grad_1 G of each row."""
        # -grad_1 G = b_i + B_i lam - A_i w
        return self.b @ one + self.B @ lam - self.A @ w


def soba(p: FiniteQuadratic, rho: float, ratio: float) -> Stages:
    """(w, lam, u, d): w + rho d_w, u + rho d_u and lam - ratio rho d, d = d_lam, all on one draw of each source."""
    return masoba(p, rho, ratio, weight=1.0)


def masoba(p: FiniteQuadratic, rho: float, ratio: float, *, weight: float) -> Stages:
    """(w, lam, u, a): as SOBA, lam along the new a = (1 - weight) a + weight d_lam."""
    rows = Rows(p)
    w, lam, u, a, one = coordinates(rows.d, rows.m, rows.d, rows.m)
    directions = Stage(
        # w + rho (b + B lam - A w), u + rho (w - target - A u), a = (1 - weight) a + weight (r lam + B'u)
        state(w, lam, u, (1 - weight) * a, one),
        train=state(rho * rows.d_w(w, lam, one), 0 * lam, -rho * rows.A @ u, weight * rows.BT @ u, 0 * one),
        val=state(0 * w, 0 * lam, rho * (w - rows.target @ one), weight * rows.r * lam, 0 * one),
    )
    # lam - ratio rho a, a the new one
    return directions, Stage(state(w, lam - ratio * rho * a, u, a, one))


def amigo(p: FiniteQuadratic, rho: float, ratio: float, *, inner_steps: int, linear_steps: int) -> Stages:
    """(w, lam, u): steps of w; then of u along g - A u, g of one draw, from the u before; then lam."""
    rows = Rows(p)
    w, lam, u, one = coordinates(rows.d, rows.m, rows.d)
    inner = Stage(np.eye(len(w.T)), state(rho * rows.d_w(w, lam, one), 0 * lam, 0 * u, 0 * one), repeat=inner_steps)
    outer = Stage(
        state(w, lam, u, 0 * w, 0 * lam, one),
        val=state(0 * w, 0 * lam, 0 * u, w - rows.target @ one, rows.r * lam, 0 * one),
    )
    w, lam, u, g, direct, one = coordinates(rows.d, rows.m, rows.d, rows.d, rows.m)
    linear = Stage(
        # u + rho (g - A u), g = w - target of one minibatch of val
        state(w, lam, u + rho * g, g, direct, one),
        train=state(0 * w, 0 * lam, -rho * rows.A @ u, 0 * g, 0 * lam, 0 * one),
        repeat=linear_steps,
    )
    gamma = ratio * rho
    last = Stage(state(w, lam - gamma * direct, u, one), state(0 * w, -gamma * rows.BT @ u, 0 * u, 0 * one))
    return inner, outer, linear, last


def fsla(p: FiniteQuadratic, rho: float, ratio: float, *, weight: float) -> Stages:
    """(w, lam, u, the three of the step before, d): w, then u, then d = D + (1 - weight) (d - D before), then lam.

    D = r lam + B'u, now and before on the same rows.
    """
    rows = Rows(p)
    sizes = rows.d, rows.m, rows.d
    w, lam, u, *rest, one = coordinates(*sizes, *sizes, rows.m)
    zero = [0 * part for part in rest]
    inner = Stage(np.eye(len(w.T)), state(rho * rows.d_w(w, lam, one), 0 * lam, 0 * u, *zero, 0 * one))
    linear = Stage(
        state(w, lam, u, *rest, one),
        train=state(0 * w, 0 * lam, -rho * rows.A @ u, *zero, 0 * one),
        val=state(0 * w, 0 * lam, rho * (w - rows.target @ one), *zero, 0 * one),
    )
    # d = D(p) + (1 - weight) (d - D(p_0)), D = r lam + B'u
    *_, lam_0, u_0, d, one = coordinates(*sizes, *sizes, rows.m)
    memory, zero = 1 - weight, [0 * part for part in (w, lam, u, *rest[:3])]
    correct = Stage(
        state(w, lam, u, *rest[:3], memory * d, one),
        train=state(*zero, rows.BT @ (u - memory * u_0), 0 * one),
        val=state(*zero, rows.r * (lam - memory * lam_0), 0 * one),
    )
    return inner, linear, correct, Stage(state(w, lam - ratio * rho * d, u, w, lam, u, d, one))


def stocbio(
    p: FiniteQuadratic, rho: float, ratio: float, *, inner_steps: int, linear_steps: int, series: float | None = None
) -> Stages:
    """(w, lam): steps of w; u = s sum_{i=0}^K r_i with r_0 = w - target and r_i = (I - s A_i) r_{i-1}; then lam.

    s is ``series``, or rho.
    """
    rows = Rows(p)
    w, lam, one = coordinates(rows.d, rows.m)
    inner = Stage(np.eye(len(w.T)), state(rho * rows.d_w(w, lam, one), 0 * lam, 0 * one), repeat=inner_steps)
    return inner, *product_form(
        p, 0.0, ratio * rho, linear_steps=linear_steps, series=rho if series is None else series
    )


def mrbo(p: FiniteQuadratic, rho: float, ratio: float, *, linear_steps: int, series: float | None = None) -> Stages:
    """(w, lam): u as in :func:`stocbio`, then w and lam together: MRBO of weight 1."""
    return product_form(p, rho, ratio * rho, linear_steps=linear_steps, series=rho if series is None else series)


def vrbo(p: FiniteQuadratic, rho: float, ratio: float, *, inner_steps: int, linear_steps: int) -> Stages:
    """(w, lam) on every row: u as in :func:`stocbio`, then lam, then the steps of w."""
    inner, *lam = stocbio(p, rho, ratio, inner_steps=inner_steps, linear_steps=linear_steps)
    return *lam, inner


def product_form(p: FiniteQuadratic, rho: float, gamma: float, *, linear_steps: int, series: float) -> Stages:
    """(w, lam): u as in :func:`stocbio` with s = ``series``, then w by rho and lam by gamma, together."""
    rows, s = Rows(p), series
    w, lam, one = coordinates(rows.d, rows.m)
    # r_0 = g, total = r_0, then r + change K times; u = s total
    g = w - rows.target @ one
    outer = Stage(state(w, lam, 0 * w, 0 * w, 0 * lam, one), val=state(0 * w, 0 * lam, g, g, rows.r * lam, 0 * one))
    w, lam, r, total, direct, one = coordinates(rows.d, rows.m, rows.d, rows.d, rows.m)
    # r + change and total + r + change
    change = -s * rows.A @ r
    linear = Stage(
        state(w, lam, r, total + r, direct, one),
        train=state(0 * w, 0 * lam, change, change, 0 * lam, 0 * one),
        repeat=linear_steps,
    )
    # w + rho d_w, lam - gamma (direct + B' s total)
    moves = state(rho * rows.d_w(w, lam, one), -gamma * rows.BT @ (s * total), 0 * one)
    return outer, linear, Stage(state(w, lam - gamma * direct, one), moves)


def plain(
    p: FiniteQuadratic, rho: float, ratio: float, *, linear_steps: int, horizon: int, series: float | None = None
) -> Stages:
    """(w, lam): u = K s prod_{i <= horizon} (I - s A_i) (w - target), w and lam together: SUSTAIN of weight 1.

    s is ``series``, or rho.
    """
    rows, s = Rows(p), rho if series is None else series
    w, lam, one = coordinates(rows.d, rows.m)
    outer = Stage(
        state(w, lam, 0 * w, 0 * lam, one),
        # u_0 = K s (w - target), then u - s A u ``horizon`` times
        val=state(0 * w, 0 * lam, linear_steps * s * (w - rows.target @ one), rows.r * lam, 0 * one),
    )
    w, lam, u, direct, one = coordinates(rows.d, rows.m, rows.d, rows.m)
    zero = 0 * w, 0 * lam
    linear = Stage(np.eye(len(w.T)), state(*zero, -s * rows.A @ u, 0 * lam, 0 * one), repeat=horizon)
    gamma = ratio * rho
    last = Stage(state(w, lam - gamma * direct, one), state(rho * rows.d_w(w, lam, one), -gamma * rows.BT @ u, 0 * one))
    return outer, linear, last


def in_turn(
    p: FiniteQuadratic,
    rho: float,
    ratio: float,
    *,
    linear_steps: int,
    horizon: int,
    inner_steps: int = 1,
    series: float | None = None,
) -> Stages:
    """(w, lam): steps of w, then lam along the direction of :func:`plain` at the new w: BSA, ALSET and TTSA.

    s is ``series``, or rho.
    """
    rows = Rows(p)
    w, lam, one = coordinates(rows.d, rows.m)
    inner = Stage(np.eye(len(w.T)), state(rho * rows.d_w(w, lam, one), 0 * lam, 0 * one), repeat=inner_steps)
    outer, linear, last = plain(p, rho, ratio, linear_steps=linear_steps, horizon=horizon, series=series)
    w, lam, u, _, one = coordinates(rows.d, rows.m, rows.d, rows.m)
    # of plain's last stage all but the move of w
    gamma = ratio * rho
    return inner, outer, linear, Stage(last.fixed, state(0 * w, -gamma * rows.BT @ u, 0 * one))


def mstsa(
    p: FiniteQuadratic,
    rho: float,
    ratio: float,
    *,
    linear_steps: int,
    horizon: int,
    weight: float,
    series: float | None = None,
) -> Stages:
    """(w, lam, w and lam where d was estimated, d): w, then d = D + (1 - weight) (d - D there), then lam along d.

    D is the direction of :func:`plain`, now and there on the same rows; s is ``series``, or rho.
    """
    rows, s = Rows(p), rho if series is None else series
    w, lam, w_0, lam_0, d, one = coordinates(rows.d, rows.m, rows.d, rows.m, rows.m)
    zero = 0 * w_0, 0 * lam_0, 0 * d
    inner = Stage(np.eye(len(w.T)), state(rho * rows.d_w(w, lam, one), 0 * lam, *zero, 0 * one))
    memory, scale = 1 - weight, linear_steps * s
    # d + D - memory D there, of which the parts of r and of the two u are found first
    outer = Stage(
        state(w, lam, memory * d, 0 * w, 0 * w, one),
        val=state(
            0 * w,
            0 * lam,
            rows.r * (lam - memory * lam_0),
            scale * (w - rows.target @ one),
            scale * (w_0 - rows.target @ one),
            0 * one,
        ),
    )
    w, lam, d, u, u_0, one = coordinates(rows.d, rows.m, rows.m, rows.d, rows.d)
    linear = Stage(
        np.eye(len(w.T)),
        state(0 * w, 0 * lam, 0 * d, -s * rows.A @ u, -s * rows.A @ u_0, 0 * one),
        repeat=horizon,
    )
    cross = Stage(
        state(w, lam, w, lam, d, one),
        state(0 * w, 0 * lam, 0 * w, 0 * lam, rows.BT @ (u - memory * u_0), 0 * one),
    )
    w, lam, w_0, lam_0, d, one = coordinates(rows.d, rows.m, rows.d, rows.m, rows.m)
    return inner, outer, linear, cross, Stage(state(w, lam - ratio * rho * d, w_0, lam_0, d, one))


def over_horizons(stages: Callable[..., Stages], linear_steps: int, sizes: tuple[int | None, int | None]) -> RandomMap:
    """A step with a horizon of 0 to linear_steps - 1, each as likely; ``stages`` is of linear_steps and horizon."""
    horizons = range(linear_steps)
    return mixture([moments(stages(linear_steps=linear_steps, horizon=h), *sizes) for h in horizons])


def sustain(
    p: FiniteQuadratic, rho: float, ratio: float, *, linear_steps: int, sizes: tuple[int | None, int | None]
) -> RandomMap:
    """The step of :func:`plain` with a random horizon.

    With any weight E d is the mean direction at E(w, lam), if it is so at first, so the mean of SUSTAIN is this one's.
    """
    return over_horizons(partial(plain, p, rho, ratio), linear_steps, sizes)


def f2sa(p: FiniteQuadratic, rho: float, ratio: float, *, inner_steps: int, multiplier: float) -> Stages:
    """(w, lam, z): w along -grad_1 G(w), z along -grad_1 G(z) - grad_1 E(z) / c; then lam, at one draw for both."""
    rows, c = Rows(p), multiplier
    w, lam, z, one = coordinates(rows.d, rows.m, rows.d)
    inner = Stage(
        np.eye(len(w.T)),
        # w + rho d_w(w) and z + rho (d_w(z) - (z - target) / c), on the same rows of train
        train=state(rho * rows.d_w(w, lam, one), 0 * lam, rho * rows.d_w(z, lam, one), 0 * one),
        val=state(0 * w, 0 * lam, -rho / c * (z - rows.target @ one), 0 * one),
        repeat=inner_steps,
    )
    # grad_2 E(z) + c (grad_2 G(z) - grad_2 G(w)) = r lam - c B'(z - w)
    last = Stage(
        state(w, lam, z, one),
        train=state(0 * w, ratio * rho * c * rows.BT @ (z - w), 0 * z, 0 * one),
        val=state(0 * w, -ratio * rho * rows.r * lam, 0 * z, 0 * one),
    )
    return inner, last


def scgd(p: FiniteQuadratic, rho: float, ratio: float, *, every_row: bool = False) -> RandomMap:
    """(w, lam): w + rho (b + B lam - w), then lam - ratio rho (r lam + B'(w - target)), at the new w, B the same.

    Of g = b_i + B_i lam; A plays no part. On one row of each source, each pair as likely, or on every row.
    """
    rows = Rows(p)
    B, b, target, r = rows.B[:, None], rows.b[:, None], rows.target, rows.r
    if every_row:
        B, b, target, r = (x.mean(axis=0) for x in (rows.B, rows.b, rows.target, rows.r))
    w, lam, one = coordinates(rows.d, rows.m)
    # w = (1 - rho) w + rho (b + B lam), lam - ratio rho (r lam + B'(w - target))
    new = (1 - rho) * w + rho * (b @ one + B @ lam)
    pulled = np.swapaxes(B, -1, -2) @ (new - target @ one)
    M = state(new, lam - ratio * rho * (r * lam + pulled), one)
    size = len(w.T)
    M = M.reshape(-1, size, size)
    # mean of M kron M: entries (a, c), (b, d) to [(a, b), (c, d)]
    second = np.einsum("nac,nbd->abcd", M, M, optimize=True).reshape(2 * (size**2,)) / len(M)
    return RandomMap(M.mean(axis=0), second)


def vpbgd(p: FiniteQuadratic, rho: float, ratio: float, *, inner_steps: int, multiplier: float) -> Stages:
    """(z, lam, w): w along -grad_1 G(w), z's gradient on the last of its draws; then z and lam, lam at the old z."""
    rows, c = Rows(p), multiplier
    z, lam, w, one = coordinates(rows.d, rows.m, rows.d)
    moves = state(0 * z, 0 * lam, rho * rows.d_w(w, lam, one), 0 * one)
    inner = [Stage(np.eye(len(w.T)), moves, repeat=inner_steps - 1)] if inner_steps > 1 else []
    both = Stage(
        state(z, lam, w, 0 * z, one),
        state(0 * z, 0 * lam, rho * rows.d_w(w, lam, one), rho * rows.d_w(z, lam, one), 0 * one),
    )
    z, lam, w, change, one = coordinates(rows.d, rows.m, rows.d, rows.d)
    descent = Stage(
        state(z + change, lam, w, one),
        train=state(0 * z, ratio * rho * c * rows.BT @ (z - w), 0 * w, 0 * one),
        val=state(-rho / c * (z - rows.target @ one), -ratio * rho * rows.r * lam, 0 * w, 0 * one),
    )
    return *inner, both, descent


def pzobo(p: FiniteQuadratic, rho: float, ratio: float, *, inner_steps: int, perturbations: int) -> RandomMap:
    """(w, lam) on every row: T steps of w; then lam along r lam + mean v v'a, a = w'(lam)'(w - target), v normal."""
    rows, (A, b, B), (target, r) = Rows(p), p.means, p.outer_means
    w, lam, one = coordinates(rows.d, rows.m)
    # w(lam) = (I - rho A)^T w + (I - (I - rho A)^T) A^-1 (b + B lam)
    left = np.linalg.matrix_power(np.eye(rows.d) - rho * A, inner_steps)
    solved = np.linalg.solve(A, np.eye(rows.d) - left)
    w = left @ w + solved @ (b[:, None] @ one + B @ lam)
    # (dw(lam) / dlam)' (w(lam) - target)
    a = (solved @ B).T @ (w - target[:, None] @ one)
    gamma, m, Q = ratio * rho, rows.m, perturbations
    # gamma / Q sum v v'a: E[v_i v_k v_j v_l] = d_ik d_jl + d_ij d_kl + d_il d_kj, of which the first is of the mean
    mean = state(w, lam - gamma * (r * lam + a), one)
    up = np.eye(len(mean))[:, rows.d : rows.d + m]
    noise = np.kron(up, up) @ _pairs(m) @ np.kron(a, a) * gamma**2 / Q
    return RandomMap(mean, np.kron(mean, mean) + noise)


def _pairs(m: int) -> Floats:
    """d_ij d_kl + d_il d_kj at row (i, j) and column (k, l), [m^2, m^2]."""
    # entry (i, j), (k, l)
    e = np.eye(m)
    both: Floats = np.einsum("ij,kl->ijkl", e, e) + np.einsum("il,kj->ijkl", e, e)
    return both.reshape(m * m, m * m)


def meha(p: FiniteQuadratic, rho: float, ratio: float, *, proximal: float, multiplier: float) -> Stages:
    """(w, lam, theta): theta towards the prox and w on one draw; then lam; s = proximal rho."""
    rows, c = Rows(p), multiplier
    w, lam, theta, one = coordinates(rows.d, rows.m, rows.d)
    # rho (w - theta) / s
    pull = (w - theta) / proximal
    both = Stage(
        state(w + pull, lam, theta + pull, one),
        train=state(rho * rows.d_w(w, lam, one), 0 * lam, rho * rows.d_w(theta, lam, one), 0 * one),
        val=state(-rho / c * (w - rows.target @ one), 0 * lam, 0 * w, 0 * one),
    )
    last = Stage(
        state(w, lam, theta, one),
        train=state(0 * w, ratio * rho * c * rows.BT @ (w - theta), 0 * w, 0 * one),
        val=state(0 * w, -ratio * rho * rows.r * lam, 0 * w, 0 * one),
    )
    return both, last
