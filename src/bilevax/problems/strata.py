"""The two functions of a problem on stratified rows: a weighted mean of what they are on each stratum."""

from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from jax import Array

from bilevax.core.config import config, replace_unchecked
from bilevax.core.protocols import BilevelProblem, RowSource
from bilevax.core.strata import Strata
from bilevax.core.trees import PyTree
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.proximal_step import ProximalStep

AnyProblem = TypeVar("AnyProblem", bound=BilevelProblem)


class _Curved(Protocol):
    """A loss that knows bounds of its curvature."""

    @property
    def curvature(self) -> Callable[[PyTree, PyTree], Array]: ...

    @property
    def penalty_curvature(self) -> Callable[[PyTree, PyTree], PyTree]: ...


@config
class OverStrata:
    """sum_s a_s fn(w, lam, rows of stratum s) of a batch in strata; of another batch ``fn`` itself.

    It has the bounds of curvature that a loss offers (:class:`~bilevax.GradientStep`), and not its own derivatives:
    those would be had stratum by stratum, where autodiff has those of the sum in one product.

    Args:
        fn: (w, lam, batch) -> a tree of floats, a mean over the rows of the batch.
    """

    fn: Callable[[PyTree, PyTree, PyTree], PyTree]

    def __call__(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        """The mean."""
        if not isinstance(batch, Strata):
            return self.fn(w, lam, batch)
        return batch.mean(lambda rows: self.fn(w, lam, rows))

    @property
    def curvature(self) -> Callable[[PyTree, PyTree], Array]:
        """(w, batch) -> sum_s a_s of the strata's bounds; AttributeError where the loss has none."""
        bound: Callable[[PyTree, PyTree], Array] = cast(_Curved, self.fn).curvature
        return lambda w, batch: (
            batch.bound(lambda rows: bound(w, rows)) if isinstance(batch, Strata) else bound(w, batch)
        )

    @property
    def penalty_curvature(self) -> Callable[[PyTree, PyTree], PyTree]:
        """That of the loss, as a penalty counts once."""
        out: Callable[[PyTree, PyTree], PyTree] = cast(_Curved, self.fn).penalty_curvature
        return out


def over_strata(problem: AnyProblem, *sources: RowSource) -> AnyProblem:
    """The problem where a source is in strata (:func:`bilevax.sharded`); on other sources itself."""
    if not any(getattr(source, "strata", 0) for source in sources):
        return problem
    step: PyTree = problem.inner_map
    if isinstance(step, GradientStep | ProximalStep):
        step = replace_unchecked(step, loss=_lifted(step.loss))
    else:
        step = _lifted(step)
    return replace_unchecked(problem, inner_map=step, outer_loss=_lifted(problem.outer_loss))


def _lifted(fn: Callable[[PyTree, PyTree, PyTree], PyTree]) -> OverStrata:
    return fn if isinstance(fn, OverStrata) else OverStrata(fn)
