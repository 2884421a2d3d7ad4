"""What memory tuning takes, in bytes: formulas fitted to measured peaks (``python -m benchmarks memory``).

They were 0.95 to 1.4 times the peaks of 15 tables, of 1,000 to 400,000 rows, 5 to 4,000 columns, and 2 to 40 classes.
"""

from bilevax.core.limits import MB, require

PROGRAMS = 600 * MB
"""Compiled programs, their compiler, and the memory that is freed and not given back."""

MAPPED = 800 * MB
"""Address space that they reserve beyond that, on two cores."""

STARTING = 200 * MB
"""JAX and scikit-learn, which are not imported yet where a command has read its table."""

HELPS = "fewer rows or columns (--drop) take less"

_WIDEST = 2000


def fit_memory(n: int, p: int, outputs: int, folds: int) -> int:
    """Of a fit on features [n, p], beside these and PROGRAMS.

    Args:
        n: rows.
        p: columns.
        outputs: scores, 1 for two classes.
        folds: K.
    """
    # 4 copies of the features in float64: standardised, padded, whitened, and those of the final fit, in passing
    features = 4 * 8 * n * p
    # L, L^-1 and the moment [p, p], each in both precisions and in passing
    moments = 6 * 8 * p * p if p <= _WIDEST else 0
    # ten pairs of L-BFGS for the K models, on the host and in the solver
    models = 60 * 8 * folds * outputs * p
    return features + moments + models


def study_memory(n: int, p: int, outputs: int, folds: int) -> int:
    """Of a study of a table of n rows that p terms encode, beside the table and PROGRAMS."""
    # the matrix, and that of the rows which are tuned on
    return fit_memory(n, p, outputs, folds) + int(1.5 * 8 * n * p)


def require_fit(need: int, what: str) -> None:
    """Refuse, before it is begun, a fit that memory is clearly too small for, with the programs that are compiled."""
    require(need, what, HELPS, compiler=PROGRAMS, mapped=MAPPED)
