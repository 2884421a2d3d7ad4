"""Where searches for the penalties of additive models start: it is no answer, wherever it is, and saves evaluations."""

import numpy as np
import pytest

from bilevax import ParameterError
from bilevax.sklearn.additive_choice import some_rows
from bilevax.sklearn.row_splits import deal_folds
from bilevax.solvers.additive_families import Binomial, Gamma, Gaussian, Multinomial, Poisson
from bilevax.solvers.additive_models import ADDITIVE, ONE_PENALTY, PAIRS, PENALTY_EACH, AdditiveFit, Rows
from bilevax.solvers.additive_search import Outer, minimise, with_prior
from bilevax.solvers.additive_stack import fitted, held_out, with_pairs
from bilevax.tables.effects import category, number

FAMILIES = {"gaussian": Gaussian(), "poisson": Poisson(dispersed=True), "gamma": Gamma(), "binary": Binomial()}


def rows_of(family, n=300, seed=0, *, signal=1.0, columns=3, smooth=4, coarse=8):
    """A wave, a column of noise and a pair; what the family draws."""
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=(n, columns)), np.array(list("abc"), object)[rng.integers(0, 3, n)]
    effects = (*(number(f"x{j}", x[:, j], smooth=smooth, coarse=coarse) for j in range(columns)), category("z", z))
    codes = tuple(e.codes(v) for e, v in zip(effects, [*x.T, z], strict=True))
    s = signal * (np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * (z == "a"))
    if isinstance(family, Multinomial):
        y = (s > 0).astype(int) + rng.integers(0, family.scores, n)
    else:
        y = {
            "Gaussian": lambda: s + 0.3 * rng.normal(size=n),
            "Poisson": lambda: rng.poisson(np.exp(s)).astype(float),
            "Gamma": lambda: np.exp(s) * rng.gamma(4.0, 0.25, n),
            "Binomial": lambda: (rng.logistic(size=n) < 2.0 * s).astype(float),
        }[type(family).__name__]()
    w, offset = np.ones(n), np.zeros((n, family.scores))
    return Rows(effects, codes, y, w, offset, family, (0,) * len(effects))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_start_at_a_fit_to_other_rows_is_no_answer(name):
    family = FAMILIES[name]
    rows = rows_of(family)
    far = AdditiveFit(rows_of(family, seed=1), ADDITIVE)
    alone, led = AdditiveFit(rows, ADDITIVE), AdditiveFit(rows, ADDITIVE, near=far)
    loss = with_prior(alone.marginal, alone._kind)
    value = loss(alone.found.rho, None).value
    assert loss(far.found.rho, None).value > value + 1.0
    assert led.found.outer.phi == pytest.approx(alone.found.outer.phi, rel=0.1)  # as closely as it is settled
    assert loss(led.found.rho, None).value <= value + 0.1
    scores = alone.scores(rows.codes)
    assert np.std(led.scores(rows.codes) - scores) < 0.1 * np.std(scores)


def test_a_start_near_by_saves_evaluations_and_gives_the_same_scores():
    rows = rows_of(Binomial(), 300)
    candidates = ONE_PENALTY, PENALTY_EACH, ADDITIVE, PAIRS
    fits, held = fitted(rows, candidates), np.arange(0, 300, 5)
    alone, led = held_out(rows, candidates, held), held_out(rows, candidates, held, fits)
    for cold, warm in zip(alone, led, strict=True):
        assert np.std(warm - cold) < 0.1 * np.std(alone[-1])
    train = rows.take(np.setdiff1d(np.arange(300), held))
    counts = [
        sum(fit.found.evaluations for fit in fitted(train, candidates, near)) for near in ((), fits)
    ]  # fmt: skip
    assert counts[1] <= 0.6 * counts[0]


def test_pairs_start_where_those_of_other_rows_are():
    rows = rows_of(Gaussian())
    whole = with_pairs(AdditiveFit(rows, ADDITIVE))
    assert [pair.columns for pair in whole.pairs] == [(1, 2)]
    part = AdditiveFit(rows.take(np.arange(240)), ADDITIVE)
    led, alone = with_pairs(part, whole), with_pairs(part)
    assert [pair.columns for pair in led.pairs] == [pair.columns for pair in alone.pairs]
    scores = alone.scores(rows.codes)
    assert np.std(led.scores(rows.codes) - scores) < 0.1 * np.std(scores)
    found = whole.start()
    assert found.rho[1, 2] == whole.found.rho[-1]
    assert found.rho[0, "linear"] == whole.found.rho[0]
    assert found.phi == whole.found.outer.phi


@pytest.mark.parametrize("family", [Gaussian(), Multinomial(3)])
def test_shared_penalties_start_where_those_of_other_rows_are(family):
    rows = rows_of(family, 40, columns=8, smooth=3, coarse=4)
    whole = AdditiveFit(rows, ADDITIVE)
    assert whole.model.note
    assert set(whole.model.shared) == {"linear", "smooth", "rough", "levels"}
    part = rows.take(np.arange(35))
    led, alone = AdditiveFit(part, ADDITIVE, near=whole), AdditiveFit(part, ADDITIVE)
    spread = np.std(alone.scores(rows.codes))
    assert np.std(led.scores(rows.codes) - alone.scores(rows.codes)) < 0.3 * spread


def test_penalties_are_tuned_on_the_rows_that_have_a_fold():
    rows = rows_of(Binomial(), 300)
    fold = np.where(np.arange(300) < 200, np.arange(300) % 5, -1)
    some = AdditiveFit(rows._replace(fold=fold), PENALTY_EACH)
    few = AdditiveFit(rows._replace(fold=fold).take(np.arange(200)), PENALTY_EACH)
    np.testing.assert_allclose(some.found.rho, few.found.rho, atol=1e-6)
    # and the weights are those of all rows at these penalties
    value = few.marginal(few.found.rho).value
    assert some.found.outer.value > value + 10.0
    assert len(some.found.outer.fits[0].scores) == 300


def test_a_few_large_groups_are_enough_to_fold():
    random = np.random.RandomState(0)
    groups = np.repeat(np.arange(8), 100)
    drawn = some_rows(800, 50, groups, random)
    assert len(np.unique(groups[drawn])) == 5
    assert len(drawn) == 500
    assert len(np.unique(deal_folds(np.zeros(500, int), groups[drawn], 5, random))) == 5
    assert len(some_rows(800, 650, groups, random)) == 600
    with pytest.raises(ParameterError, match="at least two groups"):
        deal_folds(np.zeros(100, int), groups[:100], 5, random)


def test_a_known_loss_is_not_asked_for_again():
    asked = []

    def bowl(rho, near):
        asked.append(rho.copy())
        return Outer(float(np.sum((rho - 1.0) ** 2)), 2.0 * (rho - 1.0), 2.0 * np.eye(len(rho)), (), 1.0)

    start = np.zeros(2)
    at = bowl(start, None)
    found = minimise(bowl, start, at=at)
    np.testing.assert_allclose(found.rho, 1.0)
    np.testing.assert_array_equal(asked[1], [1.0, 1.0])
    assert found.evaluations == len(asked) - 1
    done = minimise(bowl, found.rho, at=found.outer)
    assert done.converged
    assert done.evaluations == 0
