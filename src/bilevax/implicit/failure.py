"""A failed backward solve is logged once."""

import logging
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap

from bilevax.core.codes import Code

_LOG = logging.getLogger("bilevax")
_logged: set[str] = set()

_REASONS = {
    Code.MAX_STEPS: (
        "The linear system was not solved to the tolerance. Likely causes: an ill-conditioned system, a `solve` with"
        " too few steps or too much noise. Try a stronger `solve`, or a larger `residual_tol` if that is all you want."
    ),
    Code.NONFINITE: (
        "The cotangent, or the derivative of the decorated function at the solution, is NaN or infinite. Likely causes:"
        " a solver that diverged, a square root or logarithm at zero, an outer loss that overflowed."
    ),
}


def reason(code: int) -> str:
    """A code in words, for a linear system."""
    return _REASONS.get(Code(code), Code(code).message)


def reporter(name: str, residual_tol: float) -> Callable[[Array, Array], Array]:
    """A traceable (code, residual) -> code that logs the first failure of the solver called ``name``.

    Under vmap the host is called once for a whole batch: a callback in a branch would otherwise run for every row,
    failed or not.
    """

    @custom_vmap
    def report(code: Array, residual: Array) -> Array:
        log = partial(jax.debug.callback, partial(_log_once, name, residual_tol), code, residual)
        jax.lax.cond(code == Code.OK, lambda: None, lambda: log())
        return code

    @report.def_vmap
    def batched(size: int, is_batched: list[bool], code: Array, residual: Array) -> tuple[Array, bool]:
        code, residual = (jnp.broadcast_to(x, (size,)) for x in (code, residual))
        # the first row with the worst code stands for all of them
        worst = jnp.argmax(code)
        report(code[worst], residual[worst])
        return code, True

    return report


def _log_once(name: str, residual_tol: float, code: Array, residual: Array) -> None:
    # once a solver: a training loop would repeat it at every step
    if name in _logged:
        return
    _logged.add(name)
    found = Code(int(code))
    _LOG.warning(
        "A derivative of the solution of %s is NaN: its linear system ended with code %s and relative residual %.3g"
        " (residual_tol is %g). %s The solver's `diagnose` returns the code, the residual and the adjoint solution."
        " This is said once.",
        *(name, found.name, float(residual), residual_tol, reason(found)),
    )
