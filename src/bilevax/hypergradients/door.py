"""The eager door: checks, one cached compiled program, and what every caller of an estimator shares."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import count, real, replace, strong
from bilevax.core.errors import ParameterError
from bilevax.core.keys import as_key, stream
from bilevax.core.records import Cost, Count, Estimate, Failure, worst_part
from bilevax.core.trees import PyTree, as_parameters, is_concrete, leaf_name
from bilevax.data import RowSource
from bilevax.hypergradients.a_posteriori import a_posteriori
from bilevax.hypergradients.diagnosis import unused_leaves
from bilevax.hypergradients.replicas import pooled
from bilevax.problems.gradient_step import POWER_STEPS, GradientStep, measured_batches
from bilevax.problems.problem import Problem
from bilevax.problems.proximal_step import ProximalStep
from bilevax.solvers.contraction import suspicion_as_proof
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
    v0: PyTree | None = None,
) -> Estimate:
    """Approximate the gradient of lam -> E(w(lam), lam), and say how wrong it may be.

    Runs as one compiled program that is cached across calls: new numbers (steps, step sizes, data of equal shape)
    compile nothing. May be called inside the user's own jit, vmap or scan. Equal arguments and keys give equal bits on
    one machine with one number of threads; with another they may differ in the last places, since sums are split.

    What ``error`` says of one run: :class:`~bilevax.JointSID` prices all its noise by batch means; a deterministic
    estimate has what is left of its two equations (:func:`~bilevax.hypergradients.a_posteriori.a_posteriori`); SID on
    minibatches knows the noise of its cross batches alone. Replicas price all noise of any estimator, with few degrees
    of freedom; they share the start and the curvature of the problem, so the bias that comes of these stays unseen.

    Args:
        problem: the inner map, the outer loss, the set Lambda.
        estimator: such as :class:`~bilevax.SID`.
        w0: start of the inner solver, any pytree of floating arrays, d entries.
        lam: where the hypergradient is wanted, any pytree of floating arrays, m entries.
        train: source of inner minibatches.
        val: source of outer minibatches.
        key: a JAX random key.
        tol: the code is BUDGET where ``error.relative`` is more. Default 0.1.
        replicas: independent runs, whose mean is returned; a count of at least 1, which compiles anew. Default 1.
        constants: of the problem; ``error.bound`` of a deterministic estimate follows from them.
        v0: start of the linear solver, like w0, for estimators that have one; None: 0.

    Returns:
        The estimate: ``value`` like lam, ``outer_value``, ``w``, ``v``, ``code``, ``cost``, ``error``.

    Raises:
        ParameterError: a wrong leaf of w0 or lam, a function that returns a wrong structure, shape or dtype, an
            estimator that needs what the problem lacks, a wrong ``tol`` or number of replicas.
    """
    estimator.check(problem)
    w0, lam = as_parameters("w0", w0), as_parameters("lam", lam)
    tol, replicas = real("tol", tol, low=0.0, open_low=True), count("replicas", replicas, low=1)
    v0 = None if v0 is None else as_parameters("v0", v0)
    arguments = *strong((problem, estimator, tol, constants)), w0, v0, lam, train, val, as_key(key)
    if all(map(is_concrete, jax.tree.leaves(arguments))):
        estimate = _estimate(*arguments, replicas=replicas, thorough=False)
        if is_concrete(estimate.code) and int(estimate.code) < Code.NOT_CONTRACTIVE:
            return estimate
    return _estimate(*arguments, replicas=replicas, thorough=True)


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
    says also what it cost, where w is, and why it failed (a code of DIVERGED or worse).
    """
    est = hypergradient(problem, estimator, w0, lam, train, val, key=key)
    good = est.code < Code.DIVERGED
    value, gradient = jax.tree.map(lambda x: jnp.where(good, x, jnp.nan), (est.outer_value, est.value))
    return value, gradient


@partial(jax.jit, static_argnames=("replicas", "thorough"))
def _estimate(
    problem: Problem,
    estimator: Any,
    tol: Array,
    constants: Constants | None,
    w0: PyTree,
    v0: PyTree | None,
    lam: PyTree,
    train: RowSource,
    val: RowSource,
    key: Array,
    *,
    replicas: int,
    thorough: bool,
) -> Estimate:
    check_functions(problem, w0, lam, train, val)
    sources = (train, val)
    start = {} if v0 is None else {"v0": v0}

    def one(key: Array) -> Estimate:
        with suspicion_as_proof(not thorough):
            estimate = measured_estimate(problem, estimator, w0, lam, sources, key=key, **start)
        sampled = not getattr(estimator, "deterministic", lambda _: False)(sources)
        if estimate.error is not None or estimate.v is None or sampled:
            return estimate
        ready = with_step(problem, w0, lam, train, key)
        points = estimate.w, estimate.v, lam
        return estimate._replace(error=a_posteriori(ready, estimate.value, points, sources, constants))

    estimate = one(key) if replicas == 1 else pooled(jax.vmap(one)(jax.random.split(key, replicas)))
    if estimate.error is None:
        return estimate
    far = estimate.error.relative > tol.astype(estimate.error.relative.dtype)
    code, failure = worst_part(
        (estimate.code, estimate.failure),
        (jnp.where(far, jnp.int32(Code.BUDGET), jnp.int32(Code.OK)), Failure.of("none")),
    )
    return estimate._replace(code=code, failure=failure)


def measured_estimate(
    problem: Problem,
    estimator: Any,
    w0: PyTree,
    lam: PyTree,
    sources: tuple[RowSource, RowSource],
    *,
    key: Array,
    **start: Any,
) -> Estimate:
    """An estimate with the inner step measured first, where it is None, and counted; says which leaves are unused."""
    train, val = sources
    ready = with_step(problem, w0, lam, train, key)
    estimate = estimator.estimate(ready, w0, lam, sources, key=key, **start)
    estimate = estimate._replace(unused=unused_leaves(problem, w0, lam, (train.full, val.full)))
    if ready is problem:
        return estimate
    spent = Count(jnp.int32(measured_batches(train) * POWER_STEPS), train.rows_per_batch)
    return estimate._replace(cost=estimate.cost.plus(Cost(measuring=spent)))


def with_step(problem: Problem, w0: PyTree, lam: PyTree, train: RowSource, key: Array) -> Problem:
    """The problem with its inner step filled in, where that is None; else the problem itself."""
    inner_map = problem.inner_map
    if not (isinstance(inner_map, GradientStep | ProximalStep) and inner_map.step_size is None):
        return problem
    return replace(problem, inner_map=inner_map.measured(w0, lam, train, stream(key, "measure")))


def check_functions(problem: Problem, w: PyTree, lam: PyTree, train: RowSource, val: RowSource) -> None:
    """Refuse, while tracing, a map or loss whose result has a wrong structure, shape or dtype.

    Raises:
        ParameterError: says which function, which leaf, and what would be right.
    """
    inner_map = problem.inner_map
    if isinstance(inner_map, GradientStep | ProximalStep):
        _check_scalar("the inner loss", jax.eval_shape(inner_map.loss, w, lam, train.full))
    else:
        image = jax.eval_shape(partial(inner_map), w, lam, train.full)
        _check_like("inner_map", image, w)
    _check_scalar("outer_loss", jax.eval_shape(partial(problem.outer_loss), w, lam, val.full))
    if problem.project is not None:
        _check_like("project", jax.eval_shape(partial(problem.project), lam), lam, argument="lam")


def _check_scalar(name: str, out: Any) -> None:
    if not hasattr(out, "shape") or out.shape != ():
        got = getattr(out, "shape", jax.tree.structure(out))
        raise ParameterError(f"{name} must return a scalar, got {got}; take the mean over the rows of the batch")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ParameterError(f"{name} must return a float, got {out.dtype}")


def _check_like(name: str, out: PyTree, like: PyTree, argument: str = "w") -> None:
    structure: Any = jax.tree.structure(out)
    wanted = jax.tree.structure(like)
    if structure != wanted:
        raise ParameterError(f"{name} must return a tree like {argument}, {wanted}; got {structure}")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(out), jax.tree.leaves(like), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            leaf = leaf_name(argument, path)
            raise ParameterError(
                f"{name} returns {a.dtype}{list(a.shape)} for leaf {leaf}, which is {b.dtype}{list(b.shape)}"
            )
