"""Algorithms written out in numpy on losses whose every derivative changes with w and lam, on the same draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.solvers.parts import saga, saga_table
from bilevax.testing.draws import row_weights, whole_numbers

N, B, D, M = 60, 8, 4, 2
KEY = jax.random.key(11)
RHO, RATIO, STEPS, T, K, C, ETA = 0.3, 0.5, 12, 2, 3, 20.0, 0.4
RNG = np.random.default_rng(0)
W0, LAM = np.linspace(-1.0, 1.0, D), np.array([0.5, -1.0])
X, Z, Y, Q = (RNG.normal(size=(N, width)) for width in (D, M, D, M))
SOURCES = bx.Arrays({"x": X, "z": Z}, B), bx.Arrays({"y": Y, "q": Q}, B)


def inner(w, lam, batch):
    """Mean log 2 cosh(x'w - z'lam) + .1 |w|^2."""
    s = batch["x"] @ w - batch["z"] @ lam
    return jnp.mean(jnp.logaddexp(s, -s)) + 0.1 * w @ w


def outer(w, lam, batch):
    """Mean (y'w + q'lam - 1)^4 / 4 + .1 |lam|^2."""
    return jnp.mean((batch["y"] @ w + batch["q"] @ lam - 1.0) ** 4) / 4 + 0.1 * lam @ lam


PROBLEM = bx.Problem(bx.GradientStep(inner), outer)


# ---- derivatives, on rows of these weights


def grad_g(w, lam, rows):
    """By w and by lam."""
    slopes = rows * np.tanh(X @ w - Z @ lam)
    return slopes @ X + 0.2 * w, -slopes @ Z


def products(w, lam, u, rows):
    """H u and d2(grad_1 G)'u."""
    curved = rows / np.cosh(X @ w - Z @ lam) ** 2 * (X @ u)
    return curved @ X + 0.2 * u, -curved @ Z


def grad_e(w, lam, rows):
    """By w and by lam."""
    slopes = rows * (Y @ w + Q @ lam - 1.0) ** 3
    return slopes @ Y, slopes @ Q + 0.2 * lam


# ---- algorithms: a generator of (w, lam) after each step, from a function that gives the rows of a stream


def soba(draw):
    w, u, lam = W0, np.zeros(D), LAM
    for k in range(STEPS):
        (train,), (val,) = draw("train", k), draw("val", k)
        (by_w, _), (g, direct), (Hu, cross) = grad_g(w, lam, train), grad_e(w, lam, val), products(w, lam, u, train)
        w, u, lam = w - RHO * by_w, u + RHO * (g - Hu), lam - RATIO * RHO * (direct - cross)
        yield w, lam


def inner_moves(w, lam, rows):
    for row in rows:
        w = w - RHO * grad_g(w, lam, row)[0]
    return w


def amigo(draw):
    w, u, lam = W0, np.zeros(D), LAM
    for k in range(STEPS):
        w = inner_moves(w, lam, draw("inner", k, T))
        g, direct = grad_e(w, lam, *draw("val", k))
        for row in draw("linear", k, K):
            u = u + RHO * (g - products(w, lam, u, row)[0])
        lam = lam - RATIO * RHO * (direct - products(w, lam, u, *draw("train", k))[1])
        yield w, lam


def stocbio(draw):
    w, lam = W0, LAM
    for k in range(STEPS):
        w = inner_moves(w, lam, draw("inner", k, T))
        r, direct = grad_e(w, lam, *draw("val", k))
        u = RHO * r
        for row in draw("linear", k, K):
            r = r - RHO * products(w, lam, r, row)[0]
            u = u + RHO * r
        lam = lam - RATIO * RHO * (direct - products(w, lam, u, *draw("train", k))[1])
        yield w, lam


def sustain(draw):
    """Weights (1 + k)^(-2/3); the horizon is the same at both points."""
    x, before, d = (W0, LAM), (W0, LAM), [0.0, 0.0]
    for k in range(STEPS):
        horizon = whole_numbers(KEY, "horizon", K, k + 1)[k]
        (train,), (val,) = draw("train", k), draw("val", k)

        def look(w, lam, horizon=horizon, train=train, val=val, k=k):
            g, direct = grad_e(w, lam, val)
            for row in draw("linear", k, K)[:horizon]:
                g = g - RHO * products(w, lam, g, row)[0]
            return -grad_g(w, lam, train)[0], direct - products(w, lam, K * RHO * g, train)[1]

        memory = 1 - (1 + k) ** (-2 / 3)
        d = [now + memory * (old - then) for now, old, then in zip(look(*x), d, look(*before), strict=True)]
        before, x = x, (x[0] + RHO * d[0], x[1] - RATIO * RHO * d[1])
        yield x


def drawn_direction(draw, k, w, lam):
    """d_lam with one term of the series: u = K rho_0 (I - rho_0 H_p) ... grad_1 E."""
    g, direct = grad_e(w, lam, *draw("val", k))
    for row in draw("linear", k, K)[: whole_numbers(KEY, "horizon", K, k + 1)[k]]:
        g = g - RHO * products(w, lam, g, row)[0]
    return direct - products(w, lam, K * RHO * g, *draw("train", k))[1]


def bsa(draw, number=T):
    w, lam = W0, LAM
    for k in range(STEPS):
        w = inner_moves(w, lam, draw("inner", k, number))
        lam = lam - RATIO * RHO * drawn_direction(draw, k, w, lam)
        yield w, lam


def mstsa(draw):
    """The direction was estimated last at the new w and the lam of the step before; the first weight is 1."""
    w, lam, d, before = W0, LAM, 0.0, LAM
    for k in range(STEPS):
        then = w, before
        w, before = inner_moves(w, lam, draw("inner", k)), lam
        memory = 0.0 if k == 0 else 1 - ETA
        d = drawn_direction(draw, k, w, lam) + memory * (d - drawn_direction(draw, k, *then))
        lam = lam - RATIO * RHO * d
        yield w, lam


def fsla(draw):
    """The weights of the memory are (1 + k)^(-1/2)."""
    w, u, lam, d, then = W0, np.zeros(D), LAM, 0.0, (W0, np.zeros(D), LAM)
    for k in range(STEPS):

        def direction(w, u, lam, k=k):
            return grad_e(w, lam, *draw("val", k))[1] - products(w, lam, u, *draw("train", k))[1]

        w = inner_moves(w, lam, draw("inner", k))
        u = u + RHO * (grad_e(w, lam, *draw("outer", k))[0] - products(w, lam, u, *draw("linear", k))[0])
        d = direction(w, u, lam) + (1 - (1 + k) ** -0.5) * (d - direction(*then))
        then, lam = (w, u, lam), lam - RATIO * RHO * d
        yield w, lam


def series_directions(w, lam, train, val, linear):
    """Along which w moves and against which lam does, u by the series of StocBiO."""
    r, direct = grad_e(w, lam, val)
    u = RHO * r
    for row in linear:
        r = r - RHO * products(w, lam, r, row)[0]
        u = u + RHO * r
    return -grad_g(w, lam, train)[0], direct - products(w, lam, u, train)[1]


def mrbo(draw):
    """Weights (1 + k)^(-2/3)."""
    x, before, d = (W0, LAM), (W0, LAM), [0.0, 0.0]
    for k in range(STEPS):
        given, memory = (*draw("train", k), *draw("val", k), draw("linear", k, K)), 1 - (1 + k) ** (-2 / 3)
        now, then = (series_directions(*at, *given) for at in (x, before))
        d = [a + memory * (old - b) for a, old, b in zip(now, d, then, strict=True)]
        before, x = x, (x[0] + RHO * d[0], x[1] - RATIO * RHO * d[1])
        yield x


def vrbo(draw):
    """On every row in each fourth step; T moves of w, and T + 1 differences."""
    w, lam, d = W0, LAM, None
    for k in range(STEPS):
        if k % 4 == 0:
            every = np.full(N, 1 / N)
            d = series_directions(w, lam, every, every, [every] * K)
        old, lam = (w, lam), lam - RATIO * RHO * d[1]
        linear = draw("linear", k, (T + 1) * K)
        for i, (train, val) in enumerate(zip(draw("inner", k, T + 1), draw("outer", k, T + 1), strict=True)):
            given = train, val, linear[i * K : (i + 1) * K]
            now, then = series_directions(w, lam, *given), series_directions(*old, *given)
            d = [a + now_ - then_ for a, now_, then_ in zip(d, now, then, strict=True)]
            old = w, lam
            w = w + RHO * d[0] if i < T else w
        yield w, lam


def f2sa(draw):
    """As SOBA in turn, of which derivatives along u are differences over 1 / c, and grad E is at w - u / c."""
    w, u, lam = W0, np.zeros(D), LAM
    for k in range(STEPS):
        for train, val in zip(draw("inner", k, T), draw("outer", k, T), strict=True):
            by_w, at_z = (grad_g(at, lam, train)[0] for at in (w, w - u / C))
            # H u = c (grad_1 G(w) - grad_1 G(w - u / c))
            w, u = w - RHO * by_w, u + RHO * (grad_e(w - u / C, lam, val)[0] - C * (by_w - at_z))
        by_lam, at_z = (grad_g(at, lam, *draw("train", k))[1] for at in (w, w - u / C))
        lam = lam - RATIO * RHO * (grad_e(w - u / C, lam, *draw("val", k))[1] - C * (by_lam - at_z))
        yield w, lam


def vpbgd(draw):
    """c grows as the square root; the step of lam falls with it."""
    w, z, lam = W0, W0, LAM
    for k in range(STEPS):
        (train,), (val,), rows, grown = draw("train", k), draw("val", k), draw("inner", k, T), (1 + k) ** 0.5
        w, c = inner_moves(w, lam, rows), C * grown
        gap, (g, direct) = grad_g(z, lam, train)[1] - grad_g(w, lam, train)[1], grad_e(z, lam, val)
        z, lam = z - RHO * (grad_g(z, lam, rows[-1])[0] + g / c), lam - RATIO * RHO / grown * (direct + c * gap)
        yield z, lam


def meha(draw):
    """s = 5 rho."""
    theta, w, lam, s = W0, W0, LAM, 5.0 * RHO
    for k in range(STEPS):
        (inner,), (outer,), (train,), (val,) = (draw(name, k) for name in ("inner", "outer", "train", "val"))
        moved = theta - RHO * (grad_g(theta, lam, inner)[0] + (theta - w) / s)
        w = w - RHO * (grad_g(w, lam, inner)[0] + grad_e(w, lam, outer)[0] / C - (w - theta) / s)
        theta, gap = moved, grad_g(w, lam, train)[1] - grad_g(moved, lam, train)[1]
        lam = lam - RATIO * RHO * (grad_e(w, lam, val)[1] + C * gap)
        yield w, lam


def bome(draw):
    """As published, in units of lam in which rho / c is the step of both: lam = a x, a^2 = ratio c."""
    w, lam, a, xi = W0, LAM, np.sqrt(RATIO * C), RHO / C
    for k in range(STEPS):
        (train,), (val,), z = draw("train", k), draw("val", k), inner_moves(w, lam, draw("inner", k, T))
        by_w, by_lam = grad_g(w, lam, train)
        q = np.concatenate([by_w, a * (by_lam - grad_g(z, lam, train)[1])])
        g, direct = grad_e(w, lam, val)
        e = np.concatenate([g, a * direct])
        step = e + max(C * (q @ q) - e @ q, 0.0) / (q @ q) * q
        w, lam = w - xi * step[:D], a * (lam / a - xi * step[D:])
        yield w, lam


def pzobo(draw):
    w, lam, radius, directions = W0, LAM, 0.1, 3
    for k in range(STEPS):
        key = jax.random.fold_in(KEY, k)
        rows, normal = draw("inner", k, T), np.float64(jax.random.normal(key, (directions, M), np.float32))
        end = inner_moves(w, lam, rows)
        g, direct = grad_e(end, lam, *draw("val", k))
        changes = [(inner_moves(w, lam + radius * v, rows) - end) @ g / radius for v in normal]
        w, lam = end, lam - RATIO * RHO * (direct + changes @ normal / directions)
        yield w, lam


CASES = {
    "SOBA": (bx.SOBA(RHO, RATIO), soba),
    "AmIGO": (bx.AmIGO(RHO, RATIO, T, K), amigo),
    "StocBiO": (bx.StocBiO(RHO, RATIO, T, K), stocbio),
    "SUSTAIN": (bx.SUSTAIN(RHO, RATIO, K), sustain),
    "FSLA": (bx.FSLA(RHO, RATIO), fsla),
    "BSA": (bx.BSA(RHO, RATIO, T, K), bsa),
    "ALSET": (bx.ALSET(RHO, RATIO, linear_steps=K), partial(bsa, number=1)),
    "TTSA": (bx.TTSA(RHO, RATIO, linear_steps=K), partial(bsa, number=1)),
    "MSTSA": (bx.MSTSA(RHO, RATIO, K, ETA), mstsa),
    "MRBO": (bx.MRBO(RHO, RATIO, K), mrbo),
    "VRBO": (bx.VRBO(RHO, RATIO, T, K, period=4), vrbo),
    "F2SA": (bx.F2SA(RHO, RATIO, T, multiplier=C, growth=0.0, unit=1.0), f2sa),
    "VPBGD": (bx.VPBGD(RHO, RATIO, T, multiplier=C, growth=0.5, unit=1.0), vpbgd),
    "MEHA": (bx.MEHA(RHO, RATIO, 5.0, multiplier=C, growth=0.0, unit=1.0), meha),
    "BOME": (bx.BOME(RHO, RATIO, T, multiplier=C, unit=1.0), bome),
    "PZOBO": (bx.PZOBO(RHO, RATIO, T, perturbations=3, radius=0.1), pzobo),
}


def draw(name, k, number=1):
    source = SOURCES[name in ("val", "outer")]
    return row_weights(source, name, KEY, STEPS, number)[k]


@jax.jit
def loop(algorithm, start):
    def step(state, args, k, looks):
        return args.step(PROBLEM, state, looks, k)[0]

    state, stops = algorithm.init(PROBLEM, *start, SOURCES), jnp.arange(1, STEPS + 1)
    state = bx.fold_looks(algorithm.streams(SOURCES), step, state, algorithm, key=KEY, start=0, stop=stops)
    return algorithm.solution(state)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_written_out(name):
    algorithm, by_hand = CASES[name]
    for expected, found in zip(zip(*by_hand(draw), strict=True), loop(algorithm, (W0, LAM)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
        # every step moves
        assert np.all(np.abs(np.diff(found, axis=0)).max(axis=1) > 1e-4)


def test_the_mean_that_saga_keeps_is_that_of_its_table_after_however_many_steps():
    """In float32, of values that shrink fifty times: a plain sum would be off by 1e-5 of the last ones."""
    n, steps = 40, 20_000
    values = jnp.asarray(RNG.normal(size=(n, 3)), jnp.float32)

    def step(k, table):
        i = jax.random.randint(jax.random.fold_in(KEY, k), (), 0, n)
        new = values[i] * (1.0 + 50.0 * jnp.exp(-k / 500.0) + 1e-3 * jnp.sin(0.1 * k)).astype(jnp.float32)
        return saga(table, new, i)[1]

    table = jax.jit(lambda: jax.lax.fori_loop(0, steps, step, saga_table(jnp.zeros(3, jnp.float32), n)))()
    assert table.mean.dtype == jnp.float32
    np.testing.assert_allclose(table.mean, np.asarray(table.rows, float).mean(axis=0), rtol=0, atol=5e-7)
