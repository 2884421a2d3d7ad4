"""Default steps: what is measured against closed forms, what it costs, and what changes no run."""

import functools
import itertools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.algorithms.common import CurvatureStep
from bilevax.algorithms.measured_steps import GROWN, LAG, SLOWER, Defaults, steeper, steepness
from bilevax.algorithms.outer_loop import advance
from bilevax.core.config import config
from bilevax.core.records import Failure
from bilevax.data.looks import stream_key
from bilevax.runs.back_off import BackOff
from bilevax.testing.closed_forms import FiniteAffine, FiniteQuadratic, PenalisedRidge
from bilevax.testing.tools import Counted, Counter, same_bits

KEY = jax.random.key(5)
N, D, M = 70, 6, 3
P = FiniteQuadratic.random(0, n=N, d=D, m=M)
W0 = np.linspace(-1.0, 1.0, D)
TARGETS = {"target": np.random.default_rng(1).normal(size=(40, D)), "r": np.linspace(0.05, 0.15, 40)}
ALGORITHMS = {
    "SOBA": bx.SOBA(),
    "MASOBA": bx.MASOBA(),
    "SABA": bx.SABA(),
    "SRBA": bx.SRBA(),
    "AmIGO": bx.AmIGO(inner_steps=3, linear_steps=3),
    "StocBiO": bx.StocBiO(inner_steps=3, linear_steps=3),
    "SUSTAIN": bx.SUSTAIN(linear_steps=3),
    "MRBO": bx.MRBO(linear_steps=3),
    "VRBO": bx.VRBO(inner_steps=2, linear_steps=3),
    "PZOBO": bx.PZOBO(inner_steps=3, perturbations=2),
    "BOME": bx.BOME(inner_steps=3),
    "VPBGD": bx.VPBGD(inner_steps=2),
    "MEHA": bx.MEHA(),
    "F2SA": bx.F2SA(),
    "FSLA": bx.FSLA(),
    "BSA": bx.BSA(inner_steps=3, linear_steps=3),
    "ALSET": bx.ALSET(linear_steps=3),
    "TTSA": bx.TTSA(linear_steps=3),
    "MSTSA": bx.MSTSA(linear_steps=3),
}
TOLD = bx.Squared("feature")
SOBA, RIDGE = bx.SOBA(), PenalisedRidge.random(0, n=60, d=4)


@config
class Pushed:
    """(outer loss - push sum(lam)) times a factor; both are numbers, of which others compile nothing."""

    factor: float = 1.0
    push: float = 0.0

    def __call__(self, w, lam, batch):
        factor, push = (jnp.asarray(x).astype(lam.dtype) for x in (self.factor, self.push))
        return factor * (bx.Squared()(w, lam, batch) - push * jnp.sum(lam))


def untold(w, lam, batch):
    """The same loss, which does not tell its curvatures."""
    return bx.Squared("feature")(w, lam, batch)


def run(name, *, dtype=np.float64, steps=300, step_size=0.2, inner_loss=TOLD, **outer):
    """Of an algorithm without steps, or of another; SABA's in blocks. The inner loss tells its penalties' curvature."""
    sampling = "blocks" if name == "SABA" else "iid"
    narrow = functools.partial(jax.tree.map, lambda x: np.asarray(x, dtype))
    sources = bx.Arrays(narrow(RIDGE.train_data), 6, sampling), bx.Arrays(narrow(RIDGE.val_data), 5, sampling)
    algorithm, start = ALGORITHMS.get(name, name), narrow((np.zeros((1, 4)), RIDGE.lam))
    problem = bx.Problem(bx.GradientStep(inner_loss, step_size), Pushed(**outer), bx.Box(-8.0, 8.0))
    return bx.minimize(problem, algorithm, *start, *sources, steps=steps, key=KEY)


# ---- runs


LONG = [name for name in ALGORITHMS if name not in ("SOBA", "F2SA")]
# what they have that the others have not is their draws; MRBO's directions are those of VRBO
LATER = "FSLA", "BSA", "ALSET", "TTSA", "MSTSA", "MRBO"
IN_TURN = [pytest.param(name, marks=pytest.mark.slow if name in LATER else ()) for name in ALGORITHMS]


@pytest.mark.slow_but("SOBA-float64", "StocBiO-float64", "F2SA-float64")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(name, np.float64, marks=pytest.mark.slow if name in LATER else ()) for name in ALGORITHMS]
    + [pytest.param(name, np.float32, marks=pytest.mark.slow if name in LONG else ()) for name in ALGORITHMS],
)
def test_neither_the_scale_of_the_outer_loss_nor_the_step_of_the_map_changes_a_run(name, dtype):
    base = run(name, dtype=dtype)
    way = np.linalg.norm(np.asarray(base.lam) - RIDGE.lam)
    assert base.lam.dtype == dtype
    assert base.code == bx.Code.OK
    assert way > 0.03
    allowed = 1e-5 if dtype == np.float32 else 1e-10
    for factor in (1e-3, 1e3):
        other = run(name, dtype=dtype, factor=factor)
        assert np.linalg.norm(np.asarray(other.lam) - np.asarray(base.lam)) < allowed * way, factor
        assert np.linalg.norm(np.asarray(other.w) - np.asarray(base.w)) < allowed * np.linalg.norm(base.w), factor
    assert np.array_equal(run(name, dtype=dtype, step_size=0.1).lam, base.lam)


@pytest.mark.slow
def test_a_map_without_a_step_gives_the_same_run():
    assert np.array_equal(run("SOBA", step_size=None).lam, run("SOBA").lam)


@pytest.mark.parametrize("name", IN_TURN)
def test_the_step_follows_a_penalty_that_grows(name):
    """From exp(-2) to exp(8), 3,000 times the curvature that was met."""
    result = run(name, push=1.0, steps=600)
    assert result.code == bx.Code.OK
    np.testing.assert_array_equal(result.lam, 8.0)
    np.testing.assert_allclose(result.w, RIDGE.w(np.full(4, 8.0)), atol=5e-3)


@pytest.mark.parametrize("name", ["SOBA", pytest.param("AmIGO", marks=pytest.mark.slow)])
def test_of_a_loss_that_does_not_tell_it_the_curvature_is_measured_where_a_stretch_failed(name):
    """A hundred times that at the start, where the same steps would have been unstable."""
    result = run(name, push=1.0, steps=3000, inner_loss=untold)
    assert result.code == bx.Code.OK
    assert result.config["steeper_from"]
    assert np.all(np.asarray(result.lam) > 3.5)
    np.testing.assert_allclose(result.w, RIDGE.w(np.asarray(result.lam)), atol=5e-3)
    # what was measured there is counted, and what failed
    assert result.history.samples[-1] == result.cost.samples


@config
class Telling:
    """A loss that tells the curvature of its penalty alone."""

    def __call__(self, w, lam, batch):
        return untold(w, lam, batch)

    def penalty_curvature(self, w, lam):
        return jnp.exp(lam)


@pytest.mark.parametrize("loss", [untold, Telling(), TOLD], ids=["untold", "penalty told", "all told"])
def test_a_penalty_that_the_step_follows_makes_no_loss_steeper(loss):
    """S = 1 / (L + p) where p is told, 1 / L else; lambda_max(S^1/2 H S^1/2), of a loss that tells all max H / L."""
    problem = bx.Problem(bx.GradientStep(loss, 0.1), bx.Squared())
    lam, (X, _), L = np.array([-2.0, 5.0, 0.0, 1.0]), RIDGE.train_data, 0.7
    step, H = bx.Polynomial(SOBA.defaults.inner / L), X.T @ X / len(X)
    if loss is untold:
        expected = np.linalg.eigvalsh(H + np.diag(np.exp(lam)))[-1] / L
    else:
        step, S = CurvatureStep(step, jnp.asarray(L), loss.penalty_curvature), np.diag((L + np.exp(lam)) ** -0.5)
        full = S @ (H + np.diag(np.exp(lam))) @ S
        expected = np.linalg.eigvalsh(H / L if loss is TOLD else full)[-1]
    sources = bx.Arrays(RIDGE.train_data), bx.Arrays(RIDGE.val_data)
    found, cost = steepness(problem, bx.SOBA(step, 0.3), np.zeros((1, 4)), lam, sources, key=KEY)
    # few power iterations, and their margin of a tenth
    assert 0.95 * expected < found < 1.11 * expected
    assert cost.samples > 0


def test_gamma_falls_with_a_steeper_loss_and_to_a_third_at_most():
    begin = bx.SOBA(bx.Polynomial(0.6), 0.3)
    for times, rho, gamma in ((2.0, 0.3, 0.06), (10.0, 0.06, 0.018)):
        followed = steeper(begin, SOBA, jnp.asarray(times))
        np.testing.assert_allclose(followed.step_size(0), rho)
        np.testing.assert_allclose(followed.step_size(0) * followed.ratio, gamma)
    assert steeper(begin, bx.SOBA(None, 0.3), jnp.asarray(2.0)).ratio == 0.3
    for times in (1.2, np.inf, np.nan):
        assert steeper(begin, SOBA, jnp.asarray(times)) is None
    assert steeper(begin, bx.SOBA(0.6), jnp.asarray(2.0)) is steeper(begin, SOBA, None) is None


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("blocks", [10, 50])
def test_the_memory_of_saba_is_stable_where_all_rows_have_one_curvature(blocks, box):
    """w(lam) = lam + mean(train), H = I: the optimum is mean(val) - mean(train), in the box."""
    rng = np.random.default_rng(0)
    train = rng.normal(size=(10 * blocks, 4))
    val = np.array([2.0, -1.0, 0.7, 0.4]) + 0.1 * rng.normal(size=(5 * blocks, 4))
    wanted = val.mean(axis=0) - train.mean(axis=0)

    def outer(w, lam, batch):
        return 0.5 * jnp.mean(jnp.sum((w[None] - batch) ** 2, -1))

    def inner(w, lam, batch):
        return outer(w - lam, lam, batch)

    problem = bx.Problem(bx.GradientStep(inner), outer, project=bx.Box(-0.5, 1.0) if box else None)
    sources = (bx.Arrays(x, b, sampling="blocks") for x, b in ((train, 10), (val, 5)))
    result = bx.minimize(problem, bx.SABA(), jnp.zeros(4), jnp.zeros(4), *sources, steps=4000, key=jax.random.key(0))
    np.testing.assert_allclose(result.lam, wanted.clip(-0.5, 1.0) if box else wanted, atol=1e-4)


def test_a_step_that_does_not_follow_it_diverges():
    rho = run("SOBA", steps=1).config["algorithm"]["step_size"]["schedule"]["value"]
    assert run(bx.SOBA(rho, 1.0), push=1.0).code >= bx.Code.NOT_CONTRACTIVE


# ---- what is measured


@config
class Unhindered(bx.SOBA):
    """SOBA whose lam does not wait for w and u, as where each step makes its own multiplier."""

    defaults: ClassVar[Defaults] = Defaults(0.5, 0.02, carried=False)


@config
class Hindered(bx.SOBA):
    """SOBA whose lam moves as quickly as w and u follow."""

    defaults: ClassVar[Defaults] = Defaults(0.5, 1e9)


UNHINDERED = Unhindered()


def steps_of(algorithm):
    """L and K that its steps stand for."""
    a, c = algorithm.defaults.inner, algorithm.defaults.outer
    return a / float(algorithm.step_size(jnp.int32(0))), c / float(algorithm.outer_step_size(jnp.int32(0)))


def sources(batch_size=7, val_size=5, sampling="iid"):
    return bx.Arrays(P.train_data, batch_size, sampling), bx.Arrays(TARGETS, val_size, sampling)


SEEN = Counter(), Counter()
"""Of train and of val."""
MAP = FiniteAffine.random(1, n=20, d=D, m=M, r=1.0)
BOXED = bx.Problem(P.problem.inner_map, P.problem.outer_loss, bx.Box(-9.0, 9.0))
QUADRATIC = BOXED, W0, P.lam
CASES = {
    "iid": (*QUADRATIC, *sources()),
    "blocks": (*QUADRATIC, *sources(sampling="blocks")),
    "every row": (*QUADRATIC, *sources(None, None)),
    "own curvature": (RIDGE.problem, np.zeros((1, 4)), RIDGE.lam, bx.Arrays(RIDGE.train_data, 9),
                      bx.Arrays(RIDGE.val_data, 7)),
    "own, every row": (RIDGE.problem, np.zeros((1, 4)), RIDGE.lam, bx.Arrays(RIDGE.train_data),
                       bx.Arrays(RIDGE.val_data, 7)),
    "map": (MAP.problem, np.zeros(D), MAP.lam, bx.Arrays(MAP.train_data), bx.Arrays(MAP.val_data)),
}  # fmt: skip


def measured(case, *, algorithm=UNHINDERED, samples=100_000, lam=None):
    """And how many minibatches of train and of val the program read for it."""
    (problem, w0, start, *_), before = CASES[case], [seen.after(()) for seen in SEEN]
    lam = start if lam is None else lam
    found = bx.measure_steps(problem, algorithm, w0, lam, *counted(case), key=KEY, samples=samples)
    return found, [seen.after(found.u0) - first for seen, first in zip(SEEN, before, strict=True)]


def counted(case):
    return [Counted(source, seen) for source, seen in zip(CASES[case][3:], SEEN, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_its_cost_is_what_the_program_reads(case):
    b, b_val = (source.rows_per_batch for source in CASES[case][3:])
    products = {"iid": 50, "blocks": 50, "every row": 8, "own curvature": 10, "own, every row": 1, "map": 0}[case]
    least = {"iid": 10, "blocks": 10, "every row": 2}.get(case, products) * b + 16 * (b + b_val)
    for samples in (1, least, 40 * (b + b_val), 100_000):
        found, reads = measured(case, samples=samples)
        cost, steps = found.cost, found.cost.gradients.reads
        inner = cost.gradients, cost.hvps, cost.cross, cost.measuring
        # three quarters of the steps are differentiated, and have a product with an error that decays,
        # along a second look at the minibatch that is in hand
        more = 3 * steps // 4
        assert reads == [sum(part.samples for part in inner) / b + more, steps]
        calls = [part.calls for part in (*inner[:3], cost.outer_gradients)]
        assert calls == [steps + more, steps + 2 * more, steps + more, steps + more]
        assert cost.measuring.calls == products
        assert 16 <= steps <= 400
        assert cost.samples <= max(samples, least)
        assert cost.samples > samples - 4 * (b + b_val) or steps == 400


def test_a_run_takes_a_share_of_its_samples_for_it():
    """5,000 of a short one, else a twentieth; in whole steps, of which four are one of its phases."""
    problem, w0, lam, *_ = CASES["every row"]
    for steps, allowed in ((10, 5000), (2000, 11_000)):
        result = bx.minimize(problem, SOBA, w0, lam, *counted("every row"), steps=steps, key=KEY)
        measuring = result.cost.samples - 110 * steps
        assert allowed - 4 * 110 < measuring <= allowed
        assert result.history.samples[0] == measuring + 110 * min(steps, 256)
        assert result.history.samples[-1] == result.cost.samples


def longest(H, t):
    """The longest of H t and its next two, from t along grad f on, each of unit length before."""
    lengths = []
    for _ in range(3):
        t = H @ (t / np.linalg.norm(t))
        lengths.append(np.linalg.norm(t))
    return max(lengths)


def test_on_every_row_both_curvatures_are_those_of_the_closed_form():
    L, K = steps_of(measured("every row")[0].algorithm)
    assert 0.95 * P.curvature.L < L <= 1.1 * P.curvature.L
    G = np.linalg.solve(P.A.mean(0), P.B.mean(0))
    H = G.T @ G + 0.1 * np.eye(M)
    np.testing.assert_allclose(K, longest(H, G.T @ (P.w(P.lam) - TARGETS["target"].mean(0)) + 0.1 * P.lam), rtol=1e-5)
    assert 0.9 < K / np.linalg.eigvalsh(H)[-1] < 1.0001


def test_lam_moves_as_quickly_as_the_slowest_error_of_w_decays():
    """By 2 rate, rate = tau / L to the first order: of a move by 1 / (2 L), twice as much as of that by 1 / (4 L)."""
    found = measured("every row")[0].algorithm
    _, K = steps_of(found)
    L, _ = steps_of(found)
    gamma = float(measured("every row", algorithm=Hindered())[0].algorithm.outer_step_size(jnp.int32(0)))
    rate = -np.log(1 - 0.5 * P.curvature.tau / L) / 0.5
    np.testing.assert_allclose(gamma * K, LAG * Hindered().defaults.inner * rate, rtol=1e-3)


@config
class HinderedCopies(bx.F2SA):
    """F2SA whose lam moves as quickly as both copies follow."""

    defaults: ClassVar[Defaults] = Defaults(0.5, 1e9)


@config
class HinderedLoop(bx.AmIGO):
    """AmIGO, likewise."""

    defaults: ClassVar[Defaults] = Defaults(0.5, 1e9)


def test_more_moves_of_w_and_a_penalty_make_lam_wait_less():
    """T (r + 1 / multiplier), T = 1 and no multiplier in SOBA."""

    def outer_step(algorithm):
        return float(measured("every row", algorithm=algorithm)[0].algorithm.outer_step_size(jnp.int32(0)))

    a, (_, K) = 0.5, steps_of(measured("every row")[0].algorithm)
    r = K * (base := outer_step(Hindered())) / a
    for T in (1, 4):
        np.testing.assert_allclose(outer_step(HinderedLoop(inner_steps=T)), T * base, rtol=1e-10)
    for multiplier in (5.0, 20.0):
        found = outer_step(HinderedCopies(multiplier=multiplier))
        np.testing.assert_allclose(found * K, a * (r + 1 / multiplier), rtol=1e-10)


def carried(r, g):
    """w + r (lam - w), u + w - r u, lam - g r u: of G = h (w - lam)^2 / 2 and E = w^2 / 2, r = rho h, u over rho."""
    return [[1 - r, 0, r], [1, 1 - r, 0], [0, -g * r, 1]]


def carried_in_turn(r, g, T=10):
    """T moves of w, T of u, one of lam."""
    W = (1 - r) ** T
    u = np.array([[1, 0, 0], [(1 - W) / r, W, 0], [0, 0, 1]])
    return np.array([[1, 0, 0], [0, 1, 0], [0, -g * r, 1]]) @ u @ np.array([[W, 0, 1 - W], [0, 1, 0], [0, 0, 1]])


def anew(r, g):
    """u = w / h."""
    return [[1 - r, r], [-g, 1]]


def anew_in_turn(r, g):
    return np.array([[1, 0], [-g, 1]]) @ np.array([[1 - r, r], [0, 1]])


def copies(r, g, c=10.0):
    """z + r (lam - z) - rho z / c, lam - gamma c h (w - z)."""
    return [[1 - r, 0, r], [0, 1 - r - 1 / c, r], [-g * c * r, g * c * r, 1]]


MOVES = {
    carried: (bx.SOBA, bx.SABA, bx.SRBA),
    carried_in_turn: (bx.AmIGO,),
    anew: (bx.SUSTAIN, bx.MRBO, bx.VRBO, bx.BOME),
    anew_in_turn: (bx.StocBiO, bx.BSA, bx.ALSET, bx.TTSA, bx.MSTSA, bx.PZOBO, bx.SCGD),
    copies: (bx.F2SA, bx.VPBGD),
}


@pytest.mark.parametrize("moves", MOVES, ids=lambda moves: moves.__name__)
def test_lam_does_not_run_away_from_what_lags_behind_it(moves):
    """The moves of a step as a matrix. Where u is carried, three times that speed is too fast."""
    for algorithm in MOVES[moves]:
        d, made = algorithm.defaults, algorithm()
        T, multiplier = getattr(made, "inner_steps", 1), getattr(made, "multiplier", np.inf)
        # a = rho_0 L, that of the class or of a rho_0 that is given
        for rate, a in itertools.product((1e-3, 1e-2, 0.1, 0.5), (d.inner, 0.01 * d.inner)):
            r, g = a * rate, float(d.speed(jnp.asarray(rate), a, T, multiplier))
            assert radius(moves(r, g)) < 1.0
            assert moves not in (anew, anew_in_turn) or g == pytest.approx(d.outer)
            assert moves not in (carried, carried_in_turn) or g == d.outer or radius(moves(r, 3.0 * g)) > 1.0


def radius(matrix):
    return np.abs(np.linalg.eigvals(np.array(matrix))).max()


def test_where_every_error_vanishes_at_once_lam_need_not_wait():
    """In float32 what decays by .1 a step for 100 steps is 0."""
    narrow = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float32))
    data = {"A": np.tile(np.eye(D), (N, 1, 1)), "b": P.b, "B": P.B}
    train, val = (bx.Arrays(narrow(x)) for x in (data, TARGETS))
    found = bx.measure_steps(BOXED, Hindered(), *narrow((W0, P.lam)), train, val, key=KEY, samples=10**6)
    found = found.algorithm.outer_step_size(jnp.int32(0))
    assert 0.05 < float(found) < 1.0


def test_on_minibatches_they_are_those_of_the_steepest_and_near_it():
    """In blocks each of the ten is looked at once."""
    numbers = bx.Arrays(np.arange(N), 7, "blocks")
    log = numbers.fold(lambda log, args, j, draw: log.at[j].set(draw.batch), jnp.zeros((10, 7), int), (), key=KEY,
                       start=0, stop=10)  # fmt: skip
    steepest = max(np.linalg.eigvalsh(P.A[np.asarray(rows)].mean(0))[-1] for rows in log)
    assert steepest > 1.5 * P.curvature.L
    G = np.linalg.solve(P.A.mean(0), P.B.mean(0))
    largest = np.linalg.eigvalsh(G.T @ G + 0.1 * np.eye(M))[-1]
    L, K = steps_of(measured("blocks")[0].algorithm)
    assert 0.8 * steepest < L <= 1.1 * steepest
    assert 0.9 < K / largest < 1.1
    L, K = steps_of(measured("iid")[0].algorithm)
    assert 1.5 * P.curvature.L < L
    assert 0.8 < K / largest < 1.4


def test_of_a_map_the_step_is_in_units_of_the_map():
    """d1Phi is not symmetric: the derivative of the mean direction is."""
    rho, K = steps_of(measured("map")[0].algorithm)
    assert rho == 1.0  # in units of the map: L is 1
    G = np.linalg.solve(np.eye(D) - MAP.M.mean(0), MAP.B.mean(0))
    np.testing.assert_allclose(K, longest(G.T @ G + np.eye(M), MAP.hypergradient(MAP.lam)), rtol=1e-8)


def test_of_a_loss_that_knows_its_curvature_that_is_taken():
    """Its step at lam is a / (L + exp(lam)), an entry a penalty."""
    found = measured("own, every row")[0].algorithm
    L = 1.1 * np.linalg.eigvalsh(RIDGE.X.T @ RIDGE.X / 60)[-1]
    rho = found.step_size.at(jnp.int32(0), jnp.zeros((1, 4)), jnp.asarray(RIDGE.lam))
    np.testing.assert_allclose(rho, found.defaults.inner / (L + np.exp(RIDGE.lam))[None], rtol=1e-3)


def test_w_and_u_are_led_near_where_they_belong_and_lam_stays():
    found = measured("every row")[0]
    w = P.w(P.lam)
    np.testing.assert_allclose(found.w0, w, rtol=1e-8)
    np.testing.assert_allclose(found.u0, np.linalg.solve(P.A.mean(0), w - TARGETS["target"].mean(0)), rtol=1e-7)


def test_a_lam_outside_of_lambda_is_projected_before():
    far = np.array([100.0, -100.0, 0.0])
    first, second = (measured("every row", lam=lam)[0] for lam in (far, np.clip(far, -9.0, 9.0)))
    assert same_bits(first, second)


def test_what_is_given_stays():
    given = measured("iid", algorithm=Unhindered(0.3))[0].algorithm
    assert given.step_size == bx.Constant(0.3)
    (_, K), (_, same) = (steps_of(x) for x in (given, measured("iid")[0].algorithm))
    np.testing.assert_allclose(K, same, rtol=1e-12)
    given = measured("iid", algorithm=Unhindered(ratio=0.3))[0].algorithm
    assert given.ratio == 0.3
    assert steps_of(given)[0] == steps_of(measured("iid")[0].algorithm)[0]
    assert measured("iid", algorithm=bx.F2SA(0.3, 0.2, unit=2.0))[0].algorithm == bx.F2SA(0.3, 0.2, unit=2.0)


def test_the_unit_of_a_penalty_is_the_ratio_of_the_gradients_that_were_met():
    """Of F2SA: on every row, along the recursion of w from w0."""
    found = measured("every row", algorithm=bx.F2SA())[0].algorithm
    A, b, B = P.means
    rho, w, squares = 0.5 / steps_of(measured("every row")[0].algorithm)[0], W0, np.zeros(2)
    for _ in range(100):
        inner, outer = A @ w - b - B @ P.lam, w - TARGETS["target"].mean(0)
        squares += inner @ inner, outer @ outer
        w = w - rho * inner
    np.testing.assert_allclose(found.unit, np.sqrt(squares[1] / squares[0]), rtol=1e-9)


# ---- what goes wrong


@pytest.mark.slow
def test_where_measuring_becomes_nan_a_run_ends_with_what_it_was_given():
    """The inner loss is NaN."""
    problem = bx.Problem(bx.GradientStep(Nowhere(), 0.2), Pushed(), bx.Box(-8.0, 8.0))
    data = bx.Arrays(RIDGE.train_data, 6), bx.Arrays(RIDGE.val_data, 5)
    result = bx.minimize(problem, SOBA, np.ones((1, 4)), RIDGE.lam, *data, steps=20, key=KEY)
    assert result.code == bx.Code.NONFINITE
    np.testing.assert_array_equal(result.w, 1.0)
    np.testing.assert_array_equal(result.lam, RIDGE.lam)


@pytest.mark.parametrize("rho", [0.05, 0.005])
def test_lam_follows_a_step_of_w_that_is_given(rho):
    """gamma_0 / rho_0 is the same for every rho_0 that is short: that of a long one would let lam run away."""
    ratio = measured("every row", algorithm=Hindered(rho))[0].algorithm.ratio
    np.testing.assert_allclose(
        ratio, measured("every row", algorithm=Hindered(0.5 * rho))[0].algorithm.ratio, rtol=1e-9
    )
    own = measured("every row", algorithm=Hindered())[0].algorithm
    np.testing.assert_allclose(ratio, own.ratio, rtol=1e-9)


def test_a_run_on_a_loss_without_a_minimum_has_failed():
    """Measuring takes w beyond every bound already, where a run would see it grow no more."""

    def inner(w, lam, batch):
        return -0.5 * jnp.mean(batch) * w @ w - w @ lam

    rows = bx.Arrays(jnp.asarray([0.5, 1.0, 1.5, 2.0] * 20), 10)
    problem = bx.Problem(bx.GradientStep(inner), lambda w, lam, batch: 0.5 * jnp.sum((w - 1) ** 2))
    result = bx.minimize(problem, SOBA, np.zeros(3), np.zeros(3), rows, rows, steps=256, key=KEY)
    assert result.code == bx.Code.DIVERGED


@config
class Nowhere:
    """A loss that is NaN."""

    def __call__(self, w, lam, batch):
        return bx.Squared("feature")(w, lam, batch) * jnp.nan


def step_of_ones_own(algorithm):
    problem, data = CASES["iid"][0], CASES["iid"][3:]
    state = algorithm.init(problem, jnp.asarray(W0), jnp.asarray(P.lam), data)

    def step(state, args, k, looks):
        return algorithm.step(problem, state, looks, k)[0]

    return bx.fold_looks(algorithm.streams(data), step, state, (), key=KEY, start=0, stop=3)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "SABA"])
def test_a_loop_of_ones_own_without_steps_is_told_so(name):
    with pytest.raises(bx.ParameterError, match=f"{name} was built without .*call bx.measure_steps first, or give"):
        step_of_ones_own(ALGORITHMS[name])


WRONG = {
    "step": (lambda: bx.SOBA(step_size=-1), "step_size must lie in"),
    "weight": (lambda: bx.SUSTAIN(weight=1.5), r"weight must lie in \]0, 1\]"),
    "ratio": (lambda: bx.SABA(ratio=0.0), "ratio must lie in"),
    "drawn": (lambda: bx.VRBO(inner_steps=30), r"\(inner_steps \+ 1\) linear_steps must be at most 256, got 310"),
    "unit": (lambda: bx.F2SA(unit=-2.0), "unit must lie in"),
    "no steps of its own": (lambda: measured("iid", algorithm=bx.CG()), "the steps of a CG cannot be measured"),
    "samples": (lambda: measured("iid", samples=0), "samples must be at least 1"),
    "lam": (lambda: measured("iid", lam=np.arange(3)), "leaf lam is int64; pass a float array"),
    "proximal": (lambda: bx.MEHA(proximal=0.0), "proximal must lie in"),
    "perturbations": (lambda: bx.PZOBO(perturbations=0), "perturbations must be at least 1"),
    **{
        f"a map for {kind.__name__}": (
            lambda kind=kind: bx.minimize(MAP.problem, kind(), *CASES["map"][1:], steps=10, key=KEY),
            f"{kind.__name__} needs an inner loss",
        )
        for kind in (bx.BOME, bx.VPBGD, bx.MEHA)
    },
    "no blocks": (
        lambda: bx.minimize(P.problem, bx.SABA(), W0, P.lam, *CASES["iid"][3:], steps=10, key=KEY),
        "SABA remembers blocks, and train has none",
    ),
    "a map": (
        lambda: bx.minimize(MAP.problem, bx.F2SA(), *CASES["map"][1:], steps=10, key=KEY),
        "F2SA needs an inner loss",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_before_anything_is_compiled(refused, case):
    call, message = WRONG[case]
    refused(call, bx.ParameterError, message)


@config
class Hasty(bx.SOBA):
    """SOBA with measured steps that are four times too long."""

    defaults: ClassVar[Defaults] = Defaults(8.0, 0.1)


def test_a_stretch_that_diverged_is_made_again_with_slower_steps():
    """And the run ends as if they had been so from there on; its last failure is not its own."""
    problem, w0, lam, *_ = CASES["every row"]
    sources = CASES["every row"][3:]
    result = bx.minimize(problem, Hasty(), w0, lam, *sources, steps=2000, key=KEY)
    assert result.code < bx.Code.DIVERGED
    # rho is halved every third time, and has to be a quarter
    assert len(result.config["slower_from"]) == 6
    assert np.all(np.isfinite(result.w))
    assert result.history.step[-1] == 2000
    # each stretch that was undone is counted too
    assert result.cost.gradients.reads > result.cost.outer_gradients.reads - 1 >= 2000
    given = bx.minimize(problem, bx.SOBA(8.0 / P.curvature.L, 0.01), w0, lam, *sources, steps=2000, key=KEY)
    assert given.code >= bx.Code.DIVERGED
    assert "slower_from" not in given.config


@config
class Rash(bx.SOBA):
    """SOBA whose lam moves a hundred times as far as it should."""

    defaults: ClassVar[Defaults] = Defaults(1.0, 20.0, carried=False)


def test_a_stretch_in_which_the_direction_of_lam_grows_is_made_again_with_a_third_of_gamma():
    _, w0, lam, *sources = CASES["every row"]
    problem = bx.Problem(P.problem.inner_map, P.problem.outer_loss)  # a box would hold lam
    found = bx.measure_steps(problem, Rash(), w0, lam, *sources, key=stream_key(KEY, "measuring"))
    G = np.linalg.solve(P.A.mean(0), P.B.mean(0))
    gradient = G.T @ (P.w(P.lam) - TARGETS["target"].mean(0)) + 0.1 * P.lam
    np.testing.assert_allclose(found.limit, GROWN * np.linalg.norm(gradient), rtol=0.05)
    result = bx.minimize(problem, Rash(), w0, lam, *sources, steps=1500, key=KEY)
    assert result.code < bx.Code.DIVERGED
    # gamma K from 20 to 20 / 81
    assert result.config["slower_from"] == [0, 0, 0, 0]
    assert result.history.gradient_norm[-1] < 1e-5 * np.linalg.norm(gradient)


def test_a_stretch_beyond_the_limit_fails_and_moves_nothing():
    problem, _, lam, *sources = CASES["every row"]
    algorithm = bx.SOBA(0.3, 0.1)
    state = algorithm.init(problem, jnp.asarray(W0), jnp.asarray(lam), sources)
    ends = {"key": KEY, "start": jnp.int32(0), "stop": jnp.int32(512)}
    run = jax.jit(functools.partial(advance, problem, algorithm, state, sources, **ends))
    free = run(limit=np.inf)
    first, second = free.records.gradient_norm[:2]
    assert first < second
    assert same_bits(run(limit=1.001 * second), free)
    for limit, number in ((0.999 * second, 2), (0.999 * first, 1)):
        stopped = run(limit=limit)
        assert stopped.records.code[number - 1] == bx.Code.DIVERGED
        assert (stopped.number, stopped.step) == (number, 256 * number)
    assert same_bits(stopped.state, state)


class Last(NamedTuple):
    """What :class:`BackOff` reads of a record."""

    code: bx.Code
    gradient_norm: float
    failure: Failure = Failure.of("none")


def test_what_is_tried_against_a_direction_that_grows():
    """Gamma a third; where that did not help a higher limit, and no slower steps; six of these at most."""
    begin, back_off = bx.SOBA(0.6, 0.3), BackOff(BOXED, SOBA)
    back_off.limit, algorithm = 1.0, begin
    _, algorithm = back_off.again(BOXED, algorithm, Last(bx.Code.DIVERGED, 2.0), 256, lambda: None)
    assert (float(algorithm.step_size(0)), algorithm.ratio) == (0.6, 0.3 / SLOWER)
    assert back_off.limit == 1.0
    _, same = back_off.again(BOXED, algorithm, Last(bx.Code.DIVERGED, 1.8), 256, lambda: None)
    assert same is algorithm
    assert back_off.limit == 1.8 * GROWN
    _, algorithm = back_off.again(BOXED, algorithm, Last(bx.Code.DIVERGED, 99.0), 512, lambda: None)
    # it helped, if not enough
    _, algorithm = back_off.again(BOXED, algorithm, Last(bx.Code.DIVERGED, 40.0), 512, lambda: None)
    assert back_off.limit == 1.8 * GROWN
    for step in range(1, 4):
        _, algorithm = back_off.again(BOXED, algorithm, Last(bx.Code.NONFINITE, np.inf), step, lambda: None)
    # a run that grows beyond it once more has failed
    assert back_off.limit == 1.8 * GROWN
    assert back_off.tried == {"slower_from": [256, 512, 512, 1, 2, 3]}
    # twice rho is halved, and so the ratio is divided by less
    np.testing.assert_allclose(float(algorithm.step_size(0)), 0.6 / 4)
    np.testing.assert_allclose(algorithm.ratio, 0.3 * 4 / SLOWER**6)
    assert back_off.again(BOXED, algorithm, Last(bx.Code.NONFINITE, np.inf), 9, lambda: None) is None
    assert BackOff(BOXED, begin).again(BOXED, begin, Last(bx.Code.DIVERGED, 2.0), 1, lambda: None) is None
