"""Which rows the minibatches of a stream have, so that a step can be written out by hand on the same ones."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.protocols import Draw
from bilevax.core.trees import PyTree
from bilevax.data import Arrays
from bilevax.data.looks import stream_key
from bilevax.data.sampling import CHUNK
from bilevax.testing.closed_forms.quadratic import Floats


def row_weights(source: Arrays, name: str, key: Array, steps: int, number: int = 1) -> Floats:
    """How much each row counts in the minibatches of a stream of a loop, [steps, number, n].

    A minibatch of b rows has the weight of its draw over b at each of them; each step has ``number`` minibatches, as
    with :class:`~bilevax.Several`, all of the first chunk.

    Args:
        source: the stream's; its rows are numbered as it keeps them, which with ``seed=None`` is as they were given.
        name: of the stream.
        key: of the loop.
        steps: times ``number`` at most 256.
        number: minibatches a step.

    Examples:
        >>> import bilevax as bx
        >>> source = bx.Arrays(np.zeros(5, np.float32), batch_size=2, sampling="blocks", seed=None)
        >>> row_weights(source, "train", jax.random.key(0), steps=3).sum(axis=(0, 1)).round(2).tolist()
        [0.6, 0.6, 0.6, 0.6, 0.6]
    """
    numbers = Arrays(np.arange(source.rows), source.batch_size, source.sampling, seed=None)
    # of a whole chunk, whatever is asked for: one program for all
    found = np.asarray(_weights(numbers, stream_key(key, name)), np.float64)[: steps * number]
    return found.reshape(steps, number, source.rows)


@jax.jit
def _weights(numbers: Arrays, key: Array) -> Array:
    def note(out: Array, args: PyTree, j: Array, draw: Draw) -> Array:
        share = jnp.full(draw.batch.shape, draw.weight / draw.batch.shape[0], out.dtype)
        return out.at[j].add(jnp.zeros_like(out[0]).at[draw.batch].add(share))

    return numbers.fold(note, jnp.zeros((256, numbers.rows)), (), key=key, start=0, stop=256)


def whole_numbers(key: Array, name: str, number: int, steps: int) -> list[int]:
    """What a stream of :class:`~bilevax.data.looks.Uniform` numbers of this name has in each step."""
    chunks = [jax.random.fold_in(stream_key(key, name), i) for i in range(-(-steps // CHUNK))]
    drawn = np.concatenate([jax.random.randint(chunk, (CHUNK,), 0, number) for chunk in chunks])
    return [int(p) for p in drawn[:steps]]
