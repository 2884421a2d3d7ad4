"""The doctor: an audit of a bilevel problem before any time is spent on it."""

import traceback
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax import Array

from bilevax.audit.checks.contraction import check_contraction, check_curvature
from bilevax.audit.checks.effect import check_derivatives, check_effect
from bilevax.audit.checks.estimators import check_estimator
from bilevax.audit.checks.labels import check_labels
from bilevax.audit.checks.leaves import check_finite, check_leaves, check_structure
from bilevax.audit.checks.program import check_program
from bilevax.audit.checks.reach import check_outer, check_reach
from bilevax.audit.checks.rows import check_rows
from bilevax.audit.checks.sources import check_sources
from bilevax.audit.findings import SEVERITIES, Figure, Finding, Findings
from bilevax.audit.subject import AuditedProblem
from bilevax.core.config import canonicalize
from bilevax.core.errors import ParameterError
from bilevax.core.estimator import Estimator
from bilevax.core.given import require_estimator, require_problem
from bilevax.core.keys import as_key
from bilevax.core.limits import exhausted, said
from bilevax.core.protocols import RowSource
from bilevax.core.trees import PyTree, as_parameters
from bilevax.data import Stream
from bilevax.problems.problem import Problem
from bilevax.problems.validate import check_are_sources

SOME = 20_000
"""Rows of a stream that are looked at, at most."""

STOPS = {"INTEGER_LEAF", "BAD_LEAF", "STRUCTURE", "RAISES", "IMPURE", "NONFINITE", "NO_CURVATURE"}
"""Findings after which the checks that follow would speak of nothing."""


@said("this audit")
def check(
    problem: Problem,
    w0: PyTree,
    lam: PyTree,
    train: RowSource,
    val: RowSource,
    *,
    key: Array,
    estimator: Estimator | None = None,
) -> Findings:
    """Audit a problem: its leaves, its functions, its sources, its inner map, and an estimator of its hypergradient.

    Each finding has a ``code``, a ``severity``, what was ``measured``, and ``advice``; docs/check.md lists the codes.
    An exception in one of the problem's functions is a finding too. What is looked at:

    - leaves and results: real, finite, of one structure;
    - the traced programs: pure, without large or narrowed constants, without random numbers that no batch holds; the
      batch, w and lam enter them;
    - rows: each function is a mean over the rows of its batch. The mean over two halves must be that of the whole, to
      rounding; only where it is not, statistics decide (one false alarm in 10^9);
    - labels: 0/1, -1/+1 or one-hot, as the losses expect them;
    - sources: train and val share no rows; minibatches of a user's source differ, and their mean is that of every row;
    - the inner map contracts at the inner solution, on every row; every entry of lam moves that solution;
    - derivatives agree with central differences;
    - the mean of 64 estimates (512 where these cannot tell) is the hypergradient, where an estimator is given.

    The audit sees what the functions do at two points, not everywhere, and in the precision JAX is set to. A function
    that is compiled already (``jax.jit``) hides a change of its Python state.

    Cost: about 300 gradients and 150 to 550 products with both transposed Jacobians on every row, and some fifty small
    batches; with an estimator 64 to 512 estimates more, and two on every row. Three programs are compiled on every row
    and four on a few: about one CPU second for a small problem.

    Args:
        problem: the inner map, the outer loss, the set Lambda.
        w0: start of the inner solver, d entries.
        lam: where the hypergradient is wanted, m entries.
        train: source of inner minibatches; of a :class:`~bilevax.Stream` 20,000 rows at random are looked at.
        val: source of outer minibatches; likewise.
        key: a JAX random key, of all that the audit draws.
        estimator: such as :class:`~bilevax.SID`; None: none is audited.

    Returns:
        The findings, the worst first, which print as a table; none where nothing is wrong.

    Raises:
        ParameterError: the key is no JAX random key; a source is not in memory, so that its rows cannot be looked at.

    Examples:
        >>> import bilevax as bx, jax, numpy as np
        >>> rows = bx.Arrays((np.ones((6, 2), "f"), np.ones(6, "f")))
        >>> problem = bx.Problem(bx.GradientStep(bx.Squared("feature")), bx.Squared())
        >>> found = bx.check(problem, np.zeros((1, 2), "f"), np.array([1, 2]), rows, rows, key=jax.random.key(0))
        >>> found.worst, found.codes
        ('error', ('INTEGER_LEAF',))
    """
    key = as_key(key)
    require_problem(problem)
    if estimator is not None:
        require_estimator(estimator)
    check_are_sources(train, val)
    train, val = (_in_memory(source, jax.random.fold_in(key, i)) for i, source in enumerate((train, val)))
    for name, source in (("train", train), ("val", val)):
        if source.all_rows is None:
            raise ParameterError(f"check looks at rows one by one, and {name} is not in memory; pass some as bx.Arrays")
    seen: list[Finding | Figure] = []
    try:
        for found in _audit(problem, w0, lam, (train, val), key, estimator):
            seen.append(found)
            if isinstance(found, Finding) and found.code in STOPS:
                break
    # a function that ends the program is as wrong as one that raises
    except (Exception, SystemExit) as e:
        if exhausted(e):
            raise
        seen.append(_raised(e, (train, val)))
    # a stable sort: of one severity in the order of the checks
    items = sorted((x for x in seen if isinstance(x, Finding)), key=lambda f: -SEVERITIES.index(f.severity))
    return Findings(tuple(items), tuple(x for x in seen if isinstance(x, Figure)))


def _in_memory(source: RowSource, key: Array) -> RowSource:
    """Some rows of a stream; every other source as it is."""
    return source.some(SOME, key) if isinstance(source, Stream) else source


def _audit(
    problem: Problem,
    w0: PyTree,
    lam: PyTree,
    sources: tuple[RowSource, RowSource],
    key: Array,
    estimator: Estimator | None,
) -> Iterator[Finding | Figure]:
    """The groups of checks, each of which may count on what came before it."""
    yield from check_leaves(w0, lam)
    s = AuditedProblem(
        canonicalize(problem), _host(as_parameters("w0", w0)), _host(as_parameters("lam", lam)), *sources, key
    )
    yield from check_structure(s)
    # each check below may count on those before it: on leaves that are arrays, on functions that return what they must
    s = s._replace(estimator=estimator).with_measured_step()
    yield from check_program(s)
    yield from check_curvature(s)
    s = s.solved()
    yield from check_finite(s)
    yield from check_sources(s)
    for group in (
        check_reach,
        check_outer,
        check_rows,
        check_labels,
        check_contraction,
        check_effect,
        check_derivatives,
    ):
        yield from group(s)
    if estimator is not None:
        yield from check_estimator(s, estimator)


def _host(tree: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, tree)


def _raised(e: BaseException, sources: tuple[RowSource, RowSource]) -> Finding:
    """An exception of the user's, with its line; shapes that do not fit, with those of the batches."""
    advice = "Every function must run on arrays that JAX traces."
    if isinstance(e, TypeError | ValueError) and any(word in str(e) for word in ("shape", "broadcast", "rank")):
        kinds = ([f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(source.example())] for source in sources)
        train, val = map(", ".join, kinds)
        advice = (
            f"A batch of train is {train}, of val {val}, with b rows of it. Labels that are whole numbers, one a row, "
            "do not go with scores of several classes: pass jax.nn.one_hot(y, classes)."
        )
    return Finding("RAISES", "error", f"{type(e).__name__}: {e}{_place(e)}", advice)


def _place(e: BaseException) -> str:
    """The user's line that an exception comes from, if there is one."""
    # the innermost frame that is in no library
    frames = traceback.extract_tb(e.__traceback__)
    own = [f for f in frames if not any(part in Path(f.filename).parts for part in ("site-packages", "bilevax"))]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
