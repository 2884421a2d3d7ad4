"""Estimators with ``fit`` and ``predict``, and the encoder that they need.

Names are imported when they are first used: applying a model that has been tuned needs numpy alone.
"""

from typing import TYPE_CHECKING

from bilevax.core.lazy import attach

if TYPE_CHECKING:
    from bilevax.sklearn.additive import TunedAdditiveClassifier, TunedAdditiveRegressor
    from bilevax.sklearn.elastic_net import TunedElasticNet, TunedElasticNetClassifier
    from bilevax.sklearn.encoder import TableEncoder
    from bilevax.sklearn.jax_classifier import JaxClassifier
    from bilevax.sklearn.label_cleaner import LabelCleaner
    from bilevax.sklearn.logistic import TunedLogisticRegression
    from bilevax.sklearn.ridge import TunedRidge

__all__ = [
    "JaxClassifier",
    "LabelCleaner",
    "TableEncoder",
    "TunedAdditiveClassifier",
    "TunedAdditiveRegressor",
    "TunedElasticNet",
    "TunedElasticNetClassifier",
    "TunedLogisticRegression",
    "TunedRidge",
]

__getattr__, __dir__ = attach(
    __name__, ["additive", "encoder", "elastic_net", "ridge", "jax_classifier", "label_cleaner", "logistic"], __all__
)
