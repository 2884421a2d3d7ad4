"""The outer loop as rows of values. A new algorithm is a file and a line here."""

from bilevax.algorithms.bsgm import BSGM as BSGM
from bilevax.algorithms.optim import optim as optim
