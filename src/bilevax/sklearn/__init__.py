"""Estimators with ``fit`` and ``predict``, and the encoder that they need.

Names are imported when they are first used: applying a model that has been tuned needs numpy alone.
"""

from typing import TYPE_CHECKING

from bilevax.core.lazy import attach

if TYPE_CHECKING:
    from bilevax.sklearn.encoder import TableEncoder
    from bilevax.sklearn.logistic import TunedLogisticRegression

__all__ = ["TableEncoder", "TunedLogisticRegression"]

__getattr__, __dir__ = attach(__name__, ["encoder", "logistic"], __all__)
