"""What callers give in another's place, and what would be right: looked at by each public function first."""

import inspect

import jax

from bilevax.core.errors import ParameterError
from bilevax.core.shown import shape
from bilevax.core.trees import PyTree

ESTIMATOR, ALGORITHM = ("estimate",), ("streams", "step")
"""What only an estimator of hypergradients has, and only an algorithm that runs over outer steps."""

METHODS = ("check", "streams", "init", "step", "solution", "outer_step_size", "step_cost")
"""Of an algorithm, beside its ``steps_per_record``; what each does: ``core.protocols.Algorithm``."""


def require_problem(problem: object) -> None:
    """Refuse what is no problem.

    Raises:
        ParameterError: it is none, such as a loss.
    """
    _require("problem", problem, ("inner_map", "outer_loss"), "a bx.Problem(bx.GradientStep(inner_loss), outer_loss)")


def require_estimator(estimator: object) -> None:
    """Refuse what is no estimator.

    Raises:
        ParameterError: it is none, such as an algorithm.
    """
    more = "; algorithms are run by bx.minimize" if _has(estimator, ALGORITHM) else ""
    _require("estimator", estimator, ESTIMATOR, "one such as bx.SID(bx.LBFGS(), bx.CG())", more)


def require_algorithm(algorithm: object) -> None:
    """Refuse what is no algorithm.

    Raises:
        ParameterError: it is none, such as an estimator, or lacks a member.
    """
    more = "; bx.BSGM(estimator) takes steps along what it says" if _has(algorithm, ESTIMATOR) else ""
    _require("algorithm", algorithm, ALGORITHM, "one such as bx.SOBA()", more)
    members = ("steps_per_record", *METHODS)
    if lacking := [name for name in members if not hasattr(algorithm, name)]:
        raise ParameterError(
            f"algorithm {type(algorithm).__name__} lacks {' and '.join(lacking)}; an algorithm has all of "
            f"{', '.join(members)} (CONTRIBUTING.md says what each is)"
        )


def require_source(name: str, source: object, has: str, such_as: str) -> None:
    """Refuse what is no source of rows.

    Args:
        name: of it.
        source: what was given.
        has: what is asked of it.
        such_as: one that has it.

    Raises:
        ParameterError: it is none, such as an array.
    """
    if not hasattr(source, has):
        raise ParameterError(f"{name} must be a source of rows, such as {such_as}, got {type(source).__name__}")


def require_inner_solver(name: str, solver: object) -> None:
    """Refuse what does not solve for w: a linear solver, or none.

    Raises:
        ParameterError: it does not.
    """
    _require_solver(name, solver)
    if getattr(solver, "affine", False) or hasattr(solver, "needs_symmetry"):
        raise ParameterError(
            f"{name} must solve any map, and {_kind(solver)} solves affine ones; use bx.FixedPoint(...) or bx.LBFGS()"
        )


def require_linear_solver(name: str, solver: object) -> None:
    """Refuse what does not solve for v: a solver of losses, or none.

    Raises:
        ParameterError: it does not.
    """
    _require_solver(name, solver)
    if inspect.isclass(solver) or not (getattr(solver, "stochastic", False) or hasattr(solver, "needs_symmetry")):
        raise ParameterError(
            f"{name} must solve linear systems, and {_kind(solver)} does not; use bx.CG() or bx.FixedPoint(...)"
        )


def _require_solver(name: str, solver: object) -> None:
    if not hasattr(solver, "solve"):
        raise ParameterError(f"{name} must be a solver such as bx.FixedPoint(steps=100), got {_kind(solver)}")


def _require(name: str, given: object, has: tuple[str, ...], wanted: str, more: str = "") -> None:
    if inspect.isclass(given) or not _has(given, has):
        raise ParameterError(f"{name} must be {wanted}, got {_kind(given)}{more}")


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
