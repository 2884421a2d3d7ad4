"""The eager door: checks, one cached compiled program, and what every caller of an estimator shares."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import count, real, strong
from bilevax.core.errors import ParameterError
from bilevax.core.keys import as_key
from bilevax.core.protocols import RowSource
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, as_parameters, is_concrete
from bilevax.hypergradients.adaptive import check_goes_on, continued_to_target
from bilevax.hypergradients.differentiated import differentiated
from bilevax.hypergradients.measured import counted, measured_problem, report_is_due
from bilevax.hypergradients.programs import estimating, finished, reported, with_report
from bilevax.problems.problem import Problem
from bilevax.problems.validate import check_functions
from bilevax.solvers.stability import suspicion_as_proof
from bilevax.theory import Constants


def hypergradient(
    problem: Problem,
    estimator: Any,
    w0: PyTree,
    lam: PyTree,
    train: RowSource,
    val: RowSource,
    *,
    key: Array,
    tol: float = 0.1,
    replicas: int = 1,
    constants: Constants | None = None,
    target: float | None = None,
    budget: int | None = None,
    v0: PyTree | None = None,
    report: bool = True,
) -> Estimate:
    """Approximate the gradient of lam -> E(w(lam), lam), and say how wrong it may be.

    Runs as one compiled program, and its report as another, that are cached across calls: new numbers (steps, step
    sizes, data of equal shape) compile nothing, but for the first report on long chains of minibatches. May be called
    inside the user's own jit, vmap or scan. Equal arguments and keys give equal bits on one machine with one number of
    threads; with another they may differ in the last places, since sums are split; so may the report inside a trace.

    ``jax.grad`` of ``outer_value`` in lam *is* ``value`` (NaN where the code is DIVERGED or worse), at no further cost,
    and that in w0 and v0 is zero. All else has the derivatives of the algorithm, in forward mode only; reverse mode is
    refused.

    What ``error`` says of one run: :class:`~bilevax.JointSID` prices all its noise by batch means. After long chains
    of minibatches every row says how far off the value of :class:`~bilevax.SID` is; of shorter ones where they were on
    their way tells it, with few degrees of freedom (:func:`~bilevax.hypergradients.sid_report.sid_report`). A
    deterministic estimate has what is left of its two equations
    (:func:`~bilevax.hypergradients.residual_error.a_posteriori`). Replicas price all noise of any estimator, with few
    degrees of freedom; they share the start and the curvature of the problem, so of the bias that comes of these they
    know what each of them says of its own.

    Args:
        problem: the inner map, the outer loss, the set Lambda.
        estimator: such as :class:`~bilevax.SID`.
        w0: start of the inner solver, any pytree of floating arrays, d entries.
        lam: where the hypergradient is wanted, any pytree of floating arrays, m entries.
        train: source of inner minibatches.
        val: source of outer minibatches.
        key: a JAX random key.
        tol: the code is OK only if ``error.upper``, the .95 upper limit of the relative error, is at most this; else
            BUDGET or worse. Default 0.1.
        replicas: independent runs, whose mean is returned; a count of at least 1, which compiles anew. Default 1.
        constants: of the problem; ``error.bound`` of a deterministic estimate follows from them.
        target: a relative error, in place of ``tol``: the run goes on, and is never begun again, to twice, four times,
            ... the steps of the estimator until its code is OK or twice as many do not fit into the budget (BUDGET;
            ``message`` names the largest part of the error and what helps). Not under jit, vmap or scan. Of
            :class:`~bilevax.JointSID` and :class:`~bilevax.SID`.
        budget: sample visits of a run with a target; its first steps, the estimator's own, are always made. None:
            10 doublings.
        v0: start of the linear solver, like w0, for estimators that have one; None: 0. Not with a target.
        report: False: ``error`` is None and the code is the estimator's own, which knows no ``tol``; in up to a sixth
            less time and half the compilation. Not with what needs a report: a target, constants, replicas.

    Returns:
        The estimate: ``value`` like lam, ``outer_value``, ``w``, ``v``, ``code``, ``cost``, ``error``.

    Raises:
        ParameterError: a wrong leaf of w0 or lam, a function that returns a wrong structure, shape or dtype, an
            estimator that needs what the problem lacks, a wrong ``tol`` or number of replicas; a budget without a
            target, or a target within a trace or of an estimator that cannot go on; no report where one is needed.
    """
    estimator.check(problem)
    w0, lam = as_parameters("w0", w0), as_parameters("lam", lam)
    if target is not None:
        tol = real("target", target, low=0.0, open_low=True)
        check_goes_on(estimator)
    elif budget is not None:
        raise ParameterError("budget= belongs to a run with target=; without one, the estimator's steps are its budget")
    tol, replicas = real("tol", tol, low=0.0, open_low=True), count("replicas", replicas, low=1)
    if not report and (target is not None or constants is not None or replicas > 1):
        raise ParameterError("target=, constants= and replicas= ask for an error report; leave out report=False")
    arguments: tuple[Any, ...] = *strong((problem, estimator, tol, constants)), w0, lam, train, val, as_key(key)
    if target is not None:
        return continued_to_target(*arguments, replicas=replicas, budget=budget)
    starts = w0, {} if v0 is None else {"v0": as_parameters("v0", v0)}
    options: dict[str, bool | int] = {"replicas": replicas, "report": bool(report)}

    def run(lam: PyTree, starts: PyTree, rest: tuple[Any, ...]) -> Estimate:
        (w0, start), (problem, estimator, tol, constants, train, val, key) = starts, rest
        given = problem, estimator, tol, constants, w0, lam, train, val, key
        if not all(map(is_concrete, jax.tree.leaves((lam, starts, rest)))):
            return _traced(*given, start, **options, apart=False, thorough=True)[0]
        estimate, ready = _estimated(*given, start, **options, apart=True)
        if estimate.unused is not None:
            return estimate
        points, sources, problems = (w0, lam), (train, val), (problem, ready)
        return reported(estimate, problems, estimator, points, sources, constants, tol, key, replicas=replicas)

    return differentiated(run, lam, starts, (*arguments[:4], *arguments[6:]))


def value_and_hypergradient(
    problem: Problem,
    estimator: Any,
    w0: PyTree,
    lam: PyTree,
    train: RowSource,
    val: RowSource,
    *,
    key: Array,
) -> tuple[Array, PyTree]:
    """(E(w, lam), hypergradient), for one's own loop; NaN where the estimate failed, so that no failure is silent.

    As ``jax.value_and_grad`` of lam -> E(w(lam), lam). The arguments are those of :func:`hypergradient`, which
    says also how wrong it may be, what it cost, where w is, and why it failed (a code of DIVERGED or worse).
    """
    est = hypergradient(problem, estimator, w0, lam, train, val, key=key, report=False)
    good = est.code < Code.DIVERGED
    value, gradient = jax.tree.map(lambda x: jnp.where(good, x, jnp.nan), (est.outer_value, est.value))
    return value, gradient


def _estimate(
    problem: Problem,
    estimator: Any,
    tol: Array,
    constants: Constants | None,
    w0: PyTree,
    lam: PyTree,
    train: RowSource,
    val: RowSource,
    key: Array,
    start: dict[str, PyTree],
    *,
    replicas: int,
    report: bool,
    apart: bool,
    thorough: bool,
) -> tuple[Estimate, Problem]:
    """The estimate, and the problem with its step measured; still without ``unused`` where its report is to come."""
    check_functions(problem, w0, lam, train, val)
    sources = (train, val)

    def one(key: Array) -> tuple[Estimate, Problem]:
        ready = measured_problem(problem, w0, lam, train, key)
        with suspicion_as_proof(not thorough):
            estimate = estimator.estimate(ready, w0, lam, sources, key=key, **start)
        estimate = counted(estimate, problem, train)
        if not report:
            return estimate._replace(error=None, seen=None), ready
        led = None if replicas == 1 else False
        estimate = with_report(
            estimate, ready, estimator, lam, sources, constants, key=key, apart=apart, thorough=thorough, led=led
        )
        return estimate, ready

    estimate, ready = one(key) if replicas == 1 else jax.vmap(one)(jax.random.split(key, replicas))
    if report and report_is_due(estimate, estimator, sources):
        return estimate, ready
    return finished(estimate, problem, (w0, lam), sources, tol, replicas=replicas), ready


_STATIC = "replicas", "report", "apart"
_estimated = estimating(_estimate, lambda out: out[0], *_STATIC)
_traced = jax.jit(_estimate, static_argnames=(*_STATIC, "thorough"))
