"""Sparse rows against the same rows as arrays, and what a sparse source refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import bilevax as bx
from bilevax.hypergradients.batches import revised
from bilevax.linalg import sparse
from bilevax.sklearn import TunedAdditiveClassifier
from bilevax.testing.sources import check_source

KEY = jax.random.key(5)
N, D = 60, 37
FORMATS = ["csr", "csc", "coo", "bsr", "lil", "dok"]


def table(n=N, d=D, seed=0):
    """Rows of very unequal length: the first has no entry, the second has all, most have few."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * (rng.uniform(size=(n, d)) < rng.uniform(0, 0.2, (n, 1)))
    X[0], X[1] = 0.0, rng.normal(size=d)
    return X, rng.integers(0, 3, n)


def batch_of(X, rows=None):
    """The rows of a sparse batch that a source hands out."""
    source = bx.SparseRows(sp.csr_array(X))
    full = source.all_rows
    return full if rows is None else sparse.SparseBatch(full.columns, full.values, full.extents[rows], full.features)


def close(a, b, rtol=1e-12):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), a, b)


@pytest.fixture(params=[256, 3], ids=["one-slab", "many-slabs"])
def slab(request, monkeypatch):
    """Short slabs end within rows, and leave some of the last one empty."""
    monkeypatch.setattr(sparse, "SLAB", request.param)
    return request.param


def products(X, M, L):
    return X @ M, X @ M[:, 0], L @ X, L[0] @ X


@pytest.mark.parametrize("rows", [range(N), [0], [1, 1, 0, 7, 1], [3, 59, 2]], ids=["all", "empty", "repeated", "few"])
def test_products_are_those_of_the_array(rows, slab):
    X, _ = table()
    S, A = batch_of(X, jnp.asarray(rows)), X[np.asarray(rows)]
    rng = np.random.default_rng(1)
    M, L = rng.normal(size=(D, 4)), rng.normal(size=(4, len(A)))
    assert (S.shape, S.ndim, S.dtype) == (A.shape, 2, jnp.float64)
    close(jax.jit(lambda X, M, L: (*products(X, M, L), X.todense()))(S, M, L), (*products(A, M, L), A))


def test_what_is_not_finite_stays_where_it_is():
    X, _ = table()
    M = np.ones((D, 2))
    M[5] = np.inf
    out, pullback = jax.vjp(lambda M: batch_of(X) @ M, M)
    assert (np.isfinite(out).all(axis=1) == (X[:, 5] == 0)).all()
    pulled = pullback(jnp.ones((N, 2)).at[7].set(np.inf))[0]
    assert (np.isfinite(pulled).all(axis=1) == (X[7] == 0))[1:].all()  # padding is in column 0


def test_numpy_leaves_the_product_to_the_batch():
    X, _ = table()
    close(np.ones((2, N)) @ batch_of(X), np.ones((2, N)) @ X)


@pytest.mark.parametrize("forward", [True, False], ids=["X @ M", "M @ X"])
def test_products_are_differentiated_twice_in_both_modes_and_mapped(forward, slab):
    X, _ = table()
    S, rng = batch_of(X), np.random.default_rng(2)
    M, V = (jnp.asarray(rng.normal(size=(D, 2) if forward else (2, N))) for _ in range(2))

    def value(X, M):
        return jnp.sum(jnp.tanh(X @ M if forward else M @ X))

    def derivatives(X, M):
        gradient = jax.grad(lambda M: value(X, M))
        return {
            "jvp": jax.jvp(lambda M: value(X, M), (M,), (V,))[1],
            "gradient": gradient(M),
            "forward over reverse": jax.jvp(gradient, (M,), (V,))[1],
            "reverse over reverse": jax.vjp(gradient, M)[1](V)[0],
            "reverse over forward": jax.grad(lambda M: jax.jvp(lambda M: value(X, M), (M,), (V,))[1])(M),
            "mapped": jax.vmap(jax.grad(lambda M: value(X, M)))(jnp.stack([M, V])),
            "forward mode": jax.jacfwd(lambda s: value(X, s * M))(jnp.float64(0.7)),
        }

    found, truth = (jax.jit(derivatives)(A, M) for A in (S, jnp.asarray(X)))
    close(found, truth)


def test_batches_are_mapped_over():
    X, _ = table()
    rows = jnp.asarray([[0, 1, 2], [5, 5, 9], [40, 0, 0]])
    M = jnp.asarray(np.random.default_rng(3).normal(size=(D, 2)))
    found = jax.vmap(lambda r: jax.grad(lambda M: jnp.sum(jnp.sin(batch_of(X, r) @ M)))(M))(rows)
    truth = jax.vmap(lambda r: jax.grad(lambda M: jnp.sum(jnp.sin(jnp.asarray(X)[r] @ M)))(M))(rows)
    close(found, truth)


def test_a_stack_is_revised_row_by_row_on_sparse_rows_alone():
    X, _ = table()
    stack, right = (jnp.asarray(np.random.default_rng(i).normal(size=(3, 2, D))) for i in (5, 6))

    def moved(A):
        return revised(lambda x, r: x + (A @ x.T).T @ A - r, stack, right, batch=(A, None))

    rows = [0, 1, 7]
    found, truth = moved(batch_of(X, jnp.asarray(rows))), moved(X[np.asarray(rows)])
    close(found, truth)
    close(truth[1], stack[1] + stack[1] @ X[rows].T @ X[rows] - right[1])


@pytest.mark.parametrize("other_rows", [True, False])
def test_a_mapped_product_selects_no_result_in_each_turn(other_rows):
    """As a mapped loop of JAX does, whose counts differ: that would cost all of the result for each slab."""
    X, _ = table()
    rows = jnp.asarray([[0, 1, 2], [5, 5, 9], [40, 0, 0], [1, 2, 3]])
    M = jnp.asarray(np.random.default_rng(3).normal(size=(4, 2, 3)))
    product = jax.vmap(lambda r, M: M @ batch_of(X, r), in_axes=(0 if other_rows else None, 0))
    rows = rows if other_rows else rows[0]
    program = str(jax.make_jaxpr(product)(rows, M))
    assert f"f64[4,2,{D}] = select_n" not in program
    close(product(rows, M), jnp.stack([m @ X[r] for m, r in zip(M, jnp.broadcast_to(rows, (4, 3)), strict=True)]))


@pytest.mark.parametrize("left", [False, True], ids=["X M", "M X"])
def test_values_are_differentiated_forward_and_in_reverse(left):
    """A loss may scale the entries; that derivative comes from the system's own product."""
    X, _ = table()
    S = batch_of(X)
    M = jnp.asarray(np.random.default_rng(4).normal(size=(2, X.shape[0]) if left else (D, 2)))

    def size(c, X=S):
        scaled = X if X is not S else sparse.SparseBatch(S.columns, c * S.values, S.extents, S.features)
        return jnp.sum(jnp.sin(M @ scaled if left else scaled @ M))

    c = jnp.linspace(0.5, 1.5, S.values.size).reshape(S.values.shape)
    derivative, direction = jax.grad(size)(c), jnp.cos(7 * c)
    close(jnp.vdot(derivative, direction), jax.jvp(size, (c,), (direction,))[1])
    # at c = 1 along c it is that of a dense X along X
    dense = jax.grad(lambda t: size(None, t * jnp.asarray(X)))(jnp.float64(1.0))
    close(jnp.sum(jax.grad(size)(jnp.ones_like(c))), dense)


@pytest.mark.parametrize("shape", [(D + 1,), (D - 1, 2), (), (D, 2, 2)], ids=str)
def test_products_of_wrong_shapes_are_refused(shape):
    with pytest.raises(TypeError, match="no product with an array of shape"):
        batch_of(table()[0]) @ np.zeros(shape)
    with pytest.raises(TypeError, match="no product with an array of shape"):
        np.zeros(shape) @ batch_of(table()[0])


def test_a_product_costs_its_own_rows_not_the_longest(slab):
    """Slabs are read as often as the rows drawn need."""
    X, _ = table()
    S = batch_of(X, jnp.asarray([0, 0, 3]))
    read = []

    def note(out, row, columns, values):
        jax.debug.callback(lambda: read.append(1))
        return out

    sparse._over_slabs(S, note, jnp.zeros(()))
    jax.effects_barrier()
    assert len(read) == -(-int(jnp.sum(S.extents[:, 1])) // slab)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "penalty", "sampling"),
    [
        (bx.Squared, "class", "iid"),
        pytest.param(bx.BinaryLogistic, "feature", "shuffled", marks=pytest.mark.slow),
        pytest.param(bx.MultinomialLogistic, "feature", "blocks", marks=pytest.mark.slow),
        pytest.param(bx.MultinomialLogistic, "global", "iid", marks=pytest.mark.slow),
    ],
)
def test_losses_on_sparse_rows_are_those_on_arrays(loss, penalty, sampling):
    """Value, gradient, Hessian and cross product, measured curvature, and the hypergradient of equal draws."""
    (X, y), rng = table(), np.random.default_rng(4)
    C = 1 if loss is bx.BinaryLogistic else 3
    y = y.astype(float)[:, None] * np.ones((1, C)) if loss is bx.Squared else np.minimum(y, max(C - 1, 1))
    weight = rng.uniform(0.5, 1.5, N)
    w = {"weights": jnp.asarray(rng.normal(size=(C, D))), "bias": jnp.asarray(rng.normal(size=C))}
    v = jax.tree.map(jnp.cos, w)
    lam = jnp.asarray(rng.normal(size={"global": (), "feature": (D,), "class": (C,)}[penalty]) - 1)
    one = loss(penalty)
    problem = bx.Problem(bx.GradientStep(one), loss())
    sid = bx.SID(bx.FixedPoint(30, 0.5), bx.FixedPoint(30, 0.5), cross_batches=3, outer_batches=2)

    @jax.jit
    def everything(batch, w, lam, v):
        step = bx.Problem(bx.GradientStep(one, 0.3), loss())
        return {
            "value": one(w, lam, batch),
            "gradient": jax.grad(one)(w, lam, batch),
            "hessian": one.hessian_product(w, lam, batch, v),
            "cross": step.cross_product(w, lam, batch, v),
            "curvature": one.curvature(w, batch),
        }

    sparse_rows = bx.SparseRows((sp.csr_array(X), y, weight), 7, sampling=sampling)
    arrays = bx.Arrays((X, y, weight), 7, sampling=sampling)
    close(everything(sparse_rows.all_rows, w, lam, v), everything(arrays.all_rows, w, lam, v))
    a, b = (bx.hypergradient(problem, sid, w, lam, s, s, key=KEY) for s in (sparse_rows, arrays))
    close((a.value, a.outer_value, a.w, a.v), (b.value, b.outer_value, b.w, b.v), rtol=1e-10)
    assert (int(a.code), a.cost.samples) == (int(b.code), b.cost.samples)
    # each of the systems of the report, too, which on sparse rows are solved one after another
    close(a.error, b.error, rtol=1e-8)


@pytest.mark.slow
def test_the_deterministic_solvers_take_sparse_rows():
    X, y = table()
    problem = bx.Problem(bx.GradientStep(bx.MultinomialLogistic("feature")), bx.MultinomialLogistic())
    w0, lam = np.zeros((3, D)), np.full(D, -1.0)
    sources = [(bx.SparseRows((sp.csr_array(X), y)),) * 2, (bx.Arrays((X, y)),) * 2]
    for estimator in (bx.SID(bx.LBFGS(1e-11), bx.CG(1e-11)), bx.ITD(20), bx.SID(bx.FixedPoint(20), bx.Neumann(1e-3))):
        a, b = (bx.hypergradient(problem, estimator, w0, lam, *s, key=KEY) for s in sources)
        close(a.value, b.value, rtol=1e-9)
        assert int(a.code) == int(b.code)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read(form):
    X, y = table()
    source = bx.SparseRows((sp.csr_matrix(X).asformat(form), y))
    assert np.array_equal(source.all_rows[0].todense(), X)
    assert np.array_equal(source.all_rows[1], y)


def test_entries_of_one_place_are_added_and_the_callers_matrix_is_left_alone():
    X = sp.csr_matrix((np.array([1.0, 2.0, 4.0, 0.0, 3.0, -3.0]), [1, 1, 0, 2, 0, 0], [0, 2, 4, 6]), (3, 4))
    source = bx.SparseRows(X)
    assert X.nnz == 6
    assert np.array_equal(source.all_rows.todense(), [[0, 3, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]])
    assert np.array_equal(source.all_rows.extents[:, 1], [1, 1, 0])


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool, np.float32, np.float64])
def test_integers_become_floats_and_floats_stay(dtype):
    X = (table()[0] > 0).astype(dtype)
    wanted = jnp.float32 if dtype == np.float32 else jnp.float64
    source = bx.SparseRows(sp.csr_array(X))
    assert source.all_rows.dtype == wanted
    assert np.array_equal(source.all_rows.todense(), X)


def test_columns_beyond_the_last_that_is_mentioned():
    X, _ = table()
    source = bx.SparseRows(sp.csr_array(X), n_features=D + 3)
    assert source.all_rows.shape == (N, D + 3)
    assert np.array_equal(source.all_rows.todense(), np.pad(X, ((0, 0), (0, 3))))
    with pytest.raises(bx.ParameterError, match=rf"n_features must be at least {D}, the columns of data; got 5"):
        bx.SparseRows(sp.csr_array(X), n_features=5)


@pytest.mark.parametrize("fill", [0.0, 1.0], ids=["empty", "full"])
@pytest.mark.parametrize("d", [1, 40])
def test_tables_without_entries_and_without_zeros(fill, d):
    X = np.full((5, d), fill)
    full = bx.SparseRows(sp.csr_array(X)).all_rows
    close(jax.jit(lambda X: X.todense())(full), X)


def test_at_most_half_of_the_entries_is_padding():
    for density in (0.02, 0.2, 0.9):
        X = sp.random(500, 100, density, format="csr", random_state=0)
        assert bx.SparseRows(X).all_rows.values.size <= 2 * X.nnz + 500


def spoilt(value, place):
    X = sp.lil_matrix(table()[0])
    X[place] = value
    return X.tocsr()


def tampered(field, value):
    X = sp.csr_matrix(table()[0])
    getattr(X, field)[5] = value
    return X


def tampered_coo():
    X = sp.coo_matrix(table()[0])
    X.col[7] = D + 2
    return X


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((spoilt(np.nan, (9, 4)), np.zeros(N)), r"data\[0\] has 1 NaN, first at row 9, column 4"),
        (spoilt(-np.inf, (1, D - 1)).tocsc(), rf"data has 1 infinite, first at row 1, column {D - 1}"),
        (sp.coo_matrix(([1e308, 1e308], ([1, 1], [2, 2]))), "1 infinite, first at row 1, column 2"),
        ((sp.csr_matrix(table()[0]), np.r_[np.nan, np.zeros(N - 1)]), r"data\[1\] has 1 NaN, first at row 0"),
        ((sp.csr_matrix(table()[0]), np.zeros(3)), rf"rows differ in number: data\[0\] has {N}, data\[1\] has 3"),
        (tampered("indices", D), "data is no valid CSR matrix"),
        (tampered("indices", -1), "data is no valid CSR matrix"),
        (tampered("indptr", 10**6), "data is no valid CSR matrix"),
        (tampered_coo(), f"data has an entry outside of its {D} columns"),
        (sp.csr_matrix(table()[0] * 1j), "dtype complex128; pass real numbers"),
        (sp.csr_matrix((0, D)), "0 rows"),
        (sp.coo_array(np.ones(3)), "data has 1 dimension; pass a matrix"),
        (table(), "one scipy sparse matrix, got 0; for arrays use bx.Arrays"),
        ([sp.csr_matrix(table()[0])] * 2, "one scipy sparse matrix, got 2"),
    ],
)
def test_b14_wrong_data_are_refused_and_the_place_is_said(data, message):
    with pytest.raises(bx.DataError, match=message):
        bx.SparseRows(data)


def test_b14_arrays_refuse_a_sparse_matrix_by_name():
    with pytest.raises(bx.DataError, match=r"data\[0\] is a sparse matrix; use bx.SparseRows"):
        bx.Arrays((sp.csr_matrix(table()[0]), table()[1]))


@pytest.mark.slow
def test_the_source_keeps_the_contracts_of_sources():
    X, y = table()
    check_source(bx.SparseRows((sp.csr_matrix(X.astype(np.float32)), y), 7, sampling="blocks"))


def test_a_table_of_equal_shape_compiles_nothing():
    traces = []

    @jax.jit
    def total(source):
        traces.append(1)
        return jnp.sum(source.all_rows @ jnp.ones(D))

    X, _ = table()
    for factor in (1.0, 2.0):
        close(total(bx.SparseRows(sp.csr_array(factor * X))), factor * X.sum())
    assert len(traces) == 1


def test_b14_estimators_refuse_a_sparse_table_by_name():
    X, y = table()
    with pytest.raises(TypeError, match="Sparse data was passed for X, but dense data is required"):
        TunedAdditiveClassifier().fit(sp.csr_matrix(X), y)
