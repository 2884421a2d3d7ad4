"""The two oracles of a bilevel problem: inner maps and losses, projections, closed-form test problems."""

from bilevax.problems.affine import Contraction, FiniteAffine
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.losses import BinaryLogistic, Groups, MultinomialLogistic, Squared
from bilevax.problems.problem import Problem, directions, lagrangian
from bilevax.problems.projections import Box, L2Ball, NonNegative, Simplex
from bilevax.problems.proximal_step import ProximalStep
from bilevax.problems.quadratic import Curvature, FiniteQuadratic, PenalisedRidge

__all__ = [
    "BinaryLogistic",
    "Box",
    "Contraction",
    "Curvature",
    "FiniteAffine",
    "FiniteQuadratic",
    "GradientStep",
    "Groups",
    "L2Ball",
    "MultinomialLogistic",
    "NonNegative",
    "PenalisedRidge",
    "Problem",
    "ProximalStep",
    "Simplex",
    "Squared",
    "directions",
    "lagrangian",
]
