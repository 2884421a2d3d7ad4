"""bilevax: stochastic bilevel optimisation in JAX.

The public names are imported at their first use, so that ``bilevax --help`` does not wait for JAX.
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
    from bilevax.problems import *
    from bilevax.runs import *
    from bilevax.solvers import (
        CG,
        GMRES,
        LBFGS,
        SAGA,
        SVRG,
        Constant,
        CoordinateDescent,
        Exact,
        FixedPoint,
        Given,
        Growing,
        Harmonic,
        HeavyBall,
        MixedFP,
        Nesterov,
        Neumann,
        NormalEquations,
        Optax,
        Polynomial,
        ProductNeumann,
    )
    from bilevax.theory import Constants

__version__ = "0.1.0.dev0"

__all__ = [
    "ALSET",
    "BOME",
    "BSA",
    "BSGM",
    "CG",
    "F2SA",
    "FSLA",
    "GMRES",
    "ITD",
    "LBFGS",
    "MAID",
    "MASOBA",
    "MEHA",
    "MRBO",
    "MSTSA",
    "NSID",
    "PZOBO",
    "SABA",
    "SAGA",
    "SCGD",
    "SID",
    "SOBA",
    "SRBA",
    "SUSTAIN",
    "SVRG",
    "TTSA",
    "VPBGD",
    "VRBO",
    "AmIGO",
    "Arrays",
    "Bernoulli",
    "BiSLS",
    "BiSPS",
    "BilevaxError",
    "BinaryLogistic",
    "Box",
    "CappedSimplex",
    "Code",
    "Composition",
    "Constant",
    "Constants",
    "CoordinateDescent",
    "Cost",
    "Count",
    "DataError",
    "ErrorReport",
    "Estimate",
    "Exact",
    "Finding",
    "Findings",
    "FixedPoint",
    "Gaussian",
    "Given",
    "GradientStep",
    "Groups",
    "Growing",
    "Harmonic",
    "HeavyBall",
    "History",
    "Instance",
    "JointSID",
    "L2Ball",
    "MixedFP",
    "MultinomialLogistic",
    "Nesterov",
    "Neumann",
    "NonNegative",
    "NormalEquations",
    "Optax",
    "ParameterError",
    "Penalty",
    "Piggyback",
    "Plan",
    "Polynomial",
    "Problem",
    "ProductNeumann",
    "Progress",
    "ProximalStep",
    "Result",
    "Run",
    "ScoreFunction",
    "Several",
    "Simplex",
    "SolveError",
    "SparseRows",
    "Squared",
    "StocBiO",
    "StochasticReverse",
    "StorageError",
    "UsageError",
    "check",
    "directions",
    "estimate_constants",
    "fold_looks",
    "hypergradient",
    "implicit",
    "join",
    "lagrangian",
    "measure_steps",
    "minimize",
    "optim",
    "plan",
    "value_and_hypergradient",
]

_ROOMS = (  # the quickest to import first
    "core.codes",
    "core.errors",
    "core.records",
    "core.instance",
    "theory",
    "data",
    "problems",
    "solvers",
    "hypergradients",
    "algorithms",
    "planning",
    "audit",
    "runs",
    "implicit",
)

__getattr__, __dir__ = attach(__name__, _ROOMS, __all__)
