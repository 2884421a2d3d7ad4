"""What the suites share: one sentence for each violated contract, and comparisons of trees."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.config import canonicalize, config
from bilevax.core.protocols import Carry, Draw, RowSource, Total
from bilevax.core.records import Cost
from bilevax.core.trees import PyTree
from bilevax.data.fold import fold

ROUNDING = 1e-8
"""Relative difference that reordered sums may make."""


def float64() -> AbstractContextManager[None]:
    """JAX with float64, here and now: the caller's setting is as before when the block ends."""
    # public from jax 0.8 on, in jax.experimental before
    module = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    switch: Callable[[bool], AbstractContextManager[None]] = module.enable_x64
    return switch(True)


def require(condition: object, sentence: str) -> None:
    """Raise an AssertionError that says the sentence, unless the condition holds."""
    if not bool(condition):
        raise AssertionError(sentence)


def title(thing: object) -> str:
    """What messages call it."""
    return type(thing).__name__


def place(where: str) -> str:
    """What messages call where a NaN comes from: ``"inner"``, ``"outer"`` or ``"cross"``."""
    return "cross derivative" if where == "cross" else f"{where} loss"


def vector(tree: PyTree) -> np.ndarray:
    """All entries of a tree, in float64."""
    return np.concatenate([np.zeros(0), *(np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree))])


def relative(found: PyTree, truth: PyTree) -> float:
    """||found - truth|| / ||truth||; infinite where an entry is not finite."""
    # NaN must not pass a comparison: it counts as infinitely far
    a, b = vector(found), vector(truth)
    if a.shape != b.shape or not np.all(np.isfinite(a)):
        return float("inf")
    size = np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / (size if size > 0 else 1.0))


def same_bits(a: PyTree, b: PyTree) -> bool:
    """True if two trees are equal, NaN being equal to itself."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    arrays = ((np.asarray(x), np.asarray(y)) for x, y in pairs)
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in arrays)


def same_to_rounding(a: PyTree, b: PyTree) -> bool:
    """True if two trees are equal up to reordered sums, NaN being equal to itself."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(np.asarray(x), np.asarray(y), rtol=ROUNDING, atol=0, equal_nan=True) for x, y in pairs)


def like(name: str, found: PyTree, wanted: PyTree) -> None:
    """Require one structure, and the same shapes and dtypes."""
    structure: object = jax.tree.structure(found)
    like_it = structure == jax.tree.structure(wanted)
    require(like_it, f"{name} must be a tree like {jax.tree.structure(wanted)}, got {structure}")
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        right = (x.shape, x.dtype) == (y.shape, y.dtype)
        require(right, f"{name} must be {y.dtype}{list(y.shape)}, got {x.dtype}{list(x.shape)}")


def methods(thing: object, *names: str) -> None:
    """Require that it has these methods."""
    for name in names:
        require(callable(getattr(thing, name, None)), f"{title(thing)} must have a method {name}")


def rebuilt(value: PyTree, *, changed: bool = False) -> PyTree:
    """A configuration built again by its constructors; ``changed``: with other numbers where none may compile anew."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {}
        for field in dataclasses.fields(value):
            # what is static is part of the compiled program: another value there compiles by right
            fixed = bool(field.metadata.get("static")) or not changed
            fields[field.name] = rebuilt(getattr(value, field.name), changed=not fixed)
        return type(value)(**fields)
    if isinstance(value, dict):
        return {name: rebuilt(x, changed=changed) for name, x in value.items()}
    if changed and isinstance(value, float):
        return 0.9 * value
    return value + 1 if changed and isinstance(value, int) and not isinstance(value, bool) else value


def configuration(thing: PyTree) -> None:
    """Require a frozen dataclass that is a pytree of numbers, and equal to the same built again."""
    name, kind = title(thing), cast(Any, type(thing))
    require(
        dataclasses.is_dataclass(thing) and kind.__dataclass_params__.frozen,
        f"{name} must be a frozen dataclass, made by bilevax.core.config.config",
    )
    treated = not jax.tree_util.all_leaves([thing])
    require(treated, f"{name} must be registered as a pytree, as bilevax.core.config.config does")
    for leaf in jax.tree.leaves(thing):
        number = isinstance(leaf, int | float | np.generic | np.ndarray | jax.Array)
        require(number, f"every leaf of {name} must be a number, got {leaf!r}; mark names and functions as static")
    # of a table that is kept in another form the constructor's arguments are gone
    derived = [field for field in dataclasses.fields(thing) if not field.init]
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
    blocks = property(lambda self: self.source.blocks)
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

    fold = fold


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
    blocks = None

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

    fold = fold


class Counter:
    """A number that goes up."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> None:
        """One more."""
        self.number += 1

    def after(self, result: PyTree) -> int:
        """The number, once the program that computes the result has ended."""
        # callbacks may still be under way when the result is there
        jax.block_until_ready(result)
        jax.effects_barrier()
        return self.number


class Tally:
    """A function that counts how often Python runs it: at each trace."""

    def __init__(self, function: Callable[..., PyTree]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: PyTree) -> PyTree:
        """What the function says."""
        self.calls += 1
        return self.function(*args)


def traced_once(name: str, tally: Tally, runs: Mapping[str, Callable[[], object]]) -> None:
    """Require that none of these runs, each with what changed for it, calls the function again."""
    require(tally.calls > 0, f"{name} never calls the inner loss")
    for what, run in runs.items():
        before = tally.calls
        run()
        same = tally.calls == before
        require(same, f"{name} is traced anew for {what}; numbers must be leaves, not structure")


def single(name: str, **found: PyTree) -> None:
    """Require float32 in every leaf of what came of arguments in float32."""
    for field, tree in found.items():
        kinds = {str(x.dtype) for x in jax.tree.leaves(tree)}
        require(kinds <= {"float32"}, f"{field} of {name} is {kinds} where all arguments are float32")


def keyed(name: str, run: Callable[[int], PyTree], *, draws: bool = True, field: str | None = None) -> None:
    """Require one result for one key, and another (in ``field``) for another; for all keys one where nothing is drawn.

    Args:
        name: for messages.
        run: the result, by the seed of a key.
        draws: whether it draws.
        field: in which two keys must differ; None: anywhere.
    """
    first, again, other = (run(seed) for seed in (0, 0, 1))
    require(same_bits(first, again), f"{name} gives different results for the same key")
    if draws:
        a, b = (x if field is None else getattr(x, field) for x in (first, other))
        require(not same_bits(a, b), f"{name} gives the same {field or 'result'} for every key")
    else:
        require(same_bits(first, other), f"{name} is said to draw nothing, and its result changes with the key")


def counted_in_full(name: str, cost: Cost, rows: int, drawn: int) -> None:
    """Require that so many minibatches of train, of so many rows, are in the cost."""
    parts = cost.gradients, cost.hvps, cost.cross, cost.measuring
    declared = sum(int(part.calls) for part in parts if part.rows == rows)
    require(declared >= drawn, f"{name} reads {drawn} minibatches of train and counts {declared} in its cost")


def unbiased(what: str, samples: Array, truth: PyTree) -> None:
    """Require that a mean of independent samples, [r, m], is within five standard errors of the truth, [m]."""
    found, wanted = np.asarray(samples, np.float64).reshape(len(samples), -1), vector(truth)
    # |mean - truth| against 5 s / sqrt(r), s the standard deviation of a sample
    error = np.abs(found.mean(axis=0) - wanted)
    noise = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    worst = float(np.max(error / np.maximum(5 * noise, 1e-7 * np.linalg.norm(wanted))))
    require(
        worst <= 1.0,
        f"{what} is biased: its mean over {len(found)} keys is {5 * worst:.1f} standard errors from the truth "
        "(are the minibatches of the stages independent?)",
    )
