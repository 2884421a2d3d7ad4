"""One driver for every estimate: its compiled programs, the report, a target, and the diagnosis of a failure."""

import math
from collections.abc import Callable
from typing import NamedTuple, TypedDict, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import check_count
from bilevax.core.errors import ParameterError
from bilevax.core.estimator import Estimator, ExtensibleEstimator, Run, Suspecting
from bilevax.core.instance import Instance
from bilevax.core.programs import BRIEFLY, PLAINLY, SUMMING, compiled, weighed
from bilevax.core.protocols import BilevelProblem
from bilevax.core.records import STAGES, Cost, Count, Estimate, Failure
from bilevax.core.trees import PyTree, entries, is_concrete, where
from bilevax.hypergradients.batches import each, is_sparse
from bilevax.hypergradients.diagnosis import explain_failure, unused_leaves
from bilevax.hypergradients.report import (
    apply_tolerance,
    attach_report,
    average_replicas,
    report_is_due,
    unjudged,
    unknown_if_failed,
)
from bilevax.hypergradients.sid_report import leads_on
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
T = TypeVar("T")

Held = tuple[BilevelProblem, PyTree]
"""The problem with its inner step measured, and the state of the estimator: of each replica."""


class Options(TypedDict):
    """What selects a program."""

    replicas: int
    report: bool


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

    @property
    def concrete(self) -> bool:
        """True outside of any trace."""
        return all(map(is_concrete, jax.tree.leaves(self)))

    def keys(self, replicas: int) -> Array:
        """The key of each replica; of one, the key itself."""
        return self.key if replicas == 1 else jax.random.split(self.key, replicas)

    def each(self, one: Callable[..., T], replicas: int) -> Callable[..., T]:
        """A function of one replica, for all: at once, or one after another (:func:`~.batches.each`)."""
        if replicas == 1:
            return one
        over = each((self.instance.train.example(), self.instance.val.example()))
        return lambda *args: over(lambda xs: one(*xs), args)


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
            # replicas show noise at least, where there is any
            unknown = estimate.error is None and (replicas == 1 or _deterministic(call))
            estimate = unjudged(estimate) if unknown else estimate
        return estimate, ready.problem, Run(before, after, doublings)

    estimate, problem, run = call.each(one, replicas)(call.keys(replicas), held)
    # what is due depends on structure alone, not on the numbers of a replica
    to_come = report and apart and report_is_due(estimate, run.after.trace, estimator, instance)
    return Outcome(estimate, problem, run, None if to_come else _finished(call, estimate, replicas))


def _finished(call: Call, estimate: Estimate, replicas: int) -> Estimate:
    """One estimate of the replicas, judged."""
    estimate = average_replicas(estimate, sampled=not _deterministic(call)) if replicas > 1 else estimate
    return apply_tolerance(estimate._replace(unused=unused_leaves(call.instance, call.w0)), call.tol)


def _report(call: Call, estimate: Estimate, held: Held, *, replicas: int, led: bool) -> Estimate:
    """The report on estimates that are sound, and the one of all."""

    def one(estimate: Estimate, held: Held, key: Array) -> Estimate:
        problem, state = held
        ready = call.instance._replace(problem=problem)
        return attach_report(estimate, state.trace, ready, call.estimator, call.constants, key=key, led=led)

    estimate = call.each(one, replicas)(estimate, held, call.keys(replicas))
    return _finished(call, estimate, replicas)


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

    estimate = call.each(one, replicas)(outcome.estimate, outcome.problem, outcome.run, call.keys(replicas))
    return estimate, _finished(call, estimate, replicas)


_STATIC = "replicas", "report", "apart"
# Without options: inside a program of the user's the same estimate has none.
traced = weighed(jax.jit(_estimate, static_argnames=_STATIC), "this hypergradient")
_briefly = compiled(_estimate, BRIEFLY, _STATIC)
_reported = {
    sparse: compiled(_report, options, ("replicas", "led"), "the error report of this hypergradient")
    for sparse, options in ((False, PLAINLY), (True, SUMMING))
}
_diagnosed = {
    long: compiled(_diagnosis, PLAINLY if long else BRIEFLY, ("replicas", "report", "stages")) for long in (False, True)
}


def eager(
    call: Call, held: Held | None, doublings: Array | int = 0, *, replicas: int, report: bool
) -> tuple[Estimate, Held]:
    """An estimate outside of any trace, and from where a longer one is continued.

    The first program takes a suspicion of divergence for proof, as the test of one takes as long to compile as all the
    rest. What failed in it is then tested by a program of its own, the failed stage alone; only where that refutes the
    suspicion the whole is repeated, by a program that tests each.
    """
    options: Options = {"replicas": replicas, "report": report}
    quick = call._replace(estimator=suspecting(call.estimator))
    outcome: Outcome = traced(quick, held, doublings, **options, apart=True)
    hit = _failed(outcome.estimate)
    if hit.any():
        # of a long run, optimised code pays for its compilation
        long = sum(float(np.sum(part.calls)) * part.rows for part in outcome.estimate.cost) * entries(call.w0) > LONG
        failed_in = {STAGES[i] for i in np.asarray(outcome.estimate.failure.stage)[hit]}
        stages = tuple(sorted(failed_in)) if quick.estimator != call.estimator else ()
        estimate, finished = _diagnosed[long](call, outcome, **options, stages=stages)
        if (_failed(estimate) == hit).all():
            return finished, outcome.held
        outcome = (traced if long else _briefly)(call, held, doublings, **options, apart=True)
        if _failed(outcome.estimate).any():
            return _diagnosed[long](call, outcome, **options, stages=())[1], outcome.held
    if outcome.finished is not None:
        return outcome.finished, outcome.held
    # Known before it is compiled, the choice of the report spares the program of the other one.
    led = replicas == 1 and bool(leads_on(outcome.estimate, outcome.run.after.trace, call.instance))
    reported = _reported[is_sparse(call.instance.train.example())]
    return reported(call, outcome.estimate, outcome.held, replicas=replicas, led=led), outcome.held


def _deterministic(call: Call) -> bool:
    return isinstance(call.estimator, ExtensibleEstimator) and call.estimator.deterministic(call.instance)


def _failed(estimate: Estimate) -> np.ndarray:
    return np.asarray(estimate.code) >= Code.NOT_CONTRACTIVE


def suspecting(method: Method) -> Method:
    """The estimator or algorithm that takes a suspicion for proof, of one that has any."""
    return method.suspecting() if isinstance(method, Suspecting) else method


def continued_to_target(call: Call, *, replicas: int, budget: int | None) -> Estimate:
    """The estimate after as many doublings of the estimator's steps as its relative error needs.

    Raises:
        ParameterError: within a trace.
    """
    if not call.concrete:
        raise ParameterError(
            "target= decides while it runs how long to go on, which a traced program cannot; call bx.hypergradient"
            " outside of jit, vmap and scan, or give the estimator more steps instead"
        )
    budget = None if budget is None else check_count("budget", budget, low=1)
    deterministic = _deterministic(call)
    held, before = None, math.inf
    for doublings in range(DOUBLINGS + 1 if budget is None else 31):
        estimate, held = eager(call, held, jnp.int32(doublings), replicas=replicas, report=True)
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
