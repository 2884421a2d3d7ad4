"""Fixed points of finite sums by variance reduction, for w and for v: SVRG and SAGA."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.config import Steps, at_least_one, check_count, check_fields, config, or_none, positive
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import RowSource
from bilevax.core.trees import PyTree, add, axpy, scale, sub, zeros_like
from bilevax.data import refuse_keys
from bilevax.solvers.chain import PLAIN, Chain, Rule, View
from bilevax.solvers.parts import saga, saga_table
from bilevax.solvers.schedules import Constant, StepSize, schedule


@config
class SVRG(Chain):
    """x_{j+1} = x_j + eta_j (T(x_j; zeta_j) - x_j - (T(a; zeta_j) - a) + T(a) - a), a = x_j every ``period`` steps.

    Assumes a finite sum, and a constant eta_j of at most about a third of the step at which single minibatches
    contract: the error then falls to rounding like q^j, whatever the noise. On full batches it is
    :class:`~bilevax.FixedPoint`; codes and continuation (with a new anchor a) are its own too. Cost: two products on a
    minibatch each step, and every row once a ``period``; all are counted in minibatches.
    Source: Johnson, Zhang (2013).

    Args:
        steps: as in :class:`~bilevax.FixedPoint`.
        step_size: eta_j in map form, likewise. Default 1.
        period: steps to an anchor, a count of at least 1; None (default): two epochs.
        tol: as in :class:`~bilevax.FixedPoint`.
        confirm: likewise.

    Examples:
        >>> import bilevax as bx
        >>> bx.SVRG(2000, step_size=0.3, period=100).period
        100
    """

    steps: Steps
    step_size: StepSize = Constant(1.0)
    period: int | None = None
    tol: float = 0.1
    confirm: bool = True

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, steps=check_count, period=or_none(at_least_one), step_size=schedule)

    def rule(self, args: PyTree, source: RowSource) -> Rule:
        """How x moves."""
        refuse_keys("SVRG", "solve by bx.FixedPoint", train=source)
        epoch = -(-source.rows // source.rows_per_batch)
        period = jnp.asarray(2 * epoch if self.period is None else self.period, jnp.int32)

        def move(x: PyTree, memory: PyTree, view: View) -> tuple[PyTree, PyTree, PyTree]:
            # a <- x and d(a) on every row, each ``period`` steps
            due = view.number % period == 0
            anchor, mean = jax.lax.cond(due, lambda: (x, view.mean_direction(x)), lambda: memory)
            # d(x; zeta) - d(a; zeta) + d(a)
            d = add(scale(view.weight, sub(view.direction(x), view.direction(anchor))), mean)
            return axpy(view.eta, d, x), (anchor, mean), d

        def calls(steps: Array) -> Array:
            # two on each minibatch, and an epoch for each anchor
            return 2 * steps + epoch * -(-steps // period)

        return PLAIN if source.is_full_batch else Rule(lambda x: (x, zeros_like(x)), move, calls=calls)


@config
class SAGA(Chain):
    """x_{j+1} = x_j + eta_j (d_i - table_i + mean of the table), d_i = T(x_j; block i) - x_j, which replaces table_i.

    Assumes a source in blocks, and a constant eta_j as :class:`~bilevax.SVRG`: the error falls to rounding like q^j,
    whatever the noise. Each block counts by its rows, the short last one too. On full batches it is
    :class:`~bilevax.FixedPoint`; codes and continuation (with a new table) are its own too. Cost: ``steps``
    minibatches; memory: a copy of x for each block.
    Source: Defazio, Bach, Lacoste-Julien (2014), arXiv:1407.0202.

    Args:
        steps: as in :class:`~bilevax.FixedPoint`.
        step_size: eta_j in map form, likewise. Default 1.
        tol: as in :class:`~bilevax.FixedPoint`.
        confirm: likewise.

    Raises:
        ParameterError: (from ``solve``) the minibatches are no blocks.

    Examples:
        >>> import bilevax as bx
        >>> bx.SAGA(2000, step_size=0.3).steps  # with a source of sampling="blocks"
        2000
    """

    steps: Steps
    step_size: StepSize = Constant(1.0)
    tol: float = 0.1
    confirm: bool = True

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, steps=check_count, step_size=schedule)

    def rule(self, args: PyTree, source: RowSource) -> Rule:
        """How x moves."""
        blocks = source.blocks
        if blocks is None:
            raise ParameterError(
                "SAGA keeps a value for each minibatch, and those of train are drawn anew: use bx.Arrays(...,"
                ' sampling="blocks"), or bx.SVRG'
            )

        def move(x: PyTree, table: PyTree, view: View) -> tuple[PyTree, PyTree, PyTree]:
            # weighted, so that the mean over blocks is that over rows
            d, table = saga(table, scale(view.weight, view.direction(x)), view.block)
            return axpy(view.eta, d, x), table, d

        return PLAIN if source.is_full_batch else Rule(lambda x: saga_table(x, blocks), move)
