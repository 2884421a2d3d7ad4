"""Estimators of the hypergradient: (problem, sources, key) -> Estimate."""

from bilevax.hypergradients.door import hypergradient, value_and_hypergradient
from bilevax.hypergradients.itd import ITD
from bilevax.hypergradients.sid import SID
from bilevax.hypergradients.truncated_itd import TruncatedITD

__all__ = ["ITD", "SID", "TruncatedITD", "hypergradient", "value_and_hypergradient"]
