"""Hyperparameters of a user's training loop, moved while it trains.

In: the user's update of everything that the loop carries, a guide loss, minibatches as they come. Out: the next state,
and the hypergradient through the last updates. There is no inner problem to be solved and no bilevel problem object.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bilevax.algorithms.optim import Optim, optim
from bilevax.algorithms.reweighting import RetrainGap
from bilevax.algorithms.transforms import Transform
from bilevax.core.codes import Code
from bilevax.core.config import at_least_one, canonicalize, check_fields, config, function_of, set_frozen, static
from bilevax.core.errors import ParameterError
from bilevax.core.keys import as_key, is_key
from bilevax.core.promotion import usual_promotion
from bilevax.core.trees import PyTree, all_finite, as_parameters, astype_of, leaf_name, row, strongly_typed, where


class OnlineState(NamedTuple):
    """What is carried.

    Attributes:
        w: what the loop carries: parameters, the optimiser's state, statistics of batches; any arrays.
        lam: the hyperparameters, m entries.
        optimiser: the state of the outer optimiser.
    """

    w: PyTree
    lam: PyTree
    optimiser: PyTree


class OnlineInfo(NamedTuple):
    """What is only watched of one step.

    Attributes:
        outer_value: the guide loss after its updates, at the lam before its move.
        value: the hypergradient, like lam.
        code: OK, or NONFINITE where either is NaN or infinite, and lam was not moved.
    """

    outer_value: Array
    value: PyTree
    code: Array


@config
class Online:
    """Hypergradient descent on what a training loop is given, while it trains: rates, decays, weights of losses.

        w_j   = S(w_{j-1}, lam; zeta_j, key_j),  1 <= j <= K         S: one update of the user's
        value = d/dlam E(w_K(lam), lam; xi),     w_0 held            E: the guide loss
        x    <- x - step(dlam/dx^T value),       lam = T(x)          T: ``transform``, e.g. exp

    The derivative is exact, through all that S does: the optimiser, its moments, batch statistics, dropout under the
    same keys. How w_0 depends on lam is left out, so a small K is greedy: what pays off after more than K updates is
    not seen (for rates: Wu, Ren, Liao, Grosse 2018, arXiv:1803.02021). With K the whole run it is
    :class:`~bilevax.ITD` of the map S.

    Assumes that S and E are differentiable in lam. Cost of K = 1: the update and a gradient of E, for rates and decays,
    which S reads after its own gradient; where lam is in the loss also a product with the transposed derivative of that
    gradient in lam. There is no second derivative in w. Each further update has one, and what it computed is kept
    (``jax.checkpoint(train_step)`` in its place: K states are kept, and the rest is computed twice). Where lam acts on
    a gradient that Adam sees, or K > 1, give Adam an ``eps_root``, such as 1e-12: the square root has no derivative
    where an entry of the gradient is 0, and the code is NONFINITE.
    Source: Baydin, Cornish, Martinez Rubio, Schmidt, Wood (2018), arXiv:1703.04782 (K = 1, the rate); Franceschi,
    Donini, Frasconi, Pontil (2017), arXiv:1703.01785; on a guide set, of all numbers of an optimiser: Lichtarge,
    Alberti, Kumar (2022), arXiv:2209.04683.

    Args:
        train_step: (w, lam, batch, key) -> w, one update. Leaves of integers and keys are carried along.
        guide_loss: (w, lam, batch) -> scalar, on rows that are not trained on.
        K: updates a step; a changed count compiles anew. Default 1.
        outer: :func:`~bilevax.optim` (a changed number compiles nothing) or any optax transformation. Default: Adam
            with a rate of 0.01.
        transform: T, by name, which is what x is: ``"exp"`` (lam > 0), ``"sigmoid"`` (0 < lam < 1), ``"softmax"``
            (lam > 0 of sum 1 over all entries of a leaf), ``"identity"``; one for all of lam, or a tree of them, one
            for each branch of lam. Default ``"identity"``. Another T belongs into ``train_step``.

    Raises:
        ParameterError: no functions, no count, no optimiser, no such name.

    Examples:
        The rate of gradient descent on the mean square of a batch, from a thousandth on:

        >>> def train_step(w, rate, batch, key):
        ...     return w - rate * jax.grad(lambda w: jnp.mean((w - batch) ** 2))(w)
        >>> def guide_loss(w, rate, batch):
        ...     return jnp.mean((w - batch) ** 2)
        >>> online = Online(train_step, guide_loss, outer=optim("adam", 0.1), transform="exp")
        >>> state, batch, key = online.init(3.0, 1e-3), jnp.zeros(4), jax.random.key(0)
        >>> for _ in range(50):
        ...     state, info = online.step(state, batch, batch, key)
        >>> bool(state.lam > 0.1), bool(info.outer_value < 1.0)
        (True, True)
    """

    train_step: Callable[[PyTree, PyTree, PyTree, Array], PyTree]
    guide_loss: Callable[[PyTree, PyTree, PyTree], Array]
    K: int = static(1)
    outer: Optim | optax.GradientTransformation = optim("adam", 0.01)
    transform: PyTree = "identity"

    def __post_init__(self) -> None:
        check_fields(self, train_step=function_of("(w, lam, batch, key)"), guide_loss=function_of("(w, lam, batch)"))
        check_fields(self, K=at_least_one)
        if not (hasattr(self.outer, "init") and hasattr(self.outer, "update")):
            raise ParameterError(
                f'outer must be bx.optim("adam", learning_rate=0.01) or an optax transformation, got {self.outer!r}'
            )
        # a name becomes part of the structure
        transform = jax.tree.map(
            lambda t: t if _is_transform(t) else Transform(t), self.transform, is_leaf=_is_transform
        )
        set_frozen(self, transform=transform)

    def init(self, w: PyTree, lam: PyTree) -> OnlineState:
        """The state before the first step.

        Args:
            w: what ``train_step`` is given first, such as ``(parameters, optimiser_state)``: arrays alone.
            lam: any pytree of floating arrays, within the range of ``transform``.

        Raises:
            ParameterError: another leaf, by its name.
        """
        w, lam = _carried(w), as_parameters("lam", lam)
        try:
            self._each(lambda transform, branch: None, lam)
        except ValueError:
            raise ParameterError(
                f"transform must be a name, or a tree of names, one for each branch of lam, {jax.tree.structure(lam)}"
            ) from None
        self._each(Transform.check, lam)
        with usual_promotion():
            return OnlineState(w, lam, self.outer.init(self._each(Transform.inverse, lam)))

    def step(
        self, state: OnlineState, batch: PyTree, guide_batch: PyTree, key: Array
    ) -> tuple[OnlineState, OnlineInfo]:
        """K updates and one move of lam: in an eager loop, as one compiled program, or inside the user's jit or scan.

        Args:
            state: from :meth:`init` or the step before.
            batch: of ``train_step``; with K > 1 K of them, stacked: every leaf has a leading axis K.
            guide_batch: of ``guide_loss``.
            key: of ``train_step``; with K > 1 it is split into K.

        Raises:
            ParameterError: a leading axis that is not K, an update that changes the structure of w, a guide loss that
                is no scalar.
        """
        key, lengths = as_key(key), {np.shape(x)[:1] for x in jax.tree.leaves(batch)}
        if self.K > 1 and lengths - {(self.K,)}:
            raise ParameterError(f"with K={self.K} every leaf of batch has a leading axis of {self.K}, got {lengths}")
        out: tuple[OnlineState, OnlineInfo] = _step(canonicalize(self), state, batch, guide_batch, key)
        return out

    def retrain_gap(
        self, state: OnlineState, w0: PyTree, batches: PyTree, guide_batch: PyTree, key: Array
    ) -> RetrainGap:
        """What the loop's w owes to the lam on the way: it is trained again, from scratch, at the lam that was found.

        Args:
            state: of the loop.
            w0: where to begin.
            batches: T minibatches, every leaf [T, ...], for T updates.
            guide_batch: of ``guide_loss``.
            key: split into T.
        """
        gap: RetrainGap = _retrained(canonicalize(self), state, _carried(w0), batches, guide_batch, as_key(key))
        return gap

    def _each(self, function: Callable[..., PyTree], lam: PyTree) -> PyTree:
        return jax.tree.map(function, self.transform, lam, is_leaf=_is_transform)


def updated(online: Online, w: PyTree, lam: PyTree, batches: PyTree, keys: Array) -> PyTree:
    """w after an update with each of the stacked batches."""
    return jax.lax.scan(lambda w, draw: (_update(online, w, lam, *draw), None), w, (batches, keys))[0]


def differentiated(
    online: Online, state: OnlineState, batch: PyTree, guide_batch: PyTree, key: Array
) -> tuple[Array, PyTree, PyTree]:
    """E(w_K(lam), lam), w_K, and the derivative of the former in lam, with w_0 held."""

    def objective(lam: PyTree) -> tuple[Array, PyTree]:
        if online.K == 1:
            w = _update(online, state.w, lam, batch, key)
        else:
            draws = batch, jax.random.split(key, online.K)
            # outside of the loop, where w_0 is seen to be a constant: no derivative of this update in w is computed
            w = _update(online, state.w, lam, *row(draws, 0))
            w = updated(online, w, lam, *row(draws, slice(1, None)))
        return _guide_value(online, w, lam, guide_batch), w

    (value, w), gradient = jax.value_and_grad(objective, has_aux=True)(state.lam)
    return value, w, gradient


@partial(jax.jit, inline=True)
def _step(
    online: Online, state: OnlineState, batch: PyTree, guide_batch: PyTree, key: Array
) -> tuple[OnlineState, OnlineInfo]:
    outer_value, w, value = differentiated(online, state, batch, guide_batch, key)
    with usual_promotion():
        # x <- x - step(dlam/dx^T value), lam = T(x)
        x = online._each(Transform.inverse, state.lam)
        _, pullback = jax.vjp(partial(online._each, Transform.forward), x)
        (gradient,) = pullback(value)
        change, optimiser = online.outer.update(gradient, state.optimiser, x)
        lam = astype_of(online._each(Transform.forward, optax.apply_updates(x, change)), state.lam)
    # lam is not moved along what is no number; w is what the user's update made of it
    finite = all_finite((outer_value, value, lam))
    lam, optimiser = where(finite, (lam, optimiser), (state.lam, state.optimiser))
    code = jnp.where(finite, jnp.int32(Code.OK), jnp.int32(Code.NONFINITE))
    return OnlineState(w, lam, optimiser), OnlineInfo(outer_value, value, code)


@jax.jit
def _retrained(
    online: Online, state: OnlineState, w0: PyTree, batches: PyTree, guide_batch: PyTree, key: Array
) -> RetrainGap:
    number = jax.tree.leaves(batches)[0].shape[0]
    w = updated(online, w0, state.lam, batches, jax.random.split(key, number))
    # E at the w of the run, and at that of an own run from w0 at the last lam
    before, after = (_guide_value(online, at, state.lam, guide_batch) for at in (state.w, w))
    code = jnp.where(jnp.isfinite(after), jnp.int32(Code.OK), jnp.int32(Code.NONFINITE))
    # E(w') - E(w)
    return RetrainGap(after - before, before, after, w, code)


def _update(online: Online, w: PyTree, lam: PyTree, batch: PyTree, key: Array) -> PyTree:
    """S(w, lam; batch, key), whose structure, shapes and types are those of w."""
    new = online.train_step(_fresh(w), lam, batch, key)
    given: PyTree = jax.tree.structure(w)
    got: PyTree = jax.tree.structure(new)
    if given != got:
        raise ParameterError(f"train_step must return what it is given as w, {given}; it returns {got}")

    def same(path: tuple[PyTree, ...], x: Array, made: PyTree) -> Array:
        y = jnp.asarray(made)
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            leaf, kinds = leaf_name("w", path), [f"{z.dtype}{list(z.shape)}" for z in (x, y)]
            raise ParameterError(f"train_step must return {leaf} as it is given, {kinds[0]}; it returns {kinds[1]}")
        return y

    return jax.tree_util.tree_map_with_path(same, w, new)


def _guide_value(online: Online, w: PyTree, lam: PyTree, batch: PyTree) -> Array:
    value = jnp.asarray(online.guide_loss(_fresh(w), lam, batch))
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ParameterError(f"guide_loss must return a real scalar, got {value.dtype}{list(value.shape)}")
    return value


def _fresh(w: PyTree) -> PyTree:
    """The same arrays in another tree: equinox makes a state useless to whoever gave it, once it is updated."""
    return jax.tree.map(lambda x: x, w)


def _carried(w: PyTree) -> PyTree:
    """W with array leaves, each of a type that no operand changes."""

    def leaf(path: tuple[PyTree, ...], x: PyTree) -> Array:
        if is_key(x):
            return x
        if not isinstance(x, jax.Array) and np.asarray(x).dtype == object:
            raise ParameterError(
                f"leaf {leaf_name('w', path)} is no array but {x!r}; split the model with eqx.partition(model,"
                " eqx.is_array), carry the arrays, and eqx.combine them in train_step (flax: nnx.split, nnx.merge)"
            )
        return strongly_typed(jnp.asarray(x))

    return jax.tree_util.tree_map_with_path(leaf, w)


def _is_transform(x: object) -> bool:
    return isinstance(x, Transform)
