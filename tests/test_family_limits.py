"""Where algorithms end when nothing is left of the noise: on every row, and with variance reduction."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import bilevax as bx
from bilevax.testing.closed_forms import FiniteQuadratic, family
from bilevax.testing.closed_forms.random_maps import RandomMap, moments
from bilevax.testing.draws import row_weights

D, M, B = 4, 2, 16
W0 = np.linspace(-1.0, 1.0, D)
T, K = 3, 5
STOPS = 21
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in ((100, 101), (10, 512), (100, 512))]


@cache
def quadratic(condition=10, n=101):
    return FiniteQuadratic.conditioned(0, condition=condition, n=n, n_val=n, d=D, m=M)


@jax.jit
def chains(problem, algorithm, start, sources, keys, origin, stops):
    """Of each chain at each stop (w, lam), and the sum over the steps before of |lam - origin|^2."""

    def step(carry, args, k, looks):
        (state, total), (problem, algorithm, origin) = carry, args
        state = algorithm.step(problem, state, looks, k)[0]
        return state, total + jnp.sum((algorithm.solution(state)[1] - origin) ** 2)

    def run(key):
        carry, args = (algorithm.init(problem, *start, sources), jnp.zeros(())), (problem, algorithm, origin)
        state, total = bx.fold_looks(algorithm.streams(sources), step, carry, args, key=key, start=0, stop=stops)
        return jnp.concatenate(algorithm.solution(state), axis=-1), total

    return jax.vmap(run)(keys)


def run(p, algorithm, stops, *, batch_size=None, sampling="blocks", number=1, seed=0, origin=None):
    """[chains, stops, d + m], and the sums, [chains, stops]."""
    sources = tuple(bx.Arrays(data, batch_size, sampling, seed=seed) for data in (p.train_data, p.val_data))
    start, keys = (jnp.asarray(W0), jnp.asarray(p.lam)), jax.random.split(jax.random.key(2), number)
    # as many stops whatever is asked for: one program
    padded = jnp.asarray([*stops, *[stops[-1]] * (STOPS - len(stops))])
    origin = jnp.asarray(p.minimiser if origin is None else origin)
    found = chains(p.problem, algorithm, start, sources, keys, origin, padded)
    return [np.asarray(x)[:, : len(stops)] for x in found]


# ---- every row


class Case(NamedTuple):
    """An algorithm of rho and ratio, and the moments of its step on every row."""

    algorithm: Callable
    step: Callable[..., RandomMap]


def exact(stages, **options):
    return lambda p, rho, ratio: moments(stages(p, rho, ratio, **options))


COUNTS = {"inner_steps": T, "linear_steps": K}
ONE_TERM = {"linear_steps": 1, "horizon": 0}
F2SA = partial(bx.F2SA, inner_steps=T, growth=0.0, unit=1.0)
PENALTY = {"growth": 0.0, "unit": 1.0, "multiplier": 10.0}
CASES = {
    "SOBA": Case(bx.SOBA, exact(family.soba)),
    "MASOBA": Case(partial(bx.MASOBA, weight=0.3), exact(family.masoba, weight=0.3)),
    "SABA": Case(bx.SABA, exact(family.soba)),
    "SRBA": Case(partial(bx.SRBA, period=4), exact(family.soba)),
    "AmIGO": Case(partial(bx.AmIGO, **COUNTS), exact(family.amigo, **COUNTS)),
    "StocBiO": Case(partial(bx.StocBiO, **COUNTS), exact(family.stocbio, **COUNTS)),
    # on every row what is remembered is right: SOBA in turn
    "FSLA": Case(partial(bx.FSLA, weight=0.3), exact(family.amigo, inner_steps=1, linear_steps=1)),
    # of longer series the horizon is random on every row too
    "BSA": Case(partial(bx.BSA, inner_steps=T, linear_steps=1), exact(family.in_turn, inner_steps=T, **ONE_TERM)),
    "ALSET": Case(partial(bx.ALSET, linear_steps=1), exact(family.in_turn, **ONE_TERM)),
    "TTSA": Case(partial(bx.TTSA, linear_steps=1), exact(family.in_turn, **ONE_TERM)),
    "MSTSA": Case(partial(bx.MSTSA, linear_steps=1), exact(family.in_turn, **ONE_TERM)),
    "SUSTAIN": Case(partial(bx.SUSTAIN, linear_steps=1), exact(family.plain, **ONE_TERM)),
    "MRBO": Case(partial(bx.MRBO, linear_steps=K), exact(family.mrbo, linear_steps=K)),
    "VRBO": Case(partial(bx.VRBO, period=4, **COUNTS), exact(family.vrbo, **COUNTS)),
    "F2SA": Case(partial(F2SA, multiplier=10.0), exact(family.f2sa, inner_steps=T, multiplier=10.0)),
    "VPBGD": Case(partial(bx.VPBGD, inner_steps=T, **PENALTY), exact(family.vpbgd, inner_steps=T, multiplier=10.0)),
    "MEHA": Case(partial(bx.MEHA, proximal=5.0, **PENALTY), exact(family.meha, proximal=5.0, multiplier=10.0)),
}
COPIES = "F2SA", "VPBGD", "MEHA"


@pytest.mark.parametrize(("condition", "n"), [(10, 101), *SLOW])
@pytest.mark.parametrize("name", CASES)
def test_on_every_row_it_goes_linearly_to_its_stationary_point(name, condition, n):
    """Every iterate on the way is that of the mean map, so the rate is its spectral radius."""
    p, rho, ratio = quadratic(condition, n), 0.5, 0.1
    step = CASES[name].step(p, rho, ratio)
    assert step.mean_rate < 1
    # 1e-13 of the start is left
    stops = [1, 2, 5, 25, 125, int(np.log(1e-13) / np.log(step.mean_rate))]
    found = run(p, CASES[name].algorithm(bx.Polynomial(rho, 0.0), ratio), stops)[0][0]
    start = np.concatenate([W0, p.lam, W0 if name in COPIES else np.zeros(len(step.mean) - D - M - 1)])
    for k, x in zip(stops, found, strict=True):
        expected = step.power(k).moments(start)[0][: D + M]
        assert np.linalg.norm(x - expected) <= 1e-11 * np.linalg.norm(expected), k
    limit = step.fixed_point[: D + M]
    assert np.linalg.norm(found[-1] - limit) <= 1e-10 * np.linalg.norm(limit)


def squared(p, lam):
    """|grad f|^2 relative to the start."""
    return np.sum(p.hypergradient(lam) ** 2) / np.sum(p.hypergradient(p.lam) ** 2)


@pytest.mark.parametrize("multiplier", [10.0, 100.0, 1e3, 1e4])
@pytest.mark.parametrize(("condition", "n"), [(10, 101), *SLOW])
def test_f2sa_on_every_row_ends_at_the_floor_of_its_multiplier(multiplier, condition, n):
    """In closed form: r lam = c B'(z - w), with z and w where their own gradients vanish."""
    p = quadratic(condition, n)
    (A, b, B), (target, r) = p.means, p.outer_means
    upper = np.linalg.inv(A + np.eye(D) / multiplier)

    def direction(lam):
        z = upper @ (b + B @ lam + target / multiplier)
        return r * lam - multiplier * B.T @ (z - p.w(lam))

    # affine in lam
    constant = direction(np.zeros(M))
    lam = np.linalg.solve(np.stack([direction(e) - constant for e in np.eye(M)], axis=1), -constant)
    rate = moments(family.f2sa(p, 0.5, 0.1, inner_steps=T, multiplier=multiplier)).mean_rate
    stop = int(np.log(1e-15) / np.log(rate))
    found = run(p, F2SA(bx.Polynomial(0.5, 0.0), 0.1, multiplier=multiplier), [stop])[0][0, 0, D:]
    np.testing.assert_allclose(found, lam, rtol=1e-9)
    np.testing.assert_allclose(squared(p, found), squared(p, lam), rtol=1e-4)
    # the bias is of order 1 / c
    assert squared(p, lam) < 200 / multiplier**2


def where_bome_sways(p, rho, ratio, c):
    """The stationary point of E + m c q, at the m at which the longest curvature of E / c + m q times the steps is 2.

    Below it m grows, since q falls; above it steps overshoot, and q grows.
    """
    (A, b, B), (target, r) = p.means, p.outer_means
    # grad_2 q = -B'(w - z) = -B'S (w - w(lam)) after T moves of z, S = I - (I - rho A)^T
    S = np.eye(D) - np.linalg.matrix_power(np.eye(D) - rho * A, T)
    q = np.block([[A, -B], [-B.T @ S, B.T @ S @ np.linalg.solve(A, B)]])
    e, steps = np.repeat([1.0, r], [D, M]) / c, np.repeat([rho, ratio * rho * c], [D, M])
    at_zero = np.concatenate([-b, B.T @ S @ np.linalg.solve(A, b)])

    def above(m):
        return np.linalg.eigvals(steps[:, None] * (np.diag(e) + m * q)).real.max() - 2.0

    m = scipy.optimize.brentq(above, 0.0, 1e3)
    return m, np.linalg.solve(np.diag(e) + m * q, np.concatenate([target / c, np.zeros(M)]) - m * at_zero)[D:]


@pytest.mark.parametrize(("condition", "n"), [(10, 101), *SLOW])
@pytest.mark.parametrize("ratio", [0.1, 0.02])
def test_bome_on_every_row_sways_about_its_floor(ratio, condition, n):
    """Between two points; their middle is known to a fiftieth of how far it is from the minimum."""
    p, c, rho, number = quadratic(condition, n), 5.0, 0.5, {10: 4000, 100: 12_000}[condition]
    _, expected = where_bome_sways(p, rho, ratio, c)
    algorithm = bx.BOME(bx.Polynomial(rho, 0.0), ratio, T, multiplier=c, unit=1.0)
    found = run(p, algorithm, [number - 2, number - 1, number])[0][0]
    np.testing.assert_allclose(found[2], found[0], rtol=1e-6)
    assert np.linalg.norm(found[2, :D] - found[1, :D]) > 1e-3
    bias = np.linalg.norm(expected - p.minimiser)
    assert np.linalg.norm(found[1:, D:].mean(axis=0) - expected) < bias / 50


# ---- an inner problem of more than one solution


def one_of_many(w, lam, batch):
    """w_1^2 / 2 - lam w_1: w_2 is free."""
    return jnp.mean(batch) * (w[0] ** 2 / 2 - lam[0] * w[0])


def choosing_among_them(w, lam, batch):
    """(lam - w_2)^2 / 2 + (w_1 - 1)^2 / 2, least at lam = 1."""
    return jnp.mean(batch) * ((lam[0] - w[1]) ** 2 + (w[0] - 1.0) ** 2) / 2


MANY = bx.Problem(bx.GradientStep(one_of_many, 1.0), choosing_among_them)
FROM_ZERO = np.zeros(2), np.zeros(1), bx.Arrays(np.ones(1)), bx.Arrays(np.ones(1))
AMONG_MANY = {
    "VPBGD": bx.VPBGD(0.5, 0.02, multiplier=2.0, unit=1.0, growth=0.1),
    "MEHA": bx.MEHA(0.5, 0.02, multiplier=2.0, unit=1.0, growth=0.1),
    "BOME": bx.BOME(0.5, 0.2, multiplier=2.0, unit=1.0),
}


@pytest.mark.parametrize("name", AMONG_MANY)
def test_a_penalty_chooses_among_solutions_of_the_inner_problem(name):
    """To four digits."""
    result = bx.minimize(MANY, AMONG_MANY[name], *FROM_ZERO, steps=20_000, key=jax.random.key(0))
    np.testing.assert_allclose(result.lam, 1.0, atol=5e-5)
    np.testing.assert_allclose(result.w, 1.0, atol=5e-5)


def test_an_implicit_derivative_does_not_choose():
    """w_2 stays where it is, at 0."""
    result = bx.minimize(MANY, bx.StocBiO(0.5, 0.2, linear_steps=50), *FROM_ZERO, steps=2000, key=jax.random.key(0))
    np.testing.assert_allclose(result.lam, 0.5, atol=1e-6)


# ---- variance reduction


REDUCED = {"SABA": bx.SABA, "SRBA": bx.SRBA}


def directions_on(stage, x, train, val):
    """What train and val add to (d_w, ., d_u, d_lam, .) at x = (w, lam, u, ., 1), from the weights of the rows."""
    return np.tensordot(train, stage.train, 1) @ x, np.tensordot(val, stage.val, 1) @ x


def saba_by_hand(stage, draws, blocks):
    """Tables of what each block gave last, 0 at first; an estimate is new - old + mean."""
    tables = [np.zeros((blocks, 2 * D + 2 * M + 1)) for _ in range(2)]

    def direction(x, before, d, k):
        total = 0.0
        for table, new, rows in zip(tables, directions_on(stage, x, *draws[k]), draws[k], strict=True):
            block = np.flatnonzero(rows)[0] // B
            total = total + new - table[block] + table.mean(axis=0)
            table[block] = new
        return total

    return direction


def srba_by_hand(stage, draws, period):
    """d + D(x) - D(x before) on the same rows; every so many steps D(x) on all."""
    n, n_val = len(stage.train), len(stage.val)

    def direction(x, before, d, k):
        if k % period == 0:
            return sum(directions_on(stage, x, np.full(n, 1 / n), np.full(n_val, 1 / n_val)))
        return d + sum(directions_on(stage, x, *draws[k])) - sum(directions_on(stage, before, *draws[k]))

    return direction


REDUCED_BY_HAND = {"SABA": saba_by_hand, "SRBA": srba_by_hand}


@pytest.mark.parametrize("name", REDUCED_BY_HAND)
def test_variance_reduction_on_given_minibatches(name):
    """Over three epochs of seven blocks, the last one short: its draws weigh less."""
    p, steps, rho, ratio = quadratic(), STOPS, lambda k: 0.2 / (1 + k) ** 0.4, 0.3
    key, stage = jax.random.split(jax.random.key(2), 2)[0], family.masoba(p, 1.0, 1.0, weight=1.0)[0]
    sources = [bx.Arrays(data, B, "blocks", seed=None) for data in (p.train_data, p.val_data)]
    names = zip(sources, ("train", "val"), strict=True)
    draws = list(zip(*(row_weights(source, stream, key, steps)[:, 0] for source, stream in names), strict=True))
    # 7 blocks; and of 101 + 101 rows a pass has 6 minibatches of 16 + 16
    direction = REDUCED_BY_HAND[name](stage, draws, 7 if name == "SABA" else 6)
    x, d, path = np.concatenate([W0, p.lam, np.zeros(D + M), [1.0]]), 0.0, []
    before = x
    for k in range(steps):
        d = direction(x, before, d, k)
        d_w, _, d_u, d_lam, _ = np.split(d, np.cumsum([D, M, D, M]))
        before, x = x, x + rho(k) * np.concatenate([d_w, -ratio * d_lam, d_u, np.zeros(M + 1)])
        path.append(x[: D + M])
    algorithm = REDUCED[name](bx.Polynomial(0.2, 0.4), ratio)
    found = run(p, algorithm, np.arange(1, steps + 1), batch_size=B, number=2, seed=None)[0][0]
    np.testing.assert_allclose(found, path, rtol=1e-10)


def settled(p, algorithm, steps, sampling, origin=None):
    """lam at the end, and the mean |lam - origin|^2 of the second half of the steps, each of its chain."""
    found, total = run(p, algorithm, [steps // 2, steps], batch_size=B, sampling=sampling, number=2, origin=origin)
    return found[:, -1, D:], (total[:, 1] - total[:, 0]) / (steps - steps // 2)


def noise_dies_out(name, condition, n, sampling="blocks"):
    """To 1e-20 of the start; in the mean, to a millionth of what SOBA keeps. |grad f|^2 is c |lam - best|^2 here."""
    p, rho, steps = quadratic(condition, n), bx.Polynomial(0.2, 0.0), {10: 6000, 100: 32_000}[condition]
    np.testing.assert_allclose(p.outer_hessian, p.outer_hessian[0, 0] * np.eye(M), atol=1e-12)
    found, level = settled(p, REDUCED[name](rho, 0.1), steps, sampling)
    ends = [squared(p, lam) for lam in found]
    _, floor = settled(p, bx.SOBA(rho, 0.1), steps, sampling)
    assert max(ends) < 1e-20
    assert max(level) < 1e-6 * min(floor)


@pytest.mark.parametrize(("condition", "n"), [(10, 101), *SLOW])
@pytest.mark.parametrize("name", REDUCED)
def test_with_variance_reduction_constant_steps_lead_to_the_solution(name, condition, n):
    """In blocks, of 101 rows with a short last one."""
    noise_dies_out(name, condition, n)


@pytest.mark.slow
@pytest.mark.parametrize("condition", [10, 100])
@pytest.mark.parametrize("sampling", ["iid", "shuffled"])
def test_srba_needs_no_blocks(sampling, condition):
    noise_dies_out("SRBA", condition, 101, sampling)


def direction_of_series(p, rho, lam):
    """r lam + B'u at w(lam), u of K + 1 terms."""
    (A, _, _), (target, r) = p.means, p.outer_means
    u = rho * sum(np.linalg.matrix_power(np.eye(D) - rho * A, i) for i in range(K + 1)) @ (p.w(lam) - target)
    return r * lam + p.means[2].T @ u


def settles_at_its_own_point(condition, n, sampling="blocks"):
    """VRBO: the direction in which lam moves to 1e-20 of the start; in the mean, a millionth of what SOBA keeps."""
    p, rho, steps = quadratic(condition, n), 0.2, {10: 2000, 100: 12_000}[condition]
    own = moments(family.vrbo(p, rho, 0.3, **COUNTS)).fixed_point[D:]
    found, level = settled(p, bx.VRBO(bx.Polynomial(rho, 0.0), 0.3, **COUNTS), steps, sampling, own)
    first, *ends = (np.sum(direction_of_series(p, rho, lam) ** 2) for lam in (p.lam, *found))
    _, floor = settled(p, bx.SOBA(bx.Polynomial(rho, 0.0), 0.3), steps, sampling)
    assert max(ends) < 1e-20 * first
    assert max(level) < 1e-6 * min(floor)


@pytest.mark.slow
@pytest.mark.parametrize(("condition", "n"), [(10, 101), *SLOW])
def test_vrbo_settles_at_its_own_point(condition, n):
    """In blocks, of 101 rows with a short last one."""
    settles_at_its_own_point(condition, n)


@pytest.mark.slow
@pytest.mark.parametrize("condition", [10, 100])
@pytest.mark.parametrize("sampling", ["iid", "shuffled"])
def test_vrbo_needs_no_blocks(sampling, condition):
    settles_at_its_own_point(condition, 101, sampling)


# ---- STORM


@jax.jit
def direction_noise(problem, algorithm, start, sources, keys, mean, stops):
    """Of each chain at each stop: the sum over the steps before of |d - mean direction|^2, of w and of lam."""

    def step(carry, args, k, looks):
        (state, total), (problem, algorithm, mean) = carry, args
        new = algorithm.step(problem, state, looks, k)[0]
        # d was estimated at the point before the move
        at = jnp.concatenate([*new.before, jnp.ones(1)])
        far = jnp.concatenate(new.d) - mean @ at
        return new, total + jnp.stack([jnp.sum(far[:D] ** 2), jnp.sum(far[D:] ** 2)])

    def run(key):
        carry, args = (algorithm.init(problem, *start, sources), jnp.zeros(2)), (problem, algorithm, mean)
        return bx.fold_looks(algorithm.streams(sources), step, carry, args, key=key, start=0, stop=stops)[1]

    return jax.vmap(run)(keys)


RECURSIVE = {"SUSTAIN": (bx.SUSTAIN, K), "MRBO": (bx.MRBO, K + 1)}
"""And the terms of the series in the mean."""


def noise_of(name, p, power, steps):
    """The mean square of the noise of both directions over the last tenth of the steps."""
    rho, ratio = 0.3, 0.4
    # d_w and d_lam in the mean: M x - x = (rho d_w, -ratio rho d_lam)
    kind, terms = RECURSIVE[name]
    change = family.sustain(p, rho, ratio, linear_steps=terms, sizes=(None, None)).mean[:-1] - np.eye(D + M, D + M + 1)
    mean = change / np.repeat([rho, -ratio * rho], [D, M])[:, None]
    algorithm = kind(bx.Polynomial(rho, 1 / 3), ratio, linear_steps=K, weight=bx.Polynomial(1.0, power))
    sources = tuple(bx.Arrays(data, B) for data in (p.train_data, p.val_data))
    start, keys = (jnp.asarray(W0), jnp.asarray(p.lam)), jax.random.split(jax.random.key(2), 4)
    stops = jnp.asarray([steps - steps // 10, steps])
    total = np.asarray(direction_noise(p.problem, algorithm, start, sources, keys, jnp.asarray(mean), stops))
    return np.mean(total[:, 1] - total[:, 0], axis=0)


def falling_weights_halve_the_noise(name, condition, n, steps):
    """On as many samples; of w and of lam."""
    p = quadratic(condition, n)
    assert np.all(noise_of(name, p, 2 / 3, steps) < 0.5 * noise_of(name, p, 0.0, steps))


@pytest.mark.slow_but("MRBO")
@pytest.mark.parametrize("name", RECURSIVE)
def test_falling_weights_halve_the_noise_of_the_direction(name):
    falling_weights_halve_the_noise(name, 10, 101, 2000)


@pytest.mark.slow
@pytest.mark.parametrize("n", [101, 512])
@pytest.mark.parametrize("condition", [10, 100])
@pytest.mark.parametrize("name", RECURSIVE)
def test_falling_weights_after_ten_thousand_steps(name, condition, n):
    falling_weights_halve_the_noise(name, condition, n, 10_000)
