"""What JAX sees when it traces the inner map and the outer loss: constants, random numbers, what reaches what."""

import inspect
import re
from collections.abc import Iterator
from functools import partial
from types import CellType
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from bilevax.audit.findings import Finding
from bilevax.audit.subject import AuditedProblem, leaf_names
from bilevax.core.keys import is_key
from bilevax.core.programs import programs_in
from bilevax.core.trees import PyTree
from bilevax.problems.problem import Problem

LARGE = 1_000_000
"""Bytes of a constant above which it is reported."""

_RANDOM = {"random_bits", "random_gamma", "threefry2x32", "rng_bit_generator", "rng_uniform"}
_CALLS = {"jit", "pjit", "closed_call", "checkpoint", "custom_jvp_call", "custom_vjp_call", "cond"}
_LIBRARIES = {"jax", "jaxlib", "numpy", "optax", "bilevax"}

Constant: TypeAlias = Array | np.ndarray
Labels: TypeAlias = set[int]


def check_program(s: AuditedProblem) -> Iterator[Finding]:
    """IMPURE, CLOSED_OVER, FLOAT64_CONSTANT."""
    for name in ("inner_map", "outer_loss"):
        closed = trace(name, s)
        if not _same(closed, trace(name, s)):
            yield Finding(
                "IMPURE",
                "error",
                f"{name} is another function when it is traced a second time.",
                "A map must depend on its arguments alone: carry no counter, no state and no NumPy random numbers in "
                "Python; what changes from step to step belongs in the batch.",
            )
            return
        yield from _constants(name, closed, s)


def unused(s: AuditedProblem) -> list[str]:
    """The leaves of lam that reach neither function."""
    found = reached("inner_map", "lam", s) | reached("outer_loss", "lam", s)
    return [name for n, name in enumerate(leaf_names("lam", s.lam)) if n not in found]


def reached(name: str, argument: str, s: AuditedProblem) -> set[int]:
    """The leaves of ``w``, ``lam`` or ``batch``, by number, from which a way leads to what a function returns."""
    return set().union(*dependencies(trace(name, s).jaxpr, _labels(name, s, argument)))


def trace(name: str, s: AuditedProblem) -> ClosedJaxpr:
    """The program of ``inner_map`` or ``outer_loss``, of a trace of its own; the problem's arrays are its inputs."""

    def call(problem: Problem, w: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
        return getattr(problem, name)(w, lam, batch)

    return jax.make_jaxpr(call)(s.problem, s.w0, s.lam, _example(name, s))


def _example(name: str, s: AuditedProblem) -> PyTree:
    """The shapes of a batch of the source that a function reads."""
    return (s.train if name == "inner_map" else s.val).example()


def draws_fixed_numbers(name: str, s: AuditedProblem) -> bool:
    """True where ``inner_map`` or ``outer_loss`` draws random numbers from a key that no batch holds."""
    seen: list[Labels] = []
    dependencies(trace(name, s).jaxpr, _labels(name, s, "batch"), seen)
    return any(not found for found in seen)


def dependencies(jaxpr: Jaxpr, labels: list[Labels], random: list[Labels] | None = None) -> list[Labels]:
    """Which labels of the inputs reach each output; exact through calls and branches, coarse through loops.

    Args:
        jaxpr: a program.
        labels: of its inputs.
        random: gets the labels that reach each draw of random numbers.
    """
    of: dict[Var, Labels] = dict(zip(jaxpr.invars, labels, strict=True))
    for equation in jaxpr.eqns:
        inputs = [set() if isinstance(x, Literal) else of.get(x, set()) for x in equation.invars]
        everything = set[int]().union(*inputs)
        if random is not None and equation.primitive.name in _RANDOM:
            random.append(everything)
        # by default each output depends on each input
        outputs = [everything for _ in equation.outvars]
        inner = list(programs_in(equation.params.values()))
        parts = [dependencies(p, _aligned(inputs, len(p.invars), everything), random) for p in inner]
        if parts and equation.primitive.name in _CALLS:
            # of a call as its program says; of branches as any of them says, and on the choice among them
            choice = inputs[0] if equation.primitive.name == "cond" else set()
            outputs = [choice.union(*several) for several in zip(*parts, strict=True)]
        of.update(zip(equation.outvars, outputs, strict=True))
    return [set() if isinstance(x, Literal) else of.get(x, set()) for x in jaxpr.outvars]


def _aligned(inputs: list[Labels], number: int, everything: Labels) -> list[Labels]:
    """The labels of a program inside an equation: its inputs are the last of the equation's."""
    return inputs[-number:] if 0 < number <= len(inputs) else [everything] * number


def _labels(name: str, s: AuditedProblem, argument: str) -> list[Labels]:
    """The inputs of a trace: the leaves of an argument labelled by their number, the others by nothing."""
    sizes = [len(jax.tree.leaves(tree)) for tree in (s.problem, s.w0, s.lam, _example(name, s))]
    place = ("problem", "w", "lam", "batch").index(argument)
    first = sum(sizes[:place])
    return [{n - first} if first <= n < first + sizes[place] else set() for n in range(sum(sizes))]


def _same(a: ClosedJaxpr, b: ClosedJaxpr) -> bool:
    """Equal programs on equal constants; addresses of Python objects do not count."""
    # constants that the program holds by reference do not show in its text
    first, second = (re.sub(r"0x[0-9a-f]+", "", str(x)) for x in (a, b))
    x, y = list(held_by(a)), list(held_by(b))
    return first == second and len(x) == len(y) and all(map(_equal, x, y))


def _equal(a: Constant, b: Constant) -> bool:
    return a is b or np.array_equal(plain(a), plain(b))


def plain(x: Constant) -> np.ndarray:
    """An array on the host; random keys as their numbers."""
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)


def held_by(closed: ClosedJaxpr) -> Iterator[Constant]:
    """Every array that a program holds, in any of its parts."""
    yield from (x for x in closed.consts if hasattr(x, "dtype"))
    stack = [closed.jaxpr]
    while stack:
        for equation in stack.pop().eqns:
            yield from (x.val for x in equation.invars if isinstance(x, Literal) and np.ndim(x.val) > 0)
            for value in equation.params.values():
                for part in value if isinstance(value, tuple | list) else (value,):
                    if isinstance(part, ClosedJaxpr):
                        yield from (x for x in part.consts if hasattr(x, "dtype"))
            stack.extend(programs_in(equation.params.values()))


def _constants(name: str, closed: ClosedJaxpr, s: AuditedProblem) -> Iterator[Finding]:
    held = list({id(x): x for x in held_by(closed)}.values())
    size = sum(plain(x).nbytes for x in held)
    if size > LARGE:
        largest = max(held, key=lambda x: plain(x).nbytes)
        yield Finding(
            "CLOSED_OVER",
            "warning",
            f"{name} holds {size / 1e6:.1f} MB of constants, the largest {largest.dtype}{list(largest.shape)}.",
            "Pass arrays as data of a source, in lam, or as a field of a loss that is a dataclass: a constant is "
            "copied into every compiled program, and other data compile it anew.",
        )
    if jnp.result_type(float) == np.float64:
        return
    # JAX narrows silently: what is float64 in Python and float32, equal, in the program
    wide = [x for x in reachable(getattr(s.problem, name)) if x.dtype == np.float64 and x.ndim > 0]
    narrowed = [x for x in wide if any(_equal(x.astype(np.float32), y) for y in held)]
    if narrowed:
        shapes = ", ".join(f"float64{list(x.shape)}" for x in narrowed)
        yield Finding(
            "FLOAT64_CONSTANT",
            "warning",
            f"{name} uses {shapes}, which JAX narrows to float32 without a word.",
            "Call jax.config.update('jax_enable_x64', True) first to compute in float64, or make it float32 yourself.",
        )


def reachable(thing: object) -> Iterator[np.ndarray]:
    """The NumPy arrays that a function can read: its closure, the globals it names, its object's fields."""
    seen: set[int] = set()
    stack: list[object] = [thing]
    while stack:
        x = stack.pop()
        if id(x) in seen or inspect.ismodule(x) or isinstance(x, jax.Array):
            continue
        seen.add(id(x))
        if isinstance(x, np.ndarray):
            yield x
        elif isinstance(x, dict):
            stack.extend(x.values())
        elif isinstance(x, tuple | list | set):
            stack.extend(x)
        elif inspect.isfunction(x):
            # what a library closes over is its own business
            if (x.__module__ or "").partition(".")[0] in _LIBRARIES:
                continue
            stack.extend(c.cell_contents for c in x.__closure__ or () if _filled(c))
            stack.extend(x.__globals__[n] for n in x.__code__.co_names if n in x.__globals__)
            stack.extend(x.__defaults__ or ())
        elif isinstance(x, partial):
            stack.extend((x.func, *x.args, *x.keywords.values()))
        elif inspect.ismethod(x):
            stack.extend((x.__func__, x.__self__))
        elif hasattr(x, "__wrapped__"):
            stack.append(x.__wrapped__)
        elif hasattr(x, "__dict__") and not inspect.isclass(x):
            stack.extend(vars(x).values())
            stack.append(vars(type(x)).get("__call__"))


def _filled(cell: CellType) -> bool:
    # a name that the enclosing function has not bound yet
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
