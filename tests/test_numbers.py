"""Faults A1 to A7 (docs/faults.md): numbers that are not finite, or of no floating type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.records import STAGES

KEY = jax.random.key(0)


def stage(est):
    return STAGES[int(est.failure.stage)]


def finite(tree):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


# A1, A2: the data


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, jnp.bfloat16, jnp.float64])
def test_a1_one_nan_in_x_is_found_before_any_compilation(kind, refused):
    X = np.ones((20, 5))
    X[17, 3] = np.nan
    X = np.asarray(X, kind) if kind is not jnp.float64 else jax.device_put(X)
    refused(lambda: bx.Arrays((X, np.ones(20)), 4), bx.DataError, r"data\[0\] has 1 NaN, first at row 17, column 3$")


@pytest.mark.parametrize("y", [np.inf, -np.inf], ids=["inf", "-inf"])
def test_a2_infinite_cells_are_counted_apart(y, refused):
    """+inf and -inf together: their sum is NaN, and must not be counted as one."""
    X = np.ones((20, 2))
    X[4, 1], X[5, 0], X[6, 0] = np.inf, -np.inf, np.nan
    refused(lambda: bx.Arrays(X), bx.DataError, r"data has 1 NaN and 2 infinite, first at row 4, column 1$")
    target = np.r_[np.zeros(19), y]
    source = {"X": np.ones((20, 2)), "y": target}
    refused(lambda: bx.Arrays(source), bx.DataError, r"data\['y'\] has 1 infinite, first at row 19$")


# A3: NaN at step 37


def counting_map(w, lam, batch):
    """w["n"] counts the steps taken; the 37th image is NaN."""
    x = 0.5 * w["x"] + lam + 0.0 * jnp.sum(batch)
    return {"x": jnp.where(w["n"] >= 36, jnp.log(-1.0 - x**2), x), "n": w["n"] + 1.0}


def sum_of_x(w, lam, batch):
    return jnp.sum(w["x"]) + jnp.mean(batch) * jnp.sum(lam)


def counted(estimator, batch_size):
    rows = bx.Arrays(np.zeros(2), batch_size)
    w0 = {"x": np.zeros(3), "n": np.float64(0)}
    return bx.hypergradient(bx.Problem(counting_map, sum_of_x), estimator, w0, np.ones(3), rows, rows, key=KEY)


@pytest.mark.parametrize(
    ("estimator", "batch_size"),
    [
        (bx.SID(bx.FixedPoint(100), bx.FixedPoint(5)), None),
        (bx.SID(bx.FixedPoint(100), bx.FixedPoint(5)), 1),
        (bx.ITD(100), None),
        (bx.ITD(100, mode="forward"), None),
        (bx.ITD(100, last=20), None),
        (bx.ITD(100, last=90), None),
    ],
    ids=["every-row", "minibatches", "ITD", "forward", "truncated-before", "truncated-after"],
)
def test_a3_nan_in_the_inner_solver_at_step_37(estimator, batch_size):
    est = counted(estimator, batch_size)
    assert est.code == bx.Code.NONFINITE
    assert (stage(est), int(est.failure.step)) == ("inner", 37)
    assert "NONFINITE in the inner solver, step 37" in est.message
    assert est.w["n"] == 36
    np.testing.assert_allclose(est.w["x"], 2.0, rtol=1e-9)


def mean_map(w, lam, batch):
    return 0.5 * w + lam * jnp.mean(batch)


def mean_loss(w, lam, batch):
    return jnp.sum(w * lam) * jnp.mean(batch)


def noisy_map(w, lam, batch):
    return 0.5 * jnp.mean(batch) * w + lam * jnp.mean(batch)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("inner", "inner solver, step 37"),
        ("linear", "linear solver, step 37"),
        ("cross", "in the cross stage"),
        ("outer", "in the outer stage"),
        (None, "No failure"),
    ],
)
def test_a3_the_stage_whose_rows_are_nan_is_named(Scripted, where, message):
    """Every stream reads row 0, but ``where`` reads a row of NaN as its 37th."""
    script = {name: np.zeros((60, 1), np.int32) for name in ("inner", "linear", "cross", "outer")}
    if where:
        script[where][36] = 5  # of 2 rows
    source = Scripted(jnp.ones(2), KEY, {name: jnp.asarray(rows) for name, rows in script.items()})
    sid = bx.SID(bx.FixedPoint(60), bx.FixedPoint(60), cross_batches=50, outer_batches=50)
    args = bx.Problem(noisy_map, mean_loss), sid, np.zeros(2), np.ones(2), source, source
    est = bx.hypergradient(*args, key=KEY, report=False)
    assert est.code == (bx.Code.NONFINITE if where else bx.Code.OK)
    # the report's own minibatches have no script: all that they read is NaN, and so nothing is known
    code = bx.hypergradient(*args, key=KEY).code
    assert code == (bx.Code.NONFINITE if where else bx.Code.TOLERANCE_NOT_MET)
    assert stage(est) == (where or "none")
    assert message in est.message
    assert finite((est.w, est.v))


@jax.custom_vjp
def tripping(x):
    """The identity, whose derivative is NaN along .9 v_j for j >= 36, where v_j = 10 (1 - .9^j) in three entries."""
    return x


tripping.defvjp(lambda x: (x, None), lambda _, g: (jnp.where(jnp.sum(g) > 27 * (1 - 0.9**35.5), jnp.nan, g),))


def test_a3_nan_in_the_linear_solver_on_every_row():
    """v_j = 10 (1 - .9^j) grows until the 37th product is NaN."""

    def inner_map(w, lam, batch):
        return 0.9 * tripping(w) + lam + 0.0 * jnp.mean(batch)

    rows = bx.Arrays(np.zeros(2))
    sid = bx.SID(bx.Given(), bx.FixedPoint(60))
    est = bx.hypergradient(bx.Problem(inner_map, plain_loss), sid, np.zeros(3), np.zeros(3), rows, rows, key=KEY)
    assert est.code == bx.Code.NONFINITE
    assert "linear solver, step 37 (the map is finite, its derivative is not)" in est.message
    np.testing.assert_allclose(est.v, 10 * (1 - 0.9**36), rtol=1e-12)


def plain_loss(w, lam, batch):
    return jnp.sum(w) + jnp.mean(batch) * jnp.sum(lam)


@jax.custom_jvp
def bent(w):
    return jnp.zeros_like(w)


bent.defjvp(lambda primal, tangent: (jnp.zeros_like(primal[0]), tangent[0] * jnp.nan))


def lossy(w, lam, batch):
    """A loss that is finite, and whose derivatives are not."""
    return jnp.vdot(w, w) + jnp.vdot(w, jax.lax.stop_gradient(w) * bent(w)) - jnp.vdot(lam, w) + jnp.mean(batch)


LINEAR = {
    "CG": bx.CG(),
    "GMRES": bx.GMRES(),
    "Neumann": bx.Neumann(),
    "Exact": bx.Exact(),
    "FixedPoint": bx.FixedPoint(9),
}


@pytest.mark.parametrize("linear", LINEAR.values(), ids=LINEAR)
def test_a3_nan_second_derivatives_are_named_by_every_linear_solver(linear):
    rows = bx.Arrays(np.zeros(2))
    problem = bx.Problem(bx.GradientStep(lossy, 0.1), plain_loss)
    est = bx.hypergradient(problem, bx.SID(bx.Given(), linear), np.zeros(3), np.ones(3), rows, rows, key=KEY)
    assert est.code == bx.Code.NONFINITE
    assert "NONFINITE in the linear solver" in est.message
    assert finite(est.w)


def lam_below_half_is_nan(w, lam, batch):
    return 0.5 * w + jnp.sqrt(lam - 0.5) + 0.0 * jnp.mean(batch)


def a_run():
    rows = bx.Arrays(np.zeros(2), 1)
    problem = bx.Problem(lam_below_half_is_nan, plain_loss)
    algorithm = bx.BSGM(bx.SID(bx.FixedPoint(9), bx.FixedPoint(9)), bx.optim("sgd", 0.01))
    return bx.minimize(problem, algorithm, np.zeros(3), np.ones(3), rows, rows, steps=200, key=KEY)


def test_a3_a_run_ends_at_the_step_that_failed_with_its_last_finite_state():
    result = a_run()
    assert result.code == bx.Code.NONFINITE
    assert result.history.code[-1] == bx.Code.NONFINITE
    assert np.all(result.history.code[:-1] == bx.Code.OK)
    assert 10 < len(result.history.code) < 60
    assert finite((result.w, result.lam))
    assert np.all(np.asarray(result.lam) < 0.5)


def test_a3_a_run_names_the_stage_that_failed():
    result = a_run()
    assert f"inner solver, step 1 of outer step {len(result.history.code) - 1}" in result.message


# A4: NaN in the gradient alone


def root_of_w(w, lam, batch):
    return jnp.sum(jnp.sqrt(w**2)) + jnp.vdot(lam, w) + jnp.mean(batch)


def root_of_lam(w, lam, batch):
    return jnp.sum(w) + jnp.sum(jnp.sqrt(lam**2)) + jnp.mean(batch)


def a4(problem, estimator):
    rows = bx.Arrays(np.zeros(2))
    return bx.hypergradient(problem, estimator, np.zeros(3), np.zeros(3), rows, rows, key=KEY)


ESTIMATORS = {"SID": bx.SID(bx.Given(), bx.FixedPoint(3)), "AID": bx.SID(bx.Given(), bx.GMRES()), "ITD": bx.ITD(1)}


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("loss", [root_of_w, root_of_lam])
def test_a4_the_outer_loss_is_finite_and_its_gradient_is_not(loss, estimator):
    est = a4(bx.Problem(mean_map, loss), estimator)
    assert est.code == bx.Code.NONFINITE
    assert stage(est) == "outer"
    assert "(the loss is finite, its gradient is not)" in est.message
    assert finite((est.w, est.outer_value))


def test_a4_control_a_loss_that_is_not_finite_is_not_called_finite():
    est = a4(bx.Problem(mean_map, lambda w, lam, batch: jnp.log(jnp.sum(w) - 1.0)), ESTIMATORS["SID"])
    assert (est.code, stage(est)) == (bx.Code.NONFINITE, "outer")
    assert "is finite, its gradient is not" not in est.message


@pytest.mark.parametrize(
    "inner",
    [
        bx.FixedPoint(9),
        bx.LBFGS(),
    ],
    ids=["FixedPoint", "LBFGS"],
)
def test_a4_the_inner_gradient_is_not_finite(inner):
    est = a4(bx.Problem(bx.GradientStep(root_of_w, 0.1), plain_loss), bx.SID(inner, bx.FixedPoint(3)))
    assert est.code == bx.Code.NONFINITE
    assert stage(est) == "inner"
    assert np.array_equal(est.w, np.zeros(3))


def test_a4_the_inner_loss_is_finite_and_its_gradient_is_not():
    est = a4(bx.Problem(bx.GradientStep(root_of_w, 0.1), plain_loss), bx.SID(bx.FixedPoint(9), bx.FixedPoint(3)))
    assert "(the loss is finite, its gradient is not)" in est.message


@pytest.mark.slow
def test_a4_control_an_inner_loss_that_is_not_finite_is_not_called_finite():
    def loss(w, lam, batch):
        return jnp.sum(jnp.log(w - 1.0)) + jnp.mean(batch)

    est = a4(bx.Problem(bx.GradientStep(loss, 0.1), plain_loss), bx.SID(bx.LBFGS(), bx.FixedPoint(3)))
    assert (est.code, stage(est)) == (bx.Code.NONFINITE, "inner")
    assert "finite, its" not in est.message


# A5, A6, A7: the leaves of w0 and lam


def tree_map(w, lam, batch):
    return {"a": 0.5 * w["a"] + lam["l2"] + 0.0 * jnp.mean(batch)}


def tree_loss(w, lam, batch):
    return jnp.sum(w["a"]) + jnp.mean(batch) * jnp.sum(lam["l2"])


TREE = bx.Problem(tree_map, tree_loss)
ROWS = bx.Arrays(np.zeros(4), 2)
SMALL = bx.SID(bx.FixedPoint(2), bx.FixedPoint(2))


def estimate(w0, lam):
    return bx.hypergradient(TREE, SMALL, w0, lam, ROWS, ROWS, key=KEY)


def minimise(w0, lam):
    algorithm = bx.BSGM(SMALL, bx.optim("sgd", 0.1))
    return bx.minimize(TREE, algorithm, w0, lam, ROWS, ROWS, steps=1, key=KEY)


LEAVES = {
    "A5-nan": (np.array([1.0, np.nan]), "contains NaN or infinity; pass finite numbers"),
    "A5-inf": (np.array([1.0, -np.inf]), "contains NaN or infinity; pass finite numbers"),
    "A5-nan-on-device": (jnp.array([1.0, jnp.nan]), "contains NaN or infinity; pass finite numbers"),
    "A6-int32": (np.zeros(2, np.int32), "is int32; pass a float"),
    "A6-int64-on-device": (jnp.zeros(2, jnp.int64), "is int64; pass a float"),
    "A6-a-python-int": (3, "is int64; pass a float"),
    "A7-bool": (np.zeros(2, bool), "is bool; pass a float"),
    "A7-object": (np.array([1.0, None], object), "is object; pass a float"),
    "A7-object-of-floats": (np.array([1.0, 2.0], object), "is object; pass a float"),
    "A7-complex": (np.zeros(2, complex), "is complex128; pass a float"),
    "A7-string": (np.array(["a", "b"]), "is <U1; pass a float"),
}


@pytest.mark.parametrize("door", [estimate, minimise], ids=["hypergradient", "minimize"])
@pytest.mark.parametrize(("leaf", "message"), LEAVES.values(), ids=LEAVES)
def test_a5_a6_a7_a_wrong_leaf_is_named(leaf, message, door, refused):
    good = np.ones(2)
    refused(lambda: door({"a": good}, {"l2": leaf}), bx.ParameterError, rf"^leaf lam\['l2'\] {message}")
    refused(lambda: door({"a": leaf}, {"l2": good}), bx.ParameterError, rf"^leaf w0\['a'\] {message}")


def test_a6_control_float_leaves_are_taken():
    assert finite(estimate({"a": np.ones(2)}, {"l2": np.ones(2)}).value)
