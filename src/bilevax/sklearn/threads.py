"""How many threads the numerical libraries may use."""

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController


def one_thread(*, openmp: bool = False) -> AbstractContextManager[object]:
    """One thread of BLAS: the matrices are small, and sums do not depend on the machine.

    Args:
        openmp: whether OpenMP, too, has one.
    """
    limited: AbstractContextManager[object] = _libraries().limit(limits=1, user_api=None if openmp else "blas")
    return limited


@cache
def _libraries() -> ThreadpoolController:
    """The numerical libraries of this process."""
    return ThreadpoolController()
