"""Mixed fixed-point iterations, the Neumann series in product form, and stochastic reverse mode."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.config import canonicalize
from bilevax.core.keys import stream
from bilevax.testing.closed_forms import FiniteAffine, FiniteQuadratic

N, D, M, K = 7, 3, 2, 9
P = FiniteAffine.random(3, n=N, d=D, m=M, q=0.8, noise=0.3)
ROWS = np.moveaxis(P.M, 1, 2)  # M_i^T
KEY = jax.random.key(5)
G, V0 = np.array([1.0, -2.0, 0.5]), np.array([0.5, 1.0, -1.0])
SOURCES = {
    "iid": bx.Arrays(ROWS, 2),
    "blocks": bx.Arrays(ROWS, 2, "blocks", seed=None),  # of which the last is short
    "all": bx.Arrays(ROWS),
}


def image(v, g, batch):
    return jnp.mean(batch, axis=0) @ v + g


@jax.jit
def solve(solver, source, start, key):
    return solver.solve(image, start, jnp.asarray(G), source, key=key)


@jax.jit
def minibatches(source, key):
    """(Mean matrix, weight) of the first K minibatches of a stream."""

    def note(out, _, j, draw):
        return out[0].at[j].set(jnp.mean(draw.batch, axis=0)), out[1].at[j].set(draw.weight)

    return source.fold(note, (jnp.zeros((K, D, D)), jnp.zeros(K)), (), key=key, start=0, stop=K)


def by_hand(a, eta, start, matrices, weights):
    """z after K moves in the order of the paper, old values on the right: z first, then w and u on one minibatch."""
    z, r = start, weights[0] * (matrices[0] @ start + G - start)
    w, u = start + r, r
    for t in range(len(matrices)):
        z = z + eta(t) * ((1 - a) * (u + z) + a * w - z)
        if t + 1 < len(matrices):
            step, A = eta(t) * weights[t + 1], matrices[t + 1]
            w, u = w + step * (A @ w + G - w), u + step * (A @ u - u)
    return z


SCHEDULES = {
    "no averaging": (bx.Constant(1.0), lambda t: 1.0),
    "harmonic": (bx.Harmonic(2.0, 3.0), lambda t: 2.0 / (3.0 + t)),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("steps", SCHEDULES)
def test_mixed_moves_are_those_of_the_paper(steps, source):
    schedule, eta = SCHEDULES[steps]
    drawn = jax.tree.map(np.asarray, minibatches(SOURCES[source], KEY))
    for a, start in itertools.product((0.0, 0.3, 1.0), (np.zeros(D), V0)):
        solver = canonicalize(bx.MixedFP(K, a, schedule))
        out = solve(solver, SOURCES[source], start, KEY)
        np.testing.assert_allclose(out.value, by_hand(a, eta, start, *drawn), rtol=1e-12)
        assert (int(out.calls), int(out.reads), int(out.last_step)) == (2 * K - 1, K, K)


@pytest.mark.parametrize("source", SOURCES)
def test_the_ends_are_two_other_solvers_on_the_same_minibatches(source):
    """a = 1 is the fixed-point iteration, a = 0 the series."""
    for start in (np.zeros(D), V0):
        at = partial(solve, source=SOURCES[source], start=start, key=KEY)
        series, mixed = at(bx.ProductNeumann(K)), at(canonicalize(bx.MixedFP(K, 0.0)))
        assert np.array_equal(series.value, mixed.value)
        one, other = at(canonicalize(bx.FixedPoint(K))), at(canonicalize(bx.MixedFP(K, 1.0)))
        np.testing.assert_allclose(one.value, other.value, rtol=1e-12)


def test_on_every_row_all_are_the_neumann_series():
    T = ROWS.mean(0)
    series = sum(np.linalg.matrix_power(T, j) @ G for j in range(K))
    for solver in (bx.ProductNeumann(K), *(bx.MixedFP(K, a) for a in (0.0, 0.25, 1.0))):
        out = solve(canonicalize(solver), SOURCES["all"], np.zeros(D), KEY)
        np.testing.assert_allclose(out.value, series, rtol=1e-12)
    # likewise the reverse mode, whose w is given
    w = jnp.asarray(P.w(P.lam))
    instance = bx.Instance(P.problem, jnp.asarray(P.lam), bx.Arrays(P.train_data), bx.Arrays(P.val_data))
    est = jax.jit(bx.StochasticReverse(bx.Given(), K).estimate)(instance, w, key=KEY)
    g = np.asarray(w) - P.target
    v = sum(np.linalg.matrix_power(T, j) @ g for j in range(K))
    np.testing.assert_allclose(est.v, v, rtol=1e-12)
    np.testing.assert_allclose(est.value, P.r * P.lam + P.B.mean(0).T @ v, rtol=1e-12)


@pytest.mark.parametrize("steps", ["no averaging", "half"])
def test_over_all_sequences_of_minibatches_the_mean_is_exact(Scripted, steps):
    """E w = E z + E u and A E z + E u = g: E z = A^-1 (g - prod (I - eta_t A) g), whatever is mixed."""
    k, eta = 4, {"no averaging": 1.0, "half": 0.5}[steps]
    three = ROWS[:3]
    A = np.eye(D) - three.mean(0)
    every = jnp.asarray(list(itertools.product(range(3), repeat=k)))[:, :, None]

    @jax.jit
    def values(solver):
        def one(script):
            source = Scripted(jnp.asarray(three), KEY, {"linear": script})
            return solver.solve(image, jnp.asarray(V0), jnp.asarray(G), source, key=stream(KEY, "linear")).value

        return jax.vmap(one)(every)

    r = G - A @ V0
    # z_1 = v_0 + eta r, and A z + u stays at g: u after k moves is prod (I - eta A) r
    wanted = V0 + np.linalg.solve(A, r - np.linalg.matrix_power(np.eye(D) - eta * A, k) @ r)
    spreads = []
    for a in (0.0, 0.3, 1.0):
        samples = np.asarray(values(canonicalize(bx.MixedFP(k, a, eta))))
        np.testing.assert_allclose(samples.mean(0), wanted, rtol=1e-12)
        spreads.append(samples.var(0).sum())
    assert min(spreads) > 0.01  # the mean alone is what they share
    assert spreads[0] != pytest.approx(spreads[2], rel=0.01)


def test_a_series_cut_off_at_random_is_one_of_its_terms_or_their_reweighted_sum():
    seen = set()
    for name, value in {
        "uniform": lambda terms: 4 * terms[-1],
        "geometric": lambda terms: sum(u / 0.75**j for j, u in enumerate(terms)),
    }.items():
        solver = canonicalize(bx.ProductNeumann(4, name))
        for seed in range(12):
            key = jax.random.key(seed)
            drawn = np.asarray(minibatches(SOURCES["iid"], key)[0])
            terms = [drawn[0] @ V0 + G - V0]
            for A in drawn[1:]:
                terms.append(A @ terms[-1])
            out = solve(solver, SOURCES["iid"], V0, key)
            p = int(out.calls) - 1
            if p < K:
                np.testing.assert_allclose(out.value, V0 + value(terms[: p + 1]), rtol=1e-12)
                seen.add((name, p))
    assert len(seen) >= 6


@pytest.mark.parametrize(("truncation", "probability"), [("uniform", lambda p: 0.25 * (p < 4)),
                                                         ("geometric", lambda p: 0.25 * 0.75**p)])  # fmt: skip
def test_lengths_have_the_distribution_that_the_weights_undo(truncation, probability):
    keys = jax.random.split(jax.random.key(1), 4000)
    calls = jax.jit(jax.vmap(lambda solver, key: solve(solver, SOURCES["iid"], V0, key).calls, (None, 0)))
    lengths = np.asarray(calls(canonicalize(bx.ProductNeumann(4, truncation)), keys)) - 1
    for p in range(8):
        chance = probability(p)
        error = np.sqrt(chance * (1 - chance) / len(keys))
        assert abs(np.mean(lengths == p) - chance) <= 4 * error
    assert np.all(calls(canonicalize(bx.ProductNeumann(1, truncation)), keys) == 1)


def reverse_of(Scripted, script, method, p=P):
    data = jax.tree.map(jnp.asarray, p.train_data)
    source = Scripted(data, KEY, {"linear": jnp.asarray(script)[:, None], "cross": jnp.asarray(script)[:, None]})
    instance = bx.Instance(p.problem, jnp.asarray(p.lam), source, bx.Arrays(p.val_data))
    return jax.jit(lambda instance, w: method.estimate(instance, w, key=KEY))(instance, jnp.asarray(P.w(P.lam)) + 0.1)


def test_reverse_mode_on_minibatches_by_hand(Scripted):
    """Each d2Phi is of the minibatch of its own step, and of the u before it."""
    script = [4, 0, 6, 2]
    est = reverse_of(Scripted, script, bx.StochasticReverse(bx.Given(), 4))
    u, v, h = P.w(P.lam) + 0.1 - P.target, 0.0, P.r * P.lam
    for i in script:
        h, v, u = h + P.B[i].T @ u, v + u, P.M[i].T @ u
    np.testing.assert_allclose(est.value, h, rtol=1e-12)
    np.testing.assert_allclose(est.v, v, rtol=1e-12)
    assert [int(getattr(est.cost, name).calls) for name in ("gradients", "hvps", "cross")] == [0, 4, 4]
    assert int(est.cost.samples) == 4 + 1


def test_reverse_mode_is_the_mixed_iteration_of_rate_zero_where_the_cross_product_is_not_sampled(Scripted):
    """The first minibatch of the mixed one, whose start is 0, plays no part."""
    p = FiniteAffine(P.M, np.broadcast_to(P.B.mean(0), P.B.shape), P.c, P.target, P.r, P.lam)
    est = reverse_of(Scripted, [4, 0, 6, 2], bx.StochasticReverse(bx.Given(), 4), p)
    for first in (1, 5):
        method = bx.SID(bx.Given(), canonicalize(bx.MixedFP(4, 0.0)), cross_batches=1)
        other = reverse_of(Scripted, [first, 4, 0, 6], method, p)
        np.testing.assert_allclose(other.value, est.value, rtol=1e-12)
        assert int(other.cost.hvps.calls) == 7
        assert int(other.cost.samples) == 4 + 1 + 1


def test_codes():
    source = SOURCES["iid"]
    for solver in (bx.MixedFP(3, 0.1, 0.1), bx.ProductNeumann(2)):
        assert int(solve(canonicalize(solver), source, V0, KEY).code) == bx.Code.TOLERANCE_NOT_MET
    growing = bx.Arrays(3.0 * ROWS / 0.8, 2)
    for solver in (bx.MixedFP(100, 0.1), bx.ProductNeumann(100)):
        assert int(solve(canonicalize(solver), growing, V0, KEY).code) == bx.Code.DIVERGED


def test_what_is_wrong_is_refused(refused):
    refused(lambda: bx.MixedFP(10, 1.5), bx.ParameterError, r"mixing must lie in \[0, 1\], got 1.5")
    refused(lambda: bx.ProductNeumann(10, "random"), bx.ParameterError, "truncation must be one of")
    solver = bx.MixedFP(10, 0.1)
    refused(lambda: bx.SID(solver, solver), bx.ParameterError, "inner must solve any map, and MixedFP solves affine")
    refused(lambda: bx.StochasticReverse(bx.Given(), -1), bx.ParameterError, "steps must be at least 0")
    keyed = bx.Arrays(jax.tree.map(np.asarray, P.train_data), 2, keys=True)
    for method in (bx.SID(bx.Given(), solver, 1), bx.StochasticReverse(bx.Given(), 3), bx.NSID(bx.Given(), solver, 1)):
        problem = bx.Problem(bx.GradientStep(lambda w, lam, batch: jnp.sum(w**2), 0.1), P.problem.outer_loss)
        with pytest.raises(bx.ParameterError, match="keys=True"):
            bx.hypergradient(problem, method, np.zeros(D), P.lam, keyed, bx.Arrays(P.val_data), key=KEY)


@jax.jit
def many(solver, source, g, keys):
    return jax.vmap(lambda key: solver.solve(image, jnp.zeros_like(g), g, source, key=key).value)(keys)


@pytest.mark.slow
def test_mixing_is_better_than_either_end_and_averaging_better_still():
    """1,000 symmetric matrices of 100 columns (Terashita, Hara 2025), a row a step, 10,000 steps."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(1000, 100, 100)))[0]
    A = (Q * rng.uniform(0, 0.99, size=(1000, 1, 100))) @ Q.transpose(0, 2, 1)
    B, g = rng.uniform(size=(100, 100)), rng.normal(size=100)
    truth, keys = B.T @ np.linalg.solve(A.mean(0), g), jax.random.split(KEY, 3)
    source = bx.Arrays(np.eye(100, dtype=np.float32) - A.astype(np.float32), 1)

    def error(solver):
        v = np.asarray(many(canonicalize(solver), source, jnp.asarray(g, jnp.float32), keys), np.float64)
        return np.mean(np.linalg.norm(v @ B - truth, axis=1))

    n = 10_000
    ends = min(error(bx.FixedPoint(n, confirm=False)), error(bx.ProductNeumann(n)))
    mixed = {a: error(bx.MixedFP(n, a)) for a in (1e-3, 1e-2)}
    averaged = min(error(bx.MixedFP(n, 1e-2, eta)) for eta in (1e-2, bx.Harmonic(100.0, 101.0)))
    assert all(ends > 5 * x for x in mixed.values())
    assert averaged < 0.8 * min(mixed.values())


@pytest.mark.slow
def test_series_cut_off_at_random_are_right_in_the_mean():
    """20,000 runs each: "uniform" has the mean of the K terms, "geometric" that of all."""
    source, number = bx.Arrays(ROWS, 2), 20_000
    keys, T = jax.random.split(KEY, number), ROWS.mean(0)
    partial_sum = sum(np.linalg.matrix_power(T, j) @ G for j in range(4))
    wanted = {None: partial_sum, "uniform": partial_sum, "geometric": np.linalg.solve(np.eye(D) - T, G)}
    for truncation, mean in wanted.items():
        samples = np.asarray(many(canonicalize(bx.ProductNeumann(4, truncation)), source, jnp.asarray(G), keys))
        error = samples.mean(0) - mean
        assert number * error @ np.linalg.solve(np.cov(samples.T), error) < 21.1  # chi^2 of 3, .9999


METHODS = {
    "mixed": lambda t: bx.SID(
        bx.FixedPoint(4 * t, bx.Harmonic(4.0, 8.0)), bx.MixedFP(t, 0.05, bx.Harmonic(4.0, 8.0)), t
    ),
    "series": lambda t: bx.SID(bx.FixedPoint(4 * t, bx.Harmonic(4.0, 8.0)), bx.ProductNeumann(t), t),
    "uniform": lambda t: bx.SID(bx.FixedPoint(4 * t, bx.Harmonic(4.0, 8.0)), bx.ProductNeumann(t, "uniform"), t),
    "reverse": lambda t: bx.StochasticReverse(bx.FixedPoint(4 * t, bx.Harmonic(4.0, 8.0)), t),
    "nsid": lambda t: bx.NSID(bx.FixedPoint(4 * t, bx.Harmonic(4.0, 8.0)), bx.FixedPoint(t, bx.Harmonic(4.0, 8.0)), t),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_report_is_not_below_the_error(name):
    """Of short, biased runs and of longer ones: an upper limit at .95 that holds in at least 90 of 100 runs."""
    p = FiniteQuadratic.conditioned(2, condition=8.0, d=6, m=3)
    sources = bx.Arrays(p.train_data, 8), bx.Arrays(p.val_data)
    truth, keys = p.hypergradient(p.lam), jax.random.split(KEY, 100)

    @jax.jit
    def run(method, key):
        est = bx.hypergradient(p.problem, method, jnp.zeros(6), jnp.asarray(p.lam), *sources, key=key)
        return est.value, est.error.upper, est.code

    for t in (3, 100):
        method = canonicalize(METHODS[name](t))
        value, upper, code = map(np.asarray, jax.vmap(run, (None, 0))(method, keys))
        error = np.linalg.norm(value - truth, axis=1) / np.linalg.norm(value, axis=1)
        assert np.mean(error <= upper) >= 0.9
        assert np.mean((code == bx.Code.OK) & (error > 0.1)) <= 0.05
        if t == 3:
            assert np.mean(code == bx.Code.OK) <= 0.05
