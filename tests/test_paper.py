"""The comparison with deterministic differentiation at equal epochs, on the synthetic problem of `make paper`."""

import numpy as np
import pytest
from benchmark_rig import module


@pytest.fixture(scope="module")
def errors():
    """Squared relative errors with a penalty per feature: the mean of four runs, by (strength, method) and epochs."""
    paper, datasets = module("benchmarks.paper.errors"), module("benchmarks.datasets")
    plan = paper.Plan((1e-1, 1e-3), (10, 20, 100), runs=4)
    result = paper.experiment(datasets.synthetic(), plan, lambda _: None)
    out = {}
    for strength, one in result["strengths"].items():
        assert set(one["truth"]) == {"OK"}
        for method, curve in one["curves"].items():
            out[strength, method] = dict(zip(plan.epochs, np.mean(curve["feature"], axis=1), strict=True))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("order", ["", " shuffled"], ids=["iid", "shuffled"])
def test_at_few_epochs_of_an_ill_conditioned_problem_minibatches_win(errors, order):
    assert errors["0.001", f"dec{order}"][10] < 1e-3
    assert errors["0.001", "batch"][10] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("order", ["", " shuffled"], ids=["iid", "shuffled"])
def test_at_many_epochs_of_a_well_conditioned_problem_every_row_wins(errors, order):
    assert errors["0.1", "batch"][20] < 1e-9 < errors["0.1", f"dec{order}"][20]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["", " shuffled"], ids=["iid", "shuffled"])
@pytest.mark.parametrize("strength", ["0.1", "0.001"])
def test_constant_steps_stay_on_a_plateau(errors, strength, order):
    early, late = (errors[strength, f"const{order}"][epochs] for epochs in (10, 100))
    assert early / 10 < late < 10 * early


@pytest.mark.slow
@pytest.mark.parametrize("strength", ["0.1", "0.001"])
def test_the_stronger_rival_is_ahead_after_twenty_epochs(errors, strength):
    """L-BFGS with conjugate gradients, which the paper does not have."""
    assert errors[strength, "cg"][20] < errors[strength, "dec shuffled"][20]
