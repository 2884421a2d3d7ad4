"""What estimators of one run that does not go on have in common."""

from typing import ClassVar, NamedTuple

from jax import Array

from bilevax.core.estimator import Diagnosis, Estimator, ExtensibleEstimator, Run
from bilevax.core.instance import Instance
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree


class Once(NamedTuple):
    """The state of a run.

    Attributes:
        w: where it starts, or ended.
        v: likewise; None: at 0, or nothing stands for it.
        trace: the evidence for its error report; None before the run, and of one that makes its own.
    """

    w: PyTree
    v: PyTree | None = None
    trace: PyTree = None


class RunsOnce:
    """An estimator whose run does not go on; one that starts from v, or keeps evidence, says so by its own methods."""

    extensible: ClassVar[bool] = False

    def init(self, instance: Instance, w0: PyTree, *, key: Array, v0: PyTree | None = None) -> Once:
        """A run without a step."""
        return Once(w0)

    def extend(
        self: Estimator, instance: Instance, state: Once, *, key: Array, doublings: Array | int = 0
    ) -> tuple[Estimate, Once]:
        """The estimate, and where w ended; no run goes on, and ``doublings`` is 0."""
        est = self.estimate(instance, state.w, key=key)
        return est, Once(est.w)

    def diagnose(
        self: ExtensibleEstimator, instance: Instance, run: Run, estimate: Estimate, *, key: Array, stage: str
    ) -> Diagnosis | None:
        """The run again, with what was suspected of its chain looked into, if that is the stage that failed."""
        if stage != "inner":
            return None
        est, _ = self.extend(instance, run.before, key=key)
        return Diagnosis(est.code, est.failure, est.w, est.v, est.cost.measuring)
