"""Functions as compiled programs of their own, with the compiler options that suit them."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax

T = TypeVar("T")

Options = dict[str, bool | int | str]

PLAINLY: Options = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11, 1) else {}
"""Options of a report: it compiles in two thirds of the time and half of the memory, and runs as fast; later compilers
refuse the option. An estimate has none, as it has none inside a program of the user's, and is to the bit what it is
there."""

BRIEFLY: Options = {**PLAINLY, "xla_backend_optimization_level": 0}
"""Options of a program that runs once and not for long: it compiles in a third of the time, and runs for longer."""


def compiled(fn: Callable[..., T], options: Options, static: tuple[str, ...] = ()) -> Callable[..., T]:
    """A function as a program of its own, with such options where it is for a CPU; not for use inside of another."""

    # Not before the first call: to ask for the backend is to start it, which an import must not do.
    @functools.cache
    def program() -> Callable[..., T]:
        # the options are XLA's for CPUs, and refused elsewhere
        on_cpu = jax.default_backend() == "cpu"
        return jax.jit(fn, static_argnames=static, compiler_options=options if on_cpu else None)

    return lambda *args, **named: program()(*args, **named)
