"""A model matrix of binned columns, X = [E_1 Z_1, ..., E_p Z_p], and its products, by histograms or dense."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array

COUNT, CELL = 150, 50
"""Multiplications of dense matrices in the time in which one row enters a histogram, or a table is looked up; and in
that in which one entry of the table is set to 0, written and read."""

DENSE = 20_000_000
"""Entries up to which X is formed once and kept, where dense products are the cheaper ones."""

CHUNK, FEW = 65_536, 16_384
"""Rows at a time in what needs memory for each row and each column; and in what needs a few numbers a row."""

COUNTED = 65_535
"""Rows that 16 bits count: so narrow a table is filled in less than half of the time."""


class BinnedColumns:
    """X = [E_1 Z_1, ..., E_p Z_p], with E_j the one-hot rows of the bins of column j and Z_j what its bins stand for.

    X' diag(w) X has the blocks Z_j' N_jk Z_k, with N_jk[a, b] the sum of w over the rows in bins a and b: p^2 / 2
    additions a row instead of P^2 / 2 multiplications; x_i' A x_i is likewise a sum of entries of Z_j A_jk Z_k'.

    Args:
        codes: the bin of every row in each column, p of integers [n].
        bases: Z_j [bins_j, k_j], p of them; P = sum of k_j.
        histograms: True or False forces the way of the products; None takes the cheaper one by a count of operations.
    """

    def __init__(
        self, codes: Sequence[np.ndarray], bases: Sequence[np.ndarray], *, histograms: bool | None = None
    ) -> None:
        self.bases = [np.ascontiguousarray(Z, float) for Z in bases]
        # narrow, so that many are in a cache
        kind = np.min_scalar_type(max((len(Z) for Z in self.bases), default=1) - 1)
        self.codes = np.empty((len(self.bases), len(codes[0]) if len(codes) else 0), kind)
        for row, c in zip(self.codes, codes, strict=True):
            row[:] = c
        self.starts = np.cumsum([0, *(Z.shape[1] for Z in self.bases)])
        self.shape = (self.codes.shape[1], int(self.starts[-1]))
        self._bins = np.cumsum([0, *(len(Z) for Z in self.bases)])
        self.forced = histograms
        self._kept: np.ndarray | None = None
        self.histograms = self._cheaper() if histograms is None else histograms

    def _cheaper(self) -> bool:
        """Whether histograms take fewer operations than dense products."""
        n, P = self.shape
        p = len(self.bases)
        k = np.diff(self.starts)
        B = np.diff(self._bins)
        # B_j B_k (k_k + CELL) + B_j k_j k_k of every pair j <= k
        later = np.cumsum((B * (k + CELL))[::-1])[::-1], np.cumsum(k[::-1])[::-1]
        blocks = float(np.sum(B * later[0] + B * k * later[1]))
        # counts and cells of the p (p + 1) / 2 histograms, against n P (P + 1) / 2 multiplications of X'WX
        return bool(COUNT * n * p * (p + 1) / 2 + blocks < n * P * (P + 1) / 2)

    def rows(self, index: np.ndarray) -> "BinnedColumns":
        """The matrix of these rows."""
        return BinnedColumns(list(self.codes[:, index]), self.bases, histograms=self.forced)

    def block(self, j: int) -> slice:
        """The columns of X that are column j's."""
        return slice(int(self.starts[j]), int(self.starts[j + 1]))

    def dot(self, beta: np.ndarray) -> np.ndarray:
        """X beta, [n, S] of [P, S]."""
        if (X := self._whole()) is not None:
            product: np.ndarray = X @ beta
            return product
        out = np.zeros((self.shape[0], beta.shape[1]))
        # x_i' beta = sum_j (Z_j beta_j) at the bin of row i: a table lookup a column
        tables = [Z @ beta[self.block(j)] for j, Z in enumerate(self.bases)]
        for rows in self._pieces(FEW):
            own = out[rows]
            for table, codes in zip(tables, self.codes[:, rows], strict=True):
                own += np.take(table, codes, axis=0)
        return out

    def transposed_dot(self, r: np.ndarray) -> np.ndarray:
        """X' r, [P, S] of [n, S]."""
        if (X := self._whole()) is not None:
            product: np.ndarray = X.T @ r
            return product
        sums = [np.zeros((r.shape[1], len(Z))) for Z in self.bases]
        for rows in self._pieces(CHUNK):
            for s, column in enumerate(np.ascontiguousarray(r[rows].T)):
                for own, codes in zip(sums, self.codes[:, rows], strict=True):
                    # sum_i r_is over the rows of each bin
                    own[s] += np.bincount(codes, column, own.shape[1])
        out = np.empty((self.shape[1], r.shape[1]))
        for j, Z in enumerate(self.bases):
            # Z_j' (sums of r over the bins), [k_j, S]
            out[self.block(j)] = Z.T @ sums[j].T
        return out

    def dense(self, rows: slice = slice(None)) -> np.ndarray:
        """X itself, [n, P], or some of its rows."""
        return np.concatenate(
            [np.take(Z, c[rows], axis=0) for Z, c in zip(self.bases, self.codes, strict=True)], axis=1
        )

    def _pieces(self, length: int) -> list[slice]:
        return [slice(i, i + length) for i in range(0, self.shape[0], length)]

    def _whole(self) -> np.ndarray | None:
        """X where its products are dense and it may be kept; it is formed once."""
        if self.histograms or self.shape[0] * self.shape[1] > DENSE:
            return None
        if self._kept is None:
            self._kept = self.dense()
        return self._kept

    def _dense_pieces(self) -> list[tuple[slice, np.ndarray | None]]:
        """Slices of rows, with the rows of X where they are kept."""
        n, P = self.shape
        X = self._whole()
        return [(piece, None) for piece in self._pieces(max(1, DENSE // (4 * P)))] if X is None else [(slice(0, n), X)]

    def gram(self, w: np.ndarray) -> np.ndarray:
        """X' diag(w) X, [P, P] of [n]; weights of any sign."""
        if self.histograms:
            return self._gram_by_histograms(w)
        out = np.zeros((self.shape[1], self.shape[1]))
        same_sign = bool(np.all(w >= 0.0))
        root = np.sqrt(w) if same_sign else w
        for piece, X in self._dense_pieces():
            X = self.dense(piece) if X is None else X
            Y = X * root[piece, None]
            # Y'Y takes half of what a product of two matrices does.
            out += Y.T @ Y if same_sign else X.T @ Y
        return out

    def _gram_by_histograms(self, w: np.ndarray) -> np.ndarray:
        out = np.empty((self.shape[1], self.shape[1]))
        # of equal weights rows are counted
        same = w[0] if len(w) and np.all(w == w[0]) else None
        weight = w if same is None else None
        # sums over the bins of columns, the last first: of N_jk, those of j
        sums = [np.zeros(0) for _ in self.bases]
        for j, Z in reversed(list(enumerate(self.bases))):
            at, start = self.block(j), self._bins[j + 1]
            if j + 1 == len(self.bases):
                N = np.zeros((len(Z), 0))
                sums[j] = np.bincount(self.codes[j], weight, len(Z)).astype(float)
            elif len(Z) == 1:
                N = np.concatenate(sums[j + 1 :])[None]
                sums[j] = np.sum(sums[j + 1], keepdims=True)
            else:
                N = np.concatenate(list(self._histograms(j, self._groups(j), weight)), axis=1, dtype=float)
                sums[j] = N[:, : len(self.bases[j + 1])].sum(axis=1)
            # Z_j' diag(weight of the bins) Z_j; Z_j' N_jk Z_k beside it, N_jk the weight in each pair of bins
            out[at, at] = (Z.T * sums[j]) @ Z
            ZN = Z.T @ N
            for k in range(j + 1, len(self.bases)):
                to = self.block(k)
                out[at, to] = ZN[:, slice(*(self._bins[k : k + 2] - start))] @ self.bases[k]
                out[to, at] = out[at, to].T
        return out if same is None else same * out

    def _groups(self, j: int) -> list[tuple[int, int]]:
        """Ranges of columns after j that are counted in one pass."""
        p, together = len(self.bases), max(1, CHUNK // max(1, self.shape[0]))
        return [(k, min(k + together, p)) for k in range(j + 1, p, together)]

    def _pair_codes(self, j: int, first: int, last: int) -> np.ndarray:
        """Places of rows in the tables of bins of j by those of columns from first to last, [last - first, n]."""
        width = int(self._bins[last] - self._bins[first])
        kind = np.min_scalar_type(len(self.bases[j]) * width)
        out: np.ndarray = (self.codes[j].astype(kind) * kind.type(width))[None] + self.codes[first:last]
        if last > first + 1:
            out += (self._bins[first:last] - self._bins[first]).astype(kind)[:, None]
        return out

    def _histograms(self, j: int, groups: Sequence[tuple[int, int]], w: np.ndarray | None) -> Iterator[np.ndarray]:
        """Sums of w, or of 1, by the bins of j and those of the columns of each group, [bins_j, bins]."""
        widths = [int(self._bins[last] - self._bins[first]) for first, last in groups]
        width, together = max(widths, default=0), max((last - first for first, last in groups), default=0)
        kind = np.min_scalar_type(len(self.bases[j]) * width)
        # a sparse row, of which SciPy adds up what is at one place: in half the time of bincount
        most = min(CHUNK, self.shape[0]) * together
        entries = np.ones(most, np.uint16 if w is None else float), np.zeros(most, np.int32), [0, most]
        row = csr_array(entries, (1, len(self.bases[j]) * width))
        tables: list[np.ndarray] = []
        # so few at a time that a cache holds their places
        for rows in self._pieces(CHUNK if w is not None else min(CHUNK, COUNTED)) or [slice(0, 0)]:
            own = self.codes[j, rows].astype(kind) * kind.type(width)
            if w is not None:
                row.data[: len(own) * together] = np.tile(w[rows], together)
            for t, (first, last) in enumerate(groups):
                codes = own + self.codes[first:last, rows]
                if last > first + 1:
                    codes += (self._bins[first:last] - self._bins[first]).astype(kind)[:, None]
                row.indptr[1] = codes.size
                row.indices[: codes.size] = codes.ravel()
                if not rows.start:
                    tables.append(row.toarray() if w is not None else row.toarray().astype(np.int32))
                elif w is None:
                    tables[t] += row.toarray()
                else:
                    tables[t] = row + tables[t]
        for size, table in zip(widths, tables, strict=True):
            yield table.reshape(-1, width)[:, :size]

    def quadratic(self, A: np.ndarray) -> np.ndarray:
        """x_i' A x_i of every row, [n]; of A [P, P] the symmetric part counts."""
        if self.histograms:
            return self._quadratic_by_tables(0.5 * (A + A.T))
        out = np.empty(self.shape[0])
        for piece, X in self._dense_pieces():
            X = self.dense(piece) if X is None else X
            out[piece] = np.einsum("ij,ij->i", X @ A, X)
        return out

    def _quadratic_by_tables(self, A: np.ndarray) -> np.ndarray:
        out = np.zeros(self.shape[0])
        for j, Z in enumerate(self.bases):
            at = self.block(j)
            # z' A_jj z of each bin, and 2 z' A_jk z of each pair of bins, looked up
            out += np.take(np.einsum("ij,ij->i", Z @ A[at, at], Z), self.codes[j])
            for first, last in self._groups(j):
                tables = [(Z @ A[at, self.block(k)]) @ self.bases[k].T for k in range(first, last)]
                found = np.take(np.concatenate(tables, axis=1).ravel(), self._pair_codes(j, first, last))
                out += 2.0 * found.sum(axis=0)
        return out
