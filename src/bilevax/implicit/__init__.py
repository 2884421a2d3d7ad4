"""Derivatives of other people's solvers, by the implicit function theorem.

Examples:
    >>> import bilevax as bx
    >>> bx.implicit.custom_root.__name__  # which has an example of its own
    'custom_root'
"""

from bilevax.implicit.decorators import custom_fixed_point, custom_root
from bilevax.implicit.solver import Diagnosis, ImplicitSolver

__all__ = ["Diagnosis", "ImplicitSolver", "custom_fixed_point", "custom_root"]
