"""Stochastic gradient push: nodes that hold parts of the rows find one w by messages to neighbours.

In, from an estimator: the map of a node, w at each, the rows of all and how they mix. Out: w at each node, [N, ...].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import jax.random
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import Steps, check_count, check_fields, config
from bilevax.core.protocols import Draw, RowSource
from bilevax.core.records import Solution
from bilevax.core.trees import PyTree, all_finite, axpy, sub, where
from bilevax.solvers.mixing import Mixing, masses, node_mean, ratio, rounds
from bilevax.solvers.schedules import Constant, StepSize, at_step, schedule, scheduled


class Pushed(NamedTuple):
    """What nodes hold.

    Attributes:
        x: sums that are sent on, [N, ...].
        om: their masses, [N]; w is x / om.
    """

    x: PyTree
    om: Array


@config
class GradientPush:
    """Stochastic gradient push: each node moves by its own rows, and sends what it has on.

        x_i <- x_i + eta_j (Phi_i(w_i, lam_i; zeta_i) - w_i) ,     w_i = x_i / om_i
        (x, om) <- P (x, om)                                       S rounds of the estimator's mixing

    om are the masses of push-sum, 1 at first, carried through the run. The mean of x is that of stochastic gradient
    descent at the w_i. With constant steps nodes stay apart by an amount of the order of the step over 1 - contraction,
    also on every row, and w is off by as much; with falling ones both go to zero.

    Cost: a minibatch of train a step (a row is one of each node), and S messages of w. Source: Assran, Loizou, Ballas,
    Rabbat (2019), arXiv:1811.10792; Nedic, Olshevsky (2014), arXiv:1406.2075.

    Args:
        steps: a count of at least 0, or :class:`~bilevax.Growing` with the outer step.
        step_size: eta_j, a number or a schedule, in units of the map. Default 1, the map itself.

    Examples:
        >>> import bilevax as bx
        >>> inner = bx.GradientPush(2000, bx.Polynomial(0.5, 0.5))
        >>> bx.PushSumHypergradient(inner, steps=100, mixing=bx.PushSum(rounds=10)).inner.steps
        2000
    """

    steps: Steps
    step_size: StepSize = Constant(1.0)

    def __post_init__(self) -> None:
        check_fields(self, steps=check_count, step_size=schedule)

    def push(
        self,
        image: Callable[[PyTree, PyTree, PyTree], PyTree],
        start: PyTree,
        args: PyTree,
        source: RowSource,
        mixing: Mixing,
        *,
        keys: tuple[Array, Array],
        outer_step: Array | int = 0,
    ) -> Solution:
        """Run the iteration.

        Args:
            image: (w, args, batch) -> Phi_i(w_i, lam_i; batch_i) of all nodes.
            start: w at each node, [N, ...].
            args: what the image reads beside w and the batch.
            source: of rows, each one of every node.
            mixing: how nodes send.
            keys: of the minibatches and of the graphs.
            outer_step: for counts that grow.
        """

        def step(at: Pushed, args: PyTree, j: Array, draw: Draw) -> Pushed:
            w = ratio(*at)
            # x + eta (Phi(w) - w), then P
            x = axpy(scheduled(self.step_size, j) * draw.weight, sub(image(w, args, draw.batch), w), at.x)
            # the masses go with the sums, so that x / om forgets who heard whom
            return Pushed(*rounds(mixing, (x, at.om), jax.random.fold_in(keys[1], j)))

        steps = at_step(self.steps, outer_step)
        end = source.fold(step, Pushed(start, masses(start)), args, key=keys[0], start=0, stop=steps)
        w = ratio(*end)
        # over devices too, one node's NaN is everybody's
        finite = all_finite(node_mean(w, mixing.axis))
        code = jnp.where(finite, jnp.int32(Code.OK), jnp.int32(Code.NONFINITE))
        return Solution(where(finite, w, start), code, steps, steps)
