"""What estimators whose runs have a state have in common, and those of one run that does not go on."""

from typing import ClassVar, NamedTuple, Self

from jax import Array

from bilevax.core.config import replace_unchecked
from bilevax.core.estimator import Diagnosis, Estimator, ExtensibleEstimator, Run
from bilevax.core.instance import Instance
from bilevax.core.records import Estimate
from bilevax.core.trees import PyTree
from bilevax.solvers.chain import confirms


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


class FromState:
    """An estimator whose estimate is a run from a state without a step."""

    def estimate(
        self: ExtensibleEstimator,
        instance: Instance,
        w0: PyTree,
        *,
        key: Array,
        outer_step: Array | int = 0,
        v0: PyTree | None = None,
    ) -> Estimate:
        """One hypergradient; pure and traceable.

        Args:
            instance: with its inner step measured.
            w0: start of w.
            key: of its streams, each of which has a name.
            outer_step: for counts that grow.
            v0: start of v, where that is iterated; None: 0.
        """
        return self.extend(instance, self.init(instance, w0, key=key, v0=v0), key=key, outer_step=outer_step)[0]

    def suspecting(self) -> Self:
        """The same, but a suspicion that an iteration does not contract is not tested, in any of its solvers."""
        solvers = {name: getattr(self, name, None) for name in ("inner", "linear")}
        suspects = {name: replace_unchecked(x, confirm=False) for name, x in solvers.items() if confirms(x)}
        return replace_unchecked(self, **suspects, **({"confirm": False} if confirms(self) else {}))


class RunsOnce(FromState):
    """An estimator whose run does not go on; one that starts from v, or keeps evidence, says so by its own methods."""

    extensible: ClassVar[bool] = False

    def init(self, instance: Instance, w0: PyTree, *, key: Array, v0: PyTree | None = None) -> Once:
        """A run without a step."""
        return Once(w0)

    def extend(
        self: Estimator,
        instance: Instance,
        state: Once,
        *,
        key: Array,
        doublings: Array | int = 0,
        outer_step: Array | int = 0,
    ) -> tuple[Estimate, Once]:
        """The estimate, and where w ended; no run goes on, and ``doublings`` is 0."""
        est = self.estimate(instance, state.w, key=key, outer_step=outer_step)
        return est, Once(est.w)

    def diagnose(
        self: ExtensibleEstimator, instance: Instance, run: Run, estimate: Estimate, *, key: Array, stage: str
    ) -> Diagnosis | None:
        """The run again, with what was suspected of its chain looked into, if that is the stage that failed."""
        if stage != "inner":
            return None
        est, _ = self.extend(instance, run.before, key=key)
        return Diagnosis(est.code, est.failure, est.w, est.v, est.cost.measuring)
