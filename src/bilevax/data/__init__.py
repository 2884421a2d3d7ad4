"""Where rows come from and which rows are minibatch j."""

from bilevax.data.arrays import Arrays, Join, join
from bilevax.data.fold import Draw, RowSource, Source, fold

__all__ = ["Arrays", "Draw", "Join", "RowSource", "Source", "fold", "join"]
