"""Chains of w and v on the same minibatches, and the batch means of their iterates."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.instance import Instance, Oracle
from bilevax.core.protocols import Draw
from bilevax.core.records import Failure
from bilevax.core.trees import PyTree, add, all_finite, axpy, norm, row, scale, sub, where, zeros, zeros_like
from bilevax.data import join
from bilevax.hypergradients.batch_means import BatchMeans, batch_edges, extrapolated, moved_by


class Chains(NamedTuple):
    """Iterates of one chain or two, of which the second takes half steps after the burn-in.

    Attributes:
        w: [chains, ...].
        v: [chains, ...].
        failure: the first stage and step at which something was not finite; no step is made from there on.
        cumulative_step: sum of the eta_j.
    """

    w: PyTree
    v: PyTree
    failure: Failure
    cumulative_step: Array


class Series(NamedTuple):
    """Batch means of (x_j, w_j, v_j) over the steps of a run after its burn-in.

    Attributes:
        extrapolated: 2 x^(s/2) - x^(s).
        difference: x^(s) - x^(s/2), 0 of one chain.
    """

    extrapolated: BatchMeans
    difference: BatchMeans

    @property
    def full_step(self) -> BatchMeans:
        """x^(s), of the chain with full steps: in the long run its mean varies as that of ``extrapolated``.

        Its autocorrelation decays faster. Along a direction of relaxation time T the mean over B steps has 1 - T/B
        times its asymptotic variance, that of ``extrapolated`` 1 - 7/3 T/B, up to terms of the order exp(-B / 2T).
        """
        # (2 x^(s/2) - x^(s)) + 2 (x^(s) - x^(s/2)) = x^(s)
        means = jax.tree.map(lambda x, moved: x + 2 * moved, self.extrapolated.means, self.difference.means)
        return self.extrapolated.like(means)

    def continued(self, before: "Series") -> "Series":
        """Joined with that of a run of half the steps."""
        return Series(*(now.joined(past.doubled) for now, past in zip(self, before, strict=True)))


class SVRGSnapshot(NamedTuple):
    """A snapshot of w and the full outer gradients there, by which those of minibatches are corrected.

    Attributes:
        w: the point.
        g: grad_1 E there.
        direct: grad_2 E there.
        weight: of the correction; 0 before the point is known, then 1.
    """

    w: PyTree
    g: PyTree
    direct: PyTree
    weight: Array

    @classmethod
    def unknown(cls, w: PyTree, lam: PyTree) -> "SVRGSnapshot":
        """Without a correction."""
        return cls(w, zeros_like(w), zeros_like(lam), jnp.zeros((), norm(w).dtype))

    @classmethod
    def at(cls, instance: Instance, w: PyTree) -> "SVRGSnapshot":
        """Reads every row of val."""
        _, g, direct = instance.mean_outer_gradients(w)
        return cls(w, g, direct, jnp.ones((), norm(w).dtype))


Carry: TypeAlias = tuple[Chains, tuple[PyTree, PyTree, PyTree], Array]
"""The chains, sums over their steps of x_j, w_j, v_j, and the number of these steps."""


def begin(w0: PyTree, v0: PyTree, *, chains: int) -> Chains:
    """So many chains that all start at (w0, v0)."""
    w, v = jax.tree.map(lambda x: jnp.broadcast_to(x, (chains, *x.shape)), (w0, v0))
    return Chains(w, v, Failure.of("none"), jnp.zeros((), jnp.result_type(float)))


def run(
    instance: Instance,
    eta: Callable[[Array], Array],
    chains: Chains,
    averaged: tuple[Array, Array],
    *,
    key: Array,
    done: Array | int = 0,
    snapshot: SVRGSnapshot | None = None,
) -> tuple[Chains, Series, SVRGSnapshot | None]:
    """The chains from step ``done`` to the end of the burn-in, ``averaged[0]``, and on to ``averaged[1]`` in batches.

    In the burn-in of a run that begins all chains take full steps, which are the faster. At its end the snapshot is
    taken, if there is to be one.
    """
    split_step = jnp.where(jnp.asarray(done) > 0, 0, averaged[0])
    edges = jnp.maximum(jnp.concatenate([jnp.zeros(1, jnp.int32), batch_edges(*averaged)]), done)
    taking = (jnp.arange(len(edges) - 1) == 1) & (jnp.asarray(done) == 0)

    def batch(
        state: tuple[Chains, SVRGSnapshot | None], here: tuple[Array, Array, Array]
    ) -> tuple[tuple[Chains, SVRGSnapshot | None], tuple[Array, PyTree, PyTree]]:
        (chains, snapshot), (start, stop, take) = state, here
        if snapshot is not None:
            # In the loop, where it is compiled once; a cond, as it reads every row.
            now = snapshot
            snapshot = jax.lax.cond(take, partial(SVRGSnapshot.at, instance), lambda _: now, row(chains.w, 0))
        chains, sums, number = advance(instance, eta, chains, (start, stop, split_step), key=key, snapshot=snapshot)
        # of this batch: sums over its steps, divided by their number
        means = scale(1.0 / jnp.maximum(number, 1).astype(jnp.result_type(float)), sums)
        return (chains, snapshot), (number, extrapolated(means), moved_by(means))

    (chains, snapshot), passed = jax.lax.scan(batch, (chains, snapshot), (edges[:-1], edges[1:], taking))
    # without the first batch, the burn-in
    counts, *means = jax.tree.map(lambda x: x[1:], passed)
    return chains, Series(*(BatchMeans.filled(x, counts) for x in means)), snapshot


def advance(
    instance: Instance,
    eta: Callable[[Array], Array],
    chains: Chains,
    steps: tuple[Array, Array, Array],
    *,
    key: Array,
    snapshot: SVRGSnapshot | None = None,
) -> tuple[Chains, tuple[PyTree, PyTree, PyTree], Array]:
    """The chains after the steps start <= j < stop; with sums over them of x_j, w_j, v_j, and their number.

    ``steps`` is (start, stop, split_step): before step ``split_step`` all chains take full steps.
    """
    start, stop, split_step = steps
    chains_in_all = jax.tree.leaves(chains.w)[0].shape[0]
    nowhere = Failure.of("none")
    # 1, and 1/2 of the second chain
    halving = 0.5 ** jnp.arange(chains_in_all, dtype=jnp.result_type(float))

    def step(carry: Carry, args: tuple[Oracle, Array, SVRGSnapshot | None], j: Array, draws: dict[str, Draw]) -> Carry:
        (w, v, failure, cumulative_step), sums, number = carry
        oracle, split_step, snapshot = args
        # eta_j, and eta_j / 2 of the second chain
        size = jnp.asarray(eta(j)).astype(halving.dtype)
        etas = size * jnp.where(j < split_step, 1.0, halving)
        new_w, new_v, x, stage = jax.vmap(partial(moved, oracle, snapshot, draws))(w, v, etas)
        failure = where(failure.stage == 0, nowhere._replace(stage=jnp.max(stage), step=j + 1), failure)
        good = failure.stage == 0
        # x_j at (w_j, v_j), before the step
        sums = where(good, add(sums, (x, w, v)), sums)
        w, v = where(good, (new_w, new_v), (w, v))
        return Chains(w, v, failure, cumulative_step + size), sums, number + good.astype(jnp.int32)

    begin = chains, (zeros(instance.lam, chains_in_all), *zeros_like((chains.w, chains.v))), jnp.int32(0)
    both = join(train=instance.train, val=instance.val)
    return both.fold(step, begin, (instance.oracle, split_step, snapshot), key=key, start=start, stop=stop)


def moved(
    oracle: Oracle, snapshot: SVRGSnapshot | None, draws: dict[str, Draw], w: PyTree, v: PyTree, eta: Array
) -> tuple[PyTree, PyTree, PyTree, Array]:
    """One step of one chain: the next w and v, the hypergradient x, and the first stage that is not finite."""
    train, val = draws["train"], draws["val"]
    # Phi(w; zeta), and its pullback of v: d1Phi^T v, d2Phi^T v
    image, pullback = oracle.inner_pullback(w, train.batch)
    by_w, by_lam = pullback(v)
    g, direct = _outer(oracle, w, snapshot, val.batch)
    # x = grad_2 E + d2Phi^T v; v moves along grad_1 E + d1Phi^T v - v, w along Phi - w
    x = axpy(val.weight, direct, scale(train.weight, by_lam))
    by_v = axpy(val.weight, g, scale(train.weight, sub(by_w, v)))
    stages = {"inner": image, "outer": (g, direct), "linear": by_w, "cross": by_lam}
    lost = [~all_finite(part) for part in stages.values()]
    stage = jnp.select(lost, [Failure.stage_of(name) for name in stages], Failure.stage_of("none"))
    return axpy(eta * train.weight, sub(image, w), w), axpy(eta, by_v, v), x, stage


def _outer(oracle: Oracle, w: PyTree, snapshot: SVRGSnapshot | None, batch: PyTree) -> tuple[PyTree, PyTree]:
    """grad_1 E and grad_2 E of a minibatch, corrected by the snapshot."""
    _, *here = oracle.outer_gradients(w, batch)
    if snapshot is not None:
        # grad E(w; xi) + grad E(w_1) - grad E(w_1; xi)
        _, *there = oracle.outer_gradients(snapshot.w, batch)
        here = axpy(snapshot.weight, sub([snapshot.g, snapshot.direct], there), here)
    g, direct = here
    return g, direct
