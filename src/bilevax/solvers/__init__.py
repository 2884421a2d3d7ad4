"""Moves: how w and v get to where their residual is zero, and the schedules of step sizes and counts."""

from bilevax.solvers.conjugate_gradient import CG as CG
from bilevax.solvers.coordinate_descent import CoordinateDescent as CoordinateDescent
from bilevax.solvers.exact import Exact as Exact
from bilevax.solvers.fixed_point import FixedPoint as FixedPoint
from bilevax.solvers.fixed_point import Given as Given
from bilevax.solvers.gmres import GMRES as GMRES
from bilevax.solvers.lbfgs import LBFGS as LBFGS
from bilevax.solvers.mixed import MixedFP as MixedFP
from bilevax.solvers.momentum import HeavyBall as HeavyBall
from bilevax.solvers.momentum import Nesterov as Nesterov
from bilevax.solvers.neumann import Neumann as Neumann
from bilevax.solvers.normal_equations import NormalEquations as NormalEquations
from bilevax.solvers.optax_moves import Optax as Optax
from bilevax.solvers.product_neumann import ProductNeumann as ProductNeumann
from bilevax.solvers.schedules import Constant as Constant
from bilevax.solvers.schedules import Growing as Growing
from bilevax.solvers.schedules import Harmonic as Harmonic
from bilevax.solvers.schedules import Polynomial as Polynomial
from bilevax.solvers.schedules import at_step as at_step
from bilevax.solvers.variance_reduced import SAGA as SAGA
from bilevax.solvers.variance_reduced import SVRG as SVRG
