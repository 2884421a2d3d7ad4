"""Faults C13 to C15 (docs/faults.md): two minima, kinks, and outer variables that run away."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx

KEY = jax.random.key(0)
ROWS = bx.Arrays(np.zeros(1))


# C13: a double well, tilted by lam


def double_well(w, lam, batch):
    return jnp.sum(0.25 * (w**2 - 1.0) ** 2 - lam * w) + 0.0 * jnp.sum(batch)


def place(w, lam, batch):
    return jnp.sum(w) + 0.0 * jnp.sum(batch)


WELLS = bx.Problem(bx.GradientStep(double_well, 0.2), place)
SOLVED = bx.SID(bx.FixedPoint(400), bx.FixedPoint(400))


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_c13_the_start_chooses_the_minimum_and_its_hypergradient_is_local(side):
    """w^3 - w = lam, so dw/dlam = 1 / (3 w^2 - 1) in the well of the start."""
    lam = np.array([0.1])
    est, again = (bx.hypergradient(WELLS, SOLVED, np.array([1.5 * side]), lam, ROWS, ROWS, key=KEY) for _ in range(2))
    root = min(np.roots([1.0, 0.0, -1.0, -0.1]).real, key=lambda r: abs(r - side))
    assert est.code == bx.Code.OK
    np.testing.assert_allclose(est.w, [root], rtol=1e-10)
    np.testing.assert_allclose(est.value, [1 / (3 * root**2 - 1)], rtol=1e-10)
    np.testing.assert_array_equal(est.value, again.value)


@pytest.mark.slow
def test_c13_a_warm_start_stays_in_its_well_and_a_cold_one_does_not():
    """Pushed from .1 to below 0, lam makes the left well the deeper one; only a warm start remains in the right one."""
    sid = bx.SID(bx.FixedPoint(200), bx.FixedPoint(200))

    def last(warm, w0, rate=0.05):
        algorithm = bx.BSGM(sid, bx.optim("sgd", learning_rate=rate), warm_start=warm)
        return bx.minimize(WELLS, algorithm, np.array([w0]), np.array([0.1]), ROWS, ROWS, steps=5, key=KEY)

    assert last(True, 1.5).w[0] > 0.5
    assert last(True, -1.5).w[0] < -0.5
    hill = last(False, 0.0, 0.3)  # where the curvature is -1: damped, the hypergradient is half as long
    assert hill.code < bx.Code.NOT_CONTRACTIVE
    assert "damped by" in hill.message
    assert hill.w[0] < -0.5  # from there, each lam < 0 rolls to the left


# C14: the lasso of one weight, w(lam) = soft(c, exp(lam))


def soft(w, lam, s):
    return jnp.sign(w) * jnp.maximum(jnp.abs(w) - s * jnp.exp(lam), 0.0)


def half_square(w, lam, batch):
    return 0.5 * jnp.mean((w - batch) ** 2)


@pytest.mark.parametrize(("c", "element"), [(2.0, (-1.0, -1.0)), (0.5, (0.0, 0.0)), (1.0, (-1.0, 0.0))])
def test_c14_at_the_kink_it_is_an_element_of_the_conservative_derivative(c, element):
    """At exp(lam) = 1: dw/dlam is -1 above the kink c = 1, 0 below, and between them on it."""
    rows = bx.Arrays(np.array([c]))
    problem = bx.Problem(bx.ProximalStep(half_square, soft, 0.5), place)
    est = bx.hypergradient(problem, SOLVED, np.array([3.0]), np.zeros(1), rows, rows, key=KEY, report=False)
    assert element[0] - 1e-9 <= est.value[0] <= element[1] + 1e-9


# C15: a penalty that the outer loop would drive to infinity, or to zero


def penalised(w, lam, batch):
    return 0.5 * jnp.sum((w - batch[0]) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def far(w, lam, batch):
    """Least at w = 0, where no lam puts it."""
    return 0.5 * jnp.sum(w**2) + 0.0 * jnp.sum(batch)


def near(w, lam, batch):
    """Least at the rows themselves: without a penalty."""
    return 0.5 * jnp.sum((w - batch[0]) ** 2)


@pytest.mark.parametrize(("outer", "bound"), [(far, 8.0), (near, -8.0)])
def test_c15_a_penalty_that_runs_away_stops_at_the_box_and_the_run_says_so(outer, bound):
    rows = bx.Arrays(np.array([[1.0, -2.0]]))
    problem = bx.Problem(bx.GradientStep(penalised), outer, bx.Box(-8.0, 8.0))
    exact = bx.SID(bx.LBFGS(1e-12), bx.CG(1e-12))
    algorithm = bx.BSGM(exact, bx.optim("adam", learning_rate=1.0), warm_start=True)
    result = bx.minimize(problem, algorithm, np.ones(2), np.zeros(2), rows, rows, steps=60, key=KEY)
    np.testing.assert_array_equal(result.lam, [bound, bound])
    assert np.isfinite(result.w).all()
    assert np.isfinite(result.history.outer_value).all()
    assert result.at_bound.all()
    assert "holds back 2 of its 2 entries" in result.message


def test_c15_without_a_box_what_overflows_ends_the_run_with_finite_values():
    rows = bx.Arrays(np.array([[1.0, -2.0]]))
    problem = bx.Problem(bx.GradientStep(penalised, 0.1), far)
    sid = bx.SID(bx.FixedPoint(50), bx.FixedPoint(50))
    algorithm = bx.BSGM(sid, bx.optim("adam", learning_rate=30.0), warm_start=True)
    result = bx.minimize(problem, algorithm, np.ones(2), np.zeros(2), rows, rows, steps=60, key=KEY)
    assert result.code >= bx.Code.NOT_CONTRACTIVE
    assert np.isfinite(result.lam).all()
    assert np.isfinite(result.w).all()
    assert result.at_bound is None


@pytest.mark.parametrize(
    ("project", "lam", "held"),
    [
        (bx.Box(0.0, np.array([1.0, 2.0, 3.0])), [0.0, 1.0, 3.0], [True, False, True]),
        (bx.NonNegative(), [0.0, 1.0, 3.0], [True, False, False]),
        (bx.Simplex(), [0.0, 0.25, 0.75], [True, False, False]),
        (bx.CappedSimplex(2.0), [0.0, 0.25, 1.0], [True, False, True]),
        (bx.L2Ball(5.0), [0.0, 3.0, 4.0], [True, True, True]),
        (bx.L2Ball(5.0), [0.0, 3.0, 3.0], [False, False, False]),
        (bx.Box(), [0.0, 1.0, 2.0], [False, False, False]),
    ],
    ids=str,
)
def test_c15_what_a_set_holds_back(project, lam, held):
    lam = jnp.asarray(lam)
    np.testing.assert_array_equal(project.at_bound(lam), held)
    with jax.numpy_dtype_promotion("standard"):  # which optax needs for a simplex
        np.testing.assert_allclose(project(lam), lam, atol=1e-15)


def from_the_breakpoints(x, total):
    """The projection onto {0 <= s <= 1, sum s <= total}, by trying every interval between the kinks of the sum."""
    if np.clip(x, 0, 1).sum() <= total:
        return np.clip(x, 0, 1)
    kinks = np.unique(np.concatenate([x, x - 1.0, [0.0]]))
    kinks = kinks[kinks >= 0]
    for low, high in itertools.pairwise(kinks):
        sums = [np.clip(x - tau, 0, 1).sum() for tau in (low, high)]
        if sums[0] >= total >= sums[1]:
            return np.clip(x - np.interp(-total, [-sums[0], -sums[1]], [low, high]), 0, 1)
    raise AssertionError("the sum never crosses the total")


@pytest.mark.parametrize("total", [0.3, 1.0, 2.5, 6.0])
def test_c15_the_capped_simplex_is_nearest_and_feasible(total):
    rng = np.random.default_rng(3)
    project = jax.jit(jax.vmap(bx.CappedSimplex(total)))
    many = rng.normal(size=(200, 8)) * rng.choice([0.1, 1.0, 5.0], size=(200, 1)) + rng.normal(size=(200, 1))
    found = np.asarray(project(jnp.asarray(many)))
    np.testing.assert_allclose(found, [from_the_breakpoints(x, total) for x in many], atol=1e-13)
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.sum(1).max() <= total * (1 + 1e-15 * len(many[0]))
    # what is in the set stays, and leaves count together
    np.testing.assert_allclose(project(jnp.asarray(found)), found, atol=1e-14)
    tree = {"a": jnp.asarray(many[0, :3]), "b": jnp.asarray(many[0, 3:])}
    both = bx.CappedSimplex(total)(tree)
    np.testing.assert_array_equal(np.concatenate([both["a"], both["b"]]), project(jnp.asarray(many[:1]))[0])
