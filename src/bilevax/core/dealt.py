"""A w whose user has dealt it to the devices of a mesh, in one process or in several: what follows for all else.

Programs are partitioned by the compiler, and know nothing of it. Here is what is to be said beside them: what else is
dealt, so that no device has to hold the whole of something as long as w, and how its numbers come to one place.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bilevax.core.errors import ParameterError
from bilevax.core.protocols import Sources
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, is_concrete, is_spread


class Dealing(NamedTuple):
    """How the leaves of w0 are dealt, and by it what a run carries beside them.

    Attributes:
        leaves: path, shape and sharding of each that is; of a w0 that is whole there are none, and nothing is done.
    """

    leaves: tuple[tuple[str, tuple[int, ...], NamedSharding], ...]

    @staticmethod
    def of(w0: PyTree) -> "Dealing":
        """As its user has put it there."""
        paths = jax.tree_util.tree_leaves_with_path(w0)
        dealt = [(jax.tree_util.keystr(path), x.shape, x.sharding) for path, x in paths if _is_dealt(x)]
        # the longest path first: the end of it may be that of another leaf
        return Dealing(tuple(sorted(dealt, key=lambda leaf: -len(leaf[0]))))

    @property
    def whole(self) -> NamedSharding:
        """The same on all of these devices."""
        return NamedSharding(self.leaves[0][2].mesh, PartitionSpec())

    def shardings(self, tree: PyTree) -> PyTree | None:
        """Of arrays, or of their shapes: what has a leaf's path at the end of its own, and its shape, is dealt as it.

        All else is whole on each device. None of a w0 that is whole.
        """
        if not self.leaves:
            return None

        def of(path: tuple[object, ...], x: PyTree) -> NamedSharding:
            at = jax.tree_util.keystr(path)
            return next((s for end, shape, s in self.leaves if at.endswith(end) and x.shape == shape), self.whole)

        return jax.tree_util.tree_map_with_path(of, tree)

    def restored(self, estimate: Estimate) -> Estimate:
        """With w and v dealt like w0, and all else whole on each device: a compiler may have left it otherwise."""
        if not self.leaves:
            return estimate
        apart = estimate.w, estimate.v
        w, v = placed(apart, self.shardings(apart))
        rest: Estimate = jax.tree.map(lambda x: placed(x, self.whole), estimate._replace(w=None, v=None))
        return rest._replace(w=w, v=v)

    def check(self, sources: Sources) -> None:
        """Refuse rows that are not where w is.

        Raises:
            ParameterError: they are dealt to other devices, or not at all, where w has parts in other processes.
        """
        meshes = [source.mesh for source in sources if hasattr(source, "mesh")]
        for path, _, sharding in self.leaves:
            if not meshes and not sharding.is_fully_addressable:
                raise ParameterError(f"leaf w0{path} is dealt to several processes, so must rows be: use bx.sharded")
            for mesh in meshes:
                own, rows = ([d.id for d in x.devices.flat] for x in (sharding.mesh, mesh))
                if own != rows:
                    raise ParameterError(
                        f"leaf w0{path} is dealt to the devices {own}, and rows to {rows}; give both the same ones, in"
                        " one order"
                    )


def placed(tree: PyTree, shardings: PyTree | None) -> PyTree:
    """Arrays, or numbers of the host that every process has, dealt so; None: wherever they are."""
    if shardings is None:
        return jax.tree.map(jnp.asarray, tree)

    def of(x: PyTree, sharding: NamedSharding) -> jax.Array:
        if isinstance(x, np.ndarray):  # without a word to other processes
            out: jax.Array = jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
        else:
            out = jax.device_put(x, sharding)
        return out

    return jax.tree.map(of, tree, shardings)


def whole(tree: PyTree) -> PyTree:
    """A tree that this process has the whole of, on the host where parts are in others: all of them call this."""
    if not is_spread(tree):
        return tree
    from jax.experimental.multihost_utils import process_allgather

    # leaf by leaf: a device holds the whole of one at a time
    return jax.tree.map(lambda x: process_allgather(x, tiled=True) if is_spread(x) else x, tree)


def _is_dealt(x: PyTree) -> bool:
    if not isinstance(x, jax.Array) or not is_concrete(x):
        return False
    return isinstance(x.sharding, NamedSharding) and not x.sharding.is_fully_replicated
