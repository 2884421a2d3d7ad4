"""What the suites share: one sentence for each violated contract, and comparisons of trees."""

import dataclasses
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.config import canonicalize, config
from bilevax.core.protocols import Carry, Draw, RowSource, Total
from bilevax.core.trees import PyTree
from bilevax.data.fold import fold

ROUNDING = 1e-8
"""Relative difference that reordered sums may make."""


def float64() -> AbstractContextManager[Any]:
    """JAX with float64, here and now: the caller's setting is as before when the block ends."""
    older: Any = importlib.import_module("jax.experimental")
    switch: Any = jax.enable_x64 if hasattr(jax, "enable_x64") else older.enable_x64
    made: AbstractContextManager[Any] = switch(True)
    return made


def require(condition: Any, sentence: str) -> None:
    """Raise an AssertionError that says the sentence, unless the condition holds."""
    if not bool(condition):
        raise AssertionError(sentence)


def title(thing: Any) -> str:
    """What messages call it."""
    return type(thing).__name__


def vector(tree: PyTree) -> np.ndarray:
    """All entries of a tree, in float64."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def relative(found: PyTree, truth: PyTree) -> float:
    """||found - truth|| / ||truth||; infinite where an entry is not finite."""
    a, b = vector(found), vector(truth)
    if a.shape != b.shape or not np.all(np.isfinite(a)):
        return float("inf")
    size = np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / (size if size > 0 else 1.0))


def same_bits(a: PyTree, b: PyTree) -> bool:
    """True if two trees are equal, NaN being equal to itself."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y), equal_nan=_real(x)) for x, y in pairs)


def same_to_rounding(a: PyTree, b: PyTree) -> bool:
    """True if two trees are equal up to reordered sums, NaN being equal to itself."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(np.asarray(x), np.asarray(y), rtol=ROUNDING, atol=0, equal_nan=True) for x, y in pairs)


def _real(x: Any) -> bool:
    return np.issubdtype(np.asarray(x).dtype, np.floating)


def like(name: str, found: PyTree, wanted: PyTree) -> None:
    """Require one structure, and the same shapes and dtypes."""
    a: Any = jax.tree.structure(found)
    require(a == jax.tree.structure(wanted), f"{name} must be a tree like {jax.tree.structure(wanted)}, got {a}")
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        right = (x.shape, x.dtype) == (y.shape, y.dtype)
        require(right, f"{name} must be {y.dtype}{list(y.shape)}, got {x.dtype}{list(x.shape)}")


def methods(thing: Any, *names: str) -> None:
    """Require that it has these methods."""
    for name in names:
        require(callable(getattr(thing, name, None)), f"{title(thing)} must have a method {name}")


def rebuilt(value: Any, *, changed: bool = False) -> Any:
    """A configuration built again by its constructors; ``changed``: with other numbers where none may compile anew."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {}
        for field in dataclasses.fields(value):
            fixed = bool(field.metadata.get("static")) or not changed
            fields[field.name] = rebuilt(getattr(value, field.name), changed=not fixed)
        return type(value)(**fields)
    if isinstance(value, dict):
        return {name: rebuilt(x, changed=changed) for name, x in value.items()}
    if changed and isinstance(value, float):
        return 0.9 * value
    return value + 1 if changed and isinstance(value, int) and not isinstance(value, bool) else value


def configuration(thing: Any) -> None:
    """Require a frozen dataclass that is a pytree of numbers, and equal to the same built again."""
    name = title(thing)
    frozen = dataclasses.is_dataclass(thing) and getattr(type(thing), "__dataclass_params__").frozen  # noqa: B009
    require(frozen, f"{name} must be a frozen dataclass, made by bilevax.core.config.config")
    treated = not jax.tree_util.all_leaves([thing])
    require(treated, f"{name} must be registered as a pytree, as bilevax.core.config.config does")
    for leaf in jax.tree.leaves(thing):
        number = isinstance(leaf, int | float | np.generic | np.ndarray | jax.Array)
        require(number, f"every leaf of {name} must be a number, got {leaf!r}; mark names and functions as static")
    derived = [field for field in dataclasses.fields(thing) if not field.init]  # a table that is kept in another form
    again = jax.tree.map(lambda x: x, thing) if derived else rebuilt(thing)
    require(again == thing and hash(again) == hash(thing), f"{name} must compare equal to the same built again")
    jax.tree.map(lambda x: x, canonicalize(thing))


@config
class Wrapped:
    """A source that is another one; a subclass changes what it wants."""

    source: RowSource

    rows = property(lambda self: self.source.rows)
    rows_per_batch = property(lambda self: self.source.rows_per_batch)
    is_full_batch = property(lambda self: self.source.is_full_batch)
    keys = property(lambda self: self.source.keys)
    all_rows = property(lambda self: self.source.all_rows)

    def total(self, fn: Callable[[PyTree, PyTree], Total], args: PyTree) -> Total:
        """The source's mean over every row."""
        return self.source.total(fn, args)

    def example(self) -> PyTree:
        """The source's shapes."""
        return self.source.example()

    def plan_chunk(self, plan: PyTree, key: Array, j: Array, first: Array | bool) -> PyTree:
        """The source's plan."""
        return self.source.plan_chunk(plan, key, j, first)

    def chunk_end(self, j: Array) -> Array:
        """The source's boundary."""
        return self.source.chunk_end(j)

    def visit(self, plan: PyTree, j: Array, use: Callable[[Draw], Carry]) -> Carry:
        """``use(draw)`` of the source's minibatch j."""
        return self.source.visit(plan, j, use)

    def fold(
        self,
        step: Callable[..., Carry],
        carry: Carry,
        args: PyTree,
        *,
        key: Array,
        start: Array | int,
        stop: Array | int,
    ) -> Carry:
        """Run the loop over this source."""
        return fold(self, step, carry, args, key=key, start=start, stop=stop)


@config
class Counted(Wrapped):
    """A source that notes each minibatch it hands out, in the running program."""

    note: Callable[[], None]

    def visit(self, plan: PyTree, j: Array, use: Callable[[Draw], Carry]) -> Carry:
        """``use(draw)`` of minibatch j, counted."""
        jax.debug.callback(self.note)
        return self.source.visit(plan, j, use)


@config
class Table:
    """Rows in memory, a pytree of arrays; how they are drawn (``rows_per_batch``, ``visit``), a subclass says."""

    data: PyTree

    rows = property(lambda self: int(jax.tree.leaves(self.data)[0].shape[0]))
    all_rows = property(lambda self: self.data)
    is_full_batch = keys = False

    def total(self, fn: Callable[[PyTree, PyTree], Total], args: PyTree) -> Total:
        """The mean over every row."""
        return fn(args, self.data)

    def example(self) -> PyTree:
        """Every row."""
        return self.data

    def plan_chunk(self, plan: PyTree, key: Array, j: Array, first: Array | bool) -> PyTree:
        """No plan."""
        return ()

    def chunk_end(self, j: Array) -> Array:
        """None of them opens a chunk."""
        return jnp.full_like(j, np.iinfo(np.int32).max)

    def visit(self, plan: PyTree, j: Array, use: Callable[[Draw], Carry]) -> Carry:
        """``use(draw)`` of minibatch j."""
        raise NotImplementedError

    def fold(
        self,
        step: Callable[..., Carry],
        carry: Carry,
        args: PyTree,
        *,
        key: Array,
        start: Array | int,
        stop: Array | int,
    ) -> Carry:
        """Run the loop over this source."""
        return fold(self, step, carry, args, key=key, start=start, stop=stop)


class Counter:
    """A number that goes up."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> None:
        """One more."""
        self.number += 1

    def after(self, result: PyTree) -> int:
        """The number, once the program that computes the result has ended."""
        jax.block_until_ready(result)
        jax.effects_barrier()
        return self.number


def unbiased(what: str, samples: Any, truth: Any) -> None:
    """Require that a mean of independent samples, [r, m], is within five standard errors of the truth, [m]."""
    samples = np.asarray(samples, np.float64).reshape(len(samples), -1)
    truth = vector(truth)
    error = np.abs(samples.mean(axis=0) - truth)
    noise = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    worst = float(np.max(error / np.maximum(5 * noise, 1e-7 * np.linalg.norm(truth))))
    require(
        worst <= 1.0,
        f"{what} is biased: its mean over {len(samples)} keys is {5 * worst:.1f} standard errors from the truth "
        "(are the minibatches of the stages independent?)",
    )
