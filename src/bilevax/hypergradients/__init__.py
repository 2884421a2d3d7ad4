"""Estimators of the hypergradient: (instance, w0, key) -> Estimate. A new one is a file and a line here."""

from bilevax.hypergradients.estimate import hypergradient as hypergradient
from bilevax.hypergradients.estimate import value_and_hypergradient as value_and_hypergradient
from bilevax.hypergradients.itd import ITD as ITD
from bilevax.hypergradients.joint_sid import JointSID as JointSID
from bilevax.hypergradients.nsid import NSID as NSID
from bilevax.hypergradients.penalty import Penalty as Penalty
from bilevax.hypergradients.piggyback import Piggyback as Piggyback
from bilevax.hypergradients.push_sum import PushSumHypergradient as PushSumHypergradient
from bilevax.hypergradients.score import Bernoulli as Bernoulli
from bilevax.hypergradients.score import Gaussian as Gaussian
from bilevax.hypergradients.score import ScoreFunction as ScoreFunction
from bilevax.hypergradients.sid import SID as SID
from bilevax.hypergradients.stochastic_reverse import StochasticReverse as StochasticReverse
