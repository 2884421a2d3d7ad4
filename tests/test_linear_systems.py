"""Faults C7 to C12 (docs/faults.md): linear systems: singular, indefinite, not symmetric, zero, or solved already."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.records import STAGES

KEY = jax.random.key(0)
D = 6
STEP = 0.1
SOLVERS = {
    "CG": bx.CG(),
    "GMRES": bx.GMRES(restart=D),
    "Neumann": bx.Neumann(),
    "Exact": bx.Exact(),
    "FixedPoint": bx.FixedPoint(1000),
}


def bowl(w, lam, batch):
    H, b = batch
    return 0.5 * jnp.vdot(w, H[0] @ w) - jnp.vdot(b[0] + lam, w)


@jax.custom_jvp
def potential(w, H):
    """No potential: its gradient is said to be H w whether or not H is symmetric, as a custom derivative may."""
    return 0.5 * jnp.vdot(w, H @ w)


potential.defjvp(lambda at, along: (potential(*at), jnp.vdot(at[1] @ at[0], along[0])))


def field(w, lam, batch):
    """A "loss" whose gradient H w - b - lam is that of no loss."""
    H, b = batch
    return potential(w, H[0]) - jnp.vdot(b[0] + lam, w)


def weighted(w, lam, batch):
    """grad_1 = the weights, grad_2 = 3."""
    return jnp.vdot(w, batch[0]) + 3.0 * jnp.sum(lam)


def estimate(H, linear, *, inner=None, g=None, w0=None, loss=bowl, estimator=None):
    """The hypergradient at w0 (or from there on), where (I - d1Phi^T) = STEP H^T and grad_1 E = g."""
    g = np.ones(D) if g is None else g
    rows = bx.Arrays((np.asarray(H, float)[None], np.ones((1, D))))
    problem = bx.Problem(bx.GradientStep(loss, STEP), weighted)
    sid = bx.SID(bx.Given() if inner is None else inner, linear) if estimator is None else estimator
    w0 = np.zeros(D) if w0 is None else w0
    return bx.hypergradient(problem, sid, w0, np.zeros(D), rows, bx.Arrays(g[None]), key=KEY, tol=np.inf)


def stage(est):
    return STAGES[int(est.failure.stage)]


def turned(*eigenvalues):
    """A symmetric matrix with these eigenvalues and no zero entries."""
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]
    H = Q @ np.diag(eigenvalues) @ Q.T
    return (H + H.T) / 2


REGULAR = turned(0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
SINGULAR = {"diagonal": np.diag([0.0, 1, 2, 3, 4, 5]), "turned": turned(0.0, 1, 2, 3, 4, 5)}
INDEFINITE = {"diagonal": np.diag([-1.0, 1, 2, 3, 4, 5]), "turned": turned(-0.5, 1, 2, 3, 4, 5)}
NAMED = {"Neumann": bx.Code.NOT_CONTRACTIVE, "FixedPoint": bx.Code.NOT_CONTRACTIVE}


@pytest.mark.slow_but("diagonal-CG", "turned-FixedPoint", "turned-Exact")
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("H", SINGULAR.values(), ids=SINGULAR)
def test_c7_a_singular_system_has_no_solution(H, name):
    """The right-hand side has a share in the null space. To the iterations of a map it is an eigenvalue one."""
    est = estimate(H, SOLVERS[name])
    assert est.code == NAMED.get(name, bx.Code.SINGULAR), est.message
    assert stage(est) == "linear"
    assert np.isfinite(est.v).all()
    assert np.abs(est.v).max() < 1e6


@pytest.mark.slow_but("CG", "FixedPoint")
@pytest.mark.parametrize("name", ["CG", "GMRES", "Neumann", "FixedPoint"])
def test_c7_a_singular_system_that_has_solutions_is_solved(name):
    """No component in the null space: each iterative solver finds the solution of least norm."""
    H = SINGULAR["diagonal"]
    est = estimate(H, SOLVERS[name], g=np.r_[0.0, np.ones(D - 1)])
    assert est.code == bx.Code.OK
    np.testing.assert_allclose(STEP * H @ np.asarray(est.v), np.r_[0.0, np.ones(D - 1)], rtol=1e-4, atol=1e-12)


def test_c7_damping_makes_it_regular():
    H = SINGULAR["turned"]
    truth = np.linalg.solve(STEP * H + 0.3 * np.eye(D), np.ones(D))
    for solver in (bx.CG(damping=0.3), bx.GMRES(restart=D, damping=0.3)):
        est = estimate(H, solver)
        assert est.code == bx.Code.OK
        np.testing.assert_allclose(est.v, truth, rtol=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("H", INDEFINITE.values(), ids=INDEFINITE)
def test_c8_an_indefinite_hessian(H, name):
    """CG names it; the iterations of the map diverge along it; the two that need no definiteness solve the system."""
    est = estimate(H, SOLVERS[name])
    expected = {"CG": bx.Code.INDEFINITE, "GMRES": bx.Code.OK, "Exact": bx.Code.OK} | NAMED
    assert est.code == expected[name], est.message
    if expected[name] == bx.Code.OK:
        np.testing.assert_allclose(est.v, np.linalg.solve(STEP * H, np.ones(D)), rtol=1e-4)
    else:
        assert stage(est) == "linear"
        assert np.isfinite(est.v).all()


@pytest.mark.parametrize("inner", [bx.FixedPoint(500), bx.LBFGS()], ids=["FixedPoint", "LBFGS"])
@pytest.mark.parametrize("H", [INDEFINITE["diagonal"], SINGULAR["diagonal"]], ids=["saddle", "no-minimum"])
def test_c8_an_inner_loss_that_is_unbounded_below_is_named(H, inner):
    est = estimate(H, bx.FixedPoint(0), inner=inner)
    assert est.code in (bx.Code.NOT_CONTRACTIVE, bx.Code.DIVERGED)
    assert stage(est) == "inner"


# C9: not symmetric


SKEW = np.eye(D) + np.triu(np.ones((D, D)), 1) - 0.5 * np.tril(np.ones((D, D)), -1)


def test_c9_cg_is_refused_a_map_that_is_no_gradient_step():
    problem = bx.Problem(lambda w, lam, batch: 0.5 * w + lam, weighted)
    rows = bx.Arrays(np.ones((1, D)))
    with pytest.raises(bx.ParameterError, match=r"CG needs a symmetric system.*linear=bx.GMRES\(\)"):
        bx.hypergradient(problem, bx.SID(bx.Given(), bx.CG()), np.zeros(D), np.zeros(D), rows, rows, key=KEY)


def test_c9_cg_does_not_call_a_system_solved_that_is_not_symmetric():
    est = estimate(SKEW, bx.CG(), loss=field)
    assert est.code != bx.Code.OK
    assert stage(est) == "linear"


def test_c9_cg_says_that_the_system_is_not_symmetric():
    est = estimate(SKEW, bx.CG(), loss=field)
    assert est.code >= bx.Code.NOT_CONTRACTIVE
    assert "symmetric" in est.message


@pytest.mark.parametrize("name", ["GMRES", "Neumann", "Exact", "FixedPoint"])
def test_c9_the_others_solve_the_transposed_system(name):
    """(I - d1Phi)^T: with H in place of H^T the hypergradient would be wrong without a word."""
    est = estimate(SKEW, SOLVERS[name], loss=field)
    assert est.code == bx.Code.OK, est.message
    np.testing.assert_allclose(est.v, np.linalg.solve(STEP * SKEW.T, np.ones(D)), rtol=1e-4, atol=1e-4)
    assert not np.allclose(est.v, np.linalg.solve(STEP * SKEW, np.ones(D)), rtol=0.1)


@pytest.mark.parametrize("share", [0.0, 1e-12, 0.01])
def test_c9_how_far_from_symmetric_a_system_may_be(share):
    """A hundredth is named; rounding of products is not, at a condition of 1e6 and over many directions."""
    rng = np.random.default_rng(1)
    Q, skew = np.linalg.qr(rng.normal(size=(40, 40)))[0], rng.normal(size=(40, 40))
    A = jnp.asarray((Q * np.geomspace(1e-6, 1.0, 40)) @ Q.T + share * (skew - skew.T) / np.linalg.norm(skew, 2))
    solved = jax.jit(lambda g: bx.CG(max_steps=2000).solve(lambda v: A @ v, g, jnp.ones(40)))(jnp.ones(40))
    assert solved.code == (bx.Code.INDEFINITE if share == 0.01 else bx.Code.OK)
    assert solved.last_step == 2 or share != 0.01


def test_c9_self_adjoint_in_the_metric_of_a_diagonal_step_alone():
    """H s is not symmetric, and CG in the metric s has nothing to object; in another metric it has."""
    s = np.geomspace(1e-3, 1.0, D)
    A = jnp.asarray(STEP * REGULAR * s)
    for metric, code in ((s, bx.Code.OK), (np.ones(D), bx.Code.INDEFINITE)):
        solved = jax.jit(lambda g, m: bx.CG().solve(lambda v: A @ v, g, m))(jnp.ones(D), jnp.asarray(metric))
        assert solved.code == code


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("name", ["CG", "GMRES", "Neumann"])
def test_right_hand_sides_whose_squares_overflow_or_vanish_in_float32(name, size):
    A = jnp.asarray(STEP * REGULAR, jnp.float32)
    run = jax.jit(lambda g: SOLVERS[name].solve(lambda v: A @ v, g, jnp.ones(D, jnp.float32)))
    solved = run(jnp.full(D, size, jnp.float32))
    assert solved.code in (bx.Code.OK, bx.Code.STALLED)
    np.testing.assert_allclose(solved.value / size, np.linalg.solve(STEP * REGULAR, np.ones(D)), rtol=1e-4)


@pytest.mark.parametrize("name", ["CG", "GMRES"])
@pytest.mark.parametrize("H", SINGULAR.values(), ids=SINGULAR)
def test_c7_a_right_hand_side_that_is_all_null_space(H, name):
    """The first product is rounding, of either sign, which is known by the later ones alone."""
    g = np.linalg.eigh(H)[1][:, 0]
    est = estimate(H, SOLVERS[name], g=g)
    assert est.code in (bx.Code.SINGULAR, bx.Code.INDEFINITE)
    assert np.abs(est.v).max() < 1e6


@pytest.mark.parametrize("restart", [5, 40])
@pytest.mark.parametrize("condition", [1e2, 1e6, 1e11])
def test_c7_control_an_ill_conditioned_system_is_solved_by_gmres(condition, restart):
    """Of forty unknowns with five different singular values: in one cycle, or a few."""
    rng = np.random.default_rng(0)
    Q, R = (np.linalg.qr(rng.normal(size=(40, 40)))[0] for _ in range(2))
    values = np.tile(np.geomspace(1.0, 1.0 / condition, 5), 8)
    A = jnp.asarray((Q * values) @ (Q.T if restart == 5 else R.T))
    solved = jax.jit(lambda g: bx.GMRES(restart=restart).solve(lambda v: A @ v, g, None))(jnp.asarray(A @ np.ones(40)))
    assert solved.code == bx.Code.OK
    assert np.linalg.norm(A @ solved.value - A @ np.ones(40)) <= 1e-6 * np.linalg.norm(A @ np.ones(40))


# C10: nothing to solve


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("H", [REGULAR, SINGULAR["turned"]], ids=["regular", "singular"])
def test_c10_no_right_hand_side_leaves_the_direct_part(H, name):
    if name == "Exact" and H is not REGULAR:
        pytest.skip("its matrix is built all the same, and named: C7")
    est = estimate(H, SOLVERS[name], g=np.zeros(D))
    assert est.code == bx.Code.OK
    assert np.array_equal(est.v, np.zeros(D))
    assert np.array_equal(est.value, np.full(D, 3.0))


def test_c10_itd():
    est = estimate(REGULAR, None, g=np.zeros(D), estimator=bx.ITD(100))
    assert est.code == bx.Code.OK
    assert np.array_equal(est.value, np.full(D, 3.0))


@pytest.mark.parametrize("name", ["CG", "Neumann", "GMRES"])
def test_c10_takes_no_step(name):
    assert estimate(REGULAR, SOLVERS[name], g=np.zeros(D)).cost.hvps.calls == 0


# C11, C12


def test_c11_a_solved_start_is_ok_after_two_steps():
    w = np.linalg.solve(REGULAR, np.ones(D))
    for inner in (bx.FixedPoint(1), bx.FixedPoint(2), bx.LBFGS(tol=1e-12)):
        est = estimate(REGULAR, bx.FixedPoint(0), inner=inner, w0=w)
        assert est.code == bx.Code.OK
        assert est.cost.gradients.calls <= 2
        np.testing.assert_allclose(est.w, w, rtol=1e-13)


@pytest.mark.parametrize("inner", [bx.FixedPoint(1), bx.FixedPoint(2), bx.LBFGS(max_steps=1)], ids=repr)
def test_c11_control_a_start_far_away_is_not_ok(inner):
    est = estimate(REGULAR, bx.FixedPoint(0), inner=inner, w0=np.arange(D) + 50.0)
    assert est.code in (bx.Code.MAX_STEPS, bx.Code.TOLERANCE_NOT_MET)


@pytest.mark.parametrize("name", ["CG", "Neumann", "GMRES"])
def test_c11_a_linear_solver_that_starts_at_the_solution(name):
    h = jnp.linspace(0.1, 1.5, D)
    run = jax.jit(lambda g, start: SOLVERS[name].solve(lambda v: h * v, g, jnp.ones(D), start))
    solved = run(jnp.ones(D), 1.0 / h)
    assert solved.code == bx.Code.OK
    np.testing.assert_allclose(solved.value, 1.0 / h, rtol=1e-12)
    assert solved.calls == 1


def without_lam(w, lam, batch):
    H, b = batch
    return 0.5 * jnp.vdot(w, H[0] @ w) - jnp.vdot(b[0], w)


def only_w(w, lam, batch):
    return jnp.vdot(w, batch[0])


def unused_lam(outer_loss=only_w):
    rows, val = bx.Arrays((REGULAR[None], np.ones((1, D)))), bx.Arrays(np.ones((1, D)))
    problem, sid = bx.Problem(bx.GradientStep(without_lam, STEP), outer_loss), bx.SID(bx.FixedPoint(900), bx.CG())
    return bx.hypergradient(problem, sid, np.zeros(D), np.zeros(D), rows, val, key=KEY)


def test_c12_lam_that_enters_nothing_has_no_gradient():
    est = unused_lam()
    assert est.code == bx.Code.OK
    assert np.array_equal(est.value, np.zeros(D))
    np.testing.assert_allclose(est.w, np.linalg.solve(REGULAR, np.ones(D)), rtol=1e-4, atol=1e-5)


def test_c12_lam_that_enters_nothing_is_said_to_be_unused():
    assert "unused" not in unused_lam(weighted).message
    assert "lam unused" in unused_lam().message


def test_c12_each_leaf_that_enters_nothing_is_named():
    """Through a function of its own, too; a leaf that enters with a factor of zero is in the functions all the same."""

    def inner_map(w, lam, batch):
        return 0.5 * w + jax.jit(lambda a: 2.0 * a)(lam["used"]) + 0.0 * lam["times zero"]

    def outer_loss(w, lam, batch):
        dropped = jnp.sum(lam["dropped"] ** 2)
        del dropped
        return jnp.sum(w) + jnp.mean(batch)

    rows = bx.Arrays(np.ones(4), 2)
    lam = {name: np.ones(2) for name in ("used", "times zero", "dropped", "ignored")}
    for estimator in (bx.SID(bx.FixedPoint(20), bx.FixedPoint(20)), bx.ITD(20), bx.ITD(20, last=10)):
        est = bx.hypergradient(bx.Problem(inner_map, outer_loss), estimator, np.zeros(2), lam, rows, rows, key=KEY)
        assert {name for name, unused in est.unused.items() if unused} == {"dropped", "ignored"}
        assert "lam['dropped'], lam['ignored'] unused" in est.message


def test_c12_the_step_of_the_map_is_no_use_of_lam():
    """The fixed point does not depend on it."""
    problem = bx.Problem(bx.GradientStep(without_lam, lambda lam: 0.1 * jnp.exp(-lam)), only_w)
    rows, val = bx.Arrays((REGULAR[None], np.ones((1, D)))), bx.Arrays(np.ones((1, D)))
    est = bx.hypergradient(problem, bx.SID(bx.FixedPoint(9), bx.CG()), np.zeros(D), np.float64(0), rows, val, key=KEY)
    assert "lam unused" in est.message
    assert est.value == 0.0
