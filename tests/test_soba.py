"""SOBA against its formula written out in numpy, and against closed forms; and the loop that runs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.data.looks import stream_key
from bilevax.testing.closed_forms import FiniteAffine, FiniteQuadratic

KEY = jax.random.key(5)
N, D, M = 75, 6, 3
P = FiniteQuadratic.random(0, n=N, d=D, m=M)
RHO, RATIO = 0.3 / P.curvature.L, 0.05
W0 = np.linspace(-1.0, 1.0, D)
TARGETS = {"target": np.random.default_rng(1).normal(size=(40, D)), "r": np.linspace(0.05, 0.15, 40)}
SOBA = bx.SOBA(RHO, RATIO)


def sources(sampling="blocks", batch_size=7, val_size=6):
    """Both with noise; in blocks both have short ones."""
    return bx.Arrays(P.train_data, batch_size, sampling), bx.Arrays(TARGETS, val_size, sampling)


def run(algorithm=SOBA, steps=600, *, problem=P.problem, start=(W0, P.lam), data=None, **options):
    return bx.minimize(problem, algorithm, *start, *(data or sources()), steps=steps, key=KEY, **options)


def drawn(source, name, steps):
    """Row numbers of each minibatch of a stream, and its weight."""
    numbers = bx.Arrays(np.arange(source.rows), source.batch_size, source.sampling, seed=None)
    b = source.rows_per_batch

    def note(log, args, j, draw):
        rows = jnp.full(b, -1).at[: draw.batch.shape[0]].set(draw.batch)
        return log[0].at[j].set(rows), log[1].at[j].set(draw.weight)

    log = jnp.zeros((steps, b), int), jnp.zeros(steps)
    log = numbers.fold(note, log, (), key=stream_key(KEY, name), start=0, stop=steps)
    return [(rows[rows >= 0], float(weight)) for rows, weight in zip(*map(np.asarray, log), strict=True)]


def by_hand(steps, data, lam, rho, project):
    """(w, u, lam) after each step of the recursion, on the rows of the streams."""
    train, val = (jax.tree.map(np.asarray, source.all_rows) for source in data)
    inner, outer = (drawn(source, name, steps) for source, name in zip(data, ("train", "val"), strict=True))
    w, u, path = W0, np.zeros(D), []
    for k, ((i, weight), (j, val_weight)) in enumerate(zip(inner, outer, strict=True)):
        A, b, B = (train[name][i].mean(0) for name in "AbB")
        target, r = val["target"][j].mean(0), val["r"][j].mean()
        d_w = -weight * (A @ w - b - B @ lam)
        d_u = val_weight * (w - target) - weight * A @ u
        d_lam = val_weight * r * lam + weight * B.T @ u  # the cross derivative of the inner loss is -B
        w, u, lam = w + rho(k) * d_w, u + rho(k) * d_u, project(lam - RATIO * rho(k) * d_lam)
        path.append((w, u, lam))
    return path


@pytest.mark.slow_but("blocks")
@pytest.mark.parametrize("sampling", ["blocks", "iid", "shuffled"])
def test_its_steps_are_those_of_the_formula_on_the_same_rows(sampling):
    """With a schedule, a box that is felt, and in blocks with short ones of both sources."""
    data, seen = sources(sampling), []
    problem = bx.Problem(P.problem.inner_map, P.problem.outer_loss, bx.Box(-0.1, 0.3))
    path = by_hand(40, data, np.clip(P.lam, -0.1, 0.3), lambda k: RHO / np.sqrt(k + 1), lambda x: np.clip(x, -0.1, 0.3))
    run(bx.SOBA(bx.Polynomial(RHO, 0.5), RATIO), 40, problem=problem, data=data, every=1,
        callback=lambda progress: seen.append((progress.w, progress.lam)))  # fmt: skip
    for (w, _, lam), found in zip(path, seen, strict=True):
        np.testing.assert_allclose(found[0], w, rtol=1e-11)
        np.testing.assert_allclose(found[1], lam, rtol=1e-11, atol=1e-14)
    at_bound = [np.any((lam == -0.1) | (lam == 0.3)) for _, _, lam in path]
    assert any(at_bound)
    weights = [np.ptp([weight for _, weight in drawn(source, "train", 40)]) for source in data]
    assert (min(weights) > 0) == (sampling == "blocks")


def minimiser(p):
    """Where f is least: B'A^-2 B + r I is its Hessian."""
    root = np.linalg.solve(p.A.mean(0), p.B.mean(0))
    return np.linalg.solve(root.T @ root + p.r * np.eye(p.lam.size), -p.hypergradient(np.zeros(p.lam.size)))


def test_on_every_row_it_converges_to_the_closed_form():
    data = bx.Arrays(P.train_data), bx.Arrays(P.val_data)
    result = run(steps=20_000, data=data)
    best = minimiser(P)
    np.testing.assert_allclose(result.lam, best, atol=1e-10)
    np.testing.assert_allclose(result.w, P.w(best), atol=1e-10)
    np.testing.assert_allclose(result.history.outer_value[-1], P.value(best), rtol=1e-10)


def test_of_a_map_that_is_no_gradient_step_it_finds_the_same():
    """d1Phi is not symmetric: its transpose is taken. Steps are in map form."""
    p = FiniteAffine.random(1, n=20, d=D, m=M, r=1.0)
    data = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    algorithm = bx.SOBA(0.5, 0.02 / np.linalg.norm(p.B.mean(0), 2))
    result = run(algorithm, 40_000, problem=p.problem, data=data, start=(np.zeros(D), p.lam))
    assert np.linalg.norm(p.hypergradient(np.asarray(result.lam))) < 1e-10 * np.linalg.norm(p.hypergradient(p.lam))
    np.testing.assert_allclose(result.w, p.w(np.asarray(result.lam)), atol=1e-10)


def test_the_step_of_the_inner_map_changes_no_bit():
    """Nor is it measured."""
    problems = [bx.Problem(bx.GradientStep(P.problem.inner_map.loss, s), P.problem.outer_loss) for s in (0.1, 0.05)]
    problems.append(bx.Problem(bx.GradientStep(P.problem.inner_map.loss), P.problem.outer_loss))
    first, *others = [run(steps=30, problem=problem) for problem in problems]
    for other in others:
        assert np.array_equal(first.lam, other.lam)
        assert np.array_equal(first.w, other.w)
        assert other.cost.measuring.calls == 0


def step_of_the_loss(w, lam, batch):
    """As a map of which no loss is known: the gradient step with s = .2."""
    return w - 0.2 * jax.grad(P.problem.inner_map.loss)(w, lam, batch)


def test_in_map_form_a_gradient_step_has_its_size_in_the_steps():
    """w moves by eta s, u = s v too, and lam by ratio eta."""
    as_map = bx.Problem(step_of_the_loss, P.problem.outer_loss)
    there, here = run(steps=50), run(bx.SOBA(RHO / 0.2, 0.2 * RATIO), 50, problem=as_map)
    np.testing.assert_allclose(there.lam, here.lam, rtol=1e-11)
    np.testing.assert_allclose(there.w, here.w, rtol=1e-11)


def test_damping_is_in_units_of_the_inner_step():
    """u solves (H + delta / s) u = grad_1 E, w is as before."""
    problem = bx.Problem(bx.GradientStep(P.problem.inner_map.loss, 0.1), P.problem.outer_loss, damping=0.05)
    data = bx.Arrays(P.train_data), bx.Arrays(P.val_data)
    algorithm = bx.SOBA(RHO, 1e-13)

    def step(state, args, k, looks):
        return algorithm.step(problem, state, looks, k)[0]

    state = algorithm.init(problem, jnp.asarray(W0), jnp.asarray(P.lam), data)
    state = bx.fold_looks(algorithm.streams(data), step, state, (), key=KEY, start=0, stop=2000)
    w = P.w(P.lam)
    np.testing.assert_allclose(state.w, w, rtol=1e-9)
    np.testing.assert_allclose(state.u, np.linalg.solve(P.A.mean(0) + 0.5 * np.eye(D), w - P.target), rtol=1e-9)


def test_a_damping_without_an_inner_step_is_refused(refused):
    problem, data = bx.Problem(bx.GradientStep(P.problem.inner_map.loss), P.problem.outer_loss, damping=0.1), sources()
    refused(lambda: run(problem=problem, data=data), bx.ParameterError, "damping is in units of the inner step")


@pytest.mark.parametrize(("arguments", "message"), [((-1.0,), "lie in"), ((0.1, 0.0), "ratio must lie in"),
                                                    (("fast",), "step_size must be a number")])  # fmt: skip
def test_wrong_steps_are_refused(refused, arguments, message):
    refused(lambda: bx.SOBA(*arguments), bx.ParameterError, message)


# ---- the loop


def test_how_a_run_is_cut_changes_no_bit():
    whole = run()
    for every in (7, 256, 1000):
        other = run(every=every)
        for name in ("lam", "w", "code", "cost"):
            assert np.array_equal(jax.tree.leaves(getattr(whole, name)), jax.tree.leaves(getattr(other, name))), name
        ends = sorted({*range(every, 600, every), 256, 512, 600})
        assert other.history.step.tolist() == ends
    assert whole.history.step.tolist() == [256, 512, 600]


def test_the_history_of_a_stretch():
    """The norm of its mean direction, E at its end on the last minibatch, the rows that were read."""
    data, points = sources(), [(W0, P.lam)]
    result = run(every=100, steps=300, data=data, callback=lambda p: points.append((p.w, p.lam)))
    ends = [0, *result.history.step]
    assert ends == [0, 100, 200, 256, 300]
    at = dict(zip((0, 100, 200, 300), points, strict=True))
    val, minibatches = jax.tree.map(np.asarray, data[1].all_rows), drawn(data[1], "val", 300)
    for first, end in ((0, 100), (100, 200)):
        i = ends.index(end) - 1
        way = np.linalg.norm(np.asarray(at[end][1]) - np.asarray(at[first][1]))
        np.testing.assert_allclose(result.history.gradient_norm[i], way / (RATIO * RHO * (end - first)), rtol=1e-12)
        rows, (w, lam) = minibatches[end - 1][0], map(np.asarray, at[end])
        value = np.mean(0.5 * np.sum((w - val["target"][rows]) ** 2, 1) + 0.5 * val["r"][rows] * np.sum(lam**2))
        np.testing.assert_allclose(result.history.outer_value[i], value, rtol=1e-12)
    assert result.history.samples.tolist() == [13 * end for end in ends[1:]]  # 7 rows of train, 6 of val a step
    assert [part.calls for part in result.cost] == [300, 300, 300, 300, 0]
    assert result.cost.samples == 13 * 300


def test_a_users_own_loop_is_that_of_minimize():
    data = sources()

    @jax.jit
    def loop(problem, algorithm, data):
        def step(state, args, k, looks):
            return args[1].step(args[0], state, looks, k)[0]

        state = algorithm.init(problem, jnp.asarray(W0), jnp.asarray(P.lam), data)
        streams, args = algorithm.streams(data), (problem, algorithm)
        return bx.fold_looks(streams, step, state, args, key=KEY, start=0, stop=300)

    w, lam = SOBA.solution(loop(P.problem, SOBA, data))
    result = run(steps=300, data=data)
    np.testing.assert_allclose(lam, result.lam, rtol=1e-12)
    np.testing.assert_allclose(w, result.w, rtol=1e-12)


def leaving_its_domain(w, lam, batch):
    """Pushes lam upwards by one a unit of step, and is NaN once it exceeds one."""
    return 0.0 * (jnp.mean(batch["r"]) + jnp.sum(w)) - jnp.sum(lam) + 0.0 * jnp.sum(jnp.sqrt(1.0 - lam))


def test_a_stretch_that_became_nan_is_undone():
    """lam is about .002 k: NaN appears in step 500 or so, of the second stretch."""
    problem = bx.Problem(P.problem.inner_map, leaving_its_domain)
    algorithm, start = bx.SOBA(RHO, 0.002 / RHO), (W0, np.zeros(M))
    result = run(algorithm, 2000, problem=problem, start=start)
    before = run(algorithm, 256, problem=problem, start=start)
    np.testing.assert_allclose(result.lam, 0.512, rtol=1e-3)
    assert np.array_equal(result.lam, before.lam)
    assert np.array_equal(result.w, before.w)
    assert result.history.code.tolist() == [bx.Code.OK, bx.Code.NONFINITE]
    assert result.code == bx.Code.NONFINITE
    assert result.message.startswith("NONFINITE of outer steps 256 to 511. ")
    assert "stopped there, with the w and lam before it" in result.message
    assert not result.interrupted


def test_a_run_that_diverges_ends_and_says_so():
    """With an outer step that is too long lam grows by a constant factor a step; here to no more than 1e12."""
    data = bx.Arrays(P.train_data), bx.Arrays(P.val_data)
    result = run(bx.SOBA(RHO, 0.4), 40_000, data=data)
    assert result.code == result.history.code[-1] == bx.Code.DIVERGED
    assert np.max(np.abs(result.lam)) < 1e12
    assert len(result.history.step) < 100
    assert "DIVERGED of outer steps" in result.message


def test_an_interrupted_run_returns_what_was_reached():
    seen = []

    def stop(progress):
        seen.append(progress)
        if progress.step == 300:
            raise KeyboardInterrupt

    result = run(every=100, callback=stop)
    assert result.interrupted
    assert [progress.step for progress in seen] == [100, 200, 300]
    assert np.array_equal(result.lam, seen[-1].lam)
    assert result.history.step.tolist() == [100, 200, 256, 300]
    assert seen[0].history.step.tolist() == [100]  # as it was then
    assert result.cost.gradients.calls == 300
    again = run(every=100, callback=lambda progress: progress.step >= 200)
    assert np.array_equal(again.lam, seen[1].lam)
    assert not again.interrupted


def test_a_long_history_has_every_entry_where_it_belongs():
    result = run(steps=300, every=1)
    assert result.history.step.tolist() == list(range(1, 301))
    assert result.history.samples.tolist() == list(range(13, 13 * 301, 13))
