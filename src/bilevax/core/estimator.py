"""What the driver asks of an estimator of hypergradients, and what the two tell each other."""

from typing import NamedTuple, Protocol, Self, runtime_checkable

from jax import Array

from bilevax.core.instance import Instance
from bilevax.core.protocols import BilevelProblem
from bilevax.core.records import Count, Estimate, Failure
from bilevax.core.trees import PyTree


class Estimator(Protocol):
    """A hypergradient at one lam."""

    def check(self, problem: BilevelProblem) -> None:
        """Refuse in a sentence a problem that lacks what the estimator needs."""

    def estimate(
        self, instance: Instance, w0: PyTree, *, key: Array, outer_step: Array | int = 0, v0: PyTree | None = None
    ) -> Estimate:
        """One hypergradient, pure and traceable, from w0 and v0 (like w0; None: 0), of which ``key`` draws all samples.

        The inner step of the instance is measured; ``outer_step`` is for counts that grow.
        """


# Of algorithms as well as of estimators: BSGM has it by way of its estimator.
@runtime_checkable
class Suspecting(Protocol):
    """A method that looks into a suspicion of divergence, which takes as long to compile as all the rest."""

    def suspecting(self) -> Self:
        """The same, but it takes a suspicion for proof."""


class Run(NamedTuple):
    """States of an estimator before and after it: a diagnosis repeats the failed stage from them.

    Attributes:
        before: w0 of an estimator without states.
        after: with its ``trace``.
        doublings: of the run that was continued; 0 of a run that was not.
    """

    before: PyTree
    after: PyTree
    doublings: Array | int


class Diagnosis(NamedTuple):
    """What was found when the failed stage of an estimate was repeated, alone.

    Attributes:
        code: OK where a suspicion was refuted.
        failure: where.
        w: the last finite one.
        v: likewise.
        checks: diagnostic products.
    """

    code: Array
    failure: Failure
    w: PyTree
    v: PyTree | None
    checks: Count


@runtime_checkable
class ExtensibleEstimator(Estimator, Suspecting, Protocol):
    """An estimator with a state, from which a run goes on, a report is made, and a failure is looked into.

    A state is a NamedTuple with a field ``trace``, the evidence for an error report that its estimate does not have: a
    ``ChainTrace`` of sampled chains, the ``SolverErrors`` of deterministic solvers, or None.
    """

    @property
    def extensible(self) -> bool:
        """True if a run can go on to twice its steps."""

    def deterministic(self, instance: Instance) -> bool:
        """True if every stage sees every row."""

    def init(self, instance: Instance, w0: PyTree, *, key: Array, v0: PyTree | None = None) -> PyTree:
        """The state of a run without a step."""

    def extend(
        self,
        instance: Instance,
        state: PyTree,
        *,
        key: Array,
        doublings: Array | int = 0,
        outer_step: Array | int = 0,
    ) -> tuple[Estimate, PyTree]:
        """The estimate after 2^doublings times the steps, from the state after half of them (of none if 0)."""

    def diagnose(self, instance: Instance, run: Run, estimate: Estimate, *, key: Array, stage: str) -> Diagnosis | None:
        """The failed stage repeated, with what was suspected looked into; None where nothing was."""
