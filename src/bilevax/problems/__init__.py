"""The two oracles of a bilevel problem: inner maps, losses, projections."""

from bilevax.problems.composition import Composition as Composition
from bilevax.problems.equilibrium import LogitResponse as LogitResponse
from bilevax.problems.equilibrium import ProjectionStep as ProjectionStep
from bilevax.problems.gradient_step import GradientStep as GradientStep
from bilevax.problems.losses import BinaryLogistic as BinaryLogistic
from bilevax.problems.losses import Groups as Groups
from bilevax.problems.losses import MultinomialLogistic as MultinomialLogistic
from bilevax.problems.losses import Squared as Squared
from bilevax.problems.nodes import MeanOverNodes as MeanOverNodes
from bilevax.problems.nodes import StackOverNodes as StackOverNodes
from bilevax.problems.problem import Problem as Problem
from bilevax.problems.problem import directions as directions
from bilevax.problems.problem import lagrangian as lagrangian
from bilevax.problems.projections import Box as Box
from bilevax.problems.projections import CappedSimplex as CappedSimplex
from bilevax.problems.projections import L2Ball as L2Ball
from bilevax.problems.projections import NonNegative as NonNegative
from bilevax.problems.projections import Simplex as Simplex
from bilevax.problems.proximal_step import ProximalStep as ProximalStep
from bilevax.problems.soft_bellman import SoftBellman as SoftBellman
from bilevax.problems.unrolled import Unrolled as Unrolled
