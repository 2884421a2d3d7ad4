"""Can a problem and its hypergradients be believed? Measured constants, and the doctor."""

from bilevax.trust.constants import estimate_constants as estimate_constants
