"""``LabelCleaner(method="weights")``: a weight per row, from a few rows whose labels are trusted."""

import numpy as np

from bilevax.core.errors import ParameterError
from bilevax.linalg.columns import Matrix
from bilevax.sklearn.row_splits import deal_folds
from bilevax.solvers.label_noise import Given
from bilevax.solvers.label_row_weights import Rows, Weighed, weigh

PROBABILITIES = ("wrong_label_probability_", "posterior_", "noise_matrix_", "noise_interval_", "expected_wrong_")
"""Attributes that weights do not have."""


def require_trusted(model: object, trusted: object) -> None:
    """Refuse what weights cannot be had of.

    Raises:
        ParameterError: no trusted rows, or another model than the linear one.
    """
    if not (isinstance(model, str) and model == "linear"):
        raise ParameterError(f"method='weights' has a linear model of its own; leave model='linear', got {model!r}")
    if trusted is None:
        raise ParameterError(
            "method='weights' needs trusted rows, whose loss the weights go down; give trusted=, a mask or (X, y)"
        )


def row_weights(X: Matrix, given: Given, cv: int, random: np.random.RandomState) -> Weighed:
    """Weights of the rows to doubt.

    Args:
        X: features of all rows, [n, p].
        given: their labels.
        cv: folds of the trusted rows, of which each says how long the others are believed.
        random: of the folds.
    """
    doubted, trusted = (
        Rows(X[rows], given.y[rows], given.classes)
        for rows in (np.flatnonzero(~given.trusted), np.flatnonzero(given.trusted))
    )
    # folds of the trusted rows, in which classes have equal shares
    return weigh(doubted, trusted, deal_folds(trusted.y, None, cv, random))


def notes_on_weights(found: Weighed) -> tuple[str, ...]:
    """What the user should know of them."""
    none = "no step from equal weights lowers the loss of held-out trusted rows: all weights are equal"
    return (
        *((none,) if found.steps == 0 else ()),
        f"the {len(found.weight):,} weights count as {found.effective_sample_size:,.0f} equal ones",
        f"trained anew at the final weights, the model has the loss {found.retrained:.4g} on the trusted rows;"
        f" carried along while they were chosen, {found.loss:.4g}",
    )
