"""What the rooms ask of one another, and of a user's own classes: structural types, with shapes."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

from jax import Array

from bilevax.core.config import Steps
from bilevax.core.records import Cost, Info, Solution
from bilevax.core.trees import Operator, PyTree

Carry = TypeVar("Carry")
Total = TypeVar("Total")


class Draw(NamedTuple):
    """One minibatch.

    Attributes:
        batch: what the losses see, a pytree with leading axis b.
        block: number of the block in ``sampling="blocks"``, else -1.
        weight: factor on the step that makes every row count once an epoch; 1 but for blocks with a short last one.
    """

    batch: PyTree
    block: Array | int
    weight: Array | float


class Keyed(NamedTuple):
    """A batch with random numbers of its own, of a source with ``keys=True``.

    Attributes:
        rows: what the batch would be without, a pytree with leading axis b.
        key: one JAX random key, another in every draw.
    """

    rows: PyTree
    key: Array


class Source(Protocol):
    """Where minibatches come from. Minibatch j is a pure function of (key, j).

    The rows of many consecutive minibatches, a chunk, are chosen at once: a *plan*.
    """

    def plan_chunk(self, plan: PyTree, key: Array, j: Array, first: Array | bool) -> PyTree:
        """The plan of the chunk that minibatch j opens; ``plan`` itself where j opens none and is not the first."""

    def chunk_end(self, j: Array) -> Array:
        """The first minibatch after j that opens a chunk."""

    # It takes what is done with the draw, and does not return it: only so can a short block have another shape.
    def visit(self, plan: PyTree, j: Array, use: Callable[[PyTree], Carry]) -> Carry:
        """``use(draw)`` of minibatch j, which lies in the chunk of the plan; of several sources, a dict of draws."""

    def fold(
        self,
        step: Callable[..., Carry],
        carry: Carry,
        args: PyTree,
        *,
        key: Array,
        start: Array | int,
        stop: Array | int,
    ) -> Carry:
        """Run ``carry = step(carry, args, j, draw)`` for start <= j < stop.

        Of several stops, [K] in order, the carry at each is given, stacked.
        """


@runtime_checkable
class UnevenSource(Source, Protocol):
    """A source with a smaller minibatch now and then, which it can foresee: a loop need not branch at each of them."""

    @property
    def uneven(self) -> bool:
        """True if it has such minibatches, at places that no key changes."""

    def next_short(self, plan: PyTree, j: Array) -> Array:
        """The first short minibatch from j on in the chunk of the plan; where there is none, the next chunk."""

    def visit(self, plan: PyTree, j: Array, use: Callable[[PyTree], Carry], short: bool | None = None) -> Carry:
        """``use(draw)`` of minibatch j; ``short``: whether that is a short one, None where it must be looked up."""


class RowSource(Source, Protocol):
    """A source over one table of n rows, which need not be in memory.

    Every row is read through :meth:`total`, shapes through :meth:`example`.
    """

    @property
    def rows(self) -> int:
        """Number of rows, n."""

    @property
    def rows_per_batch(self) -> int:
        """Number of rows in a minibatch, b."""

    @property
    def is_full_batch(self) -> bool:
        """True if each minibatch is every row."""

    @property
    def blocks(self) -> int | None:
        """Number of fixed minibatches of which each draw is one; 1 of a full batch, None where there are none."""

    @property
    def keys(self) -> bool:
        """True if a batch is :class:`Keyed`, so that no pass over every row stands for the mean over draws."""

    def total(self, fn: Callable[[PyTree, PyTree], Total], args: PyTree) -> Total:
        """The mean of ``fn(args, batch)`` over every row: sum_p n_p / n fn(args, piece p), n_p the rows of a piece.

        A table in memory is one piece, ``fn(args, every row)``; what is larger, or in several places, comes in the
        pieces in which it is there. The pieces do not matter where ``fn`` is a mean over the rows of its batch, as a
        loss with its penalty, its derivatives and a gradient step are; the prox of a mean is none. In ``args`` it can
        be differentiated and mapped like ``fn``. Of a source with ``keys`` every call sees the same ones.

        Args:
            fn: (args, batch) -> a tree of floats.
            args: what ``fn`` reads beside the batch, a pytree of arrays.
        """

    def example(self) -> PyTree:
        """A batch as ``jax.eval_shape`` takes it: structure, shapes and dtypes, its number of rows any possible one."""

    @property
    def all_rows(self) -> PyTree:
        """Every row as one batch, for what looks at rows one by one; None of a table that is not in memory as one."""


Sources: TypeAlias = tuple[RowSource, RowSource]
"""(train, val): what the inner and the outer level draw from."""


class Loss(Protocol):
    """The mean of a loss over the rows of a batch.

    It may offer, by methods of these names, what is faster or better than autodiff's: ``value_and_grad(w, lam, batch)``
    and ``hessian_product(w, lam, batch, v)``; and, for a measured step, ``curvature(w, batch)`` and
    ``penalty_curvature(w, lam)`` (:class:`~bilevax.GradientStep`).
    """

    def __call__(self, w: PyTree, lam: PyTree, batch: PyTree, /) -> Array:
        """A scalar, []."""


class InnerMap(Protocol):
    """Phi, unbiased for a contraction in w."""

    def __call__(self, w: PyTree, lam: PyTree, batch: PyTree, /) -> PyTree:
        """Phi(w, lam; zeta), like w."""


class BilevelProblem(Protocol):
    """The two oracles of a bilevel problem; w has d entries, lam has m; zeta and xi are minibatches."""

    @property
    def inner_map(self) -> InnerMap:
        """Phi."""

    @property
    def project(self) -> Callable[[PyTree], PyTree] | None:
        """Projection of lam onto the set Lambda; None: everything."""

    @property
    def has_loss(self) -> bool:
        """True if the inner map is a gradient step of a smooth loss."""

    @property
    def composite(self) -> bool:
        """True if the inner map is known as G(That), the sample in That alone and G a proximal step."""

    @property
    def symmetric(self) -> bool:
        """True if I - d1Phi is self-adjoint in the metric."""

    @property
    def damping(self) -> Array | float | None:
        """Delta >= 0; None: 0."""

    def with_unit_step(self) -> "BilevelProblem":
        """Itself with 1 for the inner step, where there is one."""

    @property
    def outer_loss(self) -> Loss:
        """E, []."""

    def metric(self, w: PyTree, lam: PyTree) -> PyTree:
        """Positive weights s, like w: I - d1Phi^T is self-adjoint for <a, b> = sum_i a_i s_i b_i."""

    @property
    def inner_loss(self) -> Loss:
        """The loss of which the inner map is a gradient step."""

    def with_measured_step(self, w0: PyTree, lam: PyTree, train: RowSource, key: Array) -> "BilevelProblem":
        """Itself with the inner step filled in, where there is one that is not given."""

    def measuring_products(self, train: RowSource) -> int:
        """Products on a minibatch that this takes; 0 where nothing is measured."""

    def inner_image(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        """Phi(w, lam; zeta), like w."""

    def smooth_image(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        """That(w, lam; zeta), like w; Phi itself of a gradient step."""

    def proximal_image(self, u: PyTree, w: PyTree, lam: PyTree) -> PyTree:
        """G(u, lam) of a composite map, like w: Phi(w, lam) where u is That(w, lam)."""

    def relaxed_image(self, w: PyTree, lam: PyTree, batch: PyTree, eta: Array) -> PyTree:
        """G_eta((1 - eta) w + eta That(w, lam; zeta)), like w, G_eta with a step shorter by eta."""

    def linearised(self, u: PyTree) -> "BilevelProblem":
        """Itself with G linearised at u; where that is the identity, itself."""

    def adjoint_product(self, w: PyTree, lam: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        """d1Phi(w, lam; zeta)^T v, like w."""

    def system_product(self, w: PyTree, lam: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        """(I - d1Phi(w, lam; zeta)^T) v, like w."""

    # The map of the stochastic linear solver: its fixed point is v.
    def affine_image(self, w: PyTree, lam: PyTree, batch: PyTree, g: PyTree, v: PyTree) -> PyTree:
        """d1Phi(w, lam; zeta)^T v + g, like w."""

    def cross_product(self, w: PyTree, lam: PyTree, batch: PyTree, v: PyTree) -> PyTree:
        """d2Phi(w, lam; zeta)^T v, like lam."""

    def outer_gradients(self, w: PyTree, lam: PyTree, batch: PyTree) -> tuple[Array, PyTree, PyTree]:
        """E(w, lam; xi) [], grad_1 E like w, grad_2 E like lam."""


class StochasticSolver(Protocol):
    """The fixed point of a map that is seen through minibatches, for w as for v."""

    @property
    def stochastic(self) -> Literal[True]:
        """It draws minibatches."""

    @property
    def steps(self) -> Steps:
        """How many it makes."""

    def solve(
        self,
        image: Callable[[PyTree, PyTree, PyTree], PyTree],
        start: PyTree,
        args: PyTree,
        source: RowSource,
        *,
        key: Array,
        outer_step: Array | int = 0,
        first: Array | int = 0,
    ) -> Solution:
        """X = E T(x; zeta), with T as (x, args, batch) -> x, like ``start``; from minibatch ``first`` on."""


class LossSolver(Protocol):
    """A minimiser of the inner loss on every row.

    One that says ``takes_prox = True`` takes a :class:`~bilevax.ProximalStep` too, and adds its penalty to its loss.
    """

    @property
    def stochastic(self) -> Literal[False]:
        """It sees every row."""

    def solve(self, loss: Loss, w0: PyTree, lam: PyTree, source: RowSource) -> Solution:
        """The minimum of w -> loss(w, lam, every row), like ``w0``."""


class SystemSolver(Protocol):
    """A solver of the linear system on every row."""

    @property
    def stochastic(self) -> Literal[False]:
        """It sees every row."""

    @property
    def needs_symmetry(self) -> bool:
        """True if A must be self-adjoint in a metric."""

    def solve(self, matvec: Operator, g: PyTree, metric: PyTree | None, start: PyTree | None = None) -> Solution:
        """A v = g, with A = I - d1Phi^T as v -> A v, all trees like w; ``metric`` as :meth:`BilevelProblem.metric`."""


# ``solver.stochastic`` tells the two apart, for the type checker too.
InnerSolver: TypeAlias = StochasticSolver | LossSolver
"""What finds w."""

LinearSolver: TypeAlias = StochasticSolver | SystemSolver
"""What finds v."""


class StepLooks(Protocol):
    """What an outer step sees of its streams."""

    @property
    def key(self) -> Array:
        """A key of the step's own."""

    def __contains__(self, name: object, /) -> bool:
        """Whether there is a stream of this name."""

    def __getitem__(self, name: str, /) -> PyTree:
        """A look at a stream: ``look(use)`` is ``use(draw)``, the same minibatch at every call."""


class Algorithm(Protocol):
    """A bilevel method: what it carries, and one outer step.

    The loop (:func:`bilevax.minimize`, or a user's own by :func:`bilevax.fold_looks`) draws the minibatches of its
    streams, watches what ``info`` says, and takes back a stretch in which a value became NaN.
    """

    @property
    def steps_per_record(self) -> int:
        """Outer steps to an entry of the history, at most: 1 where a step is long, 256 where it is not."""

    def check(self, problem: BilevelProblem) -> None:
        """Refuse in a sentence a problem that lacks what the algorithm needs."""

    def streams(self, sources: Sources) -> Mapping[str, PyTree]:
        """What each step draws, by name: for each name a source, or several minibatches of one.

        Where ``info`` has no outer value, the loop evaluates the outer loss on the stream called "val".
        """

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources) -> PyTree:
        """The state before the first step, lam projected."""

    def step(self, problem: BilevelProblem, state: PyTree, looks: StepLooks, k: Array) -> tuple[PyTree, Info]:
        """Outer step k: the new state, and what may be watched of it. ``looks[name]`` is a look at a stream."""

    def solution(self, state: PyTree) -> tuple[PyTree, PyTree]:
        """The w and the lam of a state."""

    def outer_step_size(self, k: Array) -> Array | None:
        """gamma_k, by which lam moves along a direction in step k; None where ``info`` has a gradient norm."""

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost | None:
        """Oracle calls of one step; None where each step says its own in ``info.cost``."""
