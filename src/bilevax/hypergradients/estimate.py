"""One driver for every estimate: checks, compiled programs, the report, a target, and the diagnosis of a failure."""

import math
from typing import NamedTuple, TypedDict, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import canonicalize, check_count, positive
from bilevax.core.dealt import Dealing
from bilevax.core.errors import ParameterError
from bilevax.core.instance import Instance
from bilevax.core.keys import as_key
from bilevax.core.limits import said
from bilevax.core.programs import BRIEFLY, PLAINLY, SUMMING, compiled, weighed
from bilevax.core.protocols import BilevelProblem, Estimator, ExtensibleEstimator, RowSource, Run, Suspecting
from bilevax.core.ranks import same_numbers
from bilevax.core.records import STAGES, Cost, Count, Estimate, Failure
from bilevax.core.trees import PyTree, as_parameters, entries, is_concrete, is_spread, where
from bilevax.hypergradients.batches import is_sparse
from bilevax.hypergradients.diagnosis import explain_failure, unused_leaves
from bilevax.hypergradients.differentiated import differentiated
from bilevax.hypergradients.report import (
    apply_tolerance,
    attach_report,
    average_replicas,
    report_is_due,
    unjudged,
    unknown_if_failed,
)
from bilevax.hypergradients.sid_report import leads_on
from bilevax.problems.problem import Problem
from bilevax.problems.strata import over_strata
from bilevax.problems.validate import check_functions
from bilevax.theory import Constants

DOUBLINGS = 10
"""The most of them to a target, where no budget is given; in all not more than an int32 of steps allows."""

MORE = 2.2
"""The most that a doubling may multiply the samples by, a first pass over every row apart: two and the report."""

PROGRESS = 0.9
"""What a doubling leaves, at most, of the relative error of a deterministic run that is getting somewhere."""

LONG = 3e9
"""Samples times unknowns of a run that is long."""

Method = TypeVar("Method")

Held = tuple[BilevelProblem, PyTree]
"""The problem with its inner step measured, and the state of the estimator: of each replica."""


class Options(TypedDict):
    """What selects a program."""

    replicas: int
    report: bool


@said("this hypergradient")
def hypergradient(
    problem: Problem,
    estimator: Estimator,
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

    How ``error`` is had from one run: that of :class:`~bilevax.JointSID` from its batch means; that of
    :class:`~bilevax.SID` from every row after long chains of minibatches, and from snapshots of shorter ones, with few
    degrees of freedom (:func:`~bilevax.hypergradients.sid_report.sid_report`); that of a deterministic estimate from
    the residuals of its two equations (:func:`~bilevax.hypergradients.residual_error.residual_error`); of others, their
    docstrings say. Replicas show
    all noise of any estimator, with few degrees of freedom; they share the start and the curvature of the problem, so
    that they do not show the bias of these: theirs is the mean of what each reports.

    Args:
        problem: the inner map, the outer loss, the set Lambda.
        estimator: such as :class:`~bilevax.SID`.
        w0: start of the inner solver, any pytree of floating arrays, d entries; where its leaves are dealt to devices,
            so are those of ``w`` and ``v`` (docs/distributed.md).
        lam: where the hypergradient is wanted, any pytree of floating arrays, m entries.
        train: source of inner minibatches.
        val: source of outer minibatches.
        key: a JAX random key.
        tol: the code is OK only if ``error.upper``, the .95 upper limit of the relative error, is at most this; else
            TOLERANCE_NOT_MET or worse, as of an estimator that says nothing of its error. Default 0.1.
        replicas: independent runs, whose mean is returned; a count of at least 1, which compiles anew. Default 1.
        constants: of the problem; ``error.bound`` of a deterministic estimate follows from them.
        target: a relative error, in place of ``tol``: the run goes on, and is never begun again, to twice, four times,
            ... the steps of the estimator until its code is OK or twice as many do not fit into the budget (then it is
            TOLERANCE_NOT_MET, and ``message`` names the largest part of the error and what helps). Not under jit, vmap
            or scan. Of :class:`~bilevax.JointSID` and :class:`~bilevax.SID`.
        budget: samples of a run with a target; its first steps, the estimator's own, are always made. None:
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

    Examples:
        >>> import bilevax as bx
        >>> import jax, jax.numpy as jnp
        >>> inner_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2) + jnp.exp(lam) * w**2
        >>> outer_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2)
        >>> train, val = bx.Arrays(jnp.array([1.0, 3.0])), bx.Arrays(jnp.array([1.0]))
        >>> problem = bx.Problem(bx.GradientStep(inner_loss, 0.25), outer_loss)
        >>> sid = bx.SID(bx.FixedPoint(100), bx.FixedPoint(100))
        >>> est = bx.hypergradient(problem, sid, 0.0, 0.0, train, val, key=jax.random.key(0))
        >>> bx.Code(int(est.code)).name, bool(est.error.upper < 1e-3)
        ('OK', True)
        >>> round(float(est.w), 4)  # mean / (1 + exp(lam))
        1.0
        >>> abs(float(est.value)) < 1e-3  # w is 1, what val has: lam is right
        True
    """
    estimator.check(problem)
    problem = over_strata(problem, train, val)
    w0, lam = as_parameters("w0", w0, spread=True), as_parameters("lam", lam)
    dealing = Dealing.of(w0)
    dealing.check((train, val))
    if target is not None:
        tol = positive("target", target)
        if not (isinstance(estimator, ExtensibleEstimator) and estimator.extensible):
            name = type(estimator).__name__
            raise ParameterError(f"{name} cannot go on with a run; use bx.JointSID or bx.SID for target=")
    elif budget is not None:
        raise ParameterError("budget= belongs to a run with target=; without one, the estimator's steps are its budget")
    tol, replicas = positive("tol", tol), check_count("replicas", replicas, low=1)
    if not report and (target is not None or constants is not None or replicas > 1):
        raise ParameterError("target=, constants= and replicas= ask for an error report; leave out report=False")
    # Python floats and numpy scalars would each be traced on their own.
    problem, estimator, tol, constants = canonicalize((problem, estimator, tol, constants))
    v0 = None if v0 is None else as_parameters("v0", v0, spread=bool(dealing.leaves))
    call = Call(Instance(problem, lam, train, val), estimator, w0, v0, as_key(key), tol, constants)
    if is_spread((train, val)) and _is_concrete(call):
        told = {"w0": w0, "v0": v0, "lam": lam, "key": call.key, "problem": problem, "estimator": estimator}
        same_numbers("what hypergradient is given", **told)
    if target is not None:
        return dealing.restored(_continued_to_target(call._replace(v0=None), replicas=replicas, budget=budget))
    options: Options = {"replicas": replicas, "report": bool(report)}

    def run(lam: PyTree, starts: PyTree, rest: Call) -> Estimate:
        call = rest._replace(instance=rest.instance._replace(lam=lam), w0=starts[0], v0=starts[1])
        # concrete where jax.grad is called outside of any trace
        if _is_concrete(call):
            return _eager(call, None, **options)[0]
        finished: Estimate = _traced(call, None, 0, **options, apart=False).finished
        return finished

    if _is_concrete(call):
        return dealing.restored(_eager(call, None, **options)[0])
    # lam and the starts apart from the rest: in the starts the derivative is zero
    rest = call._replace(instance=call.instance._replace(lam=None), w0=None, v0=None)
    return differentiated(run, lam, (w0, v0), rest)


def value_and_hypergradient(
    problem: Problem, estimator: Estimator, w0: PyTree, lam: PyTree, train: RowSource, val: RowSource, *, key: Array
) -> tuple[Array, PyTree]:
    """(E(w, lam), hypergradient), for one's own loop; NaN where the estimate failed, so that no failure is silent.

    As ``jax.value_and_grad`` of lam -> E(w(lam), lam). The arguments are those of :func:`hypergradient`, whose
    estimate has its error too, its cost, w, and why it failed (a code of DIVERGED or worse).

    Examples:
        >>> import bilevax as bx
        >>> import jax, jax.numpy as jnp
        >>> inner_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2) + jnp.exp(lam) * w**2
        >>> outer_loss = lambda w, lam, batch: jnp.mean((w - batch) ** 2)
        >>> train, val = bx.Arrays(jnp.array([1.0, 3.0])), bx.Arrays(jnp.array([1.0]))
        >>> problem = bx.Problem(bx.GradientStep(inner_loss, 0.25), outer_loss)
        >>> sid = bx.SID(bx.FixedPoint(100), bx.FixedPoint(100))
        >>> value, slope = bx.value_and_hypergradient(problem, sid, 0.0, 1.0, train, val, key=jax.random.key(0))
        >>> round(float(value), 3), round(float(slope), 3)
        (0.214, 0.363)
    """
    est = hypergradient(problem, estimator, w0, lam, train, val, key=key, report=False)
    # milder codes leave numbers that may be used
    good = est.code < Code.DIVERGED
    value, gradient = jax.tree.map(lambda x: jnp.where(good, x, jnp.nan), (est.outer_value, est.value))
    return value, gradient


def measured_estimate(
    instance: Instance,
    estimator: Estimator,
    w0: PyTree,
    *,
    key: Array,
    outer_step: Array | int = 0,
    v0: PyTree | None = None,
    explain: bool = True,
) -> Estimate:
    """An estimate for an outer step: the inner step is measured first, where it is None, and counted.

    ``explain``: whether the cause of a failure is sought.
    """
    ready = instance.with_measured_step(w0, key)
    estimate = estimator.estimate(ready, w0, key=key, outer_step=outer_step, v0=v0)
    estimate = explain_failure(estimate, ready, w0) if explain else estimate
    return with_measuring_cost(estimate, instance)


def with_measuring_cost(estimate: Estimate, instance: Instance) -> Estimate:
    """The estimate with the cost of measuring the step of this instance, if that is None."""
    products = instance.problem.measuring_products(instance.train)
    if not products:
        return estimate
    measuring = Count(jnp.int32(products), instance.train.rows_per_batch)
    return estimate._replace(cost=estimate.cost.plus(Cost(measuring=measuring)))


class Call(NamedTuple):
    """The arguments of a hypergradient.

    Attributes:
        instance: the problem as given, lam and the rows.
        estimator: of the hypergradient.
        w0: start of the inner solver.
        v0: start of the linear solver; None: 0.
        key: a JAX random key.
        tol: relative error of an OK.
        constants: of the problem; None: no bound.
    """

    instance: Instance
    estimator: Estimator
    w0: PyTree
    v0: PyTree | None
    key: Array
    tol: Array | float
    constants: Constants | None

    def keys(self, replicas: int) -> Array:
        """The key of each replica; of one, the key itself."""
        return self.key if replicas == 1 else jax.random.split(self.key, replicas)


class Stateless(NamedTuple):
    """The state of an estimator without one: it leaves no evidence for a report."""

    trace: None = None


class Outcome(NamedTuple):
    """The result of a program.

    Attributes:
        estimate: of each replica, [replicas, ...] if there are several.
        problem: of each, with its inner step measured.
        run: of each, its states before and after.
        finished: the one estimate of all, judged; None where the report is a program of its own.
    """

    estimate: Estimate
    problem: BilevelProblem
    run: Run
    finished: Estimate | None

    @property
    def held(self) -> Held:
        """From which a longer run is continued."""
        return self.problem, self.run.after


def _estimate(
    call: Call, held: Held | None, doublings: Array | int, *, replicas: int, report: bool, apart: bool
) -> Outcome:
    """An estimate from its start, or, with what is ``held``, from the state it had.

    Args:
        call: its arguments.
        held: of each replica; None at first.
        doublings: of a run that may be continued; the Python integer 0: of one that will not be.
        replicas: how many.
        report: whether there is to be one.
        apart: whether the report, and the diagnosis of a failure, are programs of their own.
    """
    instance, estimator, constants = call.instance, call.estimator, call.constants
    # While tracing, so that a wrong shape is named before XLA is asked for a program.
    check_functions(instance.problem, call.w0, *instance[1:])

    def one(key: Array, held: Held | None) -> tuple[Estimate, BilevelProblem, Run]:
        ready = instance.with_measured_step(call.w0, key) if held is None else instance._replace(problem=held[0])
        if isinstance(estimator, ExtensibleEstimator):
            before = estimator.init(ready, call.w0, key=key, v0=call.v0) if held is None else held[1]
            estimate, after = estimator.extend(ready, before, key=key, doublings=doublings)
        else:
            before, after = call.w0, Stateless()
            estimate = estimator.estimate(ready, call.w0, key=key, v0=call.v0)
        estimate = with_measuring_cost(estimate, instance)
        estimate = estimate if apart else explain_failure(estimate, ready, call.w0)
        due = report_is_due(estimate, after.trace, estimator, ready)
        if not report:
            estimate = estimate._replace(error=None)
        elif not (apart and due):
            led = None if replicas == 1 else False
            estimate = attach_report(estimate, after.trace, ready, estimator, constants, key=key, led=led)
            estimate = unknown_if_failed(estimate, constants) if due else estimate
            # replicas show noise at least
            estimate = unjudged(estimate) if estimate.error is None and replicas == 1 else estimate
        return estimate, ready.problem, Run(before, after, doublings)

    if replicas == 1:
        estimate, problem, run = one(call.key, held)
    else:
        axes = 0, None if held is None else 0
        estimate, problem, run = jax.vmap(one, axes)(call.keys(replicas), held)
    # what is due depends on structure alone, not on the numbers of a replica
    to_come = report and apart and report_is_due(estimate, run.after.trace, estimator, instance)
    return Outcome(estimate, problem, run, None if to_come else _finished(call, estimate, replicas))


def _finished(call: Call, estimate: Estimate, replicas: int) -> Estimate:
    """One estimate of the replicas, judged."""
    estimate = average_replicas(estimate) if replicas > 1 else estimate
    return apply_tolerance(estimate._replace(unused=unused_leaves(call.instance, call.w0)), call.tol)


def _report(call: Call, estimate: Estimate, held: Held, *, replicas: int, led: bool) -> Estimate:
    """The report on estimates that are sound, and the one of all."""

    def one(estimate: Estimate, held: Held, key: Array) -> Estimate:
        problem, state = held
        ready = call.instance._replace(problem=problem)
        return attach_report(estimate, state.trace, ready, call.estimator, call.constants, key=key, led=led)

    each = one if replicas == 1 else jax.vmap(one)
    return _finished(call, each(estimate, held, call.keys(replicas)), replicas)


def _diagnosis(
    call: Call, outcome: Outcome, *, replicas: int, report: bool, stages: tuple[str, ...]
) -> tuple[Estimate, Estimate]:
    """Estimates that failed in these stages, each of which is repeated alone and tested; and the one of all."""
    due = report and outcome.finished is None

    def one(estimate: Estimate, problem: BilevelProblem, run: Run, key: Array) -> Estimate:
        ready, estimator = call.instance._replace(problem=problem), call.estimator
        for stage in stages:
            if not isinstance(estimator, ExtensibleEstimator):
                continue
            found = estimator.diagnose(ready, run, estimate, key=key, stage=stage)
            if found is None:
                continue
            hit = (estimate.code >= Code.NOT_CONTRACTIVE) & (estimate.failure.stage == Failure.stage_of(stage))
            before = estimate.code, estimate.failure, estimate.w, estimate.v
            code, failure, w, v = where(hit, (found.code, found.failure, found.w, found.v), before)
            checks = Count(jnp.where(hit, found.checks.calls, 0), found.checks.rows)
            # of all replicas one program tests the stage; only those that failed in it pay
            cost = estimate.cost.plus(Cost(measuring=checks))
            estimate = estimate._replace(code=code, failure=failure, w=w, v=v, cost=cost)
        estimate = explain_failure(estimate, ready, call.w0)
        return unknown_if_failed(estimate, call.constants) if due else estimate

    each = one if replicas == 1 else jax.vmap(one)
    estimate = each(outcome.estimate, outcome.problem, outcome.run, call.keys(replicas))
    return estimate, _finished(call, estimate, replicas)


_STATIC = "replicas", "report", "apart"
# Without options: inside a program of the user's the same estimate has none.
_traced = weighed(jax.jit(_estimate, static_argnames=_STATIC), "this hypergradient")
_briefly = compiled(_estimate, BRIEFLY, _STATIC)
_reported = {
    sparse: compiled(_report, options, ("replicas", "led"), "the error report of this hypergradient")
    for sparse, options in ((False, PLAINLY), (True, SUMMING))
}
_diagnosed = {
    long: compiled(_diagnosis, PLAINLY if long else BRIEFLY, ("replicas", "report", "stages")) for long in (False, True)
}


def _eager(
    call: Call, held: Held | None, doublings: Array | int = 0, *, replicas: int, report: bool
) -> tuple[Estimate, Held]:
    """An estimate outside of any trace, and from where a longer one is continued.

    The first program takes a suspicion of divergence for proof, as the test of one takes as long to compile as all the
    rest. What failed in it is then tested by a program of its own, the failed stage alone; only where that refutes the
    suspicion the whole is repeated, by a program that tests each.
    """
    options: Options = {"replicas": replicas, "report": report}
    quick = call._replace(estimator=suspecting(call.estimator))
    outcome: Outcome = _traced(quick, held, doublings, **options, apart=True)
    hit = _failed(outcome.estimate)
    if hit.any():
        # of a long run, optimised code pays for its compilation
        long = sum(float(np.sum(part.calls)) * part.rows for part in outcome.estimate.cost) * entries(call.w0) > LONG
        failed_in = {STAGES[i] for i in np.asarray(outcome.estimate.failure.stage)[hit]}
        stages = tuple(sorted(failed_in)) if quick.estimator != call.estimator else ()
        estimate, finished = _diagnosed[long](call, outcome, **options, stages=stages)
        if (_failed(estimate) == hit).all():
            return finished, outcome.held
        outcome = (_traced if long else _briefly)(call, held, doublings, **options, apart=True)
        if _failed(outcome.estimate).any():
            return _diagnosed[long](call, outcome, **options, stages=())[1], outcome.held
    if outcome.finished is not None:
        return outcome.finished, outcome.held
    # Known before it is compiled, the choice of the report spares the program of the other one.
    led = replicas == 1 and bool(leads_on(outcome.estimate, outcome.run.after.trace, call.instance))
    reported = _reported[is_sparse(call.instance.train.example())]
    return reported(call, outcome.estimate, outcome.held, replicas=replicas, led=led), outcome.held


def _is_concrete(call: Call) -> bool:
    return all(map(is_concrete, jax.tree.leaves(call)))


def _failed(estimate: Estimate) -> np.ndarray:
    return np.asarray(estimate.code) >= Code.NOT_CONTRACTIVE


def suspecting(method: Method) -> Method:
    """The estimator or algorithm that takes a suspicion for proof, of one that has any."""
    return method.suspecting() if isinstance(method, Suspecting) else method


def _continued_to_target(call: Call, *, replicas: int, budget: int | None) -> Estimate:
    """The estimate after as many doublings of the estimator's steps as its relative error needs.

    Raises:
        ParameterError: within a trace.
    """
    if not _is_concrete(call):
        raise ParameterError(
            "target= decides while it runs how long to go on, which a traced program cannot; call bx.hypergradient"
            " outside of jit, vmap and scan, or give the estimator more steps instead"
        )
    budget = None if budget is None else check_count("budget", budget, low=1)
    deterministic = isinstance(call.estimator, ExtensibleEstimator) and call.estimator.deterministic(call.instance)
    held, before = None, math.inf
    for doublings in range(DOUBLINGS + 1 if budget is None else 31):
        estimate, held = _eager(call, held, jnp.int32(doublings), replicas=replicas, report=True)
        relative = float(estimate.error.relative) if estimate.error is not None else math.inf
        if int(estimate.code) not in (Code.TOLERANCE_NOT_MET, Code.MAX_STEPS):
            return estimate
        # Noise may stand still for a doubling, a deterministic run does not.
        if deterministic and not relative <= PROGRESS * before:
            return estimate._replace(code=jnp.int32(Code.STALLED))
        # 2.2 times the samples so far, and a first pass over every row
        if budget is not None and MORE * estimate.cost.samples + replicas * call.instance.train.rows > budget:
            return estimate
        before = relative
    return estimate
