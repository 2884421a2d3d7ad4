"""A problem with three mistakes, for the doctor: ``bilevax check examples/check_me.py:audit``.

``mended`` is the same problem without them.
"""

import jax.numpy as jnp
import numpy as np

import bilevax as bx


def careless_loss(w, lam, batch):
    """Ridge regression with one penalty per feature, as one may write it in a hurry."""
    X, y = batch
    X = X - X.mean(axis=0)  # centres each batch by itself: biased
    return 0.5 * jnp.mean((X @ w["weights"] + w["bias"] - y) ** 2) + 0.5 * jnp.sum(
        jnp.exp(lam["l2"]) * w["weights"] ** 2
    )


def careful_loss(w, lam, batch):
    """The same without centring; the bias takes care of it."""
    X, y = batch
    return 0.5 * jnp.mean((X @ w["weights"] + w["bias"] - y) ** 2) + 0.5 * jnp.sum(
        jnp.exp(lam["l2"]) * w["weights"] ** 2
    )


def outer_loss(w, lam, batch):
    """Squared error on the validation rows."""
    X, y = batch
    return 0.5 * jnp.mean((X @ w["weights"] + w["bias"] - y) ** 2)


def rows():
    """Two hundred rows of ten features, half of them for validation."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 10)).astype(np.float32)
    y = (X @ rng.normal(size=10) + 0.5 * rng.normal(size=200)).astype(np.float32)
    return bx.Arrays((X[:100], y[:100]), batch_size=10), bx.Arrays((X[100:], y[100:]))


def audit():
    """What ``bilevax check`` is given: the arguments of ``bx.check``, by name."""
    train, val = rows()
    return {
        "problem": bx.Problem(bx.GradientStep(careless_loss, step_size=2.0), outer_loss),
        "w0": {"weights": np.zeros(10, np.float32), "bias": np.float32(0.0)},
        "lam": {"l2": np.full(10, -2.0, np.float32), "l1": np.float32(-2.0)},  # l1 is used nowhere
        "train": train,
        "val": val,
    }


def mended():
    """The same problem, with the loss, the step and lam put right."""
    problem = bx.Problem(bx.GradientStep(careful_loss), outer_loss)
    return {**audit(), "problem": problem, "lam": {"l2": np.full(10, -2.0, np.float32)}}
