"""Rows that are not in memory: what runs on ``bx.Stream`` is what runs on ``bx.Arrays``, and what goes wrong is said."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx

KEY = jax.random.key(5)
RNG = np.random.default_rng(1)
N, D, B = 203, 4, 7
W = RNG.normal(size=D)
X, V = RNG.normal(size=(N, D)), RNG.normal(size=(90, D))
Y, Z = X @ W + 0.3 * RNG.normal(size=N), V @ W + 0.3 * RNG.normal(size=90)
SMALL = 32 * B * 8 * (D + 1)
"""Bytes with which a piece has one minibatch, and a pass over every row several pieces."""


def inner_loss(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def outer_loss(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2)


PROBLEM = bx.Problem(bx.GradientStep(inner_loss), outer_loss)
START = jnp.zeros(D), jnp.full(D, -1.0)


def arrays(b=B, val=5, sampling="iid", **options):
    return bx.Arrays((X, Y), b, sampling, **options), bx.Arrays((V, Z), val, sampling, **options)


def streams(b=B, val=5, sampling="iid", bytes=SMALL, **options):
    return (
        bx.Stream((X, Y), b, sampling, prefetch_bytes=bytes, **options),
        bx.Stream((V, Z), val, sampling, prefetch_bytes=bytes, **options),
    )


class Table:
    """Rows that a loader of the user's finds; what it does wrong, a test says."""

    def __init__(self, *leaves):
        self.leaves, self.asked, self.threads = leaves, [], set()

    def __len__(self):
        return len(self.leaves[0])

    def rows(self, numbers):
        self.asked.append(np.array(numbers))
        self.threads.add(threading.current_thread())
        return tuple(x[numbers] for x in self.leaves)


@jax.jit
def drawn(source, start, stop):
    """The rows of every minibatch, as their sums, with its weight and block."""

    def note(seen, args, j, draw):
        X, y = draw.batch
        new = jnp.concatenate([X.sum(0), y.sum()[None], jnp.stack([draw.weight, jnp.asarray(draw.block, float)])])
        return seen.at[j].set(new)

    return source.fold(note, jnp.zeros((600, D + 3)), (), key=KEY, start=start, stop=stop)


@pytest.mark.parametrize(
    "options", [("iid", {}), ("shuffled", {}), ("blocks", {}), ("blocks", {"seed": None})], ids=str
)
@pytest.mark.parametrize("bytes", [SMALL, 1 << 20])
def test_minibatch_j_has_the_rows_that_arrays_draws(options, bytes):
    sampling, more = options
    known = drawn(bx.Arrays((X, Y), B, sampling, **more), 0, 600)
    source = bx.Stream(Table(X, Y), B, sampling, prefetch_bytes=bytes, **more)
    np.testing.assert_array_equal(drawn(source, 0, 600), known)
    # entered again in the middle of a piece, across a chunk
    np.testing.assert_array_equal(drawn(source, 251, 262)[251:262], known[251:262])


ESTIMATORS = {
    "SID": (bx.SID(bx.FixedPoint(300, 0.5), bx.FixedPoint(300, 0.5), cross_batches=40), {}),
    "SID shuffled": (bx.SID(bx.FixedPoint(300, 0.5), bx.CG(1e-8), cross_batches=40), {"sampling": "shuffled"}),
    "JointSID": (bx.JointSID(600), {"sampling": "blocks"}),
    "LBFGS, CG": (bx.SID(bx.LBFGS(1e-10), bx.CG(1e-10)), {}),
    "GMRES": (bx.SID(bx.FixedPoint(60, 0.5), bx.GMRES(1e-8)), {}),
    "Neumann": (bx.SID(bx.LBFGS(1e-10), bx.Neumann(1e-8)), {}),
    "ITD": (bx.ITD(60), {}),
}


def close(found, known, rtol=1e-6):
    for x, y in zip(*map(jax.tree.leaves, (found, known)), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize(("estimator", "options"), ESTIMATORS.values(), ids=ESTIMATORS)
def test_hypergradients_and_their_reports_are_those_of_arrays(estimator, options):
    found, known = (
        bx.hypergradient(PROBLEM, estimator, *START, *make(**options), key=KEY) for make in (streams, arrays)
    )
    assert int(found.code) == int(known.code)
    close(
        (found.value, found.outer_value, found.w, found.error), (known.value, known.outer_value, known.w, known.error)
    )
