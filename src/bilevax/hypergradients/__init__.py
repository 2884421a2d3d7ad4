"""Estimators of the hypergradient: (problem, sources, key) -> Estimate."""

from bilevax.hypergradients.door import hypergradient
from bilevax.hypergradients.sid import SID

__all__ = ["SID", "hypergradient"]
