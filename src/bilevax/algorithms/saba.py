"""SABA: SOBA with SAGA's variance reduction on every part of its directions.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, the state and one block each of train and
val, as looks. Out, to the loop: the next state. The directions and the tables are those of ``solvers.parts``.
"""

from typing import ClassVar, NamedTuple

from jax import Array

from bilevax.algorithms.common import WithMemory, step_sizes, together_cost
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import config
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import BilevelProblem, RowSource, Sources, StepLooks
from bilevax.core.records import Cost, Info
from bilevax.core.trees import PyTree
from bilevax.solvers.parts import (
    Point,
    Saga,
    inner_directions,
    joined,
    moved,
    outer_directions,
    saga,
    saga_table,
    start,
)


class State(NamedTuple):
    """The point, and the tables of the parts of the directions that train and val give, a row a block."""

    p: Point
    inner: Saga
    outer: Saga


@config
class SABA(WithMemory):
    """The moves of :class:`~bilevax.SOBA`, its directions estimated with memory (SAGA).

    Of each block i of train the last (grad_1 G, H u, d2(grad_1 G)^T u) is kept, and of each of val the last
    (grad_1 E, grad_2 E). A part of the directions is new_i - old_i + mean of all that is kept, so that its noise goes
    to 0 with the moves, and constant steps lead to the solution itself. What is kept is 0 at first.

    Steps are in loss form, as in SOBA. Assumes G strongly convex, smooth losses, and blocks: sources with
    ``sampling="blocks"``, or every row at once; a short last block weighs less. The squared hypergradient falls as 1/K,
    linearly where f has the Polyak-Lojasiewicz property. Cost: that of SOBA; memory: 2 d + m numbers a block of train,
    d + m a block of val.
    Source: Dagreou, Ablin, Vaiter, Moreau (2022), arXiv:2201.13409.

    Args:
        step_size: rho_k, a number or a schedule; None (default): measured at the start of the run.
        ratio: gamma_k / rho_k, positive; None (default): measured.

    Raises:
        ParameterError: a source is drawn otherwise (when a run begins).

    Examples:
        >>> import bilevax as bx
        >>> bx.SABA(step_size=0.1, ratio=0.3)  # with sources of sampling="blocks"
        SABA(step_size=Constant(value=0.1), ratio=0.3)
    """

    # rows of one curvature: what is kept and w's error grow by (1 - a)^2 + a^2 a move, 1 at a = 1; and while lam moves
    # what is kept is of another lam
    defaults: ClassVar[Defaults] = Defaults(0.7, 0.1)

    def streams(self, sources: Sources) -> dict[str, RowSource]:
        """One block of train and one of val a step."""
        streams = dict(zip(("train", "val"), sources, strict=True))
        for name, source in streams.items():
            if source.blocks is None:
                raise ParameterError(
                    f"SABA remembers blocks, and {name} has none: use bx.Arrays(..., sampling='blocks')"
                )
        return streams

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> State:
        """The state before the first step: empty tables, u is u0, or 0; lam projected."""
        streams, p = self.streams(sources), start(problem, w0, lam, u0)
        tables = (saga_table(like, streams[name].blocks or 1) for name, like in (("train", p), ("val", (w0, lam))))
        return State(p, *tables)

    def step(self, problem: BilevelProblem, state: State, looks: StepLooks, k: Array) -> tuple[State, Info]:
        """One step of all three; the loop evaluates the outer value and the gradient norm."""
        p, train, val = state.p, looks["train"], looks["val"]
        # (-grad_1 G, -H u, -d2(grad_1 G)^T u) of block i: new_i - old_i + mean of the table
        inner, of_train = saga(state.inner, inner_directions(problem, p, train), train.block)
        # (grad_1 E, grad_2 E) of a block of val, likewise
        outer, of_val = saga(state.outer, outer_directions(problem, p.w, p.lam, val), val.block)
        # the parts added up: (-grad_1 G, grad_1 E - H u, grad_2 E - d2(grad_1 G)^T u)
        p = moved(problem, p, joined(inner, outer), *step_sizes(self, k, p.w, p.lam))
        return State(p, of_train, of_val), Info()

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost:
        """Three calls on one minibatch of train, which is read once, and one on one of val."""
        return together_cost(sources)
