"""Estimators of the hypergradient: (problem, sources, key) -> Estimate. A new one is a file and a line here."""

from bilevax.hypergradients.door import hypergradient as hypergradient
from bilevax.hypergradients.door import value_and_hypergradient as value_and_hypergradient
from bilevax.hypergradients.itd import ITD as ITD
from bilevax.hypergradients.joint_sid import JointSID as JointSID
from bilevax.hypergradients.sid import SID as SID
from bilevax.hypergradients.truncated_itd import TruncatedITD as TruncatedITD
