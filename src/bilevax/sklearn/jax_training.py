"""Training of a user's JAX model of classes: equinox's, flax's or a pair of functions.

A form is what of a model is no number: with its numbers it makes scores of rows, and it is hashable, so that a model
that is trained again, or cloned, is not compiled again. Rows are padded for the same reason.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.tree_util import PyTreeDef

from bilevax.core.errors import ParameterError
from bilevax.core.promotion import usual_promotion
from bilevax.core.trees import PyTree
from bilevax.sklearn.jax_kinds import EQUINOX, NNX, PAIR, kind
from bilevax.solvers.label_noise import normalised

PIECE = 16384
"""Rows whose scores are computed at once."""


class Form(Protocol):
    """A model without its numbers."""

    def __call__(self, parameters: PyTree, others: PyTree, X: Array) -> Array:
        """Scores [n, outputs]."""

    def join(self, parameters: PyTree, others: PyTree) -> PyTree:
        """The model with these numbers; of a pair, the numbers."""


class Network(NamedTuple):
    """A model in parts: form, parameters, and other arrays, which are not trained."""

    form: Form
    parameters: PyTree
    others: PyTree

    @property
    def dtype(self) -> np.dtype:
        """Of the first parameter."""
        out: np.dtype = jax.tree.leaves(self.parameters)[0].dtype
        return out

    @property
    def trained(self) -> PyTree:
        """What :func:`parts` takes: the module, or of a pair the parameters."""
        return self.form.join(self.parameters, self.others)

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Scores [n, outputs], in float64."""
        out = []
        for i in range(0, len(X), PIECE):
            piece = X[i : i + PIECE]
            with usual_promotion():
                scores = _scores(self.form, self.parameters, self.others, _padded(piece, _room(len(piece)), self.dtype))
            out.append(np.asarray(scores, np.float64)[: len(piece)])
        return np.concatenate(out)


@dataclass(frozen=True)
class _Pair:
    """``init`` and ``apply``, of a tuple or an object, such as a flax.linen module."""

    model: object

    def __call__(self, parameters: PyTree, others: PyTree, X: Array) -> Array:
        return _pair(self.model)[1](parameters, X)

    def join(self, parameters: PyTree, others: PyTree) -> PyTree:
        return parameters


@dataclass(frozen=True)
class _OfOneRow:
    """An equinox module, which is called with one row."""

    structure: PyTreeDef
    functions: tuple[object, ...]

    def __call__(self, parameters: PyTree, others: PyTree, X: Array) -> Array:
        out: Array = jax.vmap(self.join(parameters, others))(X)
        return out

    def join(self, parameters: PyTree, others: PyTree) -> PyTree:
        each = zip(parameters, others, self.functions, strict=True)
        return jax.tree.unflatten(self.structure, [next(x for x in xs if x is not None) for xs in each])


@dataclass(frozen=True)
class _Graph:
    """A flax.nnx module."""

    graph: object

    def __call__(self, parameters: PyTree, others: PyTree, X: Array) -> Array:
        out: Array = self.join(parameters, others)(X)
        return out

    def join(self, parameters: PyTree, others: PyTree) -> PyTree:
        return _nnx().merge(self.graph, parameters)


def _pair(model: PyTree) -> tuple[Callable[[Array, Array], PyTree], Callable[[PyTree, Array], Array]]:
    """``init`` and ``apply``."""
    init, apply = model if isinstance(model, tuple) else (model.init, model.apply)
    return init, apply


def _nnx() -> ModuleType:
    return importlib.import_module("flax.nnx")


def parts(model: object, trained: PyTree) -> Network:
    """A model in parts.

    Args:
        model: as the user gave it.
        trained: a module like it; of a pair, what ``init`` returned.

    Raises:
        ParameterError: it holds what is neither trained nor fixed, such as running statistics, or has no parameters.
    """
    net = _parts(model, trained)
    if not jax.tree.leaves(net.parameters):
        raise ParameterError(f"model has no parameters: {model!r}")
    return net


def _parts(model: object, trained: PyTree) -> Network:
    if kind(model) == EQUINOX:
        leaves, structure = jax.tree.flatten(trained)
        arrays = [isinstance(x, jax.Array | np.ndarray) for x in leaves]
        floats = [a and jnp.issubdtype(x.dtype, jnp.floating) for a, x in zip(arrays, leaves, strict=True)]
        pick = partial(_pick, leaves)
        form = _OfOneRow(structure, tuple(pick([not a for a in arrays])))
        return Network(form, pick(floats), pick([a and not f for a, f in zip(arrays, floats, strict=True)]))
    if kind(model) == NNX:
        graph, parameters, others = _nnx().split(trained, _nnx().Param, ...)
        _refuse({type(x).__name__ for _, x in _nnx().to_flat_state(others)})
        return Network(_Graph(graph), parameters, None)
    # flax.linen keeps its parameters under this name
    if isinstance(trained, Mapping) and "params" in trained:
        _refuse(set(trained) - {"params"})
    return Network(_Pair(model), trained, None)


def _pick(leaves: list[PyTree], which: list[bool]) -> list[PyTree]:
    return [x if of else None for x, of in zip(leaves, which, strict=True)]


def _refuse(others: set[str]) -> None:
    if others:
        raise ParameterError(
            f"model holds {', '.join(sorted(others))} beside its parameters; a model without dropout and running"
            " statistics is needed (layer norm in place of batch norm, weight decay in place of dropout)"
        )


def begin(model: object, key: Array, features: int, classes: int) -> Network:
    """A model as it was given, which makes scores of such rows.

    Raises:
        ParameterError: it does not.
    """
    try:
        with usual_promotion():
            trained = _pair(model)[0](key, jnp.zeros((1, features))) if kind(model) == PAIR else model
            net = parts(model, trained)
            row = jax.ShapeDtypeStruct((3, features), net.dtype)
            shape = jax.eval_shape(net.form, net.parameters, net.others, row).shape
    except ParameterError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ParameterError(f"model cannot be applied to rows of {features} features: {reason}") from error
    if len(shape) != 2 or shape[0] != 3 or shape[1] < classes:
        raise ParameterError(
            f"model has scores of shape {shape} for 3 rows of {features} features; give (3, {classes}), one a class"
        )
    return net


# Training


class Rows(NamedTuple):
    """Rows [n, p] and the weight of each for each class, [n, C]: a row may be told as several classes."""

    X: np.ndarray
    weight: np.ndarray

    def mean_loss(self, net: Network) -> float:
        """- sum_ic S_ic log p_c(x_i) / sum_ic S_ic."""
        log_p, _ = normalised(net.scores(self.X)[:, : self.weight.shape[1]])
        return -float(np.sum(self.weight * log_p) / self.weight.sum())


class Pace(NamedTuple):
    """How training goes: of AdamW, rows of a minibatch, epochs at most, and epochs without a gain before the end."""

    learning_rate: float
    weight_decay: float
    batch_size: int
    max_epochs: int
    patience: int


def train(
    net: Network, rows: Rows, held: Rows, pace: Pace, random: np.random.RandomState
) -> tuple[Network, int, float]:
    """AdamW on minibatches, to the epoch of least held-out loss.

    Rows are drawn in proportion to their weights: a row of weight 2 is as two.

    Returns:
        The network, its epoch, and its held-out loss, infinite where it never was a number.
    """
    size = _room(len(rows.X))
    told = tuple(jnp.asarray(_padded(A, size, net.dtype)) for A in rows)
    # row i is drawn where u lies between the shares of the rows before it and those up to it
    up_to = np.cumsum(rows.weight.sum(axis=1))
    # ceil(n / b) minibatches an epoch; room for as many as the padded rows would have, so that one program serves
    steps, most = (-(-n // pace.batch_size) for n in (len(rows.X), size))
    drawn = np.zeros((most, pace.batch_size), np.int32)
    state, best = optax.adamw(0.0).init(net.parameters), (net, 0, np.inf)
    for epoch in range(1, pace.max_epochs + 1):
        u = random.random_sample((steps, pace.batch_size))
        drawn[:steps] = np.minimum(np.searchsorted(up_to, u * up_to[-1], side="right"), len(rows.X) - 1)
        with usual_promotion():
            parameters, state = _epoch(net.form, pace[:2], net.parameters, net.others, state, told, drawn.copy(), steps)
        net = net._replace(parameters=parameters)
        loss = held.mean_loss(net)
        if loss < best[2]:
            best = net, epoch, loss
        elif epoch - best[1] >= pace.patience:
            break
    return best


def _room(n: int) -> int:
    """Rows to which n are padded, in few sizes: memory is cheaper than to compile again."""
    return next((m for m in (256, 2048, 16384) if m >= n), 1 << (n - 1).bit_length())


def _padded(A: np.ndarray, size: int, dtype: np.dtype) -> np.ndarray:
    # beyond the dtype's range is infinite, which the loss tells
    with np.errstate(over="ignore"):
        return np.concatenate([A, np.zeros((size - len(A), A.shape[1]))]).astype(dtype)


@partial(jax.jit, static_argnums=0)
def _scores(form: Form, parameters: PyTree, others: PyTree, X: Array) -> Array:
    return form(parameters, others, X)


@partial(jax.jit, static_argnums=0)
def _epoch(
    form: Form, rates: tuple[float, ...], parameters: PyTree, others: PyTree, state: PyTree, told: tuple[Array, ...],
    drawn: Array | np.ndarray, steps: int,
) -> tuple[PyTree, PyTree]:  # fmt: skip
    """So many steps, each on the rows that are drawn for it, [at least so many, b]."""
    adamw = optax.adamw(rates[0], weight_decay=rates[1])

    def loss(parameters: PyTree, X: Array, weight: Array) -> Array:
        log_p = jax.nn.log_softmax(form(parameters, others, X)[:, : weight.shape[1]])
        # rows are drawn by their weights: of each the shares of the classes are left
        return -jnp.mean(jnp.sum(weight / jnp.sum(weight, axis=1, keepdims=True) * log_p, axis=1))

    def step(j: Array, at: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        parameters, state = at
        change, state = adamw.update(jax.grad(loss)(parameters, *(A[drawn[j]] for A in told)), state, parameters)
        return optax.apply_updates(parameters, change), state

    out: tuple[PyTree, PyTree] = jax.lax.fori_loop(0, steps, step, (parameters, state))
    return out
