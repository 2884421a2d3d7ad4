"""Products of a binned matrix, by histograms and dense, against the matrix written out."""

import numpy as np
import pytest

from bilevax.linalg import binned
from bilevax.linalg.binned import BinnedColumns


def written_out(seed=0, n=300):
    rng = np.random.default_rng(seed)
    bins, widths = (1, 7, 30, 2, 12), (1, 3, 9, 2, 0)
    codes = [rng.integers(0, B, n).astype(np.uint8) for B in bins]
    bases = [rng.normal(size=(B, k)) for B, k in zip(bins, widths, strict=True)]
    return codes, bases, np.concatenate([Z[c] for Z, c in zip(bases, codes, strict=True)], axis=1)


@pytest.mark.parametrize("histograms", [True, False])
@pytest.mark.parametrize("chunk", [65_536, 130], ids=["whole", "pieces"])
def test_products_are_those_of_the_matrix_written_out(histograms, chunk, monkeypatch):
    monkeypatch.setattr(binned, "CHUNK", chunk)
    monkeypatch.setattr(binned, "FEW", chunk)
    monkeypatch.setattr(binned, "DENSE", 20_000_000 if chunk > 130 else 100)
    codes, bases, X = written_out()
    B = BinnedColumns(codes, bases, histograms=histograms)
    rng = np.random.default_rng(1)
    beta, r = rng.normal(size=(X.shape[1], 2)), rng.normal(size=(len(X), 2))
    A = rng.normal(size=(X.shape[1],) * 2)
    assert B.shape == X.shape
    np.testing.assert_allclose(B.dense(), X)
    np.testing.assert_allclose(B.dot(beta), X @ beta, atol=1e-12)
    np.testing.assert_allclose(B.transposed_dot(r), X.T @ r, atol=1e-11)
    for w in (r[:, 0], r[:, 1] ** 2, np.full(len(X), 2.0)):
        np.testing.assert_allclose(B.gram(w), X.T @ (w[:, None] * X), atol=1e-11)
    np.testing.assert_allclose(B.quadratic(A), np.sum((X @ A) * X, axis=1), atol=1e-11)
    some = rng.permutation(len(X))[:50]
    np.testing.assert_allclose(B.rows(some).gram(r[some, 0]), X[some].T @ (r[some, :1] * X[some]), atol=1e-12)


def test_the_cheaper_way_is_taken():
    """Few columns of many functions each: histograms; many of few: dense products."""
    rng = np.random.default_rng(0)

    def ways(n, p, bins, k):
        columns = [rng.integers(0, bins, n) for _ in range(p)], [np.ones((bins, k))] * p
        return BinnedColumns(*columns).histograms

    assert ways(3000, 5, 30, 30)
    assert not ways(3000, 40, 30, 1)
    assert not ways(100, 5, 255, 30)


def test_rows_that_are_all_in_one_bin_are_counted_beyond_16_bits():
    n = 2**17 + 5
    B = BinnedColumns([np.zeros(n, int), np.ones(n, int)], [np.eye(2), np.eye(2)], histograms=True)
    right = np.zeros((4, 4))
    right[np.ix_([0, 3], [0, 3])] = 0.5 * n
    np.testing.assert_array_equal(B.gram(np.full(n, 0.5)), right)
