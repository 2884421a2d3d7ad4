"""Faults C1 to C6 (docs/faults.md): maps that do not contract, contract slowly, or only seem not to.

Every map is w <- A w + b + lam with A of one size, so that few programs are compiled; its iterates are known in numpy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.records import STAGES

KEY = jax.random.key(0)
D = 30
GROWTH = (bx.Code.NOT_CONTRACTIVE, bx.Code.DIVERGED)
SHORT = (bx.Code.MAX_STEPS, bx.Code.TOLERANCE_NOT_MET)


def affine(w, lam, batch):
    A, b = batch
    return A[0] @ w + b[0] + lam


def total(w, lam, batch):
    """Its gradients are one in w and zero in lam: v is the sum of the powers of A^T, applied to ones."""
    return jnp.sum(w) + 0.0 * jnp.mean(batch) * jnp.sum(lam)


PROBLEM = bx.Problem(affine, total)


def padded(A, b=1.0):
    """A and b on the first entries, zero on the others."""
    A = np.asarray(A, float)
    out, shift = np.zeros((D, D)), np.zeros(D)
    out[: len(A), : len(A)], shift[: len(A)] = A, b
    return out, shift


def estimate(A, b, estimator, w0=None, batch_size=None, kind=float, problem=PROBLEM, tol=np.inf):
    A, b = padded(A, b)
    rows = bx.Arrays((np.stack([A, A]).astype(kind), np.stack([b, b]).astype(kind)), batch_size)
    w0 = np.zeros(D) if w0 is None else np.broadcast_to(w0, D)
    val = bx.Arrays(np.zeros(2, kind))
    return bx.hypergradient(problem, estimator, w0.astype(kind), np.zeros(D, kind), rows, val, key=KEY, tol=tol)


def stage(est):
    return STAGES[int(est.failure.stage)]


def iterate(A, b, steps, w0=0.0):
    A, b = padded(A, b)
    w = np.broadcast_to(w0, D)
    for _ in range(steps):
        w = A @ w + b
    return w


def ways(steps):
    """The three iterations of a fixed point: of w, of v, and of the terms of v."""
    return {
        "inner": bx.SID(bx.FixedPoint(steps), bx.FixedPoint(0)),
        "linear": bx.SID(bx.Given(), bx.FixedPoint(steps)),
        "Neumann": bx.SID(bx.Given(), bx.Neumann(max_steps=max(steps, 1))),
    }


WAYS = tuple(ways(1))


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


# C1, C2: no contraction


@pytest.mark.parametrize("way", WAYS)
def test_c1_the_shift_map(way):
    """w + 1 moves by one and the same length for ever. Neither a long way from the start nor few steps hide it."""
    for steps, w0 in ((12, 0.0), (60, 0.0), (500, 0.0), (60, 1e6)):
        est = estimate(np.eye(3), 1.0, ways(steps)[way], w0)
        assert est.code == bx.Code.NOT_CONTRACTIVE, (steps, w0)
        assert stage(est) == ("inner" if way == "inner" else "linear")
        assert "does not contract" in est.message
    few = estimate(np.eye(3), 1.0, ways(5)[way])
    assert few.code in SHORT


def test_c1_itd_on_the_shift_map():
    assert estimate(np.eye(3), 1.0, bx.ITD(20)).code in GROWTH


def test_c2_itd_on_an_expanding_map():
    assert estimate(2.0 * np.eye(3), 1.0, bx.ITD(20)).code in GROWTH


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("q", "within"), [(1.1, 50), (1.3, 20), (2.0, 20), (1000.0, 20), (-1.1, 50), (-2.0, 20)])
def test_c2_an_expanding_map_is_named_at_once(q, within, way):
    """Beside a direction that contracts, too; with so many steps in all as with ten times as many."""
    for A in (q * np.eye(3), np.diag([q, 0.5, -0.9]), abs(q) * rotation(1.0)):
        for steps in (within, 500):
            est = estimate(A, 1.0, ways(steps)[way])
            assert est.code in GROWTH, (A, steps)
            assert stage(est) == ("inner" if way == "inner" else "linear")
            assert 0 < est.failure.step <= within
    assert "does not contract" in est.message


@pytest.mark.parametrize("q", [1.1, 2.0, 1000.0, -2.0])
def test_c2_the_last_iterate_is_kept(q):
    """One of the iteration itself, from before it was ended: not zero, not the start, not the next one."""
    est = estimate(q * np.eye(3), 1.0, ways(500)["inner"])
    np.testing.assert_allclose(est.w, iterate(q * np.eye(3), 1.0, int(est.failure.step) - 1), rtol=1e-12)
    assert est.cost.gradients.calls == est.failure.step


@pytest.mark.parametrize("q", [2.0, 1e3, 1e20])
def test_c2_in_float32_growth_is_named_before_its_squares_overflow(q):
    est = estimate(q * np.eye(3), 1.0, ways(200)["inner"], kind=np.float32)
    assert np.isfinite(est.w).all()
    assert est.w.dtype == np.float32
    assert est.code in GROWTH


@pytest.mark.parametrize(
    "q",
    [
        1.1,
        2.0,
        1000.0,
    ],
)
def test_c2_on_minibatches(q):
    sid = bx.SID(bx.FixedPoint(50 if q < 1.3 else 20), bx.FixedPoint(0))
    est = estimate(q * np.eye(3), 1.0, sid, batch_size=1)
    assert est.code in GROWTH
    assert np.isfinite(est.w).all()
    assert est.cost.measuring.calls > 0


@pytest.mark.parametrize("q", [1.3, 2.0, 1e3, 1e20])
def test_c2_on_minibatches_in_float32(q):
    est = estimate(q * np.eye(3), 1.0, bx.SID(bx.FixedPoint(100), bx.FixedPoint(0)), batch_size=1, kind=np.float32)
    assert est.code in GROWTH
    assert np.isfinite(est.w).all()


def test_c2_a_run_ends_where_its_map_expands():
    """A run of two steps does not go on with a hypergradient from a map that diverged."""
    A, b = padded(1000.0 * np.eye(3))
    rows, val = bx.Arrays((np.stack([A, A]), np.stack([b, b])), 1), bx.Arrays(np.zeros(2))
    algorithm = bx.BSGM(bx.SID(bx.FixedPoint(30), bx.FixedPoint(5)), bx.optim("sgd", 0.1))
    result = bx.minimize(PROBLEM, algorithm, np.zeros(D), np.ones(D), rows, val, steps=2, key=KEY)
    assert result.code == bx.Code.DIVERGED
    assert len(result.history.code) == 1
    assert np.array_equal(result.lam, np.ones(D))


# C3, C4: slow, and a little too fast


@pytest.mark.parametrize("way", WAYS)
def test_c3_fifty_steps_of_a_slow_map_are_too_few(way):
    """.99 w + 100 is at 3950 of 10,000."""
    est = estimate([[0.99]], 100.0, ways(50)[way])
    assert est.code in SHORT
    assert stage(est) == ("inner" if way == "inner" else "linear")
    if way == "inner":
        np.testing.assert_allclose(est.w[0], 1e4 * (1 - 0.99**50), rtol=1e-12)


@pytest.mark.parametrize(
    ("q", "steps"), [(0.5, 5), (0.5, 20), (0.9, 15), (0.9, 100), (0.99, 15), (0.99, 50), (0.99, 500), (-0.9, 50)]
)
def test_c3_the_error_that_is_estimated_is_of_the_right_order(q, steps):
    """It is OK if and only if the relative error, here q^steps / |1 - q^steps|, is at most tol: twice, half."""
    truth = abs(q) ** steps / abs(1 - q**steps)
    if q > 0:
        assert ok_at(2.0 * truth, q, steps)
    assert not ok_at(0.5 * truth, q, steps)
    assert ok_at(40.0 * truth, q, steps)  # an alternating map, whose error is 19 times smaller than said


def ok_at(tol, q, steps):
    est = estimate([[q]], 100.0, bx.SID(bx.FixedPoint(steps, tol=tol), bx.FixedPoint(0)))
    assert est.code in (bx.Code.OK, *SHORT)
    return est.code == bx.Code.OK


def test_c3_the_estimated_error_is_reported():
    est = estimate([[0.99]], 100.0, bx.SID(bx.FixedPoint(50), bx.FixedPoint(50)))
    assert 0.5 * 1.53 < est.error.relative < 8.0 * 1.53  # rather too large: w and v each count three times


def test_c3_itd():
    assert estimate([[0.99]], 100.0, bx.ITD(50)).code == bx.Code.TOLERANCE_NOT_MET


def bowl(w, lam, batch):
    A, b = batch
    return 0.5 * jnp.vdot(w, A[0] @ w) - jnp.vdot(b[0] + lam, w)


def descent(step):
    return estimate(
        np.diag(np.r_[0.1, 4.0, np.ones(D - 2)]), 1.0, bx.SID(bx.FixedPoint(400), bx.FixedPoint(400)),
        problem=bx.Problem(bx.GradientStep(bowl, step / 4.0), total),
    )  # fmt: skip


@pytest.mark.parametrize("step", [2.1, 2.5, 20.0])
def test_c4_a_step_that_is_too_large_is_named(step):
    """2.1 / L: one direction of three grows, by 1.1."""
    est = descent(step)
    assert est.code in GROWTH
    assert stage(est) == "inner"
    assert "a step size above 2 / (largest curvature)" in est.message
    assert "smaller step" in est.message
    assert est.failure.step <= 50


def test_c4_control_a_step_just_below():
    assert descent(1.9).code == bx.Code.OK
    np.testing.assert_allclose(descent(1.9).w[:3], [10.0, 0.25, 1.0], rtol=1e-6)


def test_c4_the_message_says_which_step_would_do():
    assert "2.1/L" in descent(2.1).message
    assert "estimated L = 4." in descent(2.1).message


@pytest.mark.slow
def test_c4_of_a_run_of_itd_and_of_the_linear_solver():
    A, b = padded(np.diag(np.r_[0.1, 4.0, np.ones(D - 2)]))
    problem = bx.Problem(bx.GradientStep(bowl, 2.1 / 4.0), total)
    for estimator in (bx.ITD(100), bx.ITD(100, last=5), bx.SID(bx.Given(), bx.FixedPoint(400))):
        message = estimate(A, b, estimator, problem=problem).message
        assert "step 2.1/L; try at most 2/L; estimated L = 4." in message
    rows, val = bx.Arrays((np.stack([A, A]), np.stack([b, b])), 1), bx.Arrays(np.zeros(2))
    algorithm = bx.BSGM(bx.SID(bx.FixedPoint(500), bx.FixedPoint(500)), bx.optim("sgd", 0.1))
    result = bx.minimize(problem, algorithm, np.zeros(D), np.zeros(D), rows, val, steps=2, key=KEY)
    assert result.code == bx.Code.DIVERGED
    assert "DIVERGED in the inner solver, step 500 of outer step 0" in result.message
    assert "step 2.1/L" in result.message


def test_c4_a_step_that_is_not_to_blame_is_not_blamed():
    """A saddle: no step would do."""
    H = np.diag(np.r_[-1.0, 4.0, np.ones(D - 2)])
    est = estimate(
        H, 1.0, bx.SID(bx.FixedPoint(100), bx.FixedPoint(0)), problem=bx.Problem(bx.GradientStep(bowl, 0.1), total)
    )
    assert est.code == bx.Code.NOT_CONTRACTIVE
    assert "/L" not in est.message


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("angle", [0.3, 1.0, np.pi / 2, 2.5, np.pi])
def test_c5_a_rotation_does_not_contract(angle, way):
    """Nothing grows and nothing falls: the residual is of one length for ever."""
    for steps in (50, 400):
        est = estimate(rotation(angle), np.array([1.0, 0.0]), ways(steps)[way])
        assert est.code == bx.Code.NOT_CONTRACTIVE, steps
        assert np.isfinite(est.w).all()


# C6: growth that ends


def jordan(q, d, c=1.0):
    return q * np.eye(d) + c * np.eye(d, k=1)


def triangular(seed, d=20):
    rng = np.random.default_rng(seed)
    return np.diag(rng.uniform(-0.9, 0.9, d)) + np.triu(rng.normal(size=(d, d)), 1)


LONG = {
    "half-and-shift": jordan(0.5, 30),
    "transposed": jordan(0.5, 30).T,
    "twice-the-shift": jordan(0.5, 30, 2.0),
    "nilpotent": jordan(0.0, 30, 2.0),
    "one-large-entry": jordan(0.9, 2, 100.0),
    "one-huge-entry": jordan(0.95, 2, 1e6),
    "triangular-0": triangular(0),
    "triangular-1": triangular(1),
    "triangular-2": triangular(2),
    "jordan-.9-4": jordan(0.9, 4),
    "jordan-.9-10": jordan(0.9, 10),
    "jordan-.99-2": jordan(0.99, 2),
    "jordan-.99-1000": jordan(0.99, 2, 1000.0),
}


@pytest.mark.parametrize("A", LONG.values(), ids=LONG)
def test_c6_a_map_that_grows_at_first_is_not_accused(A):
    """Norm above one, spectral radius below: at every number of steps, in w, in v and in the terms of v."""
    assert np.linalg.norm(A, 2) > 1
    assert np.abs(np.linalg.eigvals(A)).max() < 1
    for steps in (11, 15, 20, 30, 60, 150):
        for way, sid in ways(steps).items():
            assert estimate(A, 1.0, sid).code in (bx.Code.OK, *SHORT), (steps, way)


@pytest.mark.slow_but("jordan-.9-4", "nilpotent")
@pytest.mark.parametrize("A", LONG.values(), ids=LONG)
def test_c6_nor_on_minibatches(A):
    for steps in (11, 20, 30, 60, 150):
        for way in ("inner", "linear"):
            est = estimate(A, 1.0, ways(steps)[way], batch_size=1)
            assert est.code == bx.Code.OK, (steps, way)


@pytest.mark.parametrize("A", LONG.values(), ids=LONG)
def test_c6_and_is_ok_in_the_end(A):
    est = {way: estimate(A, 1.0, sid) for way, sid in ways(3000).items()}
    assert [int(e.code) for e in est.values()] == [bx.Code.OK] * 3
    full, b = padded(A)
    w, v = np.linalg.solve(np.eye(D) - full, b), np.linalg.solve(np.eye(D) - full.T, np.ones(D))
    np.testing.assert_allclose(est["inner"].w, w, rtol=1e-5, atol=1e-6 * np.abs(w).max())
    for way in ("linear", "Neumann"):
        np.testing.assert_allclose(est[way].v, v, rtol=1e-4, atol=1e-5 * np.abs(v).max())


def test_c6_a_converged_non_normal_map_is_ok_however_long_it_runs():
    turn, zero = 0.95 * rotation(np.pi / 2), np.zeros((2, 2))
    A = np.block([[turn, 10 * np.eye(2)], [zero, turn]])
    b = np.array([0.3, -1.2, 0.7, 0.1])
    truth = np.linalg.solve(np.eye(4) - A, b)
    for steps in (400, 1000, 4000):
        est = estimate(A, b, ways(steps)["inner"])
        np.testing.assert_allclose(est.w[:4], truth, rtol=1e-5)  # after 400, k .95^k is 5e-7 still
        assert est.code == bx.Code.OK
