"""DSCGD: compositions whose rows have several owners, who agree on lam by messages to neighbours.

In, from the outer loop (``algorithms.outer_loop``) at step k: the problem, what each node holds, and one minibatch each
of train and val, as looks (a row is one of each node). Out, to the loop: what each node holds next.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.algorithms.common import TwoTimescales, checked_steps, step_sizes, together_cost
from bilevax.algorithms.measured_steps import Defaults
from bilevax.core.config import check_real, check_switch, config, set_frozen
from bilevax.core.errors import ParameterError
from bilevax.core.protocols import BilevelProblem, Draw, Sources, StepLooks
from bilevax.core.records import Cost, Count, Info
from bilevax.core.trees import PyTree, add, axpy, scale, sub, zeros_like
from bilevax.problems.nodes import check_own_w, node_rows, of_one_composition
from bilevax.solvers.mixing import Mixing, PushSum, Ring, checked_mixing, node_mean, nodes_here, rounds, tracked
from bilevax.solvers.parts import moved_by, projected


class Held(NamedTuple):
    """What each node holds, leaves [N, ...].

    Attributes:
        w: its moving average.
        lam: its copy.
        y: its estimate of the mean direction; () without tracking.
        d: its last direction; likewise.
    """

    w: PyTree
    lam: PyTree
    y: PyTree
    d: PyTree


@config
class DSCGD(TwoTimescales):
    """Of compositions (1/N) sum_i E_i(E g_i(lam; zeta), lam) at N nodes: SCGD at each, and lam by messages.

        w_i   <- (1 - rho_k) w_i + rho_k g_i(lam_i; zeta)
        d_i   <- grad_2 E_i + dg_i(lam_i; zeta)^T grad_1 E_i             grad E_i at the new w_i, g_i on the same rows
        GP:  lam_i <- P((W lam)_i - gamma_k d_i)
        GT:  y_i <- (W y)_i + d_i - (d_i before) ,   lam_i <- P((W lam)_i - gamma_k y_i)
        gamma_k = ratio rho_0 (rho_k / rho_0)^a                          a = ``outer_power``

    W are S rounds of ``mixing``. With gossip alone (GP-DSCGD) copies stay apart by an amount of the order of gamma_k
    times how much the d_i differ; with gradient tracking (GT-DSCGD), whose y_i all follow the mean of the d_i, by their
    noise. Without a Lambda the mean of the copies moves as by :class:`~bilevax.SCGD`, each direction at its own copy.
    Of a run, w is node-stacked and lam the mean over copies. Steps are in map form.

    Assumes a connected graph, smooth g and E. Cost: that of SCGD at each node (a row is one of each node), and S
    messages of lam, with tracking of y too. Source: Gao, Huang (2021), Fast training method for stochastic
    compositional optimization problems, NeurIPS 34.

    Args:
        step_size: rho_k, a number or a schedule, at most 1; None (default): measured at the start of the run.
        ratio: gamma_0 / rho_0, positive; None (default): measured.
        tracking: True (default): GT-DSCGD; False: GP-DSCGD.
        mixing: :class:`~bilevax.Ring` (default), :class:`~bilevax.Gossip` or :class:`~bilevax.ExactAverage`.
        outer_power: a, at least 1. Default 3/2.

    Examples:
        >>> import bilevax as bx
        >>> # with bx.Problem(bx.Composition(bx.StackOverNodes(g)), bx.MeanOverNodes(E, own="w"))
        >>> bx.DSCGD(step_size=bx.Polynomial(0.5, 0.5), ratio=0.1, tracking=False).mixing
        Ring(rounds=1, weight=0.3333333333333333, axis=None)
    """

    defaults: ClassVar[Defaults] = Defaults(0.3, 0.1, carried=False, power=0.5)

    tracking: bool = True
    mixing: Mixing = Ring()
    outer_power: float = 1.5

    def __post_init__(self) -> None:
        set_frozen(self, **checked_steps(self), outer_power=check_real("outer_power", self.outer_power, low=1.0))
        check_switch("tracking", self.tracking)
        if isinstance(checked_mixing(self.mixing), PushSum):
            raise ParameterError("copies of lam need weights that sum to one at each node: take bx.Gossip or bx.Ring")

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a problem that is no composition over nodes."""
        check_own_w("DSCGD", problem)

    def init(self, problem: BilevelProblem, w0: PyTree, lam: PyTree, sources: Sources, u0: PyTree = None) -> Held:
        """The state before the first step, lam the same at each node; u0 plays no part; lam projected."""
        here = nodes_here(w0)
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (here, *x.shape)), projected(problem, lam))
        nothing = zeros_like(copies) if self.tracking else ()
        return Held(w0, copies, nothing, nothing)

    def step(self, problem: BilevelProblem, at: Held, looks: StepLooks, k: Array) -> tuple[Held, Info]:
        """Averages and directions at the nodes, messages, then the moves of lam."""
        node, lam, (to_lam, to_y) = of_one_composition(problem), at.lam, jax.random.split(looks.key)
        # w_i + rho (g_i(lam_i) - w_i)
        to_w = looks["train"](lambda draw: _over_nodes(_to_image, draw, node, at.w, lam))
        w = moved_by(step_sizes(self, k, at.w, lam)[0], to_w, at.w)
        g, direct = looks["val"](lambda draw: _over_nodes(_outer_gradients, draw, node, w, lam))
        # grad_2 E_i + dg_i^T grad_1 E_i
        d = add(direct, looks["train"](lambda draw: _over_nodes(_pulled, draw, node, w, lam, g)))
        # y_i = (W y)_i + d_i - (d_i before): the mean of the y_i stays that of the d_i
        y = tracked(self.mixing, at.y, d, at.d, to_y) if self.tracking else d
        lam = axpy(-self.outer_step_size(k), y, rounds(self.mixing, lam, to_lam))
        new = jax.vmap(lambda lam: projected(problem, lam))(lam)
        return Held(w, new, *((y, d) if self.tracking else (at.y, at.d))), Info()

    def solution(self, at: Held) -> tuple[PyTree, PyTree]:
        """w of each node, and the mean of lam over nodes."""
        return at.w, node_mean(at.lam, self.mixing.axis)

    def step_cost(self, problem: BilevelProblem, sources: Sources) -> Cost:
        """An image and a cross product on one minibatch of train, which is read once, and one outer gradient."""
        return together_cost(sources)._replace(hvps=Count())


def _over_nodes(function: Callable[..., PyTree], draw: Draw, node: BilevelProblem, *stacked: PyTree) -> PyTree:
    """The function of each node's variables and rows, [N, ...], by the weight of the draw."""
    return scale(draw.weight, jax.vmap(partial(function, node))(node_rows(draw.batch), *stacked))


def _to_image(node: BilevelProblem, rows: PyTree, w: PyTree, lam: PyTree) -> PyTree:
    return sub(node.inner_image(w, lam, rows), w)


def _outer_gradients(node: BilevelProblem, rows: PyTree, w: PyTree, lam: PyTree) -> tuple[PyTree, PyTree]:
    return node.outer_gradients(w, lam, rows)[1:]


def _pulled(node: BilevelProblem, rows: PyTree, w: PyTree, lam: PyTree, g: PyTree) -> PyTree:
    return node.cross_product(w, lam, rows, g)
