"""Estimators with ``fit`` and ``predict``, and the tuning of tables; the only room that imports scikit-learn.

Names are imported when they are first used: applying a model that has been tuned needs numpy alone.
"""

from typing import TYPE_CHECKING

from bilevax.core.lazy import attach

if TYPE_CHECKING:
    from bilevax.sklearn.baselines import single_penalty_grid, untuned
    from bilevax.sklearn.bundled import load_bundled
    from bilevax.sklearn.encoder import TableEncoder
    from bilevax.sklearn.linear import LinearModel
    from bilevax.sklearn.logistic import TunedLogisticRegression
    from bilevax.sklearn.run_files import read_model, write_run
    from bilevax.sklearn.settings import TuneSettings
    from bilevax.sklearn.study import Study, tune_table

__all__ = [
    "LinearModel",
    "Study",
    "TableEncoder",
    "TuneSettings",
    "TunedLogisticRegression",
    "load_bundled",
    "read_model",
    "single_penalty_grid",
    "tune_table",
    "untuned",
    "write_run",
]

__getattr__, __dir__ = attach(
    __name__,
    ["linear", "settings", "run_files", "bundled", "encoder", "baselines", "logistic", "study"],
    __all__,
)
