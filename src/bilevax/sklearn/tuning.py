"""Tuning of penalties: from the best single one, along hypergradients, with early stopping on validation rows.

In, from ``PenalisedModel`` in ``penalised``: a :class:`TuningTask` (standardised rows with folds, validation rows) and
the :class:`Method`. Out, to it: a :class:`TuningResult`, whose penalties it rescales and trains the final model with.
"""

import os
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.algorithms import BSGM, optim
from bilevax.core.codes import Code
from bilevax.core.config import replace_unchecked
from bilevax.core.events import Callback, Event
from bilevax.core.trees import PyTree
from bilevax.data import Arrays
from bilevax.problems import Box, GradientStep, Problem
from bilevax.runs import Progress, Run, minimize
from bilevax.runs.checkpoints import kept_state
from bilevax.sklearn.crossfit import CrossFitLoss, HeldOutLoss, LinearLoss, Rows, losses_of_models
from bilevax.sklearn.final_fit import Whitened, apply_basis, change_basis, coordinates, solve
from bilevax.sklearn.penalty_search import PATIENCE, surely_less
from bilevax.sklearn.tuning_method import BATCH, Method, full_batch, plan_method

BOX = (-25.0, 12.0)
"""Bounds of lam, the logarithm of a penalty against a mean loss: exp(lam) neither overflows nor vanishes."""

LEARNING_RATE = 0.1
"""Of Adam on the log-penalties: a step changes a penalty by about 10 % at most."""

PATH = tuple(np.arange(1.0, -6.25, -0.25))
"""log10 of the single penalties tried at the start, against a mean loss."""

WORSE = 4
"""Single penalties in a row that do not improve after which no weaker one is tried."""

PATH_ROWS = 10_000
"""Training rows on which they are tried, at most."""


RECORD = ("step", "seconds", "visits", "tuning_loss", "validation_loss", "gradient_norm", "code")
"""What a record of an outer step says."""


class TuningTask(NamedTuple):
    """What is to be tuned.

    Attributes:
        penalised: the loss of one model with its penalty, such as ``MultinomialLogistic("feature")``.
        plain: the same without.
        rows: the training rows with their folds, [n], some of weight 0 that pad the table.
        folds: K.
        validation: X, y, and weight of mean 1, of the validation rows; they choose the step, and are not trained on.
        sizes: how many training and how many validation rows there are, by their sample weights.
        lam_shape: of the log-penalties.
        outputs: C, the number of scores.
        moment: of the training rows; see :func:`bilevax.sklearn.final_fit.second_moment`.
    """

    penalised: LinearLoss
    plain: LinearLoss
    rows: Rows
    folds: int
    validation: tuple[Array, Array, Array]
    sizes: tuple[float, float]
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

    @staticmethod
    def from_plain(plain: Mapping[str, PyTree]) -> "Candidate":
        """From a dictionary of its parts, the arrays in whatever memory."""
        return Candidate(**plain)._replace(lam=jnp.asarray(plain["lam"]), w=jax.tree.map(jnp.asarray, plain["w"]))


class TuningResult(NamedTuple):
    """Where tuning ended.

    Attributes:
        chosen: the penalties to use, against the mean loss of all training rows.
        start: the single penalty it began with, not rescaled; ``chosen`` if no step was better by SIGNIFICANT.
        model: one model with the chosen penalties, trained on all training rows; where the final fit begins.
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
    validation_loss: float
    gap: float
    gap_se: float
    history: list[Event]
    code: Code
    interrupted: bool
    method: Method


def tune(
    task: TuningTask,
    method: Method,
    *,
    steps: int,
    seed: int,
    callback: Callback | None = None,
    run: Run | str | os.PathLike[str] | None = None,
) -> TuningResult:
    """Tune log-penalties on the training rows, and let the validation rows say where to stop.

    Args:
        task: what is to be tuned.
        method: from :func:`choose_method`.
        steps: at most so many outer steps.
        seed: of the minibatches.
        callback: called with a record after every outer step; True ends the run.
        run: where checkpoints are kept, as of :func:`bilevax.minimize`. A run that goes on makes neither its start nor
            its plan again; the records of its earlier steps are handed to ``callback`` once more.
    """
    clock = time.monotonic()
    # of a run that goes on, all that comes before the first outer step
    kept = (None if run is None else kept_state(run)) or {}
    start, interrupted = _kept_start(task, kept), False
    if start is None:
        start, interrupted = _single_penalty(task)
    # From here on weights = u L^-1, basis = L^-1: minibatch steps and L-BFGS need a well-conditioned loss.
    cholesky, basis = coordinates(task.moment, start.lam)
    if interrupted:
        stopping = _EarlyStopping(task, start, None, basis, clock, callback)
        return _decide(stopping, Code.OK, interrupted, method)
    u, key = change_basis(start.w, cholesky), jax.random.key(seed)
    # x . (u L^-1) = (x L^-T) . u: x <- x L^-T once, and the scores need no L
    whitened = task.rows._replace(X=apply_basis(task.rows.X, basis.T))

    def table(batch_size: int | None) -> Arrays:
        b = None if batch_size is None else min(batch_size, whitened.y.shape[0])
        return Arrays(whitened, batch_size=b, sampling="blocks", seed=seed)

    inner_map = GradientStep(CrossFitLoss(Whitened(task.penalised, basis)))
    problem = Problem(inner_map, HeldOutLoss(task.plain), project=Box(*BOX))
    planned = None
    if method.estimator is None:
        tables, plan_key = (table(BATCH), table(None)), jax.random.fold_in(key, 1)
        planned = Method.from_plain(kept["planned"]) if kept.get("planned") else None
        method = planned = planned or plan_method(method, problem, u, start.lam, tables, key=plan_key)
    # L-BFGS and conjugate gradients choose their own steps.
    if method.name == "deterministic":
        problem = full_batch(problem)
    # One table serves both levels: a row's fold says which models train on it and which does not.
    train = val = table(None if method.name == "deterministic" else BATCH)
    if method.batches is not None:
        train, val = (replace_unchecked(train, batch_size=b) for b in method.batches)
    assert method.estimator is not None
    algorithm = BSGM(method.estimator, optim("adam", learning_rate=LEARNING_RATE), warm_start=True)
    stopping = _EarlyStopping(task, start, planned, basis, clock, callback)
    result = minimize(
        problem, algorithm, u, start.lam, train, val, steps=steps, key=key, callback=stopping, every=1, run=run
    )
    return _decide(stopping, Code(result.code), result.interrupted, method)


def _decide(stopping: "_EarlyStopping", code: Code, interrupted: bool, method: Method) -> TuningResult:
    """The best step against the start, each as one model on all training rows; the validation rows decide.

    Penalties keep their size against the *sum* of the losses, as the precision of a prior does: the one model sees more
    rows than each of the K did.
    """
    task, start, best = stopping.task, stopping.start, stopping.best
    # n exp(lam') = (K - 1) / K n exp(lam): the one model sees n rows, each of the K saw (K - 1) / K n
    sum_kept = float(np.log((task.folds - 1) / task.folds))
    chosen = start._replace(lam=start.lam + sum_kept)
    model, losses = _one_model(task, chosen.lam, start.w)
    if best.step:
        tuned = best._replace(lam=best.lam + sum_kept)
        tuned_model, tuned_losses = _one_model(task, tuned.lam, best.w)
        if surely_less(tuned_losses, losses):
            chosen, model, losses = tuned, tuned_model, tuned_losses
    # gap = change of the validation loss - change of the tuning loss, of the K models, from the start to the best step
    before, after = (np.asarray(_row_losses(task.plain, candidate.w, task.validation)) for candidate in (start, best))
    change, tuning_change = after - before, _tuning_loss(task, best.w) - _tuning_loss(task, start.w)
    gap, gap_se = float(np.mean(change)) - tuning_change, float(np.std(change) / np.sqrt(len(change)))
    validation_loss = float(np.mean(losses))
    ended = stopping.history, code, interrupted, method
    return TuningResult(chosen, start, model, validation_loss, gap, gap_se, *ended)


class _EarlyStopping:
    """Follows a run: keeps the record and the best step on the validation rows, and says when to stop.

    Args:
        task: what is tuned.
        start: where it begins.
        planned: the method, if it was to be planned.
        basis: of the coordinates that the run is in.
        clock: when tuning began.
        callback: the user's.

    Attributes:
        best: the step of the least validation loss so far.
        lam: of the step that comes next.
        history: the records.
    """

    def __init__(
        self,
        task: TuningTask,
        start: Candidate,
        planned: Method | None,
        basis: Array,
        clock: float,
        callback: Callback | None,
    ) -> None:
        self.task, self.start, self.planned, self.basis = task, start, planned, basis
        self.clock, self.callback = clock, callback
        self.best, self.lam, self.history = start, start.lam, list[Event]()

    def state(self) -> dict[str, PyTree]:
        """For a checkpoint: what it has seen, and all that came before the first step."""
        begun = {"start": self.start._asdict(), "planned": self.planned and self.planned.to_plain()}
        seen = {"best": self.best._asdict(), "lam": self.lam, "history": self.history}
        return {**begun, **seen, "seconds": time.monotonic() - self.clock}

    def resume(self, state: Mapping[str, PyTree]) -> None:
        """As it was at a checkpoint; the user's callback gets the records that it had."""
        self.best, self.lam = Candidate.from_plain(state["best"]), jnp.asarray(state["lam"])
        self.clock = time.monotonic() - state["seconds"]
        # a file has names in another order
        self.history = [{name: record[name] for name in RECORD} for record in state["history"]]
        if self.callback:
            for record in self.history:
                self.callback(record)

    def __call__(self, progress: Progress) -> bool:
        # The step has moved lam: progress.w belongs to the lam before it, self.lam.
        history, step = progress.history, progress.step - 1
        w = change_basis(progress.w, self.basis)
        candidate = _candidate(self.task, step, self.lam, w, float(history.outer_value[-1]))
        if candidate.validation_loss < self.best.validation_loss:
            self.best = candidate
        self.lam = progress.lam
        values = (
            step,
            time.monotonic() - self.clock,
            int(history.samples[-1]),
            candidate.tuning_loss,
            candidate.validation_loss,
            float(history.gradient_norm[-1]),
            Code(int(history.code[-1])).name,
        )
        record = dict(zip(RECORD, values, strict=True))
        self.history.append(record)
        stopped = bool(self.callback(record)) if self.callback else False
        return stopped or step - self.best.step >= PATIENCE


def _kept_start(task: TuningTask, kept: Mapping[str, PyTree]) -> Candidate | None:
    """Where a run began that goes on; None where it is not of such a task, as is then found by its data."""
    start = Candidate.from_plain(kept["start"]) if "start" in kept else None
    shapes = task.lam_shape, (task.folds, task.outputs, task.rows.X.shape[1])
    return start if start and (start.lam.shape, start.w["weights"].shape) == shapes else None


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
    # n_t and n_v
    counts = task.sizes[0] * subset.rows.y.shape[0] / n, task.sizes[1]
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
