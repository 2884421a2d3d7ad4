"""What questions are asked on: one record, drawn workloads, and problems on real data.

W1 is multinomial logistic regression with one penalty per feature, W2 binary logistic regression, W3 a network with one
weight per training row: drawn, not read, so that every machine has the same. On real data (``datasets``) there are
:func:`fashion` and :func:`newsgroups`, with one penalty per feature, and :func:`cleaning`, with one weight per row.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jax import Array

import bilevax as bx
from benchmarks import datasets
from benchmarks.datasets import Data
from bilevax.core.config import canonicalize, replace_unchecked
from bilevax.core.trees import norm, sub


class Case(NamedTuple):
    """The arguments of ``bx.hypergradient`` but for the key, and what is known of the problem.

    Attributes:
        truth: the exact hypergradient, where it is known.
        score: of problems on real data, (w, lam) -> what they are worth on test rows, numbers by name.
    """

    problem: bx.Problem
    estimator: Any
    w0: Any
    lam: Any
    train: Any
    val: Any
    truth: Any = None
    score: Callable[[Any, Any], dict[str, float]] | None = None

    def __call__(self, key: Array, **options: Any) -> bx.Estimate:
        """One hypergradient through the public door."""
        return bx.hypergradient(*self[:6], key=key, **options)

    def round(self, i: int) -> bx.Estimate:
        """The hypergradient of round i."""
        return self(key_of(i))

    def alone(self, i: int) -> tuple[Array, Any]:
        """The same without a report."""
        return bx.value_and_hypergradient(*self[:6], key=key_of(i))

    def by(self, estimator: Any, *rows: int | None, sampling: str | None = None) -> "Case":
        """With another estimator, and rows in a minibatch of train and of val, None for every row.

        ``sampling`` is of both; blocks are of the rows in their order, which on real data is random.
        """
        new = {} if sampling is None else {"sampling": sampling}
        sources = [replace_unchecked(s, batch_size=b, **new) for s, b in zip(self[4:6], rows, strict=False)]
        return self._replace(estimator=estimator, **dict(zip(("train", "val"), sources, strict=False)))

    def errors(self, runs: int, seed: int = 0, lanes: int = 8) -> tuple[np.ndarray, float]:
        """Square errors over the squared truth, [runs], infinite for NaN, and sample visits of a run.

        One program makes ``lanes`` runs at a time.
        """
        problem, estimator = canonicalize(self.problem), canonicalize(self.estimator)
        found = []
        for part in range(-(-runs // lanes)):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), part), lanes)
            errors, visits = _errors(problem, estimator, *self[2:7], keys)
            found.append(np.asarray(errors, np.float64))
        return np.nan_to_num(np.concatenate(found)[:runs], nan=np.inf), float(np.max(visits))

    def relative(self, value: Any) -> float:
        """Square error of a value over the square of the truth."""
        return float(norm(sub(value, self.truth)) / norm(self.truth)) ** 2


@jax.jit
def _errors(problem: Any, estimator: Any, w0: Any, lam: Any, train: Any, val: Any, truth: Any, keys: Array) -> Any:
    def one(key: Array) -> tuple[Array, Array]:
        est = estimator.estimate(bx.Instance(problem, lam, train, val), w0, key=key)
        return (norm(sub(est.value, truth)) / norm(truth)) ** 2, jnp.asarray(est.cost.samples, float)

    return jax.vmap(one)(keys)


# Drawn workloads

ETA_W, ETA_V = 1.0, 0.5


class Shape(NamedTuple):
    """Rows of train and of val, features, classes, rows in a minibatch, and t = k."""

    n: int
    n_val: int
    d: int
    classes: int
    batch: int
    steps: int


W1 = Shape(30_000, 30_000, 784, 10, 90, 1000)
W2 = {d: Shape(50_000, 50_000, d, 1, 64, 1000) for d in (22, 54)}
W3 = Shape(5_000, 5_000, 784, 10, 100, 200)
HIDDEN = 256

W1_QUICK = Shape(600, 500, 20, 3, 32, 300)  # two chunks of draws, a short last block
W2_QUICK = {22: Shape(500, 500, 22, 1, 64, 50)}
W3_QUICK = Shape(200, 200, 20, 3, 32, 20)


@cache
def _keys() -> list[Array]:
    return [jax.block_until_ready(jax.random.key(i)) for i in range(64)]


def key_of(i: int) -> Array:
    """The key of round i, made before any clock runs."""
    return _keys()[i % 64]


def rows(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """X [n, d] float32 of mean squared norm 1, columns of falling size; y [n] from a noisy linear model."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d), np.float32)
    size = (1.0 + np.arange(d)) ** -0.25
    X *= (size / np.linalg.norm(size)).astype(np.float32)
    truth = np.random.default_rng(99).standard_normal((d, max(classes, 2)), np.float32) * 3
    scores = X @ truth + rng.gumbel(size=(n, max(classes, 2))).astype(np.float32)
    return X, np.argmax(scores, axis=1).astype(np.int32)


@cache
def split(shape: Shape) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Train and val, kept: every case of a run reads the same arrays."""
    return rows(shape.n, shape.d, shape.classes, 1), rows(shape.n_val, shape.d, shape.classes, 2)


@cache
def sources_of(shape: Shape, sampling: str) -> tuple[bx.Arrays, bx.Arrays]:
    """The two sources of W1 or W2."""
    train, _ = split(shape)
    return bx.Arrays(train, batch_size=shape.batch, sampling=sampling), validation(shape)


def forget() -> None:
    """Let go of the arrays that are kept: a large table is in memory only while it is measured."""
    for kept in (split, sources_of, validation):
        kept.cache_clear()


@cache
def validation(shape: Shape) -> bx.Arrays:
    """Every row of val."""
    return bx.Arrays(split(shape)[1])


def log_penalties(shape: Shape, per: str = "feature") -> Array:
    """Between -7 and -5 for one penalty per feature; else all -6, so that the problems are the same."""
    if per == "feature":
        return jnp.asarray(np.random.default_rng(3).uniform(-7, -5, shape.d), jnp.float32)
    return jnp.full({"global": (), "weight": (shape.classes, shape.d)}[per], -6.0, jnp.float32)


@cache
def step_size(shape: Shape) -> float:
    """1 / (largest curvature of eight minibatches + the largest penalty), with a margin: a constant, measured once."""
    (X, _), _ = split(shape)
    rng = np.random.default_rng(4)
    batches = [X[rng.integers(0, len(X), shape.batch)] for _ in range(8)]
    largest = max(float(np.linalg.eigvalsh(B @ B.T / len(B))[-1]) for B in batches)
    return 1.0 / (1.2 * (0.25 if shape.classes == 1 else 0.5) * largest + np.exp(-5.0))


def stochastic(shape: Shape, **counts: Any) -> bx.SID:
    """As many fixed-point iterations for w, eta 1, as for v, eta .5."""
    return bx.SID(
        inner=bx.FixedPoint(steps=shape.steps, step_size=ETA_W),
        linear=bx.FixedPoint(steps=shape.steps, step_size=ETA_V),
        **counts,
    )


def logistic(
    shape: Shape,
    sampling: str,
    *,
    per: str = "feature",
    step: Callable[[Shape], float | None] = step_size,
    sources: tuple[bx.Arrays, bx.Arrays] | None = None,
    estimator: bx.SID | None = None,
) -> Case:
    """W1 (several classes) or W2 (one score)."""
    loss = bx.BinaryLogistic if shape.classes == 1 else bx.MultinomialLogistic
    return Case(
        bx.Problem(bx.GradientStep(loss(penalty=per), step(shape)), loss()),
        estimator or stochastic(shape),
        jnp.zeros((shape.classes, shape.d), jnp.float32),
        log_penalties(shape, per),
        *(sources or sources_of(shape, sampling)),
    )


def network(w: Any, X: Array) -> Array:
    """Scores [b, C] of one hidden layer of softplus units."""
    return jax.nn.softplus(X @ w["in"].T + w["in_bias"][None]) @ w["out"].T + w["out_bias"][None]


def weighted_loss(w: Any, lam: Array, batch: Any) -> Array:
    """Each row's loss times the sigmoid of its entry of lam; a batch brings the numbers of its rows."""
    X, y, row = batch
    losses = bx.MultinomialLogistic.per_row(network(w, X), y)
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(w))
    return jnp.mean(jax.nn.sigmoid(lam[row]) * losses) + 0.5e-2 * squares


def network_loss(w: Any, lam: Array, batch: Any) -> Array:
    """Plain mean loss."""
    X, y = batch
    return jnp.mean(bx.MultinomialLogistic.per_row(network(w, X), y))


def weighted_network(shape: Shape, sampling: str, estimator: bx.SID | None = None) -> Case:
    """W3."""
    train, _ = split(shape)
    rng = np.random.default_rng(5)
    hidden = min(HIDDEN, 4 * shape.d)
    w0 = {
        "in": rng.standard_normal((hidden, shape.d), np.float32),
        "in_bias": np.zeros(hidden, np.float32),
        "out": rng.standard_normal((shape.classes, hidden), np.float32) / np.float32(np.sqrt(hidden)),
        "out_bias": np.zeros(shape.classes, np.float32),
    }
    return Case(
        bx.Problem(bx.GradientStep(weighted_loss, 0.04), network_loss),
        estimator or stochastic(shape),
        jax.tree.map(jnp.asarray, w0),
        jnp.zeros(shape.n, jnp.float32),
        bx.Arrays((*train, np.arange(shape.n, dtype=np.int32)), batch_size=shape.batch, sampling=sampling),
        validation(shape),
    )


# Real data


def source(data: Data, dtype: Any = None) -> Any:
    """A source of all rows but the test rows, dense or sparse; in the data's precision or another."""
    return kind(data)((data.X if dtype is None else data.X.astype(dtype), data.y))


def kind(data: Data) -> Any:
    """The class of its sources."""
    return bx.SparseRows if scipy.sparse.issparse(data.X) else bx.Arrays


def halves(data: Data, run: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows to train and to validate on, of a run."""
    kept, held = np.split(np.random.default_rng(run).permutation(len(data.y)), [len(data.y) // 2])
    return kept, held


def part(whole: Any, rows: np.ndarray) -> Any:
    """A source of some rows of another. The entries of sparse rows stay in one table, so that no shape changes."""
    return replace_unchecked(whole, data=jax.tree.map(lambda a: a[rows], whole.data))


def losses(data: Data, per: str = "feature") -> tuple[Any, Any]:
    """The inner and the outer loss: logistic, the first with penalties exp(lam)."""
    loss = bx.BinaryLogistic if data.classes == 2 else bx.MultinomialLogistic
    return loss(per), loss()


def accuracy(data: Data) -> Callable[[Any, Any], dict[str, float]]:
    """Of weights [C, d] on the test rows."""

    def score(w: Any, lam: Any) -> dict[str, float]:
        scores = data.X_test @ np.asarray(w).T
        labels = scores[:, 0] > 0 if data.outputs == 1 else scores.argmax(axis=1)
        return {"accuracy": float(np.mean(labels == data.y_test))}

    return score


def curvature(data: Data, rows: np.ndarray) -> float:
    """L: the largest curvature that the mean loss of these rows can have, sup a'' |X|^2 / n."""
    X = data.X[rows].astype(np.float64)
    largest = scipy.sparse.linalg.svds(X, k=1, return_singular_vectors=False, rng=0)[0]
    return float(losses(data)[1].largest_second_derivative * largest**2 / len(rows))


class Steps(NamedTuple):
    """The authors' step sizes where the curvature lies between ``strength`` and L + strength.

    Phi = w - alpha grad with alpha = 2 / (L + 2 strength) contracts by q; decreasing steps are beta / (beta + j) with
    beta = 2 / (1 - q^2), constant ones 1.
    """

    alpha: float
    q: float

    @classmethod
    def of(cls, L: float, strength: float) -> "Steps":
        """The steps for these curvatures."""
        return cls(2 / (L + 2 * strength), L / (L + 2 * strength))

    @property
    def decreasing(self) -> bx.Harmonic:
        """eta_j = beta / (beta + j)."""
        beta = 2 / (1 - self.q**2)
        return bx.Harmonic(beta, beta)


def penalised(
    data: Data, run: int = 0, *, strength: float = 1e-3, batch: int | None = None, step: float | None = None
) -> Case:
    """Logistic regression, penalties 1/2 sum_j exp(lam_j) |w_j|^2, one per feature, from ``strength``; no intercept.

    Half of the rows, which ``run`` chooses, are val, of which every row counts. Without a ``step`` it is measured.
    """
    inner, outer = losses(data)
    d, real = data.X.shape[1], data.X.dtype
    train, val = ((data.X[rows], data.y[rows]) for rows in halves(data, run))
    w0, lam = jnp.zeros((data.outputs, d), real), jnp.full(d, np.log(strength), real)
    problem = bx.Problem(bx.GradientStep(inner, step), outer)
    return Case(problem, None, w0, lam, kind(data)(train, batch or data.batch), kind(data)(val), score=accuracy(data))


def fashion(run: int = 0, rows: int | None = None) -> Case:
    """Fashion-MNIST: 30,000 rows each in train and val, 784 columns, 10 classes; or so many of these rows in all."""
    data = datasets.fashion()
    return penalised(data.few(rows) if rows else data, run)


def newsgroups(run: int = 0, rows: int | None = None) -> Case:
    """20 Newsgroups: 5,646 and 5,647 sparse rows, 42,254 columns, 20 classes; or so many of these rows in all."""
    data = datasets.newsgroups()
    return penalised(data.few(rows) if rows else data, run)


FLIPPED, DECAY = 0.5, 2e-4


def weighted_scores_loss(w: Array, lam: Array, batch: Any) -> Array:
    """Mean of sigmoid(lam_i) l_i over the rows, plus DECAY / 2 |w|^2; a batch brings the numbers of its rows."""
    X, y, row = batch
    return jnp.mean(jax.nn.sigmoid(lam[row]) * bx.MultinomialLogistic.per_row(X @ w.T, y)) + DECAY / 2 * jnp.sum(w**2)


def cleaning(run: int = 0, rows: int | None = None, *, flipped: float = FLIPPED) -> Case:
    """Data cleaning: weights sigmoid(lam_i) of training rows of which some have a random label; val is clean.

    Fashion-MNIST: 20,000 rows in train, 5,000 in val. With ``rows``: digits, of which so many are in train, at most
    1,000, and 200 in val. ``flipped``: the share of the labels of train that are drawn anew. ``score``: beside the
    test accuracy the chance that a wrong label has less weight than a right one.
    """
    from sklearn.metrics import roc_auc_score

    data, sizes = (datasets.digits(), (min(rows, 1000), 200)) if rows else (datasets.fashion(), (20_000, 5_000))
    rng = np.random.default_rng([23, run])
    train, val = np.split(rng.permutation(len(data.y))[: sum(sizes)], [sizes[0]])
    new = rng.integers(0, data.classes, sizes[0]).astype(np.int32)
    y = np.where(rng.uniform(size=sizes[0]) < flipped, new, data.y[train])
    wrong, test = y != data.y[train], accuracy(data)

    def score(w: Any, lam: Any) -> dict[str, float]:
        return {**test(w, lam), "auc": float(roc_auc_score(~wrong, np.asarray(lam)))}

    numbers = np.arange(sizes[0], dtype=np.int32)
    problem = bx.Problem(bx.GradientStep(weighted_scores_loss), bx.MultinomialLogistic())
    w0, lam = jnp.zeros((data.classes, data.X.shape[1]), jnp.float32), jnp.zeros(sizes[0], jnp.float32)
    sources = bx.Arrays((data.X[train], y, numbers), data.batch), bx.Arrays((data.X[val], data.y[val]))
    return Case(problem, None, w0, lam, *sources, score=score)
