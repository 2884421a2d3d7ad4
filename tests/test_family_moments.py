"""Algorithms on independent rows: their steps on given minibatches, and where they settle, against exact moments.

One program an algorithm runs many chains. What it should give is known in numpy, from the formulas alone: the step on
these rows, the stationary point of the mean direction, the exact second moment (``closed_forms.family``).
"""

from collections.abc import Callable
from functools import cache, partial
from itertools import chain
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.testing.closed_forms import FiniteQuadratic, family
from bilevax.testing.closed_forms.random_maps import Stages, moments
from bilevax.testing.draws import row_weights, whole_numbers

D, M, B = 4, 2, 16
KEY = jax.random.key(3)
W0 = np.linspace(-1.0, 1.0, D)
T, K, C, WEIGHT = 3, 5, 10.0, 0.3
STEPS = 8


class Case(NamedTuple):
    """An algorithm of steps, ratio and options; its step in numpy; the streams that its stages draw from in turn."""

    algorithm: Callable
    stages: Callable[..., Stages]
    train: tuple[tuple[str, int], ...] = (("train", 1),)
    val: tuple[tuple[str, int], ...] = (("val", 1),)
    copies: bool = False  # what else the state holds starts where w does, not at 0


COUNTS = {"inner_steps": T, "linear_steps": K}
DOUBLE = (("inner", T), ("linear", K), ("train", 1))
SINGLE = (("inner", 1), ("linear", K), ("train", 1))
CASES = {
    "SOBA": Case(bx.SOBA, family.soba),
    "MASOBA": Case(partial(bx.MASOBA, weight=WEIGHT), partial(family.masoba, weight=WEIGHT)),
    "AmIGO": Case(partial(bx.AmIGO, **COUNTS), partial(family.amigo, **COUNTS), DOUBLE),
    "StocBiO": Case(partial(bx.StocBiO, **COUNTS), partial(family.stocbio, **COUNTS), DOUBLE),
    "MRBO": Case(
        partial(bx.MRBO, linear_steps=K, weight=1.0),
        partial(family.mrbo, linear_steps=K),
        (("linear", K), ("train", 1)),
    ),
    "F2SA": Case(
        partial(bx.F2SA, inner_steps=T, multiplier=C, growth=0.0, unit=1.0),
        partial(family.f2sa, inner_steps=T, multiplier=C),
        (("inner", T), ("train", 1)),
        (("outer", T), ("val", 1)),
        copies=True,
    ),
    "VPBGD": Case(
        partial(bx.VPBGD, inner_steps=T, multiplier=C, growth=0.0, unit=1.0),
        partial(family.vpbgd, inner_steps=T, multiplier=C),
        (("inner", T), ("train", 1)),
        copies=True,
    ),
    "MEHA": Case(
        partial(bx.MEHA, proximal=5.0, multiplier=C, growth=0.0, unit=1.0),
        partial(family.meha, proximal=5.0, multiplier=C),
        (("inner", 1), ("train", 1)),
        (("outer", 1), ("val", 1)),
        copies=True,
    ),
    "SUSTAIN": Case(
        partial(bx.SUSTAIN, linear_steps=K, weight=bx.Polynomial(1.0, 0.0)),
        partial(family.plain, linear_steps=K),
        (("linear", K), ("train", 1)),
    ),
    "FSLA": Case(
        partial(bx.FSLA, weight=WEIGHT),
        partial(family.fsla, weight=WEIGHT),
        (("inner", 1), ("linear", 1), ("train", 1)),
        (("outer", 1), ("val", 1)),
    ),
    "BSA": Case(partial(bx.BSA, **COUNTS), partial(family.in_turn, **COUNTS), DOUBLE),
    "ALSET": Case(partial(bx.ALSET, linear_steps=K), partial(family.in_turn, linear_steps=K), SINGLE),
    "TTSA": Case(partial(bx.TTSA, linear_steps=K), partial(family.in_turn, linear_steps=K), SINGLE),
    "MSTSA": Case(
        partial(bx.MSTSA, linear_steps=K, weight=WEIGHT),
        partial(family.mstsa, linear_steps=K, weight=WEIGHT),
        SINGLE,
    ),
}
DRAWN = "SUSTAIN", "BSA", "ALSET", "TTSA", "MSTSA"
"""Those whose multiplier is one term of a series, with a random number of factors."""


# ---- the package's side: many chains, each with sums along it


@jax.jit
def chains(problem, algorithm, start, sources, keys, origin, stops):
    """Of each chain at each stop (w, lam), and the sums over all steps before of its distance to origin and squares."""

    def step(carry, args, k, looks):
        state, total, squares = carry
        problem, algorithm, origin = args
        state = algorithm.step(problem, state, looks, k)[0]
        far = jnp.concatenate(algorithm.solution(state)) - origin
        return state, total + far, squares + far**2

    def run(key):
        zero = jnp.zeros_like(origin)
        carry = algorithm.init(problem, *start, sources), zero, zero
        args = problem, algorithm, origin
        state, *sums = bx.fold_looks(algorithm.streams(sources), step, carry, args, key=key, start=0, stop=stops)
        return jnp.concatenate(algorithm.solution(state), axis=-1), *sums

    return jax.vmap(run)(keys)


@cache
def quadratic(condition=10, n=101):
    return FiniteQuadratic.conditioned(0, condition=condition, n=n, n_val=n, d=D, m=M)


def sources_of(p, size=B):
    return tuple(bx.Arrays(data, size) for data in (p.train_data, p.val_data))


def run(name, p, rho, ratio, stops, *, number=32, size=B, origin=None, **options):
    """The chains of an algorithm, as numpy arrays [chains, stops, d + m]; rho a schedule, or a number."""
    rho = rho if callable(rho) else bx.Polynomial(rho, 0.0)
    kind = partial(bx.PZOBO, inner_steps=T, radius=1.0) if name == "PZOBO" else CASES[name].algorithm
    algorithm = kind(rho, ratio, **options)
    origin = np.zeros(D + M) if origin is None else origin
    # as many stops whatever is asked for: one program
    padded = jnp.asarray([*stops, *[stops[-1]] * (STEPS - len(stops))])
    start, keys = (jnp.asarray(W0), jnp.asarray(p.lam)), jax.random.split(KEY, number)
    found = chains(p.problem, algorithm, start, sources_of(p, size), keys, origin, padded)
    return [np.asarray(x)[:, : len(stops)] for x in found]


# ---- the truth: in numpy, on the rows of the streams


def streams_of(case, p, key, steps):
    """Of train and of val: for each stream the weights of the rows in each step."""
    return [
        [row_weights(source, name, key, steps, number) for name, number in part]
        for part, source in zip((case.train, case.val), sources_of(p), strict=True)
    ]


def by_hand(case, p, stages, key, steps, drawn=None):
    """(w, lam) after each step, of which ``drawn`` says how many of the linear minibatches count."""
    streams, path = streams_of(case, p, key, steps), []
    size = stages(0)[0].fixed.shape[1] - 1
    rest = W0 if case.copies else np.zeros(size - D - M)
    x = np.concatenate([W0, p.lam, rest, [1.0]])
    for k in range(steps):
        cut = {"linear": drawn[k]} if drawn else {}
        train, val = (
            chain.from_iterable(stream[k][: cut.get(name)] for stream, (name, _) in zip(part, names, strict=True))
            for part, names in zip(streams, (case.train, case.val), strict=True)
        )
        for stage in stages(k):
            x = stage.given(train, val) @ x
        path.append(x[: D + M])
    return np.array(path)


RHO, RATIO = bx.Polynomial(0.2, 0.4), 0.3
FIRST = jax.random.split(KEY, 32)[0]


def rho_of(k):
    """0.2 / (1 + k)^0.4."""
    return 0.2 / (1 + k) ** 0.4


@pytest.mark.parametrize("name", [name for name in CASES if name not in DRAWN])
def test_steps_on_given_minibatches(name):
    """Steps fall, but for that of a Neumann series."""
    case = CASES[name]

    def stages(k):
        # what is made of rho_0 stays
        series = {"series": rho_of(0)} if name in ("StocBiO", "MRBO") else {}
        fixed = {"proximal": 5.0 * rho_of(0) / rho_of(k)} if name == "MEHA" else series
        return case.stages(quadratic(), rho_of(k), RATIO, **fixed)

    expected = by_hand(case, quadratic(), stages, FIRST, STEPS)
    found, *_ = run(name, quadratic(), RHO, RATIO, np.arange(1, STEPS + 1))
    np.testing.assert_allclose(found[0], expected, rtol=1e-10)


def horizons(key, steps):
    """p of each step."""
    return whole_numbers(key, "horizon", K, steps)


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "SUSTAIN"])
def test_steps_with_a_drawn_horizon_on_given_minibatches(name):
    """Steps fall, but for that of the series; of TTSA lam's fall faster; the first weight of MSTSA's memory is 1."""
    case, drawn = CASES[name], horizons(FIRST, STEPS)

    def stages(k):
        # gamma_k ~ rho_k^(3/2)
        slower = (rho_of(k) / rho_of(0)) ** 0.5 if name == "TTSA" else 1.0
        first = {"weight": 1.0} if name == "MSTSA" and k == 0 else {}
        return case.stages(quadratic(), rho_of(k), slower * RATIO, horizon=drawn[k], series=rho_of(0), **first)

    expected = by_hand(case, quadratic(), stages, FIRST, STEPS, drawn)
    found, *_ = run(name, quadratic(), RHO, RATIO, np.arange(1, STEPS + 1))
    np.testing.assert_allclose(found[0], expected, rtol=1e-10)


def sustain_by_hand(p, key, weight):
    """d = D(x) + (1 - weight) (d - D(x before)) on the same rows and the same horizon."""
    case, before, d, path = CASES["SUSTAIN"], None, 0.0, []
    (linear, last), (val,) = streams_of(case, p, key, STEPS)
    x = np.concatenate([W0, p.lam, [1.0]])
    for k, horizon in enumerate(horizons(key, STEPS)):
        draws, M_k = (iter([*linear[k][:horizon], *last[k]]), iter(val[k])), np.eye(x.size)
        for stage in case.stages(p, rho_of(k), RATIO, horizon=horizon, series=rho_of(0)):
            M_k = stage.given(*draws) @ M_k
        # x + rho D(x) = M x
        now, then = ((M_k @ at - at) / rho_of(k) for at in (x, x if before is None else before))
        d = now + (0.0 if k == 0 else 1.0 - weight(k)) * (d - then)
        before, x = x, x + rho_of(k) * d
        path.append(x[: D + M])
    return np.array(path)


@pytest.mark.parametrize("power", [0.0, 2 / 3])
def test_steps_of_sustain_on_given_minibatches(power):
    """With weight 1 it is the plain step along the direction that is solved for with a random horizon."""
    weight = bx.Polynomial(1.0, power)
    expected = sustain_by_hand(quadratic(), FIRST, lambda k: (1 + k) ** -power)
    found, *_ = run("SUSTAIN", quadratic(), RHO, RATIO, np.arange(1, STEPS + 1), weight=weight)
    np.testing.assert_allclose(found[0], expected, rtol=1e-10)
    assert len(set(horizons(FIRST, STEPS))) > 2


# ---- where they settle


def step_moments(name, p, rho, ratio, size=B, **options):
    """The exact moments of a step with constant settings."""
    if name in DRAWN:
        return family.over_horizons(partial(CASES[name].stages, p, rho, ratio), K, (size, size))
    if name == "PZOBO":
        return family.pzobo(p, rho, ratio, inner_steps=T, **options)
    return moments(CASES[name].stages(p, rho, ratio), size, size)


def within(samples, truth, precision):
    """Their mean over chains lies within 4 standard errors of the truth, and these are no larger than this."""
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert np.all(error <= precision), (error, precision)
    deviation = (samples.mean(axis=0) - truth) / error
    assert np.all(np.abs(deviation) <= 4), deviation


def settles(name, p, rho, ratio, *, number, length, precision, size=B, **options):
    """The mean and the mean square of every entry of (w, lam), once the start is forgotten."""
    step = step_moments(name, p, rho, ratio, size, **options)
    second = step.stationary
    mean = second[: D + M, -1]
    variance = second.diagonal()[: D + M] - mean**2
    # a millionth of the start is left
    burn = int(np.log(1e-6) / np.log(step.rate))
    stop = int((1 + length) * burn)
    _, *sums = run(name, p, rho, ratio, [burn, stop], origin=mean, number=number, size=size, **options)
    first, square = ((x[:, 1] - x[:, 0]) / (stop - burn) for x in sums)
    within(first, 0.0, precision * np.sqrt(variance))
    within(square, variance, precision * variance)


RATIOS = {"SOBA": 0.1, "MASOBA": 0.1, "FSLA": 0.1, "AmIGO": 0.2, "StocBiO": 0.5, "BSA": 0.5, "F2SA": 0.3}
RATIOS |= {"VPBGD": 0.1, "MEHA": 0.3}
RATIOS |= dict.fromkeys(("SUSTAIN", "MRBO", "ALSET", "TTSA", "MSTSA"), 0.4)


@pytest.mark.parametrize("name", CASES)
def test_mean_and_floor_are_those_of_the_exact_moments(name):
    settles(name, quadratic(), 0.3, RATIOS[name], number=32, length=1.5, precision=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("n", [101, 512])
@pytest.mark.parametrize("condition", [10, 100])
@pytest.mark.parametrize("name", CASES)
def test_mean_and_floor_at_other_conditions_and_sizes(name, condition, n):
    settles(name, quadratic(condition, n), 0.2, RATIOS[name], number=64, length=3, precision=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_on_every_row_a_random_horizon_leaves_a_floor_of_its_own(name):
    settles(name, quadratic(), 0.2, RATIOS[name], number=64, length=3, precision=0.1, size=None)


@pytest.mark.parametrize("perturbations", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_mean_and_floor_of_zeroth_order_differences_on_every_row(perturbations):
    """Of a quadratic the Gaussian smoothing changes nothing: what is left is the noise of the directions."""
    settles(
        "PZOBO", quadratic(), 0.3, 0.3, number=32, length=1.5, precision=0.2, size=None, perturbations=perturbations
    )


# what is promised: the power of the steps, and that of the squared hypergradient
RATES = {
    "SOBA": (1 / 2, 1 / 2),  # Dagreou et al. 2022, Theorem 1, up to a logarithm
    "MASOBA": (1 / 2, 1 / 2),  # Chen et al. 2023
    "AmIGO": (1 / 2, 1 / 2),  # Arbel, Mairal 2022: eps^-2 samples
    "StocBiO": (1 / 2, 1 / 2),  # Ji et al. 2021: eps^-2 samples
    "MRBO": (1 / 3, 2 / 3),  # Yang et al. 2021; weights fall as k^(-2/3)
    "F2SA": (4 / 7, 2 / 7),  # Kwon et al. 2023, noise in both levels; the multiplier grows as k^(1/7)
    "SUSTAIN": (1 / 3, 2 / 3),  # Khanduri et al. 2021; weights fall as k^(-2/3)
    "FSLA": (1 / 2, 1 / 2),  # Li, Gu, Huang 2022: eps^-2 samples; weights fall as k^(-1/2)
    "BSA": (1 / 2, 1 / 2),  # Ghadimi, Wang 2018: eps^-2 steps
    "ALSET": (1 / 2, 1 / 2),  # Chen, Sun, Yin 2021: eps^-2 samples
    "TTSA": (2 / 5, 2 / 5),  # Hong et al. 2020; steps of lam fall as k^(-3/5)
    "MSTSA": (1 / 2, 1 / 2),  # Khanduri et al. 2021, first version: eps^-2 samples
}


def slope(name, p, rho, ratio, last):
    """Of log E|lam - limit|^2 against log k, from means over chains and over the steps from one stop to the next.

    The limit is where the mean direction is 0; the minimum, where the multiplier of a penalty grows. Steps are nearly
    constant for some 250, so that the start is forgotten.
    """
    falling = {"weight": bx.Polynomial(1.0, 2 / 3)}
    options = {"F2SA": {"growth": 1 / 7}, "SUSTAIN": falling, "MRBO": falling}
    options = (options | {"FSLA": {"weight": bx.Polynomial(1.0, 0.5)}}).get(name, {})
    limit = p.minimiser if name == "F2SA" else step_moments(name, p, rho, ratio).fixed_point[D : D + M]
    stops = np.geomspace(last / 16, last, STEPS).astype(int)
    steps = bx.Polynomial(rho, RATES[name][0], 250.0)
    _, _, squares = run(name, p, steps, ratio, stops, origin=np.concatenate([np.zeros(D), limit]), **options)
    error = np.mean(np.sum(np.diff(squares[:, :, D:], axis=1), axis=2), axis=0) / np.diff(stops)
    return np.polyfit(np.log(stops[1:] * stops[:-1]) / 2, np.log(error), 1)[0]


def test_with_falling_steps_the_error_falls_as_published():
    assert slope("SOBA", quadratic(), 0.5, 0.3, 6400) <= -RATES["SOBA"][1] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("n", [101, 512])
@pytest.mark.parametrize("condition", [10, 100])
@pytest.mark.parametrize("name", RATES)
def test_falling_steps_at_other_conditions_and_sizes(name, condition, n):
    assert slope(name, quadratic(condition, n), 0.5, 0.3, 32_000) <= -RATES[name][1] + 0.1
