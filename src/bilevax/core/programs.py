"""Functions as compiled programs of their own, with the compiler options that suit them; what memory they take.

What a program takes beside its inputs is read off its trace, before it is compiled: COPIES times the most that its
variables hold at once, where each is freed after its last use. With what the compiler takes that was 0.6 to 1.65 times
what was measured, of programs beyond 200 MB (``python -m benchmarks memory``).
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from bilevax.core.limits import MB, require
from bilevax.core.trees import is_concrete, is_spread

P = ParamSpec("P")
T = TypeVar("T")

Options = dict[str, bool | int | str]

PLAINLY: Options = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11, 1) else {}
"""Options of a report: it compiles in two thirds of the time and half of the memory, and runs as fast; later compilers
refuse the option. An estimate has none, as it has none inside a program of the user's, and is to the bit what it is
there."""

BRIEFLY: Options = {**PLAINLY, "xla_backend_optimization_level": 0}
"""Options of a program that runs once and not for long: it compiles in a third of the time, and runs for longer."""

SUMMING: Options = PLAINLY and {**PLAINLY, "xla_cpu_experimental_ynn_fusion_type": ""}
"""Options of a report on sparse rows: sums over the classes of [C, d] are not left to the compiler's library, which
takes 12 times as long for d = 42,000; on dense rows, which have few columns and long products, it takes less time."""

COMPILING = 256 * MB
"""What the compiler and its threads take for a small program; where that is not to be had they abort the process."""


COPIES = 1.25
"""What programs took over what their variables take, measured: the compiler copies what loops carry."""

REMEMBERED = 256
"""Programs that are known to fit, of a function."""


def weighed(program: Callable[P, T], what: str) -> Callable[P, T]:
    """A function of ``jax.jit`` whose programs are refused before they are compiled, where memory will not do for one.

    The trace is the one that is compiled afterwards, and is made once.

    Args:
        program: the function.
        what: it does, as a refusal begins.

    Raises:
        ResourceError: (when it is called) there is too little memory.
    """
    known: set[tuple[object, ...]] = set()

    @functools.wraps(program)
    def call(*args: P.args, **named: P.kwargs) -> T:
        leaves, tree = jax.tree.flatten((args, named))
        key = tree, *((x.shape, x.dtype) if hasattr(x, "shape") else type(x) for x in leaves)
        # what other devices and processes have left is not known
        here = all(map(is_concrete, leaves)) and not is_spread(leaves)
        if key not in known and here and jax.default_backend() == "cpu":
            traced = program.trace(*args, **named)  # type: ignore[attr-defined]
            require(COPIES * memory(traced.jaxpr.jaxpr), what, compiler=COMPILING)
            if len(known) == REMEMBERED:
                known.clear()
            known.add(key)
        return program(*args, **named)

    return call


def memory(jaxpr: Jaxpr) -> int:
    """Bytes that a program's variables take at most at once, beside its inputs."""
    # the last equation that reads each variable; results and inputs are never freed
    last = {x: i for i, equation in enumerate(jaxpr.eqns) for x in equation.invars if isinstance(x, Var)}
    last |= dict.fromkeys((x for x in (*jaxpr.outvars, *jaxpr.invars, *jaxpr.constvars) if isinstance(x, Var)), -1)
    live = most = 0
    for i, equation in enumerate(jaxpr.eqns):
        made = sum(map(_bytes, equation.outvars))
        # a loop writes its results over what its body made: the larger counts
        most = max(most, live + max(made, *map(memory, programs_in(equation.params.values())), 0))
        live += sum(_bytes(x) for x in equation.outvars if x in last)
        live -= sum(_bytes(x) for x in {x for x in equation.invars if isinstance(x, Var)} if last[x] == i)
    return most


def programs_in(values: Iterable[object]) -> Iterator[Jaxpr]:
    """The programs among the parameters of an equation."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from programs_in(value)


def _bytes(x: Var | Literal) -> int:
    return int(getattr(x.aval, "size", 0)) * int(getattr(getattr(x.aval, "dtype", None), "itemsize", 0))


def compiled(fn: Callable[..., T], options: Options, static: tuple[str, ...] = (), what: str = "") -> Callable[..., T]:
    """A function as a program of its own, with such options where it is for a CPU; not for use inside of another.

    With ``what`` it does it is :func:`weighed`.
    """

    # Not before the first call: to ask for the backend is to start it, which an import must not do.
    @functools.cache
    def program() -> Callable[..., T]:
        # the options are XLA's for CPUs, and refused elsewhere
        on_cpu = jax.default_backend() == "cpu"
        out = jax.jit(fn, static_argnames=static, compiler_options=options if on_cpu else None)
        return weighed(out, what) if what else out

    return lambda *args, **named: program()(*args, **named)
