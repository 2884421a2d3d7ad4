"""One hypergradient, found in every way there is, against closed forms and central differences."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.testing.closed_forms import FiniteAffine, FiniteQuadratic, PenalisedRidge

KEY = jax.random.key(0)


class Case(NamedTuple):
    """A problem with its truth: closed form, or central differences of an independent solver."""

    problem: bx.Problem
    w0: Any
    lam: Any
    train: Any
    val: Any
    truth: np.ndarray


def central(f: Callable[[np.ndarray], float], lam: np.ndarray, h: float = 1e-5) -> np.ndarray:
    """Central differences of f at lam."""
    steps = h * np.eye(lam.size)
    return np.array([(f(lam + e) - f(lam - e)) / (2 * h) for e in steps])


def ridge() -> Case:
    p = PenalisedRidge.random(1, d=6)
    return Case(p.problem, np.zeros((1, 6)), p.lam, p.train_data, p.val_data, p.hypergradient(p.lam))


def quadratic() -> Case:
    p = FiniteQuadratic.random(1, correlated=True)
    return Case(p.problem, np.zeros(10), p.lam, p.train_data, p.val_data, p.hypergradient(p.lam))


def logistic() -> Case:
    """Multinomial, a penalty per feature, by Newton steps on the dense Hessian in numpy's own arithmetic."""
    rng = np.random.default_rng(2)
    n, d, classes = 40, 4, 3
    X, Z = rng.normal(size=(2, n, d))
    y, u = rng.integers(0, classes, (2, n))
    lam = rng.normal(size=d) - 1.0

    def probabilities(w: np.ndarray, rows: np.ndarray) -> np.ndarray:
        s = rows @ w.T
        e = np.exp(s - s.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    def solve(lam: np.ndarray) -> np.ndarray:
        w = np.zeros((classes, d))
        for _ in range(50):
            P = probabilities(w, X)
            G = (P - np.eye(classes)[y]).T @ X / n + np.exp(lam) * w
            S = np.einsum("ic,ce->ice", P, np.eye(classes)) - P[:, :, None] * P[:, None, :]
            H = np.einsum("ice,ij,ik->cjek", S, X, X).reshape(classes * d, -1) / n
            H += np.diag(np.tile(np.exp(lam), classes))
            w = w - np.linalg.solve(H, G.ravel()).reshape(w.shape)
        return w

    def value(lam: np.ndarray) -> float:
        return float(-np.mean(np.log(probabilities(solve(lam), Z)[np.arange(n), u])))

    problem = bx.Problem(bx.GradientStep(bx.MultinomialLogistic("feature")), bx.MultinomialLogistic())
    return Case(problem, np.zeros((classes, d)), lam, (X, y), (Z, u), central(value, lam))


def equilibrium_map(h: Any, lam: Any, batch: Any) -> Any:
    """h <- tanh(x B + h A + c), no gradient of anything."""
    X, _ = batch
    return jnp.tanh(X @ lam["B"] + h @ lam["A"] + lam["c"][None, :])


def equilibrium_loss(h: Any, lam: Any, batch: Any) -> Any:
    _, y = batch
    return jnp.mean((jnp.sum(h, axis=1) - y) ** 2) + 0.05 * jnp.sum(lam["c"] ** 2)


def equilibrium() -> Case:
    rng = np.random.default_rng(3)
    n, p, d = 5, 2, 4
    A = rng.normal(size=(d, d))
    lam = {"A": 0.7 * A / np.linalg.norm(A, 2), "B": rng.normal(size=(p, d)), "c": rng.normal(size=d)}
    X, y = rng.normal(size=(n, p)), rng.normal(size=n)
    flat, unravel = jax.flatten_util.ravel_pytree(lam)

    def value(flat: np.ndarray) -> float:
        lam = jax.tree.map(np.asarray, unravel(jnp.asarray(flat)))
        h = np.zeros((n, d))
        for _ in range(400):
            h = np.tanh(X @ lam["B"] + h @ lam["A"] + lam["c"])
        return float(np.mean((h.sum(axis=1) - y) ** 2) + 0.05 * np.sum(lam["c"] ** 2))

    problem = bx.Problem(equilibrium_map, equilibrium_loss)
    return Case(problem, np.zeros((n, d)), lam, (X, y), (X, y), central(value, np.asarray(flat)))


def affine() -> Case:
    p = FiniteAffine.random(4, d=5, m=3)
    return Case(p.problem, np.zeros(5), p.lam, p.train_data, p.val_data, p.hypergradient(p.lam))


CASES = {f.__name__: f for f in (ridge, quadratic, logistic, equilibrium, affine)}
MANY = 3000
WAYS: dict[str, Any] = {
    "SID": bx.SID(bx.FixedPoint(MANY), bx.FixedPoint(MANY)),
    "AID-CG": bx.SID(bx.FixedPoint(MANY), bx.CG(tol=1e-12)),
    "AID-CG-LBFGS": bx.SID(bx.LBFGS(tol=1e-11), bx.CG(tol=1e-12)),
    "AID-GMRES": bx.SID(bx.FixedPoint(MANY), bx.GMRES(tol=1e-12)),
    "AID-Neumann": bx.SID(bx.FixedPoint(MANY), bx.Neumann(tol=1e-12, max_steps=MANY)),
    "Exact": bx.SID(bx.FixedPoint(MANY), bx.Exact()),
    "ITD": bx.ITD(MANY),
    "forward": bx.ITD(MANY, mode="forward"),
}
SYMMETRIC = {"AID-CG", "AID-CG-LBFGS"}
IMPLICIT: dict[str, Any] = {"by default": None, "CG": bx.CG(tol=1e-12), "GMRES": bx.GMRES(tol=1e-12)}


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {name: make() for name, make in CASES.items()}


def flat(tree: Any) -> np.ndarray:
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0])


# each way on a gradient step, and on a map that is none or refused there; each problem by four ways
QUICK = {
    "ridge": {"AID-CG", "AID-Neumann", "Exact", "forward"},
    "quadratic": {"SID", "AID-CG-LBFGS", "AID-GMRES", "ITD"},
    "logistic": {"SID", "AID-CG-LBFGS", "Exact", "ITD"},
    "equilibrium": {"SID", "AID-GMRES", "AID-Neumann", "forward"} | SYMMETRIC,
    "affine": {"SID", "AID-GMRES", "Exact", "ITD"} | SYMMETRIC,
}


@pytest.mark.parametrize(
    ("name", "way"),
    [pytest.param(name, way, marks=() if way in QUICK[name] else pytest.mark.slow) for name in CASES for way in WAYS],
)
def test_every_estimator_finds_the_hypergradient(cases: dict[str, Case], name: str, way: str) -> None:
    case = cases[name]
    sources = bx.Arrays(case.train), bx.Arrays(case.val)
    if way in SYMMETRIC and not case.problem.symmetric:
        with pytest.raises(bx.ParameterError, match="not known to be a gradient step; use"):
            bx.hypergradient(case.problem, WAYS[way], case.w0, case.lam, *sources, key=KEY)
        return
    est = bx.hypergradient(case.problem, WAYS[way], case.w0, case.lam, *sources, key=KEY)
    assert est.code == bx.Code.OK, est.message
    error = np.linalg.norm(flat(est.value) - case.truth) / np.linalg.norm(case.truth)
    assert error < 1e-6 if name in ("logistic", "equilibrium") else error < 1e-9


@pytest.mark.parametrize(
    ("name", "solve"),
    [
        pytest.param(name, solve, marks=() if solve == "by default" or name in of else pytest.mark.slow)
        for solve, of in {
            "by default": CASES,
            "CG": ("ridge", "logistic", "affine"),
            "GMRES": ("logistic", "affine"),
        }.items()
        for name in CASES
    ],
)
def test_a_decorated_solver_finds_the_hypergradient(cases: dict[str, Case], name: str, solve: str) -> None:
    """custom_root on the gradient of the inner loss; custom_fixed_point for a map that has none."""
    case = cases[name]
    step: Any = case.problem.inner_map
    if solve == "CG" and not case.problem.symmetric:
        pytest.skip("its system is not symmetric")
    train, val = jax.tree.map(jnp.asarray, (case.train, case.val))
    rule = (
        bx.implicit.custom_root(jax.grad(step.loss), solve=IMPLICIT[solve])
        if case.problem.has_loss
        else bx.implicit.custom_fixed_point(step, solve=IMPLICIT[solve])
    )
    sources, estimator = (bx.Arrays(case.train), bx.Arrays(case.val)), bx.SID(bx.FixedPoint(MANY), bx.FixedPoint(0))

    @rule
    def solver(w0: Any, lam: Any, batch: Any) -> Any:
        return bx.hypergradient(case.problem, estimator, w0, lam, *sources, key=KEY, report=False).w

    def value(lam: Any) -> Any:
        return case.problem.outer_loss(solver(case.w0, lam, train), lam, val)

    found = jax.jit(jax.grad(value))(jax.tree.map(jnp.asarray, case.lam))
    error = np.linalg.norm(flat(found) - case.truth) / np.linalg.norm(case.truth)
    assert error < 1e-6 if name in ("logistic", "equilibrium") else error < 1e-9


@pytest.mark.slow
def test_itd_is_the_gradient_of_the_trajectory_and_checkpoints_change_nothing() -> None:
    """Against plain reverse mode through a Python loop, at counts with and without a remainder."""
    p = PenalisedRidge.random(1, d=6)
    step, batch, val = p.problem.inner_map, tuple(map(jnp.asarray, p.train_data)), tuple(map(jnp.asarray, p.val_data))
    eta = bx.Harmonic(3.0, 3.0)

    def value(lam: Any, t: int) -> Any:
        w = jnp.zeros((1, 6))
        for j in range(t):
            w = w + eta(jnp.int32(j)) * (step(w, lam, batch) - w)
        return p.problem.outer_loss(w, lam, val)

    for t, mode in ((1, "reverse"), (7, "reverse"), (16, "reverse"), (7, "forward")):
        truth = jax.jit(jax.grad(value), static_argnums=1)(jnp.asarray(p.lam), t)
        itd = bx.ITD(t, eta, mode)
        sources = bx.Arrays(batch), bx.Arrays(val)
        est = bx.hypergradient(p.problem, itd, np.zeros((1, 6)), p.lam, *sources, key=KEY, report=False)
        np.testing.assert_allclose(est.value, truth, rtol=1e-12)


def soft(w: Any, lam: Any, s: Any) -> Any:
    return jnp.sign(w) * jnp.maximum(jnp.abs(w) - s * jnp.exp(lam["l1"]), 0.0)


def elastic(w: Any, lam: Any, batch: Any) -> Any:
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.exp(lam["l2"]) * jnp.vdot(w, w)


def held_out(w: Any, lam: Any, batch: Any) -> Any:
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2)


@pytest.mark.parametrize("step", [None, 0.2], ids=["measured", "given"])
def test_c14_proximal_step_off_the_kinks(step: float | None) -> None:
    """The elastic net on its active set is a linear system: its derivative in closed form."""
    rng = np.random.default_rng(5)
    X, Z = rng.normal(size=(2, 60, 8))
    truth = np.array([2.0, -1.0, 1.5, 0, 0, 0, 0, 0])
    y, u = X @ truth + 0.1 * rng.normal(size=60), Z @ truth + 0.1 * rng.normal(size=60)
    lam = {"l1": np.float64(-1.0), "l2": np.float64(-2.0)}
    problem = bx.Problem(bx.ProximalStep(elastic, soft, step), held_out)
    sources = bx.Arrays((X, y)), bx.Arrays((Z, u))
    for way in (bx.SID(bx.FixedPoint(2000), bx.GMRES(tol=1e-12)), bx.SID(bx.FixedPoint(2000), bx.FixedPoint(2000))):
        est = bx.hypergradient(problem, way, np.zeros(8), lam, *sources, key=KEY)
        assert est.code == bx.Code.OK, est.message
        w = np.asarray(est.w)
        on = w != 0
        assert 0 < on.sum() < 8
        H = X[:, on].T @ X[:, on] / 60 + np.exp(-2.0) * np.eye(on.sum())
        v = np.linalg.solve(H, Z[:, on].T @ (Z @ w - u) / 60)
        np.testing.assert_allclose(w[on], np.linalg.solve(H, X[:, on].T @ y / 60 - np.exp(-1.0) * np.sign(w[on])))
        np.testing.assert_allclose(est.value["l1"], -np.exp(-1.0) * np.sign(w[on]) @ v, rtol=1e-8)
        np.testing.assert_allclose(est.value["l2"], -np.exp(-2.0) * w[on] @ v, rtol=1e-8)
    with pytest.raises(bx.ParameterError, match="LBFGS needs an inner loss without a prox"):
        bx.hypergradient(problem, bx.SID(bx.LBFGS(), bx.GMRES()), np.zeros(8), lam, *sources, key=KEY)


def test_value_and_hypergradient_in_ones_own_loop() -> None:
    case = ridge()
    sid = bx.SID(bx.LBFGS(tol=1e-10), bx.CG(tol=1e-10))
    train, val = bx.Arrays(case.train), bx.Arrays(case.val)

    @jax.jit
    def step(lam: Any, _: Any) -> Any:
        value, gradient = bx.value_and_hypergradient(case.problem, sid, case.w0, lam, train, val, key=KEY)
        return lam - 0.5 * gradient, value

    lam, values = jax.lax.scan(step, jnp.asarray(case.lam), None, length=5)
    p = PenalisedRidge.random(1, d=6)
    np.testing.assert_allclose(values[0], p.value(case.lam), rtol=1e-9)
    truth = np.asarray(case.lam)
    for _ in range(5):
        truth = truth - 0.5 * p.hypergradient(truth)
    np.testing.assert_allclose(lam, truth, rtol=1e-7)


@pytest.mark.parametrize("kind", ["SID", pytest.param("JointSID", marks=pytest.mark.slow), "deterministic"])
def test_without_a_report_the_estimate_is_the_same(kind: str) -> None:
    case = ridge()
    move = bx.FixedPoint(40, 0.5)
    train, val = bx.Arrays(case.train, batch_size=4), bx.Arrays(case.val, batch_size=8)
    if kind == "deterministic":
        train, val = bx.Arrays(case.train), bx.Arrays(case.val)
    estimator = bx.JointSID(800) if kind == "JointSID" else bx.SID(move, move, cross_batches=5)
    args = case.problem, estimator, case.w0, case.lam, train, val
    est = bx.hypergradient(*args, key=KEY, tol=1e-6)
    alone = bx.hypergradient(*args, key=KEY, tol=1e-6, report=False)
    assert (est.code, alone.code) == (bx.Code.TOLERANCE_NOT_MET, bx.Code.OK)
    assert alone.error is None
    for name in ("value", "outer_value", "w", "v"):
        np.testing.assert_allclose(getattr(alone, name), getattr(est, name), rtol=1e-12, err_msg=name)
    assert jax.tree.map(int, alone.cost) == jax.tree.map(int, est.cost)
    value, gradient = bx.value_and_hypergradient(*args, key=KEY)
    np.testing.assert_allclose(value, est.outer_value, rtol=1e-12)
    np.testing.assert_allclose(gradient, est.value, rtol=1e-12)
    for needs in ({"target": 0.1}, {"replicas": 2}):
        with pytest.raises(bx.ParameterError, match="ask for an error report"):
            bx.hypergradient(*args, key=KEY, report=False, **needs)


def test_value_and_hypergradient_of_a_failed_estimate_is_nan() -> None:
    problem = bx.Problem(lambda w, lam, batch: jnp.log(w) + lam + 0 * jnp.sum(batch), lambda w, lam, batch: jnp.sum(w))
    rows = bx.Arrays(np.zeros(3))
    sid = bx.SID(bx.FixedPoint(5), bx.GMRES())
    value, gradient = bx.value_and_hypergradient(problem, sid, -np.ones(2), np.zeros(2), rows, rows, key=KEY)
    assert np.isnan(value)
    assert np.isnan(gradient).all()


@pytest.mark.slow
def test_truncated_itd_sees_the_last_steps_alone() -> None:
    """With k = t it is ITD; with k = 1 it is the direct part of the last step; its floor falls as q^k."""
    p = FiniteQuadratic.random(1)
    sources = bx.Arrays(p.train_data), bx.Arrays(p.val_data)

    def value(way: Any, w0: Any) -> np.ndarray:
        return np.asarray(bx.hypergradient(p.problem, way, w0, p.lam, *sources, key=KEY).value)

    np.testing.assert_allclose(value(bx.ITD(9, last=9), np.ones(10)), value(bx.ITD(9), np.ones(10)), rtol=1e-12)
    w, alpha = p.w(p.lam), p.curvature.alpha
    one = p.r * p.lam + alpha * p.B.mean(0).T @ (w - p.target)
    np.testing.assert_allclose(value(bx.ITD(50, last=1), w), one, rtol=1e-10)
    errors = [np.linalg.norm(value(bx.ITD(200, last=k), w) - p.hypergradient(p.lam)) for k in (20, 40)]
    np.testing.assert_allclose((errors[1] / errors[0]) ** (1 / 20), p.curvature.q, rtol=0.05)
    with pytest.raises(bx.ParameterError, match=r"last must lie in \[1, steps=5\], got 6"):
        bx.ITD(5, last=6)


class Layer:
    """An equilibrium layer of a user's own, w = A w + lam, whose methods happen to be called loss, metric and prox."""

    def __call__(self, w, lam, batch):
        return 0.5 * w + lam * jnp.mean(batch)

    def loss(self, prediction):
        return jnp.sum(prediction**2)

    def metric(self):
        return 1.0

    def prox(self):
        return None


def test_what_a_map_can_do_is_not_guessed_from_the_names_of_its_methods():
    """w(lam) = 2 lam: the gradient of ||w||^2 / 2 is 4 lam. L-BFGS, which minimises a loss, is refused."""
    rows, lam = bx.Arrays(np.ones((5, 1))), jnp.asarray([1.0, -2.0])
    problem = bx.Problem(Layer(), lambda w, lam, batch: 0.5 * jnp.sum(w**2) * jnp.mean(batch))
    assert not any((problem.has_loss, problem.symmetric, problem.composite))
    with pytest.raises(bx.ParameterError, match="needs an inner loss"):
        bx.hypergradient(problem, bx.SID(bx.LBFGS(), bx.GMRES()), jnp.zeros(2), lam, rows, rows, key=KEY)
    estimator = bx.SID(bx.FixedPoint(60), bx.GMRES())

    @jax.jit
    def value(lam):
        return bx.hypergradient(problem, estimator, jnp.zeros(2), lam, rows, rows, key=KEY, report=False).value

    np.testing.assert_allclose(value(lam), 4 * lam, rtol=1e-9)
