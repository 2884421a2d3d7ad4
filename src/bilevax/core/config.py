"""Configuration: frozen dataclasses of plain numbers that are pytrees.

A field that holds a function, a string, a boolean or an optax transformation is part of the tree's *structure*; every
other field (numbers, arrays, nested configurations) is a child. So a compiled program is reused when a number
changes or when an equal object is built again, and traced again only when a function or a name changes.
"""

import dataclasses
import functools
import inspect
import numbers
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevax.core.errors import ParameterError
from bilevax.core.keys import is_key
from bilevax.core.trees import PyTree, is_concrete, strongly_typed

T = TypeVar("T")

Steps: TypeAlias = int | jax.Array | Callable[[jax.Array | int], jax.Array]
"""A count, or a rule by which it grows with the outer step."""

_PLAIN_TYPES = (bool, str, type, optax.GradientTransformation, optax.GradientTransformationExtraArgs)


def _is_structure(value: object) -> bool:
    """True for what selects a program: names, switches, and functions that are not pytrees themselves."""
    if isinstance(value, _PLAIN_TYPES):
        return True
    return callable(value) and jax.tree_util.all_leaves([value])


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def config(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass, a pytree, and comparable by value (arrays included)."""
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    # Once, not at every flatten: a call of a cached program flattens its arguments several times.
    fields = _fields(cls)
    names, static = tuple(f.name for f in fields), {f.name for f in fields if f.metadata.get("static")}

    def flatten_with_keys(self: T) -> tuple[list[PyTree], PyTree]:
        fields = [(name, getattr(self, name)) for name in names]
        structure = tuple((name, value) for name, value in fields if name in static or _is_structure(value))
        fixed = {name for name, _ in structure}
        keyed = [(jax.tree_util.GetAttrKey(name), value) for name, value in fields if name not in fixed]
        return keyed, (tuple(key.name for key, _ in keyed), structure)

    def flatten(self: T) -> tuple[list[PyTree], PyTree]:
        keyed, aux = flatten_with_keys(self)
        return [value for _, value in keyed], aux

    def unflatten(aux: PyTree, children: PyTree) -> T:
        # No __init__: the children may be tracers, or what another tree_map made of them, and cannot be validated.
        self = object.__new__(cls)
        set_frozen(self, **dict(zip(aux[0], children, strict=True)), **dict(aux[1]))
        return self

    def equal(self: object, other: object) -> bool:
        if type(self) is not type(other):
            return cast(bool, NotImplemented)
        # Arrays have no truth value, so that the tuples of fields cannot be compared as such.
        structure_a: PyTree = jax.tree.structure(self)
        a, b = jax.tree.leaves(self), jax.tree.leaves(other)
        return bool(structure_a == jax.tree.structure(other)) and all(_same(x, y) for x, y in zip(a, b, strict=True))

    def show(self: object) -> str:
        fields = ", ".join(f"{name}={_show(getattr(self, name))}" for name in names)
        return f"{cls.__name__}({fields})"

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    made: Any = cls
    # Equal objects have equal structure; numbers play no part in the hash, since a tracer has none.
    made.__eq__, made.__hash__, made.__repr__ = equal, lambda self: hash(jax.tree.structure(self)), show
    return cls


def _fields(of: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(of)


def static(default: PyTree = dataclasses.MISSING) -> PyTree:
    """A field whose value (a batch size, a name) belongs to the structure: changing it compiles anew."""
    # Such a number would be a child otherwise, as all numbers are.
    return dataclasses.field(default=default, metadata={"static": True})


def _same(x: PyTree, y: PyTree) -> bool:
    # Keys are no numbers: two are the same if their type and their bits are.
    if is_key(x) or is_key(y):
        return is_key(x) and is_key(y) and x.dtype == y.dtype and _same(jax.random.key_data(x), jax.random.key_data(y))
    return x is y or (np.shape(x) == np.shape(y) and bool(np.array_equal(x, y)))


def _show(value: object) -> str:
    if callable(value) and _is_structure(value):
        return qualname(value)
    if isinstance(value, jax.Array | np.ndarray) and np.ndim(value) > 0:
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, tuple | list | dict):
        return repr(jax.tree.map(lambda x: _Text(_show(x)), value))
    return repr(value)


class _Text(str):
    """What is printed as it stands, without quotes."""

    __repr__ = str.__str__


def qualname(function: object) -> str:
    """``module:qualname`` of a function, or its repr where it has none (a lambda, a local function)."""
    name = getattr(function, "__qualname__", "")
    return f"{function.__module__}:{name}" if name and "<" not in name else repr(function)


def replace_unchecked(obj: T, /, **changes: object) -> T:
    """A copy of a configuration with some fields changed, without validation: safe on tracers."""
    new: T = object.__new__(type(obj))
    names = [field.name for field in _fields(obj)]
    set_frozen(new, **{name: changes.get(name, getattr(obj, name)) for name in names})
    return new


def canonicalize(tree: T) -> T:
    """The same tree with every number an array of one strong dtype (int32, or JAX's default float).

    A Python float is weakly typed and a numpy scalar is not: without this cast each would be traced on its own.
    """
    out: T = jax.tree.map(_strong, tree)
    return out


def _strong(x: PyTree) -> PyTree:
    # By way of numpy: a cast on the device would be a program of its own.
    if isinstance(x, bool | np.bool_):
        return jnp.asarray(x)
    if isinstance(x, numbers.Integral):
        return jnp.asarray(np.asarray(x, np.int32))
    if isinstance(x, numbers.Real):
        return jnp.asarray(np.asarray(x, jnp.result_type(float)))
    if isinstance(x, jax.Array | np.ndarray):
        return x if is_key(x) else strongly_typed(x)
    return x


def check_real(
    name: str, value: jax.Array | float, *, low: float = -np.inf, high: float = np.inf, open_low: bool = False
) -> float:
    """A number field as a Python float, range-checked; a tracer passes unchecked.

    Raises:
        ParameterError: the value is no real scalar or lies outside [low, high] (or ]low, high]).
    """
    if not is_concrete(value):
        return cast(float, value)
    try:
        if isinstance(value, bool | np.bool_ | str) or np.ndim(value) != 0:
            raise TypeError
        out = float(value)
    except TypeError:
        raise ParameterError(f"{name} must be a real number, got {value!r}") from None
    if not (low <= out <= high) or (open_low and out == low):
        left = "]" if open_low else "["
        raise ParameterError(f"{name} must lie in {left}{low:g}, {high:g}], got {out:g}")
    return out


positive = partial(check_real, low=0.0, open_low=True)
nonnegative = partial(check_real, low=0.0)
fraction = partial(check_real, low=0.0, high=1.0)
positive_fraction = partial(fraction, open_low=True)


def is_scalar(value: PyTree) -> bool:
    """True for a number or a 0-d array, false for functions, trees, vectors and None."""
    return value is not None and not callable(value) and jax.tree_util.all_leaves([value]) and np.ndim(value) == 0


def check_count(name: str, value: Steps, *, low: int = 0) -> int:
    """A count field as a Python int, range-checked; a tracer or a rule of growth passes unchecked.

    Raises:
        ParameterError: the value is no whole number of at least ``low``.
    """
    # a tracer has no value yet, and a rule of growth gives its counts later
    if not is_concrete(value) or callable(value):
        return cast(int, value)
    if isinstance(value, bool | np.bool_ | str) or np.ndim(value) != 0 or not float(value).is_integer():
        raise ParameterError(f"{name} must be a whole number, got {value!r}")
    if int(value) < low:
        raise ParameterError(f"{name} must be at least {low}, got {int(value)}")
    if int(value) >= 2**31:  # counts are int32 inside of programs
        raise ParameterError(f"{name} must be less than 2^31, got {int(value)}")
    return int(value)


at_least_one = partial(check_count, low=1)


def or_none(check: Callable[[str, Any], T]) -> Callable[[str, Any], T | None]:
    """The check of a field that may be None."""
    return lambda name, value: None if value is None else check(name, value)


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """A name field, checked against what is allowed.

    Raises:
        ParameterError: the value is not one of ``allowed``.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ParameterError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    return value


def function_of(arguments: str) -> Callable[[str, T], T]:
    """The check of a field that is a function of these arguments."""

    def check(name: str, value: T) -> T:
        if not callable(value):
            raise ParameterError(f"{name} must be a function of {arguments}, got {value!r}")
        return value

    return check


def check_switch(name: str, value: bool) -> bool:
    """A field that is True or False.

    Raises:
        ParameterError: it is neither.
    """
    if not isinstance(value, bool):
        raise ParameterError(f"{name} must be True or False, got {value!r}")
    return value


def as_path(name: str, value: object) -> Path:
    """The path that a string or a path is.

    Raises:
        ParameterError: it is neither.
    """
    if not isinstance(value, str | os.PathLike):
        raise ParameterError(f"{name} must be a path, got {value!r}")
    return Path(value)


def set_frozen(obj: object, /, **values: object) -> None:
    """Store validated values from a frozen dataclass's ``__post_init__``."""
    for name, value in values.items():
        object.__setattr__(obj, name, value)


def check_fields(obj: object, /, **checks: Callable[..., object]) -> None:
    """Store check(name, value) for the value of each field that is named, from ``__post_init__``."""
    set_frozen(obj, **{name: check(name, getattr(obj, name)) for name, check in checks.items()})


def to_plain(value: PyTree) -> PyTree:
    """A configuration as what JSON can say: numbers, strings, lists, and ``{"type": "module:qualname", ...}``."""
    # optax's transformations are tuples of local functions: their repr is all that can be said of them.
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # the class by name, so that it is made again by its own __init__, which validates
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": qualname(type(value)), **fields}
    if isinstance(value, optax.GradientTransformation):
        return {"function": repr(value)}
    if callable(value) and not isinstance(value, jax.Array):
        return {"function": qualname(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if is_key(value):
        return {"key": to_plain(np.asarray(jax.random.key_data(value))), "impl": str(jax.random.key_impl(value))}
    if isinstance(value, jax.Array | np.ndarray) and np.ndim(value) > 0:
        return {"array": to_plain(np.asarray(value).tolist()), "dtype": str(value.dtype)}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return to_plain(np.asarray(value).item())
    if isinstance(value, float) and not np.isfinite(value):
        return {"number": repr(value)}  # JSON has no infinity
    return value


def from_plain(value: PyTree) -> PyTree:
    """The inverse of :func:`to_plain` for configurations whose functions have a ``module:qualname``.

    Raises:
        ParameterError: the text names a lambda or a local function, or nothing that can be imported from
            a module that is loaded already.
    """
    if isinstance(value, list):
        return [from_plain(v) for v in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"function"}:
        return _lookup(value["function"])
    if value.keys() == {"number"}:
        return float(value["number"])
    if value.keys() == {"key", "impl"}:
        return jax.random.wrap_key_data(jnp.asarray(from_plain(value["key"])), impl=value["impl"])
    if value.keys() == {"array", "dtype"}:
        return np.asarray(from_plain(value["array"]), value["dtype"])
    fields = {k: from_plain(v) for k, v in value.items() if k != "type"}
    if "type" not in value:
        return fields
    cls = _lookup(value["type"])
    if not (inspect.isclass(cls) and dataclasses.is_dataclass(cls)):
        raise ParameterError(f"{value['type']} is no configuration class")
    return cls(**fields)


def _lookup(name: str) -> PyTree:
    module, colon, path = name.partition(":")
    if not colon or "<" in name:
        raise ParameterError(f"{name} cannot be read back; give the function a name at the top of a module")
    try:
        # Never an import: nothing that a file names is executed.
        out: object = functools.reduce(getattr, path.split("."), sys.modules[module])
    except (KeyError, AttributeError):
        raise ParameterError(f"{name} cannot be found; import its module first") from None
    return out
