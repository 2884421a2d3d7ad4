"""What a compiled program asks of the host while it runs."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_batching import custom_vmap
from jax.experimental.buffer_callback import buffer_callback
from numpy.typing import ArrayLike

from bilevax.core.errors import BilevaxError, ParameterError
from bilevax.core.host import note


def from_host(write: Callable[..., None], shapes: Sequence[jax.ShapeDtypeStruct], *args: Array | int) -> list[Array]:
    """What the host writes: of the same arguments always the same, so a call that is made twice does no harm.

    Args:
        write: is called with the arguments, flat and int32, which are the host's until it returns, and ``out=``, the
            arrays that it fills, where the program takes them: none is copied on the way.
        shapes: of these.
        args: whole numbers.
    """
    arrays = [jnp.asarray(x, jnp.int32).ravel() for x in args]
    ends = np.cumsum([x.size for x in arrays]).tolist()
    on_host = partial(_write, write, [slice(*ends) for ends in pairwise([0, *ends])])

    @custom_vmap
    def fetch(packed: Array) -> list[Array]:
        out: list[Array] = buffer_callback(on_host, list(shapes))(packed)
        return out

    @fetch.def_vmap
    def _(*_: object) -> NoReturn:
        raise ParameterError(
            "a stream cannot be mapped by jax.vmap, nor have replicas: its rows are read one minibatch after another;"
            " loop over the keys, or take rows in memory (bx.Arrays)"
        )

    # as one: each array that is handed over takes as long as a small product
    fetched: list[Array] = fetch(jnp.concatenate(arrays))
    return fetched


def _write(write: Callable[..., None], parts: list[slice], _: object, out: list[ArrayLike], packed: ArrayLike) -> None:
    given = np.asarray(packed)
    try:
        write(*(given[part] for part in parts), out=[np.asarray(x) for x in out])
    except BilevaxError as fault:
        raise note(fault) from None
