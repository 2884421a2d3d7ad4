"""NSID: hypergradients of problems with a prox, sampled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmark_rig import module

import bilevax as bx
from bilevax.core.config import canonicalize

KEY = jax.random.key(3)
D, N = 4, 6


def soft(u, lam, s):
    return jnp.sign(u) * jnp.maximum(jnp.abs(u) - s * jnp.exp(lam["l1"]), 0.0)


def nothing(u, lam, s):
    return u


def half_square(w, lam, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2) + 0.5 * jnp.exp(lam["l2"]) * jnp.sum(w**2)


def held_out(w, lam, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2) + 0.05 * lam["l1"] ** 2


def sparse(seed=0, n=N, d=D, noise=0.1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, x @ np.where(np.arange(d) % 2, 0.0, 1.0 + np.arange(d)) + noise * rng.normal(size=n)


LAM = {"l1": jnp.asarray(np.log(0.3)), "l2": jnp.asarray(np.log(0.2))}
STEP = 0.3


def elastic(prox=soft, step=STEP):
    return bx.Problem(bx.ProximalStep(half_square, prox, step), held_out)


def by_hand(w, batches, cross, etas, val):
    """Steps 2 and 3 of the paper in numpy: D_G once, at the mean of That; minibatches of That alone after that."""
    l1, l2 = np.exp(LAM["l1"]), np.exp(LAM["l2"])
    X, y = val
    g, direct = X.T @ (X @ w - y) / len(y), np.array([0.1 * LAM["l1"], 0.0])
    u = np.mean([w - STEP * (x.T @ (x @ w - t) / len(t) + l2 * w) for x, t in cross], axis=0)
    D_G = (np.abs(u) > STEP * l1).astype(float)
    v = np.zeros_like(w)
    for eta, (x, t) in zip(etas, batches, strict=True):
        q = D_G * v
        v = (1 - eta) * v + eta * (q - STEP * (x.T @ (x @ q) / len(t) + l2 * q) + g)
    # d/d log l1 of soft(u, s l1) = -sign(u) s l1 on the support; d/d log l2 of That = -s l2 w
    of_l1, of_l2 = -np.sum(v * D_G * np.sign(u)) * STEP * l1, -STEP * l2 * np.sum(v * D_G * w)
    return direct + np.array([of_l1, of_l2]), v


@pytest.fixture(scope="module")
def scripted_run(Scripted):
    data, val = sparse(), sparse(1, 5)

    @partial(jax.jit, static_argnums=0)
    def run(problem, method, w, scripts):
        source = Scripted(jax.tree.map(jnp.asarray, data), KEY, scripts)
        return method.estimate(bx.Instance(problem, LAM, source, bx.Arrays(val)), w, key=KEY)

    return data, val, run


def test_the_value_is_that_of_the_paper_by_hand(scripted_run):
    data, val, run = scripted_run
    w = np.array([1.5, 0.02, 2.0, -0.6])
    # a cross batch alone has another support than the mean of both
    lists = {"linear": [[0, 1], [2, 3], [4, 4], [5, 0]], "cross": [[1, 4], [2, 3], [0, 0], [0, 0]]}
    scripts = {name: np.array(script) for name, script in lists.items()}
    rows = {name: [tuple(a[i] for a in data) for i in script] for name, script in scripts.items()}
    method = canonicalize(bx.NSID(bx.Given(), bx.FixedPoint(4, bx.Harmonic(2.0, 3.0)), cross_batches=2))
    est = run(elastic(), method, jnp.asarray(w), scripts)
    value, v = by_hand(w, rows["linear"], rows["cross"][:2], 2.0 / (3.0 + np.arange(4)), val)
    np.testing.assert_allclose([est.value["l1"], est.value["l2"]], value, rtol=1e-12)
    np.testing.assert_allclose(est.v, v, rtol=1e-12)
    assert [int(getattr(est.cost, name).calls) for name in ("gradients", "hvps", "cross")] == [2, 4, 2]
    singles = [by_hand(w, rows["linear"], [one], 2.0 / (3.0 + np.arange(4)), val)[0] for one in rows["cross"][:2]]
    assert min(np.linalg.norm(value - single) for single in singles) > 1e-3


def test_the_inner_chain_is_the_proximal_stochastic_gradient_by_hand(scripted_run):
    data, _, run = scripted_run
    script, w = np.array([[0, 1], [2, 3], [4, 4], [5, 0]]), np.array([0.1, 0.0, 1.0, -0.4])
    method = canonicalize(bx.NSID(bx.FixedPoint(4, bx.Harmonic(2.0, 3.0)), bx.FixedPoint(0), cross_batches=1))
    est = run(elastic(), method, jnp.asarray(w), {"inner": script, "cross": 0 * script})
    averaged = w
    for eta, i in zip(2.0 / (3.0 + np.arange(4)), script, strict=True):
        x, t = (a[i] for a in data)
        u = averaged - STEP * (x.T @ (x @ averaged - t) / 2 + np.exp(LAM["l2"]) * averaged)
        step = np.sign(u) * np.maximum(np.abs(u) - STEP * np.exp(LAM["l1"]), 0.0)
        averaged = averaged + eta * (step - averaged)
        w = w - eta * STEP * (x.T @ (x @ w - t) / 2 + np.exp(LAM["l2"]) * w)
        w = np.sign(w) * np.maximum(np.abs(w) - eta * STEP * np.exp(LAM["l1"]), 0.0)
    np.testing.assert_allclose(est.w, w, rtol=1e-12, atol=1e-15)
    assert np.linalg.norm(w - averaged) > 0.05  # which is biased: a mean of proximal steps
    # no step of the linear solver: v = 0, and the hypergradient is grad_2 E
    np.testing.assert_allclose([est.value["l1"], est.value["l2"]], [0.1 * LAM["l1"], 0.0], rtol=1e-12)


LINEAR = [bx.FixedPoint(7, bx.Harmonic(2.0, 3.0), confirm=False), bx.MixedFP(7, 0.2), bx.GMRES()]
STEPS = STEP, lambda lam: 1.0 / (2.0 + jnp.exp(lam["l2"])), STEP


@pytest.mark.slow_but("mixed")
@pytest.mark.parametrize(("linear", "step"), list(zip(LINEAR, STEPS, strict=True)), ids=["fp", "mixed", "gmres"])
def test_without_a_prox_it_is_sid_on_the_same_draws(linear, step):
    instance = bx.Arrays(sparse(0, 40), 8), bx.Arrays(sparse(1, 30), 5)
    inner = bx.FixedPoint(9, bx.Harmonic(1.0, 2.0), confirm=False)
    settings = canonicalize((inner, linear, 3, 4))

    @partial(jax.jit, static_argnums=0)
    def value(problem, method, key):
        est = method.estimate(bx.Instance(problem, LAM, *instance), 0.1 + jnp.arange(4.0), key=key)
        return est.value, est.w, est.v

    smooth = bx.Problem(bx.GradientStep(half_square, step), held_out)
    wanted = value(smooth, bx.SID(*settings), KEY)
    for problem in (smooth, elastic(nothing, step)):
        found = value(problem, bx.NSID(*settings), KEY)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), found, wanted)


@pytest.mark.parametrize(
    ("linear", "cross_batches"),
    [
        (bx.FixedPoint(400), 2),
        *(pytest.param(x, None, marks=pytest.mark.slow) for x in (bx.GMRES(1e-12), bx.FixedPoint(400))),
    ],
)
def test_on_every_row_it_is_the_deterministic_hypergradient_off_the_kinks(linear, cross_batches):
    sources = bx.Arrays(sparse(0, 40)), bx.Arrays(sparse(1, 30))
    truth, support = central_differences(sources)
    assert 0 < np.sum(support) < D
    method = bx.NSID(bx.FixedPoint(400), linear, cross_batches)
    est = bx.hypergradient(elastic(), method, jnp.zeros(D), LAM, *sources, key=KEY)
    assert int(est.code) == bx.Code.OK
    np.testing.assert_allclose([est.value["l1"], est.value["l2"]], truth, rtol=1e-7)


def central_differences(sources, h=1e-5):
    """Of the outer loss of the solution by 4,000 steps of ISTA in numpy, and the support."""
    (x, y), (X, Y) = (source.all_rows for source in sources)

    def solved(l1, l2):
        w = np.zeros(D)
        for _ in range(4000):
            w = w - STEP * (x.T @ (x @ w - y) / len(y) + np.exp(l2) * w)
            w = np.sign(w) * np.maximum(np.abs(w) - STEP * np.exp(l1), 0.0)
        return w

    def value(l1, l2):
        return 0.5 * np.mean((X @ solved(l1, l2) - Y) ** 2) + 0.05 * l1**2

    l1, l2 = float(LAM["l1"]), float(LAM["l2"])
    by_l1 = (value(l1 + h, l2) - value(l1 - h, l2)) / (2 * h)
    by_l2 = (value(l1, l2 + h) - value(l1, l2 - h)) / (2 * h)
    return np.array([by_l1, by_l2]), solved(l1, l2) != 0


def test_a_prox_with_a_derivative_of_its_own_in_reverse_mode_will_do():
    @jax.custom_vjp
    def own(u, l1, s):
        return jnp.sign(u) * jnp.maximum(jnp.abs(u) - s * l1, 0.0)

    def forward(u, l1, s):
        on = (jnp.abs(u) > s * l1).astype(u.dtype)
        return own(u, l1, s), (on, on * jnp.sign(u), s, l1)

    def backward(kept, v):
        on, sign, s, l1 = kept
        return on * v, -jnp.sum(sign * s * v), -sign * l1 * v

    own.defvjp(forward, backward)
    instance = LAM, bx.Arrays(sparse(0, 40), 8), bx.Arrays(sparse(1, 30))
    method = canonicalize(bx.NSID(bx.Given(), bx.FixedPoint(7, 0.5, confirm=False), cross_batches=3))
    one, other = (
        jax.jit(partial(method.estimate, key=KEY))(bx.Instance(elastic(prox), *instance), jnp.ones(4)).value
        for prox in (soft, lambda u, lam, s: own(u, jnp.exp(lam["l1"]), s))
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), other, one)


def test_what_has_no_two_parts_is_refused(refused):
    problem = bx.Problem(lambda w, lam, batch: 0.5 * w, held_out)
    sources = bx.Arrays(sparse(0, 40), 8), bx.Arrays(sparse(1, 30))
    method = bx.NSID(bx.FixedPoint(3), bx.FixedPoint(3), cross_batches=1)
    call = partial(bx.hypergradient, problem, method, jnp.zeros(D), LAM, *sources, key=KEY)
    refused(call, bx.ParameterError, "NSID needs the proximal step of the inner map apart from the rest")
    refused(lambda: bx.NSID(bx.LBFGS(), bx.FixedPoint(3)), bx.ParameterError, "inner must be bx.FixedPoint")
    refused(lambda: bx.NSID(bx.Given(), bx.FixedPoint(3), 0), bx.ParameterError, "cross_batches must be at least 1")
    call = partial(bx.hypergradient, elastic(), bx.NSID(bx.Given(), bx.CG()), jnp.zeros(D), LAM, *sources, key=KEY)
    refused(call, bx.ParameterError, "CG needs a symmetric system")


@pytest.mark.slow
def test_a_run_goes_on_to_its_target():
    sources = bx.Arrays(sparse(0, 400), 20), bx.Arrays(sparse(1, 300))
    truth = central_differences(sources)[0]
    steps = bx.Harmonic(4.0, 8.0)
    method = bx.NSID(bx.FixedPoint(40, steps), bx.FixedPoint(40, steps), cross_batches=20)
    est = bx.hypergradient(elastic(), method, jnp.zeros(D), LAM, *sources, key=KEY, target=0.05)
    assert int(est.code) == bx.Code.OK
    assert int(est.cost.hvps.calls) > 40
    error = np.array([est.value["l1"], est.value["l2"]]) - truth
    assert np.linalg.norm(error) <= 0.05 * np.linalg.norm(truth)


@pytest.mark.slow
def test_it_goes_on_where_sid_has_a_floor():
    """The elastic net of the paper, ten draws of the data, two runs each; the truth is a direct solve in numpy."""
    question = module("benchmarks.nsid")
    nets = [question.ElasticNet(50_000, seed) for seed in range(10)]
    steps = (500, 1000, 2000, 4000, 8000)
    squares = question.curves(nets, steps, 2, ("NSID", "SID"))
    met = question.checks(squares, steps)
    assert len(met) == 3
    assert all(check[-1] for check in met), met
    # without a step of the linear solver nothing is known: E does not read lam
    (none,) = question.curves(nets[:1], (0,), 1, ("NSID",)).values()
    np.testing.assert_allclose(none, 1.0, rtol=1e-6)
