"""The doctor: what users get wrong beyond the fifteen faults, in three sizes, and advice that leads to the mend."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx


class Size(NamedTuple):
    """Rows of train, rows of a minibatch, and inner entries."""

    n: int
    b: int
    d: int


SIZES = {"small": Size(40, 8, 3), "middle": Size(300, 20, 30), "large": Size(4000, 100, 300)}


class Case(NamedTuple):
    """What is given to the doctor."""

    problem: bx.Problem
    w0: object
    lam: object
    train: object
    val: object

    def check(self, seed=0):
        return bx.check(*self, key=jax.random.key(seed))


def inner_loss(w, lam, batch):
    return outer_loss(w, lam, batch) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def outer_loss(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2)


def rows(size):
    rng, kind = np.random.default_rng(size.d), jnp.result_type(float)
    X = rng.normal(size=(2 * size.n, size.d)) / np.sqrt(size.d)
    y = X @ rng.normal(size=size.d) + 0.3 * rng.normal(size=2 * size.n)
    return X.astype(kind), y.astype(kind)


def posed(size, inner_map, *, outer=outer_loss, lam=None, train=None):
    """Ridge regression of a size with some of its parts replaced."""
    first, second = pieces(size)
    train = bx.Arrays(first, size.b) if train is None else train
    lam = np.full(size.d, -2.0) if lam is None else lam
    return Case(bx.Problem(inner_map, outer), np.zeros(size.d), lam, train, bx.Arrays(second))


def pieces(size):
    """(X, y) of train and of val."""
    X, y = rows(size)
    return (X[: size.n], y[: size.n]), (X[size.n :], y[size.n :])


def with_outer(outer):
    return lambda size: posed(size, bx.GradientStep(inner_loss), outer=outer)


def with_inner(loss):
    return lambda size: posed(size, bx.GradientStep(loss))


def outer_of_training_rows(size):
    train, _ = pieces(size)
    held = jax.tree.map(jnp.asarray, train)
    return posed(size, bx.GradientStep(inner_loss), outer=lambda w, lam, batch: outer_loss(w, lam, held))


def inner_of_validation_rows(size):
    _, val = pieces(size)
    return posed(size, bx.GradientStep(lambda w, lam, batch: inner_loss(w, lam, val)))


def inner_of_all_rows_at_once(size):
    train, _ = pieces(size)
    return posed(size, bx.GradientStep(lambda w, lam, batch: inner_loss(w, lam, train)))


def weights_by_position(size):
    """Weights of the rows of train, closed over."""
    weights = jnp.asarray(np.linspace(0.5, 1.5, size.n))

    def loss(w, lam, batch):
        X, y = batch
        return 0.5 * jnp.mean(weights * (X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    X, y = pieces(size)[0]
    return posed(size, bx.GradientStep(loss, 0.1), train=bx.Arrays((X, y)))


def stopped(w, lam, batch):
    return outer_loss(jax.lax.stop_gradient(w), lam, batch)


def stopped_in_part(w, lam, batch):
    return outer_loss(w.at[0].set(jax.lax.stop_gradient(w[0])), lam, batch)


def accuracy(w, lam, batch):
    X, y = batch
    return -jnp.mean(jnp.where((X @ w > 0) == (y > 0), 1.0, 0.0))


def one_entry_unused(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam[:-1]) * w[:-1] ** 2) + 0.05 * w[-1] ** 2


def one_entry_stopped(w, lam, batch):
    return inner_loss(w, lam.at[1].set(jax.lax.stop_gradient(lam[1])), batch)


def same_rows(size):
    train, _ = pieces(size)
    case = posed(size, bx.GradientStep(inner_loss))
    return case._replace(val=bx.Arrays(train))


def shared_rows(size):
    """Half of val comes from train, in another order."""
    train, val = pieces(size)
    order = np.random.default_rng(1).permutation(size.n)
    val = jax.tree.map(lambda a, b: np.concatenate([a[: size.n // 2], b[size.n // 2 :]])[order], train, val)
    return posed(size, bx.GradientStep(inner_loss))._replace(val=bx.Arrays(val))


def labelled(size, label, loss, w_shape=None):
    """Classification: y = label(score); the same loss without its penalty outside."""
    X, y = rows(size)
    y = label(y)
    w0 = np.zeros(w_shape or size.d)

    def inner(w, lam, batch):
        return loss(w, batch) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    lam = np.full(w0.shape, -3.0)
    problem = bx.Problem(bx.GradientStep(inner), lambda w, lam, batch: loss(w, batch))
    train, val = (X[: size.n], y[: size.n]), (X[size.n :], y[size.n :])
    return Case(problem, w0, lam, bx.Arrays(train, size.b), bx.Arrays(val))


def of_margins(link, w, batch):
    X, y = batch
    return jnp.mean(link(y * (X @ w)))


def cross_entropy(w, batch):
    X, y = batch
    score = X @ w
    return jnp.mean(jnp.logaddexp(0.0, score) - y * score)


def zero_one(y):
    return (y > 0).astype(y.dtype)


def signs(y):
    return np.where(y > 0, 1.0, -1.0).astype(y.dtype)


def logistic(margin):
    return jnp.logaddexp(0.0, -margin)


def squared_hinge(margin):
    return jnp.maximum(1.0 - margin, 0.0) ** 2


def thirds(y):
    return np.searchsorted(np.quantile(y, [1 / 3, 2 / 3]), y).astype(np.int32)


def numbers_times_scores(w, batch):
    X, y = batch
    return -jnp.mean(jnp.sum(y[:, None].astype(X.dtype) * jax.nn.log_softmax(X @ w.T), axis=1))


def numbers_as_values(w, batch):
    X, y = batch
    return jnp.mean(jnp.sum((X @ w.T - y[:, None].astype(X.dtype)) ** 2, axis=1))


def numbers_without_an_axis(w, batch):
    X, y = batch
    return -jnp.mean(y.astype(X.dtype) * jax.nn.log_softmax(X @ w.T))


def classes(loss):
    return lambda size: labelled(size, thirds, loss, (3, size.d))


def linear(w, lam, batch):
    X, y = batch
    return jnp.mean((X @ w) * y) + jnp.sum(jnp.exp(lam) * w)


def scaled(factor, size):
    """Features from 1 to a factor."""
    X, y = rows(size)
    X = (X * np.geomspace(1.0, factor, size.d)).astype(X.dtype)
    given = bx.Arrays((X[: size.n], y[: size.n]), size.b), bx.Arrays((X[size.n :], y[size.n :]))
    return posed(size, bx.GradientStep(inner_loss), lam=np.full(size.d, -12.0))._replace(train=given[0], val=given[1])


def penalty_by_batch(w, lam, batch):
    X, y = batch
    return (0.5 * jnp.sum((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)) / len(y)


FAULTS = {
    "an outer loss of the training rows": (outer_of_training_rows, "BATCH_UNREAD", "error", "val"),
    "an inner loss of the validation rows": (inner_of_validation_rows, "BATCH_UNREAD", "error", "train"),
    "an inner loss that closes over its rows": (inner_of_all_rows_at_once, "BATCH_UNREAD", "warning", "minibatch"),
    "weights closed over": (weights_by_position, "BATCH_SIZE", "warning", "closes over"),
    "an outer loss of stop_gradient(w)": (with_outer(stopped), "W_WITHOUT_EFFECT", "error", "stop_gradient off w"),
    "stop_gradient on an entry of w": (with_outer(stopped_in_part), "DERIVATIVE", "warning", "stop_gradient"),
    "an accuracy": (with_outer(accuracy), "W_WITHOUT_EFFECT", "error", "cross-entropy"),
    "an entry of lam unused": (with_inner(one_entry_unused), "LAM_UNUSED", "warning", "slice"),
    "an entry of lam stopped": (with_inner(one_entry_stopped), "LAM_WITHOUT_EFFECT", "warning", "stop_gradient"),
    "val = train": (same_rows, "SHARED_ROWS", "warning", "Split the table"),
    "rows in both": (shared_rows, "SHARED_ROWS", "warning", "Split the table"),
    "0/1 in a logistic loss of margins": (
        lambda size: labelled(size, zero_one, partial(of_margins, logistic)),
        "LABELS",
        "error",
        "2 * y - 1",
    ),
    "0/1 in a squared hinge": (
        lambda size: labelled(size, zero_one, partial(of_margins, squared_hinge)),
        "LABELS",
        "error",
        "2 * y - 1",
    ),
    "-1/+1 in a cross-entropy": (
        lambda size: labelled(size, signs, cross_entropy),
        "LABELS",
        "error",
        "(y + 1) / 2",
    ),
    "numbers of classes times scores": (classes(numbers_times_scores), "LABELS", "error", "one_hot(y, 3)"),
    "numbers of classes as values": (classes(numbers_as_values), "LABELS", "error", "one_hot(y, 3)"),
    "numbers of classes that do not fit": (classes(numbers_without_an_axis), "RAISES", "error", "one_hot"),
    "a loss that is linear in w": (with_inner(linear), "NO_CURVATURE", "error", "square"),
    "features on other scales": (partial(scaled, 1e4), "UNSCALED", "warning", "standard deviation"),
    "a penalty divided by the batch size": (with_inner(penalty_by_batch), "SIZE_OF_BATCH", "error", "penalty"),
}

ALSO = {
    "an outer loss of the training rows": {"CLOSED_OVER"},
    "an inner loss of the validation rows": {"CLOSED_OVER"},
    "an inner loss that closes over its rows": {"CLOSED_OVER"},
    "an entry of lam stopped": {"DERIVATIVE"},
    "numbers of classes times scores": {"LAM_WITHOUT_EFFECT"},
    "an outer loss of stop_gradient(w)": {"DERIVATIVE"},
}


QUICK = {"an outer loss of the training rows", "an accuracy", "an entry of lam stopped", "rows in both"}
QUICK |= {"0/1 in a logistic loss of margins", "numbers of classes that do not fit", "a loss that is linear in w"}
QUICK |= {"features on other scales", "a penalty divided by the batch size"}


@pytest.mark.parametrize("size", ["small", *(pytest.param(x, marks=pytest.mark.slow) for x in ("middle", "large"))])
@pytest.mark.parametrize("fault", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FAULTS])
def test_each_fault_is_named_with_advice_that_mends_it(fault, size):
    pose, code, severity, advice = FAULTS[fault]
    findings = pose(SIZES[size]).check()
    named = [f for f in findings if (f.code, f.severity) == (code, severity)]
    assert named, findings
    assert advice in named[0].advice, findings
    assert {f.code for f in findings} <= {code} | ALSO.get(fault, set()), findings


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen_in_float32(fault):
    pose, code, severity, _ = FAULTS[fault]
    with jax.enable_x64(False):
        findings = pose(SIZES["middle"]).check()
    assert (code, severity) in [(f.code, f.severity) for f in findings], findings
