"""Averages over nodes by messages: closed forms of gossip, push-sum and gradient tracking."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.solvers import mixing

KEY = jax.random.key(3)
N = 6
X = {"a": np.random.default_rng(0).normal(size=(N, 3)), "b": np.random.default_rng(1).normal(size=N)}
PATH = np.eye(N, k=1) + np.eye(N, k=-1)
POWERS = np.cos(2 * np.pi * np.arange(N) / N)


def average(how, x=X, key=KEY):
    return jax.tree.map(np.asarray, jax.jit(mixing.averaged)(how, jax.tree.map(jnp.asarray, x), key))


def ring(a, number=N):
    return (1 - 2 * a) * np.eye(number) + a * (np.roll(np.eye(number), 1, 0) + np.roll(np.eye(number), -1, 0))


@pytest.mark.parametrize(
    ("how", "matrix"),
    [
        (bx.Ring(rounds=3, weight=0.25), np.linalg.matrix_power(ring(0.25), 3)),
        (bx.Gossip(ring(0.4), rounds=2), ring(0.4) @ ring(0.4)),
        (bx.ExactAverage(), np.full((N, N), 1 / N)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_rounds_are_products_with_the_matrix(how, matrix):
    found = average(how)
    for name, x in X.items():
        np.testing.assert_allclose(found[name], matrix @ x, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found[name].mean(axis=0), x.mean(axis=0), rtol=1e-12)


def test_contraction_is_the_second_eigenvalue():
    W = bx.Gossip(ring(0.25))
    # eigenvalues of a circulant matrix: 1 - 2a (1 - cos(2 pi k / N))
    second = max(abs(1 - 0.5 * (1 - POWERS[1:])))
    np.testing.assert_allclose(W.contraction, second, rtol=1e-12)
    slowest = np.cos(2 * np.pi * np.arange(N) / N)  # the eigenvector of k = 1
    before, after = (mixing.disagreement(x) for x in (slowest, average(W, slowest)))
    np.testing.assert_allclose(float(after / before) ** 0.5, second, rtol=1e-12)


def test_metropolis_weights_are_those_of_the_graph():
    W = np.asarray(bx.Gossip.metropolis(PATH).matrix)
    np.testing.assert_allclose(W, W.T)
    np.testing.assert_allclose(W.sum(axis=0), 1.0)
    # a path: the ends have one neighbour, all others two
    assert np.array_equal(W > 0, PATH + np.eye(N) > 0)
    np.testing.assert_allclose([W[0, 1], W[0, 0], W[2, 3], W[2, 2]], [1 / 3, 2 / 3, 1 / 3, 1 / 3])
    assert 0 < bx.Gossip.metropolis(PATH).contraction < 1
    assert bx.Gossip.metropolis(np.zeros((N, N))).contraction == pytest.approx(1.0)  # nobody talks


def test_push_sum_is_the_ratio_of_products_of_its_graphs():
    """Not doubly stochastic: sums are kept, masses move, and values over masses tend to the mean."""
    how = bx.PushSum(rounds=4, edges=0.5)
    graphs = [np.asarray(how.matrix(N, jax.random.fold_in(KEY, s))) for s in range(4)]
    assert all(np.all(np.diag(P) > 0) for P in graphs)
    assert not np.array_equal(graphs[0], graphs[1])
    assert np.abs(graphs[0].sum(axis=1) - 1).max() > 0.1
    product = np.linalg.multi_dot(graphs[::-1])
    np.testing.assert_allclose(product.sum(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(average(how)["a"], product @ X["a"] / product.sum(axis=1)[:, None], rtol=1e-12)
    np.testing.assert_allclose(average(bx.PushSum(200, 0.5))["a"], np.tile(X["a"].mean(axis=0), (N, 1)), rtol=1e-10)


def test_edges_are_drawn_with_their_probabilities():
    p = np.random.default_rng(2).uniform(0.4, 0.8, (N, N))
    draw = jax.jit(jax.vmap(partial(bx.PushSum(edges=p).matrix, N)))
    seen = (np.asarray(draw(jax.random.split(KEY, 4000))) > 0).mean(axis=0)
    np.testing.assert_allclose(seen, np.where(np.eye(N) > 0, 1.0, p), atol=4 * 0.5 / 4000**0.5)


def test_tracking_keeps_the_mean_and_follows_it():
    how, rng = bx.Ring(), np.random.default_rng(4)
    y = d = rng.normal(size=(N, 2))
    tracked = jax.jit(mixing.tracked)
    for t in range(200):
        new = rng.normal(size=(N, 2)) if t < 5 else d  # moves, then stands still
        y = tracked(how, y, new, d, KEY)
        d = new
        np.testing.assert_allclose(y.mean(axis=0), d.mean(axis=0), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(y, np.tile(d.mean(axis=0), (N, 1)), rtol=1e-8)


def test_what_mixes_nothing_is_refused(refused):
    refused(partial(bx.Gossip, np.ones((3, 3))), bx.ParameterError, "rows and columns that sum to 1")
    refused(partial(bx.Gossip.metropolis, np.triu(np.ones((3, 3)))), bx.ParameterError, "symmetric")
    refused(partial(bx.PushSum, 1, 1.5), bx.ParameterError, "edges must lie in")
    refused(partial(bx.PushSum, 1, np.full((2, 3), 0.5)), bx.ParameterError, "square")
    refused(partial(bx.Ring, weight=0.6), bx.ParameterError, "weight must lie in")
    refused(partial(bx.Ring, axis=0), bx.ParameterError, "axis must be the name")
    refused(partial(bx.PushSum, 0), bx.ParameterError, "rounds must be at least 1")
