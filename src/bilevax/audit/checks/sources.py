"""Do the sources draw minibatches that differ, and whose mean is that of every row?"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.audit.checks.rows import ALARM
from bilevax.audit.findings import Finding
from bilevax.audit.subject import TINY, AuditedProblem
from bilevax.core.keys import is_key
from bilevax.core.protocols import Draw, Keyed, RowSource
from bilevax.core.trees import PyTree

IN_A_ROW = 16
"""Minibatches looked at in a row."""

SCATTERED = 256
"""Minibatches looked at here and there, each under a key of its own."""


def check_sources(s: AuditedProblem) -> Iterator[Finding]:
    """REPEATED_BATCH, KEY_IGNORED, SOURCE_BIASED."""
    for number, (name, source) in enumerate((("train", s.train), ("val", s.val))):
        ours = type(source).__module__.partition(".")[0] == "bilevax"  # which tests of our own hold to all this
        if not (ours or source.is_full_batch) and source.rows_per_batch < source.rows:
            yield from audited(name, source, s.stream(20 + number))


def audited(name: str, source: RowSource, key: Array) -> Iterator[Finding]:
    """What is wrong with the minibatches of a source."""
    kind = jnp.result_type(float)
    # a random linear function of a row: two different minibatches have different means of it
    measure = [jax.random.normal(key, x.shape[1:], kind) for x in jax.eval_shape(_numbers, source.example())]
    # IN_A_ROW minibatches under each of two keys, then SCATTERED ones under a key each
    a, b, others = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2), jax.random.split(key, SCATTERED)
    keys = jnp.concatenate([jnp.stack([a] * IN_A_ROW + [b] * IN_A_ROW), others])
    first = jnp.arange(IN_A_ROW, dtype=jnp.int32)
    numbers = jnp.concatenate([first, first, jax.random.randint(key, (SCATTERED,), 0, 1000, jnp.int32)])
    means, weights = (np.asarray(x, np.float64) for x in _drawn(source, measure, keys, numbers))
    rows = means[:IN_A_ROW], means[IN_A_ROW : 2 * IN_A_ROW]
    if all(np.ptp(row) == 0 for row in rows):
        yield Finding(
            "REPEATED_BATCH",
            "error",
            f"{name} draws one and the same minibatch {IN_A_ROW} times in a row.",
            "Minibatch j must be a function of (key, j): use j in plan_chunk or visit. bilevax.testing.check_source "
            "says what a source must satisfy.",
        )
        return
    if np.array_equal(*rows):
        yield Finding(
            "KEY_IGNORED",
            "error",
            f"{name} draws the same minibatches for two keys.",
            "Draw from the key that plan_chunk is given: the stages of a hypergradient need independent minibatches.",
        )
    truth = float(source.total(lambda measure, rows: jnp.mean(_measured(rows, measure)), measure))
    # weight times mean is unbiased for the mean of every row; its standard error from the SCATTERED ones
    errors = (weights * means)[-SCATTERED:] - truth
    wrong, noise = np.mean(errors), np.std(errors) / np.sqrt(SCATTERED)
    if abs(wrong) > ALARM * noise + 1e-5 * abs(truth):
        yield Finding(
            "SOURCE_BIASED",
            "error",
            f"The mean of {SCATTERED} minibatches of {name} is {abs(wrong) / max(noise, TINY):.1f} standard errors "
            "from that of every row: some rows come more often than others, or never.",
            "Draw every row equally often, or say the draw's weight. bilevax.testing.check_source says more.",
        )


def _measured(rows: PyTree, measure: PyTree) -> Array:
    """A random linear function of each row, [b]."""
    parts = [
        x.reshape(x.shape[0], -1).astype(r.dtype) @ r.reshape(-1) for x, r in zip(_numbers(rows), measure, strict=True)
    ]
    return jnp.sum(jnp.stack(parts), axis=0)


def _numbers(batch: PyTree) -> list[Array]:
    """The leaves of its rows that are no keys."""
    rows = batch.rows if isinstance(batch, Keyed) else batch
    return [x for x in jax.tree.leaves(rows) if not is_key(x)]


@jax.jit
def _drawn(source: RowSource, measure: PyTree, keys: Array, numbers: Array) -> tuple[Array, Array]:
    """The means of single minibatches, each under its key, and their weights; one at a time, as plans can be large."""

    def one(place: tuple[Array, Array]) -> tuple[Array, Array]:
        key, j = place

        def note(_: tuple[Array, Array], measure: PyTree, j: Array, draw: Draw) -> tuple[Array, Array]:
            mean = jnp.mean(_measured(draw.batch, measure))
            return mean, jnp.asarray(draw.weight).astype(mean.dtype)

        zero = jnp.zeros((), jax.tree.leaves(measure)[0].dtype)
        return source.fold(note, (zero, zero), measure, key=key, start=j, stop=j + 1)

    means, weights = jax.lax.map(one, (keys, numbers))
    return means, weights
