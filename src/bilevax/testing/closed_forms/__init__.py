"""Problems whose solution, hypergradient and moments are known in closed form."""

from bilevax.testing.closed_forms.affine import Contraction, FiniteAffine
from bilevax.testing.closed_forms.quadratic import Curvature, FiniteQuadratic, Solution
from bilevax.testing.closed_forms.ridge import PenalisedRidge

__all__ = ["Contraction", "Curvature", "FiniteAffine", "FiniteQuadratic", "PenalisedRidge", "Solution"]
