"""One driver for every algorithm."""

from bilevax.runs.callbacks import EarlyStopping, TimeLimit
from bilevax.runs.json_lines import JSONLines
from bilevax.runs.minimize import Progress, minimize
from bilevax.runs.show_progress import ShowProgress
from bilevax.runs.tensorboard import TensorBoard

__all__ = ["EarlyStopping", "JSONLines", "Progress", "ShowProgress", "TensorBoard", "TimeLimit", "minimize"]
