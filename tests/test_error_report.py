"""What an error report computes from its numbers, against tables and scipy's distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bilevax as bx
from bilevax.core.error_report import as_others, f_quantile
from bilevax.core.records import Failure
from bilevax.hypergradients.batch_means import BATCHES, BatchMeans

NAN = jnp.asarray(np.nan)


def report(value, standard_error, *, bias=0.0, degrees_of_freedom=19):
    unknown = dict.fromkeys(("inner", "linear", "sampling", "contraction"), NAN)
    bias = np.broadcast_to(bias, np.shape(value)).astype(float)
    arrays = [{"a": jnp.asarray(x), "b": jnp.asarray(x[:1])} for x in (value, standard_error, bias)]
    return bx.ErrorReport(*arrays, degrees_of_freedom=jnp.asarray(degrees_of_freedom), **unknown)


def test_an_interval_has_the_quantile_of_t():
    error = report([1.0, -2.0], [0.5, 0.1])
    low, high = error.interval()
    t = stats.t.ppf(0.975, 19)
    np.testing.assert_allclose(low["a"], [1 - 0.5 * t, -2 - 0.1 * t])
    np.testing.assert_allclose(high["b"], [1 + 0.5 * t])
    low, high = report([0.0], [1.0], degrees_of_freedom=3).interval(0.8)
    np.testing.assert_allclose(high["a"] - low["a"], 2 * stats.t.ppf(0.9, 3))


@pytest.mark.parametrize(
    ("ratio", "critical"),
    [(0.0, 1.96), (0.25, 2.02), (0.5, 2.18), (0.75, 2.40), (1.0, 2.65), (2.0, 3.65), (30.0, 31.645)],
)
def test_a_bias_widens_an_interval_to_the_critical_value(ratio, critical):
    """Table of theory: P(|Z + r| <= c) = .95."""
    error = report([0.0], [1.0], bias=ratio, degrees_of_freedom=10**7)
    low, high = error.interval()
    np.testing.assert_allclose(high["a"], critical, atol=0.006)
    np.testing.assert_allclose(-low["a"], high["a"])
    np.testing.assert_allclose(error.interval(bias=False)[1]["a"], 1.96, atol=0.001)
    half = error.interval(0.9)[1]["a"][0]
    assert abs(stats.norm.cdf(half - ratio) - stats.norm.cdf(-half - ratio) - 0.9) < 1e-6


def test_a_bias_with_few_degrees_is_scaled_by_t():
    """Never shorter than without, and the interval of t where there is no bias."""
    few = report([0.0], [1.0], bias=1.0, degrees_of_freedom=5)
    sigma = stats.t.ppf(0.975, 5) / stats.norm.ppf(0.975)
    half = few.interval()[1]["a"][0]
    assert abs(stats.norm.cdf((half - 1) / sigma) - stats.norm.cdf((-half - 1) / sigma) - 0.95) < 1e-9
    np.testing.assert_allclose(report([0.0], [1.0], degrees_of_freedom=5).interval()[1]["a"], stats.t.ppf(0.975, 5))


def test_signs_relative_error_and_what_is_certain_or_unknown():
    error = report([1.0, -20.0, 0.0, 0.0], [0.5, 0.0, 0.1, 0.0], bias=[0.3, 0.2, 0.1, 0.0])
    wanted = [stats.t.cdf((1.0 - 0.3) / 0.5, 19), 1.0, 0.5, 0.5]
    np.testing.assert_allclose(error.sign_confidence["a"], wanted)
    squares = [0.5**2 + 0.1**2 + 0.3**2 + 0.2**2 + 0.1**2, 0.5**2 + 0.3**2]  # of the leaves a and b
    np.testing.assert_allclose(error.relative, np.sqrt(sum(squares)) / np.sqrt(1 + 400 + 1))
    low, high = error.interval()
    np.testing.assert_allclose([low["a"][1], high["a"][1]], [-20.2, -19.8])  # no sampling error: the bias alone
    beyond = report([20.0, 1.0], [0.1, 0.1], bias=[0.0, 1.5])
    assert beyond.sign_confidence["a"][1] == 0.5  # a bias beyond the value
    assert report([20.0, 1.0], [8.0, 0.01]).sign_confidence["a"][1] == 0.5  # as a whole hardly known
    np.testing.assert_allclose(report([1.0], [0.1], degrees_of_freedom=3).sign_confidence["a"], 0.5)  # too few to say
    unknown = report([1.0], [np.inf], degrees_of_freedom=0)
    np.testing.assert_allclose(unknown.sign_confidence["a"], 0.5)
    assert np.isinf(unknown.interval()[1]["a"][0])
    assert np.isinf(unknown.relative)
    assert np.isinf(unknown.upper)


@pytest.mark.parametrize("degrees", [4, 5, 11, 10**6])
@pytest.mark.parametrize("m", [1, 2, 5, 1000])
def test_the_quantile_of_f_is_that_of_scipy(m, degrees):
    quantile = float(f_quantile(jnp.asarray(float(m)), jnp.asarray(float(degrees))))
    assert quantile == pytest.approx(stats.f.ppf(0.95, m, degrees), rel=0.03)


def test_the_upper_limit_has_the_quantile_of_f_and_the_bias():
    error = report(
        [3.0, 4.0, 0.0], [0.1, 0.1, 0.1], bias=[0.3, 0.0, 0.0], degrees_of_freedom=8
    )  # and again the first of each
    size, noise, m = np.sqrt(34.0), 0.2, 4.0
    wanted = (np.sqrt(stats.f.ppf(0.95, m, 8)) * noise + np.sqrt(2) * 0.3) / size
    assert float(error.upper) == pytest.approx(wanted, rel=0.01)
    uneven = report([1.0, 1.0], [0.0, 1e-20], degrees_of_freedom=8)  # one entry alone is noisy, and its square is tiny
    assert float(uneven.upper) == pytest.approx(stats.t.ppf(0.975, 8) * 1e-20 / np.sqrt(3), rel=0.02)
    assert float(report([2.0], [0.0], bias=0.2, degrees_of_freedom=0).upper) == pytest.approx(
        0.1
    )  # nothing was sampled
    assert np.isinf(report([2.0], [1e-9], degrees_of_freedom=3).upper)  # too few degrees of freedom to say
    assert float(report([0.0], [0.0]).upper) == 0.0
    assert np.isinf(report([2.0, 1.0], [np.nan, 0.1], bias=[np.nan, 0.0]).upper)  # NaN is not known, and not 0


def test_a_level_that_is_no_probability_is_refused():
    with pytest.raises(bx.ParameterError, match="level must lie in"):
        report([1.0], [1.0]).interval(95)


def filtered(steps, size, parting, driver):
    """x_j <- x_j + s_j (driver_j - x_j) from 0: the response of x to a unit of noise at each step, [steps, noises].

    The driver is the noise itself, or a series that it drives; the steps are halved from number ``parting`` on.
    """
    out, x = np.zeros((steps, steps)), np.zeros(steps)
    for j in range(steps):
        out[j] = x
        x = x + size * (0.5 if j >= parting else 1.0) * (driver[j] - x)
    return out


@pytest.mark.parametrize(("relaxations", "low"), [(15, 0.35), (30, 0.45), (60, 0.68), (120, 0.85), (400, 0.95)])
def test_stretches_that_remember_each_other_are_widened_to_the_variance_of_the_value(relaxations, low):
    """Exact: each noise is one entry, and the squares of independent noises add up.

    Along w, which the noise drives at once, nearly; along v, which w drives, in part: other directions make up for it.
    """
    steps = 640
    first, size = steps // 4, relaxations / steps
    lanes = []
    for parting in (steps, first):
        w = filtered(steps, size, parting, np.eye(steps))
        lanes.append((w, filtered(steps, size, parting, w)))
    ratios = []
    for whole, half in zip(*lanes, strict=True):
        value = np.mean((2 * half - whole)[first:], axis=0)
        stretches = np.mean(whole[first:].reshape(BATCHES, -1, steps), axis=1)
        counts = jnp.full(BATCHES, (steps - first) // BATCHES, jnp.int32)
        means = BatchMeans(jnp.asarray(stretches), counts).decorrelated(jnp.asarray(float(relaxations)))
        ratios.append(float(np.sum(np.square(means.standard_error)) / np.sum(value**2)))
    assert low < ratios[1] < ratios[0] < 1.05, ratios
    assert ratios[0] > 0.7, ratios


def test_the_steps_that_would_do_are_those_at_which_the_limit_is_met():
    error = report([3.0, 4.0], [0.3, 0.4], degrees_of_freedom=8)
    needed = error.steps_needed(1000, 0.1)
    assert float(error.upper) / np.sqrt(needed / 1000) == pytest.approx(0.1, rel=0.05)
    start = report(
        [3.0, 4.0], [0.0, 0.0], bias=[0.3, 0.4], degrees_of_freedom=8
    )  # what is left of a start falls as 1 / steps
    assert float(start.upper) / (start.steps_needed(1000, 0.01) / 1000) == pytest.approx(0.01, rel=0.1)
    short = report([3.0, 4.0], [1e-9, 1e-9], degrees_of_freedom=1)  # all that is missing are degrees of freedom
    assert short.steps_needed(1000, 0.1) == pytest.approx(4000, rel=0.1)
    assert np.isinf(report([1.0], [np.inf]).steps_needed(1000, 0.1))


def judged(error):
    """An estimate of 500 steps with this report, whose tolerance is a tenth."""
    code, nothing = jnp.int32(bx.Code.TOLERANCE_NOT_MET), jnp.zeros(())
    est = bx.Estimate(error.value, nothing, nothing, None, code, None, Failure.of("none"), error)
    return est._replace(steps=jnp.int32(500), tol=0.1)


def test_too_few_replicas_ask_for_replicas_and_not_for_steps():
    """Whatever their steps, 4 replicas have 3 degrees of freedom; of 5 the noise alone is in the way."""
    few, enough = (
        report([3.0, 4.0], [0.3, 0.4], degrees_of_freedom=n - 1)._replace(replicas=jnp.int32(n)) for n in (4, 5)
    )
    assert np.isinf(few.upper)
    assert np.isfinite(enough.upper)
    for text in (judged(few).message, few.advice):
        assert "4 replicas have 3 of the 4 degrees of freedom that an upper limit takes: 5 replicas would do." in text
        assert "steps" not in text
    assert "steps would do, instead of 500" in judged(enough).message
    exact = report([3.0, 4.0], [0.0, 0.0], bias=1.0, degrees_of_freedom=1)._replace(replicas=jnp.int32(2))
    assert "try more steps" in exact.advice  # they are equal: no replica is missing


def test_what_no_minibatch_showed_is_as_wrong_as_the_rest():
    seen = {"rows": jnp.asarray([3.0, 0.0, 4.0, 0.0]), "unused": jnp.zeros(3)}
    filled = as_others(seen)
    np.testing.assert_allclose(filled["rows"], [3.0, 2.5, 4.0, 2.5])
    np.testing.assert_allclose(filled["unused"], 0.0)


def test_what_numpy_computes_is_refused_within_a_trace_and_of_several_reports():
    error = report([1.0], [0.1])
    for fn in (lambda e: e.interval(), lambda e: e.sign_confidence):
        for transformed in (jax.jit(fn), jax.vmap(fn)):
            with pytest.raises(bx.ParameterError, match="is of one report, outside of jit"):
                transformed(jax.tree.map(lambda x: jnp.asarray(x)[None], error))
    with pytest.raises(bx.ParameterError, match=r"of a stack take jax.tree.map\(lambda x: x\[i\], report\)"):
        jax.tree.map(lambda x: jnp.stack([x, x]), error).interval()
