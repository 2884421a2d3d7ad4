"""Hypergradients by messages between nodes, on the three nodes of Terashita and Hara: against dense linear algebra."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx

NODES, ROWS, D = 3, 40, 5
KEY = jax.random.key(0)
W0 = np.zeros(D)
LAM = np.random.default_rng(1).normal(-3.0, 1.0, (NODES, D))
TASKS = np.random.default_rng(2).normal(size=(NODES, D)) + 1.0


def rows(seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(ROWS, NODES, D))
    return X, (rng.uniform(size=(ROWS, NODES)) < sigmoid(np.einsum("nid,id->ni", X, TASKS))).astype(float)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def outer(w, lam, batch):
    X, y = batch
    z = X @ w
    return jnp.mean(jnp.logaddexp(0.0, z) - y * z)


def inner(w, lam, batch):
    return outer(w, lam, batch) + jnp.sum(jnp.exp(lam) * w**2) / 2


TRAIN, VAL = rows(3), rows(4)
PROBLEM = bx.Problem(bx.GradientStep(bx.MeanOverNodes(inner), 1.0), bx.MeanOverNodes(outer))


def solved():
    """w by Newton's method and the hypergradient by a dense solve, in numpy."""
    (X, y), (Xv, yv), penalty, w = TRAIN, VAL, np.exp(LAM), W0
    for _ in range(30):
        p = sigmoid(X @ w)
        gradient = np.mean([X[:, i].T @ (p - y)[:, i] / ROWS + penalty[i] * w for i in range(NODES)], axis=0)
        weights = p * (1 - p)
        H = np.mean([X[:, i].T * weights[:, i] @ X[:, i] / ROWS + np.diag(penalty[i]) for i in range(NODES)], axis=0)
        w = w - np.linalg.solve(H, gradient)
    g = np.einsum("nid,ni->d", Xv, sigmoid(Xv @ w) - yv) / (ROWS * NODES)
    # d/dlam_i of grad G is diag(penalty_i w) / N
    return w, -penalty * w * np.linalg.solve(H, g) / NODES


W, TRUTH = solved()


def found(method, w0=W, size=None, key=KEY):
    train, val = bx.Arrays(TRAIN, size), bx.Arrays(VAL)
    return bx.hypergradient(PROBLEM, method, w0, LAM, train, val, key=key, report=False)


def off(est):
    return np.linalg.norm(est.value - TRUTH) / np.linalg.norm(TRUTH)


def test_more_rounds_bring_it_to_the_one_of_a_single_machine():
    """300 products: the relative error falls with S, and with exact averages it is the centralised path to rounding."""
    push = partial(bx.PushSumHypergradient, bx.Given(), 300)
    errors = np.array([[off(found(push(bx.PushSum(S)), key=key)) for S in (1, 2, 5, 10)]
                       for key in jax.random.split(KEY, 3)])  # fmt: skip
    assert np.all(np.diff(errors.mean(axis=0)) < 0), errors
    assert errors[:, -1].max() < 1e-3, errors
    assert errors[:, 0].min() > 1e-3  # the messages matter
    exact, central = found(push(bx.ExactAverage())), found(bx.StochasticReverse(bx.Given(), 300))
    for field in ("value", "v", "w", "outer_value"):
        np.testing.assert_allclose(getattr(exact, field), getattr(central, field), rtol=1e-12, atol=1e-17)
    assert off(exact) < 1e-10


def test_gradient_push_finds_the_w_of_all():
    """By messages alone, from w to the hypergradient; minibatches bring noise, no bias that shows."""
    inner = bx.GradientPush(1000, bx.Polynomial(1.0, 0.5))
    est = found(bx.PushSumHypergradient(inner, 300, bx.PushSum(10)), W0)
    np.testing.assert_allclose(est.w, W, atol=1e-4)
    assert off(est) < 1e-3
    assert (est.cost.gradients.calls, est.cost.hvps.calls, est.cost.cross.calls) == (1000, 300, 300)


@pytest.mark.slow
def test_constant_steps_leave_gradient_push_off_by_an_amount_in_proportion():
    """With one round a step."""
    errors = [
        np.linalg.norm(found(bx.PushSumHypergradient(bx.GradientPush(20_000, eta), 1, bx.Ring(weight=0.1)), W0).w - W)
        for eta in (0.02, 0.01)
    ]
    np.testing.assert_allclose(errors[0] / errors[1], 2.0, rtol=0.15)


@pytest.mark.slow
def test_on_minibatches_it_has_a_floor():
    """Of the order of one path's noise, which more rounds do not lower: means over 40 keys."""
    keys = jax.random.split(KEY, 40)
    errors = {
        S: np.mean(
            [off(found(bx.PushSumHypergradient(bx.Given(), 300, bx.PushSum(S)), size=10, key=key)) for key in keys]
        )
        for S in (2, 10, 40)
    }
    assert errors[2] > errors[10] > 1e-2
    np.testing.assert_allclose(errors[40], errors[10], rtol=0.25)


@pytest.mark.slow
def test_personal_penalties_are_tuned_by_it():
    """As the estimator of any outer loop: the mean loss on held-out rows falls as by exact hypergradients."""
    train, val = bx.Arrays(TRAIN), bx.Arrays(VAL)

    def run(method):
        algorithm = bx.BSGM(method, bx.optim("adam", 0.2))
        return bx.minimize(PROBLEM, algorithm, W0, LAM, train, val, steps=20, key=KEY).lam

    by_messages = run(bx.PushSumHypergradient(bx.LBFGS(), 200, bx.PushSum(10)))
    exact = run(bx.SID(bx.LBFGS(), bx.CG()))
    np.testing.assert_allclose(by_messages, exact, atol=0.05)
    assert np.abs(exact - LAM).max() > 1.0


def test_what_is_no_problem_of_nodes_is_refused(refused):
    push = bx.PushSumHypergradient(bx.Given(), 10)
    train, val = bx.Arrays(TRAIN), bx.Arrays(VAL)

    def run(problem=PROBLEM, method=push, lam=LAM, rows=train):
        bx.hypergradient(problem, method, W0, lam, rows, val, key=KEY)

    plain = bx.Problem(bx.GradientStep(inner, 1.0), outer)
    refused(partial(run, plain), bx.ParameterError, r"needs bx.MeanOverNodes\(f\) as the inner loss or map")
    refused(partial(run, lam=LAM[:2]), bx.ParameterError, r"each of 3 nodes has its own lam.*and lam is \[2, 5\]")
    flat = bx.Arrays((TRAIN[0], TRAIN[1][:, 0]))
    refused(partial(run, rows=flat), bx.ParameterError, r"leaves \[n, N, ...\], and batch\[1\] is \[40\]")
    keyed = bx.Arrays(TRAIN, 4, keys=True)
    refused(partial(run, rows=keyed), bx.ParameterError, "bring no keys")
    apart = bx.PushSum(axis="nodes")
    refused(partial(bx.PushSumHypergradient, bx.LBFGS(), 10, apart), bx.ParameterError, "over devices no solver sees")
    unmeasured = bx.Problem(bx.GradientStep(bx.MeanOverNodes(inner)), bx.MeanOverNodes(outer))
    method = bx.PushSumHypergradient(bx.Given(), 10, apart)
    refused(partial(run, unmeasured, method), bx.ParameterError, "give GradientStep its step_size")
    refused(partial(bx.PushSumHypergradient, bx.Given(), 10, 3), bx.ParameterError, "mixing must be one such as")
    refused(partial(bx.MeanOverNodes, outer, "v"), bx.ParameterError, "own must be one of 'lam', 'w'")
