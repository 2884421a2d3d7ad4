"""The ten families of problems on which constants may be chosen."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.random import Generator

from bilevax.core.trees import PyTree
from bilevax.problems import MultinomialLogistic
from bilevax.testing.scores import (
    TRAIN,
    VAL,
    Penalised,
    a_condition,
    divided,
    logistic,
    mixed,
    penalties,
    ridge,
    signs,
    squared,
)
from bilevax.testing.truth import Drawn, Family

ROWS = TRAIN + VAL


def _heavy_rows(rng: Generator) -> Drawn:
    condition, d = a_condition(rng), 6
    # a t distribution of 2.5 degrees of freedom has the variance 5
    x, weights = mixed(rng.standard_t(2.5, size=(ROWS, d)) / np.sqrt(5.0), condition, rng)
    train, val = divided({"x": x, "y": x @ weights + 0.5 * rng.standard_t(3.0, size=ROWS)})
    return Drawn(train, val, penalties(rng, 0.5 / condition, d), np.zeros(d))


LEVELS = 8, 3
"""Of the two columns of categories."""


def _rare_levels(rng: Generator) -> Drawn:
    """Levels of which the rarest have a chance of 1 and 2 %, or so."""
    columns = []
    for levels in LEVELS:
        # P(level k) ~ k^-a, a from 1 to 2
        share = np.arange(1.0, levels + 1.0) ** -rng.uniform(1.0, 2.0)
        chosen = rng.choice(levels, size=ROWS, p=share / share.sum())
        # each is in train at least once
        chosen[:levels] = np.arange(levels)
        columns.append(np.eye(levels)[chosen])
    x = np.concatenate(columns, axis=1)
    train, val = divided({"x": x, "y": signs(rng, x @ rng.normal(size=x.shape[1]) * 1.5)})
    return Drawn(train, val, penalties(rng, 0.2 / a_condition(rng), x.shape[1]), np.zeros(x.shape[1]))


def poisson(w: Array, lam: Array, batch: PyTree) -> Array:
    """Mean of exp(s) - y s, s = x'w."""
    score = batch["x"] @ w
    return jnp.mean(jnp.exp(score) - batch["y"] * score)


def _poisson(rng: Generator) -> Drawn:
    """Rates of e and more, so that the curvature at the solution is several times that at w0 = 0."""
    condition, d = a_condition(rng), 5
    x, weights = mixed(rng.normal(size=(ROWS, d)), condition, rng)
    # rates exp(score), with an intercept of 1
    score = 1.0 + 0.6 * x @ weights
    x = np.concatenate([np.ones((ROWS, 1)), x], axis=1)
    train, val = divided({"x": x, "y": rng.poisson(np.exp(score)).astype(np.float64)})
    return Drawn(train, val, penalties(rng, 2.0 / condition, d + 1), np.zeros(d + 1))


KINK = 0.3
"""Where Huber's loss turns linear."""


def huber(w: Array, lam: Array, batch: PyTree) -> Array:
    """Mean of Huber's loss of x'w - y."""
    e = jnp.abs(batch["x"] @ w - batch["y"])
    # e^2 / 2 below the kink c, c (e - c / 2) beyond
    return jnp.mean(jnp.where(e < KINK, 0.5 * e**2, KINK * (e - 0.5 * KINK)))


def _huber(rng: Generator) -> Drawn:
    condition, d = a_condition(rng), 4
    x, weights = mixed(rng.normal(size=(ROWS, d)), condition, rng)
    train, val = divided({"x": x, "y": x @ weights + 0.5 * rng.standard_t(4.0, size=ROWS)})
    return Drawn(train, val, penalties(rng, 0.1 / condition, d), np.zeros(d))


WEIGHTED = 128
"""Rows of train where each has a weight of its own."""


def weighted_logistic(w: Array, lam: PyTree, batch: PyTree) -> Array:
    """Logistic regression, each row with a weight in ]0, 1[, and one penalty."""
    # log(1 + exp(-y x'w)), by sigmoid(lam_row)
    losses = jax.nn.softplus(-batch["y"] * (batch["x"] @ w))
    return jnp.mean(jax.nn.sigmoid(lam["row"])[batch["row"]] * losses) + ridge(w, lam["penalty"])


def _row_weights(rng: Generator) -> Drawn:
    condition, d, rows = a_condition(rng), 5, WEIGHTED + VAL
    x, weights = mixed(rng.normal(size=(rows, d)), condition, rng)
    y = signs(rng, 2.0 * x @ weights)
    # a fifth of the labels of train is wrong
    y[:WEIGHTED] *= np.where(rng.uniform(size=WEIGHTED) < 0.2, -1.0, 1.0)
    train, val = divided({"x": x, "y": y, "row": np.arange(rows, dtype=np.int32)}, WEIGHTED)
    lam = {"row": rng.normal(size=WEIGHTED), "penalty": np.log(0.03 / condition)}
    return Drawn(train, {"x": val["x"], "y": val["y"]}, lam, np.zeros(d))


UNITS = np.geomspace(1e-6, 1e6, 6)
"""In which entries of lam are measured."""


def unit_ridge(w: Array, lam: Array, batch: PyTree) -> Array:
    """Least squares with penalties exp(unit lam)."""
    return squared(w, lam, batch) + ridge(w, lam * UNITS.astype(lam.dtype))


def _units(rng: Generator) -> Drawn:
    condition, d = a_condition(rng), len(UNITS)
    x, weights = mixed(rng.normal(size=(ROWS, d)), condition, rng)
    train, val = divided({"x": x, "y": x @ weights + 0.7 * rng.normal(size=ROWS)})
    return Drawn(train, val, penalties(rng, 0.5 / condition, d) / UNITS, np.zeros(d))


def _sorted_rows(rng: Generator) -> Drawn:
    """Those of one class after those of the other, in blocks of 8."""
    condition, d = a_condition(rng), 7
    x, weights = mixed(rng.normal(size=(ROWS, d)), condition, rng)
    train, val = divided({"x": x, "y": signs(rng, 2.0 * x @ weights + 0.5)})
    # one class after the other, in a stable order
    order = np.argsort(train["y"], kind="stable")
    return Drawn({k: a[order] for k, a in train.items()}, val, penalties(rng, 0.1 / condition, d), np.zeros(d))


def factors(w: PyTree, lam: PyTree, batch: PyTree) -> Array:
    """Mean of 1/2 (u_i v_j - y)^2, i and j one-hot."""
    return 0.5 * jnp.mean(((batch["i"] @ w["u"]) * (batch["j"] @ w["v"]) - batch["y"]) ** 2)


def factors_ridge(w: PyTree, lam: PyTree, batch: PyTree) -> Array:
    """Entries of a matrix of rank one; a penalty per factor."""
    return factors(w, lam, batch) + ridge(w["u"], lam["u"]) + ridge(w["v"], lam["v"])


def _factors(rng: Generator) -> Drawn:
    """From a start near the solution: the loss is not convex."""
    condition, sizes = a_condition(rng), (6, 5)
    u, v = (rng.choice([-1.0, 1.0], size=k) * rng.uniform(0.7, 1.5, size=k) for k in sizes)
    i, j = (rng.integers(k, size=ROWS) for k in sizes)
    # entries of u v' in white noise
    y = u[i] * v[j] + 0.5 * rng.normal(size=ROWS)
    train, val = divided({"i": np.eye(6)[i], "j": np.eye(5)[j], "y": y})
    w0 = {name: x + 0.2 * rng.normal(size=x.shape) for name, x in (("u", u), ("v", v))}
    return Drawn(train, val, {name: penalties(rng, 0.3 / condition, 1)[0] for name in w0}, w0)


def _far_start(rng: Generator) -> Drawn:
    condition, d = a_condition(rng), 5
    x, weights = mixed(rng.normal(size=(ROWS, d)), condition, rng)
    train, val = divided({"x": x, "y": x @ weights + 0.5 * rng.normal(size=ROWS)})
    return Drawn(train, val, penalties(rng, 0.5 / condition, d), 100.0 * rng.normal(size=d))


def _softmax(rng: Generator) -> Drawn:
    """Three classes; the last feature is a constant."""
    condition, d, classes = a_condition(rng), 3, 3
    x, _ = mixed(rng.normal(size=(ROWS, d)), condition, rng)
    x = np.concatenate([x, np.ones((ROWS, 1))], axis=1)
    scores = x @ rng.normal(size=(d + 1, classes)) * 2.0
    # argmax of score + Gumbel noise is a draw from the softmax
    y = np.argmax(scores + rng.gumbel(size=scores.shape), axis=1).astype(np.int32)
    lam = penalties(rng, 0.7 / condition, d + 1)
    return Drawn((x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:]), lam, np.zeros((classes, d + 1)))


CHOOSING = {
    "heavy-rows": Family(_heavy_rows, Penalised(squared), squared),
    "rare-levels": Family(_rare_levels, Penalised(logistic), logistic),
    "poisson": Family(_poisson, Penalised(poisson), poisson),
    "huber": Family(_huber, Penalised(huber), huber),
    "row-weights": Family(_row_weights, weighted_logistic, logistic),
    "units": Family(_units, unit_ridge, squared),
    "sorted-rows": Family(_sorted_rows, Penalised(logistic), logistic, sampling="blocks"),
    "factors": Family(_factors, factors_ridge, factors),
    "far-start": Family(_far_start, Penalised(squared), squared),
    "softmax": Family(_softmax, MultinomialLogistic("feature"), MultinomialLogistic()),
}
