"""The doctor: fifteen ways to pose a problem wrongly, each in three sizes, named; sound problems left in peace."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.codes import Code
from bilevax.core.config import config
from bilevax.core.protocols import Draw
from bilevax.core.records import Cost, Estimate, Failure
from bilevax.solvers import GMRES
from bilevax.testing.problems import problem, problems
from bilevax.testing.tools import Table


class Case(NamedTuple):
    """What is given to the doctor."""

    problem: bx.Problem
    w0: object
    lam: object
    train: object
    val: object
    estimator: object = None

    def check(self, seed=0):
        key = jax.random.key(seed)
        given = self.problem, self.w0, self.lam, self.train, self.val
        return bx.check(*given, key=key, estimator=self.estimator)


class Size(NamedTuple):
    """Rows of train, rows of a minibatch, and inner entries."""

    n: int
    b: int
    d: int


SIZES = {"small": Size(40, 8, 3), "middle": Size(300, 20, 30), "large": Size(4000, 100, 300)}


def inner_loss(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def outer_loss(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2)


def rows(size):
    rng = np.random.default_rng(size.d)
    X = rng.normal(size=(2 * size.n, size.d)) / np.sqrt(size.d)
    y = X @ rng.normal(size=size.d) + 0.3 * rng.normal(size=2 * size.n)
    return X.astype(jnp.result_type(float)), y.astype(jnp.result_type(float))


def posed(size, inner_map, *, outer=outer_loss, lam=None, train=None, estimator=None):
    """The problem of a size with some of its parts replaced."""
    X, y = rows(size)
    n, b, d = size
    train = bx.Arrays((X[:n], y[:n]), b) if train is None else train
    lam = np.full(d, -2.0) if lam is None else lam
    problem = bx.Problem(inner_map, outer)
    return Case(problem, np.zeros(d), lam, train, bx.Arrays((X[n:], y[n:])), estimator)


def healthy(size):
    return posed(size, bx.GradientStep(inner_loss))


def largest_curvature(size):
    X = rows(size)[0][: size.n]
    return float(np.linalg.eigvalsh(X.T @ X / size.n)[-1] + np.exp(-2.0))


@config
class Affine:
    """M w + the mean of y + lam: a map whose contraction is that of M."""

    M: object

    def __call__(self, w, lam, batch):
        return self.M @ w + jnp.mean(batch[1]) + lam


def expanding(size):
    """q = 1.05: along one axis, in a rotation, or of a matrix that is not normal."""
    rng = np.random.default_rng(0)
    M = {3: np.diag([0.5, 1.05, 0.2]), 30: rng.normal(size=(30, 30)), 300: rng.normal(size=(300, 300))}[size.d]
    if size.d == 30:
        M = np.linalg.qr(M)[0]
    return posed(size, Affine(1.05 * M / np.abs(np.linalg.eigvals(M)).max()))


def slow(size):
    """q = .9995."""
    M = np.linalg.qr(np.random.default_rng(0).normal(size=(size.d, size.d)))[0]
    return posed(size, Affine(M @ np.diag(np.linspace(0.9995, 0.1, size.d)) @ M.T))


def long_step(size):
    return posed(size, bx.GradientStep(inner_loss, 2.1 / largest_curvature(size)))


def summed_loss(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.sum((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def half_loss(w, lam, batch):
    X, y = batch
    half = X.shape[0] // 2
    return inner_loss(w, lam, (X[:half], y[:half]))


def normalised_loss(w, lam, batch):
    X, y = batch
    X = (X - jnp.mean(X, axis=0)[None]) / jnp.sqrt(jnp.var(X, axis=0)[None] + 1e-3)
    return inner_loss(w, lam, (X, y)) / X.shape[1]


def dropout_loss(w, lam, batch):
    X, y = batch
    kept = jax.random.bernoulli(jax.random.key(7), 0.8, X.shape)
    return inner_loss(w, lam, (jnp.where(kept, X / 0.8, 0.0), y))


def counting(size):
    calls = []

    def counted_map(w, lam, batch):
        calls.append(None)
        return w - 0.5 / (1.0 + 0.01 * len(calls)) * jax.grad(inner_loss)(w, lam, batch)

    return posed(size, counted_map)


def closed_over(size):
    table = jnp.asarray(np.random.default_rng(0).normal(size=(8_000_000 // 8 // size.d, size.d)))

    def loss(w, lam, batch):
        return inner_loss(w, lam, batch) + 1e-9 * jnp.mean((table @ w) ** 2)

    return posed(size, bx.GradientStep(loss))


def integer_leaf(size):
    return posed(size, bx.GradientStep(inner_loss), lam=np.full(size.d, -2))


def unused(size):
    def loss(w, lam, batch):
        return inner_loss(w, jnp.full_like(w, -2.0), batch)

    return posed(size, bx.GradientStep(loss, 0.5))


def only_in_the_step(size):
    def loss(w, lam, batch):
        return inner_loss(w, jnp.full_like(w, -1.0), batch)

    def written_out(w, lam, batch):
        return w - jnp.exp(lam) * jax.grad(loss)(w, lam, batch)

    lam = np.asarray(-1.0)
    return posed(size, written_out if size.d == 3 else bx.GradientStep(loss, jnp.exp), lam=lam)


def narrowed(size):
    weights = np.linspace(0.5, 1.5, size.d)

    def loss(w, lam, batch):
        return inner_loss(w * weights, lam, batch)

    return posed(size, bx.GradientStep(loss))


@config
class Repeating(Table):
    """A source whose minibatches are all its first rows."""

    rows_per_batch: int = 8

    def visit(self, plan, j, use):
        return use(Draw(jax.tree.map(lambda x: x[:8], self.data), -1, 1.0))


def repeating(size):
    X, y = rows(size)
    data = jnp.asarray(X[: size.n]), jnp.asarray(y[: size.n])
    return posed(size, bx.GradientStep(inner_loss), train=Repeating(data, 8))


@config
class Frozen:
    """SID, but for its linear system, which is that of one minibatch."""

    sid: bx.SID

    def check(self, problem):
        self.sid.check(problem)

    def estimate(self, instance, w0, *, key, outer_step=0, v0=None):
        problem, lam, train, val = instance
        found = self.sid.estimate(instance, w0, key=key, outer_step=outer_step)
        value, g, direct = problem.outer_gradients(found.w, lam, val.all_rows)
        plan = train.plan_chunk(None, key, jnp.int32(0), True)

        def hold(draw):
            return GMRES(tol=1e-8).solve(partial(problem.system_product, found.w, lam, draw.batch), g, None).value

        v = train.visit(plan, jnp.int32(0), hold)
        through = problem.cross_product(found.w, lam, train.all_rows, v)
        code = jnp.int32(Code.OK)
        total = jax.tree.map(jnp.add, direct, through)
        return Estimate(total, value, found.w, v, code, Cost(), Failure.of("none"))


def freezing(size):
    estimator = Frozen(bx.SID(bx.LBFGS(), bx.CG()))
    lam = np.full(size.d, {3: -2.0, 30: -3.0, 300: -6.0}[size.d])
    return posed(size, bx.GradientStep(inner_loss), lam=lam, estimator=estimator)


FAULTS = {
    "q = 1.05": (expanding, "NOT_CONTRACTIVE"),
    "q = .9995": (slow, "SLOW"),
    "a step of 2.1 / L": (long_step, "STEP_TOO_LONG"),
    "a sum": (lambda size: posed(size, bx.GradientStep(summed_loss)), "SUM"),
    "the first half of the batch": (lambda size: posed(size, bx.GradientStep(half_loss)), "ROWS_UNREAD"),
    "normalisation by batch": (lambda size: posed(size, bx.GradientStep(normalised_loss)), "BIASED"),
    "dropout with a fixed key": (lambda size: posed(size, bx.GradientStep(dropout_loss)), "FIXED_KEY"),
    "a counter in Python": (counting, "IMPURE"),
    "8 MB closed over": (closed_over, "CLOSED_OVER"),
    "an integer leaf": (integer_leaf, "INTEGER_LEAF"),
    "lam unused": (unused, "LAM_UNUSED"),
    "lam only in the step": (only_in_the_step, "LAM_WITHOUT_EFFECT"),
    "a float64 constant": (narrowed, "FLOAT64_CONSTANT"),
    "one batch repeated": (repeating, "REPEATED_BATCH"),
    "an estimator that freezes a batch": (freezing, "ESTIMATOR_BIASED"),
}


WARNINGS = {"SLOW", "CLOSED_OVER", "FLOAT64_CONSTANT"}
LONG = {"an estimator that freezes a batch", "normalisation by batch", "a float64 constant", "q = 1.05", "a sum"}
LONG |= {"8 MB closed over", "the first half of the batch"}


@pytest.mark.parametrize("size", ["small", *(pytest.param(x, marks=pytest.mark.slow) for x in ("middle", "large"))])
@pytest.mark.parametrize("fault", [pytest.param(f, marks=pytest.mark.slow if f in LONG else ()) for f in FAULTS])
def test_each_fault_has_its_code(fault, size):
    pose, code = FAULTS[fault]
    with jax.enable_x64(code != "FLOAT64_CONSTANT"):
        findings = pose(SIZES[size]).check()
    severity = "warning" if code in WARNINGS else "error"
    assert (code, severity) in [(f.code, f.severity) for f in findings], findings
    also = {"SUM": {"STEP_TOO_LONG"}}.get(code, set())  # a step that was measured on fewer rows
    assert {f.code for f in findings} <= {code} | also, findings


@pytest.mark.parametrize("size", ["small", *(pytest.param(x, marks=pytest.mark.slow) for x in ("middle", "large"))])
@pytest.mark.parametrize("wide", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_problem_that_the_faults_are_made_of_has_none(size, wide):
    with jax.enable_x64(wide):
        case = healthy(SIZES[size])
        steps = bx.FixedPoint(400, bx.Harmonic(20.0, 40.0))
        findings = case._replace(estimator=bx.SID(steps, steps)).check()
    assert not findings, findings
    assert [f.name for f in findings.figures] == ["spectral radius", "relative error of one estimate"]


def assert_healthy(name, seeds):
    p = problem(name)
    sources = p.sources()
    for seed in range(seeds):
        findings = bx.check(p.problem, p.w0, p.lam, *sources, key=jax.random.key(seed))
        assert findings.worst in (None, "note"), findings
        assert findings.codes == (("COMPOSITE",) if name == "elastic-net" else ())


@pytest.mark.parametrize(
    "name",
    [pytest.param("quadratic-1000-b1", marks=pytest.mark.slow), pytest.param("elastic-net", marks=pytest.mark.slow)],
)
def test_some_of_the_twenty_problems_are_healthy(name):
    assert_healthy(name, seeds=2)


@pytest.mark.slow
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("name", problems())
def test_the_twenty_problems_are_healthy(name, wide):
    with jax.enable_x64(wide):
        assert_healthy(name, seeds=5)
