"""Functions of a mean: the problem, and SCGD on it, by hand, in closed form and against the chain rule."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.config import config, replace_unchecked
from bilevax.testing.closed_forms import FiniteQuadratic, family
from bilevax.testing.draws import row_weights

D, M, N, B = 4, 2, 61, 8
KEY = jax.random.key(5)
W0 = np.linspace(-1.0, 1.0, D)

# ---- a nonlinear one: w = mean of tanh(X lam + c), E = mean of (y'w + q'lam - 1)^4 / 4

RNG = np.random.default_rng(3)
X, C, Y, Q = (RNG.normal(size=shape) for shape in ((N, D, M), (N, D), (N, D), (N, M)))
TRAIN, VAL = {"x": X, "c": C}, {"y": Y, "q": Q}
LAM = np.array([0.5, -0.8])


def inner(lam, batch):
    return jnp.mean(jnp.tanh(batch["x"] @ lam + batch["c"]), axis=0)


def outer(w, lam, batch):
    return jnp.mean((batch["y"] @ w + batch["q"] @ lam - 1.0) ** 4) / 4


PROBLEM = bx.Problem(bx.Composition(inner), outer)


@jax.jit
def loop(problem, algorithm, start, sources, keys, stops):
    """(w, lam) of each key at each stop."""

    def step(state, args, k, looks):
        return args[1].step(args[0], state, looks, k)[0]

    def run(key):
        state, args = algorithm.init(problem, *start, sources), (problem, algorithm)
        state = bx.fold_looks(algorithm.streams(sources), step, state, args, key=key, start=0, stop=stops)
        return jnp.concatenate(algorithm.solution(state), axis=-1)

    return jax.vmap(run)(keys)


def path(problem, algorithm, start, sources, stops, keys=KEY[None]):
    return np.asarray(loop(problem, algorithm, tuple(map(jnp.asarray, start)), sources, keys, jnp.asarray(stops)))


@pytest.mark.parametrize("sampling", ["iid", "blocks"])
def test_steps_are_those_written_out(sampling):
    """Steps of w fall as k^(-1/2), of lam as k^(-3/4); of 61 rows in blocks the last 5 weigh less."""
    steps, rho, ratio = 12, 0.6, 0.4
    sources = [bx.Arrays(data, B, sampling, seed=None) for data in (TRAIN, VAL)]
    draws = [
        row_weights(source, name, KEY, steps)[:, 0] for source, name in zip(sources, ("train", "val"), strict=True)
    ]
    w, lam, expected = W0, LAM, []
    for k, (train, val) in enumerate(zip(*draws, strict=True)):
        g = np.tanh(X @ lam + C)
        w = w + rho / (1 + k) ** 0.5 * (train @ g - train.sum() * w)
        slopes = val * (Y @ w + Q @ lam - 1.0) ** 3
        pulled = np.einsum("n,ndm,nd->m", train, X, (1 - g**2) * (slopes @ Y))
        lam = lam - ratio * rho / (1 + k) ** 0.75 * (slopes @ Q + pulled)
        expected.append([*w, *lam])
    algorithm = bx.SCGD(bx.Polynomial(rho, 0.5), ratio)
    found = path(PROBLEM, algorithm, (W0, LAM), tuple(sources), np.arange(1, steps + 1))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert (draws[0].sum(axis=1).min() < 0.99) == (sampling == "blocks")


def f(lam):
    """E(mean of g, lam), by the two losses alone."""
    return outer(inner(lam, TRAIN), lam, VAL)


def test_on_every_row_without_an_average_it_is_gradient_descent_by_the_chain_rule():
    lam, expected = jnp.asarray(LAM), []
    for _ in range(5):
        lam = lam - 0.1 * jax.grad(f)(lam)
        expected.append(lam)
    sources = bx.Arrays(TRAIN), bx.Arrays(VAL)
    found = path(PROBLEM, bx.SCGD(1.0, 0.1), (W0, LAM), sources, np.arange(1, 6))[0]
    np.testing.assert_allclose(found[:, D:], expected, rtol=1e-12)


def test_its_hypergradient_is_the_chain_rule():
    """One step of each solver is enough: the map does not depend on w."""
    sid = bx.SID(bx.FixedPoint(1, bx.Constant(1.0)), bx.FixedPoint(1, bx.Constant(1.0)))
    est = bx.hypergradient(PROBLEM, sid, W0, LAM, bx.Arrays(TRAIN), bx.Arrays(VAL), key=KEY, report=False)
    np.testing.assert_allclose(est.value, jax.grad(f)(jnp.asarray(LAM)), rtol=1e-12)
    np.testing.assert_allclose(est.v, jax.grad(outer)(inner(LAM, TRAIN), jnp.asarray(LAM), VAL), rtol=1e-12)


def test_what_is_no_composition_is_refused(refused):
    quadratic = FiniteQuadratic.random(0, d=D, m=M)
    sources = bx.Arrays(quadratic.train_data), bx.Arrays(quadratic.val_data)
    run = partial(bx.minimize, quadratic.problem, bx.SCGD(0.1, 0.1), W0, quadratic.lam, *sources, steps=1, key=KEY)
    refused(run, bx.ParameterError, r"SCGD needs bx.Composition\(g\) as the inner map.*got GradientStep")
    refused(partial(bx.Composition, 3), bx.ParameterError, "function must be a function of")
    refused(partial(bx.SCGD, 0.1, 0.1, 0.5), bx.ParameterError, "outer_power")


# ---- linear ones: g = b_i + B_i lam, E quadratic; a step on one row of each is a random affine map


@cache
def linear(condition=10, n=101):
    """The quadratic's own f, of which A^-1 (b_i + B_i lam) are the rows of w."""
    p = FiniteQuadratic.conditioned(0, condition=condition, n=n, n_val=n, d=D, m=M)
    A = p.A.mean(axis=0)
    b, slope = np.linalg.solve(A, p.b.T).T, np.linalg.solve(A, p.B)
    return replace_unchecked(p, A=np.broadcast_to(np.eye(D), p.A.shape), b=b, B=slope)


@config
class Scaled:
    """A loss times a number."""

    loss: object
    factor: float

    def __call__(self, w, lam, batch):
        return self.factor * self.loss(w, lam, batch)


def g_linear(lam, batch):
    return jnp.mean(batch["b"] + batch["B"] @ lam, axis=0)


def run(p, rho, ratio, stops, *, size=None, number=1, power=0.0, horizon=250.0):
    sources = tuple(bx.Arrays({name: data[name] for name in names}, size)
                    for data, names in ((p.train_data, ("b", "B")), (p.val_data, ("target", "r"))))  # fmt: skip
    problem = bx.Problem(bx.Composition(g_linear), p.problem.outer_loss)
    algorithm = bx.SCGD(bx.Polynomial(rho, power, horizon), ratio)
    return path(problem, algorithm, (W0, p.lam), sources, stops, jax.random.split(KEY, number))


@pytest.mark.parametrize(
    ("condition", "n"),
    [(10, 101), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((100, 101), (10, 512), (100, 512)))],
)
def test_on_every_row_it_goes_linearly_to_the_minimum(condition, n):
    p, rho, ratio = linear(condition, n), 0.5, 0.1
    step = family.scgd(p, rho, ratio, every_row=True)
    stops = [1, 2, 5, 25, 125, int(np.log(1e-13) / np.log(step.mean_rate))]
    found = run(p, rho, ratio, stops)[0]
    for k, x in zip(stops, found, strict=True):
        np.testing.assert_allclose(x, step.power(k).moments(np.concatenate([W0, p.lam]))[0], rtol=1e-10, atol=1e-13)
    limit = np.concatenate([p.w(p.minimiser), p.minimiser])
    assert np.linalg.norm(found[-1] - limit) <= 1e-10 * np.linalg.norm(limit)


def settled(p, rho, ratio, number, length):
    """Of every chain the mean of (w, lam), and of its square about the mean, between stops once the start is gone."""
    step = family.scgd(p, rho, ratio)
    burn = int(np.log(1e-6) / np.log(step.rate))
    stops = np.linspace(burn, (1 + length) * burn, 1 + 4 * length).astype(int)
    return step, run(p, rho, ratio, stops, size=1, number=number)


def within(samples, truth, precision):
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert np.all(error <= precision), (error, precision)
    assert np.all(np.abs(samples.mean(axis=0) - truth) <= 4 * error), (samples.mean(axis=0) - truth) / error


@pytest.mark.parametrize("rho", [0.1, 1.0])
def test_mean_and_floor_are_those_of_the_exact_moments(rho):
    """On single rows, averaged or not."""
    step, found = settled(linear(), rho, 0.02 / rho, 256, 2)
    second = step.stationary
    mean = second[:-1, -1]
    variance = second.diagonal()[:-1] - mean**2
    within(found.mean(axis=1), mean, 0.1 * np.sqrt(variance))
    within(((found - mean) ** 2).mean(axis=1), variance, 0.15 * variance)


def test_a_moving_average_takes_away_the_bias_of_plugging_a_minibatch_in():
    """At the same steps of lam; exactly, from the moments, and measured: by more than 3."""
    p, gamma, bias = linear(), 0.005, []
    for rho in (1.0, 0.05):
        step, found = settled(p, rho, gamma / rho, 64, 2)
        exact, measured = (
            np.linalg.norm(p.hypergradient(mean[D:])) for mean in (step.fixed_point, found.mean(axis=(0, 1)))
        )
        bias.append((exact, measured))
    assert bias[0][0] > 3 * bias[1][0]
    assert bias[0][1] > 3 * bias[1][1]


@pytest.mark.slow
@pytest.mark.parametrize("n", [101, 512])
@pytest.mark.parametrize("condition", [10, 100])
def test_with_falling_steps_the_error_falls_as_published(condition, n):
    """k^(-1/4) in Wang, Fang, Liu 2014, with steps of k^(-1/2) and k^(-3/4); slack 0.1."""
    p, last = linear(condition, n), 32_000
    stops = np.geomspace(last / 16, last, 24).astype(int)
    found = run(p, 0.3, 0.2, stops, size=16, number=64, power=0.5)
    error = np.mean(np.sum((found[:, :, D:] - p.minimiser) ** 2, axis=2), axis=0)
    assert np.polyfit(np.log(stops), np.log(error), 1)[0] <= -0.25 + 0.1


def test_built_without_steps_it_gets_down_whatever_the_scale_of_the_outer_loss():
    p = linear()
    sources = bx.Arrays({"b": p.b, "B": p.B}, 8), bx.Arrays(p.val_data, 8)

    def found(factor):
        problem = bx.Problem(bx.Composition(g_linear), Scaled(p.problem.outer_loss, factor))
        return bx.minimize(problem, bx.SCGD(), W0, p.lam, *sources, steps=8000, key=KEY)

    result = found(1.0)
    assert np.linalg.norm(p.hypergradient(result.lam)) < 0.2 * np.linalg.norm(p.hypergradient(p.lam))
    np.testing.assert_allclose(found(1e3).lam, result.lam, rtol=1e-8)
