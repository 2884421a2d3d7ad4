"""Moves: how w and v get to where their residual is zero, and the schedules of step sizes and counts.

Names are imported when they are first used: what solves small dense problems needs NumPy and SciPy alone.
"""

from typing import TYPE_CHECKING

from bilevax.core.lazy import attach

if TYPE_CHECKING:
    from bilevax.solvers.conjugate_gradient import CG
    from bilevax.solvers.coordinate_descent import CoordinateDescent
    from bilevax.solvers.exact import Exact
    from bilevax.solvers.fixed_point import FixedPoint, Given
    from bilevax.solvers.gmres import GMRES
    from bilevax.solvers.gradient_push import GradientPush
    from bilevax.solvers.lbfgs import LBFGS
    from bilevax.solvers.mixed import MixedFP
    from bilevax.solvers.mixing import ExactAverage, Gossip, PushSum, Ring
    from bilevax.solvers.momentum import HeavyBall, Nesterov
    from bilevax.solvers.neumann import Neumann
    from bilevax.solvers.normal_equations import NormalEquations
    from bilevax.solvers.optax_moves import Optax
    from bilevax.solvers.product_neumann import ProductNeumann
    from bilevax.solvers.schedules import Constant, Growing, Harmonic, Polynomial, at_step
    from bilevax.solvers.variance_reduced import SAGA, SVRG

__all__ = [
    "CG",
    "GMRES",
    "LBFGS",
    "SAGA",
    "SVRG",
    "Constant",
    "CoordinateDescent",
    "Exact",
    "ExactAverage",
    "FixedPoint",
    "Given",
    "Gossip",
    "GradientPush",
    "Growing",
    "Harmonic",
    "HeavyBall",
    "MixedFP",
    "Nesterov",
    "Neumann",
    "NormalEquations",
    "Optax",
    "Polynomial",
    "ProductNeumann",
    "PushSum",
    "Ring",
    "at_step",
]

MODULES = [
    "schedules",
    "fixed_point",
    "conjugate_gradient",
    "momentum",
    "neumann",
    "gmres",
    "exact",
    "lbfgs",
    "mixed",
    "normal_equations",
    "product_neumann",
    "variance_reduced",
    "coordinate_descent",
    "optax_moves",
    "mixing",
    "gradient_push",
]

__getattr__, __dir__ = attach(__name__, MODULES, __all__)
