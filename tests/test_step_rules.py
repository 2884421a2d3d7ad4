"""Rules that find the steps of both levels: by hand, what they refuse, and how far off their starts may be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.testing.closed_forms import FiniteQuadratic

H = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.4]])
C, TARGET, KEY = np.array([[1.0, 0.0], [0.5, -1.0], [0.0, 0.3]]), np.array([1.0, -2.0, 0.5]), jax.random.key(0)
W0, LAM0 = np.array([3.0, -1.0, 2.0]), np.array([0.5, 2.0])


def inner(w, lam, batch):
    """w'Hw / 2 - (C lam)'w, with the minimum 0 at lam = 0."""
    return 0.5 * jnp.vdot(w, jnp.asarray(H) @ w) - jnp.vdot(jnp.asarray(C) @ lam, w) + 0.0 * jnp.sum(batch)


def outer(w, lam, batch):
    return 0.5 * jnp.sum((w - jnp.asarray(TARGET)) ** 2) + 0.05 * jnp.vdot(lam, lam) + 0.0 * jnp.sum(batch)


PROBLEM = bx.Problem(bx.GradientStep(inner, 1.0), outer)
ROWS = bx.Arrays(np.zeros(2))


def run(rule, steps, problem=PROBLEM, algorithm=bx.AmIGO, **options):
    made = algorithm(rule, inner_steps=3, linear_steps=2, **options)
    return bx.minimize(problem, made, W0, LAM0, ROWS, ROWS, steps=steps, key=KEY)


def halvings(accepted, s):
    """The step that is accepted, and how many were tried."""
    for number in range(1, 52):
        if accepted(s):
            return s, number
        s /= 2
    return 0.0, 51


def outer_value(w, lam):
    return 0.5 * np.sum((w - TARGET) ** 2) + 0.05 * lam @ lam


def by_hand(rule, steps, inner_step):
    """AmIGO on every row in numpy: (w, lam), values of G and trials of lam."""
    w, u, lam, values, trials = W0, np.zeros(3), LAM0, 0, 0
    for k in range(steps):
        for _ in range(3):
            s, more = inner_step(w, lam, k)
            w, values = w - s * (H @ w - C @ lam), values + more
        x = w
        for _ in range(12):  # the power iteration begins at w, with a margin of a tenth
            x = H @ (x / np.linalg.norm(x))
        rho, g = 1 / (1.1 * np.linalg.norm(x)), w - TARGET
        for _ in range(2):
            u = u + rho * (g - H @ u)
        d = 0.1 * lam + C.T @ u

        # along which w(lam) moves, by two moves from 0 and what is missing to E's derivative
        b, r = -C @ d, np.zeros(3)
        for _ in range(2):
            r = r + rho * (b - H @ r)
        r = r + (u @ b - g @ r) / (g @ g) * g

        def accepted(t, w=w, lam=lam, d=d, r=r):
            before = outer_value(w, lam)
            promised = rule.outer_decrease * t * d @ d - rule.slack * before
            return outer_value(w + t * r, lam - t * d) <= before - promised

        t, number = halvings(accepted, float(rule.outer(k)))
        lam, trials = lam - t * d, trials + number
    return w, lam, values, trials


def armijo(rule):
    def step(w, lam, k):
        def value(w):
            return 0.5 * w @ H @ w - (C @ lam) @ w

        g = H @ w - C @ lam
        return halvings(lambda s: value(w - s * g) <= value(w) - rule.decrease * s * g @ g, float(rule.inner(k)))

    return step


def polyak(rule):
    def step(w, lam, k):
        g = H @ w - C @ lam
        gap = 0.5 * w @ H @ w - (C @ lam) @ w - rule.lower
        return min(float(rule.inner(k)), gap / (rule.decrease * g @ g)), 0

    return step


FALLING = bx.Polynomial(50.0, 0.5)
RULES = {
    "armijo": (bx.BiSLS(FALLING, 40.0, decrease=0.3, outer_decrease=0.2), armijo),
    "slack": (bx.BiSLS(7.0, FALLING, decrease=0.6, outer_decrease=0.4, slack=0.2), armijo),
    "polyak": (bx.BiSPS(0.7, 40.0, lower=-8.0, decrease=1.5), polyak),
}


@pytest.mark.parametrize("name", RULES)
def test_steps_by_hand(name):
    """Each search begins at its envelope, never at the step that the last one found."""
    rule, inner_step = RULES[name]
    result = run(rule, 5)
    w, lam, values, trials = by_hand(rule, 5, inner_step(rule))
    np.testing.assert_allclose(result.w, w, rtol=1e-10)
    np.testing.assert_allclose(result.lam, lam, rtol=1e-10)
    assert trials > 10
    cost = result.cost
    # a value of G counts as a gradient; the searches read nothing again
    assert int(cost.gradients.calls) == 5 * 3 + values
    assert int(cost.gradients.reads) == 5 * 3
    assert int(cost.hvps.calls) == 5 * (2 + 12 + 2)
    assert int(cost.cross.calls) == 5 * 2
    assert int(cost.outer_gradients.calls) == 5 * 2 + trials
    assert int(cost.outer_gradients.reads) == 5


def test_without_a_step_that_will_do_none_is_made():
    """One trial each: w and lam stay where they are, and nothing is lost."""
    result = run(bx.BiSLS(1e6, 1e6, halvings=1), 3)
    assert np.array_equal(result.w, W0)
    assert np.array_equal(result.lam, LAM0)
    assert result.code == bx.Code.OK


def cliff(w, lam, batch):
    """Not finite far from 0."""
    return outer(w, lam, batch) + jnp.where(jnp.vdot(lam, lam) > 30.0, jnp.nan, 0.0)


def test_a_trial_that_is_not_finite_is_too_long():
    result = run(bx.BiSLS(1e3, 1e6), 40, bx.Problem(bx.GradientStep(inner, 1.0), cliff))
    assert result.code == bx.Code.OK
    assert outer(result.w, result.lam, 0.0) < 0.3 * outer(W0, LAM0, 0.0)


@pytest.mark.parametrize("rule", [bx.BiSLS(1.0, 1.0), bx.BiSPS(1.0, 1.0, lower=-10.0)], ids=["BiSLS", "BiSPS"])
def test_where_nothing_is_finite_the_run_says_so(rule):
    """No trial is better than NaN: that is no step of zero."""
    for losses in ((inner, lambda *at: jnp.nan * outer(*at)), (lambda *at: jnp.nan * inner(*at), outer)):
        result = run(rule, 2, bx.Problem(bx.GradientStep(losses[0], 1.0), losses[1]))
        assert result.code == bx.Code.NONFINITE


def test_a_loss_below_its_bound_is_no_step_of_zero():
    """The loss of ``inner`` falls below 1, but not below -10."""
    assert run(bx.BiSPS(1.0, 1.0, lower=-10.0), 20).code == bx.Code.OK
    assert run(bx.BiSPS(1.0, 1.0, lower=1.0), 20).code == bx.Code.NONFINITE


P = FiniteQuadratic.random(3, n=40, d=4, m=3)


@pytest.mark.parametrize("algorithm", [bx.AmIGO, bx.StocBiO])
def test_a_double_loop_gets_to_the_minimum_from_starts_that_are_far_too_long(algorithm):
    sources = bx.Arrays(P.train_data, 10, "blocks"), bx.Arrays(P.val_data)
    made = algorithm(bx.BiSLS(1e4, 1e4), inner_steps=5, linear_steps=30)
    result = bx.minimize(P.problem, made, np.zeros(4), np.zeros(3), *sources, steps=150, key=KEY)
    assert result.code == bx.Code.OK, result.message
    # of what there is to gain from lam = 0 a quarter may be left, by 150 steps on minibatches
    first, last, least = (P.value(lam) for lam in (np.zeros(3), np.asarray(result.lam), P.minimiser))
    assert last - least < 0.25 * (first - least)


@pytest.mark.slow
def test_starts_up_to_ten_thousand_times_too_long_cost_less_than_half():
    """The layer of digits of ``python -m benchmarks step_rules``: constant steps fail from 10 times on."""
    from benchmarks import step_rules as question

    at, factors = question.setting(), (1.0, 100.0, 1e4)
    best, rho, gamma = question.tuned(at, question.STEPS, [0])
    makes = question.methods(rho, gamma)
    plain = [question.median(makes["AmIGO, both steps"](f), at, question.STEPS, [0]) for f in factors]
    assert plain[1:] == [np.inf, np.inf]
    for name in ("AmIGO, BiSLS", "AmIGO, BiSPS", "StocBiO, BiSLS"):
        values = [question.median(makes[name](f), at, question.STEPS, [0, 1, 2]) for f in factors]
        assert max(values) <= question.GOAL * best, (name, values, best)
    for start in question.LAM_STARTS:
        of_w = question.spread(at, question.STEPS, [0, 1, 2], start)
        # 1.17 to 1.25 were measured
        assert max(of_w) < 1.3 * min(of_w), (start, of_w)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: bx.SOBA(bx.BiSLS(1.0, 1.0)), "BiSLS chooses the steps of bx.AmIGO and bx.StocBiO alone; give SOBA"),
        (lambda: bx.BSA(bx.BiSLS(1.0, 1.0)), "give BSA a step size"),
        (lambda: bx.AmIGO(bx.BiSPS(1.0, 1.0), 0.5), "BiSPS owns the steps of both levels, and their ratio"),
        (lambda: bx.BiSLS(1.0, 1.0, decrease=1.5), r"decrease must lie in \]0, 1\]"),
        (lambda: bx.BiSLS(0.0, 1.0), r"inner must lie in \]0, inf\], got 0"),
        (lambda: bx.BiSPS(1.0, 1.0, halvings=0), "halvings must be at least 1"),
        (lambda: run(bx.BiSLS(1.0, 1.0), 2, bx.Problem(lambda w, lam, batch: 0.5 * w, outer)), "needs an inner loss"),
    ],
)
def test_what_a_rule_cannot_do_is_refused(make, match, refused):
    refused(make, bx.ParameterError, match)


def test_a_new_start_compiles_nothing(compilations):
    run(bx.BiSLS(1.0, 1.0), 2)
    before = compilations.number
    run(bx.BiSLS(3.0, 2.0, slack=0.01), 2)
    assert compilations.number == before
