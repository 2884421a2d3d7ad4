"""Is an estimator's mean the hypergradient? Replicas of it against a deterministic reference on every row."""

from collections.abc import Iterator

import jax
import numpy as np

from bilevax.audit.findings import Figure, Finding
from bilevax.audit.oracles import flat
from bilevax.audit.subject import TINY, AuditedProblem
from bilevax.core.codes import Code
from bilevax.core.config import replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.core.estimator import Estimator
from bilevax.core.protocols import RowSource
from bilevax.core.records import Estimate
from bilevax.core.trees import rounding_unit
from bilevax.data import Arrays
from bilevax.hypergradients import SID, hypergradient
from bilevax.solvers import GMRES, LBFGS, FixedPoint

REPLICAS = (64, 512)
"""Independent runs, the second number only where the first cannot tell. Half of them say in which direction the mean is
wrong, the others by how much."""

ALARM = 6.0
"""Standard errors at which a mean is said to be wrong: one false alarm in a million."""

MATTERS = 0.05
"""Share of the hypergradient below which a bias is left to the error report."""

REFERENCE_STEPS = 5000
"""Steps of the reference at most, on every row."""


def check_estimator(s: AuditedProblem, estimator: Estimator) -> Iterator[Finding | Figure]:
    """ESTIMATOR_REFUSES, ESTIMATOR_FAILS, ESTIMATOR_SHORT, ESTIMATOR_BIASED, NO_REFERENCE."""
    try:
        estimator.check(s.problem)
    except ParameterError as e:
        yield Finding("ESTIMATOR_REFUSES", "error", f"{e}.", "Choose an estimator that this problem has what it takes.")
        return
    if s.train.keys or s.val.keys:
        measured = "No estimate on every row is a reference where batches bring keys: it would be that of one draw."
        yield Finding("NO_REFERENCE", "note", measured, "Believe error.relative, and compare with replicas=8.")
        return
    truth = _reference(s)
    if truth is None:
        measured = f"No reference was found in {REFERENCE_STEPS} steps on every row."
        yield Finding("NO_REFERENCE", "note", measured, "Mend what else was found first.")
        return
    runs: list[Estimate] = []
    for number in REPLICAS:
        runs += [_run(s, estimator, s.train, s.val, i) for i in range(len(runs), number)]
        # a run that failed says more than a mean with it
        worst = max(runs, key=lambda est: int(est.code))
        if int(worst.code) >= Code.NOT_CONTRACTIVE:
            failed = sum(int(est.code) >= Code.NOT_CONTRACTIVE for est in runs)
            measured = f"{failed} of {number} runs failed, one with {worst.message}"
            steps = any(hasattr(getattr(estimator, name, None), "step_size") for name in ("inner", "linear"))
            advice = "Shorter steps are what most often helps." if steps else "Mend what else was found first."
            yield Finding("ESTIMATOR_FAILS", "error", measured, advice)
            return
        found = np.stack([flat(est.value) for est in runs])
        bias, error = _bias(found - truth)
        size = max(float(np.linalg.norm(truth)), TINY)
        if bias > ALARM * error or ALARM * error < MATTERS * size:
            break
    yield Figure("relative error of one estimate", float(np.sqrt(np.mean(np.sum((found - truth) ** 2, axis=1)))) / size)
    if bias > max(ALARM * error, MATTERS * size):
        yield _why(s, estimator, truth, (len(runs), bias, error))


def _bias(errors: np.ndarray) -> tuple[float, float]:
    """Of errors [r, m]: their mean along the direction in which that of the first half points, and its standard error.

    The second half alone is measured.
    """
    half = len(errors) // 2
    # b = <e, u>, u = mean of the first half / its norm: no bias of its own, as the halves are independent
    mean = errors[:half].mean(axis=0)
    along = errors[half:] @ (mean / max(float(np.linalg.norm(mean)), TINY))
    return float(along.mean()), float(along.std(ddof=1)) / np.sqrt(half)


def _why(s: AuditedProblem, estimator: Estimator, truth: np.ndarray, seen: tuple[int, float, float]) -> Finding:
    """Whether a bias is there on every row too: then the estimator stops short."""
    number, bias, error = seen
    whole = _run(s, estimator, _whole(s.train), _whole(s.val), 0)
    size = max(float(np.linalg.norm(truth)), TINY)
    short = float(np.linalg.norm(flat(whole.value) - truth))
    measured = (
        f"The mean of {number} estimates differs from the hypergradient by {100 * bias / size:.2g} % of its norm, "
        f"{bias / max(error, TINY):.3g} standard errors; an estimate on every row by {100 * short / size:.2g} %."
    )
    # wrong on every row too: it stops short, whatever the noise
    if short >= 0.5 * bias:
        return Finding("ESTIMATOR_SHORT", "warning", measured, "More steps of either solver, or longer ones.")
    return Finding(
        "ESTIMATOR_BIASED",
        "error",
        measured,
        "Draw a new minibatch at every step of either solver and for the cross product, from streams of their own; "
        "then shorten the steps.",
    )


def _run(s: AuditedProblem, estimator: Estimator, train: RowSource, val: RowSource, i: int) -> Estimate:
    key = jax.random.fold_in(s.stream(30), i)
    return hypergradient(s.given or s.problem, estimator, s.w0, s.lam, train, val, key=key, report=False)


def _whole(source: RowSource) -> RowSource:
    """The source with every row in each minibatch."""
    return replace_unchecked(source, batch_size=None) if isinstance(source, Arrays) else Arrays(source.all_rows)


def _reference(s: AuditedProblem) -> np.ndarray | None:
    """The hypergradient on every row, or None where it was not found."""
    # so that the reference's error is far below MATTERS
    tol = 10 * rounding_unit(s.w0) ** 0.75
    inner = LBFGS(tol, REFERENCE_STEPS) if s.problem.has_loss else FixedPoint(REFERENCE_STEPS, tol=1e-4)
    sid = SID(inner, GMRES(tol=1e-5, max_steps=1000, restart=min(s.size, 100)))
    est = hypergradient(s.problem, sid, s.solution, s.lam, _whole(s.train), _whole(s.val), key=s.key)
    return flat(est.value) if int(est.code) == Code.OK else None
