"""Compositions over nodes: DSCGD by hand, beside SCGD, and at its stationary points in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.solvers.mixing import disagreement

NODES, ROWS, D, M = 8, 50, 4, 3
KEY = jax.random.key(5)
RNG = np.random.default_rng(0)
# row r of node i: w = b + B lam; each node wants another target
B = RNG.normal(size=(ROWS, NODES, D, M)) + np.eye(D, M)
C = RNG.normal(size=(ROWS, NODES, D))
TARGET = 2.0 * RNG.normal(size=(1, NODES, D))
LAM, W0 = np.array([0.5, -1.0, 1.0]), np.zeros((NODES, D))
A = 0.4 * np.eye(NODES) + 0.3 * (np.roll(np.eye(NODES), 1, 0) + np.roll(np.eye(NODES), -1, 0))


def g(lam, batch):
    slope, constant = batch
    return jnp.mean(slope @ lam + constant, axis=0)


def outer(w, lam, batch):
    return jnp.mean(jnp.sum((w[None] - batch) ** 2, axis=1)) / 2


PROBLEM = bx.Problem(bx.Composition(bx.StackOverNodes(g)), bx.MeanOverNodes(outer, own="w"))
VAL = bx.Arrays(TARGET)


@jax.jit
def states(algorithm, train, stops):
    """w and lam of every node at each stop."""

    def step(at, algorithm, k, looks):
        return algorithm.step(PROBLEM, at, looks, k)[0]

    at = algorithm.init(PROBLEM, jnp.asarray(W0), jnp.asarray(LAM), (train, VAL))
    streams = algorithm.streams((train, VAL))
    at = bx.fold_looks(streams, step, at, algorithm, key=KEY, start=0, stop=stops)
    return at.w, at.lam


def run(tracking, rho, gamma, stops, size=None):
    algorithm = bx.DSCGD(rho, gamma / rho, tracking, bx.Gossip(A))
    return map(np.asarray, states(algorithm, bx.Arrays((B, C), size), jnp.asarray(stops)))


def gradient(lam):
    """Of (1/N) sum_i |mean B lam + mean b - target|^2 / 2 at each copy, [N, M]."""
    w = np.einsum("idm,im->id", B.mean(0), lam) + C.mean(0)
    return np.einsum("idm,id->im", B.mean(0), w - TARGET[0])


@pytest.mark.parametrize("tracking", [True, False], ids=["GT", "GP"])
def test_steps_are_those_written_out(tracking):
    rho, gamma, steps = 0.6, 0.05, 4
    w, lam, y, before = W0, np.tile(LAM, (NODES, 1)), 0.0, 0.0
    for _ in range(steps):
        w = w + rho * (np.einsum("idm,im->id", B.mean(0), lam) + C.mean(0) - w)
        d = np.einsum("idm,id->im", B.mean(0), w - TARGET[0])
        y = (A @ y if np.ndim(y) else 0.0) + d - before if tracking else d
        lam, before = A @ lam - gamma * y, d
    found = run(tracking, rho, gamma, [steps])
    for x, wanted in zip(found, (w, lam), strict=True):
        np.testing.assert_allclose(x[0], wanted, rtol=1e-10)


def test_tracking_brings_all_copies_to_the_minimum_where_gossip_leaves_them_apart():
    """Of 8 nodes on a ring, on every row: to rounding; by gossip as far as gamma and the nodes' gradients say."""
    steps, gamma = [3000], 0.05
    (_, tracked), (_, gossiped) = (run(tracking, 1.0, gamma, steps) for tracking in (True, False))
    minimum = np.linalg.lstsq(B.mean(0).reshape(-1, M), (TARGET[0] - C.mean(0)).ravel())[0]
    np.testing.assert_allclose(tracked[0], np.tile(minimum, (NODES, 1)), atol=1e-9)
    # stationary: (I - A) lam = -gamma d
    np.testing.assert_allclose(gossiped[0] - A @ gossiped[0], -gamma * gradient(gossiped[0]), atol=1e-9)
    assert disagreement(gossiped[0]) > 1e-3


def test_an_average_takes_the_bias_of_a_plug_in_away_and_tracking_the_disagreement():
    """On minibatches of four rows a node: |grad f| at the mean of lam, and (1/N) sum_i |lam_i - mean|^2."""
    stops = np.arange(4000, 12_001, 40)

    def judged(tracking, rho, size=4, gamma=0.01):
        _, lam = run(tracking, rho, gamma, stops, size)
        mean = lam.mean(axis=(0, 1))
        return np.linalg.norm(gradient(np.tile(mean, (NODES, 1))).mean(axis=0)), np.mean([*map(disagreement, lam)])

    (plug_in, _), (average, apart), (_, gossiped) = judged(True, 1.0), judged(True, 0.1), judged(False, 0.1)
    assert plug_in > 3 * average
    assert gossiped > 5 * apart


@pytest.mark.parametrize("tracking", [True, False])
def test_one_node_is_scgd(tracking):
    rows = B[:, :1], C[:, :1]
    train, val, key = bx.Arrays(rows, 7), bx.Arrays(TARGET[:, :1]), jax.random.key(1)
    steps = bx.Polynomial(0.5, 0.5), 0.1
    problem = bx.Problem(PROBLEM.inner_map, PROBLEM.outer_loss)
    one, scgd = (
        bx.minimize(problem, method, W0[:1], LAM, train, val, steps=30, key=key)
        for method in (bx.DSCGD(*steps, tracking=tracking), bx.SCGD(*steps))
    )
    np.testing.assert_allclose(one.lam, scgd.lam, rtol=1e-12)
    np.testing.assert_allclose(one.w, scgd.w, rtol=1e-12)


def test_what_is_no_composition_over_nodes_is_refused(refused):
    plain = bx.Problem(bx.Composition(g), outer)
    train = bx.Arrays((B, C))
    call = partial(bx.minimize, plain, bx.DSCGD(0.5, 0.1), W0, LAM, train, VAL, steps=1, key=KEY)
    refused(call, bx.ParameterError, r"needs bx.Composition\(bx.StackOverNodes\(g\)\) as the inner map")
    refused(partial(bx.DSCGD, 0.5, 0.1, mixing=bx.PushSum()), bx.ParameterError, "weights that sum to one at each node")
    refused(partial(bx.DSCGD, 0.5, 0.1, tracking=3), bx.ParameterError, "tracking must be True or False")
