"""Rows of a sparse matrix in memory."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import Array

from bilevax.core.config import check_count, config, set_frozen, static
from bilevax.core.errors import DataError, ParameterError
from bilevax.core.trees import PyTree, map_named
from bilevax.data.arrays import Arrays, check_finite, to_default_precision
from bilevax.linalg.sparse import SparseBatch

LONGEST = 16
"""Entries in a piece at most: a cache line of float32."""


@config
class SparseRows(Arrays):
    """Rows held in memory, of which a part is a sparse matrix: like :class:`Arrays`, at the cost of the non-zeros.

    A loss sees ``X`` as a :class:`~bilevax.linalg.sparse.SparseBatch`, [b, d], which has the products ``X @ M`` and
    ``M @ X`` and is never made dense. The rows of minibatch j are those that ``Arrays`` draws from the same key.

    Args:
        data: for example ``(X, y)``, with one scipy sparse matrix X [n, d] of any format and otherwise arrays. Entries
            of the same place are added, stored zeros dropped, integers become floats.
        batch_size: rows in a minibatch, 1 <= b <= n; None for every row at once.
        sampling: as of :class:`Arrays`; ``"blocks"`` permutes the rows' numbers, not their entries.
        seed: of the one shuffle of ``"blocks"``.
        keys: as of :class:`Arrays`.
        n_features: number of columns, d, at least the matrix's own, which is the default: a file need not mention the
            last columns.

    Raises:
        DataError: as of :class:`Arrays`; there is no sparse matrix or more than one; an index is out of range.
        ParameterError: the batch size does not lie in [1, n], or ``n_features`` is too small.

    Examples:
        >>> X = scipy.sparse.eye_array(50, 8, dtype=np.float32, format="csr")
        >>> source = SparseRows((X, np.arange(50) % 2), batch_size=7)
        >>> source.example()[0].shape, source.rows_per_batch
        ((50, 8), 7)
    """

    n_features: int | None = static(None)
    columns: Array = dataclasses.field(init=False)
    values: Array = dataclasses.field(init=False)
    place: int = dataclasses.field(init=False, metadata={"static": True})

    def __post_init__(self) -> None:
        leaves, structure = jax.tree.flatten(self.data)
        places = [i for i, leaf in enumerate(leaves) if scipy.sparse.issparse(leaf)]
        if len(places) != 1:
            raise DataError(f"data must hold one scipy sparse matrix, got {len(places)}; for arrays use bx.Arrays")
        place = places[0]
        name = jax.tree.leaves(map_named(lambda name, _: name, "data", self.data))[place]
        matrix = _checked(name, leaves[place])
        features = _features(self.n_features, name, matrix.shape[1])
        # the entries narrow with the other leaves, so that the warning names them all
        leaves[place] = matrix.data
        leaves = jax.tree.leaves(to_default_precision(jax.tree.unflatten(structure, leaves)))
        columns, values, leaves[place] = pieces(matrix, leaves[place])
        set_frozen(self, data=jax.tree.unflatten(structure, leaves), n_features=features, place=place)
        set_frozen(self, columns=jnp.asarray(columns), values=jnp.asarray(values))
        super().__post_init__()

    def _seen(self, batch: PyTree) -> PyTree:
        """The batch with its sparse rows in place of their extents."""
        leaves, structure = jax.tree.flatten(batch)
        leaves[self.place] = SparseBatch(self.columns, self.values, leaves[self.place], cast(int, self.n_features))
        return jax.tree.unflatten(structure, leaves)


def pieces(matrix: scipy.sparse.csr_array, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns [P, p], values [P, p] and extents [n, 2] of a CSR matrix; see :class:`SparseBatch`.

    p is a power of two, at most the mean number of entries in a row, so that at most half of all is padding.
    """
    lengths = np.diff(matrix.indptr)
    mean = max(1, matrix.nnz // max(1, len(lengths)))
    p = min(LONGEST, 1 << (mean.bit_length() - 1))
    # ceil(length / p) pieces to a row; entry k of row i is in its piece k // p, at place k mod p
    number = -(-lengths // p)
    first = np.cumsum(number) - number
    total = max(1, int(number.sum()))
    if total >= 2**31:
        raise DataError(f"the matrix has {matrix.nnz:,} entries; at most {2**31 * p:,} can be numbered")
    row = np.repeat(np.arange(len(lengths)), lengths)
    offset = np.arange(matrix.nnz) - matrix.indptr[row]
    place = first[row] + offset // p, offset % p
    out = np.zeros((total, p), np.int32), np.zeros((total, p), values.dtype)
    out[0][place], out[1][place] = matrix.indices, values
    return *out, np.stack([first, number], axis=1).astype(np.int32)


def _checked(name: str, matrix: scipy.sparse.sparray) -> scipy.sparse.csr_array:
    """A CSR matrix of finite floats without duplicates; the caller's is left as it is."""
    if matrix.ndim != 2:
        raise DataError(f"{name} has {matrix.ndim} dimension; pass a matrix with one row per example")
    if matrix.dtype.kind not in "fiub":
        raise DataError(f"{name} has dtype {matrix.dtype}; pass real numbers")
    if matrix.format in ("csr", "csc", "bsr"):
        try:
            matrix.check_format(full_check=True)
        except ValueError as error:
            raise DataError(f"{name} is no valid {matrix.format.upper()} matrix: {error}") from None
    # formats without a check of their own, too: an index out of range would read another row's memory
    entries = matrix.tocoo()
    for what, index, size in zip(("row", "column"), (entries.row, entries.col), matrix.shape, strict=True):
        if np.any((index < 0) | (index >= size)):
            raise DataError(f"{name} has an entry outside of its {size} {what}s")
    check_finite(name, entries.data, lambda i: (entries.row[i], entries.col[i]))
    out = entries.astype(matrix.dtype if matrix.dtype.kind == "f" else np.float64).tocsr()
    # sums of finite duplicates can overflow: checked again
    out.sum_duplicates()
    check_finite(name, out.data, lambda i: (np.searchsorted(out.indptr, i, side="right") - 1, out.indices[i]))
    out.eliminate_zeros()
    return out


def _features(wanted: int | None, name: str, columns: int) -> int:
    if wanted is None:
        return columns
    if check_count("n_features", wanted) < columns:
        raise ParameterError(f"n_features must be at least {columns}, the columns of {name}; got {wanted}")
    return int(wanted)
