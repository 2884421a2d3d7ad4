"""What every source of minibatches must satisfy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.keys import is_key
from bilevax.core.protocols import Keyed
from bilevax.core.trees import PyTree
from bilevax.data import has_keys
from bilevax.linalg.sparse import SparseBatch
from bilevax.testing.tools import configuration, methods, require, same_bits, title

DRAWN = 1500
"""Minibatches looked at: several chunks of 256."""


def check_source(source: Any) -> None:
    """Check a source over one table of rows, such as ``bilevax.Arrays(...)``, against all contracts.

    Minibatch j is a function of (key, j) alone, however the loop is cut; both ends of the loop may be traced; every
    minibatch consists of rows of the table, as many as it says; the mean over minibatches, each by its weight, is that
    of the table. If batches bring keys, each brings one of its own, of (key, j) alone too. The table needs floating or
    integer leaves or keys, and at most some thousand rows.

    Raises:
        AssertionError: says the first contract that is violated.

    Examples:
        >>> import bilevax as bx, numpy as np
        >>> check_source(bx.Arrays(np.arange(50, dtype=np.float32), batch_size=7, sampling="blocks"))
    """
    methods(source, "fold", "renew", "boundary", "visit")
    configuration(source)
    name = title(source)
    _table(source, name)
    key = jax.random.key(3)
    seen = _look(source, key, 0, DRAWN)
    require(bool(jnp.all(seen["member"])), f"{name} draws rows that are not in the table it says it has")
    size = np.asarray(seen["rows"])
    most = source.rows_per_batch
    require(size.max() == most, f"{name} says that a minibatch has {most} rows, and the largest has {size.max()}")
    _cut(source, name, key, seen)
    _keys(source, name, seen)
    _own_keys(source, name, key, seen)
    _mean(source, name, seen)


def _table(source: Any, name: str) -> None:
    lengths = {x.shape[0] for x in jax.tree.leaves(_dense(source.full))}
    require(lengths == {source.rows}, f"{name} has {source.rows} rows and its leaves have {sorted(lengths)}")
    require(isinstance(source.whole, bool), f"{name}.whole must be True or False, got {source.whole!r}")
    if source.whole:
        require(source.rows_per_batch == source.rows, f"{name} is whole, and its minibatches are not every row")


@jax.jit
def _look(source: Any, key: Array, start: Any, stop: Any) -> dict[str, Any]:
    """What the minibatches start <= j < stop are: [DRAWN] entries."""
    full = _dense(source.full)

    def note(seen: dict[str, Any], full: PyTree, j: Array, draw: Any) -> dict[str, Any]:
        found = _described(draw, full)
        return jax.tree.map(lambda a, x: a.at[j].set(x.astype(a.dtype)), seen, found)

    sums = [jnp.zeros((DRAWN, *x.shape[1:]), _kind(x)) for x in jax.tree.leaves(full)]
    seen = {
        "sums": sums,
        "rows": jnp.zeros(DRAWN, jnp.int32),
        "weight": jnp.zeros(DRAWN),
        "block": jnp.zeros(DRAWN, jnp.int32),
        "member": jnp.ones(DRAWN, bool),
        "key": jnp.zeros((DRAWN, 2), jnp.uint32),
    }
    out: dict[str, Any] = source.fold(note, seen, full, key=key, start=start, stop=stop)
    return out


def _described(draw: Any, full: PyTree) -> dict[str, Any]:
    batch, table = jax.tree.leaves(_dense(draw.batch)), jax.tree.leaves(full)
    same = jnp.ones((batch[0].shape[0], table[0].shape[0]), bool)
    for x, y in zip(batch, table, strict=True):
        same = same & jnp.all((x[:, None] == y[None]).reshape(*same.shape, -1), axis=2)
    return {
        "sums": [jnp.sum(x.astype(_kind(x)), axis=0) for x in batch],
        "rows": jnp.asarray(batch[0].shape[0]),
        "weight": jnp.asarray(draw.weight),
        "block": jnp.asarray(draw.block),
        "member": jnp.all(jnp.any(same, axis=1)),
        "key": _key_words(draw.batch),
    }


def _dense(batch: PyTree) -> PyTree:
    """Its rows, with numbers in place of sparse batches and keys."""

    def plain(x: Any) -> Any:
        if isinstance(x, SparseBatch):
            return x.todense()
        return jax.random.key_data(x) if is_key(x) else x

    rows = batch.rows if isinstance(batch, Keyed) else batch
    return jax.tree.map(plain, rows, is_leaf=lambda x: isinstance(x, SparseBatch))


def _key_words(batch: PyTree) -> Array:
    """What is in the batch's own key, [2]; 0 if it has none."""
    return jax.random.key_data(batch.key) if isinstance(batch, Keyed) else jnp.zeros(2, jnp.uint32)


def _kind(x: Array) -> Any:
    return x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)


def _cut(source: Any, name: str, key: Array, seen: dict[str, Any]) -> None:
    for start, stop in ((0, 1), (7, 300), (255, 257), (DRAWN - 3, DRAWN)):
        part = _look(source, key, start, stop)
        a, b = (jax.tree.map(lambda x, i=start, j=stop: x[i:j], tree) for tree in (part, seen))
        sentence = (
            f"minibatches {start} to {stop} of {name} depend on where the loop starts; they must on (key, j) alone"
        )
        require(same_bits(a, b), sentence)
    nothing = _look(source, key, 5, 5)
    require(not np.any(nothing["rows"]), f"{name} draws a minibatch where start = stop")
    mapped = jax.vmap(lambda key: _look(source, key, 0, 20))(jnp.stack([key, jax.random.key(4)]))
    first = jax.tree.map(lambda x: x[0, :20], mapped)
    alone = jax.tree.map(lambda x: x[:20], seen)
    require(same_bits(first["rows"], alone["rows"]), f"{name} under jax.vmap draws other minibatches than in a loop")
    require(same_bits(first["key"], alone["key"]), f"{name} under jax.vmap brings other keys than in a loop")
    close = all(np.allclose(x, y, rtol=1e-5) for x, y in zip(first["sums"], alone["sums"], strict=True))
    require(close, f"{name} under jax.vmap draws other minibatches than in a loop")


def _keys(source: Any, name: str, seen: dict[str, Any]) -> None:
    again, other = (_look(source, jax.random.key(seed), 0, DRAWN) for seed in (3, 4))
    require(same_bits(seen, again), f"{name} draws other minibatches for the same key")
    if not source.whole and source.rows_per_batch < source.rows:
        require(not same_bits(seen["sums"], other["sums"]), f"{name} draws the same minibatches for every key")
        first, later = (jax.tree.map(lambda x, i=i: x[i : i + 256], seen["sums"]) for i in (0, 512))
        require(not same_bits(first, later), f"{name} repeats its minibatches")


def _own_keys(source: Any, name: str, key: Array, seen: dict[str, Any]) -> None:
    """A key of its own in every draw, that no other key of the loop brings."""
    if not has_keys(source):
        return
    require(not source.whole, f"{name} brings keys, so that its minibatches differ, and says that it is whole")
    other = _look(source, jax.random.key(4), 0, DRAWN)
    words = np.concatenate([seen["key"], other["key"], _key_words(source.full)[None], jax.random.key_data(key)[None]])
    require(len(np.unique(words, axis=0)) == len(words), f"{name} brings one key in several draws; each needs its own")


def _mean(source: Any, name: str, seen: dict[str, Any]) -> None:
    """The mean over minibatches, each by its weight: within five standard errors, which epochs make smaller."""
    weight, rows = (np.asarray(seen[field], np.float64) for field in ("weight", "rows"))
    for total, x in zip(seen["sums"], jax.tree.leaves(_dense(source.full)), strict=True):
        table = np.asarray(x, np.float64).reshape(source.rows, -1)
        means = np.asarray(total, np.float64).reshape(DRAWN, -1) * (weight / rows)[:, None]
        error = np.abs(means.mean(axis=0) - table.mean(axis=0))
        noise = means.std(axis=0, ddof=1) / np.sqrt(DRAWN) + 1e-5 * np.abs(table).max(axis=0)
        worst = float(np.max(error / np.maximum(noise, 1e-30)))
        require(
            worst <= 5.0,
            f"{name} is biased: the weighted mean of its minibatches is {worst:.1f} standard errors from the table's",
        )
