"""What a run over many outer steps returns."""

from typing import NamedTuple

import jax
import numpy as np

from bilevax.core import shown
from bilevax.core.codes import Code
from bilevax.core.records import Cost, Failure
from bilevax.core.trees import PyTree


class History(NamedTuple):
    """One entry a stretch of outer steps, a single one or up to 256, as the algorithm says; arrays [entries].

    Attributes:
        outer_value: E(w, lam) before the step, on its minibatches of val; where an algorithm does not report it, after
            the stretch, on the last minibatch of val.
        gradient_norm: norm of the estimated hypergradient; over a stretch of several steps, that of the mean direction
            (the change of lam over the sum of the outer steps).
        code: the worst :class:`~bilevax.Code` of its steps.
        samples: samples up to and including the stretch.
        seconds: time since the start when the compiled call that made it was done, compilation included.
        step: outer steps done at its end.

    Examples:
        >>> import bilevax as bx
        >>> bx.History._fields  # an entry for each stretch of steps
        ('outer_value', 'gradient_norm', 'code', 'samples', 'seconds', 'step')
    """

    outer_value: np.ndarray
    gradient_norm: np.ndarray
    code: np.ndarray
    samples: np.ndarray
    seconds: np.ndarray
    step: np.ndarray


class Result(NamedTuple):
    """The end of a run.

    Attributes:
        w: the last inner variable.
        lam: the last outer variable; the last finite one if the run became non-finite.
        code: the worst :class:`~bilevax.Code` of its steps.
        failure: of the first step with that code.
        history: one entry a stretch of outer steps.
        cost: oracle calls of the whole run.
        config: the problem and the algorithm as plain values, JSON-ready.
        interrupted: True if the user stopped it; everything above is what was reached.
        at_bound: like lam; True where an entry is on the boundary of the set Lambda; None where the projection does not
            say.

    Examples:
        >>> import bilevax as bx
        >>> bx.Result._fields[:4]  # made by bx.minimize
        ('w', 'lam', 'code', 'failure')
    """

    w: PyTree
    lam: PyTree
    code: int
    failure: Failure
    history: History
    cost: Cost
    config: dict[str, PyTree]
    interrupted: bool
    at_bound: PyTree = None

    @property
    def message(self) -> str:
        """What happened, in which stage of which outer step, the likely causes, and what to try."""
        message = self.failure.describe(Code(self.code), self._place)
        if self.code >= Code.NOT_CONTRACTIVE:
            message += " The run stopped there, with the w and lam before it."
        for step, damping in self.config.get("damping", [])[-1:]:
            message += f" The linear systems are damped by {damping:g} from outer step {step} on (`damping`)."
        leaves = jax.tree.leaves(self.at_bound)
        held, entries = (sum(int(count(x)) for x in leaves) for count in (np.count_nonzero, np.size))
        return message + (f" The set of lam holds back {held} of its {entries} entries." if held else "")

    @property
    def _place(self) -> str:
        """Which outer steps have the worst code first."""
        if not len(self.history.code):
            return ""
        # Codes are ordered by severity, and argmax is the first of several.
        at = int(np.argmax(self.history.code))
        first, last = int(self.history.step[at - 1]) if at else 0, int(self.history.step[at]) - 1
        return f" of outer step {last}" if first == last else f" of outer steps {first} to {last}"

    def __repr__(self) -> str:
        """In one line: code, what the run did to the outer value, and shapes."""
        values = np.asarray(self.history.outer_value)
        steps = int(self.history.step[-1]) if len(values) else 0
        course = f"outer_value {values[0]:.3g} to {values[-1]:.3g} in {steps} steps" if steps else "no steps"
        return f"Result({Code(self.code).name}, {course}; lam {shown.shape(self.lam)}; w {shown.shape(self.w)})"
