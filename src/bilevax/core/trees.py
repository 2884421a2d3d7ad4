"""Arithmetic on pytrees, and the checks that say which leaf is wrong."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding

from bilevax.core.errors import ParameterError

PyTree: TypeAlias = Any

Operator: TypeAlias = Callable[[PyTree], PyTree]
"""A linear map of trees, by its products."""

T = TypeVar("T")


def add(a: PyTree, b: PyTree) -> PyTree:
    """Leafwise a + b."""
    return jax.tree.map(jnp.add, a, b)


def sub(a: PyTree, b: PyTree) -> PyTree:
    """Leafwise a - b."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(c: Array | float, a: PyTree) -> PyTree:
    """Leafwise c * a; every leaf keeps its dtype."""
    return jax.tree.map(lambda x: jnp.asarray(c).astype(x.dtype) * x, a)


def shrink(c: Array | float, a: PyTree) -> PyTree:
    """Leafwise a / c; every leaf keeps its dtype."""
    return jax.tree.map(lambda x: x / jnp.asarray(c).astype(x.dtype), a)


def axpy(c: Array | float, a: PyTree, b: PyTree) -> PyTree:
    """Leafwise c * a + b; every leaf keeps its dtype."""
    return jax.tree.map(lambda x, y: jnp.asarray(c).astype(y.dtype) * x + y, a, b)


def zeros_like(a: PyTree) -> PyTree:
    """A tree of zeros in the shape of a."""
    return jax.tree.map(jnp.zeros_like, a)


def zeros(shapes: PyTree, *axes: int) -> PyTree:
    """A tree of zeros, behind leading axes, in the shapes and dtypes of arrays or of what ``jax.eval_shape`` says."""
    return jax.tree.map(lambda x: jnp.zeros((*axes, *x.shape), x.dtype), shapes)


def entries(a: PyTree) -> int:
    """Number of entries."""
    return sum(x.size for x in jax.tree.leaves(a))


def vdot(a: PyTree, b: PyTree) -> Array:
    """Inner product over all leaves."""
    return leaf_sum(jax.tree.map(jnp.vdot, a, b))


def leaf_sum(a: PyTree) -> Array:
    """Sum of the leaves, which have one shape."""
    out: Array = functools.reduce(jnp.add, jax.tree.leaves(a))
    return out


def _norm(a: PyTree) -> Array:
    """Euclidean norm over all leaves, by way of the largest entry: squares neither overflow nor vanish."""
    # ||a|| = m ||a / m||, m = max |a_i|
    top = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x)) for x in jax.tree.leaves(a)])
    usable = (top > 0) & jnp.isfinite(top)
    # entries of at most 1
    unit = shrink(jnp.where(usable, top, jnp.ones_like(top)), a)
    return jnp.where(usable, top * jnp.sqrt(vdot(unit, unit)), top)


# called eagerly it is one program, not nine
norm: Callable[[PyTree], Array] = jax.jit(_norm, inline=True)


def largest(a: PyTree) -> Array:
    """Largest absolute value over all leaves, finite where the norm may overflow."""
    sizes = [jnp.max(jnp.abs(x)) for x in jax.tree.leaves(a)]
    # leaves of several dtypes are compared in the widest
    dtype = jnp.result_type(*sizes)
    return jnp.max(jnp.stack([x.astype(dtype) for x in sizes]))


def all_finite(a: PyTree) -> Array:
    """True if every entry of every leaf is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(a)]))


def stays_finite(before: PyTree, after: PyTree) -> Array:
    """False where an entry became NaN or infinite that was not."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    floats = [(x, y) for x, y in pairs if jnp.issubdtype(x.dtype, jnp.inexact)]
    # where the sum of each leaf is finite so are its entries: they are looked at where one is not, or overflows
    stay: Array = jax.lax.cond(
        all_finite([_sum_in_lanes(y) for _, y in floats]),
        lambda: jnp.bool_(True),
        lambda: jnp.all(jnp.stack([jnp.all(jnp.isfinite(y) | ~jnp.isfinite(x)) for x, y in floats])),
    )
    return stay


LANES = 256
"""Sums that XLA adds up at once on a CPU: one alone takes four times as long."""


def _sum_in_lanes(x: Array) -> Array:
    """The sum of all entries, in another order."""
    whole = x.size // LANES * LANES
    x = x.reshape(-1)
    return jnp.sum(jnp.sum(x[:whole].reshape(-1, LANES), axis=0)) + jnp.sum(x[whole:])


def where(condition: Array, a: T, b: T) -> T:
    """The tree a where the scalar condition holds, else b."""
    out: T = jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
    return out


def row(stack: PyTree, i: Array | int | slice) -> PyTree:
    """Entry i of a stack of trees, leaves [L, ...], or several of its entries."""
    return jax.tree.map(lambda x: x[i], stack)


def per_row(c: Array, like: Array) -> Array:
    """Factors [L] that broadcast against a leaf [L, ...], in its dtype."""
    return c.astype(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def astype_of(a: PyTree, like: PyTree) -> PyTree:
    """A tree with the dtypes of ``like``."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), a, like)


def leaf_name(name: str, path: tuple[PyTree, ...]) -> str:
    """How a user would write the leaf: ``lam['l2']``."""
    return name + jax.tree_util.keystr(path)


def as_parameters(name: str, tree: PyTree, *, spread: bool = False) -> PyTree:
    """The tree with array leaves, checked: real, not empty, finite.

    A leaf that is dealt over a mesh stays so; of axes that are not ``Auto`` it becomes one that is, as the compiler
    partitions what is done with it.

    Args:
        name: of the tree.
        tree: of arrays and numbers.
        spread: whether leaves may have parts in other processes. Default False.

    Raises:
        ParameterError: a leaf is an integer, boolean, complex or object array, a function or another object, is empty,
            is not finite, or has parts in other processes and must not.
    """
    if not jax.tree.leaves(tree):
        raise ParameterError(f"{name} has no leaves; pass at least one float array")
    return jax.tree_util.tree_map_with_path(lambda path, x: _parameter(leaf_name(name, path), x, spread), tree)


def _parameter(name: str, x: PyTree, spread: bool) -> Array:
    given, kind = x, getattr(x, "dtype", None)
    if kind is None:
        x = np.asarray(x)
        kind = x.dtype
        # A Python float has JAX's default precision, float32 but under x64.
        if x.ndim == 0 and kind == np.float64:
            x = x.astype(jnp.result_type(float))
            kind = x.dtype
    # an integer leaf has no derivative, a complex one another convention for it
    if not jnp.issubdtype(kind, jnp.floating):
        raise ParameterError(_not_float(name, given, kind))
    if np.size(x) == 0:
        raise ParameterError(f"leaf {name} is empty, shape {np.shape(x)}; pass at least one entry")
    apart = is_spread(x)
    if apart and not spread:
        raise ParameterError(f"leaf {name} is dealt to several processes; give each of them the whole of it")
    # of what is apart each process looks at its own part
    parts = [part.data for part in x.addressable_shards] if apart else [x] if is_concrete(x) else []
    if not all(np.all(np.isfinite(np.asarray(part, dtype=np.float64))) for part in parts):
        raise ParameterError(f"leaf {name} contains NaN or infinity; pass finite numbers")
    return strongly_typed(_left_to_the_compiler(x) if parts else x)


def _left_to_the_compiler(x: PyTree) -> PyTree:
    """An array whose mesh, if it is dealt, has axes of type Auto; others are for functions that name them."""
    sharding = getattr(x, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not any(sharding.spec):  # by which it is dealt, if to one device
        return x
    names, devices = sharding.mesh.axis_names, sharding.mesh.devices
    own = NamedSharding(Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names)), sharding.spec)
    # the parts stay where they are
    return jax.make_array_from_single_device_arrays(x.shape, own, [part.data for part in x.addressable_shards])


_SPLIT = (
    "split the {} with eqx.partition({}, eqx.is_inexact_array), pass the float part, and join it again with eqx.combine"
    " inside the losses (flax: nnx.split, nnx.merge)"
)


def _not_float(name: str, leaf: PyTree, kind: PyTree) -> str:
    """What a leaf is, and what to do with a tree, such as a model, that holds more than parameters."""
    if not hasattr(leaf, "dtype") and jnp.issubdtype(kind, np.object_):
        what = "a function" if callable(leaf) else f"an object of type {type(leaf).__name__}"
        return f"leaf {name} is {what}; {_SPLIT.format('model', 'model')}"
    sentence = f"leaf {name} is {kind}; pass a float array"
    alone = name.isidentifier() or jnp.issubdtype(kind, np.object_) or jnp.issubdtype(kind, jnp.complexfloating)
    return sentence if alone else f"{sentence}, or, where it is no parameter, {_SPLIT.format('tree', 'tree')}"


def at_least_single(x: Array) -> Array:
    """An array in float32 where its type is shorter, for what LAPACK does, and for numbers beyond that type's range."""
    # LAPACK has no bfloat16, and float16 ends at 65,504
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def strongly_typed(x: PyTree) -> Array:
    """An array of the dtype it has, which no other operand can change."""
    # By way of the host: a cast on the device would compile.
    if getattr(x, "weak_type", False) and is_concrete(x) and not is_spread(x):
        x = np.asarray(x)
    return jnp.asarray(x, dtype=jax.dtypes.canonicalize_dtype(x.dtype))


def is_concrete(x: object) -> bool:
    """True unless x is a tracer of a transformation that is under way."""
    return not isinstance(x, jax.core.Tracer)


def is_spread(tree: PyTree) -> bool:
    """True if an array has parts that are in other processes only: who computes with it does so with them."""
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, Array) and is_concrete(x)]
    return not all(x.is_fully_addressable or x.is_fully_replicated for x in arrays)


def map_named(fn: Callable[[str, PyTree], PyTree], name: str, tree: PyTree) -> PyTree:
    """Map fn(leaf name, leaf) over a tree."""
    return jax.tree_util.tree_map_with_path(lambda path, x: fn(leaf_name(name, path), x), tree)


def rounding_unit(tree: PyTree) -> float:
    """The rounding unit of a tree's coarsest leaf."""
    return max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(tree))
