"""The linear solvers on a closed form: d = 20, condition 50, the inner solution exact, the hypergradient known.

The table of docs/results.md: ``table()`` computes it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.testing.closed_forms import FiniteQuadratic
from bilevax.testing.closed_forms.quadratic import quadratic_inner_loss, quadratic_outer_loss

OPTIMISED = True  # the last digits are what is compared
D, KAPPA, L = 20, 50.0, 3.0
STEP = 0.9 / L
EVERY = np.arange(1, 61)
SOLVERS = {
    "CG": lambda k: bx.CG(tol=1e-15, max_steps=k),
    "GMRES": lambda k: bx.GMRES(tol=1e-15, max_steps=k),
    "Neumann": lambda k: bx.Neumann(tol=1e-15, max_steps=k),
    "FixedPoint": lambda k: bx.FixedPoint(k),
}
SERIES = ["Neumann", "FixedPoint"]


def quadratic():
    """Curvatures L / KAPPA, ..., L, evenly spaced in logarithm, in random directions."""
    rng = np.random.default_rng(1)
    Q = np.linalg.qr(rng.normal(size=(D, D)))[0]
    H = (Q * np.geomspace(L / KAPPA, L, D)) @ Q.T
    b, B, target, lam = rng.normal(size=D), rng.normal(size=(D, D)), rng.normal(size=D), rng.normal(size=D)
    return FiniteQuadratic(A=((H + H.T) / 2)[None], b=b[None], B=B[None], target=target, r=0.0, lam=lam)


P = quadratic()
A = STEP * P.A[0]
V = P.v(P.lam, STEP)
G = A @ V
BEST = (np.sqrt(KAPPA) - 1) / (np.sqrt(KAPPA) + 1)


def estimates(name):
    """(hypergradients, v), each [60, 20], after 1, ..., 60 iterations of a solver."""
    problem = bx.Problem(bx.GradientStep(quadratic_inner_loss, STEP), quadratic_outer_loss)
    sources, w = (bx.Arrays(P.train_data), bx.Arrays(P.val_data)), jnp.asarray(P.w(P.lam))

    def after(k):
        sid = bx.SID(bx.Given(), SOLVERS[name](k))
        est = sid.estimate(bx.Instance(problem, jnp.asarray(P.lam), *sources), w, key=jax.random.key(0))
        return est.value, est.v

    return tuple(map(np.asarray, jax.jit(jax.vmap(after))(jnp.asarray(EVERY, jnp.int32))))


@pytest.fixture(scope="module")
def found():
    return {name: estimates(name) for name in SOLVERS}


def relative_errors(hypergradients):
    truth = P.hypergradient(P.lam)
    return np.linalg.norm(hypergradients - truth, axis=1) / np.linalg.norm(truth)


def table():
    """{solver: relative errors of the hypergradient after 5, 20 and 60 iterations}."""
    return {name: relative_errors(estimates(name)[0])[[4, 19, 59]] for name in SOLVERS}


def energy(v):
    """||v - v*||_A, which conjugate gradients minimise."""
    return np.sqrt(np.einsum("kd,de,ke->k", v - V, A, v - V))


def krylov(k):
    """An orthonormal basis of g, A g, ..., A^(k-1) g, [d, k]."""
    basis = np.zeros((D, 0))
    for _ in range(k):
        new = G if basis.shape[1] == 0 else A @ basis[:, -1]
        for _ in range(3):
            new = new - basis @ (basis.T @ new)
        basis = np.c_[basis, new / np.linalg.norm(new)]
    return basis


def test_the_problem_is_the_one_that_is_meant():
    assert abs(np.linalg.cond(P.A[0]) - KAPPA) < 1e-9
    assert abs(np.linalg.norm(P.B[0].T @ V * STEP - P.hypergradient(P.lam))) < 1e-10


@pytest.mark.slow
def test_conjugate_gradients_are_below_chebyshevs_bound_and_as_accurate_as_published_ones_that_are_right(found):
    hypergradients, v = found["CG"]
    size = np.sqrt(V @ A @ V)
    assert np.all(energy(v) <= 2 * BEST**EVERY * size + 1e-13 * size)
    errors = relative_errors(hypergradients)
    assert errors[4] < 0.3
    assert errors[19] < 1e-5
    assert errors[59] < 1e-12


@pytest.mark.parametrize("k", [1, 2, 5, 10, 15])
def test_each_krylov_method_is_the_best_of_its_space(found, k):
    """In the norm of A and in that of the residual: no other method of k products can do better, nor did they."""
    K = krylov(k)
    nearest = K @ np.linalg.solve(K.T @ A @ K, K.T @ G)
    least = K @ np.linalg.lstsq(A @ K, G, rcond=None)[0]
    np.testing.assert_allclose(found["CG"][1][k - 1], nearest, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found["GMRES"][1][k - 1], least, rtol=1e-7, atol=1e-9)


def test_gmres_is_exact_after_as_many_steps_as_there_are_unknowns(found):
    errors = relative_errors(found["GMRES"][0])
    assert errors[19] < 1e-11
    assert errors[59] < 1e-12


@pytest.mark.parametrize("name", SERIES)
def test_the_series_is_its_closed_form(found, name):
    """Sum over j < k of (I - A)^j g, at every k."""
    hypergradients, v = found[name]
    M = np.eye(D) - A
    truth = np.array([V - np.linalg.matrix_power(M, int(k)) @ V for k in EVERY])
    np.testing.assert_allclose(v, truth, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(hypergradients, STEP * truth @ P.B[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_more_iterations_are_never_worse(found, name):
    """Each in the norm that it is to lower, down to rounding."""
    v = found[name][1]
    lengths = np.linalg.norm(v @ A - G, axis=1) if name == "GMRES" else energy(v)
    assert np.all(np.diff(lengths) <= 1e-12 * np.linalg.norm(G))
    assert lengths[-1] < 0.6 * lengths[0]
