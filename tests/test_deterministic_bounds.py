"""Every row at each step. SID is approximate implicit differentiation, and keeps its bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.config import canonicalize
from bilevax.testing.closed_forms import FiniteQuadratic, PenalisedRidge
from bilevax.theory import aid_bound, aid_fixed_point_bound, conjugate_gradient_factor, itd_bound

KEY = jax.random.key(0)
COUNTS = (1, 2, 5, 10, 20, 50, 100)
PROBLEMS = {"quadratic": FiniteQuadratic.random(0), "ridge": PenalisedRidge.random(0)}


def aid_fp(p, t, k):
    """AID with t and k fixed-point steps from 0, in numpy, by hand-derived derivatives: (hypergradient, w, v)."""
    lam, alpha = p.lam, p.problem.inner_map.step_size
    if isinstance(p, FiniteQuadratic):
        H, c = p.A.mean(0), p.b.mean(0) + p.B.mean(0) @ lam
    else:
        H, c = p.X.T @ p.X / len(p.y) + np.diag(np.exp(lam)), p.X.T @ p.y / len(p.y)
    w, v = np.zeros_like(c), np.zeros_like(c)
    for _ in range(t):
        w = w - alpha * (H @ w - c)
    g = w - p.target if isinstance(p, FiniteQuadratic) else p.Z.T @ (p.Z @ w - p.u) / len(p.u)
    for _ in range(k):
        v = v - alpha * (H @ v) + g
    if isinstance(p, FiniteQuadratic):
        return p.r * lam + alpha * p.B.mean(0).T @ v, w, v
    return -alpha * np.exp(lam) * w * v, w, v


@jax.jit
def estimate(problem, estimator, w0, lam, sources):
    est = estimator.estimate(bx.Instance(problem, lam, *sources), w0, key=KEY)
    return est.value, est.w, est.v


def run(p, estimator, w0=None):
    w0 = np.zeros_like(p.w(p.lam)) if w0 is None else w0
    sources = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    return estimate(canonicalize(p.problem), canonicalize(estimator), jnp.asarray(w0), jnp.asarray(p.lam), sources)


def error(value, p):
    return np.linalg.norm(np.asarray(value) - p.hypergradient(p.lam))


@pytest.mark.parametrize("name", PROBLEMS)
def test_sid_on_every_row_is_aid_and_within_its_bound(name):
    p, errors = PROBLEMS[name], []
    c, distance = p.constants(p.lam), np.linalg.norm(p.w(p.lam))
    for t in COUNTS:
        found = run(p, bx.SID(bx.FixedPoint(t), bx.FixedPoint(t)))
        for x, truth in zip(found, aid_fp(p, t, t), strict=True):
            assert np.linalg.norm(np.asarray(x).reshape(-1) - truth) <= 1e-12 * np.linalg.norm(truth)
        errors.append(error(found[0], p))
        assert errors[-1] <= aid_fixed_point_bound(c, t, t, distance) + 1e-13
    assert errors[0] > 1e-3


def test_the_error_falls_as_q_to_the_t():
    p = PROBLEMS["quadratic"]
    counts = np.arange(10, 40, 5)
    errors = [error(aid_fp(p, t, t)[0], p) for t in counts]
    shipped = error(run(p, bx.SID(bx.FixedPoint(35), bx.FixedPoint(35)))[0], p)
    assert shipped == pytest.approx(errors[-1], rel=1e-6)
    slope = np.polyfit(counts, np.log(errors), 1)[0]
    assert slope == pytest.approx(np.log(p.curvature.q), rel=0.05)


@pytest.fixture(scope="module")
def ridge_errors():
    """{t: [(ITD, AID-FP, AID-CG, p), one a seed]} on P2."""
    found = {}
    for t in (5, 10, 20, 50):
        ways = {
            "ITD": bx.ITD(t),
            "FP": bx.SID(bx.FixedPoint(t), bx.FixedPoint(t)),
            "CG": bx.SID(bx.FixedPoint(t), bx.CG(tol=1e-300, max_steps=t)),
        }
        found[t] = []
        for seed in range(7):
            p = PenalisedRidge.random(seed)
            found[t].append((p, {name: error(run(p, way)[0], p) for name, way in ways.items()}))
    return found


@pytest.mark.slow
def test_itd_is_behind_aid_at_equal_counts(ridge_errors):
    for of_seeds in ridge_errors.values():
        assert np.median([errors["ITD"] / errors["FP"] for _, errors in of_seeds]) >= 1


def test_every_way_is_within_its_bound(ridge_errors):
    for t, of_seeds in ridge_errors.items():
        for p, errors in of_seeds:
            c, distance = p.constants(p.lam), np.linalg.norm(p.w(p.lam))
            assert errors["ITD"] <= itd_bound(c, t, distance)
            assert errors["FP"] <= aid_fixed_point_bound(c, t, t, distance) <= itd_bound(c, t, distance)
            solved = conjugate_gradient_factor(t, c.kappa)
            assert errors["CG"] <= aid_bound(c, c.q**t, solved, distance) + 1e-13


@pytest.mark.parametrize("name", PROBLEMS)
def test_conjugate_gradients_are_ahead_in_the_energy_norm(name):
    """At every k, at the exact w: among all polynomials of degree k in I - d1Phi theirs has the smallest error."""
    p = PROBLEMS[name]
    H = p.A.mean(0) if name == "quadratic" else p.X.T @ p.X / len(p.y) + np.diag(np.exp(p.lam))

    def energy(v):
        off = (np.asarray(v) - p.v(p.lam)).reshape(-1)
        return off @ H @ off

    for k in range(1, 13):
        ways = bx.SID(bx.Given(), bx.CG(tol=1e-300, max_steps=k)), bx.SID(bx.Given(), bx.FixedPoint(k))
        by_cg, by_fp = (energy(run(p, way, p.w(p.lam))[2]) for way in ways)
        assert by_cg <= by_fp * (1 + 1e-10) + 1e-24
    assert by_cg < 0.05 * by_fp
