"""L-BFGS against scipy's and on losses that a careless line search fails on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax import Array

from bilevax import LBFGS, Arrays, Code, ParameterError
from bilevax.core.records import Solution

NO_ROWS = Arrays(np.zeros(1))
"""Which the losses do not read."""


def rosenbrock(w: Array, lam: Array, batch: Array) -> Array:
    """Not convex, with a curved valley."""
    return jnp.sum(lam * (w[1:] - w[:-1] ** 2) ** 2 + (1.0 - w[:-1]) ** 2)


def solve(solver: LBFGS, loss: object, w0: Array, lam: float = 100.0) -> Solution:
    run = jax.jit(lambda w0, lam: solver.solve(loss, w0, lam, NO_ROWS))  # type: ignore[arg-type]
    return run(w0, jnp.asarray(lam, w0.dtype))


@pytest.mark.parametrize("start", [-1.2, 0.0, 3.0])
def test_rosenbrock_in_about_as_many_evaluations_as_scipy(start: float) -> None:
    w0 = jnp.full(10, start) + 0.1 * jnp.arange(10.0)
    ours = solve(LBFGS(tol=1e-8, max_steps=1000), rosenbrock, w0)
    gradient = jax.jit(jax.value_and_grad(lambda w: rosenbrock(w, jnp.float64(100.0), w)))
    theirs = scipy.optimize.minimize(
        lambda x: tuple(np.asarray(a, np.float64) for a in gradient(jnp.asarray(x))),
        np.asarray(w0), jac=True, method="L-BFGS-B", options={"gtol": 1e-8, "ftol": 0.0},
    )  # fmt: skip
    assert int(ours.code) == Code.OK
    assert np.linalg.norm(np.asarray(jax.grad(rosenbrock)(ours.value, jnp.float64(100.0), ours.value))) < 1e-7
    assert int(ours.calls) <= 1.5 * theirs.nfev


def test_quadratic_of_condition_1e6_in_few_steps() -> None:
    h = jnp.logspace(0, 6, 8)
    out = solve(
        LBFGS(tol=1e-10, max_steps=200), lambda w, lam, batch: 0.5 * jnp.vdot(h * w, w) - jnp.sum(w), jnp.ones(8)
    )
    np.testing.assert_allclose(out.value, 1.0 / h, rtol=1e-6)
    assert int(out.code) == Code.OK


@pytest.mark.parametrize(("memory", "low", "high"), [(None, 10, 45), (40, 10, 45), (10, 70, 110), (3, 120, 1000)])
def test_a_long_memory_saves_evaluations(memory: int | None, low: int, high: int) -> None:
    """Ten unknowns, condition 1000; and what is kept is overwritten in turn."""
    h = jnp.geomspace(1e-3, 1.0, 10)
    out = solve(
        LBFGS(tol=1e-9, max_steps=1000, memory=memory),
        lambda w, lam, batch: 0.5 * jnp.vdot(h * w, w) - jnp.sum(jnp.sqrt(h) * w), jnp.zeros(10),
    )  # fmt: skip
    np.testing.assert_allclose(out.value, h**-0.5, rtol=1e-4)
    assert int(out.code) == Code.OK
    assert low < int(out.calls) < high


def test_many_unknowns_are_remembered_less_and_no_memory_is_refused() -> None:
    kept = [
        jax.make_jaxpr(lambda w0: LBFGS().solve(lambda w, lam, batch: jnp.vdot(w, w), w0, (), NO_ROWS).value)(
            jax.ShapeDtypeStruct((d,), float)
        )
        for d in (50_000, 50_001)
    ]
    assert "f64[40,50000]" in str(kept[0])
    assert "f64[10,50001]" in str(kept[1])
    with pytest.raises(ParameterError, match="memory"):
        LBFGS(memory=0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_first_step_is_found_at_any_scale_of_the_loss(scale: float) -> None:
    out = solve(
        LBFGS(tol=1e-9 * scale, max_steps=100),
        lambda w, lam, batch: scale * jnp.sum(jnp.cosh(w - 2.0)), jnp.zeros(3),
    )  # fmt: skip
    np.testing.assert_allclose(out.value, 2.0, atol=1e-6)


def test_a_loss_that_is_infinite_beyond_a_wall_is_minimised_before_it() -> None:
    out = solve(LBFGS(tol=1e-9), lambda w, lam, batch: jnp.sum(-jnp.log(1.0 - w) - 3.0 * w), jnp.full(2, -5.0))
    np.testing.assert_allclose(out.value, 2.0 / 3.0, rtol=1e-7)


def test_codes() -> None:
    few = solve(LBFGS(tol=1e-12, max_steps=2), rosenbrock, jnp.full(4, -1.2))
    assert int(few.code) == Code.MAX_STEPS
    nan = solve(LBFGS(), lambda w, lam, batch: jnp.sum(jnp.sqrt(w)), jnp.full(2, -1.0))
    assert int(nan.code) == Code.NONFINITE


UNBOUNDED = {
    "linear": lambda w, lam, batch: -jnp.sum(w),
    "slow": lambda w, lam, batch: 0.5 * jnp.sum(w[1:] ** 2) - 1e-3 * w[0],
    "concave": lambda w, lam, batch: -jnp.sum(w**2),
    "logarithm": lambda w, lam, batch: -jnp.sum(jnp.log1p(w**2)),
    "overflows": lambda w, lam, batch: -jnp.sum(jnp.exp(w)),
}


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize("loss", UNBOUNDED.values(), ids=UNBOUNDED)
def test_a_loss_that_is_unbounded_below_diverges_however_small_its_gradient_against_w(loss: object, kind: type) -> None:
    out = solve(LBFGS(), loss, jnp.full(4, 0.1, kind))
    assert int(out.code) == Code.DIVERGED
    assert np.isfinite(out.value).all()


def test_control_a_minimum_that_is_far_away_is_found() -> None:
    out = solve(LBFGS(tol=1e-9), lambda w, lam, batch: 1e-3 * jnp.sum((w - 1e6) ** 2), jnp.zeros(3))
    assert int(out.code) == Code.OK
    np.testing.assert_allclose(out.value, 1e6, rtol=1e-6)


def test_a_tolerance_below_rounding_ends_where_progress_does() -> None:
    h = jnp.logspace(0, 3, 6)
    out = solve(
        LBFGS(tol=1e-300, max_steps=10**6), lambda w, lam, batch: jnp.sum(jnp.cosh(h * w - 0.3)), jnp.full(6, 1e-2)
    )
    assert int(out.calls) < 10_000
    np.testing.assert_allclose(out.value, 0.3 / h, rtol=1e-9)


def test_an_exact_start_costs_one_evaluation_and_is_kept() -> None:
    out = solve(LBFGS(), rosenbrock, jnp.ones(5))
    assert int(out.calls) == 1
    np.testing.assert_array_equal(out.value, 1.0)
