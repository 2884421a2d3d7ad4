"""How penalties are tuned: a start with a single penalty, hypergradient steps, and an honest choice of where to stop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevax.algorithms import BSGM, optim
from bilevax.core.codes import Code
from bilevax.core.trees import PyTree
from bilevax.data import Arrays
from bilevax.hypergradients import SID
from bilevax.problems import Box, GradientStep, Problem
from bilevax.runs import Progress, minimize
from bilevax.sklearn.crossfit import CrossFitLoss, HeldOutLoss, Rows, losses_of_models
from bilevax.solvers import CG, LBFGS, FixedPoint

FOLDS = 5
"""K, the number of models that are cross-fitted."""

BOX = (-25.0, 12.0)
"""Bounds of lam, the logarithm of a penalty against a mean loss: exp(lam) neither overflows nor vanishes."""

PATIENCE = 20
"""Outer steps without a better validation loss after which tuning ends."""

LEARNING_RATE = 0.05
"""Of Adam on the log-penalties: a step changes a penalty by at most about 5 %."""

PATH = tuple(np.arange(1.0, -6.5, -0.5))
"""Powers of ten of the single penalties tried at the start."""

FULL_BATCH_LIMIT = 1e8
"""Multiplications in one pass (rows * columns * scores) up to which full batches are the faster choice."""


class Method(NamedTuple):
    """How the hypergradients are had, and why."""

    name: str
    reason: str
    batch_size: int | None
    estimator: SID


def choose_method(name: str, n: int, p: int, scores: int) -> Method:
    """Full batches for small data, minibatches for large; ``name`` may ask for either."""
    work = float(n) * p * scores
    size = f"one pass over {n} rows x {p} columns x {scores} score{'s' * (scores > 1)} is {work:.1e} multiplications"
    small = work <= FULL_BATCH_LIMIT
    if name == "auto":
        name = "deterministic" if small else "stochastic"
        verdict = "at most" if small else "more than"
        reason = f"{size}, {verdict} the {FULL_BATCH_LIMIT:.0e} up to which full batches are faster"
    else:
        reason = "asked for"
    if name == "deterministic":
        solvers = SID(inner=LBFGS(tol=1e-4, max_steps=100), linear=CG(tol=1e-2, max_steps=50))
        return Method(name, reason, None, solvers)
    stochastic = SID(
        inner=FixedPoint(steps=200, step_size=0.5),
        linear=FixedPoint(steps=100, step_size=0.5),
        cross_batches=1,  # the penalty is deterministic: one minibatch gives the product exactly
        outer_batches=16,
    )
    return Method(name, reason, 512, stochastic)


class Task(NamedTuple):
    """What is to be tuned.

    Attributes:
        penalised: the loss of one model with its penalty, such as ``MultinomialLogistic("feature")``.
        plain: the same without.
        rows: the training rows with their folds.
        folds: K.
        validation: X [n, p], y [n], weight [n] of mean 1: rows that no penalty is tuned on.
        lam_shape: of the log-penalties.
        outputs: C, the number of scores.
    """

    penalised: Any
    plain: Any
    rows: Rows
    folds: int
    validation: tuple[np.ndarray, np.ndarray, np.ndarray]
    lam_shape: tuple[int, ...]
    outputs: int


class Point(NamedTuple):
    """One choice of penalties, its K models, and how well they do on rows they were not trained on.

    Attributes:
        step: outer step; 0 is the single penalty.
        lam: log-penalties, against a mean loss.
        w: the K models.
        tuning_loss: mean over the folds of the loss of the model trained without it.
        row_losses: of the validation rows, averaged over the K models, [n].
    """

    step: int
    lam: Array
    w: PyTree
    tuning_loss: float
    row_losses: np.ndarray

    @property
    def validation_loss(self) -> float:
        """Mean over the validation rows."""
        return float(np.mean(self.row_losses))


class Tuned(NamedTuple):
    """Where tuning ended.

    Attributes:
        chosen: the penalties to use.
        start: the single penalty it began with; ``chosen`` is this if no step was better by one standard error.
        gap: how much of the fall of the tuning loss, from the start to the best step, the validation rows do not confirm.
        gap_se: its standard error over the validation rows.
        history: one record an outer step.
        code: the worst code of the run.
        interrupted: True if the user stopped it.
    """

    chosen: Point
    start: Point
    gap: float
    gap_se: float
    history: list[dict[str, Any]]
    code: Code
    interrupted: bool


def tune(
    task: Task,
    method: Method,
    *,
    steps: int,
    seed: int,
    callback: Callable[[dict[str, Any]], bool | None] | None = None,
) -> Tuned:
    """Tune log-penalties on the training rows, and let the validation rows say where to stop.

    Args:
        task: what is to be tuned.
        method: from :func:`choose_method`.
        steps: at most so many outer steps.
        seed: of the minibatches.
        callback: called with a record after every outer step; True ends the run.
    """
    start = _single_penalty(task)
    watch = _Watch(task, start, callback)
    problem = Problem(GradientStep(CrossFitLoss(task.penalised)), HeldOutLoss(task.plain), project=Box(*BOX))
    rows = Arrays(task.rows, batch_size=method.batch_size, sampling="blocks", seed=seed)
    algorithm = BSGM(method.estimator, optim("adam", learning_rate=LEARNING_RATE), warm_start=True)
    key = jax.random.key(seed)
    result = minimize(
        problem, algorithm, start.w, start.lam, rows, rows, steps=steps, key=key, callback=watch, every=1
    )
    best = _solved(task, watch.best.step, watch.best.lam, watch.best.w) if watch.best.step else start
    gain = best.row_losses - start.row_losses
    se = float(np.std(gain) / np.sqrt(len(gain)))
    gap = float(np.mean(gain)) - (best.tuning_loss - start.tuning_loss)
    chosen = best if np.mean(gain) < -se else start
    return Tuned(chosen, start, gap, se, watch.history, Code(result.code), result.interrupted)


class _Watch:
    """Follows a run: keeps the record and the best step on the validation rows, and says when to stop."""

    def __init__(self, task: Task, start: Point, callback: Callable[[dict[str, Any]], bool | None] | None) -> None:
        self.task, self.callback = task, callback
        self.best, self.lam = start, start.lam
        self.history: list[dict[str, Any]] = []

    def __call__(self, progress: Progress) -> bool:
        seen, step = progress.history, progress.step - 1  # w belongs to the lam before the step
        losses = np.asarray(_row_losses(self.task.plain, progress.w, self.task.validation))
        point = Point(step, self.lam, progress.w, float(seen.outer_value[-1]), losses)
        if point.validation_loss < self.best.validation_loss:
            self.best = point
        self.lam = progress.lam
        record = {
            "step": step,
            "seconds": float(seen.seconds[-1]),
            "visits": int(seen.visits[-1]),
            "tuning_loss": point.tuning_loss,
            "validation_loss": point.validation_loss,
            "gradient_norm": float(seen.gradient_norm[-1]),
            "code": Code(int(seen.code[-1])).name,
        }
        self.history.append(record)
        told = bool(self.callback(record)) if self.callback else False
        return told or step - self.best.step >= PATIENCE


def _single_penalty(task: Task) -> Point:
    """The best single penalty by the tuning and validation losses together, over a warm-started path from strong to weak."""
    folds, outputs, p = task.folds, task.outputs, task.rows.X.shape[1]
    real = jnp.result_type(float)
    w: PyTree = {"weights": jnp.zeros((folds, outputs, p), real), "bias": jnp.zeros((folds, outputs), real)}
    rows, others = np.count_nonzero(task.rows.held), np.count_nonzero(task.validation[2])
    best, least, worse = None, np.inf, 0
    for exponent in PATH:
        point = _solved(task, 0, jnp.full(task.lam_shape, np.log(10.0) * exponent, real), w, rough=True)
        w = point.w
        pooled = (rows * point.tuning_loss + others * point.validation_loss) / (rows + others)
        worse = 0 if pooled < least else worse + 1
        if best is None or pooled < least:
            best, least = point, pooled
        if worse == 3:
            break
    assert best is not None  # the path has points
    return _solved(task, 0, best.lam, best.w)


def _solved(task: Task, step: int, lam: Array, w: PyTree, *, rough: bool = False) -> Point:
    """The K models at lam, solved by L-BFGS from w, and their losses."""
    w = solve(CrossFitLoss(task.penalised), w, lam, task.rows, fall=1e-4 if rough else 1e-6)
    held = float(_value(HeldOutLoss(task.plain), w, lam, task.rows))
    return Point(step, lam, w, held, np.asarray(_row_losses(task.plain, w, task.validation)))


_value = jax.jit(lambda loss, w, lam, batch: loss(w, lam, batch))
_value_and_grad = jax.jit(lambda loss, w, lam, batch: jax.value_and_grad(loss)(w, lam, batch))


@jax.jit
def _row_losses(loss: Any, w: PyTree, rows: tuple[Array, Array, Array]) -> Array:
    """Weighted loss of each row, averaged over the K models, [n]."""
    X, y, weight = rows
    return jnp.mean(losses_of_models(loss, w, X, y), axis=1) * weight


def solve(loss: Any, w0: PyTree, lam: Array, batch: PyTree, *, max_steps: int = 300, fall: float = 1e-6) -> PyTree:
    """Minimise w -> loss(w, lam, batch): scipy's L-BFGS in float64 on gradients in JAX's precision.

    Args:
        loss: the inner loss.
        w0: start.
        lam: log-penalties.
        batch: every row.
        max_steps: at most so many iterations.
        fall: relative fall of the loss in one iteration at which to stop.
    """
    flat, unravel = ravel_pytree(w0)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value_and_grad(loss, unravel(jnp.asarray(x, flat.dtype)), lam, batch)
        return float(value), np.asarray(ravel_pytree(gradient)[0], np.float64)

    options = {"maxiter": max_steps, "gtol": 1e-6, "ftol": fall}
    out = scipy.optimize.minimize(objective, np.asarray(flat, np.float64), jac=True, method="L-BFGS-B", options=options)
    return unravel(jnp.asarray(out.x, flat.dtype))
