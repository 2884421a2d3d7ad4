"""Faults C20 and C21 (docs/faults.md): jit, vmap and scan of a hypergradient, and what is traced again.

Compiled with all optimisations, since bits are compared.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx

OPTIMISED = True
KEY = jax.random.key(0)
TRACES = 0
D, N = 4, 24


def inner_loss(w, lam, batch):
    global TRACES
    TRACES += 1
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def outer_loss(w, lam, batch):
    Z, u = batch
    return 0.5 * jnp.mean((Z @ w - u) ** 2) + 0.05 * jnp.vdot(lam, lam)


def data(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, D)), rng.normal(size=N)


def make(name, t):
    """An estimator, and the batch size it is used with."""
    return {
        "SID": (bx.SID(bx.FixedPoint(t, bx.Harmonic(4.0, 5.0)), bx.FixedPoint(t, 0.5)), 5),
        "LBFGS-CG": (bx.SID(bx.LBFGS(tol=1e-12), bx.CG(tol=1e-13)), None),
        "GMRES": (bx.SID(bx.Given(), bx.GMRES(tol=1e-13, restart=4)), None),
        "ITD": (bx.ITD(20), None),
    }[name]


NAMES = ["SID", "LBFGS-CG", "GMRES", "ITD"]


def arguments(name, t=40, seed=0):
    """Built from nothing."""
    estimator, b = make(name, t)
    problem = bx.Problem(bx.GradientStep(inner_loss, 0.35), outer_loss)
    return problem, estimator, bx.Arrays(data(seed), b), bx.Arrays(data(seed + 10), b)


@functools.cache
def transformed(name):
    """The caller's function, with the number of times that Python has run it, and what jit makes of it."""
    model, estimator, train, val = arguments(name)
    runs = [0]

    def call(lam, key, w0):
        runs[0] += 1
        return bx.hypergradient(model, estimator, w0, lam, train, val, key=key)

    return call, runs, jax.jit(call)


LAMS = jnp.asarray(np.array([-1.0, 0.3, -2.0, -0.5]) + np.array([0.0, 0.5, -1.0])[:, None])
KEYS = jax.random.split(KEY, 3)
W0 = jnp.linspace(-0.5, 1.0, D)


@functools.cache
def plain(name):
    """The eager calls."""
    return [transformed(name)[0](lam, key, W0) for lam, key in zip(LAMS, KEYS, strict=True)]


def same_bits(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


@pytest.mark.slow_but("LBFGS-CG")
@pytest.mark.parametrize(
    "name",
    [
        *NAMES[:2],
        *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[2:]),
        *(pytest.param(name, marks=pytest.mark.slow, id=f"{name}-as-users-compile") for name in NAMES),
    ],
)
def test_c20_jit_is_the_plain_call_to_the_bit_and_is_traced_once(name):
    expected = plain(name)
    _, runs, jitted = transformed(name)
    runs[0] = 0
    first = jitted(LAMS[0], KEYS[0], W0)
    before = TRACES
    found = [first] + [jitted(lam, key, W0) for lam, key in zip(LAMS[1:], KEYS[1:], strict=True)]
    assert runs[0] == 1
    assert before == TRACES
    for a, b in zip(expected, found, strict=True):
        assert same_bits((a.value, a.outer_value, a.w, a.v, a.code), (b.value, b.outer_value, b.w, b.v, b.code))
    assert not same_bits(expected[0].value, expected[1].value)


@pytest.mark.slow_but("GMRES", "ITD", "LBFGS-CG")
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("name", NAMES)
def test_c20_a_batch_and_a_scan_are_the_plain_calls_to_rounding(name):
    expected = np.stack([est.value for est in plain(name)])
    model, estimator, train, val = arguments(name)
    runs = [0]

    def call(lam, key):
        runs[0] += 1
        return bx.hypergradient(model, estimator, W0, lam, train, val, key=key, report=False).value

    @jax.jit
    def both_ways(lams, keys):
        mapped = jax.vmap(call)(lams, keys)
        return mapped, jax.lax.scan(lambda carry, x: (carry, call(*x)), None, (lams, keys))[1]

    mapped, scanned = both_ways(LAMS, KEYS)
    both_ways(LAMS + 1.0, KEYS[::-1])
    assert runs[0] == 2  # once each
    np.testing.assert_allclose(mapped, expected, rtol=1e-10)
    np.testing.assert_allclose(scanned, expected, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
def test_c20_a_batch_of_keys_at_one_lam():
    call, _, jitted = transformed("SID")
    expected = np.stack([jitted(LAMS[0], key, W0).value for key in KEYS])
    found = jax.jit(jax.vmap(lambda key: call(LAMS[0], key, W0).value))(KEYS)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert np.all(np.ptp(found, axis=0) > 1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_c21_an_estimator_that_is_built_again_is_not_traced_again(name):
    """Nor its problem and its sources; with other steps, other rows and another key."""

    def call(lam=LAMS[0], key=KEY, **changes):
        problem, estimator, train, val = arguments(name, **changes)
        return bx.hypergradient(problem, estimator, W0, lam, train, val, key=key).value

    first, before = call(), TRACES
    assert make(name, 40)[0] == make(name, 40)[0]
    assert same_bits(first, call())
    different = [call(LAMS[1]), call(seed=3)] + [call(key=jax.random.key(5)), call(t=39)] * (name == "SID")
    assert not any(same_bits(first, other) for other in different)
    assert before == TRACES


def test_c21_control_another_function_is_traced():
    _, estimator, train, val = arguments("ITD")
    before = TRACES
    other = bx.Problem(bx.GradientStep(lambda w, lam, batch: inner_loss(w, lam, batch), 0.35), outer_loss)
    bx.hypergradient(other, estimator, np.zeros(D), LAMS[0], train, val, key=KEY)
    assert before < TRACES
