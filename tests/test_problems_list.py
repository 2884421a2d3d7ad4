"""The twenty problems: what they say is the truth is checked against central differences and closed forms."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevax as bx
from bilevax.testing.closed_forms import FiniteQuadratic, PenalisedRidge
from bilevax.testing.problems import families, problem, problems

LARGE = {name for name in problems() if "x500" in name or "20000" in name or name == "digits"}
ALL = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in problems()]

listed = cache(problem)
"""Problems that are solved once."""

FAMILIES = [*families("choosing"), *families("judging")]


def test_there_are_twenty_and_another_name_is_refused():
    assert len(set(FAMILIES)) == len(FAMILIES) == 20
    assert not set(FAMILIES) & set(problems())
    with pytest.raises(bx.ParameterError, match="kind must be one of 'choosing', 'judging'"):
        families("judge")
    with pytest.raises(bx.ParameterError, match="draw must be less than"):
        problem("huber", 2**63)
    assert len(problems()) == len(set(problems())) == 20
    with pytest.raises(bx.ParameterError, match=r"no problem 'rigde'.*elastic-net"):
        problem("rigde")
    with pytest.raises(bx.ParameterError, match="draw must be at least 0"):
        problem("ridge", -1)


@pytest.mark.parametrize("name", [name for name in problems() if name not in LARGE])
def test_draws_are_other_problems_of_the_same_recipe(name):
    first, again, other = listed(name), problem(name), problem(name, 1)
    numbers = [
        np.concatenate([x.ravel() for x in jax.tree.leaves((p.train, p.val, p.lam))]) for p in (first, again, other)
    ]
    np.testing.assert_array_equal(*numbers[:2])
    assert numbers[0].shape == numbers[2].shape
    assert np.mean(numbers[0] != numbers[2]) > 0.4
    sizes = [np.linalg.norm(ravel_pytree(p.solution().hypergradient)[0]) for p in (first, other)]
    assert 0.05 < sizes[1] / sizes[0] < 20


@pytest.mark.parametrize("name", ALL)
def test_the_hypergradient_is_that_of_central_differences(name):
    p = listed(name)
    truth = p.solution()
    lam, tree = ravel_pytree(p.lam)
    g = np.asarray(ravel_pytree(truth.hypergradient)[0])
    rng = np.random.default_rng(0)
    others = rng.normal(size=(3, lam.size))
    for u in (g / np.linalg.norm(g), *others / np.linalg.norm(others, axis=1)[:, None]):
        ahead, behind = (p.solve(tree(lam + h * u)).value for h in (1e-4, -1e-4))
        assert abs((ahead - behind) / 2e-4 - g @ u) <= 1e-6 * np.linalg.norm(g)


@jax.jit
def residual_and_outer_gradient(problem, w, lam, train, val):
    """Phi(w) - w and grad_1 E, in one program for every draw."""
    left = jax.tree.map(jnp.subtract, problem.inner_map(w, lam, train), w)
    return left, jax.grad(problem.outer_loss)(w, lam, val)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_draw_of_a_family_is_solved_and_its_hypergradient_is_that_of_central_differences(name):
    draws = [problem(name, draw) for draw in (*range(19), 2**63 - 1)]
    kinds = [jax.tree.map(lambda x: (np.shape(x), x.dtype), (p.train, p.val, p.w0, p.lam)) for p in draws]
    assert all(kind == kinds[0] for kind in kinds)
    assert len({jax.tree.structure(p.unmeasured) for p in draws}) == 1  # the functions are the same: one program
    for p in draws:
        found, size = p.solution(), np.linalg.norm(ravel_pytree(p.solution().w)[0])
        system = p.system(found.w)
        left, outer = residual_and_outer_gradient(p.problem, found.w, p.lam, p.train, p.val)
        assert np.linalg.norm(ravel_pytree(left)[0]) <= 1e-12 * (1 + size)
        assert np.linalg.eigvals(system).real.min() > 1e-4  # at a minimum, and the map contracts
        np.testing.assert_allclose(system.T @ ravel_pytree(found.v)[0], ravel_pytree(outer)[0], rtol=1e-9, atol=1e-12)
    conditions = np.array([p.curvature.L / p.curvature.tau for p in draws])
    assert conditions.min() < 20
    assert 50 < conditions.max() < 600
    p, (lam, tree) = draws[0], ravel_pytree(draws[0].lam)
    g = np.asarray(ravel_pytree(p.solution().hypergradient)[0])
    units = np.where(lam == 0, 1.0, np.abs(lam))
    for u in np.random.default_rng(0).normal(size=(3, lam.size)) * units:
        ahead, behind = (p.solve(tree(lam + h * u)).value for h in (1e-5, -1e-5))
        assert abs((ahead - behind) / 2e-5 - g @ u) <= 2e-6 * np.linalg.norm(g * units)


@pytest.mark.parametrize("name", ALL)
def test_the_point_is_the_fixed_point_of_every_row_and_the_multiplier_solves_its_system(name):
    p = listed(name)
    truth = p.solution()
    train, val = p.sources(None)
    w, v = jax.tree.map(jnp.asarray, (truth.w, truth.v))
    by_v, by_w, by_lam = jax.jit(bx.directions)(p.problem, w, v, p.lam, (train.all_rows, val.all_rows))
    size = [float(jnp.linalg.norm(ravel_pytree(x)[0])) for x in (w, v, truth.hypergradient)]
    assert np.linalg.norm(ravel_pytree(by_v)[0]) <= 1e-11 * (1 + size[0])
    assert np.linalg.norm(ravel_pytree(by_w)[0]) <= 1e-9 * (1 + size[1])
    np.testing.assert_allclose(
        ravel_pytree(by_lam)[0], ravel_pytree(truth.hypergradient)[0], rtol=1e-9, atol=1e-12 * size[2]
    )


@pytest.mark.parametrize("name", [name for name in problems() if name.startswith("quadratic")])
def test_quadratics_agree_with_their_closed_form(name):
    p = listed(name)
    form = FiniteQuadratic(**p.train, target=p.val["target"][0], r=0.1, lam=p.lam)
    np.testing.assert_allclose(p.solution().w, form.w(p.lam), rtol=1e-9)
    np.testing.assert_allclose(p.solution().v, form.v(p.lam), rtol=1e-9)
    np.testing.assert_allclose(p.solution().hypergradient, form.hypergradient(p.lam), rtol=1e-9)
    _, condition, batch, *correlated = name.split("-")
    assert p.curvature.L / p.curvature.tau == pytest.approx(float(condition))
    assert p.sources()[0].rows_per_batch == p.batch_size == int(batch[1:])
    A, B = (x - x.mean(0) for x in (p.train["A"], p.train["B"]))
    overlap = np.abs(np.einsum("nij,njk->ik", A, B)).max() / np.einsum("nij,nij->", A, A)
    assert (overlap > 0.1) == bool(correlated)


def test_the_ridge_problem_agrees_with_its_closed_form():
    p = listed("ridge")
    form = PenalisedRidge(*p.train, *p.val, lam=p.lam)
    np.testing.assert_allclose(p.solution().hypergradient, form.hypergradient(p.lam), rtol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_the_curvature_bounds_hold_and_the_map_contracts(name):
    p = listed(name)
    (train, _), q = p.sources(None), p.curvature.q
    w, lam = (jax.tree.map(jnp.asarray, x) for x in (p.solution().w, p.lam))
    if name == "equilibrium":
        q = 1 - p.curvature.tau
    push = jax.jit(lambda u: jax.jvp(lambda w: p.problem.inner_map(w, lam, train.all_rows), (w,), (u,))[1])
    for seed in range(3):
        u = jnp.asarray(np.random.default_rng(seed).normal(size=w.shape))
        for _ in range(20):
            image = push(u)
            ratio = float(jnp.linalg.norm(image) / jnp.linalg.norm(u))
            assert ratio <= q + 1e-12 < 1
            u = image / jnp.linalg.norm(image)


def test_the_minibatches_of_the_layer_are_unbiased():
    p = listed("equilibrium")
    train, _ = p.sources()
    w, lam = jnp.asarray(np.random.default_rng(0).normal(size=p.w0.shape)), jax.tree.map(jnp.asarray, p.lam)
    whole = p.problem.inner_map(w, lam, train.all_rows)
    blocks = [jax.tree.map(lambda x, i=i: x[i : i + 16], train.all_rows) for i in range(0, 64, 16)]
    np.testing.assert_allclose(np.mean([p.problem.inner_map(w, lam, b) for b in blocks], axis=0), whole, rtol=1e-12)
    np.testing.assert_allclose(whole, jnp.tanh(p.train["x"] @ lam["B"] + w @ lam["A"] + lam["c"][None]), rtol=1e-12)


def test_the_solution_is_the_same_whatever_precision_jax_is_set_to():
    p, q = problem("elastic-net"), problem("elastic-net")
    with jax.enable_x64(False):
        narrow = p.solution()
        assert p.sources()[0].all_rows[0].dtype == np.float32
    np.testing.assert_array_equal(narrow.w, q.solution().w)
    assert 0 < np.count_nonzero(narrow.w) < narrow.w.size
    assert narrow.w.dtype == np.float64
    assert p.solution() is narrow
