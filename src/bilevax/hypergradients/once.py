"""What estimators of one run that does not go on have in common."""

from typing import NamedTuple

from jax import Array

from bilevax.core.estimator import Diagnosis, ExtensibleEstimator, Run
from bilevax.core.instance import Instance
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


def repeated(
    estimator: ExtensibleEstimator, instance: Instance, run: Run, *, key: Array, stage: str
) -> Diagnosis | None:
    """The run again, with what was suspected of its chain looked into, if that is the stage that failed."""
    if stage != "inner":
        return None
    est, _ = estimator.extend(instance, run.before, key=key)
    return Diagnosis(est.code, est.failure, est.w, est.v, est.cost.measuring)
