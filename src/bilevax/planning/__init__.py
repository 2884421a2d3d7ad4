"""Which estimator, with which step sizes and counts, for a budget of samples or a target."""

from bilevax.planning.planner import Plan as Plan
from bilevax.planning.planner import plan as plan
