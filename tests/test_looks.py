"""The loop over named streams: which minibatches a step looks at."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import bilevax as bx
from bilevax.data import Undrawn
from bilevax.data.hashed import HashedBatches
from bilevax.data.looks import stream_key
from bilevax.data.permutation import shuffled

KEY = jax.random.key(3)
STEPS = 600


def numbered(n, batch_size, sampling="iid", **options):
    """A source whose rows are their own numbers."""
    return bx.Arrays(np.arange(n, dtype=np.float64), batch_size, sampling=sampling, **options)


def described(draw, width):
    """Rows, padded with -1, the key's words, weight and block of a minibatch, as one vector."""
    keyed = hasattr(draw.batch, "key")
    rows = draw.batch.rows if keyed else draw.batch
    rows = rows.todense()[:, 0] if hasattr(rows, "todense") else rows
    words = jax.random.key_data(draw.batch.key) if keyed else jnp.zeros(2, jnp.uint32)
    ends = [jnp.asarray(x, jnp.float64)[None] for x in (draw.weight, draw.block)]
    padded = jnp.full(width, -1.0).at[: rows.shape[0]].set(rows.astype(jnp.float64))
    return jnp.concatenate([padded, words.astype(jnp.float64), *ends])


@jax.jit
def own(source, key):
    """The minibatches of the source's own fold."""
    b = source.rows_per_batch

    def note(log, args, j, draw):
        return log.at[j].set(described(draw, b))

    return source.fold(note, jnp.zeros((STEPS, b + 4)), (), key=key, start=0, stop=STEPS)


@jax.jit
def looked_at(streams, key, start, stop, log):
    def step(log, args, k, looks):
        return {
            name: lines.at[k].set(looks[name](lambda draw, width=lines.shape[1] - 4: described(draw, width)))
            for name, lines in log.items()
        }

    return bx.fold_looks(streams, step, log, (), key=key, start=start, stop=stop)


def empty(streams):
    return {name: jnp.zeros((STEPS, source.rows_per_batch + 4)) for name, source in streams.items()}


SPARSE = scipy.sparse.csr_array(np.arange(1.0, 31.0)[:, None])
MIXED = {
    "two": {"train": numbered(500, 7, "blocks"), "val": numbered(100, 9, "blocks"), "more": numbered(50, 7)},
    "one": {
        "train": numbered(500, 7, "blocks", keys=True),
        "few": numbered(20, 7, "blocks"),
        "sparse": bx.SparseRows(SPARSE, 4),
        "all": numbered(6, None),
    },
    "none": {"train": numbered(49, 7, "shuffled", keys=True), "val": numbered(49, 7, "blocks")},
}


@pytest.mark.slow_but("one")
@pytest.mark.parametrize("which", MIXED)
def test_a_step_sees_the_minibatches_of_the_sources_own_fold(which):
    """Whichever of them have short blocks; and however the loop is cut."""
    streams = MIXED[which]
    seen = looked_at(streams, KEY, 0, STEPS, empty(streams))
    for name, source in streams.items():
        alone = own(source, stream_key(KEY, name))
        assert np.array_equal(seen[name], alone), name
        assert not source.rows % source.rows_per_batch or "blocks" not in str(source) or np.ptp(alone[:, -2]) > 0
    cut = empty(streams)
    for start, stop in ((0, 37), (37, 256), (256, 400), (400, STEPS)):
        cut = looked_at(streams, KEY, start, stop, cut)
    for name in streams:
        assert np.array_equal(seen[name], cut[name]), name


@pytest.mark.slow
def test_hashed_minibatches():
    """A source without chunks."""
    hashed, key = HashedBatches(numbered(40, 4), 3), stream_key(KEY, "train")

    def add(total, args, j, draw):
        return 0.5 * total + draw.batch

    def step(totals, args, k, looks):
        by_three = looks["inner"].fold(lambda total, i, draw: 0.5 * total + draw.batch, totals[1])
        return add(totals[0], (), k, looks["train"](lambda draw: draw)), by_three

    streams, zeros = {"train": hashed, "inner": bx.Several(hashed, 3)}, jnp.zeros(3)
    once, thrice = bx.fold_looks(streams, step, (zeros, zeros), (), key=KEY, start=0, stop=9)
    assert np.array_equal(once, hashed.fold(add, zeros, (), key=key, start=0, stop=9))
    assert np.array_equal(thrice, hashed.fold(add, zeros, (), key=stream_key(KEY, "inner"), start=0, stop=27))


@pytest.mark.slow
def test_several_keys_at_once():
    streams = MIXED["two"]
    keys = jnp.stack([KEY, jax.random.key(4)])
    lanes = jax.vmap(lambda key: looked_at(streams, key, 0, 90, empty(streams)))(keys)
    for i, key in enumerate(keys):
        alone = looked_at(streams, key, 0, 90, empty(streams))
        for name in streams:
            assert np.array_equal(lanes[name][i], alone[name]), name


def test_a_stream_has_the_key_of_its_name_alone():
    """The same source under two names gives other minibatches; another stream beside it changes none."""
    source = numbered(500, 7)
    both = {"train": source, "linear": source}
    seen = looked_at(both, KEY, 0, 300, empty(both))
    alone = looked_at({"train": source}, KEY, 0, 300, empty({"train": source}))
    assert np.array_equal(seen["train"], alone["train"])
    assert np.mean(seen["train"][:300, :7] == seen["linear"][:300, :7]) < 0.05


@pytest.mark.parametrize("sampling", ["blocks", "iid"])
def test_two_looks_at_one_stream_see_the_same_rows(sampling):
    """And its block is the one that the number says, the short one included."""
    source = numbered(75, 7, sampling)

    @jax.jit
    def run(source):
        def step(carry, args, k, looks):
            apart, sums = carry
            look = looks["train"]
            once, twice = look(lambda draw: jnp.sum(draw.batch)), look(lambda draw: 2.0 * jnp.sum(draw.batch))
            return jnp.maximum(apart, jnp.abs(twice - 2.0 * once)), sums.at[look.block].set(once)

        return bx.fold_looks({"train": source}, step, (jnp.zeros(()), jnp.zeros(12)), (), key=KEY, start=0, stop=40)

    apart, sums = run(source)
    assert apart == 0.0
    if sampling == "blocks":
        rows = np.asarray(source.all_rows)
        np.testing.assert_allclose(sums[:11], [rows[i : i + 7].sum() for i in range(0, 75, 7)])
    else:
        assert np.count_nonzero(sums) == 1  # -1, the last


@jax.jit
def several(source, number, start, stop, log):
    def step(log, args, k, looks):
        def note(log, i, draw):
            return log.at[k, i].set(described(draw, log.shape[2] - 4))

        return looks["inner"].fold(note, log)

    return bx.fold_looks({"inner": bx.Several(source, number)}, step, log, (), key=KEY, start=start, stop=stop)


@pytest.mark.parametrize("sampling", ["blocks", "iid"])
def test_several_minibatches_a_step_come_from_one_chunk(sampling):
    """T of them from the chunk of 256, of which 256 mod T are skipped; T is traced; no two steps share one."""
    source = numbered(500, 7, sampling)
    alone = own(source, stream_key(KEY, "inner"))
    for number in (1, 7, 100, 256):
        a_chunk = 256 // number
        steps = min(2 * a_chunk, 300)
        log = jnp.zeros((300, 256, 11))
        seen = several(source, number, steps // 3, steps, several(source, number, 0, steps // 3, log))
        for k in range(steps):
            first = k // a_chunk * 256 + k % a_chunk * number
            assert np.array_equal(seen[k, :number], alone[first : first + number]), (number, k)
            assert not np.any(seen[k, number:])


def test_several_of_an_even_source_beside_an_uneven_one():
    """What is known of the one, that its minibatch is not short, is not told to a source that has no short ones."""
    uneven, even = numbered(1001, 4, "blocks"), HashedBatches(numbered(40, 4), 4)

    def add(total, args, j, draw):
        return total + jnp.sum(draw.batch)

    def step(totals, args, k, looks):
        train = looks["train"](lambda draw: add(totals[0], args, k, draw))
        return jnp.stack([train, looks["inner"].fold(lambda total, i, draw: add(total, args, i, draw), totals[1])])

    def alone(source, name, number):
        return source.fold(add, jnp.zeros(()), (), key=stream_key(KEY, name), start=0, stop=number)

    streams = {"train": uneven, "inner": bx.Several(even, 4)}
    found = bx.fold_looks(streams, step, jnp.zeros(2), (), key=KEY, start=0, stop=251)
    np.testing.assert_array_equal(found, [alone(uneven, "train", 251), alone(even, "inner", 4 * 251)])


def test_an_undrawn_stream_is_the_source_and_the_step_has_a_key():
    source = numbered(50, 7)

    def step(words, args, k, looks):
        assert looks["train"].source is source
        return words.at[k].set(jax.random.key_data(looks.key))

    words = bx.fold_looks({"train": Undrawn(source)}, step, jnp.zeros((5, 2), jnp.uint32), (), key=KEY, start=0, stop=5)
    assert np.array_equal(words, [jax.random.key_data(jax.random.fold_in(KEY, k)) for k in range(5)])


@partial(jax.jit, static_argnums=(1, 2))
def permutations(key, epochs, n):
    """Of n numbers, one an epoch, [epochs, n]."""
    keys = jax.vmap(lambda e: jax.random.fold_in(key, e))(jnp.arange(epochs))
    return jax.vmap(lambda k: shuffled(k, jnp.arange(n, dtype=jnp.int32), n))(keys)


@pytest.mark.parametrize(("n", "b"), [(500, 7), (90, 7), (49, 7), (5, 5)])
def test_the_order_of_an_epoch_is_the_permutation_of_its_key(n, b):
    """However many epochs a chunk of 256 minibatches meets; without a short block, which comes elsewhere."""
    key, n = jax.random.key(1), n - n % b
    per_epoch = n // b
    epochs = (STEPS - 1) // per_epoch + 1
    blocks, rows = (permutations(key, epochs, count) for count in (per_epoch, n))
    assert np.array_equal(own(numbered(n, b, "blocks"), key)[:, -1], np.ravel(blocks)[:STEPS])
    seen = own(numbered(n, b, "shuffled"), key)
    assert np.array_equal(seen[:, :b], np.reshape(rows, (-1, b))[:STEPS])


NINE = numbered(9, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bx.Several(NINE, 0), "number must be at least 1, got 0"),
        (lambda: bx.Several(NINE, 257), "number must be at most 256, a chunk, got 257"),
        (lambda: bx.fold_looks({}, None, 0, (), key=KEY, start=0, stop=1), "at least one stream"),
    ],
    ids=["none", "many", "no-stream"],
)
def test_what_cannot_be_looked_at_is_refused(refused, make, message):
    refused(make, bx.ParameterError, message)
