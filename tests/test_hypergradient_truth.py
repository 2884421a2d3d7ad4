"""The hypergradient itself, against closed forms and central differences of independent solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.testing.closed_forms import FiniteQuadratic, PenalisedRidge

KEY = jax.random.key(0)


def central_differences(f, lam, h=1e-5):
    """Gradient of f: array -> float, by differences over 2 h, with the h^2 term extrapolated away."""
    gradient = np.zeros_like(lam)
    for index in np.ndindex(lam.shape):
        unit = np.zeros_like(lam)
        unit[index] = 1.0
        near, far = ((f(lam + s * unit) - f(lam - s * unit)) / (2 * s) for s in (h, 2 * h))
        gradient[index] = (4 * near - far) / 3
    return gradient


def relative_error(found, truth):
    return np.linalg.norm(np.asarray(found) - truth) / np.linalg.norm(truth)


class NewtonLogistic:
    """Multinomial logistic regression with one penalty exp(lam_j) per feature, solved in numpy by Newton's method.

    The bias of every class is penalised by nothing, so the weights are [C, d + 1] with a least-norm choice of bias.
    """

    def __init__(self, seed, n=60, d=4, classes=3):
        rng = np.random.default_rng(seed)
        self.d, self.classes = d, classes
        self.train, self.val = self._rows(rng, n), self._rows(rng, n)
        self.lam = -1.0 + 0.5 * rng.normal(size=d)

    def _rows(self, rng, n):
        X = rng.normal(size=(n, self.d)) * np.linspace(1.5, 0.5, self.d)
        y = np.argmax(X[:, : self.classes] + rng.gumbel(size=(n, self.classes)), axis=1)
        return X, y

    def _loss(self, theta, rows):
        X, y = rows
        scores = np.c_[X, np.ones(len(y))] @ theta.T
        top = scores.max(1)
        return np.mean(top + np.log(np.exp(scores - top[:, None]).sum(1)) - scores[np.arange(len(y)), y])

    def _derivatives(self, theta, lam):
        X, y = np.c_[self.train[0], np.ones(len(self.train[1]))], self.train[1]
        scores = X @ theta.T
        P = np.exp(scores - scores.max(1, keepdims=True))
        P /= P.sum(1, keepdims=True)
        penalty = np.r_[np.exp(lam), 0.0]
        gradient = (P - np.eye(self.classes)[y]).T @ X / len(y) + penalty * theta
        S = np.einsum("nc,ce->nce", P, np.eye(self.classes)) - P[:, :, None] * P[:, None, :]
        hessian = np.einsum("nce,ni,nj->ciej", S, X, X).reshape(theta.size, theta.size) / len(y)
        return gradient, hessian + np.diag(np.tile(penalty, self.classes))

    def w(self, lam):
        theta = np.zeros((self.classes, self.d + 1))
        for _ in range(30):
            gradient, hessian = self._derivatives(theta, lam)
            theta = theta - (np.linalg.pinv(hessian, rcond=1e-12) @ gradient.ravel()).reshape(theta.shape)
        assert np.abs(gradient).max() < 1e-14
        return theta

    def value(self, lam):
        return self._loss(self.w(lam), self.val)


@pytest.fixture(scope="module")
def logistic():
    p = NewtonLogistic(3)
    return p, central_differences(p.value, p.lam)


@pytest.mark.parametrize(
    "p",
    [FiniteQuadratic.random(0), FiniteQuadratic.random(1, correlated=True)],
    ids=["quadratic", "quadratic-correlated"],
)
def test_closed_form_of_the_quadratic_equals_central_differences(p):
    assert relative_error(p.hypergradient(p.lam), central_differences(p.value, p.lam, h=1e-3)) < 1e-8


def test_closed_form_of_ridge_equals_central_differences():
    p = PenalisedRidge.random(0)
    assert relative_error(p.hypergradient(p.lam), central_differences(p.value, p.lam, h=1e-3)) < 1e-8


@pytest.mark.parametrize("p", [FiniteQuadratic.random(0), PenalisedRidge.random(0)], ids=["quadratic", "ridge"])
def test_closed_forms_solve_their_own_equations(p):
    """w is the fixed point of the shipped map, v of its adjoint, and the value is the shipped outer loss at w."""
    train, val = jax.tree.map(jnp.asarray, (p.train_data, p.val_data))
    w, v, lam = jnp.asarray(p.w(p.lam)), jnp.asarray(p.v(p.lam)), jnp.asarray(p.lam)
    along_w, along_v, along_lam = jax.jit(bx.directions)(p.problem, w, v, lam, (train, val))
    np.testing.assert_allclose(along_w, 0, atol=1e-13)
    np.testing.assert_allclose(along_v, 0, atol=1e-13)
    np.testing.assert_allclose(along_lam, p.hypergradient(p.lam), rtol=1e-12)
    np.testing.assert_allclose(p.problem.outer_loss(w, lam, val), p.value(p.lam), rtol=1e-12)
    lagrangian = jax.jit(bx.lagrangian)(p.problem, w, v, lam, (train, val))
    np.testing.assert_allclose(lagrangian, p.value(p.lam), rtol=1e-12)


DETERMINISTIC = {
    "fixed-point": bx.SID(bx.FixedPoint(1000), bx.FixedPoint(1000)),
    "cg": bx.SID(bx.FixedPoint(1000), bx.CG(tol=1e-13)),
    "lbfgs": bx.SID(bx.LBFGS(tol=1e-11), bx.CG(tol=1e-13)),
    "cross-batches": bx.SID(bx.FixedPoint(1000, 0.9), bx.FixedPoint(1000, 0.9), cross_batches=3, outer_batches=2),
}


@pytest.mark.parametrize(
    ("name", "p"),
    [
        ("fixed-point", FiniteQuadratic.random(0)),
        ("cg", FiniteQuadratic.random(0, correlated=True)),
        ("fixed-point", PenalisedRidge.random(0)),
        ("lbfgs", PenalisedRidge.random(0)),
        ("cross-batches", PenalisedRidge.random(0)),
    ],
    ids=["quadratic-fixed-point", "quadratic-cg", "ridge-fixed-point", "ridge-lbfgs", "ridge-cross-batches"],
)
def test_deterministic_limits_find_the_closed_form(name, p):
    """Full batches (batch_size=None), until nothing moves."""
    w0 = np.zeros_like(p.w(p.lam))
    sources = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    est = bx.hypergradient(p.problem, DETERMINISTIC[name], w0, p.lam, *sources, key=KEY)
    assert est.code == bx.Code.OK
    assert relative_error(est.w, p.w(p.lam)) < 1e-9
    assert relative_error(est.v, p.v(p.lam)) < 1e-9
    assert relative_error(est.value, p.hypergradient(p.lam)) < 1e-9
    assert relative_error(est.outer_value, p.value(p.lam)) < 1e-9


@pytest.mark.parametrize("name", ["fixed-point", "cg", "lbfgs"])
def test_multinomial_logistic_with_a_penalty_per_feature(logistic, name):
    """Against central differences of a Newton solver that shares no code with the package."""
    p, truth = logistic
    steps = 8000
    linear = bx.FixedPoint(steps) if name == "fixed-point" else bx.CG(tol=1e-13)
    inner = bx.LBFGS(tol=1e-10) if name == "lbfgs" else bx.FixedPoint(steps)
    problem = bx.Problem(bx.GradientStep(bx.MultinomialLogistic("feature")), bx.MultinomialLogistic())
    w0 = {"weights": np.zeros((p.classes, p.d)), "bias": np.zeros(p.classes)}
    est = bx.hypergradient(problem, bx.SID(inner, linear), w0, p.lam, bx.Arrays(p.train), bx.Arrays(p.val), key=KEY)
    assert est.code == bx.Code.OK
    theta = p.w(p.lam)
    assert relative_error(est.w["weights"], theta[:, :-1]) < 1e-8
    assert relative_error(est.w["bias"], theta[:, -1]) < 1e-8
    assert relative_error(est.outer_value, p.value(p.lam)) < 1e-8
    assert relative_error(est.value, truth) < 1e-6


STEPS = {
    "alpha": lambda p: p.problem.inner_map.step_size,
    "a tenth": lambda p: 0.1 * p.problem.inner_map.step_size,
    "diagonal": lambda p: np.linspace(0.2, 1.7, p.w(p.lam).size).reshape(p.w(p.lam).shape),
    "function of lam": lambda p: lambda lam: 0.3 * jnp.exp(-(lam[0] ** 2)),
    "measured": lambda p: None,
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("p", [FiniteQuadratic.random(2), PenalisedRidge.random(2)], ids=["quadratic", "ridge"])
def test_exact_at_the_solution_whatever_the_step(p, step):
    """w given, v by CG to machine precision, d2Phi on every row: the truth to 1e-10, for every step of the map."""
    problem = bx.Problem(bx.GradientStep(p.problem.inner_map.loss, step(p)), p.problem.outer_loss)
    sid = bx.SID(bx.Given(), bx.CG(tol=1e-14))
    sources = bx.Arrays(p.train_data, 7), bx.Arrays(p.val_data, 1)
    est = bx.hypergradient(problem, sid, p.w(p.lam), p.lam, *sources, key=KEY)
    assert est.code == bx.Code.OK
    assert np.array_equal(est.w, p.w(p.lam))
    assert relative_error(est.value, p.hypergradient(p.lam)) < 1e-10
    assert relative_error(est.outer_value, p.value(p.lam)) < 1e-10


def test_v_is_in_map_form():
    """v scales with 1 / alpha: it solves (I - d1Phi^T) v = grad_1 E, not H v = grad_1 E."""
    p = FiniteQuadratic.random(2)
    for alpha in (0.1, 0.5):
        problem = bx.Problem(bx.GradientStep(p.problem.inner_map.loss, alpha), p.problem.outer_loss)
        sources = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
        sid = bx.SID(bx.Given(), bx.CG(tol=1e-14))
        est = bx.hypergradient(problem, sid, p.w(p.lam), p.lam, *sources, key=KEY, report=False)
        assert relative_error(est.v, p.v(p.lam, alpha)) < 1e-10


def test_no_gradient_flows_through_the_step_or_the_trajectory():
    """Away from the solution too, a step that is a function of lam counts as the number it is there."""
    p = FiniteQuadratic.random(2)
    number = float(0.3 * np.exp(-(p.lam[0] ** 2)))
    sid = bx.SID(bx.FixedPoint(3), bx.FixedPoint(4))
    sources = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    values = [
        bx.hypergradient(
            bx.Problem(bx.GradientStep(p.problem.inner_map.loss, step), p.problem.outer_loss),
            sid, np.ones(10), p.lam, *sources, key=KEY, report=False,
        ).value
        for step in (number, STEPS["function of lam"](p))
    ]  # fmt: skip
    np.testing.assert_allclose(*values, rtol=1e-12)


def test_conjugate_gradients_end_after_d_steps_for_a_diagonal_step():
    """With a diagonal step I - d1Phi is symmetric only in the inner product of the step: there, d steps are enough."""
    p = FiniteQuadratic.random(2)
    problem = bx.Problem(bx.GradientStep(p.problem.inner_map.loss, np.geomspace(0.01, 1.0, 10)), p.problem.outer_loss)
    sources = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    sid = bx.SID(bx.Given(), bx.CG(tol=1e-9, max_steps=11))
    est = bx.hypergradient(problem, sid, p.w(p.lam), p.lam, *sources, key=KEY)
    assert est.code == bx.Code.OK
    assert est.cost.hvps.calls <= 11
    assert relative_error(est.value, p.hypergradient(p.lam)) < 1e-7


def test_damping_solves_the_shifted_system():
    p = FiniteQuadratic.random(2)
    sid = bx.SID(bx.Given(), bx.CG(tol=1e-14, damping=0.25))
    sources = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    est = bx.hypergradient(p.problem, sid, p.w(p.lam), p.lam, *sources, key=KEY, report=False)
    H = p.curvature.alpha * p.A.mean(0) + 0.25 * np.eye(10)
    assert relative_error(est.v, np.linalg.solve(H, p.w(p.lam) - p.target)) < 1e-10


@pytest.mark.parametrize(
    "exactly", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["to-rounding", "to-the-bit-as-users-compile"]
)
def test_jit_of_the_caller_changes_nothing(exactly):
    p = FiniteQuadratic.random(2)
    sid = bx.SID(bx.FixedPoint(20, bx.Harmonic(2.0, 4.0)), bx.FixedPoint(20, 0.5), cross_batches=3)
    train, val = bx.Arrays(p.train_data, 7), bx.Arrays(p.val_data)

    def estimate(lam):
        return bx.hypergradient(p.problem, sid, np.zeros(10), lam, train, val, key=KEY, report=False).value

    lams = jnp.stack([jnp.asarray(p.lam), jnp.asarray(p.lam) + 1.0])
    eager, alone = np.stack([estimate(lam) for lam in lams]), jax.jit(estimate)
    np.testing.assert_allclose(np.stack([alone(lam) for lam in lams]), eager, rtol=0 if exactly else 1e-13)
    np.testing.assert_allclose(jax.jit(jax.vmap(estimate))(lams), eager, rtol=1e-12)


@pytest.mark.parametrize(
    ("step", "linear"),
    [(0.1, bx.CG()), (None, bx.FixedPoint(300, bx.Harmonic(20.0, 40.0)))],
    ids=["given", "measured"],
)
def test_float32_parameters_stay_float32_where_x64_is_on(step, linear):
    p = PenalisedRidge.random(0)
    w0, lam, train, val = jax.tree.map(np.float32, (np.zeros((1, 20)), p.lam, p.train_data, p.val_data))
    problem = bx.Problem(bx.GradientStep(bx.Squared("feature"), step), bx.Squared())
    sid = bx.SID(bx.FixedPoint(3000), linear)
    est = bx.hypergradient(problem, sid, w0, lam, bx.Arrays(train), bx.Arrays(val), key=KEY)
    assert {x.dtype for x in (est.value, est.w, est.v, est.outer_value)} == {np.dtype(np.float32)}
    assert relative_error(est.w, p.w(p.lam)) < 1e-3
