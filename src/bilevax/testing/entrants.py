"""What is compared: algorithms by name, each made from the steps of a grid or from none."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from bilevax.algorithms import (
    ALSET,
    BOME,
    BSA,
    BSGM,
    F2SA,
    FSLA,
    MAID,
    MASOBA,
    MEHA,
    MRBO,
    MSTSA,
    PZOBO,
    SABA,
    SOBA,
    SRBA,
    SUSTAIN,
    TTSA,
    VPBGD,
    VRBO,
    AmIGO,
    StocBiO,
    optim,
)
from bilevax.core.protocols import Algorithm
from bilevax.hypergradients import SID
from bilevax.solvers import FixedPoint, Growing
from bilevax.testing.descent import Descent


class Steps(NamedTuple):
    """Steps in units of a problem's curvatures: L of the inner loss, K of f at the start.

    Attributes:
        inner: rho L, of the step rho of the inner level.
        outer: gamma K, of the step gamma of the outer level.
        L: positive.
        K: positive.
    """

    inner: float
    outer: float
    L: float
    K: float

    @property
    def rho(self) -> float:
        """The step of the inner level in loss form."""
        return self.inner / self.L

    @property
    def ratio(self) -> float:
        """gamma / rho."""
        return self.outer / self.K / self.rho


Entrant: TypeAlias = Callable[[Steps | None], Algorithm]
"""Makes an algorithm of given steps; of None, as it is built without arguments."""


def bsgm(steps: Steps | None) -> BSGM:
    """Warm-started, with counts that grow as the square root of the outer step.

    Without steps Adam with rate .05 and the map's own step, as BSGM measures nothing; else plain steps.
    """
    outer = optim("adam", 0.05) if steps is None else optim("sgd", steps.outer / steps.K)
    # the map's step is about 1 / L: a step of rho in loss form is rho L of it
    chain = FixedPoint(Growing(10.0, 0.5), 1.0 if steps is None else steps.inner)
    return BSGM(SID(chain, chain, Growing(1.0, 0.5), Growing(1.0, 0.5)), outer, warm_start=True)


def maid(steps: Steps | None) -> MAID:
    """Of the two steps it has that of lam, and only at first."""
    return MAID() if steps is None else MAID(steps.outer / steps.K)


BY_TWO_STEPS = (
    SOBA, MASOBA, SABA, SRBA, FSLA, AmIGO, StocBiO, BSA, ALSET, TTSA, MSTSA, SUSTAIN, MRBO, VRBO, F2SA, VPBGD,
    MEHA, BOME, PZOBO,
)  # fmt: skip


def _by_two_steps(kind: Callable[..., Algorithm]) -> Entrant:
    return lambda steps: kind() if steps is None else kind(steps.rho, steps.ratio)


ENTRANTS: dict[str, Entrant] = {
    **{kind.__name__: _by_two_steps(kind) for kind in BY_TWO_STEPS},
    "MAID": maid,
    "BSGM": bsgm,
    "Descent": lambda steps: Descent(),
}
"""The algorithms of the package, and the plain deterministic method."""

GRID = tuple((inner, outer) for inner in (1.0, 0.3, 0.1, 0.03) for outer in (3.0, 1.0, 0.3, 0.1, 0.03, 0.01))
"""Twenty-four pairs (rho L, gamma K), the same for all."""
