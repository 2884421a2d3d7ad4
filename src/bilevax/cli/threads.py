"""How many threads a command computes with."""

import os
import sys

from bilevax.core.errors import UsageError

_NUMBERS = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""What JAX and the libraries of numpy read, each once, when they are imported."""


def one_thread() -> None:
    """Compute with one thread: sums that are split among threads have other bits with another number of them.

    Raises:
        UsageError: JAX is imported already, and has its threads.
    """
    if "jax" in sys.modules:
        raise UsageError("--deterministic comes too late: JAX is imported already; start the command anew")
    os.environ.update(dict.fromkeys(_NUMBERS, "1"))
