"""The two oracles of a bilevel problem: inner maps, losses, projections."""

from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.losses import BinaryLogistic, Groups, MultinomialLogistic, Squared
from bilevax.problems.problem import Problem, directions, lagrangian
from bilevax.problems.projections import Box, L2Ball, NonNegative, Simplex
from bilevax.problems.proximal_step import ProximalStep

__all__ = [
    "BinaryLogistic",
    "Box",
    "GradientStep",
    "Groups",
    "L2Ball",
    "MultinomialLogistic",
    "NonNegative",
    "Problem",
    "ProximalStep",
    "Simplex",
    "Squared",
    "directions",
    "lagrangian",
]
