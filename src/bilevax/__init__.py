"""bilevax: stochastic bilevel optimisation in JAX.

The public names are imported at their first use, so that ``bilevax --help`` does not wait for JAX. Estimators,
algorithms and audits are public by being exported from their rooms.
"""

from typing import TYPE_CHECKING

from bilevax.core.lazy import attach

if TYPE_CHECKING:
    from bilevax import implicit
    from bilevax.algorithms import *
    from bilevax.audit import *
    from bilevax.core.codes import Code
    from bilevax.core.errors import BilevaxError, DataError, ParameterError, SolveError, StorageError, UsageError
    from bilevax.core.instance import Instance
    from bilevax.core.records import Cost, Count, ErrorReport, Estimate, History, Result
    from bilevax.data import Arrays, Several, SparseRows, fold_looks, join
    from bilevax.hypergradients import *
    from bilevax.planning import *
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
    from bilevax.theory import Constants

__version__ = "0.1.0.dev0"

__all__ = [
    "CG",
    "GMRES",
    "LBFGS",
    "Arrays",
    "BilevaxError",
    "BinaryLogistic",
    "Box",
    "Code",
    "Constant",
    "Constants",
    "Cost",
    "Count",
    "DataError",
    "ErrorReport",
    "Estimate",
    "Exact",
    "FixedPoint",
    "Given",
    "GradientStep",
    "Groups",
    "Growing",
    "Harmonic",
    "History",
    "Instance",
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
    "Several",
    "Simplex",
    "SolveError",
    "SparseRows",
    "Squared",
    "StorageError",
    "UsageError",
    "directions",
    "fold_looks",
    "implicit",
    "join",
    "lagrangian",
    "minimize",
]

__getattr__, __dir__ = attach(
    __name__,
    [
        "core.codes",
        "core.errors",
        "core.records",
        "core.instance",
        "theory",
        "data",
        "problems",
        "solvers",
        "runs",
        "implicit",
    ],
    __all__,
    whole=["hypergradients", "algorithms", "planning", "audit"],
)

if not TYPE_CHECKING:
    del __all__  # from here on __getattr__ gives it, with the names of the whole rooms
