"""Where rows come from, and which rows are minibatch j."""

from typing import TYPE_CHECKING

from bilevax.core.lazy import attach

if TYPE_CHECKING:
    from bilevax.data.arrays import Arrays, Join, join
    from bilevax.data.fold import refuse_keys
    from bilevax.data.looks import Looks, Several, Undrawn, fold_looks
    from bilevax.data.shards import Sharded, sharded
    from bilevax.data.sparse_rows import SparseRows
    from bilevax.data.stream import Stream

__all__ = [
    "Arrays",
    "Join",
    "Looks",
    "Several",
    "Sharded",
    "SparseRows",
    "Stream",
    "Undrawn",
    "fold_looks",
    "join",
    "refuse_keys",
    "sharded",
]

__getattr__, __dir__ = attach(__name__, ["fold", "arrays", "sparse_rows", "stream", "looks", "shards"], __all__)
