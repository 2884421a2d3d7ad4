"""Rows that are too many to hold: a model is chosen on some of them, and fitted to all in passes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple, Protocol

import numpy as np

from bilevax.core.processes import Processes
from bilevax.solvers.additive_models import AdditiveFit
from bilevax.solvers.additive_passes import Passing, Sums
from bilevax.tables.additive import Source
from bilevax.tables.ahead import ahead, made_of
from bilevax.tables.effects import Effect
from bilevax.tables.marginals import Marginal

PASSES = 20
"""Newton steps, at most."""

BLOCK = 1 << 25
"""Bytes of the bins, targets and weights of rows that are summed at once: a sum takes a time of its own."""


class EveryRow(Protocol):
    """All rows, of which a fit has some.

    Attributes:
        processes: to which they are dealt.
    """

    processes: Processes

    def marginal(self, source: Source) -> Marginal:
        """Of the cells of an effect."""

    def bins_of_pass(
        self, sources: Sequence[Source], effects: Sequence[Effect], number: int, *, again: bool
    ) -> Iterator[tuple[list[np.ndarray], np.ndarray, int]]:
        """Of rows of this process the bins in each effect, the targets, and the stratum, from the first to the last.

        ``again``: whether another pass is likely.
        """

    def kept(self, name: str) -> Mapping[str, np.ndarray] | None:
        """What was kept of a pass by an earlier fit to the same rows."""

    def keep(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep what a pass found."""

    def ended(self) -> bool:
        """Whether the passes are to end: what the whole ones say is kept."""


class Targets(NamedTuple):
    """Targets as a family takes them, and weights, [n] each."""

    y: np.ndarray
    weight: np.ndarray


class ByPasses(NamedTuple):
    """What became of a mixture.

    Attributes:
        mixture: the fits, and their shares.
        passes: over all rows, whole ones.
        ended: whether they were ended before the weights had settled.
    """

    mixture: list[tuple[AdditiveFit, float]]
    passes: int
    ended: bool


def fit_to_every_row(
    every: EveryRow,
    sources: Sequence[Source],
    mixture: Sequence[tuple[AdditiveFit, float]],
    targets: Callable[[np.ndarray], Targets],
) -> ByPasses:
    """The models of a mixture, fitted to all rows, all of them in the same passes.

    Raises:
        DataError: another process starts from other models.
    """
    models = [Passing(fit) for fit, _ in mixture]
    found = {f"model {i} (crc32)": model.crc32 for i, model in enumerate(models)}
    every.processes.require_same("what is chosen on some rows, with processors of one kind,", found)
    effects = mixture[-1][0].rows.effects
    names = {model: f"model{i}" for i, model in enumerate(models)}
    ended, going = False, [m for m in models if not m.restored(every.kept(names[m])) or m.step()]

    again = mixture[-1][0].rows.family.bends

    def coded(number: int) -> Iterator[Coded]:
        for codes, y, stratum in every.bins_of_pass(sources, effects, number, again=again):
            yield codes, targets(y), stratum

    for _ in range(PASSES):
        if not going:
            break
        blocks = ahead(_joined(coded(1 + max(model.passes for model in going))))
        for stratum, each in made_of(blocks, partial(_summed, going)):
            if ended := every.ended():
                break
            for model, parts in zip(going, each, strict=True):
                model.add(parts, stratum)
        if ended := every.processes.any(ended):
            break
        for model in going:
            model.end(every.processes)
            every.keep(names[model], model.state())
        going = [model for model in going if model.step()]
    counted = tuple(_counted(every, *each) for each in zip(sources, effects, strict=True))
    fits = [(model.fitted(counted), share) for model, (_, share) in zip(models, mixture, strict=True)]
    return ByPasses(fits, max(model.passes for model in models), ended)


Coded = tuple[list[np.ndarray], Targets, int]
"""Bins of the columns, targets, stratum."""


def _summed(models: Sequence[Passing], block: Coded) -> tuple[int, list[list[Sums]]]:
    """Its stratum, and what it is to each model."""
    codes, of, stratum = block
    return stratum, [model.sums(codes, *of) for model in models]


def _joined(pieces: Iterable[Coded]) -> Iterator[Coded]:
    """The same rows in pieces of ``BLOCK``, each of one stratum."""
    for stratum, own in groupby(pieces, itemgetter(2)):
        parts: list[Coded] = []
        size = 0
        for codes, of, _ in own:
            parts.append((codes, of, stratum))
            size += sum(x.nbytes for x in (*codes, *of))
            if size >= BLOCK:
                yield _concatenated(parts)
                parts, size = [], 0
        if parts:
            yield _concatenated(parts)


def _concatenated(parts: list[Coded]) -> Coded:
    codes, of, strata = zip(*parts, strict=True)
    y, weight = map(np.concatenate, zip(*of, strict=True))
    return [np.concatenate(each) for each in zip(*codes, strict=True)], Targets(y, weight), strata[0]


def _counted(every: EveryRow, source: Source, effect: Effect) -> Effect:
    """The effect with the weights of all rows in its bins."""
    values, rows, _ = every.marginal(source)
    return replace(effect, weight=np.bincount(effect.codes(values), rows, len(effect.weight)))
