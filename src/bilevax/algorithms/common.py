"""What algorithms have in common: steps rho_k of the inner and gamma_k = ratio rho_k of the outer level, and costs."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol, TypeAlias, cast, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.config import config, or_none, positive, positive_fraction, set_frozen
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import BilevelProblem, Sources, StepLooks
from bilevax.core.records import Cost, Count
from bilevax.core.trees import PyTree
from bilevax.data import Several, Undrawn
from bilevax.data.looks import Stream, Uniform
from bilevax.problems.gradient_step import GradientStep
from bilevax.solvers.parts import Pair, projected
from bilevax.solvers.schedules import Constant, Polynomial, Schedule, StepSize, schedule

Draws: TypeAlias = Mapping[str, Stream]
"""What each step draws, by name."""


class TwoSteps(Protocol):
    """An algorithm with these two settings."""

    @property
    def step_size(self) -> "StepSize | StepRule | None":
        """rho_k; None: not measured yet."""

    @property
    def ratio(self) -> float | None:
        """gamma_k / rho_k; None: not measured yet."""


class InLossForm:
    """What algorithms with these steps, in loss form, have in common, but for those that say otherwise themselves."""

    steps_per_record: ClassVar[int] = 256

    def check(self: TwoSteps, problem: BilevelProblem) -> None:
        """Refuse damping without a given inner step."""
        check_damping(self, problem)

    def streams(self, sources: Sources) -> Draws:
        """One minibatch of train and one of val a step."""
        train, val = sources
        return {"train": train, "val": val}

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> PyTree:
        """The state before the first step, w and lam; u0 plays no part; lam projected."""
        return Pair(w0, projected(problem, lam))

    def outer_step_size(self: TwoSteps, k: Array) -> Array | None:
        """gamma_k, the step of lam."""
        return outer_step_size(self, k)

    def solution(self, state: PyTree) -> tuple[PyTree, PyTree]:
        """The inner and the outer variable of a state."""
        return state.w, state.lam

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost | None:
        """None: every step reports its own."""
        return None


@config
class ScheduledSteps(InLossForm):
    """An algorithm whose steps are given as numbers or schedules, or left to be measured."""

    step_size: StepSize | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        set_frozen(self, **checked_steps(self))


class WithMemory(ScheduledSteps):
    """One that carries more than its variables: ``state.p``, a Point or a Pair, are these."""

    def solution(self, state: PyTree) -> tuple[PyTree, PyTree]:
        """The inner and the outer variable of a state."""
        return state.p.w, state.p.lam


class TwoTimescales(ScheduledSteps):
    """One whose lam moves by ever smaller steps than w."""

    outer_power: float

    def outer_step_size(self, k: Array) -> Array:
        """gamma_k = ratio rho_0 (rho_k / rho_0)^a: of order k^(-a b) where rho_k is of order k^(-b), a at least 1."""
        rho, ratio = rates(self)
        rho_0 = rho(jnp.int32(0))
        # ratio rho_0 (rho_k / rho_0)^a
        return ratio * rho_0 * (rho(k) / rho_0) ** self.outer_power


class FirstOrder(ScheduledSteps):
    """One of first derivatives alone, with a multiplier in units of the measured ratio of gradients."""

    multiplier: float
    unit: float | None

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a map that is no gradient step, and damping."""
        check_inner_loss(self, problem)
        check_no_damping(self, problem)

    def first_multiplier(self) -> float:
        """c_0 = unit multiplier.

        Raises:
            ParameterError: the unit was left to be measured, and was not.
        """
        check_measured(self, "unit")
        return cast(float, self.unit) * self.multiplier


class Penalised(FirstOrder):
    """One whose multiplier grows."""

    growth: float

    def grown(self, k: Array) -> Array:
        """c_k / c_0."""
        # (1 + k)^growth
        return (1.0 + k.astype(float)) ** self.growth

    def penalty(self, k: Array) -> Array:
        """c_k = unit multiplier (1 + k)^growth."""
        return jnp.asarray(self.first_multiplier() * self.grown(k))


@runtime_checkable
class StepRule(Protocol):
    """What chooses the steps of both levels; see :class:`~bilevax.BiSLS`."""

    @property
    def outer(self) -> StepSize:
        """Envelope of the outer step."""

    @property
    def outer_decrease(self) -> float:
        """p, of the decrease that a step of lam promises."""

    @property
    def slack(self) -> float:
        """What E may rise by, as a part of itself."""

    @property
    def halvings(self) -> int:
        """The most in one search."""

    def inner_step(
        self, loss: Callable[[PyTree], Array], w: PyTree, at: tuple[Array, PyTree], k: Array
    ) -> tuple[Array, Array]:
        """The step of w against a gradient, in loss form, and how many values of the loss were asked for."""


WHOLE = "source of train", "source of val"
"""Names of the streams of :func:`undrawn`."""


def checked_steps(algorithm: TwoSteps, *, rules: bool = False) -> dict[str, object]:
    """Its step size as a schedule and its ratio, each None where it is to be measured.

    Raises:
        ParameterError: the step size is no schedule and no positive number, or the ratio is not positive; or it is a
            rule, and ``rules`` says that there is nothing for it to choose, or a ratio is given beside it.
    """
    rho, ratio = algorithm.step_size, algorithm.ratio
    if isinstance(rho, StepRule):
        cls, name = type(algorithm).__name__, type(rho).__name__
        if not rules:
            raise ParameterError(f"{name} chooses the steps of bx.AmIGO and bx.StocBiO alone; give {cls} a step size")
        if ratio is not None:
            raise ParameterError(f"{name} owns the steps of both levels, and their ratio plays no part: leave it out")
        return {"step_size": rho, "ratio": None}
    return {"step_size": or_none(schedule)("step_size", rho), "ratio": or_none(positive)("ratio", ratio)}


def memory_weight(weight: StepSize) -> Schedule:
    """The weights eta_k of STORM as a schedule, from one or from a number in (0, 1].

    Raises:
        ParameterError: neither.
    """
    return weight if callable(weight) else Constant(positive_fraction("weight", weight))


@config
class CurvatureStep:
    """The measured rho_k = a_k / (L + p(lam)), an entry each, where the loss tells the curvature p of its penalty.

    So a penalty that grows with lam never makes the step too long.

    Args:
        schedule: a_k / L.
        curvature: L, the largest curvature that was met.
        penalty: (w, lam) -> p, to broadcast against w.
    """

    schedule: Polynomial
    curvature: Array
    penalty: Callable[[PyTree, PyTree], PyTree]

    def __call__(self, k: Array) -> Array:
        """a_k / L."""
        return self.schedule(k)

    def at(self, k: Array, w: PyTree, lam: PyTree) -> PyTree:
        """A tree like w."""
        rho = self.schedule(k)

        def entry(x: Array, p: Array) -> Array:
            # (a_k / L) L / (L + p)
            L = self.curvature.astype(x.dtype)
            return jnp.broadcast_to(rho.astype(x.dtype) * L / (L + p), x.shape)

        # what is measured has no derivative
        return jax.lax.stop_gradient(jax.tree.map(entry, w, self.penalty(w, lam)))


def step_sizes(algorithm: TwoSteps, k: Array, w: PyTree, lam: PyTree) -> tuple[PyTree, Array]:
    """rho_k, a scalar or a tree like w (:class:`CurvatureStep`), and gamma_k.

    Raises:
        ParameterError: one of them was left to be measured, and was not.
    """
    step, _ = rates(algorithm)
    rho = step.at(k, w, lam) if isinstance(step, CurvatureStep) else step(k)
    return rho, outer_step_size(algorithm, k)


def rates(algorithm: TwoSteps) -> tuple[Schedule, float]:
    """rho, as the function of k that :func:`checked_steps` has made of it, and the ratio gamma_k / rho_k.

    Raises:
        ParameterError: one of them was left to be measured, and was not.
    """
    check_measured(algorithm, "step_size", "ratio")
    return cast(Schedule, algorithm.step_size), cast(float, algorithm.ratio)


def series_step(algorithm: TwoSteps, w: PyTree, lam: PyTree) -> PyTree:
    """rho_0, the step of a truncated Neumann series: one that falls with rho_k is cut off ever earlier."""
    return step_sizes(algorithm, jnp.int32(0), w, lam)[0]


def check_measured(algorithm: TwoSteps, *names: str) -> None:
    """Refuse to go on where one of these was left to be measured, and was not."""
    if missing := " and its ".join(name for name in names if getattr(algorithm, name) is None):
        cls = type(algorithm).__name__
        raise ParameterError(
            f"{cls} was built without its {missing}, and nobody measured that: bx.minimize does; in a loop of your own,"
            f" call bx.measure_steps first, or give {cls} its {missing}"
        )


def outer_step_size(algorithm: TwoSteps, k: Array) -> Array:
    """gamma_k = ratio rho_k."""
    rho, ratio = rates(algorithm)
    return ratio * rho(k)


def check_damping(algorithm: TwoSteps, problem: BilevelProblem) -> None:
    """Refuse damping without a given inner step s: in loss form it adds delta / s to H."""
    step = problem.inner_map
    if problem.damping is not None and isinstance(step, GradientStep) and step.step_size is None:
        raise ParameterError(
            f"damping is in units of the inner step, and {type(algorithm).__name__} measures none: give GradientStep"
            " one"
        )


def check_inner_loss(algorithm: object, problem: BilevelProblem) -> None:
    """Refuse a map that is no gradient step."""
    if not problem.has_loss:
        name = type(algorithm).__name__
        raise ParameterError(f"{name} needs an inner loss: give Problem a GradientStep, or use bx.SOBA")


def check_no_damping(algorithm: object, problem: BilevelProblem) -> None:
    """Refuse damping."""
    if problem.damping is not None:
        name = type(algorithm).__name__
        raise ParameterError(f"{name} solves no linear system, which damping could change: leave damping away")


def together_cost(sources: Sources) -> Cost:
    """Of a step that moves all three on one minibatch of train, which is read once, and on one of val."""
    train, val = (source.rows_per_batch for source in sources)
    # grad_1 G, H u and the cross product on the same rows: read for the first alone
    rereading = Count(1, train, reads=0)
    return Cost(Count(1, train), rereading, rereading, Count(1, val))


def double_loop_cost(sources: Sources, inner: Array | int, linear: Array | int) -> Cost:
    """Of so many inner gradients and Hessian-vector products, each on rows of its own, a cross product, and grad E."""
    train, val = (source.rows_per_batch for source in sources)
    return Cost(Count(inner, train), Count(linear, train), Count(1, train), Count(1, val))


def drawn_streams(sources: Sources, linear: Array | int) -> Draws:
    """Of ``drawn_directions``: a minibatch of train, one of val, K of train for products, and how many of these count.

    And the sources themselves, as a step's cost depends on that number.
    """
    train, val = sources
    horizon = Uniform(linear)
    return {"train": train, "val": val, "linear": Several(train, linear), "horizon": horizon, **undrawn(sources)}


def undrawn(sources: Sources) -> dict[str, Undrawn]:
    """Streams that draw nothing, of which a step has the sources themselves (:func:`sources_of`)."""
    return dict(zip(WHOLE, map(Undrawn, sources), strict=True))


def sources_of(looks: StepLooks) -> Sources:
    """(train, val) from the looks at :func:`undrawn` streams."""
    train, val = (looks[name].source for name in WHOLE)
    return train, val
