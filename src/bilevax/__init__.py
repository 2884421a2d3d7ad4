"""bilevax: stochastic bilevel optimisation in JAX.

The public names are imported at their first use, so that ``bilevax --help`` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bilevax.core.lazy import attach

if TYPE_CHECKING:
    from bilevax import implicit
    from bilevax.algorithms import BSGM, optim
    from bilevax.core.codes import Code
    from bilevax.core.errors import BilevaxError, DataError, ParameterError, SolveError, StorageError, UsageError
    from bilevax.core.records import Cost, Count, Estimate, History, Result
    from bilevax.data import Arrays, join
    from bilevax.hypergradients import ITD, SID, TruncatedITD, hypergradient, value_and_hypergradient
    from bilevax.problems import (
        BinaryLogistic,
        Box,
        GradientStep,
        Groups,
        L2Ball,
        MultinomialLogistic,
        NonNegative,
        Problem,
        ProximalStep,
        Simplex,
        Squared,
        directions,
        lagrangian,
    )
    from bilevax.runs import Progress, minimize
    from bilevax.solvers import (
        CG,
        GMRES,
        LBFGS,
        Constant,
        Exact,
        FixedPoint,
        Given,
        Growing,
        Harmonic,
        Neumann,
        Polynomial,
    )

__version__ = "0.1.0.dev0"

__all__ = [
    "BSGM",
    "CG",
    "GMRES",
    "ITD",
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
    "Exact",
    "FixedPoint",
    "Given",
    "GradientStep",
    "Groups",
    "Growing",
    "Harmonic",
    "History",
    "L2Ball",
    "MultinomialLogistic",
    "Neumann",
    "NonNegative",
    "ParameterError",
    "Polynomial",
    "Problem",
    "Progress",
    "ProximalStep",
    "Result",
    "Simplex",
    "SolveError",
    "Squared",
    "StorageError",
    "TruncatedITD",
    "UsageError",
    "directions",
    "hypergradient",
    "implicit",
    "join",
    "lagrangian",
    "minimize",
    "optim",
    "value_and_hypergradient",
]


_attached, __dir__ = attach(
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


def __getattr__(name: str) -> Any:
    if name == "implicit":  # a room with a name of its own: bx.implicit.custom_root
        return importlib.import_module("bilevax.implicit")
    return _attached(name)
