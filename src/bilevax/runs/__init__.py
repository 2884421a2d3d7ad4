"""One driver for every algorithm."""

from bilevax.runs.callbacks import EarlyStopping, Progress, TimeLimit
from bilevax.runs.checkpoints import Run
from bilevax.runs.json_lines import JSONLines
from bilevax.runs.minimize import minimize
from bilevax.runs.show_progress import ShowProgress
from bilevax.runs.tensorboard import TensorBoard

__all__ = ["EarlyStopping", "JSONLines", "Progress", "Run", "ShowProgress", "TensorBoard", "TimeLimit", "minimize"]
