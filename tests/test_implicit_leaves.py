"""Implicit derivatives where an argument enters only some leaves of F, against closed forms; forward-only functions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import bilevax as bx
from bilevax.implicit import custom_fixed_point, custom_root

N, D = 12, 3
_RNG = np.random.default_rng(5)
X = _RNG.normal(size=(N, D)) + 0.5
Y = _RNG.normal(size=N)
Q = np.eye(D) + 0.2 * (_RNG.normal(size=(D, D)) + np.zeros(D))
Q = Q @ Q.T
A = _RNG.normal(size=(2, D))


class Case(NamedTuple):
    """F(w, theta) = M(theta) w - c(theta) on a tree, and the same as one vector, in numpy."""

    equation: Any
    like: Any
    theta: Array
    solution: Any
    is_definite: bool


def stationary(w: Any, cost: Array) -> tuple[Array, Array]:
    """KKT of min w'Qw/2 - cost'w subject to A w = (1, 2): the cost enters the first leaf alone."""
    return Q @ w[0] + A.T @ w[1] - cost, A @ w[0] - np.array([1.0, 2.0])


def feasible(w: Any, right: Array) -> tuple[Array, Array]:
    """The right-hand side of the constraints enters the second leaf alone."""
    return Q @ w[0] + A.T @ w[1] - 1.0, A @ w[0] - right


def kkt(theta: np.ndarray, *, is_cost: bool) -> np.ndarray:
    matrix = np.block([[Q, A.T], [A, np.zeros((2, 2))]])
    right = np.r_[theta, 1.0, 2.0] if is_cost else np.r_[np.ones(D), theta]
    return np.linalg.solve(matrix, right)


def penalised(w: dict[str, Array], lam: Array) -> dict[str, Array]:
    """Ridge regression with a bias that has no penalty; None is a leaf of no unknowns."""
    rest = X @ w["w"] + w["b"] - Y
    return {"w": X.T @ rest / N + jnp.exp(lam) * w["w"], "b": jnp.mean(rest), "none": None}


def penalised_solution(lam: np.ndarray) -> np.ndarray:
    Z = np.c_[np.ones(N), X]  # leaves are in the order of their names
    return np.linalg.solve(Z.T @ Z / N + np.diag(np.r_[0.0, np.exp(lam)]), Z.T @ Y / N)


def intercept(w: dict[str, Array], offset: Array) -> dict[str, Array]:
    """The mean residual is to be the offset, which enters the equation of the bias alone."""
    rest = X @ w["w"] + w["b"] - Y
    return {"w": X.T @ rest / N + 0.5 * w["w"], "b": jnp.mean(rest) - offset, "none": None}


def intercept_solution(offset: np.ndarray) -> np.ndarray:
    Z = np.c_[np.ones(N), X]
    M = Z.T @ Z / N + np.diag([0.0, 0.5, 0.5, 0.5])
    return np.linalg.solve(M, Z.T @ Y / N + np.r_[float(offset), 0, 0, 0])


PAIR = (jnp.zeros(D), jnp.zeros(2))
MODEL = {"w": jnp.zeros(D), "b": jnp.zeros(()), "none": None}
CASES = {
    "KKT, cost": Case(stationary, PAIR, jnp.ones(D), lambda t: kkt(t, is_cost=True), False),
    "KKT, constraint": Case(feasible, PAIR, jnp.asarray([0.5, 1.5]), lambda t: kkt(t, is_cost=False), False),
    "penalty on one leaf": Case(penalised, MODEL, jnp.asarray([-1.0, 0.0, 0.5]), penalised_solution, True),
    "intercept": Case(intercept, MODEL, jnp.asarray(0.3), intercept_solution, True),
}


def _jax(name: str) -> Any:
    return lambda matvec, b: getattr(jax.scipy.sparse.linalg, name)(matvec, b, tol=1e-12)[0]


SOLVES: dict[str, Any] = {
    "default": None,
    "Exact": bx.Exact(),
    "GMRES": bx.GMRES(tol=1e-12),
    "jax gmres": _jax("gmres"),
    "jax bicgstab": _jax("bicgstab"),
    "CG": bx.CG(tol=1e-12),
    "Neumann": bx.Neumann(max_steps=3000, tol=1e-12),
    "jax cg": _jax("cg"),
}
DEFINITE = {"CG", "Neumann", "jax cg", "jax bicgstab"}
"""What does not serve the indefinite system of a KKT point."""

STEP = 0.3


def flat(w: Any) -> Array:
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(w)])


def decorated(case: Case, solve: Any) -> Any:
    """The root, or for definite systems the fixed point of w - .3 F; found outside of JAX, in closed form."""

    def solver(start: Any, theta: Array) -> Any:
        size = sum(x.size for x in jax.tree.leaves(case.like))
        found = jax.pure_callback(case.solution, jax.ShapeDtypeStruct((size,), float), theta, vmap_method="sequential")
        leaves, structure = jax.tree.flatten(case.like)
        ends = np.cumsum([x.size for x in leaves])[:-1]
        parts = zip(jnp.split(found, ends), leaves, strict=True)
        return jax.tree.unflatten(structure, [part.reshape(x.shape) for part, x in parts])

    if case.is_definite:
        step = custom_fixed_point(
            lambda w, t: jax.tree.map(lambda x, r: x - STEP * r, w, case.equation(w, t)), solve=solve
        )
        return step(solver)
    return custom_root(case.equation, solve=solve)(solver)


def jacobian(case: Case, step: float = 1e-6) -> np.ndarray:
    theta = np.asarray(case.theta)
    columns = []
    for i in np.ndindex(theta.shape):
        moves = []
        for sign in (1, -1):
            moved = theta.copy()
            moved[i] += sign * step
            moves.append(case.solution(moved))
        columns.append((moves[0] - moves[1]) / (2 * step))
    return np.stack(columns, axis=-1).reshape(-1, *theta.shape)


@pytest.mark.parametrize(
    ("name", "solve"),
    [
        (name, solve)
        for name, case in CASES.items()
        for solve in (SOLVES if name in ("KKT, constraint", "penalty on one leaf") else ("default", "Exact"))
        if case.is_definite or solve not in DEFINITE
    ],
)
def test_an_argument_that_enters_one_leaf(name: str, solve: str) -> None:
    case = CASES[name]
    solver = decorated(case, SOLVES[solve])

    def both(theta: Array) -> tuple[Array, Array]:
        return jax.jacfwd(lambda t: flat(solver(None, t)))(theta), jax.jacrev(lambda t: flat(solver(None, t)))(theta)

    truth = jacobian(case)
    for found in jax.jit(both)(case.theta):
        np.testing.assert_allclose(found, truth, rtol=1e-6, atol=1e-8)


def test_second_derivatives_vmap_and_several_arguments() -> None:
    """F = (2 a + b - s, a + 3 b^2): a = (s - b) / 2, so 6 b^2 - b + s = 0 and b' = 1 / (1 - 12 b)."""

    @custom_root(lambda w, s, unused: (2 * w[0] + w[1] - s, w[0] + 3 * w[1] ** 2))
    def solver(start: Any, s: Array, unused: Array) -> tuple[Array, Array]:
        b = (1 - jnp.sqrt(1 - 24 * s)) / 12
        return (s - b) / 2, b

    def last(s: Array, unused: Array) -> Array:
        return solver(None, s, unused)[1]

    @jax.jit
    def derivatives(s: Array) -> Any:
        first = jax.vmap(jax.grad(last, (0, 1)))(s, s)
        second = [jax.vmap(f(jax.grad(last)))(s, s) for f in (jax.grad, jax.jacfwd)]
        return first, second

    s = jnp.asarray([-0.5, -1.0, 0.01])
    b = (1 - np.sqrt(1 - 24 * np.asarray(s))) / 12
    (slope, unused), second = derivatives(s)
    np.testing.assert_allclose(slope, 1 / (1 - 12 * b), rtol=1e-9)
    np.testing.assert_array_equal(unused, 0.0)
    for found in second:
        np.testing.assert_allclose(found, 12 / (1 - 12 * b) ** 3, rtol=1e-9)


def test_aux_and_leaves_of_two_dtypes_in_reverse_mode() -> None:
    @custom_root(lambda w, c: (3 * w[0] + w[1].astype(jnp.float32), w[1] - c), has_aux=True)
    def solver(start: Any, c: Array) -> Any:
        return (-c.astype(jnp.float32) / 3, c), "aux"

    slope = jax.jit(jax.grad(lambda c: solver(None, c)[0][0]))(2.0)
    assert slope.dtype == jnp.float64
    np.testing.assert_allclose(slope, -1 / 3, rtol=1e-6)


# A function with forward mode only: what a while_loop computes has no transpose.


def root(z: Array) -> Array:
    """sqrt(z) by Newton's method, until it moves no more."""
    new = lambda x: 0.5 * (x + z / x)  # noqa: E731
    return jax.lax.while_loop(lambda s: jnp.any(jnp.abs(new(s) - s) > 1e-12), new, jnp.ones_like(z))


@pytest.mark.parametrize("solve", ["default", "GMRES", "Exact", "Neumann"])
def test_forward_mode_through_a_map_with_a_while_loop(solve: str) -> None:
    """w = sqrt(w / 2 + theta^2): w^2 - w / 2 = theta^2, so w' = 2 theta / (2 w - 1/2)."""

    @custom_fixed_point(lambda w, theta: root(w / 2 + theta**2), solve=SOLVES[solve])
    def solver(start: Any, theta: Array) -> Array:
        return 0.25 + jnp.sqrt(0.0625 + theta**2)

    theta = jnp.asarray([1.0, 2.0])
    w = np.asarray(solver(None, theta))
    truth = 2 * np.asarray(theta) / (2 * w - 0.5)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(lambda t: solver(None, t)))(theta), np.diag(truth), rtol=1e-8)
    if solve == "default":
        push = jax.jvp(lambda t: jax.vmap(lambda x: solver(None, x))(t), (theta,), (jnp.ones(2),))[1]
        np.testing.assert_allclose(push, truth, rtol=1e-8)
        for reverse in (jax.grad, lambda f: jax.jit(jax.grad(f))):
            with pytest.raises(bx.ParameterError, match=r"fixed_point_fun has forward mode only: .*jax.jacfwd"):
                reverse(lambda t: jnp.sum(solver(None, t)))(theta)


def test_the_projection_onto_the_simplex_by_bisection() -> None:
    """(I - d1T)^{-1} d2T with the derivatives that JAX has of T."""

    def project(v: Array) -> Array:
        def halve(state: Any) -> Any:
            low, high, i = state
            middle = (low + high) / 2
            big = jnp.sum(jnp.maximum(v - middle, 0)) > 1
            return jnp.where(big, middle, low), jnp.where(big, high, middle), i + 1

        start = jnp.min(v) - 1.0, jnp.max(v), 0
        low, high, _ = jax.lax.while_loop(lambda s: s[2] < 60, halve, start)
        return jnp.maximum(v - (low + high) / 2, 0)

    def step(w: Array, lam: Array) -> Array:
        return project(w - 0.3 * (w - lam))

    lam = jnp.asarray([0.6, 0.5, -0.2])
    solver = custom_fixed_point(step)(lambda w0, lam: jax.lax.fori_loop(0, 100, lambda _, w: step(w, lam), w0))
    w = solver(jnp.ones(3) / 3, lam)
    np.testing.assert_allclose(w, [0.55, 0.45, 0.0], atol=1e-9)
    in_w, in_lam = jax.jit(jax.jacfwd(step, (0, 1)))(w, lam)
    found = jax.jit(jax.jacfwd(lambda lam: solver(jnp.ones(3) / 3, lam)))(lam)
    np.testing.assert_allclose(found, np.linalg.solve(np.eye(3) - in_w, in_lam), rtol=1e-9, atol=1e-12)


def test_the_function_is_traced_once_where_nothing_is_differentiated() -> None:
    traces = []

    def equation(w: Array, theta: Array) -> Array:
        traces.append(None)
        return w**3 - theta

    solver = custom_root(equation)(lambda w0, theta: jnp.cbrt(theta))
    for theta in (8.0, 27.0, 64.0):
        solver(None, jnp.asarray(theta))
    assert len(traces) == 1  # its result was checked
    np.testing.assert_allclose(jax.grad(solver, 1)(None, jnp.asarray(8.0)), 1 / 12, rtol=1e-9)
    slope = jax.grad(lambda t: custom_root(lambda w: w**3 - t)(lambda w0: jnp.cbrt(8.0))(None))(8.0)
    np.testing.assert_allclose(slope, 1 / 12, rtol=1e-9)  # what it reads from its closure is found by tracing


def test_a_function_that_changes_between_calls_is_not_taken_for_the_old_one() -> None:
    held = [jnp.asarray(8.0)]
    solver = custom_root(lambda w: w**3 - held[0])(lambda w0: jnp.asarray(2.0))
    solver(None)
    solver(None)

    def value(theta: Array) -> Any:
        held[0] = theta
        return solver(None)

    np.testing.assert_allclose(jax.grad(value)(8.0), 1 / 12, rtol=1e-9)
