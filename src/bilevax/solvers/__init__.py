"""Moves: how w and v get to where their residual is zero, and the schedules of step sizes and counts."""

from bilevax.solvers.conjugate_gradient import CG
from bilevax.solvers.fixed_point import FixedPoint, Given
from bilevax.solvers.lbfgs import LBFGS
from bilevax.solvers.schedules import Constant, Growing, Harmonic, Polynomial, at_step

__all__ = ["CG", "LBFGS", "Constant", "FixedPoint", "Given", "Growing", "Harmonic", "Polynomial", "at_step"]
