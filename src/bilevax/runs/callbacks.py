"""What is called between the compiled calls of a run: several as one, and those that end it.

A callback is any function of a :class:`~bilevax.Progress`; True ends the run. An object may have more methods:
``begin(progress)`` is called before the first step of a run or of its going on, and ``end(progress)`` when it is over,
however it ended; a checkpoint carries what ``state()`` returns, plain containers of numbers, strings and arrays, and a
run that goes on gives it back, after ``begin``, by ``resume(state)``.
"""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jax import Array
from jax.tree_util import PyTreeDef

from bilevax.core.codes import Code
from bilevax.core.config import at_least_one, check_fields, nonnegative, positive
from bilevax.core.dealt import Dealing, placed
from bilevax.core.errors import ParameterError
from bilevax.core.results import History
from bilevax.core.trees import PyTree
from bilevax.runs.checkpoints import Resumable


class Progress(NamedTuple):
    """What a callback sees.

    Attributes:
        step: outer steps done.
        steps: outer steps of the run.
        w: the inner variable.
        lam: the outer variable.
        history: all steps so far; its arrays do not change any more.

    Examples:
        >>> import bilevax as bx
        >>> def stop_at_1000(progress):  # bx.minimize(..., callback=stop_at_1000)
        ...     return progress.step >= 1000
        >>> bx.Progress._fields
        ('step', 'steps', 'w', 'lam', 'history')
    """

    step: int
    steps: int
    w: PyTree
    lam: PyTree
    history: History


Callback: TypeAlias = Callable[[Progress], bool | None]
"""Called between compiled calls; True ends the run."""


class Callbacks:
    """Several callbacks as one: all are called, in their order, and True of any ends the run.

    Args:
        given: a callback, a list or tuple of them, or None.
        writes: False in a process of several that is not the first: to that one those are left that show or write what
            they see, and say so by ``writes``.

    Raises:
        ParameterError: one cannot be called, or is a class.
    """

    def __init__(self, given: Callback | Sequence[Callback] | None, *, writes: bool = True) -> None:
        several = given if isinstance(given, list | tuple) else [] if given is None else [given]
        self._named: dict[str, Callback] = {}
        self._carried: Mapping[str, PyTree] = {}
        for callback in several:
            if isinstance(callback, type):
                raise ParameterError(
                    f"callback must be made of its class first: {callback.__name__}(...), not {callback.__name__}"
                )
            if not callable(callback):
                raise ParameterError(f"callback must be a function of a Progress, or a list of them, got {callback!r}")
            # by class and number among its kind, so that others may come and go when the run goes on
            kind = type(callback).__name__
            self._named[next(name for i in itertools.count() if (name := f"{kind}-{i}") not in self._named)] = callback
        if not writes:
            self._named = {name: x for name, x in self._named.items() if not getattr(x, "writes", False)}

    def __bool__(self) -> bool:
        """True if there is one."""
        return bool(self._named)

    def resume(self, state: Mapping[str, PyTree]) -> None:
        """Before ``begin``: what a checkpoint carried; a callback that was not there then begins as it is."""
        self._carried = state

    def begin(self, progress: Progress) -> None:
        """Before the first step, of the run or of its going on."""
        for name, callback in self._named.items():
            _tell(callback, "begin", progress)
            if name in self._carried and isinstance(callback, Resumable):
                callback.resume(self._carried[name])

    def __call__(self, progress: Progress) -> bool:
        """True if the run is to end."""
        # all are called, before the first True ends anything
        told = [bool(callback(progress)) for callback in self._named.values()]
        return any(told)

    def state(self) -> dict[str, PyTree]:
        """That of each which has one, by its name."""
        states: dict[str, PyTree] = {}
        for name, callback in self._named.items():
            if isinstance(callback, Resumable):
                states[name] = callback.state()
        return states

    def end(self, progress: Progress) -> None:
        """After the last step, or what else ended the run; each is told, even if one raises."""
        with contextlib.ExitStack() as stack:
            # the last that is put on the stack is called first
            for callback in reversed(self._named.values()):
                stack.callback(_tell, callback, "end", progress)


def _tell(callback: Callback, what: str, progress: Progress) -> None:
    """Call the method of that name, if there is one."""
    method = getattr(callback, what, None)
    if callable(method):
        method(progress)


class Best(NamedTuple):
    """The best point that a run was seen at.

    Attributes:
        step: outer steps done there.
        value: the score.
        w: the inner variable.
        lam: the outer variable.
    """

    step: int
    value: float
    w: PyTree
    lam: PyTree


@dataclass
class EarlyStopping:
    """Keeps the best point, and ends a run that has found no better one for ``patience`` outer steps.

    The run is looked at when callbacks are called: with an ``every`` of :func:`~bilevax.minimize`, after the same steps
    in every run, a resumed one included; without, about each quarter of a second. Patience is in outer steps, not in
    looks or entries of the history, so that it means the same for every algorithm and however often one looks.

    The best point is ``stopping.best``, with ``step``, ``value``, ``w`` and ``lam``; None before the first look. The
    result of the run stays its last point, which is what its history tells of.

    Args:
        patience: outer steps, at least 1.
        score: of a point, (w, lam) -> scalar, such as the loss of rows that play no part in the run; the smaller the
            better, NaN is worse than any. None: the mean of ``history.outer_value`` over the entries since the last
            look. That costs nothing, but it is of minibatches, and of the points on the way to where the run is.
        min_change: a better score is smaller by more than that.

    Raises:
        ParameterError: a number is out of range, or the score of a point no scalar.

    >>> stopping = EarlyStopping(patience=1000, score=lambda w, lam: ((w - 1.0) ** 2).sum())
    >>> stopping.best is None
    True
    """

    patience: int
    score: Callable[[PyTree, PyTree], Array | float] | None = None
    _: KW_ONLY
    min_change: float = 0.0
    best: Best | None = field(default=None, init=False)
    _since: int = field(default=0, init=False, repr=False)
    _seen: int = field(default=0, init=False, repr=False)
    _trees: tuple[PyTreeDef, ...] = field(default=(), init=False, repr=False)  # of w and lam
    _dealing: Dealing = field(default=Dealing(()), init=False, repr=False)

    def __post_init__(self) -> None:
        check_fields(self, patience=at_least_one, min_change=nonnegative)
        if self.score is not None and not callable(self.score):
            raise ParameterError(f"score must be a function of (w, lam), got {self.score!r}")

    def begin(self, progress: Progress) -> None:
        """Nothing is known of this run yet."""
        self.best, self._since, self._seen = None, progress.step, len(progress.history.step)
        self._trees = jax.tree.structure(progress.w), jax.tree.structure(progress.lam)
        self._dealing = Dealing.of(progress.w)

    def __call__(self, progress: Progress) -> bool:
        """True if there was no better point for ``patience`` steps."""
        value = self._value(progress)
        self._seen = len(progress.history.step)
        if value < (np.inf if self.best is None else self.best.value - self.min_change):
            self.best, self._since = Best(progress.step, value, progress.w, progress.lam), progress.step
        ends = progress.step - self._since >= self.patience
        if ends and self.best is None:
            what = "outer_value" if self.score is None else "score"
            warnings.warn(f"EarlyStopping ends a run whose {what} was never a number: {value}", stacklevel=2)
        return ends

    def _value(self, progress: Progress) -> float:
        if self.score is not None:
            value = self.score(progress.w, progress.lam)
            if np.ndim(value) != 0:
                raise ParameterError(f"score must be a scalar, got shape {np.shape(value)}")
            return float(value)
        codes, values = progress.history.code[self._seen :], progress.history.outer_value[self._seen :]
        # a stretch that failed has moved nothing
        sound = values[codes < Code.NOT_CONTRACTIVE]
        return float(np.mean(sound)) if len(sound) else np.nan

    def state(self) -> dict[str, PyTree]:
        """What a checkpoint carries."""
        best = self.best and {
            "step": self.best.step,
            "value": self.best.value,
            "w": jax.tree.leaves(self.best.w),
            "lam": jax.tree.leaves(self.best.lam),
        }
        return {"since": self._since, "seen": self._seen, "best": best}

    def resume(self, state: Mapping[str, PyTree]) -> None:
        """Go on from what a checkpoint carried, after ``begin``."""
        self._since, self._seen, best = int(state["since"]), int(state["seen"]), state["best"]
        if best is not None:
            w, lam = (
                jax.tree.unflatten(tree, best[name]) for tree, name in zip(self._trees, ("w", "lam"), strict=True)
            )
            w, lam = placed(w, self._dealing.shardings(w)), placed(lam, None)
            self.best = Best(int(best["step"]), float(best["value"]), w, lam)


@dataclass(frozen=True)
class TimeLimit:
    """Ends a run that has taken so long.

    The time is that of the whole run, ``history.seconds``, with compilation and with what a resumed run took before, by
    a clock that is never set. It is looked at when callbacks are called, about each quarter of a second, or with an
    ``every`` of :func:`~bilevax.minimize` after so many outer steps, however long they take.

    Args:
        seconds: positive.

    Raises:
        ParameterError: seconds are not positive.

    >>> TimeLimit(seconds=3600.0)
    TimeLimit(seconds=3600.0)
    """

    seconds: float

    def __post_init__(self) -> None:
        check_fields(self, seconds=positive)

    def __call__(self, progress: Progress) -> bool:
        """True once they are over."""
        return bool(progress.history.seconds[-1] >= self.seconds)
