"""A minibatch of sparse rows, and its products with dense matrices.

:class:`~bilevax.SparseRows` cuts a scipy matrix into pieces once (``data.sparse_rows``); a minibatch, in place of X in
its batch, is the whole table and the extents of some rows. A loss multiplies it with dense weights, and gets dense
arrays that JAX differentiates.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike

from bilevax.core.config import config, static

SLAB = 256
"""Pieces that a product reads at a time."""


@config
class SparseBatch:
    """b rows of a sparse matrix with d columns, [b, d], whose products cost their non-zeros.

    The non-zeros of a row are cut into pieces of length p (``data.sparse_rows.pieces`` chooses it), numbered one after
    another; the last of each row is filled up with zeros in column 0. Products read :data:`SLAB` pieces at a time, as
    often as these rows need: their shapes are fixed, and their cost is not that of the longest row.

    ``X @ M`` with M [d, C] or [d], and ``M @ X`` with M [C, b] or [b], can be differentiated in M any number of times,
    forward and in reverse, and mapped, over matrices as over rows: one loop goes through the pieces of all. So they can
    in ``values``, at the cost of the whole table. Cost: p C multiplications for each piece, their number rounded up to
    a multiple of SLAB, and what it takes to write the result.

    Attributes:
        columns: of each entry, int32 [P, p]: the P pieces of the whole table, of which these rows have some.
        values: of each entry, floating [P, p], likewise.
        extents: number of the first piece of each row, and how many it has, int32 [b, 2].
        features: number of columns, d.
    """

    columns: Array
    values: Array
    extents: Array
    features: int = static()

    __array_ufunc__ = None  # numpy leaves ``M @ X`` to this class
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """(b, d)."""
        return self.extents.shape[0], self.features

    @property
    def dtype(self) -> jnp.dtype:
        """Of the values."""
        return self.values.dtype

    def __matmul__(self, other: ArrayLike) -> Array:
        """X M, [b, C]; [b] where M is a vector."""
        M = self._operand(other, 0, self.shape[1])
        # X M = (M^T X^T)^T
        return _product(self, M.T).T if M.ndim == 2 else _product(self, M[None, :])[0]

    def __rmatmul__(self, other: ArrayLike) -> Array:
        """M X, [C, d]; [d] where M is a vector."""
        M = self._operand(other, -1, self.shape[0])
        return _transposed_product(self, M) if M.ndim == 2 else _transposed_product(self, M[None, :])[0]

    def _operand(self, other: ArrayLike, axis: int, size: int) -> Array:
        M = jnp.asarray(other)
        if M.ndim not in (1, 2) or M.shape[axis] != size:
            raise TypeError(f"a sparse batch of shape {self.shape} has no product with an array of shape {M.shape}")
        return M

    def todense(self) -> Array:
        """The rows as an array [b, d]: for tests and small tables."""
        return self @ jnp.eye(self.features, dtype=self.dtype)


def _product(X: SparseBatch, W: Array) -> Array:
    """W X^T with W [C, d]: S of the system where Q = W and R = 0."""
    Q, S = _solution(X, (W, _tied(_zeros(W, X.shape[0]), W)))
    return _tied(S, Q)


def _transposed_product(X: SparseBatch, R: Array) -> Array:
    """R X with R [C, b]: Q of the transposed system where its right-hand side is (0, R)."""
    right = _tied(_zeros(R, X.shape[1]), R), R
    Q, S = jax.linear_transpose(partial(_solution, X), right)(right)[0]
    return _tied(Q, S)


def _zeros(like: Array, columns: int) -> Array:
    return jnp.zeros((like.shape[0], columns), like.dtype)


def _tied(x: Array, y: Array) -> Array:
    """x, which to JAX depends on y too: JAX fails to differentiate a system of which a part is constant or unused."""
    return x + jnp.where(False, jnp.sum(y), 0)


def _solution(X: SparseBatch, right: tuple[Array, Array]) -> tuple[Array, Array]:
    """The solution (U, S) = (Q, R + Q X^T) of the linear system U = Q, S - U X^T = R, right = (Q [C, d], R [C, b]).

    So products are written because the loops of :func:`_gathered` and :func:`_scattered` have a traced length, and such
    loops JAX cannot transpose; but linear systems it differentiates, transposes and maps by rule, from a solver for
    each direction. The system's own product is traced for that, and run for derivatives in the values alone.
    """

    # for each row of U and S as a column:
    # [ I   0] [U]   [Q]            [ I  0] [Q]                                [I  X^T] [Q]
    # [-X   I] [S] = [R],  inverse  [ X  I] [R],  and that of the transpose    [0   I ] [R]
    def matvec(z: tuple[Array, Array]) -> tuple[Array, Array]:
        one = _tied(jnp.ones((), X.dtype), X.values)
        return one * z[0], one * z[1] - _prefix_sums(X, z[0])

    def solve(_: object, r: tuple[Array, Array]) -> tuple[Array, Array]:
        return r[0], r[1] + _gathered(X, r[0])

    def transpose_solve(_: object, r: tuple[Array, Array]) -> tuple[Array, Array]:
        return _scattered(X, r[1], r[0]), r[1]

    out: tuple[Array, Array] = jax.lax.custom_linear_solve(matvec, right, solve, transpose_solve)
    return out


def _prefix_sums(X: SparseBatch, W: Array) -> Array:
    """W X^T from all pieces of the table, in operations that JAX can transpose."""
    # row r of W X^T = the sum over its pieces first <= k < first + count, as a difference of two prefix sums
    of_pieces = jnp.einsum("kp,ckp->ck", X.values, W[:, X.columns])
    sums = jnp.concatenate([_zeros(W, 1), jnp.cumsum(of_pieces, axis=1)], axis=1)
    first, count = X.extents[:, 0], X.extents[:, 1]
    return sums[:, first + count] - sums[:, first]


def _gathered(X: SparseBatch, W: Array) -> Array:
    """W X^T: columns of W are gathered."""
    out: Array = _gather(X.columns, X.values, X.extents[None], W[None])[0]
    return out


def _scattered(X: SparseBatch, R: Array, start: Array) -> Array:
    """R X + start: columns of the result are added to."""
    out: Array = _scatter(X.columns, X.values, X.extents[None], R[None], start[None])[0]
    return out


# Below L products are made in one loop, each of a matrix and of rows of its own: extents are [L, b, 2], and row r of
# all L b rows belongs to product r // b.


@custom_vmap
def _gather(columns: Array, values: Array, extents: Array, W: Array) -> Array:
    """W_l X_l^T for each l, [L, C, b], of W [L, C, d]."""
    L, b = extents.shape[:2]
    X = SparseBatch(columns, values, extents.reshape(-1, 2), W.shape[2])

    def add(out: Array, row: Array, columns: Array, values: Array) -> Array:
        def term(column: Array, value: Array) -> Array:
            own: Array = jax.vmap(lambda M: M[row // b, column], 1)(W)
            return value[None] * own

        # S_cr += sum_p values_p W_lc,columns_p over the pieces of row r, as p terms: gathered and added in one loop
        terms = map(term, columns.T, values.T)
        return out.at[:, row].add(functools.reduce(jnp.add, terms), mode="drop")

    out = _over_slabs(X, add, jnp.zeros((W.shape[1], L * b), W.dtype))
    return jnp.moveaxis(out.reshape(-1, L, b), 1, 0)


@custom_vmap
def _scatter(columns: Array, values: Array, extents: Array, R: Array, start: Array) -> Array:
    """start_l + R_l X_l for each l, [L, C, d], of R [L, C, b]."""
    b = extents.shape[1]
    X = SparseBatch(columns, values, extents.reshape(-1, 2), start.shape[2])

    def add(out: Array, row: Array, columns: Array, values: Array) -> Array:
        # R_lcr of the row r of each slot, [slots, c]
        own = R[row // b, :, row % b]
        # Q_lc,columns_p += R_lcr values_p; slots beyond the last have l = L, and are dropped
        return out.at[row[:, None] // b, :, columns].add(values[:, :, None] * own[:, None, :], mode="drop")

    return _over_slabs(X, add, start)


def _mapped(product: Callable[..., Array]) -> Callable[..., tuple[Array, bool]]:
    """The rule by which L products are mapped over a new axis: as one loop of more.

    A loop that is mapped as it is runs to the longest of its counts, and selects the whole of every result in every
    turn. Where tables are mapped, too, the products are taken one after another.
    """

    def rule(size: int, mapped: Sequence[bool], *args: Array) -> tuple[Array, bool]:
        if not any(mapped[:2]):
            stacks = [
                (x if over else jnp.broadcast_to(x, (size, *x.shape))).reshape(-1, *x.shape[x.ndim - 2 :])
                for x, over in zip(args[2:], mapped[2:], strict=True)
            ]
            out = product(*args[:2], *stacks)
            return out.reshape(size, -1, *out.shape[1:]), True

        def one(i: Array) -> Array:
            return product(*(arg[i] if over else arg for arg, over in zip(args, mapped, strict=True)))

        return jax.lax.map(one, jnp.arange(size)), True

    return rule


_gather.def_vmap(_mapped(_gather))
_scatter.def_vmap(_mapped(_scatter))


def _over_slabs(X: SparseBatch, add: Callable[[Array, Array, Array, Array], Array], out: Array) -> Array:
    """``out = add(out, row, columns, values)`` over the pieces of these rows, SLAB at a time.

    ``row`` is [SLAB], ``columns`` and ``values`` are [SLAB, p]. Slots number the pieces of all rows in turn; those
    beyond the last piece have row X.shape[0], which ``add`` drops.
    """
    first, count = X.extents[:, 0], X.extents[:, 1]
    ends = jnp.cumsum(count, dtype=jnp.int32)

    def slab(i: Array, out: Array) -> Array:
        slot = i * SLAB + jnp.arange(SLAB, dtype=jnp.int32)
        # slot q lies in the row r with ends[r - 1] <= q < ends[r], as piece q - ends[r - 1] of it
        row = jnp.searchsorted(ends, slot, side="right").astype(jnp.int32)
        known = jnp.minimum(row, X.shape[0] - 1)
        piece = first[known] + slot - (ends[known] - count[known])
        columns, values = (table.at[piece].get(mode="clip") for table in (X.columns, X.values))
        return add(out, row, columns, values)

    # ceil(pieces / SLAB) slabs: a traced count, so that one program serves every batch
    end: Array = jax.lax.fori_loop(jnp.int32(0), -(-ends[-1] // SLAB), slab, out)
    return end
