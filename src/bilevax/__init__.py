"""bilevax: stochastic bilevel optimisation in JAX.

The public names are imported at their first use, so that ``bilevax --help`` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "algorithms": ["BSGM", "optim"],
    "core.codes": ["Code"],
    "core.errors": ["BilevaxError", "DataError", "ParameterError", "SolveError", "StorageError", "UsageError"],
    "core.records": ["Cost", "Count", "Estimate", "History", "Result"],
    "data": ["Arrays", "join"],
    "hypergradients": ["SID", "hypergradient"],
    "problems": [
        *["BinaryLogistic", "Box", "GradientStep", "Groups", "L2Ball", "MultinomialLogistic", "NonNegative", "Problem"],
        *["Simplex", "Squared", "directions", "lagrangian"],
    ],
    "runs": ["Progress", "minimize"],
    "solvers": ["CG", "LBFGS", "Constant", "FixedPoint", "Given", "Growing", "Harmonic", "Polynomial"],
}
_HOME = {name: f"bilevax.{room}" for room, names in _HOMES.items() for name in names}

__all__ = [
    *_HOME,
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in {"core", "theory", "data", "problems", "solvers", "hypergradients", "algorithms", "runs"}:
        return importlib.import_module(f"bilevax.{name}")
    raise AttributeError(f"module 'bilevax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
