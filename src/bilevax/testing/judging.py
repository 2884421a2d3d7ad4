"""The ten families of problems for judging: no constant may be chosen by looking at them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.random import Generator

from bilevax.core.trees import PyTree
from bilevax.testing.scores import TRAIN, VAL, Penalised, a_condition, divided, mixed, penalties, ridge, signs, squared
from bilevax.testing.truth import Drawn, Family

ROWS = TRAIN + VAL


def groups_ridge(w: Array, lam: Array, batch: PyTree) -> Array:
    """Least squares with a penalty for every two weights."""
    return squared(w, lam, batch) + ridge(w, jnp.repeat(lam, 2))


def _one_row(rng: Generator) -> Drawn:
    """Rows of log-normal lengths, one at a time."""
    condition, d = a_condition(rng), 8
    x, weights = mixed(rng.normal(size=(ROWS, d)) * np.exp(0.5 * rng.normal(size=(ROWS, 1))), condition, rng)
    train, val = divided({"x": x, "y": x @ weights + 0.5 * rng.normal(size=ROWS)})
    return Drawn(train, val, penalties(rng, 0.5 / condition, d // 2), np.zeros(d))


def squared_hinge(w: Array, lam: Array, batch: PyTree) -> Array:
    """Mean of 1/2 max(0, 1 - y x'w)^2."""
    return 0.5 * jnp.mean(jnp.maximum(0.0, 1.0 - batch["y"] * (batch["x"] @ w)) ** 2)


def _squared_hinge(rng: Generator) -> Drawn:
    condition, d = a_condition(rng), 6
    x, weights = mixed(rng.normal(size=(ROWS, d)), condition, rng)
    train, val = divided({"x": x, "y": signs(rng, 3.0 * x @ weights)})
    return Drawn(train, val, penalties(rng, 0.3 / condition, d), np.zeros(d))


LEVEL, WIDTH = 0.3, 0.15
"""Of the quantile that is wanted, and of the rounded kink of its loss."""


def quantile(w: Array, lam: Array, batch: PyTree) -> Array:
    """Mean of LEVEL e + WIDTH log(1 + exp(-e / WIDTH)), e = y - x'w: the pinball loss, rounded."""
    e = batch["y"] - batch["x"] @ w
    return jnp.mean(LEVEL * e + WIDTH * jax.nn.softplus(-e / WIDTH))


def _quantile(rng: Generator) -> Drawn:
    condition, d = a_condition(rng), 4
    x, weights = mixed(rng.normal(size=(ROWS, d)), condition, rng)
    # skew noise of median log 2 - 1/2 and mean 1/2: its quantiles are not symmetric
    noise = rng.exponential(size=ROWS) - 0.5
    train, val = divided({"x": x, "y": x @ weights + noise})
    return Drawn(train, val, penalties(rng, 0.3 / condition, d), np.zeros(d))


def mean_field(w: Array, lam: PyTree, batch: PyTree) -> Array:
    """Mean of tanh(A w + B x + c): the mean answer of units that see each other."""
    return jnp.mean(jnp.tanh((lam["A"] @ w + lam["c"])[None] + batch["x"] @ lam["B"]), axis=0)


def read_out(w: Array, lam: PyTree, batch: PyTree) -> Array:
    """Mean of 1/2 (z'w - y)^2."""
    return 0.5 * jnp.mean((batch["z"] @ w - batch["y"]) ** 2)


def _mean_field(rng: Generator) -> Drawn:
    """A map without a loss, not symmetric; d1Phi = (1 - 2 / condition) K at w = 0, where it is largest, and |K| = 1."""
    condition, d, p = a_condition(rng), 5, 2
    x, B, turn = rng.normal(size=(TRAIN, p)), 0.3 * rng.normal(size=(p, d)), np.linalg.qr(rng.normal(size=(d, d)))[0]
    # blocks [[.5, .4], [-.4, .5]] and [[.2, .4], [-.4, .2]] turn: K is not symmetric
    K = np.diag([1.0, 0.5, 0.5, 0.2, 0.2])
    K[[1, 3], [2, 4]], K[[2, 4], [1, 3]] = 0.4, -0.4
    # d tanh(a) / da = cosh(a)^-2 at w = 0, c left out: d1Phi = diag(slopes) A
    slopes = np.mean(np.cosh(x @ B) ** -2.0, axis=0)
    A = (1.0 - 2.0 / condition) * (turn @ K @ turn.T) / slopes[:, None]
    z = rng.normal(size=(VAL, d)) + 0.5
    val = {"z": z, "y": z @ rng.normal(size=d) + 0.3 * rng.normal(size=VAL)}
    return Drawn({"x": x}, val, {"A": A, "B": B, "c": 0.3 * rng.normal(size=d) / condition}, np.zeros(d))


SHARED = 160
"""Rows of train that share a weight of one."""


def shared_squares(w: Array, lam: PyTree, batch: PyTree) -> Array:
    """Least squares, row i with the weight n softmax(lam)_i, and a fixed penalty per weight."""
    # n softmax(lam)_i: 1 in the mean over the rows
    weights = lam["row"].shape[0] * jax.nn.softmax(lam["row"])[batch["row"]]
    return 0.5 * jnp.mean(weights * (batch["x"] @ w - batch["y"]) ** 2) + ridge(w, lam["penalty"])


def _row_shares(rng: Generator) -> Drawn:
    """A tenth of the rows has ten times the noise."""
    condition, d, rows = a_condition(rng), 6, SHARED + VAL
    x, weights = mixed(rng.normal(size=(rows, d)), condition, rng)
    # a noisy row should get less weight
    spread = np.where((rng.uniform(size=rows) < 0.1) & (np.arange(rows) < SHARED), 4.0, 0.4)
    y = x @ weights + spread * rng.normal(size=rows)
    train, val = divided({"x": x, "y": y, "row": np.arange(rows, dtype=np.int32)}, SHARED)
    lam = {"row": 0.7 * rng.normal(size=SHARED), "penalty": penalties(rng, 0.3 / condition, d)}
    return Drawn(train, {"x": val["x"], "y": val["y"]}, lam, np.zeros(d))


def one_penalty_logistic(w: Array, lam: PyTree, batch: PyTree) -> Array:
    """Logistic regression with one penalty, and a shift of all scores."""
    return shifted_logistic(w, lam, batch) + ridge(w, lam["penalty"])


def shifted_logistic(w: Array, lam: PyTree, batch: PyTree) -> Array:
    """The same without the penalty."""
    # log(1 + exp(-y (x'w + shift)))
    return jnp.mean(jax.nn.softplus(-batch["y"] * (batch["x"] @ w + lam["shift"])))


def _nearly_separable(rng: Generator) -> Drawn:
    """Labels with hardly any noise in train: the curvature where the weights end is a part of that at 0."""
    condition, d = a_condition(rng), 5
    x, weights = mixed(rng.normal(size=(ROWS, d)), 3.0, rng)
    train, val = divided({"x": x, "y": signs(rng, np.r_[np.full(TRAIN, 12.0), np.full(VAL, 4.0)] * (x @ weights))})
    return Drawn(train, val, {"penalty": np.log(0.1 / condition), "shift": np.array(0.2)}, np.zeros(d))


ROUND = 0.1
"""Where the absolute value is rounded."""


def huber(w: Array, lam: PyTree, batch: PyTree) -> Array:
    """Mean of Huber's loss of x'w - y, linear from 1 on."""
    e = jnp.abs(batch["x"] @ w - batch["y"])
    # e^2 / 2 below the kink, e - 1 / 2 beyond
    return jnp.mean(jnp.where(e < 1.0, 0.5 * e**2, e - 0.5))


def huber_elastic(w: Array, lam: PyTree, batch: PyTree) -> Array:
    """Huber's regression with exp(l1) sum sqrt(w^2 + ROUND^2) + 1/2 exp(l2) |w|^2."""
    return huber(w, lam, batch) + jnp.exp(lam["l1"]) * jnp.sum(jnp.sqrt(w**2 + ROUND**2)) + ridge(w, lam["l2"])


def _same_rows(rng: Generator) -> Drawn:
    """Train and val are one table."""
    condition, d = a_condition(rng), 7
    x, weights = mixed(rng.normal(size=(TRAIN, d)), condition, rng)
    # lam is then fitted to the rows that w was fitted to
    rows = {"x": x, "y": x @ weights + 0.5 * rng.standard_t(3.0, size=TRAIN)}
    lam = {"l1": np.log(0.02) + 0.5 * rng.normal(), "l2": np.log(0.5 / condition) + 0.5 * rng.normal()}
    return Drawn(rows, rows, lam, np.zeros(d))


def shifted_squares(w: Array, lam: PyTree, batch: PyTree) -> Array:
    """Mean of 1/2 (x'w + c'shift - y)^2."""
    return 0.5 * jnp.mean((batch["x"] @ w + batch["c"] @ lam["shift"] - batch["y"]) ** 2)


def shifted_ridge(w: Array, lam: PyTree, batch: PyTree) -> Array:
    """The same with a penalty."""
    return shifted_squares(w, lam, batch) + ridge(w, lam["penalty"])


def _correlated(rng: Generator) -> Drawn:
    """Shifts by what is all but a sum of features: the noise of the cross products is that of the multiplier."""
    condition, d, shifts = a_condition(rng), 6, 3
    x, weights = mixed(rng.normal(size=(ROWS, d)), condition, rng)
    # all but a linear function of x: so v is large along what c shares with x
    c = x @ rng.normal(size=(d, shifts)) + 0.05 * rng.normal(size=(ROWS, shifts)) + 0.1
    train, val = divided({"x": x, "c": c, "y": x @ weights + 0.5 * rng.normal(size=ROWS)})
    lam = {"shift": 0.5 * rng.normal(size=shifts), "penalty": np.log(0.5 / condition)}
    return Drawn(train, val, lam, np.zeros(d))


def gamma(w: Array, lam: Array, batch: PyTree) -> Array:
    """Mean of y exp(-s) + s, s = x'w."""
    score = batch["x"] @ w
    return jnp.mean(batch["y"] * jnp.exp(-score) + score)


def _gamma(rng: Generator) -> Drawn:
    """Durations below 1 in the mean: the curvature at w0 = 0 is a part of that at the solution."""
    condition, d = a_condition(rng), 4
    x, weights = mixed(rng.normal(size=(ROWS, d)), condition, rng)
    # y = mean times a gamma variable of shape 2 and mean 1
    mean = np.exp(0.7 * x @ weights - 0.7)
    x = np.concatenate([np.ones((ROWS, 1)), x], axis=1)
    train, val = divided({"x": x, "y": mean * rng.gamma(2.0, 0.5, size=ROWS)})
    return Drawn(train, val, penalties(rng, 0.5 / condition, d + 1), np.zeros(d + 1))


GROUP_UNITS = np.array([1e-6, 1e-2, 1e2, 1e6])
"""In which the penalties of the groups are measured."""


def ranking(w: Array, lam: Array, batch: PyTree) -> Array:
    """Mean of log(1 + exp(-(x - z)'w)): x is to score above z."""
    return jnp.mean(jax.nn.softplus(-(batch["x"] - batch["z"]) @ w))


def ranking_ridge(w: Array, lam: Array, batch: PyTree) -> Array:
    """Ranking with penalties exp(unit lam) of groups of three weights."""
    return ranking(w, lam, batch) + ridge(w, jnp.repeat(lam * GROUP_UNITS.astype(lam.dtype), 3))


def _pairs(rng: Generator) -> Drawn:
    """From a start away from the solution, where most pairs are in the wrong order by far."""
    condition, d = a_condition(rng), 12
    both, weights = mixed(rng.normal(size=(2 * ROWS, d)), condition, rng)
    x, z = both[:ROWS], both[ROWS:]
    # P(x above z) = 1 / (1 + exp(-2 (x - z)'w))
    upper = signs(rng, 2.0 * (x - z) @ weights)[:, None] > 0
    train, val = divided({"x": np.where(upper, x, z), "z": np.where(upper, z, x)})
    return Drawn(train, val, penalties(rng, 0.2 / condition, 4) / GROUP_UNITS, -5.0 * weights)


JUDGING = {
    "one-row": Family(_one_row, groups_ridge, squared, batch_size=1),
    "squared-hinge": Family(_squared_hinge, Penalised(squared_hinge), squared_hinge),
    "quantile": Family(_quantile, Penalised(quantile), quantile),
    "mean-field": Family(_mean_field, mean_field, read_out, descends=False),
    "row-shares": Family(_row_shares, shared_squares, squared),
    "nearly-separable": Family(_nearly_separable, one_penalty_logistic, shifted_logistic),
    "same-rows": Family(_same_rows, huber_elastic, huber),
    "correlated": Family(_correlated, shifted_ridge, shifted_squares),
    "gamma": Family(_gamma, Penalised(gamma), gamma),
    "pairs": Family(_pairs, ranking_ridge, ranking),
}
