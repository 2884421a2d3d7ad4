"""Moves: how w and v get to where their residual is zero, and the schedules of step sizes and counts."""

from bilevax.solvers.conjugate_gradient import CG
from bilevax.solvers.exact import Exact
from bilevax.solvers.fixed_point import FixedPoint, Given
from bilevax.solvers.gmres import GMRES
from bilevax.solvers.lbfgs import LBFGS
from bilevax.solvers.neumann import Neumann
from bilevax.solvers.schedules import Constant, Growing, Harmonic, Polynomial, at_step

__all__ = [
    "CG",
    "GMRES",
    "LBFGS",
    "Constant",
    "Exact",
    "FixedPoint",
    "Given",
    "Growing",
    "Harmonic",
    "Neumann",
    "Polynomial",
    "at_step",
]
