"""The bilevel stochastic gradient method and the driver that runs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.testing.closed_forms import FiniteQuadratic

KEY = jax.random.key(5)
P1 = FiniteQuadratic.random(0)
BETA = 2 / (1 - P1.curvature.q**2)
SCHEDULE = bx.Harmonic(BETA, BETA)


def outer_curvature(p):
    """Hessian of f, constant for P1: B'A^-2 B + r I."""
    root = np.linalg.solve(p.A.mean(0), p.B.mean(0))
    return root.T @ root + p.r * np.eye(p.lam.size)


SMOOTHNESS = np.linalg.eigvalsh(outer_curvature(P1))[-1]


def sid(t, k, J):
    return bx.SID(bx.FixedPoint(t, SCHEDULE), bx.FixedPoint(k, SCHEDULE), cross_batches=J)


def run(algorithm, lam=P1.lam, *, problem=P1.problem, w0=None, steps=12, key=KEY, batch_size=20, **options):
    """A run on P1, with the (w, lam) before the first and after every step."""
    w0 = np.zeros(10) if w0 is None else w0
    seen = [(np.asarray(w0), np.asarray(lam))]

    def note(progress):
        seen.append((np.asarray(progress.w), np.asarray(progress.lam)))

    sources = bx.Arrays(P1.train_data, batch_size), bx.Arrays(P1.val_data)
    options = {"callback": note, "every": 1} | options
    return bx.minimize(problem, algorithm, w0, lam, *sources, steps=steps, key=key, **options), seen


def stationarity(lam, S, *, learning_rate, counts, seeds=2):
    """(1 / S) sum_s |grad f(lam_s)|^2, averaged over seeds."""
    means = []
    for seed in range(seeds):
        algorithm = bx.BSGM(sid(*counts), bx.optim("sgd", learning_rate))
        _, seen = run(algorithm, lam, steps=S, key=jax.random.key(seed))
        means.append(np.mean([np.sum(P1.hypergradient(lam) ** 2) for _, lam in seen[:-1]]))
    return np.mean(means)


HORIZONS = (10, 20, 40, 80, 160)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["far", "optimum"])
def test_stationarity_falls_as_one_over_the_horizon(start):
    """From afar the transient decides, from the optimum the noise of the estimates alone."""
    far = start == "far"
    lam = P1.lam if far else np.linalg.solve(outer_curvature(P1), -P1.hypergradient(np.zeros(5)))
    levels = [stationarity(lam, S, learning_rate=0.5 / SMOOTHNESS, counts=(S, S, S)) for S in HORIZONS]
    slope = np.polyfit(np.log(HORIZONS), np.log(levels), 1)[0]
    assert -1.3 < slope < -0.8, levels


@pytest.mark.slow
def test_counts_that_grow_with_the_outer_step():
    grow = bx.Growing(1.0)
    counts = (grow, grow, grow)
    horizons = HORIZONS[1:-1]
    levels = [stationarity(P1.lam, S, learning_rate=0.5 / SMOOTHNESS, counts=counts) for S in horizons]
    slope = np.polyfit(np.log(horizons), np.log(levels), 1)[0]
    assert -1.3 < slope < -0.8, levels


@pytest.mark.slow
def test_control_a_single_cross_batch_leaves_a_floor():
    lam = np.linalg.solve(outer_curvature(P1), -P1.hypergradient(np.zeros(5)))
    levels = [stationarity(lam, S, learning_rate=0.5 / SMOOTHNESS, counts=(S, S, 1)) for S in HORIZONS]
    assert np.polyfit(np.log(HORIZONS), np.log(levels), 1)[0] > -0.75, levels


def alone(estimator, w0, lam, s):
    """The estimate of step s, from the outside."""
    sources = bx.Arrays(P1.train_data, 20), bx.Arrays(P1.val_data)
    return bx.hypergradient(P1.problem, estimator, w0, lam, *sources, key=jax.random.fold_in(KEY, s), report=False)


BOX = bx.Box(lower=-0.3, upper=np.array([0.1, 0.2, 0.3, 0.4, 0.5]))


def test_every_step_is_the_projected_step_along_the_estimate_from_a_cold_start():
    """Step s uses key fold_in(key, s), starts at w0, moves lam, then projects: replayed from the outside."""
    rate, w0 = 0.5 / SMOOTHNESS, np.linspace(-1.0, 1.0, 10)
    problem = bx.Problem(P1.problem.inner_map, P1.problem.outer_loss, BOX)
    result, seen = run(bx.BSGM(sid(7, 9, 2), bx.optim("sgd", rate)), 5.0 * P1.lam, problem=problem, w0=w0)
    lam, active = np.clip(5.0 * P1.lam, -0.3, BOX.upper), 0
    for s, (w_next, lam_next) in enumerate(seen[1:]):
        est = alone(sid(7, 9, 2), w0, lam, s)
        moved = lam - rate * np.asarray(est.value)
        lam = np.clip(moved, -0.3, BOX.upper)
        active += np.any(moved != lam)
        np.testing.assert_allclose(w_next, est.w, rtol=1e-12)
        np.testing.assert_allclose(lam_next, lam, rtol=1e-12)
        np.testing.assert_allclose(result.history.outer_value[s], est.outer_value, rtol=1e-12)
        np.testing.assert_allclose(result.history.gradient_norm[s], np.linalg.norm(est.value), rtol=1e-12)
    assert active > 3  # the constraint was felt


def test_iterates_stay_in_lambda():
    problem = bx.Problem(P1.problem.inner_map, P1.problem.outer_loss, BOX)
    result, seen = run(bx.BSGM(sid(5, 5, 1), bx.optim("sgd", 10.0 / SMOOTHNESS)), 100.0 * P1.lam, problem=problem)
    for _, lam in seen[1:]:
        assert np.all((lam >= -0.3) & (lam <= BOX.upper))
    assert np.array_equal(result.lam, seen[-1][1])


@pytest.mark.slow
def test_no_warm_start_unless_asked():
    """t = 0 returns the start: w0 at every step, or, warm, where the step before ended."""
    w0 = np.linspace(-1.0, 1.0, 10)
    _, cold = run(bx.BSGM(sid(0, 3, 1), bx.optim("sgd", 0.001)), w0=w0)
    assert all(np.array_equal(w, w0) for w, _ in cold)
    _, cold = run(bx.BSGM(sid(1, 3, 1), bx.optim("sgd", 1e-9)), w0=w0, steps=60, batch_size=None)
    _, warm = run(bx.BSGM(sid(1, 3, 1), bx.optim("sgd", 1e-9), warm_start=True), w0=w0, steps=60, batch_size=None)
    solution = P1.w(P1.lam)
    assert np.linalg.norm(cold[-1][0] - solution) > 0.1
    assert np.linalg.norm(warm[-1][0] - solution) < 1e-5


def test_a_warm_linear_solver_continues():
    """k = 1 on full batches with w solved: the hypergradient is right only if v is carried."""
    estimator = bx.SID(bx.LBFGS(tol=1e-12), bx.FixedPoint(1))
    rows = {"batch_size": None, "steps": 60, "every": 60}
    warm, _ = run(bx.BSGM(estimator, bx.optim("sgd", 1e-12), warm_start=True), **rows)
    cold, _ = run(bx.BSGM(estimator, bx.optim("sgd", 1e-12)), **rows)
    truth = np.linalg.norm(P1.hypergradient(P1.lam))
    assert abs(warm.history.gradient_norm[-1] - truth) < 1e-6 * truth
    assert abs(cold.history.gradient_norm[-1] - truth) > 0.05 * truth


def leaving_its_domain(w, lam, batch):
    """An outer loss that pushes lam upwards and is NaN once an entry of lam exceeds one."""
    return jnp.mean(batch["r"]) * 0.0 + 0.0 * jnp.sum(w) - jnp.sum(lam) + 0.0 * jnp.sum(jnp.sqrt(1.0 - lam))


def test_a_hypergradient_that_is_not_finite_keeps_the_last_finite_lam():
    problem = bx.Problem(P1.problem.inner_map, leaving_its_domain)
    result, seen = run(bx.BSGM(sid(3, 3, 1), bx.optim("sgd", 0.3)), np.zeros(5), problem=problem)
    np.testing.assert_allclose([lam[0] for _, lam in seen], [0.0, 0.3, 0.6, 0.9, 1.2, 1.2])
    np.testing.assert_allclose(result.lam, 1.2)
    assert np.all(np.isfinite(result.w))
    assert result.code == bx.Code.NONFINITE
    assert result.history.code.tolist() == [0, 0, 0, 0, bx.Code.NONFINITE]
    assert not result.interrupted


@pytest.mark.slow
def test_a_diverged_estimate_does_not_move_lam():
    """An inner step above 2 / L: finite, but beyond all meaning."""
    problem = bx.Problem(bx.GradientStep(P1.problem.inner_map.loss, 40.0), P1.problem.outer_loss)
    estimator = bx.SID(bx.FixedPoint(40), bx.FixedPoint(40), cross_batches=1)
    result, _ = run(bx.BSGM(estimator, bx.optim("sgd", 0.01)), problem=problem)
    assert result.code == bx.Code.DIVERGED
    assert len(result.history.code) == 1
    assert np.array_equal(result.lam, P1.lam)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_how_a_run_is_cut_changes_no_bit(warm):
    algorithm = bx.BSGM(sid(bx.Growing(2.0), 9, 2), bx.optim("sgd", 0.005, momentum=0.9), warm_start=warm)
    runs = [run(algorithm, steps=20, every=every, callback=None)[0] for every in (1, 7, 64, None)]
    for other in runs[1:]:
        assert np.array_equal(runs[0].lam, other.lam)
        assert np.array_equal(runs[0].w, other.w)
        for name in ("outer_value", "gradient_norm", "code", "samples"):
            assert np.array_equal(getattr(runs[0].history, name), getattr(other.history, name)), name
        assert runs[0].cost == other.cost
    assert len(runs[0].history.code) == 20


def test_an_interrupted_run_returns_what_was_reached():
    algorithm = bx.BSGM(sid(5, 5, 1), bx.optim("sgd", 0.005))
    whole, seen = run(algorithm, steps=9)

    def stop(progress):
        if progress.step == 6:
            raise KeyboardInterrupt

    result, _ = run(algorithm, steps=9, every=3, callback=stop)
    assert result.interrupted
    assert not whole.interrupted
    assert np.array_equal(result.lam, seen[6][1])
    assert np.array_equal(result.w, seen[6][0])
    assert np.array_equal(result.history.outer_value, whole.history.outer_value[:6])
    assert result.code == bx.Code.OK
    assert result.cost.gradients.calls == 6 * 5


def test_a_callback_that_returns_true_ends_the_run():
    result, _ = run(bx.BSGM(sid(5, 5, 1), bx.optim("sgd", 0.005)), callback=lambda progress: progress.step >= 4)
    assert len(result.history.code) == 4
    assert not result.interrupted


@pytest.mark.slow
def test_visits_count_every_row_that_is_read():
    """t = s + 1 gradients, 9 products and 2 cross products on 20 rows each, and one outer gradient on one row."""
    result, _ = run(bx.BSGM(sid(bx.Growing(1.0), 9, 2), bx.optim("sgd", 0.005)), steps=10)
    each = 20 * (np.arange(1, 11) + 9 + 2) + 1
    assert result.history.samples.tolist() == np.cumsum(each).tolist()
    assert result.cost.samples == each.sum()
    parts = result.cost
    assert [part.evaluations for part in parts] == [20 * 55, 20 * 90, 20 * 20, 10, 0]


@pytest.mark.slow
def test_the_optimisers_state_is_carried():
    """Momentum, against the recursion written out."""
    rate, momentum = 0.002, 0.8
    _, seen = run(bx.BSGM(sid(4, 4, 1), bx.optim("sgd", rate, momentum=momentum)), steps=6)
    lam, trace = P1.lam, np.zeros(5)
    for s in range(6):
        est = alone(sid(4, 4, 1), np.zeros(10), lam, s)
        trace = momentum * trace + np.asarray(est.value)
        lam = lam - rate * trace
        np.testing.assert_allclose(seen[s + 1][1], lam, rtol=1e-12)
