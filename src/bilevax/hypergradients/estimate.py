"""The hypergradient: what is given is checked, and handed to the driver."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import canonicalize, check_count, positive
from bilevax.core.dealt import Dealing
from bilevax.core.error_report import FEWEST
from bilevax.core.errors import ParameterError
from bilevax.core.estimator import Estimator, ExtensibleEstimator
from bilevax.core.given import require_estimator, require_like, require_problem
from bilevax.core.instance import Instance
from bilevax.core.keys import as_key
from bilevax.core.limits import said
from bilevax.core.protocols import RowSource
from bilevax.core.ranks import same_numbers
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree, as_parameters, is_spread
from bilevax.hypergradients.differentiated import differentiated
from bilevax.hypergradients.driver import Call, Options, continued_to_target, eager, traced
from bilevax.hypergradients.score import ScoreFunction
from bilevax.problems.problem import Problem
from bilevax.problems.strata import over_strata
from bilevax.theory import Constants


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
        replicas: independent runs, whose mean is returned; a count of at least 1, which compiles anew. Default 1. N of
            them have N - 1 degrees of freedom, and fewer than 4 are too few for OK: where there is noise, 2, 3 and 4
            replicas show it alone, and a verdict, as of a target, needs 5. They run at once; on sparse rows one after
            another.
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
            target, or a target within a trace, of an estimator that cannot go on or of 2 to 4 replicas; no report where
            one is needed.

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
    require_problem(problem)
    require_estimator(estimator)
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
    if target is not None and 1 < replicas <= FEWEST:
        raise ParameterError(
            f"{replicas} replicas have {replicas - 1} degrees of freedom, too few to say that a target is met; use "
            f"replicas={FEWEST + 1} or more, or one"
        )
    if not report and (target is not None or constants is not None or replicas > 1):
        raise ParameterError("target=, constants= and replicas= ask for an error report; leave out report=False")
    # Python floats and numpy scalars would each be traced on their own.
    problem, estimator, tol, constants = canonicalize((problem, estimator, tol, constants))
    v0 = None if v0 is None else as_parameters("v0", v0, spread=bool(dealing.leaves))
    if v0 is not None:
        require_like("v0", v0, "w0", w0)
    call = Call(Instance(problem, lam, train, val), estimator, w0, v0, as_key(key), tol, constants)
    if isinstance(estimator, ScoreFunction) and call.concrete:
        estimator.check_lam(lam)
    if is_spread((train, val)) and call.concrete:
        told = {"w0": w0, "v0": v0, "lam": lam, "key": call.key, "problem": problem, "estimator": estimator}
        same_numbers("what hypergradient is given", **told)
    if target is not None:
        return dealing.restored(continued_to_target(call._replace(v0=None), replicas=replicas, budget=budget))
    options: Options = {"replicas": replicas, "report": bool(report)}

    def run(lam: PyTree, starts: PyTree, rest: Call) -> Estimate:
        call = rest._replace(instance=rest.instance._replace(lam=lam), w0=starts[0], v0=starts[1])
        # concrete where jax.grad is called outside of any trace
        if call.concrete:
            return eager(call, None, **options)[0]
        finished: Estimate = traced(call, None, 0, **options, apart=False).finished
        return finished

    if call.concrete:
        return dealing.restored(eager(call, None, **options)[0])
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
