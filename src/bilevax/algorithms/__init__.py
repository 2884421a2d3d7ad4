"""Bilevel methods: an explicit step each, on one loop. A new algorithm is a file and a line here."""

from bilevax.algorithms.bsgm import BSGM as BSGM
from bilevax.algorithms.optim import optim as optim
from bilevax.algorithms.soba import SOBA as SOBA
