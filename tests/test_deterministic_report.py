"""What a hypergradient on every row says of its error, against closed forms: Krylov solvers, early stops, rounding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.records import SolverError
from bilevax.solvers.left import KEPT, Ritz, energy_left, moves_left

KEY, D = jax.random.key(0), 20


def inner(w, lam, batch):
    return 0.5 * w @ (batch[0][0] @ w) - w @ lam


def outer(w, lam, batch):
    return 0.5 * jnp.sum((w - 1.0) ** 2) + 0.0 * jnp.mean(batch)


PROBLEM = bx.Problem(bx.GradientStep(inner, 1e-2), outer)


def instance(condition, outlier=False):
    """(H, lam, hypergradient), curvatures from 1 to the condition, times 1 / 100 in the map."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(D, D)))[0]
    spectrum = np.geomspace(1.0, condition, D) * 100 / condition
    if outlier:
        spectrum = np.append(rng.uniform(30.0, 100.0, D - 1), 100 / condition)
    H = (Q * spectrum) @ Q.T
    H, lam = (H + H.T) / 2, rng.normal(size=D)
    w = np.linalg.solve(H, lam)
    return H, lam, np.linalg.solve(H, w - 1.0)


def reported(H, lam, estimator):
    train, val = bx.Arrays((np.stack([H, H]),)), bx.Arrays(np.zeros((4, 1)))
    return bx.hypergradient(PROBLEM, estimator, np.zeros(D), lam, train, val, key=KEY)


def off(est, truth):
    return np.linalg.norm(est.value - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize("outlier", [False, True])
def test_the_report_of_krylov_methods_follows_their_error(outlier):
    fits = []
    for condition in (15.0, 148.0, 1e4):
        H, lam, truth = instance(condition, outlier)
        for inner_steps, linear_steps in ((8, 8), (500, 8), (8, 500), (16, 16), (32, 32), (500, 500)):
            est = reported(H, lam, bx.SID(bx.LBFGS(max_steps=inner_steps), bx.CG(max_steps=linear_steps)))
            error, said = off(est, truth), float(est.error.upper)
            assert est.code == bx.Code.MAX_STEPS or error < 0.1, (
                condition,
                inner_steps,
                linear_steps,
                error,
                said,
            )
            if error < 1e-2:
                fits.append(0.5 < said / error < 20)
    assert len(fits) > 5
    assert np.mean(fits) > 0.8


def test_a_report_is_not_too_small_where_the_inner_solver_stops_by_its_tolerance():
    H, lam, truth = instance(1e4)  # was reported to be right to 8e-9
    est = reported(H, lam, bx.SID(bx.LBFGS(tol=1e-2), bx.CG()))
    assert 1e-3 < off(est, truth) < 10 * est.error.upper


def test_steps_that_were_used_up_are_forgiven_on_evidence_alone():
    H, lam, truth = instance(15.0)
    est = reported(H, lam, bx.SID(bx.LBFGS(tol=1e-14), bx.CG(tol=1e-9, max_steps=19)))
    assert est.code == bx.Code.OK
    assert off(est, truth) < 1e-3
    est = reported(H, lam, bx.SID(bx.LBFGS(), bx.CG(max_steps=6)))
    assert est.code == bx.Code.MAX_STEPS


@pytest.mark.parametrize("step", [0.05, 0.1, None])
def test_a_ridge_that_is_right_to_rounding_says_so(step):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 4))
    y = X @ np.array([1.0, -1.0, 2.0, 0.0]) + rng.normal(size=60)

    def error(w, lam, batch):
        return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)

    def ridge(w, lam, batch):
        return error(w, lam, batch) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    train, val = (bx.Arrays((X[rows], y[rows])) for rows in (slice(40), slice(40, 60)))
    problem = bx.Problem(bx.GradientStep(ridge, step), error)
    w0 = lam = np.zeros(4)
    est = bx.hypergradient(problem, bx.SID(bx.LBFGS(), bx.CG()), w0, lam, train, val, key=KEY)
    H = X[:40].T @ X[:40] / 40 + np.eye(4)
    w = np.linalg.solve(H, X[:40].T @ y[:40] / 40)
    truth = -w * np.linalg.solve(H, X[40:].T @ (X[40:] @ w - y[40:]) / 20)
    assert est.code == bx.Code.OK
    assert off(est, truth) < est.error.upper < 1e-4


def test_iterations_on_every_row_that_are_not_done_do_not_say_they_are():
    H, lam, truth = instance(148.0)
    for steps in (20, 100, 2000):
        for estimator in (bx.SID(bx.FixedPoint(steps), bx.FixedPoint(steps)), bx.JointSID(steps)):
            est = reported(H, lam, estimator)
            error, said = off(est, truth), float(est.error.upper)
            assert not said < 0.1 < error, (estimator, error, said)
            assert (steps < 2000) or (est.code == bx.Code.OK and error < said < 0.05), (estimator, error, said)


def test_the_smallest_ritz_value_is_followed():
    rng, ritz = np.random.default_rng(3), Ritz.of(jnp.zeros(()))
    a, b = rng.uniform(0.5, 3.0, 12), rng.uniform(0.05, 0.9, 12)
    for j in range(12):
        ritz = ritz.extended(jnp.asarray(a[j]), jnp.asarray(b[j]))
        L = np.diag(a[: j + 1] ** -0.5) + np.diag((b[:j] / a[:j]) ** 0.5, -1)
        least = np.linalg.eigvalsh(L @ L.T)[0]
        assert least * (1 - 1e-12) <= 1 / ritz.square <= 1.3 * least


def test_what_is_left_of_a_geometric_fall_is_its_sum():
    for number, q in ((9, 0.3), (40, 0.8), (200, 0.9)):
        j = np.arange(number)
        terms = np.zeros(KEPT)
        terms[j % KEPT] = q**j
        assert np.isclose(energy_left(jnp.asarray(terms), jnp.int32(number)), q**number / (1 - q), rtol=1e-9)


def test_moves_that_shrink_go_as_far_as_their_series():
    lengths, q = np.zeros(10), 0.9
    j = np.arange(100)
    lengths[j % 10] = q**j
    left = moves_left(jnp.asarray(lengths), jnp.int32(100), jnp.ones(1), jnp.array([q**99]), jnp.asarray(0.5))
    assert isinstance(left, SolverError)
    assert np.isclose(left.least, (0.1 - 1 / 100) / 0.5)
    assert q**100 / (1 - q) * 0.5 < left.move[0] < 1.2 * q**100 / (1 - q) * 0.5
    still = partial(moves_left, jnp.full(10, 1e-16), jnp.int32(400), jnp.ones(1), jnp.array([1e-16]), jnp.asarray(0.5))
    assert np.isinf(still().least)


def test_what_a_budget_too_small_for_the_condition_buys_is_not_called_right():
    rng, n, d = np.random.default_rng(0), 400, 24
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0] * np.logspace(0, -2, d)
    X = rng.normal(size=(2 * n, d)) @ Q.T
    y = X @ rng.normal(size=d) * 2 + 0.5 * rng.normal(size=2 * n)

    def error(w, lam, batch):
        return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)

    def ridge(w, lam, batch):
        return error(w, lam, batch) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    lam = np.full(d, np.log(3e-4))
    A = X[:n].T @ X[:n] / n + np.diag(np.exp(lam))
    w = np.linalg.solve(A, X[:n].T @ y[:n] / n)
    truth = -np.exp(lam) * w * np.linalg.solve(A, X[n:].T @ (X[n:] @ w - y[n:]) / n)
    train, val = bx.Arrays((X[:n], y[:n]), 32), bx.Arrays((X[n:], y[n:]))
    problem = bx.Problem(bx.GradientStep(ridge), error)
    for passes in (30, 60):
        plan = bx.plan(problem, np.zeros(d), lam, train, val, key=KEY, budget=passes * n)
        est = plan.run(key=jax.random.key(9))
        assert plan.method == "AID-CG"
        assert off(est, truth) > 0.1
        assert est.code == bx.Code.MAX_STEPS
