"""Penalties chosen by the held-out loss: a coarse path of one penalty, then L-BFGS on the hypergradient from its best.

The held-out loss is not convex in the penalties, so where the descent begins matters. The values and slopes of a
warm-started path, from the least penalty without any weight down to a thousandth of it, make a cubic between two
neighbours; the descent begins at the least of these cubics.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import scipy.optimize
from scipy.interpolate import CubicHermiteSpline

from bilevax.core.events import Callback, Event
from bilevax.sklearn.penalty_ties import Ties
from bilevax.solvers.l1_models import CrossFitted, HeldOut

LEAST = 1e-100
"""Of the penalty that a path begins with: there is nothing to learn where it would be 0."""

LOWEST = 1e-3
"""The last value of the path against its first."""

RATIOS = 0.5, 0.999
"""Shares of l1 in alpha along the paths, where they are tuned."""

BOX = -18.0, 2.0
"""Bounds of a log-penalty against the first of the path."""

SIGNIFICANT = 1.0
"""Standard errors by which many penalties must be better than one on the validation rows."""

PATIENCE = 12
"""Steps without a better validation loss after which the descent ends."""


class Pace(NamedTuple):
    """How closely one looks.

    Attributes:
        path: values of the path.
        worse: part by which a value is worse than the best after which no weaker penalty is tried.
        promise: part by which a next value must promise to be better, by the slope; -inf: it need not.
        rough: tolerance of the models on the path.
        fine: of those along the descent.
        first: the longest change of a log-penalty in the first step of the descent.
        flat: relative fall of the held-out loss in a step below which the descent ends.
        worth: relative fall that the slope must promise of a choice to be evaluated; -inf: it need not.
    """

    path: int = 16
    worse: float = 0.01
    promise: float = -np.inf
    rough: float = 1e-3
    fine: float = 1e-7
    first: float = 0.2
    flat: float = 1e-6
    worth: float = -np.inf


CLOSE = Pace()


class Shares(NamedTuple):
    """Which penalties a column has, as functions of the log-penalties lam.

    Attributes:
        group: of each column, [p], from 0 to G - 1.
        l1_ratio: l1 = l1_ratio alpha and l2 = (1 - l1_ratio) alpha with lam = log alpha [G]; None: lam = (log l1,
            log l2), [2 G].
    """

    group: np.ndarray
    l1_ratio: float | None

    @property
    def groups(self) -> int:
        """G."""
        return int(self.group.max()) + 1

    def penalties(self, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(l1, l2) of the columns, [p] each."""
        of_group = np.exp(lam)
        if self.l1_ratio is None:
            return of_group[: self.groups][self.group], of_group[self.groups :][self.group]
        alpha = of_group[self.group]
        # l1 = ratio alpha, l2 = (1 - ratio) alpha
        return self.l1_ratio * alpha, (1.0 - self.l1_ratio) * alpha

    def slope(self, held: HeldOut) -> np.ndarray:
        """dE / dlam, like lam."""
        # the sums over the columns of a group of dE / dlog l1_j and of dE / dlog l2_j
        l1, l2 = (np.bincount(self.group, by, self.groups) for by in (held.l1, held.l2))
        return np.concatenate([l1, l2]) if self.l1_ratio is None else l1 + l2

    @property
    def ratios(self) -> tuple[float, ...]:
        """Shares of l1 with which a single penalty is tried."""
        return RATIOS if self.l1_ratio is None else (self.l1_ratio,)

    def single(self, alpha: float, ratio: float) -> np.ndarray:
        """Log-penalties that are the same for every column."""
        if self.l1_ratio is None:
            return np.repeat(np.log([ratio * alpha, (1.0 - ratio) * alpha]), self.groups)
        return np.full(self.groups, np.log(alpha))

    def prior(self, lam: np.ndarray) -> tuple[float, np.ndarray]:
        """None."""
        return 0.0, np.zeros_like(lam)

    def bounds(self, top: float) -> list[tuple[float, float]]:
        """Of lam; the path begins with exp(top)."""
        return [(top + BOX[0], top + BOX[1])] * (self.groups * (2 if self.l1_ratio is None else 1))


Tying: TypeAlias = Shares | Ties
"""What a search asks which penalties columns have."""


class Step(NamedTuple):
    """One choice of penalties.

    Attributes:
        number: of the step; 0 is the single penalty.
        lam: log-penalties.
        loss: held-out loss, with the prior.
        weights: of the models, [p, K].
        bias: [K].
        scale: that scores are multiplied by.
        row_losses: of the validation rows, averaged over the models, [n_v].
    """

    number: int
    lam: np.ndarray
    loss: float
    weights: np.ndarray
    bias: np.ndarray
    scale: float
    row_losses: np.ndarray

    @property
    def score(self) -> float:
        """What steps are compared by: the validation loss, or the held-out loss where no row validates."""
        return float(self.row_losses.mean()) if self.row_losses.size else self.loss


class Search:
    """The search of penalties for some models.

    Args:
        models: that are cross-fitted.
        shares: of the penalties.
        validate: models -> losses of the validation rows, [n_v]; of none, [0].
        callback: called with a record after every step; True ends the search.
        pace: how closely it looks.

    Attributes:
        path: the first choices of one penalty, as (l1_ratio, alpha, held-out loss, its slope in log alpha).
        start: the single penalty that the descent began with.
        best: the best step.
        history: one record a step.
        interrupted: True if the user stopped it.
    """

    def __init__(
        self,
        models: CrossFitted,
        shares: Tying,
        validate: Callable[[CrossFitted], np.ndarray],
        callback: Callback | None = None,
        pace: Pace = CLOSE,
    ) -> None:
        self.pace = pace
        self.models, self.shares, self.validate, self.callback = models, shares, validate, callback
        self.path: list[tuple[float, float, float, float]] = []
        self.history: list[Event] = []
        self.interrupted = False
        self.start: Step
        self.best: Step
        self._clock = time.monotonic()

    def run(self, largest_l1: float, steps: int, *, lowest: float = LOWEST) -> None:
        """Search from the largest l1, at which every weight is zero, in at most so many steps.

        Args:
            largest_l1: of the first of the path; of a ridge, its alpha.
            steps: at most so many of L-BFGS.
            lowest: the last of the path against its first.
        """
        try:
            found = []
            for ratio in self.shares.ratios:
                first = max(largest_l1, LEAST) / (ratio or 1.0)
                alpha, value = promising(self._follow(ratio, first * np.geomspace(1.0, lowest, self.pace.path)))
                found.append((value, ratio, alpha))
            _, ratio, alpha = min(found)
            self._descend(self.shares.single(alpha, ratio), np.log(first), steps)
        except KeyboardInterrupt:
            if not hasattr(self, "best"):
                raise
            self.interrupted = True

    def decided(self) -> Step:
        """The best step, or the single penalty where the validation rows do not prefer it by SIGNIFICANT."""
        start, best = self.start, self.best
        if best.row_losses.size and best.number and not surely_less(best.row_losses, start.row_losses):
            return start
        return best

    def _follow(self, ratio: float, alphas: np.ndarray) -> np.ndarray:
        """Evaluate one penalty after another until they are worse: (alpha, loss, slope) of each, [k, 3]."""
        found: list[tuple[float, float, float]] = []
        apart = float(np.log(alphas[0] / alphas[1]))
        for alpha in alphas.tolist():
            lam = self.shares.single(alpha, ratio)
            loss, slope = self._held_out(lam, self.pace.rough)
            # d / dlog alpha
            found.append((alpha, loss, float(slope @ (self.shares.single(np.e * alpha, ratio) - lam))))
            self.path.append((ratio, *found[-1]))
            if not hasattr(self, "best") or loss < self.best.loss:
                self.start = self.best = self._step(0, lam, loss)
            # slope times the distance of two values of the path is what the next one promises
            worse = loss > (1.0 + self.pace.worse) * min(loss for _, loss, _ in found)
            if worse or found[-1][2] * apart <= self.pace.promise * loss:
                break
        return np.array(found)

    def _descend(self, lam: np.ndarray, top: float, steps: int) -> None:
        """L-BFGS from log-penalties, within the box about those of the first of the path."""
        tried: dict[bytes, tuple[Step, np.ndarray]] = {}

        def evaluated(lam: np.ndarray) -> tuple[Step, np.ndarray]:
            loss, slope = self._held_out(lam, self.pace.fine)
            return self._step(len(self.history), lam.copy(), loss), slope

        def objective(lam: np.ndarray) -> tuple[float, np.ndarray]:
            step, slope = self._last
            # a fall that the slope does not promise is not looked for
            if lam.tobytes() not in tried and slope @ (step.lam - lam) <= self.pace.worth * abs(step.loss):
                raise StopIteration
            step, slope = tried[lam.tobytes()] = evaluated(lam)
            return unit * step.loss, unit * slope

        def after(intermediate_result: scipy.optimize.OptimizeResult) -> None:
            (before, _), (step, slope) = self._last, tried[intermediate_result.x.tobytes()]
            tried.clear()
            stopped = self._record(step, slope)
            if stopped or before.loss - step.loss <= self.pace.flat * abs(step.loss):
                raise StopIteration
            if step.number - self.best.number >= PATIENCE:
                raise StopIteration

        self.start, slope = tried[lam.tobytes()] = evaluated(lam)
        self.best = self.start
        if self._record(self.start, slope):
            return
        # the first step is minus the gradient of what is minimised
        unit = self.pace.first / max(float(np.max(np.abs(slope))), 1e-300)
        options = {"maxiter": steps, "ftol": 0.0, "gtol": 0.0}
        bounds = self.shares.bounds(top)
        with suppress(StopIteration):
            scipy.optimize.minimize(
                objective, lam, jac=True, method="L-BFGS-B", bounds=bounds, options=options, callback=after
            )

    def _held_out(self, lam: np.ndarray, tolerance: float) -> tuple[float, np.ndarray]:
        """What is minimised, and its slope: the held-out loss and the prior."""
        penalties = self.shares.penalties(lam)
        self.models.solve(*penalties, tolerance)
        held = self.models.held_out(*penalties)
        value, by_prior = self.shares.prior(lam)
        return held.value + value, self.shares.slope(held) + by_prior

    def _step(self, number: int, lam: np.ndarray, loss: float) -> Step:
        models = self.models
        return Step(number, lam, loss, models.weights.copy(), models.bias.copy(), models.scale, self.validate(models))

    def _record(self, step: Step, slope: np.ndarray) -> bool:
        """A step more; True if the user ends the search."""
        self._last = step, slope
        if step.score < self.best.score:
            self.best = step
        record = {
            "step": step.number,
            "seconds": time.monotonic() - self._clock,
            "tuning_loss": step.loss,
            "validation_loss": step.score if step.row_losses.size else None,
            "gradient_norm": float(np.linalg.norm(slope)),
            "selected": float(np.mean(np.sum(step.weights != 0.0, axis=0))),
        }
        self.history.append(record)
        return bool(self.callback(record)) if self.callback else False


def surely_less(losses: np.ndarray, before: np.ndarray) -> bool:
    """Whether the losses of rows, [n] each, are less by more than chance."""
    # by rows, so that what is hard for both drops out
    change = losses - before
    # mean of the n changes < - SIGNIFICANT std / sqrt(n), their standard error
    return bool(change.mean() < -SIGNIFICANT * change.std() / np.sqrt(len(change)))


def promising(path: np.ndarray) -> tuple[float, float]:
    """The alpha at which the cubics through neighbours' values and slopes are least, and that value; path [k, 3]."""
    alpha, least, _ = path[np.argmin(path[:, 1])]
    for (a, value, slope), (b, other, other_slope) in pairwise(path):
        # a minimum lies between them where the loss falls from a towards b and from b towards a
        if slope > 0.0 > other_slope:
            cubic = CubicHermiteSpline(np.log([b, a]), [other, value], [other_slope, slope])
            at = np.linspace(np.log(b), np.log(a), 50)
            i = int(np.argmin(cubic(at)))
            if cubic(at[i]) < least:
                least, alpha = cubic(at[i]), np.exp(at[i])
    return float(alpha), float(least)
