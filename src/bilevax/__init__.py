"""bilevax: stochastic bilevel optimisation in JAX.

The public names are imported at their first use, so that ``bilevax --help`` does not wait for JAX.
"""

from typing import TYPE_CHECKING

from bilevax.core.lazy import attach

if TYPE_CHECKING:
    from bilevax.algorithms import BSGM, optim
    from bilevax.core.codes import Code
    from bilevax.core.errors import BilevaxError, DataError, ParameterError, SolveError, StorageError, UsageError
    from bilevax.core.records import Cost, Count, Estimate, History, Result
    from bilevax.data import Arrays, join
    from bilevax.hypergradients import SID, hypergradient
    from bilevax.problems import (
        BinaryLogistic,
        Box,
        GradientStep,
        Groups,
        L2Ball,
        MultinomialLogistic,
        NonNegative,
        Problem,
        Simplex,
        Squared,
        directions,
        lagrangian,
    )
    from bilevax.runs import Progress, minimize
    from bilevax.solvers import CG, LBFGS, Constant, FixedPoint, Given, Growing, Harmonic, Polynomial

__version__ = "0.1.0.dev0"

__all__ = [
    "BSGM",
    "CG",
    "LBFGS",
    "SID",
    "Arrays",
    "BilevaxError",
    "BinaryLogistic",
    "Box",
    "Code",
    "Constant",
    "Cost",
    "Count",
    "DataError",
    "Estimate",
    "FixedPoint",
    "Given",
    "GradientStep",
    "Groups",
    "Growing",
    "Harmonic",
    "History",
    "L2Ball",
    "MultinomialLogistic",
    "NonNegative",
    "ParameterError",
    "Polynomial",
    "Problem",
    "Progress",
    "Result",
    "Simplex",
    "SolveError",
    "Squared",
    "StorageError",
    "UsageError",
    "directions",
    "hypergradient",
    "join",
    "lagrangian",
    "minimize",
    "optim",
]


__getattr__, __dir__ = attach(
    __name__,
    [
        "core.codes",
        "core.errors",
        "core.records",
        "data",
        "problems",
        "solvers",
        "hypergradients",
        "algorithms",
        "runs",
    ],
    __all__,
)
