"""Default steps: what is measured against closed forms, what it costs, and what changes no run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.config import config
from bilevax.testing.closed_forms import FiniteAffine, FiniteQuadratic, PenalisedRidge
from bilevax.testing.closed_forms.quadratic import quadratic_outer_loss
from bilevax.testing.tools import Counted, Counter

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
    "F2SA": bx.F2SA(),
}
WIDE = bx.Box(-50.0, 50.0)


@config
class Scaled:
    """A loss times a factor, which is a number: another one compiles nothing."""

    loss: object
    factor: float = 1.0

    def __call__(self, w, lam, batch):
        value = self.loss(w, lam, batch)
        return jnp.asarray(self.factor).astype(value.dtype) * value


def posed(factor=1.0, step_size=0.2, box=WIDE):
    return bx.Problem(bx.GradientStep(P.problem.inner_map.loss, step_size), Scaled(quadratic_outer_loss, factor), box)


def sources(batch_size=7, val_size=5, sampling="iid"):
    return bx.Arrays(P.train_data, batch_size, sampling), bx.Arrays(TARGETS, val_size, sampling)


def run(name, *, dtype=np.float64, steps=300, **posing):
    """Of an algorithm without steps; in blocks where it asks for them."""
    train, val = sources(sampling="blocks" if name == "SABA" else "iid")
    narrow = functools.partial(jax.tree.map, lambda x: np.asarray(x, dtype))
    train, val = (bx.Arrays(narrow(x.all_rows), x.batch_size, x.sampling) for x in (train, val))
    algorithm, start = ALGORITHMS.get(name, name), narrow((W0, P.lam))
    return bx.minimize(posed(**posing), algorithm, *start, train, val, steps=steps, key=KEY)


# ---- what changes no run


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_neither_the_scale_of_the_outer_loss_nor_the_step_of_the_map_changes_a_run(name, dtype):
    base = run(name, dtype=dtype)
    assert base.lam.dtype == dtype
    way = np.linalg.norm(np.asarray(base.lam) - P.lam)
    assert way > 0.1
    assert base.code == bx.Code.OK
    allowed = 1e-5 if dtype == np.float32 else 1e-10
    for factor in (1e-3, 1e3):
        other = run(name, dtype=dtype, factor=factor)
        assert np.linalg.norm(np.asarray(other.lam) - np.asarray(base.lam)) < allowed * way, factor
        assert np.linalg.norm(np.asarray(other.w) - np.asarray(base.w)) < allowed * np.linalg.norm(base.w), factor
    assert np.array_equal(run(name, dtype=dtype, step_size=0.1).lam, base.lam)


def test_a_map_without_a_step_gives_the_same_run():
    assert np.array_equal(run("SOBA", step_size=None).lam, run("SOBA").lam)


# ---- what is measured


def steps_of(algorithm):
    """L and K that its steps stand for."""
    a, c = algorithm.defaults.inner, algorithm.defaults.outer
    return a / float(algorithm.step_size(jnp.int32(0))), c / float(algorithm.outer_step_size(jnp.int32(0)))


def outer_hessian(p, r):
    """f'' = B'A^-2 B + r I."""
    root = np.linalg.solve(p.A.mean(0), p.B.mean(0))
    return root.T @ root + r * np.eye(p.lam.size)


SEEN = Counter()
RIDGE, MAP = PenalisedRidge.random(0, n=60, d=4), FiniteAffine.random(1, n=20, d=D, m=M, r=1.0)
QUADRATIC = posed(), W0, P.lam
CASES = {
    "iid": (*QUADRATIC, *sources()),
    "blocks": (*QUADRATIC, *sources(sampling="blocks")),
    "every row": (*QUADRATIC, *sources(None, None)),
    "its own curvature": (RIDGE.problem, np.zeros((1, 4)), RIDGE.lam, bx.Arrays(RIDGE.train_data, 9),
                          bx.Arrays(RIDGE.val_data, 7)),
    "its own, every row": (RIDGE.problem, np.zeros((1, 4)), RIDGE.lam, bx.Arrays(RIDGE.train_data),
                           bx.Arrays(RIDGE.val_data, 7)),
    "map": (MAP.problem, np.zeros(D), MAP.lam, bx.Arrays(MAP.train_data), bx.Arrays(MAP.val_data)),
}  # fmt: skip


def measured(case, *, samples=100_000, algorithm=bx.SOBA(), lam=None):
    """And how many minibatches, of train and of val, the program read for it."""
    problem, w0, start, train, val = CASES[case]
    seen, lam = [], start if lam is None else lam
    # one program for both: each source is counted in a call of its own
    before = SEEN.after(())
    found = bx.measure_steps(problem, algorithm, w0, lam, Counted(train, SEEN), val, key=KEY, samples=samples)
    seen.append(SEEN.after(found.u0) - before)
    return found, seen[0]


@pytest.mark.parametrize("case", CASES)
def test_its_cost_is_what_the_program_reads(case):
    problem, _, _, train, val = CASES[case]
    b, b_val = train.rows_per_batch, val.rows_per_batch
    for samples in (1, 40 * (b + b_val), 100_000):
        found, reads = measured(case, samples=samples)
        cost = found.cost
        assert reads == sum(part.samples for part in (cost.gradients, cost.hvps, cost.cross, cost.measuring)) / b
        assert cost.gradients.calls == cost.hvps.calls == cost.cross.calls == cost.outer_gradients.calls
        if samples == 1:
            assert cost.gradients.calls == 16
        else:
            assert samples - 4 * (b + b_val) < cost.samples <= samples or cost.gradients.calls == 400
    calls = {"iid": 50, "blocks": 50, "every row": 8, "its own curvature": 10, "its own, every row": 1, "map": 0}
    assert cost.measuring.calls == calls[case]


def test_on_every_row_both_curvatures_are_those_of_the_closed_form():
    L, K = steps_of(measured("every row")[0].algorithm)
    assert 0.95 * P.curvature.L < L <= 1.1 * P.curvature.L
    H, t, met = outer_hessian(P, 0.1), P.hypergradient(P.lam), []
    # grad f, with the targets' mean
    t = t + P.B.mean(0).T @ np.linalg.solve(P.A.mean(0), P.target - TARGETS["target"].mean(0))
    for _ in range(3):
        t = H @ (t / np.linalg.norm(t))
        met.append(np.linalg.norm(t))
    np.testing.assert_allclose(K, max(met), rtol=1e-4)
    assert 0.9 < K / np.linalg.eigvalsh(H)[-1] < 1.0001


@pytest.mark.parametrize("case", ["iid", "blocks"])
def test_on_minibatches_they_are_near_it(case):
    L, K = steps_of(measured(case)[0].algorithm)
    H = outer_hessian(P, 0.1)
    print(case, L / P.curvature.L, K / np.linalg.eigvalsh(H)[-1])
    if case == "blocks":  # ten minibatches, each block once
        rows = bx.Arrays(np.arange(N), 7, "blocks")
        blocks = rows.fold(lambda log, args, j, draw: log.at[j].set(draw.batch), jnp.zeros((10, 7), int), (),
                           key=KEY, start=0, stop=10)  # fmt: skip
        largest = max(np.linalg.eigvalsh(P.A[np.asarray(block)].mean(0))[-1] for block in blocks)
        print(L / largest)
        assert 0.8 * largest < L <= 1.1 * largest


def test_of_a_map_that_is_no_gradient_step():
    found = measured("map")[0]
    L, K = steps_of(found.algorithm)
    print(L, K, found)
