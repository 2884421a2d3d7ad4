"""One driver for every algorithm."""

from bilevax.runs.checkpoints import Run
from bilevax.runs.course import Progress
from bilevax.runs.minimize import minimize

__all__ = ["Progress", "Run", "minimize"]
