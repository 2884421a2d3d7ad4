"""Solvers with a memory, of w as of v: iterates by hand, rates, codes, and what they say of their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax.testing.closed_forms import FiniteQuadratic

KEY = jax.random.key(3)
N, D, B, STEPS = 11, 3, 4, 17
RNG = np.random.default_rng(1)
A = 0.25 * RNG.normal(size=(N, D, D))
SHIFT = RNG.normal(size=(N, D))
X0 = RNG.normal(size=D)
FIXED = np.linalg.solve(np.eye(D) - A.mean(0), SHIFT.mean(0))


def image(x, args, batch):
    """T(x) = the mean of A_i x + b_i, an affine map that is not symmetric."""
    M, b = batch
    return args * jnp.mean(M @ x, axis=0) + jnp.mean(b, axis=0)


def solved(solver, batch_size=B, sampling="iid", args=1.0, **options):
    source = bx.Arrays((A, SHIFT), batch_size, sampling)
    return jax.jit(lambda: solver.solve(image, jnp.asarray(X0), jnp.asarray(args), source, key=KEY, **options))()


def drawn(batch_size, sampling):
    """The minibatches of the first STEPS draws, as (A, b, weight, block)."""
    rows = bx.Arrays((np.arange(N, dtype=float)[:, None], np.zeros((N, 1))), batch_size, sampling, keys=False)

    def step(seen, _, j, draw):
        chosen = jnp.zeros(N).at[draw.batch[0][:, 0].astype(int)].add(1.0 / len(draw.batch[0]))
        line = jnp.concatenate([chosen, jnp.stack([jnp.asarray(draw.weight, float), jnp.asarray(draw.block, float)])])
        return seen.at[j].set(line)

    table = np.asarray(rows.fold(step, jnp.zeros((STEPS, N + 2)), (), key=KEY, start=0, stop=STEPS))
    return [(np.tensordot(x[:N], A, 1), x[:N] @ SHIFT, x[N], int(x[N + 1])) for x in table]


def heavy_ball(draws, eta, beta):
    x = before = X0
    for j, (M, b, weight, _) in enumerate(draws):
        x, before = x + eta(j) * weight * (M @ x + b - x) + beta * (x - before), x
    return x


def nesterov(draws, eta, beta):
    x = before = X0
    for j, (M, b, weight, _) in enumerate(draws):
        y = x + beta * (x - before)
        x, before = y + eta(j) * weight * (M @ y + b - y), x
    return x


def svrg(draws, eta, period):
    x, anchor, mean = X0, X0, lambda x: A.mean(0) @ x + SHIFT.mean(0) - x
    for j, (M, b, weight, _) in enumerate(draws):
        anchor = x if j % period == 0 else anchor
        d = weight * (M @ x + b - x - (M @ anchor + b - anchor)) + mean(anchor)
        x = x + eta(j) * d
    return x


def saga(draws, eta, blocks):
    x, table = X0, np.zeros((blocks, D))
    for j, (M, b, weight, i) in enumerate(draws):
        new = weight * (M @ x + b - x)
        d = new - table[i] + table.mean(0)
        table[i] = new
        x = x + eta(j) * d
    return x


def averaged(draws, eta, part):
    x, kept = X0, []
    for j, (M, b, weight, _) in enumerate(draws):
        x = x + eta(j) * weight * (M @ x + b - x)
        kept.append(x)
    return np.mean(kept[len(kept) - int(np.ceil(part * len(kept))) :], axis=0)


HARMONIC = bx.Harmonic(4.0, 8.0)
BY_HAND = {
    "heavy-ball": (bx.HeavyBall(STEPS, HARMONIC, 0.4), lambda draws, eta: heavy_ball(draws, eta, 0.4)),
    "nesterov": (bx.Nesterov(STEPS, HARMONIC, 0.4), lambda draws, eta: nesterov(draws, eta, 0.4)),
    "svrg": (bx.SVRG(STEPS, HARMONIC, 5), lambda draws, eta: svrg(draws, eta, 5)),
    "saga": (bx.SAGA(STEPS, HARMONIC), lambda draws, eta: saga(draws, eta, 3)),
    "average": (bx.FixedPoint(STEPS, HARMONIC, average=0.4), lambda draws, eta: averaged(draws, eta, 0.4)),
    "optax": (bx.Optax(optax.sgd(0.3, momentum=0.4), STEPS), lambda draws, _: heavy_ball(draws, lambda j: 0.3, 0.4)),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("sampling", ["iid", "blocks"])
def test_the_iterates_by_hand(name, sampling):
    """Rows 8 to 10 of 11 are a block of 3: its weight is 3 * 3 / 11."""
    solver, by_hand = BY_HAND[name]
    if name == "saga" and sampling == "iid":
        with pytest.raises(bx.ParameterError, match='sampling="blocks"'):
            solved(solver)
        return
    out = solved(solver, sampling=sampling)
    truth = by_hand(drawn(B, sampling), lambda j: 4.0 / (8.0 + j))
    np.testing.assert_allclose(out.value, truth, rtol=1e-12, atol=1e-13)
    # 2 products a step of SVRG, and four anchors of three minibatches
    assert out.calls == (2 * STEPS + 4 * 3 if name == "svrg" else STEPS)


@pytest.mark.parametrize("name", BY_HAND)
def test_on_every_row_by_hand(name):
    """Where each draw is every row there is no noise to reduce, nor to average."""
    solver, by_hand = BY_HAND[name]
    draws = [(A.mean(0), SHIFT.mean(0), 1.0, 0)] * STEPS
    plain = {"svrg": (draws, 0.0), "saga": (draws, 0.0), "average": (draws, 0.0)}
    truth = heavy_ball(draws, lambda j: 4.0 / (8.0 + j), 0.0) if name in plain else by_hand(
        draws, lambda j: 4.0 / (8.0 + j)
    )  # fmt: skip
    out = solved(solver, None)
    np.testing.assert_allclose(out.value, truth, rtol=1e-12, atol=1e-13)
    assert out.calls == STEPS


@pytest.mark.slow_but("0.6")
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_reverse_mode_through_heavy_ball_is_heavy_ball_on_the_linear_system(momentum):
    """The derivative of <g, w_K> in b is b-> d2Phi^T v_K, v_K from as many steps on (I - M^T) v = g from 0."""
    M, g = jnp.asarray(A.mean(0)), jnp.arange(1.0, 1.0 + D)

    @jax.jit
    @jax.grad
    def unrolled(b):
        w = before = jnp.asarray(X0)
        for _ in range(STEPS):
            w, before = w + 0.7 * (M @ w + b - w) + momentum * (w - before), w
        return g @ w

    solver = bx.HeavyBall(STEPS, 0.7, momentum)
    rows = bx.Arrays((A.transpose(0, 2, 1), np.broadcast_to(g, (N, D))))
    out = solver.solve(image, jnp.zeros(D), jnp.asarray(1.0), rows, key=KEY)
    np.testing.assert_allclose(out.value, unrolled(jnp.asarray(SHIFT.mean(0))), rtol=1e-12, atol=1e-13)


QUADRATIC = FiniteQuadratic.random(4, n=23, d=4, m=3)


def quadratic_estimate(inner, linear, sampling="blocks", batch_size=5, **options):
    p = QUADRATIC
    sources = bx.Arrays(p.train_data, batch_size, sampling), bx.Arrays(p.val_data)
    return bx.hypergradient(
        p.problem, bx.SID(inner, linear), np.zeros(4), p.lam, *sources, key=KEY, **options
    )  # fmt: skip


@pytest.mark.slow_but("SAGA")
@pytest.mark.parametrize("solver", [bx.SVRG(2500, 0.3), bx.SAGA(2500, 0.3)], ids=["SVRG", "SAGA"])
def test_variance_reduction_converges_to_rounding_on_a_finite_sum(solver):
    """23 rows in blocks of 5, and one of 3: each row counts once. A plain chain stays at its noise."""
    truth = QUADRATIC.hypergradient(QUADRATIC.lam)
    est = quadratic_estimate(solver, solver)
    assert est.code == bx.Code.OK, est.message
    np.testing.assert_allclose(est.value, truth, rtol=1e-12)
    assert est.error.upper < 1e-6
    half = quadratic_estimate(*[bx.FixedPoint(2500, 0.3)] * 2)
    assert np.linalg.norm(half.value - truth) > 1e-3 * np.linalg.norm(truth)


def noisy(x, args, batch):
    return args * x + jnp.mean(batch, axis=0)


def test_the_mean_of_the_last_points_has_its_own_floor():
    """x <- (1 - eta h) x + eta b, b of variance s^2: the last point keeps eta s^2 / (h (2 - eta h)), the mean of n
    points has the variance sum_ij of the covariances, about s^2 / (h^2 n)."""
    rows, eta, h, steps = np.random.default_rng(0).normal(size=(40, 1)), 0.5, 0.2, 600
    rows = rows - rows.mean(0)
    s2, source = float(np.var(rows)), bx.Arrays(rows, 1)

    def spread(average):
        solver = bx.FixedPoint(steps, eta, average=average)
        end = jax.jit(jax.vmap(lambda key: solver.solve(
            noisy, jnp.ones(1), jnp.asarray(1 - h), source, key=key).value[0]))  # fmt: skip
        return float(np.mean(np.square(end(jax.random.split(KEY, 2000)))))

    stationary, a = eta * s2 / (h * (2 - eta * h)), 1 - eta * h
    lags = a ** np.abs(np.subtract.outer(np.arange(300), np.arange(300)))
    # 2000 squares of normal numbers: a relative error of 3.2 %
    np.testing.assert_allclose(spread(None), stationary, rtol=0.13)
    np.testing.assert_allclose(spread(0.5), stationary * lags.mean(), rtol=0.13)


CURVATURE = np.array([0.05, 1.0, 2.6])


def diagonal(x, args, batch):
    """I - d1T has these eigenvalues: a plain step of 1 expands the last by 1.6."""
    return x - args * jnp.asarray(CURVATURE) * x + jnp.mean(batch, axis=0)


@pytest.mark.parametrize(
    ("solver", "contracts"),
    [
        (bx.FixedPoint(200), False),
        (bx.HeavyBall(200, 1.0, 0.4), True),  # 2.6 < 2 (1 + .4)
        (bx.HeavyBall(200, 1.0, 0.2), False),  # 2.6 > 2 (1 + .2)
        (bx.Nesterov(200, 0.6, 0.2), True),  # .6 * 2.6 = 1.56 < 2.4 / 1.4 = 1.71
        (bx.Nesterov(200, 0.7, 0.2), False),  # 1.82
        (bx.SVRG(200), False),
        (bx.SAGA(200), False),
    ],
    ids=repr,
)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_what_does_not_contract_is_named(solver, contracts, batch_size):
    source = bx.Arrays(RNG.normal(size=(6, 3)), batch_size, "blocks")
    out = solver.solve(diagonal, jnp.zeros(3), jnp.asarray(1.0), source, key=KEY)
    growth = bx.Code.NOT_CONTRACTIVE, bx.Code.DIVERGED
    assert (out.code in growth) != contracts, bx.Code(int(out.code))
    assert np.all(np.isfinite(out.value))


@pytest.mark.parametrize(("rate", "code"), [(0.7, bx.Code.OK), (1.0, bx.Code.DIVERGED)])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_transformation_that_diverges_is_named(rate, code, batch_size):
    source = bx.Arrays(RNG.normal(size=(6, 3)), batch_size)
    solver = bx.Optax(bx.optim("sgd", rate), 200)
    assert solver.solve(diagonal, jnp.zeros(3), jnp.asarray(1.0), source, key=KEY).code == code


def test_fewer_steps_than_needed_are_said_on_every_row():
    """mu / L = 1 / 52: 20 steps of heavy ball at the best momentum leave a share of it, 400 do not."""
    low, high = np.sqrt(CURVATURE[[0, 2]])
    best = 4 / (low + high) ** 2, ((high - low) / (high + low)) ** 2
    source, truth = bx.Arrays(np.ones((6, 3))), 1.0 / CURVATURE
    codes = []
    for steps in (12, 400):
        out = bx.HeavyBall(steps, *best).solve(diagonal, jnp.zeros(3), jnp.asarray(1.0), source, key=KEY)
        codes.append(out.code)
        # the estimated move to the solution is of the size of what is left, or longer
        left = np.linalg.norm(truth - out.value)
        assert np.linalg.norm(out.error.move) >= 0.5 * left or left < 1e-10
    assert codes == [bx.Code.TOLERANCE_NOT_MET, bx.Code.OK]


def test_another_rate_compiles_nothing(compilations):
    adam = [bx.Optax(bx.optim("adam", learning_rate=rate), 3000) for rate in (0.01, 0.01, 0.02)]
    first = quadratic_estimate(adam[0], bx.FixedPoint(300), batch_size=None)
    before = compilations.number
    second, third = (quadratic_estimate(solver, bx.FixedPoint(300), batch_size=None) for solver in adam[1:])
    assert compilations.number == before
    assert np.array_equal(first.value, second.value)
    for est in (first, third):
        np.testing.assert_allclose(est.value, QUADRATIC.hypergradient(QUADRATIC.lam), rtol=1e-4)


def test_nothing_is_known_of_a_short_chain_of_a_transformation():
    """No step size tells how far it is: no OK, though the value may be good. Of a long one every row tells."""
    solver = bx.Optax(bx.optim("sgd", 0.3), 300)
    est = quadratic_estimate(solver, bx.CG(), tol=10.0)
    assert est.code == bx.Code.TOLERANCE_NOT_MET
    assert est.error.upper == np.inf
    long = quadratic_estimate(bx.Optax(bx.optim("sgd", 0.01), 8000), bx.CG(), tol=0.3)
    assert long.code == bx.Code.OK, long.message
    assert np.linalg.norm(long.value - QUADRATIC.hypergradient(QUADRATIC.lam)) < long.error.upper * np.linalg.norm(
        long.value
    )


CONTINUED = [
    bx.HeavyBall(20, 0.02, 0.5),
    bx.SVRG(20, 0.3),
    bx.SAGA(20, 0.3),
    bx.FixedPoint(20, 0.1, average=0.5),
]


@pytest.mark.slow_but("FixedPoint", "SAGA")
@pytest.mark.parametrize("solver", CONTINUED, ids=lambda solver: type(solver).__name__)
def test_a_run_goes_on_to_its_target(solver):
    est = quadratic_estimate(solver, solver, target=0.05, budget=10**6)
    assert est.code == bx.Code.OK, est.message
    truth = QUADRATIC.hypergradient(QUADRATIC.lam)
    assert np.linalg.norm(est.value - truth) < 0.05 * np.linalg.norm(est.value)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: bx.HeavyBall(10, momentum=1.0), "momentum must be less than 1"),
        (lambda: bx.Nesterov(10, momentum=-0.1), r"momentum must lie in \[0, 1\]"),
        (lambda: bx.SVRG(10, period=0), "period must be at least 1"),
        (lambda: bx.FixedPoint(10, average=0.0), r"average must lie in \]0, 1\]"),
        (lambda: bx.Optax("adam", 10), "transformation must be one of optax"),
        (lambda: bx.NormalEquations(step_size=0.0), r"step_size must lie in \]0"),
    ],
)
def test_wrong_settings_are_refused(make, match, refused):
    refused(make, bx.ParameterError, match)


def test_anchors_are_refused_where_a_batch_brings_keys():
    source = bx.Arrays((A, SHIFT), B, keys=True)
    with pytest.raises(bx.ParameterError, match="SVRG reads every row"):
        bx.SVRG(3).solve(image, jnp.zeros(D), jnp.asarray(1.0), source, key=KEY)
