"""What the user's functions return, looked at while a program is traced."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from bilevax.core import shown
from bilevax.core.errors import ParameterError
from bilevax.core.given import require_source
from bilevax.core.protocols import BilevelProblem, RowSource
from bilevax.core.trees import PyTree, leaf_name
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.proximal_step import ProximalStep


def check_functions(problem: BilevelProblem, w: PyTree, lam: PyTree, train: RowSource, val: RowSource) -> None:
    """Refuse, while tracing, a map or loss whose result has a wrong structure, shape or dtype.

    Raises:
        ParameterError: says which function, which leaf, and what would be right.
        Exception: whatever a function raises, with a note on what it was given.
    """
    check_are_sources(train, val)
    # The loss, not the step of it: a step that is not measured yet cannot be evaluated.
    inner_map = problem.inner_map
    if isinstance(inner_map, GradientStep | ProximalStep):
        _check_scalar("the inner loss", _returned("the inner loss", inner_map.loss, w, lam, train.example()))
    else:
        _check_like("inner_map", _returned("inner_map", inner_map, w, lam, train.example()), w)
    _check_scalar("outer_loss", _returned("outer_loss", problem.outer_loss, w, lam, val.example()))
    if problem.project is not None:
        try:
            projected = jax.eval_shape(partial(problem.project), lam)
        except (TypeError, ValueError) as e:
            raise ParameterError(f"project does not take lam, {shown.shape(lam)}: {' '.join(str(e).split())}") from e
        _check_like("project", projected, lam, argument="lam")


def check_are_sources(train: object, val: object) -> None:
    """Refuse arrays that are in no source.

    Raises:
        ParameterError: says which, and what would be right.
    """
    for name, source in (("train", train), ("val", val)):
        require_source(name, source, "example", "bx.Arrays(data)")


def _returned(name: str, fn: Callable[..., PyTree], w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
    try:
        return jax.eval_shape(partial(fn), w, lam, batch)
    except Exception as e:
        e.add_note(f"{name} was given w {shown.shape(w)}, lam {shown.shape(lam)} and batch {shown.shape(batch)}.")
        raise


def _check_scalar(name: str, out: PyTree) -> None:
    if not hasattr(out, "shape") or out.shape != ():
        if out is None:
            raise ParameterError(f"{name} must return a scalar, got None; is its `return` missing?")
        if not hasattr(out, "shape"):
            raise ParameterError(f"{name} must return a scalar alone, got {shown.shape(out)}; leave out what is beside")
        raise ParameterError(f"{name} must return a scalar, got {out.shape}; take the mean over the rows of the batch")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ParameterError(f"{name} must return a float, got {out.dtype}")


def _check_like(name: str, out: PyTree, like: PyTree, argument: str = "w") -> None:
    structure: object = jax.tree.structure(out)
    wanted = jax.tree.structure(like)
    if structure != wanted:
        raise ParameterError(f"{name} must return a tree like {argument}, {wanted}; got {structure}")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(out), jax.tree.leaves(like), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            leaf = leaf_name(argument, path)
            loss = "; a loss becomes a map by bx.GradientStep(loss)" if name == "inner_map" and a.shape == () else ""
            raise ParameterError(
                f"{name} returns {a.dtype}{list(a.shape)} for leaf {leaf}, which is {b.dtype}{list(b.shape)}{loss}"
            )
