"""How many threads the numerical libraries may use."""

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[object]:
    """One thread of BLAS: the matrices are small, and sums do not depend on the machine."""
    limited: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limited


@cache
def _libraries() -> ThreadpoolController:
    """The numerical libraries of this process."""
    return ThreadpoolController()
