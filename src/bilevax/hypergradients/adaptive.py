"""A hypergradient to a given relative error: the same run goes on until its report says so."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import count
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import RowSource
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, is_concrete
from bilevax.hypergradients.measured import counted, measured_problem, report_is_due
from bilevax.hypergradients.programs import estimating, finished, reported, with_report
from bilevax.problems.problem import Problem
from bilevax.problems.validate import check_functions
from bilevax.solvers.stability import suspicion_as_proof
from bilevax.theory import Constants

DOUBLINGS = 10
"""The most of them, where no budget is given; in all not more than an int32 of steps allows."""

MORE = 2.2
"""The most that a doubling may multiply the visits by, a first pass over every row apart: two and the report."""

PROGRESS = 0.9
"""What a doubling leaves, at most, of the relative error of a deterministic run that is getting somewhere."""


def check_goes_on(estimator: Any) -> None:
    """Raise ParameterError unless the estimator can go on with a run."""
    if not hasattr(estimator, "resume"):
        raise ParameterError(
            f"{type(estimator).__name__} cannot go on with a run; use bx.JointSID or bx.SID for target="
        )


def continued_to_target(
    problem: Problem,
    estimator: Any,
    target: Array,
    constants: Constants | None,
    w0: PyTree,
    lam: PyTree,
    train: RowSource,
    val: RowSource,
    key: Array,
    *,
    replicas: int,
    budget: int | None,
) -> Estimate:
    """The estimate after as many doublings of the estimator's steps as its relative error needs.

    An estimator that can go on has ``begin(problem, w0, lam, sources, key=)`` -> run and
    ``resume(problem, lam, sources, run, key=, doublings=)`` -> (estimate, run).

    Raises:
        ParameterError: within a trace.
    """
    arguments = problem, estimator, target, constants, w0, lam, train, val, key
    if not all(map(is_concrete, jax.tree.leaves(arguments))):
        raise ParameterError(
            "target= decides while it runs how long to go on, which a traced program cannot; call bx.hypergradient"
            " outside of jit, vmap and scan, or give the estimator more steps instead"
        )
    budget = None if budget is None else count("budget", budget, low=1)
    still = estimator.deterministic((train, val))
    run, before = None, jnp.inf
    for doublings in range(DOUBLINGS + 1 if budget is None else 31):
        estimate, run = _run_leg(*arguments, run, jnp.int32(doublings), replicas=replicas)
        if estimate.unused is None:
            problems, sources = (problem, run[0]), (train, val)
            estimate = reported(
                estimate, problems, estimator, (w0, lam), sources, constants, target, key, replicas=replicas
            )
        relative = float(estimate.error.relative) if estimate.error is not None else math.inf
        if int(estimate.code) != Code.BUDGET:
            return estimate
        if still and not relative <= PROGRESS * before:
            return estimate._replace(code=jnp.int32(Code.STALLED))
        if budget is not None and MORE * estimate.cost.visits + replicas * train.rows > budget:
            return estimate
        before = relative
    return estimate


def _leg(
    problem: Problem,
    estimator: Any,
    target: Array,
    constants: Constants | None,
    w0: PyTree,
    lam: PyTree,
    train: RowSource,
    val: RowSource,
    key: Array,
    run: Any,
    doublings: Array,
    *,
    replicas: int,
    thorough: bool,
) -> tuple[Estimate, Any]:
    check_functions(problem, w0, lam, train, val)
    sources = train, val

    def one(key: Array, run: Any) -> tuple[Estimate, Any]:
        if run is None:
            ready = measured_problem(problem, w0, lam, train, key)
            run = ready, estimator.begin(ready, w0, lam, sources, key=key)
        ready, run = run
        with suspicion_as_proof(not thorough):
            estimate, run = estimator.resume(ready, lam, sources, run, key=key, doublings=doublings)
        estimate, led = counted(estimate, problem, train), None if replicas == 1 else False
        estimate = with_report(
            estimate, ready, estimator, lam, sources, constants, key=key, apart=True, thorough=thorough, led=led
        )
        return estimate, (ready, run)

    if replicas == 1:
        estimate, run = one(key, run)
    else:
        estimate, run = jax.vmap(one, (0, None if run is None else 0))(jax.random.split(key, replicas), run)
    if report_is_due(estimate, estimator, sources):
        return estimate, run
    return finished(estimate, problem, (w0, lam), sources, target, replicas=replicas), run


_run_leg = estimating(_leg, lambda out: out[0], "replicas")
