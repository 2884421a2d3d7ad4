"""Chains of w and v that the same minibatches move, and the batch means of what they pass through."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevax.core.instance import Instance
from bilevax.core.protocols import BilevelProblem
from bilevax.core.records import Failure
from bilevax.core.trees import PyTree, add, all_finite, axpy, norm, scale, sub, where, zeros_like
from bilevax.data import join
from bilevax.hypergradients.batch_means import BatchMeans, batch_edges, extrapolated, moved_by


class Chains(NamedTuple):
    """What is carried from step to step: a lane for each chain; the second takes half steps once they have parted.

    Attributes:
        w: [lanes, ...].
        v: [lanes, ...].
        failure: the first stage and step at which something was not finite; the chains then stand still.
        travel: sum of the eta_j.
    """

    w: PyTree
    v: PyTree
    failure: Failure
    cumulative_step: Array


class Series(NamedTuple):
    """Batch means of (x_j, w_j, v_j) over the kept steps of a run.

    Attributes:
        extrapolated: 2 x^(s/2) - x^(s), extrapolated.
        difference: x^(s) - x^(s/2), 0 of one lane.
    """

    extrapolated: BatchMeans
    difference: BatchMeans

    @property
    def full_step(self) -> BatchMeans:
        """x^(s), of the lane with whole steps: in the long run its mean varies as that of ``extrapolated``.

        It forgets sooner. Along a direction of relaxation time T the mean over B steps has 1 - T/B times the variance
        it has where B is long, that of ``extrapolated`` 1 - 7/3 T/B, up to terms of the order exp(-B / 2T).
        """
        return self.extrapolated.of(
            jax.tree.map(lambda x, moved: x + 2 * moved, self.extrapolated.means, self.difference.means)
        )

    def continued(self, before: "Series") -> "Series":
        """With what a run of half the steps kept."""
        return Series(*(now.joined(past.doubled) for now, past in zip(self, before, strict=True)))


class SVRGSnapshot(NamedTuple):
    """A point and the outer gradients of every row there, by which those of minibatches are corrected.

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


def begin(w0: PyTree, v0: PyTree, *, lanes: int) -> Chains:
    """Chains that all start at (w0, v0)."""
    w, v = jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes, *x.shape)), (w0, v0))
    return Chains(w, v, Failure.of("none"), jnp.zeros((), jnp.result_type(float)))


def run(
    instance: Instance,
    eta: Callable[[Array], Array],
    chains: Chains,
    kept: tuple[Array, Array],
    *,
    key: Array,
    made: Array | int = 0,
    snapshot: SVRGSnapshot | None = None,
) -> tuple[Chains, Series, SVRGSnapshot | None]:
    """Move the chains from step ``made`` to ``kept[0]``, and then to ``kept[1]`` in stretches whose means are kept.

    Up to ``kept[0]`` all lanes take whole steps, if none is made: the start is forgotten as fast as can be. There the
    snapshot is cast, if there is to be one.
    """
    parting = jnp.where(jnp.asarray(made) > 0, 0, kept[0])
    cuts = jnp.maximum(jnp.concatenate([jnp.zeros(1, jnp.int32), batch_edges(*kept)]), made)

    casting = (jnp.arange(len(cuts) - 1) == 1) & (jnp.asarray(made) == 0)

    def stretch(state: tuple[Chains, SVRGSnapshot | None], here: tuple[Array, Array, Array]) -> tuple[Any, Any]:
        (chains, snapshot), (start, stop, cast) = state, here
        if snapshot is not None:
            w = jax.tree.map(lambda x: x[0], chains.w)
            snapshot = jax.lax.cond(cast, lambda w: SVRGSnapshot.at(instance, w), lambda _: snapshot, w)
        chains, sums, number = advance(instance, eta, chains, (start, stop, parting), key=key, snapshot=snapshot)
        means = scale(1.0 / jnp.maximum(number, 1).astype(jnp.result_type(float)), sums)
        return (chains, snapshot), (number, extrapolated(means), moved_by(means))

    (chains, snapshot), passed = jax.lax.scan(stretch, (chains, snapshot), (cuts[:-1], cuts[1:], casting))
    counts, *means = jax.tree.map(lambda x: x[1:], passed)  # without the first stretch, which forgets the start
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

    ``steps`` is (start, stop, parting): before step ``parting`` all lanes take whole steps.
    """
    start, stop, parting = steps
    lanes = jax.tree.leaves(chains.w)[0].shape[0]
    nowhere = Failure.of("none")
    halving = 0.5 ** jnp.arange(lanes, dtype=jnp.result_type(float))

    def step(carry: Any, args: tuple[BilevelProblem, PyTree, Array, SVRGSnapshot | None], j: Array, draws: Any) -> Any:
        (w, v, failure, travel), sums, number = carry
        problem, lam, parting, snapshot = args
        move = jax.vmap(partial(moved, problem, lam, snapshot, draws))
        size = jnp.asarray(eta(j)).astype(halving.dtype)
        new_w, new_v, x, stage = move(w, v, size * jnp.where(j < parting, 1.0, halving))
        failure = where(failure.stage == 0, nowhere._replace(stage=jnp.max(stage), step=j + 1), failure)
        good = failure.stage == 0
        sums = where(good, add(sums, (x, w, v)), sums)
        w, v = where(good, (new_w, new_v), (w, v))
        return Chains(w, v, failure, travel + size), sums, number + good.astype(jnp.int32)

    sums = (
        jax.tree.map(lambda x: jnp.zeros((lanes, *x.shape), x.dtype), instance.lam),
        *zeros_like((chains.w, chains.v)),
    )
    both = join(train=instance.train, val=instance.val)
    args = instance.problem, instance.lam, parting, snapshot
    return both.fold(step, (chains, sums, jnp.int32(0)), args, key=key, start=start, stop=stop)


def moved(
    problem: BilevelProblem, lam: PyTree, snapshot: SVRGSnapshot | None, draws: Any, w: PyTree, v: PyTree, eta: Array
) -> tuple[PyTree, PyTree, PyTree, Array]:
    """One step of one chain: the next w and v, the hypergradient x, and the first stage that is not finite."""
    train, val = draws["train"], draws["val"]
    image, pullback = jax.vjp(lambda w, lam: problem.inner_image(w, lam, train.batch), w, lam)
    by_w, by_lam = pullback(v)
    g, direct = _outer(problem, w, lam, snapshot, val.batch)
    x = axpy(val.weight, direct, scale(train.weight, by_lam))
    by_v = axpy(val.weight, g, scale(train.weight, sub(by_w, v)))
    stages = {"inner": image, "outer": (g, direct), "linear": by_w, "cross": by_lam}
    lost = [~all_finite(part) for part in stages.values()]
    stage = jnp.select(lost, [Failure.stage_of(name) for name in stages], Failure.stage_of("none"))
    return axpy(eta * train.weight, sub(image, w), w), axpy(eta, by_v, v), x, stage


def _outer(
    problem: BilevelProblem, w: PyTree, lam: PyTree, snapshot: SVRGSnapshot | None, batch: PyTree
) -> tuple[PyTree, PyTree]:
    """grad_1 E and grad_2 E of a minibatch, corrected by the snapshot."""

    def at(w: PyTree) -> tuple[PyTree, PyTree]:
        return problem.outer_gradients(w, lam, batch)[1:]

    if snapshot is None:
        return at(w)
    return axpy(snapshot.weight, sub((snapshot.g, snapshot.direct), at(snapshot.w)), at(w))
