"""The planner: what it spends, what it chooses, and whether its errors come true. The truth is that of the problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevax as bx
from bilevax.core.config import canonicalize, replace_unchecked
from bilevax.core.records import Cost, Estimate, Failure
from bilevax.core.trees import norm, scale, sub
from bilevax.planning import pilot
from bilevax.testing.problems import problem

SEEDS = 8


class Case:
    def __init__(self, name):
        p = problem(name)
        self.truth = jax.tree.map(jnp.asarray, p.solution().hypergradient)
        self.args = p.problem, p.w0, p.lam, *p.sources()
        self.rows = self.args[3].rows

    def plan(self, seed=0, **goal):
        return bx.plan(*self.args, key=jax.random.key(seed), **goal)

    def error(self, est):
        return float(norm(sub(est.value, self.truth)) / norm(self.truth))


CASES = {name: Case(name) for name in ("quadratic-10-b1", "logistic-500x20-0.1", "ridge")}


@pytest.mark.slow_but("80-quadratic-10-b1")
@pytest.mark.parametrize(
    ("passes", "name"),
    [
        (5, "ridge"),
        (80, "quadratic-10-b1"),
        *(
            pytest.param(passes, name, marks=pytest.mark.slow)
            for passes, name in [
                (5, "quadratic-10-b1"), (5, "logistic-500x20-0.1"), (80, "logistic-500x20-0.1"), (80, "ridge"),
            ]
        ),
    ],
)  # fmt: skip
def test_few_rows_are_not_tried_but_sampled_or_solved_within_the_budget(name, passes):
    case = CASES[name]
    budget = passes * case.rows
    plans = [case.plan(seed, budget=budget) for seed in range(SEEDS)]
    runs = [p.run(key=jax.random.key(100 + seed)) for seed, p in enumerate(plans)]
    for p, est in zip(plans, runs, strict=True):
        assert p.spent + est.cost.samples <= 1.05 * budget
        assert p.spent + est.cost.samples > 0.9 * budget or case.error(est) < 1e-10  # more would gain nothing
        assert p.spent <= 0.35 * budget
        assert p.predicted == p.alternatives[p.method]
        assert "no trial" in p.notes[0]
        assert p.estimate is est
    measured = np.sqrt(np.mean([case.error(est) ** 2 for est in runs]))
    predicted = np.median([p.predicted for p in plans])
    assert {p.method for p in plans} == {"AID-CG" if passes == 80 else "SID"}
    assert measured < 2 * predicted
    if passes == 80:
        assert measured < 1e-10
        assert {int(est.code) for est in runs} == {bx.Code.OK}


def test_a_deterministic_method_that_was_not_tried_is_run_once_and_foretells_its_own_error():
    """In float32 and in so few passes that it is far from done; the truth is the family's."""
    factors = []
    for name in ("gamma", "correlated", "row-shares", "same-rows"):
        p = problem(name, 5)
        args = p.problem, p.w0, p.lam, *p.sources()
        plan = bx.plan(*args, key=jax.random.key(0), budget=20 * args[3].rows)
        est = plan.run(key=jax.random.key(1))
        assert plan.method == "AID-CG"
        assert plan.estimate is est is plan.run(key=jax.random.key(2))
        assert plan.spent + est.cost.samples <= 1.05 * 20 * args[3].rows
        # what was run is what the plan says
        again = bx.hypergradient(plan.problem, plan.estimator, plan.w0, *args[2:3], plan.train, plan.val,
                                 key=jax.random.key(3))  # fmt: skip
        np.testing.assert_allclose(ravel_pytree(again.value)[0], ravel_pytree(est.value)[0], rtol=1e-5)
        truth = jax.tree.map(jnp.asarray, p.solution().hypergradient)
        factors.append(plan.predicted / float(norm(sub(est.value, truth)) / norm(truth)))
    assert min(factors) > 1 / 3
    assert np.median(factors) < 3


def drawn(name, number):
    """A problem of a family as users hand it in, and the relative error of an estimate."""
    p = problem(name, number)
    truth = jax.tree.map(jnp.asarray, p.solution().hypergradient)
    return (p.unmeasured, p.w0, p.lam, *p.sources()), lambda est: float(norm(sub(est.value, truth)) / norm(truth))


def test_sid_foretells_what_its_report_says_where_that_is_less_than_what_is_typical():
    """Its errors there are a fourth of that."""
    for name, number in (("factors", 2), ("softmax", 11)):
        args, error = drawn(name, number)
        plans = [bx.plan(*args, key=jax.random.key(seed), budget=5 * args[3].rows) for seed in range(6)]
        assert {p.method for p in plans} == {"SID"}
        predicted = np.median([p.predicted for p in plans])
        rms = np.mean([error(p.run(key=jax.random.key(9))) ** 2 for p in plans]) ** 0.5
        assert rms < 0.25
        assert 1 / 3 < predicted / rms < 3
    # and no more than that, however cautious the report
    args, _ = drawn("heavy-rows", 2)
    p = bx.plan(*args, key=jax.random.key(0), budget=5 * args[3].rows)
    assert p.estimate.error.relative > 3
    assert p.predicted == 0.7


def test_noise_longer_than_the_value_is_shrunk():
    """A weight for each row, most of which are seen once or never: 0 is nearer to the truth than what SID says."""
    args, error = drawn("row-weights", 1)
    noises, errors = [], []
    for seed in range(6):
        key = jax.random.key(seed)
        p = bx.plan(*args, key=key, budget=5 * args[3].rows)
        again = p.problem, p.estimator, p.w0, p.lam, p.train, p.val
        plain = bx.hypergradient(*again, key=jax.random.fold_in(key, 0))
        noise = float(norm(plain.error.standard_error) / norm(plain.value))
        shorter = scale(min(1.0, noise**-2), plain.value)
        assert float(norm(sub(p.estimate.value, shorter))) < 1e-6 * float(norm(shorter))
        noises.append(noise)
        errors.append((error(p.estimate), error(plain)))
    assert np.median(noises) > 1
    shrunk, plain = np.mean(np.square(errors), axis=0)
    assert shrunk < 0.9 * plain


@pytest.mark.parametrize("r", [0.9, 2.0, np.inf])
def test_a_value_with_more_noise_than_length_is_divided_by_its_square(r):
    numbers = map(jnp.asarray, (50.0, 0.0, 0.0, 0.1, 0.9))
    report = bx.ErrorReport(jnp.array([3.0, -4.0]), r * jnp.array([4.0, 3.0]), jnp.array([6.0, 8.0]), *numbers)
    one, none = jnp.ones(()), jnp.zeros(2)
    est = Estimate(report.value, one, none, none, jnp.int32(bx.Code.MAX_STEPS), Cost(), Failure.of("none"), report)
    s = 0.25 if r == 2.0 else 1.0
    after = pilot.shrunk(est)
    np.testing.assert_allclose(after.value, [3 * s, -4 * s])
    np.testing.assert_allclose(after.error.value, after.value)
    np.testing.assert_allclose(after.error.standard_error, s * report.standard_error)
    # |s y - x| <= s |y - x| + (1 - s) |y|
    np.testing.assert_allclose(after.error.bias, [6 * s + 3 * (1 - s), 8 * s + 4 * (1 - s)])


def test_a_target_is_not_promised_by_a_run_that_is_not_ok():
    case = CASES["ridge"]
    p = case.plan(target=1e-3)
    est = p.run(key=jax.random.key(1))
    assert p.estimate is est
    assert int(est.code) == bx.Code.OK
    assert case.error(est) <= 1e-3


def test_a_deterministic_plan_for_a_target_has_been_run_and_is_ok():
    """Rows enough for a trial: a run that ends before its solvers' tolerances is no promise, though the trial was."""
    rng = np.random.default_rng(4000)
    n, d = 4000, 8
    X = rng.normal(size=(2 * n, d)) * np.logspace(0, -0.7, d)
    y, lam = X @ rng.normal(size=d) + rng.normal(size=2 * n), np.full(d, -3.0)
    (A, B), (a, b) = np.split(X, 2), np.split(y, 2)
    H = A.T @ A / n + np.diag(np.exp(lam))
    w = np.linalg.solve(H, A.T @ a / n)
    exact = -np.exp(lam) * w * np.linalg.solve(H, B.T @ (B @ w - b) / n)

    def outer(w, lam, batch):
        return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)

    def inner(w, lam, batch):
        return outer(w, lam, batch) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    sources = [bx.Arrays((X.astype(np.float32), y.astype(np.float32))) for X, y in ((A, a), (B, b))]
    args = bx.Problem(bx.GradientStep(inner), outer), jnp.zeros(d, np.float32), lam.astype(np.float32), *sources
    for seed, target in ((0, 0.01), (1, 0.001)):
        plan = bx.plan(*args, key=jax.random.key(seed), target=target)
        est = plan.run(key=jax.random.key(9))
        assert plan.method == "AID-CG"
        assert plan.estimate is est
        assert int(est.code) == bx.Code.OK
        assert np.linalg.norm(np.asarray(est.value) - exact) < target * np.linalg.norm(exact)
    # what float32 cannot show is not promised, and not said to be 0
    plan = bx.plan(*args, key=jax.random.key(0), target=1e-9)
    assert "not promised" in plan.notes[0]
    assert plan.predicted > 1e-7
    assert plan.verify(key=jax.random.key(1)).measured > 1e-7


@pytest.mark.parametrize("n", [300, 6000])
def test_a_map_that_expands_is_planned_for_and_found_out_at_once(n):
    rows = bx.Arrays(np.random.default_rng(0).normal(size=(n, 4)))
    problem = bx.Problem(
        lambda w, lam, b: 1.2 * w + lam + jnp.mean(b, 0), lambda w, lam, b: jnp.mean((w[None] - b) ** 2)
    )
    for goal in ({"budget": 40.0 * n}, {"target": 0.1}):
        plan = bx.plan(problem, jnp.zeros(4), jnp.ones(4), rows, rows, key=jax.random.key(0), **goal)
        assert np.isinf(plan.predicted)
        assert plan.spent < 40 * n
        assert int(plan.run(key=jax.random.key(1)).code) >= bx.Code.NOT_CONTRACTIVE


def test_a_run_that_fails_is_made_once_more_and_not_looked_into():
    """A test whether the map contracts would read as much as five such runs."""
    rows = bx.Arrays(np.random.default_rng(0).normal(size=(300, 4)))
    problem = bx.Problem(
        lambda w, lam, b: 1.2 * w + lam + jnp.mean(b, 0), lambda w, lam, b: jnp.mean((w[None] - b) ** 2)
    )
    plan = bx.plan(problem, jnp.zeros(4), jnp.ones(4), rows, rows, key=jax.random.key(0), budget=5 * 300)
    est = plan.run(key=jax.random.key(1))
    assert plan.method == "SID"
    assert int(est.code) >= bx.Code.NOT_CONTRACTIVE
    assert np.isinf(plan.predicted)
    assert 1.5 * 5 * 300 < plan.spent + est.cost.samples < 2.05 * 5 * 300


def many_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(25_000, 20)) * np.linspace(1.0, 0.3, 20)
    y = (rng.uniform(size=25_000) < 1 / (1 + np.exp(-X @ rng.normal(size=20)))).astype(float)
    loss = bx.BinaryLogistic("feature")
    args = bx.Problem(bx.GradientStep(loss), bx.BinaryLogistic()), np.zeros((1, 20)), np.log(np.full(20, 1e-2))
    return *args, bx.Arrays((X[:20_000], y[:20_000]), 100), bx.Arrays((X[20_000:], y[20_000:]))


@pytest.mark.slow
def test_few_passes_over_many_rows_are_sampled_and_the_error_is_as_predicted():
    args = many_rows()
    exact = bx.hypergradient(
        args[0], bx.SID(bx.LBFGS(1e-12), bx.CG(1e-12)), *args[1:3], *(bx.Arrays(s.data) for s in args[3:]),
        key=jax.random.key(0),
    ).value  # fmt: skip
    errors, predicted = [], []
    for seed in range(4):
        p = bx.plan(*args, key=jax.random.key(seed), budget=100_000)
        est = p.run(key=jax.random.key(10 + seed))
        assert p.method == "JointSID"
        assert p.train.rows_per_batch < 100
        assert p.spent + est.cost.samples <= 1.05 * 100_000
        errors.append(float(norm(sub(est.value, exact)) / norm(exact)))
        predicted.append(p.predicted)
    assert 1 / 3 < np.median(predicted) / np.sqrt(np.mean(np.square(errors))) < 3
    assert max(errors) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.2, 1e-6])
def test_a_target_is_met(target):
    case = CASES["ridge"]
    p = case.plan(target=target)
    est = p.run(key=jax.random.key(1))
    assert p.predicted <= target
    assert case.error(est) <= 2 * target
    assert int(est.code) == bx.Code.OK
    assert not any("was not promised" in note for note in p.notes)
    assert (p.method == "AID-CG") or target > 0.01


@pytest.mark.slow
def test_a_target_that_no_budget_promises_is_flagged():
    p = CASES["quadratic-10-b1"].plan(target=1e-18)
    assert len(p.notes) == 1
    assert "1e-18" in str(p)
    assert int(p.run(key=jax.random.key(1)).code) == bx.Code.TOLERANCE_NOT_MET


@pytest.mark.slow
def test_a_map_without_a_loss_is_solved_by_fixed_point_steps():
    case = Case("equilibrium")
    p = case.plan(budget=80 * case.rows)
    est = p.run(key=jax.random.key(1))
    assert p.method == "AID-FP"
    assert p.spent + est.cost.samples <= 1.05 * 80 * case.rows
    assert case.error(est) < 1e-3


@pytest.mark.slow
def test_a_plan_prints_and_verifies_itself():
    case = CASES["logistic-500x20-0.1"]
    for passes in (5, 20):
        p = case.plan(budget=passes * case.rows)
        told = str(p)
        assert told.startswith(p.method)
        assert all(name in told for name in p.alternatives)
        verified = p.verify(key=jax.random.key(2))
        assert verified.predicted == p.predicted
        actual = case.error(p.run(key=jax.random.key(3)))
        assert actual / 5 < verified.measured < 5 * actual


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({}, "exactly one"),
        ({"budget": 1e4, "target": 0.1}, "exactly one"),
        ({"budget": 0}, "budget must lie in"),
        ({"target": -1.0}, "target must lie in"),
        ({"budget": 100}, "leaves no run"),
    ],
)
def test_wrong_goals_are_refused(goal, message):
    with pytest.raises(bx.ParameterError, match=message):
        CASES["ridge"].plan(**goal)


@pytest.mark.parametrize(("entries", "passes", "counts"), [(4, 18.3, (11, 4)), (50, 18.3, (9, 6)), (4, 80, (66, 8))])
def test_conjugate_gradients_have_as_many_iterations_as_there_are_entries_and_lbfgs_the_rest(entries, passes, counts):
    train, val = (bx.Arrays({"x": np.ones((n, entries)), "y": np.ones(n)}, 8) for n in (256, 128))

    def loss(w, lam, batch):
        return jnp.mean((batch["x"] @ w - batch["y"]) ** 2) + lam * jnp.sum(w**2)

    found = pilot.deterministic_for(
        bx.Problem(bx.GradientStep(loss), loss), jnp.zeros(entries), passes * 256.0, (train, val)
    ).estimator
    assert (found.inner.max_steps, found.linear.max_steps) == counts


def test_a_trial_says_what_a_method_leaves_on_the_rows_it_was_tried_on():
    """Against the hypergradient of these rows from the normal equations."""
    rng = np.random.default_rng(0)
    d, rows = 6, [rng.normal(size=(n, 6)) * np.geomspace(1.0, 0.2, 6) for n in (64, 32)]
    targets = [x @ np.ones(d) + rng.normal(size=len(x)) for x in rows]

    def outer(w, lam, batch):
        return 0.5 * jnp.mean((batch["x"] @ w - batch["y"]) ** 2)

    def inner(w, lam, batch):
        return outer(w, lam, batch) + 0.5 * jnp.exp(lam) * jnp.sum(w**2)

    (X, Z), (y, z) = rows, targets
    H = X.T @ X / 64 + 0.1 * np.eye(d)
    w = np.linalg.solve(H, X.T @ y / 64)
    exact = -0.1 * w @ np.linalg.solve(H, Z.T @ (Z @ w - z) / 32)
    sources = tuple(bx.Arrays({"x": x, "y": t}, 8) for x, t in zip(rows, targets, strict=True))
    problem = canonicalize(bx.Problem(bx.GradientStep(inner, 1.0), outer))
    start, lam, key = pilot.Start(jnp.zeros(d), None), jnp.log(jnp.asarray(0.1)), jax.random.key(0)

    def option(steps):
        return pilot.Option("AID-CG", problem, bx.SID(bx.LBFGS(1e-12, steps), bx.CG(1e-12, steps)), sources)

    for steps in (2, 4):
        solvers = canonicalize(option(steps).estimator)
        whole = [bx.Arrays(s.data) for s in sources]
        after = bx.hypergradient(problem, solvers, start.w, lam, *whole, key=key, report=False).value
        trial = pilot.tried(option(steps), option(40), start, lam, sources, key=key)
        assert trial.left == pytest.approx(abs(float(after) - exact) / abs(exact), rel=1e-3)
        assert float(trial.value) == pytest.approx(exact, rel=1e-6)


def test_a_trial_is_on_rows_drawn_without_replacement_and_on_none_where_it_is_too_dear():
    data = {"x": np.arange(3200.0)}
    sources = bx.Arrays(data, 16), bx.Arrays(data, 4)
    some = pilot.subsampled(sources, jax.random.key(0))
    assert [(s.rows, s.batch_size) for s in some] == [(100, 16), (100, 4)]
    rows = np.asarray(some[0].data["x"])
    assert len(set(rows)) == 100
    assert set(rows) <= set(data["x"])
    assert set(rows) != set(np.asarray(pilot.subsampled(sources, jax.random.key(1))[0].data["x"]))
    assert pilot.trial_samples(3200, 10.0) == 100 * 34
    assert pilot.trial_samples(1e6, 100.0) == 256 * 150


@pytest.mark.slow
def test_full_batches_that_cost_less_are_chosen_sooner():
    case = CASES["logistic-500x20-0.1"]
    dear, cheap = (case.plan(budget=5 * case.rows, full_batch_price=price) for price in (1.0, 0.1))
    assert (dear.method, cheap.method) == ("SID", "AID-CG")
    assert cheap.spent + 0.1 * cheap.run(key=jax.random.key(1)).cost.samples <= 1.05 * 5 * case.rows
    with pytest.raises(bx.ParameterError, match="full_batch_price must lie in"):
        case.plan(budget=1e4, full_batch_price=0.0)


@pytest.mark.slow
def test_a_planned_sid_goes_by_its_error_report_and_says_so():
    case = CASES["logistic-500x20-0.1"]
    p = case.plan(budget=5 * case.rows)
    assert p.method == "SID"
    assert p.val.is_full_batch
    for goal, code in ((10 * p.predicted, bx.Code.OK), (p.predicted / 20, bx.Code.TOLERANCE_NOT_MET)):
        assert int(replace_unchecked(p, goal=goal, estimate=None).run(key=jax.random.key(1)).code) == code
    verified = p.verify(key=jax.random.key(2), replicas=8)
    assert case.error(p.run(key=jax.random.key(3))) / 4 < verified.measured < p.predicted


@pytest.mark.parametrize("passes", [10, 40])
def test_a_step_that_is_to_be_measured_leaves_room_for_a_run(passes):
    args = problem("logistic-500x20-0.1")
    measured = replace_unchecked(args.problem, inner_map=replace_unchecked(args.problem.inner_map, step_size=None))
    budget = passes * args.sources()[0].rows
    p = bx.plan(measured, args.w0, args.lam, *args.sources(), key=jax.random.key(0), budget=budget)
    assert p.spent <= 0.3 * budget
    assert p.problem.inner_map.step_size is not None
