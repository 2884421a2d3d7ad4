"""The conformance suites: what every estimator, solver, algorithm and source must satisfy, for one's own class.

    from bilevax.testing import check_estimator

    check_estimator(MyEstimator(steps=200))

Each raises an AssertionError that says in one sentence the first contract that is violated; nothing but bilevax is
needed. They compute in float64 on closed forms, and leave JAX's configuration as it is.
"""

from bilevax.testing.algorithms import check_algorithm
from bilevax.testing.estimators import check_estimator
from bilevax.testing.solvers import check_inner_solver, check_linear_solver
from bilevax.testing.sources import check_source

__all__ = ["check_algorithm", "check_estimator", "check_inner_solver", "check_linear_solver", "check_source"]
