"""An eager hypergradient in programs: the estimate, its report, and, where it failed, the estimate looked into."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.protocols import RowSource
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, entries
from bilevax.hypergradients.diagnosis import unused_leaves
from bilevax.hypergradients.measured import judged, report_is_due, unknown_if_failed, with_error
from bilevax.hypergradients.replicas import pooled
from bilevax.hypergradients.sid_report import leads_on
from bilevax.problems.problem import Problem
from bilevax.theory import Constants

T = TypeVar("T")
Sources = tuple[RowSource, RowSource]

PLAINLY: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False}
"""Options of a report: it compiles in two thirds of the time and half of the memory, and runs as fast. An estimate has
none, as it has none inside a program of the user's, and is to the bit what it is there."""

BRIEFLY: dict[str, Any] = {**PLAINLY, "xla_backend_optimization_level": 0}
"""Options of a program that runs once and not for long: it compiles in a third of the time, and runs for longer."""

LONG = 3e9
"""Sample visits times unknowns of a run that is long."""


def compiled(fn: Callable[..., T], options: dict[str, Any], static: tuple[str, ...] = ()) -> Callable[..., T]:
    """Fn as a program of its own, with such options where it is for a CPU; not for use inside of another."""

    @functools.cache
    def program() -> Callable[..., T]:
        on_cpu = jax.default_backend() == "cpu"
        return jax.jit(fn, static_argnames=static, compiler_options=options if on_cpu else None)

    return lambda *args, **named: program()(*args, **named)


def estimating(fn: Callable[..., T], estimate: Callable[[T], Estimate], *static: str) -> Callable[..., T]:
    """fn, compiled, with ``thorough=False``; where the code of that is NOT_CONTRACTIVE or worse with ``thorough=True``.

    Args:
        fn: with a keyword ``thorough``.
        estimate: takes it out of what fn returns.
        static: names of arguments that are not traced.
    """
    names = (*static, "thorough")
    program, briefly = jax.jit(fn, static_argnames=names), compiled(fn, BRIEFLY, names)

    def run(*args: Any, **named: Any) -> T:
        out = program(*args, **named, thorough=False)
        found = estimate(out)
        if np.all(np.asarray(found.code) < Code.NOT_CONTRACTIVE):
            return out
        visits = sum(float(np.sum(np.asarray(part.calls))) * part.rows for part in found.cost)
        again = program if visits * entries(found.w) > LONG else briefly
        return again(*args, **named, thorough=True)

    return run


def with_report(
    estimate: Estimate,
    problem: Problem,
    estimator: Any,
    lam: PyTree,
    sources: Sources,
    constants: Constants | None,
    *,
    key: Array,
    apart: bool,
    thorough: bool,
    led: bool | None,
) -> Estimate:
    """The estimate with its error report.

    Args:
        estimate: traced.
        problem: with its inner step measured.
        estimator: that made it.
        lam: where the hypergradient is wanted.
        sources: (train, val).
        constants: of the problem.
        key: of the estimate.
        apart: the report is a program of its own, :func:`reported`, but where the estimate failed.
        thorough: this program looks into failures.
        led: for :func:`~bilevax.hypergradients.measured.with_error`.
    """
    due = report_is_due(estimate, estimator, sources)
    if apart and due and not thorough:
        return estimate
    if not (apart and due):
        estimate = with_error(estimate, problem, estimator, lam, sources, constants, key=key, led=led)
    return unknown_if_failed(estimate, constants) if due else estimate


def finished(
    estimate: Estimate, problem: Problem, points: tuple[PyTree, PyTree], sources: Sources, tol: Array, *, replicas: int
) -> Estimate:
    """One estimate of the replicas, judged; ``points`` are (w0, lam)."""
    estimate = pooled(estimate) if replicas > 1 else estimate
    unused = unused_leaves(problem, *points, (sources[0].full, sources[1].full))
    return judged(estimate._replace(unused=unused), tol)


def _reported(
    estimate: Estimate,
    problems: tuple[Problem, Problem],
    estimator: Any,
    points: tuple[PyTree, PyTree],
    sources: Sources,
    constants: Constants | None,
    tol: Array,
    key: Array,
    *,
    replicas: int,
    led: bool,
) -> Estimate:
    """The report on estimates that are sound, of one key or of replicas, and what they come to.

    ``problems`` are the problem as given and with its inner step measured.
    """
    (problem, ready), (_, lam) = problems, points

    def one(estimate: Estimate, ready: Problem, key: Array) -> Estimate:
        return with_error(estimate, ready, estimator, lam, sources, constants, key=key, led=led)

    if replicas == 1:
        estimate = one(estimate, ready, key)
    else:
        estimate = jax.vmap(one)(estimate, ready, jax.random.split(key, replicas))
    return finished(estimate, problem, points, sources, tol, replicas=replicas)


_program = compiled(_reported, PLAINLY, ("replicas", "led"))


def reported(
    estimate: Estimate,
    problems: tuple[Problem, Problem],
    estimator: Any,
    points: Any,
    sources: Sources,
    *rest: Any,
    replicas: int,
) -> Estimate:
    """:func:`_reported`, compiled for the one of SID's two reports that is due."""
    led = replicas == 1 and bool(leads_on(estimate, sources))
    return _program(estimate, problems, estimator, points, sources, *rest, replicas=replicas, led=led)
