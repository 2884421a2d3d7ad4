"""Faults B1 to B10 (docs/faults.md): what the user's functions return, and rows and batches of every size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx

KEY = jax.random.key(0)


def tree_map(w, lam, batch):
    return {"a": 0.5 * w["a"] + lam["l2"] + 0.0 * jnp.mean(batch)}


def tree_loss(w, lam, batch):
    return jnp.sum(w["a"]) + jnp.mean(batch) * jnp.sum(lam["l2"])


TREE = bx.Problem(tree_map, tree_loss)
ROWS = bx.Arrays(np.zeros(4), 2)
SMALL = bx.SID(bx.FixedPoint(2), bx.FixedPoint(2))


def test_control_a_call_that_compiles_is_seen(compilations):
    before = compilations.number
    jax.jit(lambda x: x + 1.0)(np.zeros(3))
    assert compilations.number > before


# B1, B2, B3: what the functions return


def problem_of(inner_map=tree_map, outer_loss=tree_loss):
    return bx.Problem(inner_map, outer_loss)


def doors(problem):
    w0, lam, algorithm = {"a": np.ones(2)}, {"l2": np.ones(2)}, bx.BSGM(SMALL, bx.optim("sgd", 0.1))
    return (
        lambda: bx.hypergradient(problem, SMALL, w0, lam, ROWS, ROWS, key=KEY),
        lambda: bx.minimize(problem, algorithm, w0, lam, ROWS, ROWS, steps=1, key=KEY),
    )


@pytest.fixture(scope="module")
def knocked():
    """Both doors have been tried once: what JAX compiles to cast a key or a number is not counted."""
    for door in doors(problem_of(lambda w, lam, batch: ())):
        with pytest.raises(bx.ParameterError):
            door()


@pytest.fixture
def both_refuse(refused, knocked):
    def check(problem, match):
        for door in doors(problem):
            refused(door, bx.ParameterError, match)

    return check


B1 = {
    "tuple": (lambda w, lam, batch: (w["a"],), r"\(\*,\)"),
    "one-more": (lambda w, lam, batch: w | {"b": w["a"]}, r"\{'a': \*, 'b': \*\}"),
    "bare": (lambda w, lam, batch: w["a"], r"PyTreeDef\(\*\)"),
    "None": (lambda w, lam, batch: None, "None"),
}


@pytest.mark.parametrize(("inner_map", "got"), B1.values(), ids=B1)
def test_b1_another_tree_is_refused_with_both_printed(inner_map, got, both_refuse):
    both_refuse(problem_of(inner_map), rf"inner_map must return a tree like w, PyTreeDef\(\{{'a': \*\}}\); got .*{got}")


B2 = {
    "short": (lambda w, lam, batch: {"a": w["a"][:1]}, r"float64\[1\]"),
    "scalar-that-would-broadcast": (lambda w, lam, batch: {"a": jnp.sum(w["a"])}, r"float64\[\]"),
    "row": (lambda w, lam, batch: {"a": w["a"][None]}, r"float64\[1, 2\]"),
    "float32": (lambda w, lam, batch: {"a": w["a"].astype(jnp.float32)}, r"float32\[2\]"),
}


@pytest.mark.parametrize(("inner_map", "got"), B2.values(), ids=B2)
def test_b2_another_shape_or_dtype_is_refused_with_the_leaf(inner_map, got, both_refuse):
    both_refuse(problem_of(inner_map), rf"inner_map returns {got} for leaf w\['a'\], which is float64\[2\]")


B3 = {
    "(1,)": (lambda w, lam, batch: jnp.sum(w["a"], keepdims=True), r"scalar, got \(1,\)"),
    "vector": (lambda w, lam, batch: w["a"], r"scalar, got \(2,\)"),
    "pair": (lambda w, lam, batch: (jnp.sum(w["a"]), 1.0), "scalar alone, got"),
    "None": (lambda w, lam, batch: None, "scalar, got None"),
    "int": (lambda w, lam, batch: jnp.int32(3), "float, got int32"),
}


@pytest.mark.parametrize(("outer_loss", "got"), B3.values(), ids=B3)
def test_b3_a_loss_that_is_no_scalar_is_refused(outer_loss, got, both_refuse):
    both_refuse(problem_of(outer_loss=outer_loss), f"outer_loss must return a {got}")
    if "tree" not in got.lower():
        inner = bx.GradientStep(lambda w, lam, batch: outer_loss(w, lam, batch), 0.1)
        both_refuse(problem_of(inner), f"the inner loss must return a {got}")


# B4-B10: rows


def test_b4_lengths_that_differ_are_refused_with_both(refused):
    match = r"rows differ in number: data\['X'\] has 7, data\['y'\] has 6"
    refused(lambda: bx.Arrays({"X": np.zeros((7, 2)), "y": np.zeros(6)}), bx.DataError, match)


RECIPES = {
    "Squared": bx.Squared(),
    "BinaryLogistic": bx.BinaryLogistic(),
    "MultinomialLogistic": bx.MultinomialLogistic(),
}


def scored(name):
    rng = np.random.default_rng(0)
    X, y = jnp.asarray(rng.normal(size=(15, 2))), jnp.arange(15) % 2
    w = jnp.asarray(rng.normal(size=(3 if name.startswith("Multi") else 1, 2)))
    return w, X, y.astype(X.dtype) if name == "Squared" else y


@pytest.mark.parametrize("name", ["BinaryLogistic", "MultinomialLogistic"])
def test_b5_a_column_of_labels_is_refused(name):
    """Under a user's promotion of ranks. Spread to [n, n], every row would be scored against every label."""
    w, X, y = scored(name)
    match = r"^y has shape \(15, 1\); pass one label a row, shape \[n\], for example y.ravel\(\)$"
    with jax.numpy_rank_promotion("allow"), pytest.raises(bx.ParameterError, match=match):
        RECIPES[name](w, (), (X, y[:, None]))


def test_b5_a_column_of_targets_is_read_as_a_vector():
    w, X, y = scored("Squared")
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(bx.Squared()(w, (), (X, y[:, None])), bx.Squared()(w, (), (X, y)), rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, 15), (45,), (15,), (15, 3, 1)], ids=str)
def test_b5_squared_targets_of_another_shape_are_refused(shape):
    """Not even those with the right number of entries are laid out anew."""
    X, w = jnp.ones((15, 2)), jnp.ones((3, 2))
    with pytest.raises(bx.ParameterError, match=r"y has shape .* and the scores \(15, 3\); pass y \[n\], or \[n, C\]"):
        bx.Squared()(w, (), (X, jnp.zeros(shape)))


@pytest.mark.parametrize("b", [0, -1, -15], ids=str)
def test_b6_a_batch_size_below_one_is_refused(b, refused):
    refused(lambda: bx.Arrays(np.zeros(15), b), bx.ParameterError, rf"batch_size must lie in \[1, n=15\], got {b}$")


@pytest.mark.parametrize("b", [2.0, np.float64(2), True, "2", np.array([2])], ids=repr)
def test_b6_a_batch_size_that_is_no_whole_number_is_refused(b, refused):
    refused(lambda: bx.Arrays(np.zeros(15), b), bx.ParameterError, "batch_size must be a whole number or None")


@pytest.mark.parametrize("b", [np.int64(4), np.int32(4), np.uint8(4), 4], ids=repr)
def test_b6_a_numpy_integer_is_a_batch_size(b):
    assert bx.Arrays(np.zeros(15), b) == bx.Arrays(np.zeros(15), 4)
    assert bx.Arrays(np.zeros(15), b).rows_per_batch == 4


@pytest.mark.parametrize("b", [16, np.uint8(200), 10**12], ids=str)
def test_b7_a_batch_size_above_n_is_refused(b, refused):
    refused(lambda: bx.Arrays(np.zeros(15), b), bx.ParameterError, rf"batch_size must lie in \[1, n=15\], got {b}$")


@jax.jit
def drawn(source, log, key):
    """Row numbers of the first len(log) minibatches, [len(log), b]; a short one is filled with -1."""

    def step(log, args, j, draw):
        return log.at[j].set(jnp.full(log.shape[1], -1.0).at[: draw.batch.shape[0]].set(draw.batch))

    return source.fold(step, log, (), key=key, start=0, stop=log.shape[0])


def rows_drawn(n, b, sampling, steps):
    source = bx.Arrays(np.arange(float(n)), b, sampling=sampling)
    return np.asarray(drawn(source, jnp.full((steps, b), -7.0), KEY)).astype(int)


def test_b8_the_rows_left_over_are_others_in_every_epoch():
    """15 rows in fours: three are left out of each of 400 epochs, each row 80 times, to 4.5 standard deviations."""
    epochs = rows_drawn(15, 4, "shuffled", 3 * 400).reshape(400, 12)
    counts = np.bincount(epochs.ravel(), minlength=15)
    assert np.all(np.abs((400 - counts) - 80) < 4.5 * np.sqrt(400 * 0.2 * 0.8))
    assert (epochs[1:, 0] != epochs[:-1, 0]).mean() > 0.8


@pytest.mark.parametrize("sampling", ["shuffled", "blocks"])
@pytest.mark.parametrize(("n", "b"), [(15, 4), (15, 15), (300, 7), (7, 1)])
def test_b9_an_epoch_meets_no_row_twice_and_no_index_is_clamped(n, b, sampling):
    per_epoch = n // b if sampling == "shuffled" else -(-n // b)
    steps = per_epoch * max(2, 300 // per_epoch)  # beyond one chunk of 256
    rows = rows_drawn(n, b, sampling, steps)
    assert rows.max() < n
    for epoch in rows.reshape(-1, per_epoch * b):
        met = epoch[epoch >= 0]
        assert len(set(met)) == len(met) == (per_epoch * b if sampling == "shuffled" else n)


def test_b9_iid_rows_beyond_the_last_are_never_asked_for():
    """A clamped index would favour the last row."""
    counts = np.bincount(rows_drawn(15, 4, "iid", 1500).ravel(), minlength=15)
    assert len(counts) == 15
    assert np.all(np.abs(counts - 400) < 4.5 * 20)


@pytest.mark.parametrize("data", [np.zeros((0, 3)), (np.zeros((0, 3)), np.zeros(0))], ids=["X", "(X, y)"])
@pytest.mark.parametrize("b", [None, 1])
def test_b10_no_rows_are_refused_by_name(data, b, refused):
    refused(lambda: bx.Arrays(data, b), bx.DataError, r"data has 0 rows \(data(\[0\], data\[1\])?\)")


def halving_map(w, lam, batch):
    return 0.5 * w + lam * jnp.mean(batch)


def product_loss(w, lam, batch):
    return jnp.sum(w * lam) * jnp.mean(batch)


@pytest.mark.slow_but("blocks")
@pytest.mark.parametrize("sampling", ["iid", "shuffled", "blocks"])
def test_b10_one_row_runs_in_batches_of_one(sampling):
    one = bx.Arrays(np.full(1, 3.0), 1, sampling=sampling)
    sid = bx.SID(bx.FixedPoint(60), bx.FixedPoint(60), cross_batches=2, outer_batches=2)
    est = bx.hypergradient(bx.Problem(halving_map, product_loss), sid, np.zeros(2), np.ones(2), one, one, key=KEY)
    assert est.code == bx.Code.OK
    np.testing.assert_allclose(est.w, 6.0, rtol=1e-12)
    np.testing.assert_allclose(est.value, 3.0 * 6.0 + 3.0 * 6.0, rtol=1e-12)
