"""Problems whose rows have several owners: functions of one node's variables and rows, taken over N nodes.

A row of such a source is one row of each node: leaves are [n, N, ...], so that any source of rows serves. What each
node has of its own, a part of lam or of w, is node-stacked: leaves are [N, ...].
"""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp

from bilevax.core.config import check_choice, check_fields, config, function_of, replace_unchecked
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import BilevelProblem, Keyed
from bilevax.core.trees import PyTree, leaf_name
from bilevax.problems.composition import Composition
from bilevax.problems.gradient_step import GradientStep
from bilevax.problems.problem import Problem


@config
class MeanOverNodes:
    """The mean over nodes of a function of one node: (w, lam, batch) -> (1/N) sum_i f(w, lam_i, batch_i).

    As an inner loss or an inner map and as an outer loss it makes the problem of N nodes that agree on w, each with a
    lam of its own, which every estimator and algorithm serves, as one that sees all rows, and
    :class:`~bilevax.PushSumHypergradient` by messages between nodes. With ``own="w"`` it is the outer loss of N nodes
    that agree on lam, (1/N) sum_i f(w_i, lam, batch_i), each with its part of a composition (:class:`StackOverNodes`).

    A row of the source is one row of each node, leaves [n, N, ...]: nodes with fewer rows than others repeat theirs, or
    carry a weight a row, of which ``f`` makes a mean.

    Args:
        function: f, (w, lam, batch) -> a scalar or a tree, of one node, whose batch is [b, ...].
        own: "lam" (default) or "w": whose leaves are [N, ...].

    Raises:
        ParameterError: at a call, rows without a node axis, of another number of nodes, or with ``keys=True``.

    Examples:
        Two nodes with a penalty each, and three rows:

        >>> import bilevax as bx, jax.numpy as jnp
        >>> def loss(w, lam, batch):
        ...     return jnp.mean((batch - w) ** 2) + lam * w**2
        >>> rows = jnp.array([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]])
        >>> float(bx.MeanOverNodes(loss)(2.0, jnp.array([0.0, 1.0]), rows))  # (1 + (1 + 4)) / 2
        3.0
    """

    function: Callable[[PyTree, PyTree, PyTree], PyTree]
    own: str = "lam"

    def __post_init__(self) -> None:
        check_fields(self, function=function_of("(w, lam, batch)"))
        check_choice("own", self.own, ("lam", "w"))

    def __call__(self, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        """(1/N) sum_i f."""
        rows, axes = node_rows(batch), (None, 0, 0) if self.own == "lam" else (0, None, 0)
        _check_nodes(self.own, lam if self.own == "lam" else w, rows)
        # (1/N) sum_i f(w, lam_i; zeta_i), or f(w_i, lam; zeta_i)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.vmap(self.function, axes)(w, lam, rows))


@config
class StackOverNodes:
    """A function of one node's rows at each of N nodes: (lam, batch) -> g(lam, batch_i), leaves [N, ...].

    ``bx.Composition(bx.StackOverNodes(g))`` is the inner map of nodes with a w of their own and a common lam, for
    :class:`~bilevax.DSCGD`; rows as in :class:`MeanOverNodes`.

    Args:
        function: g, (lam, batch) -> a tree, of one node, whose batch is [b, ...].

    Examples:
        >>> import bilevax as bx, jax.numpy as jnp
        >>> mean = bx.StackOverNodes(lambda lam, batch: jnp.mean(batch) * lam)
        >>> mean(2.0, jnp.array([[1.0, 3.0], [3.0, 5.0]])).tolist()
        [4.0, 8.0]
    """

    function: Callable[[PyTree, PyTree], PyTree]

    def __post_init__(self) -> None:
        check_fields(self, function=function_of("(lam, batch)"))

    def __call__(self, lam: PyTree, batch: PyTree) -> PyTree:
        """g(lam, batch_i)."""
        return jax.vmap(self.function, (None, 0))(lam, node_rows(batch))


def node_rows(batch: PyTree) -> PyTree:
    """The rows of each node: leaves [b, N, ...] as [N, b, ...]."""
    if isinstance(batch, Keyed):
        raise ParameterError("rows of nodes bring no keys: pass a source without keys=True")
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if jnp.ndim(leaf) < 2:
            name = leaf_name("batch", path)
            raise ParameterError(f"rows of N nodes have leaves [n, N, ...], and {name} is {list(jnp.shape(leaf))}")
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch)


def _check_nodes(name: str, own: PyTree, rows: PyTree) -> None:
    wanted = len(jax.tree.leaves(rows)[0])
    for path, leaf in jax.tree_util.tree_leaves_with_path(own):
        if jnp.ndim(leaf) == 0 or len(leaf) != wanted:
            what = f"{leaf_name(name, path)} is {list(jnp.shape(leaf))}"
            raise ParameterError(f"each of {wanted} nodes has its own {name}, leaves [{wanted}, ...], and {what}")


def of_one_node(problem: BilevelProblem, w: PyTree, lam: PyTree) -> BilevelProblem:
    """The problem of a node with its own lam; the step of its inner loss is that of all, at (w, lam)."""
    step = cast(Problem, problem).inner_map
    if isinstance(step, GradientStep):
        loss = _of_one(step.loss)
        return _with_parts(problem, replace_unchecked(step, loss=loss, step_size=problem.metric(w, lam)))
    return _with_parts(problem, _of_one(step))


def of_one_composition(problem: BilevelProblem) -> BilevelProblem:
    """The composition of a node with its own w."""
    return _with_parts(problem, Composition(_of_one(cast(Problem, problem).inner_map.function)))


def _with_parts(problem: BilevelProblem, inner_map: PyTree) -> BilevelProblem:
    return replace_unchecked(problem, inner_map=inner_map, outer_loss=_of_one(problem.outer_loss))


def _of_one(over_nodes: PyTree) -> PyTree:
    return over_nodes.function


def check_own_lam(what: str, problem: BilevelProblem) -> None:
    """Refuse a problem that is not one of nodes with a lam of their own."""
    inner = problem.inner_loss if problem.has_loss else problem.inner_map
    for name, function in (("the inner loss or map", inner), ("the outer loss", problem.outer_loss)):
        if not (isinstance(function, MeanOverNodes) and function.own == "lam"):
            raise ParameterError(f"{what} needs bx.MeanOverNodes(f) as {name}, f of one node; got {function!r}")


def check_own_w(what: str, problem: BilevelProblem) -> None:
    """Refuse a problem that is not a composition of nodes with a w of their own."""
    inner, outer = problem.inner_map, problem.outer_loss
    composed = isinstance(inner, Composition) and isinstance(inner.function, StackOverNodes)
    if not (composed and isinstance(outer, MeanOverNodes) and outer.own == "w"):
        raise ParameterError(
            f"{what} needs bx.Composition(bx.StackOverNodes(g)) as the inner map and bx.MeanOverNodes(f, own='w') as"
            f" the outer loss, g and f of one node; got {inner!r} and {outer!r}"
        )
