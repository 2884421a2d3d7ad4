"""Decentralised hypergradients: N nodes with rows and a lam of their own, and messages between neighbours."""

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.config import Steps, check_count, check_fields, config, positive
from bilevax.core.errors import ParameterError
from bilevax.core.instance import Instance
from bilevax.core.keys import stream
from bilevax.core.protocols import BilevelProblem, Draw, InnerSolver
from bilevax.core.records import Cost, Count, Estimate, Solution
from bilevax.core.trees import PyTree, add, axpy, scale, sub, zeros_like
from bilevax.data import join, refuse_keys
from bilevax.hypergradients.sid import SID, Segment, cost_of_inner, first_failed, solve_inner
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.nodes import check_own_lam, node_rows, of_one_node
from bilevax.solvers import Given, Neumann, PushSum, at_step
from bilevax.solvers.gradient_push import GradientPush
from bilevax.solvers.mixing import Mixing, averaged, checked_mixing, node_mean, nodes_here, number_of_nodes
from bilevax.solvers.product_neumann import series_solution


class Nodes(NamedTuple):
    """What every node has: the functions of one, its w and its lam, [N, ...]; ``batch`` below is of all of them."""

    problem: BilevelProblem
    w: PyTree
    lam: PyTree

    def image(self, w: PyTree, batch: PyTree) -> PyTree:
        """Phi_i(w_i, lam_i; zeta_i)."""
        return jax.vmap(self.problem.inner_image)(w, self.lam, node_rows(batch))

    def adjoint_product(self, batch: PyTree, u: PyTree) -> PyTree:
        """d1Phi_i^T u_i."""
        return jax.vmap(self.problem.adjoint_product)(self.w, self.lam, node_rows(batch), u)

    def cross_product(self, batch: PyTree, u: PyTree) -> PyTree:
        """d2Phi_i^T u_i."""
        return jax.vmap(self.problem.cross_product)(self.w, self.lam, node_rows(batch), u)

    def outer_gradients(self, batch: PyTree) -> tuple[Array, PyTree, PyTree]:
        """E_i and its two gradients."""
        out: tuple[Array, PyTree, PyTree] = jax.vmap(self.problem.outer_gradients)(self.w, self.lam, node_rows(batch))
        return out


class Series(NamedTuple):
    """The loop: u and the sum v of those before, and h, all [N, ...]."""

    u: PyTree
    v: PyTree
    h: PyTree


@config
class PushSumHypergradient:
    """Hypergradients of N nodes that agree on w, where neither rows nor lam_i leave their node.

    min over lam_1 ... lam_N of (1/N) sum_i E_i(w, lam_i), w the fixed point of (1/N) sum_i Phi_i(., lam_i). At each
    node i, from u_i = grad_1 E_i and h_i = grad_2 E_i, M times

        u_i <- average(u)_i                    S rounds of messages: push-sum, om = 1 at first
        h_i <- h_i + d2Phi_i(w_i, lam_i; zeta)^T u_i
        u_i <- d1Phi_i(w_i, lam_i; zeta')^T u_i

    and value_i = h_i / N, the derivative in lam_i of the mean over nodes. It is the Neumann series of M terms in
    product form, each factor's mean over nodes by messages: as S grows, that of one machine with all rows
    (:class:`~bilevax.StochasticReverse`), which ``bx.ExactAverage()`` is. zeta and zeta' are independent minibatches.
    ``v`` is the mean over nodes of the sum of the u_i, ``w`` that of the w_i.

    Assumes a contraction in expectation, and graphs that connect all nodes in the long run. The error has the
    truncation q^M, what S rounds leave of the disagreement, and the noise of one path of minibatches; nothing estimates
    them (``error`` is None, the code TOLERANCE_NOT_MET at best): ``replicas=5`` show the noise.

    Cost: that of ``inner``, M Hessian-vector and M cross products, an outer gradient of every row of val (a row is one
    of each node); M S messages of w along each edge. Source: Terashita, Hara (2022), arXiv:2210.02129.

    Args:
        inner: :class:`~bilevax.GradientPush`, by the same messages; :class:`~bilevax.Given`: w0 is solved for already;
            or a solver of one machine with all rows, such as :class:`~bilevax.LBFGS`.
        steps: M, a count of at least 0, or :class:`~bilevax.Growing`.
        mixing: :class:`~bilevax.PushSum` (default: 10 rounds), :class:`~bilevax.Gossip`, :class:`~bilevax.Ring`,
            :class:`~bilevax.ExactAverage`. With ``axis`` it runs inside of ``jax.shard_map``, where lam and the rows
            are the device's own.
        tol: length of the mean of the last u against the first, above which the code is TOLERANCE_NOT_MET. Default 0.1.

    Examples:
        >>> import bilevax as bx
        >>> bx.PushSumHypergradient(bx.LBFGS(), steps=300, mixing=bx.PushSum(rounds=5)).steps
        300
    """

    inner: InnerSolver | Given | GradientPush
    steps: Steps
    mixing: Mixing = PushSum(10)
    tol: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, tol=positive, steps=check_count)
        checked_mixing(self.mixing)
        if not isinstance(self.inner, GradientPush):
            _ = self._sid  # which checks it
        if self.mixing.axis is not None and not isinstance(self.inner, GradientPush | Given):
            raise ParameterError(
                f"over devices no solver sees all rows: inner must be bx.GradientPush or bx.Given, got {self.inner!r}"
            )

    @property
    def _sid(self) -> SID:
        """With the same inner solver."""
        return SID(cast(InnerSolver, self.inner), Neumann())

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a problem that is not one of nodes, or that the inner solver cannot solve.

        Raises:
            ParameterError: as said.
        """
        check_own_lam("PushSumHypergradient", problem)
        step = problem.inner_map
        if self.mixing.axis is not None and isinstance(step, GradientStep) and step.step_size is None:
            raise ParameterError("over devices nobody measures the common inner step: give GradientStep its step_size")
        if not isinstance(self.inner, GradientPush):
            self._sid.check(problem)

    def estimate(
        self, instance: Instance, w0: PyTree, *, key: Array, outer_step: Array | int = 0, v0: PyTree | None = None
    ) -> Estimate:
        """One hypergradient; pure and traceable; arguments as in :meth:`SID.estimate`, of which v0 plays no part."""
        refuse_keys("PushSumHypergradient", "pass sources without keys", train=instance.train, val=instance.val)
        train, val, axis = instance.train, instance.val, self.mixing.axis
        steps, number = at_step(self.steps, outer_step), number_of_nodes(instance.lam, axis)
        inner, nodes = self._agree(instance, w0, key=key, outer_step=outer_step)
        w = node_mean(nodes.w, axis) if isinstance(self.inner, GradientPush) else inner.value
        values, g, direct = val.total(Nodes.outer_gradients, nodes)
        end = self._series(nodes, g, direct, instance, steps=steps, key=key)
        mean = partial(node_mean, axis=axis)
        # (1/N) sum_i E_i, and h_i / N: lam_i is that of one node, and E_i one part of N
        outer, hypergradient = mean((values, g, direct)), scale(1.0 / number, end.h)
        # what the series leaves out is told by its last term, against its first
        left = mean(end.u), mean(g), self.tol
        solved = series_solution(mean(end.v), zeros_like(w), left, calls=steps, last_step=steps)
        code, failure = first_failed(inner, outer, solved, mean(hypergradient))
        products = Count(steps, train.rows_per_batch)
        path = Cost(hvps=products, cross=products, outer_gradients=Count(jnp.int32(1), val.rows))
        return Estimate(hypergradient, outer[0], w, solved.value, code, self._cost(inner, instance).plus(path), failure)

    def _agree(self, instance: Instance, w0: PyTree, *, key: Array, outer_step: Array | int) -> tuple[Solution, Nodes]:
        """w at each node, and how it was found."""
        problem, lam, train, _ = instance
        here, keys = nodes_here(lam), (stream(key, "inner"), jax.random.split(stream(key, "mixing"))[0])

        def everywhere(w: PyTree) -> PyTree:
            return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (here, *x.shape)), w)

        if not isinstance(self.inner, GradientPush):
            found = solve_inner(self.inner, instance, w0, key=keys[0], segment=Segment(outer_step))
            return found, Nodes(of_one_node(problem, w0, lam), everywhere(found.value), lam)
        nodes = Nodes(of_one_node(problem, w0, lam), everywhere(w0), lam)

        def image(w: PyTree, nodes: Nodes, batch: PyTree) -> PyTree:
            return nodes.image(w, batch)

        found = self.inner.push(image, nodes.w, nodes, train, self.mixing, keys=keys, outer_step=outer_step)
        return found, nodes._replace(w=found.value)

    def _series(
        self, nodes: Nodes, g: PyTree, direct: PyTree, instance: Instance, *, steps: Array, key: Array
    ) -> Series:
        """The M products; both minibatches are drawn from the stream linear, graphs from mixing."""
        graphs = jax.random.split(stream(key, "mixing"))[1]

        def step(at: Series, nodes: Nodes, j: Array, draws: dict[str, Draw]) -> Series:
            cross, product = draws["cross"], draws["product"]
            # average(u)_i, on graphs that no other step has
            u = averaged(self.mixing, at.u, jax.random.fold_in(graphs, j))
            # h_i + d2Phi_i^T u_i, and d1Phi_i^T u_i
            h = axpy(cross.weight, nodes.cross_product(cross.batch, u), at.h)
            # d1Phi_i^T u_i - u_i, whose weight is that of the minibatch
            by_w = sub(nodes.adjoint_product(product.batch, u), u)
            # v, the sum of the u before they are multiplied, solves the mean linear system
            return Series(axpy(product.weight, by_w, u), add(at.v, u), h)

        both, start = join(cross=instance.train, product=instance.train), Series(g, zeros_like(g), direct)
        return both.fold(step, start, nodes, key=stream(key, "linear"), start=0, stop=steps)

    def _cost(self, inner: Solution, instance: Instance) -> Cost:
        """Of w."""
        if isinstance(self.inner, GradientPush):
            return Cost(gradients=Count(inner.calls, instance.train.rows_per_batch))
        return cost_of_inner(self.inner, inner, instance.train)
