"""Which rows are minibatch j, and what a source refuses."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.core.config import config
from bilevax.core.protocols import Draw
from bilevax.data.fold import fold

KEY = jax.random.key(3)
SAMPLINGS = ["iid", "shuffled", "blocks"]
MOST = 1600  # minibatches that one log can hold


def numbered(n, batch_size, sampling="iid", **options):
    """A source whose rows are their own numbers."""
    return bx.Arrays(np.arange(n, dtype=np.float64), batch_size, sampling=sampling, **options)


@jax.jit
def log_of(source, key, start, stop, log):
    """(rows, weights, blocks) of each minibatch, written into a log; rows of a short one are padded with -1."""

    def step(log, args, j, draw):
        rows, weights, blocks = log
        line = jnp.full((rows.shape[1],), -1.0).at[: draw.batch.shape[0]].set(draw.batch)
        block = jnp.asarray(draw.block, jnp.int32)
        return rows.at[j].set(line), weights.at[j].set(draw.weight), blocks.at[j].set(block)

    return source.fold(step, log, (), key=key, start=start, stop=stop)


def empty_log(width):
    return jnp.full((MOST, width), -7.0), jnp.full(MOST, -7.0), jnp.full(MOST, -7, jnp.int32)


def drawn(source, stop, *, key=KEY, start=0, log=None):
    log = empty_log(source.rows_per_batch) if log is None else log
    return log_of(source, key, start, stop, log)


def rows_of(source, stop, **options):
    return np.asarray(drawn(source, stop, **options)[0])[:stop]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("n", "b"), [(50, 7), (900, 3)])
def test_a_fold_that_is_cut_sees_the_same_minibatches(sampling, n, b):
    source = numbered(n, b, sampling)
    whole = drawn(source, 700)
    cut = empty_log(b)
    for start, stop in ((0, 37), (37, 37), (37, 256), (256, 257), (257, 700)):
        cut = drawn(source, stop, start=start, log=cut)
    for a, c in zip(whole, cut, strict=True):
        assert np.array_equal(a, c)
    assert np.all(np.asarray(whole[0])[:700] >= -1.0)
    assert np.all(np.asarray(whole[0])[700:] == -7.0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_minibatch_is_a_function_of_the_key_and_its_number(sampling):
    source = numbered(500, 7, sampling)
    assert np.array_equal(rows_of(source, 600), rows_of(numbered(500, 7, sampling), 600))
    assert np.array_equal(rows_of(source, 600)[:100], rows_of(source, 100))
    other = rows_of(source, 600, key=jax.random.key(4))
    assert np.mean(rows_of(source, 600) == other) < 0.2


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_no_two_stretches_of_a_stream_are_alike(sampling):
    """Rows are chosen 256 minibatches at once; each such chunk has rows of its own."""
    rows = rows_of(numbered(900, 3, sampling), 1500)
    for lag in (10, 100, 250, 256, 260, 300, 512, 600):
        assert np.mean(rows[lag:] == rows[:-lag]) < 0.1


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("n", "b"), [(7, 3), (1, 1), (50, 49)])
def test_only_rows_that_exist_are_drawn(sampling, n, b):
    """An index out of bounds would be clamped in silence; here all rows are met, and none is favoured by clamping."""
    rows = rows_of(numbered(n, b, sampling), 1500)
    assert set(np.unique(rows)) - {-1.0} <= set(range(n))
    if 1500 * b > 20 * n:
        assert set(np.unique(rows)) - {-1.0} == set(range(n))


def test_iid_rows_are_uniform_and_independent():
    n, b = 10, 4
    rows = rows_of(numbered(n, b), 1500).astype(int)
    counts = np.bincount(rows.ravel(), minlength=n)
    expected = rows.size / n
    assert np.sum((counts - expected) ** 2 / expected) < 33.7  # .9999 quantile of chi-square, 9 degrees
    repeats = np.mean([len(set(batch)) < b for batch in rows])
    assert abs(repeats - (1 - 9 * 8 * 7 / 1000)) < 0.06  # drawn with replacement
    following = np.bincount(rows[:-1, 0] * n + rows[1:, 0], minlength=n * n)
    assert np.sum((following - 14.99) ** 2 / 14.99) < 158  # .9999 quantile, 99 degrees


@pytest.mark.parametrize(("n", "b"), [(50, 7), (49, 7), (50, 49), (900, 3)])
def test_shuffled_an_epoch_meets_a_row_at_most_once(n, b):
    per_epoch = n // b
    rows = rows_of(numbered(n, b, "shuffled"), MOST)
    epochs = [rows[i : i + per_epoch].ravel() for i in range(0, MOST - per_epoch + 1, per_epoch)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == b * per_epoch
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_shuffled_every_row_counts_equally_over_many_epochs():
    """50 rows in sevens: one row is left out of each epoch, and it is not always the same."""
    rows = rows_of(numbered(50, 7, "shuffled"), 7 * 220)
    left_out = np.array([next(iter(set(range(50)) - set(epoch))) for epoch in rows.reshape(220, -1).astype(int)])
    counts = np.bincount(left_out, minlength=50)
    assert np.sum((counts - 4.4) ** 2 / 4.4) < 95.0  # .9999 quantile of chi-square, 49 degrees


@pytest.mark.parametrize(("n", "b"), [(50, 7), (49, 7), (50, 49), (900, 3)])
def test_blocks_an_epoch_meets_every_row_exactly_once(n, b):
    blocks = -(-n // b)
    rows, weights, numbers = (np.asarray(x) for x in drawn(numbered(n, b, "blocks"), MOST))
    short = n % b
    for i in range(0, MOST - blocks + 1, blocks):
        epoch = rows[i : i + blocks].ravel()
        assert sorted(epoch[epoch >= 0]) == list(range(n))
        assert sorted(numbers[i : i + blocks]) == list(range(blocks))
    size = np.sum(rows >= 0, axis=1)
    assert set(size) == ({b, short} if short else {b})
    assert np.array_equal(size == short, numbers == blocks - 1) or not short
    np.testing.assert_allclose(weights, size * blocks / n)
    assert len({tuple(numbers[i : i + blocks]) for i in range(0, 10 * blocks, blocks)}) > (blocks > 2)


def test_blocks_the_weighted_mean_is_unbiased():
    """weight times the mean of a block, averaged over an epoch, is the mean over all rows."""
    rows, weights, _ = (np.asarray(x)[:8] for x in drawn(numbered(50, 7, "blocks"), 8))
    means = np.sum(np.where(rows >= 0, rows, 0), axis=1) / np.sum(rows >= 0, axis=1)
    np.testing.assert_allclose(np.mean(weights * means), np.mean(np.arange(50)), rtol=1e-14)


def test_blocks_a_source_built_again_from_its_fields_is_the_same():
    source = numbered(50, 7, "blocks")
    again = bx.Arrays(source.data, source.batch_size, source.sampling, source.seed)
    assert again == source
    assert np.array_equal(rows_of(again, 20), rows_of(source, 20))


def test_blocks_the_shuffle_is_decided_by_the_seed():
    full = [np.asarray(numbered(50, 7, "blocks", seed=seed).all_rows) for seed in (0, 0, 1)]
    assert np.array_equal(full[0], full[1])
    assert not np.array_equal(full[0], full[2])
    assert not np.array_equal(full[0], np.arange(50))
    assert sorted(full[2]) == list(range(50))


def test_blocks_rows_of_all_leaves_stay_together():
    X = np.arange(40.0).reshape(20, 2)
    source = bx.Arrays({"X": X, "y": np.arange(20)}, 6, sampling="blocks")
    assert np.array_equal(source.all_rows["X"][:, 0], 2 * source.all_rows["y"])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_row_at_once(sampling):
    source = numbered(12, None, sampling)
    rows, weights, _ = drawn(source, 5)
    assert source.rows == source.rows_per_batch == 12
    assert np.array_equal(rows[:5], np.tile(np.arange(12.0), (5, 1)))
    assert np.all(weights[:5] == 1.0)


def test_sid_with_blocks_uses_the_weights():
    """A mean over one epoch of cross batches, short block included, is the mean over all rows."""

    def inner_map(w, lam, batch):
        return jnp.zeros_like(w) + jnp.mean(batch) * lam

    problem = bx.Problem(inner_map, lambda w, lam, batch: jnp.sum(w))
    sid = bx.SID(bx.Given(), bx.FixedPoint(40), cross_batches=8)
    one = np.ones(1)
    est = bx.hypergradient(problem, sid, one, one, numbered(50, 7, "blocks"), numbered(3, None), key=KEY, report=False)
    np.testing.assert_allclose(est.value, [np.mean(np.arange(50))], rtol=1e-14)


def test_join_draws_from_all_sources_at_once():
    train, val = numbered(50, 7, "shuffled"), numbered(20, 6, "blocks")
    joined = bx.join(train=train, val=val)

    @jax.jit
    def logs(joined, start, stop, log):
        def step(log, args, j, draws):
            short = jnp.full((6,), -1.0).at[: draws["val"].batch.shape[0]].set(draws["val"].batch)
            return log[0].at[j].set(draws["train"].batch), log[1].at[j].set(short)

        return joined.fold(step, log, (), key=KEY, start=start, stop=stop)

    empty = jnp.full((MOST, 7), -7.0), jnp.full((MOST, 6), -7.0)
    whole = logs(joined, 0, 1000, empty)
    cut = logs(joined, 611, 1000, logs(joined, 0, 611, empty))
    for a, c in zip(whole, cut, strict=True):
        assert np.array_equal(a, c)
    # each as it would be alone, from a key of its own
    for i, (name, source) in enumerate((("train", train), ("val", val))):
        alone = rows_of(source, 1000, key=jax.random.fold_in(KEY, i))
        assert np.array_equal(np.asarray(whole[i])[:1000], alone), name


def test_join_the_order_of_the_names_does_not_matter():
    train, val = numbered(50, 7), numbered(50, 7)

    def total(joined):
        def step(carry, args, j, draws):
            return 0.5 * carry[0] + draws["train"].batch, 0.5 * carry[1] + draws["val"].batch

        return joined.fold(step, (jnp.zeros(7), jnp.zeros(7)), (), key=KEY, start=0, stop=9)

    a, b = total(bx.join(train=train, val=val)), total(bx.join(val=val, train=train))
    assert np.array_equal(a[0], b[0])
    assert np.array_equal(a[1], b[1])


def test_join_needs_a_source():
    with pytest.raises(bx.ParameterError, match="at least one source"):
        bx.join()


def test_args_reach_the_step_and_an_empty_fold_returns_its_carry():
    source = numbered(10, 2)

    def step(carry, args, j, draw):
        return carry + args["a"] * j

    args, one = {"a": jnp.int32(2)}, jnp.int32(1)
    assert source.fold(step, one, args, key=KEY, start=3, stop=6) == 1 + 2 * (3 + 4 + 5)
    for start, stop in ((0, 0), (5, 5), (6, 2)):
        assert source.fold(step, one, args, key=KEY, start=start, stop=stop) == 1


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_several_stops_give_the_carry_at_each(sampling):
    """The same minibatches as up to each of them alone, a stop that is no further than the last included."""
    source = numbered(75, 7, sampling)

    def step(carry, args, j, draw):
        return 0.9 * carry + draw.weight * jnp.sum(draw.batch)

    @jax.jit
    def both(source, stops):
        whole = source.fold(step, jnp.zeros(()), (), key=KEY, start=250, stop=stops)
        alone = [source.fold(step, jnp.zeros(()), (), key=KEY, start=250, stop=stop) for stop in stops]
        return whole, jnp.stack(alone)

    whole, alone = both(source, jnp.array([250, 251, 251, 256, 300, 700]))
    assert np.array_equal(whole, alone)
    assert whole[0] == 0.0
    assert len(np.unique(whole)) == 5


@config
class EveryThird:
    """The smallest source: row j mod 3, without keys; a plan of nothing."""

    data: object

    def plan_chunk(self, plan, key, j, first):
        return ()

    def chunk_end(self, j):
        return j + 2

    def visit(self, plan, j, use):
        return use(Draw(jnp.take(self.data, j % 3, axis=0)[None], -1, 1.0))


def test_fold_takes_any_source_that_keeps_the_protocol():
    def step(carry, args, j, draw):
        return 2.0 * carry + draw.batch[0]

    out = fold(EveryThird(jnp.asarray([1.0, 2.0, 4.0])), step, jnp.zeros(()), (), key=KEY, start=1, stop=6)
    assert out == 2.0 * 16 + 4.0 * 8 + 1.0 * 4 + 2.0 * 2 + 4.0


X34 = np.arange(12.0).reshape(3, 4)


def spoilt(value, *places):
    X = X34.copy()
    for place in places:
        X[place] = value
    return X


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((spoilt(np.nan, (1, 2)), np.zeros(3)), r"data\[0\] has 1 NaN, first at row 1, column 2"),
        ((X34, spoilt(np.inf, (2, 0))[:, 0]), r"data\[1\] has 1 infinite, first at row 2$"),
        ({"X": spoilt(np.nan, (0, 1), (2, 2))}, r"data\['X'\] has 2 NaN, first at row 0, column 1"),
        ((X34, np.zeros(2)), r"rows differ in number: data\[0\] has 3, data\[1\] has 2"),
        (np.zeros((0, 4)), "0 rows"),
        ((), "no arrays"),
        (np.array(["a", "b"]), "pass numbers"),
        (np.array([None, 1.0], object), "pass numbers"),
        (np.ones(3) * 1j, "complex"),
        (np.float64(1.0), "scalar"),
    ],
)
def test_wrong_data_are_refused_and_the_place_is_said(data, message):
    with pytest.raises(bx.DataError, match=message):
        bx.Arrays(data)


def test_several_kinds_of_wrong_numbers_are_counted():
    X = spoilt(np.nan, (1, 1), (2, 3))
    X[1, 3] = -np.inf
    with pytest.raises(bx.DataError, match="2 NaN and 1 infinite, first at row 1, column 1"):
        bx.Arrays(X)


def test_large_numbers_are_not_mistaken_for_infinite():
    """Their sum overflows, they do not."""
    assert bx.Arrays(np.full((3, 2), 1e308)).rows == 3


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (0, r"batch_size must lie in \[1, n=3\], got 0"),
        (-2, r"batch_size must lie in \[1, n=3\], got -2"),
        (4, r"batch_size must lie in \[1, n=3\], got 4"),
        (2.0, "batch_size must be a whole number or None, got 2.0"),
        (True, "batch_size must be a whole number or None, got True"),
        ("2", "batch_size must be a whole number or None, got '2'"),
    ],
)
def test_a_wrong_batch_size_is_refused(batch_size, message):
    with pytest.raises(bx.ParameterError, match=message):
        bx.Arrays(X34, batch_size)


@pytest.mark.parametrize("batch_size", [np.int64(2), np.int32(2), np.uint8(2), 3, None])
def test_whole_numbers_of_every_kind_are_batch_sizes(batch_size):
    source = bx.Arrays(X34, batch_size)
    assert source.rows_per_batch == (3 if batch_size is None else batch_size)
    assert source.batch_size is None or type(source.batch_size) is int


def test_an_unknown_sampling_is_refused():
    with pytest.raises(bx.ParameterError, match="'iid', 'shuffled', 'blocks', 'windows'; got 'random'"):
        bx.Arrays(X34, 2, sampling="random")


def test_integers_and_booleans_keep_their_kind():
    source = bx.Arrays((np.arange(3, dtype=np.int32), np.array([True, False, True])), 2)
    assert source.all_rows[0].dtype == jnp.int32
    assert source.all_rows[1].dtype == jnp.bool_


def test_float64_stays_where_jax_has_it():
    assert bx.Arrays(X34).all_rows.dtype == jnp.float64
    assert bx.Arrays(X34.astype(np.float32)).all_rows.dtype == jnp.float32


PROGRAM = """
import warnings, numpy as np, bilevax as bx
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    source = bx.Arrays((np.ones((3, 2)), np.ones(3, np.float32)))
(first,) = caught
assert "data[0] is float64 and becomes float32" in str(first.message), first
assert first.filename == __file__, first.filename
assert source.all_rows[0].dtype == np.float32
"""


def test_float64_without_x64_warns_at_the_callers_line(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@jax.jit
def in_both_ways(source, start, stop):
    """What is seen in sweeps, and one by one: number, block, first row and weighted sum of each minibatch, [301, 4]."""

    def step(carry, start, j, draw):
        first, total = draw.batch[0], jnp.sum(draw.batch) * draw.weight
        seen = jnp.stack([j.astype(float), draw.block.astype(float), first, total])
        return carry.at[j - start].set(seen)

    empty, ends = jnp.full((301, 4), -1.0), {"key": jax.random.key(3), "start": start, "stop": stop}
    return source.fold(step, empty, start, **ends), fold(source, step, empty, start, **ends)


@pytest.mark.parametrize(("n", "b"), [(103, 10), (100, 10), (41, 4), (25, 10)])
@pytest.mark.parametrize(("start", "stop"), [(0, 300), (5, 6), (7, 270), (250, 262), (10, 10)])
def test_blocks_in_sweeps_are_those_that_are_visited_one_by_one(n, b, start, stop):
    """A sweep takes the short block by itself: where it begins, ends and restarts must not show."""
    source = bx.Arrays(np.arange(n, dtype=float), b, sampling="blocks", seed=None)
    swept, visited = in_both_ways(source, start, stop)
    np.testing.assert_array_equal(swept, visited)
    swept = swept[: stop - start]
    np.testing.assert_array_equal(swept[:, 0], np.arange(start, stop))
    np.testing.assert_array_equal(swept[:, 2], b * swept[:, 1])
