"""Can a problem and its hypergradients be believed? Measured constants, and the doctor."""

from bilevax.trust.constants import estimate_constants as estimate_constants
from bilevax.trust.doctor import check as check
from bilevax.trust.findings import Finding as Finding
from bilevax.trust.findings import Findings as Findings
from bilevax.trust.planner import Plan as Plan
from bilevax.trust.planner import plan as plan
