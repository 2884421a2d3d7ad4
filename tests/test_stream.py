"""Rows that are not in memory: on them runs what runs on ``bx.Arrays``, and what goes wrong is said."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx

KEY = jax.random.key(5)
RNG = np.random.default_rng(1)
N, D, B = 203, 4, 7
W = RNG.normal(size=D)
X, V = RNG.normal(size=(N, D)), RNG.normal(size=(90, D))
Y, Z = X @ W + 0.3 * RNG.normal(size=N), V @ W + 0.3 * RNG.normal(size=90)
SMALL = 16 * B * 8 * (D + 1)
"""Bytes with which a piece has one minibatch, and a pass over every row several pieces."""


def inner_loss(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def outer_loss(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2)


PROBLEM = bx.Problem(bx.GradientStep(inner_loss), outer_loss)
START = jnp.zeros(D), jnp.full(D, -1.0)


def arrays(b=B, val=5, sampling="iid", **options):
    return bx.Arrays((X, Y), b, sampling, **options), bx.Arrays((V, Z), val, sampling, **options)


def streams(b=B, val=5, sampling="iid", bytes=SMALL, **options):
    return (
        bx.Stream((X, Y), b, sampling, prefetch_bytes=bytes, **options),
        bx.Stream((V, Z), val, sampling, prefetch_bytes=bytes, **options),
    )


class Table:
    """Rows that a loader of the user's finds; what it does wrong, a test says."""

    def __init__(self, *leaves):
        self.leaves, self.asked, self.threads = leaves, [], set()

    def __len__(self):
        return len(self.leaves[0])

    def rows(self, numbers):
        self.asked.append(np.array(numbers))
        self.threads.add(threading.current_thread())
        return tuple(x[numbers] for x in self.leaves)


class Refilled(Table):
    """A loader that fills so many buffers in turn."""

    def __init__(self, buffers, *leaves):
        super().__init__(*leaves)
        self.buffers = [[np.empty((1000, *x.shape[1:])) for x in leaves] for _ in range(buffers)]

    def rows(self, numbers):
        self.buffers.append(self.buffers.pop(0))
        room = [x[: len(numbers)] for x in self.buffers[0]]
        for x, own in zip(super().rows(numbers), room, strict=True):
            own[:] = x
        return tuple(room)


@jax.jit
def drawn(source, start, stop):
    """The rows of every minibatch, as their sums, with its weight and block."""

    def note(seen, args, j, draw):
        X, y = draw.batch
        new = jnp.concatenate([X.sum(0), y.sum()[None], jnp.stack([draw.weight, jnp.asarray(draw.block, float)])])
        return seen.at[j].set(new)

    return source.fold(note, jnp.zeros((600, D + 3)), (), key=KEY, start=start, stop=stop)


DRAWS = [
    ("iid", SMALL, {}),
    ("blocks", 1 << 20, {}),
    # of 32 minibatches that are read together two are handed over at a time, and one
    ("iid", 1 << 19, {"HANDED": 600}),
    ("blocks", 1 << 19, {"HANDED": 300}),
    # of a chunk that was forgotten each minibatch is read alone
    ("iid", 1 << 19, {"CHUNKS": 1}),
    # no more memory than one minibatch takes
    ("iid", 8 * B * (D + 1), {}),
    # the loader fills the same arrays at each call
    ("iid", SMALL, {"buffers": 1}),
    pytest.param("shuffled", SMALL, {}, marks=pytest.mark.slow),
    pytest.param("iid", 1 << 20, {}, marks=pytest.mark.slow),
    pytest.param("shuffled", 1 << 20, {}, marks=pytest.mark.slow),
    pytest.param("blocks", SMALL, {"seed": None}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("sampling", "bytes", "more"), DRAWS, ids=str)
def test_minibatch_j_has_the_rows_that_arrays_draws(monkeypatch, sampling, bytes, more):
    more = dict(more)
    monkeypatch.setattr("bilevax.data.stream.HANDED", more.pop("HANDED", 1 << 19))
    monkeypatch.setattr("bilevax.data.announced.CHUNKS", more.pop("CHUNKS", 8))
    table = Refilled(more.pop("buffers"), X, Y) if "buffers" in more else Table(X, Y)
    known = drawn(bx.Arrays((X, Y), B, sampling, **more), 0, 600)
    source = bx.Stream(table, B, sampling, prefetch_bytes=bytes, **more)
    np.testing.assert_array_equal(drawn(source, 0, 600), known)
    # entered again in the middle of a piece, across a chunk
    np.testing.assert_array_equal(drawn(source, 251, 262)[251:262], known[251:262])


def test_several_minibatches_a_step_are_those_of_arrays():
    """Of a chunk of which the stream holds only some."""

    def step(total, args, k, looks):
        return total.at[k].set(
            looks["train"].fold(lambda s, i, draw: s + (1 + i).astype(float) * draw.batch[1].sum(), 0.0)
        )

    @jax.jit
    def run(source):
        return bx.fold_looks({"train": bx.Several(source, 10)}, step, jnp.zeros(40), (), key=KEY, start=0, stop=40)

    np.testing.assert_allclose(run(streams()[0]), run(arrays()[0]), rtol=1e-12)


ESTIMATORS = {
    "SID": (bx.SID(bx.FixedPoint(300, 0.5), bx.FixedPoint(300, 0.5), cross_batches=40), {}),
    "SID shuffled": (bx.SID(bx.FixedPoint(300, 0.5), bx.CG(1e-8), cross_batches=40), {"sampling": "shuffled"}),
    "JointSID": (bx.JointSID(600), {"sampling": "blocks"}),
    "LBFGS, CG": (bx.SID(bx.LBFGS(1e-10), bx.CG(1e-10)), {}),
    "GMRES": (bx.SID(bx.FixedPoint(60, 0.5), bx.GMRES(1e-8)), {}),
    "Neumann": (bx.SID(bx.LBFGS(1e-10), bx.Neumann(1e-8)), {}),
    "ITD": (bx.ITD(60), {}),
}


def close(found, known, size=1.0):
    for x, y in zip(*map(jax.tree.leaves, (found, known)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8 * size)


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "options"), ESTIMATORS.values(), ids=ESTIMATORS)
def test_hypergradients_and_their_reports_are_those_of_arrays(estimator, options):
    found, known = (
        bx.hypergradient(PROBLEM, estimator, *START, *make(**options), key=KEY) for make in (streams, arrays)
    )
    assert int(found.code) == int(known.code)
    parts = [(e.value, e.outer_value, e.w, e.error) for e in (found, known)]
    close(*parts, size=float(jnp.abs(known.value).max()))


def test_solvers_of_every_row_have_the_same_solution():
    """Against the closed form, so that a piece that is left out shows."""
    est = bx.hypergradient(PROBLEM, ESTIMATORS["LBFGS, CG"][0], *START, *streams(), key=KEY, report=False)
    H = X.T @ X / N + np.exp(-1.0) * np.eye(D)
    w = np.linalg.solve(H, X.T @ Y / N)
    truth = -np.exp(-1.0) * w * np.linalg.solve(H, V.T @ (V @ w - Z) / len(Z))
    np.testing.assert_allclose(est.value, truth, rtol=1e-7)
    np.testing.assert_allclose(est.outer_value, 0.5 * np.mean((V @ w - Z) ** 2), rtol=1e-9)


def soft(w, lam, s):
    """The prox of s e^lam |w|_1."""
    return jnp.sign(w) * jnp.maximum(jnp.abs(w) - s * jnp.exp(lam), 0.0)


LASSO = bx.Problem(bx.ProximalStep(outer_loss, soft, step_size=0.3), outer_loss)
PROX = {
    "SID": bx.SID(bx.FixedPoint(200), bx.GMRES(1e-10)),
    "ITD": bx.ITD(200),
    "NSID": bx.NSID(bx.FixedPoint(200), bx.GMRES(1e-10)),
}


def test_the_mean_of_a_proximal_map_is_the_prox_of_the_mean():
    """Of rows whose proxes, piece by piece, are another point."""
    w, lam = jnp.full(D, 0.2), jnp.log(0.45)
    gradient = X.T @ (X @ w - Y) / N
    truth = soft(w - 0.3 * gradient, lam, 0.3)
    for source in (bx.Arrays((X, Y)), bx.Stream((X, Y), prefetch_bytes=1 << 13)):
        instance = bx.Instance(LASSO, lam, source, source)
        image, pullback = jax.jit(lambda instance: jax.vjp(instance.mean_image, w, lam))(instance)
        np.testing.assert_allclose(image, truth, rtol=1e-12)
        np.testing.assert_allclose(instance.mean_adjoint_product(w, jnp.ones(D)), pullback(jnp.ones(D))[0], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", PROX.values(), ids=PROX)
def test_the_prox_is_of_the_mean_and_not_of_its_pieces(estimator):
    """Every row at once: rows in pieces have the solution of the lasso, and not the mean of those of the pieces."""
    whole = [
        (bx.Arrays((X, Y)), bx.Arrays((V, Z))),
        (bx.Stream((X, Y), prefetch_bytes=1 << 13), bx.Stream((V, Z), prefetch_bytes=1 << 13)),
    ]
    known, found = (
        bx.hypergradient(LASSO, estimator, jnp.zeros(D), jnp.log(0.45), *sources, key=KEY) for sources in whole
    )
    assert np.any(np.asarray(known.w) == 0.0)
    close((found.value, found.w), (known.value, known.w), 1e-2)


ALGORITHMS = {
    "SOBA": (bx.SOBA(0.1, 0.1), "iid", 300),
    "SABA": (bx.SABA(0.05, 0.05), "blocks", 300),
    "SRBA": (bx.SRBA(0.05, 0.05), "blocks", 300),
    "AmIGO": (bx.AmIGO(0.1, 0.1, inner_steps=10, linear_steps=10), "shuffled", 40),
    "StocBiO": (bx.StocBiO(0.1, 0.1, inner_steps=10, linear_steps=40), "iid", 40),
    "MRBO": (bx.MRBO(0.1, 0.1, linear_steps=5), "iid", 100),
    "F2SA": (bx.F2SA(0.1, 0.1), "iid", 100),
    "BSGM": (bx.BSGM(bx.SID(bx.FixedPoint(40), bx.FixedPoint(40), cross_batches=5), bx.optim("adam", 0.05)), "iid", 8),
    "MAID": (bx.MAID(0.5), "iid", 3),
}


@pytest.mark.parametrize(
    ("algorithm", "sampling", "steps"),
    [pytest.param(*x, marks=() if name == "SOBA" else pytest.mark.slow, id=name) for name, x in ALGORITHMS.items()],
)
def test_runs_are_those_of_arrays(algorithm, sampling, steps):
    found, known = (
        bx.minimize(PROBLEM, algorithm, *START, *make(sampling=sampling), steps=steps, key=KEY)
        for make in (streams, arrays)
    )
    assert int(found.code) == int(known.code)
    close((found.w, found.lam, found.history.outer_value), (known.w, known.lam, known.history.outer_value))


@pytest.mark.slow
def test_a_run_goes_on_in_the_middle_of_an_epoch_to_the_same_bits(tmp_path):
    def run(train=None, **options):
        own, val = streams(sampling="shuffled")
        sources = own if train is None else train, val
        return bx.minimize(PROBLEM, bx.SOBA(0.1, 0.1), *START, *sources, steps=400, every=37, key=KEY, **options)

    whole = run()
    # a loader that fails in the run's third call, as a disk may
    table = Faulty(X, Y)
    train = bx.Stream(table, B, "shuffled", prefetch_bytes=SMALL)

    def fail(progress):
        table.fault = raises if progress.step >= 111 else None

    with pytest.raises(bx.DataError, match="the disk is gone"):
        run(train, run=bx.Run(tmp_path / "run", seconds=1e-9), callback=fail)
    table.fault = None
    again = run(train, run=tmp_path / "run")
    for x, y in zip(*map(jax.tree.leaves, ((again.w, again.lam), (whole.w, whole.lam))), strict=True):
        np.testing.assert_array_equal(x, y)
    assert list(again.history.step) == list(whole.history.step)
    with pytest.raises(bx.MismatchError, match=r"train\.data\.function: rows"):
        run(bx.Stream((X + 1, Y), B, "shuffled", prefetch_bytes=SMALL), run=tmp_path / "run")


@pytest.mark.slow
def test_a_plan_and_an_audit_run_on_streams():
    plan = bx.plan(PROBLEM, *START, *streams(), key=KEY, budget=60_000)
    assert isinstance(plan.train, bx.Stream)
    est = plan.run(key=KEY)
    assert float(est.error.relative) < 0.2
    assert bx.check(PROBLEM, *START, *streams(), key=KEY).worst in (None, "note")


@jax.jit
def mean(source):
    return source.total(lambda args, batch: jnp.mean(batch[1]), ())


@jax.jit
def sum_of_draws(source, stop=300):
    return source.fold(lambda total, args, j, draw: total + draw.batch[1].sum(), 0.0, (), key=KEY, start=0, stop=stop)


def test_what_cannot_be_is_refused(refused):
    source, keys = streams()[0], jax.random.split(KEY, 2)

    def each(key):
        return source.fold(lambda c, a, j, draw: c + draw.batch[1].sum(), 0.0, (), key=key, start=0, stop=2)

    with pytest.raises(bx.ParameterError, match=r"a stream cannot be mapped by jax\.vmap"):
        jax.vmap(each)(keys)
    sid = bx.SID(bx.FixedPoint(3), bx.FixedPoint(3), cross_batches=1)
    call = lambda: bx.hypergradient(PROBLEM, sid, *START, *streams(), key=KEY, replicas=2)  # noqa: E731
    with pytest.raises(bx.ParameterError):  # what makes arrays of numbers is compiled once in a process
        call()
    refused(call, bx.ParameterError, "nor have replicas")
    call = lambda: bx.minimize(PROBLEM, bx.SABA(), *START, *streams(), steps=3, key=KEY)  # noqa: E731
    refused(call, bx.ParameterError, "blocks")
    refused(lambda: bx.Stream((X, Y), N + 1), bx.ParameterError, r"must lie in \[1, n=203\], got 204")
    refused(lambda: bx.Stream((X, Y), 100, prefetch_bytes=300), bx.ParameterError, "more than prefetch_bytes=300")
    refused(lambda: bx.Stream((X, Y[:-1])), bx.DataError, "rows differ in number")
    refused(lambda: bx.Stream("nowhere.npy", 3), bx.DataError, "data cannot be opened: FileNotFoundError")
    refused(lambda: bx.Stream(np.array(["a"]), 1), bx.DataError, "pass numbers")
    refused(lambda: bx.Stream(Y.astype(">f8"), 1), bx.DataError, "data has dtype >f8, bytes in the order of other")
    whole = bx.Stream((X, Y), prefetch_bytes=100)
    refused(lambda: sum_of_draws(whole, 2), bx.ParameterError, "a minibatch of every row takes 8,120 bytes")


ENDED = jax.errors.JaxRuntimeError, ValueError
"""How a program of the user's ends, by when it is waited for."""


class Faulty(Table):
    """Right until it has a fault."""

    fault = None

    def rows(self, numbers):
        rows = super().rows(numbers)
        return self.fault(rows) if self.fault else rows


def raises(rows):
    raise OSError("the disk is gone")


def exits(rows):
    raise SystemExit(3)


def stalls(rows):
    time.sleep(3.0)
    return rows


def not_finite(rows):
    return rows[0], np.where(np.arange(len(rows[1])) == 1, np.nan, rows[1])


FAULTS = {
    "raises": (raises, r"Faulty.rows raised OSError: the disk is gone, for \d+ rows, the first of them row \d+"),
    "exits": (exits, "Faulty.rows raised SystemExit: 3"),
    "shape": (
        lambda rows: (rows[0][:, 1:], rows[1]),
        r"Faulty.rows\[0\] must be float64\[\d+, 4\] .*, got float64\[\d+, 3\]",
    ),
    "dtype": (
        lambda rows: (rows[0], rows[1].astype(np.float32)),
        r"Faulty.rows\[1\] must be float64\[\d+\] .*, got float32\[\d+\]",
    ),
    "number": (
        lambda rows: (rows[0][:-1], rows[1]),
        r"Faulty.rows\[0\] must be float64\[7, 4\] .*, got float64\[6, 4\]",
    ),
    "structure": (lambda rows: rows[0], "Faulty.rows returned .*, and at first"),
    "NaN": (not_finite, r"Faulty.rows\[1\] has 1 NaN, first at row \d+"),
    "stalls": (stalls, r"Faulty.rows has not returned \d+ rows, .* after 1 s; a slower source needs a larger timeout="),
}


@pytest.mark.parametrize(("fault", "sentence"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_loader_is_one_sentence_and_the_next_call_goes_on(fault, sentence):
    table = Faulty(X, Y)
    source = bx.Stream(table, B, prefetch_bytes=SMALL, timeout=1.0)
    known = float(sum_of_draws(source))
    table.fault = lambda rows: fault(rows)
    with pytest.raises(ENDED, match=sentence):
        sum_of_draws(source).block_until_ready()
    table.fault = None
    assert float(sum_of_draws(source)) == known


def test_out_of_a_call_of_ours_comes_the_sentence_alone(capfd):
    table = Faulty(X, Y)
    train = bx.Stream(table, B, prefetch_bytes=SMALL)
    table.fault = raises
    sid = bx.SID(bx.FixedPoint(3), bx.FixedPoint(3), cross_batches=1)
    with pytest.raises(bx.DataError, match=r"^Faulty\.rows raised OSError: the disk is gone"):
        bx.hypergradient(PROBLEM, sid, *START, train, bx.Arrays((V, Z)), key=KEY, report=False)
    assert "Traceback" not in capfd.readouterr().err


def test_files_are_read_where_they_lie_and_one_that_was_cut_is_named(tmp_path):
    path = tmp_path / "X.npy"
    np.save(path, X)
    file = np.load(path, mmap_mode="r")
    # one leaf in a file and one in memory
    source = bx.Stream((file, Y), B, "blocks", prefetch_bytes=SMALL)
    assert source.mapped[0].unsafe_buffer_pointer() == file.ctypes.data
    np.testing.assert_array_equal(drawn(source, 0, 600), drawn(bx.Arrays((X, Y), B, "blocks"), 0, 600))
    np.testing.assert_allclose(float(mean(source)), Y.mean(), rtol=1e-12)
    # the same table is not compared cell by cell
    assert bx.Stream((file, Y), B, "blocks", prefetch_bytes=SMALL).mapped[0] is source.mapped[0]
    with path.open("r+b") as file:
        file.seek(128 + 8 * (17 * D + 2))
        file.write(np.float64(np.nan).tobytes())
    with pytest.raises(ENDED, match=r"data\[0\] has 1 NaN, first at row 17, column 2"):
        drawn(source, 0, 600).block_until_ready()
    with path.open("r+b") as file:
        file.truncate(300)
    with pytest.raises(ENDED, match=r"X\.npy was cut while it was read"):
        drawn(source, 0, 600).block_until_ready()


def test_a_pass_takes_rows_of_files_as_they_lie_once_they_were_looked_at(tmp_path):
    paths = tmp_path / "X.npy", tmp_path / "Y.npy"
    for path, x in zip(paths, (X, Y), strict=True):
        np.save(path, x)
    total = jax.jit(
        lambda source, w: jax.value_and_grad(lambda w: source.total(lambda w, rows: outer_loss(w, 0, rows), w))(w)
    )
    source = bx.Stream(paths, B)
    found, right = total(source, START[0] + 1.0), total(bx.Arrays((X, Y), B), START[0] + 1.0)
    np.testing.assert_allclose(found[0], right[0], rtol=1e-12)
    np.testing.assert_allclose(found[1], right[1], rtol=1e-12)
    with paths[0].open("r+b") as file:
        file.seek(128 + 8 * (17 * D + 2))
        file.write(np.float64(np.nan).tobytes())
    # rows that were looked at are not looked at again, and their NaN is in the result
    assert np.isnan(total(source, START[0])[0])
    with pytest.raises(ENDED, match=r"data\[0\] has 1 NaN, first at row 17, column 2"):
        jax.block_until_ready(total(bx.Stream(paths, B), START[0]))


def test_rows_are_read_ahead_on_one_thread_within_the_bytes():
    table = Table(X, Y)
    source = bx.Stream(table, B, prefetch_bytes=SMALL)
    sum_of_draws(source, 40).block_until_ready()
    assert threading.current_thread() not in table.threads
    # a piece of one minibatch at a time, and at most two that nobody asked for
    assert {len(numbers) for numbers in table.asked[2:]} == {B}
    assert len(table.asked) <= 2 + 40 + 2
    time.sleep(0.1)
    table.asked.clear()
    mean(source).block_until_ready()
    # a pass reads each row once, but for the first piece of the next
    assert sum(map(len, table.asked)) <= N + max(map(len, table.asked))
    np.testing.assert_array_equal(np.unique(np.concatenate(table.asked)), np.arange(N))


def test_a_loader_that_fills_an_array_in_use_is_refused():
    source = bx.Stream(Refilled(3, X, Y), B, prefetch_bytes=1 << 20)
    with pytest.raises(ENDED, match=r"Refilled\.rows gave the memory of rows that are in use once more; give a new"):
        sum_of_draws(source, 600).block_until_ready()


def test_tables_that_differ_in_one_row_are_two_tables():
    other = Y.copy()
    other[100] += 10.0
    first, second = bx.Stream(Table(X, Y), B), bx.Stream(Table(X, other), B)
    assert first != second
    np.testing.assert_allclose([float(mean(first)), float(mean(second))], [Y.mean(), other.mean()], rtol=1e-12)


def test_equal_streams_share_a_program():
    run = jax.jit(lambda source: source.total(lambda args, batch: jnp.mean(batch[1]), ()))
    first, second = bx.Stream((X, Y), B), bx.Stream((X + 1.0, Y + 1.0), B)
    assert first != second
    assert first == bx.Stream((X, Y), B)
    values = float(run(first)), float(run(second))
    assert run._cache_size() == 1
    np.testing.assert_allclose(values, (Y.mean(), Y.mean() + 1.0), rtol=1e-12)
