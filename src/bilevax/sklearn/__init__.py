"""Estimators with ``fit`` and ``predict``, and the tuning of tables; the only room that imports scikit-learn.

Names are imported when they are first used: applying a model that has been tuned needs numpy alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

_MODULES = {
    "LinearModel": "linear",
    "Study": "study",
    "TableEncoder": "encoder",
    "TuneSettings": "settings",
    "TunedLogisticRegression": "logistic",
    "load_bundled": "bundled",
    "read_model": "run_files",
    "single_penalty_grid": "baselines",
    "tune_table": "study",
    "untuned": "baselines",
    "write_run": "run_files",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
