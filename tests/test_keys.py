"""Random keys in batches: those that rows hold, and a fresh one in every draw."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import bilevax as bx
from bilevax.core.config import canonicalize, from_plain, to_plain
from bilevax.core.protocols import Keyed
from bilevax.data.hashed import HashedBatches

N = 23
ROWS = np.arange(N, dtype=float)
KEYS = jax.random.split(jax.random.key(5), N)
WAYS = [("iid", 4), ("shuffled", 4), ("blocks", 4), ("blocks", 2), ("iid", None)]


def words(key: Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def drawn(source: Any, number: int, key: Array, start: int = 0) -> np.ndarray:
    """The keys of so many draws, [number, 2]."""

    def note(seen: Array, _: Any, j: Array, draw: Any) -> Array:
        return seen.at[j].set(jax.random.key_data(draw.batch.key))

    empty = jnp.zeros((number, 2), jnp.uint32)
    return np.asarray(source.fold(note, empty, (), key=key, start=start, stop=number))


@pytest.mark.parametrize(("sampling", "b"), WAYS)
def test_a_row_that_holds_a_key_keeps_it(sampling: str, b: int | None) -> None:
    source = bx.Arrays({"row": ROWS, "key": KEYS}, b, sampling=sampling)
    np.testing.assert_array_equal(words(source.all_rows["key"]), words(KEYS)[np.asarray(source.all_rows["row"], int)])

    def note(wrong: Array, keys: Array, j: Array, draw: Any) -> Array:
        own = jax.random.key_data(keys[draw.batch["row"].astype(int)])
        return wrong + jnp.sum(own != jax.random.key_data(draw.batch["key"]))

    assert int(source.fold(note, jnp.int64(0), KEYS, key=jax.random.key(1), start=0, stop=300)) == 0


def test_the_key_of_a_draw_is_a_function_of_the_stream_and_the_number_alone() -> None:
    key = jax.random.key(2)
    found = [drawn(bx.Arrays(ROWS, b, sampling=how, keys=True), 600, key) for how, b in WAYS]
    found.append(drawn(HashedBatches(bx.Arrays(ROWS, 4, keys=True), 9), 600, key))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    part = drawn(bx.Arrays(ROWS, 4, keys=True), 600, key, start=300)
    np.testing.assert_array_equal(part[300:], found[0][300:])
    streams = np.concatenate([found[0], drawn(bx.Arrays(ROWS, 4, keys=True), 600, jax.random.key(3))])
    assert len(np.unique(streams, axis=0)) == 1200
    for kind in (jax.random.PRNGKey(2), jax.random.key(2, impl="rbg")):  # other kinds of keys are streams as well
        assert len(np.unique(drawn(bx.Arrays(ROWS, 4, keys=True), 20, kind), axis=0)) == 20


def test_the_rows_are_those_of_the_source_without_keys() -> None:
    for sampling, b in WAYS:
        plain, keyed = (bx.Arrays(ROWS, b, sampling=sampling, keys=keys) for keys in (False, True))

        def total(source: Any) -> Array:
            def note(seen: Array, _: Any, j: Array, draw: Any) -> Array:
                rows = draw.batch.rows if isinstance(draw.batch, Keyed) else draw.batch
                return seen.at[j].set(jnp.stack([jnp.sum(rows**2), jnp.asarray(draw.weight, float)]))

            return source.fold(note, jnp.zeros((60, 2)), (), key=jax.random.key(1), start=0, stop=60)

        np.testing.assert_array_equal(total(plain), total(keyed))


def test_every_row_at_once_has_one_key() -> None:
    source = bx.Arrays(ROWS, keys=True)
    again = bx.Arrays(ROWS, 4, keys=True)
    np.testing.assert_array_equal(words(source.all_rows.key), words(again.all_rows.key))
    assert (source.is_full_batch, bx.Arrays(ROWS).is_full_batch, source.rows_per_batch) == (False, True, N)
    whole = bx.Arrays(again.all_rows)  # of every row of another source, as audits do
    assert whole.keys
    np.testing.assert_array_equal(whole.data, ROWS)
    with pytest.raises(bx.ParameterError, match="keys must be True or False, got 1"):
        bx.Arrays(ROWS, keys=1)


def test_configurations_that_hold_keys() -> None:
    source = bx.Arrays((ROWS, KEYS), 4)
    assert source == bx.Arrays((ROWS, KEYS), 4)
    assert source != bx.Arrays((ROWS, jax.random.split(jax.random.key(6), N)), 4)
    assert source != bx.Arrays((ROWS, ROWS), 4)
    assert repr(source).startswith(f"Arrays(data=(float64[{N}], key<fry>[{N}]), batch_size=4")
    np.testing.assert_array_equal(words(canonicalize(KEYS)), words(KEYS))
    for keys in (KEYS, jax.random.key(3, impl="rbg")):
        back = from_plain(to_plain({"a": keys}))["a"]
        assert back.dtype == keys.dtype
        np.testing.assert_array_equal(words(back), words(keys))


# Ridge regression with dropout. Half of the entries of x are dropped and the others doubled, so over the masks
# E (x'm w - y)^2 = (x'w - y)^2 + sum_j x_j^2 w_j^2: a penalty mean(x_j^2) on w_j, to which lam adds its own.

D = 3
_RNG = np.random.default_rng(3)
X = _RNG.normal(size=(40, D)) * [1.0, 0.5, 1.5]
Y = X @ [1.0, -1.0, 0.5] + 0.2 * _RNG.normal(size=40)
LAM = np.array([-1.0, -0.5, -2.0])


def inner(w: Array, lam: Array, batch: Keyed) -> Array:
    X, y = batch.rows
    seen = jnp.where(jax.random.bernoulli(batch.key, 0.5, X.shape), 2.0 * X, 0.0)
    return 0.5 * jnp.mean((seen @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def outer(w: Array, lam: Array, batch: Any) -> Array:
    return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)


def truth() -> np.ndarray:
    H = X.T @ X / 40 + np.diag((X**2).mean(axis=0) + np.exp(LAM))
    w = np.linalg.solve(H, X.T @ Y / 40)
    return -np.exp(LAM) * w * np.linalg.solve(H, X.T @ (X @ w - Y) / 40)


def noisy_outer(w: Array, lam: Array, batch: Keyed) -> Array:
    """Less the mean over its noise, .5 sum_j mean(x_j^2) w_j^2, it is the outer loss."""
    return inner(w, jnp.full(D, -jnp.inf), batch) - 0.5 * jnp.sum(jnp.asarray((X**2).mean(axis=0)) * w**2)


@pytest.mark.slow_but("5")
@pytest.mark.parametrize("b", [None, 5])
def test_dropout_is_averaged_over(b: int | None) -> None:
    """The noise of the keys is priced, on every row too, and the mean is that over all masks; in val as well."""
    problem = bx.Problem(bx.GradientStep(inner, 0.15), noisy_outer if b else outer)
    train, val = bx.Arrays((X, Y), b, keys=True), bx.Arrays((X, Y), keys=bool(b))
    est = bx.hypergradient(problem, bx.JointSID(20_000), jnp.zeros(D), LAM, train, val, key=jax.random.key(0))
    error = np.linalg.norm(est.value - truth()) / np.linalg.norm(truth())
    assert error < 0.1
    assert 0.2 * error < float(est.error.relative) < 0.2


CHAIN = bx.FixedPoint(5)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (
            bx.SID(bx.LBFGS(), CHAIN, cross_batches=2, outer_batches=2),
            "^LBFGS reads every row of train at once, .*JointSID",
        ),
        (bx.SID(CHAIN, bx.CG(), cross_batches=2, outer_batches=2), "^CG reads every row of train at once"),
        (bx.SID(CHAIN, CHAIN, outer_batches=2), "^cross_batches=None reads every row of train at once"),
        (bx.SID(CHAIN, CHAIN, cross_batches=2), "^outer_batches=None reads every row of val at once"),
        (bx.ITD(3), "^ITD reads every row of train at once"),
        (bx.ITD(3, last=2), "^ITD reads every row of train at once"),
    ],
)
def test_one_draw_is_not_taken_for_the_mean(estimator: Any, message: str) -> None:
    problem, source = bx.Problem(bx.GradientStep(inner, 0.15), noisy_outer), bx.Arrays((X, Y), 5, keys=True)
    with pytest.raises(bx.ParameterError, match=message):
        bx.hypergradient(problem, estimator, jnp.zeros(D), LAM, source, source, key=jax.random.key(0))


def test_no_plan_for_sources_with_keys() -> None:
    problem, source = bx.Problem(bx.GradientStep(inner, 0.15), outer), bx.Arrays((X, Y), 5, keys=True)
    with pytest.raises(bx.ParameterError, match="a plan reads every row of train at once"):
        bx.plan(problem, jnp.zeros(D), LAM, source, bx.Arrays((X, Y)), key=jax.random.key(0), budget=10_000)


@pytest.mark.slow
def test_sid_on_minibatches_with_keys() -> None:
    problem, source = bx.Problem(bx.GradientStep(inner, 0.15), noisy_outer), bx.Arrays((X, Y), 5, keys=True)
    chain = bx.FixedPoint(4000, bx.Harmonic(20.0, 20.0))
    sid = bx.SID(chain, chain, cross_batches=2000, outer_batches=2000)
    est = bx.hypergradient(problem, sid, jnp.zeros(D), LAM, source, source, key=jax.random.key(0), report=False)
    assert np.linalg.norm(est.value - truth()) < 0.2 * np.linalg.norm(truth())
