"""Tuning of penalties: from the best single one, along hypergradients, with early stopping on validation rows.

In, from ``PenalisedModel`` in ``penalised``: a :class:`TuningTask` (standardised rows with folds, validation rows) and
the :class:`Method`. Out, to it: a :class:`TuningResult`, whose penalties it rescales and trains the final model with.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.algorithms import BSGM, optim
from bilevax.core.codes import Code
from bilevax.core.config import replace_unchecked
from bilevax.core.events import Event
from bilevax.core.protocols import Estimator, RowSource
from bilevax.core.trees import PyTree, norm, sub
from bilevax.data import Arrays
from bilevax.hypergradients import SID, hypergradient
from bilevax.planning.pilot import SAMPLED
from bilevax.planning.planner import plan
from bilevax.problems import Box, GradientStep, Problem
from bilevax.runs import Progress, minimize
from bilevax.sklearn.crossfit import CrossFitLoss, HeldOutLoss, LinearLoss, Rows, losses_of_models
from bilevax.sklearn.final_fit import Whitened, apply_basis, change_basis, coordinates, solve
from bilevax.solvers import CG, LBFGS, FixedPoint

MANY_ROWS = 10_000
"""Training rows up to which five models are cross-fitted; three beyond."""

PLANNED = 0.1
"""Relative error of a hypergradient that the method is planned for where a pass is long."""

NEAR = 0.3
"""Relative error up to which the first hypergradient on minibatches is good enough to tune by."""

FULL_BATCH_PRICE = 0.3
"""Time per row of a full batch over the time per row of a minibatch."""

BOX = (-25.0, 12.0)
"""Bounds of lam, the logarithm of a penalty against a mean loss: exp(lam) neither overflows nor vanishes."""

PATIENCE = 12
"""Outer steps without a better validation loss after which tuning ends."""

LEARNING_RATE = 0.1
"""Of Adam on the log-penalties: a step changes a penalty by about 10 % at most."""

PATH = tuple(np.arange(1.0, -6.25, -0.25))
"""log10 of the single penalties tried at the start, against a mean loss."""

WORSE = 4
"""Single penalties in a row that do not improve after which no weaker one is tried."""

PATH_ROWS = 10_000
"""Training rows on which they are tried, at most."""

SIGNIFICANT = 1.0
"""Standard errors by which tuned penalties must be better than the single one on the validation rows."""

FULL_BATCH_LIMIT = 3e8
"""Multiplications in one pass (rows * weights) up to which full batches are the faster choice: nothing is planned."""

Callback: TypeAlias = Callable[[Event], bool | None]
"""Called with a record after every outer step; True ends the run."""

DETERMINISTIC = SID(LBFGS(tol=1e-4, max_steps=100), CG(tol=1e-2, max_steps=100))
"""Estimator on full batches."""

STOCHASTIC = SID(
    inner=FixedPoint(steps=400, step_size=0.5),
    linear=FixedPoint(steps=200, step_size=0.5),
    # lam enters the penalty alone: every minibatch gives the product exactly.
    cross_batches=1,
    outer_batches=32,
)
"""Estimator on minibatches of BATCH rows."""

BATCH = 512
"""Rows of a minibatch, where none is planned."""


class Method(NamedTuple):
    """The estimator of the hypergradients, and why it was chosen; without one it is to be planned.

    Attributes:
        name: ``"deterministic"``, ``"stochastic"``, or ``"planned"``.
        reason: one sentence.
        folds: K.
        estimator: None: to be planned.
        sources: (train, val) that were planned; None: every row, or minibatches of 512.
    """

    name: str
    reason: str
    folds: int
    estimator: Estimator | None = None
    sources: tuple[RowSource, RowSource] | None = None


def choose_method(name: str, n: int, p: int, outputs: int) -> Method:
    """Full batches or minibatches; ``name`` may ask for either, and a plan decides where a pass is long."""
    # A pass is a product of X [n, p] with the weights of all scores.
    weights, folds = p * outputs, 5 if n <= MANY_ROWS else 3
    size = f"{n:,} training rows for {weights:,} weights"
    if name == "auto" and n * weights > FULL_BATCH_LIMIT:
        return Method("planned", size, folds)
    if name == "auto":
        return Method("deterministic", f"{size}: a pass is so short that full batches are faster", folds, DETERMINISTIC)
    estimator = DETERMINISTIC if name == "deterministic" else STOCHASTIC
    return Method(name, f"asked for; {size}", folds, estimator)


def plan_method(
    method: Method, problem: Problem, w: PyTree, lam: Array, sources: tuple[Arrays, Arrays], *, key: Array
) -> Method:
    """The method that a plan for the first hypergradient chooses.

    Minibatches are chosen only if their estimate is within NEAR of the full-batch hypergradient: near a stationary
    point the hypergradient is small, and the bias that noise gives the models is not.

    Args:
        method: from :func:`choose_method`, without an estimator.
        problem: whose hypergradients are wanted.
        w: the K models at lam.
        lam: log of the single penalty.
        sources: the training rows in minibatches, and as one full batch.
        key: of the pilot.
    """
    batches, full = sources
    plan_key, run_key = jax.random.split(key)
    planned = plan(problem, w, lam, batches, batches, key=plan_key, target=PLANNED, full_batch_price=FULL_BATCH_PRICE)
    reason = f"{method.reason}: {planned.method} is planned to come within {PLANNED:.0%} of a hypergradient soonest"
    if planned.method in SAMPLED:
        sampled = planned.run(key=run_key).value
        exact = hypergradient(full_batch(problem), DETERMINISTIC, w, lam, full, full, key=run_key).value
        # ||sampled - exact|| / ||exact||
        error = float(norm(sub(sampled, exact)) / jnp.maximum(norm(exact), np.finfo(lam.dtype).tiny))
        if error <= NEAR:
            return Method("stochastic", reason, method.folds, planned.estimator, (planned.train, planned.val))
        reason = f"{method.reason}: {planned.method} came no nearer than {error:.1g} times its size to a hypergradient"
    return Method("deterministic", reason, method.folds, DETERMINISTIC)


def full_batch(problem: Problem) -> Problem:
    """The problem with a step of 1: full-batch solvers choose their own."""
    return replace_unchecked(problem, inner_map=replace_unchecked(problem.inner_map, step_size=1.0))


class TuningTask(NamedTuple):
    """What is to be tuned.

    Attributes:
        penalised: the loss of one model with its penalty, such as ``MultinomialLogistic("feature")``.
        plain: the same without.
        rows: the training rows with their folds, [n], some of weight 0 that pad the table.
        folds: K.
        validation: X, y, and weight of mean 1, of the validation rows; they choose the step, and are not trained on.
        lam_shape: of the log-penalties.
        outputs: C, the number of scores.
        moment: of the training rows; see :func:`bilevax.sklearn.final_fit.second_moment`.
    """

    penalised: LinearLoss
    plain: LinearLoss
    rows: Rows
    folds: int
    validation: tuple[Array, Array, Array]
    lam_shape: tuple[int, ...]
    outputs: int
    moment: np.ndarray


class Candidate(NamedTuple):
    """One choice of penalties with its K models.

    Attributes:
        step: outer step; 0 is the single penalty.
        lam: log-penalties, against the mean loss of a model, which sees all folds but one.
        w: the K models, in the weights and not in the coordinates of the run, or near them where minibatches are used.
        tuning_loss: mean loss of the training rows, each under the model trained without it.
        validation_loss: mean loss of the validation rows under the K models.
    """

    step: int
    lam: Array
    w: PyTree
    tuning_loss: float
    validation_loss: float


class TuningResult(NamedTuple):
    """Where tuning ended.

    Attributes:
        chosen: the penalties to use, against the mean loss of all training rows.
        start: the single penalty it began with, not rescaled; ``chosen`` if no step was better by SIGNIFICANT.
        model: one model with the chosen penalties, trained on all training rows; where the final fit begins.
        moment: second moment of the training rows.
        validation_loss: of that model.
        gap: fall of the tuning loss from the start to the best step, less that of the K models' validation loss.
        gap_se: its standard error over the validation rows.
        history: one record an outer step.
        code: the worst code of the run.
        interrupted: True if the user stopped it.
        method: as given or, where that was to be planned, as planned.
    """

    chosen: Candidate
    start: Candidate
    model: PyTree
    moment: np.ndarray
    validation_loss: float
    gap: float
    gap_se: float
    history: list[Event]
    code: Code
    interrupted: bool
    method: Method


def tune(task: TuningTask, method: Method, *, steps: int, seed: int, callback: Callback | None = None) -> TuningResult:
    """Tune log-penalties on the training rows, and let the validation rows say where to stop.

    Args:
        task: what is to be tuned.
        method: from :func:`choose_method`.
        steps: at most so many outer steps.
        seed: of the minibatches.
        callback: called with a record after every outer step; True ends the run.
    """
    clock = time.monotonic()
    start, interrupted = _single_penalty(task)
    # From here on weights = u L^-1, basis = L^-1: minibatch steps and L-BFGS need a well-conditioned loss.
    cholesky, basis = coordinates(task.moment, start.lam)
    stopping = _EarlyStopping(task, start, start.lam, basis, clock, callback)
    if interrupted:
        return _decide(task, start, stopping, Code.OK, interrupted, method)
    u, key = change_basis(start.w, cholesky), jax.random.key(seed)
    # x . (u L^-1) = (x L^-T) . u: x <- x L^-T once, and the scores need no L
    whitened = task.rows._replace(X=apply_basis(task.rows.X, basis.T))

    def table(batch_size: int | None) -> Arrays:
        return Arrays(whitened, batch_size=batch_size, sampling="blocks", seed=seed)

    inner_map = GradientStep(CrossFitLoss(Whitened(task.penalised, basis)))
    problem = Problem(inner_map, HeldOutLoss(task.plain), project=Box(*BOX))
    if method.estimator is None:
        method = plan_method(method, problem, u, start.lam, (table(BATCH), table(None)), key=jax.random.fold_in(key, 1))
    # L-BFGS and conjugate gradients choose their own steps.
    if method.name == "deterministic":
        problem = full_batch(problem)
    # One table serves both levels: a row's fold says which models train on it and which does not.
    train, val = method.sources or 2 * (table(None if method.name == "deterministic" else BATCH),)
    assert method.estimator is not None
    algorithm = BSGM(method.estimator, optim("adam", learning_rate=LEARNING_RATE), warm_start=True)
    result = minimize(problem, algorithm, u, start.lam, train, val, steps=steps, key=key, callback=stopping, every=1)
    return _decide(task, start, stopping, Code(result.code), result.interrupted, method)


def _decide(
    task: TuningTask, start: Candidate, stopping: "_EarlyStopping", code: Code, interrupted: bool, method: Method
) -> TuningResult:
    """The best step against the start, each as one model on all training rows; the validation rows decide.

    Penalties keep their size against the *sum* of the losses, as the precision of a prior does: the one model sees more
    rows than each of the K did.
    """
    # n exp(lam') = (K - 1) / K n exp(lam): the one model sees n rows, each of the K saw (K - 1) / K n
    best, sum_kept = stopping.best, float(np.log((task.folds - 1) / task.folds))
    chosen = start._replace(lam=start.lam + sum_kept)
    model, losses = _one_model(task, chosen.lam, start.w)
    if best.step:
        tuned = best._replace(lam=best.lam + sum_kept)
        tuned_model, tuned_losses = _one_model(task, tuned.lam, best.w)
        change = tuned_losses - losses
        # mean of the n changes < - SIGNIFICANT std / sqrt(n), their standard error
        if np.mean(change) < -SIGNIFICANT * np.std(change) / np.sqrt(len(change)):
            chosen, model, losses = tuned, tuned_model, tuned_losses
    # gap = change of the validation loss - change of the tuning loss, of the K models, from the start to the best step
    before, after = (np.asarray(_row_losses(task.plain, candidate.w, task.validation)) for candidate in (start, best))
    change, tuning_change = after - before, _tuning_loss(task, best.w) - _tuning_loss(task, start.w)
    gap, gap_se = float(np.mean(change)) - tuning_change, float(np.std(change) / np.sqrt(len(change)))
    validation_loss = float(np.mean(losses))
    ended = stopping.history, code, interrupted, method
    return TuningResult(chosen, start, model, task.moment, validation_loss, gap, gap_se, *ended)


@dataclasses.dataclass
class _EarlyStopping:
    """Follows a run: keeps the record and the best step on the validation rows, and says when to stop.

    Attributes:
        task: what is tuned.
        best: the step of the least validation loss so far.
        lam: of the step that comes next.
        basis: of the coordinates that the run is in.
        clock: when tuning began.
        callback: the user's.
        history: the records.
    """

    task: TuningTask
    best: Candidate
    lam: Array
    basis: Array
    clock: float
    callback: Callback | None
    history: list[Event] = dataclasses.field(default_factory=list)

    def __call__(self, progress: Progress) -> bool:
        # The step has moved lam: progress.w belongs to the lam before it, self.lam.
        history, step = progress.history, progress.step - 1
        w = change_basis(progress.w, self.basis)
        candidate = _candidate(self.task, step, self.lam, w, float(history.outer_value[-1]))
        if candidate.validation_loss < self.best.validation_loss:
            self.best = candidate
        self.lam = progress.lam
        record = {
            "step": step,
            "seconds": time.monotonic() - self.clock,
            "visits": int(history.samples[-1]),
            "tuning_loss": candidate.tuning_loss,
            "validation_loss": candidate.validation_loss,
            "gradient_norm": float(history.gradient_norm[-1]),
            "code": Code(int(history.code[-1])).name,
        }
        self.history.append(record)
        stopped = bool(self.callback(record)) if self.callback else False
        return stopped or step - self.best.step >= PATIENCE


def _single_penalty(task: TuningTask) -> tuple[Candidate, bool]:
    """The best single penalty by the tuning and validation losses together, on a warm-started path from strong to weak.

    The path is solved on at most PATH_ROWS training rows. What is kept is the penalty on the *sum* of the losses, which
    depends little on their number. True if the user stopped it; a stop before the first candidate is passed on.
    """
    n = task.rows.y.shape[0]
    subset = task
    # The path is solved on few rows, its end then on all.
    if n > PATH_ROWS:
        drawn = np.random.default_rng(0).choice(n, PATH_ROWS, replace=False)
        subset = task._replace(rows=jax.tree.map(lambda a: a[drawn], task.rows))
    # n_t and n_v, without the padding of weight 0
    counts = np.count_nonzero(subset.rows.outer_weight), np.count_nonzero(task.validation[2])
    real = jnp.result_type(float)
    shape = task.folds, task.outputs
    w = {"weights": jnp.zeros((*shape, task.rows.X.shape[1]), real), "bias": jnp.zeros(shape, real)}
    best, least, worse, interrupted = None, np.inf, 0, False
    try:
        for exponent in PATH:
            # lam = log 10^exponent
            lam = jnp.full(task.lam_shape, np.log(10.0) * exponent, real)
            w = solve(CrossFitLoss(task.penalised), w, lam, subset.rows, moment=task.moment, tolerance=1e-4)
            candidate = _candidate(task, 0, lam, w, _tuning_loss(subset, w))
            # (n_t L_t + n_v L_v) / (n_t + n_v) over the n_t training and the n_v validation rows
            pooled = (counts[0] * candidate.tuning_loss + counts[1] * candidate.validation_loss) / sum(counts)
            worse = 0 if pooled < least else worse + 1
            if best is None or pooled < least:
                best, least = candidate, pooled
            if worse == WORSE:
                break
    except KeyboardInterrupt:
        if best is None:
            raise
        interrupted = True
    assert best is not None  # the path is not empty
    # n exp(lam) = n_subset exp(lam_subset): the same penalty on the sum of the losses
    lam = best.lam - float(np.log(n / subset.rows.y.shape[0]))
    w = best.w
    if not interrupted:
        w = solve(CrossFitLoss(task.penalised), w, lam, task.rows, moment=task.moment, tolerance=1e-6)
    return _candidate(task, 0, lam, w, _tuning_loss(task, w)), interrupted


def _candidate(task: TuningTask, step: int, lam: Array, w: PyTree, tuning_loss: float) -> Candidate:
    return Candidate(step, lam, w, tuning_loss, float(np.mean(_row_losses(task.plain, w, task.validation))))


def _one_model(task: TuningTask, lam: Array, w: PyTree) -> tuple[PyTree, np.ndarray]:
    """One model trained on all training rows, and its losses of the validation rows."""
    # The mean of the K models is near the one.
    start = jax.tree.map(lambda x: jnp.mean(x, axis=0), w)
    rows = task.rows
    model = solve(task.penalised, start, lam, (rows.X, rows.y, rows.inner_weight), moment=task.moment)
    stack = jax.tree.map(lambda x: x[None], model)
    return model, np.asarray(_row_losses(task.plain, stack, task.validation))


_held_out_loss = jax.jit(HeldOutLoss.__call__)


def _tuning_loss(task: TuningTask, w: PyTree) -> float:
    return float(_held_out_loss(HeldOutLoss(task.plain), w, None, task.rows))


@jax.jit
def _row_losses(loss: LinearLoss, w: PyTree, rows: tuple[Array, Array, Array]) -> Array:
    """Weighted loss of each row, averaged over the models, [n]."""
    # c_i / K sum_k l_i(w_k)
    X, y, weight = rows
    return jnp.mean(losses_of_models(loss, w, X, y), axis=1) * weight
