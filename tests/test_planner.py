"""The planner: what it spends, what it chooses, and whether its errors come true. The truth is that of the problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.trees import norm, sub
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
def test_plan_and_run_stay_within_the_budget_and_the_error_is_as_predicted(name, passes):
    case = CASES[name]
    budget = passes * case.rows
    plans = [case.plan(seed, budget=budget) for seed in range(SEEDS)]
    runs = [p.run(key=jax.random.key(100 + seed)) for seed, p in enumerate(plans)]
    for p, est in zip(plans, runs, strict=True):
        assert p.spent + est.cost.visits <= 1.05 * budget
        assert p.spent + est.cost.visits > 0.5 * budget or case.error(est) < 1e-10  # more would gain nothing
        assert 0 < p.spent <= 0.35 * budget
        assert p.predicted == p.alternatives[p.method]
    measured = np.sqrt(np.mean([case.error(est) ** 2 for est in runs]))
    predicted = np.median([p.predicted for p in plans])
    if passes == 80:
        assert {p.method for p in plans} == {"AID-CG"}
        assert measured < 1e-10 > predicted
        assert {int(est.code) for est in runs} == {bx.Code.OK}
    else:
        assert {p.method for p in plans} == {"JointSID" if name == "quadratic-10-b1" else "SID"}
        assert predicted / 4 < measured < 4 * predicted


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
        p = bx.plan(*args, key=jax.random.key(seed), budget=60_000)
        est = p.run(key=jax.random.key(10 + seed))
        assert p.method == "JointSID"
        assert p.train.rows_per_batch < 100
        assert p.spent + est.cost.visits <= 1.05 * 60_000
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
    assert not p.notes
    assert (p.method == "AID-CG") or target > 0.01


@pytest.mark.slow
def test_a_target_that_no_budget_promises_is_flagged():
    p = CASES["quadratic-10-b1"].plan(target=1e-18)
    assert len(p.notes) == 1
    assert "1e-18" in str(p)
    assert int(p.run(key=jax.random.key(1)).code) == bx.Code.BUDGET


@pytest.mark.slow
def test_a_map_without_a_loss_is_solved_by_fixed_point_steps():
    case = Case("equilibrium")
    p = case.plan(budget=80 * case.rows)
    est = p.run(key=jax.random.key(1))
    assert p.method == "AID-FP"
    assert p.spent + est.cost.visits <= 1.05 * 80 * case.rows
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
