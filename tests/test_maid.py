"""MAID: what it says of its own errors holds, f falls at every move, and neither tolerance nor step has to be known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import bilevax as bx
from bilevax.algorithms import maid
from bilevax.testing.closed_forms import FiniteQuadratic

D, M = 6, 3


def quadratic(condition=100, scale=1.0):
    p = FiniteQuadratic.conditioned(0, condition=condition, n=101, n_val=101, d=D, m=M)
    if scale == 1.0:
        return p, p.problem
    return p, bx.Problem(p.problem.inner_map, lambda w, lam, batch: scale * p.problem.outer_loss(w, lam, batch))


def run(p, problem, algorithm, steps=120):
    """The result, and every lam on the way."""
    lams = [p.lam]
    start = problem, algorithm, jnp.zeros(D), jnp.asarray(p.lam), bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    result = bx.minimize(*start, steps=steps, key=jax.random.key(0), every=1,
                         callback=lambda at: lams.append(np.asarray(at.lam)))  # fmt: skip
    return result, np.array(lams)


@pytest.mark.slow_but("1000.0-0.4-10", "0.001-0.001-10")
@pytest.mark.parametrize("condition", [10, 100])
@pytest.mark.parametrize(("step_size", "tol"), [(None, 0.4), (1e3, 0.4), (1e-3, 1e-3)])
def test_f_falls_at_every_move_whatever_the_first_step_and_tolerance(condition, step_size, tol):
    p, problem = quadratic(condition)
    result, lams = run(p, problem, bx.MAID(step_size, tol=tol))
    assert result.code == bx.Code.OK
    f, moved = np.array([p.value(lam) for lam in lams]), np.any(np.diff(lams, axis=0) != 0, axis=1)
    least = p.value(p.minimiser)
    # differences of f are rounding below that
    falling = f[:-1] - least > 1e-11 * (f[0] - least)
    assert np.all(np.diff(f)[moved & falling] < 0)
    assert f[-1] - least < 1e-9 * (f[0] - least)
    assert moved.sum() > 8


def test_what_it_says_of_its_errors_holds():
    """At each step: the hypergradient within its error of the closed form, E within its slack of f."""
    p, problem = quadratic()
    sources = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    algorithm = bx.MAID(tol=0.4)

    @jax.jit
    def advance(state, k):
        def step(state, _, k, looks):
            return algorithm.step(problem, state, looks, k)[0]

        return bx.fold_looks(algorithm.streams(sources), step, state, (), key=jax.random.key(0), start=k, stop=k + 1)

    state, seen = algorithm.init(problem, jnp.zeros(D), jnp.asarray(p.lam), sources), 0
    for k in range(60):
        lam = np.asarray(state.lam)
        state = advance(state, jnp.int32(k))
        if np.array_equal(state.lam, lam):  # else what is known is of the lam before
            known, seen = state.known, seen + 1
            assert np.linalg.norm(known.gradient - p.hypergradient(lam)) <= known.error
            # to first order; the rest is of second order in the error of w
            beyond = np.sum((np.asarray(known.w) - p.w(lam)) ** 2)
            assert abs(known.value - p.value(lam)) <= known.slack + beyond + 1e-14
            # and is not so large that nothing could be told
            assert known.error < 100 * np.linalg.norm(p.hypergradient(lam))
    assert seen > 10


@pytest.mark.slow
def test_scaling_the_outer_loss_changes_no_iterate():
    p, problem = quadratic()
    _, lams = run(p, problem, bx.MAID(), steps=40)
    # powers of two: other scales round otherwise, and a solver may then stop a step earlier
    for scale in (2.0**-10, 2.0**10):
        assert np.array_equal(run(p, quadratic(scale=scale)[1], bx.MAID(), steps=40)[1], lams)


def test_a_step_that_is_not_certain_is_not_made(monkeypatch):
    """With errors that are taken to be large, lam stays where it is, and the tolerances are made finer."""
    monkeypatch.setattr(maid, "_slack", lambda *_: jnp.asarray(1e6))
    p, problem = quadratic()
    sources = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    result = bx.minimize(problem, bx.MAID(0.01), jnp.zeros(D), jnp.asarray(p.lam), *sources, steps=7,
                         key=jax.random.key(0))  # fmt: skip
    assert np.array_equal(result.lam, p.lam)
    # every trial asks for both solvers anew
    assert np.all(np.diff(result.history.samples) > 0)


def test_a_map_without_a_loss_is_refused():
    problem = bx.Problem(lambda w, lam, batch: 0.5 * w + lam, lambda w, lam, batch: jnp.sum(w**2))
    rows = bx.Arrays((np.zeros((3, 1)),))
    with pytest.raises(bx.ParameterError, match="MAID needs an inner loss"):
        bx.minimize(problem, bx.MAID(), jnp.zeros(2), jnp.zeros(2), rows, rows, steps=1, key=jax.random.key(0))


# ---- ISGD: the tolerance of step k


def isgd(tolerance):
    return bx.BSGM(bx.SID(bx.LBFGS(), bx.CG()), bx.optim("sgd", 0.3), warm_start=True, tolerance=tolerance)


def test_the_tolerance_of_step_k_is_that_of_its_schedule():
    p, problem = quadratic()
    _, lams = run(p, problem, isgd(bx.Polynomial(0.5, 1.0)), steps=4)
    w, v, lam = jnp.zeros(D), jnp.zeros(D), p.lam
    train, val = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    for k in range(4):
        tol = 0.5 / (1 + k)
        est = bx.hypergradient(problem, bx.SID(bx.LBFGS(tol), bx.CG(tol)), w, lam, train, val, v0=v,
                               key=jax.random.key(0), report=False)  # fmt: skip
        w, v, lam = est.w, est.v, lam - 0.3 * np.asarray(est.value)
        np.testing.assert_allclose(lams[k + 1], lam, rtol=1e-10)


@pytest.mark.slow
def test_a_falling_tolerance_ends_at_the_solution_and_a_fixed_one_does_not():
    p, problem = quadratic()

    def left(tolerance):
        lam = run(p, problem, isgd(tolerance), steps=300)[1][-1]
        return np.linalg.norm(p.hypergradient(lam)) / np.linalg.norm(p.hypergradient(p.lam))

    assert left(lambda k: 0.1 * 0.9 ** k.astype(float)) < 1e-6
    assert left(bx.Constant(0.1)) > 1e-3


@pytest.mark.parametrize("estimator", [bx.SID(bx.LBFGS(), bx.FixedPoint(9)), bx.SID(bx.Given(), bx.CG()), bx.ITD(5)])
def test_a_tolerance_of_solvers_without_one_is_refused(estimator):
    with pytest.raises(bx.ParameterError, match="tolerance is a schedule such as"):
        bx.BSGM(estimator, bx.optim("sgd", 0.3), tolerance=bx.Polynomial(0.1, 1.0))


# ---- a table


@pytest.mark.slow
def test_on_digits_with_noise_features_the_end_does_not_depend_on_the_first_tolerance():
    """A penalty for each of 128 features, of which 64 are noise; validation loss at a budget of passes over train."""
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    X, order = np.concatenate([X / 16.0, rng.standard_normal((len(X), 64))], axis=1), rng.permutation(len(X))
    (train, val) = ((X[rows], y[rows]) for rows in (order[:500], order[500:1000]))
    problem = bx.Problem(bx.GradientStep(bx.MultinomialLogistic("feature")), bx.MultinomialLogistic(None))
    exact = bx.SID(bx.LBFGS(1e-10), bx.Exact())

    def f(lam):
        start = problem, exact, jnp.zeros((10, 128)), lam, bx.Arrays(train), bx.Arrays(val)
        return float(bx.hypergradient(*start, key=jax.random.key(0), report=False).outer_value)

    def course(tol):
        lams = []

        def keep(at):
            lams.append(at.lam)
            return at.history.samples[-1] > 7000 * 500

        start = problem, bx.MAID(1.0, tol=tol), jnp.zeros((10, 128)), jnp.full(128, -5.0)
        sources = bx.Arrays(train), bx.Arrays(val)
        result = bx.minimize(*start, *sources, steps=300, key=jax.random.key(0), every=1, callback=keep)
        values = [f(lam) for lam in lams[:: len(lams) // 8]]
        assert np.all(np.diff(values) <= 0)
        # a step near the end lowers it by some per cent: what it is after 6,000 passes lies between two of them
        return np.interp(6000 * 500, result.history.samples, result.history.outer_value)

    ends = [course(tol) for tol in (0.5, 0.1, 0.001)]
    assert max(ends) < 0.3 * f(jnp.full(128, -5.0))
    # as far apart as some hundred passes carry f, which still falls
    assert max(ends) / min(ends) < 1.06
