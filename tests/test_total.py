"""Rows that are read through ``total`` and ``example``: of tables in memory, and of one that is no one array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import bilevax as bx
from bilevax.core.codes import Code
from bilevax.core.config import config
from bilevax.data.fold import fold
from bilevax.problems.validate import check_functions
from bilevax.testing import check_source

KEY = jax.random.key(7)
N, FIRST, D = 50, 11, 3
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)
X[:FIRST] += 2.0  # the halves are not alike


@config
class Halves:
    """A table in two parts, never one array: minibatch j is of the first for even j, else of the second."""

    first: bx.Arrays
    second: bx.Arrays

    rows = property(lambda self: self.first.rows + self.second.rows)
    rows_per_batch = property(lambda self: self.first.rows_per_batch)
    keys = property(lambda self: self.first.keys)
    is_full_batch, all_rows, blocks = False, None, None

    def total(self, fn, args):
        parts = [(half.rows / self.rows, half.total(fn, args)) for half in (self.first, self.second)]
        return jax.tree.map(lambda a, b: parts[0][0] * a + parts[1][0] * b, *(total for _, total in parts))

    def example(self):
        return self.second.example()

    def plan_chunk(self, plan, key, j, first):
        a, b = (jax.random.fold_in(key, i) for i in range(2))
        return self.first.plan_chunk(plan and plan[0], a, j, first), self.second.plan_chunk(
            plan and plan[1], b, j, first
        )

    def chunk_end(self, j):
        return self.first.chunk_end(j)

    def visit(self, plan, j, use):
        def of(half, plan):
            share = 2 * half.rows / self.rows
            return lambda: half.visit(plan, j, lambda draw: use(draw._replace(weight=share * jnp.asarray(draw.weight))))

        return jax.lax.cond(j % 2 == 0, of(self.first, plan[0]), of(self.second, plan[1]))

    def fold(self, step, carry, args, *, key, start, stop):
        return fold(self, step, carry, args, key=key, start=start, stop=stop)


def halves(*leaves, batch_size=4, first=FIRST, kind=Halves, **options):
    return kind(*(bx.Arrays(part, batch_size, **options) for part in (cut(leaves, 0, first), cut(leaves, first, None))))


def cut(leaves, start, stop):
    return tuple(x[start:stop] for x in leaves)


@config
class Unweighted(Halves):
    """The mean of the two halves, as if they had as many rows."""

    def total(self, fn, args):
        return jax.tree.map(lambda a, b: (a + b) / 2, self.first.total(fn, args), self.second.total(fn, args))


@config
class Short(bx.Arrays):
    """All but a last block that is not full."""

    def total(self, fn, args):
        return fn(args, jax.tree.map(lambda x: x[: self.rows // self.rows_per_batch * self.rows_per_batch], self.data))


@config
class Stopped(bx.Arrays):
    """A mean through which no derivative passes."""

    def total(self, fn, args):
        return fn(jax.lax.stop_gradient(args), self.data)


@config
class Single(bx.Arrays):
    """An example in another precision than its batches."""

    def example(self):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32), self.data)


@config
class Bare(bx.Arrays):
    """An example without the key that batches bring."""

    def example(self):
        return self.data


WRONG = [
    (Unweighted(bx.Arrays(X[:FIRST], 4), bx.Arrays(X[FIRST:], 4)), "is not the mean over every row: its value"),
    (Short(X, 7, "blocks"), "is not the mean over every row: its value"),
    (Stopped(X, 7), "is not the mean over every row: its derivative"),
    (Single(X, 7), "gives .*float32.* for an example of its batches, which are .*float64"),
    (Bare(X, 7, keys=True), "for an example of its batches"),
]


@pytest.mark.parametrize(("source", "message"), WRONG, ids=[type(source).__name__ for source, _ in WRONG])
def test_wrong_means_and_examples_are_caught(source, message):
    with pytest.raises(AssertionError, match=message):
        check_source(source, X)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"sampling": "shuffled"}, {"keys": True}], ids=repr)
def test_a_table_in_two_halves_is_a_source(options):
    check_source(halves(X, Y, **options), (X, Y))


SOURCES = {
    "dense": bx.Arrays(X, 7),
    "sparse": bx.SparseRows((scipy.sparse.csr_array(np.where(X > 0, X, 0.0)), Y), 7, sampling="blocks"),
    "keys": bx.Arrays(X, 7, keys=True),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_table_in_memory_is_seen_at_once(source):
    """Its mean is one call on every row, so the same to the bit; its example are their shapes."""
    seen = []
    assert source.total(lambda *given: seen.append(given) or 3.5, "args") == 3.5
    ((args, batch),) = seen
    assert args == "args"
    shapes = jax.eval_shape(lambda batch: batch, source.example())
    assert jax.tree.structure(shapes) == jax.tree.structure(batch)
    for shape, x, row in zip(*map(jax.tree.leaves, (shapes, batch, source.all_rows)), strict=True):
        assert (shape.shape, shape.dtype) == (x.shape, x.dtype)
        np.testing.assert_array_equal(words(x), words(row))


def words(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def ridge(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.exp(lam) * jnp.sum(w**2)


def test_lbfgs_on_a_table_in_two_halves():
    lam = -0.7
    truth = np.linalg.solve(X.T @ X / N + np.exp(lam) * np.eye(D), X.T @ Y / N)
    run = jax.jit(lambda source: bx.LBFGS(tol=1e-12).solve(ridge, jnp.zeros(D), jnp.float64(lam), source))
    for source in (halves(X, Y), bx.Arrays((X, Y))):
        out = run(source)
        np.testing.assert_allclose(out.value, truth, rtol=1e-10)
        assert int(out.code) == Code.OK


def outer(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2)


LAM = -0.7
STEPS = bx.Harmonic(60.0, 120.0)
METHODS = {
    "LBFGS, CG": (bx.SID(bx.LBFGS(tol=1e-12), bx.CG(tol=1e-12)), 1e-8),
    "ITD": (bx.ITD(400), 1e-8),
    "SID": (bx.SID(*[bx.FixedPoint(3000, STEPS)] * 2, cross_batches=300, outer_batches=300), None),
    "JointSID": (bx.JointSID(4000), None),
}


@pytest.mark.slow_but("LBFGS, CG", "ITD")
@pytest.mark.parametrize(("estimator", "tolerance"), METHODS.values(), ids=METHODS)
def test_hypergradients_of_a_table_in_two_halves(estimator, tolerance):
    """Against the solution of the ridge; where minibatches are read, within what the error report says of itself."""
    V, z = X[::-1][:40] + 0.5, Y[:40] + 1.0
    H = X.T @ X / N + np.exp(LAM) * np.eye(D)
    w = np.linalg.solve(H, X.T @ Y / N)
    truth = -np.exp(LAM) * w @ np.linalg.solve(H, V.T @ (V @ w - z) / 40)
    problem = bx.Problem(bx.GradientStep(ridge, 0.1), outer)
    est = bx.hypergradient(problem, estimator, np.zeros(D), LAM, halves(X, Y), halves(V, z), key=KEY)
    assert est.code == Code.OK
    error = abs(float(est.value) / truth - 1)
    assert error < (tolerance or min(0.1, 3 * float(est.error.relative)))


def test_functions_are_checked_on_shapes():
    train, val = halves(X, Y), halves(X, Y)
    lam = jnp.zeros(())
    check_functions(bx.Problem(bx.GradientStep(ridge, 0.1), ridge), jnp.zeros(D), lam, train, val)
    for problem, message in (
        (
            bx.Problem(bx.GradientStep(lambda w, lam, b: (b[0] @ w - b[1]) ** 2, 0.1), ridge),
            "the inner loss must return",
        ),
        (bx.Problem(lambda w, lam, b: w[:-1], ridge), "inner_map returns"),
        (bx.Problem(bx.GradientStep(ridge, 0.1), lambda w, lam, b: b[0] @ w), "outer_loss must return a scalar"),
    ):
        with pytest.raises(bx.ParameterError, match=message):
            check_functions(problem, jnp.zeros(D), lam, train, val)


def test_growth_on_minibatches_is_held_against_the_mean_of_both_halves():
    """20 rows triple x, 80 take it times -.9: by turns it grows. Their mean is -.12; that of the halves is 1.05."""
    factors = np.where(np.arange(100) < 20, 3.0, -0.9)

    def image(x, args, batch):
        return jnp.mean(batch[0]) * x

    run = jax.jit(lambda source: bx.FixedPoint(20).solve(image, jnp.ones(2), (), source, key=KEY).code)
    assert int(run(halves(factors, first=20))) == Code.UNSTABLE
    assert int(run(halves(factors, first=20, kind=Unweighted))) == Code.NOT_CONTRACTIVE


def test_an_audit_of_rows_that_are_not_in_memory_is_refused(refused):
    problem, rows = bx.Problem(bx.GradientStep(ridge), ridge), halves(X, Y)
    for train, val, name in ((rows, bx.Arrays((X, Y)), "train"), (bx.Arrays((X, Y)), rows, "val")):
        call = lambda: bx.check(problem, np.zeros(D), 0.0, train, val, key=KEY)  # noqa: B023, E731
        refused(call, bx.ParameterError, f"{name} is not in memory")


def test_a_plan_for_rows_in_pieces_is_refused(refused):
    problem, rows = bx.Problem(bx.GradientStep(ridge), outer), halves(X, Y)
    call = lambda: bx.plan(problem, np.zeros(D), LAM, bx.Arrays((X, Y)), rows, key=KEY, budget=1e6)  # noqa: E731
    refused(call, bx.ParameterError, "a plan chooses the rows in a minibatch, which Halves, the source val,")


@pytest.mark.slow
def test_constants_of_a_table_in_two_halves():
    """Those that no minibatch enters are the table's, however it is cut."""
    problem, at = bx.Problem(bx.GradientStep(ridge, 0.05), ridge), (np.full(D, 0.3), np.array(-0.7))
    cut_up, plain = (
        bx.estimate_constants(problem, *at, source, source, key=KEY, batches=4)
        for source in (halves(X, Y), bx.Arrays((X, Y), 4))
    )
    names = ("L", "tau", "q", "L_Phi", "L_E", "mu1", "mu2", "nu1", "nu2")
    np.testing.assert_allclose(*([getattr(c, name) for name in names] for c in (cut_up, plain)), rtol=1e-6, atol=1e-9)
