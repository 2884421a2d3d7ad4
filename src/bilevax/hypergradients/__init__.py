"""Estimators of the hypergradient: (problem, sources, key) -> Estimate."""

from bilevax.hypergradients.door import hypergradient, value_and_hypergradient
from bilevax.hypergradients.itd import ITD
from bilevax.hypergradients.sid import SID

__all__ = ["ITD", "SID", "hypergradient", "value_and_hypergradient"]
