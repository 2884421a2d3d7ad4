"""What every source of minibatches must satisfy."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.errors import ParameterError
from bilevax.core.keys import is_key
from bilevax.core.protocols import Draw, Keyed, RowSource
from bilevax.core.strata import Strata
from bilevax.core.trees import PyTree, zeros
from bilevax.linalg.sparse import SparseBatch
from bilevax.testing.tools import configuration, methods, require, same_bits, title

DRAWN = 1500
"""Minibatches looked at: several chunks of 256."""


def check_source(source: RowSource, table: PyTree = None) -> None:
    """Check a source over one table of rows, such as ``bilevax.Arrays(...)``, against all contracts.

    Minibatch j is a function of (key, j) alone, however the loop is cut; both ends of the loop may be traced; every
    minibatch consists of rows of the table, as many as it says; the mean over minibatches, each by its weight, is that
    of the table. ``total`` is the mean over every row, and so are its derivatives; ``example`` looks like a draw. If
    batches bring keys, each brings one of its own, of (key, j) alone too. Under ``jax.vmap`` over keys all this holds,
    or a ParameterError says that it cannot be. The table needs floating or integer leaves or keys, and at most some
    thousand rows.

    Args:
        source: what is checked.
        table: every row, for a source that does not have them as one batch. Default: ``source.all_rows``.

    Raises:
        AssertionError: says the first contract that is violated.

    Examples:
        >>> import bilevax as bx, numpy as np
        >>> check_source(bx.Arrays(np.arange(50, dtype=np.float32), batch_size=7, sampling="blocks"))
    """
    methods(source, "fold", "plan_chunk", "chunk_end", "visit", "total", "example")
    configuration(source)
    name = title(source)
    for member in ("rows", "rows_per_batch", "is_full_batch", "blocks", "keys"):
        require(hasattr(source, member), f"{name} has no {member}, as of bilevax.core.protocols.RowSource")
    require(table is not None or hasattr(source, "all_rows"), f"{name} has no all_rows; pass table=, every row")
    table = source.all_rows if table is None else table
    rows, key = _dense(table), jax.random.key(3)
    _table(source, name, rows)
    _example(source, name, key)
    _total(source, name, rows)
    seen = _drawn(source, rows, key, 0, DRAWN)
    require(np.all(seen.member), f"{name} draws rows that are not in the table it says it has")
    size = np.asarray(seen.rows)
    most = source.rows_per_batch
    require(size.max() == most, f"{name} says that a minibatch has {most} rows, and the largest has {size.max()}")
    _cut(source, name, rows, key, seen)
    _keys(source, name, rows, seen)
    _own_keys(source, name, (table, key), seen)
    _mean(source, name, rows, seen)


def _table(source: RowSource, name: str, rows: PyTree) -> None:
    lengths = {x.shape[0] for x in jax.tree.leaves(rows)}
    require(lengths == {source.rows}, f"{name} has {source.rows} rows and its leaves have {sorted(lengths)}")
    require(
        isinstance(source.is_full_batch, bool),
        f"{name}.is_full_batch must be True or False, got {source.is_full_batch!r}",
    )
    if source.is_full_batch:
        require(source.rows_per_batch == source.rows, f"{name} is whole, and its minibatches are not every row")
        require(source.blocks == 1, f"{name} is whole, which is 1 block, and not {source.blocks}")
    elif source.blocks is not None:
        least = -(-source.rows // source.rows_per_batch)
        require(source.blocks == least, f"{name} has {source.blocks} blocks; its rows fill {least}")


def _example(source: RowSource, name: str, key: Array) -> None:
    """The example is like a draw, but for the number of rows."""
    drawn: list[PyTree] = []

    # a source may have minibatches of two sizes, and traces its use once for each
    def draw() -> None:
        first = jnp.int32(0)
        source.visit(source.plan_chunk(None, key, first, True), first, lambda draw: drawn.append(_kinds(draw.batch)))

    jax.eval_shape(draw)
    example = _kinds(jax.eval_shape(lambda batch: batch, source.example()))
    require(example in drawn, f"{name} gives {example} for an example of its batches, which are {drawn[0]}")
    keyed = isinstance(source.example(), Keyed)
    require(source.keys is keyed, f"{name}.keys is {source.keys!r}; it must be True if batches bring keys, else False")


def _kinds(batch: PyTree) -> tuple[object, list[str]]:
    """Structure, dtypes and shapes of a batch, without its number of rows."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, [f"{x.dtype}{['b', *x.shape[1:]] if x.ndim else []}" for x in leaves]


def _total(source: RowSource, name: str, rows: PyTree) -> None:
    """The mean over every row of cos(a x) + a x, with a penalty a^2 that counts once, and its derivative in a."""
    # each leaf over its largest entry, so that cos(a x) bends
    table = [np.asarray(x, np.float64) for x in jax.tree.leaves(rows)]
    scales = [np.abs(x).max() or 1.0 for x in table]

    def mean(a: Array, batch: PyTree) -> list[Array]:
        each = zip(jax.tree.leaves(_dense(batch)), scales, strict=True)
        scaled = [a * (x.astype(a.dtype) / scale) for x, scale in each]
        return [jnp.mean(jnp.cos(x) + x, axis=0) + a**2 for x in scaled]

    def found(source: RowSource, a: Array) -> tuple[PyTree, PyTree, Array]:
        value, slope = jax.jvp(lambda a: source.total(mean, a), (a,), (jnp.ones_like(a),))
        return value, slope, jax.grad(lambda a: sum(jnp.sum(x) for x in source.total(mean, a)))(a)

    # over the rows x: mean cos(a x) + a x + a^2, and its derivative mean x - x sin(a x) + 2a
    a = 1.3
    xs = [x / scale for x, scale in zip(table, scales, strict=True)]
    value = [np.mean(np.cos(a * x) + a * x, axis=0) + a**2 for x in xs]
    slope = [np.mean(x - x * np.sin(a * x), axis=0) + 2 * a for x in xs]
    wanted = value, slope, np.sum([x.sum() for x in slope])
    for how, run in (("", found), (" under jax.jit", jax.jit(found))):
        parts = run(source, jnp.asarray(a))
        same = jax.tree.map(lambda x, y: np.allclose(x, y, rtol=1e-4, atol=1e-6), parts, wanted)
        for what, good in zip(("value", "derivative (jvp)", "derivative (grad)"), same, strict=True):
            require(bool(np.all(good)), f"{name}.total{how} is not the mean over every row: its {what} differs")


class Drawn(NamedTuple):
    """What minibatches are; each with a leading axis of them."""

    sums: list[Array]
    rows: Array
    weight: Array
    block: Array
    member: Array
    key: Array


@jax.jit
def _drawn(source: RowSource, full: PyTree, key: Array, start: Array | int, stop: Array | int) -> Drawn:
    """The minibatches start <= j < stop, in their places among [DRAWN] zeros."""

    def note(seen: PyTree, full: PyTree, j: Array, draw: Draw) -> PyTree:
        return jax.tree.map(lambda a, x: a.at[j].set(x), seen, _described(draw, full))

    shapes = jax.eval_shape(lambda batch: _described(Draw(batch, 0, 1.0), full), source.example())
    seen: Drawn = zeros(shapes, DRAWN)
    return source.fold(note, seen, full, key=key, start=start, stop=stop)


def _described(draw: Draw, full: PyTree) -> Drawn:
    batch, table = jax.tree.leaves(_dense(draw.batch)), jax.tree.leaves(full)
    # same[i, k]: row i of the batch is row k of the table, in every leaf
    same = jnp.ones((batch[0].shape[0], table[0].shape[0]), bool)
    for x, y in zip(batch, table, strict=True):
        same = same & jnp.all((x[:, None] == y[None]).reshape(*same.shape, -1), axis=2)
    number = _number(draw.batch, batch[0].shape[0])
    return Drawn(
        sums=_sums(draw.batch, number),
        rows=number,
        weight=jnp.asarray(draw.weight, float),
        block=jnp.asarray(draw.block, jnp.int32),
        member=jnp.all(jnp.any(same, axis=1)),
        key=_key_words(draw.batch),
    )


def _sums(batch: PyTree, number: Array) -> list[Array]:
    """Over its rows; of one in strata so many times the weighted mean."""

    def over(reduce: Callable[..., Array], rows: PyTree) -> list[Array]:
        leaves = jax.tree.leaves(_dense(rows))
        kinds = [x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float) for x in leaves]
        return [reduce(x.astype(kind), axis=0) for x, kind in zip(leaves, kinds, strict=True)]

    if not isinstance(batch, Strata):
        return over(jnp.sum, batch)
    return [x * number.astype(x.dtype) for x in batch.mean(partial(over, jnp.mean))]


def _number(batch: PyTree, listed: int) -> Array:
    """Of its rows, those that pad a stratum apart."""
    padding = batch.pieces[1:] if isinstance(batch, Strata) else ()
    padded = sum((jnp.sum(piece.weights != 0, dtype=jnp.int32) for piece in padding), jnp.int32(0))
    number: Array = jnp.int32(listed) - padded
    return number


def _dense(batch: PyTree) -> PyTree:
    """Its rows, with numbers in place of sparse batches and keys, one after another where they are in strata."""

    def plain(x: SparseBatch | Array) -> Array:
        if isinstance(x, SparseBatch):
            return x.todense()
        return jax.random.key_data(x) if is_key(x) else x

    rows = batch.rows if isinstance(batch, Keyed) else batch
    if isinstance(batch, Strata):
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch.pieces[0].rows)
    return jax.tree.map(plain, rows, is_leaf=lambda x: isinstance(x, SparseBatch))


def _key_words(batch: PyTree) -> Array:
    """What is in the batch's own key, [2]; 0 if it has none."""
    return jax.random.key_data(batch.key) if isinstance(batch, Keyed) else jnp.zeros(2, jnp.uint32)


def _cut(source: RowSource, name: str, rows: PyTree, key: Array, seen: Drawn) -> None:
    # within the first chunk of 256, across its end, and at the end of what is looked at
    for start, stop in ((0, 1), (7, 300), (255, 257), (DRAWN - 3, DRAWN)):
        part = _drawn(source, rows, key, start, stop)
        a, b = (jax.tree.map(lambda x, i=start, j=stop: x[i:j], tree) for tree in (part, seen))
        sentence = (
            f"minibatches {start} to {stop} of {name} depend on where the loop starts; they must on (key, j) alone"
        )
        require(same_bits(a, b), sentence)
    nothing = _drawn(source, rows, key, 5, 5)
    require(not np.any(nothing.rows), f"{name} draws a minibatch where start = stop")
    try:
        mapped = jax.vmap(lambda key: _drawn(source, rows, key, 0, 20))(jnp.stack([key, jax.random.key(4)]))
    except ParameterError as refusal:  # of rows that are read one minibatch after another
        require("vmap" in str(refusal), f"{name} refuses jax.vmap and does not name it: {refusal}")
        return
    first = jax.tree.map(lambda x: x[0, :20], mapped)
    alone = jax.tree.map(lambda x: x[:20], seen)
    require(same_bits(first.rows, alone.rows), f"{name} under jax.vmap draws other minibatches than in a loop")
    require(same_bits(first.key, alone.key), f"{name} under jax.vmap brings other keys than in a loop")
    close = all(np.allclose(x, y, rtol=1e-5) for x, y in zip(first.sums, alone.sums, strict=True))
    require(close, f"{name} under jax.vmap draws other minibatches than in a loop")


def _keys(source: RowSource, name: str, rows: PyTree, seen: Drawn) -> None:
    again, other = (_drawn(source, rows, jax.random.key(seed), 0, DRAWN) for seed in (3, 4))
    require(same_bits(seen, again), f"{name} draws other minibatches for the same key")
    if not source.is_full_batch and source.rows_per_batch < source.rows:
        require(not same_bits(seen.sums, other.sums), f"{name} draws the same minibatches for every key")
        first, later = (jax.tree.map(lambda x, i=i: x[i : i + 256], seen.sums) for i in (0, 512))
        require(not same_bits(first, later), f"{name} repeats its minibatches")


def _own_keys(source: RowSource, name: str, given: tuple[PyTree, Array], seen: Drawn) -> None:
    """A key of its own in every draw, that no other key of the loop brings."""
    if not source.keys:
        return
    table, key = given
    require(not source.is_full_batch, f"{name} brings keys, so that its minibatches differ, and says that it is whole")
    other = _drawn(source, _dense(table), jax.random.key(4), 0, DRAWN)
    # no key twice: of the draws under two keys, of the one that every row at once brings, and of the loop
    words = np.concatenate([seen.key, other.key, _key_words(table)[None], jax.random.key_data(key)[None]])
    require(len(np.unique(words, axis=0)) == len(words), f"{name} brings one key in several draws; each needs its own")


def _mean(source: RowSource, name: str, rows: PyTree, seen: Drawn) -> None:
    """The mean over minibatches, each by its weight: within five standard errors, which epochs make smaller."""
    weight, size = (np.asarray(x, np.float64) for x in (seen.weight, seen.rows))
    for total, x in zip(seen.sums, jax.tree.leaves(rows), strict=True):
        table = np.asarray(x, np.float64).reshape(source.rows, -1)
        # weight times sum over rows is the mean of the minibatch, weighted
        means = np.asarray(total, np.float64).reshape(DRAWN, -1) * (weight / size)[:, None]
        error = np.abs(means.mean(axis=0) - table.mean(axis=0))
        noise = means.std(axis=0, ddof=1) / np.sqrt(DRAWN) + 1e-5 * np.abs(table).max(axis=0)
        worst = float(np.max(error / np.maximum(noise, 1e-30)))
        require(
            worst <= 5.0,
            f"{name} is biased: the weighted mean of its minibatches is {worst:.1f} standard errors from the table's",
        )
