"""The constants that are measured, against exact ones; and the norms they are made of."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.config import config
from bilevax.linalg.spectrum import extreme_eigenvalues, lanczos, spectral_norm, trilinear_norm
from bilevax.testing.closed_forms import FiniteQuadratic, PenalisedRidge

KEY = jax.random.key(0)
EXACT = ("q", "L_Phi", "L_E", "mu1", "mu2", "nu1", "L", "tau", "alpha")
SAMPLED = ("sigma1", "sigma2", "sigma1_prime", "sigma2_prime")


def measured(p, batch_size=10, *, val=None, key=KEY, **options):
    sources = bx.Arrays(p.train_data, batch_size), bx.Arrays(p.val_data, val)
    return bx.estimate_constants(p.problem, p.w(p.lam), p.lam, *sources, key=key, **options)


@pytest.fixture(scope="module")
def quadratics():
    """[(measured, exact)] on six random quadratics, half of them with correlated Jacobians."""
    problems = [FiniteQuadratic.random(seed, correlated=seed % 2 == 1) for seed in range(6)]
    return [
        (measured(p, key=jax.random.key(i)), p.constants(p.lam, batch_size=10, radius=0.0))
        for i, p in enumerate(problems)
    ]


@pytest.mark.slow
def test_what_is_not_sampled_is_exact(quadratics):
    for found, exact in quadratics:
        for name in EXACT:
            assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=1e-9, abs=1e-12), name
            assert found.standard_errors[name] < 1e-8
        assert found.nu2 == 0


def test_what_is_sampled_is_within_four_standard_errors(quadratics):
    for name in SAMPLED:
        scores = [(getattr(f, name) - getattr(e, name)) / f.standard_errors[name] for f, e in quadratics]
        assert np.max(np.abs(scores)) < 4, name
        assert abs(np.mean(scores)) < 1.5, name  # nor off to one side
        ratios = [getattr(f, name) / getattr(e, name) for f, e in quadratics]
        assert np.all((np.array(ratios) > 0.75) & (np.array(ratios) < 1.3)), name
        assert abs(np.mean(ratios) - 1) < 0.1, name


def test_more_minibatches_give_smaller_standard_errors():
    p = FiniteQuadratic.random(0)
    few, many = (measured(p, batches=batches).standard_errors["sigma1"] for batches in (100, 1600))
    assert 0.15 < many / few < 0.4


@pytest.mark.slow
def test_a_penalty_has_no_noise_and_changes_the_cross_derivative():
    p = PenalisedRidge.random(0, n=40, d=6)
    found, exact = measured(p), p.constants(p.lam, batch_size=10, radius=0.0)
    for name in (*EXACT, "nu2"):
        assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=1e-6, abs=1e-12), name
    for name in SAMPLED:
        assert abs(getattr(found, name) - getattr(exact, name)) <= 4 * found.standard_errors.get(name), name
    assert found.sigma2_prime == 0


@pytest.mark.slow
def test_outer_minibatches_have_their_variance():
    p = PenalisedRidge.random(0, n=40, d=6)
    found = measured(p, None, val=4, batches=400)
    rows = p.Z * (p.Z @ p.w(p.lam)[0] - p.u)[:, None]
    variance = np.mean(np.sum((rows - rows.mean(0)) ** 2, axis=1)) / 4
    assert abs(found.sigma1_E - variance) < 4 * found.standard_errors["sigma1_E"] < 0.5 * variance
    assert found.sigma2_E == 0
    assert [getattr(found, name) for name in SAMPLED] == [0, 0, 0, 0]


def affine(w, lam, batch):
    """A map that is no gradient step: Jacobians [[.5, .3], [0, .5]] and c, the first times 1 + noise."""
    A = jnp.asarray([[0.5, 0.3], [0.0, 0.5]])
    return (1.0 + jnp.mean(batch)) * A @ w + jnp.asarray([1.0, 2.0]) * lam


def test_a_map_that_is_no_gradient_step():
    rows = 0.2 * np.random.default_rng(0).normal(size=50)
    problem = bx.Problem(affine, lambda w, lam, batch: jnp.sum(w**2) * jnp.mean(batch) + lam[0] * w[1])
    sources = bx.Arrays(rows - rows.mean(), 5), bx.Arrays(np.ones(3))
    w = np.array([0.3, -0.2])
    c = bx.estimate_constants(problem, w, np.ones(1), *sources, key=KEY)
    A = np.array([[0.5, 0.3], [0.0, 0.5]])
    assert pytest.approx(np.linalg.norm(A, 2)) == c.q
    assert pytest.approx(np.sqrt(5)) == c.L_Phi
    assert pytest.approx(np.linalg.norm([0.6, -0.4 + 1.0])) == c.L_E
    assert (c.mu1, c.mu2, c.nu1, c.nu2) == pytest.approx((2.0, 1.0, 0.0, 0.0))
    assert (c.L, c.tau, c.alpha) == (None, None, None)
    variance = np.var(rows) / 5
    assert abs(c.sigma1_prime - variance * np.linalg.norm(A, 2) ** 2) < 4 * c.standard_errors["sigma1_prime"]
    assert abs(c.sigma1 - 2 * variance * np.sum((A @ w) ** 2)) < 4 * c.standard_errors["sigma1"]


def logcosh(w, lam, batch):
    a = batch @ w
    return jnp.mean(a + jax.nn.softplus(-2.0 * a)) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


@pytest.mark.slow
def test_how_fast_jacobians_change_on_a_problem_that_is_not_quadratic():
    """nu1 against the largest of many directions of the hand-derived third derivative."""
    rng = np.random.default_rng(3)
    X, w, lam, alpha = rng.normal(size=(30, 2)), np.array([0.4, -0.7]), np.array([-1.0, 0.5]), 0.3
    problem = bx.Problem(bx.GradientStep(logcosh, alpha), lambda w, lam, batch: jnp.sum(w) * jnp.mean(batch))
    sources = bx.Arrays(X), bx.Arrays(np.ones(2))
    c = bx.estimate_constants(problem, w, lam, *sources, key=KEY)
    t = np.tanh(X @ w)
    third = np.einsum("n,ni,nj,nk->ijk", -2 * t * (1 - t**2), X, X, X) / 30
    angles = np.linspace(0, np.pi, 2000)
    u = np.stack([np.cos(angles), np.sin(angles)], 1)
    largest = max(np.linalg.norm(np.tensordot(third, x, 1), 2) for x in u)
    assert c.nu1 == pytest.approx(alpha * largest, rel=1e-5)
    assert c.nu2 == pytest.approx(alpha * np.exp(0.5), rel=1e-6)
    H = np.einsum("n,ni,nj->ij", 1 - t**2, X, X) / 30 + np.diag(np.exp(lam))
    assert (c.tau, c.L) == pytest.approx(tuple(np.linalg.eigvalsh(H)))
    assert c.q == pytest.approx(np.linalg.norm(np.eye(2) - alpha * H, 2))


def test_a_diagonal_step_contracts_in_its_own_norm():
    p = FiniteQuadratic.random(0, d=6)
    s = np.geomspace(0.1, 1.0, 6)
    problem = bx.Problem(bx.GradientStep(p.problem.inner_map.loss, s), p.problem.outer_loss)
    sources = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    c = bx.estimate_constants(problem, p.w(p.lam), p.lam, *sources, key=KEY)
    H = p.A.mean(0)
    assert c.q == pytest.approx(np.max(np.abs(np.linalg.eigvals(np.eye(6) - s[:, None] * H))))
    assert (c.L, c.tau, c.alpha) == pytest.approx((p.curvature.L, p.curvature.tau, 1.0))


@pytest.mark.slow
def test_a_direction_that_nothing_holds_is_refused():
    """The mean of the biases of a softmax: no row and no penalty moves it, so q = 1."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    problem = bx.Problem(bx.GradientStep(bx.MultinomialLogistic("feature")), bx.MultinomialLogistic())
    w = {"weights": np.zeros((3, 3)), "bias": np.zeros(3)}
    with pytest.raises(bx.ParameterError, match=r"does not contract at w.*larger penalty"):
        bx.estimate_constants(problem, w, np.zeros(3), bx.Arrays((X, y)), bx.Arrays((X, y)), key=KEY)


def test_a_map_that_does_not_contract_is_refused():
    p = FiniteQuadratic.random(0)
    problem = bx.Problem(bx.GradientStep(p.problem.inner_map.loss, 2.1 / p.curvature.L), p.problem.outer_loss)
    with pytest.raises(bx.ParameterError, match=r"does not contract at w: the norm of its Jacobian is 1\.1"):
        bx.estimate_constants(problem, p.w(p.lam), p.lam, bx.Arrays(p.train_data), bx.Arrays(p.val_data), key=KEY)


# The norms


@pytest.mark.parametrize("d", [1, 7, 200])
def test_extreme_eigenvalues(d):
    rng = np.random.default_rng(d)
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    values = np.sort(np.concatenate([[-1.5, 3.0], rng.uniform(-1, 2, d)])[:d])
    A = jnp.asarray(Q @ np.diag(values) @ Q.T)
    low, high = jax.jit(lambda A, x: extreme_eigenvalues(lambda x: A @ x, x))(A, jax.random.normal(KEY, (d,)))
    for found, truth in ((low, values[0]), (high, values[-1])):
        assert abs(found.value - truth) <= max(float(found.error), 1e-10)
        assert found.value == pytest.approx(truth, abs=1e-3)


@pytest.mark.parametrize("values", [[2.0] * 5, [0.0] * 5, [1.0, 1.0, 1.0, 4.0, 4.0], [-1.0, 0.0, 0.0, 0.0, 0.0]])
def test_lanczos_goes_on_where_its_basis_is_invariant(values):
    """Few distinct eigenvalues: every one is found as often as it occurs, with its vectors."""
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    A = jnp.asarray(Q @ np.diag(values) @ Q.T)
    found = jax.jit(lambda A, x: lanczos(lambda x: A @ x, x))(A, jax.random.normal(KEY, (5,)))
    np.testing.assert_allclose(found.values, np.sort(values), atol=1e-12)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(A @ found.vectors, found.vectors * found.values[None], atol=1e-12)
    np.testing.assert_allclose(found.residuals, 0, atol=1e-12)


@pytest.mark.parametrize(("d", "m"), [(4, 9), (9, 1)])
def test_spectral_norm_of_a_rectangular_map(d, m):
    A = jnp.asarray(np.random.default_rng(0).normal(size=(d, m)))
    norm = jax.jit(lambda A, start: spectral_norm(lambda x: A.T @ x, lambda y: A @ y, start))
    start = jax.random.normal(KEY, (d,))
    assert norm(A, start).value == pytest.approx(np.linalg.norm(A, 2))
    assert jax.tree.map(float, norm(0.0 * A, start)) == (0, 0)


def test_trilinear_norm_against_a_grid():
    rng = np.random.default_rng(1)
    T = rng.normal(size=(2, 2, 3))
    angles = np.linspace(0, np.pi, 400)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    grid = max(np.linalg.norm(np.einsum("ijk,i,j->k", T, a, b)) for a, b in itertools.product(circle, circle))
    found = trilinear_norm(lambda a, b, c: jnp.einsum("ijk,i,j,k->", jnp.asarray(T), a, b, c), (2, 2, 3), KEY)
    assert found.value == pytest.approx(grid, rel=1e-4)


@config
class Scaling:
    """hatPhi = (q + noise) w: a noise of the Jacobian that is the same in all directions."""

    q: float

    def __call__(self, w, lam, batch):
        return (self.q + jnp.mean(batch)) * w + lam


@pytest.mark.slow
def test_noise_that_is_the_same_in_all_directions():
    rows = 0.3 * np.random.default_rng(0).normal(size=100)
    problem = bx.Problem(Scaling(0.4), lambda w, lam, batch: jnp.sum(w) * jnp.mean(batch))
    sources = bx.Arrays(rows - rows.mean(), 2), bx.Arrays(np.ones(2))
    c = bx.estimate_constants(problem, np.ones(4), np.ones(4), *sources, key=KEY, batches=400)
    assert c.q == pytest.approx(0.4)
    assert abs(c.sigma1_prime - rows.var() / 2) < 4 * c.standard_errors["sigma1_prime"] < 0.5 * c.sigma1_prime
