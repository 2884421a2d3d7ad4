"""The outer loop as rows of values."""

from bilevax.algorithms.bsgm import BSGM
from bilevax.algorithms.loop import RECORDED, Watched, advance
from bilevax.algorithms.optim import Optim, optim

__all__ = ["BSGM", "RECORDED", "Optim", "Watched", "advance", "optim"]
