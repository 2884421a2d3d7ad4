"""Is an estimator's mean the hypergradient? Replicas of it against a deterministic reference on every row."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bilevax.core.codes import Code
from bilevax.core.errors import ParameterError
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree
from bilevax.data import Arrays, RowSource
from bilevax.hypergradients import SID, hypergradient
from bilevax.solvers import GMRES, LBFGS, FixedPoint
from bilevax.trust.findings import Figure, Finding
from bilevax.trust.subject import TINY, Subject, epsilon

REPLICAS = 32
"""Independent runs, in two halves: one says in which direction the mean is wrong, the other by how much."""

ALARM = 8.0
"""Standard errors of 16 runs at which a mean is said to be wrong: one false alarm in a million."""

MATTERS = 0.05
"""Share of the hypergradient below which a bias is left to the error report."""

REFERENCE_STEPS = 5000
"""Steps of the reference at most, on every row."""


def check_estimator(s: Subject, estimator: Any) -> Iterator[Finding | Figure]:
    """ESTIMATOR_REFUSES, ESTIMATOR_FAILS, ESTIMATOR_SHORT, ESTIMATOR_BIASED, NO_REFERENCE."""
    try:
        estimator.check(s.problem)
    except ParameterError as e:
        yield Finding("ESTIMATOR_REFUSES", "error", f"{e}.", "Choose an estimator that this problem has what it takes.")
        return
    runs = [_run(s, estimator, s.train, s.val, i) for i in range(REPLICAS)]
    worst = max(runs, key=lambda est: int(est.code))
    if int(worst.code) >= Code.NOT_CONTRACTIVE:
        failed = sum(int(est.code) >= Code.NOT_CONTRACTIVE for est in runs)
        measured = f"{failed} of {REPLICAS} runs failed, one with {worst.message}"
        yield Finding("ESTIMATOR_FAILS", "error", measured, "See the message; shorter steps are what most often helps.")
        return
    truth = _reference(s)
    if truth is None:
        measured = f"No reference was found in {REFERENCE_STEPS} steps on every row."
        yield Finding("NO_REFERENCE", "note", measured, "Mend what else was found first.")
        return
    yield from _compared(s, estimator, np.stack([_vector(est.value) for est in runs]), truth)


def _compared(s: Subject, estimator: Any, found: np.ndarray, truth: np.ndarray) -> Iterator[Finding | Figure]:
    """The replicas, [REPLICAS, m], against the truth, [m]."""
    size = max(float(np.linalg.norm(truth)), TINY)
    yield Figure("relative error of one estimate", float(np.sqrt(np.mean(np.sum((found - truth) ** 2, axis=1)))) / size)
    first, second = found[: REPLICAS // 2], found[REPLICAS // 2 :]
    apart = first.mean(axis=0) - truth
    along = (second - truth) @ (apart / max(float(np.linalg.norm(apart)), TINY))
    bias, error = float(along.mean()), float(along.std(ddof=1)) / np.sqrt(len(along))
    if bias <= ALARM * error or bias <= MATTERS * size:
        return
    measured = (
        f"The mean of {len(along)} estimates differs from the reference by {100 * bias / size:.2g} % of its norm, "
        f"{bias / max(error, TINY):.3g} standard errors."
    )
    whole = _run(s, estimator, Arrays(s.train.full), Arrays(s.val.full), 0)
    short = float(np.linalg.norm(_vector(whole.value) - truth))
    if short >= 0.5 * bias:
        measured += f" On every row it differs by {100 * short / size:.2g} %."
        yield Finding("ESTIMATOR_SHORT", "warning", measured, "More steps of either solver, or longer ones.")
    else:
        yield Finding(
            "ESTIMATOR_BIASED",
            "error",
            f"{measured} On every row it differs by {100 * short / size:.2g} % only.",
            "Draw a new minibatch at every step of either solver and for the cross product, from streams of their own; "
            "then shorten the steps.",
        )


def _run(s: Subject, estimator: Any, train: RowSource, val: RowSource, i: int) -> Estimate:
    key = jax.random.fold_in(s.stream(30), i)
    return hypergradient(s.problem, estimator, s.w0, s.lam, train, val, key=key)


def _reference(s: Subject) -> np.ndarray | None:
    """The hypergradient on every row, or None where it was not found."""
    tol = 10 * epsilon(s.w0) ** 0.75
    inner: Any = LBFGS(tol, REFERENCE_STEPS) if s.problem.has_loss else FixedPoint(REFERENCE_STEPS, tol=1e-4)
    est = hypergradient(
        s.problem,
        SID(inner, GMRES(tol=1e-5, max_steps=1000, restart=min(s.size, 100))),
        s.near,
        s.lam,
        Arrays(s.train.full),
        Arrays(s.val.full),
        key=s.key,
    )
    return _vector(est.value) if int(est.code) == Code.OK else None


def _vector(tree: PyTree) -> np.ndarray:
    return np.asarray(ravel_pytree(jax.tree.map(jnp.asarray, tree))[0], np.float64)
