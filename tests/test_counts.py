"""What a hypergradient says that it cost is what it made, product by product."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.config import canonicalize
from bilevax.solvers.stability import CONFIRMING
from bilevax.testing.closed_forms import FiniteQuadratic
from bilevax.testing.tools import Counted, Counter

KEY = jax.random.key(0)
D = 6
Q = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]
SYSTEMS = {
    "regular": (Q * np.linspace(0.1, 1.5, D)) @ Q.T,
    "singular": (Q * np.linspace(0.0, 1.5, D)) @ Q.T,
    "indefinite": (Q * np.linspace(-0.5, 1.5, D)) @ Q.T,
    "rotation": np.kron(np.eye(D // 2), [[1.0, 1.0], [-1.0, 1.0]]),
    "nothing": np.zeros((D, D)),
}
SOLVERS = {
    "CG": bx.CG(),
    "CG, three steps": bx.CG(max_steps=3),
    "GMRES": bx.GMRES(),
    "GMRES, cycles of two": bx.GMRES(restart=2, max_steps=7),
    "Neumann": bx.Neumann(),
    "Exact": bx.Exact(),
}
STARTS = {"cold": None, "warm": np.linspace(1.0, 2.0, D)}
SIDES = {"ones": np.ones(D), "zero": np.zeros(D)}


SEEN = Counter()


@partial(jax.jit, static_argnames="name")
def solved(name, A, g, v0):
    """By one program for every system and every right-hand side."""

    def matvec(v):
        jax.debug.callback(SEEN)
        return A @ v

    return SOLVERS[name].solve(matvec, g, jnp.ones(D), v0)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_linear_solver_counts_every_product(name, system, start, side):
    before = SEEN.number
    out = solved(name, SYSTEMS[system], SIDES[side], STARTS[start])
    assert SEEN.after(out) - before == out.calls + out.diagnostic_products
    assert out.diagnostic_products == 0 or name == "Neumann"
    if side == "zero" and name != "Exact":
        assert out.calls == int(start == "warm")
        assert not np.any(out.value)
        assert out.code == bx.Code.OK


@jax.jit
def moved(factor, solver):
    """By one program for every factor and every number of steps."""

    def image(x, lam, batch):
        jax.debug.callback(SEEN)
        return factor * x + lam

    return solver.solve(image, jnp.zeros(D), jnp.ones(D), bx.Arrays(np.zeros(3)), key=KEY)


@pytest.mark.parametrize(("factor", "checks"), [(0.5, 0), (1.0, CONFIRMING), (1.2, CONFIRMING)])
@pytest.mark.parametrize("steps", [0, 30])
def test_a_fixed_point_counts_its_steps_and_what_confirms_that_they_grow(factor, checks, steps):
    before = SEEN.number
    out = moved(factor, canonicalize(bx.FixedPoint(steps)))
    assert SEEN.after(out) - before == out.calls + out.diagnostic_products
    assert out.calls == (10 + 1 if factor == 1.2 and steps else steps)
    assert out.diagnostic_products == (checks if steps else 0)


P = FiniteQuadratic.random(0, n=20, d=4, m=3)


def test_minibatches_are_counted_one_by_one():
    """Rows of train: t b, k b and J b, and those of the report, and no others are drawn."""
    t, k, J, J1, b = 7, 5, 3, 2, 4
    seen, drawn = Counter(), bx.SID(bx.FixedPoint(t, 0.5), bx.FixedPoint(k, 0.5), J, J1)
    train, val = Counted(bx.Arrays(P.train_data, b), seen), bx.Arrays(P.val_data)
    est = bx.hypergradient(P.problem, drawn, np.zeros(4), P.lam, train, val, key=KEY)
    report = 24 + 16 + 16  # minibatches: 16 have 64 rows
    assert seen.after(est) == t + k + J + report
    assert est.error.samples == report * b + 1
    assert [int(part.calls) for part in est.cost] == [t, k, J, J1, 0]
    assert [part.evaluations for part in est.cost] == [t * b, k * b, J * b, J1, 0]


def scaled(w, lam, batch):
    return 1.2 * w + jnp.sum(lam) + 0.0 * jnp.mean(batch)


def total(w, lam, batch):
    return jnp.sum(w) + 0.0 * jnp.mean(batch)


@pytest.mark.parametrize("linear", [bx.FixedPoint(30), bx.Neumann()], ids=["FixedPoint", "Neumann"])
def test_products_that_confirm_are_measuring(linear):
    """400 of w on each of the 20 rows, beside the 11 moves before them; v, which grows too, is not asked any more."""
    rows = bx.Arrays(np.zeros(20))
    sid = bx.SID(bx.FixedPoint(30), linear)
    est = bx.hypergradient(bx.Problem(scaled, total), sid, np.zeros(D), np.ones(D), rows, rows, key=KEY)
    assert est.code == bx.Code.NOT_CONTRACTIVE
    assert est.cost.measuring.evaluations == CONFIRMING * 20
    assert est.cost.gradients.calls == est.cost.hvps.calls == 11
    assert est.cost.samples == (11 + 11 + 1 + CONFIRMING) * 20 + 20


def test_a_warm_start_costs_one_product():
    sources = bx.Arrays(P.train_data), bx.Arrays(P.val_data)
    w, lam = jnp.asarray(P.w(P.lam)), jnp.asarray(P.lam)
    sid = bx.SID(bx.Given(), bx.CG(tol=1e-10))
    instance = bx.Instance(P.problem, lam, *sources)
    cold, warm = (
        jax.jit(lambda v0: sid.estimate(instance, w, key=KEY, v0=v0))(v0) for v0 in (None, jnp.asarray(P.v(P.lam)))
    )
    assert cold.cost.hvps.calls == 4
    assert warm.cost.hvps.calls == 1
