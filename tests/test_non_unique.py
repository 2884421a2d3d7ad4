"""Inner problems with more than one solution: aggregated descent, and the worst point of a trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.testing.closed_forms import FiniteQuadratic, PenalisedRidge

KEY = jax.random.key(0)
ROWS = bx.Arrays(np.zeros(1))


def flat_loss(w, lam, batch):
    """Whose minima are all (lam, anything)."""
    return 0.5 * w[0] ** 2 - lam * w[0]


def both(w, lam, batch):
    return 0.5 * (lam - w[1]) ** 2 + 0.5 * (w[0] - 1.0) ** 2


PROBLEM = bx.Problem(bx.GradientStep(flat_loss, 1.0), both)


def stationary(steps, mu):
    """Where E(w_T(lam), lam) is least, from the recursions of w and dw / dlam in numpy."""

    def gradient(lam):
        w, J = np.zeros(2), np.zeros(2)
        for j in range(steps):
            a = mu / (j + 1)
            move, pushed = np.array([lam - w[0], 0.0]), np.array([1.0 - J[0], 0.0])
            outer, pushed_outer = np.array([w[0] - 1.0, w[1] - lam]), np.array([J[0], J[1] - 1.0])
            w, J = w + (1 - mu) * move - a * outer, J + (1 - mu) * pushed - a * pushed_outer
        return (lam - w[1]) * (1 - J[1]) + (w[0] - 1.0) * J[0]

    # it is linear in lam
    return gradient(0.0) / (gradient(0.0) - gradient(1.0))


@pytest.mark.parametrize(
    ("steps", "reached"),
    [(16, 0.978), pytest.param(64, 0.995, marks=pytest.mark.slow), pytest.param(256, 0.999, marks=pytest.mark.slow)],
)
def test_plain_unrolling_is_stuck_where_aggregated_descent_is_not(steps, reached):
    """The least of E over the solutions of the inner problem too is at lam = 1."""
    for mu, wanted in ((0.0, 0.5), (0.5, reached)):
        estimator = bx.ITD(steps, 1 - mu, outer_weight=bx.Harmonic(mu, 1.0) if mu else None)
        algorithm = bx.BSGM(estimator, bx.optim("sgd", 0.5))
        result = bx.minimize(PROBLEM, algorithm, np.zeros(2), np.float64(0.0), ROWS, ROWS, steps=60, key=KEY)
        np.testing.assert_allclose(float(result.lam), stationary(steps, mu), atol=1e-9)
        np.testing.assert_allclose(float(result.lam), wanted, atol=5e-4)


def test_the_penalty_method_chooses_the_best_solution_at_any_multiplier():
    algorithm = bx.BSGM(bx.Penalty(bx.LBFGS(1e-10), 10.0, unit=1.0), bx.optim("sgd", 0.5))
    result = bx.minimize(PROBLEM, algorithm, np.zeros(2), np.float64(0.0), ROWS, ROWS, steps=60, key=KEY)
    np.testing.assert_allclose(float(result.lam), 1.0, atol=1e-6)


def test_of_a_problem_without_a_hypergradient_none_is_said_to_be_right():
    est = bx.hypergradient(PROBLEM, bx.ITD(16), np.zeros(2), np.float64(0.3), ROWS, ROWS, key=KEY)
    # the derivative of E(w_16(lam), lam) = lam^2 / 2 + (lam - 1)^2 / 2
    np.testing.assert_allclose(float(est.value), 0.3 - 0.7, rtol=1e-12)
    assert est.code == bx.Code.TOLERANCE_NOT_MET


P = FiniteQuadratic.random(3, n=20, d=4, m=3)
A, B, b, TARGET = P.A.mean(0), P.B.mean(0), P.b.mean(0), P.target
STEP = P.curvature.alpha


def central(fn, lam, h=1e-5):
    return np.array([(fn(lam + h * e) - fn(lam - h * e)) / (2 * h) for e in np.eye(len(lam))])


def sources():
    return bx.Arrays(P.train_data), bx.Arrays(P.val_data)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_aggregated_descent_has_the_derivative_of_its_trajectory(mode):
    estimator = bx.ITD(7, 0.6, mode=mode, outer_weight=bx.Harmonic(0.4, 1.0))
    w0 = P.w(P.lam) + np.linspace(-1.0, 2.0, 4)
    est = bx.hypergradient(P.problem, estimator, w0, P.lam, *sources(), key=KEY, report=False)

    def value(lam):
        # w0 is a number here: it does not move with lam
        w = w0
        for j in range(7):
            w = w - 0.6 * STEP * (A @ w - b - B @ lam) - 0.4 / (j + 1) * (w - TARGET)
        return 0.5 * np.sum((w - TARGET) ** 2) + 0.5 * 0.1 * np.sum(lam**2)

    np.testing.assert_allclose(est.outer_value, value(P.lam), rtol=1e-12)
    np.testing.assert_allclose(est.value, central(value, P.lam), rtol=1e-8)


def test_aggregated_descent_finds_the_hypergradient_of_a_problem_that_has_one():
    """With a bias of order a_t: it halves as t doubles, and the report knows of it."""
    truth, errors = P.hypergradient(P.lam), []
    for steps in (200, 400):
        estimator = bx.ITD(steps, 0.5, outer_weight=bx.Harmonic(0.5, 1.0))
        est = bx.hypergradient(P.problem, estimator, np.zeros(4), P.lam, *sources(), key=KEY)
        errors.append(np.linalg.norm(est.value - truth))
        assert errors[-1] <= float(est.error.upper) * np.linalg.norm(est.value)
    assert 1.8 < errors[0] / errors[1] < 2.2


def test_the_worst_point_of_a_trajectory_is_where_it_ends():
    """w goes to and fro across the solution, and is farthest from the target after its second step."""
    w0 = P.w(P.lam) - 2.0 * (TARGET - P.w(P.lam))

    def worst(lam):
        w, values, points = w0, [], []
        for _ in range(12):
            w = w - STEP * (A @ w - b - B @ lam)
            points.append(w)
            values.append(0.5 * np.sum((w - TARGET) ** 2) + 0.5 * 0.1 * np.sum(lam**2))
        return max(values), int(np.argmax(values)), points

    value, place, points = worst(P.lam)
    assert place == 1
    for mode in ("reverse", "forward"):
        estimator = bx.ITD(12, mode=mode, truncate="worst")
        est = bx.hypergradient(P.problem, estimator, w0, P.lam, *sources(), key=KEY)
        np.testing.assert_allclose(est.outer_value, value, rtol=1e-12)
        np.testing.assert_allclose(est.w, points[place], rtol=1e-12)
        np.testing.assert_allclose(est.value, central(lambda lam: worst(lam)[0], P.lam), rtol=1e-8)
        # it is not the hypergradient, which is not to be called right
        assert est.code == bx.Code.TOLERANCE_NOT_MET
        assert "Nothing is known of the error" in est.message
        assert "`bx.SID`" in est.message
        assert int(est.cost.outer_gradients.calls) == 13
    # nothing is drawn: that two runs agree says nothing
    est = bx.hypergradient(P.problem, estimator, w0, P.lam, *sources(), key=KEY, replicas=2)
    assert (int(est.code), est.error) == (bx.Code.TOLERANCE_NOT_MET, None)


@pytest.mark.parametrize("steps", [3, 10, 30, 100])
def test_forward_mode_knows_its_error(steps):
    p = PenalisedRidge.random(1, n=30, d=4)
    rows = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    est = bx.hypergradient(
        p.problem, bx.ITD(steps, mode="forward"), np.zeros_like(p.w(p.lam)), p.lam, *rows, key=KEY, tol=1e-3
    )
    error = np.linalg.norm(est.value - p.hypergradient(p.lam)) / np.linalg.norm(est.value)
    assert error <= float(est.error.upper)
    assert (est.code == bx.Code.OK) == (steps == 100)


def test_what_the_options_do_not_go_with_is_refused():
    with pytest.raises(bx.ParameterError, match="leave last away"):
        bx.ITD(5, last=2, truncate="worst")
    with pytest.raises(bx.ParameterError, match="truncate must be one of 'worst'; got 'best'"):
        bx.ITD(5, truncate="best")
    with pytest.raises(bx.ParameterError, match="outer_weight must lie in"):
        bx.ITD(5, outer_weight=-0.5)


def test_a_changed_weight_compiles_nothing():
    traces = []

    def watched(w, lam, batch):
        traces.append(1)
        return flat_loss(w, lam, batch)

    problem = bx.Problem(bx.GradientStep(watched, 1.0), both)
    for weight in (0.5, 0.25):
        estimator = bx.ITD(4, outer_weight=bx.Harmonic(weight, 1.0))
        bx.hypergradient(problem, estimator, jnp.zeros(2), jnp.zeros(()), ROWS, ROWS, key=KEY, report=False)
        traces.append(0)
    last = traces[::-1]
    assert last[0] == last[1] == 0
