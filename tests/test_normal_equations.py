"""The normal equations of the linear system, and the soft Bellman equation, for which they are published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx

RNG = np.random.default_rng(2)
D = 6
G = RNG.normal(size=D)
MATRIX = np.eye(D) - 0.9 * np.triu(RNG.normal(size=(D, D)))  # far from normal, and Richardson's iteration diverges
KEY = jax.random.key(0)


def solve(M, g=G, start=None, **options):
    M, g = jnp.asarray(M), jnp.asarray(g)
    return bx.NormalEquations(**options).solve(lambda v: M @ v, g, None, start)


def test_it_solves_what_no_fixed_point_iteration_does():
    assert np.max(np.abs(1 - np.linalg.eigvals(MATRIX))) > 1
    truth = np.linalg.solve(MATRIX, G)
    for start in (None, jnp.ones(D)):
        out = solve(MATRIX, start=start, tol=1e-11)
        assert out.code == bx.Code.OK
        np.testing.assert_allclose(out.value, truth, rtol=1e-8)
    # of conjugate directions: D of them in exact arithmetic
    assert out.last_step <= 3 * D


@pytest.mark.parametrize("steps", [1, 7])
def test_gradient_steps_by_hand(steps):
    """v <- v + zeta A^T (g - A v)."""
    v, zeta = np.ones(D), 0.02
    out = solve(MATRIX, start=jnp.asarray(v), step_size=zeta, max_steps=steps)
    for _ in range(steps):
        v = v + zeta * MATRIX.T @ (G - MATRIX @ v)
    np.testing.assert_allclose(out.value, v, rtol=1e-12)
    assert out.code == bx.Code.MAX_STEPS
    assert out.calls == 2 * steps + 2


def test_too_long_a_step_is_named():
    # zeta |A|^2 = 2.2
    zeta = 2.2 / np.linalg.norm(MATRIX, 2) ** 2
    assert solve(MATRIX, step_size=zeta).code == bx.Code.NOT_CONTRACTIVE


@pytest.mark.parametrize("options", [{}, {"step_size": 0.1, "max_steps": 20_000}])
def test_a_singular_system_is_solved_by_least_squares_and_named(options):
    M = np.diag([0.5, 1.0, 2.0, 0.0, 1.5, 1.0])
    out = solve(M, **options)
    assert out.code == bx.Code.SINGULAR
    np.testing.assert_allclose(out.value, np.linalg.pinv(M) @ G, atol=1e-5)


STATES, ACTIONS, GAMMA, M = 10, 5, 0.5, 12
MOVES = RNG.dirichlet(np.ones(STATES), size=(STATES, ACTIONS))  # P(s' | s, a)
FEATURES = RNG.normal(size=(STATES, ACTIONS, M))


def q_values(V, x, batch):
    """r_x(s, a) + gamma sum_s' P(s' | s, a) V(s'), r_x = c . x."""
    P, c = batch
    return jnp.mean(c, 0) @ x + GAMMA * jnp.mean(P, 0) @ V


def soft_bellman(V, x, batch):
    """Phi_s(V, x) = log sum_a exp(q(s, a)), of temperature 1."""
    return jax.nn.logsumexp(q_values(V, x, batch), axis=1)


def policy_cost(V, x, batch):
    """(|x|^2 + |pi|^2) / 2, pi the policy of V."""
    policy = jax.nn.softmax(q_values(V, x, batch), axis=1)
    return 0.5 * (jnp.vdot(x, x) + jnp.vdot(policy, policy))


MDP = bx.Arrays((MOVES[None], FEATURES[None]))
PROBLEM = bx.Problem(soft_bellman, policy_cost)
X = RNG.normal(size=M)


def cost_at(x):
    """f(x) in numpy, the equation solved by 200 sweeps."""
    V = np.zeros(STATES)
    for _ in range(200):
        q = FEATURES @ x + GAMMA * MOVES @ V
        V = np.log(np.sum(np.exp(q), axis=1))
    policy = np.exp(q - q.max(1, keepdims=True))
    policy /= policy.sum(1, keepdims=True)
    return 0.5 * (x @ x + np.sum(policy**2))


def test_the_hypergradient_of_a_soft_bellman_equation():
    """Against central differences of the solved equation; I - d1Phi is not symmetric."""
    h = 1e-4
    differences = [
        (8 * (cost_at(X + h * e) - cost_at(X - h * e)) - cost_at(X + 2 * h * e) + cost_at(X - 2 * h * e)) / (12 * h)
        for e in np.eye(M)
    ]
    sid = bx.SID(bx.FixedPoint(120), bx.NormalEquations(tol=1e-13))
    est = bx.hypergradient(PROBLEM, sid, np.zeros(STATES), X, MDP, MDP, key=KEY)
    assert est.code == bx.Code.OK, est.message
    np.testing.assert_allclose(est.value, differences, rtol=1e-8, atol=1e-9)
    assert est.error.upper < 1e-6


def test_one_move_of_the_normal_equations_a_step_solves_the_reinforcement_problem():
    """M-SoBiRL: ten sweeps, one move of v, one of x, each from where it was."""
    sid = bx.SID(bx.FixedPoint(10, tol=1.0), bx.NormalEquations(step_size=0.5, max_steps=1))
    algorithm = bx.BSGM(sid, bx.optim("sgd", 0.05), warm_start=True)
    result = bx.minimize(PROBLEM, algorithm, np.zeros(STATES), X, MDP, MDP, steps=1500, key=KEY)
    assert result.code <= bx.Code.MAX_STEPS, result.message
    exact = bx.SID(bx.FixedPoint(120), bx.GMRES(tol=1e-12))
    at = [
        bx.hypergradient(PROBLEM, exact, np.zeros(STATES), x, MDP, MDP, key=KEY, report=False).value
        for x in (X, result.lam)
    ]
    assert np.linalg.norm(at[1]) < 1e-7 * np.linalg.norm(at[0])
