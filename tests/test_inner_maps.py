"""Maps of one use: a decision maker, two equilibria, an unrolled method, each against numpy alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

import bilevax as bx

KEY = jax.random.key(0)
RNG = np.random.default_rng(1)


def hypergradient(problem, w0, lam, rows, estimator):
    source = bx.Arrays(rows)
    out = bx.hypergradient(problem, estimator, w0, lam, source, source, key=KEY, report=False)
    assert out.code == bx.Code.OK, out.message
    return out


def central(f, lam, h=1e-5):
    return np.array([(f(lam + h * e) - f(lam - h * e)) / (2 * h) for e in np.eye(len(lam))])


def iterated(image, w, steps=4000):
    for _ in range(steps):
        w = image(w)
    return w


# ---- the soft Bellman operator: rewards lam_a x_s, temperatures that matter, a policy that the outer loss reads

P, X = RNG.dirichlet(np.ones(4), size=(4, 2)), RNG.normal(size=4)
TAU, GAMMA, TARGET = 0.3, 0.8, RNG.dirichlet(np.ones(2), size=4)
BELLMAN = bx.SoftBellman(lambda lam, b: b["x"][:, None] * lam[None], lambda lam, b: b["P"], GAMMA, TAU)


def imitation(V, lam, batch):
    return jnp.sum((BELLMAN.policy(V, lam, batch) - batch["target"]) ** 2) + V[0]


def imitation_by_hand(lam):
    def q(V):
        return X[:, None] * lam + GAMMA * P @ V

    V = iterated(lambda V: TAU * logsumexp(q(V) / TAU, axis=1), np.zeros(4), 200)
    policy = softmax(q(V) / TAU, axis=1)
    # what the policy earns, entropies and all, is V
    earned = (policy * (X[:, None] * lam - TAU * np.log(policy))).sum(1)
    np.testing.assert_allclose(np.linalg.solve(np.eye(4) - GAMMA * np.einsum("sat,sa->st", P, policy), earned), V)
    return ((policy - TARGET) ** 2).sum() + V[0]


def test_a_decision_makers_hypergradient_is_that_of_central_differences():
    rows, lam = {"P": P, "x": X, "target": TARGET}, np.array([0.4, -0.7])
    how = bx.SID(bx.FixedPoint(150), bx.NormalEquations(tol=1e-10))
    out = hypergradient(bx.Problem(BELLMAN, imitation), np.zeros(4), lam, rows, how)
    np.testing.assert_allclose(out.outer_value, imitation_by_hand(lam), rtol=1e-9)
    np.testing.assert_allclose(out.value, central(imitation_by_hand, lam), rtol=1e-6)


# ---- equilibria: three roads with congestion of a matrix that is not symmetric

SLOPE = np.array([[2.0, 0.5, 0.0], [-0.3, 1.5, 0.2], [0.1, 0.0, 1.0]])
FREE, T = np.array([0.3, 0.1, 0.5]), 0.25


def road_cost(w, lam, batch):
    return batch["slope"] @ w + batch["free"] + lam


def congestion(w, lam, batch):
    return w @ (batch["slope"] @ w + batch["free"])


def on_the_plane(w):
    """The nearest point of sum 1, which is that of the simplex while all of it is positive."""
    return w + (1.0 - w.sum()) / 3


MAPS = {
    "logit": (bx.LogitResponse(road_cost, T), lambda w, c: softmax(-c / T)),
    "wardrop": (bx.ProjectionStep(road_cost, on_the_plane, 0.2), lambda w, c: w - 0.2 * (c - c.mean())),
}


@pytest.mark.parametrize("name", MAPS)
def test_an_equilibriums_hypergradient_is_that_of_central_differences(name):
    phi, by_hand = MAPS[name]

    def value(lam):
        w = iterated(lambda w: 0.5 * w + 0.5 * by_hand(w, SLOPE @ w + FREE + lam), np.ones(3) / 3, 400)
        assert w.min() > 0.05
        return w @ (SLOPE @ w + FREE)

    lam = np.array([0.2, 0.0, 0.1])
    how = bx.SID(bx.FixedPoint(400, 0.5), bx.GMRES(tol=1e-10))
    rows = {"slope": SLOPE, "free": FREE}
    out = hypergradient(bx.Problem(phi, congestion), np.ones(3) / 3, lam, rows, how)
    np.testing.assert_allclose(out.outer_value, value(lam), rtol=1e-9)
    np.testing.assert_allclose(out.value, central(value, lam), rtol=1e-5, atol=1e-8)


# ---- an unrolled method: three steps of sizes lam_t towards each row, from lam_0

ROWS = RNG.normal(size=(5, 2))
UNROLLED = bx.Unrolled(
    lambda z, lam, rows, t: z + lam[t] * (rows - z), lambda lam, rows: jnp.full(rows.shape, lam[0]), steps=3
)


def test_an_unrolled_methods_hypergradient_is_that_of_central_differences():
    def value(lam):
        z = np.full(ROWS.shape, lam[0])
        for t in range(3):
            z = z + lam[t] * (ROWS - z)
        return np.mean((z - 1.0) ** 4)

    problem = bx.Problem(UNROLLED, lambda z, lam, rows: jnp.mean((z - 1.0) ** 4))
    lam, once = np.array([0.3, 0.7, 0.2]), bx.ITD(1, tol=np.inf)
    out = hypergradient(problem, np.zeros_like(ROWS), lam, ROWS, once)
    np.testing.assert_allclose(out.outer_value, value(lam), rtol=1e-12)
    np.testing.assert_allclose(out.value, central(value, lam), rtol=1e-8)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (partial(bx.SoftBellman, 1.0, len, 0.5), "reward must be a function of"),
        (partial(bx.SoftBellman, len, len, 1.0), "discount must be less than 1, got 1"),
        (partial(bx.SoftBellman, len, len, 0.5, 0.0), "temperature must lie in"),
        (partial(bx.ProjectionStep, len, None, 0.1), "project must be a function of w"),
        (partial(bx.ProjectionStep, len, len, 0.0), "step_size must lie in"),
        (partial(bx.LogitResponse, 3), "cost must be a function of"),
        (partial(bx.Unrolled, len, 0.0, 3), "start must be a function of"),
        (partial(bx.Unrolled, len, len, 0), "steps must be at least 1"),
    ],
)
def test_what_is_no_map_is_refused(build, sentence):
    with pytest.raises(bx.ParameterError, match=sentence):
        build()
