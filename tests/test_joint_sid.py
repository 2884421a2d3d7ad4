"""JointSID: every sequence of minibatches against a loop by hand, its variance against the influence of the rows, and
what its error report says against what many runs show."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bilevax as bx
from bilevax.core.config import canonicalize, config
from bilevax.core.protocols import Draw
from bilevax.testing.closed_forms import FiniteQuadratic, PenalisedRidge
from bilevax.testing.problems import problem
from bilevax.testing.tools import Table

KEY = jax.random.key(3)
RIDGE = 0.05


def logcosh(a):
    return a + jax.nn.softplus(-2.0 * a) - np.log(2.0)


def inner_loss(w, lam, batch):
    data = logcosh(batch["x"] @ w - batch["B"] @ lam + batch["o"])
    return jnp.mean(data + 0.5 * batch["tau"] * jnp.sum(w**2))


def outer_loss(w, lam, batch):
    return jnp.mean(logcosh(batch["z"] @ w + batch["c"] @ lam - batch["y"])) + 0.5 * RIDGE * jnp.sum(lam**2)


class LogCosh:
    """Inner rows logcosh(x'w - B'lam + o) + tau/2 |w|^2, outer rows logcosh(z'w + c'lam - y): all derivatives by hand.

    ``coupling`` scales the B_i, and with them the noise of the cross products.
    """

    def __init__(self, seed, *, n=400, n_val=50, d=5, m=3, low=0.4, tau=0.3, coupling=1.0):
        rng = np.random.default_rng(seed)
        scales = np.linspace(1.0, low, d)
        self.x, self.B = rng.normal(size=(n, d)) * scales, coupling * rng.normal(size=(n, m)) + 0.3
        self.o, self.tau = 0.5 * rng.normal(size=n) + 0.3, tau
        self.z, self.c = rng.normal(size=(n_val, d)) * scales, 0.5 * rng.normal(size=(n_val, m))
        self.y, self.lam = self.z @ rng.normal(size=d) + rng.normal(size=n_val), 0.5 * rng.normal(size=m)
        self.train = {"x": self.x, "B": self.B, "o": self.o, "tau": np.full(n, tau)}
        self.val = {"z": self.z, "c": self.c, "y": self.y}

    def rows(self, w):
        """Per row: gradient in w, curvature a''."""
        a = self.x @ w - self.B @ self.lam + self.o
        return self.x * np.tanh(a)[:, None] + self.tau * w, 1.0 / np.cosh(a) ** 2

    def outer(self, w, rows=slice(None)):
        """grad_1 E and grad_2 E over some rows."""
        slope = np.tanh(self.z[rows] @ w + self.c[rows] @ self.lam - self.y[rows])
        count = np.size(slope)
        return self.z[rows].T @ slope / count, self.c[rows].T @ slope / count + RIDGE * self.lam

    def hessian(self, w):
        _, curvature = self.rows(w)
        return self.x.T @ (curvature[:, None] * self.x) / len(self.x) + self.tau * np.eye(self.x.shape[1])

    @property
    def solution(self):
        w = np.zeros(self.x.shape[1])
        for _ in range(100):
            w = w - np.linalg.solve(self.hessian(w) + np.eye(len(w)), self.rows(w)[0].mean(0))
        for _ in range(20):
            w = w - np.linalg.solve(self.hessian(w), self.rows(w)[0].mean(0))
        return w

    def at(self, w):
        """grad_2 E - C'H^-1 grad_1 E."""
        g, direct = self.outer(w)
        u = np.linalg.solve(self.hessian(w), g)
        _, curvature = self.rows(w)
        return direct + self.B.T @ (curvature * (self.x @ u)) / len(self.x)

    def influence(self):
        """The hypergradient; per row, the part of the cross products and that of w and v, [n, m]."""
        w, eps = self.solution, 1e-5
        H, (g, curvature), (gE, _) = self.hessian(w), self.rows(w), self.outer(w)
        u = np.linalg.solve(H, gE)
        Cu = -self.B * (curvature * (self.x @ u))[:, None]
        C = -(self.x * curvature[:, None]).T @ self.B / len(self.x)
        Hu = self.x * (curvature * (self.x @ u))[:, None] + self.tau * u
        G = np.stack([(self.at(w + eps * e) - self.at(w - eps * e)) / (2 * eps) for e in np.eye(len(w))], axis=1)
        moves = (Hu - Hu.mean(0)) @ np.linalg.solve(H, C) - g @ np.linalg.solve(H, G.T)
        return self.at(w), -(Cu - Cu.mean(0)), moves

    @property
    def step(self):
        return 1.0 / np.linalg.eigvalsh(self.hessian(self.solution))[-1]

    @property
    def problem(self):
        return bx.Problem(bx.GradientStep(inner_loss, self.step), outer_loss)


@config
class Scripted(Table):
    """Rows whose minibatch j is written down, whatever the key; beyond the end it begins again."""

    script: object

    rows_per_batch = 1

    def visit(self, plan, j, use):
        row = self.script[j % self.script.shape[0]][None]
        return use(Draw(jax.tree.map(lambda a: jnp.take(a, row, axis=0), self.data), -1, 1.0))


@jax.jit
def scripted(problem, estimator, w0, v0, lam, train, val, scripts):
    def one(scripts):
        sources = Scripted(train, scripts[0]), bx.Arrays(val) if scripts[1] is None else Scripted(val, scripts[1])
        est = estimator.estimate(bx.Instance(problem, lam, *sources), w0, key=KEY, v0=v0)
        return est.value, est.w, est.v

    return jax.vmap(one)(scripts)


def sequences(n, length):
    return np.array(list(itertools.product(range(n), repeat=length)), np.int32)


def chain(p, alpha, w, v, rows, outer_rows, etas, snapshot):
    """Lists of x_j, w_j, v_j for one sequence of rows; the snapshot is taken at the first step that is kept."""
    out, at = [], None
    for j, (i, eta) in enumerate(zip(rows, etas, strict=True)):
        g, curvature = p.rows(w)
        gE, direct = p.outer(w) if outer_rows is None else p.outer(w, [outer_rows[j]])
        if snapshot and j == len(rows) // 4:
            at = w
        if at is not None:
            (here, direct_here), (every, direct_every) = p.outer(at, [outer_rows[j]]), p.outer(at)
            gE, direct = gE - here + every, direct - direct_here + direct_every
        xv = p.x[i] @ v
        out.append((direct + alpha * p.B[i] * curvature[i] * xv, w, v))
        move = gE - alpha * (p.x[i] * curvature[i] * xv + p.tau * v)
        w, v = w - eta * alpha * g[i], v + eta * move
    return out


def kept_means(series):
    kept = series[len(series) // 4 :]
    return [np.mean([point[i] for point in kept], axis=0) for i in range(3)]


@pytest.mark.slow_but("True-never-True-True")
@pytest.mark.parametrize(
    ("extrapolate", "last_pass", "outer", "snapshot"),
    [
        (True, "never", True, True), (True, "always", False, True), (False, "never", False, False),
        (False, "always", True, False),
    ],
)  # fmt: skip
def test_every_sequence_of_minibatches_gives_what_a_loop_by_hand_gives(extrapolate, last_pass, outer, snapshot):
    """Three steps, of which none is discarded, and five, of which one is; of train, or of train and val."""
    p = LogCosh(11, n=3, n_val=3, d=3, m=2)
    alpha, w0, v0 = 0.7, np.array([0.3, -0.8, 0.6]), np.array([1.0, 0.5, -2.0])
    problem = bx.Problem(bx.GradientStep(inner_loss, alpha), outer_loss)
    for steps in (3, 5):
        every = sequences(3, 2 * steps if outer else steps)
        rows = every[np.linspace(0, len(every) - 1, 729).astype(int)]  # of five steps of both, some
        scripts = (np.resize(rows[:, :steps].T, (5, 729)).T, rows[:, steps:] if outer else None)
        estimator = bx.JointSID(
            steps, bx.Harmonic(2.0, 3.0), extrapolate=extrapolate, last_pass=last_pass, snapshot=snapshot
        )
        start = jnp.asarray(w0), jnp.asarray(v0), jnp.asarray(p.lam)
        found = scripted(canonicalize(problem), canonicalize(estimator), *start, p.train, p.val, scripts)

        etas, wanted = 2.0 / (3.0 + np.arange(steps)), []
        for i, row in enumerate(rows[:, :steps]):
            outer_row = scripts[1][i] if outer else None
            whole = kept_means(chain(p, alpha, w0, v0, row, outer_row, etas, snapshot and outer))
            parted = np.where(np.arange(steps) < steps // 4, etas, etas / 2)
            half = kept_means(chain(p, alpha, w0, v0, row, outer_row, parted, snapshot and outer))
            x, w, v = [2 * b - a for a, b in zip(whole, half, strict=True)] if extrapolate else whole
            if last_pass == "always":
                x = p.outer(w)[1] + alpha * p.B.T @ (p.rows(w)[1] * (p.x @ v)) / 3
            wanted.append((x, w, v))
        for samples, truth in zip(found, zip(*wanted, strict=True), strict=True):
            truth = np.array(truth)
            np.testing.assert_allclose(samples, truth, rtol=0, atol=1e-12 * np.max(np.abs(truth)))


def mean_recursion(p, eta, steps):
    """E of the kept mean of x_j on a finite quadratic: w_j and v_j do not depend on minibatch j."""
    alpha, A, B = p.curvature.alpha, p.A.mean(0), p.B.mean(0)
    w, v, xs = np.zeros(len(A)), np.zeros(len(A)), []
    for _ in range(steps):
        xs.append(p.r * p.lam + alpha * B.T @ v)
        v_next = v + eta * (w - p.target - alpha * A @ v)
        w, v = w - eta * alpha * (A @ w - p.b.mean(0) - B @ p.lam), v_next
    return np.mean(xs[steps // 4 :], axis=0)


def test_on_a_quadratic_the_mean_over_all_sequences_has_no_bias_of_the_order_of_the_step():
    """Jacobians that go together: a minibatch used twice would show."""
    p = FiniteQuadratic.random(3, correlated=True, n=3, d=3, m=2)
    start = jnp.zeros(3), jnp.zeros(3), jnp.asarray(p.lam), p.train_data, p.val_data
    for eta in (0.2, 0.8):
        estimator = bx.JointSID(6, eta, extrapolate=False, last_pass="never")
        out = scripted(canonicalize(p.problem), canonicalize(estimator), *start, (sequences(3, 6), None))
        value, wanted = np.asarray(out[0]), mean_recursion(p, eta, 6)
        np.testing.assert_allclose(value.mean(0), wanted, rtol=0, atol=1e-12 * np.max(np.abs(value)))
        settled = 2 * mean_recursion(p, eta, 2000) - mean_recursion(p, eta, 1000)
        np.testing.assert_allclose(settled, p.hypergradient(p.lam), atol=1e-3)


@partial(jax.jit, static_argnames="runs")
def many(problem, estimator, w0, lam, train, val, runs):
    def one(key):
        est = estimator.estimate(bx.Instance(problem, lam, train, val), w0, key=key)
        return est._replace(w=None, v=None)

    return jax.vmap(one)(jax.random.split(KEY, runs))


def sample(p, estimator, batch_size, runs=100):
    sources = bx.Arrays(p.train, batch_size), bx.Arrays(p.val)
    start = jnp.zeros(p.x.shape[1]), jnp.asarray(p.lam)
    return jax.tree.map(np.asarray, many(canonicalize(p.problem), canonicalize(estimator), *start, *sources, runs))


def square(est, truth):
    return np.mean(np.sum((est.value - truth) ** 2, axis=1))


def variance(influence, samples):
    return np.sum(np.var(influence, axis=0)) / samples


@pytest.mark.slow
@pytest.mark.parametrize("coupling", [0.2, 1.0])
def test_the_variance_is_near_the_least_that_so_many_minibatches_allow(coupling):
    """N MSE / V in [.9, 2.2] (1.33 of it is the discarded quarter), with V from the influence of every row."""
    p, steps, b = LogCosh(0, coupling=coupling), 600, 5
    truth, cross, moves = p.influence()
    est = sample(p, bx.JointSID(steps, last_pass="never"), b)
    ratio = square(est, truth) / variance(cross + moves, steps * b)
    assert 0.9 < ratio < 2.2, ratio
    predicted = np.mean(np.sum(est.error.standard_error**2, axis=1)) / variance(cross + moves, steps * b)
    assert 0.9 < predicted < 2.4, predicted
    assert np.all(est.code == bx.Code.OK)


@pytest.mark.slow
def test_a_last_pass_removes_the_noise_of_the_cross_products_where_that_is_most_of_it():
    p, steps, b = LogCosh(1, coupling=2.0), 600, 5
    truth, cross, moves = p.influence()
    least, without = variance(moves, steps * b), variance(cross + moves, steps * b)
    assert without > 4 * least
    averaged = square(sample(p, bx.JointSID(steps, last_pass="never"), b), truth)
    exact = sample(p, bx.JointSID(steps), b)
    assert averaged > 3 * square(exact, truth)
    assert 0.9 < square(exact, truth) / least < 2.2
    assert 0.9 < np.mean(np.sum(exact.error.standard_error**2, axis=1)) / square(exact, truth) < 4.0
    assert np.all(exact.error.sampling == 0)
    few = sample(p, bx.JointSID(3 * 400 // b), b, runs=10)
    assert np.all(np.isnan(few.error.sampling))


@pytest.mark.slow
def test_a_last_pass_is_not_used_where_it_would_lose():
    """Cross products that follow the scores: their noise cancels that of v."""
    p = LogCosh(2, tau=0.05)
    p.B = 0.6 * p.x @ np.ones((5, 3))
    p.train["B"] = p.B
    _, cross, moves = p.influence()
    assert variance(moves, 1) > 1.5 * variance(cross + moves, 1)
    est = sample(p, bx.JointSID(1000), 5, runs=20)
    assert np.all(np.isnan(est.error.sampling))


@pytest.mark.slow
def test_where_lam_enters_only_the_penalty_the_cross_products_have_no_noise():
    """Then a last pass gains nothing."""
    p = PenalisedRidge.random(0, n=60, d=5)
    start = jnp.zeros((1, 5)), jnp.asarray(p.lam), bx.Arrays(p.train_data, 20), bx.Arrays(p.val_data)

    def error(last_pass):
        estimator = bx.JointSID(600, last_pass=last_pass)
        value = many(canonicalize(p.problem), canonicalize(estimator), *start, 60).value
        return np.mean(np.sum((np.asarray(value) - p.hypergradient(p.lam)) ** 2, axis=1))

    assert 0.8 < error("never") / error("always") < 1.25


def coverage(seeds, batch_size, steps, runs=60):
    """Shares of (problem, run) trusted, and per problem of the coordinates covered where trusted."""
    shapes = np.random.default_rng(batch_size).uniform([0.1, np.log(0.02)], [0.9, np.log(0.3)], (len(seeds), 2))
    ps = [LogCosh(seed, low=low, tau=np.exp(tau)) for seed, (low, tau) in zip(seeds, shapes, strict=True)]
    truth = np.stack([p.at(p.solution) for p in ps])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[(canonicalize(p.problem), p.lam, p.train, p.val) for p in ps])
    estimator = canonicalize(bx.JointSID(steps))

    @jax.jit
    def all_of(stacked):
        def one(arguments):
            problem, lam, train, val = arguments
            return many(problem, estimator, jnp.zeros(5), lam, bx.Arrays(train, batch_size), bx.Arrays(val), runs)

        return jax.vmap(one)(stacked)

    est = jax.tree.map(np.asarray, all_of(stacked))
    t = stats.t.ppf(0.975, est.error.degrees_of_freedom)[..., None]
    covered = np.abs(est.value - truth[:, None]) <= t * est.error.standard_error
    trusted = est.code == bx.Code.OK
    usual = np.mean(trusted, axis=1) > 0.5
    return trusted, covered, usual


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say():
    """40 random problems, 60 runs each."""
    groups = [(range(13), 1, 2400), (range(13, 26), 4, 2400), (range(26, 40), 16, 800)]
    found = [coverage(*group) for group in groups]
    trusted = np.concatenate([trusted for trusted, _, _ in found])
    covered = np.concatenate([covered for _, covered, _ in found])
    usual = np.concatenate([usual for _, _, usual in found])
    shares = np.array([np.mean(c[t]) for c, t in zip(covered[usual], trusted[usual], strict=True)])
    assert np.mean(trusted) > 0.7
    assert 0.92 < covered[trusted].mean() < 0.97
    assert np.min(shares) > 0.85


@pytest.fixture(scope="module")
def short():
    p = LogCosh(0)
    return p, (jnp.zeros(5), jnp.asarray(p.lam), bx.Arrays(p.train, 5), bx.Arrays(p.val, 10))


@pytest.mark.slow
def test_codes_say_what_a_run_did_not_reach(short):
    p, arguments = short

    def code(estimator, tol=0.2):
        est = bx.hypergradient(p.problem, estimator, *arguments, key=KEY, tol=tol)
        return bx.Code(int(est.code)), est

    assert code(bx.JointSID(600))[0] == bx.Code.OK
    assert code(bx.JointSID(600), 1e-6)[0] == bx.Code.TOLERANCE_NOT_MET
    shortest, est = code(bx.JointSID(20), 1e9)
    assert shortest == bx.Code.TOLERANCE_NOT_MET
    assert est.error.contraction**20 > np.exp(-10)
    assert np.all(np.isinf(code(bx.JointSID(1))[1].error.standard_error))
    assert code(bx.JointSID(600, 8.0))[0] == bx.Code.DIVERGED


def expanding(w, lam, batch):
    return 1.1 * w + 0.01 * jnp.mean(batch, axis=0) + lam


def first_weight(w, lam, batch):
    return w[0] + jnp.sum(lam)


def test_a_map_that_expands_is_named():
    """Fifty steps by 1.1 are a factor of 117, and no sign of anything to an average; a thousand overflow nothing."""
    rows = bx.Arrays(np.random.default_rng(0).normal(size=(100, 2)), 2)
    problem = bx.Problem(expanding, first_weight)

    def code(estimator):
        start = jnp.ones(2), jnp.ones(2)
        est = bx.hypergradient(problem, estimator, *start, rows, bx.Arrays(np.zeros((1, 1))), key=KEY)
        return bx.Code(int(est.code)), est.failure.stage

    assert code(bx.JointSID(50)) == (bx.Code.NOT_CONTRACTIVE, 1)
    assert code(bx.JointSID(1000))[0] == bx.Code.DIVERGED


@pytest.mark.slow
def test_the_cost_counts_both_chains_the_pass_and_the_report(short):
    p, arguments = short
    cost = bx.hypergradient(p.problem, bx.JointSID(600, last_pass="always"), *arguments, key=KEY).cost
    moves = int(cost.gradients.calls) - 1280  # to what every row wants, two calls each
    assert 2 <= moves <= 2 * 600 // 10
    wanted = [1200, 1200 + 120, 1200 + 12 * 20]
    assert [int(part.calls) - 80 - moves for part in cost[:3]] == wanted
    assert [int(part.calls) for part in cost[3:]] == [1800 + 15 + moves + 12 * 20, 160]
    assert [part.rows for part in cost] == [5, 5, 5, 10, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 10, "last_pass": "sometimes"}, "last_pass must be one of"),
        ({"steps": 10, "step_size": -1.0}, "step_size must lie in"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(bx.ParameterError, match=message):
        bx.JointSID(**changes)


@pytest.mark.slow
def test_a_snapshot_takes_the_noise_of_val_away():
    """Begun at the solution and with every row of train, val is all the noise; the first quarter has no snapshot."""
    p = problem("logistic-500x20-0.1")
    truth, val = p.solution(), bx.Arrays(p.val, 4)
    w, v, lam = (jnp.asarray(x) for x in (truth.w, truth.v, p.lam))

    def run(snapshot):
        joint = bx.JointSID(steps=2000, last_pass="never", snapshot=snapshot)
        sources = p.sources(None)[0], val
        est = joint.estimate(bx.Instance(p.problem, lam, *sources), w, key=KEY, v0=v)
        return np.linalg.norm(est.value - truth.hypergradient), est.cost.outer_gradients

    (corrected, cost), (noisy, plain) = run(True), run(False)
    assert corrected < 0.2 * noisy  # what remains is v forgetting the noise of the first quarter
    epoch = -(-val.rows // 4)
    assert cost.samples - plain.samples == 4 * epoch
    assert int(cost.calls) - int(plain.calls) == 2000 + epoch
