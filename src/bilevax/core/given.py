"""What callers give in another's place, and what would be right: looked at by each public function first."""

import inspect

import jax

from bilevax.core.errors import ParameterError
from bilevax.core.shown import shape
from bilevax.core.trees import PyTree

ESTIMATOR, ALGORITHM = ("estimate",), ("streams", "step")
"""What only an estimator of hypergradients has, and only an algorithm that runs over outer steps."""


def require_problem(problem: object) -> None:
    """Refuse what is no problem.

    Raises:
        ParameterError: it is none, such as a loss.
    """
    if inspect.isclass(problem) or not (hasattr(problem, "inner_map") and hasattr(problem, "outer_loss")):
        raise ParameterError(
            f"problem must be a bx.Problem(bx.GradientStep(inner_loss), outer_loss), got {_kind(problem)}"
        )


def require_estimator(estimator: object) -> None:
    """Refuse what is no estimator.

    Raises:
        ParameterError: it is none, such as an algorithm.
    """
    if inspect.isclass(estimator) or not _has(estimator, ESTIMATOR):
        more = "; algorithms are run by bx.minimize" if _has(estimator, ALGORITHM) else ""
        raise ParameterError(f"estimator must be one such as bx.SID(bx.LBFGS(), bx.CG()), got {_kind(estimator)}{more}")


def require_algorithm(algorithm: object) -> None:
    """Refuse what is no algorithm.

    Raises:
        ParameterError: it is none, such as an estimator.
    """
    if inspect.isclass(algorithm) or not _has(algorithm, ALGORITHM):
        more = "; bx.BSGM(estimator) takes steps along what it says" if _has(algorithm, ESTIMATOR) else ""
        raise ParameterError(f"algorithm must be one such as bx.SOBA(), got {_kind(algorithm)}{more}")


def require_inner_solver(name: str, solver: object) -> None:
    """Refuse what does not solve for w: a linear solver, or none.

    Raises:
        ParameterError: it does not.
    """
    if not hasattr(solver, "solve"):
        raise ParameterError(f"{name} must be a solver such as bx.FixedPoint(steps=100), got {_kind(solver)}")
    if getattr(solver, "affine", False) or hasattr(solver, "needs_symmetry"):
        raise ParameterError(
            f"{name} must solve any map, and {_kind(solver)} solves affine ones; use bx.FixedPoint(...) or bx.LBFGS()"
        )


def require_linear_solver(name: str, solver: object) -> None:
    """Refuse what does not solve for v: a solver of losses, or none.

    Raises:
        ParameterError: it does not.
    """
    if not hasattr(solver, "solve"):
        raise ParameterError(f"{name} must be a solver such as bx.FixedPoint(steps=100), got {_kind(solver)}")
    if inspect.isclass(solver) or not (getattr(solver, "stochastic", False) or hasattr(solver, "needs_symmetry")):
        raise ParameterError(
            f"{name} must solve linear systems, and {_kind(solver)} does not; use bx.CG() or bx.FixedPoint(...)"
        )


def _has(given: object, names: tuple[str, ...]) -> bool:
    return all(hasattr(given, name) for name in names)


def _kind(given: object) -> str:
    """What was given, in a few words."""
    if inspect.isclass(given):
        return f"the class {given.__name__}; give an object, {given.__name__}(...)"
    if inspect.isroutine(given):
        return f"the function {given.__name__}"
    return repr(given) if isinstance(given, int | float | str | None) else type(given).__name__


def require_like(name: str, tree: PyTree, other: str, like: PyTree) -> None:
    """Refuse a tree of another structure than ``like``, or with leaves of other shapes.

    Raises:
        ParameterError: it is none such.
    """
    if _shapes(tree) != _shapes(like):
        raise ParameterError(f"{name} must be like {other}, {shape(like)}, got {shape(tree)}")


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: tuple(x.shape), tree)
