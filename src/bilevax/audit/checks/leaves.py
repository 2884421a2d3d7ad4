"""Are w0 and lam trees of real numbers, and do the functions return what they must?"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from bilevax.audit.findings import Finding
from bilevax.audit.oracles import flat
from bilevax.audit.subject import AuditedProblem, normal
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree, as_parameters, leaf_name
from bilevax.problems.validate import check_functions


def check_leaves(w0: PyTree, lam: PyTree) -> Iterator[Finding]:
    """INTEGER_LEAF, BAD_LEAF."""
    for name, tree in (("w0", w0), ("lam", lam)):
        integers = [leaf_name(name, path) for path, x in jax.tree_util.tree_leaves_with_path(tree) if _whole(x)]
        if integers:
            yield Finding(
                "INTEGER_LEAF",
                "error",
                f"{', '.join(integers)} holds whole numbers or booleans, which have no derivative.",
                "Pass floats, such as jnp.asarray(x, float); what is not to be differentiated belongs in the loss.",
            )
            continue
        # what is no number, or not finite, is said by the same sentence as everywhere else
        try:
            as_parameters(name, tree)
        except ParameterError as e:
            yield Finding("BAD_LEAF", "error", f"{e}.", "Pass trees of finite floating arrays.")


def _whole(x: object) -> bool:
    kind = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    return bool(jnp.issubdtype(kind, jnp.integer)) or kind == np.bool_


def check_structure(s: AuditedProblem) -> Iterator[Finding]:
    """STRUCTURE."""
    try:
        jax.eval_shape(lambda w, lam: check_functions(s.problem, w, lam, s.train, s.val), s.w0, s.lam)
    except ParameterError as e:
        yield Finding("STRUCTURE", "error", f"{e}.", "See the docstring of bx.Problem for what each function returns.")


def check_finite(s: AuditedProblem) -> Iterator[Finding]:
    """NONFINITE."""
    v = normal(s.rng(3), s.w0)
    # each oracle with its derivatives: a finite value can have a derivative that is not
    for place, w in (("w0", s.w0), ("the inner solution", s.solution)):
        found = zip(_NAMES, (*s.inner(w, s.lam, v), *s.outer(w, s.lam)), strict=True)
        bad = [name for name, tree in found if not np.all(np.isfinite(flat(tree)))]
        if bad:
            yield Finding(
                "NONFINITE",
                "error",
                f"At {place} these are NaN or infinite on every row: {', '.join(bad)}.",
                "Look for a root or logarithm at zero, a division by zero, an overflow of exp (of lam, or of scores "
                "where features are far from the size of 1); where the value is finite and its derivative is not, both "
                "branches of jnp.where must be safe.",
            )
            return


_NAMES = (
    "the inner map",
    "the inner map's derivative in w",
    "the inner map's derivative in lam",
    "the outer loss",
    "the outer loss's gradient in w",
    "the outer loss's gradient in lam",
)
