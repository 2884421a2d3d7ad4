"""Mixing: how the copies of a variable at N nodes come nearer to their mean by messages between neighbours.

Trees are node-stacked: each leaf is [N, ...]. With the name of a mesh axis in ``axis``, inside of ``jax.shard_map``,
each device holds the leaves of its own nodes, [N / devices, ...], and messages are collectives; the numbers are the
same. A round is linear, x <- P x, with columns of P that sum to one, so that no sum over nodes is lost.
"""

from typing import ClassVar, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from bilevax.core.config import check_count, check_real, config, is_scalar, positive_fraction, set_frozen
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree, axpy, leaf_sum, per_row, sub


class Mixing(Protocol):
    """What nodes send to one another; see :class:`~bilevax.PushSum`, :class:`~bilevax.Gossip`."""

    @property
    def rounds(self) -> Array | int:
        """S, in one :func:`averaged`."""

    @property
    def axis(self) -> str | None:
        """Mesh axis over which the nodes are spread; None: they are all here."""

    def round(self, x: PyTree, key: Array) -> PyTree:
        """P x, of a node-stacked tree; P is a function of the key."""


def averaged(mixing: Mixing, x: PyTree, key: Array) -> PyTree:
    """Each node's estimate of the mean over nodes, after S rounds.

    Push-sum: masses om, 1 at each node, go with the values, and each value is divided by its mass. It tends to the mean
    as S grows; of a doubly stochastic P the masses stay 1. Source: Kempe, Dobra, Gehrke (2003); over changing directed
    graphs: Nedic, Olshevsky (2014), arXiv:1406.2075.
    """
    return ratio(*rounds(mixing, (x, masses(x)), key))


def rounds(mixing: Mixing, x: PyTree, key: Array) -> PyTree:
    """P^S x, on the graphs of the key."""

    def one(s: Array, x: PyTree) -> PyTree:
        return mixing.round(x, jax.random.fold_in(key, s))

    return jax.lax.fori_loop(0, jnp.asarray(mixing.rounds, jnp.int32), one, x)


def masses(x: PyTree) -> Array:
    """One for each node of x, [N]."""
    return jnp.ones(nodes_here(x), jnp.result_type(float))


def ratio(x: PyTree, om: Array) -> PyTree:
    """x_i / om_i."""
    return jax.tree.map(lambda a: a / per_row(om, a), x)


def tracked(mixing: Mixing, y: PyTree, new: PyTree, old: PyTree, key: Array) -> PyTree:
    """Gradient tracking: P^S y + new - old, whose mean stays that of ``new``, where y began as ``old`` did.

    Source: Di Lorenzo, Scutari (2016), arXiv:1602.00591.
    """
    return axpy(1.0, sub(new, old), rounds(mixing, y, key))


def node_mean(x: PyTree, axis: str | None) -> PyTree:
    """The mean over all nodes, without the node axis."""
    mean = jax.tree.map(lambda a: jnp.mean(a, axis=0), x)
    return mean if axis is None else jax.lax.pmean(mean, axis)


def nodes_here(x: PyTree) -> int:
    """Length of the node axis."""
    return len(jax.tree.leaves(x)[0])


def number_of_nodes(x: PyTree, axis: str | None) -> int:
    """N, over all devices."""
    return nodes_here(x) * (1 if axis is None else jax.lax.axis_size(axis))


def disagreement(x: PyTree, axis: str | None = None) -> Array:
    """Mean over nodes of |x_i - mean x|^2."""
    away = jax.tree.map(lambda a, m: a - m[None], x, node_mean(x, axis))
    squares = leaf_sum(jax.tree.map(lambda a: jnp.sum(a**2, axis=range(1, a.ndim)), away))
    out: Array = node_mean(squares, axis)
    return out


def _mixed(P: Array, x: PyTree, axis: str | None) -> PyTree:
    """P x; on a device, its own rows of P with what all nodes have sent."""
    here = nodes_here(x)
    if axis is not None:
        x = jax.tree.map(lambda a: jax.lax.all_gather(a, axis, tiled=True), x)
        P = jax.lax.dynamic_slice_in_dim(P, jax.lax.axis_index(axis) * here, here)
    return jax.tree.map(lambda a: jnp.tensordot(P.astype(a.dtype), a, 1, precision=jax.lax.Precision.HIGHEST), x)


def _check_axis(axis: object) -> None:
    if not (axis is None or isinstance(axis, str)):
        raise ParameterError(f"axis must be the name of a mesh axis, such as 'nodes', or None; got {axis!r}")


@config
class PushSum:
    """Push-sum over a directed graph that is drawn anew in each round.

    Node j sends to i with probability p_ij, and always keeps a part for itself; all parts are equal,

        x_i <- sum_j A_ij x_j / d_j,   d_j = sum_i A_ij,   A_ij ~ Bernoulli(p_ij), A_jj = 1

    and values are divided by masses that are sent along with them, so that no node need know who hears it but itself.
    Every graph is a function of (key, round). Cost: a message of all of x along each edge, a round. Source: Nedic,
    Olshevsky (2014), arXiv:1406.2075.

    Args:
        rounds: S, graphs in one average; a count of at least 1. Default 1.
        edges: p_ij, one probability in ]0, 1] or an array [N, N] of them. Default 0.6.
        axis: of the mesh, where nodes are spread over devices; None (default): they are all here.

    Examples:
        >>> import bilevax as bx
        >>> bx.PushSum(rounds=10, edges=0.5)
        PushSum(rounds=10, edges=0.5, axis=None)
    """

    rounds: int = 1
    edges: np.ndarray | Array | float = 0.6
    axis: str | None = None

    def __post_init__(self) -> None:
        set_frozen(self, rounds=check_count("rounds", self.rounds, low=1), edges=_probabilities(self.edges))
        _check_axis(self.axis)

    def matrix(self, number: int, key: Array) -> Array:
        """P, [N, N], its columns summing to one."""
        # in float32 always: the same graphs in any precision
        drawn = jax.random.uniform(key, (number, number), jnp.float32) < jnp.asarray(self.edges, jnp.float32)
        sent = (drawn | jnp.eye(number, dtype=bool)).astype(jnp.result_type(float))
        # A_ij / d_j
        return sent / jnp.sum(sent, axis=0, keepdims=True)

    def round(self, x: PyTree, key: Array) -> PyTree:
        """One graph."""
        return _mixed(self.matrix(number_of_nodes(x, self.axis), key), x, self.axis)


def _probabilities(edges: np.ndarray | Array | float) -> np.ndarray | float:
    if is_scalar(edges):
        return positive_fraction("edges", cast(float, edges))
    edges = np.asarray(edges)
    square = edges.ndim == 2 and len(edges) == edges.shape[1]
    if not (square and np.all((edges >= 0) & (edges <= 1))):
        raise ParameterError(f"edges must be a probability or a square array of them, got {edges.dtype}{edges.shape}")
    return edges


@config
class Gossip:
    """x <- W x with a doubly stochastic W, which every node has a row of.

    A round keeps the mean, and shortens what differs from it by ``contraction``. Cost: a message of all of x for each
    W_ij that is not zero, a round. Source: Xiao, Boyd (2004).

    Args:
        matrix: W, [N, N], entries of at least 0, each row and column summing to one.
        rounds: S, of one average; a count of at least 1. Default 1.
        axis: of the mesh, where nodes are spread over devices; None (default): they are all here.

    Examples:
        >>> import bilevax as bx, numpy as np
        >>> path = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])  # 0 - 1 - 2
        >>> np.round(bx.Gossip.metropolis(path).matrix, 2).tolist()
        [[0.67, 0.33, 0.0], [0.33, 0.33, 0.33], [0.0, 0.33, 0.67]]
    """

    matrix: np.ndarray | Array
    rounds: int = 1
    axis: str | None = None

    def __post_init__(self) -> None:
        W = np.asarray(self.matrix, float)
        sums = [W.sum(axis=i) for i in (0, 1)] if W.ndim == 2 and len(W) == W.shape[1] else []
        if not sums or np.any(W < 0) or not np.allclose(sums, 1.0, atol=1e-6):
            raise ParameterError(
                f"matrix must be square, of entries of at least 0, with rows and columns that sum to 1; got {W.shape}"
                " (bx.Gossip.metropolis makes one of any graph)"
            )
        set_frozen(self, matrix=W, rounds=check_count("rounds", self.rounds, low=1))
        _check_axis(self.axis)

    @classmethod
    def metropolis(cls, edges: ArrayLike, rounds: int = 1, axis: str | None = None) -> "Gossip":
        """Metropolis weights of an undirected graph, W_ij = 1 / (1 + max(d_i, d_j)), d_i the number of neighbours.

        Args:
            edges: [N, N], symmetric, true where two nodes talk; the diagonal plays no part.
            rounds: as above.
            axis: as above.
        """
        A = np.asarray(edges, bool)
        if A.ndim != 2 or A.shape[0] != A.shape[1] or np.any(A != A.T):
            raise ParameterError(f"edges must be a symmetric array [N, N] of who talks to whom, got {A.shape}")
        # d_i, the number of neighbours; nobody is his own
        A = A & ~np.eye(len(A), dtype=bool)
        d = A.sum(axis=0)
        W = A / (1.0 + np.maximum(d[:, None], d))
        # W_ii = 1 - sum_j W_ij
        return cls(W + np.diag(1.0 - W.sum(axis=1)), rounds, axis)

    @property
    def contraction(self) -> float:
        """|W - 11^T / N|, by which a round shortens what differs from the mean; 1 where the graph falls apart."""
        W = np.asarray(self.matrix)
        return float(np.linalg.norm(W - 1.0 / len(W), 2))

    def round(self, x: PyTree, key: Array) -> PyTree:
        """W x; the key plays no part."""
        return _mixed(jnp.asarray(self.matrix), x, self.axis)


@config
class Ring:
    """Gossip with two neighbours: x_i <- (1 - 2a) x_i + a (x_{i-1} + x_{i+1}), in a ring.

    Cost: two messages of all of x a node, a round, whatever N is; over devices, ``ppermute`` alone. A round shortens
    the slowest difference by 1 - 2a (1 - cos(2 pi / N)).

    Args:
        rounds: S, of one average; a count of at least 1. Default 1.
        weight: a, in ]0, 1/2]. Default 1/3.
        axis: of the mesh, where nodes are spread over devices, in its order; None (default): they are all here.

    Examples:
        >>> import bilevax as bx
        >>> bx.Ring(rounds=2, weight=0.25)
        Ring(rounds=2, weight=0.25, axis=None)
    """

    rounds: int = 1
    weight: float = 1.0 / 3.0
    axis: str | None = None

    def __post_init__(self) -> None:
        weight = check_real("weight", self.weight, low=0.0, high=0.5, open_low=True)
        set_frozen(self, rounds=check_count("rounds", self.rounds, low=1), weight=weight)
        _check_axis(self.axis)

    def round(self, x: PyTree, key: Array) -> PyTree:
        """(1 - 2a) x_i + a (x_{i-1} + x_{i+1}); the key plays no part."""

        def mix(a: Array) -> Array:
            weight = jnp.asarray(self.weight, a.dtype)
            # (1 - 2a) x_i + a (x_{i-1} + x_{i+1})
            return (1 - 2 * weight) * a + weight * (_shifted(a, 1, self.axis) + _shifted(a, -1, self.axis))

        return jax.tree.map(mix, x)


def _shifted(a: Array, by: int, axis: str | None) -> Array:
    """What each node's neighbour on one side has: a_{i - by}, by = 1 or -1."""
    if axis is None:
        return jnp.roll(a, by, axis=0)
    # of the nodes here all but one have their neighbour here too: one row is sent to the next device
    devices = jax.lax.axis_size(axis)
    edge = a[-1:] if by == 1 else a[:1]
    met = jax.lax.ppermute(edge, axis, [(i, (i + by) % devices) for i in range(devices)])
    return jnp.concatenate([met, a[:-1]] if by == 1 else [a[1:], met])


@config
class ExactAverage:
    """The mean over nodes itself, as after infinitely many rounds: an all-reduce, which a data centre has.

    Args:
        axis: of the mesh, where nodes are spread over devices; None (default): they are all here.

    Examples:
        >>> import bilevax as bx
        >>> bx.ExactAverage()
        ExactAverage(axis=None)
    """

    rounds: ClassVar[int] = 1

    axis: str | None = None

    def __post_init__(self) -> None:
        _check_axis(self.axis)

    def round(self, x: PyTree, key: Array) -> PyTree:
        """The mean at each node; the key plays no part."""
        return jax.tree.map(lambda a, m: jnp.broadcast_to(m, a.shape), x, node_mean(x, self.axis))


def checked_mixing(mixing: Mixing) -> Mixing:
    """One of the above, or what has their methods.

    Raises:
        ParameterError: it has not.
    """
    if not all(hasattr(mixing, name) for name in ("round", "rounds", "axis")):
        raise ParameterError(f"mixing must be one such as bx.PushSum(rounds=10) or bx.Ring(), got {mixing!r}")
    return mixing
