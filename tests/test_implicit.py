"""Implicit derivatives of solvers against closed forms and central differences, and what happens when they fail."""

import functools
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import bilevax as bx
from bilevax.implicit import custom_fixed_point, custom_root, failure
from bilevax.implicit.default import DENSE, default_solve
from bilevax.implicit.linear import solved

N, D = 30, 4
_RNG = np.random.default_rng(0)
X = jnp.asarray(_RNG.normal(size=(N, D)))
Y = jnp.asarray(X @ _RNG.normal(size=D) + _RNG.normal(size=N))
LAM = jnp.asarray([-1.0, 0.5, 0.0, -2.0])


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure, "_logged", set())


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    jax.effects_barrier()
    return [record.getMessage() for record in caplog.records if record.name == "bilevax"]


def differences(f: Any, x: Array, step: float = 1e-5) -> np.ndarray:
    """Jacobian [..., entries of x] by central differences."""
    run, flat = jax.jit(f), np.asarray(x).ravel()
    columns = []
    for i in range(flat.size):
        moved = [np.array(flat), np.array(flat)]
        moved[0][i] += step
        moved[1][i] -= step
        above, below = (np.asarray(run(jnp.asarray(m.reshape(x.shape)))) for m in moved)
        columns.append((above - below) / (2 * step))
    return np.stack(columns, axis=-1).reshape((*columns[0].shape, *x.shape))


# Ridge regression with a penalty exp(lam_j) for each weight: F(w, lam) = H w - c + exp(lam) w.


def hessian(lam: Array, X: Array = X) -> Array:
    return X.T @ X / N + jnp.diag(jnp.exp(lam))


def ridge_loss(w: Array, lam: Array, X: Array, y: Array) -> Array:
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def ridge_solution(w0: Any, lam: Array, X: Array, y: Array) -> Array:
    return jnp.linalg.solve(hessian(lam, X), X.T @ y / N)


def ridge_by_descent(w0: Array, lam: Array, X: Array, y: Array) -> Array:
    """A while loop: reverse mode through it is impossible."""
    grad = jax.grad(ridge_loss)

    def going(state: tuple[Array, Array]) -> Array:
        return (jnp.linalg.norm(grad(state[0], lam, X, y)) > 1e-13) & (state[1] < 5000)

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return state[0] - 0.2 * grad(state[0], lam, X, y), state[1] + 1

    return jax.lax.while_loop(going, step, (w0, jnp.int32(0)))[0]


ridge = custom_root(jax.grad(ridge_loss))(ridge_by_descent)
exact_ridge = custom_root(jax.grad(ridge_loss))(ridge_solution)
W0 = jnp.zeros(D)
W = ridge_solution(None, LAM, X, Y)
TRUE = -np.linalg.solve(hessian(LAM), np.diag(np.exp(LAM) * W))  # dw_i / dlam_j


def test_ridge_jacobian_is_the_closed_form_in_both_modes() -> None:
    for jacobian in (jax.jacrev, jax.jacfwd):
        np.testing.assert_allclose(jax.jit(jacobian(ridge, 1))(W0, LAM, X, Y), TRUE, rtol=1e-10, atol=1e-13)


def test_value_and_grad_and_jvp_and_data_derivative() -> None:
    def loss(lam: Array, y: Array) -> Array:
        return jnp.sum(ridge(W0, lam, X, y) ** 2)

    value, (of_lam, of_y) = jax.jit(jax.value_and_grad(loss, (0, 1)))(LAM, Y)
    np.testing.assert_allclose(value, np.sum(W**2), rtol=1e-10)
    np.testing.assert_allclose(of_lam, 2 * W @ TRUE, rtol=1e-9)
    np.testing.assert_allclose(of_y, 2 * np.linalg.solve(hessian(LAM), X.T / N).T @ W, rtol=1e-9)
    push = jax.jit(lambda t: jax.jvp(lambda lam: ridge(W0, lam, X, Y), (LAM,), (t,)))
    w, tangent = push(jnp.arange(4.0))
    np.testing.assert_allclose(w, W, rtol=1e-10)
    np.testing.assert_allclose(tangent, TRUE @ np.arange(4.0), rtol=1e-9)


def test_start_has_a_zero_derivative_that_costs_no_solve() -> None:
    few = custom_root(jax.grad(ridge_loss))(lambda w0, lam, X, y: w0 - 0.2 * jax.grad(ridge_loss)(w0, lam, X, y))
    of_start = jax.jacrev(few)(W0, LAM, X, Y)  # unrolled, it would be I - .2 H
    np.testing.assert_array_equal(of_start, np.zeros((D, D)))
    program = str(jax.make_jaxpr(jax.grad(lambda w0: jnp.sum(few(w0, LAM, X, Y))))(W0))
    assert "linear_solve" not in program
    assert "linear_solve" in str(jax.make_jaxpr(jax.jacfwd(few, 1))(W0, LAM, X, Y))  # the name is right


@pytest.mark.parametrize(
    ("outer", "inner"), [(jax.jacfwd, jax.jacrev), (jax.jacfwd, jax.jacfwd), (jax.jacrev, jax.jacfwd)]
)
def test_second_derivatives_are_those_of_the_closed_form(outer: Any, inner: Any) -> None:
    def loss(solver: Any) -> Any:
        return lambda lam: jnp.sum(jnp.sin(solver(None, lam, X, Y)))

    ours = jax.jit(outer(inner(loss(exact_ridge))))(LAM)
    np.testing.assert_allclose(ours, jax.hessian(loss(ridge_solution))(LAM), rtol=1e-9, atol=1e-12)


def test_third_derivative_in_reverse_mode() -> None:
    def third(solver: Any) -> Any:
        return jax.jit(jax.grad(jax.grad(jax.grad(lambda s: solver(None, s * LAM, X, Y)[0]))))(1.0)

    np.testing.assert_allclose(third(exact_ridge), third(ridge_solution), rtol=1e-9)


# An equilibrium network h = tanh(x B + h A + c), with A of norm .8, far from symmetric.


def network(h: Array, x: Array, weights: dict[str, Array]) -> Array:
    return jnp.tanh(x @ weights["B"] + h @ weights["A"] + weights["c"][None])


def network_solver(h0: Any, x: Array, weights: dict[str, Array]) -> Array:
    h0 = jnp.zeros((x.shape[0], weights["c"].size))
    return jax.lax.fori_loop(0, 200, lambda _, h: network(h, x, weights), h0)


def network_weights(width: int) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    A = rng.normal(size=(width, width)) + 3 * np.triu(np.ones((width, width)), 1)
    return {
        "A": jnp.asarray(0.8 * A / np.linalg.norm(A, 2)),
        "B": jnp.asarray(rng.normal(size=(2, width)) / 2),
        "c": jnp.asarray(rng.normal(size=width) / 2),
    }


layer = custom_fixed_point(network)(network_solver)


@pytest.mark.parametrize(("rows", "width"), [(3, 4), pytest.param(25, 12, marks=pytest.mark.slow)])
def test_equilibrium_network_against_central_differences(rows: int, width: int) -> None:
    assert (rows * width > DENSE) == (rows == 25)  # the dense default, and the Krylov one
    weights = network_weights(width)
    x, target = (jnp.asarray(np.random.default_rng(s).normal(size=(rows, k))) for s, k in ((2, 2), (3, width)))

    def loss(x: Array, weights: dict[str, Array], solver: Any = layer) -> Array:
        return jnp.mean((solver(None, x, weights) - target) ** 2) * 10

    directions = jax.tree.map(lambda a: jnp.cos(jnp.arange(1.0, a.size + 1)).reshape(a.shape), (x, weights))
    parts, structure = jax.tree.flatten(directions)

    def moved(s: Array) -> Array:  # each leaf by its own amount
        shift = jax.tree.unflatten(structure, [amount * part for amount, part in zip(s, parts, strict=True)])
        return loss(*jax.tree.map(jnp.add, (x, weights), shift), solver=network_solver)

    gradients = jax.jit(jax.grad(loss, (0, 1)))(x, weights)
    slopes = [jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradients), parts, strict=True)]
    np.testing.assert_allclose(slopes, differences(moved, jnp.zeros(len(parts))), rtol=1e-7)
    forward = jax.jit(lambda t: jax.jvp(loss, (x, weights), t)[1])(directions)
    np.testing.assert_allclose(forward, sum(slopes), rtol=1e-9)


def test_equilibrium_network_second_derivative_against_differences_of_the_gradient() -> None:
    weights, x = network_weights(3), jnp.asarray([[0.3, -0.7]])

    def loss(c: Array) -> Array:
        return jnp.sum(layer(None, x, {**weights, "c": c}) ** 3)

    truth = differences(jax.grad(loss), weights["c"])
    np.testing.assert_allclose(jax.jit(jax.hessian(loss))(weights["c"]), truth, rtol=1e-6, atol=1e-9)


# Lasso as the fixed point of a proximal gradient step; T is not what the solver iterates.


def shrink(z: Array, by: Array) -> Array:
    return jnp.sign(z) * jnp.maximum(jnp.abs(z) - by, 0.0)


def lasso_step(w: Array, penalty: Array, size: float = 0.1) -> Array:
    return shrink(w - size * (X.T @ (X @ w - Y)) / N, size * penalty)


@custom_fixed_point(lasso_step)
def lasso(w0: Array, penalty: Array) -> Array:
    """Coordinate descent."""
    gram, c = X.T @ X / N, X.T @ Y / N

    def update(i: Array, w: Array) -> Array:
        j = i % D
        z = c[j] - gram[j] @ w + gram[j, j] * w[j]
        return w.at[j].set(shrink(z, penalty) / gram[j, j])

    return jax.lax.fori_loop(0, 400, update, w0)


def test_lasso_off_its_kinks() -> None:
    penalty = jnp.asarray(0.35)
    w = lasso(W0, penalty)
    support = np.asarray(w != 0)
    assert 0 < support.sum() < D
    truth = np.zeros(D)
    Xs = np.asarray(X)[:, support]
    truth[support] = -np.linalg.solve(Xs.T @ Xs / N, np.sign(np.asarray(w)[support]))
    for jacobian in (jax.jacrev, jax.jacfwd):
        np.testing.assert_allclose(jax.jit(jacobian(lasso, 1))(W0, penalty), truth, rtol=1e-8, atol=1e-12)


# Transformations, arguments, closures.


def test_vmap_is_a_loop_and_scan_is_a_loop() -> None:
    lams = jnp.stack([LAM, LAM + 0.5, -LAM])
    gradient = jax.jit(jax.grad(lambda lam: jnp.sum(ridge(W0, lam, X, Y) ** 2)))
    alone = np.stack([gradient(lam) for lam in lams])
    np.testing.assert_allclose(alone[0], 2 * W @ TRUE, rtol=1e-9)
    np.testing.assert_allclose(jax.vmap(gradient)(lams), alone, rtol=1e-9)
    _, scanned = jax.lax.scan(lambda _, lam: (None, gradient(lam)), None, lams)
    np.testing.assert_allclose(scanned, alone, rtol=1e-9)


def test_gradient_through_a_scan_of_solves_vmap_and_checkpoint() -> None:
    def chain(lam: Array) -> Array:
        @jax.checkpoint
        def body(lam: Array, _: Any) -> tuple[Array, None]:
            return lam + 0.1 * exact_ridge(None, lam, X, Y), None

        return jnp.sum(jax.lax.scan(body, lam, None, length=3)[0] ** 2)

    truth = differences(chain, LAM)
    ours = jax.jit(jax.vmap(jax.grad(chain)))(jnp.stack([LAM, 2 * LAM]))
    np.testing.assert_allclose(ours[0], truth, rtol=1e-6)


class Status(NamedTuple):
    params: Any
    state: Any


@pytest.mark.parametrize("make", [Status, lambda params, state: (params, state)])
def test_aux_is_passed_on_and_has_no_derivative(make: Any) -> None:
    @custom_root(jax.grad(ridge_loss), has_aux=True)
    def solver(w0: Any, lam: Array, X: Array, y: Array) -> Any:
        w = ridge_solution(w0, lam, X, y)
        return make(w, {"message": "done", "steps": jnp.int32(7), "copy": w})

    out = solver(None, LAM, X, Y)
    assert type(out) is type(make(1, 2))
    assert out[1]["message"] == "done"

    def loss(lam: Array, use: str = "params") -> tuple[Array, Array]:
        w, aux = solver(None, lam, X, Y)
        return jnp.sum(w if use == "params" else aux["copy"]), aux["steps"]

    (value, steps), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(LAM)
    np.testing.assert_allclose(value, np.sum(W), rtol=1e-12)
    np.testing.assert_allclose(gradient, TRUE.sum(0), rtol=1e-9)
    assert int(steps) == 7
    np.testing.assert_array_equal(
        jax.jit(jax.grad(functools.partial(loss, use="aux"), has_aux=True))(LAM)[0], np.zeros(D)
    )


def test_arguments_that_are_not_floats_reach_the_function_and_have_no_derivative() -> None:
    def moment(w: Array, lam: Array, rows: Array, key: Array, mode: str, *, power: int, fun: Any, off: Any) -> Array:
        assert isinstance(power, int)
        assert off is None
        noise = jax.random.normal(key, w.shape)
        factor = {"single": 1.0, "double": 2.0}[mode]
        return w - factor * fun(lam) ** power * rows.astype(float) - noise

    def solver(w0: Any, lam: Array, rows: Array, key: Array, mode: str, **rest: Any) -> Array:
        assert isinstance(rest["power"], int)
        return moment(jnp.zeros(2), lam, rows, key, mode, **rest) * -1.0

    solve = custom_root(moment)(solver)
    rows, key = jnp.asarray([3, 5]), jax.random.key(0)

    def total(lam: Array, rows: Array, key: Array) -> Array:
        return jnp.sum(solve(None, lam, rows, key, mode="double", power=3, fun=jnp.sin, off=None))

    truth = 2 * 8 * 3 * np.sin(0.4) ** 2 * np.cos(0.4)
    for run in (jax.jit(jax.grad(total)), jax.grad(jax.jit(total))):
        np.testing.assert_allclose(run(jnp.asarray(0.4), rows, key), truth, rtol=1e-12)
    by_row = jax.jit(jax.vmap(jax.grad(total), in_axes=(None, 0, None)))(
        jnp.asarray(0.4), jnp.stack([rows, 2 * rows]), key
    )
    np.testing.assert_allclose(by_row, [truth, 2 * truth], rtol=1e-12)


def test_arguments_are_assigned_by_the_reference_signature_and_defaults_are_the_solvers() -> None:
    def equation(w: Array, a: Array, b: Array | float = 3.0) -> Array:
        return w - a * a * b

    def solver(w0: Any, a: Array, b: Array | float = 2.0) -> Array:
        return a * a * b

    a = jnp.asarray([1.0, 2.0])
    solve = custom_root(equation)(solver)
    of_a = jax.jit(jax.grad(lambda a: jnp.sum(solve(None, a))))
    np.testing.assert_allclose(of_a(a), 2 * a * 2.0)  # not 3, the equation's default
    np.testing.assert_allclose(jax.jit(jax.grad(lambda b: jnp.sum(solve(b=b, a=a, w0=None))))(5.0), 5.0)

    def renamed(w: Array, *rest: Array) -> Array:
        return equation(w, *rest)

    def signature(w: Array, a: Array, b: Array) -> None: ...

    by_name = custom_root(renamed, reference_signature=signature)(lambda w0, **k: solver(w0, **k))
    np.testing.assert_allclose(jax.jit(jax.grad(lambda b: jnp.sum(by_name(None, b=b, a=a))))(5.0), 5.0)


def test_arguments_that_the_function_does_not_take_are_refused_before_the_solver_runs() -> None:
    def solver(w0: Any, lam: Array, steps: int = 10) -> Array:
        pytest.fail("the solver was run")

    solve = custom_root(lambda w, lam: w - lam)(solver)
    with pytest.raises(bx.ParameterError, match="optimality_fun cannot be called with the arguments of the solver"):
        solve(None, LAM, steps=20)
    with pytest.raises(bx.ParameterError, match=r"missing a required argument: 'c'.* reference_signature"):
        custom_fixed_point(lambda w, c: w)(lambda w0: pytest.fail("the solver was run"))(None)
    with pytest.raises(TypeError, match="missing a required argument: 'lam'"):
        solve(None)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_what_the_function_reads_from_its_closure_has_derivatives(wrap: Any) -> None:
    def outer(lam: Array, signs: Array) -> Array:
        def run(signs: Array) -> Array:
            def equation(w: Array) -> Array:
                return hessian(lam) @ w - X.T @ Y / N * signs.astype(float)

            @custom_root(equation, has_aux=True)
            def solve(w0: Array) -> tuple[Array, Array]:
                w = jnp.linalg.solve(hessian(lam), X.T @ Y / N * signs.astype(float))
                return w, w

            w, aux = solve(W0)
            return jnp.sum(w) + jnp.sum(aux)  # aux has none, even so

        return jnp.sum(jax.vmap(run)(signs))

    signs = jnp.asarray([[1, 1, 1, 1], [2, 2, 2, 2]])
    np.testing.assert_allclose(wrap(jax.grad(outer))(LAM, signs), 3 * TRUE.sum(0), rtol=1e-9)
    np.testing.assert_allclose(jax.grad(wrap(outer))(LAM, signs), 3 * TRUE.sum(0), rtol=1e-9)


def test_solver_may_be_plain_numpy_outside_of_jit() -> None:
    @custom_root(jax.grad(ridge_loss))
    def solver(w0: Any, lam: Any, X: Any, y: Any) -> Any:
        lam, X, y = (np.asarray(a) for a in (lam, X, y))
        return np.linalg.solve(X.T @ X / N + np.diag(np.exp(lam)), X.T @ y / N)

    np.testing.assert_allclose(jax.jacrev(solver, 1)(None, LAM, X, Y), TRUE, rtol=1e-9)


def test_trees_of_several_dtypes() -> None:
    def equation(w: dict[str, Array], lam: dict[str, Array]) -> dict[str, Array]:
        a, b = lam["a"] * w["a"] + w["b"].astype(jnp.float32).sum(), w["b"] * lam["b"] - w["a"].astype(float).sum()
        return {"a": a - 1, "b": b - 1}

    def solver(w0: Any, lam: dict[str, Array]) -> dict[str, Array]:
        start = {"a": jnp.zeros(2, jnp.float32), "b": jnp.zeros(3)}

        def step(_: Any, w: dict[str, Array]) -> dict[str, Array]:
            return jax.tree.map(lambda x, r: x - 0.1 * r, w, equation(w, lam))

        return jax.lax.fori_loop(0, 500, step, start)

    solve = custom_root(equation)(solver)
    lam = {"a": jnp.asarray([3.0, 4.0], jnp.float32), "b": jnp.asarray([5.0, 6.0, 7.0])}
    gradient = jax.jit(jax.grad(lambda lam: jnp.sum(solve(None, lam)["b"])))(lam)
    assert (gradient["a"].dtype, gradient["b"].dtype) == (jnp.float32, jnp.float64)

    def dense(a: Array, b: Array) -> Array:
        M = jnp.block([[jnp.diag(a), jnp.ones((2, 3))], [-jnp.ones((3, 2)), jnp.diag(b)]])
        return jnp.sum(jnp.linalg.solve(M, jnp.ones(5))[2:])

    truth = jax.grad(dense, (0, 1))(lam["a"].astype(float), lam["b"])
    np.testing.assert_allclose(gradient["a"], truth[0], rtol=1e-5)
    np.testing.assert_allclose(gradient["b"], truth[1], rtol=1e-5)


def test_function_with_a_custom_vjp_in_reverse_mode() -> None:
    @jax.custom_vjp
    def tanh(z: Array) -> Array:
        return jnp.tanh(z)

    tanh.defvjp(lambda z: (jnp.tanh(z), 1 - jnp.tanh(z) ** 2), lambda slope, g: (slope * g,))
    solve = custom_fixed_point(lambda h, c: 0.7 * tanh(h[::-1]) + c)(
        lambda h0, c: jax.lax.fori_loop(0, 100, lambda _, h: 0.7 * jnp.tanh(h[::-1]) + c, h0)
    )
    c = jnp.asarray([0.2, -0.5, 1.0])
    ours = jax.jit(jax.grad(lambda c: solve(jnp.zeros(3), c)[0]))(c)
    assert int(jax.jit(solve.diagnose)(solve(jnp.zeros(3), c), c, c).code) == bx.Code.OK
    np.testing.assert_allclose(ours, differences(lambda c: solve(jnp.zeros(3), c)[0], c), rtol=1e-7, atol=1e-10)


# Solves of the user's.


def own_cg(matvec: Any, b: Array) -> Array:
    """Twenty steps of textbook conjugate gradients; 0 / 0 for b = 0."""

    def step(state: Any, _: Any) -> Any:
        x, r, p = state
        image = matvec(p)
        size = (r @ r) / (p @ image)
        new = r - size * image
        ratio = jnp.where(new @ new < 1e-28, 0.0, (new @ new) / (r @ r))
        done = r @ r < 1e-28
        return jax.tree.map(lambda a, c: jnp.where(done, a, c), state, (x + size * p, new, new + ratio * p)), None

    done = (b @ b) / (b @ b)  # NaN for b = 0
    return jax.lax.scan(step, (jnp.zeros_like(b), b, b), None, length=20)[0][0] * done


def kaczmarz(matvec: Any, b: Array, key: Array = jax.random.key(3), steps: int = 3000) -> Array:  # noqa: B008
    """Projections onto rows drawn at random."""
    matrix = jax.jacfwd(matvec)(b)

    def project(x: Array, i: Array) -> tuple[Array, None]:
        row = matrix[i]
        return x + (b[i] - row @ x) / (row @ row) * row, None

    return jax.lax.scan(project, jnp.zeros_like(b), jax.random.randint(key, (steps,), 0, b.size))[0]


def noisy_richardson(matvec: Any, b: Array) -> Array:
    """Stochastic approximation of the fixed point of x -> x - .3 (A x - b), observed in noise, with steps 1/j."""

    def step(x: Array, j: Array) -> tuple[Array, None]:
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), j), b.shape)
        return x - 10.0 / (30.0 + j.astype(float)) * (matvec(x) - b + 0.3 * noise), None

    return jax.lax.scan(step, jnp.zeros_like(b), jnp.arange(4000))[0]


@pytest.mark.parametrize(
    "solve", [own_cg, bx.CG(tol=1e-12), bx.GMRES(tol=1e-12), bx.Exact()], ids=["own", "CG", "GMRES", "Exact"]
)
def test_solve_of_the_users_choice(solve: Any) -> None:
    solver = custom_root(jax.grad(ridge_loss), solve=solve)(ridge_solution)
    for jacobian in (jax.jacrev, jax.jacfwd) if solve is own_cg else (jax.jacrev,):
        np.testing.assert_allclose(jax.jit(jacobian(solver, 1))(None, LAM, X, Y), TRUE, rtol=1e-7, atol=1e-9)


def test_kaczmarz_on_an_operator_that_is_not_symmetric() -> None:
    weights, x = network_weights(3), jnp.asarray([[0.3, -0.7]])
    flat = custom_fixed_point(lambda h, x, weights: network(h[None], x, weights)[0], solve=kaczmarz)(
        lambda h0, x, weights: network_solver(h0, x, weights)[0]
    )
    truth = differences(lambda x: network_solver(None, x, weights)[0], x)
    np.testing.assert_allclose(jax.jit(jax.jacrev(flat, 1))(None, x, weights), truth, rtol=1e-7)


def test_a_noisy_solve_is_refused_or_accepted_by_the_tolerance() -> None:
    def gradient(**options: Any) -> Array:
        solver = custom_root(jax.grad(ridge_loss), solve=noisy_richardson, **options)(ridge_solution)
        return jax.jit(jax.grad(lambda lam: jnp.sum(solver(None, lam, X, Y))))(LAM)

    assert np.isnan(gradient()).all()
    accepted = np.asarray(gradient(residual_tol=0.3))
    error = np.linalg.norm(accepted - TRUE.sum(0)) / np.linalg.norm(TRUE.sum(0))
    assert 1e-6 < error < 0.2
    np.testing.assert_array_equal(accepted, gradient(residual_tol=np.inf))


def test_a_solve_that_ignores_the_operator_is_used_as_it_is_only_without_a_tolerance() -> None:
    def identity(matvec: Any, b: Array) -> Array:
        return b

    free = custom_fixed_point(network, solve=identity, residual_tol=float("inf"))(network_solver)
    weights, x = network_weights(3), jnp.asarray([[0.3, -0.7]])
    h = network_solver(None, x, weights)
    for jacobian in (jax.jacrev, jax.jacfwd):
        ours = jax.jit(jacobian(lambda x: free(None, x, weights)))(x)
        np.testing.assert_allclose(ours, jacobian(lambda x: network(h, x, weights))(x), rtol=1e-12)
    checked = custom_fixed_point(network, solve=identity)(network_solver)
    assert np.isnan(jax.jit(jax.grad(lambda x: jnp.sum(checked(None, x, weights))))(x)).all()


def test_the_residual_is_that_of_the_transposed_system_in_reverse_mode() -> None:
    weights, x = network_weights(3), jnp.asarray([[0.3, -0.7]])
    h = network_solver(None, x, weights)
    matrix = jnp.eye(3) - jax.jacfwd(lambda h: network(h[None], x, weights)[0])(h[0])

    def one_way(matvec: Any, b: Array) -> Array:  # right for A, wrong for its transpose
        return jnp.linalg.solve(matrix, b[0])[None]

    solver = custom_fixed_point(network, solve=one_way)(network_solver)
    forward = jax.jit(jax.jacfwd(solver, 1))(None, x, weights)
    np.testing.assert_allclose(forward, differences(lambda x: network_solver(None, x, weights), x), rtol=1e-7)
    assert np.isnan(jax.jit(jax.jacrev(solver, 1))(None, x, weights)).all()


# The default solver beyond the dense matrix.


def operators(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    half = rng.normal(size=(n // 3, n - n // 3))
    nilpotent = np.kron([[0.0, 1.0], [0.0, 0.0]], U[: n // 2, : n // 2] * np.logspace(0, 3, n // 2))
    saddle = np.block([[np.eye(n - n // 3), half.T], [half, np.zeros((n // 3, n // 3))]])
    return {
        "contraction": np.eye(n) - 0.9 * U,
        "cyclic shift": np.roll(np.eye(n), 1, axis=0),  # restarted GMRES makes no progress at all
        "symmetric, condition 1e4": U * np.logspace(-4, 0, n) @ U.T,  # restarted GMRES is too slow
        "saddle point": saddle,
        "identity and nilpotent": np.eye(n) + nilpotent,  # GMRES takes two steps, LSMR too many
        "tiny": 1e-9 * (np.eye(n) - 0.9 * U),
        "singular": U * np.r_[np.ones(n - 1), 0.0] @ V.T,
    }


@pytest.mark.parametrize("n", [DENSE // 2, DENSE + 30])
def test_default_solve_of_a_batch_of_operators(n: int) -> None:
    """In a batch each row must end as it would alone, whatever the others need."""
    b = np.random.default_rng(1).normal(size=n)
    cases = operators(n)
    run = jax.jit(jax.vmap(lambda A: solved(default_solve, lambda v: A @ v, jnp.asarray(b), 1e-3)))
    out = run(jnp.stack([jnp.asarray(A) for A in cases.values()]))
    for (name, A), code, x in zip(cases.items(), out.code, out.value, strict=True):
        if name == "singular":
            assert int(code) == bx.Code.SINGULAR
        else:
            assert int(code) == bx.Code.OK, name
            truth = np.linalg.solve(A, b)
            assert np.linalg.norm(x - truth) < 1e-8 * np.linalg.norm(truth), name


def test_different_units_do_not_make_a_matrix_singular() -> None:
    units = np.array([1e-9, 1.0, 1e7, 1e3])
    A = (np.eye(4) + 0.1 * np.random.default_rng(0).normal(size=(4, 4))) * units[:, None] * units[::-1]
    single = jnp.asarray(A, jnp.float32)
    b = jnp.asarray(units, jnp.float32)
    out = jax.jit(lambda A: solved(default_solve, lambda v: A @ v, b, 1e-3))(single)
    assert int(out.code) == bx.Code.OK
    np.testing.assert_allclose(out.value, np.linalg.solve(A, units), rtol=1e-4)


# Failure.


def flat_solver(solve: Any = None, **options: Any) -> Any:
    """F of ridge regression, at w = 0, which need not be its root."""
    return custom_root(jax.grad(ridge_loss), solve=solve, **options)(lambda w0, lam, X, y: jnp.zeros(X.shape[1]))


UNSEEN = X.at[:, 0].set(0.0)
NO_PENALTY = jnp.full(D, -jnp.inf)


def test_singular_system_gives_nan_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    solver = flat_solver()
    gradient = jax.jit(jax.grad(lambda y, X: jnp.sum(solver(None, NO_PENALTY, X, y))))
    with caplog.at_level(logging.WARNING, "bilevax"):
        assert np.isfinite(gradient(Y, X)).all()
        assert messages(caplog) == []
        for _ in range(3):
            assert np.isnan(gradient(Y, UNSEEN)).all()
        assert np.isnan(jax.jit(jax.jacfwd(lambda y: solver(None, NO_PENALTY, UNSEEN, y)))(Y)).all()
        [line] = messages(caplog)
    assert "<lambda>" in line
    assert "SINGULAR" in line
    assert "no unique solution" in line
    assert "diagnose" in line


def test_beyond_the_dense_matrix_too(caplog: pytest.LogCaptureFixture) -> None:
    n = DENSE + 1
    scale = jnp.linspace(1.0, 2.0, n)
    solver = custom_root(lambda w, s, c: s * w - c)(lambda w0, s, c: c)
    gradient = jax.jit(jax.grad(lambda c, s: jnp.sum(solver(None, s, c))))
    with caplog.at_level(logging.WARNING, "bilevax"):
        np.testing.assert_allclose(gradient(scale, scale), 1 / scale, rtol=1e-8)
        assert np.isnan(gradient(scale, scale.at[5].set(0.0))).all()
        [line] = messages(caplog)
    assert "SINGULAR" in line


def test_in_a_batch_only_the_rows_that_failed_are_nan_and_one_line_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    solver = flat_solver()

    def gradient(X: Array) -> Array:
        return jax.jacrev(lambda y: solver(None, NO_PENALTY, X, y))(Y)

    with caplog.at_level(logging.WARNING, "bilevax"):
        out = jax.jit(jax.vmap(gradient))(jnp.stack([X, UNSEEN, 2 * X, UNSEEN]))
        assert len(messages(caplog)) == 1
    assert np.isnan(out).all(axis=(1, 2)).tolist() == [False, True, False, True]
    np.testing.assert_allclose(out[2], np.linalg.pinv(2 * X), rtol=1e-8, atol=1e-12)


def test_a_batch_without_failure_asks_the_host_nothing() -> None:
    asked = []
    report = failure.reporter("test", 1e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failure, "_log_once", lambda *args: asked.append(args))
        report = failure.reporter("test", 1e-3)
        jax.vmap(jax.vmap(report))(jnp.zeros((3, 4), jnp.int32), jnp.ones((3, 4)))
        jax.effects_barrier()
        assert asked == []
        jax.vmap(jax.vmap(report))(jnp.zeros((3, 4), jnp.int32).at[1, 2].set(5), jnp.arange(12.0).reshape(3, 4))
        jax.effects_barrier()
    [(name, tol, code, residual)] = asked
    assert (name, tol, int(code), float(residual)) == ("test", 1e-3, 5, 6.0)


def test_diagnose_says_why() -> None:
    g = jnp.asarray([1.0, -2.0, 0.5, 3.0])
    diagnose = jax.jit(exact_ridge.diagnose)
    fine = diagnose(W, g, LAM, X, Y)
    assert (int(fine.code), fine.message) == (bx.Code.OK, "No failure was seen.")
    np.testing.assert_allclose(fine.adjoint, np.linalg.solve(hessian(LAM), g), rtol=1e-10)
    assert float(fine.residual) < 1e-12
    assert float(fine.optimality) < 1e-14
    off = diagnose(W + 0.1, g, LAM, X, Y)
    np.testing.assert_allclose(off.optimality, np.linalg.norm(hessian(LAM) @ np.full(D, 0.1)), rtol=1e-9)

    singular = flat_solver().diagnose(W0, g, NO_PENALTY, UNSEEN, Y)
    assert int(singular.code) == bx.Code.SINGULAR
    weak = custom_root(jax.grad(ridge_loss), solve=lambda A, b: 0.5 * b)(ridge_solution).diagnose(W, g, LAM, X, Y)
    assert int(weak.code) == bx.Code.MAX_STEPS
    np.testing.assert_allclose(weak.adjoint, 0.5 * g, rtol=1e-12)
    truth = np.linalg.norm(0.5 * hessian(LAM) @ g - g) / np.linalg.norm(g)
    np.testing.assert_allclose(weak.residual, truth, rtol=1e-10)
    assert "residual_tol" in weak.message
    for params, cotangent in ((W, g.at[0].set(jnp.nan)), (W, g.at[0].set(jnp.inf)), (W * jnp.nan, g)):
        assert int(diagnose(params, cotangent, LAM * params, X, Y).code) == bx.Code.NONFINITE


def test_diagnose_solves_the_transposed_system_and_works_under_jit() -> None:
    weights, x = network_weights(3), jnp.asarray([[0.3, -0.7]])
    h, g = network_solver(None, x, weights), jnp.asarray([[1.0, 2.0, -1.0]])
    matrix = np.eye(3) - np.asarray(jax.jacfwd(lambda h: network(h[None], x, weights)[0])(h[0]))
    out = jax.jit(layer.diagnose)(h, g, x, weights)
    np.testing.assert_allclose(out.adjoint[0], np.linalg.solve(matrix.T, g[0]), rtol=1e-10)
    with pytest.raises(bx.ParameterError, match="the cotangent returns"):
        layer.diagnose(h, g[0], x, weights)


@pytest.mark.parametrize("solve", [None, own_cg, lambda A, b: b / jnp.sum(jnp.abs(b))], ids=["default", "cg", "0/0"])
def test_zero_cotangent_gives_zero(solve: Any, caplog: pytest.LogCaptureFixture) -> None:
    solver = flat_solver(solve)
    with caplog.at_level(logging.WARNING, "bilevax"):
        gradient = jax.jit(jax.grad(lambda y: jnp.sum(0.0 * solver(None, LAM, X, y))))(Y)
        np.testing.assert_array_equal(gradient, np.zeros(N))
        assert messages(caplog) == []
    assert int(solver.diagnose(W, W0, LAM, X, Y).code) == bx.Code.OK


def absolute_cg(matvec: Any, b: Array) -> Array:
    """Accepts zero for a tiny b."""
    return jax.scipy.sparse.linalg.cg(matvec, b, tol=0.0, atol=1e-10)[0]


@pytest.mark.parametrize("solve", [None, absolute_cg])
def test_tiny_and_huge_cotangents_are_solved_like_any_other(solve: Any) -> None:
    solver = custom_root(jax.grad(ridge_loss), solve=solve)(ridge_solution)
    pull = jax.jit(lambda g: jax.vjp(lambda lam: solver(None, lam, X, Y), LAM)[1](g))
    for size in (1e-300, 1e-200, 1e200):
        np.testing.assert_allclose(pull(jnp.full(D, size))[0] / size, TRUE.sum(0), rtol=1e-8)


def test_nan_from_upstream_stays_nan() -> None:
    pull = jax.jit(lambda g: jax.vjp(lambda lam: exact_ridge(None, lam, X, Y), LAM)[1](g))
    assert np.isnan(pull(jnp.ones(D).at[2].set(jnp.nan))[0]).all()


@pytest.mark.parametrize("solve", [bx.Exact(), bx.Neumann(max_steps=50)], ids=["Exact", "Neumann"])
def test_zeros_of_a_library_solver_do_not_pass_for_a_result(solve: Any) -> None:
    solver = flat_solver(solve, residual_tol=float("inf"))
    out = jax.jit(jax.grad(lambda y, lam: jnp.sum(solver(None, lam, UNSEEN, y))))(Y, NO_PENALTY + 100.0)
    assert np.isnan(out).all()


# What is refused.


@pytest.mark.parametrize(
    ("fun", "params", "match"),
    [
        (lambda w, c: w["a"], {"a": W0}, r"must return a tree like params, .*'a'.*; got"),
        (lambda w, c: {"a": w["a"][:2]}, {"a": W0}, r"returns float64\[2\] for leaf params\['a'\], .* float64\[4\]"),
        (lambda w, c: {"a": w["a"].astype(jnp.float32)}, {"a": W0}, r"returns float32\[4\] for leaf params\['a'\]"),
        (lambda w, c: w, {"a": W0, "b": jnp.arange(3)}, r"leaf params\['b'\] is int64; a solution must consist of"),
        (lambda w, c: w, {"a": jnp.zeros(2, complex)}, r"leaf params\['a'\] is complex128"),
        (lambda w, c: w, (W0, 3), r"leaf params\[1\] is int; .*has_aux=True"),
        (lambda w, c: w, (), "params has no leaves"),
    ],
)
@pytest.mark.parametrize("make", [custom_root, custom_fixed_point])
def test_wrong_functions_and_params_are_refused(make: Any, fun: Any, params: Any, match: str) -> None:
    solver = make(fun)(lambda w0, c: params)
    with pytest.raises(bx.ParameterError, match=match):
        solver(None, 1.0)  # already when it is called, without derivatives
    with pytest.raises(bx.ParameterError, match=match):
        jax.jit(lambda c: solver(None, c))(1.0)


def test_wrong_options_are_refused() -> None:
    for options, match in (
        ({"solve": "cg"}, "solve must be a function"),
        ({"solve": bx.FixedPoint(10)}, "solve must be a function"),
        ({"residual_tol": 0.0}, "residual_tol must lie in"),
        ({"has_aux": 1}, "has_aux must be True or False"),
        ({"reference_signature": 3}, "reference_signature must be a function"),
    ):
        with pytest.raises(bx.ParameterError, match=match):
            custom_root(ridge_loss, **options)
    with pytest.raises(bx.ParameterError, match="optimality_fun must be a function"):
        custom_root(3)
    with pytest.raises(bx.ParameterError, match="must be a function of"):
        custom_root(ridge_loss)(3)
    with pytest.raises(bx.ParameterError, match="must return \\(params, aux\\), got"):
        custom_root(lambda w: w, has_aux=True)(lambda w0: w0)(W0)
    short = custom_root(lambda w, c: w - c, solve=lambda A, b: b[:1])(lambda w0, c: c)
    with pytest.raises(bx.ParameterError, match=r"solve returns float64\[1\]"):
        jax.grad(lambda c: jnp.sum(short(None, c)))(W0)


def test_it_is_called_like_the_function_that_it_decorates() -> None:
    @custom_root(jax.grad(ridge_loss))
    def solver(w0: Any, lam: Array, X: Array, y: Array, scale: float = 1.0) -> Array:
        """Ridge."""
        return scale * ridge_solution(w0, lam, X, y)

    assert (solver.__name__, solver.__doc__) == ("solver", "Ridge.")
    np.testing.assert_allclose(jax.jit(solver)(None, LAM, X, y=Y), W, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(solver, in_axes=(None, 0, None, None))(None, LAM[None], X, Y)[0], W, rtol=1e-9)
    assert bx.implicit.custom_root is custom_root
