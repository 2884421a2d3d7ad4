"""Which algorithms are one and the same at which settings, on the same draws; and steps in blocks with a short one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.testing.closed_forms import FiniteQuadratic, family
from bilevax.testing.draws import row_weights, whole_numbers

D, M, N, B = 4, 2, 101, 16
P = FiniteQuadratic.conditioned(1, n=N, n_val=96, d=D, m=M)
KEY = jax.random.key(7)
W0 = np.linspace(-1.0, 1.0, D)
RHO, RATIO, STEPS = 0.2, 0.3, 24
FULL = bx.Arrays(P.train_data), bx.Arrays(P.val_data)
# of train the last block is short, and weighs less; of val all are even
BLOCKS = tuple(bx.Arrays(data, B, "blocks", seed=None) for data in (P.train_data, P.val_data))


@jax.jit
def loop(problem, algorithm, start, sources, stops):
    """(w, lam) at each stop."""

    def step(state, args, k, looks):
        return args[1].step(args[0], state, looks, k)[0]

    state, args = algorithm.init(problem, *start, sources), (problem, algorithm)
    state = bx.fold_looks(algorithm.streams(sources), step, state, args, key=KEY, start=0, stop=stops)
    return algorithm.solution(state)


def path(algorithm, sources=FULL, problem=P.problem, start=(W0, P.lam)):
    """(w, lam) after each step, [steps, d + m]."""
    start = tuple(jnp.asarray(x) for x in start)
    return np.concatenate(loop(problem, algorithm, start, sources, jnp.arange(1, STEPS + 1)), axis=1)


def test_on_every_row_variance_reduction_changes_nothing():
    """SABA = SOBA = SRBA, whose every step may be on every row."""
    soba = path(bx.SOBA(RHO, RATIO))
    np.testing.assert_allclose(path(bx.SABA(RHO, RATIO)), soba, rtol=1e-12)
    for period in (1, 5):
        np.testing.assert_allclose(path(bx.SRBA(RHO, RATIO, period)), soba, rtol=1e-12)


def test_srba_of_period_one_reads_every_row_whatever_is_drawn():
    np.testing.assert_allclose(path(bx.SRBA(RHO, RATIO, 1), BLOCKS), path(bx.SOBA(RHO, RATIO)), rtol=1e-12)


def test_masoba_of_weight_one_is_soba_to_the_bit():
    """In blocks with a short one."""
    assert np.array_equal(path(bx.MASOBA(RHO, RATIO, 1.0), BLOCKS), path(bx.SOBA(RHO, RATIO), BLOCKS))


def test_amigo_of_one_step_each_is_soba_in_turn_and_bsgm():
    """SOBA in turn by hand: w, then u at the new w, then lam at both. BSGM goes on from where w and u were."""
    (A, b, B_), (target, r) = P.means, P.outer_means
    w, u, lam, turn = W0, np.zeros(D), P.lam, []
    for _ in range(STEPS):
        w = w + RHO * (b + B_ @ lam - A @ w)
        u = u + RHO * (w - target - A @ u)
        lam = lam - RATIO * RHO * (r * lam + B_.T @ u)
        turn.append([*w, *lam])
    np.testing.assert_allclose(path(bx.AmIGO(RHO, RATIO, 1, 1)), turn, rtol=1e-11)
    # BSGM's steps are in map form: that of the map times eta is rho
    problem = bx.Problem(bx.GradientStep(P.problem.inner_map.loss, RHO), P.problem.outer_loss)
    solver = bx.FixedPoint(1, bx.Constant(1.0))
    bsgm, seen = bx.BSGM(bx.SID(solver, solver), bx.optim("sgd", RATIO * RHO), warm_start=True), []
    bx.minimize(problem, bsgm, W0, P.lam, *FULL, steps=STEPS, key=KEY, every=1,
                callback=lambda at: seen.append([*at.w, *at.lam]))  # fmt: skip
    np.testing.assert_allclose(seen, turn, rtol=1e-11)


def test_on_every_row_the_product_and_the_fixed_point_form_are_one():
    """Of K factors and of K + 1 moves from 0: rho sum_{i=0}^K (I - rho H)^i g. After one step AmIGO's u is not 0."""
    first = [path(make)[0] for make in (bx.StocBiO(RHO, RATIO, 3, 7), bx.AmIGO(RHO, RATIO, 3, 8))]
    np.testing.assert_allclose(*first, rtol=1e-13)


@pytest.mark.slow
def test_one_move_of_w_and_a_drawn_term_are_bsa_alset_ttsa_and_mstsa_without_memory():
    """In blocks with a short one; constant steps are on one timescale, which falling ones of TTSA are with power 1."""
    counts = {"inner_steps": 1, "linear_steps": 3}
    bsa, alset = path(bx.BSA(RHO, RATIO, **counts), BLOCKS), path(bx.ALSET(RHO, RATIO, **counts), BLOCKS)
    np.testing.assert_allclose(alset, bsa, rtol=1e-13)
    np.testing.assert_allclose(path(bx.TTSA(RHO, RATIO, linear_steps=3), BLOCKS), bsa, rtol=1e-12)
    falling = bx.Polynomial(RHO, 0.4)
    ttsa = path(bx.TTSA(falling, RATIO, outer_power=1.0, linear_steps=3), BLOCKS)
    np.testing.assert_allclose(path(bx.MSTSA(falling, RATIO, 3, weight=1.0), BLOCKS), ttsa, rtol=1e-12)


def beside(algorithm, other):
    """How far (w, lam) after a step is at most from what another makes of the same point, on the same looks."""

    @jax.jit
    def run(problem, sources):
        def step(carry, problem, k, looks):
            state, far = carry
            new = algorithm.step(problem, state, looks, k)[0]
            found = jnp.concatenate([jnp.ravel(x) for x in algorithm.solution(new)])
            return new, jnp.maximum(far, jnp.max(jnp.abs(found - other(problem, state, new, looks, k))))

        carry = algorithm.init(problem, jnp.asarray(W0), jnp.asarray(P.lam), sources), jnp.zeros(())
        return bx.fold_looks(algorithm.streams(sources), step, carry, problem, key=KEY, start=0, stop=STEPS)[1]

    return float(run(P.problem, BLOCKS))


def test_ttsa_is_a_move_of_w_and_then_sustains_of_lam_without_memory():
    """On the same draws and schedules: SUSTAIN with weight 1 is TTSA with w and lam together."""
    sustain = bx.SUSTAIN(bx.Polynomial(RHO, 0.4), RATIO, 3, weight=1.0)

    def other(problem, state, new, looks, k):
        from_there = sustain.init(problem, new.w, state.lam, BLOCKS)
        return jnp.concatenate([new.w, sustain.step(problem, from_there, looks, k)[0].p.lam])

    ttsa = bx.TTSA(bx.Polynomial(RHO, 0.4), RATIO, outer_power=1.0, linear_steps=3)
    assert beside(ttsa, other) <= 1e-15


def test_fsla_without_memory_is_soba_in_turn():
    """One block of each of three steps of SOBA, each on draws of its own."""
    soba = bx.SOBA(RHO, RATIO)

    def other(problem, state, new, looks, k):
        def after(p, train, val):
            return soba.step(problem, p, {"train": looks[train], "val": looks[val]}, k)[0]

        p = state.p._replace(w=after(state.p, "inner", "outer").w)
        p = p._replace(u=after(p, "linear", "outer").u)
        return jnp.concatenate([p.w, after(p, "train", "val").lam])

    assert beside(bx.FSLA(RHO, RATIO, weight=1.0), other) <= 1e-15


def test_on_every_row_fsla_is_amigo_of_one_step_each_whatever_it_remembers():
    np.testing.assert_allclose(path(bx.FSLA(RHO, RATIO)), path(bx.AmIGO(RHO, RATIO, 1, 1)), rtol=1e-11)


def test_the_mean_over_horizons_of_alset_is_stocbio():
    """On every row, of one move of w: K + 1 drawn terms have the mean of K factors."""
    terms, start, seen = 4, (jnp.asarray(W0), jnp.asarray(P.lam)), {}
    alset = bx.ALSET(RHO, RATIO, linear_steps=terms)

    @jax.jit
    def first(key):
        def step(state, args, k, looks):
            return alset.step(P.problem, state, looks, k)[0]

        state = alset.init(P.problem, *start, FULL)
        return alset.solution(bx.fold_looks(alset.streams(FULL), step, state, (), key=key, start=0, stop=1))

    for seed in range(40):
        (p,), key = whole_numbers(jax.random.key(seed), "horizon", terms, 1), jax.random.key(seed)
        seen.setdefault(p, np.concatenate(first(key)))
    assert sorted(seen) == list(range(terms))
    assert np.ptp([x[D] for x in seen.values()]) > 1e-3
    expected = path(bx.StocBiO(RHO, RATIO, 1, terms - 1))[0]
    np.testing.assert_allclose(np.mean([*seen.values()], axis=0), expected, rtol=1e-12)


def test_a_moreau_envelope_of_a_long_step_is_two_copies():
    """In blocks with a short one; solution() is the copy that feels E of the one, and the other of the other."""
    given = {"multiplier": 5.0, "unit": 1.0}
    meha, f2sa = (
        path(make, BLOCKS)[:, D:] for make in (bx.MEHA(RHO, RATIO, 1e14, **given), bx.F2SA(RHO, RATIO, **given))
    )
    np.testing.assert_allclose(meha, f2sa, rtol=1e-11)


# ---- in blocks with a short one, whose draws weigh less

COUNTS = {"inner_steps": 2, "linear_steps": 3}
DOUBLE = [("inner", 2), ("linear", 3), ("train", 1)], [("val", 1)]
IN_BLOCKS = {
    "AmIGO": (bx.AmIGO(RHO, RATIO, 2, 3), partial(family.amigo, **COUNTS), DOUBLE),
    "StocBiO": (bx.StocBiO(RHO, RATIO, 2, 3), partial(family.stocbio, **COUNTS), DOUBLE),
    "F2SA": (
        bx.F2SA(RHO, RATIO, inner_steps=2, multiplier=5.0, growth=0.0, unit=1.0),
        partial(family.f2sa, inner_steps=2, multiplier=5.0),
        ([("inner", 2), ("train", 1)], [("outer", 2), ("val", 1)]),
    ),
    "BSA": (
        bx.BSA(RHO, RATIO, 2, linear_steps=1),
        partial(family.in_turn, inner_steps=2, linear_steps=1, horizon=0),
        ([("inner", 2), ("train", 1)], [("val", 1)]),
    ),
    "FSLA": (
        bx.FSLA(RHO, RATIO, weight=0.3),
        partial(family.fsla, weight=0.3),
        ([("inner", 1), ("linear", 1), ("train", 1)], [("outer", 1), ("val", 1)]),
    ),
    "MRBO": (
        bx.MRBO(RHO, RATIO, linear_steps=3, weight=1.0),
        partial(family.mrbo, linear_steps=3),
        ([("linear", 3), ("train", 1)], [("val", 1)]),
    ),
    "SUSTAIN": (
        bx.SUSTAIN(RHO, RATIO, linear_steps=1, weight=1.0),
        partial(family.plain, linear_steps=1, horizon=0),
        ([("train", 1)], [("val", 1)]),
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param("AmIGO", marks=pytest.mark.slow), *[name for name in IN_BLOCKS if name != "AmIGO"]]
)
def test_steps_in_blocks_with_a_short_one(name):
    algorithm, stages, names = IN_BLOCKS[name]
    streams = [
        [row_weights(source, stream, KEY, STEPS, number) for stream, number in part]
        for part, source in zip(names, BLOCKS, strict=True)
    ]
    rest = {"AmIGO": np.zeros(D), "F2SA": W0, "FSLA": np.zeros(3 * D + 2 * M)}.get(name, [])
    x = np.concatenate([W0, P.lam, rest, [1.0]])
    expected = []
    for k in range(STEPS):
        train, val = (iter(np.concatenate([stream[k] for stream in part])) for part in streams)
        for stage in stages(P, RHO, RATIO):
            x = stage.given(train, val) @ x
        expected.append(x[: D + M])
    assert all(np.ptp(stream.sum(axis=2)) > 0 for stream in streams[0])
    np.testing.assert_allclose(path(algorithm, BLOCKS), expected, rtol=1e-10)
