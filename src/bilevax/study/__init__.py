"""A table from file to verdict: splits, the model, its rivals, their evaluation, and the files of a run.

Names are imported when they are first used: reading a run needs neither JAX nor scikit-learn.
"""

from typing import TYPE_CHECKING

from bilevax.core.lazy import attach

if TYPE_CHECKING:
    from bilevax.study.bundled import load_bundled
    from bilevax.study.run_directory import read_model, write_run
    from bilevax.study.settings import TuneSettings
    from bilevax.study.study import Study, tune_table

__all__ = [
    "Study",
    "TuneSettings",
    "load_bundled",
    "read_model",
    "tune_table",
    "write_run",
]

__getattr__, __dir__ = attach(__name__, ["settings", "run_directory", "bundled", "study"], __all__)
